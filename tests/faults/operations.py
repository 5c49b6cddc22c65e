"""The operations of a store as a table, each with what it makes of what was expected before.

What a version of featcache does not have (`compact`, `gc`, `retire`) is left out of the table; everything built on
`OPERATIONS` takes it in as soon as it is there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from builders import LOCATOR, SPEC
from expectations import Expected, Lines, append_rows, entries_of, lines_of

from featcache.files import Disk
from featcache.store import FeatureStore


@dataclass(frozen=True)
class Step:
    """One call of an operation: what it runs, and what is acknowledged when it has returned."""

    name: str
    run: Callable[[FeatureStore], object]
    after: Expected

    def settled(self, path: Path) -> Expected:
        """What is acknowledged once the step has run on the store at `path`."""
        return self.after.numbered_as(path)


def append(before: Expected, rng: np.random.Generator) -> Step:
    start = max(before.ever, default=-1) + 1
    numbers = range(start, start + int(rng.integers(1, 5)))
    return Step("append", lambda store: append_rows(store, numbers), before.with_rows(numbers))


def commit(before: Expected, rng: np.random.Generator) -> Step:
    """Add lines for rows that have none yet, or change labels, or make the view smaller; sometimes of a second view."""
    view = "main" if rng.random() < 0.8 else "few"
    old, free = before.newest(view), sorted(before.rows - set(before.newest(view)))
    kind = rng.integers(3) if old else 0
    if kind == 0 and free:
        lines: Lines = lines_of(free)
        return _commit(before, view, lines, {**old, **lines}, keep_old=True)
    if kind == 1 and len(old) > 2:
        kept = {n: label for n, label in old.items() if n % 4 != int(rng.integers(4))}
        return _commit(before, view, kept, kept, keep_old=False)
    lines = lines_of(list(old)[: 1 + len(old) // 3], f"d{int(rng.integers(10))}-{{}}")
    return _commit(before, view, lines, {**old, **lines}, keep_old=True)


def _commit(before: Expected, view: str, lines: Lines, then: Lines, *, keep_old: bool) -> Step:
    unchanged = then == before.newest(view) and before.states.get(view)
    return Step(
        "commit",
        lambda store: store.commit(entries_of(lines), view=view, keep_old=keep_old),
        before if unchanged else before.with_state(then, view),
    )


def compact(before: Expected, rng: np.random.Generator) -> Step:
    return Step("compact", lambda store: store.compact("main"), before)


def gc(before: Expected, rng: np.random.Generator) -> Step:
    """Collect without grace: what no kept state names is no longer promised."""
    return Step("gc", lambda store: store.gc(grace_days=0.0), before.without_unnamed_rows())


def retire(before: Expected, rng: np.random.Generator) -> Step:
    old = sorted(before.states["main"])[:-1]
    numbers = old[: 1 + int(rng.integers(len(old)))] if old else []

    def run(store: FeatureStore) -> object:
        # A state that is retired already is refused; a repetition asks only for what the first time did not reach.
        return store.retire("main", [n for n in numbers if n in store.snapshots("main")])

    return Step("retire", run, before.without_states("main", numbers))


_ALL: dict[str, Callable[[Expected, np.random.Generator], Step]] = {
    "append": append,
    "commit": commit,
    "compact": compact,
    "gc": gc,
    "retire": retire,
}
#: The operations that this version of featcache has.
OPERATIONS = {name: make for name, make in _ALL.items() if hasattr(FeatureStore, name)}


def possible(name: str, before: Expected) -> bool:
    """Tell whether an operation has anything to work on."""
    return name == "append" or bool(before.rows if name == "commit" else before.newest())


def sequence(rng: np.random.Generator, length: int) -> list[str]:
    """Names of operations in a random order, writing more often than cleaning, starting with what a store needs."""
    names = list(OPERATIONS)
    weights = np.asarray([{"append": 4, "commit": 4, "compact": 2, "gc": 3, "retire": 1}[n] for n in names], "f8")
    drawn = rng.choice(names, size=length - 2, p=weights / weights.sum()).tolist()
    if "compact" in OPERATIONS:
        at = int(rng.integers(len(drawn) + 1))
        drawn[at:at] = ["append", "commit", "compact"]  # which has something to do only after new rows
    return ["append", "commit", *drawn]


def prepared(path: Path, disk: Disk | None = None) -> Expected:
    """Make a store in which each operation has something to do: shards with rows in use, given up and never named."""
    store = FeatureStore.create(path, SPEC, locator=LOCATOR, disk=disk)
    told = Expected()
    for numbers in (range(6), range(6, 9), range(9, 12)):
        append_rows(store, numbers)
        told = told.with_rows(numbers)
    for then, view in ((lines_of(range(9)), "main"), (lines_of(range(2, 9)), "main"), (lines_of(range(3)), "few")):
        store.commit(entries_of(then), view=view)
        told = told.with_state(then, view)
    store.commit(entries_of({2: "changed"}), keep_old=True)
    told = told.with_state({**told.newest(), 2: "changed"})
    if hasattr(store, "retire"):
        store.retire("main", [0])
        told = told.without_states("main", [0])
    return told
