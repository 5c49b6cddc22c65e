"""Images that a table names: CSV, TSV or parquet.

The table is taken literally. From CSV every column is text ("01" is not 1, "NA" is not missing); a line with too few or
too many cells, an unclosed quote or bytes that are not UTF-8 are errors with a line number, never a guess. Backslashes
are taken as folder separators where no file has them in its name, so lists written on Windows work.
"""

from __future__ import annotations

import codecs
import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import SourceError
from .columns import text_column
from .names import id_of, missing, name_of, shown, sort_key

__all__ = ["LIST_EXTENSIONS", "Listing", "read_list"]

#: File name extensions of lists.
LIST_EXTENSIONS = frozenset((".csv", ".tsv", ".parquet", ".pq"))

#: Column names that are recognised, in any case, first come first served.
_RECOGNISED = {
    "path": ("path", "file", "image", "filename"),
    "label": ("label", "class", "target"),
    "group": ("group",),
    "split": ("split",),
}
_DELIMITERS = (",", ";", "\t", "|")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".webp", ".tif", ".bmp")


class Listing(NamedTuple):
    """A list, read.

    Attributes
    ----------
    ids : list of str
        Sorted, unique.
    names : list of str
        Paths as `os` takes them, relative to `base` or absolute.
    base : str
        Absolute path of the folder that the names are relative to.
    columns : dict of str to numpy.ndarray
        Everything but the paths.
    roles : dict of str to str
        Role to column name.
    ignored : dict of str to int
        Parquet columns of a type that no column can have.
    """

    ids: list[str]
    names: list[str]
    base: str
    columns: dict[str, np.ndarray]
    roles: dict[str, str]
    ignored: dict[str, int]


class _Table(NamedTuple):
    """Columns as they were found: lists of text from CSV, arrays from parquet."""

    columns: dict[str, Any]
    lines: Sequence[int]
    ignored: dict[str, int]


def read_list(path: str, root: str | os.PathLike[str] | None, suffix: str, wanted: Mapping[str, str | None]) -> Listing:
    """Read a list; see `ImageSource.from_list`.

    Parameters
    ----------
    path : str
        The list.
    root : path-like or None
        Folder that its paths are relative to; the list's own if None.
    suffix : str
        Appended to each path that does not end with it.
    wanted : mapping of str to (str or None)
        Role ("path", "label", "group", "split") to the name of its column, None to recognise it.

    Returns
    -------
    Listing

    Raises
    ------
    SourceError
        See `ImageSource.from_list`.
    """
    if not Path(path).is_file():
        raise _no_list(path)
    base = os.path.abspath(Path(path).parent if root is None else root)  # noqa: PTH100
    if not Path(base).is_dir():
        raise missing(base, "the folder that the list's paths are relative to")
    parquet = Path(path).suffix.lower() in (".parquet", ".pq")
    table = _read_parquet(path) if parquet else _read_csv(path, wanted["path"])
    roles = _roles(path, list(table.columns), wanted)
    texts = table.columns.pop(roles.pop("path"))
    names = _names(path, base, texts, suffix, table.lines)
    _check_some_exist(path, base, names)
    ids = [_identity(base, name) for name in names]
    kept = _unique(path, ids, table)
    order = sorted(kept, key=lambda i: sort_key(ids[i]))
    columns = {name: _ordered(name, values, order) for name, values in table.columns.items()}
    return Listing([ids[i] for i in order], [names[i] for i in order], base, columns, roles, table.ignored)


def _no_list(path: str) -> SourceError:
    if Path(path).exists():
        return SourceError(f"{shown(path)}: expected a CSV or parquet file, got a folder; use from_folder()")
    return missing(path, "a CSV or parquet list")


def _ordered(name: str, values: Any, order: list[int]) -> np.ndarray:
    return values[order] if isinstance(values, np.ndarray) else text_column(name, [values[i] for i in order])


# ---------------------------------------------------------------------------------------------------- reading CSV


