"""EnsembleClassifier: several heads together, weighted by what they say about rows they never saw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ..splits import Folds
from .calibration import fit_temperature
from .held_out import class_logits, fitted_member, folds_of, held_out_logits, log_softmax
from .rows import labelled_rows

__all__ = ["EnsembleClassifier"]


class EnsembleClassifier(ClassifierMixin, BaseEstimator):
    """Mean of several heads' calibrated probabilities.

    Each head has its own settings and temperature; the weights are the minimum of the log loss of the mean on held-out
    training rows. The geometric mean is the softmax of a weighted sum of log probabilities, a convex problem.

    Parameters
    ----------
    heads : sequence of str or estimators, default=("ridge", "logreg", "lda")
        Names of heads, whose settings are chosen on the folds, or classifiers with `decision_function` or
        `predict_proba`, used as they are.
    weights : {"stacked", "uniform"}, default="stacked"
        "uniform": all alike, as always where no row can be held out.
    mean : {"geometric", "arithmetic"}, default="geometric"
        Which mean of the probabilities.
    prior_rows : float, default=1.0
        Weight of equal shares against what the held-out rows say, in rows: with few rows the weights stay near equal.
    cv : int or iterable of (train, validation) row numbers, default=5
        Folds; fewer when no class has so many rows.
    random_state : int, default=0
        Seed of the folds and of the heads.

    Attributes
    ----------
    estimators_ : list of estimators
        Fitted on all rows.
    temperatures_ : ndarray of shape (n_heads,)
        One for each.
    weights_ : ndarray of shape (n_heads,)
        0 or more, with sum 1.
    temperature_ : float
        Of the mean.
    held_out_rows_ : ndarray of int of shape (n_held_out,)
        Rows that temperatures and weights were fitted on.
    held_out_predictions_ : ndarray of int32 of shape (n_heads + 1, n_held_out)
        Positions in `classes_` that the heads, and last the ensemble, predicted of them. The ensemble's weights have
        seen these labels; a head given by name has chosen its settings on these folds, an estimator has not.
    classes_ : ndarray of shape (n_classes,)
        The labels.
    notes_ : list of str
        What could not be done.

    References
    ----------
    L. Breiman, "Stacked regressions", Machine Learning 24 (1996), 49-64 (non-negative weights); G. Hinton, "Training
    products of experts by minimizing contrastive divergence", 2002 (the geometric mean).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> EnsembleClassifier(("lda", "knn")).fit(X, y).predict(X[:2]).tolist()
    [0, 0]
    """

    def __init__(
        self,
        heads: Sequence[Any] = ("ridge", "logreg", "lda"),
        *,
        weights: str = "stacked",
        mean: str = "geometric",
        prior_rows: float = 1.0,
        cv: Any = 5,
        random_state: int = 0,
    ) -> None:
        self.heads = heads
        self.weights = weights
        self.mean = mean
        self.prior_rows = prior_rows
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> EnsembleClassifier:
        """Fit heads, temperatures and weights.

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
        EnsembleClassifier
            Itself.

        Raises
        ------
        ValueError
            No head, one class only, settings out of range, NaN or Inf in X, a head without scores.
        """
        X, y = labelled_rows(self, X, y)
        return self._fit_on(X, y, folds_of(self.cv, X, y, groups, self.random_state), groups)

    def _fit_on(self, X: np.ndarray, y: np.ndarray, folds: Folds | None, groups: Any) -> EnsembleClassifier:
        self._check_settings()
        self.estimators_ = [fitted_member(head, X, y, folds, self.random_state, groups) for head in self.heads]
        self._weigh(X, y, folds, groups)
        return self

    def _check_settings(self) -> None:
        who = type(self).__name__
        if isinstance(self.heads, (str, bytes)) or not isinstance(self.heads, Sequence) or not len(self.heads):
            raise ValueError(f"{who}: expected a list of one head or more, got {self.heads!r}")
        for name, allowed in (("weights", ("stacked", "uniform")), ("mean", ("geometric", "arithmetic"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{who}: expected {name} among {allowed}, got {getattr(self, name)!r}")
        if not np.isfinite(self.prior_rows) or self.prior_rows < 0:
            raise ValueError(f"{who}: expected prior_rows of 0 or more, got {self.prior_rows!r}")

    def _weigh(self, X: np.ndarray, y: np.ndarray, folds: Folds | None, groups: Any) -> None:
        held_out = [held_out_logits(member, X, y, self.classes_, folds, groups) for member in self.estimators_]
        self.held_out_rows_ = rows = held_out[0][0]
        codes = np.searchsorted(self.classes_, y[rows])
        m = len(self.estimators_)
        self.notes_ = list(folds.notes) if folds else []
        self.temperatures_ = np.asarray([fit_temperature(logits, codes) for _, logits in held_out])
        self.weights_, self.temperature_ = np.full(m, 1.0 / m), 1.0
        self.held_out_predictions_ = np.zeros((m + 1, 0), dtype=np.int32)
        if not len(rows):
            self.notes_.append(
                "heads weigh alike and are not calibrated: no class has two rows (or groups) to hold one out"
            )
            return
        parts = [log_softmax(logits / T) for (_, logits), T in zip(held_out, self.temperatures_, strict=True)]
        if self.weights == "stacked" and m > 1:
            stack = _geometric_weights if self.mean == "geometric" else _arithmetic_weights
            self.weights_ = stack(np.stack(parts), codes, self.prior_rows)
        together = _mean(parts, self.weights_, self.mean)
        self.temperature_ = fit_temperature(together, codes)
        self.held_out_predictions_ = np.stack([logs.argmax(axis=1) for logs in (*parts, together)]).astype(np.int32)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return log probabilities, shape (n_samples, n_classes); two classes: log odds of the second, (n_samples,)."""
        logs = self.predict_log_proba(X)
        return logs[:, 1] - logs[:, 0] if len(self.classes_) == 2 else logs

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return log probabilities of shape (n_samples, n_classes)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        parts = [
            log_softmax(class_logits(member, X) / T)
            for member, T in zip(self.estimators_, self.temperatures_, strict=True)
        ]
        return log_softmax(_mean(parts, self.weights_, self.mean) / self.temperature_)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return calibrated probabilities of shape (n_samples, n_classes)."""
        return np.exp(self.predict_log_proba(X))

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each row, shape (n_samples,)."""
        best = self.predict_log_proba(X).argmax(axis=1)
        return self.classes_[best]


