"""Limits on what is under way: bytes, since one huge photo takes as much memory as thousands of usual ones; threads."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

__all__ = ["ByteBudget", "Crowd"]


class ByteBudget:
    """Lets work begin while the bytes of all that is under way stay below a limit; one is always let in.

    Parameters
    ----------
    limit : int
        Bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._used = 0
        self._changed = threading.Condition()

    @contextlib.contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Wait until `size` bytes fit, and hold them."""
        with self._changed:
            self._changed.wait_for(lambda: self._used == 0 or self._used + size <= self.limit)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


class Crowd:
    """Lets so many threads work at once; the number may grow.

    Parameters
    ----------
    size : int
        How many, at first.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._inside = 0
        self._changed = threading.Condition()

    def grow(self, most: int) -> None:
        """Let half as many more in, up to `most`."""
        with self._changed:
            self.size = min(most, self.size + max(1, self.size // 2))
            self._changed.notify_all()

    def __enter__(self) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._inside < self.size)
            self._inside += 1

    def __exit__(self, *exc: object) -> None:
        with self._changed:
            self._inside -= 1
            self._changed.notify()
