"""fit with several labels per image, and numbers: equal to scikit-learn, nothing leaks, odd columns are refused."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_tiny_backbone, write_images
from sklearn.datasets import load_diabetes
from sklearn.ensemble import RandomForestRegressor
from sklearn.linear_model import LinearRegression, LogisticRegression, Ridge
from sklearn.metrics import average_precision_score, f1_score, mean_absolute_error, r2_score, root_mean_squared_error
from sklearn.model_selection import LeaveOneOut, cross_val_predict
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline

import featcache as fc
from featcache import handoff
from featcache.cli import run
from featcache.cli.show import predictions
from featcache.errors import HeadError
from featcache.features import FeatureSet
from featcache.heads import FittedHead, ShrunkScaler, fit, join_views, linear_form
from featcache.heads.dealing import deal_folds
from featcache.heads.label_sets import as_indicators, join_labels
from featcache.heads.metrics import LABEL_METRICS, NUMBER_METRICS
from featcache.heads.tasks import Labels
from featcache.solvers.blocks import ChosenRows

N, D = 300, 12
_MADE = np.random.default_rng(0)
X = _MADE.normal(size=(N, D)).astype("float32")
MEMBER = X[:, :4] + 0.7 * _MADE.normal(size=(N, 4)) > np.asarray([0.0, 0.5, 1.0, 1.6])
NAMES = np.asarray(["cat", "dog", "rare one", "Äpfel"])
Y = join_labels(MEMBER, NAMES, ";")
IDS = np.asarray([f"{i:04d}.png" for i in range(N)])
SPLITS = np.asarray((["train"] * 5 + ["val"] + ["test"] * 2) * 38)[:N]
TEST, VAL, TRAIN = (part == SPLITS for part in ("test", "val", "train"))
PRICE = 1e6 + X[:, 0] * 3.0 + X[:, 1] + _MADE.normal(size=N)


@pytest.fixture
def rng():
    return np.random.default_rng(1)


def labels(**fields):
    return FeatureSet(**{"X": X, "y": Y, "ids": IDS, **fields})


def numbers(**fields):
    return FeatureSet(**{"X": X, "ids": IDS, "columns": {"price": PRICE}, **fields})


# --------------------------------------------------------------------------------------------------- several labels


def test_texts_become_labels_and_come_back():
    names, member = as_indicators(np.asarray(["b; a", "a;a;;", ";", " ö ", "a;b"]), ";")
    assert names.tolist() == ["a", "b", "ö"]
    assert member.astype(int).tolist() == [[1, 1, 0], [1, 0, 0], [0, 0, 0], [0, 0, 1], [1, 1, 0]]
    assert join_labels(member, names, ";").tolist() == ["a;b", "a", ";", "ö", "a;b"]
    again = as_indicators(join_labels(member, names, "; "), "; ")
    np.testing.assert_array_equal(again[1], member)


def test_metrics_are_those_of_scikit_learn(rng):
    scores = np.round(rng.normal(size=(N, 4)) + MEMBER, 1)  # with ties
    predicted = scores > 0
    found = {name: measure(MEMBER, scores) for name, measure in LABEL_METRICS.items()}
    assert found["map"] == pytest.approx(average_precision_score(MEMBER, scores, average="macro"))
    assert found["subset_accuracy"] == pytest.approx((predicted == MEMBER).all(axis=1).mean())
    for average in ("micro", "macro"):
        assert found[f"{average}_f1"] == pytest.approx(f1_score(MEMBER, predicted, average=average))
    absent = np.column_stack([MEMBER, np.zeros(N, dtype=bool)])
    assert LABEL_METRICS["map"](absent, np.column_stack([scores, -np.ones(N)])) == pytest.approx(found["map"])
    never = np.column_stack([MEMBER, MEMBER[:, 0]]), np.column_stack([scores, -np.ones(N)])  # a label never predicted
    only = absent, np.column_stack([scores, np.ones(N)])  # and one that is always, and never there
    for true, scored in (never, only):
        for average in ("micro", "macro"):
            reference = f1_score(true, scored > 0, average=average, zero_division=0)
            assert LABEL_METRICS[f"{average}_f1"](true, scored) == pytest.approx(reference) != found[f"{average}_f1"]
    for average in ("micro", "macro"):  # neither there nor predicted: no label at all
        kept = LABEL_METRICS[f"{average}_f1"](absent, np.column_stack([scores, -np.ones(N)]))
        assert kept == pytest.approx(found[f"{average}_f1"])
        assert LABEL_METRICS[f"{average}_f1"](absent[:, 4:], -np.ones((N, 1))) == 0.0
    other = PRICE + rng.normal(size=N)
    for name, reference in (("r2", r2_score), ("mae", mean_absolute_error), ("rmse", root_mean_squared_error)):
        assert NUMBER_METRICS[name](PRICE, other) == pytest.approx(reference(PRICE, other), rel=1e-9)
    for same in (1.0, 0.1):  # the mean of three times 0.1 is not 0.1
        true = np.full(3, same)
        assert NUMBER_METRICS["r2"](true, true) == 1.0 and NUMBER_METRICS["r2"](true, np.zeros(3)) == 0.0


@pytest.mark.parametrize("head", ["logreg", "softmax"])
def test_logistic_regression_is_one_against_the_rest(head):
    fitted = fit(head, labels(splits=SPLITS), separator=";")
    rest = OneVsRestClassifier(LogisticRegression(C=fitted.params["C"], tol=1e-8, max_iter=1000))
    reference = make_pipeline(ShrunkScaler(), rest).fit(X[~TEST], MEMBER[~TEST].astype(int))
    np.testing.assert_allclose(fitted.predict_scores(X), reference.predict_proba(X), atol=5e-4)
    assert fitted.classes_.tolist() == NAMES.tolist() and fitted.metric == "map"
    assert fitted.scores["test"] == pytest.approx(average_precision_score(MEMBER[TEST], fitted.predict_proba(X[TEST])))
    assert set(fitted.scores) == {"val", "test"} and fitted.scores["test"] > 0.6
    predicted = as_indicators(fitted.predict(X), ";")[1]
    np.testing.assert_array_equal(predicted, fitted.predict_scores(X)[:, : predicted.shape[1]] > 0.5)


def test_the_best_c_on_val_rows_is_chosen():
    fitted = fit("logreg", labels(splits=SPLITS), separator=";")
    scaled = ShrunkScaler().fit(X[~TEST].astype("f8"))
    found = {}
    for C in 10.0 ** np.arange(-5, 3):
        rest = OneVsRestClassifier(LogisticRegression(C=C, tol=1e-8, max_iter=1000))
        rest.fit(scaled.transform(X[TRAIN]), MEMBER[TRAIN].astype(int))
        found[C] = average_precision_score(MEMBER[VAL], rest.decision_function(scaled.transform(X[VAL])))
    assert fitted.scores["val"] == pytest.approx(max(found.values()), abs=1e-3)
    assert found[min(found, key=lambda C: abs(C - fitted.params["C"]))] == pytest.approx(max(found.values()), abs=1e-3)


@pytest.mark.parametrize("rows", [60, 10])  # more rows than features, and fewer
def test_ridge_is_left_out_exactly(rows):
    fitted = fit("ridge", labels(X=X[:rows], y=Y[:rows], ids=IDS[:rows]), separator=";")
    member = MEMBER[:rows][:, np.isin(NAMES, fitted.classes_)]
    aims, scaler = np.where(member, 1.0, -1.0), ShrunkScaler().fit(X[:rows].astype("f8"))
    scaled = scaler.transform(X[:rows].astype("f8"))
    found = {
        alpha: LABEL_METRICS["map"](member, cross_val_predict(Ridge(alpha), scaled, aims, cv=LeaveOneOut()))
        for alpha in 10.0 ** (np.arange(12, -3, -1) / 2)
    }
    assert fitted.scores["cv"] == pytest.approx(max(found.values()), abs=1e-6)
    reference = Ridge(fitted.params["alpha"]).fit(scaled, aims)
    np.testing.assert_allclose(fitted.predict_scores(X), reference.predict(scaler.transform(X.astype("f8"))), atol=1e-5)
    joined = join_labels(reference.predict(scaler.transform(X.astype("f8"))) > 0, fitted.classes_, ";")
    np.testing.assert_array_equal(fitted.predict(X), joined)


@pytest.mark.parametrize("head", ["logreg", "ridge"])
@pytest.mark.parametrize("metric", LABEL_METRICS)
def test_test_labels_choose_nothing_and_row_order_does_not_matter(head, metric, rng):
    spoilt = Y.copy()
    spoilt[TEST] = rng.permutation(spoilt[TEST])
    groups = np.asarray([f"g{i // 3}" if i % 5 else "" for i in range(N)])
    one, two = (fit(head, labels(y=y, splits=SPLITS), separator=";", metric=metric) for y in (Y, spoilt))
    assert one.params == two.params and one.scores["val"] == two.scores["val"] and one.metric == metric
    np.testing.assert_array_equal(one.predict_scores(X), two.predict_scores(X))
    order = rng.permutation(N)
    one = fit(head, labels(groups=groups), separator=";", metric=metric)
    two = fit(head, FeatureSet(X[order], Y[order], IDS[order], groups[order]), separator=";", metric=metric)
    assert (one.params, one.scores) == (two.params, two.scores)
    np.testing.assert_array_equal(one.predict_scores(X), two.predict_scores(X))


def test_folds_share_rare_labels_and_keep_groups_whole():
    rare = np.column_stack([MEMBER, np.arange(N) < 10])
    folds, notes = deal_folds(rare, D, cv=5, groups=None, seed=0)
    assert [rare[held, -1].sum() for _, held in folds] == [2] * 5 and notes == ()
    assert max(len(held) for _, held in folds) - min(len(held) for _, held in folds) < 20
    assert sorted(np.concatenate([held for _, held in folds]).tolist()) == list(range(N))
    groups = np.repeat(np.arange(60), 5).astype(str)
    for train, held in deal_folds(rare, D, cv=5, groups=groups, seed=0)[0]:
        assert not set(groups[train]) & set(groups[held]) and len(held) > 30
    assert deal_folds(rare[:3], D, cv=5, groups=np.zeros(3), seed=0)[0] is None
    few, notes = deal_folds(rare[:3], D, cv=5, groups=None, seed=0)
    assert len(few) == 3 and "3 folds instead of 5" in notes[0]


def test_a_large_set_has_one_validation_part(monkeypatch):
    monkeypatch.setattr("featcache.heads.dealing._ONE_PART_ABOVE", 100)
    rare = np.column_stack([MEMBER, np.arange(N) < 10, np.arange(N) == 20])
    folds, notes = deal_folds(rare, D, cv=5, groups=None, seed=0)
    ((train, held),) = folds
    assert sorted(np.concatenate([train, held]).tolist()) == list(range(N)) and abs(len(held) - N / 5) < 10
    assert rare[held, 4].sum() == 2 and not rare[held, 5].any()  # a label of one row has to train
    assert notes == ("settings chosen on one validation part of 20 %: the set is large",)
    np.testing.assert_allclose(rare[held].mean(axis=0), rare.mean(axis=0), atol=0.03)
    groups = np.repeat(np.arange(60), 5).astype(str)
    ((train, held),) = deal_folds(rare, D, cv=5, groups=groups, seed=0)[0]
    assert not set(groups[train]) & set(groups[held]) and abs(len(held) - N / 5) <= 10
    ((train, held),) = deal_folds(rare[:, :0], D, cv=3, groups=None, seed=0)[0]
    assert len(held) == N / 3
    fitted = fit("logreg", labels(), separator=";")
    assert notes[0] in fitted.notes and 0.6 < fitted.scores["cv"] < 1.0


@pytest.mark.parametrize("head", ["logreg", "ridge"])
def test_columns_that_do_not_vary(head):
    """A label on all rows, one on a single row (so that a fold's training side lacks it), one in the test rows only."""
    member = np.column_stack([MEMBER[:, :2], np.ones(N, dtype=bool), np.arange(N) == 0, TEST & (np.arange(N) % 2 == 0)])
    y = join_labels(member, np.asarray(["a", "b", "always", "once", "test only"]), ";")
    with np.errstate(all="raise", under="ignore"):
        fitted = fit(head, labels(y=y, splits=SPLITS), separator=";")
        fit(head, labels(y=y), separator=";")
    assert fitted.classes_.tolist() == ["a", "always", "b", "once"]
    assert any("1 labels of the test rows are not in training: test only" in note for note in fitted.notes)
    predicted = fitted.predict(X)
    assert all("always" in text.split(";") for text in predicted)
    scores = fitted.predict_scores(X)
    assert np.isfinite(scores).all()
    if head == "logreg":
        np.testing.assert_allclose(scores[:, 1], ((~TEST).sum() + 0.5) / ((~TEST).sum() + 1))
    truth = member[TEST][:, [0, 2, 1, 3, 4]]  # in the order of the labels
    ranked = [average_precision_score(truth[:, j], scores[TEST, j]) for j in range(3)]  # no test row has "once"
    assert fitted.scores["test"] == pytest.approx(np.mean([*ranked, truth[:, 4].mean()]))  # unranked: its share
    for metric in ("subset_accuracy", "macro_f1"):
        fitted = fit(head, labels(y=y, splits=SPLITS), separator=";", metric=metric)
        said = fitted.predict_scores(X[TEST]) > (0.5 if head == "logreg" else 0.0)
        said = np.column_stack([said, np.zeros(TEST.sum(), dtype=bool)])
        there = (truth | said).any(axis=0)
        expected = {
            "subset_accuracy": (truth == said).all(axis=1).mean(),
            "macro_f1": f1_score(truth[:, there], said[:, there], average="macro", zero_division=0),
        }
        assert 0.0 < fitted.scores["test"] == pytest.approx(expected[metric])


@pytest.mark.parametrize("head", ["logreg", "ridge"])
def test_one_label_or_none(head, tmp_path):
    y = np.where(MEMBER[:, 0], "cat; cat", ";")
    fitted = fit(head, labels(y=y), separator=";")
    assert fitted.classes_.tolist() == ["cat"] and set(fitted.predict(X)) == {"cat", ";"}
    scores = fitted.predict_scores(X)
    assert scores.shape == (N, 1) and fitted.predict_scores(X[:0]).shape == (0, 1) and len(fitted.predict(X[:0])) == 0
    if head == "logreg":
        reference = make_pipeline(ShrunkScaler(), LogisticRegression(C=fitted.params["C"], tol=1e-8)).fit(X, y)
        np.testing.assert_allclose(scores[:, 0], reference.predict_proba(X)[:, 1], atol=1e-4)
    W, b = linear_form(fitted.estimator)
    assert W.shape == (1, D)
    np.testing.assert_array_equal((X @ W.T + b)[:, 0] > 0, fitted.predict(X) == "cat")
    loaded = FittedHead.load(fitted.save(tmp_path / "h"))
    np.testing.assert_array_equal(loaded.predict_scores(X), scores)


def test_what_is_left_out_and_what_counts_as_none():
    y = Y.copy()
    y[:4], y[4], y[5] = "", " ; ", "  "
    task = Labels(labels(y=y), ";")
    assert len(task.train) == N - 5 and task.rows.notes == ("5 rows without a label left out",)
    assert not task.member[0].any()
    fitted = fit("ridge", labels(y=np.where(MEMBER[:, 0], "a", "b")), separator=";")
    assert any("no label holds the separator" in note for note in fitted.notes)
    assert not any("separator" in note for note in fit("ridge", labels(), separator=";").notes)


@pytest.mark.parametrize("rows", [2, 3])
@pytest.mark.parametrize("head", ["logreg", "ridge"])
def test_a_handful_of_rows(head, rows):
    fitted = fit(head, FeatureSet(X[:rows], ["a;b", ";", "b"][:rows]), separator=";")
    assert fitted.predict(X[:rows]).shape == (rows,) and np.isfinite(fitted.predict_scores(X)).all()
    alone = fit(head, FeatureSet(X[:rows], ["a;b", ";", "b"][:rows], groups=["g"] * rows), separator=";")
    assert alone.scores == {} and "fixed settings" in alone.notes[0]


def test_parts_without_any_label_are_noted():
    member = MEMBER.copy()
    member[TEST | VAL] = False
    fitted = fit("logreg", labels(y=join_labels(member, NAMES, ";"), splits=SPLITS), separator=";")
    said = "row has a label: there is nothing to rank, and map is 0"
    assert {f"no test {said}", f"no validation {said}"} <= set(fitted.notes)
    assert fitted.scores == {"val": 0.0, "test": 0.0}
    fitted = fit("logreg", labels(y=join_labels(member, NAMES, ";"), splits=SPLITS), separator=";", metric="micro_f1")
    assert not any("rank" in note for note in fitted.notes)


def test_a_single_long_text_costs_its_own_length():
    names, member = (
        np.asarray(["a", "x" * 1_000_000]),
        np.asarray([[True, True]] + [[True, False], [False, False]] * 30),
    )
    tracemalloc.start()
    texts = join_labels(member, names, ";")
    found, again = as_indicators(texts, ";")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tolist() == names.tolist() and peak < 60e6  # 244 MB where each row has the room of the longest
    np.testing.assert_array_equal(again, member)
    assert join_labels(again, found, ";").tolist() == texts.tolist()


@pytest.mark.parametrize("kind", [{"separator": ";"}, {"target": "price"}])
def test_one_training_row_beside_val_rows(kind):
    splits = np.asarray(["train"] + ["val"] * 8 + ["test"] * 3)
    y = ["a", "b", "a;b", ";"] * 3
    for head in ("ridge", "logreg")[: 1 + ("separator" in kind)]:
        with np.errstate(all="raise", under="ignore"):
            for codes in (X[:12], np.zeros((12, 3)), np.tile(X[:1], (12, 1)), X[:12].astype("f8") * 1e9 + 1e12):
                fitted = fit(head, FeatureSet(codes, y, splits=splits, columns={"price": PRICE[:12]}), **kind)
                assert np.isfinite(list(fitted.scores.values())).all() and len(fitted.predict(codes)) == 12


# ---------------------------------------------------------------------------------------------------------- numbers


@pytest.mark.parametrize("rows", [60, 10])
@pytest.mark.parametrize("metric", NUMBER_METRICS)
def test_a_number_is_ridge_with_alpha_left_out_exactly(rows, metric):
    data = numbers(X=X[:rows], ids=IDS[:rows], columns={"price": PRICE[:rows]})
    fitted = fit("ridge", data, target="price", metric=metric)
    scaler = ShrunkScaler().fit(X[:rows].astype("f8"))
    scaled, sign = scaler.transform(X[:rows].astype("f8")), 1 if metric == "r2" else -1
    found = {
        alpha: NUMBER_METRICS[metric](
            PRICE[:rows], cross_val_predict(Ridge(alpha), scaled, PRICE[:rows], cv=LeaveOneOut())
        )
        for alpha in 10.0 ** (np.arange(12, -3, -1) / 2)
    }
    best = max(found, key=lambda alpha: sign * found[alpha])
    assert fitted.params["alpha"] == pytest.approx(best) and fitted.scores["cv"] == pytest.approx(found[best], rel=1e-6)
    reference = Ridge(best).fit(scaled, PRICE[:rows]).predict(scaler.transform(X.astype("f8")))
    np.testing.assert_allclose(fitted.predict(X), reference, rtol=1e-9)
    assert fitted.predict(X).dtype == np.float64 and fitted.predict(X[:0]).shape == (0,) and len(fitted.classes_) == 0


def test_val_groups_and_test_rows(rng):
    fitted = fit("ridge", numbers(splits=SPLITS), target="price")
    assert set(fitted.scores) == {"val", "test"} and fitted.n_train == (~TEST).sum()
    assert fitted.scores["test"] == pytest.approx(r2_score(PRICE[TEST], fitted.predict(X[TEST])))
    spoilt = PRICE.copy()
    spoilt[TEST] = rng.permutation(spoilt[TEST])
    again = fit("ridge", numbers(splits=SPLITS, columns={"price": spoilt}), target="price")
    assert again.scores["val"] == fitted.scores["val"]
    np.testing.assert_array_equal(again.predict(X), fitted.predict(X))
    twins = np.concatenate([X, X])  # a row's twin would give its number away
    groups = np.tile(np.arange(N), 2).astype(str)
    noise = np.tile(rng.normal(size=N), 2)
    wide = np.hstack([twins, np.tile(rng.normal(size=(N, 600)), (2, 1))]).astype("f4")
    alone = fit("ridge", FeatureSet(wide, columns={"price": noise}), target="price")
    whole = fit("ridge", FeatureSet(wide, groups=groups, columns={"price": noise}), target="price")
    assert alone.scores["cv"] > 0.5 > 0.1 > whole.scores["cv"]


def test_labels_that_are_numbers_and_values_that_are_missing():
    data = load_diabetes()
    y = data.target.astype(str)
    y[:3] = ""
    for name in ("label", "y"):
        fitted = fit("ridge", FeatureSet(data.data, y), target=name)
        assert fitted.n_train == len(y) - 3 and fitted.scores["cv"] > 0.45
        assert "3 rows without a value in" in fitted.notes[0]
    nan = PRICE.copy()
    nan[:2] = np.nan
    assert fit("ridge", numbers(columns={"price": nan}), target="price").n_train == N - 2
    mixed = np.asarray([None, " 1.5 ", 2, 3.0, "", "4e0"] * 50, dtype=object)
    assert fit("ridge", numbers(columns={"price": mixed}), target="price").n_train == 200
    own = {"label": PRICE}  # a column of that name comes before the labels
    assert fit("ridge", labels(columns=own), target="label").predict(X).mean() == pytest.approx(1e6, abs=2)


def test_a_regressor_is_used_as_it_is(tmp_path):
    forest = RandomForestRegressor(10, random_state=0)
    fitted = fit(forest, numbers(splits=SPLITS), target="price", params={"max_depth": 3})
    assert fitted.head == "RandomForestRegressor" and not hasattr(forest, "estimators_")
    assert fitted.params == {"max_depth": 3} and set(fitted.scores) == {"val", "test"}
    with pytest.raises(HeadError, match="joblib or skops"):
        fitted.save(tmp_path / "h")
    assert set(fit(LinearRegression(), numbers(), target="price").scores) == {"cv"}


# ----------------------------------------------------------------------------------------------------------- views


def viewed(rng, **fields):
    """A set and two views of it that are far from it: to score them would be seen."""
    sets = [labels(X=(X + shift * rng.normal(size=X.shape)).astype("f4"), **fields) for shift in (0.0, 1.0, 2.0)]
    return join_views(sets, rows=True)


def held_out_by_hand(data, folds, make):
    """What heads fitted on the images of a fold and their views predict of the other plain rows, fold by fold."""
    image = np.tile(np.arange(N), 3)
    found = []
    for kept, held in folds:
        predict = make(np.flatnonzero(np.isin(image, kept)))
        found.append(predict(data.X[held]))  # the first N rows are the plain ones
    return np.concatenate(found), np.concatenate([held for _, held in folds])


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("head", ["logreg", "ridge"])
def test_views_train_with_their_image_and_are_never_scored(head, grouped, rng):
    groups = np.arange(N).astype(str)
    groups[:60] = np.repeat(np.arange(12), 5).astype(str)
    data = viewed(rng, groups=groups if grouped else None)
    params = {"C": 0.1} if head == "logreg" else {"alpha": 10.0}
    fitted = fit(head, data, separator=";", params=params)
    folds = deal_folds(MEMBER, D, cv=5, groups=groups if grouped else None, seed=0)[0]
    member, whole = np.tile(MEMBER, (3, 1)), ShrunkScaler().fit(data.X.astype("f8"))

    def logreg(rows):
        rest = OneVsRestClassifier(LogisticRegression(C=0.1, tol=1e-8, max_iter=1000))
        rest.fit(whole.transform(data.X[rows]), member[rows].astype(int))
        return lambda Z: rest.decision_function(whole.transform(Z))

    def ridge(rows):
        made = make_pipeline(ShrunkScaler(), Ridge(10.0)).fit(data.X[rows].astype("f8"), np.where(member[rows], 1, -1))
        return lambda Z: made.predict(Z.astype("f8"))

    scores, held = held_out_by_hand(data, folds, {"logreg": logreg, "ridge": ridge}[head])
    expected = average_precision_score(MEMBER[held], scores)
    assert fitted.scores == {"cv": pytest.approx(expected, abs=1e-3 if head == "logreg" else 1e-9)}
    assert fitted.n_train == 3 * N and "600 augmented views" in fitted.notes[0]
    order = rng.permutation(3 * N)
    assert fit(head, data.select(order), separator=";", params=params).scores == fitted.scores


@pytest.mark.parametrize("head", ["ridge", LinearRegression()])
def test_views_and_a_number(head, rng):
    near = PRICE - 1e6  # scikit-learn fits float32 codes to float32 numbers
    data = viewed(rng, columns={"price": near})
    fitted = fit(head, data, target="price", params={"alpha": 10.0} if head == "ridge" else None)
    folds, price = deal_folds(np.zeros((N, 0), dtype=bool), D, cv=5, groups=None, seed=0)[0], np.tile(near, 3)
    by_hand = make_pipeline(ShrunkScaler(), Ridge(10.0)) if head == "ridge" else LinearRegression()
    codes = data.X.astype("f8") if head == "ridge" else data.X
    values, held = held_out_by_hand(data, folds, lambda rows: by_hand.fit(codes[rows], price[rows]).predict)
    assert fitted.scores["cv"] == pytest.approx(r2_score(near[held], values), abs=1e-5)


@pytest.mark.parametrize("head", ["logreg", "ridge"])
def test_views_of_val_and_test_rows_are_left_out(head, rng):
    data = viewed(rng, splits=SPLITS)
    fitted = fit(head, data, separator=";")
    assert set(fitted.scores) == {"val", "test"} and fitted.n_train == 3 * TRAIN.sum() + VAL.sum()
    truth = MEMBER[TEST][:, np.isin(NAMES, fitted.classes_)]
    assert fitted.scores["test"] == pytest.approx(average_precision_score(truth, fitted.predict_scores(X[TEST])))
    alone = fit(head, viewed(rng).select(np.arange(N, 2 * N)), separator=";")  # the first view without its plain row
    assert alone.n_train == N and 0.4 < alone.scores["cv"] < 1.0


# ------------------------------------------------------------------------------------------------- refusals, both


@pytest.mark.parametrize(
    ("data", "head", "options", "reason"),
    [
        (labels(), "svm", {"separator": ";"}, "expected one of logreg, softmax, ridge, got 'svm'"),
        (labels(), "auto", {"separator": ";"}, "logreg, softmax, ridge"),
        (labels(), LogisticRegression(), {"separator": ";"}, "got LogisticRegression"),
        (labels(), "logreg", {"separator": ""}, "separator: expected text"),
        (labels(), "logreg", {"separator": 3}, "separator: expected text"),
        (labels(), "logreg", {"separator": ";", "target": "y"}, "got both"),
        (labels(), "logreg", {"separator": ";", "metric": "accuracy"}, "map, subset_accuracy"),
        (labels(), "logreg", {"separator": ";", "calibrate": True}, "one label per image"),
        (labels(), "ridge", {"separator": ";", "reject": 0.1}, "one label per image"),
        (labels(), "ridge", {"separator": ";", "params": {"C": 1.0}}, "alpha"),
        (labels(), "logreg", {"separator": ";", "params": {"C": -1.0}}, "above 0"),
        (labels(), "logreg", {"separator": ";", "cv": 1}, "cv"),
        (labels(y=None), "logreg", {"separator": ";"}, "no row has a label"),
        (labels(y=["b; a", "a;b;a"] * 150), "logreg", {"separator": ";"}, "'a;b' for all"),
        (labels(y=[";"] * N), "logreg", {"separator": ";"}, "';' for all"),
        (X, "logreg", {"separator": ";"}, "FeatureSet"),
        (labels(X=np.where(X > 2.5, np.nan, X)), "ridge", {"separator": ";"}, "NaN"),
        (numbers(), "logreg", {"target": "price"}, "'ridge' or a scikit-learn regressor object, got 'logreg'"),
        (numbers(), LogisticRegression(), {"target": "price"}, "got LogisticRegression"),
        (numbers(), Ridge, {"target": "price"}, "regressor object"),
        (numbers(), "ridge", {"target": "prize"}, "got 'prize'; it has 'price'"),
        (labels(), "ridge", {"target": ""}, "it has 'label'"),
        (FeatureSet(X), "ridge", {"target": "y"}, "it has none"),
        (numbers(), "ridge", {"target": "price", "metric": "map"}, "r2, mae, rmse"),
        (numbers(columns={"price": ["1.0"] * 299 + ["3,5"]}), "ridge", {"target": "price"}, "row '0299.png'.*'3,5'"),
        (numbers(columns={"price": [1.0] * 299 + [np.inf]}), "ridge", {"target": "price"}, "row '0299.png'.*'inf'"),
        (numbers(columns={"price": ["1.0"] * 299 + ["2024_05"]}), "ridge", {"target": "price"}, "0299.png'.*'2024_05'"),
        (labels(y=["1", "two"] * 150), "ridge", {"target": "y"}, "finite number in 'y', got 'two'"),
        (numbers(columns={"price": ["nan", "1"] * 150}), "ridge", {"target": "price"}, "row '0000.png'.*'nan'"),
        (numbers(columns={"price": np.full(N, 3.0)}), "ridge", {"target": "price"}, "got only 3"),
        (numbers(columns={"price": np.full(N, np.nan)}), "ridge", {"target": "price"}, "no row has a value"),
        (
            numbers(columns={"price": [1.0] * 299 + [-1e154]}),
            "ridge",
            {"target": "price"},
            "'0299.png'.*1e.100.*'price'",
        ),
        (
            numbers(columns={"price": ["1"] * 299 + ["1e308"]}),
            RandomForestRegressor(),
            {"target": "price"},
            "'0299.png'",
        ),
        (numbers(columns={"price": np.arange(N) % 7 * 1e-300}), "ridge", {"target": "price"}, "'price'.*rescale"),
        (numbers(), "ridge", {"target": "price", "params": {"alpha": True}}, "above 0"),
        (numbers(), Ridge(), {"target": "price", "params": {"alfa": 1}}, "alfa"),
    ],
)
def test_errors_are_one_clear_line(data, head, options, reason):
    with pytest.raises((HeadError, fc.FeatcacheError), match=reason) as caught:
        fit(head, data, **options)
    assert "\n" not in str(caught.value)


def test_what_the_heads_do_not_have():
    many, number = fit("ridge", labels(), separator=";"), fit("ridge", numbers(), target="price")
    for call, word in (
        (many.predict_proba, "logreg"),
        (number.predict_proba, "number"),
        (number.predict_scores, "number"),
        (number.predict_labels, "no labels"),
        (number.accept, "predicts a number, use predict"),
        (many.accept, "has several, use predict_scores"),
    ):
        with pytest.raises(HeadError, match=word):
            call(X)
    assert "4 labels" in repr(many) and "number 'price'" in repr(number)


# ------------------------------------------------------------------------------------------ files, disk, hand-off


@pytest.mark.parametrize("kind", [{"separator": ";"}, {"target": "price"}])
@pytest.mark.parametrize("novelty", [None, "mahalanobis", "knn"])
def test_files_hold_all_of_it(kind, novelty, tmp_path):
    data = labels(columns={"price": PRICE}, splits=SPLITS)
    for head in ("ridge", "logreg")[: 1 + ("separator" in kind)]:
        fitted = fit(head, data, novelty=novelty, **kind)
        loaded = FittedHead.load(fitted.save(tmp_path / "h"))
        np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))
        for name in ("head", "params", "scores", "metric", "notes", "separator", "target", "training_digest"):
            assert getattr(loaded, name) == getattr(fitted, name)
        if novelty:
            np.testing.assert_array_equal(loaded.novelty(X), fitted.novelty(X))
            assert (fitted.novelty(X) > 0).mean() < 0.15
            assert novelty == "knn" or (fitted.novelty(X + 100) > 0).all()
    assert b'"format": 3' in _text(tmp_path / "h")
    fit("ridge", labels(y=np.where(MEMBER[:, 0], "a", "b"))).save(tmp_path / "plain")
    assert b'"format": 2' in _text(tmp_path / "plain")  # which a featcache without the new fields reads


