"""Preprocessing of codes and its search: right by brute force, affine where it says so, never merely lucky."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.errors import HeadError
from featcache.features import FeatureSet
from featcache.heads import (
    CodeScaler,
    FittedHead,
    SearchedHead,
    ShrunkScaler,
    ShrunkWhitener,
    SignedPower,
    fit,
    linear_form,
    make_head,
)
from featcache.heads.estimators import ledoit_wolf_share
from featcache.heads.linear import network_form

RNG = np.random.default_rng(0)
X, Y = load_digits(return_X_y=True)
X, Y = X[:200].astype("float32"), np.char.add("digit ", Y[:200].astype(str))
WIDE = RNG.normal(size=(12, 40)) @ np.diag(np.linspace(3, 0.1, 40)) + 5.0


@parametrize_with_checks(
    [
        SignedPower(),
        ShrunkWhitener(n_components=0.9),
        CodeScaler(),
        CodeScaler(0.5, "l2", "whiten"),
        CodeScaler(0.5, "l2", "centre"),
        CodeScaler(scale="none"),
        SearchedHead("ridge", cv=2),
        SearchedHead("logreg", cv=2, max_candidates=2),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1, 2])
def test_signed_power(alpha):
    x = RNG.normal(size=(5, 7))
    np.testing.assert_allclose(SignedPower(alpha).fit_transform(x), np.sign(x) * np.abs(x) ** alpha)
    assert SignedPower(alpha).fit_transform(x.astype("float32")).dtype == np.float32


@pytest.mark.parametrize("alpha", [0, -1.0, np.inf, np.nan, "half", True])
def test_a_power_that_is_none(alpha):
    with pytest.raises(ValueError, match="alpha above 0"):
        SignedPower(alpha).fit(X)


@pytest.mark.parametrize("rows", [WIDE, WIDE.T])
@pytest.mark.parametrize("shrinkage", ["auto", 0.3, 1.0])
def test_whitening_is_the_shrunken_covariance(rows, shrinkage):
    """Inner products of whitened rows are those under the inverse of the shrunken covariance, by brute force."""
    white = ShrunkWhitener(shrinkage=shrinkage).fit(rows)
    centred = rows - rows.mean(axis=0)
    share = ledoit_wolf_share(centred) if shrinkage == "auto" else shrinkage
    S = centred.T @ centred / len(rows)
    shrunk = (1 - share) * S + share * np.trace(S) / len(S) * np.eye(len(S))
    Z = white.transform(rows)
    np.testing.assert_allclose(Z @ Z.T, centred @ np.linalg.solve(shrunk, centred.T), atol=1e-9)
    assert white.shrinkage_ == pytest.approx(share)


def test_whitening_equals_pca_and_signs_are_fixed():
    rows = RNG.normal(size=(60, 6)) * np.arange(1, 7)
    theirs = PCA(3, whiten=True).fit_transform(rows) * np.sqrt(60 / 59)
    ours = ShrunkWhitener(3, shrinkage=0.0).fit(rows)
    Z = ours.transform(rows)
    np.testing.assert_allclose(np.abs(Z), np.abs(theirs), atol=1e-9)
    largest = np.abs(ours.components_).argmax(axis=1)
    assert (ours.components_[range(3), largest] > 0).all()
    order = RNG.permutation(60)
    np.testing.assert_allclose(ShrunkWhitener(3, shrinkage=0.0).fit(rows[order]).transform(rows), Z, atol=1e-9)


@pytest.mark.parametrize(
    ("wanted", "kept"), [(None, 11), (4, 4), (100, 11), (0.999999, 11), (1e-6, 1), (np.int64(2), 2)]
)
def test_components_kept(wanted, kept):
    assert ShrunkWhitener(wanted).fit_transform(WIDE).shape == (12, kept)


@pytest.mark.parametrize("settings", [{"n_components": 0}, {"n_components": 1.5}, {"n_components": True}])
def test_whitening_refuses(settings):
    with pytest.raises(ValueError, match="n_components"):
        ShrunkWhitener(**settings).fit(WIDE)
    for shrinkage in (-0.1, 1.1, "some", None, True):
        with pytest.raises(ValueError, match="shrinkage"):
            ShrunkWhitener(shrinkage=shrinkage).fit(WIDE)


@pytest.mark.parametrize("scale", ["none", "centre", "standard", "whiten"])
@pytest.mark.parametrize("rows", [np.ones((4, 3)), np.zeros((4, 3)), np.ones((1, 3)), np.full((3, 3), 1e200)])
def test_rows_without_variance(scale, rows):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for norm in ("none", "l2"):
            assert np.isfinite(CodeScaler(0.5, norm, scale).fit_transform(rows)).all()


def test_the_default_is_the_scaler_of_the_heads_and_steps_are_in_order():
    np.testing.assert_array_equal(CodeScaler().fit_transform(X), ShrunkScaler().fit_transform(X))
    chain = [SignedPower(0.5), Normalizer(), ShrunkWhitener(5)]
    expected = X
    for step in chain:
        expected = step.fit_transform(expected)
    np.testing.assert_array_equal(CodeScaler(0.5, "l2", "whiten", n_components=5).fit_transform(X), expected)
    centred = CodeScaler(scale="centre").fit_transform(X.astype(float))
    np.testing.assert_allclose(centred, (X - X.mean(0)) / np.sqrt(X.astype(float).var(0).mean()), atol=1e-5)
    with pytest.raises(ValueError, match="none, l2"):
        CodeScaler(norm="l1").fit(X)
    with pytest.raises(ValueError, match="none, centre"):
        CodeScaler(scale="zca").fit(X)


def test_in_a_grid_search():
    pipe = Pipeline([("codes", CodeScaler()), ("head", RidgeClassifier())])
    grid = GridSearchCV(pipe, {"codes__power": [0.5, 1.0], "codes__scale": ["whiten", "standard"]}, cv=2).fit(X, Y)
    assert grid.best_score_ > 0.8


# -- the search ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ridge", "logreg", "svm", "softmax", "svm-rbf", "lda", "knn", "centroid"])
def test_every_head_can_be_searched_and_saved(name, tmp_path):
    head = SearchedHead(name, max_candidates=2, cv=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit(head, FeatureSet(X, Y))
    assert (fitted.predict(X) == Y).mean() > 0.85
    loaded = FittedHead.load(fitted.save(tmp_path / "x.head"))
    np.testing.assert_array_equal(loaded.predict(X), fitted.predict(X))
    assert loaded.estimator.tried_ == fitted.estimator.tried_


def test_a_space_of_the_plain_head_is_the_plain_head():
    plain = {"power": 1.0, "norm": "none", "scale": "standard"}
    searched = SearchedHead("ridge", start=plain, space={}, cv=5).fit(X, Y)
    assert len(searched.tried_) == 1 and searched.best_params_.items() >= plain.items()
    head = make_head("ridge", alpha=searched.best_params_["alpha"]).fit(X, Y)
    np.testing.assert_allclose(searched.decision_function(X), head.decision_function(X), atol=1e-5)


def test_what_was_tried_is_bounded_told_and_repeatable():
    head = SearchedHead("ridge", max_candidates=5)
    one, two = clone(head).fit(X, Y), clone(head).fit(X, Y)
    assert 1 < len(one.tried_) <= 5
    assert set(one.tried_[0]) == {"power", "norm", "scale", "alpha", "score", "gain", "error"}
    keys = [tuple(c[p] for p in ("power", "norm", "scale")) for c in one.tried_]
    assert len(set(keys)) == len(keys)
    for a, b in zip(one.tried_, two.tried_, strict=True):
        assert a == b
    np.testing.assert_array_equal(one.predict(X), two.predict(X))


def test_the_guard_keeps_the_start_on_noise_and_lets_a_clear_gain_through():
    noise, labels = RNG.normal(size=(40, 30)), np.arange(40) % 2
    kept = sum(
        SearchedHead("ridge", random_state=s).fit(noise, RNG.permutation(labels)).best_params_["power"] == 0.5
        for s in range(8)
    )
    assert kept >= 6
    # Classes that differ in direction only, lengths all over: a norm helps, and the search finds it.
    y = np.repeat([0, 1, 2], 40)
    rows = (np.eye(20)[y] * 2.0 + RNG.normal(size=(120, 20))) * np.exp(RNG.normal(size=(120, 1)) * 2)
    plain = {"power": 1.0, "norm": "none"}
    found = SearchedHead("ridge", start=plain, space={"norm": ("l2",)}).fit(rows, y)
    assert found.best_params_["norm"] == "l2" and found.best_score_ > found.start_score_


def test_leave_one_out_is_not_used_behind_whitening():
    """Fitted on all rows, whitening would make left-out scores far too low: the gain must not show that."""
    found = SearchedHead("ridge", space={"scale": ("whiten",)}, guard=0).fit(X[:60], Y[:60])
    assert min(c["score"] for c in found.tried_) > 0.7


def test_groups_stay_together():
    """Each row stands there twice: without groups, 1 nearest neighbour is perfect on labels that mean nothing."""
    rows, labels = RNG.normal(size=(60, 8)), RNG.integers(0, 2, 60)
    twice, y, groups = np.vstack([rows, rows]), np.tile(labels, 2), np.tile(np.arange(60), 2)
    head = SearchedHead("knn", max_candidates=1)
    assert clone(head).fit(twice, y).best_score_ > 0.9
    assert clone(head).fit(twice, y, groups=groups).best_score_ < 0.75


def test_one_row_per_class_takes_the_start():
    found = SearchedHead("logreg").fit(X[:10], np.arange(10))
    assert found.tried_ == [] and found.best_score_ is None and found.best_params_["power"] == 0.5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "auto"}, "head with steps"),
        ({"head": "nothing"}, "expected one of"),
        ({"space": {"colour": [1]}}, "space to name"),
        ({"space": {"power": [0]}}, "power above 0"),
        ({"start": {"norm": "l3"}}, "norm of"),
        ({"max_candidates": 0}, "max_candidates"),
        ({"guard": -1}, "guard"),
        ({"metric": "auc"}, "metric"),
    ],
)
def test_settings_that_are_none(settings, message):
    with pytest.raises(ValueError, match=message):
        SearchedHead(**settings).fit(X, Y)


# -- as layers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["none", "centre", "standard", "whiten"])
@pytest.mark.parametrize("norm", ["none", "l2"])
@pytest.mark.parametrize("power", [1.0, 0.5])
def test_network_form(power, norm, scale):
    pipe = Pipeline([("codes", CodeScaler(power, norm, scale)), ("head", LogisticRegression(max_iter=300))]).fit(X, Y)
    form = network_form(pipe)
    u = (X - form.shift) / form.scale
    u = np.sign(u) * np.abs(u) ** form.power
    u = u / np.linalg.norm(u, axis=1, keepdims=True) if form.unit else u
    np.testing.assert_allclose(u @ form.weight.T + form.bias, pipe.decision_function(X), atol=1e-3)
    if power == 1.0 and norm == "none":
        W, b = linear_form(pipe)
        np.testing.assert_allclose(X @ W.T + b, pipe.decision_function(X), atol=1e-3)
    else:
        with pytest.raises(HeadError, match="affine"):
            linear_form(pipe)
