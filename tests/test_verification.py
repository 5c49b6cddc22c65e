"""Verification: pairs and rates against brute force, metrics, thresholds, enrolment, and no look at test identities."""

from __future__ import annotations

import json
import time
import warnings

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache import FeatureSet, Verifier, verify
from featcache.cli import run
from featcache.errors import HeadError, SplitError
from featcache.heads import FittedHead
from featcache.verification import (
    CosineMetric,
    Curve,
    LDAMetric,
    PLDAMetric,
    ScoreHistogram,
    SiameseMetric,
    WCCNMetric,
    WhiteningMetric,
    evaluating,
    identity_folds,
    make_metric,
    make_pairs,
    plot_verification,
    siamese,
)
from featcache.verification.episodes import draw_episodes
from featcache.verification.pairs import apart, pair_blocks, pair_counts
from featcache.verification.rates import all_scores, eer_interval, streamed_histogram


def faces(identities=24, images=6, d=20, seed=0, sway=0.6):
    """Identities in d dimensions whose images all vary along the same few strong directions."""
    generator = np.random.default_rng(seed)
    shape = np.random.default_rng(99).normal(size=(d, d)) * np.geomspace(2.0, 0.1, d)
    counts = np.full(identities, images) if np.isscalar(images) else np.resize(images, identities)
    y = np.repeat(np.arange(identities), counts)
    X = generator.normal(size=(identities, d))[y] + sway * generator.normal(size=(len(y), d)) @ shape.T
    return X.astype(np.float32), np.asarray([f"p{i:03d}" for i in y])


@pytest.fixture(scope="module")
def data():
    X, y = faces()
    return FeatureSet(X, y, spec={"a": 1}, fingerprint="f1", node="pool", name="faces")


@pytest.fixture(scope="module")
def verifier(data):
    return Verifier("wccn", far=0.05).fit(data)


# -- pairs -----------------------------------------------------------------------------------------------------------


def brute(codes, bursts=None):
    n = len(codes)
    return {
        (i, j)
        for i in range(n)
        for j in range(i + 1, n)
        if bursts is None or bursts[i] != bursts[j]
    }  # fmt: skip


def test_all_pairs_are_those_of_two_loops():
    y, bursts = np.asarray(list("aabbbc")), np.asarray(["u", "u", "v", "w", "", ""])
    for given in (None, bursts):
        pairs = make_pairs(y, bursts=given)
        codes = None if given is None else apart(given, len(y))
        assert set(zip(pairs.first.tolist(), pairs.second.tolist(), strict=True)) == brute(y, codes)
        assert (pairs.same == (y[pairs.first] == y[pairs.second])).all()
        counted = pair_counts(np.unique(y, return_inverse=True)[1], codes)
        assert counted == (pairs.same.sum(), (~pairs.same).sum())


@pytest.mark.parametrize("n", [40, 2001])
@pytest.mark.parametrize("balanced", [True, False])
def test_drawn_pairs_are_distinct_seeded_and_balanced(n, balanced):
    _, y = faces(60, [1, 2, 30])
    pairs = make_pairs(y, n, 3, balanced=balanced)
    keys = pairs.first * len(y) + pairs.second
    assert len(pairs) == n == len(np.unique(keys)) and (pairs.first < pairs.second).all()
    assert (pairs.same == (y[pairs.first] == y[pairs.second])).all()
    assert not balanced or abs(int(pairs.same.sum()) - n / 2) <= 1
    again, other = make_pairs(y, n, 3, balanced=balanced), make_pairs(y, n, 4, balanced=balanced)
    assert (again.first == pairs.first).all() and (again.second == pairs.second).all()
    assert not np.array_equal(other.first, pairs.first)


def test_genuine_pairs_are_drawn_evenly_over_pairs_and_never_within_a_burst():
    y = np.repeat([0, 1], [500, 1000])
    pairs = make_pairs(y, 4000, 0)
    share = (y[pairs.first[pairs.same]] == 1).mean()
    assert abs(share - 499500 / (499500 + 124750)) < 0.04  # by pairs, not by identities
    bursts = np.arange(1500) // 10
    pairs = make_pairs(y, 4000, 0, bursts=bursts)
    assert (bursts[pairs.first] != bursts[pairs.second]).all() and len(pairs) == 4000


def test_pairs_that_cannot_be():
    for arguments, said in (
        ((["a"],), "two rows"), ((["a", "b"], 0), "n: expected"), ((["a", "b"], 2, -1), "seed"),
        ((np.zeros((2, 2)),), "one per row"),
    ):  # fmt: skip
        with pytest.raises(HeadError, match=said):
            make_pairs(*arguments)
    with pytest.raises(HeadError, match="too many to list"):
        make_pairs(np.arange(7000))
    assert len(make_pairs(["a", "b"], 100)) == 1  # as many as there are


