"""Small stores to be harmed, what they must still say afterwards, and child processes that may die of it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import resource
import signal
import subprocess
import sys
import traceback
from pathlib import Path

import numpy as np

from featcache.errors import DamagedStore, FeatcacheError
from featcache.files import Disk
from featcache.store import FAILED, OK, Entries, FeatureStore
from featcache.store.container import Container

SPEC = {"version": 1, "preprocess": {"crop": 224}, "dtype": "float32"}
LOCATOR = {"kind": "random", "value": "seed 0"}


def keys_for(numbers):
    return np.asarray([list(hashlib.sha256(str(int(n)).encode()).digest()) for n in numbers], "u1").reshape(-1, 32)


def rows_for(numbers, width=8):
    rows = [np.random.default_rng(int(n)).random(width, dtype="f4") for n in numbers]
    return np.stack(rows) if rows else np.zeros((0, width), "f4")


def entries_for(numbers, label="c{}", failed=()):
    numbers = list(numbers)
    return Entries(
        np.asarray([f"img{i:05d}.jpg" for i in numbers], np.str_),
        keys_for(numbers),
        np.asarray([FAILED if i in failed else OK for i in numbers], "u1"),
        np.asarray(["torn" if i in failed else "" for i in numbers], np.str_),
        {
            "label": np.asarray([label.format(i % 3) for i in numbers], np.str_),
            "size": np.asarray(numbers, "i8"),
            "weight": np.asarray(numbers, "f8") / 7,
            "flag": np.asarray([i % 2 == 0 for i in numbers], bool),
        },
    )


def add_rows(store, numbers):
    return store.append(keys_for(numbers), {"flatten": rows_for(numbers)})


def build(path, disk=None) -> FeatureStore:
    """Make a store of 3 shards, a view of a base and two deltas, and a small second view."""
    store = FeatureStore.create(path, SPEC, locator=LOCATOR, disk=disk)
    add_rows(store, range(300))
    add_rows(store, range(300, 360))
    roles = {"label": "label"}
    store.commit(entries_for(range(360), failed=(7,)), roles=roles)
    add_rows(store, range(360, 380))
    store.commit(entries_for(range(330, 380), label="d{}"), keep_old=True, roles=roles)
    gone = entries_for(range(50, 60)).ids
    store.commit(store.snapshot().entries.without(gone), roles=roles)
    store.commit(entries_for(range(290, 310)), view="few", roles=roles)
    assert [store.snapshot("main", n).chain for n in (0, 1, 2)] == [0, 1, 2]
    return store


def digest(data) -> str:
    """Everything that a load gives, in one text."""
    hasher = hashlib.sha256(np.ascontiguousarray(data.X).tobytes())
    plain = {name: column.tolist() for name, column in data.columns.items()}
    rest = [data.X.dtype.str, data.ids.tolist(), data.y.tolist(), plain, data.spec, data.locator, data.fingerprint]
    hasher.update(json.dumps([*rest, data.node], sort_keys=True).encode())
    return hasher.hexdigest()


def loads(path) -> dict[str, str]:
    """Load every state of every view that `build` makes: a digest, or how it failed."""
    found = {}
    states = [("main", 0), ("main", 1), ("main", None), ("few", None)]
    for view, number, in_memory in [*((*s, True) for s in states), *((*s, False) for s in states[2:])]:
        try:
            data = FeatureStore.open(path).load(view, snapshot=number, in_memory=in_memory)
            found[f"{view} {number} {in_memory}"] = digest(data)
        except DamagedStore as error:
            found[f"{view} {number} {in_memory}"] = f"damaged: {error}"
    return found


def checked(path) -> tuple[bool, list[dict]]:
    """Check deeply; a store that cannot even be opened is one whose store.json is damaged."""
    try:
        report = FeatureStore.open(path).check(deep=True)
    except DamagedStore as error:
        return False, [{"file": Path(error.file).name, "reason": str(error), "images": []}]
    return report.ok, report.damaged


def verdict(path, name: str, truth: dict[str, str]) -> str:
    """Judge a store one of whose files was harmed: "harmless" or "detected"; anything else is what went wrong."""
    try:
        found = loads(path)
        ok, damaged = checked(path)
    except Exception:
        return "another exception: " + traceback.format_exc(limit=-4)
    wrong = [k for k, v in found.items() if v != truth[k] and not v.startswith("damaged: ")]
    if wrong:
        return f"silently other data: {wrong}"
    unnamed = [v for v in found.values() if v.startswith("damaged: ") and name not in v]
    if unnamed:
        return f"the error does not name {name}: {unnamed[0]}"
    if ok:
        return "harmless" if found == truth else f"check says ok, but load fails: {found}"
    if [d["file"] for d in damaged] != [name]:
        return f"check names {[d['file'] for d in damaged]}, not {name}"
    return "detected"


def regions_of(path) -> dict[str, tuple[int, int]]:
    """Return the parts of a container: name → (start, stop), without those of no bytes."""
    container = Container(path)
    data = path.read_bytes()
    length = int.from_bytes(data[12:16], "little")
    block = json.loads(data[24 : 24 + length])["block"]
    spans = {r["name"]: (r["offset"], r["offset"] + r["bytes"]) for r in container.regions.values() if r["bytes"]}
    parts = {"fixed header": (0, 24), "json header": (24, 24 + length), "padding": (24 + length, block)}
    position = block
    for number, (start, stop) in enumerate(sorted([*spans.values(), (len(data), len(data))])):
        if start > position:
            parts[f"hdf5 metadata {number}"] = (position, start)
        position = stop
    return parts | spans


def flip_bits(path: Path, name: str, count: int, seed: int, truth: dict[str, str]) -> list[dict]:
    """Flip `count` single bits of one file, spread over its parts, one at a time."""
    rng = np.random.default_rng([seed, *name.encode()])
    file = path / name
    original = file.read_bytes()
    parts = regions_of(file) if name.endswith(".h5") else {"text": (0, len(original))}
    order = [list(parts)[i % len(parts)] for i in range(count)]
    outcomes = []
    for part in order:
        place, bit = int(rng.integers(*parts[part])), int(rng.integers(8))
        harmed = bytearray(original)
        harmed[place] ^= 1 << bit
        print(f"flipping {name} byte {place} bit {bit} ({part})", flush=True)  # the last words of a child that dies
        file.write_bytes(harmed)
        outcomes.append({"file": name, "part": part, "byte": place, "bit": bit, "is": verdict(path, name, truth)})
    file.write_bytes(original)
    return outcomes


def in_child(call: str, *arguments, module="builders", as_nobody=False, **options) -> subprocess.CompletedProcess:
    """Run a function of a module of this folder in a process of its own; its result comes as the last line, in JSON."""
    drop = "builders.become_nobody(); " if as_nobody else ""
    code = f"import json, sys, builders, {module}; {drop}print(json.dumps({module}.{call}(*json.loads(sys.argv[1]))))"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    options = {"env": environment, "capture_output": True, "text": True, "timeout": 250, **options}
    return subprocess.run([sys.executable, "-c", code, json.dumps(arguments)], **options)


def become_nobody() -> None:
    """Give up root. Everything is imported before, by use: nobody may not be allowed to read where Python lies."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.features"
        store = build(path)
        _grow(store)
        store.load(), map_all(str(path)), create_there(str(path / "store.json")), store.check(deep=True)
    os.setgid(65534)
    os.setuid(65534)


