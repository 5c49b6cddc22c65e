"""One immutable HDF5 file, all of it checksummed but the zeros that fill the user block up: reading.

A container is an ordinary HDF5 file (any HDF5 program reads it) behind a user block that featcache itself reads::

    bytes 0–7    b"FEATCACH"
    bytes 8–11   header version, uint32 little-endian: 1
    bytes 12–15  length of the JSON text, uint32 little-endian
    bytes 16–23  xxh3-64 of the JSON text, uint64 little-endian
    bytes 24–    the JSON text (UTF-8), then zeros up to the size of the user block (a power of two, at least 4096)

The JSON names the file's size, every dataset ("region": offset, dtype, shape, checksum) and the xxh3-128 of all bytes
behind the user block that belong to no region. Reading therefore needs no HDF5 library: offsets are checked against
the file's size, data are mapped, and a region or group of rows is verified when it is first touched. Datasets are
contiguous, of fixed types, without filters and links. The file stays open: whoever moves or removes its name meanwhile
takes nothing away from a reader.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import struct
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..errors import DamagedStore, StoreError, StoreTooNew
from .safely import open_regular, parse_json, read_at, with_descriptors

__all__ = [
    "FORMAT_VERSION",
    "GROUP_ROWS",
    "HEADER",
    "LARGEST_REST",
    "MAGIC",
    "Container",
    "checksum",
    "checksum_of_rest",
    "group_sum",
]

FORMAT_VERSION = 1
GROUP_ROWS = 256
MAGIC = b"FEATCACH"
HEADER = struct.Struct("<8sIIQ")
_LARGEST_HEADER = 1 << 24
#: HDF5's own bytes and the room between regions; more of them would only keep a reader busy.
LARGEST_REST = 1 << 26
_LONGEST_REASON = 400
_GROUP_SIZES = range(16, 1 << 16)
_DTYPES = {"uint8", "uint16", "uint32", "uint64", "int32", "int64", "float16", "float32", "float64"}
_CHUNK = 1 << 24
#: Groups that lie this close together are read in one call.
_READ_AHEAD = 1 << 16
#: The machine is short of something; this says nothing about the file.
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def checksum(array: np.ndarray) -> str:
    """Return the xxh3-128 of an array's bytes in C order, hex."""
    return xxhash.xxh3_128_hexdigest(array.data.cast("B") if array.nbytes else b"")


def group_sum(rows: np.ndarray) -> int:
    """Return the xxh3-64 of one group of rows."""
    return xxhash.xxh3_64_intdigest(rows.data.cast("B") if rows.nbytes else b"")


def checksum_of_rest(pieces: Iterator[bytes]) -> str:
    """Return the xxh3-128, hex, of all bytes behind the user block that lie in no region."""
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(piece)
    return digest.hexdigest()


