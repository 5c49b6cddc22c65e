"""Heads: every name works from one row per class on, nothing leaks, files are safe, linear forms are exact."""

from __future__ import annotations

import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.datasets import load_digits
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.errors import HeadError, SplitError
from featcache.features import FeatureSet
from featcache.heads import (
    HEADS,
    AutoClassifier,
    CentroidClassifier,
    FittedHead,
    LDAClassifier,
    ShrunkScaler,
    fit,
    linear_form,
    make_head,
    normalised_form,
)
from featcache.heads.linear import network_form
from featcache.softmax import SoftmaxClassifier

X, Y = load_digits(return_X_y=True)
X, Y = X[:400].astype("float32"), np.char.add("digit ", Y[:400].astype(str))
IDS = np.asarray([f"{i:04d}.png" for i in range(400)])
SPLITS = np.asarray((["train"] * 5 + ["val", "test", "test"]) * 50)
SPEC = {"backbone": {"arch": "resnet18"}, "preprocess": {"crop": 224}}
LINEAR = [name for name, info in HEADS.items() if info.linear]


def digits(**fields):
    return FeatureSet(**{"X": X, "y": Y, "ids": IDS, "splits": SPLITS, "name": "digits", **fields})


@parametrize_with_checks([CentroidClassifier(), LDAClassifier(), ShrunkScaler(), AutoClassifier(cv=2)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", HEADS)
def test_a_head_is_an_ordinary_estimator(name):
    head = clone(make_head(name, random_state=3))
    assert not hasattr(head, "classes_") and (head.fit(X, Y).predict(X) == Y).mean() > 0.85


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("per_class", [1, 2, 3])
def test_few_rows_per_class(name, per_class):
    rows = np.concatenate([np.flatnonzero(c == Y)[:per_class] for c in np.unique(Y)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit(name, FeatureSet(X[rows], Y[rows]))
    assert (fitted.predict(X) == Y).mean() > 0.3
    assert bool(fitted.scores) == (per_class > 1)


@pytest.mark.parametrize("name", HEADS)
def test_named_splits_choose_on_val_and_score_test_once(name):
    fitted = fit(name, digits())
    test = SPLITS == "test"
    assert fitted.n_train == (~test).sum()
    assert set(fitted.scores) == {"val", "test"}
    assert fitted.scores["test"] == pytest.approx((fitted.predict(X[test]) == Y[test]).mean())


@pytest.mark.parametrize("name", HEADS)
def test_test_labels_choose_nothing(name):
    shuffled, test = Y.copy(), SPLITS == "test"
    shuffled[test] = np.random.default_rng(0).permutation(shuffled[test])
    one, two = fit(name, digits()), fit(name, digits(y=shuffled))
    assert (one.head, one.params) == (two.head, two.params)
    np.testing.assert_array_equal(one.predict(X), two.predict(X))


def test_row_order_does_not_matter():
    order = np.random.default_rng(1).permutation(400)
    one = fit("logreg", digits())
    two = fit("logreg", digits(X=X[order], y=Y[order], ids=IDS[order], splits=SPLITS[order]))
    assert one.params == two.params and one.training_digest == two.training_digest
    np.testing.assert_array_equal(one.predict_scores(X), two.predict_scores(X))


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("classes", [2, 10])
def test_linear_form_gives_the_same_scores(name, classes):
    keep = np.isin(Y, np.unique(Y)[:classes])
    fitted = fit(name, FeatureSet(X[keep], Y[keep]))
    W, b = linear_form(fitted.estimator)
    scores = X.astype(float) @ W.T + b
    assert W.shape == (classes, 64)
    np.testing.assert_array_equal(fitted.classes_[scores.argmax(1)], fitted.predict(X))
    if name in ("logreg", "softmax", "lda"):
        p = np.exp(scores - scores.max(1, keepdims=True))
        np.testing.assert_allclose(p / p.sum(1, keepdims=True), fitted.predict_proba(X), atol=1e-4)


def test_centroid_has_a_normalised_form():
    fitted = fit("centroid", digits())
    shift, scale, W, b = normalised_form(fitted.estimator)
    u = (X - shift) / scale
    scores = u / np.linalg.norm(u, axis=1, keepdims=True) @ W.T + b
    np.testing.assert_array_equal(fitted.classes_[scores.argmax(1)], fitted.predict(X))


@pytest.mark.parametrize("name", ["knn", "svm-rbf", "centroid"])
def test_no_linear_form(name):
    with pytest.raises(HeadError, match="linear|affine"):
        linear_form(fit(name, digits()).estimator)


@pytest.mark.parametrize("name", HEADS)
def test_saved_heads_predict_bit_equal(name, tmp_path):
    fitted = fit(name, digits(spec=SPEC, fingerprint="f" * 64, node="avgpool"))
    loaded = FittedHead.load(fitted.save(tmp_path / "head.fc"))
    np.testing.assert_array_equal(loaded.predict_scores(X), fitted.predict_scores(X))
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))
    for field in ("head", "params", "scores", "metric", "n_train", "spec", "node", "fingerprint", "notes"):
        assert getattr(loaded, field) == getattr(fitted, field)


def test_no_bit_may_flip(tmp_path):
    path = fit("centroid", digits()).save(tmp_path / "head.fc")
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    for position in [*range(12), *rng.integers(0, len(whole), 60)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        with pytest.raises(HeadError) as caught:
            FittedHead.load(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x80\x04pickle", b"\x02\0\0\0\0\0\0\0{}"])
def test_other_files_are_refused(content, tmp_path):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(HeadError, match="saved by featcache"):
        FittedHead.load(tmp_path / "x")
    with pytest.raises(HeadError, match="cannot be read"):
        FittedHead.load(tmp_path / "nothing")


def test_truncated_and_newer_files_are_refused(tmp_path, monkeypatch):
    fitted, path = fit("lda", digits()), tmp_path / "head.fc"
    fitted.save(path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(HeadError, match="damaged"):
        FittedHead.load(path)
    fitted.save(path)
    monkeypatch.setattr("featcache.heads.persistence.FORMAT_VERSION", 1)
    with pytest.raises(HeadError, match="install a newer featcache"):
        FittedHead.load(path)
    with pytest.raises(HeadError, match="exists already"):
        fitted.save(path, replace=False)


def test_foreign_estimators_work_but_are_not_written(tmp_path):
    forest = RandomForestClassifier(10, random_state=0)
    fitted = fit(forest, digits())
    assert fitted.head == "RandomForestClassifier" and not hasattr(forest, "classes_")
    with pytest.raises(HeadError, match="joblib or skops"):
        fitted.save(tmp_path / "head.fc")
    plain = fit(LogisticRegression(C=0.01, max_iter=500), digits())
    assert FittedHead.load(plain.save(tmp_path / "plain.fc")).estimator.C == 0.01


def test_codes_of_another_spec_are_refused():
    fitted = fit("lda", digits(spec=SPEC, fingerprint="a" * 64, node="avgpool"))
    other = {"backbone": {"arch": "resnet18"}, "preprocess": {"crop": 192}}
    with pytest.raises(HeadError, match="preprocess.crop: 224, not 192"):
        fitted.predict(digits(spec=other, fingerprint="b" * 64))
    with pytest.raises(HeadError, match="node: avgpool, not layer3"):
        fitted.predict(digits(spec=SPEC, fingerprint="a" * 64, node="layer3"))
    with pytest.raises(HeadError, match="64 features"):
        fitted.predict(X[:, :10])
    assert len(fitted.predict(X[:0])) == 0 and fitted.predict_scores(X[:0]).shape == (0, 10)


class WithoutTags:
    """What a wrapper of another framework often looks like."""

    def fit(self, X, y):
        return self

    def predict(self, X):
        return np.full(len(X), "digit 0")

    def get_params(self, deep=True):
        return {}


class WithoutClasses(ClassifierMixin, BaseEstimator):
    """Does what the contract asks for and no more: no classes_."""

    def fit(self, X, y):
        self.most_ = max(set(y.tolist()), key=y.tolist().count)
        return self

    def predict(self, X):
        return np.full(len(X), self.most_)


def test_a_foreign_estimator_needs_no_classes_attribute():
    fitted = fit(WithoutClasses(), digits(splits=SPLITS))
    assert set(fitted.scores) == {"val", "test"} and fitted.classes_.tolist() == sorted(set(Y))


@pytest.mark.parametrize(
    "options", [{"cv": "5"}, {"cv": 2.5}, {"cv": None}, {"seed": "a"}, {"seed": -1}, {"seed": None}]
)
def test_folds_and_seeds_are_whole_numbers(options):
    with pytest.raises(SplitError, match=r"cv|seed"):
        fit("lda", digits(), **options)


@pytest.mark.parametrize("name", [*HEADS])
def test_the_global_random_state_is_left_alone(name):
    np.random.seed(1)
    before = np.random.get_state()[1:3]
    fit(name, digits().select(np.arange(60)))
    after = np.random.get_state()[1:3]
    assert np.array_equal(before[0], after[0]) and before[1] == after[1]


@pytest.mark.parametrize("name", ["svm", "ridge", "centroid"])
def test_scores_of_two_classes_are_those_of_the_affine_form(name):
    rows = np.isin(Y, ["digit 0", "digit 1"])
    fitted = fit(name, digits().select(rows))
    scores = fitted.predict_scores(X[rows])
    decision = fitted.estimator.decision_function(X[rows])
    assert np.allclose(scores[:, 1] - scores[:, 0], decision)
    if name != "centroid":
        W, b = linear_form(fitted.estimator)
        assert np.allclose(scores, X[rows] @ W.T + b, atol=1e-5)


def nan_rows():
    damaged = X.copy()
    damaged[3, 2] = np.nan
    return digits(X=damaged)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: fit("logrog", digits()), "logreg"),
        (lambda: fit(LogisticRegression, digits()), "instance"),
        (lambda: fit(Ridge(), digits()), "classifier"),
        (lambda: fit("logreg", digits(), metric="auc"), "balanced_accuracy"),
        (lambda: fit("logreg", digits(y=["one"] * 400)), "only 'one'"),
        (lambda: fit("logreg", digits(y=None)), "no row has a label"),
        (lambda: fit("logreg", nan_rows()), "1 of 400 rows hold NaN"),
        (lambda: fit("logreg", digits(X=X.reshape(400, 8, 8))), "pooling"),
        (lambda: fit("logreg", digits(X=X[:, :0])), "shape \\(400, 0\\)"),
        (lambda: fit("logreg", X), "FeatureSet"),
        (lambda: fit("logreg", digits(), params={"C": "a"}), "'C': 'a'"),
        (lambda: fit("logreg", digits(), params=3), "mapping"),
        (lambda: fit("logreg", digits(), metric=["accuracy"]), "balanced_accuracy"),
        (lambda: fit(WithoutTags(), digits()), "ClassifierMixin|expected a classifier"),  # scikit-learn 1.6 says less
        (lambda: fit("auto", digits(), params={"C": 1.0}), "name a head"),
        (lambda: fit("auto", digits(), params={"max_seconds": 0}), "max_seconds above 0"),
        (lambda: make_head("lda", depth=3), "depth"),
        (lambda: fit("svm", digits()).predict_proba(X), "predict_scores"),
        (lambda: fit("svm", digits()).preprocess(None), "without a spec"),
    ],
)
def test_errors_are_one_clear_line(call, reason):
    with pytest.raises(HeadError, match=reason) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_given_settings_are_kept():
    assert fit("logreg", digits(), params={"C": 3.0}).params == {"C": 3.0}
    fitted = fit("ridge", digits(), params={"class_weight": "balanced"}, cv=2)
    assert fitted.params["class_weight"] == "balanced" and "alpha" in fitted.params


def test_groups_and_unlabelled_rows():
    labels = Y.copy()
    labels[:5] = ""
    groups = np.asarray([f"g{i // 8}" for i in range(400)])
    groups[:40] = ""
    fitted = fit("ridge", digits(y=labels, splits=None, groups=groups))
    assert fitted.n_train == 395 and "5 rows without a label" in fitted.notes[0]


def test_a_class_that_only_the_test_rows_have():
    labels = Y.copy()
    labels[np.flatnonzero(SPLITS == "test")[0]] = "new"
    fitted = fit("lda", digits(y=labels))
    assert "new" not in fitted.classes_ and any("not in training: new" in note for note in fitted.notes)


def test_auto_takes_the_documented_head_at_one_shot_and_json_is_clean(tmp_path):
    rows = np.concatenate([np.flatnonzero(c == Y)[:1] for c in np.unique(Y)])
    fitted = fit("auto", FeatureSet(X[rows], Y[rows]))
    assert fitted.head == "simpleshot"
    json.dumps(replace(fitted, estimator=None).params)


def test_auto_says_what_it_tried_and_weighs():
    auto = AutoClassifier(cv=3).fit(X, Y)
    assert [one["head"] for one in auto.tried_] == ["lda", "logreg on roots", "logreg"]
    assert sum(one["weight"] for one in auto.tried_) == pytest.approx(1.0) == sum(auto.best_params_.values())
    assert auto.best_score_ > 0.9 and auto.predict_proba(X[:5]).shape == (5, 10)
    rows = np.concatenate([np.flatnonzero(c == Y)[:5] for c in np.unique(Y)])
    assert AutoClassifier(cv=3).fit(X[rows], Y[rows]).tried_[0]["head"] == "simpleshot"


def test_auto_keeps_to_its_budget_whatever_the_machine_does():
    auto = AutoClassifier(cv=3, max_seconds=0.02).fit(X, Y)
    left = [one["head"] for one in auto.tried_ if "left_out" in one]
    assert left and auto.best_score_ > 0.8
    alone = AutoClassifier(cv=3, max_seconds=1e-9).fit(X, Y)
    assert alone.best_name_ == "lda" and len(alone.tried_) == 3


def test_auto_without_an_ensemble_becomes_a_layer():
    auto = AutoClassifier(cv=3, ensemble=False).fit(X, Y)
    assert auto.best_name_ == max(auto.tried_, key=lambda one: one["score"])["head"]
    form = network_form(auto)
    u = (X - form.shift) / form.scale
    u = np.sign(u) * np.abs(u) ** form.power
    u = u / np.linalg.norm(u, axis=1, keepdims=True) if form.unit else u
    np.testing.assert_array_equal(auto.classes_[(u @ form.weight.T + form.bias).argmax(1)], auto.predict(X))


def test_auto_takes_groups_into_its_folds():
    """Each row four times, labels that mean nothing: whoever lets copies straddle a fold scores far above chance."""
    rng = np.random.default_rng(0)
    rows, labels = np.repeat(rng.normal(size=(40, 16)), 4, axis=0), np.repeat(rng.integers(0, 2, 40), 4)
    torn = AutoClassifier(cv=4).fit(rows, labels)
    whole = AutoClassifier(cv=4).fit(rows, labels, np.repeat(range(40), 4))
    assert torn.best_score_ > whole.best_score_ + 0.15


@pytest.mark.parametrize("name", HEADS)
def test_the_same_rows_give_the_same_file(name, tmp_path):
    rows = np.concatenate([np.flatnonzero(c == Y)[:12] for c in np.unique(Y)])
    files = [fit(name, FeatureSet(X[rows], Y[rows])).save(tmp_path / f"{i}.head").read_bytes() for i in range(2)]
    assert files[0] == files[1]


def test_many_labels_keep_their_scores_in_the_affine_form():
    labels = np.stack([Y == "digit 1", Y == "digit 2"], axis=1).astype(int)
    head = SoftmaxClassifier().fit(X, labels)
    W, b = linear_form(head)
    np.testing.assert_allclose(X @ W.T + b, head.decision_function(X), atol=1e-4)
