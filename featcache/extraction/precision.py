"""Precision: the classes, what they promise, and how two computations of one code are compared.

A class is part of a store's identity: ``exact`` (float32 arithmetic, reference pixels), ``tolerance`` (any mode whose
codes of the user's own images, centred by their mean, have a cosine of at least 0.998 with the exact ones), or a pinned
mode (``bf16``, ``fp16``: that arithmetic, no promise). The mode actually used is recorded per shard, never keyed.

Raw cosine is a weak test: codes of different images can be 0.99 alike. Hence the centring.
"""

from __future__ import annotations

import contextlib
import platform
from collections.abc import Callable, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path

import numpy as np

from ..errors import StoreError

__all__ = [
    "CLASSES",
    "PIXEL_TOLERANCE",
    "PROBE_TOLERANCE",
    "TOLERANCE",
    "differ_by_rounding",
    "environment",
    "faster_modes",
    "half_fits",
    "limit_of",
    "processor",
    "require_same_codes",
    "row_cosines",
    "row_distances",
    "same_nearest",
    "worst_cosine",
]

#: What `precision=` accepts → the class it means ("auto" adopts the store's class when there is a store already).
CLASSES = {"auto": "tolerance", "fp32": "exact", "bf16": "bf16", "fp16": "fp16"}
TOLERANCE = 0.998
#: Two environments computing in float32 may order their sums differently; measured differences stay far below this.
EXACT_TOLERANCE = 0.9999
#: What a mode must reach on the probe before it is used: half the error that the class allows, since the worst of 32
#: images is not the worst of all (benchmarks/README.md has the worst of whole sets).
PROBE_TOLERANCE = 0.999
#: Pixels decoded faster must agree so well with the reference's, in fp32, that the modes keep most of that.
PIXEL_TOLERANCE = 0.9992
#: Rows rounded by two environments may be so many times as far apart as the rounding of one is large.
_ROUNDINGS = 3.0


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


def same_nearest(exact: np.ndarray, other: np.ndarray) -> float:
    """Return the part of rows whose nearest other row (by centred cosine) is the same in two sets of codes.

    Parameters
    ----------
    exact, other : ndarray of shape (n_samples, ...)
        Codes of the same images.

    Returns
    -------
    float
        1.0 for fewer than three rows; a tie within rounding counts as the same.
    """
    if len(exact) < 3:
        return 1.0
    a, b = _directions(exact, exact), _directions(other, exact)
    rows, found = np.arange(len(a)), (b @ b.T - 2 * np.eye(len(b))).argmax(axis=1)
    similar = a @ a.T - 2 * np.eye(len(a))
    return float((similar[rows, found] >= similar.max(axis=1) - 1e-6).mean())


def _directions(codes: np.ndarray, exact: np.ndarray) -> np.ndarray:
    centred = np.nan_to_num(codes.reshape(len(codes), -1).astype(np.float64)) - exact.reshape(len(exact), -1).mean(0)
    return np.asarray(centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-30))


def half_fits(codes: Mapping[str, np.ndarray]) -> bool:
    """Tell whether float16 storage keeps all directions of these codes (worst centred cosine at least 0.99999)."""
    with np.errstate(over="ignore"):
        return all(
            # A factor of four in reserve: images not in the probe may have larger values.
            np.abs(array).max(initial=0.0) * 4 < np.finfo(np.float16).max
            and worst_cosine(array, array.astype(np.float16)) >= 0.99999
            for array in codes.values()
        )


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
def processor() -> str:
    """Return the name of the processor."""
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
    return {**versions, "device": device, "processor": device_name or processor()}


def limit_of(precision: str) -> float:
    """Return the smallest cosine that two computations of one code may have in a class."""
    return EXACT_TOLERANCE if precision == "exact" else TOLERANCE


def require_same_codes(
    precision: str,
    stored: Mapping[str, np.ndarray],
    computed: Mapping[str, np.ndarray],
    where: str,
    difference: str,
    noise: Callable[[], Mapping[str, float]] = dict,
) -> float:
    """Compare stored rows with the same images computed now, in another environment.

    A few rows are a hard centre to compare by: images that are nearly alike, or a pinned mode of which nothing is
    promised, leave little but rounding there. So rows also agree where they differ by no more than rounding does.

    Parameters
    ----------
    precision : str
        The class.
    stored, computed : mapping of str to ndarray of shape (n, ...)
        Codes per node.
    where, difference : str
        For the message: the store, and what is different here.
    noise : callable, default=dict
        Gives per node the largest distance by which arithmetic and storage round a row; called only when it matters.

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
    if worst < limit and not differ_by_rounding(stored, computed, noise()).all():
        raise StoreError(
            f"{where}: this environment computes other codes than the store holds (worst centred cosine {worst:.5f}, "
            f"expected at least {limit}; {difference}); use the environment that wrote it, or a new store"
        )
    return worst


def differ_by_rounding(
    stored: Mapping[str, np.ndarray], computed: Mapping[str, np.ndarray], noise: Mapping[str, float]
) -> np.ndarray:
    """Tell which rows differ by no more than rounding does, in all nodes.

    Parameters
    ----------
    stored, computed : mapping of str to ndarray of shape (n, ...)
        Codes per node.
    noise : mapping of str to float
        Per node, the largest distance by which arithmetic and storage round a row.

    Returns
    -------
    ndarray of bool of shape (n,)
    """
    near = [row_distances(stored[node], computed[node]) <= _ROUNDINGS * noise.get(node, 0.0) for node in stored]
    return np.logical_and.reduce(near)


def row_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the distance of each row of two sets of codes; inf where one is not finite.

    Parameters
    ----------
    a, b : ndarray of shape (n_samples, ...)
        Codes of the same images.

    Returns
    -------
    ndarray of float64 of shape (n_samples,)
    """
    with np.errstate(invalid="ignore", over="ignore"):
        difference = a.reshape(len(a), -1).astype(np.float64) - b.reshape(len(b), -1).astype(np.float64)
    return np.where(np.isfinite(difference).all(axis=1), np.linalg.norm(difference, axis=1), np.inf)
