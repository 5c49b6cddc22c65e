"""The ridge classifier that follows from sums, its alpha chosen by exact leave-one-out or from the sums."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..solvers.moments import ClassMoments
from ..solvers.ridge import LeaveOneOut, RidgePath
from ..solvers.targets import TargetMoments, sign_targets
from .alphas import ALPHAS, PRIOR_ROWS, RidgeChoice, Targets, refuse_loo
from .incremental import NEVER, ClassSums, check_choice

__all__ = ["ALPHAS", "IncrementalRidgeClassifier"]


class IncrementalRidgeClassifier(RidgeChoice, ClassSums):
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
        "balanced" weighs the columns of classes by their share (`solvers.targets.sign_targets`), so that rare classes
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
        refuse_loo(self)

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
        prior = PRIOR_ROWS if self.standardize else None
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
            coef, intercept = self._solved(sums, rows=rows, path=path)
            self._set(coef, intercept, np.bincount(codes, weight, minlength=len(self.classes_)))
        finally:
            del self._codes

    def _solve(self, sums: ClassMoments) -> None:
        self._set(*self._solved(sums.with_targets(self._table(sums.weights))), sums.weights)

    def _table(self, weights: np.ndarray) -> np.ndarray:
        return sign_targets(weights, balanced=self.targets == "balanced")

    def _set(self, coef: np.ndarray, intercept: np.ndarray, weights: np.ndarray) -> None:
        two = len(self.classes_) == 2  # the first row is minus the second
        if (empty := weights == 0).any():  # without an intercept a target that is always -1 could still win
            coef, intercept = np.where(empty[:, None], 0.0, coef), np.where(empty, NEVER, intercept)
            if two:
                coef, intercept = np.zeros_like(coef), np.where(empty, NEVER, -NEVER)
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
