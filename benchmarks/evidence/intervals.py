"""Do 95 % intervals contain the expected score 95 % of the time, and do tests of equal heads keep to 5 %?

Whole data sets are drawn from a population fitted to real codes, `compare` is asked as a user would ask it, and its
interval is held against what the head scores on average over all training sets of that size, on fresh images of the
population. `textbook`: mean +- t s / sqrt(draws), as if draws were independent; `corrected`: Nadeau and Bengio's
resampled t with n_test / n_train. For the tests, heads see blocks of codes that are exchangeable: no head is better, so
each difference that is said to be one is a false alarm; of two heads, and of any pair among six.
"""

from collections.abc import Sequence
from typing import Any

import joblib
import numpy as np
from measuring import claim
from scipy import stats
from sklearn.base import BaseEstimator, ClassifierMixin

import featcache as fc
from featcache.evaluation.draws import draws_of
from featcache.heads.choosing import train
from featcache.heads.labelled import Rows
from featcache.splits import holdout

from .population import Population

#: real set, images, protocol, draws, share of the data sets
CASES = (
    ("clothing10", 300, "holdout", 5, 1.0),
    ("pneumonia_xray", 160, "named", 5, 0.5),
    ("pneumonia_xray", 160, "holdout", 5, 0.5),
    ("sign_digits", 200, "k-fold", 2, 0.25),
    ("bccd_cells", 150, "holdout", 20, 0.2),
)
#: real set, images, protocol: where heads are equally good
ALIKE = (("clothing10", 300, "holdout"), ("pneumonia_xray", 120, "named"))
ALIKE_SHOTS: tuple[int | str, ...] = (5, "all")
HEADS = ("centroid", "ridge")
SHOTS: tuple[int | str, ...] = (1, 5, "all")


def cover(case: Any) -> dict[str, Any]:
    """Return coverage per population, protocol, head and number of shots."""
    repeats = case.repeats or (8 if case.tiny else 2000)
    rows = []
    for name, n, split, seeds, share in CASES[:1] if case.tiny else CASES:
        population = Population.fitted(case.load(name))
        shots = ("all",) if split == "k-fold" else SHOTS
        rows += _covered(population, name, n, split, seeds, shots, max(1, round(share * repeats)))
    return {"data sets": repeats, "rows": rows, "claims": [] if case.tiny else _cover_claims(rows)}


def _covered(
    population: Population, name: str, n: int, split: str, seeds: int, shots: Sequence[int | str], repeats: int
) -> list[dict[str, Any]]:
    tasks = (
        joblib.delayed(_one_set)(population, n, split, seeds, shots, seed, seed % 5 == 0) for seed in range(repeats)
    )
    found = joblib.Parallel(n_jobs=-1)(tasks)
    rows = []
    for k in shots:
        for head in HEADS:
            truth = float(np.mean([each[1][head, k] for each in found if each[1]]))
            lines = [each[0][head, k] for each in found]
            means, within = np.asarray([line["mean"] for line in lines]), []
            for bounds in (_ours, _textbook, _corrected):
                low, high = np.asarray([bounds(line) for line in lines]).T
                within.append(
                    None if np.isnan(low).any() else round(float(((low <= truth) & (truth <= high)).mean()), 4)
                )
            rows.append(
                {
                    "population": name, "data sets": repeats, "images": n, "split": split,
                    "draws": len(lines[0]["scores"]), "head": head, "shots": k, "expected": round(truth, 4),
                    "bias": round(float(means.mean()) - truth, 4),
                    "spread": round(float(means.std()), 4),
                    "half width": round(float(np.mean([np.diff(line["ci95"])[0] / 2 for line in lines])), 4),
                    "covers": within[0], "textbook": within[1], "corrected": within[2],
                }
            )  # fmt: skip
    return rows


def _ours(line: dict[str, Any]) -> tuple[float, float]:
    return tuple(line["ci95"])


def _textbook(line: dict[str, Any]) -> tuple[float, float]:
    return _t_interval(line["scores"], 1 / len(line["scores"]))


def _corrected(line: dict[str, Any]) -> tuple[float, float]:
    return _t_interval(line["scores"], 1 / len(line["scores"]) + line["n_test"] / line["n_train"])


def _t_interval(scores: list[float], factor: float) -> tuple[float, float]:
    if len(scores) < 2:
        return np.nan, np.nan
    half = stats.t.ppf(0.975, len(scores) - 1) * np.std(scores, ddof=1) * np.sqrt(factor)
    return np.mean(scores) - half, np.mean(scores) + half


def _one_set(
    population: Population, n: int, split: str, seeds: int, shots: Sequence[int | str], seed: int, look: bool
) -> tuple[dict[Any, Any], dict[Any, float]]:
    """Rows of a comparison on one data set; with `look`, what its heads score on fresh images, too."""
    rng = np.random.default_rng([seed, n])
    y = population.labels(n, rng)
    data = fc.FeatureSet(population.codes(y, rng), y.astype(str), splits=_parts(y, split, seed))
    result = fc.compare(data, HEADS, shots=shots, seeds=seeds, splitter=split, n_jobs=1)
    rows = {(row["head"], row["shots"]): row for row in result.rows}
    return rows, _expected(population, data, split, seeds, shots, rng) if look else {}


