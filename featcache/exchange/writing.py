"""`export`: a FeatureSet or a view of a store as one plain file, durably."""

from __future__ import annotations

import contextlib
import glob
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..errors import ExchangeError
from ..features import FeatureSet, is_text, texts_of
from ..files import DISK, Disk, publish, remove_stale, unique_name
from ..store import FeatureStore
from . import arrays, hdf5, table
from .parts import VIEW_OF, Draft, add_lines, raw

__all__ = ["export"]

_WRITERS: dict[str, Any] = {".h5": hdf5, ".hdf5": hdf5, ".npz": arrays, ".parquet": table}
_DTYPES = {"float16", "float32", "float64", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}
_STALE_SECONDS = 86_400.0


def export(
    data: FeatureSet | FeatureStore | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    view: str = "main",
    node: str | None = None,
    label: str | None = None,
    group: str | None = None,
    split: str | None = None,
    overwrite: bool = False,
    disk: Disk | None = None,
) -> Path:
    """Write features as one plain file that needs no featcache to read; `read_features` brings everything back.

    Parameters
    ----------
    data : FeatureSet, FeatureStore or path
        What to write; a path is that of a store. A store's codes are written in the dtype they are stored in
        (float16 or float32), a FeatureSet's as they are.
    out : path-like
        The file. Its suffix says the format: ``.h5``/``.hdf5`` (datasets ``features``, ``labels``, ``ids``,
        ``groups``, ``splits``, ``columns/<name>``; text as fixed-length UTF-8), ``.npz`` (arrays ``X``, ``y``,
        ``ids``, …; no pickle inside) or ``.parquet`` (columns ``id``, ``label``, …, ``features``; needs pyarrow).
        What the codes are (spec, fingerprint, node, locator) stands in it as text: root attributes, arrays, metadata.
    view, node, label, group, split
        What to take of a store, as in `FeatureStore.load`.
    overwrite : bool, default=False
        Replace an existing file; it stays as it is until the new one is complete.
    disk : Disk, default=None
        The layer that writes go through (tests make it fail).

    Returns
    -------
    Path
        `out`. The file is durable: synced, and read back and compared before it got its name.

    Raises
    ------
    ExchangeError
        For an unknown suffix, an existing file, NaN or Inf among the codes, columns that are neither text nor numbers,
        or when the disk refuses; nothing has been written then, and an existing file is unharmed.
    StoreError
        When the store has no such view, node or column.

    Notes
    -----
    Sets larger than memory (``in_memory=False``) are written in blocks of a few MiB.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> path = export(FeatureSet(np.eye(3, dtype="f4"), ["a", "b", "a"]), tempfile.mkdtemp() + "/codes.npz")
    >>> np.load(path)["y"].tolist()
    ['a', 'b', 'a']
    """
    path = Path(out)
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise ExchangeError(f"{path}: expected a name that ends in .h5 (or .hdf5), .npz or .parquet; give one of these")
    if writer is table:
        table.arrow(path)
    _check_target(path, overwrite)
    found, dtype = _set_of(data, {"view": view, "node": node, "label": label, "group": group, "split": split})
    if dtype.name not in _DTYPES or 0 in found.X.shape[1:]:
        raise ExchangeError(
            f"X: expected codes of float16, float32, float64 or whole numbers, got shape {found.X.shape} of {dtype}; "
            "convert them first"
        )
    if writer is not table:
        _require_fixed(path, found)
    draft = Draft.of(found, dtype, writer.ROLES, writer.places(found.columns))
    _publish(path, writer, draft, overwrite, disk or DISK)
    return path


