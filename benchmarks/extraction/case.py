"""What the parts work with: folders of images, and processes whose wall clock and memory are measured."""

import contextlib
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from measuring import REPOSITORY, Outcome, command, environment, in_process, index_rows
from parts import Skip
from PIL import Image

BENCHMARKS = REPOSITORY / "benchmarks"
WEIGHTS = {
    "mobilenet_v2": "mobilenet_v2-tf2_ptq_int8.pth",
    "squeezenet1_1": "squeezenet1_1-caffe_ncnn_fp16.pth",
    "resnet18": "resnet18_upto_layer3-onnx_bnfolded.pth",
}
NAMED_FLAGS = re.compile(r"^(amx|avx512_(bf16|fp16|vnni)|avx512f|avx2|f16c|bf16|fphp|asimdhp|i8mm)")


@dataclass(frozen=True)
class Ran:
    """One process: its answer, wall clock with all start-up inside, and peak resident memory (without children)."""

    answer: dict[str, Any]
    seconds: float
    peak_mb: float


@dataclass(frozen=True)
class Case:
    """One run of the benchmark.

    `environments` maps a rival to the Python that has it; `repeats` replaces each part's own number; `photos` is how
    many images a steady rate is measured on.
    """

    work: Path
    data: Path | None
    environments: dict[str, str] = field(default_factory=dict)
    contestants: frozenset[str] = frozenset()
    repeats: int | None = None
    photos: int = 600
    epochs: int = 25
    tiny: bool = False
    known: dict[str, Any] = field(default_factory=dict)

    def times(self, usual: int) -> int:
        """Return how often to repeat."""
        return 1 if self.tiny else self.repeats or usual

    @property
    def sizes(self) -> dict[str, int]:
        """Shorter edge and crop, the weights' own."""
        return {"resize": 64, "crop": 64} if self.tiny else {"resize": 256, "crop": 224}

    @property
    def network(self) -> str:
        """Architecture of the parts that take one."""
        return "squeezenet1_1" if self.tiny else "mobilenet_v2"

    def weights(self, arch: str) -> str:
        """Return the file with genuine weights of a network."""
        if self.data is None:
            return self._random_weights(arch)
        return str(self.data / "weights" / WEIGHTS[arch])

    def _random_weights(self, arch: str) -> str:
        import torch
        import torchvision

        path = self.work / f"{arch}.pth"
        if not path.exists():
            torch.manual_seed(0)
            torch.save(torchvision.models.get_model(arch, weights=None).state_dict(), path)
        return str(path)

    # -- images ----------------------------------------------------------------------------------------------------

    def folder_of(self, name: str) -> Path:
        """Return the folder of a set of real images; of generated ones with --tiny."""
        if self.data is None:
            return self.generated / name
        return self.data / "datasets" / name

    @cached_property
    def generated(self) -> Path:
        """Folders of small generated photos, for --tiny."""
        for seed, name in enumerate(("clothing10", "sign_digits", "bccd_cells", "pneumonia_xray")):
            _generate(self.work / "generated" / name, 20, seed)
        return self.work / "generated"

    def some(self, name: str, n: int) -> Path:
        """Return a folder with n images of a set, spread over it, in its classes; their bytes are in the page cache."""
        folder = self.work / "sets" / f"{name}-{n}"
        if not folder.exists():
            for file in spread([row["file"] for row in index_rows(self.folder_of(name))], n):
                (folder / file).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(self.folder_of(name) / file, folder / file)
        return warmed(folder)

    def many(self, n: int) -> Path:
        """Return a folder of n different JPEG files of clothing10: copies differ in a comment, not in their pixels."""
        photos = [row["file"] for row in index_rows(self.folder_of("clothing10"))]
        if n <= len(photos):
            return self.some("clothing10", n)
        folder = self.work / "sets" / f"clothing10-{n}"
        for i in range(n if not folder.exists() else 0):
            original = self.folder_of("clothing10") / photos[i % len(photos)]
            path = folder / original.parent.name / f"{i:06d}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(with_comment(original.read_bytes(), str(i)))
        return warmed(folder)

    # -- processes -------------------------------------------------------------------------------------------------

    def featcache(self, *words: Any, cache: str = "cache") -> Ran:
        """Run one command of featcache in a fresh process; `cache` names its private user cache."""
        if self.tiny:
            return _as_ran(in_process(*words))
        return measured(command(words), {**environment(), "FEATCACHE_CACHE": str(self.work / cache)})

    def extract(self, folder: Path, *more: Any, cache: str = "cache", store: Path | None = None) -> Ran:
        """Run `featcache extract` into a new store, which is removed again unless it is named."""
        sizes = [f"--{k}={v}" for k, v in self.sizes.items()] if self.tiny else []
        out = store or self.work / "store"
        try:
            return self.featcache("extract", folder, "-o", out, *sizes, *more, "--json", cache=cache)
        finally:
            if store is None:
                shutil.rmtree(out, ignore_errors=True)

    def script(self, path: str, *words: Any, of: str | None = None, benchmarks: bool = False) -> Ran:
        """Run a script of benchmarks/ that ends with a line of JSON; `of` names the environment it needs."""
        if of is not None and of not in self.environments:
            raise Skip(f"no environment with {of}: give --env {of}=PYTHON")
        if self.tiny:
            return self._here(path, [str(w) for w in words])
        python = self.environments[of] if of else sys.executable
        variables = {k: v for k, v in os.environ.items() if of is None or k != "PYTHONPATH"}
        if benchmarks:
            variables = {**environment(), "FEATCACHE_CACHE": str(self.work / "cache")}
        return measured([python, "-W", "ignore", str(BENCHMARKS / path), *map(str, words)], variables)

    def _here(self, path: str, words: Sequence[str]) -> Ran:
        with contextlib.redirect_stdout(io.StringIO()):
            start = time.perf_counter()
            answer = _module(BENCHMARKS / path).main(words)
        return Ran(answer, time.perf_counter() - start, 0.0)


