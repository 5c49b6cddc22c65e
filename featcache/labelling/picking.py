"""Ways to pick a batch of images: the most uncertain, those that stand for many others, and both at once.

All of them take one image after another: none that is nearly the same as one picked before, and one of each group
before the second of any.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
from scipy.linalg import eigh
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from ..solvers.neighbors import nearest, nearest_others, unit_rows

__all__ = ["Batch", "by_coverage", "by_mix", "by_uncertainty", "directions", "margins", "reduced", "sameness"]

#: Rows that clusters, principal components and densities are made from; others are dealt to what was found.
_SAMPLE = 10_000
_COMPONENTS = 50
#: Neighbours that say how dense it is around an image (Hacohen et al. take 20).
_NEIGHBOURS = 20
#: Two images are nearly the same where their codes differ by less than this share of what codes of neighbours differ by
#: (1 - cosine, median of the fifth neighbours: copies are rarely so many); surely from a cosine of 0.97 on, and never
#: below 0.88.
_SAME_SHARE, _SAME_SURELY, _SAME_HARDLY = 0.18, 0.97, 0.88
_FIFTH, _ASKED = 5, 2000
#: Clusters at most: beyond, several images of one are picked.
_MOST_CLUSTERS = 500


class Batch:
    """A batch that grows: which rows may still be picked.

    Parameters
    ----------
    units : ndarray of shape (n, d)
        Codes of the candidates at length 1.
    groups : ndarray of int of shape (n,)
        Group of each.
    same : float
        Cosine from which two images are nearly the same.
    """

    def __init__(self, units: np.ndarray, groups: np.ndarray, same: float) -> None:
        self.units, self.groups, self.same = units, groups, same
        self.picked: list[int] = []
        self.open = np.ones(len(units), dtype=bool)
        self._rested = np.zeros(len(units), dtype=bool)

    def like(self, others: np.ndarray) -> np.ndarray:
        """Return a mask (n,): rows that are nearly the same as one of these codes (m, d) at length 1."""
        if not len(others):
            return np.zeros(len(self.units), dtype=bool)
        return np.asarray(nearest(self.units, others, 1)[0][:, 0] >= self.same)

    def close(self, rows: np.ndarray) -> int:
        """Let no row of a mask (n,) be picked; return how many were still open."""
        closed = int((self.open & rows).sum())
        self.open &= ~rows
        return closed

    def allowed(self) -> np.ndarray:
        """Return a mask (n,): open rows of groups that have given fewest."""
        fresh = self.open & ~self._rested
        if not fresh.any():
            self._rested[:] = False
            fresh = self.open
        return fresh

    def take(self, row: int) -> None:
        """Pick a row; it, what is nearly the same, and for this turn its group, are closed."""
        self.picked.append(row)
        self._rested |= self.groups == self.groups[row]
        self.open &= self.units @ self.units[row] < self.same
        self.open[row] = False

    def fill(self, n: int, best: Callable[[np.ndarray], int]) -> None:
        """Pick until there are n: each time the row that `best` names among the allowed ones (row numbers)."""
        while len(self.picked) < n and self.open.any():
            self.take(best(np.flatnonzero(self.allowed())))


def margins(probabilities: np.ndarray) -> np.ndarray:
    """Return how uncertain rows of probabilities (n, c) are: 1 less the lead of the first class, in [0, 1]."""
    two = np.partition(probabilities, probabilities.shape[1] - 2, axis=1)[:, -2:]
    return np.asarray(1.0 - (two[:, 1] - two[:, 0]))


def by_uncertainty(batch: Batch, n: int, probabilities: np.ndarray) -> None:
    """The smallest lead of the most probable class first (margin sampling)."""
    doubt = margins(probabilities)
    batch.fill(n, lambda rows: int(rows[doubt[rows].argmax()]))


def by_coverage(batch: Batch, n: int, codes: np.ndarray, known: np.ndarray, seed: int) -> None:
    """The most typical image of the largest clusters that hold no labelled image, one of each (Hacohen et al. 2022).

    Parameters
    ----------
    codes, known : ndarray of shape (n, k) and (m, k)
        Candidates and labelled images, by `reduced`.
    """
    clusters = min(len(known) + n, _MOST_CLUSTERS, len(codes))
    cluster, known_cluster = _clustered(codes, known, clusters, seed)
    typical = _density(codes)
    sizes = np.bincount(cluster, minlength=clusters).astype(np.float64)
    taken = np.bincount(known_cluster, minlength=clusters)

    def best(rows: np.ndarray) -> int:
        waiting = np.unique(cluster[rows])
        of_cluster = waiting[np.lexsort((waiting, -sizes[waiting], taken[waiting]))[0]]
        rows = rows[cluster[rows] == of_cluster]
        taken[of_cluster] += 1
        return int(rows[typical[rows].argmax()])

    batch.fill(n, best)


def by_mix(batch: Batch, n: int, codes: np.ndarray, probabilities: np.ndarray, generator: np.random.Generator) -> None:
    """Uncertain images that differ: k-means++ on the gradients of a linear head's last layer (BADGE, Ash et al. 2020).

    The gradient of the log loss at the head's own guess is (p - e) ⊗ x, with p the probabilities, e the guess and x the
    code: long where the head is unsure, and turned by what it is unsure about. It is never written down: products of
    two are the products of their factors'.
    """
    rest = probabilities.copy()
    rest[np.arange(len(rest)), probabilities.argmax(axis=1)] -= 1.0
    squares = np.einsum("ij,ij->i", rest, rest) * np.einsum("ij,ij->i", codes, codes)
    far = squares.copy()  # the first pick is the longest, as if one at zero were there

    def best(rows: np.ndarray) -> int:
        weight = np.maximum(far[rows], 0.0)
        if batch.picked and weight.sum() > 0:
            share = np.cumsum(weight)
            row = int(rows[min(np.searchsorted(share, generator.random() * share[-1], side="right"), len(rows) - 1)])
        else:
            row = int(rows[weight.argmax()])
        product = (rest @ rest[row]) * (codes @ codes[row])
        np.minimum(far, squares + squares[row] - 2.0 * product, out=far)
        return row

    batch.fill(n, best)


def sameness(units: np.ndarray) -> float:
    """Return the cosine from which two of these images (n, d) are nearly the same.

    Networks and sets differ: different blood cells may be more alike in one than copies of a photograph, saved again,
    in another. So the measure is how far apart neighbours are.
    """
    some = _sample(units)
    k = min(_FIFTH, len(some) - 1)
    if k < 1:
        return _SAME_SURELY
    rows = np.linspace(0, len(some) - 1, min(_ASKED, len(some))).astype(np.intp)
    apart = 1.0 - float(np.median(nearest_others(some, k, rows=rows)[0][:, -1]))
    return float(np.clip(1.0 - _SAME_SHARE * apart, _SAME_HARDLY, _SAME_SURELY))


def directions(X: np.ndarray, known: np.ndarray, held: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return codes (n, d), (m, d) and (h, d) at length 1, centred by the mean of the first two."""
    total = X.sum(axis=0, dtype=np.float64) + known.sum(axis=0, dtype=np.float64)
    mean = (total / (len(X) + len(known))).astype(X.dtype)
    return tuple(unit_rows(rows - mean) if len(rows) else rows for rows in (X, known, held))


