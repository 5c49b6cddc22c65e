"""Snapshots: immutable, numbered states of a view, and the compare-and-swap that adds one.

``snapshots/<view>/NNNNNNNN.h5`` holds either all lines of the view ("base") or what changed since an earlier state that
it names ("delta"). Publishing is linking to the next free number: of two writers one wins, and the other merges its
change and tries again, so that no lines are lost and no lock is needed.

A state is read lazily: of ten million lines only those are decoded that somebody asks for.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedStore, StoreError
from ..files import Disk, make_folder, unique_name
from .container import Container
from .entries import FAILED, Entries
from .segment import Change, Segment, builds_on, require_lines, segment_datasets
from .texts import Texts, pack_text
from .views import list_snapshots, snapshot_path, used_numbers
from .writing import write_container

__all__ = ["Snapshot", "change_between", "live_keys", "publish_snapshot", "read_snapshot"]

#: A state lies on at most so many others; ours, on the logarithm of what the view has seen.
_LONGEST_CHAIN = 64
#: All deltas of a state together hold at most this part of its base; beyond it a new base is written.
_DELTA_PART = 0.25


class Snapshot:
    """One state of a view.

    Parameters
    ----------
    view, number
        Which.
    segments : list
        The state's file and those it builds on, newest first; the last one is the base.

    Attributes
    ----------
    roles : mapping
        Role ("label", "group", "split") → column name.
    source : mapping
        Where the images came from.
    created : str
        When, UTC.
    """

    def __init__(self, view: str, number: int, segments: list[Segment]) -> None:
        self.view, self.number, self.segments = view, number, segments
        newest = segments[0].attributes
        self.roles: Mapping[str, str] = newest["roles"]
        self.source: Mapping[str, Any] = newest["source"]
        self.created: str = newest["created"]
        self._rows = int(newest["rows"])

    def __repr__(self) -> str:
        return f"<Snapshot {self.name}: {len(self)} lines>"

    @property
    def name(self) -> str:
        """Name of the state, ``view@number``."""
        return f"{self.view}@{self.number}"

    def __len__(self) -> int:
        return self._rows

    @property
    def chain(self) -> int:
        """How many deltas lie on the base."""
        return len(self.segments) - 1

    @property
    def files(self) -> list[Path]:
        """The files that make it up, newest first."""
        return [s.container.path for s in self.segments]

    @cached_property
    def _changes(self) -> Change:
        """All deltas in one, in memory; they are a small part of the base."""
        change = Change(Entries.empty(), np.zeros(0, "U1"))
        for segment in reversed(self.segments[:-1]):
            change = change.followed_by(segment.change)
        return change

    @cached_property
    def entries(self) -> Entries:
        """All lines, in memory, sorted by id.

        Raises
        ------
        DamagedStore
            When a file that they come from is damaged.
        """
        base = self.segments[-1].change.upserts
        entries = self._changes.apply(base) if len(self._changes) else base
        ids = entries.ids
        if len(entries) != len(self) or not bool(np.all(ids[1:] > ids[:-1])):
            raise self.segments[0].container.damage(f"{len(entries)} lines instead of {len(self)}, or out of order")
        return entries

    def look_up(self, ids: np.ndarray) -> tuple[np.ndarray, Entries]:
        """Look lines up by id, without decoding the others.

        Parameters
        ----------
        ids : ndarray of text of shape (k,)
            In any order, none twice.

        Returns
        -------
        place : ndarray of int64 of shape (k,)
            Place of each in the second result, −1 where the view has no such line.
        lines : Entries
            The lines that were found, in the order of `ids` (not sorted by id unless `ids` are).
        """
        place = np.full(len(ids), -1, dtype=np.int64)
        if "entries" in self.__dict__ or len(ids) * 4 > len(self):
            entries = self.entries
            if len(ids) == len(entries) and np.array_equal(ids, entries.ids):
                return np.arange(len(ids)), entries
            at = Texts(*pack_text(entries.ids)).find(ids) if len(ids) * 8 < len(entries) else _search(entries.ids, ids)
            found = np.flatnonzero(at >= 0)
            place[found] = np.arange(len(found))
            return place, entries.take(at[found])
        newer = _search(self._changes.upserts.ids, ids)
        base = np.where((newer >= 0) | np.isin(ids, self._changes.removed), -1, self.segments[-1].ids.find(ids))
        found = np.flatnonzero((newer >= 0) | (base >= 0))
        place[found] = np.arange(len(found))
        above, below = found[newer[found] >= 0], found[newer[found] < 0]
        lines = self.segments[-1].take(base[below]).joined(self._changes.upserts.take(newer[above]))
        return place, lines.take(np.argsort(np.concatenate([below, above]), kind="stable"))

    def base_keys(self) -> np.ndarray:
        """Return the keys of the base's lines: uint8 of shape (n, 32), mapped."""
        return self.segments[-1].container.array("key")

    def live_keys(self) -> tuple[np.ndarray, np.ndarray]:
        """Tell which rows the state names, without decoding its lines.

        Returns
        -------
        alive : ndarray of bool of shape (len(base_keys()),)
            Which lines of the base stand and have a row.
        newer : ndarray of uint8 of shape (k, 32)
            Keys of the lines above the base that have a row.
        """
        base, change = self.segments[-1], self._changes
        alive = base.container.array("status") != FAILED
        above = base.ids.find(np.concatenate([change.upserts.ids, change.removed]))
        alive[above[above >= 0]] = False
        return alive, self.newer_keys()

    def newer_keys(self) -> np.ndarray:
        """Return the keys of the lines above the base that have a row: uint8 of shape (k, 32)."""
        lines = self._changes.upserts
        return lines.keys[lines.stored]

    def lines_after(self, change: Change) -> int:
        """Return how many lines the state would have after a change."""
        if len(change) * 4 > len(self):
            return len(change.apply(self.entries))
        new = int((self.look_up(change.upserts.ids)[0] < 0).sum())
        gone = change.removed[~np.isin(change.removed, change.upserts.ids)]
        return len(self) + new - int((self.look_up(gone)[0] >= 0).sum())

    def building_on(self, change: Change) -> tuple[Change, int | None]:
        """Decide how the state after `change` is written.

        Returns
        -------
        change : Change
            What its file holds: this change, and those of the newest deltas that are not larger, so that chains stay
            short and each line is written again only a few times (as the digits of a binary counter carry).
        onto : int or None
            Number of the state that it builds on; None: the file must hold everything.
        """
        segments = list(self.segments)
        while len(segments) > 1 and len(segments[0].change) <= len(change):
            change = segments.pop(0).change.followed_by(change)
        pending = len(change) + sum(len(s.change) for s in segments[:-1])
        onto = int(segments[0].attributes["number"])
        short = len(segments) < _LONGEST_CHAIN // 2
        return change, onto if short and pending <= _DELTA_PART * len(segments[-1]) else None