def _text(path):
    return path.read_bytes().replace(b'\\"', b'"')


@pytest.mark.parametrize("head", ["logreg", "ridge"])
def test_codes_on_disk(head, tmp_path, monkeypatch):
    codes = np.memmap(tmp_path / "codes", dtype="float16", mode="w+", shape=X.shape)
    codes[:] = X
    codes.flush()
    mapped = np.memmap(tmp_path / "codes", dtype="float16", mode="r", shape=X.shape)
    monkeypatch.setattr("featcache.heads.mapped.SAMPLE_ROWS", 150)
    monkeypatch.setattr("featcache.heads.labelled._ROWS_AT_ONCE", 7)
    data = labels(X=mapped, splits=np.where(TEST, "test", "train"), columns={"price": PRICE})
    near = replace(data, X=np.asarray(mapped, dtype="f4"))
    params = {"C": 0.1} if head == "logreg" else {"alpha": 10.0}
    for kind in ({"separator": ";"}, {"target": "price"})[: 2 if head == "ridge" else 1]:
        fitted, here = fit(head, data, params=params, **kind), fit(head, near, params=params, **kind)
        assert "150 of" in fitted.notes[-1] and fitted.scores["test"] == pytest.approx(here.scores["test"], abs=1e-3)
        np.testing.assert_allclose(*(np.asarray(f.estimator.coef_) for f in (fitted, here)), atol=1e-3)
        assert fitted.save(tmp_path / "h").stat().st_size < 20_000
        assert fit(head, data, **kind).scores["cv"] > 0.5
        with pytest.raises(HeadError, match="in memory"):
            fit(head, data, novelty="knn", **kind)
    with pytest.raises(HeadError, match="estimator of your own"):
        fit(Ridge(), data, target="price")


