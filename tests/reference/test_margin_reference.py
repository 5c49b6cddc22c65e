"""Our support vector machines against scikit-learn's: one objective, one minimum."""

import warnings

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.svm import SVC, LinearSVC

from featcache.heads import margin
from featcache.heads.estimators import ShrunkScaler
from featcache.heads.margin import GaussianSVC, SquaredHingeSVC

X, Y = load_digits(return_X_y=True)
X = ShrunkScaler().fit_transform(X)


def objective(model, X, y, C, weight):
    classes = model.classes_[1:] if len(model.classes_) == 2 else model.classes_
    signs = np.where(y[:, None] == classes, 1.0, -1.0)
    short = np.maximum(0.0, 1.0 - signs * (X @ model.coef_.T + model.intercept_))
    return 0.5 * np.square(model.coef_).sum() + 0.5 * np.square(model.intercept_).sum() + C * weight @ (short**2).sum(1)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("rows", [30, 700])
@pytest.mark.parametrize("C", [1e-4, 1e-2, 1.0])
def test_the_minimum_is_that_of_liblinear(classes, rows, C):
    keep = np.flatnonzero(classes > Y)[:rows]
    x, y = X[keep], Y[keep]
    weight = np.random.default_rng(0).uniform(0.2, 3.0, len(y))
    weight[3] = 0.0
    ours = SquaredHingeSVC(C=C, max_iter=20_000).fit(x, y, sample_weight=weight)
    theirs = LinearSVC(C=C, dual=False, tol=1e-10, max_iter=100_000).fit(x, y, sample_weight=weight)
    a, b = (objective(m, x, y, C, weight) for m in (ours, theirs))
    assert a <= b * (1 + 1e-7)
    assert ours.coef_.shape == theirs.coef_.shape and ours.intercept_.shape == theirs.intercept_.shape
    assert (ours.predict(X) == theirs.predict(X)).mean() > 0.998


def test_other_settings_are_liblinears():
    ours = SquaredHingeSVC(loss="hinge", random_state=0, max_iter=10_000).fit(X[:200], Y[:200])
    theirs = LinearSVC(loss="hinge", random_state=0, max_iter=10_000).fit(X[:200], Y[:200])
    assert np.array_equal(ours.coef_, theirs.coef_)


def test_too_few_steps_are_told_and_one_class_is_refused():
    with pytest.warns(ConvergenceWarning, match="raise max_iter"):
        SquaredHingeSVC(C=1.0, max_iter=2).fit(X, Y)
    with pytest.raises(ValueError, match="two classes"):
        SquaredHingeSVC().fit(X[:5], np.zeros(5))
    with pytest.raises(ValueError, match="C"):
        SquaredHingeSVC(C=-1.0).fit(X, Y)


def test_names_of_classes_and_equal_bytes_without_a_seed():
    names = np.array(["zero", "one", "two"])[Y[Y < 3]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        one, two = (SquaredHingeSVC(random_state=s, max_iter=5000).fit(X[Y < 3], names) for s in (0, 1))
    assert np.array_equal(one.coef_, two.coef_) and one.classes_.tolist() == ["one", "two", "zero"]
    assert one.score(X[Y < 3], names) > 0.99


@pytest.mark.parametrize("shape", ["ovr", "ovo"])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("settings", [{}, {"C": 0.1, "gamma": 0.01}, {"gamma": "auto", "class_weight": "balanced"}])
def test_a_gaussian_kernel_by_blas_is_libsvms(classes, settings, shape):
    keep = np.flatnonzero(classes > Y)
    x, names = X[keep], np.array([f"class {k}" for k in range(10)])[Y[keep]]
    weight = np.random.default_rng(0).uniform(0.5, 2.0, len(x))
    weight[::7] = 0.0  # libsvm leaves such rows out before it numbers them
    train = slice(0, len(x) // 2)
    ours, theirs = (
        make(decision_function_shape=shape, random_state=0, **settings).fit(x[train], names[train], weight[train])
        for make in (GaussianSVC, SVC)
    )
    assert np.array_equal(ours.support_, theirs.support_) and np.array_equal(ours.n_support_, theirs.n_support_)
    assert np.array_equal(ours.support_vectors_, theirs.support_vectors_)
    assert np.allclose(ours.dual_coef_, theirs.dual_coef_, atol=1e-6)
    assert np.allclose(ours.decision_function(x), theirs.decision_function(x), atol=1e-6)
    assert np.array_equal(ours.predict(x), theirs.predict(x))
    assert np.allclose(SVC.decision_function(ours, x), ours.decision_function(x), atol=1e-9)


def test_of_ties_libsvm_takes_the_first_class_and_so_do_we():
    few, y = X[:12], np.arange(12) % 3
    ours, theirs = (make(C=1e-9).fit(few, y) for make in (GaussianSVC, SVC))
    assert np.array_equal(ours.predict(X), theirs.predict(X))
    broken, other = (make(C=1.0, break_ties=True).fit(X[:300], Y[:300]) for make in (GaussianSVC, SVC))
    assert np.array_equal(broken.predict(X), other.predict(X))


def test_what_blas_does_not_take_is_libsvms_and_bad_rows_are_refused():
    with pytest.raises(NotFittedError):
        GaussianSVC().predict(X)
    fitted = GaussianSVC().fit(X[:200], Y[:200])
    with pytest.raises(ValueError, match="64 features"):
        fitted.predict(X[:, :9])
    with pytest.raises(ValueError, match="one class|greater than one"):
        GaussianSVC().fit(X[:5], np.zeros(5))
    for settings, rows in (({"kernel": "linear"}, X), ({}, csr_array(X)), ({"kernel": "poly"}, X)):
        ours, theirs = (make(**settings).fit(rows[:200], Y[:200]) for make in (GaussianSVC, SVC))
        assert np.array_equal(ours.decision_function(rows), theirs.decision_function(rows))
        assert np.array_equal(ours.predict(rows), theirs.predict(rows))


def test_many_classes_and_rows_in_blocks_of_any_size(monkeypatch):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(240, 12)) + np.repeat(np.arange(40) % 7, 6)[:, None], np.repeat(np.arange(40), 6)
    ours, theirs = (make(C=10.0, random_state=0).fit(x, y) for make in (GaussianSVC, SVC))
    expected = theirs.decision_function(x)
    for size in (1, 10**4, 10**9):
        monkeypatch.setattr(margin, "BLOCK_BYTES", size)
        assert np.allclose(ours.decision_function(x), expected, atol=1e-6)
    assert np.array_equal(ours.predict(x), theirs.predict(x))
    monkeypatch.setattr(margin, "_KERNEL_ROWS", 100)
    assert np.array_equal(GaussianSVC(C=10.0, random_state=0).fit(x, y).dual_coef_, theirs.dual_coef_)
