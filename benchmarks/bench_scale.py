"""Does a store of ten million images open at once, and does one more image cost only itself?

Question
    A store and a view of N images: how long do opening, taking the newest state, looking up 10,000 ids in it and
    10,000 keys in the shards take, and how much memory? How many bytes are written when one image is added? How do
    these grow from 10^6 to 10^7?

Command
    python benchmarks/bench_scale.py [--rows 1000000 10000000] [--repeat 5] [--out FILE] [--tiny]

How
    Synthetic rows (8 float16 values), random keys, ids of 24 letters in 1,000 classes, a label column, shards of
    100,000 rows. Each figure in a process of its own: seconds by the clock from before the store is opened (imports
    apart), memory as the largest resident set of the whole process, pages of mapped files included. The page cache is
    warm, except where "cold" says that the system was asked to drop the store's pages before. Bytes written are what
    the process handed to write calls, all files and caches included.

--tiny: 3,000 rows; writes only where --out says.
"""

import argparse
import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
import numpy as np

from featcache.store import Entries, FeatureStore

COMMAND = "python benchmarks/bench_scale.py"
QUESTION = "Does a store of ten million images open at once, and does one more image cost only itself?"
LOOK_UPS = 10_000
CLASSES = 1_000
SHARD_ROWS = 100_000
ADDED = 24
TARGET_SECONDS, TARGET_MEMORY, TARGET_BYTES = 2.0, 1e9, 1e6


def ids_of(numbers: np.ndarray, n: int) -> np.ndarray:
    folder = np.char.mod("class%04d/", numbers * CLASSES // n)
    return np.char.add(folder, np.char.mod("img%08d.jpg", numbers))


def entries(ids: np.ndarray, keys: np.ndarray) -> Entries:
    n = len(ids)
    return Entries(
        ids, keys, np.zeros(n, "u1"), np.full(n, "", "U1"), {"label": np.asarray([i[:9] for i in ids.tolist()])}
    )


def build(path: Path, n: int) -> dict[str, Any]:
    """Make a store of n rows and a view of them; tell how long that took."""
    start = time.perf_counter()
    store = FeatureStore.create(path, {"version": 1, "dtype": "float16"})
    rng = np.random.default_rng(0)
    keys = rng.integers(0, 256, (n, 32), dtype="u1")
    for first in range(0, n, SHARD_ROWS):
        part = keys[first : first + SHARD_ROWS]
        store.append(part, {"x": part[:, :8].astype("f2")})
    appended = time.perf_counter()
    lines = entries(ids_of(np.arange(n), n), keys)
    prepared = time.perf_counter()
    store.commit(lines, roles={"label": "label"})
    done = time.perf_counter()
    return {"append": round(appended - start, 1), "first_commit": round(done - prepared, 1), **memory()}


def memory() -> dict[str, float]:
    import resource

    return {"memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)}


def look_up(path: Path, n: int) -> dict[str, Any]:
    """Open, take the newest state, look up ids, then their keys; all of them must be found and be right."""
    numbers = np.unique(np.random.default_rng(1).integers(0, n, LOOK_UPS))
    ids = ids_of(numbers, n)
    start = time.perf_counter()
    store = FeatureStore.open(path)
    state = store.snapshot()
    assert state is not None
    opened = time.perf_counter()
    place, lines = state.look_up(ids)
    found = time.perf_counter()
    has = store.has(lines.keys)
    done = time.perf_counter()
    assert (place >= 0).all() and has.all() and lines.ids.tolist() == ids.tolist()
    seconds = {"seconds": done - start, "open": opened - start, "ids": found - opened, "keys": done - found, **memory()}
    codes = store.codes(lines.keys, "x")
    seconds["codes"] = time.perf_counter() - done
    assert np.array_equal(codes, lines.keys[:, :8].astype("f4"))
    return {name: round(value, 3) for name, value in seconds.items()}


def add_one(path: Path, n: int) -> dict[str, Any]:
    """Add one image and commit it; tell how many bytes were handed to write calls."""
    before, start = written(), time.perf_counter()
    store = FeatureStore.open(path)
    key = np.frombuffer(os.urandom(32), "u1").reshape(1, 32)
    store.append(key, {"x": key[:, :8].astype("f2")})
    state = store.commit(entries(np.asarray([f"class0000/new{time.time_ns()}.jpg"]), key), keep_old=True)
    seconds = time.perf_counter() - start
    assert len(state) > n
    return {"bytes": written() - before, "seconds": round(seconds, 3), **memory()}


def written() -> int:
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("wchar")))


