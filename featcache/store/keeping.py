"""What a store keeps: retiring states, and collecting what no kept state needs.

Collecting never deletes at once. A shard that nothing needs and that is older than the grace period moves to
``trash/``; it is deleted when it has lain there for another grace period, and still nothing needs it.

Collecting and committing may run at once. A commit links its state first and then looks whether its rows are still
there; the collector moves a shard first and then looks for new states. So at least one of the two sees the other, and
brings the shard back. Should both die in between, the next reader that misses a row brings it back from the trash.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DamagedStore, StoreError
from ..files import DISK, Disk, make_folder, publish_bytes
from .pins import file_system_now, live_pins
from .snapshot import Snapshot, live_keys
from .trash import empty, throw_away
from .views import check_view_name, list_snapshots, listed, marks_of, snapshot_path, used_numbers, view_names

if TYPE_CHECKING:
    from .feature_store import FeatureStore

__all__ = ["GcReport", "collect", "kept_states", "retire"]

_DAY = 86_400.0
#: Keys are looked up in portions of so many.
_PORTION = 1 << 20


@dataclass(frozen=True)
class GcReport:
    """What `FeatureStore.gc` did, or would do.

    Attributes
    ----------
    trashed : list of str
        Files moved to the trash now, relative to the store.
    deleted : list of str
        Files of the trash whose second grace period is over.
    restored : list of str
        Shards brought back from the trash, because a kept state needs them.
    waiting : list of str
        Files that nothing needs, but that are younger than the grace period, or protected by a writer at work.
    held : list of str
        Shards whose rows stand in another shard, too, where they turned out to be damaged: run ``check --repair``.
    pins : list of dict
        Writers at work: ``{"host", "pid", "age"}``, seconds since they last said so. While there are any, nothing is
        moved to the trash.
    bytes_trashed, bytes_deleted : int
        Their sizes.
    dry_run : bool
        Nothing was changed.
    """

    trashed: list[str] = field(default_factory=list)
    deleted: list[str] = field(default_factory=list)
    restored: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    held: list[str] = field(default_factory=list)
    pins: list[dict[str, Any]] = field(default_factory=list)
    bytes_trashed: int = 0
    bytes_deleted: int = 0
    dry_run: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def retire(root: Path, view: str, numbers: Sequence[int] | None, *, undo: bool, disk: Disk | None) -> list[int]:
    """Mark states of a view as no longer kept; see `FeatureStore.retire`."""
    check_view_name(view)
    kept, used = list_snapshots(root, view), used_numbers(root, view)
    if not used:
        raise StoreError(f"{root}: no view {view!r}; it has {', '.join(view_names(root)) or 'none yet'}")
    every = used if undo else [n for n in used if n in kept or "lost" in marks_of(root, view)[n]]
    done = [
        n for n in sorted(set(every if numbers is None else numbers)) if _mark(root, view, n, kept, numbers, undo, disk)
    ]
    if undo and done:
        (disk or DISK).fsync_folder(root / "snapshots" / view)
    return done


def _mark(
    root: Path, view: str, number: int, kept: list[int], asked: Sequence[int] | None, undo: bool, disk: Disk | None
) -> bool:
    """Retire one state, or take that back; tell whether anything changed."""
    path = snapshot_path(root, view, number)
    mark = path.with_suffix(".retired")
    if undo:
        if mark.exists() and path.exists():
            (disk or DISK).unlink(mark)
            return True
        if asked is None:
            return False
        raise StoreError(f"{root}: {view}@{number} is not retired, or has been collected; see `featcache info`")
    lost = asked is None and "lost" in marks_of(root, view)[number]
    if number not in kept and mark.exists():  # once more, since the one who made the mark may not have synced it
        (disk or DISK).fsync_folder(mark.parent)
        return False
    if number not in kept and not lost:
        raise StoreError(f"{root}: view {view!r} keeps no snapshot {number}; it keeps {listed(kept)}")
    if asked is not None and number == kept[-1]:
        raise StoreError(
            f"{root}: {view}@{number} is the newest state of the view; to drop the view as a whole, retire {view!r} "
            "without a number"
        )
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    with contextlib.suppress(FileExistsError):
        publish_bytes(mark, json.dumps({"retired": when}).encode(), replace=False, disk=disk)
    return True


def collect(store: FeatureStore, *, grace_days: float, dry_run: bool, disk: Disk | None) -> GcReport:
    """Move to the trash what nothing needs, delete what has lain there; see `FeatureStore.gc`."""
    if not 0 <= grace_days <= 36_500:
        raise StoreError(f"grace_days: expected a number of days from 0 to 36500, got {grace_days}")
    root = store.path
    try:
        for name in ("tmp", "shards"):
            make_folder(root / name, disk=disk)
        now = file_system_now(root, disk)
    except OSError:
        if not dry_run:
            raise
        now = time.time()  # of a store that only others may write
    due = now - grace_days * _DAY
    pins = live_pins(root, now, disk)
    before = set(_shard_names(root))
    needs = Needs(store, disk)
    deleted, bytes_deleted = empty(root, due, dry_run=dry_run, disk=disk)
    spare = [*needs.spare_shards(), *needs.spare_snapshots()]
    old = [] if pins else [path for path in spare if _since(path) <= due]
    moved = [path for path in old if path.parent.name != "shards" or needs.copies_hold(path.name)]
    moved, size = _sizes(moved)
    if not dry_run:
        throw_away(root, moved, file_system_now(root, disk), disk)
        if moved and needs.states != _states(root):
            Needs(store, disk)  # states that were committed between looking and moving: what they miss comes back
    left = set(_shard_names(root))
    gone = [path for path in moved if dry_run or path.name not in left]
    back = (left - before if needs.restored else set()) | {path.name for path in moved if path not in gone}

    def names(paths: Sequence[Path]) -> list[str]:
        return sorted(path.relative_to(root).as_posix() for path in paths)

    return GcReport(
        trashed=names(gone),
        deleted=sorted(deleted),
        restored=sorted(f"shards/{name}" for name in back),
        waiting=names([path for path in spare if path not in old]),
        held=names([path for path in old if path not in moved and path.exists()]),
        pins=pins,
        bytes_trashed=size,
        bytes_deleted=bytes_deleted,
        dry_run=dry_run,
    )


def _sizes(paths: Sequence[Path]) -> tuple[list[Path], int]:
    """Return those files that are still there, and how many bytes they hold."""
    there, count = [], 0
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            count += path.stat().st_size
            there.append(path)
    return there, count


def _shard_names(root: Path) -> list[str]:
    return [path.name for path in (root / "shards").glob("[!.]*.h5")]


def _since(path: Path) -> float:
    """Return since when a file may be spare: a state, since it was retired; a shard, since it was written."""
    for place in (path.with_suffix(".retired"), path):
        with contextlib.suppress(FileNotFoundError):
            return place.stat().st_mtime
    return float("inf")


def _states(root: Path) -> dict[str, list[int]]:
    return {view: list_snapshots(root, view) for view in view_names(root)}


def kept_states(store: FeatureStore, view: str, numbers: Sequence[int]) -> Iterator[Snapshot]:
    """Yield states of a view, but those that somebody has retired since their numbers were listed."""
    for number in numbers:
        try:
            state = store.snapshot(view, number)
        except StoreError:
            if number in store.snapshots(view):
                raise
            continue
        assert state is not None
        yield state


class Needs:
    """Which files the kept states of a store need. What they miss is brought back from the trash on the way.

    Parameters
    ----------
    store : FeatureStore
        Looked at afresh.
    disk : Disk or None
        The layer to use.

    Raises
    ------
    StoreError
        When a kept state or a shard cannot be read: what it needs is not known, so nothing may go.
    """

    def __init__(self, store: FeatureStore, disk: Disk | None) -> None:
        self.root = store.path
        self.store = type(store)(store.path, disk=disk)
        self.states = _states(self.root)
        self._require_no_lost_states()
        self._files: set[Path] = set()
        self._used: set[str] = set()
        before = set(_shard_names(self.root))
        self.store.refresh()
        for keys in self._live_keys():
            for start in range(0, len(keys), _PORTION):
                self._look_up(keys[start : start + _PORTION])
        self.restored = set(_shard_names(self.root)) != before
        if self.store.damaged:
            reason = next(iter(self.store.damaged.values()))
            raise DamagedStore(f"{reason}; nothing is collected before that is mended (featcache check --repair)")

    def _require_no_lost_states(self) -> None:
        """Refuse while a view has lost its newest state: nobody knows any more what that one named."""
        folder = self.root / "snapshots"
        for place in sorted(folder.iterdir()) if folder.is_dir() else []:
            marks = marks_of(self.root, place.name)
            newest = max((n for n, found in marks.items() if "retired" not in found), default=None)
            if newest is not None and "lost" in marks[newest]:
                raise StoreError(
                    f"{self.root}: the newest state of view {place.name!r} was lost ({place.name}@{newest}); nothing "
                    f"is collected before extract has made a new one, or the view is retired (featcache retire)"
                )

    def _live_keys(self) -> Iterator[np.ndarray]:
        """Yield the keys that kept states name."""
        for view, numbers in self.states.items():
            yield from live_keys(self._opened(view, numbers))

    def _opened(self, view: str, numbers: Sequence[int]) -> Iterator[Snapshot]:
        for state in kept_states(self.store, view, numbers):
            self._files.update(state.files)
            yield state

    def _look_up(self, keys: np.ndarray) -> None:
        """Find the shards that rows are read from, of the plain images and of augmented views."""
        shard, _ = self.store.locate(keys)
        if (shard < 0).any():
            raise StoreError(
                f"{self.root}: {int((shard < 0).sum())} images of kept states have no codes; nothing is collected "
                "before they have: run extract again, or retire those states"
            )
        self._use(shard)
        for view_number in self._view_numbers() - {0}:
            self._use(self.store.locate(keys, view_number=view_number)[0])

    def _use(self, numbers: np.ndarray) -> None:
        shards = self.store.shards  # asked for now: each look-up may have found other shards
        self._used |= {shards[n].path.name for n in np.unique(numbers[numbers >= 0]).tolist()}

    def _view_numbers(self) -> set[int]:
        found: set[int] = set()
        for shard in self.store.shards:
            found |= set(np.unique(shard.array("view_number")).tolist())
        return found

    def spare_shards(self) -> list[Path]:
        """Return the shards from which no needed row is read."""
        return [shard.path for shard in self.store.shards if shard.path.name not in self._used]

    def spare_snapshots(self) -> list[Path]:
        """Return the files of retired states that no kept state builds on."""
        folder, found = self.root / "snapshots", []
        for place in sorted(folder.iterdir()) if folder.is_dir() else []:
            for number in used_numbers(self.root, place.name):
                path = snapshot_path(self.root, place.name, number)
                if path not in self._files and path.exists() and path.with_suffix(".retired").exists():
                    found.append(path)
        return found

    def copies_hold(self, name: str) -> bool:
        """Tell whether the rows of a spare shard that are read from another one can be read there.

        A copy is given up only when the other one has been verified, codes and all.
        """
        spare = next((shard for shard in self.store.shards if shard.path.name == name), None)
        if spare is None:
            return False  # somebody else has collected it meanwhile
        keys, views = np.array(spare.array("key")), np.array(spare.array("view_number"))
        for view_number in np.unique(views).tolist():
            home, row = self.store.locate(keys[views == view_number], view_number=view_number)
            shards = self.store.shards
            for number in np.unique(home[home >= 0]).tolist():
                other, rows = shards[number], row[home == number]
                if other is not spare and not _rows_hold(other, rows):
                    return False
        return True


def _rows_hold(shard: Any, rows: np.ndarray) -> bool:
    for node in shard.attributes["nodes"]:
        region = f"x/{node}"
        try:
            if shard.bad_groups(region, np.unique(rows // shard.region(region)["group_rows"])):
                return False
        except DamagedStore:
            return False
    return True
