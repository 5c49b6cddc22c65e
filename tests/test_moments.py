"""Sums that merge: in any chunks and order the sums of one pass, far from the origin, too; ridge from them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.covariance import oas
from sklearn.linear_model import Ridge, RidgeClassifierCV

from featcache.errors import HeadError
from featcache.heads import ShrunkScaler
from featcache.solvers.moments import ClassMoments
from featcache.solvers.ridge import RidgePath
from featcache.solvers.ridge_sums import ridge_solution
from featcache.solvers.shrinkage import oas_share, shrunk_scale
from featcache.solvers.targets import TargetMoments, sign_targets

RNG = np.random.default_rng(0)
N, D, K = 240, 12, 5
X = RNG.standard_normal((N, D)) * np.geomspace(0.1, 10, D)
CODES = np.sort(RNG.integers(0, K, N))  # sorted: early chunks lack classes
W = RNG.random(N) + 0.1


def chunks(n, parts, uneven=False):
    edges = (
        np.sort(RNG.choice(np.arange(1, n), parts - 1, replace=False)) if uneven else np.arange(1, parts) * n // parts
    )
    return np.split(np.arange(n), edges)


def class_sums(x, codes=CODES, weight=W, rows=slice(None)):
    sums = ClassMoments(x.shape[1], K)
    sums.update(x[rows], codes[rows], None if weight is None else weight[rows])
    return sums


def target_sums(x, y, weight=W, rows=slice(None)):
    sums = TargetMoments(x.shape[1], y.shape[1])
    sums.update(x[rows], y[rows], None if weight is None else weight[rows])
    return sums


def assert_close(one, two, tol=1e-11):
    for name, value in one.state().items():
        other = two.state()[name]
        assert np.abs(value - other).max() <= tol * max(np.abs(value).max(), 1.0), name


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_class_sums_are_those_of_a_direct_sum(offset):
    x = X + offset
    sums = class_sums(x)
    means = np.stack([np.average(x[c == CODES], axis=0, weights=W[c == CODES]) for c in range(K)])
    rest = X - np.stack([np.average(X[c == CODES], axis=0, weights=W[c == CODES]) for c in range(K)])[CODES]
    np.testing.assert_allclose(sums.means, means, rtol=1e-13, atol=1e-13)
    np.testing.assert_allclose(sums.scatter, (rest * W[:, None]).T @ rest, atol=1e-8 if offset else 1e-10)
    np.testing.assert_allclose(np.trace(sums.scatter), sums.spread.sum(), rtol=1e-12)
    assert sums.rows.tolist() == np.bincount(CODES).tolist()


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize(("parts", "uneven"), [(1, False), (3, False), (20, False), (7, True), (N, False)])
def test_chunks_merges_and_one_pass_agree(parts, uneven, offset):
    x, y = X + offset, RNG.standard_normal((N, 3)) + offset
    for make, args in ((class_sums, (x,)), (target_sums, (x, y))):
        whole = make(*args)
        fed = make(*args, rows=[])
        pieces = []
        for rows in chunks(N, parts, uneven):
            pieces.append(make(*args, rows=rows))
            fed.update(x[rows], (CODES if make is class_sums else y)[rows], W[rows])
        joined = pieces[0].copy()
        for piece in pieces[1:]:
            joined.merge(piece)
        backwards = pieces[-1].copy()
        for piece in pieces[-2::-1]:
            backwards.merge(piece)
        for other in (fed, joined, backwards):
            assert_close(whole, other)


def test_rows_of_weight_zero_and_many_blocks(monkeypatch):
    weight = np.where(np.arange(N) % 3 == 0, 0.0, 2.0)
    used = weight > 0
    monkeypatch.setattr("featcache.solvers.sums.row_blocks", small_blocks)
    assert_close(class_sums(X[used], CODES[used], weight[used]), class_sums(X, CODES, weight))
    empty = class_sums(X, CODES, np.zeros(N))
    assert not empty.weights.any() and not empty.scatter.any()


def small_blocks(x, dtype):
    for start in range(0, x.shape[0], 17):
        yield slice(start, min(start + 17, x.shape[0])), np.asarray(x[start : start + 17], dtype=dtype)


def test_classes_move_to_new_places():
    sums = class_sums(X)
    sums.spread_to(np.array([0, 2, 4, 6, 7]), 8)
    assert sums.weights[[1, 3, 5]].tolist() == [0, 0, 0] and sums.weights.sum() == pytest.approx(W.sum())


def test_targets_of_classes_equal_targets_of_rows():
    table = sign_targets(np.bincount(CODES, W), balanced=True)
    assert np.abs(W @ table[CODES]).max() < 1e-9  # balanced columns have mean 0
    assert_close(target_sums(X, table[CODES]), class_sums(X).with_targets(table), 1e-11)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: class_sums(X).update(X[:, :3], CODES), "shape"),
        (lambda: class_sums(X).update(X, CODES[:3]), "with 3"),
        (lambda: class_sums(X).update(X, CODES + K), "class numbers"),
        (lambda: class_sums(X).update(X, CODES, -W), "weight"),
        (lambda: class_sums(X).merge(target_sums(X, X)), "ClassMoments"),
        (lambda: ClassMoments(D, K, scatter=False).with_targets(np.eye(K)), "scatter=True"),
        (lambda: target_sums(X, X).update(X, X[:, :2]), "targets of shape"),
    ],
)
def test_errors_are_one_clear_line(call, reason):
    with pytest.raises(HeadError, match=reason) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_shares_and_scales_are_scikit_learns():
    x = X - X.mean(axis=0)
    scatter = x.T @ x
    S, trace = scatter / N, np.trace(scatter) / N
    upper, lower = (1 - 2 / D) * np.trace(S @ S) + trace**2, (N + 1 - 2 / D) * (np.trace(S @ S) - trace**2 / D)
    share = oas_share(float(np.square(scatter).sum()), float(np.trace(scatter)), D, N)
    assert share == pytest.approx(upper / lower)
    long = RNG.standard_normal((30, 500))  # scikit-learn leaves out the terms in 2/d
    share = oas_share(float(np.square(long.T @ long).sum()), float(np.square(long).sum()), 500, 30)
    assert share == pytest.approx(oas(long, assume_centered=True)[1], rel=0.01)
    assert oas_share(float(D), float(D), D, 10.0) == 1.0 and oas_share(0.0, 0.0, D, 10.0) == 1.0
    np.testing.assert_allclose(shrunk_scale(X.var(axis=0), N), ShrunkScaler().fit(X).scale_, rtol=1e-12)
    assert shrunk_scale(np.zeros(3), 5.0).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize(("n", "d"), [(60, 12), (30, 60)])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("intercept", [True, False])
def test_leave_one_out_is_brute_force(n, d, weighted, intercept):
    x, y = RNG.standard_normal((n, d)) + 3.0, RNG.standard_normal((n, 4))
    weight = RNG.random(n) + 0.2 if weighted else None
    alphas = [100.0, 1.0, 1e-2]
    paths = [
        RidgePath.of_sums(target_sums(x, y, weight), fit_intercept=intercept),
        RidgePath.of_rows(x, y, weight, fit_intercept=intercept),
    ]
    np.testing.assert_allclose(paths[0].gcv(alphas), paths[1].gcv(alphas), rtol=1e-6)
    for i, alpha in enumerate(alphas):
        left_out = np.empty_like(y)
        for j in range(n):
            rest = np.arange(n) != j
            model = Ridge(alpha=alpha, fit_intercept=intercept, solver="svd")
            model.fit(x[rest], y[rest], None if weight is None else weight[rest])
            left_out[j] = model.predict(x[j : j + 1])[0]
        model.fit(x, y, weight)
        errors = np.square(left_out - y).T @ (np.ones(n) if weight is None else weight)
        for path in paths:
            found = path.leave_one_out(alphas, x, y.__getitem__, weight, best=True)
            if weight is None:
                np.testing.assert_allclose(path.left_out(alphas, x, y.__getitem__)[i], left_out, rtol=1e-7, atol=1e-9)
            np.testing.assert_allclose(found.squared_errors[i], errors, rtol=1e-8)
            np.testing.assert_array_equal(found.winners[i], left_out.argmax(axis=1))
            np.testing.assert_allclose(path.solve(alpha)[0], model.coef_, atol=1e-10)
        coef, bias = ridge_solution(target_sums(x, y, weight), alpha, fit_intercept=intercept)
        np.testing.assert_allclose(coef, model.coef_, atol=1e-8)
        np.testing.assert_allclose(bias, model.intercept_ if intercept else 0.0, atol=1e-8)


def test_generalised_cross_validation_is_its_definition():
    y, alpha = RNG.standard_normal((N, 2)), 3.0
    centred = X - X.mean(axis=0)
    hat = centred @ np.linalg.solve(centred.T @ centred + alpha * np.eye(D), centred.T) + 1.0 / N
    expected = N * np.square(y - hat @ y).sum(axis=0) / (N - np.trace(hat)) ** 2
    np.testing.assert_allclose(RidgePath.of_sums(target_sums(X, y, None)).gcv([alpha])[0], expected, rtol=1e-10)


@pytest.mark.parametrize(("n", "d", "k"), [(400, 30, 6), (60, 90, 4), (300, 40, 2)])
def test_the_choice_is_that_of_scikit_learn(n, d, k):
    rng = np.random.default_rng(n)
    codes = rng.integers(0, k, n)
    x = rng.standard_normal((k, d))[codes] + 3 * rng.standard_normal((n, d))
    alphas = np.geomspace(1e-3, 1e6, 28)
    theirs = RidgeClassifierCV(alphas, store_cv_results=True).fit(x, codes)
    sums = ClassMoments(d, k)
    sums.update(x, codes)
    table = sign_targets(sums.weights)
    found = RidgePath.of_sums(sums.with_targets(table)).leave_one_out(alphas, x, lambda rows: table[codes[rows]])
    means = theirs.cv_results_.reshape(-1, len(alphas)).mean(axis=0)
    np.testing.assert_allclose(found.squared_errors.sum(axis=1) / (n * k), means, rtol=1e-6)
    assert alphas[found.squared_errors.sum(axis=1).argmin()] == theirs.alpha_


def test_constant_and_repeated_rows():
    x = np.tile(X[:3], (10, 1))
    y = np.tile(np.eye(3), (10, 1))
    for path in (RidgePath.of_sums(target_sums(x, y, None)), RidgePath.of_rows(x, y)):
        assert np.isfinite(path.leave_one_out([1e-3, 1.0], x, y.__getitem__).squared_errors).all()
    flat = RidgePath.of_sums(target_sums(np.ones((9, 4)), y[:9], None))
    coef, bias = flat.solve(1.0)
    assert not coef.any() and bias == pytest.approx(y[:9].mean(axis=0))
    assert np.isfinite(flat.gcv([1.0])).all()