def live_keys(states: Iterable[Snapshot]) -> Iterator[np.ndarray]:
    """Yield the keys of the rows that states of one view name; of states that share a base, the base's only once.

    Where the base is one of the states, all its rows are needed, and which of its lines the others replace is not
    asked: with hundreds of states on one base that would take minutes.
    """
    bases: dict[Path, tuple[Snapshot, np.ndarray]] = {}
    whole: set[Path] = set()
    for state in states:
        base = state.files[-1]
        if base in whole:
            yield state.newer_keys()
            continue
        alive, newer = state.live_keys()
        bases[base] = (state, alive | bases[base][1] if base in bases else alive)
        if not state.chain:
            whole.add(base)
        yield newer
    for state, alive in bases.values():
        yield state.base_keys()[alive]


def change_between(old: Snapshot | None, new: Entries, *, keep_old: bool) -> Change:
    """Return the change that turns `old` into `new` (or, with `keep_old`, adds `new` to it)."""
    nothing = np.zeros(0, "U1")
    if old is None or not len(old):
        return Change(new, nothing)
    place, theirs = old.look_up(new.ids)
    changed = np.ones(len(new), dtype=bool)
    common = place >= 0
    changed[common] = ~(new if common.all() else new.take(common)).same_lines(theirs)
    if keep_old or int(common.sum()) == len(old):
        return Change(new.take(changed), nothing)
    ids = old.entries.ids
    return Change(new.take(changed), ids[~np.isin(ids, new.ids)])


