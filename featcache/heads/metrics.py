"""What is measured: of class codes, of several labels per row, of numbers; and two of probabilities."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..errors import HeadError

__all__ = [
    "LABEL_METRICS",
    "METRICS",
    "NUMBER_METRICS",
    "SMALLER_IS_BETTER",
    "calibration_error",
    "check_metric",
    "log_loss",
]


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


def _mean_average_precision(true: np.ndarray, scores: np.ndarray) -> float:
    """Mean over the labels that occur in `true` of average precision, as scikit-learn's average_precision_score."""
    found = [_average_precision(true[:, j], scores[:, j]) for j in np.flatnonzero(true.any(axis=0))]
    return float(np.mean(found)) if found else 0.0


def _average_precision(true: np.ndarray, scores: np.ndarray) -> float:
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(true[order])
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # rows of one score come all at once
    precision = hits[ends] / (ends + 1)
    return float(np.diff(hits[ends], prepend=0) @ precision / hits[-1])


def _subset_accuracy(true: np.ndarray, scores: np.ndarray) -> float:
    return float(np.mean((true == (scores > 0)).all(axis=1)))


def _micro_label_f1(true: np.ndarray, scores: np.ndarray) -> float:
    both = true.sum() + (scores > 0).sum()
    return float(2.0 * (true & (scores > 0)).sum() / both) if both else 0.0


def _macro_label_f1(true: np.ndarray, scores: np.ndarray) -> float:
    """Mean F1 over the labels that occur in `true` or are predicted."""
    hits, both = (true & (scores > 0)).sum(axis=0), true.sum(axis=0) + (scores > 0).sum(axis=0)
    return float(np.mean(2.0 * hits[both > 0] / both[both > 0])) if both.any() else 0.0


#: name → function of (true labels, scores), bool and float of shape (n_samples, n_labels); a label is predicted where
#: its score is above 0; larger is better. "map" is the mean average precision, which needs no threshold.
LABEL_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "map": _mean_average_precision,
    "subset_accuracy": _subset_accuracy,
    "micro_f1": _micro_label_f1,
    "macro_f1": _macro_label_f1,
}


def _r2(true: np.ndarray, predicted: np.ndarray) -> float:
    """1 - squared errors over those of the mean; for numbers that are all the same, 1.0 without errors and 0.0 with."""
    errors, spread = np.square(true - predicted).sum(), np.square(true - true.mean()).sum()
    if spread == 0.0 or (true == true[0]).all():  # whose mean may be rounded
        return float(errors == 0.0)
    return float(1.0 - errors / spread)


def _mean_absolute_error(true: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.abs(true - predicted).mean())


def _root_mean_squared_error(true: np.ndarray, predicted: np.ndarray) -> float:
    return float(np.sqrt(np.square(true - predicted).mean()))


#: name → function of (true numbers, predicted numbers), float of shape (n_samples,); "mae" and "rmse" are in the
#: numbers' own unit.
NUMBER_METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "r2": _r2,
    "mae": _mean_absolute_error,
    "rmse": _root_mean_squared_error,
}

#: Those of all metrics of which smaller is better.
SMALLER_IS_BETTER = frozenset({"mae", "rmse"})


def check_metric(
    name: str, metrics: dict[str, Callable[[np.ndarray, np.ndarray], float]] = METRICS
) -> Callable[[np.ndarray, np.ndarray], float]:
    """Return the function of a metric, or raise HeadError with the names there are."""
    if not isinstance(name, str) or name not in metrics:
        raise HeadError(f"metric: expected one of {', '.join(metrics)}, got {name!r}")
    return metrics[name]


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