def _read_csv(path: str, path_column: str | None) -> _Table:
    text = _decoded(path)
    lines = text.split("\n", 1)
    skipped = 0
    if lines[0].strip().lower().startswith("sep=") and len(lines) == 2:  # what Excel writes for itself
        text, skipped = lines[1], 1
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(path, text, path_column), strict=True)
    rows, numbers = [], []
    try:
        for row in reader:
            if any(row):  # blank lines, and the empty cells that spreadsheets leave below a table
                rows.append(row)
                numbers.append(reader.line_num + skipped)
    except csv.Error as error:
        raise SourceError(
            f"{shown(path)} line {reader.line_num + skipped}: expected a row of a table, got {error}; check the quotes"
        ) from error
    if len(rows) < 2:
        raise SourceError(
            f"{shown(path)}: expected column names and at least one row, got {len(rows)} lines; add a first line such "
            "as path,label"
        )
    header = _header(path, rows[0])
    _check_widths(path, rows, numbers, len(header))
    columns = dict(zip(header, map(list, zip(*rows[1:], strict=True)), strict=True))
    return _Table(columns, numbers[1:], {})


def _decoded(path: str) -> str:
    """Return a text file as text: UTF-8, or UTF-16 where a byte order mark says so."""
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise SourceError(f"{shown(path)}: expected a readable list, got {error.strerror or error}") from error
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return data.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise SourceError(
            f"{shown(path)} line {line}: expected UTF-8, got byte 0x{data[error.start]:02x}; save it as UTF-8, e.g. "
            "with iconv -f cp1252 -t utf-8"
        ) from error


def _delimiter(path: str, text: str, path_column: str | None) -> str:
    """Choose the delimiter under which the first line has a column of paths, or else the most columns."""
    if Path(path).suffix.lower() == ".tsv":
        return "\t"
    first = next((line for line in text.splitlines() if line.strip()), "")

    def merit(delimiter: str) -> tuple[bool, int]:
        names = [cell.strip().strip('"').lower() for cell in first.split(delimiter)]
        expected = (path_column.lower(),) if path_column else _RECOGNISED["path"]
        return any(name in expected for name in names), len(names)

    return max(_DELIMITERS, key=merit)


def _header(path: str, cells: list[str]) -> list[str]:
    names = [cell.strip() or f"column_{i + 1}" for i, cell in enumerate(cells)]
    for i, name in enumerate(names):
        if name in names[:i]:
            raise SourceError(f"{shown(path)}: expected each column name once, got {name!r} twice; rename one")
    return names


def _check_widths(path: str, rows: list[list[str]], numbers: list[int], width: int) -> None:
    for row, number in zip(rows, numbers, strict=True):
        if len(row) > width and not any(row[width:]):
            del row[width:]
        if len(row) != width:
            raise SourceError(
                f"{shown(path)} line {number}: expected {width} cells as in the first line, got {len(row)}; quote "
                "cells that hold the delimiter"
            )


# ------------------------------------------------------------------------------------------------ reading parquet


def _read_parquet(path: str) -> _Table:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        raise SourceError(
            f"{shown(path)}: expected pyarrow to read parquet, got none installed; pip install 'featcache[parquet]', "
            "or save the list as CSV"
        ) from error
    try:
        table = parquet.ParquetFile(path).read()
    except (OSError, arrow.ArrowException) as error:
        raise SourceError(
            f"{shown(path)}: expected a parquet file, got {' '.join(str(error).split())[:200]}; write it again"
        ) from error
    if not table.num_rows:
        raise SourceError(f"{shown(path)}: expected at least one row, got none; check how it was written")
    _header(path, table.column_names)
    columns: dict[str, Any] = {}
    ignored: dict[str, int] = {}
    for name in table.column_names:
        values = _arrow_column(name, table[name])
        if values is None:
            ignored[f"(column {name}: {table[name].type})"] = 1
        else:
            columns[name] = values
    return _Table(columns, range(1, table.num_rows + 1), ignored)


def _arrow_column(name: str, column: Any) -> np.ndarray | None:
    """Return a parquet column as one of the four kinds; numbers with gaps become text; None for nested and binary."""
    from pyarrow import types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if (
        types.is_nested(kind)
        or types.is_binary(kind)
        or types.is_large_binary(kind)
        or types.is_fixed_size_binary(kind)
    ):
        return None
    if types.is_floating(kind):
        return column.to_numpy().astype(np.float64)
    if not column.null_count and types.is_boolean(kind):
        return column.to_numpy().astype(np.bool_)
    if not column.null_count and types.is_integer(kind) and kind != "uint64":
        return column.to_numpy().astype(np.int64)
    return text_column(name, ["" if value is None else str(value) for value in column.to_pylist()])