def as_map(folder, codes):
    there = np.memmap(folder / "map", dtype="float16", mode="w+", shape=codes.shape)
    there[:] = codes
    there.flush()
    return np.memmap(folder / "map", dtype="float16", mode="r", shape=codes.shape)


@pytest.mark.parametrize(
    ("head", "kind"),
    [("logreg", {"separator": ";"}), ("ridge", {"separator": ";"}), ("ridge", {"target": "price"})],
)
def test_groups_val_rows_and_missing_rows_on_disk(head, kind, tmp_path):
    mapped = as_map(tmp_path, X)
    price, y, groups = PRICE.copy(), Y.copy(), (np.arange(N) // 3).astype(str)
    both = {"columns": {"price": price}, "y": y}
    disk, near = labels(X=mapped, **both), labels(X=np.asarray(mapped, dtype="f4"), **both)
    one, two = (fit(head, replace(data, groups=groups), **kind) for data in (disk, near))  # all rows are the sample
    assert one.params == two.params and one.scores["cv"] == pytest.approx(two.scores["cv"], abs=1e-9)
    assert one.scores["cv"] != fit(head, disk, **kind).scores["cv"]
    one = fit(head, replace(disk, splits=SPLITS), **kind)
    two = fit(head, replace(near, splits=np.where(VAL, "train", SPLITS)), **kind)
    assert "settings chosen on 226 of 226 rows, val rows among them" in one.notes[-1]
    assert set(one.scores) == {"cv", "test"} and one.scores == pytest.approx(two.scores, abs=1e-3)
    y[:7], price[:7] = "", np.nan
    one, two = (fit(head, replace(data, y=y, columns={"price": price}), **kind) for data in (disk, near))
    assert "7 rows without" in one.notes[0] and "293 of 293 rows" in one.notes[-1]  # still read from disk
    assert one.scores == pytest.approx(two.scores, abs=1e-6)
    np.testing.assert_allclose(one.estimator.coef_, two.estimator.coef_, atol=1e-3)


def test_rows_that_are_left_out_do_not_bring_a_map_into_memory(tmp_path):
    y = Y.copy()
    y[::50] = ""
    rows = Labels(labels(X=as_map(tmp_path, X), y=y), ";").rows
    assert isinstance(rows.X, ChosenRows) and isinstance(rows.X.X, np.memmap)
    np.testing.assert_array_equal(rows.X[np.arange(20, 60)], X[y != ""][20:60].astype("float16"))


def test_alpha_is_chosen_on_folds_where_leave_one_out_would_take_too_much_memory(monkeypatch):
    exact = fit("ridge", labels(), separator=";")
    monkeypatch.setattr("featcache.heads.numbers._NUMBERS_AT_ONCE", N * 4 * 15)
    assert fit("ridge", labels(), separator=";").scores == exact.scores
    monkeypatch.setattr("featcache.heads.numbers._NUMBERS_AT_ONCE", N * 4 * 15 - 1)
    folded = fit("ridge", labels(), separator=";")
    assert any("alpha chosen on folds" in note for note in folded.notes) and exact.scores != folded.scores
    assert folded.scores["cv"] == pytest.approx(exact.scores["cv"], abs=0.03)
    assert not any("alpha chosen" in note for note in fit("ridge", labels(splits=SPLITS), separator=";").notes)


@pytest.mark.parametrize("wrong", [{"separator": 3}, {"target": ["a"]}, {"target": "price"}])
def test_files_with_odd_kinds_are_refused(wrong, tmp_path):
    fitted = fit("ridge", labels(), separator=";")
    replace(fitted, **wrong).save(tmp_path / "h")
    with pytest.raises(HeadError, match="expected separator or target as text, and not both") as caught:
        FittedHead.load(tmp_path / "h")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "wrong", "reason"),
    [
        ({"separator": ";"}, {"classes_": np.asarray(["a", "b"])}, "score for each of 2 labels, got shape"),
        ({"separator": ";"}, {"classes_": np.asarray(["a", "b", "c", "a"])}, "different texts"),
        ({"separator": ";"}, {"n_features": D + 1}, "rows of 13 features"),
        ({"separator": ";"}, {"n_features": 10**15}, "n_features above 0 and no more than"),
        ({"separator": ";"}, {"separator": "", "target": "price"}, "no classes beside a target"),
        ({"separator": ";"}, {"separator": "", "target": "x", "classes_": np.zeros(0, "U1")}, "one number per row"),
        ({"target": "price"}, {"classes_": np.asarray(["a"])}, "no classes beside a target"),
        ({"target": "price"}, {"target": "", "separator": ";"}, "score for each of 0 labels"),
        ({"target": "price"}, {"estimator": ShrunkScaler().fit(X)}, "takes rows of 12 features, got AttributeError"),
    ],
)
def test_files_whose_estimator_does_not_fit_are_refused(kind, wrong, reason, tmp_path):
    fitted = fit("ridge", labels(columns={"price": PRICE}), **kind)
    replace(fitted, **wrong).save(tmp_path / "h")
    with pytest.raises(HeadError, match=reason) as caught:
        FittedHead.load(tmp_path / "h")
    assert "\n" not in str(caught.value)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("scale", [1e-98, 1e98])
