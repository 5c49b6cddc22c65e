"""What advice rests on: the depth profile, the learning curve, and what the source classifier makes of the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import softmax

from ..errors import FeatcacheError, HeadError
from ..evaluation import compare, forecast
from ..evaluation.intervals import interval
from ..features import FeatureSet
from ..ranking.scoring import Scores, paired, scored
from ..ranking.shared import training_rows
from ..ranking.transferability import leep
from ..reporting import Result

__all__ = ["Curve", "Profile", "learning_curve", "next_doubling", "profile_of", "source_of", "training_part"]

_DOUBLINGS = 4
_MOST_ROWS = 10_000  # beyond, a curve takes minutes and is flat
_HEAD = "ridge"  # tuned in a fraction of a second, exact leave-one-out


@dataclass(frozen=True)
class Profile:
    """How good codes are along the network.

    Parameters
    ----------
    rows : tuple of dict
        Per node, in the network's order: node, by ("ridge" or "knn", the better), accuracy (its, rows left out), ci95,
        explained, best, seconds. Of two heads and several nodes the best is somewhat better by chance alone.
    best, last : int
        Positions of the best node and of the last one.
    early : bool
        Whether the last node is worse than the best, and not by chance.
    difference : dict or None
        Accuracy of the best less that of the last: points, low, high (for all pairs of nodes at once); None where the
        best is the last.
    n_images : int
        Rows left out in turn.
    notes : tuple of str
        Which rows those are.
    """

    rows: tuple[dict[str, Any], ...]
    best: int
    last: int
    early: bool
    difference: dict[str, float] | None
    n_images: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Curve:
    """Accuracy by images per class, and what twice as many would add (points; low, high: 95 %), None where unknown."""

    rows: tuple[dict[str, Any], ...]
    doubling: dict[str, float] | None


def training_part(data: FeatureSet) -> tuple[FeatureSet, tuple[str, ...]]:
    """Return the labelled images that a split lets train, and notes; test rows are not to be touched."""
    rows = training_rows(data)
    chosen = np.flatnonzero(np.isin(data.row_ids, rows.ids))
    return replace(data.select(chosen), splits=None, view_of=None), rows.notes


def profile_of(nodes: dict[str, FeatureSet], step: Callable[[str], None]) -> Profile:
    """Score the nodes of one network, given in its order, as `rank` does."""
    names = list(nodes)
    scores = scored(nodes, names, {}, progress=lambda done, total, what: step(what))
    found = scores.found
    first = min(names, key=lambda name: (-found[name]["explained"], found[name]["features"], name))
    best, last = names.index(first), len(names) - 1
    rows = tuple(_profile_row(name, scores, i == best) for i, name in enumerate(names))
    early = best != last and paired(scores, names, "explained")[first, names[last]].distinguishable
    return Profile(rows, best, last, early, _difference(scores, first, names), scores.n_images, scores.notes)


def _profile_row(name: str, scores: Scores, best: bool) -> dict[str, Any]:
    found = scores.found[name]
    better = max(("ridge", "knn"), key=lambda who: float(found[who]))
    return {
        "node": name,
        "by": better,
        "accuracy": found[better],
        "ci95": list(interval(scores.cells[name][better])),
        "explained": found["explained"],
        "best": best,
        "seconds": found["seconds"],
    }


def _difference(scores: Scores, best: str, names: list[str]) -> dict[str, float] | None:
    """The accuracies of the best and the last, compared row by row, by the head that does better on the two."""
    last = names[-1]
    if best == last:
        return None
    ridge, knn = (sum(scores.found[name][who] for name in (best, last)) for who in ("ridge", "knn"))
    found = paired(scores, names, "ridge" if ridge >= knn else "knn")[best, last]
    return {"points": 100.0 * found.mean, "low": 100.0 * found.ci95[0], "high": 100.0 * found.ci95[1]}


def learning_curve(data: FeatureSet, *, seeds: int) -> Curve:
    """Accuracy of ridge at numbers of images per class that double, up to what the smallest class allows."""
    counts = np.unique(data.y if data.y is not None else np.empty(0), return_counts=True)[1]
    most = min(int(0.75 * counts.min()), _MOST_ROWS // len(counts))  # a quarter of each class is held out
    shots = sorted({most // 2**i for i in range(_DOUBLINGS + 1)} - {0})
    if len(shots) < 2:
        return Curve((), None)
    try:
        result = compare(data, [_HEAD], shots=shots, seeds=seeds)
    except FeatcacheError:  # groups that cannot be held out, say: the advice then does without a curve
        return Curve((), None)
    rows = tuple({key: row[key] for key in ("shots", "mean", "ci95")} for row in result.rows)
    return Curve(rows, next_doubling(result))


def next_doubling(result: Result) -> dict[str, float] | None:
    """Return what twice the images per class would add, in points, with a 95 % interval; None for under three sizes."""
    try:
        (found,) = forecast(result)
    except HeadError:  # fewer than three sizes that a curve can go through
        return None
    low, high = found.gain_ci95
    return {"points": 100.0 * found.gain, "low": 100.0 * low, "high": 100.0 * high}


def source_of(logits: FeatureSet) -> dict[str, float]:
    """Return what the source classifier makes of the images.

    Returns
    -------
    dict
        confidence (mean largest probability), entropy (mean, as a share of that of all classes alike), classes
        (effective number over all images), told (share of the label's entropy that the source classes carry, by LEEP;
        too high where images are few).
    """
    X, y = logits.xy
    shares = softmax(np.asarray(X, dtype=np.float64), axis=1)
    codes = np.unique(y, return_inverse=True)[1]
    label = stats.entropy(np.bincount(codes))
    return {
        "confidence": float(shares.max(axis=1).mean()),
        "entropy": float(stats.entropy(shares, axis=1).mean() / np.log(shares.shape[1])),
        "classes": float(np.exp(stats.entropy(shares.mean(axis=0)))),
        "told": float(np.clip(1.0 + leep(X, codes, left_out=True) / label, 0.0, 1.0)),
    }
