"""Does the order that `rank` gives backbones and nodes agree with the order of heads trained on their codes?

Each draw parts a real set into halves (by source image where cells were cut from one). `rank` sees the first half, or k
images per class of it; the truth is the accuracy on the second half of a head tuned and trained on the same rows (the
better of logreg and ridge), averaged over the draws. Candidates are all nodes of four networks. Per score: Kendall's
tau, its weighted form (errors at the top count more) and Spearman's correlation with the truth, and the regret: points
of accuracy that are lost by taking the first.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from measuring import claim
from scipy import stats

import featcache as fc
from featcache.features import FeatureSet
from featcache.heads.choosing import train, tuning_folds
from featcache.ranking.scoring import is_logits
from featcache.splits import holdout, k_shot

from .case import NODES, REAL

SCORES = ("explained", "ridge", "knn", "logme", "h_score")
MEASURES = ("kendall", "weighted kendall", "spearman", "regret")
HEADS = ("logreg", "ridge")
_SOURCE = re.compile(r"BloodImage_\d+")


def run(case: Any) -> dict[str, Any]:
    """Return figures and claims; `case.tiny` takes seconds, on generated codes."""
    names, shots = (REAL[:1], (10,)) if case.tiny else (REAL, (10, 30, "all"))
    cells: dict[tuple[str, Any], dict[str, np.ndarray]] = {}
    false_alarms = comparisons = 0
    for name in names:
        sets = _candidates(case, name)
        for k in shots:
            draws = case.repeats or (1 if case.tiny else 2 if k == "all" else 8)
            found = list(_draws(sets, k, draws))
            truth = np.mean([accuracy for _, accuracy, _ in found], axis=0)
            cells[name, k] = {
                score: np.mean([_agreement(scores[score], truth) for scores, _, _ in found], axis=0) for score in SCORES
            }
            cells[name, k]["pairs"] = np.asarray([_false(ranking, truth, list(sets)) for _, _, ranking in found]).sum(0)
            wrong, told = cells[name, k]["pairs"]
            false_alarms, comparisons = false_alarms + int(wrong), comparisons + int(told)
    rows = [_line(name, k, score, cell[score]) for (name, k), cell in cells.items() for score in SCORES]
    means = {score: np.mean([cell[score] for cell in cells.values()], axis=0) for score in SCORES}
    chosen = np.asarray([cell["explained"] for cell in cells.values()])
    trust = {
        "kendall": round(float(np.median(chosen[:, 0])), 2),
        "lowest kendall": round(float(chosen[:, 0].min()), 2),
        "regret": round(float(np.median(chosen[:, 3])), 1),
        "largest regret": round(float(chosen[:, 3].max()), 1),
    }
    return {
        "candidates": sum(len(nodes.split(",")) for nodes in NODES.values()) if not case.tiny else 4,
        "over all cells": [_line("mean", "", score, means[score]) for score in SCORES],
        "trust": trust,
        "to paste into featcache/ranking/trust.py": f"MEASURED = {trust!r}".replace("'", '"'),
        "told apart": {"comparisons told apart": comparisons, "of them the other way round": false_alarms},
        "rows": rows,
        "claims": [] if case.tiny else _claims(means, cells, false_alarms, comparisons),
    }


def _candidates(case: Any, name: str) -> dict[str, FeatureSet]:
    """All nodes of all networks but their logits; the source image of a cell is its group."""
    sets: dict[str, FeatureSet] = {}
    for arch, nodes in NODES.items():
        for node in nodes.split(","):
            if case.tiny and node not in ("penultimate", "layer1", "features.6"):
                continue
            data = case.load_node(name, arch, node)
            if case.tiny:  # generated codes are all the same: fewer columns are worse ones
                data = replace(data, X=data.X[:, : 6 + 6 * len(sets)])
            data = replace(data, splits=None)
            sources = [_SOURCE.search(i) for i in data.row_ids.tolist()]
            if all(sources):
                data = replace(data, groups=np.asarray([m.group() for m in sources if m]))
            if not is_logits(data):
                sets[f"{arch} {node}"] = data
    return sets


def _draws(
    sets: dict[str, FeatureSet], k: Any, draws: int
) -> Iterator[tuple[dict[str, list[float]], list[float], Any]]:
    """Yield, per draw, what each score says of each candidate, the accuracies of heads, and the ranking."""
    first = next(iter(sets.values()))
    for seed in range(draws):
        pool, test = holdout(first.y, test_size=0.5, ids=first.ids, groups=first.groups, seed=seed)
        if k != "all":
            pool = k_shot(first.y, k, rows=pool, ids=first.ids, groups=first.groups, seed=seed)
        ranking = fc.rank({name: data.select(pool) for name, data in sets.items()})
        by_name = {row["codes"]: row for row in ranking.rows}
        scores = {score: [by_name[name][score] for name in sets] for score in SCORES}
        yield scores, [_accuracy(data, pool, test, seed) for data in sets.values()], ranking


def _accuracy(data: FeatureSet, pool: np.ndarray, test: np.ndarray, seed: int) -> float:
    assert data.y is not None
    groups = None if data.groups is None else data.groups[pool]
    ids = data.row_ids[pool]
    folds = tuning_folds(data.y[pool], data.X.shape[1], cv=3, ids=ids, groups=groups, seed=seed)
    heads = [train(head, data.X[pool], data.y[pool], folds, seed=seed) for head in HEADS]
    return max(float(np.mean(head.estimator.predict(data.X[test]) == data.y[test])) for head in heads)


def _agreement(scores: list[float], truth: np.ndarray) -> tuple[float, ...]:
    correlations = [f(scores, truth)[0] for f in (stats.kendalltau, stats.weightedtau, stats.spearmanr)]
    regret = 100.0 * (truth.max() - truth[int(np.argmax(scores))])
    return (*(float(np.nan_to_num(each)) for each in correlations), float(regret))


def _false(ranking: Any, truth: np.ndarray, names: list[str]) -> tuple[int, int]:
    """How many of the comparisons that `rank` tells apart are the other way round in truth, and of how many."""
    by_name = dict(zip(names, truth, strict=True))
    told = [each for each in ranking.comparisons if each["distinguishable"]]
    return sum(bool(by_name[each["best"]] < by_name[each["other"]]) for each in told), len(told)


def _line(name: str, k: Any, score: str, measured: np.ndarray) -> dict[str, Any]:
    figures = {measure: round(float(value), 3) for measure, value in zip(MEASURES, measured, strict=True)}
    return {"data": name, "shots": k, "score": score, **figures}


def _claims(
    means: dict[str, np.ndarray], cells: dict[Any, dict[str, np.ndarray]], false_alarms: int, comparisons: int
) -> list[dict[str, Any]]:
    own, logme = means["explained"], means["logme"]
    difference = np.asarray([cell["explained"][0] - cell["logme"][0] for cell in cells.values()])
    error = float(difference.std(ddof=1) / np.sqrt(len(difference)))
    rounded = defaultdict(list)
    for key in range(len(MEASURES)):
        rounded[key] = [round(float(own[key]), 3), round(float(logme[key]), 3)]
    best = defaultdict(float, {score: float(means[score][0]) for score in ("explained", "ridge", "knn")})
    return [
        claim("Kendall's tau of the order with the truth, left-out ridge and kNN against LogME (mean over sets and "
              "shots), not below it by more than two standard errors of the difference over these",
              [*rounded[0], round(error, 3)], own[0] >= logme[0] - 2 * error),
        claim("accuracy lost by taking the first, points: not above LogME's", rounded[3], own[3] <= logme[3]),
        claim("the better order of the two accuracies alone is at most as good as the default",
              round(max(best["ridge"], best["knn"]), 3), own[0] >= max(best["ridge"], best["knn"])),
        claim("of what is told apart at most 5 % is the other way round in truth",
              [false_alarms, comparisons], false_alarms <= 0.05 * comparisons),
    ]  # fmt: skip
