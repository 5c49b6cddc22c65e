"""Folds for rows that have no single class: every fold gets its share of each label, and groups stay whole."""

from __future__ import annotations

import numpy as np

from ..splits import Folds

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
    n_units = int(unit.max()) + 1
    k = min(cv, n_units)
    if k < 2:
        return None, (f"fixed settings: fewer than two {word} to choose on",)
    counts = np.zeros((n_units, member.shape[1] + 1))
    np.add.at(counts, unit, np.column_stack([member, np.ones(n)]))
    fold = _dealt(counts, k, np.random.default_rng([seed, 7]))[unit]
    pairs = tuple((np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(k))
    if n * n_features > _ONE_PART_ABOVE:
        return Folds(pairs[:1]), (f"settings chosen on one validation part of {100 // k} %: the set is large",)
    return Folds(pairs), (f"{k} folds instead of {cv}: there are no more {word}",) if k < cv else ()


def _numbered(groups: np.ndarray) -> np.ndarray:
    """Number groups by their first row, so that their names do not matter."""
    _, first, which = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[which]


def _dealt(counts: np.ndarray, k: int, generator: np.random.Generator) -> np.ndarray:
    scale = 1.0 / np.maximum(counts.sum(axis=0), 1.0)
    order = generator.permutation(len(counts))
    order = order[np.argsort(-(counts[order] * scale).max(axis=1), kind="stable")]
    filled, fold_of = np.zeros((k, counts.shape[1])), np.empty(len(counts), dtype=np.intp)
    for u in order:
        has = np.flatnonzero(counts[u])
        cost = filled[:, has] @ (counts[u, has] * np.square(scale[has]))
        best = np.lexsort((filled[:, -1], cost))[0]
        fold_of[u] = best
        filled[best] += counts[u]
    return fold_of