def test_numbers_near_the_ends_of_the_range_are_learned(scale):
    plain = fit("ridge", numbers(columns={"price": X[:, 0]}, splits=SPLITS), target="price")
    scaled = fit("ridge", numbers(columns={"price": X[:, 0].astype(float) * scale}, splits=SPLITS), target="price")
    assert scaled.scores == pytest.approx(plain.scores)
    np.testing.assert_allclose(scaled.predict(X) / scale, plain.predict(X), rtol=1e-6, atol=1e-9)


@pytest.fixture
def pictures(tmp_path):
    folder = write_images(tmp_path / "images", 8)
    backbone = make_tiny_backbone()
    store = fc.extract(folder, backbone, tmp_path / "s", progress=False)
    data = store.load() if hasattr(store, "load") else fc.FeatureStore.open(tmp_path / "s").load()
    n = len(data)
    texts = [("cat;" if i % 2 else ";") + ("bright" if i % 3 == 0 else "") for i in range(n)]
    price = data.X[:, 0].astype(float) * 10 + np.arange(n) / 100
    return folder, backbone, replace(data, y=texts, columns={"price": price})


def test_images_are_predicted_and_become_a_module(pictures):
    import torch
    from PIL import Image

    folder, backbone, data = pictures
    fitted = fit("logreg", data, separator=";", novelty="knn")
    rows = fc.predict(fitted, folder, backbone=backbone, progress=False)
    assert [row["label"] for row in rows] == fitted.predict(data).tolist()
    assert {"id", "label", "labels", "scores", "novelty"} == set(rows[0])
    for row in rows:
        assert row["labels"] == [name for name, p in row["scores"].items() if p > 0.5]
    number = fit("ridge", data, target="price")
    found = fc.predict(number, folder, backbone=backbone, progress=False)
    np.testing.assert_allclose([row["value"] for row in found], number.predict(data), rtol=1e-4, atol=1e-5)
    assert {"id", "value"} == set(found[0]) and json.dumps(found + rows)
    with Image.open(folder / data.ids[0]) as image:
        pixels = fitted.preprocess(image)[None]
    with torch.no_grad():
        module = fc.to_module(fitted, backbone=backbone)
        assert module.classes == ["bright", "cat"]
        np.testing.assert_allclose(module(pixels).sigmoid()[0], fitted.predict_scores(data)[0], atol=1e-4)
        module = fc.to_module(number, backbone=backbone)
        assert module.classes == ["price"] and module(pixels).shape == (1, 1)
        np.testing.assert_allclose(module(pixels)[0, 0], number.predict(data)[0], rtol=1e-3, atol=1e-4)
    for scale in (1e60, 1e-60):
        extreme = fit(
            "ridge", replace(data, columns={"price": data.columns["price"].astype(float) * scale}), target="price"
        )
        with pytest.raises(HeadError, match="range of float32"):
            fc.to_module(extreme, backbone=backbone)
    with pytest.raises(HeadError, match="linear"):
        fc.to_module(fit(RandomForestRegressor(3), data, target="price"), backbone=backbone)


