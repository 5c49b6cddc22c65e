"""Rows of codes gathered from many shards: into memory, or into a map for sets larger than that."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..files import unique_name
from .container import Container

__all__ = ["Rows"]

#: Codes are kept in memory as float32 up to this part of RAM; beyond it a read-only map is returned.
_MEMORY_PART = 0.25
_COPY_BYTES = 1 << 26


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of one node that a view needs, by shard and place.

    Attributes
    ----------
    shards : sequence of Container
        The store's shards.
    shard, row : ndarray of int of shape (n,)
        Where each row lies.
    node : str
        Which node.
    shape : tuple of int
        Shape of one row.
    """

    shards: Sequence[Container]
    shard: np.ndarray
    row: np.ndarray
    node: str
    shape: tuple[int, ...]

    def fit_in_memory(self) -> bool:
        """Tell whether all rows as float32 take less than a quarter of RAM."""
        return len(self.row) * self._width() <= _MEMORY_PART * _machine_memory()

    def _width(self) -> int:
        return max(1, int(np.prod(self.shape, dtype=np.int64))) * 4

    def gather(self, out: np.ndarray | None = None) -> np.ndarray:
        """Copy all rows, verified, into `out` or a new float32 array of shape (n, *shape)."""
        out = np.empty((len(self.row), *self.shape), dtype=np.float32) if out is None else out
        step = max(1, _COPY_BYTES // self._width())
        for number in np.unique(self.shard).tolist():
            mine = np.flatnonzero(self.shard == number)
            for start in range(0, len(mine), step):
                part = mine[start : start + step]
                out[part] = self.shards[number].rows("x/" + self.node, self.row[part])
        return out

    def mapped(self, dtype: np.dtype, folder: Path) -> np.ndarray:
        """Return all rows as a read-only map of a private file that they are copied to."""
        path = folder / f"gathered-{unique_name('.npy')}"
        folder.mkdir(exist_ok=True)
        try:
            out = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=(len(self.row), *self.shape))
            _reserve(path)
            self.gather(out)
            out.flush()
            mapped = np.load(path, mmap_mode="r")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        if os.name == "posix":
            path.unlink()  # the map keeps the bytes until the last reader lets go; nothing is left behind
        return mapped


def _reserve(path: Path) -> None:
    """Take the file's blocks now: a full disk is then an OSError, not a SIGBUS at some store into the map."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            try:
                os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
            except OSError as error:
                if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):  # a file system that cannot
                    raise


def _machine_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 8 << 30
