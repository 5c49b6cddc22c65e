"""What is measured of predictions on test rows, and how much each row contributes to it.

A contribution (influence) says by how much the metric would change, to first order and times the number of rows, if a
row were counted a little more. Contributions have mean 0 around the metric; their variance over n rows, divided by n,
is the metric's sampling variance: for a mean over rows exactly, for ratios and areas to first order (DeLong et al. 1988
for the area under the ROC curve). Intervals of every metric are made of them, in one way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..errors import HeadError
from ..reporting import SMALLER_IS_BETTER

__all__ = ["SMALLER_IS_BETTER", "Predicted", "check_measure", "check_top", "is_bounded", "measure", "measures_for"]

#: Bins of confidence, as Guo et al. (2017) have them.
_BINS = 15
_MOST_CURVES = 200
_TOP = re.compile(r"top_([1-9]\d*)")


@dataclass(frozen=True)
class Predicted:
    """What a head said of test rows.

    Parameters
    ----------
    true, codes : ndarray of int of shape (n,)
        Class numbers that are true and predicted.
    scores : ndarray of shape (n, n_classes) or None, default=None
        One score per class, larger for more likely; -inf for classes that the head does not know.
    proba : ndarray of shape (n, n_classes) or None, default=None
        Probabilities, of heads that give them.
    n_classes : int, default=2
        Of the data.
    """

    true: np.ndarray
    codes: np.ndarray
    scores: np.ndarray | None = None
    proba: np.ndarray | None = None
    n_classes: int = 2


def _accuracy(p: Predicted) -> tuple[float, np.ndarray]:
    return _mean_of((p.true == p.codes).astype(np.float64))


def _mean_of(values: np.ndarray) -> tuple[float, np.ndarray]:
    mean = float(values.mean())
    return mean, values - mean


def _balanced_accuracy(p: Predicted) -> tuple[float, np.ndarray]:
    """Mean recall over the classes that occur among the test rows, as scikit-learn's balanced_accuracy_score."""
    n = len(p.true)
    hit, totals = p.true == p.codes, np.bincount(p.true)
    recall = np.bincount(p.true, hit) / np.maximum(totals, 1)
    present = int((totals > 0).sum())
    return float(recall.sum() / present), (hit - recall[p.true]) * (n / (present * totals[p.true]))


def _macro_f1(p: Predicted) -> tuple[float, np.ndarray]:
    """Mean F1 over the classes that are true or predicted, as scikit-learn's f1_score(average="macro")."""
    n, size = len(p.true), int(max(p.true.max(), p.codes.max())) + 1
    hits = np.bincount(p.true[p.true == p.codes], minlength=size).astype(np.float64)
    both = (np.bincount(p.true, minlength=size) + np.bincount(p.codes, minlength=size)).astype(np.float64)
    present = int((both > 0).sum())
    safe = np.maximum(both, 1.0)
    f1 = 2.0 * hits / safe
    # A row adds to the hits of its class, and to the sums of its true and of its predicted class.
    gain = 2.0 * (p.true == p.codes) / safe[p.true] - f1[p.true] / safe[p.true] - f1[p.codes] / safe[p.codes]
    return float(f1.sum() / present), gain * (n / present)


def _top(k: int) -> Callable[[Predicted], tuple[float, np.ndarray] | None]:
    def top(p: Predicted) -> tuple[float, np.ndarray] | None:
        """Share of rows whose class is among the k best scores; of classes that tie for a place, each by its chance."""
        if p.scores is None or p.scores.shape[1] <= k:
            return None
        own = p.scores[np.arange(len(p.true)), p.true][:, None]
        above, tied = (p.scores > own).sum(axis=1), (p.scores == own).sum(axis=1)
        return _mean_of(np.clip((k - above) / np.maximum(tied, 1), 0.0, 1.0) * np.isfinite(own[:, 0]))

    return top


def _auroc(p: Predicted) -> tuple[float, np.ndarray] | None:
    """Mean over classes of the area under the ROC curve, one class against the rest, as scikit-learn's macro "ovr"."""
    if p.scores is None:
        return None
    n = len(p.true)
    total, gains, used = 0.0, np.zeros(n), 0
    for c in np.unique(p.true):
        own = p.true == c
        if own.all():
            continue
        area, gain = _area(p.scores[:, c], own)
        total, gains, used = total + area, gains + gain, used + 1
    return (total / used, gains / used) if used else None


