"""`read_features`: a plain file as a FeatureSet, whoever wrote it."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..errors import ExchangeError, FeatcacheError, FeaturesError
from ..features import FeatureSet, texts_of
from . import arrays, hdf5, table
from .parts import VIEW_OF, Contents, Part, add_lines, check_finite, count_bytes, machine_memory, raw, understand

__all__ = ["is_plain_file", "read_features"]

_OPENERS: dict[str, Any] = {
    ".npy": arrays.open_npy,
    ".npz": arrays.open_file,
    ".h5": hdf5.open_file,
    ".hdf5": hdf5.open_file,
    ".parquet": table.open_file,
}
#: Names of the matrix that are recognised, in any case.
_MATRIX = ("features", "feature", "feats", "x", "codes", "embeddings", "embedding", "vectors", "data", "arr_0", "array")
#: Names of what stands beside it, in any case, first come first served.
_BESIDE = {
    "y": ("labels", "label", "y", "targets", "target"),
    "ids": ("ids", "id", "names", "name", "paths", "path", "filenames", "filename", "files", "file"),
    "groups": ("groups", "group"),
    "splits": ("splits", "split"),
}
#: Those that can mean nothing else: of another length than the matrix they are an error, the others are passed over.
_CERTAIN = {"labels", "label", "y", "ids", "id", "groups", "group", "splits", "split"}
_ARGUMENT = {"y": "labels", "ids": "ids", "groups": "groups", "splits": "splits"}
_LISTS = (".npy", ".txt", ".csv")
#: Up to this part of RAM the matrix is read into memory; beyond it a map is returned, as by `FeatureStore.load`.
_MEMORY_PART = 0.25


def is_plain_file(path: str | os.PathLike[str]) -> bool:
    """Tell by its name whether something is a file for `read_features` (a folder is a store)."""
    return Path(path).suffix.lower() in _OPENERS and not Path(path).is_dir()


def read_features(
    path: str | os.PathLike[str],
    *,
    labels: Any = None,
    ids: Any = None,
    groups: Any = None,
    splits: Any = None,
    key: str | None = None,
) -> FeatureSet:
    """Read features from a plain file: one that `export` wrote, which comes back whole, or one made elsewhere.

    Nothing is unpickled, no other file is opened on the file's behalf, and no array is believed to be larger than the
    file can hold.

    Parameters
    ----------
    path : path-like
        A .npy, .npz, .h5, .hdf5 or .parquet file.
    labels, ids, groups, splits : array-like, str or path, default=None
        One value per row: an array, the name of a dataset or column in the file, or a .npy, .txt (one value a line) or
        .csv file (one column, with or without a name above it). Default: what the file has under a usual name, such as
        "labels", "y" or "target"; "ids", "names", "paths" or "filenames"; "groups"; "splits". Numbers become text.
    key : str, default=None
        Name of the matrix. Default: the one with a usual name (features, X, codes, embeddings, data, …), or the only
        one there is. With a key any file is read as one made elsewhere: without provenance, and without its checksum.

    Returns
    -------
    FeatureSet
        X of shape (n_samples, n_features) or (n_samples, *shape). From elsewhere: float32 (float64 and whole numbers
        are converted), without a spec. From `export`: the dtype that the exported set had. A matrix of more than a
        quarter of RAM that lies in the file as it is (.npy, HDF5 without chunks) is mapped, in the dtype it has there.

    Raises
    ------
    ExchangeError
        When the file is missing, damaged, of another kind or distrusted; when no matrix or more than one can be meant;
        for NaN, Inf, or values beyond float32; for lists of another length.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> path = tempfile.mkdtemp() + "/elsewhere.npz"
    >>> np.savez(path, embeddings=np.eye(4), target=[0, 0, 1, 1])
    >>> data = read_features(path)
    >>> data.X.dtype.name, data.y.tolist()
    ('float32', ['0', '0', '1', '1'])
    """
    where = Path(path)
    opener = _OPENERS.get(where.suffix.lower())
    if where.is_dir():
        raise ExchangeError(f"{where}: expected a file, got a folder; a store is opened with FeatureStore.open(path)")
    if opener is None:
        raise ExchangeError(f"{where}: expected a .npy, .npz, .h5, .hdf5 or .parquet file, got {where.suffix!r}")
    if not where.is_file():
        raise ExchangeError(f"{where}: expected a file of features, found none; check the path")
    asked = {"y": labels, "ids": ids, "groups": groups, "splits": splits}
    with _one_line(where), opener(where) as contents:
        about = understand(where, contents.texts) if key is None else None
        if about is None:
            return _from_elsewhere(where, contents, asked, key)
        return _from_export(where, contents, about, asked)


@contextlib.contextmanager
def _one_line(where: Path) -> Iterator[None]:
    """Whatever a damaged file provokes in the libraries that read it, the caller gets one line with its name."""
    try:
        yield
    except (ExchangeError, FeaturesError) as error:
        message = str(error)
        raise ExchangeError(message if str(where) in message else f"{where}: {message}") from error
    except FeatcacheError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExchangeError(
            f"{where}: expected a sound {where.suffix} file, got one that cannot be read ({reason}); make it again"
        ) from error


# ---------------------------------------------------------------------------------------------- made by export


def _from_export(where: Path, contents: Contents, about: dict[str, Any], asked: dict[str, Any]) -> FeatureSet:
    roles, parts = contents.roles, contents.parts
    digest = xxhash.xxh3_128()
    part = parts[roles["X"]]
    if about["shape"][:1] != list(part.shape[:1]):
        raise ExchangeError(f"expected {about['shape']} codes, got {part.shape}; the file is damaged")
    found: dict[str, Any] = {role: parts[roles[role]].read() for role in _BESIDE if roles[role] in parts}
    columns = {name: parts[place].read() for name, place in about["columns"]}
    X = _matrix(where, part, np.dtype(about["dtype"]), found["ids"], digest)
    lists = [found[role] for role in ("ids", "y", "groups", "splits") if role in found]  # export's order
    add_lines(digest, [*lists, *columns.values()])
    if digest.hexdigest() != about["xxh3"]:
        raise ExchangeError(
            "the checksum does not fit the contents; the file is damaged, or was changed after the export: export "
            "again (to use it as it is, name its matrix with key=; it then has no provenance)"
        )
    found |= _given(where, contents, asked, len(X))
    fields = {name: about[name] for name in ("spec", "locator", "node", "fingerprint", "name")}
    views = columns.pop(VIEW_OF, None)
    return FeatureSet(X.reshape(about["shape"]), **found, **fields, columns=columns, view_of=views)


# ----------------------------------------------------------------------------------------------- made elsewhere


def _from_elsewhere(where: Path, contents: Contents, asked: dict[str, Any], key: str | None) -> FeatureSet:
    part = _choose(contents, key)
    n = part.shape[0]
    found = _given(where, contents, asked, n)
    for role in _BESIDE:
        if role not in found:
            values = _recognised(contents, role, n, part.name)
            if values is not None:
                found[role] = values
    # Ids first, by themselves: a row that is refused below is named by its id.
    ids = FeatureSet(np.zeros((n, 1), "u1"), ids=found.get("ids")).row_ids
    X = _matrix(where, part, np.dtype("f4"), ids, None)
    return FeatureSet(X, **{**found, "ids": ids}, name=where.name)


def _choose(contents: Contents, key: str | None) -> Part:
    """Return the matrix; ExchangeError, with the candidates, where it is not certain which one is meant."""
    parts = contents.parts
    if key is not None:
        if key not in parts:
            raise ExchangeError(f"key: expected one of {_names(parts)}, got {key!r}")
        if parts[key].refused:
            raise ExchangeError(parts[key].refused)
        if not parts[key].is_matrix:
            raise ExchangeError(f"{key!r}: expected numbers of shape (n, d), got {_shown(parts[key])}")
        return parts[key]
    usual = [p for p in parts.values() if _leaf(p.name) in _MATRIX and (p.is_matrix or p.refused)]
    if len(usual) == 1:
        if usual[0].refused:
            raise ExchangeError(usual[0].refused)
        return usual[0]
    beside = {name for names in _BESIDE.values() for name in names}
    others = [p for p in parts.values() if p.is_matrix and _leaf(p.name) not in beside]
    flat = [p for p in others if len(p.shape) == 2]
    candidates = usual or flat or others
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        listed = ", ".join(p.refused or _shown(p) for p in candidates[:12])
        raise ExchangeError(f"expected one matrix of features, got {len(candidates)}: {listed}; say which with key=")
    refused = next((p.refused for p in parts.values() if p.refused), "")
    raise ExchangeError(
        "expected a matrix of numbers of shape (n, d), got "
        + (refused or ", ".join(map(_shown, list(parts.values())[:12])) or "an empty file")
    )


def _leaf(name: str) -> str:
    return name.rpartition("/")[2].lower()


def _shown(part: Part) -> str:
    kind = "text" if part.dtype.kind == "U" else str(part.dtype)
    return f"{part.name!r} {part.shape} of {kind}"


def _names(parts: dict[str, Part]) -> str:
    return ", ".join(map(repr, list(parts)[:12])) + (", …" if len(parts) > 12 else "") if parts else "(nothing)"


def _recognised(contents: Contents, role: str, n: int, matrix: str) -> np.ndarray | None:
    """Return what stands beside the matrix under a usual name; None where there is nothing."""
    misfit = None
    for name in _BESIDE[role]:
        for part in contents.parts.values():
            if _leaf(part.name) != name or part.name == matrix:
                continue
            if part.refused:
                if name in _CERTAIN:
                    raise ExchangeError(f"{part.refused}; give {_ARGUMENT[role]}=")
            elif part.is_list and part.shape[0] == n:
                return part.read().reshape(-1)
            elif name in _CERTAIN:
                misfit = misfit or part
    if misfit is not None:
        raise ExchangeError(
            f"{_ARGUMENT[role]}: expected {n} values, one per row of {matrix!r}, got {_shown(misfit)}; "
            f"give {_ARGUMENT[role]}= the right ones"
        )
    return None


# ------------------------------------------------------------------------------------------- given by the caller


def _given(where: Path, contents: Contents, asked: dict[str, Any], n: int) -> dict[str, Any]:
    """Return what the caller said: arrays as they are, names and paths as what they stand for."""
    found = {}
    for role, values in asked.items():
        if values is None:
            continue
        if isinstance(values, (str, os.PathLike)):
            values = _named(contents, values, _ARGUMENT[role], n)
        try:
            found[role] = np.asarray(values)
            shape = f"shape {found[role].shape}"
        except (ValueError, TypeError) as error:
            shape = " ".join(str(error).split())
        if role not in found or found[role].shape != (n,):
            raise ExchangeError(f"{_ARGUMENT[role]}: expected {n} values, one per row of {where.name}, got {shape}")
    return found


def _named(contents: Contents, name: str | os.PathLike[str], argument: str, n: int) -> np.ndarray:
    """Return the list that a name or path stands for: the file's own part first."""
    part = contents.parts.get(os.fspath(name)) or contents.parts.get(f"columns/{os.fspath(name)}")
    if part is not None:
        if part.refused or not part.is_list:
            raise ExchangeError(part.refused or f"{argument}: expected one value per row, got {_shown(part)}")
        return part.read().reshape(-1)
    path = Path(name)
    if path.suffix.lower() not in _LISTS or not path.is_file():
        raise ExchangeError(
            f"{argument}: expected a name among {_names(contents.parts)} or a {', '.join(_LISTS)} file, "
            f"got {os.fspath(name)!r}"
        )
    with _one_line(path):
        if path.suffix.lower() == ".npy":
            with arrays.open_npy(path) as other:
                return next(iter(other.parts.values())).read()
        return _lines(path, argument, n)


