"""Do searched preprocessing, several nodes and augmented views make heads on few images better, and by how much?

All on the same draws of k images per class, each compared with the plain head on the last node's codes of the plain
images; the intervals are of the paired differences over the draws.

- preprocessing: `SearchedHead` (signed power, norm, scale and the head's own setting) against the plain head;
- nodes: three nodes of MobileNetV2 side by side, all of their features and those that Head2Toe's selection keeps;
- views: four augmented views beside the plain image, used for training, for predicting, and for both.
"""

import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measuring import claim

import featcache as fc
from featcache.features import FeatureSet
from featcache.heads import HeadToToeClassifier, LayerBlocks, SearchedHead, ViewsClassifier, join_layers, join_views
from featcache.heads.choosing import train, tuning_folds
from featcache.splits import has_named_splits, holdout, k_shot, named_splits

NODES = "features.7,features.14,penultimate"
WEIGHTS = "mobilenet_v2-tf2_ptq_int8.pth"
VIEWS = 4

#: One contestant: (training rows, test rows, seed) → predicted labels of the test rows.
Contestant = Callable[[np.ndarray, np.ndarray, int], np.ndarray]


def run(case: Any) -> dict[str, Any]:
    """Return figures and claims; `case.tiny` takes seconds, on made-up codes."""
    repeats = case.repeats or (2 if case.tiny else 50)
    shots = (5,) if case.tiny else (5, 20)
    parts = {
        "preprocessing": _preprocessing(case, repeats, shots),
        "nodes": _nodes(case, repeats, shots),
        "views": _views(case, repeats, shots),
    }
    return {"repeats": repeats, **parts, "claims": [] if case.tiny else _claims(parts)}


