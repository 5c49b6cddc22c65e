"""Rows of codes gathered from many shards: into memory, or into a map for sets larger than that."""

from __future__ import annotations

import contextlib
import copy
import errno
import math
import os
import tempfile
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import DTypeLike

from ..files import unique_name
from .container import Container

__all__ = ["Rows", "convert"]

#: Codes are kept in memory as float32 up to this part of RAM; beyond it a read-only map is returned.
_MEMORY_PART = 0.25
#: Rows are copied in pieces of this size, which stay in the processor's cache between two steps.
_PIECE_BYTES = 1 << 20
#: More pieces than this are read in the order of the disk; below, sorting costs more than it saves.
_SORTED_FROM = 16
#: Rows of one shard that stand together are copied by themselves where there are so many on average.
_LONG_RUN = 64

_SHIFT = np.int32(13)
_MASK = np.array(0x8FFFE000, dtype="<u4").view("<i4")[()]
_SCALE = np.float32(2.0**112)
_SMALLEST = np.array([1], dtype="<u4").view("<f4")


def _widen(half: np.ndarray, out: np.ndarray) -> None:
    """Copy finite float16 values into a float32 array, six times as fast as NumPy's own conversion.

    The bits of exponent and fraction are moved into place, and one product with 2^112 puts the exponent right, for
    subnormal numbers, too. The result is the same, bit for bit.

    Parameters
    ----------
    half : ndarray of float16
        Without NaN and Inf, which no store holds.
    out : ndarray of float32 of the same shape
        C-contiguous.
    """
    if not (_SMALLEST * _SCALE)[0]:  # somebody had this thread's processor take subnormal numbers for zeros
        out[...] = half
        return
    bits = out.view(np.int32)
    bits[...] = half.view(np.int16)
    np.left_shift(bits, _SHIFT, out=bits)
    np.bitwise_and(bits, _MASK, out=bits)
    np.multiply(out, _SCALE, out=out)


