"""What advice rests on: the depth profile, the learning curve, and what the source classifier makes of the images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats
from scipy.special import softmax

from ..errors import FeatcacheError
from ..evaluation import compare, forecast
from ..features import FeatureSet
from ..heads.labelled import Rows
from ..ranking import Ranking, rank
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
        Per node, in the network's order: node, accuracy (the better of ridge and kNN, rows left out), ci95, explained,
        ci_explained, best, seconds.
    best, last : int
        Positions of the best node and of the last one.
    early : bool
        Whether the last node is worse than the best, and not by chance.
    difference : dict or None
        Accuracy of the best less that of the last: points, low, high; None where the best is the last.
    """

    rows: tuple[dict[str, Any], ...]
    best: int
    last: int
    early: bool
    difference: dict[str, float] | None


@dataclass(frozen=True)
class Curve:
    """Accuracy by images per class, and what twice as many would add (points; low, high: 95 %), None where unknown."""

    rows: tuple[dict[str, Any], ...]
    doubling: dict[str, float] | None


def training_part(data: FeatureSet) -> FeatureSet:
    """Return the labelled images that a split lets train; test rows are not to be touched."""
    rows = Rows.of(data, on_disk=True).plain()
    chosen = np.flatnonzero(np.isin(data.row_ids, rows.ids[rows.training()]))
    return replace(data.select(chosen), splits=None, view_of=None)


def profile_of(nodes: dict[str, FeatureSet], step: Callable[[str], None]) -> Profile:
    """Rank the nodes of one network, given in its order."""
    ranking = rank(nodes, logits=None, progress=lambda done, total, what: step(what))
    by_name = {row["codes"]: row for row in ranking.rows}
    names = list(nodes)
    best, last = names.index(ranking.best()["codes"]), len(names) - 1
    rows = tuple(_profile_row(by_name[name], i == best) for i, name in enumerate(names))
    worse = [each for each in ranking.comparisons if each["other"] == names[last]]
    early = bool(worse and worse[0]["distinguishable"])
    return Profile(rows, best, last, early, _difference(nodes, ranking, names[best], names[last]))


def _profile_row(row: dict[str, Any], best: bool) -> dict[str, Any]:
    better = max(("ridge", "knn"), key=lambda who: float(row[who]))
    return {
        "node": row["codes"],
        "accuracy": row[better],
        "ci95": row[f"{better}_ci95"],
        "explained": row["explained"],
        "ci_explained": row["ci95"],
        "best": best,
        "seconds": row["seconds"],
    }


def _difference(nodes: dict[str, FeatureSet], ranking: Ranking, best: str, last: str) -> dict[str, float] | None:
    """The accuracies of the two nodes, compared row by row."""
    if best == last:
        return None
    by = (
        "ridge"
        if sum(row["ridge"] - row["knn"] for row in ranking.rows if row["codes"] in (best, last)) >= 0
        else "knn"
    )
    pair = rank({name: nodes[name] for name in (best, last)}, by=by, logits=None).comparisons[0]
    sign = 1.0 if pair["best"] == best else -1.0
    low, high = sorted(100.0 * sign * bound for bound in pair["ci95"])
    return {"points": 100.0 * sign * pair["difference"], "low": low, "high": high}


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
    if len(result.rows) < 3:
        return None
    (found,) = forecast(result)
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
        "told": float(np.clip(1.0 + _leep_left_out(shares, codes) / label, 0.0, 1.0)),
    }


def _leep_left_out(shares: np.ndarray, codes: np.ndarray) -> float:
    """LEEP in which no image tells its own label: with 1000 source classes and few images it would tell it well."""
    k = int(codes.max()) + 1
    joint = np.stack([shares[codes == c].sum(axis=0) for c in range(k)])
    total = joint.sum(axis=0)
    prior = (np.bincount(codes) / len(codes))[codes][:, None]
    # One image's worth of the classes' shares keeps source classes that nobody else uses from saying anything.
    given = (joint[codes] - shares + prior) / (total - shares + 1.0)
    return float(np.mean(np.log((shares * given).sum(axis=1))))
