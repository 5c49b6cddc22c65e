"""Threads that run a network on a CPU: one chunk each, with the arithmetic of one core.

Dividing the images among cores instead of each operation keeps cores from waiting for one another at the end of every
layer, and the sums of a row are ordered as on one core, whatever their number: a row's bits do not depend on it.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["crew"]

_crews: dict[tuple[int, int], ThreadPoolExecutor] = {}
_lock = threading.Lock()


def crew(size: int) -> ThreadPoolExecutor:
    """Return this process's pool of `size` threads, each of which computes on one core.

    Parameters
    ----------
    size : int
        Number of threads, usually `torch.get_num_threads()`.

    Returns
    -------
    ThreadPoolExecutor
        Made on first use; a forked process gets its own.
    """
    with _lock:
        # A fork inherits the dictionary but not the threads.
        key = (os.getpid(), size)
        if key not in _crews:
            _crews[key] = _hired(size)
        return _crews[key]


def _hired(size: int) -> ThreadPoolExecutor:
    """Start the threads at once: PyTorch remembers the last number that any thread asked for, so it is set back."""
    before, present = torch.get_num_threads(), threading.Barrier(size)

    def settle() -> None:
        torch.get_num_threads()  # a thread's first question sets it to that last number; later ones do not
        torch.set_num_threads(1)
        present.wait()

    pool = ThreadPoolExecutor(size, thread_name_prefix="featcache-model")
    for started in [pool.submit(settle) for _ in range(size)]:
        started.result()
    torch.set_num_threads(before)
    return pool
