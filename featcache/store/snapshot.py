"""Snapshots: immutable, numbered states of a view, and the compare-and-swap that adds one.

``snapshots/<view>/NNNNNNNN.h5`` holds either all lines of the view ("base") or what changed since an earlier state that
it names ("delta"). Publishing is linking to the next free number: of two writers one wins, and the other merges its
change and tries again, so that no lines are lost and no lock is needed.

A state is read lazily: of ten million lines only those are decoded that somebody asks for.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedStore, StoreError
from ..files import Disk, make_folder, unique_name
from .container import Container
from .entries import FAILED, Entries, column_datasets, distinct
from .texts import Texts, pack_text
from .writing import write_container

__all__ = [
    "Change",
    "Snapshot",
    "check_view_name",
    "list_snapshots",
    "listed",
    "parse_state",
    "publish_snapshot",
    "read_snapshot",
    "snapshot_path",
    "used_numbers",
    "view_names",
]

_NAME = re.compile(r"([0-9]{8})\.(h5|retired|lost)")
_VIEW = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: A column of text takes at most so many bytes, and so many for each line.
_LARGEST_COLUMN, _WIDEST = 1 << 27, 1 << 13
#: A state lies on at most so many others; ours, on the logarithm of what the view has seen.
_LONGEST_CHAIN = 256
#: All deltas of a state together hold at most this part of its base; beyond it a new base is written.
_DELTA_PART = 0.25


@dataclass(frozen=True, eq=False)
class Change:
    """What a commit does to a view: ids to drop, then lines to add or overwrite."""

    upserts: Entries
    removed: np.ndarray

    @classmethod
    def between(cls, old: Snapshot | None, new: Entries, *, keep_old: bool) -> Change:
        """Return the change that turns `old` into `new` (or, with `keep_old`, adds `new` to it)."""
        nothing = np.zeros(0, "U1")
        if old is None or not len(old):
            return cls(new, nothing)
        place, theirs = old.look_up(new.ids)
        changed = np.ones(len(new), dtype=bool)
        common = place >= 0
        changed[common] = ~(new if common.all() else new.take(common)).same_lines(theirs)
        if keep_old or int(common.sum()) == len(old):
            return cls(new.take(changed), nothing)
        ids = old.entries.ids
        return cls(new.take(changed), ids[~np.isin(ids, new.ids)])

    def __bool__(self) -> bool:
        return bool(len(self))

    def __len__(self) -> int:
        return len(self.upserts) + len(self.removed)

    def apply(self, entries: Entries) -> Entries:
        """Return `entries` after this change."""
        return entries.without(self.removed).merged(self.upserts)

    def followed_by(self, later: Change) -> Change:
        """Return both changes in one."""
        upserts = self.upserts.without(later.removed).merged(later.upserts)
        return Change(upserts, np.union1d(self.removed, later.removed))


class Segment:
    """One snapshot file: the lines it holds, decoded on demand."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.attributes = container.attributes

    def __len__(self) -> int:
        return int(self.container.region("status")["shape"][0])

    def texts(self, name: str) -> Texts:
        try:
            return Texts(self.container.array(f"{name}/offsets"), self.container.array(f"{name}/bytes"))
        except ValueError as error:
            raise self.container.damage(f"{name!r}: {error}") from error

    @cached_property
    def ids(self) -> Texts:
        ids = self.texts("id")
        if len(ids) != len(self):
            raise self.container.damage(f"{len(ids)} ids for {len(self)} lines")
        return ids

    @cached_property
    def change(self) -> Change:
        """All of it, in memory."""
        return Change(self.take(None), self.texts("removed").array())

    def take(self, places: np.ndarray | None) -> Entries:
        """Return some lines, or all."""
        container = self.container
        every = places is None or len(places) == len(self) and bool((np.diff(places) == 1).all())
        rows = slice(None) if every else places
        assert rows is not None
        if every:
            keys = container.span("key", 0, len(self))
        else:
            keys, good = container.read_rows("key", np.asarray(places))
            if not good.all():
                container.span("key", 0, len(self))  # raises, naming the rows
        ids = self.ids
        try:
            return Entries.trusted(
                ids.array() if every else ids.take(np.asarray(places)),
                keys,
                container.array("status")[rows],
                self.errors(rows),
                {name: self.column(name, rows) for name in self.attributes["columns"]},
            )
        except (IndexError, ValueError, OverflowError) as error:
            raise container.damage(f"a column that does not fit: {error}") from error

    def errors(self, rows: Any) -> np.ndarray:
        return _pick(self.texts("error"), self.container.array("error/code")[rows])

    def column(self, name: str, rows: Any) -> np.ndarray:
        column = self._stored_column(name, rows)
        if column.ndim != 1:
            raise ValueError(f"column {name!r} of {column.ndim} axes")
        return column

    def _stored_column(self, name: str, rows: Any) -> np.ndarray:
        container, prefix = self.container, f"column/{name}/"
        if prefix + "code" in container:
            return _pick(self.texts(f"column/{name}"), container.array(prefix + "code")[rows])
        if prefix + "bool" in container:
            return container.array(prefix + "bool")[rows].astype(bool)
        return container.array(prefix + ("int" if prefix + "int" in container else "float"))[rows]


