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


class PixelMemory:
    """Arrays of uint8 for a while; there are never more than were in use at the same time."""

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
        """
        with self._lock:
            free = self._free[shape]
            array = free.pop() if free else np.frombuffer(mmap.mmap(-1, math.prod(shape)), np.uint8).reshape(shape)
            self._lent[id(array)] = array
        return array

    def give_back(self, array: np.ndarray) -> None:
        """Let an array be taken again; one that was not taken here is none of its business."""
        with self._lock:
            own = self._lent.pop(id(array), None)
            if own is not None:
                self._free[own.shape].append(own)