def gaps(regions: Sequence[Mapping[str, Any]], start: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield the spans from `start` to `size` that lie in no region."""
    position = start
    for first, stop in [*sorted((r["offset"], r["offset"] + r["bytes"]) for r in regions if r["bytes"]), (size, size)]:
        if first > position:
            yield position, first
        position = max(position, stop)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 48


class Container:
    """A published container, opened for reading: header checked, data mapped, regions verified on first touch.

    Parameters
    ----------
    path : Path
        The file.
    verify : {"touch", "always", "off"}, default="touch"
        When checksums of regions are compared.

    Raises
    ------
    DamagedStore
        When the header, the size or the HDF5 metadata are not what was published.
    StoreTooNew
        When the file's format is newer than this featcache.
    """

    def __init__(self, path: Path, verify: str = "touch") -> None:
        self.path = path
        self._verify = verify
        self._verified: dict[str, np.ndarray | bool] = {}
        self._map: mmap.mmap | None = None
        header = self._open()
        self.kind: str = header["kind"]
        self.attributes: dict[str, Any] = header["attributes"]
        self.regions: dict[str, dict[str, Any]] = {r["name"]: r for r in header["regions"]}
        self.size: int = header["size"]
        self.block: int = header["block"]

    def damage(self, reason: str) -> DamagedStore:
        """Return the error that says what is wrong with this file."""
        reason = reason if len(reason) <= _LONGEST_REASON else reason[:_LONGEST_REASON] + "…"
        return DamagedStore.at(
            self.path, f"damaged ({reason}); run `featcache check --deep` on the store to see which images it costs"
        )

    def _unreadable(self, error: OSError) -> StoreError:
        if error.errno in _SHORTAGES:
            return StoreError(
                f"{self.path}: cannot be read now: {error.strerror}; the file may be sound: "
                "close other programs or allow more (for open files: ulimit -n), and try again"
            )
        if error.errno == errno.ELOOP:
            return self.damage("it is a link; files of a store are read from the store itself only")
        return self.damage(f"cannot be read: {error.strerror or error}")

    # -- header ----------------------------------------------------------------------------------------------------

    def _open(self) -> dict[str, Any]:
        try:
            self._descriptor = open_regular(self.path)
            # Closed with the container; a map made meanwhile lives on by itself.
            self._close = weakref.finalize(self, os.close, self._descriptor)
            size = os.fstat(self._descriptor).st_size
            header = self._parse_header(size)
            if size != header["size"]:
                raise self.damage(f"{size} bytes instead of {header['size']}")
            self._check_regions(header, size)
            if self._verify != "off" and checksum_of_rest(self._rest(header, size)) != header["meta"]:
                raise self.damage("the checksum of its HDF5 metadata does not match")
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError, MemoryError) as error:
            if isinstance(error, DamagedStore):
                raise
            raise self.damage(f"unreadable header: {error}") from error
        except StoreError:
            raise
        except OSError as error:
            raise self._unreadable(error) from error
        return header

    def _rest(self, header: dict[str, Any], size: int) -> Iterator[bytes]:
        for first, stop in gaps(header["regions"], header["block"], size):
            for start in range(first, stop, _CHUNK):
                yield read_at(self._descriptor, min(_CHUNK, stop - start), start)

    def _parse_header(self, size: int) -> dict[str, Any]:
        start = read_at(self._descriptor, HEADER.size, 0)
        if len(start) < HEADER.size or start[:8] != MAGIC:
            raise self.damage("not a featcache file")
        _, version, length, expected = HEADER.unpack(start)
        if length > min(size, _LARGEST_HEADER):
            raise self.damage("impossible header length")
        text = read_at(self._descriptor, length, HEADER.size)
        if xxhash.xxh3_64_intdigest(text) != expected:
            raise self.damage("the checksum of its header does not match")
        header = parse_json(text)
        if version != header["format_version"]:
            raise self.damage(f"format version {version} outside, {header['format_version']} inside")
        if version > FORMAT_VERSION:
            raise StoreTooNew(
                f"{self.path}: format version {version}, this featcache reads up to {FORMAT_VERSION}; "
                "install a newer one (pip install --upgrade featcache)"
            )
        return header

    def _check_regions(self, header: dict[str, Any], size: int) -> None:
        """Refuse a header that would make us read what is not there: it may come from anywhere."""
        block, regions = header["block"], header["regions"]
        if type(block) is not int or not HEADER.size <= block <= size or not isinstance(header["attributes"], dict):
            raise self.damage(f"a user block of {block!r} bytes")
        by_name = {region["name"]: region for region in regions}
        if len(by_name) != len(regions):
            raise self.damage("two regions of one name")
        for region in regions:
            self._check_region(region, block, size)
            if "groups" in region:
                rows, sums = region["group_rows"], by_name.get(region["groups"], {})
                count = (
                    -(-region["shape"][0] // rows)
                    if type(rows) is int and rows in _GROUP_SIZES and region["shape"]
                    else -1
                )
                if "groups" in sums or sums.get("dtype") != "uint64" or sums.get("shape") != [count]:
                    raise self.damage(f"region {region['name']!r} without the checksums of its rows")
        spans = sorted((r["offset"], r["offset"] + r["bytes"]) for r in regions if r["bytes"])
        if any(first < stop for (_, stop), (first, _) in zip(spans, spans[1:], strict=False)):
            raise self.damage("regions that overlap")
        if sum(stop - first for first, stop in gaps(regions, block, size)) > LARGEST_REST:
            raise self.damage("too many bytes that belong to no region")

    def _check_region(self, region: dict[str, Any], block: int, size: int) -> None:
        name, shape, dtype = region["name"], region["shape"], region["dtype"]
        if (
            not isinstance(name, str)
            or dtype not in _DTYPES
            or len(shape) > 32
            or not all(_is_count(n) for n in shape)
            # Counted without the zeros, too: NumPy makes no empty array whose other axes are beyond counting.
            or not _is_count(math.prod(n for n in shape if n))
        ):
            raise self.damage(f"region {name!r} of type {dtype!r} and shape {shape}")
        start, count = region["offset"], region["bytes"]
        if count != math.prod(shape) * np.dtype(dtype).itemsize or type(count) is not int:
            raise self.damage(f"region {name!r} of {count!r} bytes")
        if not _is_count(start) or (count and not block <= start <= size - count):
            raise self.damage(f"region {name!r} lies outside the file")

    def __contains__(self, name: str) -> bool:
        return name in self.regions

    def region(self, name: str) -> dict[str, Any]:
        """Return what the header says about a dataset; DamagedStore when there is none of that name."""
        if name not in self.regions:
            raise self.damage(f"it has no dataset {name!r}")
        return self.regions[name]

    # -- data ------------------------------------------------------------------------------------------------------

    def raw(self, name: str) -> np.ndarray:
        """Map a region without verifying it."""
        region = self.region(name)
        if not region["bytes"]:
            return np.zeros(region["shape"], dtype=region["dtype"])
        if self._map is None:
            self._map = self._mapped()
        count = int(np.prod(region["shape"]))
        return np.frombuffer(self._map, region["dtype"], count, region["offset"]).reshape(region["shape"])

    def _mapped(self) -> mmap.mmap:
        """Map the file, provided that it still has the size that its header was checked for."""
        try:
            size = os.fstat(self._descriptor).st_size
            if size != self.size:
                raise self.damage(f"{size} bytes instead of {self.size}")
            return with_descriptors(lambda: mmap.mmap(self._descriptor, self.size, access=mmap.ACCESS_READ))
        except StoreError:
            raise
        except OSError as error:
            raise self._unreadable(error) from error

    def _read(self, count: int, offset: int) -> bytes:
        try:
            data = read_at(self._descriptor, count, offset)
        except OSError as error:
            raise self._unreadable(error) from error
        if len(data) < count:
            raise self.damage(f"it ends before byte {offset + count}")
        return data

    def array(self, name: str) -> np.ndarray:
        """Return a whole region, mapped and read-only, verified when it is first touched."""
        if "groups" in self.region(name):
            return self.span(name, 0, self.region(name)["shape"][0])
        if self._verify == "always" or (self._verify == "touch" and name not in self._verified):
            self.check_plain(name)
            self._verified[name] = True
        return self.raw(name)

    def check_plain(self, name: str) -> None:
        """Compare the checksum of a plain region; DamagedStore when it does not match."""
        region = self.region(name)
        digest = xxhash.xxh3_128()
        # Read, not mapped: a region of hundreds of megabytes then costs no memory to verify.
        for start in range(0, region["bytes"], _CHUNK):
            digest.update(self._read(min(_CHUNK, region["bytes"] - start), region["offset"] + start))
        if digest.hexdigest() != region["xxh3"]:
            raise self.damage(f"the checksum of {name!r} does not match")

    def rows(self, name: str, index: np.ndarray) -> np.ndarray:
        """Gather rows of a grouped region from the map; each group that is touched is verified first.

        Parameters
        ----------
        name : str
            ``x/<node>``.
        index : ndarray of int
            Row numbers.

        Returns
        -------
        ndarray of shape (len(index), *shape)
            A copy in the stored dtype.
        """
        if len(index):
            self.touch(name, np.unique(np.asarray(index) // self.region(name)["group_rows"]))
        return self.raw(name)[index]

    def read_rows(self, name: str, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gather rows of a grouped region of narrow rows by plain reads, so that looking up costs no memory.

        Parameters
        ----------
        name : str
            "key", "view_number" or "constant".
        index : ndarray of int of shape (n,)
            Row numbers.

        Returns
        -------
        rows : ndarray of shape (n, *shape)
            The rows; zeros where their group is damaged.
        good : ndarray of bool of shape (n,)
            False where the checksum of the row's group does not match.
        """
        region = self.region(name)
        dtype, shape, size = np.dtype(region["dtype"]), region["shape"][1:], region["group_rows"]
        width = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        index = np.asarray(index, dtype=np.int64)
        out, good = np.zeros((len(index), *shape), dtype), np.ones(len(index), dtype=bool)
        group = index // size
        for first, stop in _runs(np.unique(group), max(1, _READ_AHEAD // (size * width))):
            start, end = first * size, min(stop * size, region["shape"][0])
            data = self._read((end - start) * width, region["offset"] + start * width)
            block = np.frombuffer(data, dtype).reshape(end - start, *shape)
            mine = np.flatnonzero((group >= first) & (group < stop)) if len(index) > 1 else np.zeros(1, np.int64)
            out[mine] = block[index[mine] - start]
            for bad in self._bad_among(name, block, first, np.unique(group[mine])):
                out[mine[group[mine] == bad]] = 0
                good[mine[group[mine] == bad]] = False
        return out, good

    def _bad_among(self, name: str, block: np.ndarray, first: int, groups: np.ndarray) -> list[int]:
        """Return those of the groups in a block of rows, which starts with group `first`, that are damaged."""
        if self._verify == "off":
            return []
        size, done = self.region(name)["group_rows"], self._done(name)
        open_ = [g for g in groups.tolist() if self._verify == "always" or not done[g]]
        if not open_:
            return []
        sums = self._sums(name)
        bad = []
        for g in open_:
            if group_sum(block[(g - first) * size : (g - first + 1) * size]) == int(sums[g]):
                done[g] = True
            else:
                bad.append(g)
        return bad

    def span(self, name: str, first: int, stop: int) -> np.ndarray:
        """Return consecutive rows of a grouped region, mapped and read-only; each group in reach is verified first."""
        if stop > first:
            size = self.region(name)["group_rows"]
            self.touch(name, np.arange(first // size, (stop - 1) // size + 1))
        return self.raw(name)[first:stop]

    @property
    def verify_mode(self) -> str:
        """When checksums are compared: "touch", "always" or "off"."""
        return self._verify

    def touch(self, name: str, groups: np.ndarray) -> None:
        """Verify groups of rows, unless they have been: DamagedStore, naming the rows of the first damaged one."""
        if self._verify == "off":
            return
        if self._verify == "touch":
            groups = groups[~self._done(name)[groups]]
        bad = self.bad_groups(name, groups)
        if bad:
            raise self.damage(_describe_groups(name, bad[:1], self.region(name)))

    def _done(self, name: str) -> np.ndarray:
        """Return which groups of a region have been verified."""
        region = self.region(name)
        count = -(-region["shape"][0] // region["group_rows"])
        done = self._verified.setdefault(name, np.zeros(count, dtype=bool))
        assert isinstance(done, np.ndarray)
        return done

    def _sums(self, name: str) -> np.ndarray:
        return self.array(self.region(name)["groups"])

    def bad_groups(self, name: str, groups: np.ndarray | None = None) -> list[int]:
        """Return the numbers of those groups whose checksum does not match (all groups unless some are given)."""
        array, sums, done = self.raw(name), self._sums(name), self._done(name)
        size = self.region(name)["group_rows"]
        bad = []
        for group in range(len(sums)) if groups is None else groups.tolist():
            if group_sum(array[group * size : (group + 1) * size]) == int(sums[group]):
                done[group] = True
            else:
                bad.append(group)
        return bad

    def verify(self) -> None:
        """Compare every checksum of the file.

        Raises
        ------
        DamagedStore
            Naming the file and what is wrong.
        """
        problem = self.problem()
        if problem:
            raise self.damage(problem)

    def problem(self, on_bad: Callable[[int, int], None] = lambda first, stop: None) -> str:
        """Compare every checksum of the file; return what is wrong, or "".

        Parameters
        ----------
        on_bad : callable, optional
            Called with the first row and the one behind the last of each damaged group of rows.
        """
        reasons = []
        for name, region in self.regions.items():
            try:
                if "groups" not in region:
                    self.check_plain(name)
                    continue
                bad = self.bad_groups(name)
            except DamagedStore as error:
                reasons.append(str(error).removeprefix(f"{self.path}: damaged (").partition(");")[0])
                if "groups" in region:
                    on_bad(0, region["shape"][0])
                continue
            if bad:
                reasons.append(_describe_groups(name, bad, region))
            for group in bad:
                on_bad(group * region["group_rows"], min((group + 1) * region["group_rows"], region["shape"][0]))
        return "; ".join(reasons)

    def close(self) -> None:
        """Let go of file and map. Arrays handed out before keep the map alive."""
        self._map = None
        self._close()


def _runs(groups: np.ndarray, longest: int) -> Iterator[tuple[int, int]]:
    """Yield sorted group numbers as spans (first, behind the last) of neighbours, none longer than `longest`."""
    if not len(groups):
        return
    first = last = int(groups[0])
    for group in groups[1:].tolist():
        if group != last + 1 or group - first >= longest:
            yield first, last + 1
            first = group
        last = group
    yield first, last + 1


def _describe_groups(name: str, groups: Sequence[int], region: Mapping[str, Any]) -> str:
    size, n = region["group_rows"], region["shape"][0]
    spans = [f"{g * size}–{min((g + 1) * size, n) - 1}" for g in groups]
    shown = ", ".join(spans[:8]) + (f" and {len(spans) - 8} more groups" if len(spans) > 8 else "")
    return f"the checksum of rows {shown} of {name!r} does not match"
