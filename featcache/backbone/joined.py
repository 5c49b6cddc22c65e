"""Pixels of one batch that lie in several places, and how images are copied."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["Joined", "copy_whole"]

_SMALL_BYTES = 1 << 20


def copy_whole(array: np.ndarray, to: np.ndarray) -> None:
    """Copy uint8, not empty, to a contiguous array of the same shape; few of them without giving Python's lock away.

    NumPy does give it away for every copy; among busy threads, getting it back takes longer than copying a small image.
    """
    if array.nbytes > _SMALL_BYTES:
        np.copyto(to, array)
    else:
        to.data.cast("B")[:] = np.ascontiguousarray(array).data.cast("B")


class Joined:
    """Arrays one after the other, put together only for the rows that are asked for.

    Whoever computes a chunk does it, so that the chunk lies in that core's cache.

    Parameters
    ----------
    parts : sequence of ndarray, shapes (n, H, W, C)
        At least one.
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self._rows = [row for part in parts for row in part]
        self.shape = (len(self._rows), *parts[0].shape[1:])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: slice) -> np.ndarray:
        some = self._rows[rows]
        out = np.empty((len(some), *self.shape[1:]), np.uint8)
        for row, place in zip(some, out, strict=True):
            copy_whole(row, place)
        return out
