"""Are settings that are chosen on a sample as good as those chosen on all rows?

`fit` on codes that stay on disk chooses C or alpha on 20,000 rows, where codes in memory are all used. Here both are
given the same rows: once as a map, once as an array. No real set here has so many rows, so that they are drawn from a
model of the codes of one: the means of its classes (drawn towards each other until a head errs about as often as on
the real codes, since estimated means lie too far apart), half the covariance that the classes share and half of each
class's own, both at full rank of the rows there are, and a ReLU. Each draw has rows of its own, train and test.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import claim
from scipy import stats

from featcache import FeatureSet
from featcache.heads import FittedHead, fit, mapped

from .case import Case

#: (set, backbone, share of the distances between the means that is kept, draws).
SETS = (("clothing10", "squeezenet1_1", 0.35, 3), ("sign_digits", "mobilenet_v2", 0.4, 2))
TRAIN, TEST = 60_000, 20_000
HEADS = ("logreg", "ridge")
MARGIN = 0.1


def run(case: Case) -> dict[str, Any]:
    """Accuracy and log loss of both, draw by draw, and the mean difference."""
    train, test = (600, 300) if case.tiny else (TRAIN, TEST)
    rows = []
    usual = mapped.SAMPLE_ROWS
    mapped.SAMPLE_ROWS = min(usual, train // 3)  # in a trial run the sample is a third, too
    try:
        for name, arch, kept, draws in SETS[: 1 if case.tiny else None]:
            model = Model(case.load(name, arch), kept)
            for seed in range(case.repeats or (1 if case.tiny else draws)):
                rows += _one_draw(case.work, f"{name}, {arch}", model, seed, train, test)
    finally:
        mapped.SAMPLE_ROWS = usual
    figures: dict[str, Any] = {"train rows": train, "test rows": test, "rows of the sample": min(usual, train // 3)}
    claims = []
    for head in HEADS:
        gains = np.asarray([row["accuracy (points) minus"] for row in rows if row["head"] == head])
        mean, draws = round(float(gains.mean()), 3), len(gains)
        half = float(stats.t.ppf(0.975, draws - 1) * gains.std(ddof=1) / draws**0.5) if draws > 1 else 0.0
        figures[f"{head}, sample minus all rows"] = f"{mean:+.3f} ± {half:.3f} points over {draws} draws"
        text = f"{head}: settings of a sample cost less than {MARGIN} points (lower end of the 95 % interval)"
        claims.append(claim(text, round(mean - half, 3), mean - half > -MARGIN))
    return {**figures, "draws": rows, "claims": claims}


class Model:
    """Rows like those of a real set, as many as are wanted."""

    def __init__(self, data: FeatureSet, kept: float) -> None:
        labels, y = np.unique(data.y, return_inverse=True)
        X = np.asarray(data.X, dtype=np.float32)
        self.k, centre = len(labels), X.mean(axis=0)
        means = np.stack([X[y == c].mean(axis=0) for c in range(self.k)])
        self.means = centre + kept * (means - centre)
        within = X - means[y]
        self.shared = within / np.sqrt(np.float32(len(X) - self.k))
        self.own = [within[y == c] / np.sqrt(np.float32((y == c).sum() - 1)) for c in range(self.k)]

    def draw(self, n: int, seed: int) -> FeatureSet:
        """Return n rows (n, d) of float16 and their classes."""
        rng = np.random.default_rng([seed, n])
        y = rng.integers(0, self.k, n)
        X = np.empty((n, self.means.shape[1]), dtype=np.float16)
        half = np.float32(np.sqrt(0.5))
        for c in range(self.k):
            rows = np.flatnonzero(y == c)
            for part in np.array_split(rows, max(1, len(rows) // 4000)):
                noise = np.zeros((len(part), X.shape[1]), dtype=np.float32)
                for root in (self.shared, self.own[c]):
                    noise += rng.standard_normal((len(part), len(root)), dtype=np.float32) @ root
                X[part] = np.maximum(self.means[c] + half * noise, 0.0)
        return FeatureSet(X, y.astype(str), np.char.mod("%06d", np.arange(n)))


def _one_draw(folder: Path, name: str, model: Model, seed: int, train: int, test: int) -> list[dict[str, Any]]:
    rows, unseen = model.draw(train, seed), model.draw(test, seed)
    path = folder / "codes"
    np.save(path.with_suffix(".npy"), rows.X)
    on_disk = FeatureSet(np.load(path.with_suffix(".npy"), mmap_mode="r"), rows.y, rows.row_ids)
    here = FeatureSet(np.asarray(rows.X, dtype=np.float32), rows.y, rows.row_ids)
    truth, lines = np.asarray(unseen.y), []
    for head in HEADS:
        line: dict[str, Any] = {"set": name, "draw": seed, "head": head}
        scores = {}
        for how, data in (("sample", on_disk), ("all rows", here)):
            start = time.perf_counter()
            fitted = fit(head, data, seed=seed)
            line[f"seconds, {how}"] = round(time.perf_counter() - start, 1)
            line[f"setting, {how}"] = next(iter(fitted.params.values()))
            scores[how] = 100.0 * float((fitted.predict(unseen.X) == truth).mean())
            line[f"accuracy, {how}"] = round(scores[how], 2)
            if head == "logreg":
                line[f"log loss, {how}"] = round(_log_loss(fitted, unseen.X, truth), 4)
        line["accuracy (points) minus"] = round(scores["sample"] - scores["all rows"], 3)
        lines.append(line)
    return lines


def _log_loss(fitted: FittedHead, X: np.ndarray, truth: np.ndarray) -> float:
    shares = fitted.predict_proba(X)[np.arange(len(truth)), np.searchsorted(fitted.classes_, truth)]
    return float(-np.log(np.maximum(shares, 1e-12)).mean())
