"""Solvers of linear heads: gradients, certificates, folds side by side, streaming, both libraries."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import check_grad
from sklearn.datasets import load_digits
from threadpoolctl import threadpool_limits

from featcache.solvers import linear_path
from featcache.solvers.certificate import duality_gap
from featcache.solvers.eigenbasis import Eigenbasis
from featcache.solvers.linear_path import LinearProblem
from featcache.solvers.losses import SigmoidLoss, SoftmaxLoss, SquaredHingeLoss
from featcache.solvers.shrinkage import shrunk_scale
from featcache.solvers.standardised import Standardised

X, Y = load_digits(return_X_y=True)
X, Y = (X / 16.0)[:300], Y[:300]
ONES = np.ones((1, 300))
SIGNS = np.where(np.eye(10)[Y] > 0, 1.0, -1.0)
LOSSES = {
    "softmax": (SoftmaxLoss(), Y),
    "smoothed": (SoftmaxLoss(0.2), Y),
    "sigmoid": (SigmoidLoss(), np.eye(10)[Y] * 0.9 + 0.05),
    "hinge": (SquaredHingeLoss(), SIGNS),
}


@pytest.fixture(autouse=True)
def _one_thread():
    with threadpool_limits(1):
        yield


def problem(loss="softmax", X=X, weight=ONES, **settings):
    function, target = LOSSES[loss]
    return LinearProblem(X, target, 10, weight, function, **{"dtype": "float64", **settings})


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("settings", [{}, {"fit_intercept": False}, {"penalise_intercept": True}])
def test_gradients_are_those_of_the_objective(loss, settings):
    p = problem(loss, weight=np.random.default_rng(1).random((1, 300)), **settings)
    start = np.random.default_rng(0).normal(size=(65, 1, 10)) * 0.3
    if not p.fit_intercept:
        start[-1] = 0.0
    penalty = np.asarray([0.1])

    def value(flat):
        theta = flat.reshape(65, 1, 10).copy()
        theta[-1] *= p.fit_intercept
        return float(p.evaluate(theta, penalty)[0][0])

    def gradient(flat):
        return p.evaluate(flat.reshape(65, 1, 10), penalty)[1].ravel()

    assert check_grad(value, gradient, start.ravel(), direction="random", rng=0) < 1e-5


@pytest.mark.parametrize("loss", ["softmax", "smoothed", "sigmoid"])
@pytest.mark.parametrize("penalty", [1e-1, 1e-3, 1e-5])
def test_the_gap_bounds_what_is_missing_and_closes(loss, penalty):
    p, at = problem(loss), np.asarray([penalty])
    best = float(p.solve(at, tol=1e-15, max_iter=3000).value[0])
    gaps = []
    for tol in (1e-2, 1e-4, 1e-6, 1e-9):
        point = p.solve(at, tol=tol)
        settled = p.improve(point, at, tol=1e-14, max_iter=20, intercepts_only=True)
        for each in (point, settled):
            assert duality_gap(p, each, penalty) >= float(each.value[0]) - best - 1e-14
        gaps.append(duality_gap(p, settled, penalty))
    assert gaps[-1] < 1e-5 * best and gaps[-1] < gaps[0]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rows", [300, 25])
def test_folds_side_by_side_are_the_problems_by_themselves(loss, rows):
    fold = np.arange(rows) % 3
    weight = np.stack([(fold != f).astype(float) for f in range(3)])
    function, target = LOSSES[loss]
    penalties = [np.full(3, p) for p in ((1.0, 1e-2) if loss == "hinge" else (1.0, 1e-2, 1e-4))]
    how = {"dtype": "float64", "penalise_intercept": loss == "hinge"}
    together = LinearProblem(X[:rows], target[:rows], 10, weight, function, **how)
    points = list(together.walk(penalties, tol=1e-13, max_iter=2000))
    for f in range(3):
        kept = fold != f
        alone = LinearProblem(X[:rows][kept], target[:rows][kept], 10, np.ones((1, kept.sum())), function, **how)
        for penalty, point in zip(penalties, points, strict=True):
            one = alone.solution(alone.solve(penalty[:1], tol=1e-13, max_iter=2000))
            many = together.solution(point)
            assert many.value[f] == pytest.approx(one.value[0], rel=1e-9)
            np.testing.assert_allclose(many.coef[f], one.coef[0], atol=2e-4)


@pytest.mark.parametrize("rows", [300, 25])
def test_streamed_rows_give_the_same(rows, tmp_path):
    codes = X[:rows].astype("float16")
    mapped = np.memmap(tmp_path / "codes", dtype="float16", mode="w+", shape=codes.shape)
    mapped[:] = codes
    held, streamed = (
        LinearProblem(x, Y[:rows], 10, np.ones((1, rows)), SoftmaxLoss(), dtype="float64")
        for x in (codes.astype("float64"), mapped)
    )
    streamed.rows.step = 7  # many blocks, the last one short
    one, two = (p.solution(p.solve(np.asarray([1e-3]), tol=1e-13, max_iter=2000)) for p in (held, streamed))
    np.testing.assert_allclose(one.coef, two.coef, atol=1e-6)
    point = streamed.solve(np.asarray([1e-3]), tol=1e-6)
    some = np.asarray([3, 1, 20])
    expected = codes[some].astype(float) @ (s := streamed.solution(point)).coef[0].T + s.intercept[0]
    np.testing.assert_allclose(streamed.scores(point, 0, some), expected, atol=1e-6)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_torch_computes_what_numpy_computes(loss, dtype, monkeypatch):
    penalties = [np.asarray([p]) for p in (1.0, 1e-2, 1e-4)]
    fold_weight = np.random.default_rng(0).random((1, 300))
    by_numpy = list(problem(loss, weight=fold_weight, dtype=dtype).walk(penalties, tol=1e-6))
    monkeypatch.setattr(linear_path, "_TORCH_FROM", 0)
    monkeypatch.setattr(linear_path, "_TORCH_CORES", 1)
    p = problem(loss, weight=fold_weight, dtype=dtype)
    assert p.xp.__name__ == "torch"
    for one, two in zip(by_numpy, p.walk(penalties, tol=1e-6), strict=True):
        np.testing.assert_allclose(one.value, two.value.numpy(), rtol=2e-5)


def test_nearly_certain_rows_have_an_exact_loss():
    for dtype in (np.float32, np.float64):
        scores = np.asarray([[[40.0, 0.0, 0.0]], [[-300.0, 0.0, 1.0]]], dtype=dtype)
        weight = np.asarray([[[1.0]], [[0.0]]], dtype=dtype)
        loss, _ = SoftmaxLoss()(np, scores, np.asarray([0, 0]), weight, False)
        assert loss[0] == pytest.approx(2 * np.exp(-40.0), rel=1e-5)
        assert scores[0, 0, 0] == pytest.approx(-2 * np.exp(-40.0), rel=1e-5)
    loss, _ = SoftmaxLoss()(np, np.asarray([[[-300.0, 0.0, 1.0]]]), np.asarray([0]), np.ones((1, 1, 1)), True)
    assert loss[0] == pytest.approx(301 + np.log1p(np.exp(-1.0)))


@pytest.mark.parametrize("shape", [(40, 200), (300, 64), (500, 128)])
def test_the_basis_is_orthonormal_and_its_spread_is_the_rows(shape):
    rng = np.random.default_rng(0)
    rows = rng.normal(size=shape) * np.arange(1, shape[1] + 1) ** -0.7 + 5.0
    weight = rng.random(shape[0])
    weight /= weight.sum()
    basis = Eigenbasis.of(rows, weight, columns=10)
    np.testing.assert_allclose(basis.vectors.T @ basis.vectors, np.eye(basis.vectors.shape[1]), atol=1e-8)
    centred = rows - basis.centre
    np.testing.assert_allclose(weight @ np.square(centred @ basis.vectors), basis.spread, rtol=1e-4)
    assert basis.complete == (shape == (40, 200))
    if basis.complete:
        np.testing.assert_allclose(centred @ basis.vectors @ basis.vectors.T, centred, atol=1e-8)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_certified_walk_ends_sooner_and_is_good_enough(loss, dtype):
    weight = np.stack([np.ones(300), np.arange(300) % 3 > 0]).astype(float)
    exact = problem(loss, weight=weight)
    penalties = [np.asarray([penalty, 3.0 * penalty]) for penalty in (1e-1, 1e-2, 1e-3)]
    best = np.stack([point.value for point in exact.walk(penalties, tol=1e-14, max_iter=3000)])
    ways = {}
    for enough in (0.0, 1e-4):
        p = problem(loss, weight=weight, dtype=dtype)
        ways[enough] = list(p.walk(penalties, tol=5e-6, enough=enough))
    passes = {enough: sum(point.passes for point in way) for enough, way in ways.items()}
    assert passes[1e-4] < passes[0.0]
    for point, penalty, value in zip(ways[1e-4], penalties, best, strict=True):
        at = exact.evaluate(point.theta.astype(float), penalty)[0]
        assert point.converged.all() and (at <= value * (1.0 + 1e-4)).all()


def test_the_bound_of_the_weights_holds_where_the_intercepts_are_right():
    p, at = problem(), np.asarray([1e-3])
    best = float(p.solve(at, tol=1e-15, max_iter=3000).value[0])
    point = p.improve(p.solve(at, tol=1e-3), at, tol=1e-14, max_iter=20, intercepts_only=True)
    bound = float(p.gap(point.gradient, at)[0])
    assert float(point.value[0]) - best <= bound
    assert duality_gap(p, point, 1e-3) == pytest.approx(bound, rel=1e-3)


def test_nan_is_refused_by_row():
    rows = X.copy()
    rows[7, 3] = np.nan
    with pytest.raises(ValueError, match="NaN or Inf in rows 0 to"):
        problem(X=rows)


def test_constant_codes_are_solved_by_the_intercept():
    p = problem(X=np.ones((300, 64)))
    point = p.solve(np.asarray([1e-3]), tol=1e-10)
    shares = np.bincount(Y) / 300
    assert float(point.value[0]) == pytest.approx(-(shares * np.log(shares)).sum())


def test_standardised_rows_and_the_way_back():
    weight = np.random.default_rng(0).random(300)
    scaled = Standardised.of(X, weight)
    rows = scaled.at_hand()
    np.testing.assert_allclose(weight @ rows, 0.0, atol=1e-9)
    coef, intercept = np.random.default_rng(1).normal(size=(3, 64)), np.arange(3.0)
    plain = scaled.on_features(coef, intercept)
    np.testing.assert_allclose(X @ plain[0].T + plain[1], rows @ coef.T + intercept, atol=1e-10)
    assert (shrunk_scale(np.zeros(4), 10.0) == 1.0).all()


def test_long_sums_do_not_burn_passes_in_float32():
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(50_000, 8)).astype("float32")
    target = (rows[:, :1] + rng.normal(size=(50_000, 1)) > 0).astype(float)
    fold = np.arange(50_000) % 5
    weight = np.stack([(fold != f).astype(float) for f in range(5)])
    passes = []
    for dtype in ("float32", "float64"):
        p = LinearProblem(rows, target, 1, weight, SigmoidLoss(), dtype=dtype)
        passes.append([point.passes for point in p.walk([1.0 / (C * p.total) for C in (1e-3, 0.1, 10.0)], tol=1e-6)])
    assert sum(passes[0]) <= 2 * sum(passes[1])


def test_nearly_certain_rows_of_a_sigmoid_have_an_exact_loss():
    scores = np.asarray([[[18.0]], [[-18.0]]], dtype=np.float32)
    weight = np.ones((2, 1, 1), dtype=np.float32)
    loss, _ = SigmoidLoss()(np, scores, np.asarray([[1.0], [0.0]], dtype=np.float32), weight, False)
    assert loss[0] == pytest.approx(2 * np.exp(-18.0), rel=1e-5)
    np.testing.assert_allclose(scores.ravel(), [-np.exp(-18.0), np.exp(-18.0)], rtol=1e-5)


def test_a_constant_column_does_not_spoil_the_certificate():
    target = np.c_[np.eye(10)[Y], np.zeros(300)]
    p = LinearProblem(X, target, 11, ONES, SigmoidLoss(), dtype="float64")
    point = p.solve(np.asarray([1e-2]), tol=1e-12, max_iter=2000)
    settled = p.improve(point, np.asarray([1e-2]), tol=1e-14, max_iter=50, intercepts_only=True)
    assert duality_gap(p, settled, 1e-2) < 1e-3 * float(settled.value[0])
