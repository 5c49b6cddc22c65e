"""Ensembles: weights are the minimum on held-out rows, better than the worst member, and saved like any head."""

from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.features import FeatureSet
from featcache.heads import FittedHead, LDAClassifier, fit
from featcache.heads.calibration import TemperatureClassifier
from featcache.heads.ensemble import EnsembleClassifier, _arithmetic_weights, _geometric_weights
from featcache.heads.held_out import log_softmax
from featcache.heads.kernel import NystroemClassifier
from featcache.heads.metrics import log_loss
from featcache.heads.neighbors import CosineKNeighborsClassifier
from featcache.heads.novelty import KNeighborsDetector, MahalanobisDetector
from featcache.heads.rejection import RejectingClassifier

RNG = np.random.default_rng(0)
X, Y = load_digits(return_X_y=True)
ORDER = RNG.permutation(len(X))[:500]  # the rows come writer by writer
X, CODES = X[ORDER].astype("float32"), Y[ORDER]
Y = np.char.add("digit ", CODES.astype(str))


@parametrize_with_checks([EnsembleClassifier((LDAClassifier(), CosineKNeighborsClassifier(3, temperature=0.1)), cv=2)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


class Noise(LDAClassifier):
    """A member that knows nothing."""

    def decision_function(self, X):
        return np.random.default_rng(0).normal(size=(len(X), len(self.classes_)))

    predict_proba = None


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
def test_a_member_that_knows_nothing_gets_no_weight(mean):
    head = EnsembleClassifier((LDAClassifier(), Noise()), mean=mean).fit(X[:200], Y[:200])
    assert head.weights_[0] > 0.9 and head.weights_.sum() == pytest.approx(1)
    alone = TemperatureClassifier(LDAClassifier()).fit(X[:200], Y[:200])
    assert head.score(X[200:], Y[200:]) > alone.score(X[200:], Y[200:]) - 0.02


@pytest.mark.parametrize("mean", ["geometric", "arithmetic"])
@pytest.mark.parametrize("prior", [0.0, 5.0])
def test_weights_are_the_minimum(mean, prior):
    codes = RNG.integers(0, 4, 60)
    logs = np.stack([log_softmax(np.eye(4)[codes] * s + RNG.normal(size=(60, 4))) for s in (2.0, 1.5, 0.3)])
    weights = (_geometric_weights if mean == "geometric" else _arithmetic_weights)(logs, codes, prior)

    def loss(w):
        total = np.tensordot(w, logs if mean == "geometric" else np.exp(logs), 1)
        p = np.exp(log_softmax(total)) if mean == "geometric" else total
        return log_loss(codes, p) + prior * 3 / 60 * np.square(w - 1 / 3).sum()

    best = loss(weights)
    assert min(loss(w) for w in RNG.dirichlet(np.ones(3), 500)) >= best - 1e-7
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()


def test_uniform_weights_and_one_row_per_class():
    assert EnsembleClassifier(("lda", "centroid"), weights="uniform").fit(X[:80], Y[:80]).weights_.tolist() == [0.5] * 2
    one = np.asarray([np.flatnonzero(c == Y)[0] for c in np.unique(Y)])
    head = EnsembleClassifier(("lda", "knn", "ridge")).fit(X[one], Y[one])
    assert head.weights_.tolist() == [1 / 3] * 3 and "hold one out" in head.notes_[-1]
    assert head.score(X, Y) > 0.4


def test_groups_rows_order_and_seeds():
    groups = np.arange(120) // 4
    settings = {"heads": ("lda", "logreg"), "random_state": 3}
    one = EnsembleClassifier(**settings).fit(X[:120], Y[:120], groups=groups)
    two = EnsembleClassifier(**settings).fit(X[:120], Y[:120], groups=groups)
    np.testing.assert_array_equal(one.predict_proba(X), two.predict_proba(X))
    assert (one.predict_proba(X) != EnsembleClassifier(**settings).fit(X[:120], Y[:120]).predict_proba(X)).any()


@pytest.mark.parametrize("classes", [2, 10])
def test_scores_agree_with_each_other(classes):
    rows = np.flatnonzero(classes > CODES)[:100]
    head = EnsembleClassifier(("lda", "ridge")).fit(X[rows], Y[rows])
    p, scores = head.predict_proba(X), head.decision_function(X)
    np.testing.assert_array_equal(head.predict(X), head.classes_[p.argmax(axis=1)])
    if classes == 2:
        np.testing.assert_allclose(1 / (1 + np.exp(-scores)), p[:, 1], atol=1e-9)
    else:
        np.testing.assert_allclose(np.exp(scores), p)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"heads": ()}, "one head"),
        ({"heads": "ridge"}, "list"),
        ({"heads": ("nothing",)}, "nothing"),
        ({"heads": (StandardScaler(),)}, "classifier"),
        ({"weights": "best"}, "stacked"),
        ({"mean": "harmonic"}, "geometric"),
        ({"prior_rows": -1}, "prior_rows"),
        ({"cv": 1}, "cv"),
    ],
)
def test_errors_are_one_clear_line(settings, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        EnsembleClassifier(**settings).fit(X[:60], Y[:60])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "estimator",
    [
        CosineKNeighborsClassifier(),
        NystroemClassifier(n_components=30),
        TemperatureClassifier("ridge", cv=2),
        EnsembleClassifier(("lda", "svm"), cv=2),
        RejectingClassifier("lda", cv=2),
        make_pipeline(StandardScaler(with_std=False), CosineKNeighborsClassifier(5)),
    ],
    ids=lambda e: type(e).__name__,
)
def test_all_are_saved_and_pickled(estimator, tmp_path):
    fitted = fit(clone(estimator), FeatureSet(X[:150], Y[:150]))
    loaded = FittedHead.load(fitted.save(tmp_path / "head.fc"))
    np.testing.assert_array_equal(loaded.predict_scores(X), fitted.predict_scores(X))
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(fitted.estimator)).predict(X), fitted.predict(X))


@pytest.mark.parametrize("detector", [MahalanobisDetector(), KNeighborsDetector()], ids=lambda e: type(e).__name__)
def test_detectors_are_saved(detector, tmp_path):
    fitted = fit("lda", FeatureSet(X[:150], Y[:150]))
    holder = replace(fitted, estimator=detector.fit(X[:150], Y[:150]))
    loaded = FittedHead.load(holder.save(tmp_path / "head.fc"))
    np.testing.assert_array_equal(loaded.estimator.score_samples(X), detector.score_samples(X))
