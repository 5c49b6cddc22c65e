"""Pairs of rows of one or of two identities: drawn, or all of them block by block; and folds of whole identities."""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import HeadError, SplitError
from ..splits import whole_number

__all__ = ["Pairs", "apart", "codes_of", "identity_folds", "make_pairs", "pair_blocks", "pair_counts", "units_of"]

#: So many pairs are listed at most; beyond that they are drawn, or streamed by `pair_blocks`.
_LISTED = 20_000_000


@dataclass(frozen=True)
class Pairs:
    """Row numbers of pairs, and whether both rows are of one identity.

    Parameters
    ----------
    first, second : ndarray of int of shape (n_pairs,)
        Row numbers, first < second; no pair stands twice.
    same : ndarray of bool of shape (n_pairs,)
        Whether the two rows are of one identity.
    """

    first: np.ndarray
    second: np.ndarray
    same: np.ndarray

    def __len__(self) -> int:
        return len(self.same)


def codes_of(identities: Any, name: str = "identities") -> np.ndarray:
    """Return identities, groups or bursts as numbers from 0, in the order of the sorted names."""
    array = np.asarray(identities)
    if array.ndim != 1:
        raise HeadError(f"{name}: expected one per row, got shape {array.shape}")
    return np.unique(array.astype(np.str_) if array.dtype.kind == "O" else array, return_inverse=True)[1]


def apart(bursts: Any, n: int) -> np.ndarray | None:
    """Return bursts as numbers; a row without one ("") is a burst of its own. None stays None."""
    if bursts is None:
        return None
    array = np.asarray(bursts)
    if array.shape != (n,):
        raise HeadError(f"bursts: expected {n} values (one per row), got shape {array.shape}")
    codes = codes_of(array, "bursts")
    if array.dtype.kind in "UO":
        alone = np.flatnonzero(array == "")
        codes[alone] = codes.max(initial=0) + 1 + np.arange(len(alone))
    return codes


def pair_counts(codes: np.ndarray, bursts: np.ndarray | None = None) -> tuple[int, int]:
    """Return how many pairs of one identity and of two there are, those within a burst left out."""
    same, total = _choose2(codes), len(codes) * (len(codes) - 1) // 2
    if bursts is not None:
        both = np.unique(np.column_stack([codes, bursts]), axis=0, return_inverse=True)[1].ravel()
        same, total = same - _choose2(both), total - _choose2(bursts)
    return same, total - same


