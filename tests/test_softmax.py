"""SoftmaxClassifier: a proper scikit-learn estimator with LogisticRegression's optimum."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks
from threadpoolctl import threadpool_limits

from featcache.softmax import SoftmaxClassifier

X, Y = load_digits(return_X_y=True)
X = (X / 16.0)[:600]
Y = Y[:600]


@pytest.fixture(autouse=True)
def _one_thread():
    """Tiny problems on a busy machine: threads that wait for each other would take most of the time."""
    with threadpool_limits(1):
        yield


@parametrize_with_checks([SoftmaxClassifier()])
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
