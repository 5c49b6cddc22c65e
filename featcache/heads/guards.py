"""What `fit` adds to a head on request: calibrated probabilities, a threshold for answers, a detector of novelties."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from ..errors import HeadError
from ..splits import Folds
from .calibration import fit_temperature
from .held_out import held_out_logits
from .rejection import confidences, rejection_threshold

__all__ = ["DETECTORS", "check_guards", "detector_of", "guards_of"]

#: What `novelty` may be.
DETECTORS = ("mahalanobis", "knn")


def check_guards(calibrate: Any, reject: Any, novelty: Any) -> None:
    """Raise HeadError, before any work, for values that `fit` does not take."""
    if not isinstance(calibrate, (bool, np.bool_)):
        raise HeadError(f"calibrate: expected True or False, got {calibrate!r}")
    number = isinstance(reject, Real) and not isinstance(reject, bool)
    if reject is not None and not (number and 0.0 <= float(reject) < 1.0):
        raise HeadError(f"reject: expected None or an error rate from 0 to below 1, got {reject!r}; 0.05 is usual")
    if novelty is not None and novelty not in DETECTORS:
        raise HeadError(f"novelty: expected None or one of {', '.join(DETECTORS)}, got {novelty!r}")


def guards_of(
    estimator: Any,
    X: np.ndarray,
    y: np.ndarray,
    folds: Folds | None,
    groups: np.ndarray | None,
    *,
    calibrate: bool,
    reject: float | None,
    novelty: str | None,
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Return the fields of FittedHead that were asked for, and notes.

    Parameters
    ----------
    estimator : estimator
        Fitted on X and y.
    X, y : ndarray of shape (n, d) and (n,)
        Training rows.
    folds : Folds or None
        Row numbers into X, from which scores of held-out rows come.
    groups : ndarray of shape (n,) or None
        Groups of the rows.
    calibrate : bool
        Whether to fit a temperature.
    reject : float or None
        Wanted error rate; brings a temperature, too.
    novelty : str or None
        A name among `DETECTORS`.
    """
    fields: dict[str, Any] = {}
    notes: list[str] = []
    if calibrate or reject is not None:
        classes = np.unique(y)
        try:
            rows, logits = held_out_logits(estimator, X, y, classes, folds, groups)
        except ValueError as error:  # of a clone, on fewer rows
            who = "calibrate" if reject is None else "reject"
            raise HeadError(f"{who}: {type(estimator).__name__} on a fold: {' '.join(str(error).split())}") from error
        codes = np.searchsorted(classes, y[rows])
        fields["temperature"] = fit_temperature(logits, codes)
        if not len(rows):
            notes.append("probabilities are not calibrated: no class has two rows to hold one out")
        if reject is not None:
            fields["rejection"], why = _rejection(logits / fields["temperature"], codes, float(reject))
            notes += why
    if novelty is not None:
        detector = detector_of(novelty, X, y, groups)
        fields["detector"] = detector
        notes += [f"novelty: {note}" for note in detector.notes_]
    return fields, tuple(notes)


def detector_of(novelty: str, X: np.ndarray, y: np.ndarray | None, groups: np.ndarray | None) -> Any:
    """Fit a detector named among `DETECTORS` on training rows; without labels y they are one class."""
    from .novelty import KNeighborsDetector, MahalanobisDetector

    if len(X) < 2:
        raise HeadError(f"novelty: expected two training rows or more, got {len(X)}")
    if novelty == "mahalanobis":
        return MahalanobisDetector().fit(X, y, groups=groups)
    return KNeighborsDetector().fit(X, groups=groups)


def _rejection(logits: np.ndarray, codes: np.ndarray, wanted: float) -> tuple[dict[str, float], list[str]]:
    right = logits.argmax(axis=1) == codes
    threshold, coverage, error_rate, notes = rejection_threshold(confidences(logits), right, wanted)
    return {"wanted": wanted, "threshold": threshold, "coverage": coverage, "error_rate": error_rate}, notes
