"""Metrics of test rows: equal to scikit-learn's, and contributions that are their derivatives."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as reference

from featcache.errors import HeadError
from featcache.evaluation.metrics import Predicted, check_measure, measure, measures_for


def made(seed, n=157, classes=5, ties=False):
    rng = np.random.default_rng(seed)
    true = rng.choice(classes, n, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
    logits = rng.normal(size=(n, classes)) * 1.5
    logits[np.arange(n), true] += 1.0
    if ties:
        logits = logits.round(0)
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    return Predicted(true, logits.argmax(axis=1), logits, proba)


def by_sklearn(name, p):
    labels = np.arange(p.scores.shape[1])
    if name == "accuracy":
        return reference.accuracy_score(p.true, p.codes)
    if name == "balanced_accuracy":
        return reference.balanced_accuracy_score(p.true, p.codes)
    if name == "macro_f1":
        return reference.f1_score(p.true, p.codes, average="macro", zero_division=0)
    if name == "auroc":
        return np.mean([reference.roc_auc_score(p.true == c, p.scores[:, c]) for c in labels])
    if name == "log_loss":
        return reference.log_loss(p.true, p.proba, labels=labels)
    return reference.top_k_accuracy_score(p.true, p.scores, k=int(name[4:]), labels=labels)


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "macro_f1", "top_2", "top_3", "auroc", "log_loss"])
@pytest.mark.parametrize("seed", range(3))
def test_equal_to_scikit_learn(name, seed):
    p = made(seed)
    assert measure(name, p)[0] == pytest.approx(by_sklearn(name, p), abs=1e-12)


@pytest.mark.parametrize("name", ["balanced_accuracy", "macro_f1", "auroc"])
def test_ties_are_counted_as_scikit_learn_counts_them(name):
    p = made(4, ties=True)
    assert measure(name, p)[0] == pytest.approx(by_sklearn(name, p), abs=1e-12)


@pytest.mark.parametrize("name", ["accuracy", "balanced_accuracy", "macro_f1", "top_2", "auroc", "log_loss"])
def test_contributions_are_derivatives(name):
    """A row counted twice moves the metric by its contribution over n, but for terms of second order."""
    p, n = made(1, n=400), 400
    value, gains = measure(name, p)
    assert abs(gains.mean()) < 1e-9
    for i in range(0, n, 23):
        rows = np.append(np.arange(n), i)
        more = Predicted(p.true[rows], p.codes[rows], p.scores[rows], p.proba[rows])
        assert (measure(name, more)[0] - value) * (n + 1) == pytest.approx(gains[i], abs=0.02 + 0.02 * abs(gains[i]))


@pytest.mark.parametrize("name", ["balanced_accuracy", "macro_f1", "auroc", "ece"])
def test_contributions_give_the_spread_of_the_metric(name):
    """Standard error from contributions against the spread over 400 independent sets of test rows."""
    sets = [made(seed, n=300) for seed in range(400)]
    found = [measure(name, p) for p in sets]
    spread = np.std([value for value, _ in found])
    promised = np.mean([np.sqrt(np.square(gains).mean() / 300) for _, gains in found])
    assert promised == pytest.approx(spread, rel=0.12)


def test_calibration_error_by_hand():
    proba = np.asarray([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.45, 0.55]])
    p = Predicted(np.asarray([0, 1, 1, 1]), proba.argmax(axis=1), proba, proba)
    assert measure("ece", p)[0] == pytest.approx((abs(1.8 - 1) + abs(0.6 - 1) + abs(0.55 - 1)) / 4)


def test_what_a_head_does_not_give_is_not_measured():
    bare = Predicted(np.asarray([0, 1]), np.asarray([0, 1]))
    assert [measure(name, bare) for name in ("top_2", "auroc", "log_loss", "ece")] == [None] * 4
    assert measure("top_5", made(0)) is None
    assert measure("auroc", Predicted(np.zeros(3, int), np.zeros(3, int), np.ones((3, 2)))) is None


def test_a_class_that_the_head_does_not_know_is_never_right():
    scores = np.asarray([[1.0, 0.0, -np.inf], [1.0, 0.0, -np.inf]])
    p = Predicted(np.asarray([2, 0]), np.asarray([0, 0]), scores)
    assert measure("top_2", p)[0] == 0.5


def test_names():
    assert measures_for(2) == ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "log_loss", "ece")
    assert "top_2" in measures_for(10) and "top_5" in measures_for(100)
    for wrong in ("auc", "top_0", None, 3):
        with pytest.raises(HeadError, match="metric: expected"):
            check_measure(wrong)


def test_a_tie_for_a_place_counts_by_its_chance():
    """Constant scores know nothing: of four classes one is among the best two half of the time."""
    flat = Predicted(np.asarray([0, 1, 2, 3]), np.zeros(4, int), np.zeros((4, 4)))
    assert measure("top_2", flat)[0] == 0.5
    some = Predicted(np.asarray([1, 2]), np.zeros(2, int), np.asarray([[0.5, 0.0, 0.0], [0.5, 0.0, 0.0]]))
    assert measure("top_2", some)[0] == 0.5


def test_hundreds_of_classes_have_no_area_unless_asked():
    assert "auroc" not in measures_for(1000) and "top_5" in measures_for(1000)
