"""Entries: the table a snapshot holds — one line per image of a view, columns of NumPy arrays, sorted by id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ..errors import StoreError
from ..features import is_text
from .texts import ids_fit, pack_text

__all__ = ["CONSTANT", "FAILED", "NO_KEY", "OK", "Entries"]

#: Values of `Entries.status`. CONSTANT rows are stored and usable, but all their values are equal (a blank image).
OK, FAILED, CONSTANT = 0, 1, 2
#: The key of an image whose bytes could not even be read.
NO_KEY = b"\0" * 32
#: Texts of two tables are brought to one width while that takes no more bytes, or twice what they take already.
_ROOM = 1 << 26


@dataclass(frozen=True, eq=False)
class Entries:
    """One line per image: what its id points to, and the source's own columns.

    Parameters
    ----------
    ids : ndarray of text of shape (n,)
        Unique; sorted by code points, as NumPy sorts text (the constructor sorts all columns along).
    keys : ndarray of uint8 of shape (n, 32)
        Content key of each image; zeros when it could not be read.
    status : ndarray of uint8 of shape (n,)
        OK, FAILED or CONSTANT.
    errors : ndarray of text of shape (n,)
        Why an image failed; "" otherwise.
    columns : mapping of str to ndarray
        Text ("" = missing), int64, float64 (NaN = missing) or bool, each of length n. Text is of fixed width or, where
        one long text would make that absurd, objects that are all str; so are `errors`.
    """

    ids: np.ndarray
    keys: np.ndarray
    status: np.ndarray
    errors: np.ndarray
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ids = np.asarray(self.ids, dtype=np.str_)
        n = len(ids)
        lengths = {len(self.keys), len(self.status), len(self.errors), *map(len, self.columns.values())}
        if lengths - {n}:
            raise StoreError(f"entries: expected columns of {n} values, got lengths {sorted(lengths)}")
        for name in ("keys", "status", "errors"):
            object.__setattr__(self, name, np.asarray(getattr(self, name)))
        object.__setattr__(self, "columns", {name: np.asarray(column) for name, column in self.columns.items()})
        object.__setattr__(self, "ids", ids)
        # By code points; that is the order of the UTF-8 bytes, too, unless undecodable bytes stand in names.
        if n > 1 and not bool(np.all(ids[1:] > ids[:-1])):
            order = np.argsort(ids, kind="stable")
            if bool(np.any(ids[order][1:] == ids[order][:-1])):
                raise StoreError("entries: ids repeat; give each image a name of its own")
            for name, value in vars(self.take(order)).items():
                object.__setattr__(self, name, value)

    @classmethod
    def empty(cls) -> Entries:
        """Return a table without lines."""
        return cls(np.zeros(0, "U1"), np.zeros((0, 32), "u1"), np.zeros(0, "u1"), np.zeros(0, "U1"))

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> Entries:
        """Return the lines at the given places (indices or mask)."""
        return Entries.trusted(
            self.ids[rows],
            self.keys[rows],
            self.status[rows],
            self.errors[rows],
            {name: column[rows] for name, column in self.columns.items()},
        )

    @classmethod
    def trusted(
        cls,
        ids: np.ndarray,
        keys: np.ndarray,
        status: np.ndarray,
        errors: np.ndarray,
        columns: Mapping[str, np.ndarray],
    ) -> Entries:
        """Make a table of what is known to be in order; only the lengths are compared (ValueError)."""
        fresh = object.__new__(cls)
        if {len(a) for a in (keys, status, errors, *columns.values())} - {len(ids)}:
            raise ValueError(f"columns of different lengths beside {len(ids)} ids")
        values = {"ids": ids, "keys": keys, "status": status, "errors": errors, "columns": dict(columns)}
        for name, value in values.items():
            object.__setattr__(fresh, name, value)
        return fresh

    @property
    def stored(self) -> np.ndarray:
        """Boolean mask of the lines that have a row of codes."""
        return self.status != FAILED

    def same_lines(self, other: Entries) -> np.ndarray:
        """Compare line by line with a table of the same ids: a mask of shape (n,), true where nothing differs."""
        same = (self.keys == other.keys).all(axis=1) & (self.status == other.status) & (self.errors == other.errors)
        for name in self.columns.keys() | other.columns.keys():
            mine, theirs = (
                table.columns.get(name, missing_like(self.columns.get(name, other.columns.get(name)), len(self)))
                for table in (self, other)
            )
            same &= (mine == theirs) | _both_nan(mine, theirs)
        return same

    def without(self, ids: np.ndarray) -> Entries:
        """Return the lines whose id is not among `ids`."""
        return self.take(~np.isin(self.ids, ids)) if len(ids) else self

    def merged(self, newer: Entries) -> Entries:
        """Return both tables in one; where an id stands in both, the newer line wins."""
        older = self.without(newer.ids)
        if not len(older):
            return newer
        if not len(newer):
            return older
        return Entries(*older.joined(newer).parts())

    def joined(self, other: Entries) -> Entries:
        """Return the lines of both, one after the other, neither sorted nor checked for repeats."""
        columns = {}
        for name in sorted(self.columns.keys() | other.columns.keys()):
            either = self.columns.get(name, other.columns.get(name))
            a, b = (t.columns.get(name, missing_like(either, len(t))) for t in (self, other))
            columns[name] = _chained(*_same_type(a, b))
        return Entries.trusted(
            _chained_ids(self.ids, other.ids),
            np.concatenate([self.keys, other.keys]),
            np.concatenate([self.status, other.status]),
            _chained(self.errors, other.errors),
            columns,
        )

    def parts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, Mapping[str, np.ndarray]]:
        """Return what the constructor takes."""
        return self.ids, self.keys, self.status, self.errors, self.columns

    def with_columns(self, columns: Mapping[str, np.ndarray]) -> Entries:
        """Return the same lines with other columns."""
        return replace(self, columns=dict(columns))


def _both_nan(a: np.ndarray, b: np.ndarray) -> np.ndarray | bool:
    return (a != a) & (b != b) if a.dtype.kind == "f" and b.dtype.kind == "f" else False


def missing_like(column: np.ndarray | None, n: int) -> np.ndarray:
    """Return n missing values of a column's type."""
    kind = "U" if column is None else column.dtype.kind
    if kind in "UO":
        return np.full(n, "", dtype="U1")
    return np.full(n, np.nan)


