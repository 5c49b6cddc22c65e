"""NumPy's own files: .npy (one array) and .npz (a zip of them). Nothing is ever unpickled."""

from __future__ import annotations

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import ExchangeError
from .parts import Contents, Draft, Part, block_rows, check_size, count_bytes, place_of, text_array

__all__ = ["ROLES", "open_file", "open_npy", "pieces", "places"]

ROLES = {"X": "X", "y": "y", "ids": "ids", "groups": "groups", "splits": "splits"}
_MOST_ENTRIES = 10_000
_LONGEST_TEXT = 1 << 26
_ALONE = "array"


def places(names: Mapping[str, Any]) -> dict[str, str]:
    """Return the entry of each own column."""
    return {name: f"columns/{place_of(name)}" for name in names}


# ------------------------------------------------------------------------------------------------------- writing


class Sink:
    """A file that only grows: what was written to it is taken out piece by piece."""

    def __init__(self) -> None:
        self._held: list[bytes] = []
        self._length = 0
        self.closed = False

    def write(self, data: Any) -> int:
        """Take bytes."""
        self._held.append(bytes(data))
        self._length += len(self._held[-1])
        return len(self._held[-1])

    def tell(self) -> int:
        """Tell how much was written."""
        return self._length

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing: what is held is still taken."""

    def readable(self) -> bool:
        """False."""
        return False

    def writable(self) -> bool:
        """True."""
        return True

    def seekable(self) -> bool:
        """False: nothing that was written is changed."""
        return False

    def taken(self) -> Iterator[bytes]:
        """Yield what is held, and hold it no more."""
        held, self._held = self._held, []
        yield from held


class _Stream(Sink):
    # zipfile believes in a stream without a place when tell() fails, and then writes sizes behind the data.
    def tell(self) -> int:
        raise OSError("a stream")


def pieces(draft: Draft) -> Iterator[bytes]:
    """Yield the whole .npz file, in order, in pieces of a few MiB: uncompressed, the same bytes for the same set."""
    sink = _Stream()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as archive:
        shape = draft.data.X.shape
        for _ in _entry(archive, ROLES["X"], shape, draft.dtype, draft.blocks()):
            yield from sink.taken()
        texts = {key: np.asarray(value) for key, value in draft.texts.items()}
        for name, array in (*draft.lines(), *texts.items()):
            for _ in _entry(archive, name, array.shape, array.dtype, iter([array])):
                yield from sink.taken()
    yield from sink.taken()


def _entry(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: np.dtype, blocks: Iterator[np.ndarray]
) -> Iterator[None]:
    """Write one array; yields after each block."""
    info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
    info.external_attr = 0o644 << 16
    with archive.open(info, "w", force_zip64=True) as entry:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_2_0(entry, header)
        for block in blocks:
            entry.write(np.ascontiguousarray(block).tobytes())
            yield


# ------------------------------------------------------------------------------------------------------- reading


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        return count_bytes(self.shape, self.dtype.itemsize)


def _read_header(file: Any, name: str) -> _Header:
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0)):
        raise ExchangeError(f"{name!r}: expected the NumPy format 1.0 or 2.0, got {version}; save plain numbers")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(file)
    if dtype.hasobject:
        raise ExchangeError(
            f"{name!r} holds Python objects, which only unpickling could read, and that runs code; "
            "save it as numbers or text, e.g. np.asarray(values, dtype=str)"
        )
    if dtype.kind not in "fiubUS" or (dtype.kind not in "US" and dtype.itemsize > 8):
        raise ExchangeError(f"{name!r} holds {dtype}; expected numbers or text")
    return _Header(shape, fortran, dtype)


def _kind(dtype: np.dtype) -> np.dtype:
    return np.dtype("U1") if dtype.kind in "US" else dtype


def _finished(name: str, array: np.ndarray, stored: int) -> np.ndarray:
    """Return numbers as they are, and bytes as text."""
    if array.dtype.kind != "S":
        return array
    return text_array(array.reshape(-1).tolist())


@contextlib.contextmanager
def open_npy(path: Path) -> Iterator[Contents]:
    """Open a .npy file: one array, mapped."""
    with path.open("rb") as file:
        header = _read_header(file, path.name)
        offset = file.tell()
    size = path.stat().st_size
    if offset + header.nbytes > size:
        raise ExchangeError(
            f"expected {offset + header.nbytes} bytes for shape {header.shape}, got {size}; the file is damaged"
        )

    def mapped() -> np.ndarray:
        order: Any = "F" if header.fortran else "C"
        if not header.nbytes:
            return np.zeros(header.shape, header.dtype)
        return np.memmap(path, dtype=header.dtype, mode="r", offset=offset, shape=header.shape, order=order)

    def blocks() -> Iterator[np.ndarray]:
        array = mapped()
        step = block_rows(header.shape, header.dtype)
        for start in range(0, len(array), step):
            yield np.asarray(array[start : start + step])

    def read() -> np.ndarray:
        return _finished(path.name, np.array(mapped()), size)

    yield Contents({_ALONE: Part(_ALONE, header.shape, _kind(header.dtype), read, blocks, mapped)})


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[Contents]:
    """Open a .npz file; the zip's checksums are compared as its entries are read."""
    with zipfile.ZipFile(path) as archive:
        parts: dict[str, Part] = {}
        texts: dict[str, str] = {}
        entries = [e for e in archive.infolist() if e.filename.endswith(".npy")]
        if len(entries) > _MOST_ENTRIES:
            raise ExchangeError(f"expected at most {_MOST_ENTRIES} arrays, got {len(entries)}; save what is needed")
        for entry in entries:
            name = entry.filename.removesuffix(".npy")
            if name in parts:
                raise ExchangeError(f"expected one array of each name, got {name!r} twice; save it again")
            parts[name] = part = _zip_part(archive, entry, name)
            if part.shape == () and part.dtype.kind == "U" and entry.file_size <= _LONGEST_TEXT:
                texts[name] = str(part.read()[()])
        yield Contents(parts, texts, ROLES)


def _zip_part(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Part:
    try:
        with archive.open(entry) as file:
            header = _read_header(file, name)
            if file.tell() + header.nbytes != entry.file_size:
                raise ExchangeError(f"{name!r}: expected shape {header.shape}, got another size; the file is damaged")
        check_size(name, entry.file_size, entry.compress_size)
    except ExchangeError as error:
        return Part.refuse(name, str(error))

    def read() -> np.ndarray:
        with archive.open(entry) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            file.read()  # the zip compares its checksum at the end
        return _finished(name, array, entry.file_size)

    def blocks() -> Iterator[np.ndarray]:
        step = block_rows(header.shape, header.dtype)
        if header.fortran or header.dtype.kind in "US":
            array = read()
            yield from (array[start : start + step] for start in range(0, len(array), step))
            return
        row = count_bytes(header.shape[1:], header.dtype.itemsize)
        with archive.open(entry) as file:
            _read_header(file, name)
            for start in range(0, header.shape[0], step):
                count = min(step, header.shape[0] - start)
                data = file.read(count * row)
                yield np.frombuffer(data, dtype=header.dtype).reshape(count, *header.shape[1:])
            file.read()

    return Part(name, header.shape, _kind(header.dtype), read, blocks)
