"""Stores harmed and repaired: what was good must still be there, what was damaged must not, by an exact count."""

from __future__ import annotations

import errno
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from builders import NthCall, add_rows, build, keys_for, regions_of, rows_for
from expectations import attempt, improper
from injected import copied, in_fork
from power_loss import memory_folder

from featcache.errors import FeatcacheError
from featcache.store import FeatureStore
from featcache.store.container import Container
from featcache.store.repair import repair_header

NUMBERS = range(380)


def flip(file: Path, place: int, bit: int = 0) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1 << bit
    file.write_bytes(data)


def shard_files(path: Path) -> list[Path]:
    return sorted((path / "shards").glob("*.h5"))


def repair(path: Path, disk: Any = None) -> tuple[FeatureStore, Any, list[dict[str, Any]]]:
    """Repair as the command does."""
    done = repair_header(path, disk=disk)
    store = FeatureStore.open(path, disk=disk)
    return store, store.check(repair=True), done


def readable(path: Path) -> set[int]:
    """Return the images whose codes a reader of groups can still get: what no repair may lose."""
    found: set[int] = set()
    where = {bytes(k): n for n, k in zip(NUMBERS, keys_for(NUMBERS), strict=True)}
    for file in shard_files(path):
        try:
            shard = Container(file)
        except FeatcacheError:
            continue
        n = shard.region("key")["shape"][0]
        try:
            keys, good = shard.read_rows("key", np.arange(n))
            _, sound = shard.read_rows("view_number", np.arange(n))
        except FeatcacheError:
            continue
        for row in np.flatnonzero(good & sound).tolist():
            try:
                shard.rows("x/flatten", np.asarray([row]))
                found.add(where[bytes(keys[row])])
            except FeatcacheError:
                pass
    return found


def verdict(path: Path, must: set[int], lines: dict[str, list[str]]) -> list[str]:
    """Return what is wrong with a store after its repair."""
    problems = []
    store = FeatureStore.open(path)
    keys = keys_for(NUMBERS)
    there = {n for n, has in zip(NUMBERS, store.has(keys), strict=True) if has}
    if must - there:
        problems.append(f"good rows lost: {sorted(must - there)[:5]} of {len(must - there)}")
    if there and not np.array_equal(store.codes(keys_for(sorted(there)), "flatten"), rows_for(sorted(there))):
        problems.append("wrong rows")
    report = store.check(deep=True)
    open_ = {}
    for view in store.views:
        ids = store.snapshot(view).entries
        gone = {int(i[3:-4]) for i in ids.ids[ids.stored].tolist()} - there
        if gone:
            open_[f"snapshots/{view}"] = sorted(gone)
    said = {d["file"]: sorted(int(i[3:-4]) for i in d["images"]) for d in report.damaged}
    if said != open_:
        problems.append(f"check says {said}, but these have no codes: {open_}")
    for view, ids in lines.items():
        if view in store.views and store.snapshot(view).entries.ids.tolist() != ids:
            problems.append(f"other lines in {view}")
    if store.check(repair=True).repaired:
        problems.append("a second repair found something to do")
    if not open_:
        store.gc(grace_days=0.0)
    return problems


def lines_of(path: Path) -> dict[str, list[str]]:
    store = FeatureStore.open(path)
    return {view: store.snapshot(view).entries.ids.tolist() for view in store.views}


def harmed_template(path: Path) -> tuple[set[int], dict[str, list[str]]]:
    """Make a store with damage of each kind; return the images whose codes must survive."""
    build(path)
    lines = lines_of(path)
    first, second, third = shard_files(path)
    flip(first, regions_of(first)["x/flatten"][0] + 280 * 32)
    third.write_bytes(third.read_bytes()[:-1])
    flip(second, 60)  # its JSON header: only HDF5 knows where its rows lie
    base = path / "snapshots" / "main" / "00000000.h5"
    flip(base, regions_of(base)["column/label/bytes"][0])
    flip(path / "store.json", 30)
    return {*range(256), *range(300, 380)}, lines


def every_call(number: int | None, how: str, stride: int, first: int = 1) -> list[dict[str, Any]]:
    """Fail or kill a repair at each `stride`-th call of the disk, repair again, and look what is left."""
    outcomes = []
    folder = Path(tempfile.mkdtemp(dir=memory_folder())).resolve()
    try:
        must, lines = harmed_template(folder / "template")
        for nth in range(first, 400, stride):
            with copied(folder / "template") as path:
                disk = NthCall(nth, number or errno.EIO, how)
                action = functools.partial(repair, path, disk)
                killed, error = in_fork(action) if number is None else (False, attempt(action))
                again = attempt(lambda path=path: repair(path))
                problems = improper(error) + ([f"the second repair failed: {again}"] if again else [])
                problems += verdict(path, must, lines) if not again else []
                outcome = "killed" if killed else "raised" if error else "done"
                outcomes.append({"nth": nth, "call": disk.failed, "outcome": outcome, "problems": problems})
                if outcome == "done" and not disk.failed:
                    return outcomes
        raise AssertionError("a repair of 400 calls")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def random_flips(count: int, seed: int) -> list[dict[str, Any]]:
    """Flip a few bits anywhere in the shards of a store, repair, and compare with what could still be read."""
    rng = np.random.default_rng(seed)
    folder = Path(tempfile.mkdtemp(dir=memory_folder())).resolve()
    outcomes = []
    try:
        build(folder / "template")
        add_rows(FeatureStore.open(folder / "template"), range(340, 370))  # some rows stand twice
        lines = lines_of(folder / "template")
        for number in range(count):
            with copied(folder / "template") as path:
                files = shard_files(path)
                for _ in range(int(rng.integers(1, 6))):
                    file = files[int(rng.integers(len(files)))]
                    parts = list(regions_of(folder / "template" / "shards" / file.name).values())
                    flip(file, int(rng.integers(*parts[int(rng.integers(len(parts)))])), int(rng.integers(8)))
                must = readable(path)
                _, report, _ = repair(path)
                problems = verdict(path, must, lines)
                if any(r["action"] == "left" for r in report.repaired):
                    problems.append("a shard of this store was taken for another's")
                outcomes.append({"case": number, "repaired": len(report.repaired), "problems": problems})
        return outcomes
    finally:
        shutil.rmtree(folder, ignore_errors=True)
