"""advise(): each of the four recommendations where it should come, reasons that are measured, nothing of test rows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import REPOSITORY

import featcache as fc
from featcache.advice import Advice, advise, deciding
from featcache.advice.deciding import Found, choose, options_of, scenario_of
from featcache.advice.measuring import Curve, Profile, next_doubling, source_of
from featcache.errors import HeadError
from featcache.reporting import Result

SPEC = {"backbone": {"arch": "net", "nodes": ["early", "middle", "late", "fc"]}}


def nodes_of(spreads, *, n=120, k=3, seed=0, **more):
    """One FeatureSet per node of one network; a larger spread is a poorer node."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    means = rng.normal(size=(k, 12))
    return [
        fc.FeatureSet(
            (means[y] + spread * rng.normal(size=(n, 12))).astype("f4"),
            y,
            node=node,
            spec=SPEC,
            fingerprint="f",
            name="net.features",
            **more,
        )
        for node, spread in spreads.items()
    ]


def logits_of(data, strength, n_source=1000):
    X = np.random.default_rng(0).normal(size=(len(data), n_source)).astype("f4")
    X[np.arange(len(data)), data.y.astype(int)] += strength
    return replace(data, X=X, node="fc")


LATE = {"early": 4.0, "middle": 2.5, "late": 1.5}
EARLY = {"early": 1.3, "middle": 2.5, "late": 4.0}


def test_few_labels_mean_a_head_on_the_best_node():
    advice = advise(nodes_of(LATE, n=45))
    assert (advice.recommendation, advice.node, advice.k) == ("head", "late", None)
    assert advice.scenario == {"labels": "few", "domain": "unclear"}
    early = advise(nodes_of({"early": 0.7, "middle": 5.0, "late": 9.0}, n=27))
    assert (early.recommendation, early.node) == ("head", "early") and early.scenario["domain"] == "dissimilar"
    assert early.gain["basis"] == "measured" and 0 < early.gain["low"] < early.gain["points"] < early.gain["high"]


def test_few_labels_unlike_the_source_mean_the_last_blocks():
    advice = advise(nodes_of(EARLY, n=45))
    assert (advice.recommendation, advice.node, advice.k) == ("last blocks", "early", 2)


def test_many_labels_like_the_source_mean_the_last_blocks():
    nodes = nodes_of(LATE)
    advice = advise([*nodes, logits_of(nodes[0], 14.0)])
    assert advice.scenario == {"labels": "many", "domain": "similar"} and advice.source["told"] > 0.8
    assert (advice.recommendation, advice.node, advice.k) == ("last blocks", "middle", 1)


def test_many_labels_unlike_the_source_mean_all():
    nodes = nodes_of(LATE)
    assert advise([*nodes, logits_of(nodes[0], 0.0)]).recommendation == "all"
    advice = advise(nodes_of(EARLY))
    assert advice.recommendation == "all" and any("not by chance" in each["text"] for each in advice.reasons)


def test_a_head_that_misses_nothing_is_enough():
    advice = advise(nodes_of({"early": 2.0, "late": 0.1}))
    assert advice.recommendation == "head" and advice.scenario["labels"] == "many"


