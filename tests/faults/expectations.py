"""What a store must still hold, and the judge of a store that something happened to.

`Expected` is the state that was acknowledged, kept outside the store: the rows, and each numbered state of each view.
`judge` is given two of them: what was acknowledged before the operation in which the accident happened, and what would
have been after it. What both say must be there; what only one says may be there or not; what is there must be right.
"""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from builders import SPEC, keys_for, rows_for

from featcache.errors import FeatcacheError, NotAStore
from featcache.files import Disk
from featcache.store import OK, Entries, FeatureStore

#: Lines of a view: number of the image → its label.
Lines = Mapping[int, str]
#: Images that only the judge adds, to see that the store can still be used.
PROBES = (900_001, 900_002)
UNEXPECTED = "unexpected: "


@dataclass(frozen=True)
class Expected:
    """What was acknowledged.

    `made`: the store itself. `rows`: images whose codes must be readable. `states`: view → number of a snapshot →
    lines. `ever`: every image whose codes were ever handed to the store, acknowledged or not.
    """

    made: bool = True
    rows: frozenset[int] = frozenset()
    states: Mapping[str, Mapping[int, Lines]] = field(default_factory=dict)
    ever: frozenset[int] = frozenset()

    def newest(self, view: str = "main") -> Lines:
        states = self.states.get(view, {})
        return states[max(states)] if states else {}

    def with_rows(self, numbers: Iterable[int]) -> Expected:
        return replace(self, rows=self.rows | set(numbers), ever=self.ever | set(numbers))

    def with_state(self, lines: Lines, view: str = "main") -> Expected:
        states = dict(self.states.get(view, {}))
        states[max(states, default=-1) + 1] = dict(lines)
        return replace(self, states={**self.states, view: states})

    def without_unnamed_rows(self) -> Expected:
        """Rows that no kept state names are not promised once somebody has collected garbage."""
        named = {n for states in self.states.values() for lines in states.values() for n in lines}
        return replace(self, rows=self.rows & named)

    def without_states(self, view: str, numbers: Iterable[int]) -> Expected:
        gone = set(numbers)
        left = {n: lines for n, lines in self.states[view].items() if n not in gone}
        return replace(self, states={**self.states, view: left})

    def numbered_as(self, path: Path) -> Expected:
        """Take the numbers of snapshots from the store itself, after an operation that chooses its own.

        Only the judge says whether they hold what they must: a number that is new here stands for the newest state.
        """
        store, states = FeatureStore.open(path), {}
        for view, known in self.states.items():
            there = store.snapshots(view)
            states[view] = {n: known.get(n, self.newest(view)) for n in {*there, *known}}
        return replace(self, states=states)


def lines_of(numbers: Iterable[int], label: str = "c{}") -> dict[int, str]:
    return {n: label.format(n % 3) for n in numbers}


def entries_of(lines: Lines) -> Entries:
    numbers = sorted(lines)
    none = np.asarray([""] * len(numbers), np.str_)
    columns = {"label": np.asarray([lines[n] for n in numbers], np.str_)} if numbers else {}
    ids = np.asarray([f"img{n:07d}.jpg" for n in numbers], np.str_)
    return Entries(ids, keys_of(numbers), np.full(len(numbers), OK, "u1"), none, columns)


@functools.cache
def _key(number: int) -> np.ndarray:
    return keys_for([number])[0]


@functools.cache
def _row(number: int) -> np.ndarray:
    return rows_for([number])[0]


def keys_of(numbers: Iterable[int]) -> np.ndarray:
    keys = [_key(n) for n in numbers]
    return np.stack(keys) if keys else np.zeros((0, 32), "u1")


def codes_of(numbers: Iterable[int]) -> np.ndarray:
    rows = [_row(n) for n in numbers]
    return np.stack(rows) if rows else np.zeros((0, 8), "f4")


def append_rows(store: FeatureStore, numbers: Iterable[int]) -> str:
    numbers = list(numbers)
    return store.append(keys_of(numbers), {"flatten": codes_of(numbers)})


class Unsynced(Disk):
    """A disk that syncs nothing: for writing that no accident follows, which need not wait for the device."""

    def fsync(self, path):
        pass


def judge(path: Path, before: Expected, after: Expected | None = None, *, use: bool = True) -> list[str]:
    """Return what is wrong with the store at `path`; with `use`, also whether it takes new rows and lines."""
    after = before if after is None else after
    try:
        try:
            store = FeatureStore.open(path)
        except NotAStore as error:
            if before.made:
                return [f"no store any more: {error}"]
            store = None
        problems = _look(store, before, after) if store is not None else []
        return problems or (_use(path, before, after) if use else [])
    except Exception:
        return ["exception: " + traceback.format_exc(limit=-4)]