def reduced(units: np.ndarray, known: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both in their first 50 principal directions, at length 1 again: float64."""
    sample = np.concatenate([_sample(units), _sample(known)]).astype(np.float64)
    if sample.shape[1] <= _COMPONENTS:
        basis = np.eye(sample.shape[1])
    else:
        d = sample.shape[1]
        basis = eigh(sample.T @ sample, subset_by_index=[d - _COMPONENTS, d - 1])[1]
    return unit_rows(units @ basis), unit_rows(known @ basis)


def _sample(rows: np.ndarray) -> np.ndarray:
    """Evenly spaced rows (they stand by id), 10,000 at most."""
    return rows if len(rows) <= _SAMPLE else rows[np.linspace(0, len(rows) - 1, _SAMPLE).astype(np.intp)]


def _clustered(codes: np.ndarray, known: np.ndarray, clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    model = KMeans(clusters, n_init=1, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different codes than clusters: some stay empty
        model.fit(np.concatenate([_sample(codes), _sample(known)]))
    found = [model.predict(part) if len(part) else np.zeros(0, dtype=np.intp) for part in (codes, known)]
    return found[0], found[1]


def _density(codes: np.ndarray) -> np.ndarray:
    """Mean cosine with the nearest other images."""
    k = min(_NEIGHBOURS, len(codes) - 1)
    if k < 1:
        return np.ones(len(codes))
    if len(codes) <= _SAMPLE:
        return np.asarray(nearest_others(codes, k)[0].mean(axis=1))
    return np.asarray(nearest(codes, _sample(codes), k + 1)[0].mean(axis=1))
