"""What the benchmarks share: the command line as a function, real data, claims, and the form of a results file."""

import contextlib
import csv
import datetime
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
VERSIONS = ("torch", "torchvision", "scikit-learn", "numpy", "pillow", "h5py")


@dataclass(frozen=True)
class Outcome:
    """What one command came to: exit status, its two streams, wall clock of the process in seconds."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        """Standard output, parsed; RuntimeError with what the command said when it failed."""
        if self.status:
            raise RuntimeError(f"exit status {self.status}: {self.err.strip()}")
        return json.loads(self.out)


def command(words: Sequence[Any]) -> list[str]:
    return [sys.executable, "-m", "featcache", *map(str, words)]


def environment() -> dict[str, str]:
    path = os.pathsep.join(p for p in (str(REPOSITORY), os.environ.get("PYTHONPATH", "")) if p)
    return {**os.environ, "PYTHONPATH": path}


def as_process(*words: Any) -> Outcome:
    """Run one command as its user does, in a process of its own."""
    start = time.perf_counter()
    done = subprocess.run(command(words), capture_output=True, text=True, env=environment())
    return Outcome(done.returncode, done.stdout, done.stderr, time.perf_counter() - start)


def in_process(*words: Any) -> Outcome:
    """Run one command without a new process: what --tiny and the tests use, where imports would be all of the time."""
    from featcache.cli import run

    out, err, start = io.StringIO(), io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run([str(w) for w in words])
    return Outcome(status, out.getvalue(), err.getvalue(), time.perf_counter() - start)


def claim(text: str, figure: Any, holds: bool) -> dict[str, Any]:
    """Return one line of a results file: what should be, what was measured, whether it is so."""
    return {"claim": text, "measured": figure, "holds": bool(holds)}


def median(values: Sequence[float], digits: int = 3) -> float:
    return round(float(np.median(values)), digits)


def data_folder(given: Path | None) -> Path | None:
    """Return the folder with weights/, datasets/ and odd_images/, or None where there is none."""
    path = given or Path(os.environ.get("FEATCACHE_TEST_DATA", REPOSITORY.parent / "shared" / "data") or os.devnull)
    return path if path.is_dir() else None


def index_rows(folder: Path) -> list[dict[str, str]]:
    """Return the lines of a set's index.csv."""
    with (folder / "index.csv").open(newline="", encoding="utf-8") as lines:
        return list(csv.DictReader(lines))


def tree_digest(folder: Path) -> str:
    """Return one digest of all names and bytes below a folder."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)}\0{path.stat().st_size}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def without_places(value: Any, places: Mapping[str, str]) -> Any:
    """Return JSON data in which no text names a folder of this machine."""
    if isinstance(value, dict):
        return {k: without_places(v, places) for k, v in value.items()}
    if isinstance(value, list):
        return [without_places(v, places) for v in value]
    if isinstance(value, str):
        for place, name in places.items():
            value = value.replace(place, name)
    return value


def load_average() -> float | None:
    """Return the load of the last minute: above the number of cores, other work disturbed the figures."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def machine() -> dict[str, Any]:
    cpu = platform.machine()
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = {name: metadata.version(name) for name in VERSIONS}
    return {
        "cpu": cpu,
        "cores": cores,
        "system": platform.system(),
        "load at start": load_average(),
        "python": platform.python_version(),
        **versions,
    }


def write_result(path: Path, question: str, how: str, about: dict[str, Any], figures: dict[str, Any]) -> None:
    """Write a results file; benchmarks/render.py turns all of them into benchmarks/README.md."""
    result = {
        "question": question,
        "command": how,
        "machine": about,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "figures": figures,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