def test_lines_on_a_terminal(capsys):
    row = {"id": "a.jpg", "label": "cat;dog", "labels": ["cat", "dog"], "scores": {"cat": 0.9, "cow": 0.1, "dog": 0.6}}
    none = {**row, "label": ";", "labels": []}
    novel = {"novelty": {"score": 1.0, "novel": True}}
    predictions([row, none, {"id": "b.jpg", "value": 1234.5678}, {"id": "c.jpg", "value": -1e-7, **novel}])
    assert capsys.readouterr().out.splitlines() == [
        "a.jpg\tcat;dog\t0.9000,0.6000",
        "a.jpg\t;",
        "b.jpg\t1234.57",
        "c.jpg\t-1e-07\tnovel",
    ]


def test_the_command_line(capsys, tmp_path):
    folder = write_images(tmp_path / "images", 6)
    images = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.*"))
    lines = [f"{name},{'cat; big' if i % 2 else ';'},{i * 1.5}" for i, name in enumerate(images)]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,price", *lines]) + "\n")
    store = tmp_path / "s"
    words = ["extract", str(tmp_path / "list.csv"), "-o", str(store), "--root", str(folder), "-q"]
    assert run([*words, "--backbone", "resnet18", "--weights", "random", "--init-seed", "0", "--resize", "64"]) == 0
    capsys.readouterr()

    def answer(*words):
        assert run([str(word) for word in words]) == 0
        return capsys.readouterr().out

    many, number = tmp_path / "many", tmp_path / "number"
    said = json.loads(answer("fit", store, "--separator", ";", "-o", many, "--json"))
    assert (said["head"], said["metric"], said["classes"]) == ("logreg", "map", ["big", "cat"])
    assert (said["separator"], said["target"]) == (";", None) and set(said["scores"]) == {"cv"}
    said = json.loads(answer("fit", store, "--target", "price", "-o", number, "--json"))
    assert (said["head"], said["metric"], said["classes"], said["target"]) == ("ridge", "r2", [], "price")
    assert "cv mae" in answer("fit", store, "--target", "price", "--metric", "mae", "-o", number)
    image = folder / images[0]
    data = fc.FeatureStore.open(store).load()
    row = data.select(data.row_ids == images[0])
    assert len(row) == 1
    label = answer("predict", many, image).rstrip("\n").split("\t")
    assert label[1] == FittedHead.load(many).predict(row)[0]
    value = float(answer("predict", number, image).split("\t")[1])
    assert value == pytest.approx(FittedHead.load(number).predict(row)[0], abs=0.05)
    rows = json.loads(answer("predict", number, image, "--json"))
    assert set(rows[0]) == {"id", "value"} and isinstance(rows[0]["value"], float)
    assert set(json.loads(answer("predict", many, image, "--json"))[0]) == {"id", "label", "labels", "scores"}
    for words, reason in (
        (["--target", "prize"], "'label', 'price'"),
        (["--separator", ";", "--head", "svm"], "logreg, softmax, ridge"),
        (["--separator", ";", "--reject", "0.1"], "one label per image"),
        (["--target", "label"], "expected a finite number"),
    ):
        assert run(["fit", str(store), "-o", str(tmp_path / "h"), *words]) == 1
        assert reason in capsys.readouterr().err


def test_codes_of_a_feature_set_are_predicted():
    fitted = fit("ridge", labels(), separator=";")
    rows = handoff.predict(fitted, labels())
    assert [row["label"] for row in rows] == fitted.predict(X).tolist()
    member = fitted.predict_scores(X) > 0
    assert [row["labels"] for row in rows] == [NAMES[some].tolist() for some in member]
    assert fitted.predict_labels(X[:5]) == [row["labels"] for row in rows[:5]] and fitted.predict_labels(X[:0]) == []
    y = join_labels(MEMBER[:, :2], np.asarray(["a-", "b"]), " -- ")
    odd = fit("ridge", labels(y=y), separator="--")
    rows, member = handoff.predict(odd, labels()), odd.predict_scores(X) > 0
    assert [row["labels"] for row in rows] == [np.asarray(["a-", "b"])[some].tolist() for some in member]
    assert "a---b" in {row["label"] for row in rows}  # which cannot be parted again
    assert fit("ridge", labels(y=np.where(MEMBER[:, 0], "a", "b"))).predict_labels(X[:2])[0] in (["a"], ["b"])
