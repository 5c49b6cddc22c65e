"""Fits in processes of their own, which end after so many seconds."""

import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import environment

from .child import OVER

CHILD = Path(__file__).with_name("child.py")


def stored(folder: Path, **arrays: np.ndarray) -> Path:
    """Write arrays to where a process finds them; what was there before goes."""
    folder.mkdir(exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def fitted(folder: Path, kind: str, limit: float | None = None, **settings: Any) -> dict[str, Any] | None:
    """Return the figures and arrays of one fit, see child.py; None where it took longer than `limit` seconds."""
    words = [sys.executable, str(CHILD), str(folder), kind, json.dumps({"limit": limit, **settings})]
    done = subprocess.run(words, capture_output=True, text=True, env=environment())
    if done.returncode == OVER:
        return None
    if done.returncode:
        raise RuntimeError(f"{kind}: exit status {done.returncode}: {done.stderr.strip()}")
    with np.load(folder / "found.npz") as arrays:
        return {**json.loads(done.stdout.splitlines()[-1]), **arrays}


def hunt(run: Callable[[float], Any], good: Callable[[Any], bool], tols: Sequence[float], start: int) -> dict[int, Any]:
    """Look for the loosest tolerance that is good enough, beginning at a guess.

    From there it goes tighter while the outcome is not good enough, and looser while it is, or while there is none
    (None: over the limit of time).

    Returns
    -------
    dict of int to Any
        The outcome at each position of `tols` that was tried.
    """
    tried: dict[int, Any] = {}
    at = start
    while 0 <= at < len(tols) and at not in tried:
        tried[at] = found = run(tols[at])
        at += 1 if found is not None and not good(found) else -1
    return tried
