"""Heads from sums: chunks, merges and blocks give the refit; equal to scikit-learn; nothing odd gets through."""

from __future__ import annotations

import copy
import pickle
import warnings

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.linear_model import Ridge, RidgeClassifier, RidgeClassifierCV
from sklearn.metrics import r2_score
from sklearn.model_selection import GridSearchCV, LeaveOneOut, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.errors import HeadError
from featcache.features import FeatureSet
from featcache.heads import (
    CentroidClassifier,
    FittedHead,
    IncrementalRidge,
    IncrementalRidgeClassifier,
    LDAClassifier,
    ShrunkScaler,
    SimpleShotClassifier,
    fit,
    fit_blocks,
    linear_form,
    normalised_form,
)

DIGITS, LABELS = load_digits(return_X_y=True)
X, Y = DIGITS[:300].astype("float32"), np.char.add("digit ", LABELS[:300].astype(str))
ORDER = np.argsort(Y, kind="stable")  # by class: the first chunk knows one or two classes
GRID = (100.0, 1.0)

CLASSIFIERS = [
    CentroidClassifier(),
    SimpleShotClassifier(),
    LDAClassifier(),
    LDAClassifier("gda", priors="uniform"),
    LDAClassifier(0.3, standardize=True),
    IncrementalRidgeClassifier(alpha=10.0),
    IncrementalRidgeClassifier(alphas=GRID, select="gcv", standardize=True),
    IncrementalRidgeClassifier(alpha=10.0, targets="balanced", fit_intercept=False),
]
REGRESSORS = [
    IncrementalRidge(alpha=10.0),
    IncrementalRidge(alphas=GRID, select="gcv", scoring="r2", standardize=True),
]
CHECKED = [
    SimpleShotClassifier(),
    IncrementalRidgeClassifier(alpha=1.0),
    IncrementalRidgeClassifier(alphas=GRID, select="gcv", standardize=True),
    IncrementalRidge(alpha=1.0),
]
NO_REPETITION = {"check_sample_weight_equivalence_on_dense_data": "leaving out a row of weight 2 leaves out both"}


@parametrize_with_checks(
    CHECKED, expected_failed_checks=lambda e: NO_REPETITION if getattr(e, "select", "") == "gcv" else {}
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def name_of(estimator):
    return repr(estimator).replace(" ", "").replace("\n", "")[:60]


def scores_of(head, x):
    return head.decision_function(x) if hasattr(head, "decision_function") else head.predict(x)


def assert_same(one, two, x, tol=1e-8):
    for name in ("coef_", "intercept_"):
        a, b = np.asarray(getattr(one, name)), np.asarray(getattr(two, name))
        assert np.abs(a - b).max() <= tol * np.abs(a).max(), name
    a, b = scores_of(one, x), scores_of(two, x)
    assert np.abs(a - b).max() <= tol * np.abs(a).max()
    assert getattr(one, "alpha_", None) == getattr(two, "alpha_", None)


def chunks(parts, uneven=False):
    edges = [1, 2, 5, 120, 121, 250] if uneven else np.arange(1, parts) * len(X) // parts
    return np.split(ORDER, edges)


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize("estimator", CLASSIFIERS + REGRESSORS, ids=name_of)
def test_chunks_and_merges_are_the_refit(estimator, offset):
    x = X.astype(float) + offset
    y = np.stack([LABELS[:300], np.sin(LABELS[:300])], axis=1) if estimator in REGRESSORS else Y
    whole = clone(estimator).fit(x, y)
    # Far away unit vectors are nearly equal, and without an intercept far rows make a Gram matrix of condition 1e8.
    loose = offset and (isinstance(estimator, SimpleShotClassifier) or not getattr(estimator, "fit_intercept", True))
    tol = 1e-6 if loose else 1e-8
    for parts in (chunks(1), chunks(3), chunks(20), chunks(0, uneven=True)):
        fed, joined = clone(estimator), None
        for rows in parts:
            fed.partial_fit(x[rows], y[rows])
            piece = clone(estimator).partial_fit(x[rows], y[rows])
            joined = piece if joined is None else joined.merge(piece)
        assert_same(whole, fed, x, tol)
        assert_same(whole, joined, x, tol)
    assert_same(whole, fit_blocks(clone(estimator), x, y), x, tol)
    assert_same(whole.partial_fit(x[:9], y[:9]), clone(estimator).fit(np.r_[x, x[:9]], np.r_[y, y[:9]]), x, tol)


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=name_of)
def test_fewer_rows_than_features(estimator):
    rows = np.concatenate([np.flatnonzero(label == Y)[:3] for label in np.unique(Y)])
    whole = clone(estimator).fit(X[rows], Y[rows])
    fed = clone(estimator)
    for part in np.array_split(rows, 4):
        fed.partial_fit(X[part], Y[part])
    assert_same(whole, fed, X)
    one = rows[::3]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        single = clone(estimator).fit(X[one], Y[one])
    assert (single.predict(X) == Y).mean() > 0.4


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=name_of)
def test_an_announced_class_waits_for_its_rows(estimator):
    labels = np.unique(Y)
    some = np.isin(Y, labels[:4])
    head = clone(estimator).partial_fit(X[some], Y[some], classes=labels)
    assert len(head.classes_) == 10 and set(head.predict(X)) <= set(labels[:4])
    assert np.isfinite(head.decision_function(X)).all()
    if hasattr(head, "predict_proba"):
        assert head.predict_proba(X)[:, 4:].max() == 0.0
    head.partial_fit(X[~some], Y[~some])
    assert_same(clone(estimator).fit(X, Y), head, X)


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=name_of)
def test_weights_count_rows_and_zero_is_no_row(estimator):
    weight = np.arange(300) % 3
    repeated = np.repeat(np.arange(300), weight)
    if "select='gcv'" in repr(estimator):  # its denominator counts rows
        weight = np.minimum(weight, 1)
        repeated = np.flatnonzero(weight)
    one = clone(estimator).fit(X, Y, weight)
    two = clone(estimator).fit(X[repeated], Y[repeated])
    assert_same(one, two, X)
    fed = clone(estimator)
    for rows in chunks(4):
        fed.partial_fit(X[rows], Y[rows], sample_weight=weight[rows])
    assert_same(one, fed, X)
    assert_same(one, fit_blocks(clone(estimator), X, Y, weight), X)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("rows", [40, 300])