def _area(scores: np.ndarray, own: np.ndarray) -> tuple[float, np.ndarray]:
    """Area under one ROC curve and the rows' contributions (DeLong et al. 1988)."""
    n, n_own = len(own), int(own.sum())
    # Of a row of the class: share of other rows below it; of another row: share of the class's rows above it.
    share = np.empty(n)
    share[own] = _below(scores[own], scores[~own])
    share[~own] = 1.0 - _below(scores[~own], scores[own])
    area = float(share[own].mean())
    return area, (share - area) * np.where(own, n / n_own, n / (n - n_own))


def _below(scores: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Share of `others` that each score lies above; equal ones count half."""
    others = np.sort(others)
    return (np.searchsorted(others, scores, "left") + np.searchsorted(others, scores, "right")) / (2.0 * len(others))


def _log_loss(p: Predicted) -> tuple[float, np.ndarray] | None:
    """Mean negative log probability of the true class, in nats, clipped as scikit-learn's log_loss clips."""
    if p.proba is None:
        return None
    proba = np.asarray(p.proba, dtype=np.float64)
    own = proba[np.arange(len(p.true)), p.true]
    least = float(np.finfo(np.float64).eps)
    return _mean_of(-np.log(np.clip(own, least, 1.0 - least)))


def _calibration_error(p: Predicted) -> tuple[float, np.ndarray] | None:
    """Expected calibration error in 15 bins of equal width (Guo et al. 2017)."""
    if p.proba is None:
        return None
    sure = p.proba.max(axis=1).astype(np.float64)
    gap = sure - (p.proba.argmax(axis=1) == p.true)
    bins = np.clip(np.ceil(sure * _BINS).astype(int) - 1, 0, _BINS - 1)
    sign = np.sign(np.bincount(bins, gap, minlength=_BINS))
    signed = sign[bins] * gap
    return float(signed.mean()), signed - signed.mean()


_MEASURES: dict[str, Callable[[Predicted], tuple[float, np.ndarray] | None]] = {
    "accuracy": _accuracy,
    "balanced_accuracy": _balanced_accuracy,
    "macro_f1": _macro_f1,
    "auroc": _auroc,
    "log_loss": _log_loss,
    "ece": _calibration_error,
}


def check_measure(name: str) -> Callable[[Predicted], tuple[float, np.ndarray] | None]:
    """Return the function of a metric; HeadError for an unknown name."""
    if isinstance(name, str):
        if name in _MEASURES:
            return _MEASURES[name]
        if found := _TOP.fullmatch(name):
            return _top(int(found[1]))
    raise HeadError(f"metric: expected one of {', '.join(_MEASURES)}, or top_5 (any number), got {name!r}")


def check_top(name: str, n_classes: int, dataset: str) -> None:
    """Raise HeadError for a top_k that every head would get right."""
    if (found := _TOP.fullmatch(name)) and int(found[1]) >= n_classes:
        raise HeadError(f"{dataset}: expected top_k with k below its {n_classes} classes, got {name}; take a smaller k")


def measure(name: str, predicted: Predicted) -> tuple[float, np.ndarray] | None:
    """Return a metric and the contributions (n,) of the rows; None where the head gives too little for it.

    Parameters
    ----------
    name : str
        "accuracy", "balanced_accuracy", "macro_f1", "top_5" (any number), "auroc", "log_loss", "ece".
    predicted : Predicted
        At least one row.

    Examples
    --------
    >>> value, gains = measure("accuracy", Predicted(np.array([0, 1, 1]), np.array([0, 1, 0])))
    >>> round(value, 3), gains.round(3).tolist()
    (0.667, [0.333, 0.333, -0.667])
    """
    return check_measure(name)(predicted)


def measures_for(n_classes: int) -> tuple[str, ...]:
    """Return the metrics that are always reported, where a head gives enough for them.

    With hundreds of classes the areas under as many ROC curves take longer than a fit: then only where they are asked.
    """
    area = ("auroc",) if n_classes <= _MOST_CURVES else ()
    top = ("top_5",) if n_classes > 10 else ("top_2",) if n_classes > 2 else ()
    return ("accuracy", "balanced_accuracy", "macro_f1", *top, *area, "log_loss", "ece")


def is_bounded(name: str) -> bool:
    """Tell whether a metric lies between 0 and 1; others are losses, 0 or more."""
    return name != "log_loss"
