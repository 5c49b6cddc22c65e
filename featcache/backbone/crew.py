"""Threads that run a network on a CPU: one chunk each, with the arithmetic of one core.

Dividing the images among cores instead of each operation keeps cores from waiting for one another at the end of every
layer, and the sums of a row are ordered as on one core, whatever their number: a row's bits do not depend on it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, Literal, Protocol

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


#: The largest block whose end glibc learns from (DEFAULT_MMAP_THRESHOLD_MAX), less what surrounds it.
_LARGEST_LESSON = (32 << 20) - (64 << 10)

_crews: dict[tuple[int, int, str], ThreadPoolExecutor] = {}
_lock = threading.Lock()


def crew(size: int, role: Literal["model", "packing"] = "model") -> ThreadPoolExecutor:
    """Return this process's pool of `size` threads, each of which computes on one core.

    Parameters
    ----------
    size : int
        Number of threads, usually `torch.get_num_threads()`.
    role : {"model", "packing"}, default "model"
        What they do. A thread's memory comes in heaps of 64 MiB: where weights fill them, the values of a chunk would
        need a new one, which is given back to the system, and taken again page by page, for every layer.

    Returns
    -------
    ThreadPoolExecutor
        Made on first use; a forked process gets its own.
    """
    with _lock:
        # A fork inherits the dictionary but not the threads.
        key = (os.getpid(), size, role)
        if key not in _crews:
            _crews[key] = _hired(size, role)
        return _crews[key]


def settle(threads: Threads) -> None:
    """Make each of somebody's threads compute on one core, and no more of them at once than PyTorch may use cores."""
    threads.urgent_at_once = threads.size
    with _lock:
        _settle(threads, threads.size)
        threads.urgent_at_once = min(threads.size, torch.get_num_threads())


def _hired(size: int, role: str) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(size, thread_name_prefix=f"featcache-{role}")
    _settle(pool, size)
    return pool


def _keep_freed_memory() -> None:
    """Have glibc keep up to 64 MiB per thread for the next chunk, instead of giving them back after each layer.

    Its two thresholds follow the largest mapped block that the process ever freed (mallopt(3), M_MMAP_THRESHOLD), so
    one is mapped and freed here; it is not written to. Nothing happens where the user has set them, and with other
    allocators.
    """
    torch.empty(_LARGEST_LESSON, dtype=torch.uint8, device="cpu")


def _settle(pool: Executor | Threads, size: int) -> None:
    """Tell all threads at the same time, and one pool after the other.

    PyTorch gives threads that are new to it the last number that any thread asked for, so it is set back.
    """
    _keep_freed_memory()
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