def _search(mine: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return the place of each text among sorted ones, −1 where it is not there."""
    if not len(mine):
        return np.full(len(texts), -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(mine, texts), len(mine) - 1)
    return np.where(mine[place] == texts, place, -1)


def read_snapshot(
    root: Path,
    view: str,
    number: int,
    fingerprint: str,
    verify: str = "touch",
    opened: dict[int, Segment] | None = None,
) -> Snapshot:
    """Open one snapshot of a store of the given spec: its file, and those that it builds on.

    Whoever reads many states of a view gives them one `opened`, in which files that they share are kept open.

    Raises
    ------
    DamagedStore
        When a file of the chain is damaged or missing.
    """
    segments: list[Segment] = []
    following: int | None = number
    while following is not None:
        if opened is not None and following in opened:
            segments.append(opened[following])
            following = builds_on(opened[following].container, following)
            continue
        path = snapshot_path(root, view, following)
        container = Container(path, verify)
        found = {"kind": container.kind, **container.attributes}
        expected = {"kind": "snapshot", "view": view, "number": following, "fingerprint": fingerprint}
        if any(found.get(name) != value for name, value in expected.items()):
            raise DamagedStore.at(path, "damaged (another file is in its place); restore the file from a copy")
        require_lines(container)
        segments.append(Segment(container))
        if opened is not None:
            while len(opened) >= _LONGEST_CHAIN:
                del opened[next(iter(opened))]
            opened[following] = segments[-1]
        following = builds_on(container, following)
        if len(segments) > _LONGEST_CHAIN:
            raise container.damage(f"more than {_LONGEST_CHAIN} states that build on each other")
    snapshot = Snapshot(view, number, segments)
    if len(segments) == 1 and len(segments[0]) != len(snapshot):
        raise segments[0].container.damage(f"{len(segments[0])} lines instead of {len(snapshot)}")
    return snapshot


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
    after: int = -1,
) -> int:
    """Publish the state that follows `parent`, and return its number.

    Without a parent `change` is everything, and `after` the newest state that is known of, should it be unreadable.

    Raises
    ------
    FileExistsError
        When another writer has published that number: reload, merge, try again.
    OSError
        When the disk refuses; nothing has been published.
    """
    used = used_numbers(root, view)
    newer = [n for n in list_snapshots(root, view) if n > (after if parent is None else parent.number)]
    if newer:
        raise FileExistsError(f"{view}: state {newer[-1]} is there by now")
    number = (used[-1] if used else -1) + 1
    written, onto = (change, None) if parent is None else parent.building_on(change)
    if parent is not None and onto is None:
        written = Change(change.apply(parent.entries), np.zeros(0, "U1"))
    attributes = {
        "view": view,
        "number": number,
        "parent": parent.number if parent is not None else None,
        "segment": "base" if onto is None else "delta",
        "onto": onto,
        "rows": len(written.upserts) if onto is None or parent is None else parent.lines_after(change),
        "columns": sorted(written.upserts.columns),
        "roles": dict(roles),
        "source": dict(source),
        "fingerprint": fingerprint,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "host": socket.gethostname(),
    }
    folder = root / "snapshots" / view
    if folder.is_symlink():
        raise StoreError(f"{folder}: expected a folder of the store's own, got a link; move it away")
    make_folder(folder, disk=disk)
    write_container(
        root / "tmp",
        unique_name(".h5"),
        snapshot_path(root, view, number),
        kind="snapshot",
        attributes=attributes,
        datasets=segment_datasets(written),
        grouped={"key": np.ascontiguousarray(written.upserts.keys, dtype="u1").reshape(-1, 32)},
        disk=disk,
    )
    return number
