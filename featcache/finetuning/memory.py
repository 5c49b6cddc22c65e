"""Out of memory: what it looks like, and how many images go through the network at once after it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator

import torch

from ..errors import FinetuneError

__all__ = ["MicroBatch", "OutOfMemory", "is_out_of_memory", "pieces"]

_WORDS = ("out of memory", "can't allocate memory", "cannot allocate memory", "DefaultCPUAllocator", "alloc_failed")


class OutOfMemory(Exception):
    """Memory ran out where the step cannot simply be repeated: the last checkpoint has to be taken up."""


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that memory ran out, on the host or on a GPU.

    Examples
    --------
    >>> is_out_of_memory(RuntimeError("CUDA out of memory")), is_out_of_memory(RuntimeError("shapes differ"))
    (True, False)
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word.lower() in str(error).lower() for word in _WORDS)


def pieces(n: int, micro: int) -> Iterator[slice]:
    """Cut a batch of n into as few parts as may be, none larger than `micro`, all as large as each other or nearly.

    Examples
    --------
    >>> [piece.stop - piece.start for piece in pieces(33, 16)]
    [11, 11, 11]
    """
    parts = -(-n // micro)  # equal ones: a batch norm has no statistics of a last part of one image
    for i in range(parts):
        yield slice(i * n // parts, (i + 1) * n // parts)


class MicroBatch:
    """How many images go through the network at once.

    Parameters
    ----------
    limit : int, optional
        At most so many; None = no limit yet.
    say : callable
        Told once per halving.
    """

    def __init__(self, limit: int | None, say: Callable[[str], None]) -> None:
        self.limit, self.say = limit, say

    def of(self, batch_size: int) -> int:
        """Return the size for batches of so many."""
        return batch_size if self.limit is None else min(self.limit, batch_size)

    def halve(self, batch_size: int, where: str) -> None:
        """Go on with half of it; FinetuneError at one image."""
        now = self.of(batch_size)
        if now <= 1:
            raise FinetuneError(
                f"{where}: out of memory with one image at a time; train fewer blocks, use amp, smaller images or "
                "another device. The last checkpoint is kept"
            ) from None
        self.limit = now // 2
        self.say(f"{where}: out of memory with {now} images at once; going on with {self.limit}, batches stay as large")
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
