"""Whether a head that says 80 % is right in 80 % of the cases."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..reporting.document import Section, Text
from ..reporting.drawing import reliability
from .held import HeldOut

__all__ = ["reliability_bins", "section"]


def reliability_bins(confidence: np.ndarray, right: np.ndarray, bins: int = 10) -> list[dict[str, Any]]:
    """Return bins of equal width over the probability of the predicted class.

    Parameters
    ----------
    confidence : ndarray of shape (n,)
        Probability of the predicted class.
    right : ndarray of bool of shape (n,)
        Whether the prediction is the label.
    bins : int, default=10
        How many.

    Returns
    -------
    list of dict
        low, high, count, confidence and accuracy (means; 0 in an empty bin).

    Examples
    --------
    >>> reliability_bins(np.array([0.95, 0.97]), np.array([True, False]))[-1]["accuracy"]
    0.5
    """
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    out = []
    for i in range(bins):
        mine = place == i
        n = int(mine.sum())
        line: dict[str, Any] = {"low": i / bins, "high": (i + 1) / bins, "count": n}
        line["confidence"] = float(confidence[mine].mean()) if n else 0.0
        out.append(line | {"accuracy": float(right[mine].mean()) if n else 0.0})
    return out


def section(held: HeldOut) -> Section | None:
    """Return the section on calibration; None for a head without probabilities."""
    error, right = held.calibration_error, held.right
    if held.confidence is None or error is None:
        return None
    bins, mean = reliability_bins(held.confidence, right), float(held.confidence.mean())
    way = "surer than it should be" if mean > right.mean() else "less sure than it could be"
    text = (
        f"{held.head}, {held.how}: it is {100 * mean:.0f} % sure on average and right in {100 * right.mean():.0f} % of "
        f"the cases: {way}. The expected calibration error is {error:.3f}."
    )
    note = Text(
        "Probabilities as the head gives them (of a head that gives none, made of its scores as fit --calibrate does). "
        "Bars are 95 % intervals (Wilson).",
        note=True,
    )
    data = {"head": held.head, "error": error, "mean_confidence": mean, "accuracy": float(right.mean()), "bins": bins}
    return Section(
        "calibration", "Can its probabilities be believed?", (Text(text), reliability(bins, error), note), data
    )
