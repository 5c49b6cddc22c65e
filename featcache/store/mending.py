"""The snapshots' part of a repair: what cannot be read is marked lost, after what can be saved of it has been saved.

A state that cannot be read any more gets a mark ``NNNNNNNN.lost``: its number is never used again, and the view falls
back to its newest readable state. Before that, what the newest state still has is published as a new state: its lines,
without the columns that are damaged.
"""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedStore, StoreError
from ..files import Disk, publish_bytes
from .aside import set_aside
from .entries import FAILED, Entries
from .layout import Wreck
from .safely import require_permission
from .segment import Change, Segment, builds_on, require_lines
from .snapshot import Snapshot, publish_snapshot, read_snapshot
from .views import list_snapshots, snapshot_path, used_numbers

__all__ = ["mend_view"]

_UNKNOWN_REASON = "failed earlier; the reason was in a damaged file"


def mend_view(root: Path, view: str, fingerprint: str, disk: Disk | None) -> list[dict[str, Any]]:
    """Bring a view back to a state that can be read.

    Parameters
    ----------
    root : Path
        The store's folder.
    view : str
        Name of the view.
    fingerprint : str
        Of the store's spec.
    disk : Disk or None
        The layer to use.

    Returns
    -------
    list of dict
        One per file that was set aside or is missing; see `CheckReport.repaired`.
    """
    states = _States(root, view, fingerprint)
    for file, _ in states.bad.values():
        require_permission(file)
    saved: _Saved | None = None
    if states.bad and states.newest is None:
        saved = states.save_newest(disk)
    when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for number in sorted(states.bad, reverse=True):
        about = json.dumps({"lost": when, "reason": states.bad[number][1]}).encode()
        with contextlib.suppress(FileExistsError):
            mark = snapshot_path(root, view, number).with_suffix(".lost")
            publish_bytes(mark, about, replace=False, disk=disk)
    done = []
    for path in states.useless():
        done.append(_entry(root, path, states, saved, set_aside(root, path, disk)))
    for path in sorted({file for file, _ in states.bad.values() if not file.exists()} - set(states.useless())):
        if path.relative_to(root).as_posix() not in {item["file"] for item in done}:
            done.append(_entry(root, path, states, saved, ""))
    return done


def _entry(root: Path, path: Path, states: _States, saved: _Saved | None, now: str) -> dict[str, Any]:
    view = states.view
    kept = list_snapshots(root, view)
    if saved is not None:
        columns = f" without {', '.join(saved.lost)}" if saved.lost else ""
        left = f"its newest lines{columns} are now {view}@{kept[-1]}"
    elif states.newest is not None:
        left = f"{view}@{states.newest} is whole"
    elif kept:
        left = f"the view is now as in {view}@{kept[-1]}"
    else:
        left = "no state of the view is left (the codes are); do not run gc before extract"
    again = saved.lost if saved is not None else states.newest is None
    return {
        "file": path.relative_to(root).as_posix(),
        "action": f"set aside as {now}" if now else "missing",
        "rows_saved": 0,
        "images_lost": 0,
        "images": [],
        "lines_saved": saved.lines if saved is not None else 0,
        "columns_lost": saved.lost if saved is not None else [],
        "newest_lost": saved is None and states.newest is None,
        "note": f"{left}; run extract again" if again else left,
    }


@dataclass
class _Saved:
    """What was saved of a state.

    Attributes
    ----------
    lines : int
        How many.
    lost : list of str
        Columns, and "error" for the reasons of failures, that were not.
    """

    lines: int = 0
    lost: list[str] = field(default_factory=list)