def test_ridge_is_scikit_learns(classes, rows):
    keep = np.flatnonzero(LABELS[:rows] < classes)
    x, y = X[keep].astype(float), Y[keep]
    for options in ({}, {"class_weight": "balanced"}, {"fit_intercept": False}):
        theirs = RidgeClassifier(alpha=3.0, **options).fit(x, y)
        ours = IncrementalRidgeClassifier(alpha=3.0, **options).fit(x, y)
        np.testing.assert_allclose(ours.coef_, np.atleast_2d(theirs.coef_), atol=1e-9)
        np.testing.assert_allclose(ours.decision_function(X), theirs.decision_function(X), atol=1e-7)
        np.testing.assert_array_equal(ours.predict(X), theirs.predict(X))
    alphas = np.geomspace(1e-2, 1e5, 15)
    theirs = RidgeClassifierCV(alphas).fit(x, y)
    ours = IncrementalRidgeClassifier(alphas=alphas).fit(x, y)
    assert ours.alpha_ == theirs.alpha_ and ours.criterion_ == "loo"
    np.testing.assert_allclose(ours.coef_, np.atleast_2d(theirs.coef_), atol=1e-7)


def test_regression_is_scikit_learns():
    target = np.stack([LABELS[:300], 100 * np.cos(LABELS[:300])], axis=1)
    for y in (target, target[:, 0]):
        theirs, ours = Ridge(alpha=2.0).fit(X.astype(float), y), IncrementalRidge(alpha=2.0).fit(X, y)
        np.testing.assert_allclose(ours.coef_, theirs.coef_, atol=1e-8)
        assert ours.predict(X).shape == y.shape and np.shape(ours.intercept_) == np.shape(theirs.intercept_)
    few, grid = slice(0, 50), [1e3, 30.0, 1.0]
    left_out = [cross_val_predict(Ridge(alpha=a), X[few].astype(float), target[few], cv=LeaveOneOut()) for a in grid]
    mse = IncrementalRidge(alphas=grid).fit(X[few], target[few])
    r2 = IncrementalRidge(alphas=grid, scoring="r2").fit(X[few], target[few])
    np.testing.assert_allclose(mse.cv_scores_, [-np.square(p - target[few]).mean() for p in left_out], rtol=1e-6)
    np.testing.assert_allclose(r2.cv_scores_, [r2_score(target[few], p) for p in left_out], rtol=1e-6)


