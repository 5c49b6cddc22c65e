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
