"""What the formats share: the parts of a file, the description that `export` leaves in it, limits, text as bytes.

A file is a dictionary of parts (`Part`): arrays that have a name, a shape and a type, and are read only when asked for.
A file made by `export` also has a description: short texts, the same in each format (`describe`, `understand`).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import xxhash

from ..errors import ExchangeError
from ..features import FeatureSet, is_text, texts_of

__all__ = ["Contents", "Draft", "Part", "block_rows", "check_size", "text_array", "text_bytes"]

FORMAT = "featcache features"
FORMAT_VERSION = 1
_BLOCK_BYTES = 1 << 23
#: What a file may unfold to: so much in any case, beyond it this many times its own bytes. Codes compress by 2 or so,
#: constant columns by far more, but they are short.
_ALWAYS_ALLOWED = 1 << 28
_EXPANSION = 100
#: Values of the description that are JSON; the others are texts.
_JSON = ("spec", "locator", "columns", "shape")
_TEXTS = ("format", "featcache", "name", "node", "fingerprint", "dtype", "xxh3")
#: The column that holds `FeatureSet.view_of`.
VIEW_OF = "featcache view_of"
_NOTE = (
    "CNN codes, one row per id, made by the backbone and preprocessing that spec (JSON) describes; "
    "columns: own name and place in this file; xxh3: checksum of codes and columns; read with featcache.read_features"
)


class Part(NamedTuple):
    """One array of a file, not read yet.

    Attributes
    ----------
    name : str
        Its name in the file.
    shape : tuple of int
        Its shape.
    dtype : numpy.dtype
        Its type; ``U`` for text, whatever its form in the file.
    read : callable
        Returns all of it.
    blocks : callable
        Returns an iterator over blocks of rows, in order.
    map : callable or None
        Returns a read-only map, where the format allows one.
    refused : str
        Why it is not read, "" where it can be.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], np.ndarray]
    blocks: Callable[[], Iterator[np.ndarray]]
    map: Callable[[], np.ndarray] | None = None
    refused: str = ""

    @classmethod
    def refuse(cls, name: str, reason: str) -> Part:
        """Return a part that is there and is not read."""

        def fail() -> Any:
            raise ExchangeError(reason)

        return cls(name, (), np.dtype("V1"), fail, fail, None, reason)

    @property
    def is_matrix(self) -> bool:
        """True for numbers in two or more dimensions."""
        return len(self.shape) >= 2 and self.dtype.kind in "fiu" and 0 not in self.shape[1:]

    @property
    def is_list(self) -> bool:
        """True for one value per row: one dimension, or one column."""
        return len(self.shape) == 1 or (len(self.shape) == 2 and self.shape[1] == 1)


@dataclass
class Contents:
    """What is in an open file.

    Attributes
    ----------
    parts : dict of str to Part
        By name, in the file's order.
    texts : mapping of str to str
        What may be the description of `export`.
    roles : mapping of str to str
        Field of a FeatureSet → the name that `export` gives it in this format.
    """

    parts: dict[str, Part]
    texts: Mapping[str, str] = field(default_factory=dict)
    roles: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Draft:
    """A FeatureSet on its way into a file.

    Attributes
    ----------
    data : FeatureSet
        What to write.
    dtype : numpy.dtype
        What the codes are stored as, little-endian.
    roles : mapping of str to str
        Field of a FeatureSet → its name in the file.
    places : mapping of str to str
        Own column → its name in the file.
    texts : dict of str to str
        The description.
    """

    data: FeatureSet
    dtype: np.dtype
    roles: Mapping[str, str]
    places: Mapping[str, str]
    texts: dict[str, str]

    @classmethod
    def of(cls, data: FeatureSet, dtype: np.dtype, roles: Mapping[str, str], places: Mapping[str, str]) -> Draft:
        """Check everything before anything is written, and describe it."""
        for name, column in data.columns.items():
            if not is_text(column) and (column.dtype.kind not in "biuf" or column.dtype.itemsize > 8):
                raise ExchangeError(
                    f"columns[{name!r}]: expected text, truth values, whole numbers or floats, got {column.dtype}; "
                    "convert it, or leave it out"
                )
        draft = cls(data, dtype.newbyteorder("<"), roles, places, {})
        digest = xxhash.xxh3_128()
        row = 0
        for block in draft.blocks():
            check_finite(block, row, data.row_ids, data.name or "FeatureSet")
            digest.update(raw(block))
            row += len(block)
        add_lines(digest, (array for _, array in draft.lines()))
        draft.texts.update(describe(draft, digest.hexdigest()))
        return draft

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the codes as they are stored, block by block."""
        step = block_rows(self.data.X.shape, self.dtype)
        for start in range(0, len(self.data), step):
            with np.errstate(over="ignore"):  # what overflows is found by check_finite
                yield np.ascontiguousarray(self.data.X[start : start + step], dtype=self.dtype)

    def lines(self) -> Iterator[tuple[str, np.ndarray]]:
        """Yield everything with one value per row: its name in the file, and the values."""
        for role in ("ids", "y", "groups", "splits"):
            values = getattr(self.data, role)
            if values is not None:
                yield self.roles[role], _thrifty(values)
        for name, column in self.data.columns.items():
            yield self.places[name], _thrifty(column)


def _thrifty(values: np.ndarray) -> np.ndarray:
    """Return texts that are objects in fixed width where that is no waste: of a few lines it mostly is none."""
    return texts_of(values.tolist()) if values.dtype.kind == "O" else values


def describe(draft: Draft, digest: str) -> dict[str, str]:
    """Return the texts that say what a file holds; `understand` undoes it."""
    from .. import __version__

    data = draft.data
    values: dict[str, Any] = {
        "format": f"{FORMAT} {FORMAT_VERSION}",
        "featcache": __version__,
        "name": data.name,
        "node": data.node,
        "fingerprint": data.fingerprint,
        "spec": data.spec,
        "locator": data.locator,
        "columns": [[name, draft.places[name]] for name in data.columns],
        "shape": list(data.X.shape),
        "dtype": data.X.dtype.name,
        "xxh3": digest,
    }
    try:
        texts = {key: _plain(value) if key in _TEXTS else json.dumps(value) for key, value in values.items()}
    except (TypeError, ValueError) as error:
        raise ExchangeError(f"{data.name or 'FeatureSet'}: expected spec and locator of JSON values: {error}") from None
    return {**texts, "note": _NOTE}


def _plain(text: str) -> str:
    """Text as it is; as JSON, known by its quote, where not every format could hold it."""
    odd = text.startswith('"') or "\0" in text or not _is_unicode(text)
    return json.dumps(text) if odd else text


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def understand(where: Path, texts: Mapping[str, str]) -> dict[str, Any] | None:
    """Return the description of a file that `export` made; None for a file from elsewhere."""
    title, _, version = texts.get("format", "").rpartition(" ")
    if title != FORMAT:
        return None
    if not version.isdecimal() or int(version) > FORMAT_VERSION:
        raise ExchangeError(
            f"{where}: expected format {FORMAT_VERSION} of exported features or older, got {version!r}; "
            "install a newer featcache"
        )
    found = {key: json.loads(texts[key]) for key in _JSON}
    for key in _TEXTS:
        found[key] = json.loads(texts[key]) if texts[key].startswith('"') else texts[key]
    return found


def place_of(name: str) -> str:
    """Return a column's name as every format can hold it: one path component of valid Unicode."""
    odd = "/%\0" if name not in ("", ".", "..") else "/%\0."
    return "".join(f"%{ord(c):04X}" if c in odd or 0xD800 <= ord(c) < 0xE000 else c for c in name) or "%"


