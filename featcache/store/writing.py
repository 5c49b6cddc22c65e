"""Writing a container: HDF5 makes only the skeleton, in memory; rows go from their arrays to the disk in one pass.

HDF5 never sees the disk: on a full one it may swallow the error, or crash. Files of any size can be written, since rows
are asked for in blocks.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash

from ..errors import DamagedStore, StoreError
from ..files import DISK, Disk, publish
from .container import (
    FORMAT_VERSION,
    GROUP_ROWS,
    HEADER,
    LARGEST_REST,
    MAGIC,
    Container,
    checksum,
    checksum_of_rest,
    gaps,
    group_sum,
)
from .safely import parse_json

__all__ = ["RowSource", "write_container"]

_SMALLEST_BLOCK = 4096
_PAGE = 4096
#: Rows are asked for in blocks of about so many bytes.
_BLOCK_BYTES = 1 << 25


class RowSource(Protocol):
    """An array of rows, in memory or made block by block: what `write_container` takes as a grouped region."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""

    @property
    def dtype(self) -> np.dtype:
        """Little-endian."""

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Return some rows; asked for twice, they must be the same."""


def write_container(
    folder: Path,
    name: str,
    target: Path,
    *,
    kind: str,
    attributes: Mapping[str, Any],
    datasets: Mapping[str, np.ndarray],
    grouped: Mapping[str, RowSource] | None = None,
    disk: Disk | None = None,
) -> None:
    """Write, verify and publish one container.

    Parameters
    ----------
    folder : Path
        Where temporary files live, on the file system of `target`.
    name : str
        Temporary name, unique over all hosts.
    target : Path
        Final name; must not exist.
    kind : {"shard", "snapshot"}
        What the file is.
    attributes : mapping
        JSON values; also written as HDF5 attributes of the root, each as JSON text.
    datasets : mapping of str to ndarray
        Plain regions, with one checksum each.
    grouped : mapping of str to RowSource, default=None
        Regions with a checksum per group of 256 rows, in ``xxh3/<name>``.
    disk : Disk, default=None
        The layer to use.

    Raises
    ------
    StoreError
        When the header would be one that no reader takes; nothing has been written.
    FileExistsError
        When `target` exists.
    OSError
        When writing fails or what is on disk is not what was meant; nothing has been published.
    """
    disk = disk or DISK
    rows = dict(grouped or {})
    sums = {"xxh3/" + key: _group_sums(array) for key, array in rows.items()}
    # Little things first: a reader finds them near the header.
    plain = {key: np.ascontiguousarray(array) for key, array in {**datasets, **sums}.items()}
    image = _Image(kind, attributes, plain, rows)
    temporary = folder / name
    try:
        disk.write(temporary, image.pieces())
    except BaseException:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)
        raise
    publish(temporary, target, verify=_verify_written, disk=disk)


def _blocks(rows: RowSource) -> Iterator[np.ndarray]:
    """Yield all rows in blocks of whole groups."""
    width = max(1, int(np.prod(rows.shape[1:], dtype=np.int64)) * rows.dtype.itemsize)
    step = max(1, _BLOCK_BYTES // (width * GROUP_ROWS)) * GROUP_ROWS
    for start in range(0, rows.shape[0], step):
        yield np.ascontiguousarray(rows[start : start + step])


def _group_sums(rows: RowSource) -> np.ndarray:
    """Return the xxh3-64 of each group of rows: uint64 of shape (ceil(n / 256),)."""
    sums = [group_sum(block[i : i + GROUP_ROWS]) for block in _blocks(rows) for i in range(0, len(block), GROUP_ROWS)]
    return np.asarray(sums, dtype="<u8")


class _Image:
    """The bytes of a container: a skeleton that HDF5 made, and the arrays that go into its gaps.

    Parameters
    ----------
    kind, attributes
        As `write_container` takes them.
    plain, rows : mapping
        Arrays with one checksum, and with one per group of rows.
    """

    def __init__(
        self,
        kind: str,
        attributes: Mapping[str, Any],
        plain: Mapping[str, np.ndarray],
        rows: Mapping[str, RowSource],
    ) -> None:
        self._arrays: dict[str, RowSource] = {**plain, **rows}
        regions: list[dict[str, Any]] = []
        for name, array in self._arrays.items():
            count = int(np.prod(array.shape, dtype=np.int64)) * array.dtype.itemsize
            region = {"name": name, "bytes": count, "dtype": str(array.dtype), "shape": list(array.shape)}
            how = (
                {"groups": "xxh3/" + name, "group_rows": GROUP_ROWS}
                if name in rows
                else {"xxh3": checksum(plain[name])}
            )
            regions.append(region | how)
        _require_header(kind, attributes, regions)
        self._block = _block_size(kind, attributes, regions)
        self._skeleton = _Sparse()
        offsets = _write_hdf5(self._skeleton, self._block, kind, attributes, self._arrays)
        self._regions = [{"name": r["name"], "offset": offsets[r["name"]], **r} for r in regions]
        rest = sum(stop - first for first, stop in self._gaps())
        if rest > LARGEST_REST:
            raise StoreError(
                f"{kind}: expected at most {LARGEST_REST >> 20} MiB that HDF5 takes for itself, got {rest >> 20} MiB "
                f"for {len(regions)} datasets; give fewer columns or nodes"
            )
        self._header = _pack(self._describe(kind, attributes), self._block)

    def _describe(self, kind: str, attributes: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            "kind": kind,
            "size": self._skeleton.size,
            "block": self._block,
            "meta": checksum_of_rest(self._skeleton.read_at(a, b - a) for a, b in self._gaps()),
            "attributes": dict(attributes),
            "regions": self._regions,
        }

    def _gaps(self) -> Iterator[tuple[int, int]]:
        return gaps(self._regions, self._block, self._skeleton.size)

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Yield the whole file, from its first byte to its last."""
        yield self._header
        rest = [(a, b, "") for a, b in self._gaps()]
        filled = [(r["offset"], r["offset"] + r["bytes"], r["name"]) for r in self._regions if r["bytes"]]
        for first, stop, name in sorted(rest + filled):
            if not name:
                yield self._skeleton.read_at(first, stop - first)
                continue
            for block in _blocks(self._arrays[name]):
                yield block.data.cast("B")


