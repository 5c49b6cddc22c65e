"""Does the network begin where the head ended?

Heads on an exact store (fp32), written as the last layer of their backbone: what share of the test images does each
name rightly, the head on cached codes and the network on the images; and by how much do the scores differ? The same
with a store of the default class, whose codes are float16 of faster arithmetic.
"""

from typing import Any

import numpy as np
from measuring import claim

import featcache as fc
from featcache.finetuning.feeding import ImageFeed

from .case import SETS

HEADS = ("logreg", "softmax", "svm", "ridge", "lda", "centroid")


def run(case: Any) -> dict[str, Any]:
    """Return accuracies and differences of scores, set by set and head by head."""
    rows = []
    for name, pixels in list(SETS.items())[: 1 if case.tiny else None]:
        backbone = case.backbone(pixels)
        source = case.images(name, 20 if not case.tiny else 5, 0)
        stores = {
            "exact": fc.extract(
                source, backbone, case.work / f"{name}-exact.features", precision="fp32", progress=False
            ),
            "default": fc.extract(source, backbone, case.work / f"{name}.features", progress=False),
        }
        rows += [
            _compared(name, head, kind, store, source, backbone) for kind, store in stores.items() for head in HEADS
        ]
    exact = [row for row in rows if row["store"] == "exact"]
    other = [row for row in rows if row["store"] == "default"]
    claims = [
        claim(
            "the network's accuracy before training equals the head's exactly (fp32 store)",
            f"{sum(row['head'] == row['network'] for row in exact)} of {len(exact)} heads; scores differ by "
            f"{max(row['scores differ'] or 0.0 for row in exact):.1e} of their range at most",
            all(row["head"] == row["network"] for row in exact),
        ),
        claim(
            "with a default store it differs by half a point at most",
            f"{max(abs(row['head'] - row['network']) for row in other):.2f} points; scores differ by "
            f"{max(row['scores differ'] or 0.0 for row in other):.1e} of their range at most",
            max(abs(row["head"] - row["network"]) for row in other) <= 0.5,
        ),
    ]
    return {"rows": rows, "claims": [] if case.tiny else claims}


def _compared(name: str, head: str, kind: str, store: Any, source: Any, backbone: Any) -> dict[str, Any]:
    import torch

    data = store.load()
    fitted = fc.fit(head, data)
    module = fc.to_module(fitted)
    feed = ImageFeed(source, backbone.preprocess, classes=fitted.classes_, progress=False)
    test = np.asarray(feed.rows["test"])
    with torch.inference_mode():
        scores = np.concatenate(
            [
                module(feed.batch(part, 0, 0, 0, False)[0]).numpy()
                for part in np.array_split(test, max(1, len(test) // 32))
            ]
        )
    place = {identity: i for i, identity in enumerate(data.row_ids.tolist())}
    codes = data.X[[place[feed.ids[i]] for i in test.tolist()]]
    truth, cached = fitted.classes_[feed.labels[test]], fitted.predict(codes)
    linear, bias = _affine(fitted)
    by_head = None if linear is None else codes @ linear.T + bias
    return {
        "data": name,
        "store": kind,
        "name": head,
        "test images": len(test),
        "head": round(100 * float(np.mean(cached == truth)), 4),
        "network": round(100 * float(np.mean(fitted.classes_[scores.argmax(axis=1)] == truth)), 4),
        "scores differ": None if by_head is None else float(np.abs(by_head - scores).max() / np.ptp(by_head)),
    }


def _affine(fitted: Any) -> tuple[Any, Any]:
    from featcache.errors import HeadError
    from featcache.heads.linear import linear_form

    try:
        return linear_form(fitted.estimator)
    except HeadError:  # behind a normalisation
        return None, None
