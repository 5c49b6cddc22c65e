"""Splits as seeded index arrays: named, holdout, k-fold, group, k-shot, and stable by hash. NumPy only.

Every drawn split depends on the ids and the seed, never on the order of the rows: rows are sorted by id first. So the
same images give the same split from a folder, a list or a store, on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import SplitError

__all__ = ["Folds", "has_named_splits", "hash_split", "holdout", "k_fold", "k_shot", "named_splits"]

_PARTS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Folds:
    """Pairs of (training rows, validation rows) and what had to be done to get them.

    Parameters
    ----------
    pairs : tuple of (ndarray, ndarray)
        Sorted row numbers; a validation row stands in exactly one pair.
    notes : tuple of str, default=()
        One sentence for each departure from what was asked (fewer folds, rows that are never validated).
    """

    pairs: tuple[tuple[np.ndarray, np.ndarray], ...]
    notes: tuple[str, ...] = ()

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        return iter(self.pairs)

    def __len__(self) -> int:
        return len(self.pairs)


def named_splits(splits: Any) -> dict[str, np.ndarray]:
    """Return the rows of each named part.

    Parameters
    ----------
    splits : array-like of str of shape (n_samples,), or None
        The source's split column. train|training, val|valid|validation, test|testing are known, in any case; all
        other values (a source image, "all", "") belong to no part.

    Returns
    -------
    dict of str to ndarray
        Sorted row numbers under "train", "val", "test"; parts without rows are left out.

    Examples
    --------
    >>> {name: rows.tolist() for name, rows in named_splits(["Train", "valid", "TEST", "extra"]).items()}
    {'train': [0], 'val': [1], 'test': [2]}
    """
    if splits is None:
        return {}
    names = np.asarray([_PARTS.get(str(value).strip().lower(), "") for value in np.asarray(splits).tolist()])
    return {part: np.flatnonzero(names == part) for part in ("train", "val", "test") if (names == part).any()}


def has_named_splits(splits: Any) -> bool:
    """Return whether a split column says which rows train and which test.

    Examples
    --------
    >>> has_named_splits(["train", "test"]), has_named_splits(["BloodImage_00003", "BloodImage_00004"])
    (True, False)
    """
    return {"train", "test"} <= named_splits(splits).keys()


def holdout(
    y: Any, *, test_size: float = 0.25, ids: Any = None, groups: Any = None, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Split rows into a training and a test part, class by class.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels.
    test_size : float, default=0.25
        Share of each class that goes to the test part. A class of one row always trains; a larger class gives at
        least one row to each part.
    ids : array-like of shape (n_samples,), default=None
        Names of the rows; the split follows them, whatever the order of the rows. None: row numbers.
    groups : array-like of shape (n_samples,), default=None
        Rows of one group stay together; the shares are then met as nearly as the groups allow.
    seed : int, default=0
        Another seed, another split.

    Returns
    -------
    train, test : ndarray of int
        Sorted row numbers.

    Raises
    ------
    SplitError
        One class only, `test_size` outside (0, 1), or no class (or group) that can be divided.

    Examples
    --------
    >>> train, test = holdout(["a"] * 4 + ["b"] * 4, test_size=0.25)
    >>> len(train), len(test)
    (6, 2)
    """
    codes, n_classes = _class_codes(y)
    if not 0.0 < test_size < 1.0:
        raise SplitError(f"holdout: expected test_size between 0 and 1, got {test_size}; 0.25 is usual")
    if groups is None:
        test = _stratified_test(codes, n_classes, test_size, _shuffled(len(codes), ids, seed, "holdout"))
    else:
        test = _grouped_test(codes, n_classes, test_size, groups, seed)
    if not test.any() or test.all():
        unit = "groups" if groups is not None else "classes with two rows"
        raise SplitError(f"holdout: expected {unit} that can be divided, got none; give more images or a split column")
    return np.flatnonzero(~test), np.flatnonzero(test)


