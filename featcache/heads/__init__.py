"""Heads: small classifiers on cached codes, each an ordinary scikit-learn estimator.

`HEADS` lists them, `make_head` builds one, `fit` trains one with its settings chosen inside the training rows and
returns a `FittedHead`; `linear_form` writes a linear one as a single affine map of the raw codes.
"""

from __future__ import annotations

from .auto import AutoClassifier
from .estimators import CentroidClassifier, LDAClassifier, ShrunkScaler
from .fitted import FittedHead, fit
from .layers import LayerBlocks, join_layers
from .linear import linear_form, normalised_form
from .metrics import METRICS
from .preprocessing import CodeScaler, ShrunkWhitener, SignedPower
from .searching import SearchedHead
from .selecting import HeadToToeClassifier
from .views import ViewsClassifier, join_views
from .zoo import HEADS, HeadInfo, make_head

__all__ = [
    "join_views",
    "join_layers",
    "ViewsClassifier",
    "SignedPower",
    "ShrunkWhitener",
    "SearchedHead",
    "LayerBlocks",
    "HeadToToeClassifier",
    "CodeScaler",
    "HEADS",
    "METRICS",
    "AutoClassifier",
    "CentroidClassifier",
    "FittedHead",
    "HeadInfo",
    "LDAClassifier",
    "ShrunkScaler",
    "fit",
    "linear_form",
    "make_head",
    "normalised_form",
]
