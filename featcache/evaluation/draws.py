"""The draws of a protocol: which rows train and which are tested, seed by seed, the same for all heads."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from ..errors import SplitError
from ..heads.choosing import tuning_folds
from ..heads.labelled import Rows
from ..splits import Folds, hash_split, holdout, k_fold, k_shot, named_splits
from .protocol import EvalProtocol

__all__ = ["Draw", "draws_of"]


@dataclass(frozen=True)
class Draw:
    """Training rows, test rows and folds of one seed, the same for all heads.

    Parameters
    ----------
    dataset : str
        Name of the set of codes.
    shots : int or "all"
        Rows per class that were asked for.
    seed, fold : int
        Which draw; `fold` is 0 but in "k-fold".
    train, test : ndarray of int
        Row numbers of the labelled rows.
    folds : Folds or None
        On which settings are chosen, inside the training rows; None where nothing can be held out.
    overlap : float
        Expected share of a draw's training rows that another draw of the cell trains on, too.
    reused : bool
        Whether rows that one draw trains on are tested in another.
    notes : tuple of str, default=()
        What is odd about the split.
    """

    dataset: str
    shots: int | str
    seed: int
    fold: int
    train: np.ndarray
    test: np.ndarray
    folds: Folds | None
    overlap: float
    reused: bool
    notes: tuple[str, ...] = ()


def draws_of(name: str, rows: Rows, protocol: EvalProtocol) -> Iterator[Draw]:
    """Yield all draws of one data set, shots by shots, seed by seed: of images, the same with their views and without.

    Raises
    ------
    SplitError
        The rows cannot be split so, or a split would test what it trains on.
    """
    images, plain = rows.standing(np.arange(len(rows.y))), rows.plain()
    plain = _with_parts(name, plain, protocol)
    for shots in protocol.shots:
        one = shots == "all" and bool(plain.parts)
        for seed in range(protocol.first_seed, protocol.first_seed + (1 if one else protocol.seeds)):
            try:
                of_seed = list(_draws_of_seed(name, plain, protocol, shots, seed))
            except SplitError as error:
                text = str(error)
                raise SplitError(text if text.startswith(f"{name}: ") else f"{name}: {text}") from error
            for draw in of_seed:
                yield replace(draw, train=images[draw.train], test=images[draw.test])


def _with_parts(name: str, rows: Rows, protocol: EvalProtocol) -> Rows:
    """Rows whose named parts are those that the protocol tests on; none where each seed makes its own."""
    if protocol.splitter == "named" and not rows.parts:
        raise SplitError(f"{name}: expected train and test rows in the split column, got none; use another split")
    if protocol.splitter == "hash":
        names = hash_split(rows.ids, test_size=protocol.test_size, groups=rows.groups, seed=protocol.first_seed)
        parts = named_splits(names)
        if set(parts) < {"train", "test"}:
            raise SplitError(f"{name}: expected rows for both parts of a split by hash, got too few; use 'holdout'")
        return replace(rows, parts=parts)
    return rows if protocol.splitter in ("auto", "named") else replace(rows, parts={})


def _draws_of_seed(name: str, rows: Rows, protocol: EvalProtocol, shots: int | str, seed: int) -> Iterator[Draw]:
    order = np.argsort(rows.ids, kind="stable")
    pools, notes = _pools(rows, protocol, shots, seed)
    for fold, (pool, test) in enumerate(pools):
        chosen = pool
        if shots != "all":
            # Another fold trains on other rows: its own part of the seed's order.
            chosen = k_shot(rows.y, int(shots), rows=pool, ids=rows.ids, groups=rows.groups, seed=seed)
        elif len(np.unique(rows.y[pool])) < 2:
            raise SplitError(
                f"{name}: expected two classes or more in the train rows, got one; look at the split column"
            )
        # By id: neither the fit nor a sum over rows may depend on the order of the rows.
        chosen, test = order[np.isin(order, chosen)], order[np.isin(order, test)]
        _check_apart(rows, chosen, test)
        reach = len(pool) if rows.parts else len(pool) + len(test)
        yield Draw(
            name,
            shots,
            seed,
            fold,
            chosen,
            test,
            _tuning(rows, chosen, protocol, shots, seed),
            len(chosen) / reach,
            not rows.parts,
            notes,
        )


def _pools(
    rows: Rows, protocol: EvalProtocol, shots: int | str, seed: int
) -> tuple[list[tuple[np.ndarray, np.ndarray]], tuple[str, ...]]:
    """Rows to draw training rows from, and test rows, per fold; and what is odd about them."""
    if rows.parts:
        pool, test = rows.parts["train"], rows.parts["test"]
        pool = np.concatenate([pool, rows.parts.get("val", pool[:0])]) if shots == "all" else pool
        both = 0 if rows.groups is None else len(np.intersect1d(rows.groups[pool], rows.groups[test]))
        told = (
            f"{both} groups stand in train and test of the split column: scores may be too good; see `featcache audit`"
        )
        return [(pool, test)], (told,) if both else ()
    if protocol.splitter == "k-fold":
        folds = k_fold(rows.y, protocol.n_folds, ids=rows.ids, groups=rows.groups, seed=seed)
        return list(folds), folds.notes
    return [holdout(rows.y, test_size=protocol.test_size, ids=rows.ids, groups=rows.groups, seed=seed)], ()


def _check_apart(rows: Rows, train: np.ndarray, test: np.ndarray) -> None:
    """Raise SplitError where a draw would test what it trains on; groups that the data's own split parts may be."""
    drawn = not rows.parts and rows.groups is not None
    for what, names in (("rows", rows.ids), ("groups", rows.groups if drawn else None)):
        if names is not None and len(both := np.intersect1d(names[train], names[test])):
            raise SplitError(f"draw: {len(both)} {what} stand in train and test, such as {str(both[0])!r}; split anew")


def _tuning(rows: Rows, chosen: np.ndarray, protocol: EvalProtocol, shots: int | str, seed: int) -> Folds | None:
    if shots == "all" and "val" in rows.parts:
        in_val = np.isin(chosen, rows.parts["val"])
        return Folds(((np.flatnonzero(~in_val), np.flatnonzero(in_val)),), ("settings chosen on the val rows",))
    groups = None if rows.groups is None else rows.groups[chosen]
    return tuning_folds(rows.y[chosen], rows.X.shape[1], cv=protocol.cv, ids=rows.ids[chosen], groups=groups, seed=seed)
