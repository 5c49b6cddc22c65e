"""Are groups that stand on both sides of a split found, all of them and no other?

Groups are real where a set has them (bccd_cells: the image that a cell was cut from), else pairs and triples of images
of one class, as bursts and patients are. A split that keeps groups together is made, and then a tenth of the test
groups (of two images or more) has one image moved to training.
"""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from measuring import claim

import featcache as fc
from featcache.splits import holdout

from .case import REAL


def run(case: Any) -> dict[str, Any]:
    """Return precision and recall over the planted groups; nothing is planted in every other seed."""
    seeds = case.repeats or (2 if case.tiny else 20)
    rows = [_found(case, name, seed) for name in (REAL[:1] if case.tiny else REAL) for seed in range(seeds)]
    planted = [row for row in rows if row["planted"]]
    precision = float(np.mean([row["precision"] for row in planted]))
    recall = float(np.mean([row["recall"] for row in planted]))
    false = sum(row["reported"] for row in rows if not row["planted"])
    warned = all(row["compare warns"] == bool(row["planted"]) for row in rows)
    claims = [
        claim(
            "planted group leaks are found with precision and recall of 0.9 or more",
            f"precision {precision:.2f}, recall {recall:.2f} over {len(planted)} splits; {false} groups reported in "
            f"{len(rows) - len(planted)} clean ones",
            precision >= 0.9 and recall >= 0.9 and not false,
        ),
        claim("compare warns of the leaking splits and of no other", f"{len(rows)} splits", warned),
    ]
    return {"rows": rows, "claims": [] if case.tiny else claims}


def _found(case: Any, name: str, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    data = case.load(name)
    data = data.select(data.labelled)
    own = None if case.tiny or name != "bccd_cells" else _source_images(case.data / "datasets" / name / "index.csv")
    groups = _bursts(data.y, rng) if own is None else np.asarray([own[i] for i in data.ids.tolist()])
    _, test = holdout(data.y, test_size=0.3, ids=data.ids, groups=groups, seed=seed)
    splits = np.full(len(data), "train", dtype="<U5")
    splits[test] = "test"
    names, counts = np.unique(groups[test], return_counts=True)
    several = names[counts > 1]
    leaking = rng.permutation(several)[: max(1, len(several) // 10) if seed % 2 == 0 else 0]
    for group in leaking:
        splits[rng.choice(test[groups[test] == group])] = "train"
    leaky = replace(data, groups=groups, splits=splits, name=name)
    of_image = dict(zip(data.ids.tolist(), groups.tolist(), strict=True))
    audited = fc.audit(replace(leaky, y=None), progress=False)
    found = {of_image[row["ids"][0]] for row in audited.of("group straddles")}
    hits = len(found & set(leaking.tolist()))
    result = fc.compare(leaky, ["centroid"], shots=[2], seeds=2)
    return {
        "data": name,
        "seed": seed,
        "groups": "made" if own is None else "own",
        "planted": len(leaking),
        "reported": len(found),
        "precision": round(hits / len(found), 3) if found else None,
        "recall": round(hits / len(leaking), 3) if len(leaking) else None,
        "compare warns": any("groups stand in train and test" in note for note in result.notes),
    }


def _source_images(index: Path) -> dict[str, str]:
    with index.open(newline="") as lines:
        return {line["file"]: line["split"] for line in csv.DictReader(lines)}


def _bursts(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Groups of one to three images of one class."""
    groups = np.zeros(len(y), dtype=object)
    for label in np.unique(y):
        rows, n = rng.permutation(np.flatnonzero(y == label)), 0
        while len(rows):
            size = int(rng.integers(1, 4))
            groups[rows[:size]] = f"{label}-{n}"
            rows, n = rows[size:], n + 1
    return groups.astype(str)
