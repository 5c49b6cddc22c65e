"""Does a head that answers only where it is sure keep the error rate it was asked for, on images it never saw?

Each draw holds out half of the images (by source image where cells were cut from one), trains on k images per class of
the other half, or on all of it, and asks for 5 % errors among the answers: as counted on held-out training rows
(``reject=0.05``), and with a bound that is to hold with probability 0.9 (``reject_confidence=0.9``). The same draws for
both. The halves of one finite set lean opposite ways: held-out rows that are easier leave a harder test half, and the
rate on it is itself an estimate; both make the share of draws that keep to the wanted rate smaller than the promise.
"""

from dataclasses import replace
from typing import Any

import numpy as np
from measuring import claim

import featcache as fc
from featcache.features import FeatureSet
from featcache.splits import has_named_splits, holdout, k_shot

from .case import REAL

WANTED, CONFIDENCE = 0.05, 0.9
#: With all rows LDA, which the guards fit again per fold, takes seconds each at 1280 features.
TRIED = ((20, "ridge"), (20, "lda"), ("all", "ridge"))


def run(case: Any) -> dict[str, Any]:
    """Return figures and claims; `case.tiny` takes seconds, on generated codes."""
    repeats = case.repeats or (3 if case.tiny else 60)
    names, tried = (REAL[:1], ((10, "ridge"), ("all", "lda"))) if case.tiny else (REAL, TRIED)
    rows = [line for name in names for k, head in tried for line in _measured(case.load(name), name, head, k, repeats)]
    return {
        "wanted": WANTED,
        "confidence": CONFIDENCE,
        "draws": repeats,
        "rows": rows,
        "claims": _claims(rows, repeats),
    }


def _measured(data: FeatureSet, name: str, head: str, shots: int | str, repeats: int) -> list[dict[str, Any]]:
    if data.groups is None and data.splits is not None and not has_named_splits(data.splits):
        data = replace(data, groups=data.splits)  # the source image that cells were cut from
    data = replace(data.select(data.labelled), splits=None)
    found: dict[str, list[tuple[float, float, float]]] = {"counted": [], "bounded": []}
    for seed in range(repeats):
        pool, test = holdout(data.y, test_size=0.5, ids=data.ids, groups=data.groups, seed=seed)
        if shots != "all":
            pool = k_shot(data.y, int(shots), rows=pool, ids=data.ids, groups=data.groups, seed=seed)
        for kind, level in (("counted", None), ("bounded", CONFIDENCE)):
            fitted = fc.fit(head, data.select(pool), seed=seed, reject=WANTED, reject_confidence=level)
            assert data.y is not None
            wrong, accepted = fitted.predict(data.X[test]) != data.y[test], fitted.accept(data.X[test])
            rate = float(wrong[accepted].mean()) if accepted.any() else np.nan
            found[kind].append((float(accepted.mean()), rate, float(wrong.mean())))
    return [_line(name, head, shots, kind, np.asarray(some)) for kind, some in found.items()]


def _line(name: str, head: str, shots: int | str, kind: str, some: np.ndarray) -> dict[str, Any]:
    answered = np.isfinite(some[:, 1])
    rates = some[answered, 1]
    return {
        "data": name,
        "head": head,
        "shots": shots,
        "threshold": kind,
        "error of all answers": round(float(some[:, 2].mean()), 4),
        "coverage": round(float(some[:, 0].mean()), 4),
        "error of accepted": round(float(rates.mean()), 4) if len(rates) else None,
        "draws that accept some": round(float(answered.mean()), 3),
        "draws at most as wanted": round(float(1 - (rates > WANTED).sum() / len(some)), 3),
        "of those that accept some": round(float((rates <= WANTED).mean()), 3) if len(rates) else None,
    }


def _claims(rows: list[dict[str, Any]], draws: int) -> list[dict[str, Any]]:
    # Where a bound lets hardly any draw answer, or where all answers are good enough, nothing is put to the test.
    hard = [
        row for row in rows if row["error of all answers"] > WANTED and row["draws that accept some"] >= 0.5
    ] or rows
    bounded = [row["draws at most as wanted"] for row in hard if row["threshold"] == "bounded"]
    counted = [
        row["error of accepted"] for row in hard if row["threshold"] == "counted" and row["draws that accept some"]
    ]
    kept, worst, mean = (round(float(figure), 4) for figure in (np.mean(bounded), min(bounded), np.mean(counted)))
    noise = 2.0 * (CONFIDENCE * (1 - CONFIDENCE) / draws) ** 0.5
    where = f"where all answers have more than {WANTED:.0%} errors and half of the draws or more answer"
    return [
        claim(f"with the bound at least {CONFIDENCE:.0%} of the draws keep to {WANTED:.0%} errors, {where}", kept,
              kept >= CONFIDENCE),
        claim("and on no set fewer by more than two standard errors of that share", worst, worst >= CONFIDENCE - noise),
        claim(f"as counted, the error of accepted answers is {WANTED:.0%} on average, to a point, {where}", mean,
              abs(mean - WANTED) <= 0.01),
    ]  # fmt: skip
