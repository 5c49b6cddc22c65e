"""Heads: small classifiers on cached codes, each an ordinary scikit-learn estimator.

`HEADS` lists them, `make_head` builds one, `fit` trains one with its settings chosen inside the training rows and
returns a `FittedHead`; `linear_form` writes a linear one as a single affine map of the raw codes.
"""

from __future__ import annotations

from .auto import AutoClassifier
from .estimators import CentroidClassifier, LDAClassifier, ShrunkScaler
from .fitted import FittedHead, fit
from .linear import linear_form, normalised_form
from .many import TorchMLPClassifier
from .metrics import METRICS
from .sweep import HeadSweep
from .zoo import HEADS, HeadInfo, make_head

__all__ = [
    "HEADS",
    "METRICS",
    "AutoClassifier",
    "CentroidClassifier",
    "FittedHead",
    "HeadInfo",
    "HeadSweep",
    "LDAClassifier",
    "ShrunkScaler",
    "TorchMLPClassifier",
    "fit",
    "linear_form",
    "make_head",
    "normalised_form",
]
