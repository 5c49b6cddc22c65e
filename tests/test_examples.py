"""The examples run as they stand, stay short, and the docstrings' examples are true."""

import doctest
import importlib
import runpy
import sys

import pytest
from conftest import REPOSITORY, write_images

import featcache

EXAMPLES = sorted((REPOSITORY / "examples").glob("*.py"))


def run_example(monkeypatch, name, *words):
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(REPOSITORY / "examples" / name), run_name="__main__")


def test_precompute_then_compare(monkeypatch, capsys, tmp_path):
    folder = write_images(tmp_path / "images", 40)
    run_example(monkeypatch, "precompute.py", folder, tmp_path / "s")
    assert "40 computed" in capsys.readouterr().out
    run_example(monkeypatch, "precompute.py", folder, tmp_path / "s")
    assert "0 computed, 40 reused" in capsys.readouterr().out
    image = next(folder.rglob("*.jpg"))
    run_example(monkeypatch, "compare_heads.py", tmp_path / "s", image)
    out = capsys.readouterr().out
    assert "logreg" in out and "RandomForestClassifier" in out and out.splitlines()[-1].split()[-1] in ("cat", "dog")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.name)
def test_examples_are_under_thirty_lines(path):
    assert len(path.read_text().splitlines()) < 30


def with_examples(*rooms):
    """Modules of some rooms whose docstrings hold examples that run."""
    for room in rooms:
        for path in sorted((REPOSITORY / "featcache" / room).glob("*.py")):
            if any(">>> " in line and "+SKIP" not in line for line in path.read_text().splitlines()):
                yield f"{room}.{path.stem}"


@pytest.mark.parametrize(
    "name",
    ["fingerprint", "features", "images.decoding", "preprocess.recipe", "store.feature_store",
     "backbone.frozen", "splits", *with_examples("heads", "softmax", "solvers", "verification"),
     *with_examples("evaluation", "labelling", "hygiene", "ranking", "advice", "evidence", "reporting"),
     *with_examples("handoff", "finetuning"), "backbone.units"],
)  # fmt: skip
def test_examples_in_docstrings(name):
    results = doctest.testmod(importlib.import_module(f"featcache.{name}"), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert results.attempted and not results.failed


def test_the_version_is_stated_once():
    import tomllib

    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    assert project["version"] == featcache.__version__
    assert f"## {featcache.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text()