class _States:
    """The kept states of a view: which can be read, which cannot, and why."""

    def __init__(self, root: Path, view: str, fingerprint: str) -> None:
        self.root, self.view, self._fingerprint = root, view, fingerprint
        self.kept = list_snapshots(root, view)
        #: State → the file that makes it unreadable, and the reason.
        self.bad: dict[int, tuple[Path, str]] = {}
        self._needed: set[Path] = set()
        self._sound: dict[Path, DamagedStore | None] = {}
        self._opened: dict[int, Segment] = {}
        for number in self.kept:
            try:
                self._read(number)
            except DamagedStore as error:
                self.bad[number] = Path(error.file), str(error)
        #: The newest kept state, where it can be read.
        self.newest = self.kept[-1] if self.kept and self.kept[-1] not in self.bad else None

    def _read(self, number: int) -> Snapshot:
        """Read a state, with every checksum of each of its files compared once."""
        state = read_snapshot(self.root, self.view, number, self._fingerprint, opened=self._opened)
        for segment in reversed(state.segments):
            path = segment.container.path
            if path not in self._sound:
                self._sound[path] = None
                try:
                    segment.container.verify()
                except DamagedStore as error:
                    self._sound[path] = error
            error_ = self._sound[path]
            if error_ is not None:
                raise error_
        if number == self.kept[-1]:
            _ = state.entries
        self._needed |= set(state.files)
        return state

    def useless(self) -> list[Path]:
        """Return the files that no readable state needs: damaged ones, and those of lost states."""
        found = {file for file, _ in self.bad.values()}
        for number in used_numbers(self.root, self.view):
            path = snapshot_path(self.root, self.view, number)
            if path.with_suffix(".lost").exists():
                found.add(path)
        return sorted(p for p in found - self._needed if p.exists() or p.is_symlink())

    def save_newest(self, disk: Disk | None) -> _Saved | None:
        """Publish what is left of the newest state of which anything can be saved, unless a whole one is newer."""
        for number in reversed(self.kept):
            if number not in self.bad:
                return None
            try:
                return self._save(number, disk)
            except DamagedStore:
                continue
        return None

    def _save(self, number: int, disk: Disk | None) -> _Saved:
        segments = self._wrecks(number)
        saved = _Saved()
        parts = [(_lines(s, saved.lost), s.removed if s is not segments[0] else None) for s in segments]
        entries = Entries.empty()
        for lines, removed in parts:
            columns = {name: column for name, column in lines.columns.items() if name not in saved.lost}
            entries = Change(lines.with_columns(columns), removed if removed is not None else _NONE).apply(entries)
        about = segments[-1].attributes
        ids = entries.ids
        if len(entries) != about["rows"] or not bool(np.all(ids[1:] > ids[:-1])):
            raise segments[-1].container.damage(f"{len(entries)} lines instead of {about['rows']}")
        saved.lines, saved.lost = len(entries), sorted(set(saved.lost))
        # Another repair may have been first, whose state is as good as this one.
        with contextlib.suppress(FileExistsError):
            publish_snapshot(
                self.root,
                None,
                self.view,
                Change(entries, _NONE),
                roles={role: column for role, column in about["roles"].items() if column not in saved.lost},
                source=about["source"],
                fingerprint=self._fingerprint,
                disk=disk,
                after=self.kept[-1],
            )
        return saved

    def _wrecks(self, number: int) -> list[Segment]:
        """Open the files of a state as far as their headers hold, the base first."""
        segments: list[Segment] = []
        following: int | None = number
        while following is not None:
            wreck = Wreck(snapshot_path(self.root, self.view, following))
            expected = {"view": self.view, "number": following, "fingerprint": self._fingerprint}
            if wreck.kind != "snapshot" or any(wreck.attributes.get(k) != v for k, v in expected.items()):
                raise wreck.damage("another file is in its place")
            require_lines(wreck)
            segments.insert(0, Segment(wreck))
            following = builds_on(wreck, following)
        return segments


_NONE = np.zeros(0, "U1")


def _lines(segment: Segment, lost: list[str]) -> Entries:
    """Return the lines of a damaged file without its damaged columns, whose names are added to `lost`.

    Raises
    ------
    DamagedStore
        When ids, keys or status are damaged.
    """
    container, n = segment.container, len(segment)
    ids, status = segment.ids.array(fixed=True), np.array(container.array("status"))
    keys, good = container.read_rows("key", np.arange(n))
    if not good.all():
        raise container.damage("the checksum of some of its keys does not match")
    try:
        errors = segment.errors(slice(None))
    except (StoreError, IndexError, ValueError, OverflowError):
        lost.append("error")
        errors = np.where(status == FAILED, _UNKNOWN_REASON, "")
    columns = {}
    for name in segment.attributes["columns"]:
        try:
            column = segment.column(name, slice(None))
            if len(column) != n:
                raise ValueError(name)
            columns[name] = np.array(column)
        except (StoreError, IndexError, ValueError, OverflowError):
            lost.append(name)
    try:
        return Entries.trusted(ids, keys, status, errors, columns)
    except ValueError as error:
        raise container.damage(str(error)) from error
