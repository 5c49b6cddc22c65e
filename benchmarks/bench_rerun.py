"""How long does a rerun take when nothing has changed?

Question
    A folder of 100 000 images was extracted; the same command again, as a whole process: how many seconds until it says
    that there is nothing to do? And the plan (--dry-run), and a run with one image more?

Command
    python benchmarks/bench_rerun.py [--images 100000] [--repeat 5] [--out benchmarks/results/rerun.json] [--tiny]

How
    Distinct 1 x 1 pixel images of 58 bytes, in 100 class folders, in a temporary folder. The first 100 go through the
    embedded backbone; the others get random codes under their true keys, since what is measured computes nothing. One
    extraction fills the cache of digests. Then each command in a process of its own, in turn, wall clock from start to
    exit; all files are in the page cache, as they are after the first of several runs.

    Against: asking the system for the state of each file once, in a bare Python loop (no program that looks for changes
    can do less), and the same rerun after the cache of digests was removed, when every image is read again.

--tiny: 300 images, 1 repetition, in this process; writes only where --out says.
"""

import argparse
import hashlib
import os
import struct
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
import numpy as np

from featcache import FeatureStore, ImageSource
from featcache.store.digests import GRANULARITY_NS, DigestCache

COMMAND = "python benchmarks/bench_rerun.py"
QUESTION = "How long does a rerun take when nothing has changed?"
COMPUTED = 100
CLASSES = 100
TARGET_SECONDS = 3.0


def image(number: int) -> bytes:
    """Return a BMP of one pixel, whose colour is the number."""
    header = struct.pack("<2sIHHIIiiHHIIiiII", b"BM", 58, 0, 0, 54, 40, 1, 1, 1, 24, 0, 4, 0, 0, 0, 0)
    return header + struct.pack("<I", number)


def write_images(folder: Path, first: int, stop: int) -> None:
    for number in range(first, stop):
        place = folder / f"class{number % CLASSES:03d}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"image_{number:07d}.bmp").write_bytes(image(number))


def invent_codes(path: Path, first: int, stop: int) -> None:
    """Give images codes that no network computed."""
    store = FeatureStore.open(path)
    node, shape = next(iter(store.nodes.items()))
    computed, rng = store.shards[-1].attributes["computed"], np.random.default_rng(0)
    for start in range(first, stop, 1 << 16):
        numbers = range(start, min(start + (1 << 16), stop))
        keys = np.stack([np.frombuffer(hashlib.sha256(image(i)).digest(), "u1") for i in numbers])
        store.append(keys, {node: rng.random((len(keys), *shape), dtype="f4")}, computed=computed)


def ask_states(folder: Path) -> float:
    """Return the seconds it takes to list a folder and ask for the state of each file."""
    start, stack = time.perf_counter(), [str(folder)]
    while stack:
        with os.scandir(stack.pop()) as entries:
            for entry in entries:
                stack.append(entry.path) if entry.is_dir() else entry.stat()
    return time.perf_counter() - start


def figures(values: list[float]) -> dict[str, Any]:
    return {"median_s": measuring.median(values), "fastest_s": round(min(values), 3), "runs": len(values)}


def measure(place: Path, images: int, repeat: int, run: Any) -> dict[str, Any]:
    folder, store = place / "images", place / "codes"
    words = ("extract", folder, "-o", store, "--json", "--quiet")
    write_images(folder, 0, min(COMPUTED, images))
    assert run(*words).json["computed"] == min(COMPUTED, images)
    write_images(folder, COMPUTED, images)
    invent_codes(store, COMPUTED, images)
    time.sleep(1.5 * GRANULARITY_NS / 1e9)  # younger files are not remembered
    first = run(*words)
    assert first.json["computed"] == 0 and first.json["images"] == images
    source, caches = ImageSource.from_folder(folder), sorted((store / "index").glob("digests*"))
    known = int(DigestCache(caches[0]).get_many(source.stats(range(images)))[0].sum())
    seconds: dict[str, list[float]] = {"states": [], "rerun": [], "plan": [], "more": []}
    nothing = True
    for number in range(repeat):
        seconds["states"].append(ask_states(folder))
        again, planned = run(*words), run(*words, "--dry-run")
        nothing &= again.json["computed"] == 0 and planned.json["compute"] == 0
        seconds["rerun"].append(again.seconds)
        seconds["plan"].append(planned.seconds)
        invent_codes(store, images + number, images + number + 1)
        write_images(folder, images + number, images + number + 1)
        seconds["more"].append(run(*words).seconds)
    for cache in caches:
        cache.unlink()
    lost = run(*words).seconds
    rerun, plan = measuring.median(seconds["rerun"]), measuring.median(seconds["plan"])
    return {
        "images": images,
        "seconds": [
            {"what": "extract, nothing changed", **figures(seconds["rerun"])},
            {"what": "extract --dry-run, nothing changed", **figures(seconds["plan"])},
            {"what": "extract, one image more", **figures(seconds["more"])},
            {"what": "bare loop: list the folders, ask for each file's state", **figures(seconds["states"])},
            {"what": "extract, cache of digests removed: every image read", **figures([lost])},
        ],
        "claims": [
            measuring.claim(f"a rerun takes less than {TARGET_SECONDS:g} s", rerun, rerun < TARGET_SECONDS),
            measuring.claim(f"a plan takes less than {TARGET_SECONDS:g} s", plan, plan < TARGET_SECONDS),
            measuring.claim("no image was computed, none had to be read", known, nothing and known == images),
        ],
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    images, repeat, run = (args.images, args.repeat, measuring.as_process)
    if args.tiny:
        images, repeat, run = 300, 1, measuring.in_process
    about = measuring.machine()
    with tempfile.TemporaryDirectory() as place:
        found = measure(Path(place), images, repeat, run)
    out = args.out or (None if args.tiny else measuring.REPOSITORY / "benchmarks" / "results" / "rerun.json")
    if out is not None:
        measuring.write_result(out, QUESTION, COMMAND + (" --tiny" if args.tiny else ""), about, found)
    for line in found["claims"]:
        print(f"{'ok' if line['holds'] else 'MISSED'}: {line['claim']} ({line['measured']})")
    return 0 if all(line["holds"] for line in found["claims"]) or args.tiny else 1


if __name__ == "__main__":
    sys.exit(main())
