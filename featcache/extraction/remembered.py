"""What was measured on this machine before, so that the next run decides the same: a small private file."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from ..files import cache_folder, publish_bytes

__all__ = ["remembered", "seconds_measuring"]

#: What a cache may do without any harm: a user without a home (RuntimeError), a file nested too deep, a full disk.
_NO_HARM = (OSError, ValueError, RuntimeError)
#: So many figures are kept, the newest.
_MOST = 2000

_spent = [0.0]


def seconds_measuring() -> float:
    """Return how long this process has measured what later runs will know."""
    return _spent[0]


def remembered(name: str, machine: str, measure: Callable[[], float]) -> float:
    """Return a figure measured on this machine: by an earlier run if there was one, else now.

    Parameters
    ----------
    name : str
        What was measured: network, nodes, input, mode.
    machine : str
        The processor or accelerator; the number of cores is added.
    measure : callable
        Measures it.

    Returns
    -------
    float
    """
    threads = os.environ.get("OMP_NUM_THREADS", "")
    digest = hashlib.sha256(f"{name}|{machine}|{_cores()}|{threads}".encode()).hexdigest()[:32]
    known = _figure(digest)
    if known is not None:
        return known
    start = time.perf_counter()
    measured = float(f"{measure():.4g}")
    _spent[0] += time.perf_counter() - start
    value = _figure(digest) or measured  # by another run meanwhile: both are to decide the same
    with contextlib.suppress(*_NO_HARM):
        path = _path()
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        kept = dict(list(_known().items())[-_MOST:])
        publish_bytes(path, json.dumps({**kept, digest: value}).encode())
    return value


def _figure(digest: str) -> float | None:
    known = _known().get(digest)
    usable = isinstance(known, (int, float)) and not isinstance(known, bool) and 0 < known < 1e9
    return float(known) if usable and known is not None else None


def _cores() -> int | None:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _path() -> Path:
    return cache_folder() / "timings-2.json"


def _known() -> dict[str, float]:
    with contextlib.suppress(*_NO_HARM):
        known = json.loads(_path().read_text())
        if isinstance(known, dict):
            return known
    return {}
