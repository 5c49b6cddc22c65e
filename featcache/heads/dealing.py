"""Folds for rows that have no single class: every fold gets its share of each label, and groups stay whole."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..splits import Folds, generator_for

__all__ = ["deal_folds"]

#: Beyond this many numbers one validation part takes the place of the folds, as in `choosing`.
_ONE_PART_ABOVE = 200_000_000


def deal_folds(
    member: np.ndarray, n_features: int, *, cv: int, groups: np.ndarray | None, seed: int
) -> tuple[Folds | None, tuple[str, ...]]:
    """Deal rows to folds in which labels, and rows, are as even as can be.

    Greedy, in the spirit of iterative stratification [1]_: what holds the largest share of some label is dealt first,
    each time to the fold that has least of its labels.

    Parameters
    ----------
    member : ndarray of bool of shape (n, k)
        Which row has which label; k = 0 where only the number of rows counts.
    n_features : int
        Width of the codes: a large set has one validation part instead.
    cv : int
        Folds wanted; fewer where there are fewer rows (or groups).
    groups : ndarray of shape (n,) or None
        Rows of one group are dealt together.
    seed : int
        Another seed, other folds. They depend on the order of the rows, too.

    Returns
    -------
    Folds or None
        None where one row or one group is all there is.
    tuple of str
        Notes.

    References
    ----------
    .. [1] K. Sechidis, G. Tsoumakas, I. Vlahavas, "On the stratification of multi-label data", ECML PKDD 2011.

    Examples
    --------
    >>> folds, _ = deal_folds(np.array([[1], [1], [0], [0]], dtype=bool), 2, cv=2, groups=None, seed=0)
    >>> [(len(train), len(held)) for train, held in folds]
    [(2, 2), (2, 2)]
    """
    n, word = len(member), "rows" if groups is None else "groups"
    unit = np.arange(n) if groups is None else _numbered(groups)
    counts = np.column_stack([member, np.ones(n, dtype=bool)])
    if groups is not None:
        rows, counts = counts, np.zeros((int(unit.max(initial=-1)) + 1, counts.shape[1]), dtype=np.float32)
        np.add.at(counts, unit, rows)
    k = min(cv, len(counts))
    if k < 2:
        return None, (f"fixed settings: fewer than two {word} to choose on",)
    large = n * n_features > _ONE_PART_ABOVE
    part = _dealt(counts, [k - 1, 1] if large else [1] * k, generator_for(seed, "deal_folds"))[unit]
    held_out = [1] if large else range(k)
    folds = Folds(tuple((np.flatnonzero(part != f), np.flatnonzero(part == f)) for f in held_out))
    if large:
        return folds, (f"settings chosen on one validation part of {100 // k} %: the set is large",)
    return folds, (f"{k} folds instead of {cv}: there are no more {word}",) if k < cv else ()


def _numbered(groups: np.ndarray) -> np.ndarray:
    """Number groups by their first row, so that their names do not matter."""
    _, first, which = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[which]


def _dealt(counts: np.ndarray, sizes: Sequence[int], generator: np.random.Generator) -> np.ndarray:
    """Return the part of each unit: parts of such sizes, in proportion; where several fit as well, the first."""
    scale, size = 1.0 / np.maximum(counts.sum(axis=0, dtype=np.float64), 1.0), np.asarray(sizes, dtype=np.float64)
    largest = np.zeros(len(counts))
    for column, share in zip(counts.T, scale, strict=True):
        np.maximum(largest, column * share, out=largest)
    order = generator.permutation(len(counts))
    order = order[np.argsort(-largest[order], kind="stable")]
    filled, part_of = np.zeros((len(size), counts.shape[1])), np.empty(len(counts), dtype=np.intp)
    for u in order:
        has = np.flatnonzero(counts[u])
        cost = filled[:, has] @ (counts[u, has] * np.square(scale[has])) / size
        best = np.lexsort((filled[:, -1] / size, cost))[0]
        part_of[u] = best
        filled[best] += counts[u]
    return part_of
