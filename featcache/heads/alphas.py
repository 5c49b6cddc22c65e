"""How the ridge heads choose alpha: given, by exact leave-one-out, or by generalised cross-validation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..solvers.ridge import LeaveOneOut, RidgePath
from ..solvers.ridge_sums import ridge_solution
from ..solvers.shrinkage import shrunk_scale
from ..solvers.targets import TargetMoments
from .incremental import check_choice

__all__ = ["ALPHAS", "PRIOR_ROWS", "RidgeChoice", "Targets", "refuse_loo"]

#: 28 values, three per decade, from strong to weak regularisation.
ALPHAS = tuple(10.0 ** (e / 3) for e in range(18, -10, -1))

PRIOR_ROWS = 20.0

Targets = Callable[[slice], np.ndarray]


class RidgeChoice:
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
            scale = shrunk_scale(np.diag(sums.scatter) / weight, weight, PRIOR_ROWS)
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


def refuse_loo(estimator: Any) -> None:
    """Raise ValueError where exact leave-one-out is asked of sums, which have no rows to leave out."""
    if estimator.select == "loo":
        raise ValueError(
            f"{type(estimator).__name__}: select='loo' needs all rows at once; use select='auto' or 'gcv' to add rows"
        )
