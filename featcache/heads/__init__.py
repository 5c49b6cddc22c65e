"""Heads: small classifiers on cached codes, each an ordinary scikit-learn estimator.

`HEADS` lists them, `make_head` builds one, `fit` trains one with its settings chosen inside the training rows and
returns a `FittedHead`; `linear_form` writes a linear one as a single affine map of the raw codes.
"""

from __future__ import annotations

from .auto import AutoClassifier
from .calibration import TemperatureClassifier
from .closed_forms import (
    CentroidClassifier,
    IncrementalRidge,
    IncrementalRidgeClassifier,
    LDAClassifier,
    SimpleShotClassifier,
    fit_blocks,
)
from .ensemble import EnsembleClassifier
from .estimators import ShrunkScaler
from .fitted import FittedHead
from .fitting import fit
from .kernel import NystroemClassifier
from .layers import LayerBlocks, join_layers
from .linear import linear_form, normalised_form
from .many import TorchMLPClassifier
from .metrics import METRICS
from .neighbors import CosineKNeighborsClassifier
from .novelty import KNeighborsDetector, MahalanobisDetector
from .preprocessing import CodeScaler, ShrunkWhitener, SignedPower
from .rejection import RejectingClassifier
from .searching import SearchedHead
from .selecting import HeadToToeClassifier
from .sweep import HeadSweep
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
    "CosineKNeighborsClassifier",
    "EnsembleClassifier",
    "FittedHead",
    "HeadInfo",
    "KNeighborsDetector",
    "IncrementalRidge",
    "IncrementalRidgeClassifier",
    "HeadSweep",
    "LDAClassifier",
    "MahalanobisDetector",
    "NystroemClassifier",
    "RejectingClassifier",
    "ShrunkScaler",
    "TemperatureClassifier",
    "SimpleShotClassifier",
    "TorchMLPClassifier",
    "fit",
    "fit_blocks",
    "linear_form",
    "make_head",
    "normalised_form",
]
