r"""How fast is the store beside what people use for arrays on disk?

Question
    Codes of float16, 1280 numbers a row: reading them through featcache, verified, against np.memmap of a .npy file; a
    publish that survives a crash against writing and syncing the same bytes; and against one growing h5py file and one
    .npy file per image. What does a block-shuffled epoch cost beside a DataLoader over a memmap?

Command
    python benchmarks/bench_store.py [--gb 2] [--repeat 5] [--out benchmarks/results/store.json] [--tiny]

How
    One set of random codes, in a temporary folder: as a store of shards of 64 MiB with its rows in the order of their
    ids; the same store compacted to one shard; a .npy file. Contestants take turns, each --repeat times; figures are
    medians. Everything that follows runs over a warm page cache, except the line that says cold.

    Scans read all rows in portions of 8192 into memory; gathers read 256 rows a call, random or sorted, each call
    others. "stored" returns float16, as memmap does; "float32" what training needs, for memmap by astype. First touch:
    a store just opened, whose checksums are compared as it is scanned; looking up where each row lies, once a process,
    is a line of its own. Cold: after posix_fadvise(DONTNEED) on the file, and only where the time
    that memmap then takes shows that the pages were gone.

    Rivals that are written one image or batch at a time get fewer rows: one file per image of 20 000 rows at most; the
    h5py file is chunked by 64 rows and synced after each batch of 256 rows, as careful users do.

Targets
    Scan at least 0.8, gathers at least 0.6, first touch at least 0.4 times np.memmap; verified publish of 64 MiB at
    least 0.5 times plain write and fsync.

--tiny: 20 MB, 2 repetitions, and no target counts; it shows that the benchmark runs.
"""

import argparse
import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import measuring
import numpy as np

from featcache import FeatureStore
from featcache.store import Entries
from featcache.store.access import StoredCodes

COMMAND = "python benchmarks/bench_store.py"
QUESTION = "How fast is the store beside what people use for arrays on disk?"
WIDTH, ROW_BYTES, BATCH, PORTION = 1280, 2560, 256, 8192
SHARD_BYTES = 64 << 20
CALLS = 200


