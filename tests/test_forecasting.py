"""forecast(): learning curves carried on, their intervals, and what is asked of them wrongly."""

from __future__ import annotations

import json

import numpy as np
import pytest

import featcache as fc
from featcache.errors import HeadError


def curve(truth, ns, *, seeds=10, noise=0.01, seed=0, head="ridge", metric="accuracy", all_rows=False):
    """Rows of a Result whose means lie around truth(n), with nested draws: neighbouring errors are correlated."""
    rng = np.random.default_rng(seed)
    rows, errors = [], rng.normal(size=seeds)
    for n in ns:
        errors = 0.7 * errors + np.sqrt(1 - 0.49) * rng.normal(size=seeds)
        scores = truth(n) + noise * errors
        half = 2.3 * noise * np.sqrt(1 / seeds)
        mean = float(scores.mean())
        shots = "all" if all_rows and n == ns[-1] else n // 10
        rows.append(
            {"dataset": "d", "head": head, "shots": shots, "metric": metric, "n_train": n, "n_test": 99, "mean": mean,
             "std": noise, "ci95": [mean - half, mean + half], "scores": scores.tolist(), "seeds": list(range(seeds))}
        )  # fmt: skip
    return tuple(rows)


def law(n):
    return 0.95 - 1.5 * n**-0.5


NS = (10, 20, 50, 100, 200)


def test_a_power_law_is_carried_on():
    found = fc.forecast(fc.Result(curve(law, NS, noise=0.004)))[0]
    assert (found.n, found.points) == (200, 5)
    assert abs(found.gain - (law(400) - law(200))) < 0.008 and abs(found.now - law(200)) < 0.006
    assert found.gain_ci95[0] < found.gain < found.gain_ci95[1] and found.ci95[0] < found.mean < found.ci95[1] <= 1
    far = found.at(1600)
    assert far["gain"] > found.gain and np.ptp(far["gain_ci95"]) > np.ptp(found.gain_ci95)
    means = [point["mean"] for point in found.curve(16)]
    assert np.all(np.diff(means) >= -1e-6) and means[-1] <= 1


def test_intervals_hold_the_truth_over_many_draws():
    inside = 0
    for seed in range(60):
        found = fc.forecast(fc.Result(curve(law, NS, noise=0.02, seed=seed, seeds=5)))[0]
        gain = law(400) - law(200)
        inside += found.gain_ci95[0] <= gain <= found.gain_ci95[1]
    assert inside >= 52


def test_a_flat_curve_gains_little_and_never_reaches_more():
    found = fc.forecast(fc.Result(curve(lambda n: 0.8 - 0.5 * n**-1.5, (20, 50, 100, 200, 400), noise=0.002)))[0]
    assert 0 <= found.gain < 0.01
    told = found.labels_for(0.97)
    assert told["n"] is None and "not reachable by this curve" in told["statement"] and told["chance"] < 0.2
    assert found.labels_for(0.7)["n"] == 400 and "is reached" in found.labels_for(0.7)["statement"]


def test_labels_for_a_target_between():
    found = fc.forecast(fc.Result(curve(law, NS, noise=0.003)))[0]
    told = found.labels_for(law(280))
    low, high = told["ci95"]
    assert (
        220 < told["n"] < 400
        and low <= told["n"]
        and (high is None or told["n"] <= high)
        and "needs about" in told["statement"]
    )


def test_the_statement_and_the_json_say_the_same():
    found = fc.forecast(fc.Result(curve(law, NS, all_rows=True)), factor=4)
    text = found[0].statement()
    assert text.startswith("d, ridge: 4 times the labels from 200 to 800: +") and "95 % interval" in text
    plain = json.loads(found[0].to_json())
    assert plain["gain_ci95"] == list(found[0].gain_ci95) and plain["statement"] == text == str(found[0])
    double = fc.forecast(fc.Result(curve(law, NS)))[0]
    assert "doubling the labels from 200 to 400" in str(double)


def test_a_metric_that_falls():
    found = fc.forecast(fc.Result(curve(lambda n: 0.2 + 3 * n**-0.6, NS, metric="log_loss", noise=0.01)))[0]
    assert found.gain < 0 and found.ci95[0] >= 0 and found.mean < found.now
    assert "points" not in found.statement()
    assert found.labels_for(0.01)["n"] is None and found.labels_for(9.0)["n"] == 200


def test_order_of_rows_and_repetition_change_nothing():
    rows = curve(law, NS)
    one, other = (fc.forecast(fc.Result(some))[0].as_dict() for some in (rows, rows[::-1]))
    assert one == other == fc.forecast(fc.Result(rows))[0].as_dict()


def test_each_curve_of_three_points_is_forecast_and_no_other():
    rows = curve(law, NS, head="ridge") + curve(law, NS[:2], head="lda") + curve(law, (10, 10, 50), head="knn")
    assert [f.head for f in fc.forecast(fc.Result(rows))] == ["ridge"]
    with pytest.raises(HeadError, match="three points"):
        fc.forecast(fc.Result(curve(law, NS[:2])))
    with pytest.raises(HeadError, match="three points or more"):
        fc.forecast(fc.Result(curve(law, (10, 10, 50))))


