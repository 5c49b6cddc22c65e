"""Rows block by block, so that nothing here needs the codes in memory at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

__all__ = ["BLOCK_BYTES", "in_memory", "row_blocks"]

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
