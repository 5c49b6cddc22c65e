"""Result: table, Markdown, JSON and the plot."""

from __future__ import annotations

import json
import sys

import pytest
from PIL import Image

from featcache.reporting import Result


def row(head, shots, mean, *, dataset="flowers", n_train=None):
    n_train = n_train or 10 * (shots if shots != "all" else 80)
    numbers = {"mean": mean, "std": None if shots == "all" else 0.02, "ci95": [mean - 0.05, mean + 0.05]}
    seeds = {"seeds": [0], "scores": [mean], "ci_method": "t"}
    fields = {"metric": "balanced_accuracy", "fit_seconds": 0.123, "n_train": n_train, "n_test": 99}
    return {"dataset": dataset, "head": head, "shots": shots, **numbers, **fields, **seeds}


def pair(other, told, shots=1):
    values = {"difference": 0.1, "ci95": [0.0, 0.2], "ci_method": "t", "distinguishable": told}
    return {"dataset": "flowers", "shots": shots, "best": "lda", "other": other, **values}


RESULT = Result(
    (row("lda", 1, 0.5), row("kn|n", 1, 0.4), row("lda", 5, 0.7), row("kn|n", "all", 0.9)),
    (pair("kn|n", False), pair("svm", False), pair("kn|n", True, 5)),
    ("one note",),
    {"seeds": 1},
)


def test_best():
    assert RESULT.best()["mean"] == 0.9 and RESULT.best(shots=1)["head"] == "lda"
    with pytest.raises(ValueError, match="no row"):
        RESULT.best(dataset="other")


def test_statements():
    assert RESULT.statements() == (
        "flowers, 1 shot: lda leads, but cannot be told apart from kn|n and svm on these splits",
        "flowers, 5 shots: lda is better than the others (5 % level, all pairs considered)",
    )


def test_table_and_markdown():
    lines = RESULT.table().splitlines()
    assert lines[0].split()[:4] == ["head", "shots", "balanced", "accuracy"]
    assert len({len(line) for line in lines[1:6]}) == 1 and lines[-1] == "note: one note"
    assert "kn\\|n" in RESULT.to_markdown() and str(RESULT) == RESULT.table()
    assert "dataset" in Result((row("a", 1, 0.1), row("a", 1, 0.2, dataset="b"))).table().splitlines()[0]


def test_json_goes_there_and_back():
    document = json.loads(RESULT.to_json())
    keys = {"head", "shots", "metric", "mean", "std", "ci95", "fit_seconds", "n_train", "n_test"}
    assert all(keys <= set(r) for r in document["results"])
    assert Result.from_json(RESULT.to_json()) == RESULT


@pytest.mark.parametrize(
    "rows", [RESULT.rows, (row("lda", "all", 0.5),), (row("lda", 5, 0.5), row("lda", 5, 0.6, dataset="other"))]
)
def test_plot(rows, tmp_path):
    path = Result(tuple(rows)).plot(tmp_path / "curve.png")
    with Image.open(path) as image:
        assert min(image.size) > 400 and len(image.getcolors(1 << 20)) > 20
    assert "matplotlib.pyplot" not in sys.modules