@pytest.mark.parametrize("rows", [50, 120])
def test_accuracy_of_left_out_rows(rows):
    x, y, grid = X[:rows].astype(float), Y[:rows], (1e4, 100.0, 1.0)
    left_out = [cross_val_predict(RidgeClassifier(alpha=a), x, y, cv=LeaveOneOut()) for a in grid]
    head = IncrementalRidgeClassifier(alphas=grid, scoring="accuracy").fit(x, y)
    np.testing.assert_allclose(head.cv_scores_, [(p == y).mean() for p in left_out])
    balanced = IncrementalRidgeClassifier(alphas=grid, scoring="balanced_accuracy").fit(x, y)
    expected = [np.mean([(p[y == c] == c).mean() for c in np.unique(y)]) for p in left_out]
    np.testing.assert_allclose(balanced.cv_scores_, expected)
    blocks = IncrementalRidgeClassifier(alphas=grid, scoring="accuracy", select="loo")
    np.testing.assert_allclose(fit_blocks(blocks, x, y).cv_scores_, head.cv_scores_)


def test_standardize_is_the_shrunken_scaler():
    scaler = ShrunkScaler().fit(X.astype(float))
    scaled = scaler.transform(X.astype(float))
    for rows in (40, 300):
        scaled = ShrunkScaler().fit(X[:rows].astype(float)).transform(X.astype(float))
        for plain, ours in (
            (RidgeClassifier(alpha=7.0), IncrementalRidgeClassifier(alpha=7.0, standardize=True)),
            (LDAClassifier(0.2), LDAClassifier(0.2, standardize=True)),
        ):
            plain.fit(scaled[:rows], Y[:rows])
            ours.fit(X[:rows], Y[:rows])
            np.testing.assert_allclose(ours.decision_function(X), plain.decision_function(scaled), atol=1e-6)


@pytest.mark.parametrize("priors", ["uniform", np.arange(1.0, 11.0)])
def test_priors_enter_the_intercepts(priors):
    counted, ours = LDAClassifier(0.4).fit(X, Y), LDAClassifier(0.4, priors=priors).fit(X, Y)
    given = np.full(10, 0.1) if isinstance(priors, str) else priors / 55.0
    posteriors = counted.predict_proba(X) * given / np.unique(Y, return_counts=True)[1]
    expected = posteriors / posteriors.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ours.predict_proba(X), expected, atol=1e-9)


def test_the_gda_form_has_the_directions_of_the_paper():
    x = X.astype(float)
    head = LDAClassifier("gda").fit(x, Y)
    means = np.stack([x[label == Y].mean(axis=0) for label in head.classes_])
    residuals = x - means[np.searchsorted(head.classes_, Y)]
    n, d = x.shape
    covariance = residuals.T @ residuals / (n - 1)  # the paper's, up to its count of rows
    inverse = d * np.linalg.inv((n - 1) * covariance + np.trace(covariance) * (n - 1) / n * n / (n - 1) * np.eye(d))
    expected = (means - means.mean(axis=0)) @ inverse
    ratio = (head.coef_ * expected).sum() / np.square(expected).sum()
    np.testing.assert_allclose(head.coef_, ratio * expected, rtol=1e-6, atol=1e-9)


def test_simpleshot_at_one_shot_is_the_old_head_on_unit_rows():
    rows = np.concatenate([np.flatnonzero(label == Y)[:1] for label in np.unique(Y)])
    old = make_pipeline(Normalizer(), StandardScaler(with_std=False), Normalizer(), CentroidClassifier())
    old.fit(X[rows].astype(float), Y[rows])
    new = SimpleShotClassifier().fit(X[rows], Y[rows])
    np.testing.assert_allclose(new.decision_function(X), old.decision_function(X.astype(float)), atol=1e-9)
    scaled = SimpleShotClassifier().fit(X[rows] * np.arange(1, 11)[:, None], Y[rows])
    np.testing.assert_allclose(scaled.decision_function(5 * X), new.decision_function(X), atol=1e-6)


