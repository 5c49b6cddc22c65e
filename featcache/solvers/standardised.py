"""Codes centred and scaled, in memory or on the way from the disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .blocks import in_memory, row_blocks

__all__ = ["PRIOR_ROWS", "Standardised", "shrunk_scale"]

#: How many rows the mean variance of all features counts as; see `shrunk_scale`.
PRIOR_ROWS = 20.0


def shrunk_scale(var: np.ndarray, n: float, prior_rows: float = PRIOR_ROWS) -> np.ndarray:
    """Return deviations from variances that are shrunk towards their mean over all features.

    A deviation estimated from ten rows is mostly noise, and dividing by it blows up features that happened to be quiet.

    Parameters
    ----------
    var : ndarray of shape (d,)
        Variances of the features over `n` rows.
    n : float
        Rows.
    prior_rows : float, default=20.0
        Weight of the mean variance, in rows.

    Returns
    -------
    ndarray of shape (d,)
        Deviations, 1 where there is none.
    """
    common = float(np.mean(var))
    if not common > 0.0:
        return np.ones_like(var)
    scale = np.sqrt((n * var + prior_rows * common) / (n + prior_rows))
    scale[scale == 0.0] = 1.0
    return scale


@dataclass(frozen=True)
class Standardised:
    """Rows that are standardised when they are read.

    Attributes
    ----------
    X : array-like of shape (n, d)
        The rows as they came.
    mean, scale : ndarray of shape (d,)
        What is subtracted, and what they are divided by.
    """

    X: Any
    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, X: Any, weight: np.ndarray) -> Standardised:
        """Measure the rows: weighted mean and variance, the latter shrunk by the number of rows that have a weight."""
        share, d = weight / weight.sum(), X.shape[1]
        mean, square = np.zeros(d), np.zeros(d)
        for rows, block in row_blocks(X, dtype=np.float64):
            mean += share[rows] @ block
        for rows, block in row_blocks(X, dtype=np.float64):
            square += share[rows] @ np.square(block - mean)
        return cls(X, mean, shrunk_scale(square, float((weight > 0).sum())))

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        n, d = self.X.shape
        return int(n), int(d)

    def __getitem__(self, rows: Any) -> np.ndarray:
        block = np.asarray(self.X[rows])
        dtype = np.float64 if block.dtype == np.float64 else np.float32
        return (block - self.mean.astype(dtype)) / self.scale.astype(dtype)

    def at_hand(self) -> Any:
        """Return the standardised rows as an array where the rows are in memory, else this object."""
        return self[:] if in_memory(self.X) else self

    def on_features(self, coef: np.ndarray, intercept: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Turn weights (k, d) and intercepts (k,) on standardised rows into those on the rows as they came."""
        plain = coef / self.scale
        return plain, intercept - plain @ self.mean
