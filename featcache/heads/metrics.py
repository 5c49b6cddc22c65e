"""The three metrics of featcache, on integer class codes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import HeadError

__all__ = ["METRICS", "check_metric"]


def _accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.mean(true == predicted))


def _balanced_accuracy(true: np.ndarray, predicted: np.ndarray) -> float:
    """Mean recall over the classes that occur in `true`."""
    totals = np.bincount(true)
    hits = np.bincount(true[true == predicted], minlength=len(totals))
    return float(np.mean(hits[totals > 0] / totals[totals > 0]))


def _macro_f1(true: np.ndarray, predicted: np.ndarray) -> float:
    """Mean F1 over the classes that occur in `true` or `predicted`, as scikit-learn's f1_score(average="macro")."""
    n = int(max(true.max(), predicted.max())) + 1
    hits = np.bincount(true[true == predicted], minlength=n)
    both = np.bincount(true, minlength=n) + np.bincount(predicted, minlength=n)
    return float(np.mean(2.0 * hits[both > 0] / both[both > 0]))


#: name → function of (true codes, predicted codes), both int arrays of shape (n_samples,); larger is better.
METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
}


def check_metric(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return the function of a metric, or raise HeadError with the names there are."""
    if not isinstance(name, str) or name not in METRICS:
        raise HeadError(f"metric: expected one of {', '.join(METRICS)}, got {name!r}")
    return METRICS[name]