def _mean(parts: Sequence[np.ndarray], weights: np.ndarray, kind: str) -> np.ndarray:
    """Log of the weighted mean of probabilities, given their logs (n, c); not normalised."""
    if kind == "geometric":
        return sum(w * part for w, part in zip(weights, parts, strict=True) if w > 0)
    total = sum(w * np.exp(part) for w, part in zip(weights, parts, strict=True))
    return np.log(np.maximum(total, np.finfo(np.float64).tiny))


def _geometric_weights(logs: np.ndarray, codes: np.ndarray, prior_rows: float) -> np.ndarray:
    """Weights on the simplex with the smallest log loss of softmax(sum of w log p), plus prior m |w - 1/m|² per row."""
    m, n, _ = logs.shape
    # A class that a fold's other side lacks is -inf for all members alike; it takes no part.
    logs = np.where(np.isfinite(logs), logs, -1e4)
    own = logs[:, np.arange(n), codes]
    pull = prior_rows * m / n

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        scores = np.tensordot(w, logs, 1)
        peak = scores.max(axis=1)
        powers = np.exp(scores - peak[:, None])
        sums = powers.sum(axis=1)
        value = (np.log(sums) + peak - w @ own).mean() + pull * np.square(w - 1.0 / m).sum()
        slope = np.tensordot(logs, powers / sums[:, None], 2) - own.sum(axis=1)
        return float(value), slope / n + 2.0 * pull * (w - 1.0 / m)

    return _on_simplex(loss, m)


def _arithmetic_weights(logs: np.ndarray, codes: np.ndarray, prior_rows: float) -> np.ndarray:
    """Weights on the simplex with the smallest log loss of the sum of w p, plus prior m |w - 1/m|² per row."""
    m, n, _ = logs.shape
    own = np.maximum(np.exp(logs[:, np.arange(n), codes]), 1e-12)
    pull = prior_rows * m / n

    def loss(w: np.ndarray) -> tuple[float, np.ndarray]:
        total = np.maximum(w @ own, 1e-300)
        value = -np.log(total).mean() + pull * np.square(w - 1.0 / m).sum()
        return float(value), -(own / total).mean(axis=1) + 2.0 * pull * (w - 1.0 / m)

    return _on_simplex(loss, m)


def _on_simplex(loss: Any, m: int) -> np.ndarray:
    found = minimize(
        loss,
        np.full(m, 1.0 / m),
        jac=True,
        method="SLSQP",
        bounds=[(0.0, 1.0)] * m,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1.0, "jac": lambda w: np.ones(m)},
        options={"ftol": 1e-10, "maxiter": 200},
    ).x
    found = np.where(found > 1e-6, found, 0.0)
    return found / found.sum()
