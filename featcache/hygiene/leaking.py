"""Do the two sides of a split share images? Quick, from codes alone, for `compare` to warn of its own splits."""

from __future__ import annotations

from typing import Any

import numpy as np

from .near import Pairs, exact_copies, near_copies, whitened

__all__ = ["leaks", "near_pairs"]


def near_pairs(X: Any, *, ids: Any = None, false_share: float = 0.05) -> Pairs:
    """Find all pairs of rows that are equal or nearly so; once per set, for any number of splits.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Codes, finite.
    ids : array-like of str of shape (n,), default=None
        Names: with them the result does not depend on the order of the rows.
    false_share : float, default=0.05
        Accepted share of pairs that are none.

    Returns
    -------
    Pairs
        `rows` (m, 2), `score` (m,), `false`: how many are expected to be none. Of k equal rows k - 1 pairs.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(60, 8))
    >>> near_pairs(np.concatenate([X, X[:1]])).rows.tolist()
    [[0, 60]]
    """
    X = np.asarray(X)
    order = np.arange(len(X)) if ids is None else np.argsort(np.asarray(ids), kind="stable")
    X = X[order]
    sets = exact_copies(X)
    chains = [np.column_stack([rows[:-1], rows[1:]]) for rows in sets]
    spare = np.zeros(len(X), dtype=bool)
    for rows in sets:
        spare[rows[1:]] = True
    single = np.flatnonzero(~spare)
    near = near_copies(whitened(X[single]), false_share=false_share) if len(single) else Pairs(np.zeros((0, 2)), _NONE)
    rows = np.concatenate([*chains, single[near.rows.astype(np.intp)]]).astype(np.intp).reshape(-1, 2)
    score = np.concatenate([np.ones(sum(map(len, chains))), near.score])
    rows = np.sort(order[rows], axis=1)
    by_row = np.lexsort((rows[:, 1], rows[:, 0]))
    return Pairs(rows[by_row], score[by_row], near.false)


_NONE = np.zeros(0)


def leaks(
    X: Any, train: Any, test: Any, *, ids: Any = None, pairs: Pairs | None = None, false_share: float = 0.05
) -> Pairs:
    """Find test rows of which training has a copy.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Codes of the whole set, by which ordinary distances are judged.
    train, test : array-like of int
        Row numbers of the two sides.
    ids, false_share
        As in `near_pairs`.
    pairs : Pairs, default=None
        What `near_pairs` found, to check many splits of one set at the price of one search.

    Returns
    -------
    Pairs
        `rows`: (m, 2), the training row first, the test row second; copies of copies count, too.

    Examples
    --------
    >>> X = np.random.default_rng(0).normal(size=(60, 8))
    >>> X[50] = X[3]
    >>> leaks(X, np.arange(40), np.arange(40, 60)).rows.tolist()
    [[3, 50]]
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = len(X)
    pairs = near_pairs(X, ids=ids, false_share=false_share) if pairs is None else pairs
    links = coo_array((np.ones(len(pairs)), (pairs.rows[:, 0], pairs.rows[:, 1])), shape=(n, n))
    cluster = connected_components(links, directed=False)[1]
    best = np.zeros(n)
    np.maximum.at(best, cluster[pairs.rows[:, 0]], pairs.score)
    train, test = np.asarray(train, dtype=np.intp), np.sort(np.asarray(test, dtype=np.intp))
    first = np.full(n, -1, dtype=np.intp)
    first[cluster[np.sort(train)[::-1]]] = np.sort(train)[::-1]  # the smallest training row of each cluster
    # Only rows that are in a pair have a cluster of two or more; a row is no copy of itself.
    copied = test[(first[cluster[test]] >= 0) & (first[cluster[test]] != test)]
    found = np.column_stack([first[cluster[copied]], copied])
    return Pairs(found, best[cluster[copied]], min(pairs.false, float(len(found))))
