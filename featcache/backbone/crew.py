"""Threads that run a network on a CPU: one chunk each, with the arithmetic of one core.

Dividing the images among cores instead of each operation keeps cores from waiting for one another at the end of every
layer, and the sums of a row are ordered as on one core, whatever their number: a row's bits do not depend on it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch

__all__ = ["Threads", "crew", "settle"]


class Threads(Protocol):
    """Threads that somebody else has and that do other things as well, such as `featcache.extraction.team.Team`.

    Attributes
    ----------
    size : int
        How many there are.
    urgent_at_once : int
        How many may do at the same time what `submit` gets; to be set.
    """

    size: int
    urgent_at_once: int

    def submit(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Have something done before all other work; so many tasks as there are threads are done by one thread each."""


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


def settle(threads: Threads) -> None:
    """Make each of somebody's threads compute on one core, and no more of them at once than PyTorch may use cores."""
    threads.urgent_at_once = threads.size
    with _lock:
        _settle(threads, threads.size)
        threads.urgent_at_once = min(threads.size, torch.get_num_threads())


def _hired(size: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(size, thread_name_prefix="featcache-model")
    _settle(pool, size)
    return pool


def _settle(pool: Executor | Threads, size: int) -> None:
    """Tell all threads at the same time, and one pool after the other.

    PyTorch gives threads that are new to it the last number that any thread asked for, so it is set back.
    """
    before, present = torch.get_num_threads(), threading.Barrier(size)

    def one() -> None:
        present.wait()  # some may have to end what they do first
        torch.get_num_threads()  # a thread's first question sets it to that last number; later ones do not
        torch.set_num_threads(1)

    try:
        for started in [pool.submit(one) for _ in range(size)]:
            started.result()
    finally:
        present.abort()  # after Ctrl-C those who are there must not wait for the others
        torch.set_num_threads(before)
