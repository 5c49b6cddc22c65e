"""Rows block by block, so that nothing here needs the codes in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

__all__ = ["BLOCK_BYTES", "ChosenRows", "in_memory", "row_blocks"]

#: A block of this size is large enough for BLAS and small enough for any machine.
BLOCK_BYTES = 32 << 20


def row_blocks(
    X: Any, *, dtype: DTypeLike = np.float32, block_bytes: int = BLOCK_BYTES
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield (rows, X[rows]) from top to bottom.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Whatever has a shape and gives rows for a slice: an array, a map on disk, ``FeatureStore.dataset().codes``.
    dtype : dtype, default=float32
        Of the blocks; a block that has it already is not copied.
    block_bytes : int, default=32 MiB
        Size of a block; at least one row.

    Yields
    ------
    rows : slice
    block : ndarray of shape (rows, d)
    """
    n, d = X.shape
    step = max(1, block_bytes // max(1, d * np.dtype(dtype).itemsize))
    for start in range(0, n, step):
        rows = slice(start, min(start + step, n))
        yield rows, np.asarray(X[rows], dtype=dtype)


def in_memory(X: Any) -> bool:
    """Tell whether rows are a plain array, which may be copied as a whole, or have to be read."""
    return isinstance(X, np.ndarray) and not isinstance(X, np.memmap)


class ChosenRows:
    """Some rows of a matrix, in an order of one's own, which are read when they are asked for.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Whatever gives rows for a slice or an array of row numbers.
    rows : ndarray of int of shape (m,)
        Row numbers.
    """

    def __init__(self, X: Any, rows: np.ndarray) -> None:
        self.X, self.rows = X, rows

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and features."""
        return len(self.rows), int(self.X.shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, which: Any) -> np.ndarray:
        rows = self.rows[which]
        first, last = (int(rows[0]), int(rows[-1])) if len(rows) else (0, -1)
        if last - first + 1 == len(rows) and (np.diff(rows) == 1).all():  # a run of rows is one read
            return np.asarray(self.X[first : last + 1])
        return np.asarray(self.X[rows])