def test_blocks_cover_each_pair_once():
    seen = np.zeros((23, 23), dtype=int)
    for rows, columns, mask in pair_blocks(23, 5):
        seen[rows, columns] += mask
    assert (seen == np.triu(np.ones((23, 23), dtype=int), 1)).all()


def test_folds_keep_identities_and_groups_whole():
    _, y = faces(30, [1, 4, 9])
    groups = np.asarray([f"g{int(name[1:]) % 7}" for name in y])
    for given in (None, groups):
        folds = identity_folds(y, 3, groups=given, seed=1)
        assert len(np.unique(np.concatenate(folds))) == len(y) and len(folds) == 3
        unit = y if given is None else groups
        assert all(not set(unit[a]) & set(unit[b]) for i, a in enumerate(folds) for b in folds[:i])
    with pytest.raises(SplitError, match="share no group"):
        identity_folds(y, 3, groups=np.zeros(len(y)))


def test_folds_of_many_identities_cost_a_sort():
    y = np.arange(240_000) % 60_000
    start = time.perf_counter()
    folds = identity_folds(y, 60_000)
    assert time.perf_counter() - start < 4.0  # a search of all rows per fold takes several times that
    assert [fold.tolist() for fold in folds[:2]] == [[0, 60_000, 120_000, 180_000], [1, 60_001, 120_001, 180_001]]


# -- rates -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
def test_the_curve_is_scikit_learns_roc(ties):
    generator = np.random.default_rng(0)
    genuine, impostor = generator.normal(1, 1, 300), generator.normal(0, 1, 700)
    if ties:
        genuine, impostor = genuine.round(1), impostor.round(1)
    curve = Curve.of(genuine, impostor)
    truth, scores = np.r_[np.ones(300), np.zeros(700)], np.r_[genuine, impostor]
    far, tar, thresholds = roc_curve(truth, scores, drop_intermediate=False)
    for t, f, a in zip(thresholds[1:], far[1:], tar[1:], strict=True):
        assert curve.rates_at(t) == pytest.approx((f, 1 - a))
    assert curve.auroc() == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    low, high = (curve.far >= curve.frr).nonzero()[0][-1], (curve.far <= curve.frr).nonzero()[0][0]
    assert min(curve.far[high], curve.frr[low]) <= curve.eer() <= max(curve.far[low], curve.frr[high])
    wanted = curve.threshold_at(0.1)
    assert (impostor >= wanted.threshold).mean() == pytest.approx(wanted.far) and wanted.far <= 0.1
    below = curve.thresholds[curve.thresholds < wanted.threshold][-1]
    assert (impostor >= below).mean() > 0.1
    assert curve.tar_at(0.1) == pytest.approx((genuine >= wanted.threshold).mean())


def test_equal_error_rate_between_thresholds():
    assert Curve.of([2, 3], [0, 1]).eer() == 0.0
    assert Curve.of([0, 1], [2, 3]).eer() == 1.0
    assert Curve.of([1], [1]).eer() == pytest.approx(0.5)  # one score for all: a coin
    curve = Curve.of([0.9, 0.8, 0.4], [0.5, 0.2, 0.1])
    assert curve.eer() == pytest.approx(1 / 3) and 0.4 <= curve.eer_threshold() <= 0.5
    for wrong in ([], [np.nan], [np.inf]):
        with pytest.raises(HeadError, match="genuine"):
            Curve.of(wrong, [1.0])
    with pytest.raises(HeadError, match="between 0 and 1"):
        curve.threshold_at(1.5)


def test_the_rule_of_30():
    impostor = np.arange(3000.0)
    assert Curve.of([0.0], impostor).threshold_at(0.01).supported
    assert not Curve.of([0.0], impostor[1:]).threshold_at(0.01).supported


def test_the_stream_gives_the_rates_of_all_pairs():
    X, y = faces(40, [1, 3, 8])
    codes = np.unique(y, return_inverse=True)[1]
    metric = CosineMetric().fit(X)
    Z = metric.transform(X)
    scores, same, first, second = all_scores(Z, codes, metric.score_matrix)
    exact = Curve.of(scores[same], scores[~same])
    frame = streamed_histogram(Z, codes, metric.score_matrix, block_rows=37)
    stream = frame.curve()
    assert (stream.n_genuine, stream.n_impostor) == (exact.n_genuine, exact.n_impostor)
    assert stream.eer() == pytest.approx(exact.eer(), abs=0.003)
    assert stream.auroc() == pytest.approx(exact.auroc(), abs=0.001)
    assert ((codes[None] == codes[:, None])[np.triu_indices(len(y), 1)]).sum() == same.sum()
    parts = ScoreHistogram(-1, 1)
    parts.add(scores[:100], same[:100])
    parts.add(scores[100:], same[100:])
    assert parts.counts.sum() == len(scores)
    with pytest.raises(HeadError, match="NaN"):
        parts.add([np.nan], [True])