def _pick(values: Texts, codes: np.ndarray) -> np.ndarray:
    """Return the text of each code; IndexError for one that names none."""
    if len(codes) and (int(codes.min()) < 0 or int(codes.max()) >= len(values)):
        raise IndexError(f"a code outside of {len(values)} texts")
    if not len(values):
        return np.zeros(len(codes), "U1")
    texts = values.array()
    # NumPy gives each line the room of the longest text: one of a megabyte, a million times, is no column of ours.
    if len(codes) * texts.dtype.itemsize > _LARGEST_COLUMN + _WIDEST * len(codes):
        raise ValueError(f"a text of {texts.dtype.itemsize // 4} characters for {len(codes)} lines")
    return texts[codes]


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
        return alive, change.upserts.keys[change.upserts.stored]

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
        return change, onto if pending <= _DELTA_PART * len(segments[-1]) else None


def _search(mine: np.ndarray, texts: np.ndarray) -> np.ndarray:
    """Return the place of each text among sorted ones, −1 where it is not there."""
    if not len(mine):
        return np.full(len(texts), -1, dtype=np.int64)
    place = np.minimum(np.searchsorted(mine, texts), len(mine) - 1)
    return np.where(mine[place] == texts, place, -1)


def check_view_name(view: str) -> str:
    """Return the name of a view when it can be a folder's name everywhere; StoreError otherwise."""
    if not isinstance(view, str) or not _VIEW.fullmatch(view):
        raise StoreError(
            f"view {view!r}: expected letters, digits, '.', '_' or '-' (at most 100), not starting with a sign"
        )
    return view


def parse_state(name: str) -> tuple[str, int | None]:
    """Split the name of a state, ``view@number``, or of a view (its newest state: None); StoreError otherwise."""
    view, at, number = name.partition("@") if isinstance(name, str) else (name, "", "")
    if at and not (number.isascii() and number.isdecimal() and len(number) < 9):
        raise StoreError(f"state {name!r}: expected the name of a view, or VIEW@NUMBER, e.g. main@3")
    return check_view_name(view), int(number) if at else None


def view_names(root: Path) -> list[str]:
    """Return the names of the views that have a snapshot."""
    folder = root / "snapshots"
    names = [p.name for p in folder.iterdir() if not p.is_symlink()] if folder.is_dir() else []
    return sorted(name for name in names if list_snapshots(root, name))


def _numbers(root: Path, view: str) -> dict[int, set[str]]:
    """Return what there is of each number: "h5", and the marks "retired" and "lost"."""
    folder = root / "snapshots" / view
    found: dict[int, set[str]] = {}
    if not folder.is_symlink():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                if match:
                    found.setdefault(int(match[1]), set()).add(match[2])
    return found


def list_snapshots(root: Path, view: str) -> list[int]:
    """Return the numbers of a view's snapshots that are kept, oldest first."""
    return sorted(number for number, marks in _numbers(root, view).items() if marks == {"h5"})


def listed(numbers: Sequence[int]) -> str:
    """Return numbers of states for a message, the middle of many left out."""
    shown = [str(n) for n in numbers]
    return ", ".join(shown if len(shown) < 9 else [*shown[:4], "…", *shown[-3:]]) or "none"


def used_numbers(root: Path, view: str) -> list[int]:
    """Return all numbers that were ever given to a state of the view and are not wholly forgotten."""
    return sorted(_numbers(root, view))