def _lines(path: Path, argument: str, n: int) -> np.ndarray:
    """Read a text file of one value a line, or a CSV file of one column; an empty line is an empty value."""
    data = path.read_bytes()
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ExchangeError(f"{path} line {line}: expected UTF-8, got byte 0x{data[error.start]:02x}") from error
    if path.suffix.lower() == ".csv":
        rows = list(csv.reader(io.StringIO(text, newline=""), strict=True))
        wide = next((number for number, row in enumerate(rows, 1) if len(row) > 1), None)
        if wide is not None:
            raise ExchangeError(f"{path} row {wide}: expected one column, got {len(rows[wide - 1])}; keep one")
        values = [row[0] if row else "" for row in rows]
        values = values[1:] if len(values) == n + 1 else values  # the column's name
    else:
        values = text.replace("\r\n", "\n").removesuffix("\n").split("\n") if text else []
    if len(values) != n:
        raise ExchangeError(f"{path}: expected {n} {argument}, one a line, got {len(values)}; check the file")
    return texts_of(values)


# --------------------------------------------------------------------------------------------------- the matrix


def _matrix(where: Path, part: Part, dtype: np.dtype, ids: np.ndarray, digest: Any) -> np.ndarray:
    """Return the codes, checked row by row: in memory as `dtype`, or mapped as they lie in the file."""
    wanted = count_bytes(part.shape, dtype.itemsize)
    memory = machine_memory()
    mapped = part.map is not None and wanted > _MEMORY_PART * memory
    if not mapped and wanted > memory:
        raise ExchangeError(
            f"{part.name!r}: expected an array that fits {memory} bytes of memory, got {wanted}; write it as .npy or "
            "as HDF5 without chunks and compression, which can be mapped"
        )
    out = None if mapped else np.empty(part.shape, dtype)
    row = 0
    for block in part.blocks():
        if digest is not None:
            digest.update(raw(block))
        check_finite(block, row, ids, where)
        if out is not None:
            with np.errstate(over="ignore"):
                out[row : row + len(block)] = block
            check_finite(out[row : row + len(block)], row, ids, where)
        row += len(block)
    if row != part.shape[0]:
        raise ExchangeError(f"{part.name!r}: expected {part.shape[0]} rows, got {row}; the file is damaged")
    if out is not None:
        return out
    assert part.map is not None
    return part.map()