def drop_pages(path: Path) -> None:
    """Ask the system to forget a store's pages."""
    for file in path.rglob("*"):
        if file.is_file():
            handle = os.open(file, os.O_RDONLY)
            with contextlib.suppress(OSError):
                os.fsync(handle)
                os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(handle)


def apart(name: str, path: Path, n: int) -> dict[str, Any]:
    """Run one of the functions here in a process of its own."""
    words = [sys.executable, __file__, "--run", name, "--store", str(path), "--rows", str(n)]
    done = subprocess.run(words, capture_output=True, text=True, env=measuring.environment())
    if done.returncode:
        raise RuntimeError(done.stderr)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def measure(n: int, repeat: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scale.features"
        built = apart("build", path, n)
        size = sum(f.stat().st_size for f in path.rglob("*") if f.is_file())
        warm = [apart("look_up", path, n) for _ in range(repeat + 1)][1:]
        cold = []
        for _ in range(repeat):
            drop_pages(path)
            cold.append(apart("look_up", path, n))
        added = [apart("add_one", path, n) for _ in range(ADDED)]
        after = [apart("look_up", path, n) for _ in range(repeat)]
    names = list(warm[0])
    return {
        "rows": n,
        "store_mb": round(size / 1e6),
        "built": built,
        "look_up": {name: measuring.median([w[name] for w in warm]) for name in names},
        "look_up_cold": {name: measuring.median([c[name] for c in cold]) for name in names},
        f"look_up_after_{ADDED}_additions": {name: measuring.median([a[name] for a in after]) for name in names},
        "add_one": {
            "bytes_median": int(np.median([a["bytes"] for a in added])),
            "bytes_largest": max(a["bytes"] for a in added),
            "seconds_median": measuring.median([a["seconds"] for a in added]),
            "memory_mb": max(a["memory_mb"] for a in added),
        },
    }


def claims(largest: dict[str, Any]) -> list[dict[str, Any]]:
    n, found, one = largest["rows"], largest["look_up"], largest["add_one"]
    return [
        measuring.claim(
            f"open, newest state and 10^4 look-ups of ids and of keys among {n:.0e}: under {TARGET_SECONDS} s",
            found["seconds"],
            found["seconds"] < TARGET_SECONDS,
        ),
        measuring.claim("the same: under 1 GB", found["memory_mb"], found["memory_mb"] * 1.048576e6 < TARGET_MEMORY),
        measuring.claim(
            f"one image added to {n:.0e}: at most 1 MB written, the largest of {ADDED}",
            one["bytes_largest"],
            one["bytes_largest"] < TARGET_BYTES,
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 10_000_000])
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--run", choices=["build", "look_up", "add_one"], help=argparse.SUPPRESS)
    parser.add_argument("--store", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.run:
        print(json.dumps({"build": build, "look_up": look_up, "add_one": add_one}[args.run](args.store, args.rows[0])))
        return 0
    about = measuring.machine()
    rows = [3_000] if args.tiny else args.rows
    results = [measure(n, 1 if args.tiny else args.repeat) for n in rows]
    figures = {"claims": claims(results[-1]), **{f"{r['rows']} rows": r for r in results}}
    out = args.out or (None if args.tiny else Path(__file__).parent / "results" / "scale.json")
    if out is not None:
        measuring.write_result(out, QUESTION, COMMAND, about, figures)
    print(json.dumps(figures, indent=1))
    return 0 if args.tiny or all(c["holds"] for c in figures["claims"]) else 1


if __name__ == "__main__":
    sys.exit(main())
