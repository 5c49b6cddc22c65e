"""Memory for pixels on their way, taken again and again.

Memory that comes from the system afresh costs a page fault every 4 KB. A C library keeps what was freed, but not where
each thread has an arena of its own, of limited size, that pixels share with a network's activations.
"""

from __future__ import annotations

import math
import mmap
import threading
from collections import defaultdict

import numpy as np

__all__ = ["PixelMemory"]

#: So many arrays in one piece of memory, at most: a process may have only so many pieces.
_PIECE_ARRAYS, _PIECE_BYTES = 64, 8 << 20


class PixelMemory:
    """Arrays of uint8 for a while. Of each shape there are about as many as were in use at the same time."""

    def __init__(self) -> None:
        self._free: dict[tuple[int, ...], list[np.ndarray]] = defaultdict(list)
        self._lent: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def take(self, shape: tuple[int, ...]) -> np.ndarray:
        """Return an array whose content is arbitrary.

        Parameters
        ----------
        shape : tuple of int
            None of them 0.

        Returns
        -------
        ndarray of uint8

        Raises
        ------
        MemoryError
            When the system has no more.
        """
        with self._lock:
            free = self._free[shape]
            if not free:
                free.extend(_piece(shape))
            array = free.pop()
            self._lent[id(array)] = array
        return array

    def give_back(self, array: np.ndarray) -> None:
        """Let an array be taken again; one that was not taken here is none of its business."""
        with self._lock:
            own = self._lent.pop(id(array), None)
            if own is not None:
                self._free[own.shape].append(own)


def _piece(shape: tuple[int, ...]) -> np.ndarray:
    size = math.prod(shape)
    count = max(1, min(_PIECE_ARRAYS, _PIECE_BYTES // size))
    try:
        memory = mmap.mmap(-1, count * size)
    except OSError as error:
        raise MemoryError(f"{count * size} bytes for pixels: {error.strerror}") from error
    return np.frombuffer(memory, np.uint8).reshape(count, *shape)
