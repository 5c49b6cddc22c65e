"""What a whole grid of settings predicts on held-out rows, at little more than the price of one fit.

A path is a generator: given training rows and validation rows it yields, for one value of the grid after the other, the
predicted class codes and a loss that breaks ties. Each shares among the values what they have in common (a rotation, a
distance matrix, a decomposition) and starts each fit from the last one. Paths only choose settings; the head that the
user gets is fitted anew by its own estimator.

Those of the linear heads that are solved by descent walk all folds at once: see `fold_paths`. Ridge does not notice a
rotation of the features either, so it is solved in the eigenbasis of the training rows: at most as many coordinates as
rows, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..solvers.moments import ClassMoments
from ..solvers.ridge import RidgePath
from ..solvers.shrinkage import shrunk_scale
from ..solvers.targets import sign_targets
from .estimators import ShrunkScaler
from .rows import fit_grouped

__all__ = ["estimator_path", "rbf_path", "ridge_loo", "ridge_path"]

#: One step of a path: predicted codes (n_val,) and a loss (smaller is better; 0.0 where the head has none).
Step = tuple[np.ndarray, float]
Path = Iterator[Step]


def standardised(X: np.ndarray, X_val: np.ndarray, scaler: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Standardise both by the rows X as the heads do, or as another transformer does, in float64."""
    scaler = (ShrunkScaler() if scaler is None else scaler).fit(X.astype(np.float64))
    rows = scaler.transform(X.astype(np.float64))
    return rows, scaler.transform(X_val.astype(np.float64)) if len(X_val) else np.empty((0, rows.shape[1]))


def _codes(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes that the training rows have, and the rows' positions among them (a fold may lack a rare class)."""
    classes, codes = np.unique(y, return_inverse=True)
    return classes, codes


def ridge_path(
    X: np.ndarray, y: np.ndarray, X_val: np.ndarray, y_val: np.ndarray, grid: Sequence[float], scaler: Any = None
) -> Path:
    """Solve RidgeClassifier for each alpha from one decomposition."""
    if scaler is not None:
        X, X_val = standardised(X, X_val, scaler)
    path, _, classes, _ = _ridge(X, y, scaled=scaler is not None)
    truth, X_val = np.where(y_val[:, None] == classes, 1.0, -1.0), X_val.astype(np.float64)
    for alpha in grid:
        coef, intercept = path.solve(alpha)
        scores = X_val @ coef.T + intercept
        yield classes[scores.argmax(axis=1)], float(np.square(scores - truth).sum())


def ridge_loo(X: np.ndarray, y: np.ndarray, grid: Sequence[float], scaler: Any = None) -> Path:
    """Yield what RidgeClassifier predicts for each row when that row is left out, exactly, for each alpha.

    The standardisation is that of all rows.
    """
    if scaler is not None:
        X = standardised(X, X[:0], scaler)[0]
    path, table, classes, codes = _ridge(X, y, scaled=scaler is not None)
    left_out = path.leave_one_out(grid, X, lambda rows: table[codes[rows]], best=True)
    assert left_out.winners is not None
    for best, errors in zip(left_out.winners, left_out.squared_errors, strict=True):
        yield classes[best], float(errors.sum())


def _ridge(X: np.ndarray, y: np.ndarray, scaled: bool) -> tuple[RidgePath, np.ndarray, np.ndarray, np.ndarray]:
    """Return the decomposition of standardised rows, the targets of each class, the classes and the rows' codes."""
    classes, codes = _codes(y)
    sums = ClassMoments(X.shape[1], len(classes), scatter=len(X) > X.shape[1])
    table = sign_targets(np.bincount(codes))
    prior = None if scaled else ShrunkScaler().prior_rows
    if sums.scatter is None:
        return RidgePath.of_rows(X.astype(np.float64), table[codes], prior_rows=prior), table, classes, codes
    sums.update(X, codes)
    whole = sums.with_targets(table)
    scale = None if prior is None else shrunk_scale(np.diag(whole.scatter) / len(X), len(X), prior)
    return RidgePath.of_sums(whole, scale=scale), table, classes, codes


def rbf_path(
    X: np.ndarray,
    y: np.ndarray,
    X_val: np.ndarray,
    y_val: np.ndarray,
    grid: Sequence[float],
    scaler: Any = None,
) -> Path:
    """Fit SVC for each C on one precomputed kernel; gamma is SVC's "scale" on the standardised rows."""
    from sklearn.metrics.pairwise import rbf_kernel
    from sklearn.svm import SVC

    X, X_val = standardised(X, X_val, scaler)
    gamma = 1.0 / (X.shape[1] * (X.var() or 1.0))
    kernel, kernel_val = rbf_kernel(X, gamma=gamma), rbf_kernel(X_val, X, gamma=gamma)
    for value in grid:
        yield SVC(C=value, kernel="precomputed", random_state=0).fit(kernel, y).predict(kernel_val), 0.0


def estimator_path(
    make: Callable[[Any], Any], X: np.ndarray, y: np.ndarray, X_val: np.ndarray, grid: Sequence[Any], groups: Any = None
) -> Path:
    """Fit an estimator for each value; for heads whose values share nothing."""
    for value in grid:
        yield fit_grouped(make(value), X, y, groups).predict(X_val), 0.0