def result_of(done: subprocess.CompletedProcess):
    assert done.returncode == 0, f"the child died ({done.returncode}): {done.stdout[-500:]} {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def flip_files(path: str, names: list[str], count: int, seed: int) -> list[dict]:
    truth = loads(path)
    return [o for name in names for o in flip_bits(Path(path), name, count, seed, truth)]


class NthCall(Disk):
    """Fails the N-th of all calls: before doing it, after doing it, or (writes) half-way; or kills the process.

    `how` is "before", "after", "half", "kill" (before) or "kill half".
    """

    CALLS = ("write", "mkdir", "fsync", "link", "rename", "unlink")

    def __init__(self, nth: int, number: int = errno.EIO, how: str = "before") -> None:
        self.nth, self.number, self.how = nth, number, how
        self.count, self.failed = 0, ""

    def _call(self, name, *args):
        real = getattr(super(), name)
        self.count += 1
        if self.count != self.nth:
            return real(*args)
        self.failed = name
        if self.how == "after":
            real(*args)
        if self.how.endswith("half") and name == "write":
            path, data = args
            whole = b"".join([data] if isinstance(data, (bytes, memoryview)) else data)
            real(path, whole[: len(whole) // 2])
        if self.how.startswith("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(self.number, os.strerror(self.number))


for _name in NthCall.CALLS:
    setattr(NthCall, _name, lambda self, *args, _name=_name: self._call(_name, *args))


def grow_until_full(path: str, limit: int) -> dict:
    """With files limited to so many bytes: append and commit; tell how it ended."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store = FeatureStore.open(path)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    return _grow(store)


def _grow(store: FeatureStore) -> dict:
    stage = "append"
    try:
        add_rows(store, range(1000, 2000))
        stage = "commit"
        store.commit(entries_for(range(1000, 2000)), keep_old=True)
    except FeatcacheError as error:
        return {"stage": stage, "error": type(error).__name__, "text": str(error)}
    except OSError as error:
        return {"stage": stage, "error": "OSError", "text": str(error)}
    return {"stage": "done", "error": "", "text": ""}


def grow(path: str) -> dict:
    return _grow(FeatureStore.open(path))


def map_all(path: str) -> str:
    """Load as a map, as a set larger than memory would be."""
    try:
        return digest(FeatureStore.open(path).load(in_memory=False))
    except OSError as error:
        return f"{type(error).__name__} {error}"


def open_with_few_files(path: str, soft: int, hard: int) -> str:
    """Load with so many open files allowed."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    try:
        store = FeatureStore.open(path)
        found = store.load()
        return f"{len(found)} rows, {len(store.damaged)} damaged"
    except FeatcacheError as error:
        return f"{type(error).__name__} {error}"


def create_there(path: str) -> str:
    try:
        FeatureStore.create(path, SPEC)
        return "made"
    except FeatcacheError as error:
        return f"{type(error).__name__} {error}"


def kill_at_each_call(path: str) -> list[dict]:
    """In one forked child per N: append, commit, acknowledge each by a pipe, and die at the N-th call of the disk."""
    outcomes = []
    for nth in range(1, 200):
        root = Path(path) / f"{nth:03d}.features"
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            store = FeatureStore.create(root, SPEC, disk=NthCall(nth, how="kill"))
            for n in range(2):
                numbers = range(10 * n, 10 * n + 10)
                add_rows(store, numbers)
                os.write(writer, b"a")
                store.commit(entries_for(numbers), keep_old=True)
                os.write(writer, b"c")
            os._exit(0)
        os.close(writer)
        _, status = os.waitpid(child, 0)
        said = os.read(reader, 100).decode()
        os.close(reader)
        outcomes.append({"nth": nth, "killed": os.WIFSIGNALED(status), "said": said, "root": str(root)})
        if not outcomes[-1]["killed"]:
            break
    return outcomes
