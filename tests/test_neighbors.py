"""Nearest rows: equal to brute force whatever the blocks; the vote: settings by leave-one-out, appended rows exact."""

from __future__ import annotations

import sys
import types

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.errors import HeadError
from featcache.heads.kernel import NystroemClassifier
from featcache.heads.neighbors import NEIGHBORS_GRID, TEMPERATURE_GRID, CosineKNeighborsClassifier
from featcache.solvers.neighbors import nearest, nearest_others, unit_rows

RNG = np.random.default_rng(0)
X, Y = load_digits(return_X_y=True)
X, Y = X[:500].astype("float32"), np.char.add("digit ", Y[:500].astype(str))


@parametrize_with_checks([CosineKNeighborsClassifier(), NystroemClassifier(n_components=50)])
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


def brute(queries, base, k, metric, own=None):
    """All pairs, a full stable sort."""
    if metric == "cosine":
        near = unit_rows(queries) @ unit_rows(base).T
    else:
        near = -np.square(queries[:, None] - base[None]).sum(axis=2)
    near = np.round(near, 9)
    if own is not None:
        near[own[0][:, None] == own[1][None, :]] = -np.inf
    rows = np.argsort(-near, axis=1, kind="stable")[:, :k]
    values = np.take_along_axis(near, rows, 1)
    return values, np.where(values == -np.inf, -1, rows)


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("block_bytes", [1, 300, 1 << 20])
def test_equal_to_brute_force_whatever_the_blocks(metric, device, block_bytes):
    base, queries = RNG.normal(size=(57, 4)), RNG.normal(size=(23, 4))
    base[5] = base[20] = 0.0
    near, rows = nearest(queries, base, 7, metric=metric, device=device, block_bytes=block_bytes)
    values, expected = brute(queries, base, 7, metric)
    np.testing.assert_allclose(near, values, atol=1e-8)
    np.testing.assert_array_equal(rows, expected)


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize("block_bytes", [1, 200, 1 << 20])
def test_of_equals_the_smaller_row_number_comes_first(device, block_bytes):
    base = np.zeros((60, 2))
    base[np.arange(60), RNG.integers(0, 2, 60)] = 1.0  # only two different rows: products are exact
    queries = np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]])
    for k in (1, 5, 40, 60):
        _, rows = nearest(queries, base, k, device=device, block_bytes=block_bytes)
        np.testing.assert_array_equal(rows, brute(queries, base, k, "cosine")[1])


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_leave_one_out_and_groups(metric):
    rows, groups = RNG.normal(size=(30, 5)), RNG.integers(0, 4, 30)
    for given, codes in ((None, np.arange(30)), (groups, groups)):
        near, found = nearest_others(rows, 25, groups=given, metric=metric, block_bytes=400)
        values, expected = brute(rows, rows, 25, metric, (codes, codes))
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(near, values, atol=1e-8)
    assert (found == -1).any()  # a group of more than four rows leaves fewer than 25


def test_a_map_of_float16_far_from_zero(tmp_path):
    rows = (RNG.normal(size=(300, 8)) * 4 + 1000).astype("float16")
    np.save(tmp_path / "x.npy", rows)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    wide = rows.astype(np.float64)
    near, found = nearest(wide[:20], mapped, 3, metric="euclidean", block_bytes=512)
    values, expected = brute(wide[:20], wide, 3, "euclidean")
    np.testing.assert_allclose(near, values, atol=1e-2)
    assert near.dtype == np.float32 and (found[:, 0] == np.arange(20)).all() and (found == expected).mean() > 0.95


def test_tensors_stay_tensors_and_give_the_same():
    import torch

    rows = RNG.normal(size=(50, 6)).astype("float32")
    near, found = nearest(torch.from_numpy(rows[:9]), torch.from_numpy(rows), 4, block_bytes=200)
    values, expected = nearest(rows[:9], rows, 4)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(near, values, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: nearest(X, X, 0), "k from 1"),
        (lambda: nearest(X, X, 501), "500 rows"),
        (lambda: nearest(X, X[:, :3], 1), "same width"),
        (lambda: nearest(X, X, 1, metric="dot"), "cosine"),
        (lambda: nearest_others(X, 1, groups=[1, 2]), "500 values"),
    ],
)
def test_errors_are_one_clear_line(call, reason):
    with pytest.raises(HeadError, match=reason) as caught:
        call()
    assert "\n" not in str(caught.value)


def loo_reference(rows, y, k, temperature):
    """Accuracy and log loss of the vote, one row left out after the other."""
    hits, losses = 0, 0.0
    for i in range(len(rows)):
        others = np.arange(len(rows)) != i
        head = CosineKNeighborsClassifier(k, temperature=temperature).fit(rows[others], y[others])
        p = head.predict_proba(rows[i : i + 1])[0]
        hits += head.classes_[p.argmax()] == y[i]
        losses -= np.log(p[np.flatnonzero(head.classes_ == y[i])[0]])
    return hits / len(rows), losses / len(rows)


