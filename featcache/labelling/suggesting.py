"""suggest(): which of the unlabelled images to label next."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import HeadError
from ..features import FeatureSet
from ..heads.calibration import TemperatureClassifier
from ..heads.labelled import as_matrix, name_of
from ..solvers.neighbors import nearest
from ..splits import generator_for, named_splits, whole_number
from .picking import Batch, by_coverage, by_mix, by_uncertainty, directions, margins, reduced, sameness
from .suggestions import Suggestion, Suggestions

__all__ = ["STRATEGIES", "suggest"]

STRATEGIES = ("auto", "coverage", "uncertainty", "mix", "random")
#: Labelled images per class from which "auto" goes over from coverage to the mix: benchmarks/evidence/suggesting.py.
_FEW = 5


@dataclass(frozen=True)
class _Pool:
    """What may be suggested and what is known, each in the order of ids, so that no result depends on another."""

    ids: np.ndarray
    X: np.ndarray
    groups: np.ndarray
    known_X: np.ndarray
    known_y: np.ndarray
    known_groups: np.ndarray | None
    held_X: np.ndarray
    beside_held: np.ndarray
    held_out: int


def suggest(
    data: FeatureSet, n: int = 20, *, strategy: str = "auto", head: Any = "ridge", seed: int = 0
) -> Suggestions:
    """Suggest which unlabelled images to label next.

    Parameters
    ----------
    data : FeatureSet
        Codes; rows without a label ("") may be suggested, labelled ones are what is known. Rows of a test or val part
        are not suggested, nor are near copies of them and rows of their groups: to train on those would be a leak.
        Nothing else is taken from them. Augmented views (`view_of`) are no images.
    n : int, default=20
        Images wanted; fewer where there are not so many that differ.
    strategy : {"auto", "coverage", "uncertainty", "mix", "random"}, default="auto"
        "coverage": the most typical images of the largest clusters that hold no labelled one, TypiClust [1]_; needs
        no label. "uncertainty": the smallest lead of the most probable class. "mix": uncertain images that differ,
        k-means++ on the head's gradients, BADGE [2]_. "auto": coverage while there are fewer than 5 labelled images
        per class (or one class only), then the mix. "random": what the others are to be measured against.
    head : str or estimator, default="ridge"
        The head whose doubts count, calibrated on held-out labelled rows.
    seed : int, default=0
        Seed of what is drawn.

    Returns
    -------
    Suggestions
        With the reason, the head's guess, and how many unlabelled images each stands for.

    Raises
    ------
    HeadError
        No unlabelled image, NaN in the codes, an unknown strategy or head, too few labels for the one asked for.

    Notes
    -----
    No two images of a batch are nearly the same, nor nearly the same as a labelled, test or val one: cosine of centred
    codes 0.97 or more, or at least 0.88 and so high that they differ by less than 0.18 of what fifth neighbours in this
    set differ by. Codes do not show every copy: grain that a stronger compression takes from an X-ray may change them
    more than another patient does. Every group gives one image before any gives a second. Rows are ordered by id
    first: their order in `data` does not matter. Of more than 10,000 rows clusters and densities are made from 10,000.

    Images chosen for training are no fair sample: measure on test rows that were drawn at random before.

    References
    ----------
    .. [1] G. Hacohen, A. Dekel, D. Weinshall, "Active learning on a budget: opposite strategies suit high and low
       budgets", ICML 2022, arXiv 2202.02794.
    .. [2] J. Ash et al., "Deep batch active learning by diverse, uncertain gradient lower bounds", ICLR 2020, arXiv
       1906.03671.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> labels = ["" if i >= 30 else str(label) for i, label in enumerate(y)]
    >>> found = suggest(FeatureSet(X, labels), 5)
    >>> len(found.ids), found.strategy
    (5, 'coverage')
    """
    if not whole_number(n, 1):
        raise HeadError(f"n: expected a whole number of 1 or more, got {n!r}")
    if strategy not in STRATEGIES:
        raise HeadError(f"strategy: expected one of {', '.join(STRATEGIES)}, got {strategy!r}")
    generator_for(seed, "suggest")  # refuses what is no seed
    pool = _pool(data)
    classes = np.unique(pool.known_y)
    notes: list[str] = []
    chosen = _resolved(strategy, len(pool.known_y), len(classes))
    shares = _probabilities(pool, head, seed, notes) if len(classes) > 1 else None
    if shares is None and chosen in ("mix", "uncertainty"):
        raise HeadError(
            f"{name_of(data)}: strategy {chosen!r} needs labelled images of two classes, there are {len(classes)}; "
            "use strategy='coverage' first"
        )
    units, known, held = directions(pool.X, pool.known_X, pool.held_X)
    batch = Batch(units, pool.groups, sameness(units))
    for closed, why in (
        (batch.close(pool.beside_held), "in a group with test or val images"),
        (batch.close(batch.like(held)), "nearly the same as test or val images"),
        (batch.close(batch.like(known)), "nearly the same as labelled ones"),
    ):
        if closed:
            notes.append(f"{closed} images are {why} and were passed over")
    _pick(chosen, batch, n, pool, units, known, shares, seed)
    if len(batch.picked) < n:
        notes.append(f"{len(batch.picked)} of {n} images: no others are left that differ from these and labelled ones")
    if pool.held_out:
        notes.append(f"{pool.held_out} unlabelled images of the test or val part were left alone")
    settings = {"n": n, "strategy": strategy, "head": str(head), "seed": seed}
    settings |= {"unlabelled": len(pool.ids), "labelled": len(pool.known_y), "classes": len(classes)}
    return Suggestions(_rows(pool, batch, units, known, classes, shares), chosen, tuple(notes), settings)


def _resolved(strategy: str, labelled: int, classes: int) -> str:
    if strategy != "auto":
        return strategy
    return "coverage" if classes < 2 or labelled < _FEW * classes else "mix"


def _pool(data: FeatureSet) -> _Pool:
    name = name_of(data)
    X = as_matrix(data.X, name)
    images = np.ones(len(data), dtype=bool) if data.view_of is None else data.view_of == ""
    parts, kept_back = named_splits(data.splits), np.zeros(len(data), dtype=bool)
    for part in ("val", "test"):
        kept_back[parts.get(part, [])] = True
    usable, held = images & ~kept_back, images & kept_back
    order = np.argsort(data.row_ids, kind="stable")
    asked, known = (order[(usable & mask)[order]] for mask in (~data.labelled, data.labelled))
    if not len(asked):
        raise HeadError(
            f"{name}: no unlabelled image to suggest{' outside its test and val parts' if parts else ''}; extract new "
            "images without labels into the store first"
        )
    # Rows without a group are one each, named by their ids: by row numbers, results would hang on the rows' order.
    alone = np.asarray([f"\0{name}" for name in data.row_ids.tolist()])
    groups = alone if data.groups is None else np.where(data.groups == "", alone, data.groups.astype(np.str_))
    y = np.zeros(len(data), dtype=np.str_) if data.y is None else data.y
    return _Pool(
        ids=data.row_ids[asked],
        X=X[asked],
        groups=np.unique(groups[asked], return_inverse=True)[1],
        known_X=X[known],
        known_y=y[known],
        known_groups=None if data.groups is None else groups[known],
        held_X=X[order[held[order]]],
        beside_held=np.isin(groups[asked], groups[held]),
        held_out=int((held & ~data.labelled).sum()),
    )


def _probabilities(pool: _Pool, head: Any, seed: int, notes: list[str]) -> np.ndarray:
    """Calibrated probabilities of the unlabelled images, (n, c), by a head trained on the labelled ones."""
    try:
        fitted = TemperatureClassifier(head, random_state=seed).fit(pool.known_X, pool.known_y, pool.known_groups)
    except ValueError as error:
        raise HeadError(f"head: {error}") from error
    notes += fitted.notes_
    blocks = range(0, len(pool.X), 65_536)
    return np.concatenate([fitted.predict_proba(pool.X[start : start + 65_536]) for start in blocks])


def _pick(
    chosen: str,
    batch: Batch,
    n: int,
    pool: _Pool,
    units: np.ndarray,
    known: np.ndarray,
    shares: np.ndarray | None,
    seed: int,
) -> None:
    if chosen == "random":
        rank = _rank(pool.ids, seed)
        batch.fill(n, lambda rows: int(rows[rank[rows].argmin()]))
    elif chosen == "uncertainty" and shares is not None:
        by_uncertainty(batch, n, shares)
    elif chosen == "mix" and shares is not None:
        # Another draw in each round: the same numbers would fall on neighbours of the rows they fell on before.
        by_mix(batch, n, units, shares, np.random.default_rng([int(seed), len(known)]))
    else:
        by_coverage(batch, n, *reduced(units, known), seed)


def _rank(ids: np.ndarray, seed: int) -> np.ndarray:
    """A random order that belongs to the ids: the next round goes on where this one ended."""
    keys = [hashlib.sha256(f"{seed}\n{name}".encode("utf-8", "surrogatepass")).digest() for name in ids.tolist()]
    rank = np.empty(len(keys), dtype=np.intp)
    rank[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return rank


def _rows(
    pool: _Pool, batch: Batch, units: np.ndarray, known: np.ndarray, classes: np.ndarray, shares: np.ndarray | None
) -> tuple[Suggestion, ...]:
    if not batch.picked:
        return ()
    picked = np.asarray(batch.picked)
    near, own = nearest(units, units[picked], 1)
    to_known = nearest(units, known, 1)[0][:, 0] if len(known) else None
    nearer = np.ones(len(units), dtype=bool) if to_known is None else near[:, 0] > to_known
    nearer[picked] = True
    own[picked, 0] = np.arange(len(picked))
    stands = np.bincount(own[nearer, 0], minlength=len(picked))
    far = None if to_known is None else to_known[picked] <= np.median(to_known)
    found = []
    for place, row in enumerate(picked.tolist()):
        doubt = guess = rival = two = None
        wrong = 1.0
        if shares is not None:
            first, second = np.argsort(-shares[row], kind="stable")[:2]
            guess, rival, two = str(classes[first]), str(classes[second]), (shares[row, first], shares[row, second])
            doubt, wrong = float(margins(shares[row : row + 1])[0]), float(1.0 - shares[row, first])
        found.append(
            Suggestion(
                id=str(pool.ids[row]),
                why=_why(doubt, guess, rival, int(stands[place]), far is not None and bool(far[place])),
                doubt=doubt,
                guess=guess,
                rival=rival,
                probabilities=None if two is None else (float(two[0]), float(two[1])),
                nearest=None if to_known is None else float(to_known[row]),
                stands_for=int(stands[place]),
                usefulness=float(stands[place] / len(units) * wrong),
            )
        )
    return tuple(found)


def _why(doubt: float | None, guess: str | None, rival: str | None, stands_for: int, far: bool) -> str:
    reasons = []
    if doubt is not None and doubt >= 0.5:
        reasons.append(f"uncertain between {guess} and {rival}")
    if far:
        reasons.append("far from labelled images")
    if stands_for > 1:
        reasons.append(f"typical of {stands_for} unlabelled images")
    return ", ".join(reasons) or "differs from what is labelled"
