"""Verification on cached codes: same or different, enrolment of new identities, one-shot identification.

`Verifier` is the estimator, `verify` evaluates it on identities that it was not trained on; the metrics are
scikit-learn transformers, and `make_pairs`, `Curve` and `ScoreHistogram` are what they are measured with.
"""

from __future__ import annotations

from .choosing import METRICS, make_metric
from .evaluating import verify
from .metrics import CosineMetric, LDAMetric, WCCNMetric, WhiteningMetric
from .pairs import Pairs, identity_folds, make_pairs
from .plda import PLDAMetric
from .plotting import plot_verification
from .rates import AcceptanceThreshold, Curve, ScoreHistogram
from .siamese import SiameseMetric
from .verifier import Verifier

__all__ = [
    "METRICS",
    "AcceptanceThreshold",
    "CosineMetric",
    "Curve",
    "LDAMetric",
    "PLDAMetric",
    "Pairs",
    "ScoreHistogram",
    "SiameseMetric",
    "Verifier",
    "WCCNMetric",
    "WhiteningMetric",
    "identity_folds",
    "make_metric",
    "make_pairs",
    "plot_verification",
    "verify",
]