def test_settings_are_the_best_of_exact_leave_one_out():
    rows, y = X[:24].astype(float), Y[:24]
    head = CosineKNeighborsClassifier().fit(rows, y)
    chosen = loo_reference(rows, y, head.n_neighbors_, head.temperature_)
    assert (head.loo_score_, head.loo_log_loss_) == pytest.approx(chosen)
    for k in NEIGHBORS_GRID[:5]:
        for temperature in TEMPERATURE_GRID[::3]:
            score, loss = loo_reference(rows, y, k, temperature)
            assert score < chosen[0] + 1e-9 and (score < chosen[0] - 1e-9 or loss >= chosen[1] - 1e-9)


def test_uniform_votes_are_those_of_scikit_learn():
    head = CosineKNeighborsClassifier(5, weights="uniform", metric="euclidean").fit(X[:300], Y[:300])
    other = KNeighborsClassifier(5, algorithm="brute").fit(X[:300], Y[:300])
    np.testing.assert_array_equal(head.predict(X[300:]), other.predict(X[300:]))
    np.testing.assert_allclose((head.predict_proba(X[300:]) * 6 - 0.1) / 5, other.predict_proba(X[300:]), atol=1e-9)
    distances, rows = head.kneighbors(X[300:310])
    expected, places = other.kneighbors(X[300:310])
    np.testing.assert_allclose(distances, expected, rtol=1e-4)
    np.testing.assert_array_equal(rows, places)


@pytest.mark.parametrize("temperature", [1e-30, 0.07, 1e30])
def test_no_temperature_overflows(temperature):
    head = CosineKNeighborsClassifier(10, temperature=temperature).fit(X[:300], Y[:300])
    p = head.predict_proba(X[300:])
    assert np.isfinite(p).all() and (p > 0).all()
    np.testing.assert_allclose(p.sum(axis=1), 1.0)


@pytest.mark.parametrize("settings", [{}, {"metric": "euclidean"}, {"n_neighbors": 3, "temperature": 0.1}])
def test_appended_rows_count_as_if_they_had_been_there(settings):
    whole = CosineKNeighborsClassifier(**settings).fit(X[:200], Y[:200])
    parts = CosineKNeighborsClassifier(**settings)
    for start in range(0, 200, 50):
        parts.partial_fit(X[start : start + 50], Y[start : start + 50], classes=np.unique(Y))
    assert (parts.n_neighbors_, parts.temperature_, parts.scale_) == (
        whole.n_neighbors_,
        whole.temperature_,
        whole.scale_,
    )
    np.testing.assert_array_equal(parts.predict_proba(X[200:]), whole.predict_proba(X[200:]))


def test_groups_choose_against_copies():
    """Each row stands there three times with noisy labels per group: copies of oneself make k = 1 look perfect."""
    rows = np.repeat(RNG.normal(size=(60, 3)), 3, axis=0) + 1.0
    y = np.repeat(RNG.integers(0, 2, 60), 3)
    groups = np.repeat(np.arange(60), 3)
    blind = CosineKNeighborsClassifier().fit(rows, y)
    aware = CosineKNeighborsClassifier().fit(rows, y, groups=groups)
    assert blind.loo_score_ == 1.0 and aware.loo_score_ < 0.8


def test_one_row_per_class_and_a_lonely_class():
    rows = np.asarray([np.flatnonzero(c == Y)[0] for c in np.unique(Y)])
    head = CosineKNeighborsClassifier().fit(X[rows], Y[rows])
    assert (head.n_neighbors_, head.temperature_, head.loo_score_) == (1, 0.07, None)
    assert (head.predict(X) == Y).mean() > 0.4
    lonely = np.concatenate([np.arange(100), [450]])
    y = np.append(Y[:100], "once")
    assert CosineKNeighborsClassifier().fit(X[lonely], y).predict(X[450:451])[0] == "once"


def test_balanced_votes_help_the_rare_class():
    many, few = RNG.normal([1.0, 0.0], 0.7, (200, 2)), RNG.normal([0.0, 1.0], 0.7, (10, 2))
    rows, y = np.vstack([many, few]), np.repeat([0, 1], [200, 10])
    test = RNG.normal([0.0, 1.0], 0.7, (200, 2))
    plain, balanced = (
        CosineKNeighborsClassifier(50, temperature=0.3, class_weight=w).fit(rows, y) for w in (None, "balanced")
    )
    assert balanced.predict(test).mean() > plain.predict(test).mean() + 0.2


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"n_neighbors": 0}, "n_neighbors"),
        ({"n_neighbors": 2.5}, "n_neighbors"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": "hot"}, "temperature"),
        ({"weights": "cubic"}, "softmax"),
        ({"metric": "l1"}, "euclidean"),
        ({"search": "fast"}, "approximate"),
    ],
)
def test_settings_are_checked(settings, reason):
    with pytest.raises(ValueError, match=reason):
        CosineKNeighborsClassifier(**settings).fit(X[:50], Y[:50])