# ------------------------------------------------------------------------------------------------------- limits


def block_rows(shape: Sequence[int], dtype: np.dtype) -> int:
    """Return how many rows to handle at once: about 8 MiB."""
    return max(1, _BLOCK_BYTES // max(1, int(np.prod(shape[1:], dtype=np.int64)) * dtype.itemsize))


def machine_memory() -> int:
    """Return the machine's RAM in bytes."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return 8 << 30


def count_bytes(shape: Sequence[int], itemsize: int) -> int:
    """Return the size of an array, in Python's integers: a hostile shape must not overflow."""
    total = itemsize
    for length in shape:
        if length < 0:
            raise ExchangeError(f"expected lengths of 0 or more, got shape {tuple(shape)}; the file is damaged")
        total *= length
    return total


def check_size(name: str, nbytes: int, stored: int) -> None:
    """Refuse an array that claims far more than `stored` bytes can unfold to, before it is allocated."""
    if nbytes > max(_ALWAYS_ALLOWED, _EXPANSION * stored):
        raise ExchangeError(
            f"{name!r}: expected at most {_EXPANSION} times the {stored} bytes it takes in the file, got an array of "
            f"{nbytes} bytes; the file is damaged or hostile"
        )


def check_finite(block: np.ndarray, first: int, ids: np.ndarray | None, where: Any) -> None:
    """Refuse NaN and Inf, with the first row that holds one."""
    if block.dtype.kind != "f":
        return
    rows = block.reshape(len(block), -1)
    if not np.isfinite(rows).all():
        number = first + int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])
        name = f" (id {str(ids[number])!r})" if ids is not None else ""
        raise ExchangeError(
            f"{where}: expected finite numbers that fit {block.dtype}, got NaN, Inf or larger ones in row "
            f"{number}{name}; leave such rows out"
        )


# --------------------------------------------------------------------------------------------------- text, bytes


def raw(array: np.ndarray) -> memoryview:
    """Return an array's bytes, little-endian and in C order."""
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1).view("u1").data


def add_lines(digest: Any, lines: Iterable[np.ndarray]) -> None:
    """Add columns to a checksum, whatever their form in the file."""
    for array in lines:
        text = array.dtype.kind in "UO"
        digest.update("\0".join(array.tolist()).encode("utf-8", "surrogatepass") if text else raw(array))
        digest.update(b"\xff")


def text_bytes(values: np.ndarray) -> tuple[list[bytes], str]:
    """Return texts as UTF-8 with the error handler that undoes it.

    A file name that is no UTF-8 becomes the bytes it was ("surrogateescape"), as the file system has it. Where that
    would not lead back (surrogates that stand for no byte, or whose bytes together are valid UTF-8), each surrogate is
    written for itself ("surrogatepass"), which always leads back.
    """
    texts = values.tolist()
    try:
        encoded = [text.encode("utf-8", "surrogateescape") for text in texts]
        if all(t.isascii() or e.decode("utf-8", "surrogateescape") == t for t, e in zip(texts, encoded, strict=True)):
            return encoded, "surrogateescape"
    except UnicodeEncodeError:
        pass
    return [text.encode("utf-8", "surrogatepass") for text in texts], "surrogatepass"


def text_array(values: Iterable[str | bytes | None], errors: str = "surrogateescape") -> np.ndarray:
    """Return texts as one array ("" for none), which never takes far more memory than they do."""
    texts = ["" if v is None else v.decode("utf-8", errors) if isinstance(v, bytes) else str(v) for v in values]
    return texts_of(texts)
