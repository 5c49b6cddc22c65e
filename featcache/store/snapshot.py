"""Snapshots: immutable, numbered states of a view, and the compare-and-swap that adds one.

``snapshots/<view>/NNNNNNNN.h5`` holds either all lines of the view ("base") or only what changed since its parent
("delta"). Publishing is linking to the next free number: of two writers one wins, and the other merges its change and
tries again, so that no lines are lost and no lock is needed.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedStore, StoreError
from ..files import Disk, make_folder, unique_name
from .container import Container, write_container
from .entries import Entries, column_datasets, pack_text, unpack_text

__all__ = ["Change", "Snapshot", "list_snapshots", "publish_snapshot", "read_snapshot", "view_names"]

_NAME = re.compile(r"(\d{8})\.h5")
_VIEW = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: A delta is written while it is smaller than this part of the view and its chain shorter than this.
_DELTA_PART = 0.25
_DELTA_CHAIN = 16


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One state of a view: its number, its lines, and which columns play which role."""

    view: str
    number: int
    entries: Entries
    roles: Mapping[str, str] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=dict)
    chain: int = 0


@dataclass(frozen=True, eq=False)
class Change:
    """What a commit does to a view: lines to add or overwrite, ids to drop."""

    upserts: Entries
    removed: np.ndarray

    @classmethod
    def between(cls, old: Entries, new: Entries, *, keep_old: bool) -> Change:
        """Return the change that turns `old` into `new` (or, with `keep_old`, adds `new` to it)."""
        common = np.isin(new.ids, old.ids)
        changed = np.ones(len(new), dtype=bool)
        if common.any():
            theirs = old.take(np.searchsorted(old.ids, new.ids[common]))
            changed[common] = ~new.take(common).same_lines(theirs)
        removed = np.zeros(0, "U1") if keep_old else old.ids[~np.isin(old.ids, new.ids)]
        return cls(new.take(changed), removed)

    def __bool__(self) -> bool:
        return bool(len(self.upserts) or len(self.removed))

    def apply(self, entries: Entries) -> Entries:
        """Return `entries` after this change."""
        return entries.without(self.removed).merged(self.upserts)


def check_view_name(view: str) -> str:
    """Return the name of a view when it can be a folder's name everywhere; StoreError otherwise."""
    if not isinstance(view, str) or not _VIEW.fullmatch(view):
        raise StoreError(
            f"view {view!r}: expected letters, digits, '.', '_' or '-' (at most 100), not starting with a sign"
        )
    return view


def view_names(root: Path) -> list[str]:
    """Return the names of the views that have a snapshot."""
    folder = root / "snapshots"
    return sorted(p.name for p in folder.iterdir() if list_snapshots(root, p.name)) if folder.is_dir() else []


def list_snapshots(root: Path, view: str) -> list[int]:
    """Return the numbers of a view's snapshots, oldest first."""
    folder = root / "snapshots" / view
    if not folder.is_dir():
        return []
    return sorted(int(m[1]) for p in folder.iterdir() if (m := _NAME.fullmatch(p.name)))


def snapshot_path(root: Path, view: str, number: int) -> Path:
    """Return where a snapshot lies."""
    return root / "snapshots" / view / f"{number:08d}.h5"


def read_snapshot(root: Path, view: str, number: int, fingerprint: str, verify: str = "touch") -> Snapshot:
    """Read one snapshot of a store of the given spec: its base, and the deltas since.

    Raises
    ------
    DamagedStore
        When a file of the chain is damaged or missing.
    """
    chain: list[Container] = []
    following: int | None = number
    while following is not None:
        path = snapshot_path(root, view, following)
        container = Container(path, verify)
        found = {"kind": container.kind, **container.attributes}
        expected = {"kind": "snapshot", "view": view, "number": following, "fingerprint": fingerprint}
        if any(found.get(name) != value for name, value in expected.items()):
            raise DamagedStore.at(path, "damaged (another file is in its place); restore the file from a copy")
        chain.append(container)
        following = None if container.attributes["segment"] == "base" else container.attributes["parent"]
    entries = Entries.empty()
    for container in reversed(chain):
        removed = _texts(container, "removed")
        entries = Change(_read_entries(container), removed).apply(entries)
    newest = chain[0].attributes
    if len(entries) != newest["rows"]:
        raise DamagedStore.at(chain[0].path, f"damaged ({len(entries)} lines instead of {newest['rows']})")
    return Snapshot(view, number, entries, newest["roles"], newest["source"], len(chain) - 1)


