"""Pairs of rows that lie too near to each other to be two images: by their codes alone, or with their pixels."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from ..solvers.neighbors import nearest, nearest_others, unit_rows
from .pixels import alike, detail, layouts
from .tails import Excess, excess, standardised

__all__ = ["Pairs", "exact_copies", "near_copies", "whitened"]

#: Directions that are kept of whitened codes: more do not move neighbours, and cost time with many rows.
_DIRECTIONS = 256
#: How far a row's surroundings reach, in rows.
_AROUND = 20
#: A copy of a row is among so many nearest ones: farther ones show what is usual.
_COPIES = 5
#: Pairs whose pixels show what is usual, at most.
_USUAL = 500
#: Pairs whose pixels are compared, at most: the most suspicious ones.
_LOOKED_AT = 30_000


@dataclass(frozen=True)
class Pairs:
    """Pairs of rows.

    Parameters
    ----------
    rows : ndarray of int of shape (n, 2)
        Row numbers, the smaller first.
    score : ndarray of shape (n,)
        How surely they are copies, 0 to 1: one less the chance that ordinary rows are as near, among as many.
    false : float
        How many of them are expected to be none.
    """

    rows: np.ndarray
    score: np.ndarray
    false: float = 0.0

    def __len__(self) -> int:
        return len(self.rows)


def exact_copies(X: np.ndarray) -> list[np.ndarray]:
    """Return the row numbers of each set of two or more equal rows of X (n, d)."""
    seen: dict[bytes, list[int]] = {}
    for i, row in enumerate(X):
        seen.setdefault(hashlib.blake2b(np.ascontiguousarray(row).data, digest_size=16).digest(), []).append(i)
    return [np.asarray(rows) for rows in seen.values() if len(rows) > 1]


def whitened(X: Any, *, directions: int = _DIRECTIONS, power: float = 0.5) -> np.ndarray:
    """Return codes (n, d) in their principal directions at unit length, float32 (n, at most `directions`).

    Each direction is divided by the sum of its variance and the mean variance, to the given power. So what all
    images of a set share, the large directions, counts less, and what tells one image from its like counts more
    (Jégou and Chum, ECCV 2012).
    """
    middle = X.mean(axis=0, dtype=np.float64)
    scatter = np.zeros((X.shape[1], X.shape[1]))
    parts = [slice(start, start + 8192) for start in range(0, len(X), 8192)]
    for at in parts:
        centred = X[at] - middle
        scatter += centred.T @ centred
    values, turn = np.linalg.eigh(scatter / len(X))
    largest = np.argsort(-values, kind="stable")[:directions]
    share = max(float(values.sum()), 0.0) / max(1, min(len(X) - 1, X.shape[1]))
    if share == 0.0:
        return np.zeros((len(X), 1), dtype=np.float32)
    scale = turn[:, largest] / (np.maximum(values[largest], 0.0) + share) ** power
    out = np.empty((len(X), len(largest)), dtype=np.float32)
    for at in parts:
        out[at] = (X[at] - middle) @ scale
    return unit_rows(out)


def near_copies(Z: np.ndarray, thumbs: np.ndarray | None = None, *, false_share: float = 0.05) -> Pairs:
    """Find pairs that lie too near to each other.

    Parameters
    ----------
    Z : ndarray of shape (n, d)
        From `whitened`; no two rows equal.
    thumbs : ndarray of uint8 of shape (n, 64, 64), default=None
        From `thumbnails`: pairs are then judged by pixels, and by codes less.
    false_share : float, default=0.05
        Accepted share of pairs that are none.

    Returns
    -------
    Pairs
        Sorted by row numbers.

    Notes
    -----
    The evidence of a pair is how many times nearer its rows are to each other than either is to its 20th neighbour: a
    measure that dense and sparse regions share. How large it must be follows from the evidence of all pairs of nearest
    rows (`tails.excess`), thus from the set itself. Where copies are common that evidence is theirs; so pairs also
    count that stand out from the 6th to 20th neighbours, which are no copies (`_usual`; for pixels, pairs of rows with
    their 6th and 7th candidates). Of a cluster of k copies k - 1 pairs are returned.
    """
    n = len(Z)
    if n < 20:
        return Pairs(np.zeros((0, 2), dtype=np.intp), np.zeros(0))
    nearness, rows = nearest_others(Z, min(_AROUND, n - 1))
    reach = np.sqrt(np.maximum(2.0 - 2.0 * nearness[:, -1].astype(np.float64), 1e-12))
    reach = np.maximum(reach, 0.6 * np.median(reach))  # in a burst of more than 20 shots all neighbours are copies
    usual = _usual(nearness)
    if thumbs is None:
        pairs = _unique(rows[:, :1])
        evidence = _closeness(Z, reach, pairs)
        judged = _either(
            excess(evidence, false_share=false_share), excess(evidence, ordinary=usual, false_share=false_share)
        )
        pairs, evidence, judged = _bridged(Z, reach, rows, pairs, evidence, judged)
    else:
        pairs, judged = _by_pixels(Z, reach, rows, thumbs, usual, false_share)
    found = pairs[judged.found]
    score = np.maximum(0.0, 1.0 - judged.chance[judged.found] * len(pairs) / max(1, len(found)))
    order = np.lexsort((found[:, 1], found[:, 0]))
    return Pairs(found[order], score[order], judged.false)


def _usual(nearness: np.ndarray) -> np.ndarray:
    """Evidence that nearest rows would show if none were a copy, from farther neighbours, one value per row.

    Where rows lie at random, k log(r[k + 1] / r[k]) of the distances r from the kth neighbours are independent, with
    the same exponential law for all k (Rényi 1953; Levina and Bickel, NIPS 2004). So those of the 6th to last
    neighbours stand in for those of the 1st to 5th, which may be copies.
    """
    reached = 0.5 * np.log(np.maximum(2.0 - 2.0 * nearness.astype(np.float64), 1e-12))
    k = np.arange(1, nearness.shape[1])
    steps = np.diff(reached, axis=1) * k
    far = steps[:, _COPIES:]
    return np.asarray((far[:, np.arange(len(k)) % far.shape[1]] / k).sum(axis=1))


def _either(first: Excess, second: Excess) -> Excess:
    """What one of two judgements finds."""
    return Excess(first.found | second.found, np.minimum(first.chance, second.chance), max(first.false, second.false))


def _bridged(
    Z: np.ndarray, reach: np.ndarray, rows: np.ndarray, pairs: np.ndarray, evidence: np.ndarray, judged: Excess
) -> tuple[np.ndarray, np.ndarray, Excess]:
    """Add pairs that join the pairs of one cluster: four copies may be two pairs of nearest rows."""
    if not judged.found.any():
        return pairs, evidence, judged
    cluster = _clusters(len(Z), pairs[judged.found])
    named = np.zeros(len(Z), dtype=bool)
    named[pairs[judged.found]] = True
    more = _unique(rows[:, 1:_COPIES])
    more = more[named[more].all(axis=1) & (cluster[more[:, 0]] != cluster[more[:, 1]])]
    close = _closeness(Z, reach, more)
    order = np.argsort(-close, kind="stable")
    limit, kept = evidence[judged.found].min(), []
    for i in order[close[order] >= limit].tolist():
        one, other = cluster[more[i]]
        if one != other:
            cluster[cluster == other] = one
            kept.append(i)
    worst = np.full(len(kept), judged.chance[judged.found].max())
    return (
        np.concatenate([pairs, more[kept]]),
        np.concatenate([evidence, close[kept]]),
        Excess(np.append(judged.found, np.ones(len(kept), dtype=bool)), np.append(judged.chance, worst), judged.false),
    )


def _clusters(n: int, pairs: np.ndarray) -> np.ndarray:
    links = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
    return np.asarray(connected_components(links, directed=False)[1])


def _closeness(Z: np.ndarray, reach: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Minus the logarithm of the distance within a pair, in units of its surroundings."""
    first, second = pairs.T
    squares = np.empty(len(pairs))
    for start in range(0, len(pairs), 8192):
        at = slice(start, start + 8192)
        squares[at] = np.square(Z[first[at]].astype(np.float64) - Z[second[at]]).sum(axis=1)
    return 0.5 * np.log(reach[first] * reach[second]) - 0.5 * np.log(np.maximum(squares, 1e-6))