def test_balanced_targets_find_the_rare_class():
    rng = np.random.default_rng(0)
    y = np.repeat(["many", "some", "rare"], [600, 100, 12])
    middle = {"many": 0.0, "some": 1.0, "rare": -1.0}
    x = rng.standard_normal((len(y), 30))
    x[:, :3] += np.array([middle[label] for label in y])[:, None] * 1.2
    plain = IncrementalRidgeClassifier(alpha=1.0).fit(x, y)
    even = IncrementalRidgeClassifier(alpha=1.0, targets="balanced").fit(x, y)

    def balanced_accuracy(head):
        return np.mean([(head.predict(x)[y == label] == label).mean() for label in np.unique(y)])

    assert balanced_accuracy(even) > balanced_accuracy(plain) + 0.1


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int64])
def test_blocks_of_any_kind(dtype, tmp_path):
    path = tmp_path / "codes.npy"
    np.save(path, X.astype(dtype))
    mapped = np.load(path, mmap_mode="r")
    for estimator in (LDAClassifier(), IncrementalRidgeClassifier(alphas=GRID), SimpleShotClassifier()):
        assert_same(clone(estimator).partial_fit(X, Y), fit_blocks(estimator, mapped, Y), X)


class Guarded:
    """Codes that count how often each row is read, and never give more than a block."""

    def __init__(self, x):
        self.x, self.shape, self.reads = x, x.shape, np.zeros(len(x), dtype=int)

    def __getitem__(self, rows):
        self.reads[rows] += 1
        return self.x[rows]


@pytest.mark.parametrize(("select", "times"), [("auto", 1), ("loo", 2)])
def test_how_often_blocks_are_read(select, times):
    for head, y in ((IncrementalRidgeClassifier(alphas=GRID, select=select), Y), (IncrementalRidge(select=select), X)):
        codes = Guarded(X)
        fit_blocks(head, codes, y)
        assert (codes.reads == times).all()


@pytest.mark.parametrize("estimator", CLASSIFIERS + REGRESSORS, ids=name_of)
def test_heads_survive_pickle_and_their_file(estimator, tmp_path):
    from featcache.heads import persistence

    y = LABELS[:300].astype(float) if estimator in REGRESSORS else Y
    head = clone(estimator).partial_fit(X[:200], y[:200])
    tensors = {}
    tree = persistence._encode(copy.deepcopy(head), tensors, "estimator")
    again = [pickle.loads(pickle.dumps(head)), persistence._decode(tree, tensors)]
    head.partial_fit(X[200:], y[200:])
    for other in again:
        other.partial_fit(X[200:], y[200:])
        np.testing.assert_array_equal(scores_of(other, X), scores_of(head, X))
    if estimator not in REGRESSORS:
        ids = np.asarray([f"{i:03d}" for i in range(300)])
        fitted = fit(clone(estimator), FeatureSet(X, Y, ids))
        loaded = FittedHead.load(fitted.save(tmp_path / "head.fc"))
        np.testing.assert_array_equal(loaded.predict_scores(X), fitted.predict_scores(X))


@pytest.mark.parametrize("classes", [2, 10])
def test_linear_forms(classes):
    keep = LABELS[:300] < classes
    for head in (IncrementalRidgeClassifier(alpha=1.0, standardize=True), LDAClassifier(standardize=True)):
        head.fit(X[keep], Y[keep])
        W, b = linear_form(head)
        np.testing.assert_array_equal(head.classes_[(X @ W.T + b).argmax(axis=1)], head.predict(X))
    with pytest.raises(HeadError, match="linear"):
        linear_form(SimpleShotClassifier().fit(X, Y))
    with pytest.raises(HeadError):
        normalised_form(SimpleShotClassifier().fit(X, Y))


def test_a_grid_search_over_a_pipeline():
    search = GridSearchCV(
        make_pipeline(ShrunkScaler(), IncrementalRidgeClassifier(alphas=GRID)),
        {"incrementalridgeclassifier__targets": ["signs", "balanced"]},
        cv=2,
    )
    assert search.fit(X, Y).score(X, Y) > 0.9


def nan_blocks():
    damaged = X.copy()
    damaged[123, 4] = np.nan
    return damaged