def _look(store: FeatureStore, before: Expected, after: Expected) -> list[str]:
    problems = []
    must = sorted(before.rows & after.rows)
    lost = [n for n, there in zip(must, store.has(keys_of(must)), strict=True) if not there]
    if lost:
        problems.append(f"acknowledged rows lost: {lost}")
    ever = sorted(before.ever | after.ever)
    visible = [n for n, there in zip(ever, store.has(keys_of(ever)), strict=True) if there]
    if visible and not np.array_equal(store.codes(keys_of(visible), "flatten"), codes_of(visible)):
        problems.append("wrong rows")
    if store.damaged:
        problems.append(f"shards called damaged: {store.damaged}")
    for view in sorted({*before.states, *after.states, *store.views}):
        problems += _look_at_view(store, view, before, after)
    report = store.check(deep=True)
    if not report.ok:
        problems.append(f"check: {report.damaged}")
    return problems


def _look_at_view(store: FeatureStore, view: str, before: Expected, after: Expected) -> list[str]:
    problems = []
    old, new = before.states.get(view, {}), after.states.get(view, {})
    there = store.snapshots(view)
    lost = sorted((old.keys() & new.keys()) - set(there))
    if lost:
        problems.append(f"acknowledged states of {view!r} lost: {lost}")
    either = [before.newest(view), after.newest(view)]
    for number in there:
        snapshot = store.snapshot(view, number)
        allowed = [s[number] for s in (old, new) if number in s]
        # A number that was not foreseen may only repeat the newest state, as compacting and committing again do.
        if read_lines(snapshot.entries) not in (allowed or either):
            problems.append(f"snapshot {number} of {view!r} holds other lines than were committed")
    if not there:
        return problems
    lines = read_lines(store.snapshot(view).entries)
    if lines not in either:
        problems.append(f"the newest state of {view!r} is neither the one before nor the one after")
    elif lines:
        problems += _load_is(store, view, lines)
    return problems


def read_lines(entries: Entries) -> Lines | None:
    """Return the lines of a state; None when they are not such as `entries_of` makes."""
    numbers = [int(i[3:-4]) for i in entries.ids.tolist()]
    if len(set(numbers)) != len(numbers) or not np.array_equal(entries.keys, keys_of(numbers)):
        return None
    return dict(zip(numbers, entries.columns["label"].tolist(), strict=True)) if numbers else {}


def _load_is(store: FeatureStore, view: str, lines: Lines) -> list[str]:
    data = store.load(view)
    numbers = sorted(lines)
    right = data.ids.tolist() == entries_of(lines).ids.tolist() and np.array_equal(data.X, codes_of(numbers))
    return [] if right else [f"load of {view!r} gives other rows than its lines say"]


def _use(path: Path, before: Expected, after: Expected) -> list[str]:
    """Append and commit, as the next extraction would; everything that was there must still be right then."""
    store = FeatureStore.create(path, SPEC, disk=Unsynced())
    new = dict.fromkeys(PROBES, "probe")
    append_rows(store, PROBES)
    there = store.snapshot()
    lines = {**(read_lines(there.entries) or {}), **new} if there is not None else new
    store.commit(entries_of(new), keep_old=True)
    fresh = FeatureStore.open(path)
    problems = _load_is(fresh, "main", lines)
    if not fresh.check(deep=True).ok:
        problems.append(f"check after using the store again: {fresh.check(deep=True).damaged}")
    must = sorted(before.rows & after.rows)
    if not fresh.has(keys_of(must)).all():
        problems.append("using the store again lost rows")
    return problems


def attempt(action: Callable[[], object]) -> str:
    """Run something; return "" when it came back, else one line that says how it failed."""
    try:
        action()
    except (OSError, FeatcacheError) as error:
        return f"{type(error).__name__}: {error}"
    except Exception:
        # A full disk or a killed neighbour is no reason for any other error, whose words are for programmers.
        return UNEXPECTED + traceback.format_exc(limit=-4)
    return ""


def improper(error: str) -> list[str]:
    """Return what is wrong with the way in which something failed: another error than promised, or a long story."""
    return [f"failed in another way than promised: {error}"] if "\n" in error or error.startswith(UNEXPECTED) else []
