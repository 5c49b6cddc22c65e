"""Numbers to predict: a column as numbers, and ridge regression of one or several, by leave-one-out or on folds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import HeadError
from ..features import FeatureSet, text_of
from ..solvers.ridge import RidgePath
from ..solvers.shrinkage import shrunk_scale
from ..solvers.targets import TargetMoments
from ..splits import Folds
from .alphas import PRIOR_ROWS
from .incremental import fit_blocks
from .labelled import name_of
from .regression import IncrementalRidge

__all__ = ["fit_ridge", "numbers_of", "ridge_steps"]

#: Left-out predictions that are held at once: 200 MB.
_NUMBERS_AT_ONCE = 25_000_000


def numbers_of(data: FeatureSet, target: Any) -> np.ndarray:
    """Return a column as numbers, float64 (n_samples,), NaN where it is empty.

    Parameters
    ----------
    data : FeatureSet
        With that column.
    target : str
        Name of a column; "label" or "y" for the labels, where no column is called so.

    Raises
    ------
    HeadError
        No such column, or a value that is no finite number; names its row.
    """
    name = name_of(data)
    columns = dict(data.columns) if data.y is None else {"label": data.y, **data.columns}
    if target == "y" and target not in columns:
        target = "label"
    if not isinstance(target, str) or target not in columns:
        there = ", ".join(map(repr, columns)) or "none"
        raise HeadError(f"{name}: target: expected the name of a column, got {target!r}; it has {there}")
    texts = [text.strip() for text in text_of(columns[target]).tolist()]
    values = np.full(len(texts), np.nan)
    for i, text in enumerate(texts):
        if text:
            values[i] = _number(text, name, str(data.row_ids[i]), target)
    return values


def _number(text: str, name: str, row: str, target: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise HeadError(
            f"{name}: row {row!r}: expected a finite number in {target!r}, got {text!r}; empty it where it is unknown"
        )
    return value


def fit_ridge(X: Any, aims: np.ndarray, alpha: float, *, on_disk: bool) -> IncrementalRidge:
    """Fit ridge regression at one alpha on standardised codes; with `on_disk` they are read block by block."""
    estimator = IncrementalRidge(alpha, standardize=True, keep_sums=False)
    if not on_disk:
        return estimator.fit(X, aims)
    fitted = fit_blocks(estimator, X, aims)
    del fitted.sums_  # a matrix of (n_features, n_features) that nobody asked for
    return fitted


def ridge_steps(
    X: np.ndarray, aims: np.ndarray, folds: Folds | None, grid: Sequence[float]
) -> Iterator[tuple[np.ndarray, float]]:
    """Walk ridge regression on standardised codes through alphas.

    Parameters
    ----------
    X, aims : ndarray of shape (n, d) and (n, k)
        Training rows and targets.
    folds : Folds or None
        Row numbers; None: every row is left out once, exactly, with the standardisation of all rows.
    grid : sequence of float
        Values of alpha.

    Yields
    ------
    predicted : ndarray of shape (n_held_out, k)
        For the held-out rows, fold by fold.
    loss : float
        Sum of their squared errors.
    """
    truth = aims if folds is None else np.concatenate([aims[held] for _, held in folds])
    for predicted in _left_out(X, aims, grid) if folds is None else _held_out(X, aims, folds, grid):
        yield predicted, float(np.square(predicted - truth).sum())


def _left_out(X: np.ndarray, aims: np.ndarray, grid: Sequence[float]) -> Iterator[np.ndarray]:
    path = _path(X, aims)
    step = max(1, _NUMBERS_AT_ONCE // aims.size)
    for start in range(0, len(grid), step):
        yield from path.left_out(grid[start : start + step], X, aims.__getitem__)


def _held_out(X: np.ndarray, aims: np.ndarray, folds: Folds, grid: Sequence[float]) -> Iterator[np.ndarray]:
    paths = [_path(X[rows], aims[rows]) for rows, _ in folds]
    for alpha in grid:
        found = []
        for path, (_, held) in zip(paths, folds, strict=True):
            coef, intercept = path.solve(alpha)
            found.append(X[held] @ coef.T + intercept)
        yield np.concatenate(found)


def _path(X: np.ndarray, aims: np.ndarray) -> RidgePath:
    n, d = X.shape
    if n <= d:
        return RidgePath.of_rows(X.astype(np.float64), aims, prior_rows=PRIOR_ROWS)
    sums = TargetMoments(d, aims.shape[1])
    sums.update(X, aims)
    return RidgePath.of_sums(sums, scale=shrunk_scale(np.diag(sums.scatter) / n, float(n), PRIOR_ROWS))