def _check_target(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise ExchangeError(f"{path}: expected the name of a file, got a folder; name a file in it")
    if not path.parent.is_dir():
        raise ExchangeError(f"{path}: expected a folder {str(path.parent)!r} to write to, got none; make it first")
    if os.path.lexists(path) and not overwrite:
        raise ExchangeError(f"{path}: exists already; give another name, or allow replacing it (overwrite)")
    # A store's own files end in .h5 too, and nothing but featcache may write there.
    # (A store.json alone may be anybody's.)
    near = list(path.absolute().parents)[:3]
    if any((folder / "store.json").exists() and (folder / "shards").is_dir() for folder in near):
        raise ExchangeError(f"{path}: lies inside a store, where only featcache's own files belong; write it elsewhere")


def _require_fixed(path: Path, data: FeatureSet) -> None:
    """Refuse texts that a format of fixed width would blow up: one long one takes its room in every row."""
    lists = {name: getattr(data, name) for name in ("ids", "y", "groups", "splits")}
    for name, values in {**lists, **{f"columns[{n!r}]": column for n, column in data.columns.items()}}.items():
        if values is not None and is_text(values) and texts_of(values.tolist()).dtype.kind == "O":
            longest = max(map(len, values.tolist()))
            raise ExchangeError(
                f"{path}: {name}: expected texts of like lengths, since {path.suffix} gives each row the room of the "
                f"longest, got one of {longest} characters among {len(values)}; write .parquet, or leave it out"
            )


def _set_of(data: Any, choice: dict[str, Any]) -> tuple[FeatureSet, np.dtype]:
    """Return what to write, and the dtype to write the codes in."""
    if isinstance(data, FeatureSet):
        given = [f"{name}={value!r}" for name, value in choice.items() if value not in (None, "main")]
        if given:
            raise ExchangeError(f"{', '.join(given)}: expected a store to choose from, got a FeatureSet; leave it out")
        if data.view_of is not None:
            data = replace(data, columns={**data.columns, VIEW_OF: data.view_of}, view_of=None)
        return data, data.X.dtype
    if isinstance(data, (str, os.PathLike)):
        data = FeatureStore.open(data)
    if not isinstance(data, FeatureStore):
        raise ExchangeError(f"data: expected a FeatureSet, a FeatureStore or its path, got {type(data).__name__}")
    found = data.load(choice.pop("view"), **choice)
    return found, np.dtype(data.spec.get("dtype", found.X.dtype))


def _publish(path: Path, writer: Any, draft: Draft, overwrite: bool, disk: Disk) -> None:
    """Write under a temporary name beside the target, sync, read back and compare, and only then give it its name."""
    temporary = path.with_name(f".{path.name}.{unique_name('.tmp')}")
    remove_stale(path.parent, _STALE_SECONDS, names=f".{glob.escape(path.name)}.*.tmp", disk=disk)
    try:
        disk.write(temporary, writer.pieces(draft))
        if not overwrite:
            publish(temporary, path, verify=lambda file: _verify(file, writer, draft), disk=disk)
            return
        disk.fsync(temporary)
        _verify(temporary, writer, draft)
        disk.rename(temporary, path)
        disk.fsync_folder(path.parent)
    except FileExistsError:
        raise ExchangeError(f"{path}: exists already; give another name, or allow replacing it (overwrite)") from None
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise ExchangeError(f"{path}: cannot be written: {reason}; look at the folder and the free space") from error
    finally:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)


def _verify(path: Path, writer: Any, draft: Draft) -> None:
    """Read a finished file back as anybody would; OSError unless it holds what was meant, to the last bit."""
    digest = xxhash.xxh3_128()
    try:
        with writer.open_file(path) as contents:
            for block in contents.parts[draft.roles["X"]].blocks():
                digest.update(raw(block.astype(draft.dtype, copy=False)))
            add_lines(digest, (contents.parts[place].read() for place, _ in draft.lines()))
            same = all(contents.texts.get(key) == text for key, text in draft.texts.items())
    except MemoryError:
        raise
    except Exception as error:  # whatever the reader stumbles on, the file is not what was meant
        raise OSError(f"the disk did not keep what was written ({error})") from error
    if not same or digest.hexdigest() != draft.texts["xxh3"]:
        raise OSError("the disk did not keep what was written (full or failing?)")