def test_the_interval_resamples_identities_not_pairs():
    X, y = faces(20, 4, sway=1.0)
    metric = CosineMetric().fit(X)
    codes = np.unique(y, return_inverse=True)[1]
    scores, same, first, second = all_scores(metric.transform(X), codes, metric.score_matrix)
    low, high = eer_interval(scores, first, second)
    assert low < Curve.of(scores[same], scores[~same]).eer() < high
    assert (low, high) == eer_interval(scores, first, second)
    # Five copies of all pairs are no more knowledge; resampling pairs would make the interval less than half as wide.
    assert eer_interval(np.tile(scores, 5), np.tile(first, 5), np.tile(second, 5)) == pytest.approx((low, high))


# -- metrics ---------------------------------------------------------------------------------------------------------

EACH = [
    CosineMetric(), WhiteningMetric(), WCCNMetric(), LDAMetric(), PLDAMetric(),
    SiameseMetric(max_steps=6, n_components=8),
]  # fmt: skip


@parametrize_with_checks(EACH)
def test_scikit_learns_checks(estimator, check):
    check(estimator)


def rate(metric, X, y):
    codes = np.unique(y, return_inverse=True)[1]
    scores, same, _, _ = all_scores(metric.transform(X), codes, metric.score_matrix)
    return Curve.of(scores[same], scores[~same]).eer()


@pytest.mark.parametrize("metric", EACH[1:], ids=lambda m: type(m).__name__)
def test_each_beats_the_cosine_on_new_identities(metric):
    train, test = faces(80, 8, seed=1, sway=1.0), faces(60, 8, seed=2, sway=1.0)
    baseline = rate(CosineMetric().fit(*train), *test)
    metric.set_params(shrinkage=0.05)
    if isinstance(metric, SiameseMetric):
        metric.set_params(max_steps=20, n_components=20)
    assert rate(metric.fit(*train), *test) < baseline - 0.02


@pytest.mark.parametrize("name", ["whiten", "wccn", "lda", "plda", "siamese"])
@pytest.mark.parametrize("images", [[1, 2, 20], [2]], ids=str)
def test_more_features_than_rows(name, images):
    X, y = faces(12, images, d=300)
    metric = make_metric(name).fit(X, y)
    Z = metric.transform(X)
    assert np.isfinite(Z).all() and np.isfinite(metric.score_matrix(Z, Z)).all()
    assert np.allclose(np.diag(metric.score_matrix(Z, Z)), metric.score_rows(Z, Z), rtol=1e-4)
    new = metric.transform(faces(5, 3, d=300, seed=9)[0])
    assert np.isfinite(new).all() and (np.abs(new).sum(axis=1) > 0).all()


@pytest.mark.parametrize("shape", [(50, 8), (10, 40)])
def test_wccn_and_whitening_are_the_inverse_covariance(shape):
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=shape), np.arange(shape[0]) % 5
    means = np.stack([X[y == c].mean(0) for c in range(5)])[y]
    for metric, rows, dof in (
        (WCCNMetric(0.2), X - means, shape[0] - 5),
        (WhiteningMetric(0.2), X - X.mean(0), shape[0] - 1),
    ):
        S = rows.T @ rows / dof
        wanted = np.linalg.inv(0.8 * S + 0.2 * np.trace(S) / shape[1] * np.eye(shape[1]))
        components = metric.fit(X, y).components_
        assert np.allclose(components.T @ components, wanted, rtol=1e-6, atol=1e-8 * abs(wanted).max())


def test_full_shrinkage_is_the_cosine():
    X, y = faces()
    base = CosineMetric().fit(X)
    Z = base.transform(X)
    for metric in (WCCNMetric(1.0), WhiteningMetric(1.0)):
        other = metric.fit(X, y).transform(X)
        assert np.allclose(other @ other.T, Z @ Z.T, atol=1e-5)


def test_plda_is_the_ratio_of_gaussian_densities():
    from scipy.stats import multivariate_normal

    X, y = faces(40, 5, d=4)
    metric = PLDAMetric(length_norm=False, power=1.0).fit(X.astype(float), y)
    Z, p = metric.transform(X[:6].astype(float)), metric.between_
    k = len(p)
    for n in (1, 3):
        b = Z[1 : 1 + n]
        total = np.eye((n + 1) * k) + np.kron(np.ones((n + 1, n + 1)), np.diag(p))
        apart_ = np.eye(n * k) + np.kron(np.ones((n, n)), np.diag(p))
        together = multivariate_normal(cov=total).logpdf(np.concatenate([Z[0], b.ravel()]))
        alone = multivariate_normal(cov=np.eye(k) + np.diag(p)).logpdf(Z[0])
        alone += multivariate_normal(cov=apart_).logpdf(b.ravel())
        score = metric.score_matrix(Z[:1], metric.template(b)[None], np.asarray([n]))
        assert score[0, 0] == pytest.approx(together - alone, rel=1e-6)


