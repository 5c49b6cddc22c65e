"""Results that are remembered: what was computed of a head on a draw is looked up, not computed again.

A file per head, set of codes and number of shots, named by a digest of everything the numbers depend on: codes,
labels, ids, groups and splits; the head with its settings; the protocol but for its number of draws; versions, and
featcache's own source. So a change of any of them misses, and nothing has to be voided by hand. Files are arrays
without objects: nothing in them is ever run. A file that cannot be read or written is as good as none: results are
computed.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import scipy
import sklearn

from ..errors import HeadError
from ..files import cache_folder as user_cache
from ..heads.labelled import Rows
from .draws import Draw
from .metrics import is_bounded
from .protocol import EvalProtocol
from .running import Run

__all__ = ["Memory", "digest_of_rows"]

#: Bytes of a file that is believed to be one of results.
_LARGEST = 1 << 30
_SOURCES = ("errors.py", "splits.py", "solvers", "softmax", "heads", "evaluation")


class Memory:
    """A folder of remembered results; None: nothing is remembered.

    Parameters
    ----------
    folder : Path or None
        Made when the first result is kept; readable to its owner only.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def known(self, key: str | None, draws: Sequence[Draw], metric: str) -> dict[str, Run]:
        """Return those runs of some draws that are remembered under a key, by the name of the draw."""
        if self.folder is None or key is None:
            return {}
        try:
            found = _read(self.folder / f"{key}.npz")
        except Exception:  # whatever a damaged file makes of the reader: it is as good as none
            return {}
        rows = {name_of_draw(draw): len(draw.test) for draw in draws if name_of_draw(draw) in found}
        fits = {name: len(found[name].gains) == n * (metric in found[name].values) for name, n in rows.items()}
        return {name: found[name] for name, fit in fits.items() if fit}

    def keep(self, key: str | None, runs: Mapping[str, Run]) -> None:
        """Remember runs under a key, beside those that are there."""
        if self.folder is None or key is None or not runs:
            return
        with contextlib.suppress(Exception):
            runs = {**_read(self.folder / f"{key}.npz"), **runs}
        about = [
            {"draw": name, "values": r.values, "seconds": r.seconds, "unconverged": r.unconverged, "n": len(r.gains)}
            for name, r in runs.items()
        ]
        gains = np.concatenate([np.asarray(r.gains, dtype=np.float64) for r in runs.values()])
        with contextlib.suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            handle, path = tempfile.mkstemp(dir=self.folder, suffix=".tmp")
            try:
                with os.fdopen(handle, "wb") as file:
                    np.savez(file, about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8), gains=gains)
                Path(path).replace(self.folder / f"{key}.npz")
            except BaseException:
                Path(path).unlink(missing_ok=True)
                raise


def _read(path: Path) -> dict[str, Run]:
    """Read a file of results; anything may be raised for one that is not what `keep` wrote."""
    if path.stat().st_size > _LARGEST:
        raise ValueError("too large")
    with np.load(path, allow_pickle=False) as file:
        about = json.loads(bytes(file["about"]).decode())
        gains = np.asarray(file["gains"], dtype=np.float64)
    ends = np.cumsum([int(line["n"]) for line in about])
    if gains.ndim != 1 or not np.isfinite(gains).all() or ends[-1] != len(gains):
        raise ValueError("contributions")
    parts = np.split(gains, ends[:-1])
    return {str(line["draw"]): _run(line, part) for line, part in zip(about, parts, strict=True)}


def _run(line: Mapping[str, Any], gains: np.ndarray) -> Run:
    values = {str(name): float(value) for name, value in line["values"].items()}
    seconds = float(line["seconds"])
    if not np.isfinite([*values.values(), seconds]).all() or any(
        is_bounded(name) and not 0.0 <= value <= 1.0 for name, value in values.items()
    ):
        raise ValueError("values")
    return Run(values, gains, seconds, int(line["unconverged"]))


