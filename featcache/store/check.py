"""check: is everything that was promised still there, and if not, which images does it cost?"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DamagedStore
from .entries import Entries
from .snapshot import Segment, Snapshot, read_snapshot

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
    repaired : list of dict
        What a repair did, one per damaged file: ``"file"``, ``"action"``, ``"rows_saved"``, ``"images_lost"`` (how many
        images of newest states have no codes any more), ``"images"`` (which), ``"note"``, and more by kind of file.
        Empty without a repair.
    """

    ok: bool
    damaged: list[dict[str, Any]]
    checked: dict[str, Any] = field(default_factory=dict)
    repaired: list[dict[str, Any]] = field(default_factory=list)

    def __bool__(self) -> bool:
        return self.ok


def check_store(store: FeatureStore, *, deep: bool = False) -> CheckReport:
    """Check a store; see `FeatureStore.check`."""
    fresh = type(store)(store.path, verify="touch")
    # Snapshots before shards: what a snapshot names was published before it, also while others are writing.
    snapshots = _SnapshotCheck(fresh)
    damaged = snapshots.damaged
    fresh.refresh()
    bad_rows: dict[str, list[tuple[int, int]]] = {}
    for shard in fresh.shards if deep else []:
        spans: list[tuple[int, int]] = []
        problem = shard.problem(lambda first, stop, spans=spans: spans.append((first, stop)))  # type: ignore[misc]
        if problem:
            bad_rows[shard.path.name] = spans
            damaged.append({"file": f"shards/{shard.path.name}", "reason": str(shard.damage(problem)), "images": []})
    charged = [_lost_images(fresh, state.entries, bad_rows) for state in snapshots.newest.values()]
    # Only now: looking the images up has met damaged keys, too.
    named = {item["file"] for item in damaged}
    damaged += [
        {"file": f"shards/{name}", "reason": reason, "images": []}
        for name, reason in sorted(fresh.damaged.items())
        if f"shards/{name}" not in named
    ]
    for view, (lost, hit) in zip(snapshots.newest, charged, strict=True):
        _charge(fresh, view, lost, hit, damaged)
    checked = {
        "shards": len(fresh.shards),
        "snapshots": snapshots.count,
        "bytes": sum(shard.size for shard in fresh.shards),
        "deep": deep,
    }
    return CheckReport(not damaged, damaged, checked)


class _SnapshotCheck:
    """Looks at every kept state of every view, and at each file once."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        #: The newest state of each view, where it can be read.
        self.newest: dict[str, Snapshot] = {}
        self.damaged: list[dict[str, Any]] = []
        self.count = 0
        for view in store.views:
            self._look_at(view)

    def _look_at(self, view: str) -> None:
        reasons: dict[str, str] = {}
        readable: Snapshot | None = None
        numbers = self.store.snapshots(view)
        self.count += len(numbers)
        sound: set[Path] = set()
        opened: dict[int, Segment] = {}
        for number in numbers:
            try:
                state = self._read(view, number, sound, opened, newest=number == numbers[-1])
            except DamagedStore as error:
                reasons.setdefault(Path(error.file).relative_to(self.store.path).as_posix(), str(error))
            else:
                readable = state
        if readable is not None and readable.number == numbers[-1]:
            self.newest[view] = readable
        lost = readable.entries.ids.tolist() if readable is not None and view not in self.newest else []
        for file, reason in reasons.items():
            if view not in self.newest:
                left = "no state is left" if readable is None else f"snapshot {readable.number} can still be loaded"
                reason = f"{reason}; {left}"
            self.damaged.append({"file": file, "reason": reason, "images": lost})
            lost = []

    def _read(self, view: str, number: int, sound: set[Path], opened: dict[int, Segment], *, newest: bool) -> Snapshot:
        """Open a state and compare the checksums of those of its files that have not been looked at."""
        state = read_snapshot(self.store.path, view, number, self.store.fingerprint, opened=opened)
        for segment in reversed(state.segments):
            if segment.container.path not in sound:
                segment.container.verify()
                sound.add(segment.container.path)
        if newest:
            _ = state.entries  # decoded: the lines fit together
        return state


def _lost_images(
    store: FeatureStore, entries: Entries, bad_rows: dict[str, list[tuple[int, int]]]
) -> tuple[list[str], dict[str, list[str]]]:
    """Return the ids of a state that have no row at all, and those that each damaged shard costs."""
    stored = entries.take(entries.stored)
    shard, row = store.locate(stored.keys)
    hit: dict[str, list[str]] = {}
    for number, container in enumerate(store.shards):
        spans = bad_rows.get(container.path.name, [])
        if spans:
            mine = np.flatnonzero(shard == number)
            bad = np.zeros(len(mine), dtype=bool)
            for first, stop in spans:
                bad |= (row[mine] >= first) & (row[mine] < stop)
            hit[container.path.name] = stored.ids[mine[bad]].tolist()
    return stored.ids[shard < 0].tolist(), hit


def _charge(
    store: FeatureStore, view: str, lost: list[str], hit: dict[str, list[str]], damaged: list[dict[str, Any]]
) -> None:
    """Add to each damaged file the ids of a view's newest state that it costs."""
    by_file = {item["file"]: item for item in damaged}
    for name, ids in hit.items():
        by_file[f"shards/{name}"]["images"] += ids
    if not lost:
        return
    unreadable = [by_file[f"shards/{name}"] for name in sorted(store.damaged)]
    if unreadable:
        # A shard whose keys cannot be read cannot say which they were: what no other shard has is charged to the first.
        unreadable[0]["images"] += lost
    else:
        images = f"{len(lost)} images have" if len(lost) > 1 else "1 image has"
        reason = f"{images} no codes in any shard; run extract again: exactly these are computed"
        damaged.append({"file": f"snapshots/{view}", "reason": reason, "images": lost})