def seconds_of(action: Callable[[], Any]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def in_turn(actions: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Run all actions in turn, `repeat` times; return the median seconds of each."""
    taken: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(repeat):
        for name in list(actions)[:: 1 if turn % 2 else -1]:
            taken[name].append(seconds_of(actions[name]))
    return {name: float(np.median(values)) for name, values in taken.items()}


def random_codes(rows: int, seed: int) -> np.ndarray:
    """Return codes like those of a network: not negative, half of them zero."""
    draw = np.random.default_rng(seed)
    return np.maximum(draw.standard_normal((rows, WIDTH), dtype="f4"), 0).astype("f2")


def portions(n: int, size: int = PORTION) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def keys_of(n: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (n, 32), dtype="u1")


def build(place: Path, n: int, shard_rows: int) -> FeatureStore:
    """Write the codes as a store of many shards, and as one .npy file."""
    store, keys = FeatureStore.create(place / "many", {"dtype": "float16"}), keys_of(n)
    out = np.lib.format.open_memmap(place / "codes.npy", mode="w+", dtype="f2", shape=(n, WIDTH))
    for number, part in enumerate(portions(n, shard_rows)):
        codes = random_codes(part.stop - part.start, number)
        store.append(keys[part], {"flatten": codes})
        out[part] = codes
    out.flush()
    labels = np.array([f"class{i * 100 // n:02d}" for i in range(n)])
    ids = np.array([f"{i:09d}" for i in range(n)])
    store.commit(Entries(ids, keys, np.zeros(n, "u1"), np.full(n, ""), {"label": labels}), roles={"label": "label"})
    return store


def scan(array: Any, dtype: str = "f2") -> None:
    for part in portions(len(array)):
        found = array[part]
        # What a map gives is no copy yet; bytes that nobody reads cost nothing and show nothing.
        if isinstance(found, np.memmap) or not found.flags.owndata or found.dtype != dtype:
            np.array(found, dtype=dtype)
        del found  # every copy is let go before the next is made, whoever made it


def ratio(theirs: float, mine: float) -> float:
    return round(theirs / mine, 2)


def reading(many: FeatureStore, one: FeatureStore, npy: Path, repeat: int) -> dict[str, Any]:
    """Scans and gathers over a warm page cache, after first touch."""
    memmap = np.load(npy, mmap_mode="r")
    place = many.dataset().codes.place
    codes, wide = StoredCodes(place, dtype=None), StoredCodes(place)
    loaded = one.load(in_memory=False).X
    one_codes, one_wide = (StoredCodes(one.dataset().codes.place, dtype=t) for t in (None, "f4"))
    arrays = {
        "np.memmap": (memmap, "f2"),
        "featcache, one shard, load(in_memory=False)": (loaded, "f2"),
        "featcache, one shard, StoredCodes": (one_codes, "f2"),
        f"featcache, {len(many.shards)} shards, StoredCodes": (codes, "f2"),
        "np.memmap, as float32": (memmap, "f4"),
        "featcache, one shard, StoredCodes, float32": (one_wide, "f4"),
        f"featcache, {len(many.shards)} shards, StoredCodes, float32": (wide, "f4"),
    }
    for array, dtype in arrays.values():
        scan(array, dtype)
    n, draw = len(memmap), np.random.default_rng(2)
    index = [draw.integers(0, n, BATCH) for _ in range(CALLS)]
    in_order = [np.sort(i) for i in index]

    def gathers(array: Any, dtype: str, wanted: Sequence[np.ndarray]) -> Callable[[], None]:
        def action() -> None:
            for i in wanted:
                array[i].astype(dtype, copy=False)

        return action

    scans = in_turn({k: lambda a=a, t=t: scan(a, t) for k, (a, t) in arrays.items()}, repeat)
    random = in_turn({k: gathers(a, t, index) for k, (a, t) in arrays.items()}, repeat)
    ordered = in_turn({k: gathers(a, t, in_order) for k, (a, t) in arrays.items()}, repeat)
    lines, claims = [], []
    for name, (_, dtype) in arrays.items():
        rival = "np.memmap" if dtype == "f2" else "np.memmap, as float32"
        against = [ratio(t[rival], t[name]) for t in (scans, random, ordered)]
        lines.append(
            {
                "who": name,
                "scan, GB/s of float16": round(n * ROW_BYTES / scans[name] / 1e9, 2),
                "random rows/s": round(CALLS * BATCH / random[name]),
                "sorted rows/s": round(CALLS * BATCH / ordered[name]),
                "times memmap (scan, random, sorted)": against,
            }
        )
        if name != rival:
            claims.append(measuring.claim(f"{name}: scan at least 0.8 x {rival}", against[0], against[0] >= 0.8))
            least = min(against[1:])
            claims.append(measuring.claim(f"{name}: gathers at least 0.6 x {rival}", least, least >= 0.6))
    return {"claims": claims, "lines": lines}


def drop_pages(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def first_touch(one: FeatureStore, npy: Path, repeat: int) -> dict[str, Any]:
    """A scan of what nobody has verified yet; warm, and cold where pages can be dropped."""
    found: dict[str, list[float]] = {"look all rows up, once a process": []}
    shard, place = one.shards[-1].path, one.dataset().codes.place
    gc.collect()  # the pages of a file that somebody maps stay in the cache

    def opened() -> StoredCodes:
        start = time.perf_counter()
        rows = FeatureStore.open(one.path).dataset().codes.rows
        found["look all rows up, once a process"].append(time.perf_counter() - start)
        return StoredCodes(place, dtype=None, opened=rows)

    def once(kind: str) -> None:
        for name, path, make in (
            ("featcache", shard, opened),
            ("np.memmap", npy, lambda: np.load(npy, mmap_mode="r")),
        ):
            array = make()
            if kind == "cold":
                drop_pages(path)
            found.setdefault(f"{name}, {kind}", []).append(seconds_of(lambda array=array: scan(array)))
            del array

    kinds = ["warm", "cold"] if hasattr(os, "posix_fadvise") else ["warm"]
    for _ in range(repeat):
        for kind in kinds:
            once(kind)
    taken = {name: float(np.median(values)) for name, values in found.items()}
    claims = []
    for kind in kinds:
        if kind == "cold" and any(
            taken[f"{who}, cold"] < 2 * taken[f"{who}, warm"] for who in ("featcache", "np.memmap")
        ):
            continue  # the pages did not leave the cache, so these are no cold figures
        times = ratio(taken[f"np.memmap, {kind}"], taken[f"featcache, {kind}"])
        text = f"a first scan, verifying what it reads, at least 0.4 x np.memmap, {kind} page cache"
        claims.append(measuring.claim(text, times, times >= 0.4))
    if len(claims) < len(kinds):
        taken = {name: value for name, value in taken.items() if "cold" not in name}
    return {"claims": claims, "seconds": {name: round(value, 3) for name, value in taken.items()}}


def publishing(place: Path, size: int, repeat: int) -> dict[str, Any]:
    """Append rows so that they survive a crash, against writing and syncing as many bytes."""
    rows = size // ROW_BYTES
    codes = random_codes(rows, 7)
    store = FeatureStore.create(place / "published", {"dtype": "float16"})
    store.append(keys_of(8) ^ 1, {"flatten": codes[:8]})
    count = iter(range(1_000_000))

    def publish() -> None:
        keys = np.random.default_rng(next(count)).integers(0, 256, (rows, 32), dtype="u1")
        store.append(keys, {"flatten": codes})

    def plain() -> None:
        with (place / f"plain{next(count)}").open("wb") as file:
            file.write(codes.data)
            file.flush()
            os.fsync(file.fileno())

    taken = in_turn({"featcache": publish, "write + fsync": plain}, repeat)
    rate = {name: round(codes.nbytes / seconds / 1e6) for name, seconds in taken.items()}
    found = ratio(taken["write + fsync"], taken["featcache"])
    text = f"verified publish of {codes.nbytes >> 20} MiB at least 0.5 x write + fsync"
    return {"claims": [measuring.claim(text, found, found >= 0.5)], "MB/s": rate}


def other_ways(place: Path, n: int, files: int) -> list[dict[str, Any]]:
    """One growing h5py file, and one .npy file per image: writing, then random rows."""
    import h5py

    codes, draw = random_codes(n, 9), np.random.default_rng(3)
    index = [np.unique(draw.integers(0, n, BATCH)) for _ in range(20)]
    few = [draw.integers(0, files, BATCH) for _ in range(5)]

    def write_h5() -> None:
        with h5py.File(place / "growing.h5", "w") as file:
            data = file.create_dataset("x", (0, WIDTH), "f2", maxshape=(None, WIDTH), chunks=(64, WIDTH))
            descriptor = file.id.get_vfd_handle()
            for part in portions(n, BATCH):
                data.resize(part.stop, axis=0)
                data[part] = codes[part]
                file.flush()
                os.fsync(descriptor)

    def write_files() -> None:
        folder = place / "files"
        folder.mkdir()
        for i in range(files):
            np.save(folder / f"{i}.npy", codes[i])

    def write_store() -> None:
        store, keys = FeatureStore.create(place / "batches", {"dtype": "float16"}), keys_of(n)
        for part in portions(n, SHARD_BYTES // ROW_BYTES):
            store.append(keys[part], {"flatten": codes[part]})
        store.commit(Entries(np.array([f"{i:09d}" for i in range(n)]), keys, np.zeros(n, "u1"), np.full(n, ""), {}))

    took = [seconds_of(write) for write in (write_h5, write_files, write_store)]
    stored = FeatureStore.open(place / "batches").dataset(unlabelled=True).codes
    scan(stored, "f4")
    with h5py.File(place / "growing.h5") as file:
        of_h5 = seconds_of(lambda: [file["x"][i] for i in index])
    of_files = seconds_of(lambda: [np.load(place / "files" / f"{i}.npy") for part in few for i in part.tolist()])
    of_store = seconds_of(lambda: [stored[i] for i in index])
    asked = sum(map(len, index))
    return [
        {"who": "one h5py file, synced every 256 rows", "rows": n, "written rows/s": round(n / took[0]),
         "random rows/s": round(asked / of_h5)},
        {"who": "one .npy per image, not synced", "rows": files, "written rows/s": round(files / took[1]),
         "random rows/s": round(len(few) * BATCH / of_files)},
        {"who": "featcache, verified and synced every 64 MiB", "rows": n, "written rows/s": round(n / took[2]),
         "random rows/s": round(asked / of_store)},
    ]  # fmt: skip


class MappedSet:
    """What people write: a Dataset over a memmap."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, np.load(path, mmap_mode="r")

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        return self.rows[i].astype(np.float32), 0


def epochs(many: FeatureStore, npy: Path, repeat: int) -> dict[str, Any]:
    """One shuffled epoch of float32 batches of 256."""
    from torch.utils.data import DataLoader

    data, theirs = many.dataset(), MappedSet(npy)

    def through(batches: Callable[[], Any]) -> Callable[[], None]:
        def action() -> None:
            if sum(len(batch[0]) for batch in batches()) != len(theirs):
                raise RuntimeError("an epoch without all rows")

        return action

    taken = in_turn(
        {
            "featcache: data.batches": through(lambda: data.batches(BATCH)),
            "featcache: DataLoader, block-shuffled sampler of batches": through(
                lambda: DataLoader(data, batch_size=None, sampler=data.sampler(BATCH))
            ),
            "featcache: DataLoader, shuffle=True": through(lambda: DataLoader(data, batch_size=BATCH, shuffle=True)),
            "DataLoader over np.memmap, shuffle=True": through(
                lambda: DataLoader(theirs, batch_size=BATCH, shuffle=True)
            ),
        },
        min(repeat, 3),
    )
    rates = [{"who": name, "rows/s": round(len(theirs) / seconds)} for name, seconds in taken.items()]
    rival = taken["DataLoader over np.memmap, shuffle=True"]
    found = ratio(rival, taken["featcache: data.batches"])
    return {
        "claims": [measuring.claim("a block-shuffled epoch is faster than a DataLoader over memmap", found, found > 1)],
        "lines": rates,
    }


def measure(place: Path, gigabytes: float, repeat: int, tiny: bool) -> dict[str, Any]:
    n = int(gigabytes * 1e9) // ROW_BYTES
    shard_bytes = SHARD_BYTES if not tiny else SHARD_BYTES // 32
    many = build(place, n, shard_bytes // ROW_BYTES)
    shutil.copytree(place / "many", place / "one")
    one = FeatureStore.open(place / "one")
    one.compact()
    npy = place / "codes.npy"
    parts = {
        # Through stores of their own: what they map could not leave the page cache later.
        "reading": reading(FeatureStore.open(many.path), FeatureStore.open(one.path), npy, repeat),
        "first_touch": first_touch(one, npy, repeat),
        "publishing": publishing(place, shard_bytes, repeat),
        "epoch": epochs(many, npy, repeat),
    }
    if not all(store.check().ok for store in (many, one)):
        raise RuntimeError("a store is damaged after the benchmark")
    claims = [line for part in parts.values() for line in part.pop("claims")]
    ways = other_ways(place, min(n, 20_000), min(n, 20_000))
    return {"rows": n, "numbers_a_row": WIDTH, "claims": claims, **parts, "other_ways": ways}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gb", type=float, default=2.0)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    gigabytes, repeat = (0.02, 2) if args.tiny else (args.gb, args.repeat)
    about = measuring.machine()
    with tempfile.TemporaryDirectory() as place:
        found = measure(Path(place), gigabytes, repeat, args.tiny)
    out = args.out or (None if args.tiny else measuring.REPOSITORY / "benchmarks" / "results" / "store.json")
    if out is not None:
        how = COMMAND + (" --tiny" if args.tiny else f" --gb {gigabytes:g}" if gigabytes != 2 else "")
        measuring.write_result(out, QUESTION, how, about, found)
    for line in found["claims"]:
        print(f"{'ok' if line['holds'] else 'MISSED'}: {line['claim']} ({line['measured']})")
    return 0 if all(line["holds"] for line in found["claims"]) or args.tiny else 1


if __name__ == "__main__":
    sys.exit(main())
