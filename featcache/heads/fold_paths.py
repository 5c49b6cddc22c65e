"""A whole grid of C on all folds at once, for the linear heads that are solved by descent.

A fold path is a generator: given the training rows, the folds and the grid, it yields for one value after the other
what each fold predicts of its held-out rows. All folds are solved side by side
(`solvers.linear_path`). Standardisation is that of all training rows, as in exact leave-one-out: it looks at no label,
and the held-out rows of a fold are training rows of the head. Paths only choose settings; the head that the user gets
is fitted anew by its own estimator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from scipy.special import logsumexp

from ..solvers.descent import Point
from ..solvers.linear_path import LinearProblem
from ..solvers.losses import Loss, SigmoidLoss, SoftmaxLoss, SquaredHingeLoss
from ..solvers.standardised import Standardised

__all__ = ["FoldPath", "fold_problem", "hinge_fold_path", "logistic_fold_path", "standardised_rows", "walk_grid"]

#: For one value of the grid: per fold the predicted codes of its held-out rows and a loss that breaks ties.
FoldSteps = list[tuple[np.ndarray, float]]
FoldPath = Iterator[FoldSteps]
Folds = Sequence[tuple[np.ndarray, np.ndarray]]

#: Objectives within about a thousandth choose as well as exact ones (tests compare the choices). Hinges need many more
#: passes at weak penalties, where the choice is flat: they end sooner.
_TOL, _TOL_OF_HINGE = 1e-5, 1e-4


def logistic_fold_path(
    X: np.ndarray, y: np.ndarray, folds: Folds, grid: Sequence[float], scaler: Any = None
) -> FoldPath:
    """Walk multinomial logistic regression through ascending C, as LogisticRegression parameterises it.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Raw codes of the training rows.
    y : ndarray of int of shape (n,)
        Class codes.
    folds : sequence of (rows, held_out)
        Row numbers.
    grid : sequence of float
        Values of C, ascending.
    scaler : transformer, default=None
        What stands before the head in place of ShrunkScaler; fitted on all training rows.

    Yields
    ------
    list of (ndarray of int, float)
        Per fold the predicted codes of the held-out rows, and the sum of their log losses.
    """
    X = standardised_rows(X, scaler)
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) == 2:
        problem = fold_problem(X, codes[:, None].astype(np.float64), 1, folds, SigmoidLoss())
    else:
        problem = fold_problem(X, codes, len(classes), folds, SoftmaxLoss())
    known = [np.isin(np.arange(len(classes)), codes[rows]) for rows, _ in folds]
    for point in walk_grid(problem, grid):
        steps = []
        for f, (_, held) in enumerate(folds):
            scores = problem.scores(point, f, held).astype(np.float64)
            if scores.shape[1] == 1:
                scores = np.column_stack([np.zeros(len(scores)), scores])
            scores[:, ~known[f]] = -np.inf  # a fold may lack a rare class
            steps.append((classes[scores.argmax(axis=1)], _log_loss(scores, codes[held])))
        yield steps


def hinge_fold_path(X: np.ndarray, y: np.ndarray, folds: Folds, grid: Sequence[float], scaler: Any = None) -> FoldPath:
    """Walk LinearSVC (squared hinge, one against the rest, penalised intercept) through ascending C.

    Parameters
    ----------
    X, y, folds, grid, scaler
        As in `logistic_fold_path`.

    Yields
    ------
    list of (ndarray of int, float)
        Per fold the predicted codes of the held-out rows, and 0.0.
    """
    X = standardised_rows(X, scaler)
    classes, codes = np.unique(y, return_inverse=True)
    signs = np.where(np.eye(len(classes), dtype=bool)[codes], 1.0, -1.0)
    known = [np.isin(np.arange(len(classes)), codes[rows]) for rows, _ in folds]
    problem = fold_problem(X, signs, len(classes), folds, SquaredHingeLoss(), penalise_intercept=True)
    for point in walk_grid(problem, grid, tol=_TOL_OF_HINGE):
        steps = []
        for f, (_, held) in enumerate(folds):
            scores = np.where(known[f], problem.scores(point, f, held), -np.inf)
            steps.append((classes[scores.argmax(axis=1)], 0.0))
        yield steps


def fold_problem(
    X: np.ndarray, target: np.ndarray, columns: int, folds: Folds, loss: Loss, **settings: Any
) -> LinearProblem:
    """Return the problem of all folds side by side; `columns` and the rest as in `LinearProblem`."""
    weight = np.zeros((len(folds), len(X)))
    for f, (rows, _) in enumerate(folds):
        weight[f, rows] = 1.0
    return LinearProblem(X, target, columns, weight, loss, **settings)


def walk_grid(problem: LinearProblem, grid: Sequence[float], tol: float = _TOL) -> Iterator[Point]:
    """Solve for one C after the other, ascending."""
    return problem.walk([1.0 / (C * problem.total) for C in grid], tol=tol)


def standardised_rows(X: np.ndarray, scaler: Any = None) -> np.ndarray:
    """Return all rows standardised by themselves, or by what stands before the head."""
    return Standardised.of(X, np.ones(len(X))).at_hand() if scaler is None else scaler.fit_transform(X)


def _log_loss(scores: np.ndarray, codes: np.ndarray) -> float:
    """Sum of the log losses over the held-out rows whose class was trained."""
    picked = scores[np.arange(len(codes)), codes]
    trained = np.isfinite(picked)
    return float((logsumexp(scores[trained], axis=1) - picked[trained]).sum())
