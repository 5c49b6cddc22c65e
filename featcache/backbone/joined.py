"""Pixels of one batch that lie in several places."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["Joined"]


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
        return np.stack(self._rows[rows])
