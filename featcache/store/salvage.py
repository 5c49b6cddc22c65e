"""What still holds of a damaged shard: every group of rows whose bytes have the checksum that was stored for them.

A group counts when its keys, view numbers and the codes of all nodes hold. The checksums of groups have a checksum of
their own, which is not asked: should bytes and stored sum agree in 64 bits, both are what was written. The flag
"constant" says nothing that the codes do not say, and is computed again from them. A view number cannot be computed;
but where one and the same number for all rows of a group has the stored checksum, that is what stood there. Otherwise
the group is given up: codes of an augmented view must never be taken for those of the plain image.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedStore
from .container import group_sum
from .layout import Layout
from .safely import open_regular, read_at

__all__ = ["Salvage", "open_salvage"]

#: View numbers that are tried for a group whose own are damaged, beside those that other groups have.
_LIKELY_VIEWS = 8
_MOST_VIEWS = 64


class _Rows:
    """One region of rows in a damaged file; each group is verified whenever it is read.

    Parameters
    ----------
    descriptor : int
        The open file.
    region, sums : mapping
        Where the rows and the checksums of their groups lie.
    groups : int
        How many groups at most are looked at.
    """

    def __init__(self, descriptor: int, region: Mapping[str, Any], sums: Mapping[str, Any], groups: int) -> None:
        self._descriptor, self._region = descriptor, region
        self.dtype = np.dtype(region["dtype"]).newbyteorder("<")
        self.size, self.total = region["group_rows"], region["shape"][0]
        self._width = math.prod(region["shape"][1:]) * self.dtype.itemsize
        stored = _read(descriptor, 8 * groups, sums["offset"])
        self.sums = np.frombuffer(stored[: len(stored) // 8 * 8], "<u8")
        self.good = np.asarray([self.group(number) is not None for number in range(groups)], dtype=bool)

    def count(self, number: int) -> int:
        """Return how many rows a group has."""
        return min(self.size, self.total - number * self.size)

    def group(self, number: int) -> np.ndarray | None:
        """Return the rows of a group, None when they are not what was stored."""
        count = self.count(number)
        if number >= len(self.sums) or count <= 0:
            return None
        data = _read(self._descriptor, count * self._width, self._region["offset"] + number * self.size * self._width)
        if len(data) < count * self._width:
            return None
        rows = np.frombuffer(data, self.dtype).reshape(count, *self._region["shape"][1:])
        return rows if group_sum(rows) == int(self.sums[number]) else None


class _Chosen:
    """Some rows of a region, read group by group; see `writing.RowSource`."""

    def __init__(self, rows: _Rows, index: np.ndarray, path: Path) -> None:
        self._rows, self._index, self._path = rows, index, path
        self.dtype = rows.dtype
        self.shape = (len(index), *rows._region["shape"][1:])

    def __getitem__(self, rows: slice) -> np.ndarray:
        index = self._index[rows]
        out = np.empty((len(index), *self.shape[1:]), self.dtype)
        group = index // self._rows.size
        for number in np.unique(group).tolist():
            block = self._rows.group(number)
            if block is None:  # it held a moment ago: the disk is failing
                raise DamagedStore.at(self._path, "reads differently each time; copy the store to another disk")
            mine = group == number
            out[mine] = block[index[mine] - number * self._rows.size]
        return out


class Salvage:
    """The rows of a damaged shard that hold.

    Attributes
    ----------
    keys, views, constant : ndarrays
        Of those rows.
    computed : dict
        How they were computed, as the damaged shard says.
    lost : int
        How many rows do not hold.
    lost_keys : ndarray of uint8 of shape (k, 32)
        Keys of those among them whose key holds.
    """

    def __init__(self, path: Path, layout: Layout, descriptor: int) -> None:
        self._path = path
        n, groups, size = _extent(layout, os.fstat(descriptor).st_size)
        nodes = [f"x/{node}" for node in layout.attributes["nodes"]]
        self._rows = {
            name: _Rows(descriptor, layout.regions[name], layout.regions[layout.regions[name]["groups"]], groups)
            for name in ("key", "view_number", "constant", *nodes)
        }
        computed = layout.attributes.get("computed")
        self.computed: dict[str, Any] = computed if isinstance(computed, dict) else {}
        views = self._views(groups)
        good = self._rows["key"].good & np.asarray([number in views for number in range(groups)], dtype=bool)
        for node in nodes:
            good &= self._rows[node].good
        numbers = np.flatnonzero(good).tolist()
        self._index = _joined([np.arange(g * size, g * size + self._rows["key"].count(g)) for g in numbers], "i8")
        self.keys = _joined([self._group("key", g) for g in numbers], "u1", 32)
        self.views = _joined([views[g] for g in numbers], "<u2")
        self.constant = _joined([self._flags(g, nodes) for g in numbers], "u1")
        self.lost = n - len(self._index)
        lost = [self._group("key", g) for g in np.flatnonzero(self._rows["key"].good & ~good).tolist()]
        self.lost_keys = _joined(lost, "u1", 32)
        #: Whether there are rows of which not even the key is known.
        self.unknown = self.lost > len(self.lost_keys)

    def _group(self, name: str, number: int) -> np.ndarray:
        block = self._rows[name].group(number)
        if block is None:
            raise DamagedStore.at(self._path, "reads differently each time; copy the store to another disk")
        return block

    def _views(self, groups: int) -> dict[int, np.ndarray]:
        """Return the view numbers of each group of which they are known."""
        rows = self._rows["view_number"]
        known = {number: self._group("view_number", number) for number in np.flatnonzero(rows.good).tolist()}
        seen = {int(value) for values in known.values() for value in np.unique(values)}
        for number in range(min(groups, len(rows.sums))):
            for value in sorted({*range(_LIKELY_VIEWS), *sorted(seen)[:_MOST_VIEWS]}) if number not in known else []:
                guess = np.full(rows.count(number), value, "<u2")
                if group_sum(guess) == int(rows.sums[number]):
                    known[number] = guess
        return known

    def _flags(self, number: int, nodes: Sequence[str]) -> np.ndarray:
        """Return which rows of a group have equal codes."""
        stored = self._rows["constant"].group(number)
        if stored is not None:
            return stored
        flags = np.ones(self._rows["constant"].count(number), dtype="u1")
        for node in nodes:
            flat = self._group(node, number).reshape(len(flags), -1)
            flags &= (flat == flat[:, :1]).all(axis=1)
        return flags

    def __len__(self) -> int:
        return len(self._index)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of one row per node."""
        return {name[2:]: tuple(r._region["shape"][1:]) for name, r in self._rows.items() if name.startswith("x/")}

    def codes(self, chosen: np.ndarray) -> dict[str, _Chosen]:
        """Return the codes of some of the rows (a mask) per node."""
        index = self._index[chosen]
        return {
            name[2:]: _Chosen(rows, index, self._path) for name, rows in self._rows.items() if name.startswith("x/")
        }


