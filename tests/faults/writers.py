"""Many processes writing one store at once, killed at random moments and replaced, for as long as wanted.

Each writer tells what it begins and what was acknowledged by appending lines to a file of its own, which outlives it:
the expected state is what those files say. Writers are forked from here, so that a new one costs milliseconds.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from builders import SPEC
from expectations import append_rows, codes_of, entries_of, keys_of, lines_of, read_lines
from operations import OPERATIONS
from power_loss import memory_folder

from featcache.errors import StoreError
from featcache.store import FeatureStore

WRITERS = 8
#: Numbers of images that one writer may use up before it is killed.
_EACH = 100_000
#: What gc leaves alone although nothing names it: longer than it takes from an append to its commit, and short enough
#: that shards are moved and deleted while others write.
GRACE_DAYS = 2 / 86_400


def write(path: Path, generation: int, out: int, seed: int) -> None:
    """Be a writer: append, commit, clean now and then, for ever."""
    rng = np.random.default_rng([seed, generation])
    store = FeatureStore.open(path)
    number, waiting = generation * _EACH, []
    pinned = hasattr(store, "pin") and generation % 40 == 0

    def tell(word: str, numbers: Any) -> None:
        os.write(out, (word + " " + " ".join(map(str, numbers)) + "\n").encode())

    while True:
        numbers = list(range(number, number + int(rng.integers(1, 4))))
        number += len(numbers)
        tell("begin", numbers)
        # Some say that they are at work, so that nothing is collected meanwhile; a killed one's word must not count.
        with store.pin() if pinned else contextlib.nullcontext():
            append_rows(store, numbers)
            tell("row", numbers)
            waiting += numbers
            if rng.random() < 0.6:
                try:
                    snapshot = store.commit(entries_of(lines_of(waiting)), keep_old=True)
                except StoreError as error:
                    if "gc" not in OPERATIONS or "run extract again" not in str(error):
                        raise
                    # This writer was slower than the grace period, which is short here. It does what it is told.
                    tell("again", waiting)
                    append_rows(store, waiting)
                    snapshot = store.commit(entries_of(lines_of(waiting)), keep_old=True)
                tell("line", waiting)
                tell("state", [snapshot.number, *waiting])
                waiting = []
        if "compact" in OPERATIONS and rng.random() < 0.1:
            tell("compacting", [])
            store.compact("main")
            tell("compacted", [])
        if "gc" in OPERATIONS and rng.random() < 0.3:
            tell("collecting", [])
            report = store.gc(grace_days=GRACE_DAYS)
            tell("moved", [len(report.trashed)])
            tell("deleted", [len(report.deleted)])
            tell("collected", [])
        if rng.random() < 0.1:
            store = FeatureStore.open(path)


@dataclass
class Told:
    """What the files of all writers say."""

    begun: set[int] = field(default_factory=set)
    rows: set[int] = field(default_factory=set)
    lines: set[int] = field(default_factory=set)
    states: list[list[int]] = field(default_factory=list)
    counted: collections.Counter[str] = field(default_factory=collections.Counter)

    @classmethod
    def read(cls, folder: Path) -> Told:
        told = cls()
        for path in folder.iterdir():
            for line in path.read_text().splitlines():
                word, *rest = line.split(" ")
                told.counted[word] += 1
                numbers = [int(n) for n in rest if n]
                if word in ("begin", "row", "line"):
                    {"begin": told.begun, "row": told.rows, "line": told.lines}[word].update(numbers)
                elif word in ("moved", "deleted"):
                    told.counted[f"files {word}"] += numbers[0]
                elif word == "state":
                    told.states.append(numbers)
        return told


def problems_of(path: Path, told: Told) -> list[str]:
    """Compare the store, which may be written at this moment, with what had been acknowledged before."""
    problems = []
    store = FeatureStore.open(path)
    # Where somebody collects garbage, rows that no line names are not promised.
    must = sorted(told.lines if "gc" in OPERATIONS else told.rows)
    there = store.has(keys_of(must))
    lost = [n for n, found in zip(must, there.tolist(), strict=True) if not found]
    if lost:
        again = FeatureStore.open(path).has(keys_of(lost)).all()
        how = "missing at a moment of compacting or collecting" if again else "lost"
        problems.append(f"{len(lost)} acknowledged rows {how}: {lost[:5]}")
    begun = sorted(told.begun)
    rows = [n for n, found in zip(begun, store.has(keys_of(begun)).tolist(), strict=True) if found]
    if rows and not np.array_equal(store.codes(keys_of(rows), "flatten"), codes_of(rows)):
        problems.append("wrong rows")
    state = store.snapshot()
    lines = read_lines(state.entries) if state is not None else {}
    if lines is None:
        return [*problems, "an id twice, or with another image's key"]
    if not told.lines <= lines.keys():
        problems.append(f"acknowledged lines lost: {sorted(told.lines - lines.keys())[:5]}")
    if state is not None:
        data = store.load()
        numbers = [int(i[3:-4]) for i in data.ids.tolist()]
        if len(set(numbers)) != len(numbers) or not np.array_equal(data.X, codes_of(numbers)):
            problems.append("load gives wrong rows, or an id twice")
    numbers_there = set(store.snapshots())
    problems += [f"state {n} lost" for n, *_ in told.states if n not in numbers_there][:5]
    return problems


def strangers(path: Path, told: Told) -> list[str]:
    """Return what is in the view and was never handed to it; asked for when nobody writes."""
    state = FeatureStore.open(path).snapshot()
    lines = (read_lines(state.entries) or {}) if state is not None else {}
    strange = sorted(lines.keys() - told.begun)
    wrong = [n for n, label in lines.items() if label != lines_of([n])[n]]
    return [f"lines that nobody wrote: {strange[:5]}"] * bool(strange) + [f"wrong labels: {wrong[:5]}"] * bool(wrong)


def states_hold(path: Path, told: Told, every: int) -> list[str]:
    """Look into each so many-th acknowledged state: it holds the lines that were committed with it."""
    store, problems = FeatureStore.open(path), []
    for number, *lines in told.states[::every]:
        if not set(lines) <= (read_lines(store.snapshot("main", number).entries) or {}).keys():
            problems.append(f"state {number} lacks lines that were acknowledged with it")
    return problems


def massacre(kills: int, seed: int, writers: int = WRITERS, looks: int = 4) -> dict[str, Any]:
    """Kill so many writers of one store at random moments after an acknowledgement; look at it in between and after."""
    rng = np.random.default_rng(seed)
    folder = Path(tempfile.mkdtemp(dir=memory_folder())).resolve()
    path, said = folder / "a.features", folder / "said"
    said.mkdir()
    FeatureStore.create(path, SPEC)
    alive: dict[int, Path] = {}
    generations = iter(range(1, 10_000_000))
    problems: list[str] = []
    crashed: list[str] = []

    def spawn() -> None:
        generation = next(generations)
        file = said / f"{generation}"
        pid = os.fork()
        if pid == 0:
            _child(functools.partial(write, path, generation), file, seed, folder / f"crash-{generation}")
        alive[pid] = file

    start = time.perf_counter()
    try:
        for _ in range(writers):
            spawn()
        for kill in range(kills):
            victim = int(rng.choice(list(alive)))
            _wait_for_word(alive[victim], victim)
            time.sleep(float(rng.uniform(0, 0.03)))
            os.kill(victim, signal.SIGKILL)
            status = os.waitpid(victim, 0)[1]
            del alive[victim]
            if not os.WIFSIGNALED(status):
                crashed.append("a writer ended by itself")
            spawn()
            if looks and (kill + 1) % max(1, kills // looks) == 0:
                problems += problems_of(path, Told.read(said))
        for victim in list(alive):
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
            del alive[victim]
        told = Told.read(said)
        crashed += [p.read_text()[-1500:] for p in folder.glob("crash-*")]
        problems += problems_of(path, told) + strangers(path, told) + states_hold(path, told, max(1, kills // 20))
        report = FeatureStore.open(path).check(deep=True)
        problems += [f"check: {report.damaged}"] * (not report.ok)
        snapshots = FeatureStore.open(path).snapshots()
        problems += ["a number of a snapshot is missing"] * (snapshots != list(range(len(snapshots))))
    finally:
        for victim in alive:
            os.kill(victim, signal.SIGKILL)
            os.waitpid(victim, 0)
        shutil.rmtree(folder, ignore_errors=True)
    return {
        "kills": kills + writers,
        "acknowledged rows": len(told.rows),
        "acknowledged appends": told.counted["row"],
        "acknowledged commits": told.counted["state"],
        "compactions": told.counted["compacted"],
        "collections": told.counted["collected"],
        "files moved to the trash": told.counted["files moved"],
        "commits slower than the grace period": told.counted["again"],
        "files deleted": told.counted["files deleted"],
        "crashed writers": crashed,
        "problems": problems,
        "seconds": round(time.perf_counter() - start, 1),
    }


def _child(action: Callable[[int, int], None], file: Path, seed: int, crash: Path) -> None:
    try:
        action(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND), seed)
    except BaseException:
        crash.write_text(traceback.format_exc())
    os._exit(1)


def _wait_for_word(file: Path, pid: int, seconds: float = 60) -> None:
    """Wait until a writer has had something acknowledged."""
    end = time.monotonic() + seconds
    while not (file.exists() and b"\nrow" in file.read_bytes()):
        if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return
        if time.monotonic() > end:
            raise TimeoutError("a writer got nothing done")
        time.sleep(0.001)
