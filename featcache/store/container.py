"""One immutable HDF5 file whose every byte is accounted for.

A container is an ordinary HDF5 file (any HDF5 program reads it) behind a user block that featcache itself reads::

    bytes 0–7    b"FEATCACH"
    bytes 8–11   header version, uint32 little-endian: 1
    bytes 12–15  length of the JSON text, uint32 little-endian
    bytes 16–23  xxh3-64 of the JSON text, uint64 little-endian
    bytes 24–    the JSON text (UTF-8), then zeros up to the size of the user block (a power of two, at least 4096)

The JSON names the file's size, every dataset ("region": offset, dtype, shape, checksum) and the xxh3-128 of all bytes
behind the user block that belong to no region. Reading therefore needs no HDF5 library: offsets are checked against
the file's size, data are mapped, and a region is verified when it is first touched. Datasets are contiguous, of fixed
types, without filters and links.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import mmap
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import xxhash

from ..errors import DamagedStore, StoreError, StoreTooNew
from ..files import DISK, Disk, publish

__all__ = ["GROUP_ROWS", "Container", "write_container"]

FORMAT_VERSION = 1
GROUP_ROWS = 256
_MAGIC = b"FEATCACH"
_HEADER = struct.Struct("<8sIIQ")
_SMALLEST_BLOCK = 4096
_LARGEST_HEADER = 1 << 26
_DTYPES = {"uint8", "uint16", "uint32", "uint64", "int32", "int64", "float16", "float32", "float64"}
_T = TypeVar("_T")
_VERIFY_CHUNK = 1 << 24
#: The machine is short of something; this says nothing about the file.
_SHORTAGES = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def _checksum(data: Any) -> str:
    return xxhash.xxh3_128_hexdigest(data)


def group_checksums(array: np.ndarray, group_rows: int = GROUP_ROWS) -> np.ndarray:
    """Return the xxh3-64 of each group of rows: uint64 of shape (ceil(n / group_rows),)."""
    rows = np.ascontiguousarray(array)
    return np.asarray(
        [xxhash.xxh3_64_intdigest(rows[i : i + group_rows].data.cast("B")) for i in range(0, len(rows), group_rows)],
        dtype="<u8",
    )


def write_container(
    folder: Path,
    name: str,
    target: Path,
    *,
    kind: str,
    attributes: Mapping[str, Any],
    datasets: Mapping[str, np.ndarray],
    grouped: Mapping[str, np.ndarray] | None = None,
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
    grouped : mapping of str to ndarray, default=None
        Large regions ``x/<node>``, with a checksum per group of 256 rows in ``xxh3/<node>``.
    disk : Disk, default=None
        The layer to use.

    Raises
    ------
    FileExistsError
        When `target` exists.
    OSError
        When writing fails or what is on disk is not what was meant; nothing has been published.
    """
    disk = disk or DISK
    grouped = grouped or {}
    sums = {"xxh3/" + key.removeprefix("x/"): group_checksums(array) for key, array in grouped.items()}
    arrays = {key: np.ascontiguousarray(a) for key, a in {**datasets, **sums, **grouped}.items()}
    temporary = folder / name
    try:
        with _image(kind, attributes, arrays, set(grouped)) as image:
            disk.write(temporary, image)
    except BaseException:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)
        raise
    publish(temporary, target, verify=_verify_written, disk=disk)