def test_plda_finds_the_variances_it_was_given():
    generator = np.random.default_rng(0)
    psi, y = np.asarray([4.0, 1.0, 0.25]), np.repeat(np.arange(3000), 4)
    X = (generator.normal(size=(3000, 3)) * np.sqrt(psi))[y] + generator.normal(size=(12000, 3))
    metric = PLDAMetric(shrinkage=0.0, power=1.0).fit(X, y)
    assert np.allclose(metric.between_, psi, rtol=0.1)


def test_siamese_is_seeded_and_training_does_not_touch_the_global_state():
    import torch

    X, y = faces()
    state = torch.get_rng_state()
    first, second = (SiameseMetric(max_steps=20).fit(X, y).components_ for _ in range(2))
    assert np.array_equal(first, second) and torch.equal(state, torch.get_rng_state())
    with pytest.raises(ValueError, match="max_steps"):
        SiameseMetric(max_steps=-1).fit(X, y)


@pytest.mark.parametrize(("share", "trained"), [(0.2, 19), (0.4, 14), (0.7, 7), (0.9, 2)])
def test_siamese_holds_out_the_share_it_is_asked_for(share, trained, monkeypatch):
    seen = []
    start = siamese._Problem.__init__
    monkeypatch.setattr(
        siamese._Problem, "__init__", lambda s, X, y, *a: seen.append(len(set(y))) or start(s, X, y, *a)
    )
    SiameseMetric(max_steps=2, held_out=share).fit(*faces())
    assert seen == [trained, 24]