RIDGE = IncrementalRidgeClassifier


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: RIDGE(alpha=0.0).fit(X, Y), "above 0"),
        (lambda: RIDGE(alphas=()).fit(X, Y), "above 0"),
        (lambda: RIDGE(alphas=3.0).fit(X, Y), "above 0"),
        (lambda: RIDGE(alpha="a").fit(X, Y), "above 0"),
        (lambda: RIDGE(select="cv").fit(X, Y), "auto, loo, gcv"),
        (lambda: RIDGE(scoring="auc").fit(X, Y), "accuracy"),
        (lambda: RIDGE(targets=1).fit(X, Y), "balanced"),
        (lambda: RIDGE(select="loo").partial_fit(X, Y), "all rows at once"),
        (lambda: RIDGE(class_weight="balanced").partial_fit(X, Y), "dict"),
        (lambda: RIDGE(class_weight="heavy").fit(X, Y), "heavy"),
        (lambda: RIDGE(class_weight={"digit 1": -1.0}).fit(X, Y), "0 or more"),
        (lambda: RIDGE(1.0, keep_sums=False).fit(X, Y).partial_fit(X, Y), "keep_sums=True"),
        (lambda: RIDGE(1.0).fit(X, Y).merge(RIDGE(2.0).fit(X, Y)), "same settings"),
        (lambda: RIDGE(1.0).fit(X, Y).merge(RIDGE(1.0).fit(X[:, :9], Y)), "64 features"),
        (lambda: RIDGE(1.0).fit(X, Y).merge(LDAClassifier().fit(X, Y)), "LDAClassifier"),
        (lambda: RIDGE(1.0).fit(X, Y).merge(RIDGE(1.0)), "without sums"),
        (lambda: RIDGE(1.0).fit(X, Y, -np.ones(300)), "sample_weight"),
        (lambda: RIDGE(1.0).fit(X, Y, np.zeros(300)), "sum above 0|all elements|zero"),
        (lambda: RIDGE(1.0).fit(X, ["one"] * 300), "two classes"),
        (lambda: LDAClassifier("lw").fit(X, Y), "gda"),
        (lambda: LDAClassifier(1.5).fit(X, Y), "1.5"),
        (lambda: LDAClassifier(priors=[1.0]).fit(X, Y), "priors"),
        (lambda: LDAClassifier(priors="even").fit(X, Y), "priors"),
        (lambda: IncrementalRidge(scoring="mae").fit(X, X), "r2"),
        (lambda: IncrementalRidge(1.0).partial_fit(X, X).partial_fit(X, X[:, :2]), "64 targets"),
        (lambda: IncrementalRidge(1.0).fit(X, X).merge(IncrementalRidge(1.0).fit(X, X[:, :2])), "64 targets"),
        (lambda: IncrementalRidge(1.0, keep_sums=False).fit(X, X).partial_fit(X, X), "keep_sums"),
        (lambda: SimpleShotClassifier().partial_fit(X, Y).partial_fit(X[:, :3], Y), "features"),
        (lambda: fit_blocks(RidgeClassifier(), X, Y), "RidgeClassifier"),
        (lambda: fit_blocks(RIDGE(), X, Y[:7]), "labels of shape"),
        (lambda: fit_blocks(RIDGE(), [[1.0]], Y), "list"),
        (lambda: fit_blocks(RIDGE(), nan_blocks(), Y), "row 123"),
        (lambda: fit_blocks(IncrementalRidge(), nan_blocks(), X), "row 123"),
        (lambda: fit_blocks(IncrementalRidge(), X, Y), "finite numbers"),
        (lambda: fit_blocks(LDAClassifier("ledoit-wolf"), X, Y), "all rows"),
        (lambda: SimpleShotClassifier().partial_fit(X[:2], Y[:1].repeat(2)).predict(X), "not fitted"),
    ],
)
def test_errors_are_one_clear_line(call, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_refused_chunk_leaves_the_sums_alone():
    head = LDAClassifier(priors=[0.5, 0.5]).partial_fit(X[:20], LABELS[:20] % 2)
    before = copy.deepcopy(head)
    for labels in (LABELS[:20] % 3, (LABELS[:20] % 2).astype(str)):
        with pytest.raises(ValueError, match="priors|labels of the kind"):
            head.partial_fit(X[:20], labels)
    damaged = X[:20].copy()
    damaged[3, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        head.partial_fit(damaged, LABELS[:20] % 2)
    assert_same(before, head, X, 0.0)
    np.testing.assert_array_equal(before.sums_["scatter"], head.sums_["scatter"])


def test_settings_may_be_arrays():
    parts = [RIDGE(alphas=np.array([1.0, 10.0])).partial_fit(X[rows], Y[rows]) for rows in chunks(2)]
    assert_same(RIDGE(alphas=(1.0, 10.0), select="gcv").fit(X, Y), parts[0].merge(parts[1]), X)


def test_what_needs_all_rows_offers_no_chunks():
    head = LDAClassifier("ledoit-wolf").fit(X, Y)
    assert not hasattr(head, "partial_fit") and not hasattr(head, "sums_") and 0 < head.shrinkage_ < 1


def test_odd_rows():
    x = np.zeros((40, 6))
    x[20:, 0] = 1.0  # constant features, repeated rows, all-zero rows
    y = np.repeat([3, 7], 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for estimator in CLASSIFIERS:
            if isinstance(estimator, SimpleShotClassifier) or "fit_intercept=False" in repr(estimator):
                continue
            head = clone(estimator).partial_fit(x[:30], y[:30]).partial_fit(x[30:], y[30:])
            assert (head.predict(x) == y).all() and head.predict(x).dtype == y.dtype
        assert np.isfinite(SimpleShotClassifier().fit(x, y).decision_function(x)).all()


def same_state(one, two):
    assert vars(one).keys() == vars(two).keys()
    for name, value in vars(one).items():
        other = vars(two)[name]
        if isinstance(value, dict):
            assert all(np.array_equal(value[key], other[key]) for key in value)
        else:
            assert np.array_equal(np.asarray(value), np.asarray(other)), name


@pytest.mark.parametrize("estimator", CLASSIFIERS, ids=name_of)
def test_refused_rows_change_nothing(estimator, monkeypatch):
    """Neither weights that are refused after new labels were seen, nor a solution that fails after the sums grew."""
    head = clone(estimator).partial_fit(X[:100], Y[:100])
    before = copy.deepcopy(head)
    with pytest.raises(ValueError, match="sample_weight"):
        head.partial_fit(X[100:120], np.repeat("new", 20), sample_weight=np.full(20, -1.0))
    same_state(before, head)
    with monkeypatch.context() as patch, pytest.raises(np.linalg.LinAlgError):
        patch.setattr(type(head), "_solve", lambda self, sums: np.linalg.inv(np.zeros((1, 1))))
        head.partial_fit(X[100:120], np.repeat("new", 20))
    same_state(before, head)
    head.partial_fit(X[100:], Y[100:])


def test_text_as_objects_is_text():
    head = CentroidClassifier().partial_fit(X[:50], Y[:50])
    head.partial_fit(X[50:], Y[50:].astype(object), classes=np.array(["later"], dtype=object))
    expected = CentroidClassifier().partial_fit(X[:50], Y[:50]).partial_fit(X[50:], Y[50:], classes=["later"])
    same_state(expected, head)
    other = CentroidClassifier().fit(X[:50], Y[:50].astype(object)).partial_fit(X[50:], Y[50:])
    assert np.array_equal(other.predict(X), CentroidClassifier().fit(X, Y).predict(X))
    with pytest.raises(ValueError, match="kind"):
        head.partial_fit(X[:2], [1, 2])


@pytest.mark.parametrize("labels", [["a", "b", "never"], ["a", "never"], ["b", "zz"]])
@pytest.mark.parametrize("fit_intercept", [True, False])
def test_a_class_without_rows_is_never_predicted(labels, fit_intercept):
    known = [label for label in labels if label in "ab"]
    rows = np.array([[1.0, 0.0], [0.0, 1.0], [2.0, 0.0], [0.0, 2.0]])
    head = IncrementalRidgeClassifier(alpha=1e-3, fit_intercept=fit_intercept)
    head.partial_fit(rows, (known * 4)[:4], classes=labels)
    far = np.array([[-50.0, -50.0], [50.0, 50.0], [-50.0, 50.0], [0.0, 0.0]])
    assert set(head.predict(far)) <= set(known) and np.isfinite(head.decision_function(far)).all()
