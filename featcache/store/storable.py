"""What a store refuses before it writes anything: what a reader could not read, or would read as something else."""

from __future__ import annotations

import json
import operator
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import StoreError
from ..features import is_text
from .texts import LONGEST_ID, ids_fit

if TYPE_CHECKING:
    from .entries import Entries
    from .segment import Change
    from .snapshot import Snapshot

__all__ = ["plain_source", "require_columns", "require_fit", "require_names", "roles_of", "view_numbers"]

#: What may stand behind the name of a column in a file; see docs/file-format.md.
_FORMS = ("code", "offsets", "bytes", "int", "float", "bool")
_LONGEST_NAME = 1024
_MOST_VIEWS = 1 << 16
#: Whole numbers beyond it are not all floats.
_EXACT = 1 << 53


def view_numbers(where: Path, values: Any, n: int) -> np.ndarray:
    """Return view numbers, one or one for each of n rows, as they are stored; StoreError for what none can be."""
    try:
        array = np.asarray(operator.index(values)) if np.ndim(values) == 0 else np.asarray(values)
    except (TypeError, OverflowError):
        array = np.asarray(-1)
    good = array.dtype.kind in "iu" and array.shape in ((), (n,))
    if not good or isinstance(values, bool) or bool(((array < 0) | (array >= _MOST_VIEWS)).any()):
        shown = repr(values) if np.ndim(values) == 0 else f"an array of {np.asarray(values).dtype}"
        raise StoreError(
            f"{where}: view_number: expected whole numbers from 0 (the plain image) to {_MOST_VIEWS - 1}, got {shown}"
        )
    return np.broadcast_to(array, (n,)).astype("<u2")


def require_names(where: Path, what: str, names: Iterable[Any], forms: tuple[str, ...] | None = None) -> None:
    """Refuse names that cannot be those of datasets, or that collide as such.

    Parameters
    ----------
    where : Path
        The store, for messages.
    what : str
        "column" or "node", for messages.
    names : iterable of str
        All that stand in one file.
    forms : tuple of str, default=None
        What stands behind a name that is a group of datasets; None: a name is itself a dataset.
    """
    known = set()
    for name in names:
        problem = _problem(name)
        if problem:
            raise StoreError(f"{where}: {what} {str(name)[:80]!r}: expected a name for HDF5, got {problem}; rename it")
        known.add(name)
    for name in known:
        for outer in _outer(name):
            rest = name[len(outer) + 1 :].partition("/")[0]
            if outer in known and (forms is None or rest in forms):
                raise StoreError(f"{where}: {what} {name!r} collides with {what} {outer!r} in a file; rename one")


def _outer(name: str) -> Iterator[str]:
    """Yield what stands before each slash of a name."""
    parts = name.split("/")
    yield from ("/".join(parts[:n]) for n in range(1, len(parts)))


def _problem(name: Any) -> str:
    """Tell why a name cannot be that of a dataset, "" when it can."""
    if not isinstance(name, str):
        return type(name).__name__
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        return "text that is no valid Unicode"
    if size > _LONGEST_NAME:
        return f"one of {size} bytes, more than {_LONGEST_NAME}"
    if "\0" in name:
        return "one with NUL"
    if {"", "."} & set(name.split("/")):
        return "one with an empty part, or '.', which HDF5 would drop"
    return ""


def require_columns(where: Path, entries: Entries) -> None:
    """Refuse columns that cannot be stored as they are."""
    require_names(where, "column", entries.columns, _FORMS)
    for name, column in entries.columns.items():
        kind, problem = column.dtype.kind, ""
        if column.ndim != 1:
            problem = f"shape {column.shape}"
        elif kind not in "biufUO" or (kind == "f" and column.dtype.itemsize > 8):
            problem = str(column.dtype)
        elif kind == "O" and not is_text(column):
            odd = next(type(v).__name__ for v in column.tolist() if not isinstance(v, str))
            problem = f"objects, of which one is {odd}"
        elif kind == "u" and column.size and int(column.max()) >= 1 << 63:
            problem = f"{int(column.max())}, which is beyond int64"
        if problem:
            raise StoreError(
                f"{where}: column {name!r}: expected text, bool, int64 or float64, got {problem}; convert it first"
            )
    if not is_text(np.asarray(entries.errors)):
        raise StoreError(f"{where}: errors: expected text, got {entries.errors.dtype}; give '' where there is none")
    if entries.ids.dtype.itemsize // 4 > LONGEST_ID:
        lengths = np.char.str_len(entries.ids)
        if lengths.max(initial=0) > LONGEST_ID:
            at = int(lengths.argmax())
            raise StoreError(
                f"{where}: id {str(entries.ids[at])[:40]!r}…: expected at most {LONGEST_ID} characters, got "
                f"{lengths[at]}; give the image a shorter name"
            )