class _Sparse(io.RawIOBase):
    """A file in memory that HDF5 writes its metadata to; what was never written takes no room and reads as zeros."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}
        self._position = 0
        self.size = 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def truncate(self, size: int | None = None) -> int:
        self.size = self._position if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            page, place = divmod(self._position + done, _PAGE)
            part = view[done : done + _PAGE - place]
            self._pages.setdefault(page, bytearray(_PAGE))[place : place + len(part)] = part
            done += len(part)
        self._position += done
        self.size = max(self.size, self._position)
        return done

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        data = self.read_at(self._position, min(len(view), max(0, self.size - self._position)))
        view[: len(data)] = data
        self._position += len(data)
        return len(data)

    def read_at(self, offset: int, count: int) -> bytes:
        """Return `count` bytes at `offset`."""
        out = bytearray(count)
        done = 0
        while done < count:
            page, place = divmod(offset + done, _PAGE)
            length = min(_PAGE - place, count - done)
            if page in self._pages:
                out[done : done + length] = self._pages[page][place : place + length]
            done += length
        return bytes(out)


def _require_header(kind: str, attributes: Mapping[str, Any], regions: list[dict[str, Any]]) -> None:
    """Refuse a header that no reader takes, before the disk sees anything of it: the disk is not to blame."""
    sizes = {}
    for name, value in attributes.items():
        try:
            sizes[name] = len(json.dumps(value, ensure_ascii=False).encode())
        except (TypeError, ValueError, RecursionError) as error:
            reason = " ".join(str(error).split())
            raise StoreError(f"{kind}: {name}: expected JSON values in valid Unicode, got others ({reason})") from None
    longest = [{**region, "offset": 1 << 62} for region in regions]
    text = json.dumps([dict(attributes), longest, "0" * 200], ensure_ascii=False, separators=(",", ":")).encode()
    try:
        parse_json(text)
    except (ValueError, RecursionError) as error:
        largest = max(sizes, key=lambda name: sizes[name], default="")
        raise StoreError(
            f"{kind}: expected a header of at most 16 MiB and 2**20 values, got {len(text)} bytes ({error}): "
            f"{len(regions)} datasets, and {sum(sizes.values())} bytes of attributes, most of them "
            f"{largest!r}; give fewer columns, or record less"
        ) from None


def _block_size(kind: str, attributes: Mapping[str, Any], regions: list[dict[str, Any]]) -> int:
    """Return the smallest user block that holds the header, whatever offsets will stand in it."""
    longest = [{**region, "offset": 1 << 62} for region in regions]
    text = json.dumps({"kind": kind, "attributes": attributes, "regions": longest, "spare": "0" * 200})
    return max(_SMALLEST_BLOCK, 1 << (HEADER.size + len(text.encode()) - 1).bit_length())


def _write_hdf5(
    target: Any, block: int, kind: str, attributes: Mapping[str, Any], arrays: Mapping[str, RowSource]
) -> dict[str, int]:
    """Let HDF5 lay the file out: datasets are given their room, not their data. Returns where each begins."""
    import h5py

    offsets = {}
    with h5py.File(
        target,
        "w",
        libver="v110",
        userblock_size=block,
        locking=False,
        alignment_threshold=4096,
        alignment_interval=4096,
        track_order=False,
    ) as file:
        for key, value in {"format": "featcache", "format_version": FORMAT_VERSION, "kind": kind, **attributes}.items():
            file.attrs[key] = np.bytes_(json.dumps(value, ensure_ascii=False).encode())
        make = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        make.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        make.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        make.set_obj_track_times(False)
        way = h5py.h5p.create(h5py.h5p.LINK_CREATE)
        way.set_create_intermediate_group(True)
        # The references are kept until close: an error while a forgotten Dataset is collected would be swallowed.
        kept = []
        for name, array in arrays.items():
            space = h5py.h5s.create_simple(tuple(array.shape))
            kind_ = h5py.h5t.py_create(array.dtype)
            kept.append(h5py.h5d.create(file.id, name.encode(), kind_, space, make, way))
            offset = kept[-1].get_offset()
            offsets[name] = int(offset) if offset is not None else 0
    return offsets


def _pack(header: Mapping[str, Any], block: int) -> bytes:
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    packed = HEADER.pack(MAGIC, FORMAT_VERSION, len(text), xxhash.xxh3_64_intdigest(text)) + text
    if len(packed) > block:
        raise OSError(f"header of {len(packed)} bytes does not fit the user block of {block}; please report this")
    return packed.ljust(block, b"\0")


def _verify_written(path: Path) -> None:
    """Read a finished file back, with our reader and with HDF5's, before anybody else may see it."""
    try:
        with contextlib.closing(Container(path)) as container:
            container.verify()
            with _opened_by_hdf5(path) as file:
                for name, region in container.regions.items():
                    dataset = file[name]
                    if list(dataset.shape) != region["shape"] or (
                        region["bytes"] and dataset.id.get_offset() != region["offset"]
                    ):
                        raise ValueError(f"HDF5 and the header disagree on {name}")
    except (DamagedStore, RuntimeError, ValueError, KeyError) as error:
        raise OSError(
            f"{path}: the disk did not keep what was written (full or failing?); nothing was published: {error}"
        ) from error


def _opened_by_hdf5(path: Path) -> Any:
    import h5py

    try:
        return h5py.File(path, "r", locking=False)
    except OSError as error:  # in several lines
        raise OSError(
            error.errno or 5, f"HDF5 cannot read back what was written ({' '.join(str(error).split())})"
        ) from None
