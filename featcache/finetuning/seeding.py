"""Randomness as a function of the place in a run, so that no generator's state has to be kept."""

from __future__ import annotations

import contextlib
import hashlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch

__all__ = ["epoch_order", "seed_of", "seeded"]


def seed_of(*place: int | str) -> int:
    """Return a seed of 63 bits for a place, such as (seed, "step", stage, epoch, step).

    Examples
    --------
    >>> seed_of(0, "step", 1) == seed_of(0, "step", 1) != seed_of(0, "step", 2)
    True
    """
    text = "featcache-train-1\n" + "\n".join(f"{type(part).__name__} {part}" for part in place)
    return int.from_bytes(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 1


def epoch_order(ids: Sequence[str], rows: np.ndarray, seed: int, stage: int, epoch: int) -> np.ndarray:
    """Return the rows in the order of an epoch.

    Parameters
    ----------
    ids : sequence of str
        Of all rows of the feed.
    rows : ndarray of int
        Those that train.
    seed, stage, epoch : int
        Another one, another order.

    Returns
    -------
    ndarray of int
        Depends on the rows' ids, never on the order in which they were listed.
    """
    ordered = np.asarray(sorted(rows.tolist(), key=lambda row: ids[row]), dtype=np.intp)
    return ordered[np.random.default_rng(seed_of(seed, "order", stage, epoch)).permutation(len(ordered))]


@contextlib.contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Seed torch, NumPy and Python within the context, and put the caller's states back after it."""
    gpus = [device] if device is not None and device.type == "cuda" else []
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=gpus):
            # torch.manual_seed would also seed devices whose state is not put back.
            torch.default_generator.manual_seed(seed)
            for gpu in gpus:
                with torch.cuda.device(gpu):
                    torch.cuda.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