def _preprocessing(case: Any, repeats: int, shots: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    for name in ("clothing10",) if case.tiny else ("clothing10", "sign_digits", "bccd_cells", "pneumonia_xray"):
        data = case.load(name)
        for head in ("ridge",) if case.tiny else ("ridge", "logreg"):
            contestants = {"plain": _plain(head, data), "searched": _estimator(SearchedHead(head), data)}
            rows += _compared(name, data, contestants, repeats, shots, head=head)
    return rows


def _nodes(case: Any, repeats: int, shots: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    for name in ("bccd_cells",) if case.tiny else ("bccd_cells", "pneumonia_xray"):
        last, sets = _node_sets(case, name)
        joined = join_layers(sets)
        blocks = LayerBlocks.parse(joined.node)
        assert blocks is not None
        contestants = {
            "last node": _plain("ridge", last),
            "all features of the nodes": _plain("ridge", joined),
            "selected, cautious": _estimator(HeadToToeClassifier(blocks.sizes), joined),
            "selected, whatever scores best": _estimator(HeadToToeClassifier(blocks.sizes, guard=0.0), joined),
            "all features, searched": _estimator(SearchedHead("ridge"), joined),
        }
        rows += _compared(name, last, contestants, repeats, shots, head="ridge")
    return rows


def _views(case: Any, repeats: int, shots: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    for name in ("bccd_cells",) if case.tiny else ("bccd_cells", "pneumonia_xray"):
        sets = _view_sets(case, name)
        plain, joined, n = sets[0], join_views(sets), len(sets)
        for head in ("ridge",) if case.tiny else ("ridge", "logreg"):
            contestants = {
                "plain": _plain(head, plain),
                "trained on all, plain predicted": _inner(ViewsClassifier(head, n), joined, plain),
                "trained on all, mean of scores": _estimator(ViewsClassifier(head, n), joined),
                "trained on plain, mean of codes": _mean_codes(head, plain, joined, n),
            }
            rows += _compared(name, plain, contestants, repeats, shots, head=head)
    return rows


def _compared(
    name: str, data: FeatureSet, contestants: dict[str, Contestant], repeats: int, shots: tuple[int, ...], head: str
) -> list[dict[str, Any]]:
    """All contestants on each draw, in an order that changes from draw to draw; gains are over the first."""
    y, rows = data.y, []
    assert y is not None
    for k in shots:
        hits: dict[str, list[float]] = defaultdict(list)
        seconds: dict[str, list[float]] = defaultdict(list)
        for seed in range(repeats):
            chosen, test = _draw(data, k, seed)
            names = list(contestants)
            for title in names[seed % len(names) :] + names[: seed % len(names)]:
                start = time.perf_counter()
                predicted = contestants[title](chosen, test, seed)
                seconds[title].append(time.perf_counter() - start)
                hits[title].append(float((predicted == y[test]).mean()))
        first = np.asarray(hits[next(iter(contestants))])
        for title in contestants:
            gains = np.asarray(hits[title]) - first
            half = 1.96 * float(gains.std(ddof=1)) / len(gains) ** 0.5 if len(gains) > 1 else 0.0
            rows.append(
                {
                    "data": name,
                    "head": head,
                    "shots": k,
                    "what": title,
                    "accuracy": round(float(np.mean(hits[title])), 4),
                    "gain": round(float(gains.mean()), 4),
                    "interval": [round(float(gains.mean()) - half, 4), round(float(gains.mean()) + half, 4)],
                    "seconds": round(float(np.median(seconds[title])), 4),
                }
            )
    return rows


def _draw(data: FeatureSet, shots: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    y, ids, groups = data.y, data.ids, data.groups
    if groups is None and data.splits is not None and not has_named_splits(data.splits):
        groups = data.splits  # the source image that cells were cut from
    if has_named_splits(data.splits):
        parts = named_splits(data.splits)
        pool, test = parts["train"], parts["test"]
    else:
        pool, test = holdout(y, test_size=0.25, ids=ids, groups=groups, seed=seed)
    return k_shot(y, shots, rows=pool, ids=ids, groups=groups, seed=seed), test


def _fitted(head: str, data: FeatureSet, rows: np.ndarray, seed: int) -> Any:
    assert data.y is not None and data.ids is not None
    y = data.y[rows]
    folds = tuning_folds(y, data.X.shape[1], cv=5, ids=data.ids[rows], groups=None, seed=seed)
    return train(head, data.X[rows], y, folds, seed=seed, leave_one_out=True).estimator


def _plain(head: str, data: FeatureSet) -> Contestant:
    return lambda rows, test, seed: _fitted(head, data, rows, seed).predict(data.X[test])


def _estimator(estimator: Any, data: FeatureSet) -> Contestant:
    assert data.y is not None
    y = data.y

    def contest(rows: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        return estimator.set_params(random_state=seed).fit(data.X[rows], y[rows]).predict(data.X[test])

    return contest


def _inner(estimator: Any, data: FeatureSet, plain: FeatureSet) -> Contestant:
    assert data.y is not None
    y = data.y

    def contest(rows: np.ndarray, test: np.ndarray, seed: int) -> np.ndarray:
        fitted = estimator.set_params(random_state=seed).fit(data.X[rows], y[rows])
        return fitted.best_estimator_.predict(plain.X[test])

    return contest


def _mean_codes(head: str, plain: FeatureSet, joined: FeatureSet, n_views: int) -> Contestant:
    mean = joined.X.reshape(len(joined), n_views, -1).mean(axis=1)
    return lambda rows, test, seed: _fitted(head, plain, rows, seed).predict(mean[test])


def _node_sets(case: Any, name: str) -> tuple[FeatureSet, list[FeatureSet]]:
    if case.tiny:
        last = case.load(name)
        rng = np.random.default_rng(0)
        maps = (last.X[:, :8, None, None] + rng.normal(size=(len(last), 8, 4, 4))).astype("float32")
        early = FeatureSet(maps, last.y, last.ids, splits=last.splits, node="early", fingerprint=last.fingerprint)
        return last, [early, last]
    with tempfile.TemporaryDirectory() as folder:
        store = _extracted(case, name, Path(folder), {"nodes": NODES, "pooling": "none"}, 0)
        sets = [store.load(node=node, in_memory=True) for node in store.nodes]
    return max(sets, key=lambda one: one.X.shape[1] if one.X.ndim == 2 else 0), sets


def _view_sets(case: Any, name: str) -> list[FeatureSet]:
    if case.tiny:
        plain = case.load(name)
        rng = np.random.default_rng(0)
        noise = [rng.normal(size=plain.X.shape).astype("float32") * plain.X.std() for _ in range(VIEWS)]
        return [plain, *(_replaced(plain, plain.X + part) for part in noise)]
    with tempfile.TemporaryDirectory() as folder:
        store = _extracted(case, name, Path(folder), {}, VIEWS)
        return [store.load(view_number=number, in_memory=True) for number in range(VIEWS + 1)]


def _replaced(data: FeatureSet, X: np.ndarray) -> FeatureSet:
    return FeatureSet(X, data.y, data.ids, splits=data.splits, node=data.node, fingerprint=data.fingerprint)


def _extracted(case: Any, name: str, folder: Path, options: dict[str, Any], augmented: int) -> Any:
    data = Path(case.data)
    backbone = fc.Backbone("mobilenet_v2", weights=data / "weights" / WEIGHTS, **options)
    source = data / "datasets" / name
    return fc.extract(source, backbone, folder / f"{name}.features", augmented=augmented, progress=False)


def _claims(parts: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    def gains(part: str, what: str) -> list[dict[str, Any]]:
        return [row for row in parts[part] if row["what"] == what]

    searched = gains("preprocessing", "searched")
    nodes, views = gains("nodes", "all features of the nodes"), gains("views", "trained on all, mean of scores")
    cells = [row for row in views if row["data"] == "bccd_cells"]
    others = [row for row in views if row["data"] != "bccd_cells"]
    mean = round(float(np.mean([row["gain"] for row in searched])), 4)
    worst = min(row["interval"][1] for row in searched)
    return [
        claim("searched preprocessing gains on average over sets, heads and shots", mean, mean > 0),
        claim("searched preprocessing is nowhere wholly below -0.3 points", worst, worst >= -0.003),
        claim("several nodes gain at five shots", [r["interval"] for r in nodes if r["shots"] == 5],
              all(r["interval"][0] > 0 for r in nodes if r["shots"] == 5)),
        claim("augmented views gain on cells, which have no upright", [r["interval"] for r in cells],
              all(r["interval"][0] > 0 for r in cells)),
        claim("augmented views lose nowhere else (they may where side and framing mean something, as in X-rays)",
              [r["interval"] for r in others], all(r["interval"][1] >= 0 for r in others)),
    ]  # fmt: skip
