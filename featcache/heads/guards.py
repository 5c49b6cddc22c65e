"""What `fit` adds to a head on request: calibrated probabilities, a threshold for answers, a detector of novelties."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from ..errors import HeadError
from ..splits import Folds
from .calibration import fit_temperature
from .held_out import class_logits, held_out_logits
from .rejection import confidences, label_free_temperature, rejection_threshold

__all__ = ["DETECTORS", "check_guards", "detector_of", "guards_of"]

#: What `novelty` may be.
DETECTORS = ("mahalanobis", "knn")

#: Training rows, at most, that the final head's confidences are looked at on.
_LOOKED_AT = 2000


def check_guards(calibrate: Any, reject: Any, reject_confidence: Any, novelty: Any) -> None:
    """Raise HeadError, before any work, for values that `fit` does not take."""
    if not isinstance(calibrate, (bool, np.bool_)):
        raise HeadError(f"calibrate: expected True or False, got {calibrate!r}")
    number = isinstance(reject, Real) and not isinstance(reject, bool)
    if reject is not None and not (number and 0.0 <= float(reject) < 1.0):
        raise HeadError(f"reject: expected None or an error rate from 0 to below 1, got {reject!r}; 0.05 is usual")
    if reject_confidence is not None:
        number = isinstance(reject_confidence, Real) and not isinstance(reject_confidence, bool)
        if not (number and 0.5 <= float(reject_confidence) < 1.0):
            raise HeadError(
                f"reject_confidence: expected None or a number from 0.5 to below 1, got {reject_confidence!r}; "
                "0.9 is usual"
            )
        if not reject:
            raise HeadError(f"reject_confidence: expected reject above 0 beside it, such as 0.05, got {reject!r}")
    if novelty is not None and not (isinstance(novelty, str) and novelty in DETECTORS):
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
    reject_confidence: float | None = None,
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
    reject_confidence : float, default=None
        Probability with which the error rate shall be at most `reject`; None: the counted one is.
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
            notes.append("probabilities are not calibrated: no class has two rows (or groups) to hold one out")
        if reject is not None:
            fields["rejection"], said = _rejection(
                logits, codes, fields["temperature"], float(reject), reject_confidence
            )
            notes += said + _unlike_its_folds(estimator, X, fields["rejection"], fields["temperature"])
            if reject_confidence is not None and groups is not None and len(np.unique(groups[rows])) < len(rows):
                notes.append("reject: the bound takes images for independent, which those of one group are not")
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


def _rejection(
    logits: np.ndarray, codes: np.ndarray, temperature: float, wanted: float, level: float | None
) -> tuple[dict[str, float], list[str]]:
    """`FittedHead.rejection`, and one line of what was achieved (or why nothing was)."""
    if level is not None:  # labels must not order the confidences that a bound is counted on
        temperature = label_free_temperature(logits)
    right = logits.argmax(axis=1) == codes
    sure = confidences(logits / temperature)
    threshold, coverage, rate, notes = rejection_threshold(sure, right, wanted, level)
    accepted = sure >= threshold
    counted = float((~right[accepted]).mean()) if accepted.any() else np.nan
    found = {"wanted": wanted, "threshold": threshold, "coverage": coverage, "error_rate": counted}
    if level is not None:
        found |= {"confidence": float(level), "bound": rate, "temperature": temperature}
    if not notes:
        n = int(accepted.sum())
        how_sure = "" if level is None else f"; with probability {level:g} at most {wanted:.1%} of all such are"
        if level is None and n * wanted < 1:
            how_sure = f"; too few to tell so small an error rate as {wanted:g}"
        notes = [f"accepts {coverage:.1%} of {len(codes)} held-out images, {counted:.1%} of them wrong{how_sure}"]
    return found, notes


def _unlike_its_folds(estimator: Any, X: np.ndarray, found: dict[str, float], temperature: float) -> list[str]:
    """A note where the threshold, found on the scores of the folds' heads, does not suit those of the final head."""
    if not found["coverage"]:
        return []
    rows = X[np.unique(np.linspace(0, len(X) - 1, min(len(X), _LOOKED_AT)).astype(int))]
    sure = confidences(class_logits(estimator, rows) / found.get("temperature", temperature))
    share = float((sure >= found["threshold"]).mean())
    if share >= found["coverage"] / 2:
        return []
    return [
        f"reject: the final head accepts only {share:.1%} of its own training rows: too few rows for a threshold; "
        "give more, or leave reject out"
    ]
