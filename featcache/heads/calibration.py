"""Probabilities that mean what they say: one temperature, fitted on scores of held-out training rows."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.validation import check_is_fitted, validate_data

from ..splits import Folds
from .held_out import class_logits, fitted_member, folds_of, held_out_logits, log_softmax
from .rows import labelled_rows

__all__ = ["TemperatureClassifier", "calibrated", "fit_temperature"]


class TemperatureClassifier(ClassifierMixin, BaseEstimator):
    """Any head with calibrated probabilities: softmax(scores / T), T from scores of held-out training rows.

    T is the minimum of the log loss, as in scikit-learn's ``CalibratedClassifierCV(method="temperature",
    ensemble=False)``, to which it is equal where `prior_rows` is 0 (a test holds this). Beyond that it keeps groups
    whole, takes folds in which some rows only train (a class of one row), and does not become sure of itself when a
    handful of held-out rows happens to be all right. One temperature never changes which class is the most probable.

    Parameters
    ----------
    estimator : str or estimator, default="ridge"
        Name of a head, whose settings are chosen on the folds, or a classifier with `decision_function` or
        `predict_proba`, used as it is.
    cv : int or iterable of (train, validation) row numbers, default=5
        Folds; fewer when no class has so many rows.
    prior_rows : float, default=1.0
        As many held-out rows of which nothing is known are thought to stand beside the real ones, which bounds 1 / T.
    random_state : int, default=0
        Seed of the folds and of the head.

    Attributes
    ----------
    estimator_ : estimator
        Fitted on all rows.
    temperature_ : float
        T.
    n_held_out_ : int
        Rows that T was fitted on.
    classes_ : ndarray of shape (n_classes,)
        The labels.
    notes_ : list of str
        What could not be done: with one row per class there is no held-out row, and T is 1.

    References
    ----------
    C. Guo et al., "On calibration of modern neural networks", ICML 2017, arXiv 1706.04599. The prior is the
    multi-class form of J. Platt's smoothed targets ("Probabilistic outputs for support vector machines", 1999).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> TemperatureClassifier("ridge").fit(X, y).predict_proba(X[:1]).round(1).tolist()
    [[1.0, 0.0, 0.0]]
    """

    def __init__(
        self, estimator: Any = "ridge", *, cv: Any = 5, prior_rows: float = 1.0, random_state: int = 0
    ) -> None:
        self.estimator = estimator
        self.cv = cv
        self.prior_rows = prior_rows
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> TemperatureClassifier:
        """Fit head and temperature.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes.
        y : array-like of shape (n_samples,)
            Labels.
        groups : array-like of shape (n_samples,), default=None
            Rows of one group never stand on both sides of a fold.

        Returns
        -------
        TemperatureClassifier
            Itself.

        Raises
        ------
        ValueError
            One class only, NaN or Inf in X, an estimator without scores.
        """
        X, y = labelled_rows(self, X, y)
        folds = folds_of(self.cv, X, y, groups, self.random_state)
        estimator = fitted_member(self.estimator, X, y, folds, self.random_state, groups)
        return self._calibrate(estimator, X, y, folds, groups)

    def _calibrate(
        self, estimator: Any, X: np.ndarray, y: np.ndarray, folds: Folds | None, groups: Any = None
    ) -> TemperatureClassifier:
        self.estimator_ = estimator
        rows, logits = held_out_logits(estimator, X, y, self.classes_, folds, groups)
        self.n_held_out_ = len(rows)
        self.notes_ = list(folds.notes) if folds else []
        if not len(rows):
            self.notes_.append(
                "probabilities are not calibrated: no class has two rows (or groups) to hold one out; temperature 1"
            )
        codes = np.searchsorted(self.classes_, y[rows])
        self.temperature_ = fit_temperature(logits, codes, prior_rows=self.prior_rows)
        return self

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores / T, shape (n_samples, n_classes); two classes: log odds of the second, (n_samples,)."""
        scores = self._logits(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return calibrated probabilities of shape (n_samples, n_classes)."""
        return np.exp(log_softmax(self._logits(X)))

    def predict(self, X: Any) -> np.ndarray:
        """Return the estimator's own predictions, shape (n_samples,)."""
        check_is_fitted(self)
        return self.estimator_.predict(self._rows(X))

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return class_logits(self.estimator_, self._rows(X)) / self.temperature_

    def _rows(self, X: Any) -> np.ndarray:
        return validate_data(self, X, dtype=[np.float64, np.float32], reset=False)


def calibrated(
    estimator: Any, X: np.ndarray, y: np.ndarray, folds: Folds | None, *, prior_rows: float = 1.0
) -> TemperatureClassifier:
    """Calibrate an estimator that is fitted already; only its clones on the folds are fitted anew.

    Parameters
    ----------
    estimator : estimator
        Fitted on all rows of X and y.
    X, y : ndarray of shape (n, d) and (n,)
        Its training rows.
    folds : Folds or None
        Row numbers into X; None: temperature 1, with a note.
    prior_rows : float, default=1.0
        As in `TemperatureClassifier`.

    Returns
    -------
    TemperatureClassifier
        Fitted.
    """
    outer = TemperatureClassifier(clone(estimator), prior_rows=prior_rows)
    X, y = labelled_rows(outer, X, y)
    return outer._calibrate(estimator, X, y, folds)


def fit_temperature(logits: np.ndarray, codes: np.ndarray, *, prior_rows: float = 1.0) -> float:
    """Return the T > 0 of softmax(logits / T) with the smallest log loss.

    The loss is convex in 1 / T. The prior adds `prior_rows` times the mean loss under equal probabilities of all
    classes, without which rows that are all right would ask for T = 0.

    Parameters
    ----------
    logits : ndarray of shape (n, c)
        Scores; -inf for classes that were not in question.
    codes : ndarray of int of shape (n,)
        Column of the true class.
    prior_rows : float, default=1.0
        Weight of the prior in rows, 0 or more.

    Returns
    -------
    float
        T, from e^-10 to e^10 times the spread of the scores; 1.0 where there is no row or no spread.
    """
    if not np.isfinite(prior_rows) or prior_rows < 0:
        raise ValueError(f"prior_rows: expected a finite number of 0 or more, got {prior_rows!r}")
    if not len(logits):
        return 1.0
    asked = np.isfinite(logits)
    logits = logits - logits.max(axis=1, keepdims=True)
    spread = float(np.std(logits[asked]))
    if spread == 0.0:
        return 1.0
    logits = logits / spread
    own = logits[np.arange(len(codes)), codes]
    means = np.where(asked, logits, 0.0).sum(axis=1) / asked.sum(axis=1)
    weight = prior_rows / len(codes)

    def loss(log_beta: float) -> float:
        beta = np.exp(log_beta)
        total = np.log(np.exp(beta * logits).sum(axis=1))
        return float((total - beta * own).mean() + weight * (total - beta * means).mean())

    return float(spread / np.exp(minimize_scalar(loss, bounds=(-10.0, 10.0), options={"xatol": 1e-9}).x))
