"""What estimators that choose have in common: a named head inside, scored on folds, used as it was chosen."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from .metrics import check_metric
from .rows import fit_grouped, quiet_newton
from .zoo import make_head

__all__ = ["ChosenHead", "Walked", "can", "fitted", "paired_gain", "walk"]


def can(method: str) -> Callable[[Any], bool]:
    """For `available_if`: whether the chosen head, or the one that would be, has a method."""

    def check(self: Any) -> bool:
        chosen = getattr(self, "best_estimator_", None)
        return hasattr(make_head(self.head) if chosen is None else chosen, method)

    return check


def fitted(estimator: Any, X: np.ndarray, y: np.ndarray, groups: Any = None) -> Any:
    """Fit a named head, with groups where it takes them."""
    with quiet_newton():
        return fit_grouped(estimator, X, y, groups)


class ChosenHead(ClassifierMixin, BaseEstimator):
    """Predictions of `best_estimator_` on what `_rows` makes of the codes."""

    head: str
    best_estimator_: Any

    def predict(self, X: Any) -> np.ndarray:
        """Return the predictions, shape (n_samples,)."""
        rows = self._rows(X)  # says first whether it is fitted
        return self.best_estimator_.predict(rows)

    @available_if(can("predict_proba"))
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities of shape (n_samples, n_classes)."""
        rows = self._rows(X)
        return self.best_estimator_.predict_proba(rows)

    @available_if(can("decision_function"))
    def decision_function(self, X: Any) -> np.ndarray:
        """Return the head's scores, shape (n_samples, n_classes), or (n_samples,) for two classes."""
        rows = self._rows(X)
        return self.best_estimator_.decision_function(rows)

    def _rows(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return validate_data(self, X, dtype=[np.float64, np.float32], reset=False)


class Walked:
    """The best value of a grid: its place, score, loss, and which held-out rows it got right."""

    def __init__(self, place: int, score: float, loss: float, hits: np.ndarray) -> None:
        self.place, self.score, self.loss, self.hits = place, score, loss, hits


def walk(values: Iterable[Sequence[Any]], n_values: int, truth: np.ndarray, metric: str, patience: int) -> Walked:
    """Walk a grid and return the best value by pooled metric, then by loss; the first of equals.

    Parameters
    ----------
    values : iterable of sequences
        For each value of the grid what each fold predicts and its loss: a `fold_paths` path, or `paths` zipped.
    n_values : int
        Length of the grid.
    truth : ndarray of int of shape (n_held_out,)
        Class codes of all held-out rows, fold by fold.
    metric : str
        A key of `METRICS`.
    patience : int
        Stop after so many values in a row below the best; 0 tries all.
    """
    measure, best, since = check_metric(metric), Walked(0, -1.0, 0.0, np.zeros(len(truth), dtype=bool)), 0
    for place, results in enumerate(values):
        predicted = np.concatenate([codes for codes, _ in results])
        score, loss = measure(truth, predicted), float(sum(loss for _, loss in results))
        since = since + 1 if score < best.score else 0
        if (-score, loss) < (-best.score, best.loss):
            best = Walked(place, score, loss, predicted == truth)
        if place + 1 == n_values or (patience and since >= patience):
            break
    return best


def paired_gain(truth: np.ndarray, metric: str, before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Return the mean gain in hits and its paired standard error; classes count alike unless the metric is accuracy.

    Parameters
    ----------
    truth : ndarray of int of shape (n,)
        Class codes.
    metric : str
        "accuracy" weighs all rows alike.
    before, after : ndarray of bool of shape (n,)
        Which rows each of the two got right.
    """
    weights = np.ones(len(truth))
    if metric != "accuracy":
        weights = (1.0 / np.maximum(np.bincount(truth), 1))[truth]
    weights = weights / weights.sum()
    gains = after.astype(float) - before
    mean = float(weights @ gains)
    return mean, float(np.sqrt(np.square(weights) @ np.square(gains - mean)))
