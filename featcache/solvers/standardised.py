"""Codes centred and scaled, in memory or on the way from the disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .blocks import in_memory, row_blocks
from .shrinkage import shrunk_scale

__all__ = ["Standardised"]


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
        """Measure the rows: weighted mean and variance, the latter shrunk; weights count as rows."""
        share, d = weight / weight.sum(), X.shape[1]
        mean, square = np.zeros(d), np.zeros(d)
        for rows, block in row_blocks(X, dtype=np.float64):
            mean += share[rows] @ block
        for rows, block in row_blocks(X, dtype=np.float64):
            square += share[rows] @ np.square(block - mean)
        return cls(X, mean, shrunk_scale(square, float(weight.sum())))

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