def _read(descriptor: int, count: int, offset: int) -> bytes:
    """Read what can be read: a sector that the disk does not give any more is a damaged group, not the end."""
    with contextlib.suppress(OSError, OverflowError):
        return read_at(descriptor, max(0, count), offset)
    return b""


def _joined(parts: list[np.ndarray], dtype: str, *shape: int) -> np.ndarray:
    return np.concatenate([np.zeros((0, *shape), dtype), *parts]).astype(dtype, copy=False)


def _extent(layout: Layout, size: int) -> tuple[int, int, int]:
    """Return rows, groups that can lie in a file of `size` bytes, and rows of a group; ValueError for no shard."""
    nodes = layout.attributes["nodes"]
    if not isinstance(nodes, list) or not nodes or not all(isinstance(node, str) for node in nodes):
        raise ValueError("no nodes")
    key = layout.regions["key"]
    n, group_rows = key["shape"][0], key["group_rows"]
    expected = {"key": ("uint8", [n, 32]), "view_number": ("uint16", [n]), "constant": ("uint8", [n])}
    for name in [*expected, *(f"x/{node}" for node in nodes)]:
        region = layout.regions[name]
        dtype, shape = expected.get(name, (region["dtype"], [n, *region["shape"][1:]]))
        if region["dtype"] != dtype or region["shape"] != shape or region["group_rows"] != group_rows:
            raise ValueError(f"region {name!r} of type {region['dtype']} and shape {region['shape']}")
        if name not in expected and len(shape) < 2:
            raise ValueError(f"region {name!r} of shape {shape}")
        if region["groups"] not in layout.regions:
            raise ValueError(f"region {name!r} without checksums")
    inside = max(0, size - key["offset"])
    return n, min(-(-n // group_rows), -(-inside // (32 * group_rows))), group_rows


@contextlib.contextmanager
def open_salvage(path: Path, layout: Layout) -> Iterator[Salvage | None]:
    """Open a damaged shard; None when nothing can be read from it.

    Parameters
    ----------
    path : Path
        The file.
    layout : Layout
        Where its rows lie.
    """
    descriptor = open_regular(path)
    try:
        try:
            found = Salvage(path, layout, descriptor)
        except (LookupError, TypeError, ValueError, AttributeError, MemoryError):
            found = None
        yield found
    finally:
        os.close(descriptor)
