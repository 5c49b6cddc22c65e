"""Part `gpu`: the steady comparison on CUDA, from files and from memory, with the share of time the GPU is busy."""

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import claim
from parts import Skip

from extraction import contestants as field
from extraction.case import Case, Ran
from extraction.speed import networks

NETWORKS = ("mobilenet_v2", "resnet50")


def gpu(case: Case) -> dict[str, Any]:
    """Measure where there is a GPU; `auto` has real weights only for MobileNetV2."""
    if case.tiny:
        raise Skip("left out of a trial run")
    name = device_name()
    lines, left_out = [], {}
    for arch in NETWORKS:
        real = arch == "mobilenet_v2" and case.data is not None
        own, theirs = networks(case, arch, real)
        folder = case.many(case.photos)
        busy: dict[str, list[float]] = {}
        entries = [_watched(entry, busy) for entry in _entries(case, own, theirs, real)]
        found = field.race(case, entries, folder, case.times(3))
        for line in field.with_ratios(found["lines"]):
            share = round(float(np.median(busy[line["who"]])), 2)
            lines.append({"network": arch, **line, "gpu_busy": share})
        left_out.update(found.get("left out", {}))
    left = {"left out": left_out} if left_out else {}
    return {"claims": _claims(lines), "gpu": name, "images": case.photos, "lines": lines, **left}


def device_name() -> str:
    """Return the GPU's name."""
    import torch

    if not torch.cuda.is_available():
        raise Skip("torch.cuda is not available here")
    return str(torch.cuda.get_device_name(0))


def _entries(case: Case, own: list[Any], theirs: list[Any], real: bool) -> list[field.Contestant]:
    low = "auto" if real else "fp16"
    cuda = ["--device", "cuda"]
    cores = ["--workers", 8, "--batch-size", 128]
    found = [field.featcache(case, f"featcache {p}", [*own, *cuda], p) for p in (low, "fp32")]
    found += [
        field.Contestant(f"featcache {p}, from memory", lambda folder, p=p: _memory(case, folder, own, p))
        for p in (low, "fp32")
    ]
    found.append(field.loop(case, "tutorial loop", "tutorial_loop", [*theirs, *cuda]))
    for mode in ("fp16", "fp32"):
        words = [*theirs, *cuda, "--mode", mode, *cores]
        found.append(_plain(case, f"tuned loop, {mode}", words))
        found.append(_plain(case, f"tuned loop, {mode}, from memory", [*words, "--from-memory"]))
    return found


def _plain(case: Case, name: str, words: list[Any]) -> field.Contestant:
    """The tuned loop with settings given: on a GPU many workers and large batches are what an expert takes."""

    def run(folder: Path) -> Ran:
        return case.script("rivals/tuned_loop.py", folder, "--out", case.work / "tuned.h5", *words)

    return field.Contestant(name, run)


def _memory(case: Case, folder: Path, own: list[Any], precision: str) -> Ran:
    store = case.work / "memory"
    words = [folder, "--store", store, "--precision", precision, "--device", "cuda"]
    words += ["--arch", own[1], "--weights", own[3]]
    try:
        return case.script("extraction/child_memory.py", *words, benchmarks=True)
    finally:
        shutil.rmtree(store, ignore_errors=True)


def _watched(entry: field.Contestant, busy: dict[str, list[float]]) -> field.Contestant:
    def run(folder: Path) -> Ran:
        with busy_share() as samples:
            ran = entry.run(folder)
        # The start of a process leaves the GPU idle: from the first busy sample on.
        first = next((i for i, value in enumerate(samples) if value), 0)
        busy.setdefault(entry.name, []).append(float(np.mean(samples[first:] or [0])) / 100)
        return ran

    return field.Contestant(entry.name, run, entry.repeats)


@contextlib.contextmanager
def busy_share() -> Iterator[list[int]]:
    """Collect the GPU's use in per cent, five times a second."""
    words = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200", "-i", "0"]
    samples: list[int] = []
    try:
        process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True)
    except OSError:
        yield samples
        return

    def collect() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            with contextlib.suppress(ValueError):
                samples.append(int(line))

    thread = threading.Thread(target=collect, daemon=True)
    thread.start()
    try:
        yield samples
    finally:
        process.terminate()
        process.wait()
        thread.join()


def _claims(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    claims = []
    for arch in NETWORKS:
        for memory in (False, True):
            some = [x for x in lines if x["network"] == arch and x["who"].endswith("from memory") == memory]
            rates = {line["who"]: line["steady_images_per_second"] for line in some}
            own = max((r for who, r in rates.items() if who.startswith("featcache")), default=None)
            others = max((r for who, r in rates.items() if not who.startswith("featcache")), default=None)
            if own and others:
                where = "from memory" if memory else "from files"
                ratio = round(own / others, 2)
                claims.append(claim(f"{arch}, {where}: ahead of every rival on the GPU", ratio, ratio > 1))
    return claims