def digest_of_rows(rows: Rows) -> str:
    """Return a digest of everything of the labelled rows that a result depends on: not of their order."""
    total, order = hashlib.sha256(), np.argsort(rows.ids, kind="stable")
    images = None if rows.images is None else rows.ids[rows.images]
    for whole in (rows.X, rows.y, rows.ids, rows.groups, images):
        array = None if whole is None else np.ascontiguousarray(whole[order])
        total.update(repr(None if array is None else (array.dtype.str, array.shape)).encode())
        if array is not None:
            total.update(array.tobytes() if array.dtype.kind != "O" else repr(array.tolist()).encode())
    for part, numbers in sorted(rows.parts.items()):
        total.update(part.encode() + np.isin(order, numbers).tobytes())
    return total.hexdigest()


def key_of(data: str, head: Any, shots: int | str, protocol: EvalProtocol, exact: bool) -> str | None:
    """Return the name of a cell's file; None where a head does not say enough of itself to be told from others."""
    described = _described(head)
    if described is None:
        return None
    settings = protocol.as_dict()
    for varies in ("shots", "seeds"):
        del settings[varies]
    text = json.dumps([data, described, shots, settings, exact, _environment()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def name_of_draw(draw: Draw) -> str:
    """Return the name of a draw inside its cell."""
    return f"{draw.seed}.{draw.fold}"


def _described(value: Any) -> Any:
    """A head, or a setting of one, in JSON types; None at the top means that it cannot be described."""
    with contextlib.suppress(_Unknown):
        return _in_words(value)
    return None


class _Unknown(Exception):
    pass


def _in_words(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, np.generic):
        return _in_words(value.item())
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufU":
        return ["array", value.dtype.str, list(value.shape), hashlib.sha256(value.tobytes()).hexdigest()]
    if isinstance(value, (list, tuple)):
        return [_in_words(item) for item in value]
    if isinstance(value, dict):
        return ["dict", *([_in_words(key), _in_words(item)] for key, item in value.items())]
    if hasattr(value, "get_params") and not isinstance(value, type):
        kind = type(value)
        if kind.__module__.split(".")[0] not in ("sklearn", "featcache"):
            raise _Unknown  # its code may change without its name
        if any(name.endswith("_") and not name.startswith("_") for name in vars(value)):
            raise _Unknown  # fitted: a frozen one keeps what it learned, and does not say it among its settings
        return [f"{kind.__module__}.{kind.__qualname__}", _in_words(value.get_params(deep=False))]
    raise _Unknown  # a function, a random generator, …: another one may look the same


@functools.cache
def _environment() -> list[str]:
    """Versions that results may depend on, and a digest of the source that computes them."""
    total, package = hashlib.sha256(), Path(__file__).resolve().parents[1]
    for name in _SOURCES:
        place = package / name
        for path in sorted(place.rglob("*.py")) if place.is_dir() else [place]:
            total.update(str(path.relative_to(package)).encode() + path.read_bytes())
    with contextlib.suppress(metadata.PackageNotFoundError):  # asked by name: importing torch takes seconds
        total.update(metadata.version("torch").encode())
    return [np.__version__, scipy.__version__, sklearn.__version__, total.hexdigest()]


def cache_folder(cache: str | Path | bool | None) -> Path | None:
    """Return the folder that a `cache` option means; None: nothing is remembered.

    Raises
    ------
    HeadError
        For anything but a folder, True, False or None.
    """
    if cache is None or cache is False:
        return None
    if cache is True:
        return user_cache() / "results"
    if not isinstance(cache, (str, os.PathLike)) or not os.fspath(cache) or "\0" in os.fspath(cache):
        raise HeadError(f"cache: expected a folder, True or None, got {cache!r}")
    folder = Path(cache).expanduser()
    try:
        taken = folder.exists() and not folder.is_dir()
    except OSError as error:
        raise HeadError(f"cache: expected the name of a folder, got one that the system refuses: {error}") from error
    if taken:
        raise HeadError(f"cache {str(folder)!r}: expected a folder, got a file; name another place")
    return folder
