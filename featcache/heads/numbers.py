"""Numbers to predict: a column as numbers, and ridge regression of one or several, by leave-one-out or on folds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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

__all__ = ["LARGEST", "fit_ridge", "may_leave_out", "numbers_of", "ridge_steps"]

#: Left-out predictions, of all alphas, that are held at once: 200 MB.
_NUMBERS_AT_ONCE = 25_000_000

#: Numbers beyond, and differences below its inverse, have squares that float64 does not hold.
LARGEST = 1e100


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
        No such column, or a value that is no finite number or beyond 1e100; names its row.
    """
    name = name_of(data)
    columns = dict(data.columns) if data.y is None else {"label": data.y, **data.columns}
    column = "label" if target == "y" and "y" not in columns else target
    if not isinstance(column, str) or column not in columns:
        there = ", ".join(map(repr, columns)) or "none"
        raise HeadError(f"{name}: target: expected the name of a column, got {target!r}; it has {there}")
    texts = [text.strip() for text in text_of(columns[column]).tolist()]
    values = np.full(len(texts), np.nan)
    for i, text in enumerate(texts):
        if text:
            values[i] = _number(text, name, str(data.row_ids[i]), target)
    return values


def _number(text: str, name: str, row: str, target: str) -> float:
    try:
        value = np.nan if "_" in text else float(text)  # Python reads "2024_05" as 202405
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise HeadError(
            f"{name}: row {row!r}: expected a finite number in {target!r}, got {text!r}; empty it where it is unknown"
        )
    if abs(value) > LARGEST:
        raise HeadError(
            f"{name}: row {row!r}: expected a number of at most {LARGEST:g} in {target!r}, got {text!r}; rescale the "
            "column"
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


def may_leave_out(rows: int, targets: int, alphas: int) -> bool:
    """Tell whether what `ridge_steps` predicts of left-out rows is little enough to be held."""
    return rows * targets * alphas <= _NUMBERS_AT_ONCE


def ridge_steps(
    X: np.ndarray, aims: np.ndarray, folds: Folds | None, grid: Sequence[float]
) -> Iterator[tuple[np.ndarray, float]]:
    """Walk ridge regression on standardised codes through alphas.

    Parameters
    ----------
    X, aims : ndarray of shape (n, d) and (n, k)
        Training rows and targets.
    folds : Folds or None
        Row numbers; None: every row is left out once, exactly, with the standardisation of all rows (see
        `may_leave_out`).
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
    if folds is None:
        steps: Iterable[np.ndarray] = _path(X, aims).left_out(grid, X, aims.__getitem__)
    else:
        steps = _held_out(X, aims, folds, grid)
    for predicted in steps:
        yield predicted, float(np.square(predicted - truth).sum())


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