def require_fit(where: Path, head: Snapshot | None, change: Change) -> None:
    """Refuse a change that could not be read together with the state that it builds on."""
    if head is None or not len(head):
        widths, n, held = [_width(change.upserts.ids)], len(change.upserts), _held(change.upserts.ids)
    else:
        theirs = [segment.ids for segment in head.segments]
        widths = [ids.longest() for ids in theirs] + [_width(change.upserts.ids)]
        n = len(head) + len(change.upserts)
        held = sum(ids.held for ids in theirs) + _held(change.upserts.ids)
    if not ids_fit(max(widths), n, held):
        raise StoreError(
            f"{where}: ids: expected lengths that are alike, got one of {max(widths)} characters among {n}, each of "
            "which would take its room in memory; shorten it"
        )
    if head is not None and len(change.upserts):
        _require_exact(where, head, change)


def _require_exact(where: Path, head: Snapshot, change: Change) -> None:
    """Refuse whole numbers that a reader would turn into floats that are others."""
    mine = change.upserts.columns
    segments = [segment for segment in head.segments if len(segment)]
    for name in sorted(set(mine).union(*(segment.attributes["columns"] for segment in segments))):
        parts = [segment.stored_form(name) for segment in segments]
        parts.append(_form(mine.get(name)))
        if "int" not in parts or not {"float", "bool", "absent"} & set(parts):
            continue
        arrays = [s.column(name, slice(None)) for s, form in zip(segments, parts, strict=False) if form == "int"]
        arrays += [mine[name]] if parts[-1] == "int" else []
        low, high = (int(f(f(a) for a in arrays if len(a))) for f in (_lowest, _highest))
        if (low < -_EXACT or high > _EXACT) and len(change.upserts) < head.lines_after(change):
            raise StoreError(
                f"{where}: column {name!r}: expected whole numbers up to 2**53 beside lines that have none (or other "
                f"numbers), since all become float64, got {high if high > _EXACT else low}; give all as text"
            )


def _lowest(values: Any) -> int:
    return min((int(v) for v in values), default=0) if not isinstance(values, np.ndarray) else int(values.min())


def _highest(values: Any) -> int:
    return max((int(v) for v in values), default=0) if not isinstance(values, np.ndarray) else int(values.max())


def _form(column: np.ndarray | None) -> str:
    """Return the form in which a column is stored."""
    if column is None:
        return "absent"
    return {"b": "bool", "i": "int", "u": "int", "f": "float"}.get(column.dtype.kind, "code")


def _width(ids: np.ndarray) -> int:
    # The room that the array has, not what its texts need: measured exactly only where it matters.
    width = ids.dtype.itemsize // 4
    return width if width <= 1024 or not len(ids) else int(np.char.str_len(ids).max())


def _held(ids: np.ndarray) -> int:
    return 0 if ids.nbytes < 1 << 26 and len(ids) < 1 << 20 else int(np.char.str_len(ids).sum())


def roles_of(
    where: Path, head: Snapshot | None, entries: Entries, given: Mapping[str, str] | None, *, replaces: bool
) -> dict[str, str]:
    """Return the roles of a new state: those given, and those of the old one whose columns are still there.

    Parameters
    ----------
    where : Path
        The store, for messages.
    head : Snapshot or None
        The state before.
    entries : Entries
        The lines of the commit.
    given : mapping or None
        What the caller said.
    replaces : bool
        Whether nothing of `head` stays.
    """
    there = set(entries.columns)
    if head is not None and not replaces:
        there.update(*(segment.attributes["columns"] for segment in head.segments))
    for role, column in (given or {}).items():
        # A view without lines may have roles: its columns come with its first line.
        if not isinstance(column, str) or (column not in there and len(entries)):
            raise StoreError(
                f"{where}: role {role!r}: expected one of the columns {', '.join(sorted(there)) or '(none)'}, "
                f"got {column!r}; commit that column, or leave the role out"
            )
    old = head.roles if head is not None else {}
    return {**{role: c for role, c in old.items() if c in there or not len(entries)}, **(given or {})}


def plain_source(where: Path, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is recorded about a source as JSON gives it back; StoreError for what JSON cannot hold."""
    try:
        text = json.dumps(dict(source), allow_nan=False, ensure_ascii=False)
        text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        reason = "text that is no valid Unicode" if isinstance(error, UnicodeError) else " ".join(str(error).split())
        raise StoreError(
            f"{where}: source: expected JSON values in valid Unicode, got something else ({reason}); give plain text"
        ) from None
    found: dict[str, Any] = json.loads(text)
    return found
