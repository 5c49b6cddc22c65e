"""rank(): left-out predictions are exact, scores are what their papers say, and nothing looks at test rows."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import REPOSITORY
from scipy.stats import multivariate_normal

import featcache as fc
from featcache.errors import HeadError
from featcache.evaluation.intervals import interval
from featcache.ranking import Ranking, rank
from featcache.ranking.left_out import ALPHAS, answerable, hits, knn_left_out, ridge_left_out
from featcache.ranking.scoring import scored
from featcache.ranking.transferability import h_score, leep, logme
from featcache.ranking.trust import MEASURED, TRUST
from featcache.solvers.shrinkage import shrunk_scale


def codes_of(n=60, d=8, k=3, spread=1.0, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % k
    return (rng.normal(size=(k, d))[y] + spread * rng.normal(size=(n, d))).astype("float32"), y


def data_of(spread=1.0, seed=0, n=60, **more):
    X, y = codes_of(n=n, spread=spread, seed=seed)
    return fc.FeatureSet(X, y, **more)


def by_hand(X, y, groups):
    """Ridge fitted again without each group, for each penalty; the predictions of the best."""
    X = X.astype(float)
    Z = (X - X.mean(0)) / shrunk_scale(np.square(X - X.mean(0)).mean(0), float(len(X)), 20.0)
    targets, best = 2.0 * np.eye(y.max() + 1)[y] - 1.0, None
    for alpha in ALPHAS:
        out = np.empty_like(targets)
        for g in np.unique(groups):
            kept = groups != g
            mean, aim = Z[kept].mean(0), targets[kept].mean(0)
            A = Z[kept] - mean
            coef = np.linalg.solve(A.T @ A + alpha * np.eye(A.shape[1]), A.T @ (targets[kept] - aim))
            out[~kept] = (Z[~kept] - mean) @ coef + aim
        if best is None or np.square(out - targets).sum() < best[0]:
            best = np.square(out - targets).sum(), out
    means = np.stack([targets[groups != g].mean(0) for g in groups])
    return best[1] - means + targets.mean(0)


@pytest.mark.parametrize("d", [5, 90])
@pytest.mark.parametrize("size", [1, 4])
def test_ridge_left_out_is_a_fit_without_the_group(d, size):
    X, y = codes_of(d=d)
    groups = np.arange(len(y)) // size
    got = ridge_left_out(X, 2.0 * np.eye(3)[y] - 1.0, None if size == 1 else groups)
    np.testing.assert_allclose(got, by_hand(X, y, groups), atol=1e-6)


def test_groups_of_several_sizes_and_one_row_each_agree_with_plain_leave_one_out():
    X, y = codes_of(d=6)
    targets = 2.0 * np.eye(3)[y] - 1.0
    np.testing.assert_allclose(
        ridge_left_out(X, targets, np.arange(len(y))), ridge_left_out(X, targets, None), atol=1e-8
    )
    mixed = np.repeat(np.arange(20), [1, 2, 6, 3] * 5)
    np.testing.assert_allclose(ridge_left_out(X, targets, mixed), by_hand(X, y, mixed), atol=1e-6)


def test_knn_does_not_ask_its_own_group():
    X, y = codes_of(n=40, spread=3.0)
    X, y = np.repeat(X, 2, axis=0), np.repeat(y, 2)  # each image twice
    groups = np.repeat(np.arange(40), 2)
    weight = np.ones(len(y))
    alone = (knn_left_out(X, y, None, weight).argmax(1) == y).mean()
    honest = (knn_left_out(X, y, groups, weight).argmax(1) == y).mean()
    assert alone > honest + 0.1
    once = knn_left_out(X[::2], y[::2], None, weight[::2]).argmax(1)
    assert abs((once == y[::2]).mean() - honest) < 0.15


def test_knn_shares_are_those_of_the_definition():
    X, y = codes_of(n=30)
    C = X - X.mean(0)
    C /= np.linalg.norm(C, axis=1, keepdims=True)
    cosine = C @ C.T
    np.fill_diagonal(cosine, -np.inf)
    for i, share in enumerate(knn_left_out(X, y, None, np.ones(30))):
        near = np.argsort(-cosine[i])[:20]
        votes = np.bincount(y[near], np.exp((cosine[i, near] - cosine[i, near[0]]) / 0.07), 3)
        votes *= np.bincount(y) / (np.bincount(y) - (np.arange(3) == y[i]))
        np.testing.assert_allclose(share, votes / votes.sum(), atol=1e-4)


def test_a_class_in_one_group_is_not_asked():
    codes, groups = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 2, 2, 3])
    assert answerable(codes, groups).tolist() == [True, True, False, False, False]
    assert answerable(codes, None).tolist() == [True, True, True, True, False]


@pytest.mark.parametrize(("n", "d"), [(30, 4), (12, 40)])
def test_logme_is_the_largest_evidence(n, d):
    X, y = codes_of(n=n, d=d, k=2)
    X = X.astype(float)

    def evidence(c, alpha, beta):
        covariance = np.eye(n) / beta + X @ X.T / alpha
        return multivariate_normal(np.zeros(n), covariance).logpdf((y == c).astype(float)) / n

    grid = np.geomspace(1e-3, 1e4, 29)
    best = np.mean([max(evidence(c, a, b) for a in grid for b in grid) for c in (0, 1)])
    assert logme(X, y) == pytest.approx(best, abs=0.03)


def test_h_score_of_codes_that_say_all_and_nothing():
    rng = np.random.default_rng(0)
    y = np.arange(2000) % 3
    noise = rng.normal(size=(2000, 3))
    assert h_score(10 * np.eye(3)[y] + 0.01 * noise, y) == pytest.approx(2.0, abs=0.1)
    assert h_score(noise, y) < 0.02
    assert h_score(1e6 * noise, y) == pytest.approx(h_score(noise, y), rel=1e-6)


def test_leep_by_hand():
    logits = np.log([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    joint = np.array([[1.5, 0.5], [0.2, 0.8]]) / 3
    given = joint / joint.sum(0)
    expected = np.mean([np.log(np.exp(logits[i]) @ given[c]) for i, c in enumerate((0, 0, 1))])
    assert leep(logits, np.array([0, 0, 1])) == pytest.approx(expected)


def test_better_codes_come_first_and_can_be_told_apart():
    ranking = rank({"poor": data_of(3.0), "good": data_of(0.3), "middling": data_of(1.5)})
    assert [row["codes"] for row in ranking.rows] == ["good", "middling", "poor"]
    assert all(each["distinguishable"] for each in ranking.comparisons)
    assert "better than all" in ranking.statements()[0]
    best = ranking.best()
    assert best["ci95"][0] < best["score"] < best["ci95"][1] and best["score"] == best["explained"]


def test_equal_codes_cannot_be_told_apart_and_the_smaller_come_first():
    data = data_of()
    wide = replace(data, X=np.repeat(data.X, 2, axis=1))
    ranking = rank({"wide": wide, "narrow": data}, by="knn")
    assert ranking.rows[0]["codes"] == "narrow" and ranking.comparisons[0]["p_adjusted"] == 1.0
    assert "cannot be told apart from wide with your 60 images" in ranking.statements()[0]


@pytest.mark.parametrize(("n", "by"), [(80, "ridge"), (24, "knn"), (24, "ridge")])
def test_false_alarms_are_rare_where_codes_are_exchangeable(n, by):
    mean, y = np.random.default_rng(1).normal(size=(3, 4)), np.arange(n) % 3

    def alarm(seed):
        rng = np.random.default_rng(seed)
        sets = {str(i): fc.FeatureSet((mean[y] + 2.0 * rng.normal(size=(n, 4))).astype("f4"), y) for i in range(3)}
        return any(each["distinguishable"] for each in rank(sets, by=by).comparisons)

    assert sum(alarm(seed) for seed in range(40)) <= 5  # 2 expected at the level; 5 has a chance of 0.03


@pytest.mark.parametrize("d", [4, 200])
def test_codes_that_say_nothing_are_guesses(d):
    y = np.arange(120) % 4
    rows = [rank(fc.FeatureSet(np.random.default_rng(s).normal(size=(120, d)), y)).rows[0] for s in range(12)]
    for score in ("ridge", "knn"):
        assert np.mean([row[score] for row in rows]) == pytest.approx(0.25, abs=0.04)
    assert np.mean([row["explained"] for row in rows]) < 0.02


def test_test_rows_are_never_touched():
    data = data_of(n=90)
    splits = np.where(np.arange(90) < 60, "train", "test")
    X = data.X.copy()
    X[60:] = 1e3
    one, other = (rank(fc.FeatureSet(codes, data.y, splits=splits)) for codes in (data.X, X))
    assert {**one.rows[0], "seconds": 0} == {**other.rows[0], "seconds": 0}
    assert one.rows[0]["n_images"] == 60


def test_the_order_of_rows_does_not_matter():
    data = data_of(groups=np.arange(60) // 2)
    order = np.random.default_rng(0).permutation(60)
    one, other = rank(data).rows[0], rank(data.select(order)).rows[0]
    assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_views_are_not_images():
    data = data_of()
    views = fc.FeatureSet(
        np.concatenate([data.X, data.X + 0.01]),
        np.concatenate([data.y, data.y]),
        np.concatenate([data.row_ids, np.char.add(data.row_ids, "v")]),
        view_of=np.concatenate([np.full(60, ""), data.row_ids]),
    )
    one, other = rank(data).rows[0], rank(views).rows[0]
    assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_only_images_that_all_sets_have():
    data = data_of()
    ranking = rank({"all": data, "some": data.select(np.arange(40))})
    assert {row["n_images"] for row in ranking.rows} == {40} and "40 images that all sets have" in ranking.notes[0]


def test_large_sets_are_drawn_from():
    ranking = rank(data_of(n=300), max_rows=90)
    assert 80 <= ranking.rows[0]["n_images"] <= 96 and any("drawn" in note for note in ranking.notes)


def test_balanced_accuracy_weighs_classes():
    X, y = codes_of(n=300, k=2, spread=2.5)
    keep = np.flatnonzero((y == 0) | (np.arange(300) < 40))
    data = fc.FeatureSet(X[keep], y[keep])
    plain, balanced = rank(data, by="ridge"), rank(data, by="ridge", metric="balanced_accuracy")
    assert plain.best()["ridge"] > balanced.best()["ridge"]
    even = rank(data_of(), metric="balanced_accuracy").best()
    assert even["ridge"] == pytest.approx(rank(data_of()).best()["ridge"])


def logits_of(data, good, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(len(data), 1000)).astype("f4")
    X[np.arange(len(data)), data.y.astype(int)] += 12.0 * good
    return replace(data, X=X, node="classifier.1")


def test_logits_give_leep_and_are_not_ranked():
    good = replace(data_of(), node="flatten", name="net", fingerprint="a")
    poor = replace(data_of(2.0), node="flatten", name="other", fingerprint="b")
    ranking = rank([good, logits_of(good, 1.0), poor, logits_of(poor, 0.0)])
    assert [row["codes"] for row in ranking.rows] == ["net:flatten", "other:flatten"]
    assert ranking.rows[0]["leep"] > ranking.rows[1]["leep"]
    assert len(rank([good, logits_of(good, 1.0)], logits=None).rows) == 2
    assert rank([logits_of(good, 1.0)]).rows[0]["codes"] == "net"
    assert rank([good, replace(logits_of(good, 1.0), node="mine")], logits="mine").rows[0]["leep"] is not None


def test_faces(tmp_path):
    ranking = rank({"a|b": data_of(), "c": data_of(2.0)})
    assert Ranking.from_json(ranking.to_json()).to_json() == ranking.to_json()
    assert "a\\|b" in ranking.to_markdown() and "trust: " in ranking.table() and "LEEP" not in ranking.table()
    assert TRUST in json.loads(ranking.to_json())["trust"] and str(ranking) == ranking.table()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: rank(data_of(), by="x"), "by: expected one of"),
        (lambda: rank(data_of(), metric="x"), "metric: expected one of"),
        (lambda: rank(data_of(), logits="fc"), "logits: no codes"),
        (lambda: rank(data_of(), logits=3), "logits: expected"),
        (lambda: rank(data_of(), max_rows=1), "max_rows"),
        (lambda: rank(data_of(), seed="x"), "seed: expected"),
        (lambda: rank(data_of(), seed=-1), "seed: expected"),
        (lambda: rank(data_of(), seed=1.5), "seed: expected"),
        (lambda: rank([data_of(), data_of()]), "got it twice"),
        (lambda: rank({"a": data_of(groups=np.arange(60) // 2), "b": data_of(groups=np.arange(60) // 3)}), "groups"),
        (lambda: rank(data_of(splits=["test"] * 30 + ["val"] * 30)), "no labelled training row"),
        (lambda: rank(data_of(splits=["test"] * 30 + [""] * 30)), "no labelled training row"),
        (lambda: rank([]), "none"),
        (lambda: rank(3), "FeatureSet"),
        (lambda: rank(fc.FeatureSet(np.eye(3, dtype="f4"))), "no row has a label"),
        (lambda: rank(fc.FeatureSet(np.eye(3, dtype="f4"), ["a", "a", "b"])), "two classes of two rows"),
        (lambda: rank(fc.FeatureSet(np.eye(4, dtype="f4") * np.nan, list("aabb"))), "NaN"),
        (lambda: rank({"a": data_of(), "b": data_of(ids=[f"x{i}" for i in range(60)])}), "in common"),
        (lambda: rank({"a": data_of(), "b": replace(data_of(), y=data_of().y[::-1])}), "another label"),
        (lambda: rank(data_of(splits=["train", "test"] + [""] * 58)), "classes"),
    ],
)
def test_what_cannot_be_ranked(call, words):
    with pytest.raises(HeadError, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize(("n", "k"), [(20, 2), (60, 2), (200, 10)])
@pytest.mark.parametrize("value", [0.0, 0.1, 1.0])
@pytest.mark.filterwarnings("error")
def test_codes_that_are_constant_are_as_good_as_chance(value, n, k, groups):
    y = np.arange(n) % k
    more = {"groups": np.arange(n) // (2 * k)} if groups else {}
    row = rank(fc.FeatureSet(np.full((n, 8), value, dtype="f4"), y, **more)).rows[0]
    assert row["ridge"] == row["knn"] == pytest.approx(1 / k) and row["explained"] == pytest.approx(0.0, abs=1e-9)
    assert row["h_score"] == 0.0 and row["logme"] is None
    uneven = np.where(np.arange(n) < n // 3, 0, y)
    row = rank(fc.FeatureSet(np.full((n, 8), value, dtype="f4"), uneven)).rows[0]
    assert row["ridge"] == row["knn"] == pytest.approx(np.bincount(uneven).max() / n)  # the largest class for all


def test_codes_of_which_nine_in_ten_are_dead_are_as_good_as_chance():
    y, rows = np.arange(200) % 4, []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        dead = rng.normal(size=(200, 8)) * (rng.random((200, 1)) < 0.1)
        rows.append(rank(fc.FeatureSet(dead.astype("f4"), y)).rows[0])
    for score in ("ridge", "knn"):
        assert np.mean([row[score] for row in rows]) == pytest.approx(0.25, abs=0.02)


def test_classes_that_share_the_highest_score_share_the_hit():
    left = np.array([[0.0, 1e-9, -1.0], [0.2, 0.1, 0.2], [0.1, 0.2, 0.3]])
    assert hits(left, np.array([1, 1, 2])).tolist() == [0.5, 0.0, 1.0]


def test_constant_codes_are_ranked_last_not_refused(capsys, tmp_path):
    from featcache.cli import run

    blank, data = replace(data_of(), X=np.ones((60, 8), dtype="f4")), data_of()
    ranking = rank({"blank": blank, "codes": data})
    assert ranking.rows[0]["codes"] == "codes" and np.isfinite([row["score"] for row in ranking.rows]).all()
    assert "-" in ranking.table() and Ranking.from_json(ranking.to_json()).to_json() == ranking.to_json()
    np.savez(tmp_path / "blank.npz", X=blank.X, y=blank.y)
    assert run(["rank", str(tmp_path / "blank.npz"), "--json", "--quiet"]) == 0
    assert json.loads(capsys.readouterr().out)["results"][0]["logme"] is None


def test_labels_of_test_rows_are_not_looked_at_where_training_rows_have_none():
    data = data_of(n=90)
    splits = np.where(np.arange(90) < 60, "train", "test")
    with pytest.raises(HeadError, match="no labelled training row"):
        rank(replace(data, y=np.where(splits == "train", "", data.y), splits=splits))
    some = replace(data, y=np.where(np.arange(90) < 20, "", data.y), splits=splits)
    ranking = rank(some)
    assert ranking.rows[0]["n_images"] == 40 and "20 training rows without a label left out" in ranking.notes


def test_a_view_of_a_test_image_does_not_stand_for_it():
    data = data_of()
    views = fc.FeatureSet(
        np.concatenate([data.X, data.X[:10] + 100]),
        np.concatenate([data.y, data.y[:10]]),
        np.concatenate([data.row_ids, np.char.add(data.row_ids[:10], "v")]),
        view_of=np.concatenate([np.full(60, ""), data.row_ids[:10]]),
        splits=["test"] * 10 + ["train"] * 60,
    )
    assert rank(views).rows[0]["n_images"] == 50


def test_intervals_of_shares_near_one_cover():
    from featcache.ranking.scoring import _cell
    from featcache.ranking.shared import Shared

    def covered(n, p):
        shared = Shared(np.arange(n), np.zeros(n, int), None, np.ones(n, bool), np.ones(n) / n, False, ())
        found = [interval(_cell(np.arange(n) < right, shared)) for right in range(n + 1)]
        assert all(0 <= low < high <= 1 for low, high in found) and found[n][0] < 0.85
        drawn = np.random.default_rng(0).binomial(n, p, 2000)
        return np.mean([found[right][0] <= p <= found[right][1] for right in drawn])

    assert all(covered(20, p) >= 0.94 for p in (0.5, 0.8, 0.9, 0.95, 0.99))


def test_all_right_is_one_and_groups_are_the_units():
    row = rank(data_of(0.01, n=49), metric="balanced_accuracy", by="ridge").rows[0]
    assert row["ridge"] == 1.0 and row["ridge_ci95"][0] < 0.95 and row["ridge_ci95"][1] == pytest.approx(1.0)
    X, y = codes_of(n=40, spread=2.0)
    twice = fc.FeatureSet(np.repeat(X, 2, axis=0), np.repeat(y, 2), groups=np.repeat(np.arange(40), 2))
    cell = scored({"a": twice}, ["a"], {}).cells["a"]["ridge"]
    assert len(cell.tested) == 40 and cell.gains.shape == (1, 40)


def test_comparisons_say_what_those_of_compare_say():
    sets = {str(i): data_of(1.5, seed=i, n=80) for i in range(5)}
    sets = {name: replace(item, y=sets["0"].y) for name, item in sets.items()}
    for line in rank(sets, by="ridge").comparisons:
        assert line["p"] <= line["p_adjusted"] <= 1 and line["n_images"] == 80
        low, high = line["ci95"]
        assert low < line["difference"] < high and (low > 0) == line["distinguishable"]


def test_logits_without_a_fingerprint_are_nobody_s():
    a, b = (replace(data_of(seed=s), node="flatten", name=n, y=data_of().y) for s, n in ((0, "a"), (1, "b")))
    assert all(row["leep"] is None for row in rank([a, b, replace(logits_of(a, 1.0), name="a")]).rows)


def test_large_groups_cost_no_more_than_the_codes_are_wide():
    X, y = codes_of(n=120, d=5)
    targets = 2.0 * np.eye(3)[y] - 1.0
    groups = np.arange(120) // 40
    np.testing.assert_allclose(ridge_left_out(X, targets, groups), by_hand(X, y, groups), atol=1e-6)


def test_what_is_said_of_trust_is_what_was_measured():
    path = REPOSITORY / "benchmarks" / "results" / "evidence.json"
    figures = json.loads(path.read_text())["figures"] if path.is_file() else {}
    if "rank" not in figures or "trust" not in figures["rank"]:
        pytest.skip("the benchmark has not been run yet")
    assert figures["rank"]["trust"] == MEASURED


def test_cli(capsys, tmp_path):
    from featcache.cli import run

    data = data_of()
    for name, X in (("good", data.X), ("poor", np.random.default_rng(0).normal(size=(60, 3)).astype("f4"))):
        np.savez(tmp_path / f"{name}.npz", X=X, y=data.y, ids=data.ids)
    assert run(["rank", str(tmp_path / "poor.npz"), str(tmp_path / "good.npz"), "--json", "--quiet"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert "good" in out["results"][0]["codes"] and out["trust"]
    assert run(["rank", str(tmp_path / "good.npz"), "--by", "ridge"]) == 0
    assert "ridge" in capsys.readouterr().out
    assert run(["rank", str(tmp_path / "good.npz"), "--by", "luck"]) == 1
    assert run(["rank", str(tmp_path / "good.npz"), str(tmp_path / "good.npz")]) == 1