def found(explained, n, early=False, told=None, accuracy=0.5):
    row = {
        "node": "a",
        "accuracy": accuracy,
        "explained": explained,
        "by": "ridge",
        "ci95": [accuracy - 0.02, 1],
        "best": True,
        "seconds": 0.1,
    }
    profile = Profile((row, {**row, "node": "b", "best": False}), 0, 1, early, {"points": 1.0, "low": 0.0, "high": 2.0})
    source = None if told is None else {"told": told, "confidence": 0.5, "entropy": 0.5, "classes": 10.0}
    return Found(profile, Curve((), None), source, n, n // 2)


def test_from_scratch_only_with_many_images_of_which_codes_say_nothing():
    assert choose(found(0.02, 20_000)) == "from scratch"
    assert choose(found(0.02, 2_000)) == "last blocks" and choose(found(0.5, 20_000)) == "last blocks"


def test_all_four_are_priced_and_none_gains_more_than_is_missing():
    options = options_of(found(0.5, 1000, accuracy=0.97), images_per_second=100.0)
    assert set(options) == {"head", "last blocks", "all", "from scratch"}
    costs = [options[name].cost["seconds"] for name in ("head", "last blocks", "all", "from scratch")]
    assert costs == sorted(costs) and costs[2] == pytest.approx(90 * 1000 / 100)
    assert all(each.gain["high"] <= 5.0 + 1e-9 for each in options.values())
    assert options_of(found(0.5, 1000), None)["all"].cost["seconds"] is None


def test_unclear_without_logits_and_similar_with():
    assert scenario_of(found(0.5, 1000))["domain"] == "unclear"
    assert scenario_of(found(0.5, 1000, told=0.5))["domain"] == "similar"
    assert scenario_of(found(0.5, 1000, told=0.05))["domain"] == "dissimilar"
    assert scenario_of(found(0.5, 1000, told=0.5, early=True))["domain"] == "dissimilar"


def curve(values):
    rows = tuple(
        {"dataset": "d", "head": "ridge", "shots": 2**i, "n_train": 10 * 2**i, "n_test": 400, "metric": "accuracy",
         "mean": v, "ci95": [v - 0.02, v + 0.02], "scores": [v, v + 0.01, v - 0.01], "seeds": [0, 1, 2]}
        for i, v in enumerate(values)
    )  # fmt: skip
    return next_doubling(Result(rows))


def test_a_doubling_is_forecast_from_three_sizes_on():
    errors = [0.5 * 0.6**i for i in range(4)]
    found = curve([1 - e for e in errors])
    assert found["low"] < found["points"] < found["high"]
    assert found["points"] == pytest.approx(100 * (errors[3] - errors[3] * 0.6), abs=2.0)
    flat = curve([0.9, 0.9, 0.9, 0.9])
    assert abs(flat["points"]) < 1.5 and curve([0.5, 0.6]) is None


@pytest.mark.parametrize(("strength", "low", "high"), [(0.0, 0.0, 0.05), (14.0, 0.8, 1.0)])
def test_what_the_source_tells(strength, low, high):
    data = nodes_of({"late": 1.0})[0]
    source = source_of(logits_of(data, strength))
    assert low <= source["told"] <= high and 0 < source["confidence"] <= 1 and 0 <= source["entropy"] <= 1
    assert 1 <= source["classes"] <= 1000


def test_one_node_says_what_it_could_not_measure():
    advice = advise(nodes_of({"late": 1.5})[0])
    assert advice.scenario["domain"] == "unclear" and advice.recommendation == "all"
    assert any("one node" in note and "featcache extract" in note for note in advice.notes)
    assert "last blocks" not in {each["recommendation"] for each in advice.options}


def test_reasons_have_numbers_and_commands():
    nodes = nodes_of(LATE)
    for each in advise([*nodes, logits_of(nodes[0], 3.0)]).reasons:
        assert any(c.isdigit() for c in each["text"]) and each["check"].startswith("featcache ")
        assert "net.features" in each["check"]


def test_test_rows_are_never_touched():
    splits = np.where(np.arange(120) < 90, "train", "test")
    nodes = nodes_of(LATE, splits=splits)
    spoilt = [replace(item, X=np.where((splits == "test")[:, None], 1e3, item.X).astype("f4")) for item in nodes]
    one, other = (json.loads(advise(each).to_json()) for each in (nodes, spoilt))
    for document in (one, other):
        for row in document["profile"]:
            row.pop("seconds")
        for each in document["options"]:
            each.pop("cost")
    assert one["profile"] == other["profile"] and one["curve"] == other["curve"] and one["reasons"] == other["reasons"]


def run_check(check):
    import shlex

    from featcache.cli import run

    return run(
        [*shlex.split(check, comments=True)[1:], *(() if " info " in check or "--json" in check else ("--json",))]
    )


def test_checks_run_and_measure_the_same(capsys, tmp_path, monkeypatch):
    from featcache.cli import run

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    data = nodes_of({"late": 1.5})[0]
    path = tmp_path / "my codes" / "a;b.npz"
    path.parent.mkdir()
    part = np.where(np.arange(120) < 96, "train", "test")
    batch = np.arange(120) // 2
    np.savez(path, X=data.X, kind=np.char.add("k", data.y), part=part, batch=batch, ids=data.ids)
    for more in ([], ["--split", "part"]):
        words = [str(path), "--label", "kind", "--group", "batch", *more]
        words[1] = "--labels"
        assert run(["advise", *words, "--quiet", "--seeds", "2", "--json"]) == 0
        advice = json.loads(capsys.readouterr().out)
        checks = {each["check"].split()[1]: each["check"] for each in advice["reasons"]}
        assert run_check(checks["rank"]) == 0
        best = json.loads(capsys.readouterr().out)["results"][0]
        assert best["score"] == advice["profile"][0]["accuracy"] and best["n_images"] == (96 if more else 120)
        if not more:
            assert run_check(checks["compare"]) == 0
            found = json.loads(capsys.readouterr().out)["results"]
            assert [row["mean"] for row in found] == [row["mean"] for row in advice["curve"]]
        for check in {each["check"] for each in advice["reasons"]} - {checks["rank"]}:
            assert run_check(check) == 0
            capsys.readouterr()


def test_as_many_images_as_rank_drew_are_told():
    rng = np.random.default_rng(0)
    y = np.arange(10_400) % 2
    X = (rng.normal(size=(len(y), 2)) + y[:, None]).astype("f4")
    advice = advise(fc.FeatureSet(X, y), seeds=1)
    assert "of 10000 images" in advice.reasons[0]["text"] and any("10000 of 10400" in note for note in advice.notes)


def test_codes_that_say_nothing_are_not_right():
    advice = advise(fc.FeatureSet(np.ones((60, 8), dtype="f4"), np.arange(60) % 2), seeds=1)
    assert advice.profile[0]["accuracy"] == 0.5 and "about 50.0%" in advice.reasons[0]["text"]


def test_labels_of_test_rows_are_not_looked_at():
    splits = np.where(np.arange(120) < 90, "train", "test")
    nodes = [replace(each, y=np.where(splits == "train", "", each.y), splits=splits) for each in nodes_of(LATE)]
    with pytest.raises(HeadError, match="no labelled training row"):
        advise(nodes)


def test_nodes_of_equal_worth_have_no_gain_over_each_other():
    gains = 0
    for seed in range(8):
        rng, y = np.random.default_rng(seed), np.arange(60) % 2
        X = [(rng.normal(size=(60, 12)) + 0.35 * y[:, None]).astype("f4") for _ in range(8)]
        advice = advise({str(i): fc.FeatureSet(x, y) for i, x in enumerate(X)}, seeds=1)
        gains += advice.options[0]["gain"]["low"] > 0
    assert gains <= 1


def test_the_order_of_nodes_is_the_network_s():
    nodes = nodes_of(LATE)
    assert [row["node"] for row in advise(nodes[::-1], seeds=1).profile] == ["early", "middle", "late"]


def test_faces():
    nodes = nodes_of(LATE)
    advice = advise([*nodes, logits_of(nodes[0], 3.0)])
    again = Advice.from_json(advice.to_json())
    assert again.to_json() == advice.to_json() and again.table() == str(advice)
    for words in (advice.headline(), "scenario", "expected gain", "check"):
        assert words.lower() in advice.table().lower() and words.lower() in advice.to_markdown().lower()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: advise([]), "none"),
        (lambda: advise(3), "FeatureSet"),
        (lambda: advise(nodes_of(LATE), seeds=0), "seeds"),
        (lambda: advise(nodes_of(LATE), images_per_second=-1), "images_per_second"),
        (lambda: advise(nodes_of(LATE), logits="x"), "logits: no codes"),
        (lambda: advise([*nodes_of(LATE), replace(nodes_of(LATE)[0], fingerprint="g")]), "one network"),
        (lambda: advise(nodes_of(LATE) * 2), "each node once"),
        (lambda: advise(fc.FeatureSet(np.eye(3, dtype="f4"))), "no row has a label"),
        (lambda: advise(fc.FeatureSet(np.eye(3, dtype="f4"), list("abc"))), "two classes"),
    ],
)
def test_what_cannot_be_advised(call, words):
    with pytest.raises(HeadError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_the_rule_of_thumb_is_what_was_measured():
    path = REPOSITORY / "benchmarks" / "results" / "evidence.json"
    figures = json.loads(path.read_text())["figures"] if path.is_file() else {}
    if "rule of thumb" not in figures.get("advise", {}):
        pytest.skip("the benchmark has not been run yet")
    measured = {tuple(row["scenario"].split(", ")): row["points"] for row in figures["advise"]["rule of thumb"]}
    assert measured == {key: list(points) for key, points in deciding._SEEN.items()}


def test_cli(capsys, tmp_path):
    from featcache.cli import run

    data = nodes_of({"late": 1.5})[0]
    np.savez(tmp_path / "codes.npz", X=data.X, y=data.y, ids=data.ids)
    assert run(["advise", str(tmp_path / "codes.npz"), "--json", "--quiet", "--seeds", "2"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["recommendation"] in {"head", "last blocks", "all", "from scratch"} and out["reasons"]
    assert run(["advise", str(tmp_path / "codes.npz"), "--images-per-second", "50"]) == 0
    assert "because" in capsys.readouterr().out
    assert run(["advise", str(tmp_path / "codes.npz"), "--logits", "fc"]) == 1
