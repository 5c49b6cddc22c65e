"""Sequences of operations, recorded; crash states of each, drawn at random; and what the judge says of them."""

from __future__ import annotations

import collections
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from builders import LOCATOR, SPEC
from crash_states import Medium, RecordingDisk, materialise, torn
from expectations import Expected, judge
from operations import OPERATIONS, possible, sequence

from featcache.store import FeatureStore

#: How much of what is uncertain reached the disk: nothing, some of it, or all.
CHANCES = (0.0, 0.1, 0.5, 0.5, 0.9, 1.0)
NAME = "a.features"
#: Part of the states in which the store is being made.
_CREATING = 0.1


@dataclass(frozen=True)
class Recording:
    """The calls of one sequence, with marks: ("begin", step, before, after) and ("acknowledged", step, state)."""

    log: list[tuple[Any, ...]]
    names: list[str]


def record(names: list[str], seed: int, disk_class: type[RecordingDisk] = RecordingDisk) -> Recording:
    """Run a sequence of operations, starting with the making of the store."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        disk = disk_class(root)
        told = Expected()
        disk.note("begin", "create", Expected(made=False), told)
        store = FeatureStore.create(root / NAME, SPEC, locator=LOCATOR, disk=disk)
        disk.note("acknowledged", "create", told, {})
        done = ["create"]
        for name in names:
            if not possible(name, told):
                continue
            step = OPERATIONS[name](told, rng)
            if rng.random() < 0.5:
                store = FeatureStore.open(root / NAME, disk=disk)  # as another process would; else the same goes on
            disk.note("begin", name, told, step.after)
            step.run(store)
            told = step.settled(root / NAME)
            disk.note("acknowledged", name, told, _index(root / NAME))
            done.append(name)
        _require_complete(disk, root)
        return Recording(disk.log, done)


def _index(path: Path) -> dict[str, bytes]:
    """The private caches, which nothing syncs: what they hold at a moment may be there after it, or older, or torn."""
    return {f"{NAME}/index/{p.name}": p.read_bytes() for p in (path / "index").iterdir()}


def _require_complete(disk: RecordingDisk, root: Path) -> None:
    """A write that goes past the layer would be missing in every state: then the harness sees less than it claims."""
    replayed = {n: d for n, d in Medium().replay(disk.log).tree().items() if not n.startswith(f"{NAME}/index/")}
    real = {
        p.relative_to(root).as_posix(): p.read_bytes() if p.is_file() else None
        for p in root.rglob("*")
        if p.parent.name != "index"
    }
    assert replayed == real, f"written past the disk layer: {sorted(replayed.keys() ^ real.keys())}"


def _calls_by_operation(log: list[tuple[Any, ...]]) -> dict[str, list[int]]:
    """Return the places of the calls that each kind of operation makes."""
    found: dict[str, list[int]] = {}
    name = ""
    for place, (call, *rest) in enumerate(log):
        if call == "begin":
            name = rest[0]
        elif call != "acknowledged":
            found.setdefault(name, []).append(place)
    return found


def states_of(recording: Recording, count: int, seed: int):
    """Draw crash states: yields what was going on, what was acknowledged before, what would be after, and the tree."""
    rng = np.random.default_rng(seed)
    log = recording.log
    calls = _calls_by_operation(log)
    # As often in each kind of operation, though making a store takes many calls and compacting one few.
    kinds = [name for name in calls if name != "create"] or ["create"]
    for _ in range(count):
        kind = "create" if rng.random() < _CREATING else str(rng.choice(kinds))
        moment = int(rng.choice(calls[kind])) + 1  # this many calls were completed
        if rng.random() < 0.15:
            # The moment at which a call has just returned and the caller was told.
            moment = int(rng.choice([i for i, (call, *_) in enumerate(log) if call == "acknowledged"])) + 1
        name, before, after, index = "", Expected(made=False), Expected(made=False), {}
        for call, *rest in log[:moment]:
            if call == "begin":
                name, before, after = rest
            elif call == "acknowledged":
                name, before, index = rest
                after = before
        chance = float(rng.choice(CHANCES))
        tree = Medium().replay(log[:moment]).after_power_loss(rng, chance)
        if f"{NAME}/index" in tree:
            for file, data in index.items():
                if rng.random() < 0.7:
                    tree[file] = torn(data, rng, float(rng.choice(CHANCES)))
        yield {"in": name, "calls": moment, "chance": chance}, before, after, tree


def sample(
    states: int, seed: int, *, per_sequence: int = 50, disk_class: type[RecordingDisk] = RecordingDisk
) -> dict[str, Any]:
    """Judge at least so many states of random sequences; count them by operation and tell what was wrong."""
    rng = np.random.default_rng(seed)
    counted: collections.Counter[str] = collections.Counter()
    wrong, sequences = [], 0
    place = Path(tempfile.mkdtemp(dir=memory_folder()))
    try:
        while counted.total() < states:
            recording = record(
                sequence(rng, int(rng.integers(4, 11))), seed=int(rng.integers(1 << 30)), disk_class=disk_class
            )
            sequences += 1
            drawn = states_of(recording, min(per_sequence, states - counted.total()), int(rng.integers(1 << 30)))
            for about, before, after, tree in drawn:
                root = place / "root"
                materialise(tree, root)
                problems = judge(root / NAME, before, after)
                shutil.rmtree(root)
                counted[about["in"]] += 1
                if problems:
                    wrong.append({**about, "sequence": recording.names, "problems": problems})
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return {
        "states": counted.total(),
        "sequences": sequences,
        "by_operation": dict(sorted(counted.items())),
        "wrong": wrong,
    }


def memory_folder() -> str | None:
    """A folder in memory where there is one: thousands of small stores need no device."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
