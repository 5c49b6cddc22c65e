"""SoftmaxClassifier: a proper scikit-learn estimator with LogisticRegression's optimum."""

from __future__ import annotations

import subprocess
import sys
import warnings

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, LogisticRegressionCV
from sklearn.model_selection import GroupKFold, StratifiedKFold
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

from featcache.softmax import SoftmaxClassifier, SoftmaxClassifierCV

X, Y = load_digits(return_X_y=True)
X = (X / 16.0)[:600]
Y = Y[:600]


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny problems on a busy machine: threads that wait for each other would take most of the time."""
    with threadpool_limits(1):
        yield


@parametrize_with_checks([SoftmaxClassifier(), SoftmaxClassifier(standardize=True), SoftmaxClassifierCV(Cs=3, cv=3)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def reference(x, y, **settings):
    weight = settings.pop("sample_weight", None)
    model = LogisticRegression(solver="newton-cg", tol=1e-10, max_iter=2000, **settings)
    return model.fit(x, y, sample_weight=weight)


@pytest.mark.parametrize("C", [1e-3, 0.1, 10.0])
@pytest.mark.parametrize("rows", [600, 40])
def test_same_optimum_as_logistic_regression(C, rows):
    ours, theirs = (
        SoftmaxClassifier(C, tol=1e-9, max_iter=5000).fit(X[:rows], Y[:rows]),
        reference(X[:rows], Y[:rows], C=C),
    )
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=2e-5 * max(1.0, abs(theirs.coef_).max()))
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-4)


def test_two_classes_weights_and_class_weights():
    x, y = X[Y < 2], Y[Y < 2]
    weight = np.random.default_rng(0).random(len(y)) + 0.1
    for given in ({}, {"class_weight": {0: 3.0, 1: 0.5}}, {"class_weight": "balanced"}):
        ours = SoftmaxClassifier(0.5, tol=1e-9, **given).fit(x, y, sample_weight=weight)
        theirs = reference(x, y, C=0.5, sample_weight=weight, **given)
        assert ours.coef_.shape == (1, 64)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
        np.testing.assert_allclose(ours.intercept_, theirs.intercept_, atol=1e-5)


def test_a_large_common_offset_does_no_harm():
    plain, shifted = (SoftmaxClassifier(tol=1e-9).fit(X + s, Y) for s in (0.0, 1000.0))
    np.testing.assert_allclose(plain.coef_, shifted.coef_, atol=1e-4)


def test_says_when_it_stops_early():
    with pytest.warns(ConvergenceWarning, match="raise max_iter"):
        SoftmaxClassifier(1e4, max_iter=2).fit(X, Y)


@pytest.mark.parametrize("settings", [{"C": 0}, {"C": float("nan")}, {"max_iter": 0}, {"tol": -1.0}, {"C": "1"}])
def test_settings_out_of_range(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        SoftmaxClassifier(**settings).fit(X, Y)


def test_torch_is_not_imported_before_fit():
    code = "import sys, featcache.softmax, featcache.heads; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def objective(head, x, y, C, weight=None):
    log_p = head.predict_log_proba(x)[np.arange(len(y)), np.searchsorted(head.classes_, y)]
    return -C * (log_p * (1.0 if weight is None else weight)).sum() + 0.5 * np.square(head.coef_).sum()


@pytest.mark.parametrize("C", [1e-2, 1.0, 100.0])
@pytest.mark.parametrize("classes", [2, 10])
def test_objective_and_gap_are_what_they_say(C, classes):
    x, y = X[classes > Y].astype("float32"), Y[classes > Y]
    head = SoftmaxClassifier(C).fit(x, y)
    assert objective(head, x, y, C) == pytest.approx(head.objective_, rel=1e-4)
    best = objective(SoftmaxClassifier(C, tol=1e-12, max_iter=20_000).fit(x, y), x, y, C)
    assert -1e-6 * best < head.objective_ - best < 1e-5 * best
    assert head.objective_ - best <= head.gap_ + 1e-6 * best and head.gap_ < 1e-2 * best


def test_without_intercept_and_with_equal_scales():
    ours = SoftmaxClassifier(0.5, fit_intercept=False, tol=1e-10).fit(X, Y)
    theirs = reference(X, Y, C=0.5, fit_intercept=False)
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-5)
    assert not ours.intercept_.any()


def test_many_labels_at_once_are_as_many_logistic_regressions():
    labels = np.stack([Y % 2 == 0, Y > 6, Y == 3], axis=1).astype(int)
    head = SoftmaxClassifier(0.3, tol=1e-10).fit(X, labels)
    for column in range(3):
        alone = reference(X, labels[:, column], C=0.3)
        np.testing.assert_allclose(head.coef_[column], alone.coef_[0], atol=1e-5)
        np.testing.assert_allclose(head.predict_proba(X)[:, column], alone.predict_proba(X)[:, 1], atol=1e-5)
    assert head.predict(X).shape == (600, 3) and (head.predict(X) == labels).mean() > 0.95
    with pytest.raises(ValueError, match="other numbers|multiclass-multioutput"):
        SoftmaxClassifier().fit(X, labels * 2)
    with pytest.raises(ValueError, match="multi-label"):
        SoftmaxClassifier(class_weight="balanced").fit(X, labels)


def test_smoothed_labels_have_softer_answers_and_the_smoothed_optimum():
    sharp, soft = (SoftmaxClassifier(10.0, label_smoothing=s).fit(X, Y) for s in (0.0, 0.2))
    assert soft.predict_proba(X).max(axis=1).mean() < sharp.predict_proba(X).max(axis=1).mean() - 0.1
    # A smoothed target is the same as each row standing there once per class, with shares as weights.
    rows, labels = np.repeat(X, 10, axis=0), np.tile(np.arange(10), 600)
    shares = np.full((600, 10), 0.02)
    shares[np.arange(600), Y] += 0.8
    spelt_out = SoftmaxClassifier(10.0, tol=1e-9, max_iter=5000).fit(rows, labels, shares.ravel())
    exact = SoftmaxClassifier(10.0, label_smoothing=0.2, tol=1e-9, max_iter=5000).fit(X, Y)
    np.testing.assert_allclose(exact.predict_proba(X), spelt_out.predict_proba(X), atol=1e-4)
    two = Y < 2
    assert SoftmaxClassifier(10.0, label_smoothing=0.2).fit(X[two], Y[two]).predict_proba(X[two]).max() < 0.95


@pytest.mark.parametrize("standardize", [False, True])
def test_codes_on_disk_give_the_same_head(standardize, tmp_path):
    mapped = np.memmap(tmp_path / "codes", dtype="float16", mode="w+", shape=X.shape)
    mapped[:] = X
    here, there = (
        SoftmaxClassifier(0.5, standardize=standardize, tol=1e-9).fit_blocks(x, Y)
        for x in (np.asarray(mapped, dtype="float64"), mapped)
    )
    np.testing.assert_allclose(here.coef_, there.coef_, atol=1e-4)
    with pytest.raises(ValueError, match="a label for each row"):
        SoftmaxClassifier().fit_blocks(mapped, Y[:-1])


def test_thousands_of_classes():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(3000, 24)).astype("float32")
    y = np.repeat(np.arange(3000), 2)
    x = centres[y] + 0.1 * rng.normal(size=(6000, 24)).astype("float32")
    head = SoftmaxClassifier(1.0, tol=1e-3).fit(x, y)
    assert head.coef_.shape == (3000, 24) and (head.predict(x) == y).mean() > 0.9


@pytest.mark.parametrize("classes", [2, 10])
def test_the_whole_path_scores_as_logistic_regression_cv(classes):
    x, y = X[classes > Y], Y[classes > Y]
    Cs, folds = [1e-3, 1e-2, 0.1, 1.0], list(StratifiedKFold(3, shuffle=True, random_state=0).split(x, y))
    ours = SoftmaxClassifierCV(Cs, cv=folds, scoring="neg_log_loss").fit(x, y)
    theirs = LogisticRegressionCV(
        Cs=Cs, cv=folds, scoring="neg_log_loss", solver="newton-cg", tol=1e-8, max_iter=1000,
        use_legacy_attributes=False,
    ).fit(x, y)  # fmt: skip
    np.testing.assert_allclose(ours.scores_, np.asarray(theirs.scores_).reshape(3, 4), rtol=1e-3)
    assert ours.C_ == theirs.C_
    np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-2 * abs(theirs.coef_).max())


def test_patience_groups_and_weights_in_the_path():
    groups = np.arange(600) // 6
    head = SoftmaxClassifierCV(np.logspace(-4, 6, 11), cv=GroupKFold(3), patience=1).fit(X, Y, groups=groups)
    tried = head.path_iter_ > 0
    assert not tried.all() and np.isnan(head.scores_[:, ~tried]).all() and tried[: tried.sum()].all()
    weight = (Y != 9).astype(float)
    lighter = SoftmaxClassifierCV([0.1], cv=3).fit(X, Y, sample_weight=weight)
    assert not (lighter.predict(X) == 9).any()
    with pytest.raises(ValueError, match="scoring"):
        SoftmaxClassifierCV(scoring="auc").fit(X, Y)
    with pytest.raises(ValueError, match="values of C"):
        SoftmaxClassifierCV(Cs=[0.1, -1.0]).fit(X, Y)


def test_huge_codes_with_hardly_any_penalty():
    rng = np.random.default_rng(0)
    x = rng.normal(1e4, 1e4, size=(400, 512)).astype("float32")
    y = rng.integers(0, 5, 400)
    head = SoftmaxClassifier(1.0).fit(x, y)
    best = SoftmaxClassifier(1.0, tol=1e-12, max_iter=20_000).fit(x, y)
    assert head.objective_ - best.objective_ <= head.gap_ < 2e-3 * best.objective_


def test_weights_that_are_none_are_said():
    for weights in (dict.fromkeys(range(10), 0.0), {**dict.fromkeys(range(10), 1.0), 3: -1.0}):
        for kind in (SoftmaxClassifier, SoftmaxClassifierCV):
            with pytest.raises(ValueError, match="class weights above 0"):
                kind(class_weight=weights).fit(X, Y)
    kept = SoftmaxClassifier(class_weight="balanced").fit(X, Y, sample_weight=(Y != 4).astype(float))
    assert 4 not in kept.classes_ and len(kept.classes_) == 9
    with pytest.raises(ValueError, match="sample_weight of 0 or more"):
        SoftmaxClassifierCV().fit(X, Y, sample_weight=-np.ones(600))
    for wrong in ({"patience": -1}, {"Cs": -1}, {"Cs": 0}, {"max_iter": 0.5}):
        with pytest.raises(ValueError, match="expected"):
            SoftmaxClassifierCV(**wrong).fit(X, Y)
    assert len(SoftmaxClassifierCV(np.int64(3), cv=3).fit(X, Y).Cs_) == 3


def test_standardising_inside_is_standardising_in_front():
    from sklearn.pipeline import make_pipeline

    from featcache.heads import ShrunkScaler

    inside = SoftmaxClassifier(0.1, standardize=True, class_weight="balanced", tol=1e-9).fit(X[:200], Y[:200])
    front = make_pipeline(ShrunkScaler(), SoftmaxClassifier(0.1, class_weight="balanced", tol=1e-9))
    np.testing.assert_allclose(inside.predict_proba(X), front.fit(X[:200], Y[:200]).predict_proba(X), atol=1e-5)


def _blobs(n=15, d=95):
    rng, y = np.random.default_rng(0), np.arange(n) % 3
    rows = rng.normal(size=(n, d))
    rows[np.arange(n), y] += 3
    return rows, y


@pytest.mark.parametrize("which", ["column", "time", "row", "offset"])
def test_what_a_wide_spread_hides_is_in_the_certificate(which):
    """Fewer rows than features, one of which dwarfs the others: none may be lost, or the bound must say so."""
    rows, y = _blobs()
    if which == "column":
        rows[:, -1] *= 1e7
    elif which == "time":
        rows[:, 0] = 1e6 * np.arange(len(rows))
    elif which == "row":
        rows[0] *= 1e8
    else:
        rows += 1e6
    fit_intercept = which in ("column", "time")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ours = SoftmaxClassifier(fit_intercept=fit_intercept).fit(rows, y)
        best = LogisticRegression(solver="newton-cg", tol=1e-10, max_iter=5000, fit_intercept=fit_intercept)
        best.fit(rows, y)
    scores = rows @ best.coef_.T + best.intercept_
    least = -np.log(softmax(scores, axis=1)[np.arange(len(y)), y]).sum() + 0.5 * np.square(best.coef_).sum()
    missing = ours.objective_ - least
    assert missing <= ours.gap_ * 1.001 + 1e-9
    said = any("standardise" in str(warning.message) for warning in caught)
    assert missing <= 1e-5 * ours.objective_ or said
    assert ours.score(rows, y) == 1.0


def test_what_leaves_the_range_is_refused_in_one_line():
    rows, y = _blobs()
    for scale in (1e25, 1e200):
        for some in (rows, rows[:, :20], np.tile(rows, (6, 1))):
            with warnings.catch_warnings(), pytest.raises(ValueError, match="standardise"):
                warnings.simplefilter("error")
                SoftmaxClassifier().fit(some * scale, np.arange(len(some)) % 3)
    for weight in (1e-320, 1e308):
        with pytest.raises(ValueError, match="sample_weight"):
            SoftmaxClassifier().fit(rows, y, sample_weight=np.full(len(y), weight))
