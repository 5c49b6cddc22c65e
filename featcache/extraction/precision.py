"""Precision: which numerical mode computes the codes, and the proof that it may.

A class is part of a store's identity: ``exact`` (float32 arithmetic, reference pixels), ``tolerance`` (any mode whose
codes of the user's own images, centred by their mean, have a cosine of at least 0.998 with the exact ones), or a pinned
mode (``bf16``, ``fp16``: that arithmetic, no promise). The mode actually used is recorded per shard, never keyed.

Raw cosine is a weak test: codes of different images can be 0.99 alike. Hence the centring.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import StoreError
from ..files import cache_folder, publish_bytes

__all__ = [
    "CLASSES",
    "ModeChoice",
    "choose_mode",
    "environment",
    "half_fits",
    "limit_of",
    "require_same_codes",
    "row_cosines",
    "worst_cosine",
]

#: What `precision=` accepts → the class it means ("auto" adopts the store's class when there is a store already).
CLASSES = {"auto": "tolerance", "fp32": "exact", "bf16": "bf16", "fp16": "fp16"}
TOLERANCE = 0.998
#: Two environments computing in float32 may order their sums differently; measured differences stay far below this.
EXACT_TOLERANCE = 0.9999
#: Fewer images than this do not repay the trial of faster modes.
WORTH_A_TRIAL = 512
_TRIAL_ROWS = 16
_WORTH_SPEEDUP = 1.15

Encode = Callable[[np.ndarray, str], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class ModeChoice:
    """The mode in use and the evidence for it.

    Attributes
    ----------
    mode : {"fp32", "bf16", "fp16"}
        What the network runs in.
    worst_cosine : float or None
        Smallest centred cosine with the exact codes over the probe; None when nothing had to be probed.
    speedup : float or None
        Measured rate of the mode over fp32's.
    reason : str
        Why this mode.
    """

    mode: str
    worst_cosine: float | None = None
    speedup: float | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def worst_cosine(exact: np.ndarray, other: np.ndarray) -> float:
    """Return the smallest cosine between rows of two sets of codes, both centred by the mean of the exact ones.

    Parameters
    ----------
    exact, other : ndarray of shape (n_samples, ...)
        Codes of the same images.

    Returns
    -------
    float
        1.0 for rows that agree to rounding, also where a centred row has no direction (all images alike).
    """
    return float(row_cosines(exact, other).min()) if len(exact) else 1.0


def row_cosines(exact: np.ndarray, other: np.ndarray, centre: np.ndarray | None = None) -> np.ndarray:
    """Return the cosine of each row of two sets of codes, both centred; −1 where the second is not finite.

    Parameters
    ----------
    exact, other : ndarray of shape (n_samples, ...)
        Codes of the same images.
    centre : ndarray of the shape of one row, default=None
        What to centre by; the mean of `exact`, where that has more than one row.

    Returns
    -------
    ndarray of float64 of shape (n_samples,)
    """
    a = np.asarray(exact, dtype=np.float64).reshape(len(exact), -1)
    b = np.asarray(other, dtype=np.float64).reshape(len(other), -1)
    finite = np.asarray(np.isfinite(b).all(axis=1))
    b = np.where(finite[:, None], b, 0.0)
    size = np.linalg.norm(a, axis=1)
    if centre is not None:
        mean = np.asarray(centre, dtype=np.float64).ravel()
    else:
        mean = a.mean(axis=0) if len(a) > 1 else np.zeros(a.shape[1])
    a, b = a - mean, b - mean
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    dots = (a * b).sum(axis=1)
    # Duplicates of one image leave nothing but rounding after centring: compared by distance relative to the code.
    tiny = np.linalg.norm(a, axis=1) <= 1e-3 * size
    close = np.linalg.norm(a - b, axis=1) <= 1e-2 * np.maximum(size, 1e-30)
    cosine = np.where(tiny, np.where(close, 1.0, -1.0), dots / np.where(norms > 0, norms, 1.0))
    return np.where(finite, np.clip(cosine, -1.0, 1.0), -1.0)


def half_fits(codes: Mapping[str, np.ndarray]) -> bool:
    """Tell whether float16 storage keeps all directions of these codes (worst centred cosine at least 0.99999)."""
    with np.errstate(over="ignore"):
        return all(
            # A factor of four in reserve: images not in the probe may have larger values.
            np.abs(array).max(initial=0.0) * 4 < np.finfo(np.float16).max
            and worst_cosine(array, array.astype(np.float16)) >= 0.99999
            for array in codes.values()
        )


def choose_mode(
    precision: str, n_images: int, encode: Encode, probe: np.ndarray, *, device: str, name: str, used_before: str | None
) -> ModeChoice:
    """Choose the fastest mode that a precision class allows.

    Parameters
    ----------
    precision : {"exact", "tolerance", "bf16", "fp16"}
        The store's class.
    n_images : int
        How many images are still to be computed, at most.
    encode : callable
        ``encode(pixels, mode)`` → codes per node.
    probe : ndarray of uint8 of shape (n, H, W, C)
        Some of the user's own images.
    device : str
        "cpu", "cuda", …
    name : str
        What identifies the network and machine in the private cache of timings.
    used_before : str or None
        The mode of the store's newest shard, which is kept when this machine can run it.

    Returns
    -------
    ModeChoice
    """
    if precision == "exact":
        return ModeChoice("fp32", reason="class exact")
    if precision in ("bf16", "fp16"):
        return ModeChoice(precision, reason="pinned")
    candidates = [used_before] if used_before else faster_modes(device)
    if not used_before and n_images < WORTH_A_TRIAL:
        return ModeChoice("fp32", reason=f"fewer than {WORTH_A_TRIAL} images do not repay a trial of faster modes")
    if used_before == "fp32" or (used_before and used_before not in faster_modes(device)) or not len(probe):
        return ModeChoice("fp32", reason="as the store" if used_before == "fp32" else "faster modes cannot be run here")
    exact = encode(probe, "fp32")
    best = ModeChoice("fp32", 1.0, 1.0, "no faster mode meets the tolerance or is worth it here")
    for mode in candidates:
        found = _try_mode(str(mode), encode, probe, exact, f"{name}-{mode}")
        fits = found.worst_cosine is not None and found.worst_cosine >= TOLERANCE
        pays = used_before or (found.speedup or 0) > max(_WORTH_SPEEDUP, best.speedup or 0)
        if fits and pays:
            best = found
    return best


def _try_mode(mode: str, encode: Encode, probe: np.ndarray, exact: Mapping[str, np.ndarray], name: str) -> ModeChoice:
    trial = probe[:_TRIAL_ROWS]
    codes = encode(probe, mode)
    cosine = min(worst_cosine(exact[node], codes[node]) for node in exact)
    speedup = _remembered(name)
    if speedup is None:
        # Interleaved, so that another process disturbs both alike; remembered, so that the next run decides the same.
        times = [(_seconds(encode, trial, "fp32"), _seconds(encode, trial, mode)) for _ in range(3)]
        speedup = round(float(np.median([a / b for a, b in times])), 3)
        _remember(name, speedup)
    return ModeChoice(mode, round(cosine, 6), speedup, "fastest mode within the tolerance")


def _seconds(encode: Encode, pixels: np.ndarray, mode: str) -> float:
    start = time.perf_counter()
    encode(pixels, mode)
    return time.perf_counter() - start


def faster_modes(device: str) -> list[str]:
    """Return the modes that can be faster than fp32 on a device: those its hardware has instructions for."""
    if not device.startswith("cpu"):
        return ["bf16", "fp16"]
    flags = _cpu_flags()
    # Without these instructions low precision is emulated, many times slower than fp32.
    modes = {"bf16": {"avx512_bf16", "amx_bf16", "bf16"}, "fp16": {"avx512_fp16", "amx_fp16", "fphp"}}
    return [mode for mode, wanted in modes.items() if flags & wanted]


@cache
def _cpu_flags() -> frozenset[str]:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                return frozenset(line.partition(":")[2].split())
    return frozenset()


@cache
def _cpu_name() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def environment(device: str, device_name: str = "") -> dict[str, str]:
    """Return what can change the last bits of a code: versions of the libraries, and the processor.

    Parameters
    ----------
    device : str
        "cpu", "cuda", …
    device_name : str, default=""
        Name of the accelerator.

    Returns
    -------
    dict of str to str
    """
    versions = {}
    for package in ("torch", "torchvision", "pillow"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {**versions, "device": device, "processor": device_name or _cpu_name()}


def limit_of(precision: str) -> float:
    """Return the smallest cosine that two computations of one code may have in a class."""
    return EXACT_TOLERANCE if precision == "exact" else TOLERANCE


def require_same_codes(
    precision: str, stored: Mapping[str, np.ndarray], computed: Mapping[str, np.ndarray], where: str, difference: str
) -> float:
    """Compare stored rows with the same images computed now, in another environment.

    Returns
    -------
    float
        The worst centred cosine over the rows and nodes.

    Raises
    ------
    StoreError
        When they do not agree within the class's tolerance.
    """
    limit = limit_of(precision)
    worst = min((worst_cosine(stored[node], computed[node]) for node in stored), default=1.0)
    if worst < limit:
        raise StoreError(
            f"{where}: this environment computes other codes than the store holds (worst centred cosine {worst:.5f}, "
            f"expected at least {limit}; {difference}); use the environment that wrote it, or a new store"
        )
    return worst


def _timings_path() -> Path:
    return cache_folder() / "timings.json"


def _timings() -> dict[str, float]:
    with contextlib.suppress(OSError, ValueError):
        known = json.loads(_timings_path().read_text())
        if isinstance(known, dict):
            return known
    return {}


def _timing_name(name: str) -> str:
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return hashlib.sha256(f"{name}|{_cpu_name()}|{os.cpu_count()}|{threads}".encode()).hexdigest()[:32]


def _remembered(name: str) -> float | None:
    value = _timings().get(_timing_name(name))
    return float(value) if isinstance(value, (int, float)) else None


def _remember(name: str, speedup: float) -> None:
    with contextlib.suppress(OSError):
        path = _timings_path()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        publish_bytes(path, json.dumps({**_timings(), _timing_name(name): speedup}).encode())