def _by_pixels(
    Z: np.ndarray, reach: np.ndarray, rows: np.ndarray, thumbs: np.ndarray, usual: np.ndarray, false_share: float
) -> tuple[np.ndarray, Excess]:
    """Candidates by codes, by layout and by mirrored layout; the most suspicious ones compared pixel by pixel."""
    plain, turned = layouts(thumbs), layouts(thumbs, mirrored=True)
    own, wide = np.arange(len(Z)), _COPIES + 2
    looks, mirror = nearest_others(plain, wide)[1], nearest(turned, plain, wide, own=(own, own))[1]

    def compared(columns: slice, most: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pairs = _unique(np.concatenate([rows[:, columns], looks[:, columns], mirror[:, columns]], axis=1))
        first, second = pairs.T
        closeness = _closeness(Z, reach, pairs)
        upright = np.einsum("ij,ij->i", plain[first], plain[second])
        mirrored = np.einsum("ij,ij->i", turned[first], plain[second])
        look = np.arctanh(np.minimum(np.maximum(upright, mirrored), 1 - 1e-5))
        # About one pair per row is looked at, so that most are ordinary ones and show what is usual.
        suspicion = standardised(closeness) + standardised(look)
        kept = np.sort(np.argsort(-suspicion, kind="stable")[: min(len(Z), _LOOKED_AT)])
        kept = kept[np.arange(most) * len(kept) // most] if len(kept) > most else kept
        found = _pictures(thumbs, pairs[kept], (mirrored - upright)[kept])
        return pairs[kept], closeness[kept], np.arctanh(np.clip(found, -1, 1 - 1e-4))

    pairs, closeness, like = compared(slice(0, 2), _LOOKED_AT)
    _, closeness_of_others, like_of_others = compared(slice(_COPIES, wide), _USUAL)
    evidence = 2.0 * standardised(like) + standardised(closeness)
    beside = 2.0 * standardised(like, like_of_others) + standardised(closeness, usual)
    others = 2.0 * standardised(like_of_others) + standardised(closeness_of_others, usual)
    return pairs, _either(
        excess(evidence, false_share=false_share), excess(beside, ordinary=others, false_share=false_share)
    )


def _pictures(thumbs: np.ndarray, pairs: np.ndarray, flip: np.ndarray) -> np.ndarray:
    """How alike the pixels of pairs are, upright or mirrored; both are tried where the layout does not say which."""
    best = np.full(len(pairs), -1.0)
    for turned, asked in ((False, flip < 0.1), (True, flip > -0.1)):
        for start in range(0, len(pairs), 2048):
            some = start + np.flatnonzero(asked[start : start + 2048])
            first, second = thumbs[pairs[some, 0]], thumbs[pairs[some, 1]]
            found = alike(detail(first[:, :, ::-1] if turned else first), detail(second))
            best[some] = np.maximum(best[some], found)
    return best


def _unique(rows: np.ndarray) -> np.ndarray:
    """Pairs of each row with the rows beside it (n, k), each pair once."""
    own = np.repeat(np.arange(len(rows)), rows.shape[1])
    pairs = np.sort(np.column_stack([own, rows.ravel()]), axis=1)
    return np.unique(pairs[(pairs[:, 0] >= 0) & (pairs[:, 0] != pairs[:, 1])], axis=0)