class Flat:
    """As much of faiss' inverted file as is used, exact."""

    def __init__(self, *_):
        self.cp, self.rows = types.SimpleNamespace(), []

    def train(self, rows):
        assert rows.dtype == np.float32

    def add(self, rows):
        self.rows.append(rows.copy())

    def search(self, queries, k):
        near, rows = nearest(queries, np.concatenate(self.rows), k)
        rows[0, -1] = -1  # as where too few rows lie in the cells
        return near, rows


def test_approximate_search(monkeypatch):
    fake = types.SimpleNamespace(IndexFlat=lambda *_: None, IndexIVFFlat=Flat, METRIC_INNER_PRODUCT=0, METRIC_L2=1)
    settings = {"n_neighbors": 5, "temperature": 0.1}
    exact = CosineKNeighborsClassifier(**settings).fit(X, Y)
    near = CosineKNeighborsClassifier(**settings, search="approximate").fit(X, Y)
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(HeadError, match=r"featcache\[ann\]"):
        near.predict(X)
    monkeypatch.setitem(sys.modules, "faiss", fake)
    np.testing.assert_allclose(near.predict_proba(X), exact.predict_proba(X), atol=1e-6)
    before = set(vars(near))
    near.partial_fit(X[:3], Y[:3])  # other rows, another index
    assert near.kneighbors(X[:1], 503)[1].max() == 502 and set(vars(near)) == before


def test_real_faiss_finds_nearly_all():
    pytest.importorskip("faiss")
    exact = CosineKNeighborsClassifier(5, temperature=0.1).fit(X, Y)
    near = clone(exact).set_params(search="approximate").fit(X, Y)
    assert (near.kneighbors(X)[1] == exact.kneighbors(X)[1]).mean() > 0.9


def test_nystroem_with_all_landmarks_is_kernel_ridge():
    from sklearn.kernel_ridge import KernelRidge

    head = NystroemClassifier(n_components=120, gamma=1e-3, alpha=0.1).fit(X[:120], Y[:120])
    targets = np.where(Y[:120, None] == head.classes_, 1.0, -1.0)
    kernel = KernelRidge(alpha=0.1, kernel="rbf", gamma=1e-3)
    # Without an intercept: centre the features instead, which the head does.
    Z = head.nystroem_.transform(X[:120].astype(float))
    kernel.set_params(kernel="linear").fit(Z - Z.mean(axis=0), targets - targets.mean(axis=0))
    expected = kernel.predict(head.nystroem_.transform(X[120:200].astype(float)) - Z.mean(axis=0))
    np.testing.assert_allclose(head.decision_function(X[120:200]), expected + targets.mean(axis=0), atol=1e-6)


def test_nystroem_leaves_rows_out_exactly():
    head = NystroemClassifier(n_components=20, gamma=1e-3, alpha=0.1, class_weight="balanced").fit(X[:60], Y[:60])
    from featcache.heads.kernel import _Ridge

    Z = head.nystroem_.transform(X[:60].astype(float))
    targets, weight = np.where(Y[:60, None] == head.classes_, 1.0, -1.0), RNG.random(60) + 0.5
    weight *= 60 / weight.sum()
    total = 0.0
    for i in range(60):
        kept = np.arange(60) != i
        scale = weight[kept].sum() / kept.sum()  # the parts normalise their weights anew
        coef, intercept = _Ridge(Z[kept], targets[kept], weight[kept]).weights(0.1 / scale)
        total += weight[i] * np.square(Z[i] @ coef + intercept - targets[i]).sum()
    assert _Ridge(Z, targets, weight).left_out(0.1, np.zeros(60, int))[1] == pytest.approx(total)


def test_nystroem_beats_a_line_on_rings():
    angle, radius = RNG.random(300) * 6.3, np.repeat([1.0, 2.0], 150)
    rings = np.column_stack([np.cos(angle), np.sin(angle)]) * (radius + RNG.normal(0, 0.1, 300))[:, None]
    head = NystroemClassifier().fit(rings[::2], radius[::2] > 1.5)
    assert head.score(rings[1::2], radius[1::2] > 1.5) > 0.98
    flat = NystroemClassifier().fit(np.ones((10, 3)), [0, 1] * 5)  # constant rows have no scale
    assert np.isfinite(flat.decision_function(np.ones((1, 3)))).all()
