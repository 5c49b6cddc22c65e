"""One plain HDF5 file: written without HDF5 touching the disk, and read without trusting what it says.

**Text** is written as fixed-length UTF-8 strings, padded with NUL. Variable-length strings end at the first NUL, cannot
hold the bytes of a file name that is no UTF-8, and point into heaps of which a damaged file can make anything; the
fixed ones hold any text that a NumPy array can, and h5py, MATLAB, R and Julia read them. Attributes are such texts too.

**Codes** are contiguous, without filters, and start at a multiple of 4096: any program can map them.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ExchangeError
from .parts import Contents, Draft, Part, block_rows, check_size, count_bytes, place_of, raw, text_array, text_bytes

__all__ = ["ROLES", "open_file", "pieces", "places"]

ROLES = {"X": "features", "y": "labels", "ids": "ids", "groups": "groups", "splits": "splits"}
_MOST_OBJECTS = 10_000
_DEEPEST = 16
#: deflate (gzip), shuffle, fletcher32, lzf: what every HDF5 library has, and h5py.
_FILTERS = {1, 2, 3, 32000}
_TEXT = np.dtype("U1")
_TEXT_ROWS = 1024


def places(names: Mapping[str, Any]) -> dict[str, str]:
    """Return the dataset of each own column."""
    return {name: f"columns/{place_of(name)}" for name in names}


# ------------------------------------------------------------------------------------------------------- writing


class _Sparse(io.RawIOBase):
    """A file in memory with holes: HDF5 lays out the codes' dataset here without a byte of it being written."""

    _PAGE = 1 << 16

    def __init__(self) -> None:
        super().__init__()
        self._pages: dict[int, bytearray] = {}
        self._at = 0
        self.length = 0

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self.length)[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.length = self._at if size is None else size
        return self.length

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        done = 0
        while done < len(view):
            page, start = divmod(self._at + done, self._PAGE)
            count = min(len(view) - done, self._PAGE - start)
            self._pages.setdefault(page, bytearray(self._PAGE))[start : start + count] = view[done : done + count]
            done += count
        self._at += done
        self.length = max(self.length, self._at)
        return done

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        wanted = max(0, min(len(view), self.length - self._at))
        done = 0
        while done < wanted:
            page, start = divmod(self._at + done, self._PAGE)
            count = min(wanted - done, self._PAGE - start)
            held = self._pages.get(page)
            view[done : done + count] = held[start : start + count] if held else bytes(count)
            done += count
        self._at += done
        return done

    def span(self, start: int, stop: int) -> Iterator[bytes]:
        """Yield the bytes from start to stop, zeros where nothing was written."""
        self.seek(start)
        while self.tell() < stop:
            yield self.read(min(1 << 20, stop - self.tell())) or b""


def pieces(draft: Draft) -> Iterator[Any]:
    """Yield the whole file, in order, in pieces of a few MiB.

    HDF5 never sees the disk, whose refusals it may swallow, or crash on: it lays the file out in memory, with a hole
    where the codes belong, and they come from the FeatureSet as the file is written.
    """
    image = _Sparse()
    hole = _lay_out(image, draft)
    size = count_bytes(draft.data.X.shape, draft.dtype.itemsize)
    yield from image.span(0, hole)
    for block in draft.blocks() if size else ():
        yield raw(block)
    yield from image.span(hole + size, image.length)


def _lay_out(image: _Sparse, draft: Draft) -> int:
    """Write all but the codes into `image`; return where they begin."""
    import h5py

    size = count_bytes(draft.data.X.shape, draft.dtype.itemsize)
    with h5py.File(
        image,
        "w",
        libver=("v108", "v110"),
        locking=False,
        alignment_threshold=max(1, min(4096, size)),  # the codes in any case
        alignment_interval=4096,
    ) as file:
        for key, value in draft.texts.items():
            _write_attribute(file, key, value)
        how = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        how.set_layout(h5py.h5d.CONTIGUOUS)
        how.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        how.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        how.set_obj_track_times(False)
        space = h5py.h5s.create_simple(draft.data.X.shape)
        kind = h5py.h5t.py_create(draft.dtype)
        codes = h5py.h5d.create(file.id, ROLES["X"].encode(), kind, space, how)
        offset = codes.get_offset()
        for place, values in draft.lines():
            _write_line(file, place, values)
    return int(offset or 0)


def _write_line(file: Any, place: str, values: np.ndarray) -> None:
    import h5py

    if values.dtype.kind != "U":
        file.create_dataset(place, data=values, track_times=False)
        return
    encoded, errors = text_bytes(values)
    width = max(1, max(map(len, encoded), default=1))
    dataset = file.create_dataset(place, shape=values.shape, dtype=h5py.string_dtype("utf-8", width), track_times=False)
    if len(encoded):
        # h5py has no conversion from NumPy's bytes, which it takes for ASCII: hand them over as what they are.
        dataset.id.write(h5py.h5s.ALL, h5py.h5s.ALL, np.array(encoded, dtype=f"S{width}"), dataset.id.get_type())
    _write_attribute(dataset, "errors", errors)


def _write_attribute(holder: Any, key: str, text: str) -> None:
    import h5py

    data = np.asarray(text.encode())
    dtype = h5py.string_dtype("utf-8", max(1, data.itemsize))
    holder.attrs.create(key, data.astype(dtype), dtype=dtype)


# ------------------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[Contents]:
    """Open a file; no other file is ever opened on its behalf, and no filter beyond the usual ones is run."""
    import h5py

    with h5py.File(path, "r", locking=False) as file:
        walk = _Walk(path)
        walk.group(file, "", 0)
        yield Contents(walk.parts, _texts(file), ROLES)


def _texts(holder: Any) -> dict[str, str]:
    """Return the attributes that are fixed-length text, as ours are.

    Those of variable length are left alone: a damaged heap of them sends HDF5 round in circles for ever.
    """
    import h5py

    found = {}
    for key in list(holder.attrs)[:_MOST_OBJECTS]:
        attribute = holder.attrs.get_id(key)
        kind = attribute.get_type()
        if attribute.shape == () and kind.get_class() == h5py.h5t.STRING and not kind.is_variable_str():
            with contextlib.suppress(UnicodeDecodeError):
                found[key] = bytes(holder.attrs[key]).decode()
    return found


class _Walk:
    """Goes through the hard links of a file and takes down what can be read, and why the rest is not."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = path.stat().st_size
        self.parts: dict[str, Part] = {}
        self._seen: set[int] = set()
        self._count = 0

    def group(self, group: Any, prefix: str, depth: int) -> None:
        """Take down a group and those in it; a group that holds itself is gone through once."""
        import h5py

        address = h5py.h5o.get_info(group.id).addr
        if address in self._seen or depth > _DEEPEST:
            return
        self._seen.add(address)
        for name in group:
            self._count += 1
            if self._count > _MOST_OBJECTS:
                raise ExchangeError(f"expected at most {_MOST_OBJECTS} objects, got more; copy out what is needed")
            self._member(group, name, prefix + name, depth)

    def _member(self, group: Any, name: str, place: str, depth: int) -> None:
        import h5py

        try:
            link = group.get(name, getlink=True)
        except TypeError:
            link = None  # a link of a kind that a plug-in would have to follow
        if not isinstance(link, h5py.HardLink):
            kind = "another file" if isinstance(link, h5py.ExternalLink) else "another place"
            self.parts[place] = Part.refuse(place, f"{place!r} is a link to {kind}, which is not followed")
            return
        encoded = name.encode("utf-8", "surrogateescape")
        kind = h5py.h5o.get_info(group.id, encoded).type
        if kind == h5py.h5o.TYPE_GROUP:
            self.group(group[name], place + "/", depth + 1)
        elif kind == h5py.h5o.TYPE_DATASET:
            # Low level: h5py's own way asks for the shape first, and a virtual dataset opens its sources for that.
            self.parts[place] = self._part(place, h5py.h5d.open(group.id, encoded))

    def _part(self, place: str, identity: Any) -> Part:
        import h5py

        try:
            reason = _distrust(identity, self.size)
            if reason:
                return Part.refuse(place, f"{place!r} {reason}")
            dataset = h5py.Dataset(identity)
            return _dataset_part(self.path, self.size, place, dataset)
        except ExchangeError as error:
            return Part.refuse(place, str(error))
        except Exception as error:  # whatever a damaged or foreign dataset provokes: it is there, and is not read
            return Part.refuse(place, f"{place!r} makes no sense ({' '.join(str(error).split())})")


def _distrust(identity: Any, file_size: int) -> str:
    """Tell why a dataset is not read, "" when it is; nothing of it has been allocated or opened yet."""
    import h5py

    made = identity.get_create_plist()
    layout = made.get_layout()
    if layout == h5py.h5d.VIRTUAL:
        return "is a virtual dataset, whose data lie in other files; copy it into a plain dataset"
    if made.get_external_count():
        return "has its data in another file; copy it into a plain dataset"
    filters = [made.get_filter(i)[0] for i in range(made.get_nfilters())]
    unknown = [number for number in filters if number not in _FILTERS]
    if unknown:
        return f"is compressed by filter {unknown[0]}; only gzip, lzf, shuffle and fletcher32 are read, write it so"
    shape = identity.shape
    if not shape:
        return "is a single value"
    nbytes = count_bytes(shape, identity.get_type().get_size())
    if layout == h5py.h5d.CHUNKED:
        check_size("chunk", count_bytes(made.get_chunk(), identity.get_type().get_size()), file_size)
        check_size("dataset", nbytes, identity.get_storage_size())
    elif layout == h5py.h5d.CONTIGUOUS and nbytes:
        offset = identity.get_offset()
        if offset is None:
            return "was never written"
        if offset + nbytes > file_size:
            return f"claims {nbytes} bytes at {offset} of a file of {file_size}; the file is damaged"
    return ""


def _dataset_part(path: Path, file_size: int, place: str, dataset: Any) -> Part:
    import h5py

    dtype, shape = dataset.dtype, tuple(dataset.shape)
    if h5py.check_string_dtype(dtype) is not None:
        return _text_part(file_size, place, dataset)
    if dtype.kind not in "fiub" or dtype.itemsize > 8 or h5py.check_dtype(ref=dtype) or h5py.check_dtype(vlen=dtype):
        return Part.refuse(place, f"{place!r} holds {dtype}; expected numbers or text")
    step = block_rows(shape, dtype)
    if dataset.chunks:  # whole chunks: each is decompressed once
        step = -(-step // dataset.chunks[0]) * dataset.chunks[0]

    def blocks() -> Iterator[np.ndarray]:
        for start in range(0, shape[0], step):
            yield dataset[start : start + step]

    def mapped() -> np.ndarray:
        return np.memmap(path, dtype=dtype, mode="r", offset=dataset.id.get_offset(), shape=shape)

    contiguous = dataset.id.get_create_plist().get_layout() == h5py.h5d.CONTIGUOUS and dataset.size
    return Part(place, shape, dtype, lambda: dataset[()], blocks, mapped if contiguous else None)


def _text_part(file_size: int, place: str, dataset: Any) -> Part:
    shape = tuple(dataset.shape)

    def read() -> np.ndarray:
        errors = _texts(dataset).get("errors", "")
        errors = errors if errors in ("surrogateescape", "surrogatepass") else "surrogateescape"
        found: list[Any] = []
        total = 0
        for start in range(0, shape[0], _TEXT_ROWS):
            block = dataset[start : start + _TEXT_ROWS].reshape(-1).tolist()
            total += sum(map(len, block))
            check_size(place, total, file_size)  # a hostile file can point a million times to one long text
            found += block
        return text_array(found, errors)

    return Part(place, shape, _TEXT, read, lambda: iter([read()]))
