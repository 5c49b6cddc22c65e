"""The two recipes of PyTorch's transfer-learning tutorial, by hand and by featcache, on photos of two classes.

By hand: see by_hand.py. By featcache: the fixed extractor is a head on cached codes (extraction included in its time);
fine-tuning is `finetune` from that head. Both see the same training and validation images; test images are asked once.
Runs are interleaved in one process each; the accuracy's difference has a 95 % interval, paired by image.
"""

import time
from pathlib import Path
from typing import Any

import numpy as np
from measuring import claim

import featcache as fc
from featcache.finetuning.outcome import outcome_of

from . import by_hand

CLASSES = ("t-shirt", "longsleeve")


def run(case: Any) -> dict[str, Any]:
    """Return accuracies and times of both, recipe by recipe."""
    from .case import WEIGHTS

    source = case.images("clothing10", "all", 0, n_val=200, n_test=400, classes=None if case.tiny else CLASSES)
    if case.tiny:
        return {"claims": [], "images": len(source)}
    root = case.data / "datasets" / "clothing10"
    weights = case.data / "weights" / WEIGHTS["mobilenet_v2"]
    parts = _files(source, root)
    rows = []
    for recipe in by_hand.RECIPES:
        theirs, seconds = by_hand.train(recipe, weights, parts, epochs=25)
        ours, own = _by_featcache(case, recipe, source)
        truth = np.asarray([label for _, label in parts["test"]])
        found = outcome_of(truth, np.asarray(theirs), ours, part="test")
        rows.append(
            {
                "recipe": recipe, "by hand": round(100 * found.head, 2), "featcache": round(100 * found.finetuned, 2),
                "difference": round(100 * found.difference, 2),
                "ci95": [round(100 * bound, 2) for bound in found.difference_ci95],
                "seconds by hand": round(seconds, 1), "seconds by featcache": round(own, 1),
                "times": round(seconds / own, 1),
            }
        )  # fmt: skip
    claims = [
        claim(
            f"{row['recipe']}: accuracy not lower than the tutorial's by hand",
            f"{row['featcache']} against {row['by hand']} ({row['difference']:+.1f} {row['ci95']}), "
            f"{row['times']} times as fast",
            row["difference"] >= 0 or row["ci95"][1] >= 0,
        )
        for row in rows
    ]
    images = {part: len(files) for part, files in parts.items()}
    return {"classes": list(CLASSES), "images": images, "rows": rows, "claims": claims}


def _files(source: fc.ImageSource, root: Path) -> dict[str, list[tuple[Path, int]]]:
    labels, splits = (source.columns[source.roles[role]] for role in ("label", "split"))
    parts: dict[str, list[tuple[Path, int]]] = {"train": [], "val": [], "test": []}
    for identity, label, split in zip(source.ids, labels.tolist(), splits.tolist(), strict=True):
        part = "val" if split == "validation" else split
        parts[part].append((root / identity, sorted(CLASSES).index(label)))
    return parts


def _by_featcache(case: Any, recipe: str, source: fc.ImageSource) -> tuple[np.ndarray, float]:
    start = time.perf_counter()
    backbone = case.backbone(224)
    path = case.work / f"tutorial-{recipe.replace(' ', '-')}"
    data = fc.extract(source, backbone, f"{path}.features", progress=False).load()
    head = fc.fit("logreg", data)
    if recipe == by_hand.RECIPES[0]:
        seconds = time.perf_counter() - start
        rows = np.flatnonzero(data.splits == "test")
        return np.searchsorted(head.classes_, head.predict(data.X[rows])), seconds
    done = fc.finetune(head, source, path, stages="all", augment="views", epochs=5, progress=False)
    seconds = time.perf_counter() - start
    test = [i for i, part in enumerate(data.splits.tolist()) if part == "test"]
    said = {line["id"]: line["label"] for line in fc.predict(done.bundle, source, progress=False)}
    return np.searchsorted(head.classes_, [said[data.row_ids[i]] for i in test]), seconds
