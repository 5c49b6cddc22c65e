"""Heads against plain scikit-learn: equal optima, equal paths, exact leave-one-out."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import balanced_accuracy_score, f1_score
from sklearn.svm import SVC, LinearSVC

from featcache.features import FeatureSet
from featcache.heads import METRICS, LDAClassifier, ShrunkScaler, fit, make_head, paths
from featcache.heads.fold_paths import hinge_fold_path, logistic_fold_path
from featcache.splits import k_fold

X, Y = load_digits(return_X_y=True)
X = X.astype("float32")
TRAIN, VAL = np.arange(0, 200), np.arange(200, 500)


def scaled():
    scaler = ShrunkScaler().fit(X[TRAIN].astype(float))
    return scaler.transform(X[TRAIN].astype(float)), scaler.transform(X[VAL].astype(float))


@pytest.mark.parametrize(
    ("path", "make", "grid"),
    [
        (paths.ridge_path, lambda v: RidgeClassifier(alpha=v), (1e4, 1e2, 1.0)),
        (paths.rbf_path, lambda v: SVC(C=v), (0.1, 10.0)),
    ],
)
@pytest.mark.parametrize("classes", [2, 10])
def test_paths_predict_what_scikit_learn_predicts(path, make, grid, classes):
    keep = Y[TRAIN] < classes
    x, x_val = scaled_of(X[TRAIN][keep], X[VAL])
    steps = path(X[TRAIN][keep], Y[TRAIN][keep], X[VAL], Y[VAL], grid)
    for value, (codes, _) in zip(grid, steps, strict=True):
        expected = make(value).fit(x, Y[TRAIN][keep]).predict(x_val)
        assert (codes == expected).mean() >= 0.99, value


@pytest.mark.parametrize(
    ("path", "make", "grid"),
    [
        (logistic_fold_path, lambda v: LogisticRegression(C=v, solver="newton-cg", tol=1e-8), (1e-4, 1e-2, 1.0)),
        (hinge_fold_path, lambda v: LinearSVC(C=v, dual=False, tol=1e-8), (1e-5, 1e-3, 1e-1)),
    ],
)
@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("rows", [60, 500])
def test_fold_paths_predict_what_scikit_learn_predicts_on_every_fold(path, make, grid, classes, rows):
    keep = np.flatnonzero(Y[:rows] < classes)
    x, y = X[keep], Y[keep]
    folds = list(k_fold(y, 3, seed=1))
    scaled = ShrunkScaler().fit_transform(x.astype(float))
    for value, steps in zip(grid, path(x, y, folds, grid), strict=True):
        hits = []
        for (train, held), (codes, _) in zip(folds, steps, strict=True):
            hits.append(codes == make(value).fit(scaled[train], y[train]).predict(scaled[held]))
        assert np.concatenate(hits).mean() >= 0.99, value


def test_a_fold_that_lacks_a_class_never_predicts_it():
    y = np.r_[np.repeat(np.arange(4), 10), 4]
    x = np.eye(5)[y] * 3 + np.random.default_rng(0).normal(size=(41, 5))
    folds = [(np.arange(40), np.arange(40, 41)), (np.arange(1, 41), np.arange(1))]
    for path in (logistic_fold_path, hinge_fold_path):
        for steps in path(x, y, folds, (0.1, 1.0)):
            assert steps[0][0][0] != 4 and steps[0][1] == 0.0  # no loss either for a class that was not trained


def scaled_of(x, x_val):
    scaler = ShrunkScaler().fit(x.astype(float))
    return scaler.transform(x.astype(float)), scaler.transform(x_val.astype(float))


def test_ridge_leave_one_out_equals_brute_force():
    x, y = scaled_of(X[:60], X[:1])[0], Y[:60]
    for alpha, (codes, loss) in zip((1e3, 10.0), paths.ridge_loo(X[:60], y, (1e3, 10.0)), strict=True):
        scores = np.zeros((60, 10))
        for i in range(60):
            rest = np.arange(60) != i
            scores[i] = RidgeClassifier(alpha=alpha).fit(x[rest], y[rest]).decision_function(x[i : i + 1])
        targets = np.where(y[:, None] == np.arange(10), 1.0, -1.0)
        assert np.array_equal(codes, scores.argmax(1))
        assert loss == pytest.approx(np.square(scores - targets).sum(), rel=1e-6)


@pytest.mark.parametrize("rows", [40, 400])
def test_lda_equals_scikit_learns_at_a_given_shrinkage(rows):
    x, y = X[:rows].astype(float), Y[:rows]
    theirs = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=0.3).fit(x, y)
    ours = LDAClassifier(0.3).fit(x, y)
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-6)


def test_metrics_equal_scikit_learns():
    rng = np.random.default_rng(0)
    true, predicted = rng.integers(0, 5, 200), rng.integers(0, 6, 200)
    assert METRICS["macro_f1"](true, predicted) == pytest.approx(f1_score(true, predicted, average="macro"))
    predicted = np.minimum(predicted, 4)
    assert METRICS["balanced_accuracy"](true, predicted) == pytest.approx(balanced_accuracy_score(true, predicted))


def test_the_chosen_setting_is_the_best_of_a_plain_cross_validation():
    x, y = X[:300], np.asarray(Y[:300]).astype(str)
    ids = np.asarray([f"{i:04d}" for i in range(300)])
    fitted = fit("logreg", FeatureSet(x, y, ids), cv=3)
    means = {}
    for value in (1e-4, 1e-3, 1e-2, 1e-1, 1.0):
        hits = [
            make_head("logreg", C=value).fit(x[a], y[a]).predict(x[b]) == y[b] for a, b in k_fold(y, 3, ids=ids, seed=0)
        ]
        means[value] = np.concatenate(hits).mean()
    assert fitted.scores["cv"] == pytest.approx(max(means.values()), abs=0.011)
