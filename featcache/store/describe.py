"""What a store holds, in JSON types: for people who look, and for scripts."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import StoreError
from .aside import aside_of
from .entries import CONSTANT, Entries
from .snapshot import Snapshot, read_snapshot
from .trash import in_trash
from .views import check_view_name, list_snapshots, used_numbers

if TYPE_CHECKING:
    from .feature_store import FeatureStore

__all__ = ["describe", "difference", "history"]


def describe(store: FeatureStore, view: str | None) -> dict[str, Any]:
    """Describe a store and one view of it; see `FeatureStore.info`."""
    views = store.views
    if view is not None and check_view_name(view) not in views:
        raise StoreError(f"{store.path}: no view {view!r}; it has {', '.join(views) or 'none yet: run extract'}")
    view = view or ("main" if "main" in views or not views else views[0])
    state = store.snapshot(view)
    entries = state.entries if state is not None else Entries.empty()
    labels = entries.columns.get((state.roles if state else {}).get("label", ""), np.zeros(0, "U1"))
    classes, counts = np.unique(labels[entries.stored] if len(labels) else labels, return_counts=True)
    failed = entries.take(~entries.stored)
    return {
        "store": str(store.path),
        "fingerprint": store.fingerprint,
        "spec": store.spec,
        "locator": store.locator,
        "view": view,
        "views": views,
        "snapshot": state.number if state is not None else None,
        "snapshots": history(store, view),
        "images": int(entries.stored.sum()),
        "failed": [{"id": i, "reason": e} for i, e in zip(failed.ids.tolist(), failed.errors.tolist(), strict=True)],
        "constant": entries.ids[entries.status == CONSTANT].tolist(),
        "nodes": {name: list(shape) for name, shape in store.nodes.items()},
        "dtype": store.spec.get("dtype", "float32"),
        "classes": {str(c): int(n) for c, n in zip(classes, counts, strict=True) if c == c and c != ""},
        "columns": sorted(entries.columns),
        "shards": len(store.shards),
        "damaged": sorted(store.damaged.values()),
        "set_aside": aside_of(store.path),
        "bytes": _folder_bytes(store.path),
        "trash": _trash(store.path),
        "source": dict(state.source) if state is not None else {},
        "computed": store.shards[-1].attributes.get("computed", {}) if store.shards else {},
    }


def history(store: FeatureStore, view: str) -> list[dict[str, Any]]:
    """List the states of a view, oldest first; see `FeatureStore.history`."""
    kept = set(list_snapshots(store.path, check_view_name(view)))
    found = []
    for number in used_numbers(store.path, view):
        row: dict[str, Any] = {"name": f"{view}@{number}", "number": number, "kept": number in kept}
        try:
            state = read_snapshot(store.path, view, number, store.fingerprint, "off")
            row |= {"images": len(state), "created": state.created, "source": state.source.get("location", "")}
            row["files"] = [path.name for path in state.files]
        except StoreError as error:
            row |= {"images": None, "created": None, "source": "", "files": [], "reason": str(error)}
        found.append(row)
    return found


def _trash(root: Path) -> dict[str, int]:
    sizes = []
    for item in in_trash(root):
        with contextlib.suppress(FileNotFoundError):  # a collector is at work
            sizes.append(item.path.stat().st_size)
    return {"files": len(sizes), "bytes": sum(sizes)}


def _folder_bytes(root: Path) -> int:
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            try:
                total += os.lstat(os.path.join(folder, name)).st_size  # noqa: PTH118 (10^5 files: speed)
            except OSError:
                continue
    return total


def difference(before: Snapshot, after: Snapshot) -> dict[str, Any]:
    """Compare two states; see `FeatureStore.diff`."""
    a, b = before.entries, after.entries
    common = np.isin(b.ids, a.ids)
    old, new = a.take(np.isin(a.ids, b.ids)), b.take(common)
    changed = (old.keys != new.keys).any(axis=1)
    status = (old.status == new.status) & (old.errors == new.errors)
    columns = {}
    for name in sorted(old.columns.keys() | new.columns.keys()):
        same = old.with_columns(_only(old, name)).same_lines(_as(old, new, name))
        if not same.all():
            columns[name] = int((~same).sum())
    return {
        "before": before.name,
        "after": after.name,
        "added": b.ids[~common].tolist(),
        "removed": a.ids[~np.isin(a.ids, b.ids)].tolist(),
        "moved": _moved(a.take(~np.isin(a.ids, b.ids)), b.take(~common)),
        "changed": new.ids[changed].tolist(),
        "relabelled": _relabelled(old, new, before.roles.get("label"), after.roles.get("label")),
        "failed_now": new.ids[~status & ~new.stored].tolist(),
        "columns": columns,
    }


def _moved(gone: Entries, come: Entries) -> list[dict[str, str]]:
    """Pair ids that went with ids that came of the same content, in order."""
    there: dict[bytes, list[str]] = {}
    for name, key in zip(gone.ids[gone.stored].tolist(), gone.keys[gone.stored], strict=True):
        there.setdefault(key.tobytes(), []).append(name)
    pairs = zip(come.ids[come.stored].tolist(), come.keys[come.stored], strict=True)
    return [{"before": names.pop(0), "after": new} for new, key in pairs if (names := there.get(key.tobytes()))]


def _only(entries: Entries, name: str) -> dict[str, np.ndarray]:
    return {name: entries.columns[name]} if name in entries.columns else {}


def _as(old: Entries, new: Entries, name: str) -> Entries:
    """Return the old lines with the new ones' values in one column, so that only this column can differ."""
    return old.with_columns(_only(new, name))


def _relabelled(old: Entries, new: Entries, before: str | None, after: str | None) -> list[dict[str, str]]:
    a, b = (
        _as_text(e.columns[c]) if c is not None and c in e.columns else np.full(len(e), "", "U1")
        for e, c in ((old, before), (new, after))
    )
    places = np.flatnonzero(a != b).tolist()
    return [{"id": str(new.ids[i]), "before": str(a[i]), "after": str(b[i])} for i in places]


def _as_text(column: np.ndarray) -> np.ndarray:
    return column if column.dtype.kind in "UO" else column.astype(np.str_)
