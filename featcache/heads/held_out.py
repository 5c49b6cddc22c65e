"""Scores of training rows from heads that never saw them: what calibration, ensembles and rejection are made of."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from sklearn.base import clone, is_classifier

from ..errors import HeadError
from ..splits import Folds, whole_number
from .choosing import few_threads, train, tuning_folds
from .rows import fit_grouped, quiet_newton

__all__ = ["class_logits", "fitted_member", "folds_of", "held_out_logits", "log_softmax"]

#: A share of 0 among the votes is no proof of impossibility.
_LEAST = 1e-7


def class_logits(estimator: Any, X: Any) -> np.ndarray:
    """Return one score per class whose softmax is a probability, up to a temperature: float64 (n_samples, n_classes).

    From `decision_function` where there is one (two classes: the halves -s/2 and s/2 of the one score), else from the
    logarithm of `predict_proba`.
    """
    if hasattr(estimator, "decision_function"):
        scores = np.asarray(estimator.decision_function(X), dtype=np.float64)
        return np.column_stack([-scores, scores]) / 2 if scores.ndim == 1 else scores
    if hasattr(estimator, "predict_proba"):
        shares = np.asarray(estimator.predict_proba(X), dtype=np.float64)
        return np.log(np.maximum(shares, _LEAST))
    raise HeadError(f"{type(estimator).__name__} gives no scores: it has neither decision_function nor predict_proba")


def log_softmax(scores: np.ndarray) -> np.ndarray:
    """Return log probabilities of scores (n, c); a score of -inf has probability 0."""
    scores = scores - scores.max(axis=1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))


def folds_of(cv: Any, X: np.ndarray, y: np.ndarray, groups: Any, seed: int) -> Folds | None:
    """Return the folds that `cv` means for these rows; None when no class can be divided.

    Parameters
    ----------
    cv : int or iterable of (train, validation) row numbers
        A whole number: `tuning_folds`.
    X, y, groups
        The rows, their labels and groups (or None).
    seed : int
        Seed of the folds.
    """
    if isinstance(cv, Folds):
        return cv
    if whole_number(cv, 2):
        return tuning_folds(y, X.shape[1], cv=int(cv), ids=None, groups=groups, seed=seed)
    if isinstance(cv, Iterable) and not isinstance(cv, (str, bytes)):
        return Folds(tuple((np.asarray(rows), np.asarray(held)) for rows, held in cv))
    raise ValueError(f"cv: expected a whole number of 2 or more, or pairs of row numbers, got {cv!r}")


def fitted_member(head: Any, X: np.ndarray, y: np.ndarray, folds: Folds | None, seed: int, groups: Any = None) -> Any:
    """Fit a head on all rows: a name with its settings chosen on the folds, an estimator as it is."""
    if isinstance(head, str):
        return train(head, X, y, folds, seed=seed, groups=groups).estimator
    if isinstance(head, type) or not hasattr(head, "fit") or not is_classifier(head):
        raise ValueError(f"expected the name of a head or a scikit-learn classifier object, got {head!r}")
    with quiet_newton():
        return fit_grouped(clone(head), X, y, groups)


def held_out_logits(
    estimator: Any, X: np.ndarray, y: np.ndarray, classes: np.ndarray, folds: Folds | None, groups: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows that some fold validates, and their scores by clones of the estimator fitted without them.

    Parameters
    ----------
    estimator : estimator
        Its settings are used as they are; it is cloned, not changed.
    X, y : ndarray of shape (n, d) and (n,)
        Training rows.
    classes : ndarray of shape (c,)
        Labels, in the order of the columns.
    folds : Folds or None
        None: no row.
    groups : array of shape (n,), default=None
        For estimators that choose something inside the rows they are fitted on.

    Returns
    -------
    rows : ndarray of int of shape (m,)
        Sorted. Rows whose class the fold's other side lacks are left out: nothing can be learned from them.
    logits : ndarray of shape (m, c)
        Float64; -inf for classes that the other side lacks.
    """
    groups = None if groups is None else np.asarray(groups)
    rows, scores = [np.zeros(0, dtype=np.intp)], [np.zeros((0, len(classes)))]
    for kept, held in folds or ():
        known, columns = np.unique(y[kept]), np.searchsorted(classes, np.unique(y[kept]))
        held = held[np.isin(y[held], known)]
        if len(known) < 2 or not len(held):
            continue
        found = np.full((len(held), len(classes)), -np.inf)
        with quiet_newton(), few_threads(X):
            fitted = fit_grouped(clone(estimator), X[kept], y[kept], None if groups is None else groups[kept])
            found[:, columns] = class_logits(fitted, X[held])
        rows.append(held)
        scores.append(found)
    together = np.concatenate(rows)
    order = np.argsort(together, kind="stable")
    return together[order], np.concatenate(scores)[order]
