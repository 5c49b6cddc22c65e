"""Calibrated probabilities equal scikit-learn's where it can; rejection keeps its promise; nothing leaks."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import load_digits
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.errors import HeadError
from featcache.heads import LDAClassifier, make_head
from featcache.heads.calibration import TemperatureClassifier, calibrated, fit_temperature
from featcache.heads.held_out import held_out_logits
from featcache.heads.metrics import calibration_error, log_loss
from featcache.heads.rejection import RejectingClassifier, rejection_threshold
from featcache.splits import k_fold

RNG = np.random.default_rng(0)
X, Y = load_digits(return_X_y=True)
ORDER = RNG.permutation(len(X))[:600]  # the rows come writer by writer
X, CODES = X[ORDER].astype("float32"), Y[ORDER]
Y = np.char.add("digit ", CODES.astype(str))


@parametrize_with_checks(
    [
        TemperatureClassifier(LDAClassifier(), cv=2),
        TemperatureClassifier("centroid", cv=2),
        RejectingClassifier(LDAClassifier(), cv=2),
    ]
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


@pytest.mark.parametrize("name", ["ridge", "svm", "lda", "centroid", "logreg"])
@pytest.mark.parametrize("classes", [2, 10])
def test_equal_to_scikit_learns_temperature(name, classes):
    rows = np.flatnonzero(classes > CODES)[:200]
    # Noisy labels: where all held-out rows are right the best temperature is 0, and only the search's bounds count.
    y = np.where(RNG.random(len(rows)) < 0.2, CODES[rows][::-1], CODES[rows])
    folds, head = k_fold(y, 4), make_head(name)
    wide = X.astype(float)  # scikit-learn searches T in the precision of the scores
    ours = TemperatureClassifier(head, cv=folds, prior_rows=0).fit(wide[rows], y)
    other = CalibratedClassifierCV(head, method="temperature", ensemble=False, cv=list(folds)).fit(wide[rows], y)
    np.testing.assert_allclose(ours.predict_proba(wide), other.predict_proba(wide), atol=1e-6)
    np.testing.assert_array_equal(ours.predict(wide), ours.estimator_.predict(wide))


def test_probabilities_mean_what_they_say():
    train, test = np.arange(200), np.arange(200, 600)
    noisy = np.where(RNG.random(600) < 0.3, RNG.integers(0, 10, 600), CODES)
    raw = LogisticRegression(C=0.1, max_iter=1000).fit(X[train], noisy[train])
    better = calibrated(raw, X[train], noisy[train], k_fold(noisy[train], 5))
    assert better.estimator_ is raw
    before, after = (head.predict_proba(X[test]) for head in (raw, better))
    assert log_loss(noisy[test], after) < 0.7 * log_loss(noisy[test], before)
    assert calibration_error(noisy[test], after) < 0.5 * calibration_error(noisy[test], before)


@pytest.mark.parametrize("name", ["ridge", "svm", "knn"])
def test_few_rows_per_class(name):
    one = np.asarray([np.flatnonzero(c == Y)[0] for c in np.unique(Y)])
    head = TemperatureClassifier(name).fit(X[one], Y[one])
    assert head.temperature_ == 1.0 and head.n_held_out_ == 0 and "not calibrated" in head.notes_[-1]
    two = np.concatenate([np.flatnonzero(c == Y)[:2] for c in np.unique(Y)])
    head = TemperatureClassifier(name).fit(X[two], Y[two])
    p = head.predict_proba(X)
    assert (
        head.n_held_out_ == 20 and np.isfinite(p).all() and log_loss(CODES, p) < (2.5 if name == "knn" else np.log(10))
    )


def test_a_handful_of_right_rows_gives_no_certainty():
    logits = np.eye(3)[[0, 1, 2, 0, 1]]
    assert fit_temperature(logits, logits.argmax(1), prior_rows=0) < 0.02
    sure = np.exp(logits / fit_temperature(logits, logits.argmax(1)))
    sure = (sure / sure.sum(axis=1, keepdims=True)).max()
    assert 0.7 < sure < 0.95
    assert fit_temperature(np.zeros((4, 3)), np.zeros(4, int)) == 1.0
    assert fit_temperature(logits * 1e12, logits.argmax(1)) == pytest.approx(
        fit_temperature(logits, logits.argmax(1)) * 1e12, rel=1e-6
    )
    with pytest.raises(ValueError, match="prior_rows"):
        fit_temperature(logits, logits.argmax(1), prior_rows=-1)


def test_a_lonely_class_only_trains():
    y = np.append(Y[:100], "once")
    head = TemperatureClassifier("lda").fit(np.append(X[:100], X[450:451], axis=0), y)
    assert head.n_held_out_ == 100 and head.predict_proba(X[:5]).shape == (5, 11)


def test_held_out_scores_come_from_the_other_folds_and_groups_are_whole():
    class Recorder(LDAClassifier):
        seen = []

        def fit(self, X, y):
            Recorder.seen.append(X[:, 0].copy())
            return super().fit(X, y)

    rows = X[:60] + np.zeros((60, 1))
    rows[:, 0] = np.arange(60)
    groups = np.arange(60) // 3
    folds = k_fold(Y[:60], 3, groups=groups)
    held, scores = held_out_logits(Recorder(), rows, Y[:60], np.unique(Y[:60]), folds)
    assert len(held) == len(scores) == 60
    for kept, (_, out) in zip(Recorder.seen, folds, strict=True):
        assert not set(groups[kept.astype(int)]) & set(groups[out])


def test_a_fold_that_lacks_a_class():
    folds = [(np.arange(50, 100), np.arange(50)), (np.arange(50), np.arange(50, 100))]
    y = Y[:100].copy()
    y[:3] = "early"
    held, scores = held_out_logits(LDAClassifier(), X[:100], y, np.unique(y), folds_of(folds))
    assert held.tolist() == list(range(3, 100))
    assert np.isneginf(scores[:47, np.searchsorted(np.unique(y), "early")]).all()
    head = TemperatureClassifier(LDAClassifier(), cv=folds).fit(X[:100], y)
    assert np.isfinite(head.temperature_) and np.isfinite(head.predict_proba(X)).all()


def folds_of(pairs):
    from featcache.splits import Folds

    return Folds(tuple(pairs))


@pytest.mark.parametrize("threshold_error", [0.02, 0.1])
def test_rejection_keeps_the_error_rate(threshold_error):
    train = np.arange(300)
    noise = RNG.normal(0, 6, X.shape).astype("float32")
    head = RejectingClassifier("lda", error_rate=threshold_error).fit(X[train] + noise[train], Y[train])
    assert 0 < head.coverage_ < 1 and head.error_rate_ <= threshold_error
    test = X[300:] + noise[300:]
    accepted, wrong = head.accept(test), head.predict(test) != Y[300:]
    assert wrong[accepted].mean() < min(wrong.mean(), threshold_error + 0.06)
    labels = head.predict_or_reject(test)
    assert (labels[~accepted] == "").all() and (labels[accepted] == head.predict(test)[accepted]).all()
    np.testing.assert_array_equal(head.confidence_of(test) >= head.threshold_, accepted)


def test_a_bound_holds_as_often_as_it_says():
    """Right with probability c^0.3 at confidence c: the true error above t is known."""
    broken = found = 0
    for _ in range(300):
        c = RNG.random(400)
        threshold, coverage, bound, _ = rejection_threshold(c, RNG.random(400) < c**0.3, 0.1, 0.9)
        if coverage:
            found += 1
            broken += 1 - (1 - threshold**1.3) / 1.3 / (1 - threshold) > 0.1
            assert bound <= 0.1
    assert found > 100 and broken <= 0.1 * 300


def test_bounds_are_clopper_and_pearsons():
    from scipy.stats import binomtest

    right = np.ones(200, dtype=bool)
    right[[50, 120]] = False
    threshold, coverage, bound, _ = rejection_threshold(np.linspace(1, 0, 200), right, 0.08, 0.95)
    n = round(coverage * 200)
    wrong = int((~right[:n]).sum())
    exact = binomtest(wrong, n, alternative="less").proportion_ci(0.95, method="exact").high
    assert bound == pytest.approx(exact) and bound <= 0.08 and n > 100


def test_few_rows_bound_something_when_all_are_right():
    right = np.ones(30, dtype=bool)
    assert rejection_threshold(np.linspace(1, 0, 30), right, 0.1, 0.95)[1] == 1.0  # 0.05 ** (1 / 29) > 0.9
    assert rejection_threshold(np.linspace(1, 0, 28), right[:28], 0.1, 0.95)[1] == 0.0
    assert rejection_threshold(np.zeros(30), right, 0.1, 0.95)[:2] == (0.0, 1.0)


def test_what_cannot_be_reached_is_said():
    y = RNG.integers(0, 2, 80)
    head = RejectingClassifier("lda", error_rate=0.01, confidence=0.95).fit(RNG.normal(size=(80, 3)), y)
    assert head.threshold_ == np.inf and head.coverage_ == 0 and np.isnan(head.error_rate_)
    assert "nothing is accepted" in head.notes_[0] and not head.accept(RNG.normal(size=(9, 3))).any()
    assert set(head.predict_or_reject(RNG.normal(size=(9, 3)))) == {-1}
    with pytest.raises(ValueError, match="is a class"):
        head.predict_or_reject(X[:1, :3], reject_label=1)
    rows = [np.flatnonzero(c == Y)[0] for c in np.unique(Y)]
    one = RejectingClassifier("lda").fit(X[rows], Y[rows])
    assert one.coverage_ == 0 and "hold one out" in one.notes_[0]


def test_equals_are_accepted_together():
    right = np.array([True, False, True, True])
    assert rejection_threshold(np.array([0.9, 0.9, 0.8, 0.8]), right, 0.3)[:2] == (0.8, 1.0)
    assert rejection_threshold(np.array([0.9, 0.9, 0.8, 0.8]), right, 0.2)[1] == 0.0


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: RejectingClassifier(error_rate=1.0), "error_rate"),
        (lambda: RejectingClassifier(confidence=0.3), "confidence"),
        (lambda: RejectingClassifier(measure="entropy"), "margin"),
        (lambda: TemperatureClassifier(cv="5"), "cv"),
        (lambda: TemperatureClassifier(LDAClassifier), "classifier object"),
        (lambda: TemperatureClassifier("nothing"), "nothing"),
        (lambda: TemperatureClassifier(VotingClassifier([("lda", LDAClassifier())])), "gives no scores"),
    ],
)
def test_errors_are_one_clear_line(make, reason):
    with pytest.raises((ValueError, HeadError), match=reason) as caught:
        make().fit(X[:100], Y[:100])
    assert "\n" not in str(caught.value)


def test_measures_of_probabilities():
    p = np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8]])
    assert log_loss(np.array([0, 1, 1]), p) == pytest.approx(-np.log([0.9, 0.4, 0.8]).mean())
    assert calibration_error(np.array([0, 1, 1]), p) == pytest.approx((0.1 + 0.6 + 0.2) / 3)
    assert calibration_error(np.array([0]), np.array([[1.0, 0.0]])) == 0.0


def test_wrapped_estimators_are_not_changed():
    inner = LinearSVC(random_state=0)
    TemperatureClassifier(inner, cv=2).fit(X[:100], Y[:100])
    assert not hasattr(inner, "coef_")
    plain = LogisticRegression(C=0.01)
    assert TemperatureClassifier(plain, cv=2).fit(X[:100], Y[:100]).estimator is plain


class Grouped(LDAClassifier):
    """Remembers whether every fit was given the groups of its rows."""

    seen = []

    def fit(self, X, y, groups=None):
        Grouped.seen.append(groups is not None and len(groups) == len(X))
        return super().fit(X, y)


@pytest.mark.parametrize("make", [TemperatureClassifier, RejectingClassifier])
def test_groups_reach_the_head_and_its_clones(make):
    Grouped.seen = []
    make(Grouped(), cv=3).fit(X[:120], Y[:120], groups=(np.arange(120) // 3).tolist())
    assert len(Grouped.seen) == 4 and all(Grouped.seen)


class Steep(LDAClassifier):
    """Scores so large that every softmax of them is 1."""

    def decision_function(self, X):
        return 1e4 * super().decision_function(X)


def test_with_a_bound_no_label_ranks_the_rows():
    """A temperature fitted on the labels reorders rows of more than two classes, which the bound does not allow."""
    noisy = np.where(RNG.random(600) < 0.2, RNG.permutation(CODES), CODES)
    plain, sure = (RejectingClassifier("ridge", error_rate=0.3, confidence=c, cv=3).fit(X, noisy) for c in (None, 0.9))
    assert plain.ranking_temperature_ == plain.temperature_ and sure.ranking_temperature_ == 1.0
    logits = sure.estimator_.decision_function(X)
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(sure.confidence_of(X), powers.max(axis=1) / powers.sum(axis=1), rtol=1e-5)
    np.testing.assert_allclose(sure.predict_proba(X), plain.predict_proba(X))
    steep = RejectingClassifier(Steep(), error_rate=0.1, confidence=0.9, cv=3).fit(X, Y)
    assert steep.ranking_temperature_ > 100 and steep.coverage_ > 0.5
    assert len(np.unique(steep.confidence_of(X))) > 500
