"""Numbers to predict from codes: ridge regression that follows from sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ..solvers.ridge import RidgePath
from ..solvers.targets import TargetMoments
from .alphas import ALPHAS, PRIOR_ROWS, RidgeChoice, refuse_loo
from .incremental import check_choice, row_weights, same_settings

__all__ = ["IncrementalRidge"]


class IncrementalRidge(RidgeChoice, MultiOutputMixin, RegressorMixin, BaseEstimator):
    """Ridge regression of one or several numbers, alpha chosen from a whole path; rows can be added and fits merged.

    The solution at one alpha is that of ``sklearn.linear_model.Ridge``. Indicators of several labels (0 and 1, one
    column each) are targets like any other.

    Parameters
    ----------
    alpha : float or None, default=None
        Penalty on the squared coefficients, > 0; None: choose one for all targets from `alphas`.
    alphas : sequence of float, default=28 values from 1e6 to 1e-3
        The path.
    scoring : "mse" or "r2", default="mse"
        What the choice maximises: minus the mean squared error over all targets, or the mean R² of the targets, which
        does not depend on their scales.
    select, fit_intercept, standardize, keep_sums
        As in `IncrementalRidgeClassifier`.

    Attributes
    ----------
    coef_ : ndarray of shape (n_features,), or (n_targets, n_features) for y of two dimensions
        Weights, float64, on raw codes.
    intercept_ : float or ndarray of shape (n_targets,)
        Intercepts.
    alpha_, cv_scores_, criterion_, sums_
        As in `IncrementalRidgeClassifier`.

    Examples
    --------
    >>> head = IncrementalRidge(alpha=1e-9).partial_fit([[0.0], [1.0]], [1.0, 3.0])
    >>> head.partial_fit([[2.0]], [5.0]).predict([[3.0]]).round(6).tolist()
    [7.0]
    """

    def __init__(
        self,
        alpha: float | None = None,
        *,
        alphas: Sequence[float] = ALPHAS,
        scoring: str = "mse",
        select: str = "auto",
        fit_intercept: bool = True,
        standardize: bool = False,
        keep_sums: bool = True,
    ) -> None:
        self.alpha = alpha
        self.alphas = alphas
        self.scoring = scoring
        self.select = select
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.keep_sums = keep_sums

    def _check_settings(self) -> None:
        super()._check_settings()
        check_choice(self, "scoring", ("mse", "r2"))

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> IncrementalRidge:
        """Fit on X (n_samples, n_features) and y (n_samples,) or (n_samples, n_targets), rows weighted."""
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], multi_output=True, y_numeric=True)
        self.__dict__.pop("sums_", None)
        weight = row_weights(self, y, X, sample_weight, None, None, whole=True)
        if weight is not None and not (weight > 0).all():
            X, y, weight = X[weight > 0], y[weight > 0], weight[weight > 0]
        aims = _columns(y)
        n, d = X.shape
        few = n <= d
        rows = None if self.select == "gcv" else (X, aims.__getitem__, weight)
        if self.keep_sums or not few:
            sums = TargetMoments(d, aims.shape[1])
            sums.update(X, aims, weight)
        if self.keep_sums:
            self.sums_ = sums.state()
        if not few:
            return self._set(self._solved(sums, rows=rows), y.ndim)
        prior = PRIOR_ROWS if self.standardize else None
        path = RidgePath.of_rows(X.astype(np.float64), aims, weight, prior_rows=prior, fit_intercept=self.fit_intercept)
        return self._set(self._solved(path.sums, rows=rows, path=path), y.ndim)

    def _fit_blocks(self, X: Any, y: np.ndarray, sample_weight: Any) -> IncrementalRidge:
        if y.dtype.kind not in "fiub" or y.ndim not in (1, 2) or not np.isfinite(y).all():
            raise ValueError("IncrementalRidge: expected finite numbers as targets, one row per code")
        weight = row_weights(self, y, np.empty((len(y), 0)), sample_weight, None, None, whole=True)
        aims = _columns(y)
        sums = TargetMoments(X.shape[1], aims.shape[1])
        sums.update(X, aims, weight)
        self.sums_ = sums.state()
        rows = (X, aims.__getitem__, weight) if self.select == "loo" else None
        return self._set(self._solved(sums, rows=rows), y.ndim)

    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> IncrementalRidge:
        """Add rows; afterwards the estimator is what one fit to all rows so far would give, up to rounding.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes. Every call solves anew, so large chunks are cheaper than small ones.
        y : array-like of shape (n_samples,) or (n_samples, n_targets)
            Targets, as many as before.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of 0 or more; None: 1.

        Returns
        -------
        IncrementalRidge
            Itself.

        Raises
        ------
        ValueError
            As in `fit`; another number of targets; or the last fit kept no sums.
        """
        self._check_settings()
        refuse_loo(self)
        if not hasattr(self, "sums_") and hasattr(self, "coef_"):
            raise ValueError(
                "IncrementalRidge: fit kept no sums that rows could be added to; begin with partial_fit, or fit with "
                "keep_sums=True"
            )
        first = not hasattr(self, "sums_")
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], multi_output=True, y_numeric=True, reset=first)
        weight = row_weights(self, y, X, sample_weight, None, None, whole=False)
        aims = _columns(y)
        sums = TargetMoments(X.shape[1], aims.shape[1]) if first else TargetMoments.from_state(self.sums_)
        if aims.shape[1] != len(sums.target):
            raise ValueError(f"IncrementalRidge: expected {len(sums.target)} targets as before, got {aims.shape[1]}")
        sums.update(X, aims, weight)
        self.sums_ = sums.state()
        return self._set(self._solved(sums), y.ndim) if sums.weight[0] > 0 else self

    def merge(self, other: Any) -> IncrementalRidge:
        """Add the rows of another IncrementalRidge that has sums; it stays as it is."""
        if type(other) is not type(self) or not hasattr(other, "sums_") or not hasattr(self, "sums_"):
            raise ValueError(
                "IncrementalRidge.merge: expected two IncrementalRidge with sums (partial_fit, or fit with "
                f"keep_sums=True), got {type(other).__name__}"
            )
        sums, theirs = TargetMoments.from_state(self.sums_), TargetMoments.from_state(other.sums_)
        if sums.cross.shape != theirs.cross.shape or not same_settings(self, other):
            raise ValueError(
                f"IncrementalRidge.merge: expected the same settings and sums of {sums.cross.shape[0]} features and "
                f"{sums.cross.shape[1]} targets, got {other} of {theirs.cross.shape}"
            )
        sums.merge(theirs)
        self.sums_ = sums.state()
        return self._set(self._solved(sums), self.coef_.ndim)

    def predict(self, X: Any) -> np.ndarray:
        """Return predictions of shape (n_samples,), or (n_samples, n_targets) for y of two dimensions."""
        check_is_fitted(self, "coef_")
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return X @ self.coef_.T + self.intercept_

    def _joined(self, scores: np.ndarray, spread: np.ndarray) -> np.ndarray:
        if self.scoring == "r2":
            scores = 1.0 + scores[:, spread > 0] / spread[spread > 0]
        return scores.mean(axis=1) if scores.shape[1] else np.zeros(len(scores))

    def _set(self, solution: tuple[np.ndarray, np.ndarray], ndim: int) -> IncrementalRidge:
        self.coef_: np.ndarray = solution[0] if ndim > 1 else solution[0][0]
        self.intercept_: Any = solution[1] if ndim > 1 else float(solution[1][0])
        return self


def _columns(y: np.ndarray) -> np.ndarray:
    return np.asarray(y, dtype=np.float64).reshape(len(y), -1)
