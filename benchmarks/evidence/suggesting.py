"""Are suggested images worth more than random ones, at the same number of labels?

Each draw holds out test rows; of the others all labels are hidden. Budgets of 1, 2, 5 and 10 labels per class (on
average: nobody knows the classes beforehand) are filled one after another by each strategy, and a ridge head trained on
what is labelled is scored on the test rows. Until labels of two classes are there, all but "random" cover. Random rows
are plain random ones: no near-duplicate is passed over, no group spread. The draws are the same for all.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from measuring import claim
from scipy import stats

from featcache import suggest
from featcache.features import FeatureSet
from featcache.heads.choosing import train, tuning_folds
from featcache.splits import has_named_splits, holdout

from .case import REAL

ARCH = "squeezenet1_1"
BUDGETS = (1, 2, 5, 10)
#: What "few labels" are: until there, auto covers.
FEW = 5
STRATEGIES = ("auto", "coverage", "mix")
TEST = 0.4


def run(case: Any) -> dict[str, Any]:
    """Return figures and claims; `case.tiny` takes seconds, on generated codes."""
    draws = case.repeats or (2 if case.tiny else 20)
    names, budgets = (REAL[:1], BUDGETS[:3]) if case.tiny else (REAL, BUDGETS)
    rows: list[dict[str, Any]] = []
    for name in names:
        data = _whole(case.load(name, ARCH))
        scores = {s: np.asarray([_draw(data, d, s, budgets) for d in range(draws)]) for s in ("random", *STRATEGIES)}
        for i, budget in enumerate(budgets):
            base = scores["random"][:, i]
            rows += [_line(name, budget, strategy, scores[strategy][:, i], base) for strategy in STRATEGIES]
    return {"draws": draws, "test share": TEST, "rows": rows, "claims": _claims(rows, budgets)}


def _whole(data: FeatureSet) -> FeatureSet:
    if data.groups is None and data.splits is not None and not has_named_splits(data.splits):
        data = replace(data, groups=data.splits)  # the source image that cells were cut from
    return replace(data, splits=None)


def _draw(data: FeatureSet, seed: int, strategy: str, budgets: tuple[int, ...]) -> list[float]:
    """Accuracy after each budget."""
    assert data.y is not None
    pool, test = holdout(data.y, test_size=TEST, ids=data.ids, groups=data.groups, seed=seed)
    some, y, classes = data.select(pool), data.y[pool], len(data.classes)
    number = {name: i for i, name in enumerate(some.row_ids.tolist())}
    known, found = np.zeros(len(pool), dtype=bool), []
    order = np.random.default_rng(seed).permutation(np.argsort(some.row_ids, kind="stable"))
    for budget in budgets:
        wanted = min(budget * classes, len(pool)) - int(known.sum())
        if strategy == "random":
            known[order[: budget * classes]] = True
        elif wanted > 0:
            way = strategy if strategy == "auto" or len(np.unique(y[known])) > 1 else "coverage"
            asked = replace(some, y=np.where(known, y, ""))
            known[[number[name] for name in suggest(asked, wanted, strategy=way, seed=seed).ids]] = True
        found.append(_accuracy(some.X[known], y[known], data.X[test], data.y[test]))
    return found


def _accuracy(X: np.ndarray, y: np.ndarray, test_X: np.ndarray, test_y: np.ndarray) -> float:
    if len(np.unique(y)) < 2:
        return float(np.mean(test_y == y[0]))
    folds = tuning_folds(y, X.shape[1], cv=3, ids=None, groups=None, seed=0)
    return float(np.mean(train("ridge", X, y, folds, seed=0).estimator.predict(test_X) == test_y))


def _line(name: str, budget: int, strategy: str, scores: np.ndarray, base: np.ndarray) -> dict[str, Any]:
    difference = scores - base
    half = float(stats.t.ppf(0.975, len(base) - 1) * difference.std(ddof=1) / np.sqrt(len(base)))
    mean = float(difference.mean())
    return {
        "data": name,
        "labels per class": budget,
        "strategy": strategy,
        "accuracy": round(float(scores.mean()), 4),
        "of random": round(float(base.mean()), 4),
        "gain, points": round(100 * mean, 2),
        "95 % interval": [round(100 * (mean - half), 2), round(100 * (mean + half), 2)],
        "worse in share of draws": round(float((difference < 0).mean()), 3),
    }


def _claims(rows: list[dict[str, Any]], budgets: tuple[int, ...]) -> list[dict[str, Any]]:
    own = [row for row in rows if row["strategy"] == "auto"]
    few = [row for row in own if row["labels per class"] <= FEW]
    gains = {
        budget: round(float(np.mean([row["gain, points"] for row in few if row["labels per class"] == budget])), 2)
        for budget in budgets
        if budget <= FEW
    }
    told = sum(row["95 % interval"][0] > 0 for row in few)
    worse = [f"{row['data']} at {row['labels per class']}" for row in own if row["95 % interval"][1] < 0]
    best = {
        strategy: float(np.mean([row["gain, points"] for row in rows if row["strategy"] == strategy]))
        for strategy in STRATEGIES
    }
    return [
        claim(f"with few labels, {list(gains)} per class, auto gains over random on the mean of the sets, points",
              list(gains.values()), min(gains.values()) > 0),
        claim(f"in half or more of the {len(few)} sets and budgets with few labels the paired interval is above 0",
              told, told >= len(few) / 2),
        claim(f"auto is nowhere reliably worse than random: in none of {len(own)} sets and budgets is the paired "
              "interval below 0", worse, not worse),
        claim("no single strategy is more than half a point better than auto over all sets and budgets",
              {k: round(v, 2) for k, v in best.items()}, best["auto"] >= max(best.values()) - 0.5),
    ]  # fmt: skip
