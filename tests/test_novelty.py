"""Novelty: distances are those of the formulas, left-out scores are exact, false alarms are as rare as asked for."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.heads.novelty import KNeighborsDetector, MahalanobisDetector

RNG = np.random.default_rng(0)
X, Y = load_digits(return_X_y=True)
ORDER = RNG.permutation(len(X))  # the rows come writer by writer
X, Y = X[ORDER], Y[ORDER]


@parametrize_with_checks([MahalanobisDetector(), KNeighborsDetector(), KNeighborsDetector(metric="euclidean")])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def gaussians(rows, y, share):
    """Means and the shrunken covariance, by their definitions."""
    classes = np.unique(y)
    means = np.stack([rows[y == c].mean(axis=0) for c in classes])
    residuals = rows - means[np.searchsorted(classes, y)]
    covariance = residuals.T @ residuals / len(rows)
    floor = share * np.trace(covariance) / rows.shape[1]
    return means, (1 - share) * covariance, floor


def scores(queries, means, covariance):
    offsets = queries[:, None] - means[None]
    return -np.einsum("ijk,kl,ijl->ij", offsets, np.linalg.inv(covariance), offsets).min(axis=1)


@pytest.mark.parametrize("n", [25, 200])
@pytest.mark.parametrize("relative", [False, True])
def test_distances_are_those_of_the_formula(n, relative):
    rows, y = X[:n], Y[:n]
    detector = MahalanobisDetector(shrinkage=0.1, relative=relative).fit(rows, y)
    means, covariance, floor = gaussians(rows, y, 0.1)
    ridge = floor * np.eye(64)
    expected = scores(X[300:400], means, covariance + ridge)
    if relative:
        mean, total, _ = gaussians(rows, np.zeros(n), 0.1)
        expected = expected - scores(X[300:400], mean, total + ridge)
    np.testing.assert_allclose(detector.score_samples(X[300:400]), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("n", [30, 120])
@pytest.mark.parametrize("relative", [False, True])
def test_left_out_scores_are_those_of_a_new_fit(n, relative):
    rows, y = X[:n] + RNG.normal(0, 0.1, (n, 64)), np.arange(n) % 7
    detector = MahalanobisDetector(shrinkage=0.2, relative=relative).fit(rows, y)
    ridge = detector.floor_ * np.eye(64)
    expected = []
    for i in range(n):
        kept = np.arange(n) != i

        def score(labels, i=i, kept=kept):
            means, covariance, _ = gaussians(rows[kept], labels[kept], 0.2)
            return scores(rows[i : i + 1], means, covariance * (n - 1) / n + ridge)[0]

        expected.append(score(y) - (score(np.zeros(n)) if relative else 0.0))
    np.testing.assert_allclose(detector.left_out_scores_, np.sort(expected), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("make", [MahalanobisDetector, KNeighborsDetector])
@pytest.mark.parametrize("rate", [0.02, 0.1])
def test_false_alarms_are_as_rare_as_asked_for(make, rate):
    detector = make(false_alarm_rate=rate).fit(X[:800], Y[:800])
    assert abs((detector.predict(X[800:]) == -1).mean() - rate) < 0.05


@pytest.mark.parametrize("detector", [MahalanobisDetector(), MahalanobisDetector(relative=False), KNeighborsDetector()])
def test_unknown_digits_are_seen(detector):
    known = Y < 8
    detector.fit(X[:900][known[:900]], Y[:900][known[:900]])
    found = detector.score_samples(X[900:])
    assert roc_auc_score(known[900:], found) > 0.8
    noise = RNG.uniform(0, 16, (50, 64))
    assert (detector.predict(noise) == -1).mean() > 0.6
    assert detector.predict(X[900:])[known[900:]].mean() > 0.8


def test_one_row_per_class_counts_as_one_class():
    rows = np.asarray([np.flatnonzero(c == Y)[0] for c in range(10)])
    detector = MahalanobisDetector().fit(X[rows], Y[rows])
    assert len(detector.class_means_) == 1 and "one class" in detector.notes_[0]
    assert len(detector.left_out_scores_) == 10 and np.isfinite(detector.score_samples(X)).all()


def test_rows_alone_in_their_class_do_not_set_the_threshold():
    y = Y[:100].copy()
    y[0] = 99
    assert len(MahalanobisDetector().fit(X[:100], y).left_out_scores_) == 99


def test_odd_data_give_numbers():
    same, zeros = np.ones((6, 4)), np.zeros((6, 4))
    for rows in (same, zeros, same * 1e12, np.arange(24).reshape(6, 4), same.astype("float16")):
        for detector in (MahalanobisDetector(), MahalanobisDetector(relative=False), KNeighborsDetector()):
            detector.fit(rows, [0, 0, 0, 1, 1, 1])
            assert np.isfinite(detector.score_samples(rows + 1)).all()
            assert detector.predict(rows).tolist() == [1] * 6 or len(np.unique(rows)) > 1


def test_an_offset_and_the_order_of_rows_do_not_matter():
    order = RNG.permutation(300)
    one = MahalanobisDetector().fit(X[:300], Y[:300])
    two = MahalanobisDetector().fit(X[:300][order] + 1e4, Y[:300][order])
    np.testing.assert_allclose(two.score_samples(X[300:] + 1e4), one.score_samples(X[300:]), rtol=1e-4, atol=1e-3)


def test_groups_are_left_out_together():
    rows = np.repeat(RNG.normal(size=(40, 5)), 3, axis=0) + RNG.normal(0, 1e-3, (120, 5))
    blind = KNeighborsDetector(2).fit(rows)
    aware = KNeighborsDetector(2).fit(rows, groups=np.repeat(np.arange(40), 3))
    new = RNG.normal(size=(200, 5))
    assert (blind.predict(new) == -1).mean() > 0.9 and (aware.predict(new) == -1).mean() < 0.2


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: MahalanobisDetector(shrinkage=2).fit(X), "shrinkage"),
        (lambda: MahalanobisDetector(false_alarm_rate=1).fit(X), "false_alarm_rate"),
        (lambda: MahalanobisDetector().fit(X, Y[:3]), "labels"),
        (lambda: KNeighborsDetector(0).fit(X), "n_neighbors"),
        (lambda: KNeighborsDetector(metric="l1").fit(X), "metric"),
        (lambda: KNeighborsDetector(false_alarm_rate="a").fit(X), "false_alarm_rate"),
    ],
)
def test_errors_are_one_clear_line(make, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        make()
    assert "\n" not in str(caught.value)


def bursts():
    """30 groups of 8 near-duplicates each, two classes, and new rows that share no group."""
    rng = np.random.default_rng(3)
    centres, new = rng.normal(size=(30, 100)), rng.normal(size=(200, 100))
    rows = np.repeat(centres, 8, axis=0) + rng.normal(0, 1e-2, (240, 100))
    return rows, np.repeat(np.arange(30) % 2, 8), np.repeat(np.arange(30), 8), new


@pytest.mark.parametrize("labelled", [True, False])
def test_groups_set_mahalanobis_threshold_together(labelled):
    rows, y, groups, new = bursts()
    y = y if labelled else None
    blind, aware = MahalanobisDetector().fit(rows, y), MahalanobisDetector().fit(rows, y, groups=groups)
    np.testing.assert_array_equal(blind.score_samples(new), aware.score_samples(new))
    assert (blind.predict(new) == -1).mean() > 0.8 and (aware.predict(new) == -1).mean() < 0.15


@pytest.mark.parametrize("make", [MahalanobisDetector, KNeighborsDetector])
def test_one_group_of_all_rows_leaves_single_rows_out_and_says_so(make):
    detector = make().fit(X[:100], Y[:100], groups=np.zeros(100))
    assert np.isfinite(detector.offset_) and "no group can be left out" in detector.notes_[0]
    assert (detector.predict(X[:100] + 100) == -1).any()


@pytest.mark.parametrize("make", [MahalanobisDetector, KNeighborsDetector])
def test_few_rows_say_that_the_rate_is_out_of_reach(make):
    few, enough = (make(false_alarm_rate=0.05).fit(X[:n], np.arange(n) % 2) for n in (18, 19))
    assert "1 in 19 usual rows" in few.notes_[-1] and not any("usual rows" in note for note in enough.notes_)


def test_many_classes_take_no_table_of_rows_times_classes():
    rng = np.random.default_rng(0)
    rows, y = rng.normal(size=(6000, 4)), np.arange(6000) % 3000
    tracemalloc.start()
    detector = MahalanobisDetector().fit(rows, y)
    detector.score_samples(rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert detector.basis_ is None and peak < 6000 * 3000 * 8
