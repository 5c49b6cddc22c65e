"""Bits flipped in, and ends cut off, every kind of file that a store has; always in a child, which may die of it."""

from __future__ import annotations

import collections
import json
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from builders import LOCATOR, build, flip_bits, in_child, loads, regions_of, verdict
from expectations import append_rows, entries_of, lines_of
from power_loss import memory_folder

from featcache.store.container import Container


def build_every_kind(path: Path) -> None:
    """Make a store with each kind of file that this version writes."""
    store = build(path)
    stat = type("S", (), {"path": "a", "size": 1, "mtime_ns": 1, "ctime_ns": 1, "inode": 1, "device": 1})
    digests = store.digests
    digests.put(stat, b"\1" * 32)
    digests.save()
    store.requests.put(LOCATOR, store.fingerprint)
    if hasattr(store, "compact"):
        store.compact("main")
    if hasattr(store, "gc"):
        append_rows(store, range(5000, 5004))  # never named: gc's to move away
        store.commit(entries_of(lines_of(range(9))), view="old")
        store.commit(entries_of(lines_of(range(3, 9))), view="old")
        if hasattr(store, "retire"):
            store.retire("old", [0])
        store.gc(grace_days=0.0)
        append_rows(store, range(6000, 6300))  # an ordinary shard beside the compacted one
        store.commit(entries_of(lines_of(range(6000, 6300))), view="old", keep_old=True)
    if hasattr(store, "pin"):
        with store.pin():
            pins = {p: p.read_bytes() for p in (path / "pins").iterdir()}
        for pin, data in pins.items():  # as of a writer that was killed
            pin.write_bytes(data)


def kinds_of_files(path: Path) -> dict[str, str]:
    """File → its kind."""
    found = {}
    for file in sorted(p for p in path.rglob("*") if p.is_file()):
        name = file.relative_to(path).as_posix()
        place = name.split("/")[0]
        kind = {"shards": "shard", "snapshots": "snapshot"}.get(place, place)
        kind = re.sub("[0-9a-f]{32}", "*", name) if place == "index" else kind
        if file.suffix == ".h5" and place in ("shards", "snapshots"):
            attributes = Container(file).attributes
            kind = f"{attributes['segment']} snapshot" if place == "snapshots" else kind
            kind = "compacted shard" if "merged" in attributes else kind
        elif place in ("shards", "snapshots"):
            kind = f"{place}/*{file.suffix}"
        found[name] = kind
    return found


def cut_ends(path: Path, name: str, count: int, seed: int, truth: dict[str, str]) -> list[dict[str, Any]]:
    """Cut one file at so many places, one at a time: at the borders of its parts, beside them, and anywhere."""
    rng = np.random.default_rng([seed, *name.encode()])
    file = path / name
    original = file.read_bytes()
    borders = {0, 1, 24, len(original) - 1}
    if name.endswith(".h5"):
        borders |= {end + d for span in regions_of(file).values() for end in span for d in (-1, 0, 1)}
    near = rng.permutation(sorted(p for p in borders if 0 <= p < len(original)))
    places = [int(p) for p in near[: (count + seed % 2) // 2]]
    places += rng.integers(len(original), size=count - len(places)).tolist()
    outcomes = []
    for place in places:
        print(f"cutting {name} at {place}", flush=True)
        file.write_bytes(original[:place])
        outcomes.append({"file": name, "byte": place, "is": verdict(path, name, truth)})
    file.write_bytes(original)
    return outcomes


def harm_files(pristine: str, names: list[str], counts: list[int], seed: int, how: str) -> list[dict[str, Any]]:
    """Harm copies of a store: one per file, or where a reader may replace what it finds damaged, one per time."""
    truth, harm = loads(pristine), {"flip": flip_bits, "cut": cut_ends}[how]
    path = Path(pristine).with_suffix(".copy")
    outcomes = []
    for name, count in zip(names, counts, strict=True):
        once = name.startswith("index/")
        for time in range(count if once else 1):
            shutil.copytree(pristine, path)
            outcomes += harm(path, name, 1 if once else count, seed + time, truth)
            shutil.rmtree(path)
    return outcomes


def harm_all(how: str, count: int, seed: int = 0, apart: bool = True) -> dict[str, Any]:
    """Harm at least so many times, evenly over the kinds of files; count by kind what became of it.

    `apart`: each file in a child of its own, so that one that dies of a file takes no other's cases with it.
    """
    folder = Path(tempfile.mkdtemp(dir=memory_folder()))
    try:
        pristine = folder / "pristine.features"
        build_every_kind(pristine)
        kinds = kinds_of_files(pristine)
        members = collections.Counter(kinds.values())
        each = {name: -(-count // (len(members) * members[kind])) for name, kind in kinds.items()}
        counted: dict[str, collections.Counter[str]] = {kind: collections.Counter() for kind in sorted(members)}
        wrong = []
        for names in [[name] for name in kinds] if apart else [list(kinds)]:
            arguments = str(pristine), names, [each[n] for n in names], seed, how
            done = in_child("harm_files", *arguments, module="harm", timeout=3000)
            if done.returncode:
                counted[kinds[names[0]]]["died"] += 1
                wrong.append({"is": f"died: {done.returncode} {done.stdout[-200:]} {done.stderr[-500:]}"})
                continue
            for outcome in json.loads(done.stdout.splitlines()[-1]):
                fine = outcome["is"] in ("harmless", "detected")
                counted[kinds[outcome["file"]]][outcome["is"] if fine else "wrong"] += 1
                wrong += [] if fine else [outcome]
        table = [{"kind": kind, "files": members[kind], **found} for kind, found in counted.items()]
        total = sum(counted.values(), collections.Counter())
        return {"total": total.total(), **total, "kinds": table, "wrong": wrong}
    finally:
        shutil.rmtree(folder, ignore_errors=True)
