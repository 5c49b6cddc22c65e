"""Ridge heads that follow from sums: a classifier and a regressor, alpha by exact leave-one-out or from the sums."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MultiOutputMixin, RegressorMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ..solvers.moments import ClassMoments, TargetMoments, shrunk_scale
from ..solvers.ridge import LeaveOneOut, RidgePath, ridge_solution, sign_targets
from .incremental import ClassSums, check_choice, row_weights

__all__ = ["ALPHAS", "IncrementalRidge", "IncrementalRidgeClassifier"]

#: 28 values, three per decade, from strong to weak regularisation.
ALPHAS = tuple(10.0 ** (e / 3) for e in range(18, -10, -1))

_PRIOR_ROWS = 20.0

Targets = Callable[[slice], np.ndarray]


class _RidgeChoice:
    """Settings and the choice of alpha, shared by both ridge heads."""

    alpha: Any
    alphas: Any
    select: str
    fit_intercept: bool
    standardize: bool

    def _check_settings(self) -> None:
        name = type(self).__name__
        values = [self.alpha] if self.alpha is not None else self.alphas
        try:
            good = len(values) > 0 and all(0.0 < float(value) < np.inf for value in values)
        except (TypeError, ValueError):
            good = False
        if not good:
            raise ValueError(
                f"{name}: expected alpha (or every one of alphas) to be a finite number above 0, got "
                f"{self.alpha if self.alpha is not None else self.alphas!r}"
            )
        check_choice(self, "select", ("auto", "loo", "gcv"))

    def _grid(self) -> list[float]:
        values = self.alphas if self.alpha is None else [self.alpha]
        return [float(value) for value in values]

    def _solved(
        self,
        sums: TargetMoments,
        *,
        rows: tuple[Any, Targets, np.ndarray | None] | None = None,
        path: RidgePath | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Choose alpha and return coefficients (n_targets, d) and intercepts; with `rows`, by leave-one-out."""
        grid, scale = self._grid(), None
        if path is None and self.standardize:
            weight = float(sums.weight[0])
            scale = shrunk_scale(np.diag(sums.scatter) / weight, weight, _PRIOR_ROWS)
        if len(grid) == 1:
            self.alpha_, self.criterion_, self.cv_scores_ = float(grid[0]), "given", np.empty(0)
            if path is not None:
                return path.solve(self.alpha_)
            return ridge_solution(sums, self.alpha_, scale=scale, fit_intercept=self.fit_intercept)
        if path is None:
            path = RidgePath.of_sums(sums, scale=scale, fit_intercept=self.fit_intercept)
        if rows is not None:
            errors = path.leave_one_out(grid, *rows, best=self._wants_best())
            self.cv_scores_, breaker = self._loo_scores(errors, sums, rows)
        else:
            breaker = self._joined(-path.gcv(grid), sums.squares / max(float(sums.rows[0]), 1.0))
            self.cv_scores_ = breaker
        # Where scores tie (accuracies often do), the smaller error decides, then the order of the path.
        best = int(np.lexsort((-breaker, -self.cv_scores_))[0])
        self.alpha_, self.criterion_ = float(grid[best]), "gcv" if rows is None else "loo"
        return path.solve(self.alpha_)

    def _wants_best(self) -> bool:
        return False

    def _joined(self, scores: np.ndarray, spread: np.ndarray) -> np.ndarray:
        """Join scores per target, minus errors, to one per alpha."""
        return scores.mean(axis=1)

    def _loo_scores(
        self, errors: LeaveOneOut, sums: TargetMoments, rows: tuple[Any, Targets, np.ndarray | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        weight = float(sums.weight[0])
        scores = self._joined(-errors.squared_errors / weight, sums.squares / weight)
        return scores, scores


class IncrementalRidgeClassifier(_RidgeChoice, ClassSums):
    """Least squares on ±1 targets, alpha chosen from a whole path; rows can be added and fits merged.

    The solution at one alpha is that of ``sklearn.linear_model.RidgeClassifier``; the whole path with exact
    leave-one-out costs about as much as two fits. There is no `predict_proba`: scores of least squares are no log odds;
    calibrate them (``sklearn.calibration.CalibratedClassifierCV``) where probabilities are needed.

    Parameters
    ----------
    alpha : float or None, default=None
        Penalty on the squared coefficients, > 0; None: choose it from `alphas`.
    alphas : sequence of float, default=28 values from 1e6 to 1e-3
        The path.
    scoring : "squared_error", "accuracy" or "balanced_accuracy", default="squared_error"
        What leave-one-out maximises: minus the mean squared error of the targets (as RidgeClassifierCV does), or the
        share of rows (weighted by their weights, or class by class) whose left-out prediction is right, ties
        broken by the error. Generalised cross-validation always judges the squared error.
    select : "auto", "loo" or "gcv", default="auto"
        How alpha is chosen: exact leave-one-out, which needs the rows; generalised cross-validation, which needs the
        sums only; "auto": the first in `fit`, the second in `partial_fit` and `fit_blocks`.
    targets : "signs" or "balanced", default="signs"
        "balanced" weighs the columns of classes by their share (`solvers.ridge.sign_targets`), so that rare classes
        are predicted as often as large ones; unlike class_weight="balanced" it takes new rows.
    class_weight : dict, "balanced" or None, default=None
        Weight per label; "balanced" is n_samples / (n_classes * count), in `fit` and `fit_blocks` only.
    fit_intercept : bool, default=True
        Fit an intercept, which is not penalised.
    standardize : bool, default=False
        Divide features by their shrunken deviations (`ShrunkScaler`, 20 prior rows) first; folded into `coef_`.
    keep_sums : bool, default=True
        Whether `fit` keeps the sums, one (n_features, n_features) matrix, so that rows can be added; False makes a
        smaller file. `partial_fit` and `fit_blocks` always keep them.

    Attributes
    ----------
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
        Weights, float64, on raw codes.
    intercept_ : ndarray of shape (n_classes,) or (1,)
        Intercepts.
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    alpha_ : float
        The value used.
    cv_scores_ : ndarray of shape (n_alphas,)
        Score of each value, larger is better; empty for a given alpha.
    criterion_ : str
        "loo", "gcv" or "given".
    sums_ : dict of str to ndarray
        Where kept: what `partial_fit` and `merge` add to.

    Notes
    -----
    Leave-one-out keeps the deviations of `standardize` and the class weights of all rows, as usual; centring is redone
    exactly.

    Examples
    --------
    >>> head = IncrementalRidgeClassifier(alpha=0.1).partial_fit([[0.0], [1.0]], ["a", "a"], classes=["a", "b"])
    >>> head.partial_fit([[4.0], [5.0]], ["b", "b"]).predict([[2.0], [3.0]]).tolist()
    ['a', 'b']
    """

    def __init__(
        self,
        alpha: float | None = None,
        *,
        alphas: Sequence[float] = ALPHAS,
        scoring: str = "squared_error",
        select: str = "auto",
        targets: str = "signs",
        class_weight: Any = None,
        fit_intercept: bool = True,
        standardize: bool = False,
        keep_sums: bool = True,
    ) -> None:
        self.alpha = alpha
        self.alphas = alphas
        self.scoring = scoring
        self.select = select
        self.targets = targets
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.standardize = standardize
        self.keep_sums = keep_sums

    def _check_settings(self) -> None:
        super()._check_settings()
        check_choice(self, "scoring", ("squared_error", "accuracy", "balanced_accuracy"))
        check_choice(self, "targets", ("signs", "balanced"))

    def _check_additive(self) -> None:
        _refuse_loo(self)

    def _fit_rows(self, X: Any, codes: np.ndarray, weight: np.ndarray | None) -> None:
        n, d = X.shape
        few = n <= d
        sums = ClassMoments(d, len(self.classes_), scatter=self.keep_sums or not few)
        if self.keep_sums or not few:
            sums.update(X, codes, weight)
        if self.keep_sums:
            self.sums_ = sums.state()
        if not few:
            self._solve_with_rows(sums, X, codes, weight, loo=self.select != "gcv")
            return
        table = self._table(np.bincount(codes, weight, minlength=len(self.classes_)))
        prior = _PRIOR_ROWS if self.standardize else None
        X = X.astype(np.float64)
        path = RidgePath.of_rows(X, table[codes], weight, prior_rows=prior, fit_intercept=self.fit_intercept)
        self._choose(path.sums, table, X, codes, weight, path)

    def _solve_with_rows(
        self, sums: ClassMoments, X: Any, codes: np.ndarray, weight: np.ndarray | None, loo: bool | None = None
    ) -> None:
        table = self._table(sums.weights)
        if loo if loo is not None else self.select == "loo":
            self._choose(sums.with_targets(table), table, X, codes, weight, None)
        else:
            self._solve(sums)

    def _choose(
        self,
        sums: TargetMoments,
        table: np.ndarray,
        X: Any,
        codes: np.ndarray,
        weight: np.ndarray | None,
        path: RidgePath | None,
    ) -> None:
        self._codes = codes  # for the scores of left-out rows only
        rows = None if path is not None and self.select == "gcv" else (X, lambda part: table[codes[part]], weight)
        try:
            self._set(*self._solved(sums, rows=rows, path=path))
        finally:
            del self._codes

    def _solve(self, sums: ClassMoments) -> None:
        self._set(*self._solved(sums.with_targets(self._table(sums.weights))))

    def _table(self, weights: np.ndarray) -> np.ndarray:
        return sign_targets(weights, balanced=self.targets == "balanced")

    def _set(self, coef: np.ndarray, intercept: np.ndarray) -> None:
        two = len(self.classes_) == 2  # the first row is minus the second
        self.coef_, self.intercept_ = (coef[1:], intercept[1:]) if two else (coef, intercept)

    def _wants_best(self) -> bool:
        return self.scoring != "squared_error"

    def _loo_scores(
        self, errors: LeaveOneOut, sums: TargetMoments, rows: tuple[Any, Targets, np.ndarray | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        scores, _ = super()._loo_scores(errors, sums, rows)
        if errors.winners is None:
            return scores, scores
        hits = (errors.winners == self._codes).astype(np.float64)
        heavy = np.ones(len(self._codes)) if rows[2] is None else np.asarray(rows[2])
        if self.scoring == "balanced_accuracy":
            total = np.bincount(self._codes, heavy)[self._codes]
            heavy = heavy / np.where(total > 0, total, 1.0)
        return hits @ heavy / heavy.sum(), scores


class IncrementalRidge(_RidgeChoice, MultiOutputMixin, RegressorMixin, BaseEstimator):
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
        prior = _PRIOR_ROWS if self.standardize else None
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
        _refuse_loo(self)
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
        if sums.cross.shape != theirs.cross.shape or self.get_params() != other.get_params():
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


def _refuse_loo(estimator: Any) -> None:
    if estimator.select == "loo":
        raise ValueError(
            f"{type(estimator).__name__}: select='loo' needs all rows at once; use select='auto' or 'gcv' to add rows"
        )