def _expected(
    population: Population, data: Any, split: str, seeds: int, shots: Sequence[int | str], rng: np.random.Generator
) -> dict[Any, float]:
    fresh = population.labels(2000, rng, 0)
    codes = population.codes(fresh, rng)
    rows, out = Rows.of(data), dict[Any, list[float]]()
    for draw in draws_of("", rows, fc.EvalProtocol(tuple(shots), seeds, splitter=split)):
        X, y = rows.X[draw.train], rows.y[draw.train]
        for head in HEADS:
            trained = train(head, X, y, draw.folds, seed=draw.seed, leave_one_out=True)
            right = trained.estimator.predict(codes) == fresh.astype(str)
            out.setdefault((head, draw.shots), []).append(float(right.mean()))
    return {key: float(np.mean(values)) for key, values in out.items()}


def _cover_claims(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    covers = [row["covers"] for row in rows]
    within = sum(0.93 <= c <= 0.975 for c in covers)
    return [
        claim(
            "95 % intervals contain the expected accuracy in 93 to 97.5 % of data sets, over all cells",
            f"{100 * np.mean(covers):.1f} %; {within} of {len(covers)} cells within, "
            f"{100 * min(covers):.1f} to {100 * max(covers):.1f} %",
            0.93 <= np.mean(covers) <= 0.975 and min(covers) >= 0.92 and max(covers) <= 0.985,
        )
    ]


def false_alarms(case: Any) -> dict[str, Any]:
    """Return how often heads that are equally good are told apart."""
    repeats = case.repeats or (8 if case.tiny else 1000)
    rows = []
    for name, n, split in ALIKE[:1] if case.tiny else ALIKE:
        population = Population.fitted(case.load(name))
        for common in (0.0, 0.8):
            tasks = (joblib.delayed(_alarms)(population, n, split, common, seed) for seed in range(repeats))
            found = np.asarray(joblib.Parallel(n_jobs=-1)(tasks)).mean(axis=0).round(4)
            about = {"population": name, "images": n, "split": split, "common noise": common}
            rows += [
                {**about, "shots": shots, "two heads": two, "any of six heads": six, "any of six, pair by pair": bare}
                for shots, (two, six, bare) in zip(ALIKE_SHOTS, found.tolist(), strict=True)
            ]
    worst = max(max(row["two heads"], row["any of six heads"]) for row in rows)
    two, six, bare = (
        100 * np.mean([row[k] for row in rows]) for k in ("two heads", "any of six heads", "any of six, pair by pair")
    )
    claims = [
        claim(
            "equal heads are told apart in at most 6 % of data sets at the 5 % level: two heads, and any of six",
            f"two heads {two:.1f} %, any of six {six:.1f} % ({bare:.1f} % were each pair tested alone); worst cell "
            f"{100 * worst:.1f} %",
            worst <= 0.06,
        )
    ]
    return {"data sets": repeats, "rows": rows, "claims": [] if case.tiny else claims}


def _alarms(population: Population, n: int, split: str, common: float, seed: int) -> list[list[bool]]:
    """Per number of shots: were two heads told apart, was any of six, and would any be without regard to the others."""
    rng = np.random.default_rng([seed, n, 7])
    y, d = population.labels(n, rng), population.means.shape[1]
    data = fc.FeatureSet(population.codes(y, rng, 6, common), y.astype(str), splits=_parts(y, split, seed))
    heads = [BlockMeans(i * d, d) for i in range(6)]
    out = []
    for shots in ALIKE_SHOTS:
        said = [
            fc.compare(data, some, shots=[shots], splitter=split, n_jobs=1).comparisons for some in (heads[:2], heads)
        ]
        told = [any(line["distinguishable"] for line in lines) for lines in said]
        out.append([*told, any(line["p"] < 0.05 for line in said[1])])
    return out


class BlockMeans(ClassifierMixin, BaseEstimator):
    """Nearest class mean on one block of the codes: a head that costs next to nothing."""

    def __init__(self, start: int, width: int):
        self.start, self.width = start, width

    def fit(self, X: np.ndarray, y: np.ndarray) -> "BlockMeans":
        """Take the means of the block's columns."""
        self.classes_, codes = np.unique(y, return_inverse=True)
        block = X[:, self.start : self.start + self.width]
        self.means_ = np.stack([block[codes == c].mean(axis=0) for c in range(len(self.classes_))])
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Return the class of the nearest mean."""
        block = X[:, self.start : self.start + self.width]
        return self.classes_[(2 * block @ self.means_.T - np.square(self.means_).sum(axis=1)).argmax(axis=1)]


def _parts(y: np.ndarray, split: str, seed: int) -> np.ndarray | None:
    if split != "named":
        return None
    test = holdout(y.astype(str), seed=seed)[1]
    return np.where(np.isin(np.arange(len(y)), test), "test", "train")
