"""Is a comparison what one would get by hand with scikit-learn on the same splits, and how long does it take?"""

import os
import time
import warnings
from collections import defaultdict
from typing import Any

import numpy as np
from measuring import claim
from sklearn import metrics
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import featcache as fc
from featcache.splits import hash_split

#: real set → how its test rows are found: a split column, a held-out share, folds
SETS = {"clothing10": "named", "sign_digits": "holdout", "bccd_cells": "k-fold"}
HEADS = ("logreg", "svm", "knn", "ridge", "lda", "centroid", "softmax", "simpleshot")
ONE_MORE = "svm-rbf"


def by_hand(case: Any) -> dict[str, Any]:
    """Return the largest difference of each metric from scikit-learn's, fitted and scored by hand on the same rows."""
    heads = {
        "LogisticRegression": make_pipeline(StandardScaler(), LogisticRegression(max_iter=300)),
        "KNeighborsClassifier": KNeighborsClassifier(5),
        "LinearDiscriminantAnalysis": LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.5),
    }
    rows = []
    for name, splitter in SETS.items():
        data = case.load(name)
        splitter = "holdout" if case.tiny else splitter
        splits = hash_split(data.ids) if splitter == "named" else None
        data = fc.FeatureSet(data.X, data.y, ids=data.ids, splits=splits, name=name)
        protocol = fc.EvalProtocol((5, "all"), 2, splitter=splitter)
        X, y = data.xy
        result = fc.compare(data, list(heads.values()), shots=[5, "all"], seeds=2, splitter=splitter)
        theirs = _scored_by_hand(heads, X, y, protocol, data)
        for line in result.rows:
            head = line["head"] if line["head"] in heads else "LogisticRegression"
            expected = theirs[head, line["shots"]]
            gap = max(abs(line["metrics"][metric] - value) for metric, value in expected.items())
            rows.append(
                {
                    "set": name, "splitter": splitter, "head": head, "shots": line["shots"],
                    "accuracy": round(line["mean"], 6), "by hand": round(expected["accuracy"], 6),
                    "largest difference of five metrics": gap,
                }
            )  # fmt: skip
    worst = max(row["largest difference of five metrics"] for row in rows)
    claims = [
        claim(
            "accuracy, balanced accuracy, macro F1, AUROC and log loss equal the same by hand with scikit-learn",
            f"largest difference {worst:.1e} over {len(rows)} cells of three sets",
            worst < 1e-9,
        )
    ]
    return {"rows": rows, "claims": [] if case.tiny else claims}


def _scored_by_hand(heads: Any, X: np.ndarray, y: np.ndarray, protocol: Any, data: Any) -> dict[Any, dict[str, float]]:
    warnings.filterwarnings("ignore", "The y_prob values do not sum to one")  # some do to 1 - 1e-16 only
    found: dict[Any, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    classes = np.unique(y)
    for shots in protocol.shots:
        one = fc.EvalProtocol((shots,), protocol.seeds, splitter=protocol.splitter)
        for train, test in one.split(data):
            for name, head in heads.items():
                fitted = clone(head).fit(X[train], y[train])
                said, proba = fitted.predict(X[test]), np.zeros((len(test), len(classes)))
                proba[:, np.searchsorted(classes, fitted.classes_)] = fitted.predict_proba(X[test])
                scores = np.full(proba.shape, -np.inf)
                columns = np.searchsorted(classes, fitted.classes_)
                if hasattr(fitted, "decision_function"):
                    raw = fitted.decision_function(X[test])
                    scores[:, columns] = np.column_stack([-raw, raw]) if raw.ndim == 1 else raw
                else:
                    scores[:, columns] = fitted.predict_proba(X[test])
                for metric, value in _values(y[test], said, scores, proba, classes).items():
                    found[name, shots][metric].append(value)
    return {key: {metric: float(np.mean(v)) for metric, v in values.items()} for key, values in found.items()}


def _values(
    y: np.ndarray, said: np.ndarray, scores: np.ndarray, proba: np.ndarray, classes: np.ndarray
) -> dict[str, float]:
    present = [c for c in range(len(classes)) if (y == classes[c]).any()]
    return {
        "accuracy": metrics.accuracy_score(y, said),
        "balanced_accuracy": metrics.balanced_accuracy_score(y, said),
        "macro_f1": metrics.f1_score(y, said, average="macro", zero_division=0),
        "auroc": float(np.mean([metrics.roc_auc_score(y == classes[c], scores[:, c]) for c in present])),
        "log_loss": metrics.log_loss(y, proba, labels=classes),
    }


def quick(case: Any) -> dict[str, Any]:
    """Return how long `compare` takes for 8 heads x 4 numbers of shots x 20 draws, and again with one more head."""
    data, repeats = case.load("clothing10"), case.repeats or (1 if case.tiny else 3)
    shots, seeds = ((1, 5), 2) if case.tiny else ((1, 5, 10, "all"), 20)
    heads = HEADS[3:6] if case.tiny else HEADS
    first, nothing, ninth = [], [], []
    added: dict[str, list[float]] = {name: [] for name in heads}

    def timed(names: tuple[str, ...], folder: str) -> tuple[float, Any]:
        start = time.perf_counter()
        result = fc.compare(data, names, shots=shots, seeds=seeds, cache=case.work / folder)
        return time.perf_counter() - start, result

    for repeat in range(repeats):
        seconds, result = timed(heads, f"results-{repeat}")
        first.append(seconds)
        ninth.append(timed((*heads, ONE_MORE), f"results-{repeat}")[0])
        nothing.append(timed(heads, f"results-{repeat}")[0])
        for i, name in enumerate(heads):  # each in its turn is the one more
            added[name].append(timed(heads[: i + 1], f"one-by-one-{repeat}")[0])
    times = {name: float(np.median(s)) for name, s in (("first", first), ("nothing", nothing), (ONE_MORE, ninth))}
    more = {name: float(np.median(s)) for name, s in added.items()}
    fits = len(heads) * sum(len(row["seeds"]) for row in result.rows) // len(result.rows) * len(shots)
    slowest = max(more, key=lambda name: more[name])
    claims = [
        claim(
            "8 heads x 4 numbers of shots x 20 draws take less than 60 s on two cores",
            f"{times['first']:.1f} s, median of {repeats}",
            times["first"] < 60,
        ),
        claim(
            f"the same with one more head, {ONE_MORE}, takes less than a quarter",
            f"{times[ONE_MORE]:.1f} s; nothing new {times['nothing']:.2f} s",
            times[ONE_MORE] < times["first"] / 4,
        ),
        claim(
            "so it does, in the median, where each of the eight is the one more",
            f"{np.median(list(more.values())):.1f} s, slowest {slowest} {more[slowest]:.1f} s",
            float(np.median(list(more.values()))) < times["first"] / 4,
        ),
    ]
    return {
        "heads": list(heads), "ninth": ONE_MORE, "fits": fits, "cores": os.cpu_count(), "seconds": times,
        "seconds as the one more": more,
        "all": {"first": first, "ninth": ninth, "nothing": nothing, "one more": added},
        "claims": [] if case.tiny else claims,
    }  # fmt: skip