def _texts(container: Container, name: str) -> np.ndarray:
    return unpack_text(container.array(f"{name}/offsets"), container.array(f"{name}/bytes"))


def _read_entries(container: Container) -> Entries:
    columns = {name: _read_column(container, name) for name in container.attributes["columns"]}
    return Entries(
        _texts(container, "id"),
        container.array("key"),
        container.array("status"),
        _texts(container, "error")[container.array("error/code")],
        columns,
    )


def _read_column(container: Container, name: str) -> np.ndarray:
    prefix = f"column/{name}/"
    if prefix + "code" in container:
        values = unpack_text(container.array(prefix + "offsets"), container.array(prefix + "bytes"))
        return values[container.array(prefix + "code")] if len(values) else np.zeros(0, "U1")
    if prefix + "bool" in container:
        return container.array(prefix + "bool").astype(bool)
    return container.array(prefix + ("int" if prefix + "int" in container else "float"))


def publish_snapshot(
    root: Path,
    parent: Snapshot | None,
    view: str,
    change: Change,
    *,
    roles: Mapping[str, str],
    source: Mapping[str, Any],
    fingerprint: str,
    disk: Disk | None = None,
) -> Snapshot:
    """Publish the state that follows `parent`.

    Raises
    ------
    FileExistsError
        When another writer has published that number: reload, merge, try again.
    OSError
        When the disk refuses; nothing has been published.
    """
    number = 0 if parent is None else parent.number + 1
    old = parent.entries if parent is not None else Entries.empty()
    entries = change.apply(old)
    size = len(change.upserts) + len(change.removed)
    chain = parent.chain + 1 if parent is not None else 0
    as_delta = parent is not None and size <= _DELTA_PART * len(entries) and chain <= _DELTA_CHAIN
    written = change if as_delta else Change(entries, np.zeros(0, "U1"))
    attributes = {
        "view": view,
        "number": number,
        "parent": parent.number if parent is not None else None,
        "segment": "delta" if as_delta else "base",
        "rows": len(entries),
        "columns": sorted(written.upserts.columns),
        "roles": dict(roles),
        "source": dict(source),
        "fingerprint": fingerprint,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
    }
    folder = root / "snapshots" / view
    make_folder(folder, disk=disk)
    write_container(
        root / "tmp",
        unique_name(".h5"),
        snapshot_path(root, view, number),
        kind="snapshot",
        attributes=attributes,
        datasets=_entry_datasets(written),
        disk=disk,
    )
    return Snapshot(view, number, entries, dict(roles), dict(source), chain if as_delta else 0)


def _entry_datasets(change: Change) -> dict[str, np.ndarray]:
    entries = change.upserts
    reasons, codes = (
        np.unique(entries.errors, return_inverse=True) if len(entries) else (np.zeros(0, "U1"), np.zeros(0))
    )
    datasets: dict[str, np.ndarray] = {
        "key": np.asarray(entries.keys, dtype="u1"),
        "status": np.asarray(entries.status, dtype="u1"),
        "error/code": np.asarray(codes, dtype="<i4"),
    }
    for name, texts in (("id", entries.ids), ("error", reasons), ("removed", change.removed)):
        offsets, blob = pack_text(texts)
        datasets |= {f"{name}/offsets": offsets, f"{name}/bytes": blob}
    for name, column in entries.columns.items():
        datasets |= column_datasets(name, np.asarray(column))
    return datasets