class Rows:
    """The rows of one node that a view needs, by shard and place.

    Nothing but marks of what has been verified changes after it was made, so that any number of threads, and processes
    forked from this one, may gather at once.

    All maps are seen as one array: its rows overlap, beginning at every multiple of the largest number of bytes that
    divides both the width of a row and the distance of any two maps, and of them only those that stand for a row are
    ever asked for. So a gather is one call of NumPy's, however many shards it reaches into.

    Parameters
    ----------
    shards : sequence of Container
        The store's shards.
    shard, row : ndarray of int of shape (n,)
        Where each row lies.
    node : str
        Which node.
    shape : tuple of int
        Shape of one row.

    Raises
    ------
    DamagedStore
        When a shard holds rows of another type or shape than the others, or fewer rows than it is asked for.
    """

    def __init__(
        self, shards: Sequence[Container], shard: np.ndarray, row: np.ndarray, node: str, shape: tuple[int, ...]
    ) -> None:
        used, place = np.unique(shard, return_inverse=True)
        self.shards = [shards[n] for n in used.tolist()]
        # Six or eight bytes a row: of ten million rows it should be the codes that take the memory.
        self.shard = place.astype("<u2" if len(used) <= 1 << 16 else "<u4")
        self.row = np.asarray(row).astype("<u4" if not len(row) or int(row.max()) < 1 << 32 else "<i8")
        self.node, self.shape = node, shape
        self.dtype = np.dtype(self.shards[0].region("x/" + node)["dtype"] if self.shards else np.float32)
        self._maps: _Maps | None = None
        self._require_alike()

    def _require_alike(self) -> None:
        last = np.full(len(self.shards), -1, np.int64)
        np.maximum.at(last, self.shard, self.row)
        for shard, most in zip(self.shards, last.tolist(), strict=True):
            region = shard.region("x/" + self.node)
            if region["dtype"] != self.dtype or tuple(region["shape"][1:]) != self.shape:
                raise shard.damage(f"rows of {region['dtype']} {region['shape'][1:]}, not {self.dtype} {self.shape}")
            if most >= region["shape"][0]:
                raise shard.damage(f"{region['shape'][0]} rows; row {most} was looked up")

    def __len__(self) -> int:
        return len(self.row)

    def take(self, index: np.ndarray) -> Rows:
        """Return some of them, in the order of `index`; what one of the two has verified, the other has, too."""
        if len(self):
            self._opened()
        some = copy.copy(self)
        some.shard, some.row = self.shard[index], self.row[index]
        return some

    def jumps_back(self) -> int:
        """Return how often a reader from the first row to the last goes back on the disk."""
        places = _places(self.shard, self.row)
        return int((places[1:] < places[:-1]).sum())

    def storage_order(self) -> np.ndarray:
        """Return the places of all rows in the order in which they lie on disk: int64 of shape (n,)."""
        return np.argsort(_places(self.shard, self.row), kind="stable")

    def fit_in_memory(self) -> bool:
        """Tell whether all rows as float32 take less than a quarter of RAM."""
        return len(self) * math.prod(self.shape) * 4 <= _MEMORY_PART * _machine_memory()

    @property
    def _width(self) -> int:
        return max(1, math.prod(self.shape) * self.dtype.itemsize)

    def _opened(self) -> _Maps:
        if self._maps is None:
            self._maps = _Maps(self.shards, "x/" + self.node, self.dtype, self.shape)
        return self._maps

    def gather(
        self, out: np.ndarray | None = None, index: np.ndarray | slice | None = None, *, dtype: DTypeLike = np.float32
    ) -> np.ndarray:
        """Copy rows, each group verified when it is first touched.

        Parameters
        ----------
        out : ndarray of shape (n, *shape), default=None
            Where to; a new array when not given.
        index : ndarray of int or slice, default=None
            Which, by place from 0 on; all when not given.
        dtype : dtype, default=float32
            Of the new array.

        Returns
        -------
        ndarray
            `out`, or the new array.

        Raises
        ------
        DamagedStore
            Naming the shard and its rows.
        """
        shard, row = (self.shard, self.row) if index is None else (self.shard[index], self.row[index])
        step = max(1, _PIECE_BYTES // self._width)
        if out is None and dtype == self.dtype and len(row) and self._opened().trusted and _are_neighbours(shard, row):
            return self._opened().span(int(shard[0]), int(row[0]), int(row[-1]) + 1)
        if 0 < len(row) <= _SORTED_FROM * step and out is None and dtype == self.dtype:
            return self._opened().pick(shard, row)
        out = np.empty((len(row), *self.shape), dtype=dtype) if out is None else out
        if len(row) <= step:
            if len(row):
                self._opened().copy(shard, row, out)
            return out
        maps = self._opened()
        order = None if len(row) <= _SORTED_FROM * step else _reading_order(shard, row)
        # Piece by piece, so that a piece is still in the processor's cache when it is read again: after verifying it,
        # or to convert it. What is only copied goes in larger ones.
        step = len(row) if order is None and maps.trusted and out.dtype == self.dtype else step
        for start in range(0, len(row), step):
            if order is None:
                piece = slice(start, start + step)
                maps.copy(shard[piece], row[piece], out[piece])
            else:
                some = order[start : start + step]
                narrow = np.empty((len(some), *self.shape), dtype=out.dtype)
                maps.copy(shard[some], row[some], narrow)
                out[some] = narrow
        return out

    def mapped(self, dtype: np.dtype, folder: Path) -> np.ndarray:
        """Return all rows as a read-only map of a private file that they are copied to."""
        path = _room_for(folder)
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


def _are_neighbours(shard: np.ndarray, row: np.ndarray) -> bool:
    """Tell whether rows lie one after the other in one shard."""
    if int(row[-1]) - int(row[0]) != len(row) - 1 or shard[0] != shard[-1]:
        return False
    return bool((row[1:] > row[:-1]).all()) and bool((shard == shard[0]).all())


def _places(shard: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Return numbers that sort as the rows lie on disk."""
    return (shard.astype(np.int64) << 40) | row


def _reading_order(shard: np.ndarray, row: np.ndarray) -> np.ndarray | None:
    """Return the order in which the rows lie on disk; None when that is the order in which they are."""
    places = _places(shard, row)
    return None if bool((places[1:] >= places[:-1]).all()) else np.argsort(places)


class _Maps:
    """One node's region of some shards, seen as one array; see `Rows`."""

    def __init__(self, shards: Sequence[Container], name: str, dtype: np.dtype, shape: tuple[int, ...]) -> None:
        self._shards, self._name = shards, name
        self._always = any(shard.verify_mode == "always" for shard in shards)
        self._raw = [shard.raw(name) for shard in shards]  # held, so that the maps stay where they are
        regions = [shard.region(name) for shard in shards]
        self._group_rows = np.asarray([r["group_rows"] for r in regions], np.int64)
        groups = np.asarray([-(-r["shape"][0] // r["group_rows"]) for r in regions], np.int64)
        self._first_group = np.concatenate([[0], np.cumsum(groups)])
        #: Marks of all groups; by now none is known to be sound.
        self._done = np.full(int(self._first_group[-1]), all(shard.verify_mode == "off" for shard in shards))
        self.whole = bool(self._done.all())
        starts = [raw.__array_interface__["data"][0] for raw in self._raw]
        width = max(1, math.prod(shape) * dtype.itemsize)
        lowest = min(starts)
        self._step = math.gcd(width, *(start - lowest for start in starts)) or 1
        self._factor = width // self._step
        self._start = np.asarray([(start - lowest) // self._step for start in starts], np.int64)
        rows = max(start + len(raw) * self._factor for start, raw in zip(self._start.tolist(), self._raw, strict=True))
        lowest_raw = self._raw[starts.index(lowest)]
        self._all = np.lib.stride_tricks.as_strided(
            lowest_raw, (rows, *shape), (self._step, *lowest_raw.strides[1:]), writeable=False
        )

    def copy(self, shard: np.ndarray, row: np.ndarray, out: np.ndarray) -> None:
        """Copy rows to `out`."""
        cuts = [0, *(np.flatnonzero(shard[1:] != shard[:-1]) + 1).tolist(), len(row)]
        if len(cuts) > 2 + len(row) // _LONG_RUN:
            convert(self.pick(shard, row), out)
            return
        for start, stop in pairwise(cuts):
            number, some = int(shard[start]), row[start:stop]
            first, last = int(some[0]), int(some[-1])
            if _are_neighbours(shard[start:stop], some):
                self._verify(shard[start:stop], some)
                convert(self._raw[number][first : last + 1], out[start:stop])
            else:
                convert(self.pick(shard[start:stop], some), out[start:stop])

    @property
    def trusted(self) -> bool:
        """Whether nothing needs to be verified any more."""
        return self.whole and not self._always

    def span(self, shard: int, first: int, stop: int) -> np.ndarray:
        """Return neighbouring rows, all of them verified before, as they are stored: a new array."""
        return np.array(self._raw[shard][first:stop])

    def pick(self, shard: np.ndarray, row: np.ndarray) -> np.ndarray:
        """Return rows as they are stored: a new array."""
        self._verify(shard, row)
        if len(self._raw) == 1:
            return self._raw[0].take(row, axis=0)
        return self._all[self._start[shard] + row.astype(np.int64) * self._factor]

    def _verify(self, shard: np.ndarray, row: np.ndarray) -> None:
        """Verify the groups of some rows that have not been."""
        if self.trusted:
            return
        group = self._first_group[shard] + row // self._group_rows[shard]
        open_ = np.unique(group if self._always else group[~self._done[group]])
        if not len(open_):
            return
        owner = np.searchsorted(self._first_group, open_, side="right") - 1
        for number in np.unique(owner).tolist():
            mine = open_[owner == number]
            self._shards[number].touch(self._name, mine - self._first_group[number])
            self._done[mine] = True
        self.whole = bool(self._done.all())


def convert(source: np.ndarray, out: np.ndarray) -> None:
    """Copy codes, as stored, into an array of any type, the fastest way."""
    if source.dtype == np.float16 and out.dtype == np.float32 and out.flags.c_contiguous:
        _widen(source, out)
    else:
        out[...] = source


def _room_for(folder: Path) -> Path:
    """Return a name for a private file in a folder, or where the store cannot be written, among the temporary files."""
    with contextlib.suppress(OSError):
        folder.mkdir(exist_ok=True)
    place = folder if os.access(folder, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())
    return place / f"gathered-{unique_name('.npy')}"


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
