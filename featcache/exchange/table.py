"""One parquet file: columns id, label, group, split, the set's own, and the codes as lists of fixed length.

Codes of more dimensions are flattened; the shape is in the file's metadata. Text that is no valid UTF-8 (file names)
cannot be parquet's text: such a column is binary, and its field's metadata name the encoding's error handler.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ExchangeError
from .arrays import Sink
from .parts import Contents, Draft, Part, block_rows, check_size, count_bytes, place_of, text_array, text_bytes

__all__ = ["ROLES", "open_file", "pieces", "places"]

ROLES = {"X": "features", "y": "label", "ids": "id", "groups": "group", "splits": "split"}
_ERRORS = b"featcache.errors"
_TEXT = np.dtype("U1")
#: Of codes in one row group; pyarrow holds it several times over while it writes it.
_GROUP_BYTES = 1 << 24
_BATCH_ROWS = 4096


def places(names: Mapping[str, Any]) -> dict[str, str]:
    """Return the parquet column of each own column; those of the roles' names stand aside."""
    taken = set(ROLES.values())
    found = {}
    for name in names:
        place = place_of(name)
        while place in taken:
            place = f"columns/{place}"
        taken.add(place)
        found[name] = place
    return found


def arrow(where: Any = "parquet") -> Any:
    """Return pyarrow with its parquet module; ExchangeError, with what to install, where there is none."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ExchangeError(
            f"{where}: expected pyarrow for parquet, got none installed; pip install 'featcache[parquet]', "
            "or use .h5 or .npz"
        ) from None
    return pyarrow


# ------------------------------------------------------------------------------------------------------- writing


def pieces(draft: Draft) -> Iterator[bytes]:
    """Yield the whole file, in order: a row group of about 16 MiB at a time."""
    pa = arrow()
    lines = {place: _Line.of(pa, values) for place, values in draft.lines()}
    width = int(np.prod(draft.data.X.shape[1:], dtype=np.int64))
    codes = pa.list_(pa.field("element", pa.from_numpy_dtype(draft.dtype), nullable=False), width)
    schema = pa.schema(
        [pa.field(place, line.type, nullable=False, metadata=line.metadata) for place, line in lines.items()]
        + [pa.field(ROLES["X"], codes, nullable=False)],
        metadata=dict(draft.texts),
    )
    sink = Sink()
    step = max(1, _GROUP_BYTES // max(1, width * draft.dtype.itemsize))
    writer = pa.parquet.ParquetWriter(
        sink, schema, use_dictionary=list(lines), write_statistics=False, write_page_checksum=True
    )
    with writer:
        for start in range(0, len(draft.data), step):
            rows = np.ascontiguousarray(draft.data.X[start : start + step], dtype=draft.dtype)
            flat = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=codes)
            columns = [line.rows(start, start + len(rows)) for line in lines.values()]
            writer.write_batch(pa.record_batch([*columns, flat], schema=schema), row_group_size=step)
            yield from sink.taken()
    yield from sink.taken()


class _Line:
    """One column, ready to be cut into row groups."""

    def __init__(self, pa: Any, values: Any, kind: Any, metadata: dict[bytes, bytes] | None) -> None:
        self._pa, self._values, self.type, self.metadata = pa, values, kind, metadata

    @classmethod
    def of(cls, pa: Any, values: np.ndarray) -> _Line:
        if values.dtype.kind not in "UO":
            native = values.astype(values.dtype.newbyteorder("="), copy=False)
            return cls(pa, native, pa.from_numpy_dtype(native.dtype), None)
        encoded, errors = text_bytes(values)
        try:
            for text in encoded:
                text.decode()
        except UnicodeDecodeError:
            return cls(pa, encoded, pa.binary(), {_ERRORS: errors.encode()})
        return cls(pa, encoded, pa.string(), None)

    def rows(self, start: int, stop: int) -> Any:
        return self._pa.array(self._values[start:stop], type=self.type)


# ------------------------------------------------------------------------------------------------------- reading


@contextlib.contextmanager
def open_file(path: Path) -> Iterator[Contents]:
    """Open a parquet file; its pages' checksums are compared where it has some."""
    pa = arrow(path)
    with pa.parquet.ParquetFile(path, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        names = schema.names
        if len(set(names)) != len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise ExchangeError(f"expected each column name once, got {twice!r} twice; rename one")
        reader = _Reader(pa, path, file)
        parts = {name: reader.part(schema.field(name)) for name in names}
        texts = {
            key.decode("utf-8", "replace"): value.decode("utf-8", "replace")
            for key, value in (schema.metadata or {}).items()
        }
        yield Contents(parts, texts, ROLES)


class _Reader:
    def __init__(self, pa: Any, path: Path, file: Any) -> None:
        self.pa, self.file = pa, file
        self.n = file.metadata.num_rows
        self.size = path.stat().st_size

    def part(self, field: Any) -> Part:
        """Return one column, not read yet (but for the length of the first list)."""
        types = self.pa.types
        kind = field.type.storage_type if isinstance(field.type, self.pa.BaseExtensionType) else field.type
        name = field.name
        if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
            return self._matrix(name, kind)
        if types.is_dictionary(kind):
            kind = kind.value_type
        if types.is_boolean(kind) or types.is_integer(kind) or types.is_floating(kind):
            dtype = np.dtype(kind.to_pandas_dtype())
            return Part(name, (self.n,), dtype, lambda: self._numbers(name), lambda: iter([self._numbers(name)]))
        if types.is_nested(kind):
            return Part.refuse(name, f"{name!r} holds {kind}; expected numbers, text or lists of numbers")
        errors = (field.metadata or {}).get(_ERRORS, b"surrogateescape").decode("ascii", "replace")
        errors = errors if errors in ("surrogateescape", "surrogatepass") else "surrogateescape"

        def read() -> np.ndarray:
            return self._texts(name, errors)

        return Part(name, (self.n,), _TEXT, read, lambda: iter([read()]))

    def _batches(self, name: str, rows: int = _BATCH_ROWS) -> Iterator[Any]:
        total = 0
        for group in range(self.file.num_row_groups):  # over all of them at once, pyarrow keeps what it has read
            for batch in self.file.iter_batches(rows, row_groups=[group], columns=[name], use_threads=False):
                column = batch.column(name)
                if isinstance(column, self.pa.ExtensionArray):
                    column = column.storage
                total += len(column)
                yield column
        if total != self.n and rows == _BATCH_ROWS:
            raise ExchangeError(f"{name!r}: expected {self.n} rows, got {total}; the file is damaged")

    def _texts(self, name: str, errors: str) -> np.ndarray:
        found: list[Any] = []
        total = 0
        for column in self._batches(name):
            values = column.to_pylist()
            total += sum(len(v) for v in values if isinstance(v, (str, bytes)))
            check_size(name, total, self.size)
            found += values
        return text_array(found, errors)

    def _numbers(self, name: str) -> np.ndarray:
        columns = list(self._batches(name))
        if any(column.null_count for column in columns):  # a gap has no number: such a column is text, with ""
            return self._texts(name, "strict")
        arrays = [np.asarray(column.to_numpy(zero_copy_only=False)) for column in columns]
        return np.concatenate(arrays) if arrays else np.zeros(0)

    def _matrix(self, name: str, kind: Any) -> Part:
        types = self.pa.types
        if not (types.is_floating(kind.value_type) or types.is_integer(kind.value_type)):
            return Part.refuse(name, f"{name!r} holds {kind}; expected lists of numbers")
        dtype = np.dtype(kind.value_type.to_pandas_dtype())
        fixed = types.is_fixed_size_list(kind)
        width = kind.list_size if fixed else self._first_length(name)
        shape = (self.n, width)

        def blocks() -> Iterator[np.ndarray]:
            check_size(name, count_bytes(shape, dtype.itemsize), self.size)
            row = 0
            for column in self._batches(name, min(_BATCH_ROWS, block_rows(shape, dtype))):
                lengths_differ = not fixed and set(column.value_lengths().to_pylist()) - {width}
                flat = column.flatten()
                if lengths_differ or column.null_count or flat.null_count:
                    raise ExchangeError(
                        f"{name!r}: expected {width} numbers in each row, as in the first, got another number of them, "
                        f"or gaps, in one of the rows {row} to {row + len(column) - 1}; leave such rows out"
                    )
                row += len(column)
                yield flat.to_numpy(zero_copy_only=False).reshape(len(column), width)
            if row != self.n:
                raise ExchangeError(f"{name!r}: expected {self.n} rows, got {row}; the file is damaged")

        def read() -> np.ndarray:
            return np.concatenate(list(blocks()) or [np.zeros(shape, dtype)])

        return Part(name, shape, dtype, read, blocks)

    def _first_length(self, name: str) -> int:
        first = next(self._batches(name, 1), None)
        return len(first[0].as_py() or ()) if first is not None and len(first) else 0
