"""Where the rows of a damaged shard lie: by our own header where that is sound, else by HDF5's.

HDF5 is asked in a child process, since libhdf5 may crash on damaged files; it is asked for places only. What lies there
is read and verified by featcache itself.
"""

from __future__ import annotations

import contextlib
import math
import os
import stat
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedStore
from .container import GROUP_ROWS, Container
from .limited import Crashed, in_limited_child
from .safely import open_regular, parse_json

__all__ = ["Layout", "Wreck", "find_layout", "places_by_hdf5"]

_MEMORY = 2 << 30
_SECONDS = 60
_DTYPES = {"uint8", "uint16", "uint32", "uint64", "int32", "int64", "float16", "float32", "float64"}
_MOST_DATASETS = 4096
_LONGEST_ATTRIBUTE = 1 << 23
_DEEPEST = 8


@dataclass(frozen=True)
class Layout:
    """Where the regions of a damaged file lie, as far as that can be told.

    Attributes
    ----------
    kind : str
        "shard" or "snapshot".
    attributes : mapping
        As `Container.attributes`.
    regions : mapping
        Name → ``{"offset", "dtype", "shape"}`` and, for rows, ``"groups"`` and ``"group_rows"``.
    source : {"header", "HDF5"}
        Who said so.
    """

    kind: str
    attributes: Mapping[str, Any]
    regions: Mapping[str, Mapping[str, Any]]
    source: str


class Wreck(Container):
    """A damaged container whose header is sound: it opens whatever its size, and without its HDF5 metadata.

    A region that the file does not hold wholly any more must be read (`read_rows`, `check_plain`), not mapped.
    """

    def _open(self) -> dict[str, Any]:
        try:
            self._descriptor = open_regular(self.path)
            self._close = weakref.finalize(self, os.close, self._descriptor)
            size = os.fstat(self._descriptor).st_size
            header = self._parse_header(size)
            claimed = header["size"]
            if type(claimed) is not int or not 0 <= claimed < 1 << 48:
                raise self.damage(f"a size of {claimed!r} bytes")
            self._check_regions(header, claimed)
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
            if isinstance(error, DamagedStore):
                raise
            raise self.damage(f"unreadable header: {error}") from error
        except OSError as error:
            if isinstance(error, DamagedStore):
                raise
            raise self._unreadable(error) from error
        return {**header, "size": size}


def find_layout(path: Path) -> Layout | None:
    """Find out where the rows of a damaged file lie; None when neither header nor HDF5 can tell."""
    with contextlib.suppress(DamagedStore), contextlib.closing(Wreck(path)) as wreck:
        return Layout(wreck.kind, wreck.attributes, wreck.regions, "header")
    if not stat.S_ISREG(path.lstat().st_mode):
        return None
    with contextlib.suppress(Crashed, ValueError, LookupError, TypeError, AttributeError, RecursionError, OSError):
        said = in_limited_child(
            f"{__name__}:places_by_hdf5", [os.fspath(path)], memory=_MEMORY + path.stat().st_size, seconds=_SECONDS
        )
        attributes = {str(name): parse_json(text.encode()) for name, text in said["attributes"].items()}
        regions = {name: _checked(region) for name, region in said["datasets"].items()}
        for name, region in regions.items():
            sums = regions.get("xxh3/" + name)
            count = -(-region["shape"][0] // GROUP_ROWS) if region["shape"] else -1
            if sums is not None and sums["dtype"] == "uint64" and sums["shape"] == [count]:
                region |= {"groups": "xxh3/" + name, "group_rows": GROUP_ROWS}
        if attributes.get("format") == "featcache" and isinstance(attributes.get("kind"), str):
            return Layout(attributes["kind"], attributes, regions, "HDF5")
    return None


def _checked(region: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the child said about a dataset; ValueError when it cannot be."""
    offset, dtype, shape = region["offset"], region["dtype"], list(region["shape"])
    counts = [offset, *shape, math.prod(n for n in shape if n)]
    if dtype not in _DTYPES or len(shape) > 32 or any(type(n) is not int or not 0 <= n < 1 << 48 for n in counts):
        raise ValueError(f"a dataset of type {dtype!r} and shape {shape}")
    return {"offset": offset, "dtype": dtype, "shape": shape}


def places_by_hdf5(path: str) -> dict[str, Any]:
    """Run in the child: tell which plain datasets a file holds and where, and its root attributes."""
    import h5py

    datasets: dict[str, Any] = {}

    def look(group: h5py.Group, prefix: str, depth: int) -> None:
        for name in group:
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink) or depth > _DEEPEST or len(datasets) >= _MOST_DATASETS:
                continue
            with contextlib.suppress(OSError, RuntimeError, KeyError, ValueError, TypeError):
                item = group[name]
                if isinstance(item, h5py.Group):
                    look(item, f"{prefix}{name}/", depth + 1)
                elif isinstance(item, h5py.Dataset):
                    place = _place(item)
                    if place is not None:
                        datasets[prefix + name] = place

    def _place(dataset: h5py.Dataset) -> dict[str, Any] | None:
        plan = dataset.id.get_create_plist()
        if plan.get_layout() != h5py.h5d.CONTIGUOUS or plan.get_nfilters() or plan.get_external_count():
            return None
        dtype = dataset.dtype
        if str(dtype) not in _DTYPES or dtype != dtype.newbyteorder("<"):
            return None
        offset = dataset.id.get_offset()
        return {"offset": int(offset or 0), "dtype": str(dtype), "shape": [int(n) for n in dataset.shape]}

    attributes = {}
    with h5py.File(path, "r", locking=False) as file:
        for name in file.attrs:
            with contextlib.suppress(OSError, RuntimeError, KeyError, ValueError, TypeError):
                kind = file.attrs.get_id(name)
                if kind.dtype.kind == "S" and kind.get_storage_size() <= _LONGEST_ATTRIBUTE:
                    attributes[name] = bytes(np.asarray(file.attrs[name]).item()).decode()
        look(file, "", 0)
    return {"attributes": attributes, "datasets": datasets}