def _block_size(kind: str, attributes: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> int:
    """Return the smallest user block that holds the header, whatever numbers will stand in it."""
    longest = [
        {
            "name": k,
            "offset": 1 << 62,
            "bytes": 1 << 62,
            "dtype": str(a.dtype),
            "shape": a.shape,
            "groups": k,
            "xxh3": "0" * 40,
        }
        for k, a in arrays.items()
    ]
    text = json.dumps({"kind": kind, "attributes": attributes, "regions": longest, "spare": "0" * 200})
    return max(_SMALLEST_BLOCK, 1 << (_HEADER.size + len(text.encode()) - 1).bit_length())


@contextlib.contextmanager
def _image(
    kind: str, attributes: Mapping[str, Any], arrays: Mapping[str, np.ndarray], grouped: set[str]
) -> Iterator[memoryview]:
    """Make the whole file in memory: HDF5 never sees the disk, whose refusals it may swallow, or crash on."""
    block = _block_size(kind, attributes, arrays)
    with io.BytesIO() as file:
        offsets = _write_hdf5(file, block, kind, attributes, arrays)
        header = _pack(_describe(file, block, kind, attributes, arrays, offsets, grouped), block)
        with file.getbuffer() as image:
            image[:block] = header
            yield image


def _write_hdf5(
    target: Any, block: int, kind: str, attributes: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
) -> dict[str, int]:
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
        # The references are kept until close: an error while a forgotten Dataset is collected would be swallowed.
        kept = [file.create_dataset(key, data=array, track_times=False) for key, array in arrays.items()]
        for dataset in kept:
            offset = dataset.id.get_offset()
            offsets[dataset.name.lstrip("/")] = int(offset) if offset is not None else 0
    return offsets


def _describe(
    file: Any,
    block: int,
    kind: str,
    attributes: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    offsets: Mapping[str, int],
    grouped: set[str],
) -> dict[str, Any]:
    """Build the header from the arrays that were meant (regions) and the image (everything else)."""
    regions = []
    for key, array in arrays.items():
        region: dict[str, Any] = {
            "name": key,
            "offset": offsets[key],
            "bytes": array.nbytes,
            "dtype": str(array.dtype),
            "shape": list(array.shape),
        }
        if key in grouped:
            region |= {"groups": "xxh3/" + key.removeprefix("x/"), "group_rows": GROUP_ROWS}
        else:
            region["xxh3"] = _checksum(array.data.cast("B") if array.nbytes else b"")
        regions.append(region)
    size = file.seek(0, os.SEEK_END)
    meta = _meta_checksum(file, block, size, regions)
    return {
        "format_version": FORMAT_VERSION,
        "kind": kind,
        "size": size,
        "block": block,
        "meta": meta,
        "attributes": dict(attributes),
        "regions": regions,
    }


def _meta_checksum(file: Any, block: int, size: int, regions: list[dict[str, Any]]) -> str:
    """Checksum all bytes behind the user block that lie in no region."""
    digest = xxhash.xxh3_128()
    position = block
    spans = sorted((r["offset"], r["offset"] + r["bytes"]) for r in regions if r["bytes"])
    for start, stop in [*spans, (size, size)]:
        file.seek(position)
        while position < start:
            chunk = file.read(min(_VERIFY_CHUNK, start - position))
            if not chunk:
                return "truncated"
            digest.update(chunk)
            position += len(chunk)
        position = stop
    return digest.hexdigest()


def _pack(header: Mapping[str, Any], block: int) -> bytes:
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    packed = _HEADER.pack(_MAGIC, FORMAT_VERSION, len(text), xxhash.xxh3_64_intdigest(text)) + text
    if len(packed) > block:
        raise OSError(f"header of {len(packed)} bytes does not fit the user block of {block}; please report this")
    return packed.ljust(block, b"\0")


def _verify_written(path: Path) -> None:
    """Read a finished file back, with our reader and with HDF5's, before anybody else may see it."""
    import h5py

    try:
        with contextlib.closing(Container(path)) as container:
            container.verify()
            with h5py.File(path, "r", locking=False) as file:
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


def _with_descriptors(action: Callable[[], _T]) -> _T:
    """Open or map a file. Each map costs a descriptor, so where they run out, take as many as we may have."""
    try:
        return action()
    except OSError as error:
        if error.errno != errno.EMFILE or not _allow_more_files():
            raise
        return action()


def _allow_more_files() -> bool:
    try:
        import resource
    except ImportError:  # Windows: no such limit on maps
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] > soft


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
        header = self._read_header()
        self.kind: str = header["kind"]
        self.attributes: dict[str, Any] = header["attributes"]
        self.regions: dict[str, dict[str, Any]] = {r["name"]: r for r in header["regions"]}
        self.size: int = header["size"]

    def _damaged(self, reason: str) -> DamagedStore:
        return DamagedStore.at(
            self.path, f"damaged ({reason}); run `featcache check --deep` on the store to see which images it costs"
        )

    def _unreadable(self, error: OSError) -> StoreError:
        if error.errno in _SHORTAGES:
            return StoreError(
                f"{self.path}: cannot be read now: {error.strerror}; the file may be sound: "
                "close other programs or allow more (for open files: ulimit -n), and try again"
            )
        return self._damaged(f"cannot be read: {error.strerror or error}")

    def _read_header(self) -> dict[str, Any]:
        try:
            with _with_descriptors(lambda: self.path.open("rb")) as file:
                size = os.fstat(file.fileno()).st_size
                header = self._parse_header(file, size)
                if size != header["size"]:
                    raise self._damaged(f"{size} bytes instead of {header['size']}")
                self._check_regions(header, size)
                if (
                    self._verify != "off"
                    and _meta_checksum(file, header["block"], size, header["regions"]) != header["meta"]
                ):
                    raise self._damaged("the checksum of its HDF5 metadata does not match")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, DamagedStore):
                raise
            raise self._damaged(f"unreadable header: {error}") from error
        except StoreError:
            raise
        except OSError as error:
            raise self._unreadable(error) from error
        return header

    def _parse_header(self, file: Any, size: int) -> dict[str, Any]:
        start = file.read(_HEADER.size)
        if len(start) < _HEADER.size or start[:8] != _MAGIC:
            raise self._damaged("not a featcache file")
        _, version, length, checksum = _HEADER.unpack(start)
        if length > min(size, _LARGEST_HEADER):
            raise self._damaged("impossible header length")
        text = file.read(length)
        if xxhash.xxh3_64_intdigest(text) != checksum:
            raise self._damaged("the checksum of its header does not match")
        header = json.loads(text)
        if version != header["format_version"]:
            raise self._damaged(f"format version {version} outside, {header['format_version']} inside")
        if version > FORMAT_VERSION:
            raise StoreTooNew(
                f"{self.path}: format version {version}, this featcache reads up to {FORMAT_VERSION}; "
                "install a newer one (pip install --upgrade featcache)"
            )
        return header

    def _check_regions(self, header: dict[str, Any], size: int) -> None:
        """Refuse a header that would make us map what is not there: it may come from anywhere."""
        for region in header["regions"]:
            shape, dtype = region["shape"], region["dtype"]
            if dtype not in _DTYPES or any(not isinstance(n, int) or n < 0 for n in shape):
                raise self._damaged(f"region {region['name']!r} of type {dtype!r} and shape {shape}")
            expected = int(np.prod(shape, dtype=object)) * np.dtype(dtype).itemsize
            start, count = region["offset"], region["bytes"]
            if count != expected or (count and not header["block"] <= start <= size - count):
                raise self._damaged(f"region {region['name']!r} lies outside the file")

    def __contains__(self, name: str) -> bool:
        return name in self.regions

    def raw(self, name: str) -> np.ndarray:
        """Map a region without verifying it."""
        region = self.regions.get(name)
        if region is None:
            raise self._damaged(f"it has no dataset {name!r}")
        if not region["bytes"]:
            return np.zeros(region["shape"], dtype=region["dtype"])
        if self._map is None:
            self._map = self._mapped()
        count = int(np.prod(region["shape"]))
        return np.frombuffer(self._map, region["dtype"], count, region["offset"]).reshape(region["shape"])

    def _mapped(self) -> mmap.mmap:
        """Map the file, provided that it still has the size that its header was checked for."""
        try:
            with _with_descriptors(lambda: self.path.open("rb")) as file:
                size = os.fstat(file.fileno()).st_size
                if size != self.size:
                    raise self._damaged(f"{size} bytes instead of {self.size}")
                return _with_descriptors(lambda: mmap.mmap(file.fileno(), self.size, access=mmap.ACCESS_READ))
        except StoreError:
            raise
        except OSError as error:
            raise self._unreadable(error) from error

    def array(self, name: str) -> np.ndarray:
        """Return a plain region, mapped and read-only, verified when it is first touched."""
        array = self.raw(name)
        if self._verify == "always" or (self._verify == "touch" and name not in self._verified):
            self.check_plain(name, array)
            self._verified[name] = True
        return array

    def check_plain(self, name: str, array: np.ndarray) -> None:
        """Compare the checksum of a plain region; DamagedStore when it does not match."""
        if _checksum(array.data.cast("B") if array.nbytes else b"") != self.regions[name]["xxh3"]:
            raise self._damaged(f"the checksum of {name!r} does not match")

    def rows(self, name: str, index: np.ndarray) -> np.ndarray:
        """Gather rows of a grouped region; each group that is touched is verified first.

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
            self._touch(name, np.unique(np.asarray(index) // self.regions[name]["group_rows"]))
        return self.raw(name)[index]

    def span(self, name: str, first: int, stop: int) -> np.ndarray:
        """Return consecutive rows of a grouped region, mapped and read-only; each group in reach is verified first."""
        if stop > first:
            size = self.regions[name]["group_rows"]
            self._touch(name, np.arange(first // size, (stop - 1) // size + 1))
        return self.raw(name)[first:stop]

    def _touch(self, name: str, groups: np.ndarray) -> None:
        if self._verify != "off":
            self._check_groups(name, self.raw(name), groups)

    def _check_groups(self, name: str, array: np.ndarray, groups: np.ndarray) -> None:
        bad = self.bad_groups(name, array, groups)
        if bad:
            size = self.regions[name]["group_rows"]
            first = bad[0] * size
            raise self._damaged(
                f"the checksum of rows {first}–{min(first + size, len(array)) - 1} of {name!r} does not match"
            )

    def bad_groups(self, name: str, array: np.ndarray | None = None, groups: np.ndarray | None = None) -> list[int]:
        """Return the numbers of those groups whose checksum does not match (all groups unless some are given)."""
        array = self.raw(name) if array is None else array
        size = self.regions[name]["group_rows"]
        sums = self.array(self.regions[name]["groups"])
        done = self._verified.setdefault(name, np.zeros(len(sums), dtype=bool))
        assert isinstance(done, np.ndarray)
        bad = []
        for group in range(len(sums)) if groups is None else groups.tolist():
            if groups is not None and done[group] and self._verify != "always":
                continue
            if xxhash.xxh3_64_intdigest(array[group * size : (group + 1) * size].data.cast("B")) == int(sums[group]):
                done[group] = True
            else:
                bad.append(group)
        return bad

    def verify(self) -> None:
        """Compare every checksum of the file.

        Raises
        ------
        DamagedStore
            Naming the file and the first thing that is wrong.
        """
        for name, region in self.regions.items():
            if "groups" in region:
                array = self.raw(name)
                bad = self.bad_groups(name, array)
                if bad:
                    self._check_groups(name, array, np.asarray(bad[:1]))
            else:
                self.check_plain(name, self.raw(name))

    def close(self) -> None:
        """Drop the map. Arrays handed out before keep it alive."""
        self._map = None
