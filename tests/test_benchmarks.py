"""Benchmarks run, their results files have one form, and their README is what the results say."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
RESULTS = sorted((BENCHMARKS / "results").glob("*.json"))


@pytest.fixture
def render(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import render

    return render


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("bench_*.py")), ids=lambda p: p.stem)
def test_each_runs_with_tiny(path, tmp_path):
    out = tmp_path / "result.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)}
    words = [sys.executable, str(path), "--tiny", "--out", str(out)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    assert {"question", "machine"} <= set(result)
    assert str(tmp_path) not in out.read_text() and str(REPOSITORY) not in out.read_text()


@pytest.mark.parametrize("path", RESULTS, ids=lambda p: p.stem)
def test_results_say_what_they_are(path):
    result = json.loads(path.read_text())
    assert {"question", "machine"} <= set(result)
    assert (BENCHMARKS / f"bench_{path.stem}.py").is_file()


def test_the_readme_is_what_the_results_say(render):
    assert (BENCHMARKS / "README.md").read_text() == render.render(BENCHMARKS / "results"), (
        "run python benchmarks/render.py"
    )


def test_rendering_copes_with_any_figures(render, tmp_path):
    (tmp_path / "a.json").write_text(
        json.dumps(
            {
                "question": "Is a|b <fast>?",
                "machine": {"cores": 2, "cpu": "x"},
                "date": "2026-01-01",
                "figures": {"n": 3, "rows": [{"a": 1, "b": True}, {"a": 0.5, "c": [1, 2]}], "deep": {"x": {"y": None}}},
                "left_over": {"z": "text"},
            }
        )
    )
    (tmp_path / "b.json").write_text("{}")
    text = render.render(tmp_path)
    assert "## Is a\\|b &lt;fast>?" in text and "`results/a.json`: 2026-01-01; cores 2, cpu x" in text
    assert "| a | b | c |\n|---|---|---|\n| 1 | yes |  |\n| 0.5 |  | 1, 2 |" in text
    assert "| n | 3 |" in text and "#### x" in text and "| z | text |" in text and "## b.json" in text


def test_claims_without_a_place_of_this_machine(render):
    import measuring

    assert measuring.without_places({"a": ["x /tmp/q/codes y", 3]}, {"/tmp/q": "TMP"}) == {"a": ["x TMP/codes y", 3]}


@pytest.fixture
def extraction(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import bench_extraction

    return bench_extraction


@pytest.fixture
def parts(extraction):
    import parts

    return parts


def test_parts_of_a_benchmark_are_merged(extraction, parts, tmp_path):
    out = tmp_path / "extraction.json"
    claims = [{"claim": "fast", "measured": 2, "holds": True}]
    figures = parts.assembled(extraction.PARTS, {"limit": {"about": {}, "claims": claims, "n": 1}})
    assert figures == {"claims": [{"part": "limit", **claims[0]}], "limit": {"about": {}, "n": 1}}
    out.write_text(json.dumps({"figures": figures}))
    again = parts.known_figures(out)
    assert again == {"limit": {"about": {}, "claims": claims, "n": 1}}
    both = parts.assembled(extraction.PARTS, {"jobs_300": {"claims": claims}, **again})
    assert [line["part"] for line in both["claims"]] == ["jobs_300", "limit"]
    assert parts.known_figures(tmp_path / "absent.json") == {}


def test_parts_of_a_benchmark_are_chosen_by_how_they_begin(extraction, parts):
    assert parts.chosen(extraction.PARTS, "limit,jobs") == ["jobs_300", "jobs_1343", "jobs_20000", "limit"]
    assert parts.chosen(extraction.PARTS, None) == list(extraction.PARTS)
    assert set(extraction.TINY) <= set(extraction.PARTS)
    with pytest.raises(SystemExit, match="got nothing"):
        parts.chosen(extraction.PARTS, "nothing")


def test_copies_of_a_photo_differ_in_their_bytes_only(extraction):
    import io

    import numpy as np
    from extraction.case import with_comment
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(np.arange(768, dtype="u1").reshape(16, 16, 3)).save(file, "JPEG")
    copies = [with_comment(file.getvalue(), str(i)) for i in range(3)]
    assert len({file.getvalue(), *copies}) == 4
    assert len({np.asarray(Image.open(io.BytesIO(c))).tobytes() for c in (file.getvalue(), *copies)}) == 1


def test_claims_compare_equal_arithmetic(extraction):
    from extraction.speed import job_claims, steady_claims

    def line(who, rate):
        return {"who": who, "images_per_second": rate, "steady_images_per_second": rate}

    lines = [line("featcache auto", 40), line("featcache fp32", 20), line("tutorial loop", 10)]
    lines += [line("tuned loop, fp32", 15), line("tuned loop, bf16", 30)]
    measured = [c["measured"] for c in job_claims(lines, 300)]
    assert measured == [round(40 / 30, 2), round(20 / 15, 2)] * 2
    ratios = [(c["measured"], c["holds"]) for c in steady_claims("mobilenet_v2", "auto", lines)]
    assert ratios == [(4.0, True), (1.33, True), (2.0, False), (1.33, True)]


def cell(auto, ridge, lda, high, shots=5):
    return {
        "set": "s",
        "shots": shots,
        "draws": 9,
        "auto": auto,
        "ridge": ridge,
        "LDA": lda,
        "best_rival": "ridge",
        "auto_minus_best": auto - ridge,
        "interval": [high - 1.0, high],
    }


def test_auto_is_judged_over_the_cells_of_all_parts(render):
    from together import auto_over_all

    about = {"about": {"commit": "abc", "date": "2026-01-01"}}
    figures = {
        "auto_few": {**about, "cells": [cell(50.0, 48.0, None, 2.5, 1), cell(60.0, 61.0, 59.0, 0.1)]},
        "auto_some": {**about, "cells": [cell(70.0, 69.5, 69.0, 1.0)]},
    }
    assert auto_over_all(figures) is None and auto_over_all({}) is None
    figures["auto_all"] = {**about, "cells": [cell(80.0, 80.5, 80.0, -0.2, "all")]}
    found = auto_over_all(figures)
    assert found["cells"] == 4 and "auto_some (commit abc, 2026-01-01)" in found["made of"]
    assert [(row["rival"], row["cells"]) for row in found["auto against each"]] == [("ridge", 4), ("LDA", 3)]
    assert [row["auto minus rival, mean (points)"] for row in found["auto against each"]] == [0.25, 0.67]
    assert [(c["measured"], c["holds"]) for c in found["claims"]] == [("none", True), ("+0.25 (ridge)", True)]
    figures["auto_all"]["cells"].append(cell(70.0, 72.0, 60.0, -0.31, "all"))
    assert [(c["measured"], c["holds"]) for c in auto_over_all(figures)["claims"]] == [
        (["s at all"], False),
        ("-0.20 (ridge)", False),
    ]
    text = "\n".join(render.section("heads.json", {"figures": figures}))
    assert "auto, the cells of all parts" in text and "| ridge | 5 | -0.2 |" in text


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from heads import processes

    return processes


@pytest.mark.parametrize(
    ("enough_from", "over_from", "start", "tried", "loosest"),
    [
        (3, 9, 0, [0, 1, 2, 3], 3),  # tighter until it comes near enough
        (3, 9, 5, [2, 3, 4, 5], 3),  # looser as long as it does
        (3, 4, 5, [2, 3, 4, 5], 3),  # looser where there was no time
        (4, 4, 4, [3, 4], None),  # near enough only beyond the limit of time
        (9, 9, 4, [4, 5, 6], None),  # nowhere
        (9, 0, 2, [0, 1, 2], None),  # no time anywhere
        (0, 9, 2, [0, 1, 2], 0),
    ],
)
def test_the_loosest_tolerance_is_found_from_any_guess(processes, enough_from, over_from, start, tried, loosest):
    found = processes.hunt(lambda i: None if i >= over_from else i, lambda i: i >= enough_from, range(7), start)
    assert sorted(found) == tried
    assert min((i for i in found.values() if i is not None and i >= enough_from), default=None) == loosest


def test_a_fit_of_its_own_process_is_ended_in_time_and_says_what_went_wrong(processes, tmp_path):
    import numpy as np
    from sklearn.linear_model import LogisticRegression

    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((60, 4)), np.arange(60) % 3
    folder = processes.stored(tmp_path / "in", X=X, y=y)
    found = processes.fitted(folder, "sklearn_fit", 60, C=0.1, solver="lbfgs")
    np.testing.assert_allclose(found["coef"], LogisticRegression(C=0.1).fit(X, y).coef_, atol=1e-6)
    assert 0 < found["seconds"] < 60
    many = generator.standard_normal((20_000, 300))
    folder = processes.stored(tmp_path / "in", X=many, y=np.arange(20_000) % 50)
    assert sorted(file.name for file in folder.iterdir()) == ["X.npy", "y.npy"]
    assert processes.fitted(folder, "sklearn_fit", 0.01, C=1e3, tol=1e-9) is None
    with pytest.raises(RuntimeError, match="sklearn_fit: exit status"):
        processes.fitted(folder, "sklearn_fit", 60, solver="nothing")


@pytest.mark.parametrize(
    ("tried", "factor", "kind", "tol"),
    [
        ({2: (10.0, 1e-4), 3: (20.0, 1e-6)}, 10.0, "measured", 1e-5),
        ({2: (10.0, 1e-4), 3: None}, 120.0, "at least", 1e-4),  # its limit of time over our seconds
        ({5: (10.0, 1e-4), 6: (30.0, 1e-4)}, 15.0, "at least", 1e-8),  # its tightest does not reach
        ({0: None}, 120.0, "at least", None),
        ({3: (20.0, 1e-6), 4: None, 2: (10.0, 1e-3)}, 10.0, "measured", 1e-5),
    ],
)
def test_a_rival_that_does_not_arrive_is_a_lower_bound(processes, tried, factor, kind, tol):
    import numpy as np
    from heads import solver

    def outcome(seconds, excess):
        return {"seconds": seconds, "excess": excess, "scores": np.ones((5, 20))}

    row = solver._beside({i: found and outcome(*found) for i, found in tried.items()}, 1e-5, 2.0)
    assert (row["times_newton_cg"], row["factor_is"]) == (factor, kind)
    assert row.get("newton_cg_tol") == (tol if tol is None else pytest.approx(tol))
    assert ("note" in row) == (None in tried.values())