def test_perfect_and_single_draws():
    sure = fc.forecast(fc.Result(curve(lambda n: 1.0, NS, noise=0.0)))[0]
    assert sure.mean == pytest.approx(1.0, abs=0.01) and sure.ci95[1] <= 1
    single = fc.forecast(fc.Result(curve(law, NS, seeds=1, noise=0.01)))[0]
    assert np.isfinite(single.gain_sd)


def test_the_gain_and_its_spread_fit_the_interval():
    for truth in (law, lambda n: 0.03 + 0.0003 * n, lambda n: 0.7, lambda n: 0.9 - 0.001 * n):
        for noise in (0.002, 0.02):
            found = fc.forecast(fc.Result(curve(truth, NS, noise=noise)))[0]
            low, high = found.gain_ci95
            assert low <= found.gain <= high and found.gain == pytest.approx(found.mean - found.now)
            assert found.gain_sd == pytest.approx((high - low) / 3.92)


@pytest.mark.parametrize(
    ("truth", "metric"),
    [
        (lambda n: 0.0, "accuracy"),
        (lambda n: 0.005, "accuracy"),
        (lambda n: -0.1 + 0.0001 * n, "mcc"),
        (lambda n: 1.1, "accuracy"),
        (lambda n: -0.2, "log_loss"),
    ],
)
def test_where_the_metric_says_nothing_there_is_no_forecast(truth, metric):
    rows = curve(truth, NS, noise=0.0, metric=metric)
    with pytest.raises(HeadError, match=f"d, ridge: expected {metric} of .* at three points") as caught:
        fc.forecast(fc.Result(rows))
    assert len(str(caught.value).splitlines()) == 1
    if metric == "accuracy":
        assert [f.head for f in fc.forecast(fc.Result(rows + curve(law, NS, head="lda")))] == ["lda"]


def test_first_points_without_a_hit_are_left_out():
    ns = (5, 10, 20, 50, 100)
    found = fc.forecast(fc.Result(curve(lambda n: 0.0 if n < 20 else 0.1 * np.log2(n / 10), ns, noise=0.0)))[0]
    assert (found.points, found.n) == (3, 100)


def test_the_value_reaches_up_to_one_where_all_is_right():
    rows = tuple({**row, "ci95": [0.96, 1.0], "n_images": 99} for row in curve(lambda n: 1.0, NS, noise=0.0))
    found = fc.forecast(fc.Result(rows))[0]
    assert found.ci95[0] < 0.99 and found.ci95[1] > 0.998


def test_errors_that_all_draws_share_leave_the_gain_alone():
    """Wide intervals that come from few test images make the value unsure, and the gain much less."""
    wide = tuple({**row, "ci95": [row["mean"] - 0.1, row["mean"] + 0.1]} for row in curve(law, NS, noise=0.004))
    found = fc.forecast(fc.Result(wide))[0]
    assert np.ptp(found.gain_ci95) < 0.6 * np.ptp(found.ci95)


@pytest.mark.parametrize("factor", [1, 0, 100, float("nan"), "2", None, True, np.bool_(True)])
def test_a_factor_out_of_range(factor):
    with pytest.raises(HeadError, match="factor"):
        fc.forecast(fc.Result(curve(law, NS)), factor=factor)


@pytest.mark.parametrize("kind", [int, np.int64, np.float32, np.float64])
def test_any_kind_of_number_will_do(kind):
    plain, other = (fc.forecast(fc.Result(curve(law, NS)), factor=two)[0] for two in (2, kind(2)))
    assert other == plain and json.loads(other.to_json()) == plain.as_dict()
    assert other.at(kind(400)) == plain.at(400) and other.curve(kind(4)) == plain.curve(4)
    target = kind(1) if kind in (int, np.int64) else kind(0.875)
    assert other.labels_for(target) == plain.labels_for(float(target))


def test_other_wrong_questions():
    with pytest.raises(HeadError, match="Result"):
        fc.forecast([1, 2])
    found = fc.forecast(fc.Result(curve(law, NS)))[0]
    for n in (100, 1e6, float("nan")):
        with pytest.raises(HeadError, match="n: expected"):
            found.at(n)
    for target in ("many", True, None, float("nan")):
        with pytest.raises(HeadError, match="target"):
            found.labels_for(target)
    for factor in (0, 0.5, 1, 100, "2", True):
        with pytest.raises(HeadError, match="factor: expected a number above 1, at most 64"):
            found.curve(factor)
    for points in (0, 1, 2.5):
        with pytest.raises(HeadError, match="points"):
            found.curve(points=points)
    for n in ("many", True):
        with pytest.raises(HeadError, match="n: expected"):
            found.at(n)
    with pytest.raises(HeadError, match="got 100"):
        found.at(np.float64(100))
    assert len(found.curve(64)) == 25 == len(found.curve())


def test_with_compare():
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    result = fc.compare(fc.FeatureSet(X, y, name="digits"), ["centroid", "lda"], shots=[2, 5, 10, "all"], seeds=3)
    found = fc.forecast(result)
    assert [f.head for f in found] == ["centroid", "lda"] and found[0].n == result.rows[-1]["n_train"]
    again = fc.forecast(fc.Result.from_json(result.to_json()))
    assert again == found