# ------------------------------------------------------------------------------------------------ columns and paths


def _roles(path: str, names: list[str], wanted: Mapping[str, str | None]) -> dict[str, str]:
    """Return role → column name; the role "path" is always there."""
    by_lower = {name.lower(): name for name in reversed(names)}
    roles = {}
    for role, recognised in _RECOGNISED.items():
        asked = wanted[role]
        if asked is not None:
            roles[role] = asked if asked in names else by_lower.get(asked.lower(), "")
            if not roles[role]:
                raise SourceError(
                    f"{shown(path)}: expected a column {asked!r}, got {', '.join(names)}; give {role}_column= "
                    "one of these"
                )
            continue
        match = next((by_lower[name] for name in recognised if name in by_lower), None)
        if match is not None:
            roles[role] = match
    if "path" not in roles:
        raise SourceError(
            f"{shown(path)}: expected a column {', '.join(_RECOGNISED['path'])}, got {', '.join(names)[:200]}; give "
            "path_column= the one that names the images"
        )
    return roles


def _names(path: str, base: str, texts: Any, suffix: str, lines: Sequence[int]) -> list[str]:
    """Turn the cells of the path column into file names."""
    if isinstance(texts, np.ndarray) and texts.dtype.kind != "U":
        texts = texts.astype(str)
    names = []
    for text, line in zip(texts, lines, strict=True):
        if not text or "\0" in text or "://" in text:
            raise SourceError(
                f"{shown(path)} line {line}: expected the path of an image, got {str(text)!r}; give a file on this "
                "machine"
            )
        if suffix and not text.endswith(suffix):
            text = text + suffix
        names.append(os.path.normpath(_with_backslashes(base, text) if "\\" in text else text))
    return names


def _with_backslashes(base: str, text: str) -> str:
    """Tell what a path with backslashes means: a name on this disk, the escaped form of ids, or a Windows path."""
    for candidate in (text, name_of(text)):
        if os.path.lexists(os.path.join(base, candidate)):  # noqa: PTH118
            return candidate
    return text.replace("\\", "/")


def _identity(base: str, name: str) -> str:
    """Return the id of a listed file: relative to the base when inside it, else as the list has it."""
    if os.path.isabs(name) and name.startswith(base.rstrip(os.sep) + os.sep):  # noqa: PTH117
        return id_of(os.path.relpath(name, base))
    return id_of(name)


def _check_some_exist(path: str, base: str, names: list[str]) -> None:
    """Refuse a list of which nothing is there; that is a wrong root or suffix, not a missing image."""
    if any(os.path.exists(os.path.join(base, name)) for name in names):  # noqa: PTH110, PTH118
        return
    first = os.path.join(base, names[0])  # noqa: PTH118
    found = next((suffix for suffix in _SUFFIXES if os.path.exists(first + suffix)), None)  # noqa: PTH110
    advice = f"give suffix={found!r}" if found else "give root= the folder that the paths start from, or suffix="
    raise SourceError(
        f"{shown(path)}: expected its images to exist, got none of {len(names)}, the first {shown(first)}; {advice}"
    )


def _unique(path: str, ids: list[str], table: _Table) -> list[int]:
    """Return the rows to keep: one per image. Rows that name an image again must say the same."""
    first: dict[str, int] = {}
    for i, identity in enumerate(ids):
        j = first.setdefault(identity, i)
        if i == j:
            continue
        for name, values in table.columns.items():
            if values[i] != values[j] and not (
                values[i] != values[i] and values[j] != values[j]
            ):  # NaN equals NaN here
                raise SourceError(
                    f"{shown(path)} line {table.lines[i]}: expected {identity!r} to be listed once, got {name} "
                    f"{str(values[i])!r} here and {str(values[j])!r} in line {table.lines[j]}; keep one of them"
                )
    return list(first.values())
