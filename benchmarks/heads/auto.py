"""Is `auto` the best head to take without thinking, from one labelled row per class to all of them?

Each draw holds out a quarter of the rows, takes k rows per class of the rest, and gives all contestants
the same rows: `fit("auto")` as it is by default, and seven heads as people use them. The question is asked twice: is
there a cell (set × shots) where the 95 % interval of the paired difference to the best of the seven lies wholly below
−0.3 points, and is the mean over all cells above that of each? "The best of the seven" is chosen by its mean on the
very draws it is judged on, which flatters it. Intervals are Student's over draws; draws share rows, so that they are
somewhat too narrow, which is hard on `auto` again. The claims here are those of one part; those over all parts are made
of their cells when the README is rendered, see together.py.

The members of `auto` and the number of rows per class at which they change were chosen on draws 0 to 40 of the four
sets with MobileNetV2 codes; draws here begin at 1000, and the sets with SqueezeNet codes were not looked at.
"""

import os
import warnings
from typing import Any

import joblib
import numpy as np
from measuring import claim
from scipy import stats
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC
from threadpoolctl import threadpool_limits
from together import MARGIN

from featcache import FeatureSet
from featcache.heads import AutoClassifier
from featcache.softmax import SoftmaxClassifierCV
from featcache.splits import holdout, k_shot

from .case import Case

SETS = (
    ("clothing10", "mobilenet_v2"),
    ("sign_digits", "mobilenet_v2"),
    ("bccd_cells", "mobilenet_v2"),
    ("pneumonia_xray", "mobilenet_v2"),
    ("clothing10", "squeezenet1_1"),
    ("bccd_cells", "squeezenet1_1"),
)
DRAWS = {1: 200, 5: 200, 10: 50, 20: 50, "all": 50}
FIRST_DRAW = 1000


def fewest_rows(y: np.ndarray) -> int:
    return int(np.unique(y, return_counts=True)[1].min())


def swept(y: np.ndarray) -> Any:
    """CLIP's protocol: C over 1e-6 … 1e6 by validation; by our solver; it stops after six values without gain."""
    fewest = fewest_rows(y)
    if fewest < 2:
        return LogisticRegression(C=0.316, max_iter=1000)  # CLIP's own default where nothing can be validated
    return SoftmaxClassifierCV(np.logspace(-6, 6, 25), cv=min(5, fewest), patience=6)


def lda(y: np.ndarray) -> Any:
    fewest = fewest_rows(y)
    # scikit-learn's automatic shrinkage works class by class and needs two rows of each.
    return LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto" if fewest > 1 else 0.5)


#: Name → labels → estimator.
RIVALS: dict[str, Any] = {
    "logistic regression, default": lambda y: LogisticRegression(max_iter=1000),
    "logistic regression, C swept": swept,
    "linear SVM": lambda y: LinearSVC(),
    "kNN, cosine": lambda y: KNeighborsClassifier(min(5, fewest_rows(y)), metric="cosine"),
    "centroid": lambda y: make_pipeline(StandardScaler(with_std=False), Normalizer(), NearestCentroid()),
    "ridge": lambda y: RidgeClassifierCV(alphas=np.logspace(-3, 6, 19)),
    "LDA": lda,
}  # fmt: skip


def one_draw(data: FeatureSet, shots: Any, seed: int) -> dict[str, float]:
    """Accuracy of each contestant on one draw, in percent."""
    y, ids = data.y, data.row_ids
    pool, test = holdout(y, test_size=0.25, ids=ids, groups=data.groups, seed=seed)
    rows = pool if shots == "all" else k_shot(y, shots, rows=pool, ids=ids, groups=data.groups, seed=seed)
    X = np.asarray(data.X, dtype=np.float32)
    groups = None if data.groups is None else data.groups[rows]
    scores = {}
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore")
        fitted = AutoClassifier(random_state=seed).fit(X[rows], y[rows], groups)
        scores["auto"] = 100.0 * float((fitted.predict(X[test]) == y[test]).mean())
        for name, make in RIVALS.items():
            try:
                predicted = make(y[rows]).fit(X[rows], y[rows]).predict(X[test])
            except (ValueError, np.linalg.LinAlgError):  # one row per class is too few for some
                scores[name] = float("nan")
                continue
            scores[name] = 100.0 * float((predicted == y[test]).mean())
    return scores


def cell(data: FeatureSet, name: str, shots: Any, draws: int) -> dict[str, Any]:
    os.environ["PYTHONWARNINGS"] = "ignore"
    runs = joblib.Parallel(n_jobs=-1)(joblib.delayed(one_draw)(data, shots, FIRST_DRAW + draw) for draw in range(draws))
    scores = {who: np.asarray([run[who] for run in runs]) for who in runs[0]}
    means = {who: float(values.mean()) for who, values in scores.items()}
    best = max((who for who in RIVALS if np.isfinite(means[who])), key=lambda who: means[who])
    gain = scores["auto"] - scores[best]
    half = float(stats.t.ppf(0.975, draws - 1) * gain.std(ddof=1) / np.sqrt(draws)) if draws > 1 else 0.0
    return {
        "set": name,
        "shots": shots,
        "draws": draws,
        **{who: round(mean, 2) if np.isfinite(mean) else None for who, mean in means.items()},
        "best_rival": best,
        "auto_minus_best": round(float(gain.mean()), 2),
        "interval": [round(float(gain.mean()) - half, 2), round(float(gain.mean()) + half, 2)],
    }


def run(case: Case, shots: tuple[Any, ...] = tuple(DRAWS)) -> dict[str, Any]:
    """All sets at some numbers of shots."""
    cells = []
    for name, arch in SETS[: 1 if case.tiny else None]:
        data = case.load(name, arch)
        for k in shots[: 2 if case.tiny else None]:
            draws = 2 if case.tiny else case.repeats or DRAWS[k]
            cells.append(cell(data, f"{name}, {arch}", k, draws))
    worse = [f"{c['set']} at {c['shots']}" for c in cells if c["interval"][1] < -MARGIN]
    means = {who: float(np.mean([c[who] for c in cells if c[who] is not None])) for who in ("auto", *RIVALS)}
    beside = {  # each rival against auto on the cells where the rival can be fitted at all
        who: float(np.mean([c["auto"] - c[who] for c in cells if c[who] is not None])) for who in RIVALS
    }
    return {
        "cells": cells,
        "means": {who: round(mean, 2) for who, mean in means.items()},
        "claims": [
            claim(f"auto: cells whose interval lies wholly below -{MARGIN} points of the best rival (asked: none)",
                  worse or "none", not worse),
            claim("auto: mean advantage over each rival (asked: above 0)", {w: round(g, 2) for w, g in beside.items()},
                  min(beside.values()) > 0),
        ],
    }  # fmt: skip
