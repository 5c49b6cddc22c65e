"""The three metrics of featcache, on integer class codes, and two of probabilities."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import HeadError

__all__ = ["METRICS", "calibration_error", "check_metric", "log_loss"]


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


def log_loss(true: np.ndarray, probabilities: np.ndarray) -> float:
    """Return the mean negative log probability of the true class, in nats.

    Parameters
    ----------
    true : ndarray of int of shape (n_samples,)
        Class codes, columns of `probabilities`.
    probabilities : ndarray of shape (n_samples, n_classes)
        Rows sum to 1.
    """
    own = probabilities[np.arange(len(true)), true]
    return float(-np.log(np.maximum(own, np.finfo(np.float64).tiny)).mean())


def calibration_error(true: np.ndarray, probabilities: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error: |confidence - accuracy|, averaged over bins of equal width by their rows.

    As Guo et al. 2017 (arXiv 1706.04599) measure it.

    Parameters
    ----------
    true : ndarray of int of shape (n_samples,)
        Class codes, columns of `probabilities`.
    probabilities : ndarray of shape (n_samples, n_classes)
        Rows sum to 1.
    bins : int, default=15
        Bins over (0, 1].

    Examples
    --------
    >>> calibration_error(np.array([0, 1]), np.array([[0.75, 0.25], [0.75, 0.25]]))
    0.25
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == true
    place = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(place, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(true))
