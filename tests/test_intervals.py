"""Intervals and tests of differences: coverage on known populations, families of pairs, degenerate cases."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from featcache.evaluation.intervals import Cell, differences, interval


def cell(right, *, overlap=0.0, reused=False, tested=None):
    """A cell of draws x rows of right (1) and wrong (0); nan: not tested."""
    right = np.asarray(right, dtype=float)
    seen = ~np.isnan(right)
    n = seen.sum(axis=1, keepdims=True)
    scores = np.nanmean(right, axis=1)
    gains = np.where(seen, np.nan_to_num(right) - scores[:, None], 0.0) / n
    return Cell(scores, np.arange(right.shape[1]) if tested is None else tested, gains, gains, overlap, reused)


def test_one_draw_is_wilson():
    rng = np.random.default_rng(0)
    right = (rng.random((1, 60)) < 0.8).astype(float)
    low, high = interval(cell(right))
    t, p, n = stats.t.ppf(0.975, 59), right.mean(), 59  # the variance is the unbiased one: 59 rows' worth
    centre, half = (
        (p + t * t / 2 / n) / (1 + t * t / n),
        t / (1 + t * t / n) * np.sqrt(p * (1 - p) / n + t * t / 4 / n**2),
    )
    assert (low, high) == pytest.approx((centre - half, centre + half), abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_all_right_is_not_certain(value):
    low, high = interval(cell(np.full((3, 20), value)))
    assert high - low > 0.1 and low <= value <= high and low >= 0.0 and high <= 1.0


def test_one_image_is_nothing():
    low, high = interval(cell([[1.0]]))
    assert high - low > 0.7


def test_the_same_rows_tested_again_add_nothing():
    """Twenty draws of one head that never changes its mind are worth one draw."""
    row = (np.random.default_rng(0).random(80) < 0.7).astype(float)
    once, often = interval(cell(row[None])), interval(cell(np.tile(row, (20, 1))))
    assert often == pytest.approx(once, abs=2e-3)


def test_coverage_where_rows_and_training_sets_both_vary():
    """Rows of different difficulty, draws of different skill: the interval contains the expectation 95 % of the time.

    The t interval over draws, which takes them to be independent, does not come near.
    """
    rng, hits, naive = np.random.default_rng(1), [], []
    for _ in range(600):
        ease = rng.normal(size=(1, 50))
        skill = rng.normal(size=(8, 1)) * 0.25
        right = (rng.normal(size=(8, 50)) * 0.7 + ease + skill + 0.8 > 0).astype(float)
        truth = stats.norm.cdf(0.8 / np.sqrt(1 + 0.49 + 0.0625))
        low, high = interval(cell(right))
        hits.append(low <= truth <= high)
        scores = right.mean(axis=1)
        naive.append(abs(scores.mean() - truth) <= stats.t.ppf(0.975, 7) * scores.std(ddof=1) / np.sqrt(8))
    assert 0.925 <= np.mean(hits) <= 0.975
    assert np.mean(naive) < 0.8


def test_a_shared_training_set_widens():
    rng = np.random.default_rng(0)
    right = (rng.random((6, 200)) < np.linspace(0.6, 0.9, 6)[:, None]).astype(float)
    found = [cell(right, overlap=o, reused=r).variance()[0] for o, r in ((0, False), (0.6, False), (0.6, True))]
    assert found[0] < found[1] < found[2]


def test_unbounded():
    rng = np.random.default_rng(0)
    losses = rng.exponential(2.0, (4, 100))
    low, high = interval(cell(losses), bounded=False)
    assert 0.0 < low < losses.mean() < high and high > 1.0
    tiny = np.where(np.arange(40) < 2, 9.0, 1e-3)[None]
    assert interval(cell(tiny), bounded=False, loss=True)[0] > 0.0 > interval(cell(tiny), bounded=False)[0]


def test_pairs_are_corrected_for_looking_at_all_of_them():
    """Heads that are equally good: of 15 pairs one looks different at 5 % far more often than 5 % of the time."""
    rng, alone, together = np.random.default_rng(0), [], []
    for _ in range(250):
        ease = rng.normal(size=(1, 1, 60))
        right = (rng.normal(size=(6, 3, 60)) + ease > -0.8).astype(float)
        found = differences([cell(each) for each in right])
        assert len(found) == 15
        alone.append(min(pair.p for pair in found.values()) < 0.05)
        together.append(any(pair.distinguishable for pair in found.values()))
    assert np.mean(alone) > 0.2 and np.mean(together) <= 0.07


def test_a_clear_difference_is_seen_and_signs_are_right():
    rng = np.random.default_rng(0)
    good, poor = ((rng.random((5, 100)) < p).astype(float) for p in (0.9, 0.6))
    pair = differences([cell(good), cell(poor)])[0, 1]
    assert pair.mean > 0 and pair.distinguishable and pair.ci95[0] > 0 and pair.p <= pair.p_adjusted < 0.01
    back = differences([cell(poor), cell(good)])[0, 1]
    assert back.mean == -pair.mean and back.ci95 == pytest.approx((-pair.ci95[1], -pair.ci95[0]))


def test_an_interval_excludes_zero_just_where_the_test_rejects():
    rng = np.random.default_rng(3)
    for _ in range(60):
        right = (rng.random((4, 2, 60)) < rng.uniform(0.6, 0.8, (4, 1, 1))).astype(float)
        for pair in differences([cell(each) for each in right]).values():
            assert pair.distinguishable == (pair.ci95[0] > 0 or pair.ci95[1] < 0) or abs(pair.p_adjusted - 0.05) < 0.003


def test_heads_that_say_the_same():
    right = (np.random.default_rng(0).random((3, 40)) < 0.7).astype(float)
    pair = differences([cell(right), cell(right)])[0, 1]
    assert pair.mean == 0.0 and pair.p == 1.0 and not pair.distinguishable
    assert not any(p.distinguishable for p in differences([cell(right)] * 3).values())


def test_one_image_of_difference_is_no_evidence():
    right = np.ones((1, 50))
    other = right.copy()
    other[0, 0] = 0.0
    assert differences([cell(right), cell(other)])[0, 1].p > 0.2


def test_nothing_depends_on_chance():
    right = (np.random.default_rng(0).random((4, 3, 40)) < 0.7).astype(float)
    assert differences([cell(each) for each in right]) == differences([cell(each) for each in right])
