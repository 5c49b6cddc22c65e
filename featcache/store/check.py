"""check: is everything that was promised still there, and if not, which images does it cost?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DamagedStore
from .container import Container
from .snapshot import Snapshot, list_snapshots, read_snapshot, view_names

if TYPE_CHECKING:
    from .feature_store import FeatureStore

__all__ = ["CheckReport", "check_store"]


@dataclass(frozen=True)
class CheckReport:
    """What `FeatureStore.check` found.

    Attributes
    ----------
    ok : bool
        No damage.
    damaged : list of dict
        ``{"file", "reason", "images"}``: each damaged file (relative to the store) and the ids that it costs in the
        newest state of a view (where that state itself is damaged: the ids of the newest one that can be read).
    checked : dict
        How many shards, snapshots and bytes were looked at, and whether deeply.
    """

    ok: bool
    damaged: list[dict[str, Any]]
    checked: dict[str, Any] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.ok


def check_store(store: FeatureStore, *, deep: bool = False) -> CheckReport:
    """Check a store; see `FeatureStore.check`."""
    fresh = type(store)(store.path, verify="touch")
    damaged: list[dict[str, Any]] = []
    # Snapshots before shards: what a snapshot names was published before it, also while others are writing.
    newest, snapshots = _read_views(fresh, damaged)
    fresh.refresh()
    damaged += [
        {"file": f"shards/{name}", "reason": reason, "images": []} for name, reason in sorted(fresh.damaged.items())
    ]
    bad_rows: dict[str, set[int]] = {}
    size = 0
    for shard in fresh.shards:
        size += shard.size
        problem = _look_at(shard, bad_rows) if deep else None
        if problem:
            damaged.append({"file": f"shards/{shard.path.name}", "reason": problem, "images": []})
    for view, state in newest.items():
        _charge_images(fresh, view, state.entries, damaged, bad_rows)
    checked = {"shards": len(fresh.shards), "snapshots": snapshots, "bytes": size, "deep": deep}
    return CheckReport(not damaged, damaged, checked)


def _read_views(store: FeatureStore, damaged: list[dict[str, Any]]) -> tuple[dict[str, Snapshot], int]:
    """Read every state of every view: the newest of each view, and how many there are; note damaged files once."""
    newest: dict[str, Snapshot] = {}
    count = 0
    for view in view_names(store.path):
        reasons: dict[str, str] = {}
        readable: Snapshot | None = None
        numbers = list_snapshots(store.path, view)
        count += len(numbers)
        for number in numbers:
            try:
                readable = read_snapshot(store.path, view, number, store.fingerprint)
            except DamagedStore as error:
                file = Path(error.file).relative_to(store.path).as_posix()
                reasons.setdefault(file, str(error))
        if readable is not None and readable.number == numbers[-1]:
            newest[view] = readable
        lost = readable.entries.ids.tolist() if readable is not None and view not in newest else []
        for file, reason in reasons.items():
            if view not in newest:
                left = "no state is left" if readable is None else f"snapshot {readable.number} can still be loaded"
                reason = f"{reason}; {left}"
            damaged.append({"file": file, "reason": reason, "images": lost})
            lost = []
    return newest, count


def _look_at(shard: Container, bad_rows: dict[str, set[int]]) -> str | None:
    """Compare all checksums of one shard; note the rows of damaged groups."""
    reasons = []
    for name, region in shard.regions.items():
        try:
            if "groups" not in region:
                shard.check_plain(name, shard.raw(name))
                continue
            for group in shard.bad_groups(name):
                first, stop = group * region["group_rows"], min((group + 1) * region["group_rows"], region["shape"][0])
                reasons.append(f"the checksum of rows {first}–{stop - 1} of {name!r} does not match")
                bad_rows.setdefault(shard.path.name, set()).update(range(first, stop))
        except DamagedStore as error:
            reasons.append(str(error))
    return "; ".join(reasons) or None


def _charge_images(
    store: FeatureStore, view: str, entries: Any, damaged: list[dict[str, Any]], bad_rows: dict[str, set[int]]
) -> None:
    """Add to each damaged file the ids of the view's newest state that it costs."""
    stored = entries.take(entries.stored)
    shard, row = store._rows.find(stored.keys)
    if (shard < 0).any():
        store._rows.rebuild()
        shard, row = store._rows.find(stored.keys)
    lost = stored.ids[shard < 0].tolist()
    if lost:
        unreadable = [d for d in damaged if d["file"].removeprefix("shards/") in store.damaged]
        if unreadable:
            # An unreadable shard cannot say which keys it held: what no other shard has is charged to the first.
            unreadable[0]["images"] += lost
        else:
            damaged.append(
                {
                    "file": f"snapshots/{view}",
                    "reason": f"{len(lost)} images have no codes in any shard",
                    "images": lost,
                }
            )
    for number, container in enumerate(store.shards):
        rows = bad_rows.get(container.path.name)
        if rows:
            hit = stored.ids[(shard == number) & np.isin(row, list(rows))].tolist()
            next(d for d in damaged if d["file"] == f"shards/{container.path.name}")["images"] += hit