def test_siamese_stops_by_whole_groups_and_pairs_of_two_bursts(monkeypatch):
    X, y = faces()
    groups = np.asarray([f"g{int(name[1:]) % 5}" for name in y])
    held = []
    best = SiameseMetric._best_step
    monkeypatch.setattr(SiameseMetric, "_best_step", lambda s, p, m, rest: held.append(rest) or best(s, p, m, rest))
    SiameseMetric(max_steps=2).fit(X, y, groups=groups)
    assert set(groups[held[0]]).isdisjoint(np.delete(groups, held[0]))
    drawn = []
    monkeypatch.setattr(siamese, "make_pairs", lambda *a, **o: drawn.append(make_pairs(*a, **o)) or drawn[-1])
    SiameseMetric(max_steps=2).fit(X, y, bursts=np.arange(len(y)) // 3)
    pairs, films = drawn[0], held[1] // 3
    assert pairs.same.any() and (films[pairs.first] != films[pairs.second]).all()
    metric = SiameseMetric(max_steps=9).fit(X, y, bursts=y)  # no pair is left to stop by
    assert len(held) == 2 and metric.n_steps_ == 3
    assert SiameseMetric(max_steps=9).fit(X, y, groups=np.zeros(len(y))).n_steps_ == 3
    Verifier("siamese", far=0.05).fit(X, y, groups=groups)
    assert set(groups[held[-1]]).isdisjoint(np.delete(groups, held[-1]))
    with pytest.raises(ValueError, match="groups"):
        metric.fit(X, y, groups=groups[1:])


@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_odd_numbers_do_no_harm(scale):
    X, y = faces()
    X = np.concatenate([X * scale, np.zeros((3, X.shape[1]))]).astype(np.float32)
    X[:, 3] = 7 * scale  # constant
    X[5] = X[6]
    y = np.append(y, ["z0", "z0", "z1"])
    for metric in EACH:
        Z = metric.fit(X, y).transform(X)
        assert np.isfinite(metric.score_matrix(Z, Z)).all(), metric
    for wrong in (-0.1, 1.5, "auto"):
        with pytest.raises(ValueError, match="shrinkage"):
            WCCNMetric(wrong).fit(X, y)
    with pytest.raises(ValueError, match="power"):
        CosineMetric(power=0).fit(X)
    with pytest.raises(ValueError, match="n_components"):
        LDAMetric(n_components=0).fit(X, y)


def test_one_image_of_each_identity_is_the_cosine():
    X, _ = faces(20, 1)
    Z = CosineMetric().fit(X).transform(X)
    other = WCCNMetric().fit(X, np.arange(20)).transform(X)
    assert np.allclose(Z @ Z.T, other @ other.T, atol=1e-5)


# -- Verifier --------------------------------------------------------------------------------------------------------


def test_same_follows_the_threshold_and_keeps_to_the_rate_on_new_identities(verifier):
    X, y = faces(60, 6, seed=5)
    pairs = make_pairs(y)
    A, B = X[pairs.first], X[pairs.second]
    scores, same = verifier.score_pairs(A, B), verifier.same(A, B)
    assert (same == (scores >= verifier.threshold_)).all()
    assert 0.02 < same[~pairs.same].mean() < 0.1  # 0.05 wanted
    assert same[pairs.same].mean() > 0.4
    chance = verifier.same_proba(A, B)
    assert (np.diff(chance[np.argsort(scores)]) >= 0).all()
    half = np.abs(scores - np.median(scores[pairs.same])).argmin()
    assert verifier.same_proba(A, B, prior=0.01)[half] < chance[half]
    share = [pairs.same[(chance > a) & (chance <= a + 0.25)] for a in (0.0, 0.75)]
    assert share[0].mean() < 0.1 < share[1].mean()


def test_threshold_and_calibration_come_from_held_out_identities():
    generator = np.random.default_rng(0)
    X, y = generator.normal(size=(90, 200)), np.repeat(np.arange(30), 3)  # nothing to learn, much to memorise
    verifier = Verifier("lda", far=0.05).fit(X, y)
    seen = make_pairs(y)
    assert verifier.same(X[seen.first], X[seen.second])[seen.same].mean() > 0.8  # memorised
    assert verifier.eer_ > 0.35  # and known to be so
    assert abs(verifier.threshold_) < 0.6


def test_auto_and_row_order(data):
    forward = Verifier(far=0.05).fit(data)
    assert forward.metric_name_ in ("cosine", "whiten", "wccn", "lda", "plda")
    assert {row["metric"] for row in forward.tried_} == {"cosine", "whiten", "wccn", "lda", "plda"}
    assert forward.eer_ == min(row["eer"] for row in forward.tried_)
    backward = Verifier(far=0.05).fit(data.select(np.arange(len(data))[::-1]))
    assert backward.threshold_ == forward.threshold_ and backward.params_ == forward.params_
    assert np.array_equal(forward.score_pairs(data.X[:9], data.X[9:18]), backward.score_pairs(data.X[:9], data.X[9:18]))


@pytest.mark.parametrize("metric", ["wccn", "plda"])
@pytest.mark.parametrize("template", ["mean", "max"])
def test_enrolment_without_training(data, metric, template):
    verifier = Verifier(metric, far=0.05, template=template).fit(data)
    X, y = faces(30, 8, seed=7)
    before = verifier.metric_.components_.copy()
    for name in np.unique(y)[:10]:
        rows = X[y == name]
        verifier.enrol(str(name), rows[:3])
        verifier.enrol(str(name), rows[3])
    assert len(verifier.gallery) == 10 and len(verifier.gallery_vectors_) == 40
    assert np.array_equal(before, verifier.metric_.components_)
    known, new = y < "p010", y >= "p010"
    queries = known & (np.arange(len(y)) % 8 >= 4)
    named = verifier.identify(X[queries], top=3)
    assert np.mean([row["candidates"][0]["name"] == t for row, t in zip(named, y[queries], strict=True)]) > 0.6
    assert all(len(row["candidates"]) == 3 and row["score"] == row["candidates"][0]["score"] for row in named)
    strangers = verifier.predict(X[new])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        strict = np.asarray([row["name"] for row in verifier.identify(X[new], far=0.05)])
    assert (strict == "unknown").mean() >= (strangers == "unknown").mean()
    assert (strict == "unknown").mean() > 0.8
    gone = str(np.unique(y)[4])
    verifier.forget(gone)
    assert gone not in verifier.gallery and gone not in verifier.predict(X[queries])
    assert len(verifier.gallery_vectors_) == 36 and verifier.gallery_owners_.max() == 8
    assert json.dumps(named, allow_nan=False)


def test_saved_and_read_it_is_the_same(verifier, data, tmp_path):
    verifier.enrol("ann", data.X[:2])
    verifier.enrol("a.b/c ü", data.X[6:7])
    path = verifier.save(tmp_path / "v.verifier")
    other = Verifier.load(path)
    assert other.gallery == verifier.gallery == ["a.b/c ü", "ann"]
    assert other.identify(data) == verifier.identify(data)
    assert np.array_equal(other.same_proba(data.X, data.X[::-1]), verifier.same_proba(data.X, data.X[::-1]))
    assert other.get_params() == verifier.get_params() and other.threshold_at(0.2) == verifier.threshold_at(0.2)
    assert b"pickle" not in path.read_bytes()
    damaged = bytearray(path.read_bytes())
    damaged[-5] ^= 1
    (tmp_path / "d").write_bytes(damaged)
    with pytest.raises(HeadError, match="damaged"):
        Verifier.load(tmp_path / "d")
    FittedHead(CosineMetric().fit(data.X), data.classes, "other").save(tmp_path / "head")
    with pytest.raises(HeadError, match="expected a verifier"):
        Verifier.load(tmp_path / "head")
    for name in verifier.gallery:
        verifier.forget(name)


def test_foreign_codes_are_refused(verifier, data):
    for change in ({"fingerprint": "f2", "spec": {"a": 2}}, {"node": "fc"}):
        from dataclasses import replace

        with pytest.raises(HeadError, match="another spec"):
            verifier.score_pairs(replace(data, **change), data)
    with pytest.raises(HeadError, match="expected 20 features"):
        verifier.score_pairs(data.X[:, :5], data.X)
    with pytest.raises(HeadError, match="both sides"):
        verifier.score_pairs(data.X[:3], data.X[:4])
    with pytest.raises(HeadError, match="NaN"):
        verifier.score_pairs(np.full((1, 20), np.nan), data.X[:1])
    assert verifier.score_pairs(data.X[:0], data.X[:0]).shape == (0,)


def test_labels_of_any_kind_half_precision_clones_and_pickles(data):
    import pickle

    from sklearn.base import clone

    X, y = faces()
    numbers = np.asarray([int(name[1:]) for name in y])
    one, other = (Verifier("wccn", far=0.05).fit(rows, numbers) for rows in (X.astype("f2"), X.astype("f2").tolist()))
    assert one.threshold_ == pytest.approx(other.threshold_, abs=1e-6) and one.identities_[0] == "0"
    assert np.array_equal(pickle.loads(pickle.dumps(one)).score_pairs(X, X[::-1]), one.score_pairs(X, X[::-1]))
    assert clone(one).get_params() == one.get_params()
    partly = FeatureSet(data.X, np.where(data.y == "p003", "", data.y))
    fitted = Verifier("cosine", far=0.05).fit(partly)
    assert any("23 identities" in note for note in fitted.notes_)
    assert "6 rows without an identity left out" in fitted.notes_ and "p003" not in fitted.identities_


def test_what_cannot_be_trained_or_asked(verifier, data):
    X, y = faces()
    cases = [
        (Verifier("nearest"), X, y, "metric: expected"), (Verifier(far=1), X, y, "far"), (Verifier(cv=1), X, y, "cv"),
        (Verifier(template="min"), X, y, "template"), (Verifier(), X, np.zeros(len(X)), "two identities"),
        (Verifier(), X, np.arange(len(X)), "held-out pairs"), (Verifier(), X, y[:3], "one per row"),
        (Verifier(), X, None, "identity of each row"), (Verifier(identity="colour"), data, None, "no column 'colour'"),
        (Verifier(identity="group"), data, None, "no group"), (Verifier("cosine", far=1e-6), X, y, "so rare"),
        (Verifier(), np.where(np.arange(20) == 2, np.nan, X), y, "NaN"),
    ]  # fmt: skip
    for estimator, rows, names, said in cases:
        with pytest.raises(HeadError, match=said):
            estimator.fit(rows, names)
    for name in ("", "unknown", 3):
        with pytest.raises(HeadError, match="name"):
            verifier.enrol(name, X[:1])
    with pytest.raises(HeadError, match="none"):
        verifier.enrol("x", X[:0])
    with pytest.raises(HeadError, match="not enrolled"):
        verifier.forget("nobody")
    with pytest.raises(HeadError, match="enrol"):
        verifier.identify(X[:1])
    with pytest.warns(UserWarning, match="fewer than 30"):
        Verifier("cosine", far=0.01).fit(*faces(10, 3))
    with pytest.raises(ValueError, match="not fitted"):
        Verifier().identify(X)


# -- verify ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def found(data):
    return verify(data, ["cosine", "wccn", "plda"], seeds=3, far=0.05, episodes=30)


def test_rows_are_plain_and_paired(found):
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert [row["metric"] for row in found["results"]] == ["cosine", "wccn", "plda"]
    cosine, wccn = found["results"][:2]
    each = next(row for row in found["comparisons"] if row["metric"] == "wccn")
    assert each["difference"] == pytest.approx(np.mean(np.subtract(wccn["eers"], cosine["eers"])))
    assert each["difference"] < 0 and wccn["auroc"] > cosine["auroc"] and wccn["d_prime"] > cosine["d_prime"]
    assert cosine["n_genuine"] == 7 * 15 and cosine["test_identities"] == 7  # 0.3 of 24
    assert {(t["ways"], t["ways_wanted"], t["shots"]) for t in wccn["tasks"]} == {(7, 20, 1), (5, 5, 1), (5, 5, 5)}
    for row in found["results"]:
        assert row["ci95"][0] <= row["eer"] <= row["ci95"][1]
        assert all(t["ci95"][0] <= t["accuracy"] <= t["ci95"][1] for t in row["tasks"])
    assert any("fewer than 30" in note for note in found["notes"])


def test_one_draw_has_an_interval_over_identities(data):
    row = verify(data, "cosine", seeds=1, far=0.05, episodes=0)["results"][0]
    assert row["ci_method"] == "bootstrap over identities" and row["ci95"][0] < row["eer"] < row["ci95"][1]
    assert row["tasks"] == []


def test_many_pairs_are_counted_not_kept(data, monkeypatch):
    exact = verify(data, "wccn", seeds=1, far=0.05, episodes=0)["results"]
    monkeypatch.setattr(evaluating, "_EXACT", 100)
    for row, other in zip(verify(data, "wccn", seeds=1, far=0.05, episodes=0)["results"], exact, strict=True):
        assert row["eer"] == pytest.approx(other["eer"], abs=0.01)
        assert (row["n_genuine"], row["n_impostor"]) == (other["n_genuine"], other["n_impostor"])


def test_learning_never_touches_a_test_identity(data, monkeypatch):
    """Each fit sees the training identities alone; garbage in place of the others changes nothing that is learned."""
    seen = []
    fit = Verifier.fit

    def spy(self, X, y=None, **options):
        seen.append((set(y), fit(self, X, y, **options)))
        return self

    monkeypatch.setattr(Verifier, "fit", spy)
    drawn = []
    score = evaluating._scored
    monkeypatch.setattr(evaluating, "_scored", lambda *a: drawn.append(len(a[1])) or score(*a))
    options = {"metric": "plda", "seeds": 1, "far": 0.05, "episodes": 5}
    verify(data, **options)
    trained, first = seen[-1]
    tested = set(data.classes) - trained
    assert tested and drawn[-1] == sum(data.y[i] in tested for i in range(len(data)))
    X = data.X.copy()
    X[np.isin(data.y, list(tested))] = np.random.default_rng(1).normal(size=data.X[0].shape) * 1e3
    X[np.isin(data.y, list(tested)), 0] += np.arange(6 * len(tested))
    verify(FeatureSet(X, data.y), **options)
    assert np.array_equal(seen[-1][1].metric_.components_, first.metric_.components_)
    assert seen[-1][1].threshold_ == first.threshold_ and seen[-1][1].tried_ == first.tried_


def test_a_planted_leak_is_refused(data, monkeypatch):
    def leaking(subjects, groups, test_size, seed):
        rows = np.arange(len(subjects.codes))
        return rows[::2], rows[1::2]

    monkeypatch.setattr(evaluating, "_held_out", leaking)
    with pytest.raises(HeadError, match="both sides"):
        verify(data, "cosine", seeds=1)


def test_named_parts_are_used_only_where_they_share_no_identity(data):
    apart_ = np.where(data.y < "p016", "train", "test")
    mixed = np.where(np.arange(len(data)) % 2, "train", "test")
    used = verify(FeatureSet(data.X, data.y, splits=apart_), "cosine", far=0.05, episodes=0)
    assert used["settings"]["seeds"] == 1 and used["results"][0]["test_identities"] == 8
    shuffled = np.random.default_rng(0).permutation(len(data))
    again = verify(FeatureSet(data.X, data.y, splits=apart_).select(shuffled), "cosine", far=0.05, episodes=0)
    assert again["results"][0]["eer"] == used["results"][0]["eer"]
    other = verify(FeatureSet(data.X, data.y, splits=mixed), "cosine", seeds=2, far=0.05, episodes=0)
    assert other["settings"]["seeds"] == 2 and any("both sides" in note for note in other["notes"])


def test_domains_are_held_out_whole_and_tasks_stay_within_them(data, monkeypatch):
    alphabet = np.asarray([f"a{int(name[1:]) // 4}" for name in data.y])
    trained = []
    fit = Verifier.fit
    monkeypatch.setattr(
        Verifier, "fit", lambda self, X, y=None, **o: trained.append((set(y), o)) or fit(self, X, y, **o)
    )
    grouped = FeatureSet(data.X, data.y, groups=alphabet)
    row = verify(grouped, "cosine", seeds=2, far=0.05, episodes=10)["results"][0]
    for names, options in trained:
        assert {int(n[1:]) // 4 for n in names}.isdisjoint(int(n[1:]) // 4 for n in set(data.classes) - names)
        assert options["groups"] is not None
    assert row["tasks"][0]["ways"] == 4
    column = FeatureSet(data.X, data.y, columns={"script": alphabet})
    assert (
        verify(column, "cosine", domain="script", seeds=2, far=0.05, episodes=10)["results"][0]["eers"] == row["eers"]
    )
    by_group = verify(grouped, "cosine", identity="group", seeds=2, far=0.2, episodes=5)
    assert by_group["results"][0]["test_identities"] == 2


def test_bursts_are_never_paired(data):
    bursts = np.asarray([f"{name}{i % 6 // 2}" for i, name in enumerate(data.y)])
    held = FeatureSet(data.X, data.y, columns={"film": bursts})
    row = verify(held, "cosine", burst="film", seeds=1, far=0.05, episodes=0)["results"][0]
    assert row["n_genuine"] == 7 * 12  # 15 pairs of 6 images, less 3 within bursts


def test_tasks_are_not_won_by_the_frames_of_a_burst(data):
    """Frames of a film are copies, and films of one identity have nothing in common: naming it is chance."""
    films = np.arange(len(data)) // 2
    X = np.random.default_rng(0).normal(size=(len(films), 20))[films].astype("f4")
    held = FeatureSet(X, data.y, columns={"film": films.astype(str)})
    row = verify(held, "cosine", burst="film", seeds=2, far=0.05, episodes=60)["results"][0]
    assert {(task["ways"], task["shots"]) for task in row["tasks"]} == {(7, 1), (5, 1)}  # none has five other images
    assert all(task["accuracy"] < 0.4 for task in row["tasks"])


def test_verify_refuses(data):
    for options, said in (
        ({"metric": "nearest"}, "metric"), ({"metric": []}, "none"), ({"seeds": 0}, "seeds"), ({"far": 0}, "far"),
        ({"test_size": 1.0}, "test_size"), ({"identity": "film"}, "no column"), ({"episodes": -1}, "episodes"),
    ):  # fmt: skip
        with pytest.raises(HeadError, match=said):
            verify(data, **options)
    with pytest.raises(HeadError, match="FeatureSet"):
        verify(data.X)
    with pytest.raises(HeadError, match="four identities"):
        verify(data.select(data.y < "p003"))


def test_episodes_are_distinct_images_of_distinct_identities():
    _, y = faces(12, [2, 7])
    codes = np.unique(y, return_inverse=True)[1]
    for ways, shots in ((5, 1), (4, 5), (20, 1)):
        for episode in draw_episodes(codes, ways, shots, 20, seed=3):
            assert episode.enrolled.shape[1] == shots and len(episode.queries) == min(ways, 12 if shots == 1 else 6)
            own = codes[episode.enrolled]
            assert (own == codes[episode.queries][:, None]).all() and len(np.unique(own[:, 0])) == len(own)
            assert len(np.unique(np.c_[episode.enrolled, episode.queries])) == episode.enrolled.size + len(own)
    assert draw_episodes(codes, 5, 9, 5) == []


def test_episodes_name_an_image_by_other_bursts():
    codes = np.repeat(np.arange(5), 6)
    bursts = np.concatenate([np.arange(24) // 2, np.full(6, 99)])  # the last identity has one burst only
    for shots in (1, 4):
        for episode in draw_episodes(codes, 4, shots, 30, bursts=bursts):
            assert sorted(codes[episode.queries]) == [0, 1, 2, 3]
            assert (bursts[episode.enrolled] != bursts[episode.queries][:, None]).all()
            assert (codes[episode.enrolled] == codes[episode.queries][:, None]).all()
            assert all(len(set(rows)) == shots for rows in episode.enrolled.tolist())
    assert draw_episodes(codes, 4, 5, 5, bursts=bursts) == []
    uneven = np.asarray([0, 0, 0, 1] * 2)  # only the one alone has three others
    drawn = draw_episodes(np.repeat([0, 1], 4), 2, 3, 20, bursts=uneven)
    assert {tuple(sorted(episode.queries)) for episode in drawn} == {(3, 7)}


def test_figures(found, tmp_path):
    path = plot_verification(found, tmp_path / "curves.png")
    assert path.stat().st_size > 20_000
    with pytest.raises(HeadError, match="ending in"):
        plot_verification(found, tmp_path / "curves.jpg")


def test_the_command_saves_what_was_asked_for(tmp_path, monkeypatch):
    """Held-out identities estimate; they do not choose what is saved."""
    from featcache import verification

    X, y = faces(16, 5)
    np.savez(tmp_path / "f.npz", X=X, y=y)
    words = [
        "verify",
        str(tmp_path / "f.npz"),
        "--labels",
        "y",
        "--far",
        "0.1",
        "--seeds",
        "1",
        "--episodes",
        "0",
        "-q",
    ]

    def flattered(*arguments, **options):
        found = verify(*arguments, **options)
        found["results"][0]["eer"] = -1.0  # the cosine's, on the test identities
        return found

    monkeypatch.setattr(verification, "verify", flattered)
    fitted, fit = [], Verifier.fit
    monkeypatch.setattr(Verifier, "fit", lambda s, *a, **o: fitted.append(fit(s, *a, **o)) or fitted[-1])
    out = tmp_path / "f.verifier"
    for asked in ("wccn", "whiten,wccn", "all"):
        assert run([*words, "--metric", asked, "-o", str(out)]) == 0
        names = [*verification.METRICS] if asked == "all" else asked.split(",")
        last = {one.metric_name_: one.eer_ for one in fitted[-len(names) :]}
        assert [*last] == names and Verifier.load(out).metric_name_ == min(last, key=last.get) != "cosine"
        out.unlink()


def test_the_command(data, tmp_path, capsys):
    np.savez(tmp_path / "f.npz", X=data.X, y=data.y)
    words = [
        "verify",
        str(tmp_path / "f.npz"),
        "--labels",
        "y",
        "--metric",
        "wccn",
        "--far",
        "0.05",
        "--seeds",
        "2",
        "-q",
    ]
    words += ["--episodes", "5"]
    out = tmp_path / "f.verifier"
    assert run([*words, "--json", "--plot", str(tmp_path / "f.png"), "-o", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["path"] == str(out) and "curves" not in result and len(result["results"]) == 2
    assert (tmp_path / "f.png").is_file() and len(Verifier.load(out).identities_) == 24
    assert run(words) == 0
    text = capsys.readouterr().out
    assert "wccn" in text and "95 % interval" in text and "note:" in text
    assert run([*words, "--identity", "nothing"]) == 1
    assert run([*words, "--plot", str(tmp_path / "f.jpg")]) == 1
    assert "Traceback" not in capsys.readouterr().err