def _choose2(codes: np.ndarray) -> int:
    counts = np.bincount(codes).astype(object) if len(codes) else np.zeros(0, dtype=object)
    return int(sum(c * (c - 1) // 2 for c in counts.tolist()))


def make_pairs(
    identities: Any, n: int | None = None, seed: int = 0, *, balanced: bool = True, bursts: Any = None
) -> Pairs:
    """Draw pairs of rows of the same and of different identities.

    Parameters
    ----------
    identities : array-like of shape (n_samples,)
        Whose image each row is.
    n : int, default=None
        Pairs wanted; None for all there are (up to 20 million; more are streamed by `pair_blocks`).
    seed : int, default=0
        Another seed, other pairs. Without `n` nothing is drawn.
    balanced : bool, default=True
        With `n`: half of the pairs of one identity, half of two, and as many of each as there are where that is fewer.
        False: pairs are drawn evenly from all, so that nearly all are of two identities.
    bursts : array-like of shape (n_samples,), default=None
        Rows of one burst (frames of one film, say) are never paired: they are alike for a reason that does not count.

    Returns
    -------
    Pairs
        Sorted by row numbers. A row is never paired with itself, no pair stands twice.

    Raises
    ------
    HeadError
        Fewer than two rows, or more pairs than can be listed.

    Examples
    --------
    >>> pairs = make_pairs(["ann", "ann", "bob"])
    >>> [(int(a), int(b), bool(s)) for a, b, s in zip(pairs.first, pairs.second, pairs.same)]
    [(0, 1, True), (0, 2, False), (1, 2, False)]
    """
    codes = codes_of(identities)
    rows = len(codes)
    if rows < 2:
        raise HeadError(f"identities: expected two rows or more, got {rows}; a pair needs two")
    if n is not None and not whole_number(n, 1):
        raise HeadError(f"n: expected a number of pairs of 1 or more, got {n!r}")
    if not whole_number(seed, 0):
        raise HeadError(f"seed: expected a whole number of 0 or more, got {seed!r}")
    within = apart(bursts, rows)
    genuine, impostor = pair_counts(codes, within)
    generator = np.random.default_rng([seed, 0x9A125])
    if n is None or n >= genuine + impostor:
        keys = _listed(codes, within, None)
    elif not balanced:
        keys = _drawn(codes, within, None, n, genuine + impostor, generator)
    else:
        parts = ((True, (n + 1) // 2, genuine), (False, n // 2, impostor))
        keys = np.concatenate([_drawn(codes, within, same, k, total, generator) for same, k, total in parts])
    keys.sort()
    first, second = np.divmod(keys, rows)
    return Pairs(first, second, codes[first] == codes[second])


def _listed(codes: np.ndarray, bursts: np.ndarray | None, same: bool | None) -> np.ndarray:
    """Keys (first * n + second) of all pairs; same=True or False for those of one or of two identities."""
    n, found = len(codes), []
    if same:
        blocks = [np.flatnonzero(codes == c) for c in np.flatnonzero(np.bincount(codes) > 1)]
        pairs = [block[np.asarray(np.triu_indices(len(block), 1))] for block in blocks]
        first, second = np.concatenate([np.zeros((2, 0), dtype=np.intp), *pairs], axis=1)
        fit = np.ones(len(first), dtype=bool) if bursts is None else bursts[first] != bursts[second]
        return first[fit] * n + second[fit]
    if n * (n - 1) // 2 > _LISTED:
        raise HeadError(f"{n * (n - 1) // 2} pairs are too many to list; give n, or use pair_blocks")
    for start in range(0, n, 512):
        rows = np.arange(start, min(start + 512, n))
        first, second = (side.ravel() for side in np.meshgrid(rows, np.arange(n), indexing="ij"))
        fit = _fits(first, second, codes, bursts, same)
        found.append(first[fit] * n + second[fit])
    return np.concatenate(found)


def _fits(
    first: np.ndarray, second: np.ndarray, codes: np.ndarray, bursts: np.ndarray | None, same: bool | None
) -> np.ndarray:
    fit = first < second
    if same is not None:
        fit &= (codes[first] == codes[second]) == same
    return fit if bursts is None else fit & (bursts[first] != bursts[second])


def _drawn(
    codes: np.ndarray, bursts: np.ndarray | None, same: bool | None, n: int, total: int, generator: np.random.Generator
) -> np.ndarray:
    """Keys of n pairs drawn evenly, without repeats; all there are where they are fewer."""
    size = len(codes)
    if total <= max(3 * n, 100_000) and (same or size * (size - 1) // 2 <= _LISTED):
        keys = _listed(codes, bursts, same)
        return keys if len(keys) <= n else keys[generator.choice(len(keys), n, replace=False)]
    keys = np.zeros(0, dtype=np.intp)
    while len(keys) < n:  # a third of all pairs at most is wanted, so that few draws repeat one
        first, second = _candidates(codes, same, 2 * (n - len(keys)) + 64, generator)
        fit = _fits(first, second, codes, bursts, same)
        fresh = np.concatenate([keys, first[fit] * size + second[fit]])
        # The first appearance of each, in the order of drawing: sorting by key would favour low row numbers.
        keys = fresh[np.sort(np.unique(fresh, return_index=True)[1])][:n]
    return keys


def _candidates(
    codes: np.ndarray, same: bool | None, n: int, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Random pairs, first < second where they differ; with same=True within identities, each such pair as likely."""
    if not same:
        drawn = generator.integers(0, len(codes), (2, n))
    else:
        counts = np.bincount(codes)
        order, starts = np.argsort(codes, kind="stable"), np.cumsum(counts) - counts
        weights = counts * (counts - 1.0)
        of = generator.choice(len(counts), n, p=weights / weights.sum())
        drawn = order[starts[of] + (generator.random((2, n)) * counts[of]).astype(np.intp)]
    return drawn.min(axis=0), drawn.max(axis=0)


def pair_blocks(
    n: int, block_rows: int = 1024, bursts: np.ndarray | None = None
) -> Iterator[tuple[slice, slice, np.ndarray]]:
    """Yield (rows, columns, mask) that together cover each pair of n rows once, without n² of anything.

    Parameters
    ----------
    n : int
        Rows.
    block_rows : int, default=1024
        Side of a block.
    bursts : ndarray of int of shape (n,), default=None
        Pairs within a burst are masked out.

    Yields
    ------
    rows, columns : slice
    mask : ndarray of bool of shape (rows, columns)
        The pairs that count: never a row with itself.
    """
    for top in range(0, n, block_rows):
        rows = slice(top, min(top + block_rows, n))
        for left in range(top, n, block_rows):
            columns = slice(left, min(left + block_rows, n))
            mask = np.arange(rows.start, rows.stop)[:, None] < np.arange(columns.start, columns.stop)
            if bursts is not None:
                mask &= bursts[rows][:, None] != bursts[columns]
            yield rows, columns, mask


def identity_folds(identities: Any, n_folds: int = 3, *, groups: Any = None, seed: int = 0) -> list[np.ndarray]:
    """Deal whole identities to folds: no identity, and no group, stands in two.

    Parameters
    ----------
    identities : array-like of shape (n_samples,)
        Whose image each row is.
    n_folds : int, default=3
        Folds wanted; fewer where there are fewer identities (or groups).
    groups : array-like of shape (n_samples,), default=None
        Identities that share a group (an alphabet, a household) go to the same fold.
    seed : int, default=0
        Another seed, other folds. They depend on names, never on the order of rows.

    Returns
    -------
    list of ndarray of int
        Row numbers of each fold, sorted.

    Raises
    ------
    SplitError
        One identity only, or groups that tie all of them together.

    Examples
    --------
    >>> [fold.tolist() for fold in identity_folds(["ann", "bob", "ann", "bob"], 2)]
    [[0, 2], [1, 3]]
    """
    codes = units_of(codes_of(identities), groups)
    count = int(codes.max()) + 1
    # Large ones first, each to the fold that has the fewest rows: the folds come out even.
    order = np.random.default_rng([seed, 0xF01D]).permutation(count)
    sizes = np.bincount(codes)
    fold_of = np.zeros(count, dtype=np.intp)
    filled = [(0, fold) for fold in range(min(n_folds, count))]
    for unit in order[np.argsort(-sizes[order], kind="stable")]:
        rows, fold_of[unit] = filled[0]
        heapq.heapreplace(filled, (rows + int(sizes[unit]), int(fold_of[unit])))
    # One sort for all folds: a search for the rows of each would cost folds times rows.
    places = fold_of[codes]
    folds = np.split(np.argsort(places, kind="stable"), np.cumsum(np.bincount(places))[:-1])
    return sorted(folds, key=lambda rows: int(rows[0]))


def units_of(codes: np.ndarray, groups: Any = None) -> np.ndarray:
    """Return the number, from 0, of the set of identities of each row that can be held out on its own.

    Parameters
    ----------
    codes : ndarray of int of shape (n_samples,)
        Identities.
    groups : array-like of shape (n_samples,), default=None
        Identities that share a group belong together.

    Raises
    ------
    SplitError
        One such set only.
    """
    if groups is not None:
        codes = _joined(codes, codes_of(groups, "groups"))
    count = int(codes.max(initial=-1)) + 1
    if count < 2:
        what = "" if groups is None else " (or sets of them that share no group)"
        raise SplitError(f"identities: expected two or more{what}, got {count}; give more, or leave the groups out")
    return codes


def _joined(codes: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Number the sets of identities that groups tie together."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    n = int(codes.max()) + 1
    size = n + int(groups.max()) + 1
    links = coo_array((np.ones(len(codes)), (codes, n + groups)), shape=(size, size))
    return np.unique(connected_components(links, directed=False)[1][codes], return_inverse=True)[1]