def k_fold(y: Any, n_folds: int = 5, *, ids: Any = None, groups: Any = None, seed: int = 0) -> Folds:
    """Deal rows to folds, class by class, so that every training side sees every class.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels.
    n_folds : int, default=5
        Folds wanted. There are fewer, with a note, when no class has so many rows (or groups).
    ids, groups, seed
        As in `holdout`. A class whose rows all lie in one group, or that has one row, always trains.

    Returns
    -------
    Folds
        At least two pairs.

    Raises
    ------
    SplitError
        One class only, `n_folds` < 2, or no class with two rows (or groups) to part.

    Examples
    --------
    >>> folds = k_fold(["a", "a", "a", "b", "b", "b"], 5)
    >>> len(folds), folds.notes
    (3, ('3 folds instead of 5: no class has more rows than that',))
    """
    codes, n_classes = _class_codes(y)
    if not whole_number(n_folds, 2):
        raise SplitError(f"k_fold: expected n_folds of 2 or more, got {n_folds!r}")
    units = (
        np.arange(len(codes))
        if groups is None
        else np.unique(_text(groups, len(codes), "groups"), return_inverse=True)[1]
    )
    spread = [len(np.unique(units[codes == c])) for c in range(n_classes)]
    word = "rows" if groups is None else "groups"
    k = min(n_folds, max(spread))
    if k < 2:
        raise SplitError(
            f"k_fold: expected a class with two {word} or more, none has; use fixed settings or add images"
        )
    if groups is None:
        fold = _deal_rows(codes, n_classes, k, _shuffled(len(codes), ids, seed, "k_fold"))
    else:
        fold = _deal_groups(codes, n_classes, k, groups, seed)
    pairs = tuple((np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(k) if (fold == f).any())
    if len(pairs) < 2:
        raise SplitError(f"k_fold: expected two folds or more, the groups give {len(pairs)}; give more groups")
    return Folds(pairs, _fold_notes(n_folds, len(pairs), spread, word))


def k_shot(y: Any, k: int, *, rows: Any = None, ids: Any = None, groups: Any = None, seed: int = 0) -> np.ndarray:
    """Draw k rows of each class.

    One seed orders the rows of each class once, and a draw takes the first k: the 1-shot draw is part of the 5-shot
    draw of the same seed, which keeps learning curves smooth.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels of all rows.
    k : int
        Rows per class. A class that has fewer gives all it has.
    rows : array-like of int, default=None
        Draw from these rows only (the training part). None: all.
    ids, seed
        As in `holdout`.
    groups : array-like of shape (n_samples,), default=None
        A second row of a group is taken only when every group of the class has given one.

    Returns
    -------
    ndarray of int
        Sorted row numbers, valid for the whole `y`.

    Raises
    ------
    SplitError
        `k` < 1 or one class only.

    Examples
    --------
    >>> labels = ["a", "a", "a", "b", "b", "b"]
    >>> len(k_shot(labels, 2)), set(k_shot(labels, 1)) <= set(k_shot(labels, 2))
    (4, True)
    """
    if k < 1:
        raise SplitError(f"k_shot: expected k of 1 or more, got {k}")
    labels = np.asarray(y)
    pool = np.arange(len(labels)) if rows is None else np.asarray(rows, dtype=np.intp)
    codes, n_classes = _class_codes(labels[pool])
    names = None if ids is None else _text(ids, len(labels), "ids")[pool]
    units = None if groups is None else _text(groups, len(labels), "groups")[pool]
    order = _shuffled(len(pool), names, seed, "k_shot")
    drawn = []
    for c in range(n_classes):
        members = order[codes[order] == c]
        if units is not None:
            members = members[np.argsort(_repeats(units[members]), kind="stable")]
        drawn.append(members[:k])
    return np.sort(pool[np.concatenate(drawn)])


def hash_split(
    ids: Any, *, test_size: float = 0.2, val_size: float = 0.0, groups: Any = None, seed: int = 0
) -> np.ndarray:
    """Give each row a part by the hash of its id: adding images never moves old ones.

    Parameters
    ----------
    ids : array-like of shape (n_samples,)
        Names of the rows.
    test_size, val_size : float, default=0.2 and 0.0
        Expected shares; with few rows the real ones vary.
    groups : array-like of shape (n_samples,), default=None
        Hash these instead, so that a group stays whole.
    seed : int, default=0
        Enters the hash.

    Returns
    -------
    ndarray of str of shape (n_samples,)
        "train", "val" or "test"; fit for `FeatureSet.splits`.

    Raises
    ------
    SplitError
        Shares that are negative or leave nothing to train on.

    Examples
    --------
    >>> before, after = hash_split(["a.jpg", "b.jpg"]), hash_split(["a.jpg", "b.jpg", "c.jpg"])
    >>> (before == after[:2]).all()
    np.True_
    """
    if test_size < 0 or val_size < 0 or not 0 < test_size + val_size < 1:
        raise SplitError(
            f"hash_split: expected shares of 0 or more with a sum between 0 and 1, got test_size={test_size}, "
            f"val_size={val_size}"
        )
    keys = np.asarray(ids if groups is None else groups)
    shares = np.asarray([_unit_hash(str(key), seed) for key in keys.tolist()])
    parts = np.where(shares < test_size, "test", np.where(shares < test_size + val_size, "val", "train"))
    return parts.astype(np.str_)


def _unit_hash(key: str, seed: int) -> float:
    """Map text to [0, 1) by the first 53 bits of its SHA-256: exact in a float, the same everywhere."""
    digest = hashlib.sha256(f"featcache-split-1\n{seed}\n{key}".encode("utf-8", "surrogatepass")).digest()
    return float((int.from_bytes(digest[:8], "big") >> 11) / 2**53)


def _text(values: Any, n: int, name: str) -> np.ndarray:
    array = np.asarray(values).astype(np.str_)
    if array.shape != (n,):
        raise SplitError(f"{name}: expected {n} values (one per row), got shape {array.shape}")
    return array


def whole_number(value: Any, least: int) -> bool:
    """Return whether a value is an integer (of Python or NumPy, no bool) of at least so much."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and int(value) >= least


def _class_codes(y: Any) -> tuple[np.ndarray, int]:
    classes, codes = np.unique(np.asarray(y), return_inverse=True)
    if len(classes) < 2:
        only = f"only {str(classes[0])!r}" if len(classes) else "no row"
        raise SplitError(f"labels: expected two classes or more, got {only}; a head needs something to tell apart")
    return codes, len(classes)


def _shuffled(n: int, ids: Any, seed: int, purpose: str) -> np.ndarray:
    """Row numbers in an order that depends on ids, seed and purpose, never on the order of the rows."""
    order = np.arange(n) if ids is None else np.argsort(_text(ids, n, "ids"), kind="stable")
    return order[generator_for(seed, purpose).permutation(n)]


def generator_for(seed: int, purpose: str) -> np.random.Generator:
    """Return a generator that depends on a seed and on what it is for."""
    if not whole_number(seed, 0):
        raise SplitError(f"seed: expected a whole number of 0 or more, got {seed!r}")
    # The purpose keeps a holdout and the folds inside it from sharing one permutation.
    return np.random.default_rng([int(seed), int.from_bytes(purpose.encode(), "big") % 2**32])


def _repeats(units: np.ndarray) -> np.ndarray:
    """For each element, how many equal elements stand before it."""
    seen: dict[str, int] = {}
    out = np.zeros(len(units), dtype=np.intp)
    for i, unit in enumerate(units.tolist()):
        out[i] = seen.get(unit, 0)
        seen[unit] = out[i] + 1
    return out


def _stratified_test(codes: np.ndarray, n_classes: int, share: float, order: np.ndarray) -> np.ndarray:
    test = np.zeros(len(codes), dtype=bool)
    for c in range(n_classes):
        members = order[codes[order] == c]
        if len(members) > 1:
            test[members[: int(np.clip(round(share * len(members)), 1, len(members) - 1))]] = True
    return test


def _group_table(
    codes: np.ndarray, n_classes: int, groups: Any, seed: int, purpose: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Class counts per group (n_groups, n_classes), the group of each row, and the order of dealing."""
    names, unit = np.unique(_text(groups, len(codes), "groups"), return_inverse=True)
    if len(names) < 2:
        raise SplitError("groups: expected two groups or more, got one; leave the group column out or give more groups")
    counts = np.zeros((len(names), n_classes))
    np.add.at(counts, (unit, codes), 1)
    order = generator_for(seed, purpose).permutation(len(names))
    # Large groups first: they are the ones that can no longer be balanced later.
    return counts, unit, order[np.argsort(-counts[order].sum(1), kind="stable")]


def _grouped_test(codes: np.ndarray, n_classes: int, share: float, groups: Any, seed: int) -> np.ndarray:
    """Greedy: a group goes to the test part when that brings the test part's class counts nearer to their shares."""
    counts, unit, order = _group_table(codes, n_classes, groups, seed, "holdout")
    target, left = share * counts.sum(0), counts.sum(0)
    scale = 1.0 / np.maximum(left, 1.0)
    test, chosen = np.zeros(n_classes), np.zeros(len(counts), dtype=bool)
    # The shuffled order, not the order of size, decides here: a large group must be able to land on either side.
    for g in generator_for(seed, "holdout-order").permutation(len(counts)):
        closer = np.square((test + counts[g] - target) * scale).sum() < np.square((test - target) * scale).sum()
        if closer and not ((counts[g] > 0) & (left == counts[g])).any():
            test, left, chosen[g] = test + counts[g], left - counts[g], True
    if not chosen.any():  # every group is larger than the share: the smallest one that leaves each class something
        for g in order[::-1]:
            if not ((counts[g] > 0) & (left == counts[g])).any():
                chosen[g] = True
                break
    return chosen[unit]


def _deal_rows(codes: np.ndarray, n_classes: int, k: int, order: np.ndarray) -> np.ndarray:
    """Round robin through the classes; going on where the last class stopped keeps the folds of equal size."""
    fold, start = np.full(len(codes), -1), 0
    for c in range(n_classes):
        members = order[codes[order] == c]
        if len(members) > 1:
            fold[members] = (start + np.arange(len(members))) % k
            start += len(members)
    return fold


def _deal_groups(codes: np.ndarray, n_classes: int, k: int, groups: Any, seed: int) -> np.ndarray:
    """Greedy, large groups first: each goes to the fold where the class counts stay most even."""
    counts, unit, order = _group_table(codes, n_classes, groups, seed, "k_fold")
    scale = 1.0 / np.maximum(counts.sum(0), 1.0)
    lonely = (counts > 0).sum(0) == 1  # classes that live in one group: it must train, or they would be unknown
    filled, fold_of = np.zeros((k, n_classes)), np.full(len(counts), -1)
    for g in order:
        if (counts[g][lonely] > 0).any():
            continue
        cost = np.square((filled + counts[g]) * scale).sum(1) - np.square(filled * scale).sum(1)
        fold_of[g] = int(np.argmin(cost + 1e-9 * filled.sum(1)))
        filled[fold_of[g]] += counts[g]
    return fold_of[unit]


def _fold_notes(wanted: int, got: int, spread: Sequence[int], word: str) -> tuple[str, ...]:
    notes = []
    if got < wanted:
        notes.append(f"{got} folds instead of {wanted}: no class has more {word} than that")
    if (single := sum(1 for s in spread if s == 1)) and got >= 2:
        notes.append(f"{single} {'class has' if single == 1 else 'classes have'} one {word[:-1]}: always in training")
    return tuple(notes)
