"""One-shot and few-shot identification: N identities, k images enrolled of each, one image of each to name."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .metrics import CosineMetric

__all__ = ["TASKS", "Episode", "draw_episodes", "episode_accuracy"]

#: (ways, shots): Lake, Salakhutdinov, Tenenbaum 2015 (omniglot: 20 characters of one alphabet, one image of each);
#: Vinyals et al. 2016.
TASKS = ((20, 1), (5, 1), (5, 5))


@dataclass(frozen=True)
class Episode:
    """One task: rows enrolled, shape (n_ways, n_shots), and the row to name of each identity, shape (n_ways,)."""

    enrolled: np.ndarray
    queries: np.ndarray


def draw_episodes(
    codes: np.ndarray,
    ways: int,
    shots: int,
    n: int,
    *,
    groups: np.ndarray | None = None,
    bursts: np.ndarray | None = None,
    seed: int = 0,
) -> list[Episode]:
    """Draw tasks among the identities of one group (an alphabet) where there are groups with two of them.

    Parameters
    ----------
    codes : ndarray of int of shape (n_samples,)
        Identities.
    ways, shots : int
        Identities of a task, and images enrolled of each. A group that has fewer identities gives all it has, where no
        group has enough.
    n : int
        Tasks.
    groups : ndarray of shape (n_samples,), default=None
        Tasks stay within one of them.
    bursts : ndarray of int of shape (n_samples,), default=None
        An image to name is never of the burst of an image enrolled of its identity: they are alike for a reason that
        does not count.
    seed : int, default=0
        Another seed, other tasks.

    Returns
    -------
    list of Episode
        Empty where no group has two identities with an image to name and `shots` others to enrol.
    """
    generator = np.random.default_rng([seed, ways, shots, 0xE915])
    nameable = _nameable(codes, shots, bursts)
    pools = [pool for pool in _pools(codes, nameable, groups) if len(pool) > 1]
    if not pools:
        return []
    size = min(ways, max(map(len, pools)))
    pools = [pool for pool in pools if len(pool) >= size]
    order = np.argsort(codes, kind="stable")
    counts = np.bincount(codes)
    starts = np.cumsum(counts) - counts
    found = []
    for _ in range(n):
        pool = pools[int(generator.integers(len(pools)))]
        drawn = []
        for c in generator.choice(pool, size, replace=False):
            own = generator.permutation(order[starts[c] : starts[c] + counts[c]])
            query = own[np.flatnonzero(nameable[own])[0]]
            others = own[own != query] if bursts is None else own[bursts[own] != bursts[query]]
            drawn.append((query, *others[:shots]))
        rows = np.asarray(drawn)
        found.append(Episode(rows[:, 1:], rows[:, 0]))
    return found


def _nameable(codes: np.ndarray, shots: int, bursts: np.ndarray | None) -> np.ndarray:
    """Whether the identity of each row has so many images besides the row's own burst (the row, without bursts)."""
    beside = np.bincount(codes)[codes]
    if bursts is None:
        return beside > shots
    both, sizes = np.unique(np.column_stack([codes, bursts]), axis=0, return_inverse=True, return_counts=True)[1:]
    return beside - sizes[both.ravel()] >= shots


def _pools(codes: np.ndarray, nameable: np.ndarray, groups: np.ndarray | None) -> Iterator[np.ndarray]:
    """Identities with an image to name, group by group."""
    whole = np.unique(codes[nameable])
    if groups is None:
        yield whole
        return
    pools = [np.intersect1d(np.unique(codes[groups == group]), whole) for group in np.unique(groups)]
    pools = [pool for pool in pools if len(pool) > 1]
    yield from pools or [whole]


def episode_accuracy(metric: CosineMetric, vectors: np.ndarray, episodes: list[Episode]) -> np.ndarray:
    """Return the share of rows named rightly in each task; several images are enrolled as their template."""
    out = np.empty(len(episodes))
    for i, episode in enumerate(episodes):
        shots = episode.enrolled.shape[1]
        if shots == 1:
            enrolled = vectors[episode.enrolled[:, 0]]
        else:
            enrolled = np.stack([metric.template(vectors[rows]) for rows in episode.enrolled])
        scores = metric.score_matrix(vectors[episode.queries], enrolled, np.full(len(enrolled), shots))
        out[i] = (scores.argmax(axis=1) == np.arange(len(enrolled))).mean()
    return out


def summary(ways: int, shots: int, episodes: list[Episode], accuracy: np.ndarray) -> dict[str, Any] | None:
    """Return one task's figures as plain numbers; None where no task could be drawn."""
    if not len(accuracy):
        return None
    half = 1.96 * float(accuracy.std(ddof=1)) / np.sqrt(len(accuracy)) if len(accuracy) > 1 else 0.0
    mean = float(accuracy.mean())
    return {
        "ways": int(episodes[0].enrolled.shape[0]),
        "ways_wanted": ways,
        "shots": shots,
        "accuracy": mean,
        "ci95": [max(0.0, mean - half), min(1.0, mean + half)],
        "episodes": len(accuracy),
    }
