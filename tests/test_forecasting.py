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


def test_perfect_and_single_draws():
    sure = fc.forecast(fc.Result(curve(lambda n: 1.0, NS, noise=0.0)))[0]
    assert sure.mean == pytest.approx(1.0, abs=0.005) and sure.ci95[1] <= 1
    single = fc.forecast(fc.Result(curve(law, NS, seeds=1, noise=0.01)))[0]
    assert np.isfinite(single.gain_sd)


@pytest.mark.parametrize("factor", [1, 0, 100, float("nan"), "2", None, True])
def test_a_factor_out_of_range(factor):
    with pytest.raises(HeadError, match="factor"):
        fc.forecast(fc.Result(curve(law, NS)), factor=factor)


def test_other_wrong_questions():
    with pytest.raises(HeadError, match="Result"):
        fc.forecast([1, 2])
    found = fc.forecast(fc.Result(curve(law, NS)))[0]
    for n in (100, 1e6, float("nan")):
        with pytest.raises(HeadError, match="n: expected"):
            found.at(n)
    with pytest.raises(HeadError, match="target"):
        found.labels_for("many")


def test_with_compare():
    from sklearn.datasets import load_digits

    X, y = load_digits(return_X_y=True)
    result = fc.compare(fc.FeatureSet(X, y, name="digits"), ["centroid", "lda"], shots=[2, 5, 10, "all"], seeds=3)
    found = fc.forecast(result)
    assert [f.head for f in found] == ["centroid", "lda"] and found[0].n == result.rows[-1]["n_train"]
    again = fc.forecast(fc.Result.from_json(result.to_json()))
    assert again == found