def _module(path: Path) -> Any:
    name = f"script_{path.stem}"
    if name not in sys.modules:
        if str(path.parent) not in sys.path:
            sys.path.insert(0, str(path.parent))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


def _as_ran(done: Outcome) -> Ran:
    return Ran(done.json, done.seconds, 0.0)


def measured(words: Sequence[str], variables: dict[str, str]) -> Ran:
    """Run a process to its end; its answer is the JSON at the end of its output."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        start = time.perf_counter()
        process = subprocess.Popen(words, stdout=out, stderr=err, env=variables)
        with watched(process.pid) as peak:
            try:
                status = process.wait()
                seconds = time.perf_counter() - start
            finally:
                process.kill()  # only when this benchmark is itself interrupted is there anything to end
        out.seek(0)
        err.seek(0)
        if status:
            raise RuntimeError(f"exit status {status}: {' '.join(err.read().split())[-400:]}")
        return Ran(_last_json(out.read()), seconds, round(max(peak) / 1024, 1))


def _last_json(text: str) -> dict[str, Any]:
    """Return the object that the output ends with: indented over several lines, or in the last one."""
    with contextlib.suppress(json.JSONDecodeError):
        return dict(json.loads(text))
    return dict(json.loads(text.strip().splitlines()[-1]))


@contextlib.contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """Sample a process's peak memory in KiB: what getrusage gives afterwards may be that of who started it."""
    peak, done = [0], threading.Event()

    def look() -> None:
        while not done.wait(0.05):
            with contextlib.suppress(OSError, ValueError):
                for line in Path(f"/proc/{pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        peak.append(int(line.split()[1]))

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()


def note(text: str) -> None:
    """Tell who waits how far it is."""
    print(f"       {time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def spread(values: Sequence[Any], n: int) -> list[Any]:
    """Return up to n of the values, evenly spread."""
    return [values[i] for i in np.unique(np.linspace(0, len(values) - 1, min(n, len(values))).astype(int))]


def warmed(folder: Path) -> Path:
    """Read every file once, so that nobody is the first to ask the disk."""
    for path in folder.rglob("*"):
        if path.is_file():
            path.read_bytes()
    return folder


def with_comment(jpeg: bytes, text: str) -> bytes:
    """Return a JPEG file with a comment after its first marker: other bytes, the same pixels."""
    assert jpeg[:2] == b"\xff\xd8", "not a JPEG file"
    return jpeg[:2] + b"\xff\xfe" + (2 + len(text)).to_bytes(2, "big") + text.encode() + jpeg[2:]


def cpu_flags() -> list[str]:
    """Return the instructions of this processor that decide which modes are fast."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                return sorted({flag for flag in line.partition(":")[2].split() if NAMED_FLAGS.match(flag)})
    return []


def _generate(folder: Path, n: int, seed: int) -> None:
    generator, lines = np.random.default_rng(seed), ["file,class,split"]
    for i in range(n):
        label = ("cat", "dog")[i % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        name = f"{label}/{seed}-{i:03d}.jpg"
        Image.fromarray(generator.integers(0, 256, (8, 8, 3), dtype="u1")).resize((90, 70)).save(folder / name)
        lines.append(f"{name},{label},{('train', 'train', 'train', 'validation', 'test')[i // 2 % 5]}")
    (folder / "index.csv").write_text("\n".join(lines) + "\n")