def snapshot_path(root: Path, view: str, number: int) -> Path:
    """Return where a snapshot lies."""
    return root / "snapshots" / view / f"{number:08d}.h5"


def read_snapshot(root: Path, view: str, number: int, fingerprint: str, verify: str = "touch") -> Snapshot:
    """Open one snapshot of a store of the given spec: its file, and those that it builds on.

    Raises
    ------
    DamagedStore
        When a file of the chain is damaged or missing.
    """
    segments: list[Segment] = []
    following: int | None = number
    while following is not None:
        path = snapshot_path(root, view, following)
        container = Container(path, verify)
        found = {"kind": container.kind, **container.attributes}
        expected = {"kind": "snapshot", "view": view, "number": following, "fingerprint": fingerprint}
        if any(found.get(name) != value for name, value in expected.items()):
            raise DamagedStore.at(path, "damaged (another file is in its place); restore the file from a copy")
        require_lines(container)
        segments.append(Segment(container))
        following = builds_on(container, following)
        if len(segments) > _LONGEST_CHAIN:
            raise container.damage(f"more than {_LONGEST_CHAIN} states that build on each other")
    snapshot = Snapshot(view, number, segments)
    if len(segments) == 1 and len(segments[0]) != len(snapshot):
        raise segments[0].container.damage(f"{len(segments[0])} lines instead of {len(snapshot)}")
    return snapshot


def require_lines(container: Container) -> None:
    """Refuse a file whose lines are not of the types and shapes that readers take them to be."""
    n = (container.region("status")["shape"] or [0])[0]
    for name, dtype, shape in (
        ("status", "uint8", [n]),
        ("key", "uint8", [n, 32]),
        ("error/code", "int32", [n]),
        ("error/offsets", "uint64", None),
        ("id/offsets", "uint64", [n + 1]),
        ("removed/offsets", "uint64", None),
    ):
        region = container.region(name)
        if region["dtype"] != dtype or (shape is not None and region["shape"] != shape):
            raise container.damage(f"region {name!r} of type {region['dtype']} and shape {region['shape']}")
    if "groups" not in container.region("key"):
        raise container.damage("keys without checksums")


def builds_on(container: Container, number: int) -> int | None:
    """Return the number of the state that a snapshot file builds on: always an earlier one."""
    try:
        onto = container.attributes["onto"]
        for name, kind in (("roles", dict), ("source", dict), ("columns", list), ("rows", int), ("created", str)):
            if not isinstance(container.attributes[name], kind):
                raise ValueError(name)
        roles, columns, rows = (container.attributes[name] for name in ("roles", "columns", "rows"))
        for name, good in (
            ("columns", all(isinstance(column, str) for column in columns)),
            ("roles", all(isinstance(column, str) for column in roles.values())),
            ("rows", 0 <= rows < 1 << 48),
        ):
            if not good:
                raise ValueError(name)
        if onto is None or (type(onto) is int and 0 <= onto < number):
            return onto
    except (KeyError, ValueError) as error:
        raise container.damage(f"attribute {error} is missing or wrong") from error
    raise container.damage(f"it builds on state {onto!r}")


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
) -> int:
    """Publish the state that follows `parent`, and return its number.

    Raises
    ------
    FileExistsError
        When another writer has published that number: reload, merge, try again.
    OSError
        When the disk refuses; nothing has been published.
    """
    used = used_numbers(root, view)
    if parent is not None and any(n > parent.number for n in list_snapshots(root, view)):
        raise FileExistsError(f"{view}: a newer state than {parent.number} is there")
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
        datasets=_entry_datasets(written),
        grouped={"key": np.ascontiguousarray(written.upserts.keys, dtype="u1").reshape(-1, 32)},
        disk=disk,
    )
    return number


def _entry_datasets(change: Change) -> dict[str, np.ndarray]:
    entries = change.upserts
    reasons, codes = distinct(entries.errors)
    datasets: dict[str, np.ndarray] = {
        "status": np.asarray(entries.status, dtype="u1"),
        "error/code": codes,
    }
    for name, texts in (("id", entries.ids), ("error", reasons), ("removed", change.removed)):
        offsets, blob = pack_text(texts)
        datasets |= {f"{name}/offsets": offsets, f"{name}/bytes": blob}
    for name, column in entries.columns.items():
        datasets |= column_datasets(name, np.asarray(column))
    return datasets
