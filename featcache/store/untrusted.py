"""check --untrusted: the store is read in a child process, so that nothing in it can harm the one that asks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from .check import CheckReport
from .limited import Crashed, in_limited_child

__all__ = ["check_untrusted"]

_MEMORY = 3 << 30
_SECONDS = 60
_BYTES_PER_SECOND = 1 << 26
#: Ids that the report names at most, and characters of a text in it.
_MOST_IDS, _LONGEST = 20_000, 400


def check_untrusted(path: str | os.PathLike[str], *, deep: bool = False) -> CheckReport:
    """Check a store that may come from a stranger.

    Parameters
    ----------
    path : path-like
        The store's folder.
    deep : bool, default=False
        As in `FeatureStore.check`.

    Returns
    -------
    CheckReport
        Of long lists of ids only the beginning. A reader that crashed is damage of the store as a whole (file ".").

    Raises
    ------
    NotAStore, StoreTooNew, StoreError
        As `FeatureStore.open`.
    """
    size = _size(Path(path))
    try:
        said = in_limited_child(
            f"{__name__}:check_here",
            [os.fspath(path), deep],
            # Files are mapped once; tables of texts take a multiple of their file.
            memory=_MEMORY + 4 * size,
            seconds=_SECONDS + size // _BYTES_PER_SECOND,
        )
        damaged = [
            {"file": str(d["file"]), "reason": str(d["reason"]), "images": [str(i) for i in d["images"]]}
            for d in said["damaged"]
        ]
        checked = {name: int(said["checked"][name]) for name in ("shards", "snapshots", "bytes")}
    except (Crashed, LookupError, TypeError, ValueError) as error:
        reason = f"{path}: reading it crashed the reader ({error}); do not use it"
        checked = {"shards": 0, "snapshots": 0, "bytes": 0}
        return CheckReport(False, [{"file": ".", "reason": reason, "images": []}], {**checked, "deep": deep})
    return CheckReport(not damaged, damaged, {**checked, "deep": deep})


def _size(root: Path) -> int:
    """Return the bytes that the store's files take; of a sparse one, what it has, not what it claims."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                found = os.lstat(os.path.join(folder, name))  # noqa: PTH118
            except OSError:
                continue
            total += min(found.st_size, getattr(found, "st_blocks", 1 << 60) * 512)
    return total


def check_here(path: str, deep: bool) -> dict[str, Any]:
    """Run in the child."""
    from .feature_store import FeatureStore

    report = FeatureStore.open(path).check(deep=deep)
    left = _MOST_IDS
    damaged = []
    for item in report.damaged:
        ids = item["images"][:left]
        left -= len(ids)
        texts = {name: item[name][:_LONGEST] for name in ("file", "reason")}
        damaged.append({**texts, "images": [i[:_LONGEST] for i in ids]})
    return {"damaged": damaged, "checked": report.checked}