def _same_type(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Bring two columns to one type: numbers widen, anything else becomes text."""
    if a.dtype.kind == b.dtype.kind:
        return a, b
    if {a.dtype.kind, b.dtype.kind} <= set("biuf"):
        return a.astype("f8"), b.astype("f8")
    first, second = (x if x.dtype.kind in "UO" else x.astype(np.str_) for x in (a, b))
    return first, second


def _chained(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return two columns of one type one after the other, texts without giving each the room of a far longer one."""
    kinds, held = {a.dtype.kind, b.dtype.kind}, a.nbytes + b.nbytes
    wide = kinds == {"U"} and max(a.itemsize, b.itemsize) * (len(a) + len(b)) > max(_ROOM, 2 * held)
    return np.concatenate([a.astype(object), b.astype(object)] if wide or "O" in kinds else [a, b])


def _chained_ids(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    n, width = len(a) + len(b), max(a.itemsize, b.itemsize) // 4
    # Up to four bytes a character: what was committed by its bytes is not refused by its characters.
    if not ids_fit(width, n, 0) and not ids_fit(width, n, 4 * int(sum(np.char.str_len(x).sum() for x in (a, b)))):
        raise StoreError(f"entries: an id of {width} characters among {n}, each of which takes its room; shorten it")
    return np.concatenate([a, b])


def distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct texts, sorted, and the place of each value among them."""
    if not len(values):
        return np.zeros(0, "U1"), np.zeros(0, "<i4")
    # Labels come in runs, since ids are sorted and folders are classes; sorting the runs' heads is far cheaper.
    heads = np.concatenate([[True], values[1:] != values[:-1]])
    found, codes = np.unique(values[heads], return_inverse=True)
    return found, codes.astype("<i4")[np.cumsum(heads) - 1]


def column_datasets(name: str, column: np.ndarray) -> dict[str, np.ndarray]:
    """Return the datasets that hold one column: text as codes into its distinct values, numbers as they are."""
    prefix = f"column/{name}/"
    if is_text(column):
        values, codes = distinct(column)
        try:
            offsets, blob = pack_text(values)
        except ValueError as error:
            raise StoreError(f"column {name!r}: {error}; give it in valid Unicode") from None
        return {
            prefix + "code": codes,
            prefix + "offsets": offsets,
            prefix + "bytes": blob,
        }
    if column.dtype.kind == "b":
        return {prefix + "bool": column.astype("u1")}
    if column.dtype.kind in "iu":
        return {prefix + "int": column.astype("<i8")}
    if column.dtype.kind == "f":
        return {prefix + "float": column.astype("<f8")}
    raise StoreError(f"column {name!r}: expected text, bool, int or float, got {column.dtype}; convert it first")
