"""Many heads in one pass: alone is as among many, folds are weights, streams are bounded, estimators are ordinary."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from featcache.errors import HeadError
from featcache.heads import FittedHead, HeadSweep, ShrunkScaler, TorchMLPClassifier, linear_form
from featcache.solvers.batches import Moments, n_batches, ordered_batches, shuffled_batches
from featcache.solvers.many import HeadSettings, forward, score_heads, train_heads

X, Y = load_digits(return_X_y=True)
X, Y = X[:400].astype("float32"), Y[:400]
LABELS = np.char.add("digit ", Y.astype(str))
Z = ((X - X.mean(0)) / (X.std(0) + 1)).astype("float32")

QUICK = HeadSweep({"learning_rate": [0.03, 0.1]}, cv=2, max_iter=20)

#: One shape of each kind: linear, other rates, smoothed, with dropout, columns, MLPs of two widths.
SETTINGS = [
    HeadSettings(0.01, 0.0),
    HeadSettings(0.1, 1.0),
    HeadSettings(0.03, 0.1, label_smoothing=0.1),
    HeadSettings(0.03, 0.1, dropout=0.3),
    HeadSettings(0.03, 0.1, columns=(8, 40)),
    HeadSettings(0.003, 0.1, dropout=0.5, hidden=16, seed=1),
    HeadSettings(0.003, 0.1, hidden=16, seed=2),
    HeadSettings(0.003, 0.1, label_smoothing=0.1, hidden=8, seed=3),
]


def trained(settings, source=None, epochs=4, **options):
    options = {"n_features": 64, "n_classes": 10, "epochs": epochs, "steps_per_epoch": 7, **options}
    return train_heads(source or shuffled_batches(Z, Y, 64, seed=1), settings, **options)


def assert_same(one, two, tolerance):
    for (W, b), (V, c) in zip(one, two, strict=True):
        np.testing.assert_allclose(W, V, atol=tolerance)
        np.testing.assert_allclose(b, c, atol=tolerance)


WEIGHT_CHECKS = {
    f"check_sample_weight_equivalence_on_{kind}_data": "batches are drawn by rows" for kind in ("dense", "sparse")
}


@parametrize_with_checks(
    [TorchMLPClassifier(8), QUICK],
    expected_failed_checks=lambda estimator: WEIGHT_CHECKS,
)
def test_scikit_learns_own_checks(estimator, check):
    check(estimator)


# -- the solver ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("i", range(len(SETTINGS)))
def test_a_head_alone_is_as_among_many(i, optimizer):
    many = trained(SETTINGS, optimizer=optimizer)
    alone = trained([SETTINGS[i]], optimizer=optimizer)
    assert_same(alone.layers[0], many.layers[i], 2e-4)
    np.testing.assert_allclose(alone.train_loss[:, 0], many.train_loss[:, i], atol=1e-4)


def test_the_same_bytes_twice_and_no_global_state():
    states = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    one, two = trained(SETTINGS), trained(SETTINGS)
    for a, b in zip(one.layers, two.layers, strict=True):
        assert_same(a, b, 0.0)
    assert torch.equal(states[0], torch.random.get_rng_state()) and (states[1] == np.random.get_state()[1]).all()


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("hidden", [0, 12])
def test_steps_are_those_of_torch(optimizer, hidden):
    """The closed forms equal autograd and torch.optim."""
    rng = np.random.default_rng(0)
    rows, codes = rng.normal(size=(100, 64)).astype("float32"), rng.integers(0, 10, 100) ** 2 // 9
    top = 0.01 if optimizer == "adamw" else 1.0
    setting = HeadSettings(top, 0.1, label_smoothing=0.2, hidden=hidden, seed=5)
    ours = trained([setting], lambda epoch: [(rows, codes)], epochs=5, steps_per_epoch=1, optimizer=optimizer)
    start = trained([HeadSettings(0.0, 0.0, hidden=hidden, seed=5)], epochs=1).layers[0]
    params = [torch.tensor(p, requires_grad=True) for layer in start for p in layer]
    rule = (
        torch.optim.AdamW(params, lr=1.0, weight_decay=0.0, eps=1e-7)
        if optimizer == "adamw"
        else torch.optim.SGD(params, lr=1.0, momentum=0.9)
    )
    for step in range(5):
        rule.param_groups[0]["lr"] = rate = top * 0.5 * (1 + np.cos(np.pi * step / 5))
        out = torch.from_numpy(rows)
        for at in range(0, len(params), 2):
            out = out @ params[at] + params[at + 1]
            out = torch.nn.functional.gelu(out) if at + 2 < len(params) else out
        rule.zero_grad()
        torch.nn.functional.cross_entropy(out, torch.from_numpy(codes), label_smoothing=0.2).backward()
        with torch.no_grad():
            for W in params[0::2]:
                W *= 1 - rate * 0.1
        rule.step()
    theirs = [(params[i].detach().numpy(), params[i + 1].detach().numpy()) for i in range(0, len(params), 2)]
    # AdamW divides gradients that are zero but for rounding by their own size, here and there: in few weights.
    assert_same(ours.layers[0], theirs, 5e-3 if optimizer == "adamw" else 1e-4)
    assert np.mean([np.abs(a - b).mean() for a, b in zip(ours.layers[0][0], theirs[0], strict=True)]) < 2e-5


@pytest.mark.parametrize("hidden", [0, 8])
def test_folds_as_weights_are_training_without_the_rows(hidden):
    """A head whose fold's rows weigh 0 equals one that is given the same batches without them."""
    source, fold = shuffled_batches(Z, Y, 64, seed=3), np.arange(len(Y)) % 5
    settings = [HeadSettings(0.01, 0.1, hidden=hidden, group=f) for f in range(5)]
    together = trained(settings, source, row_weight=lambda codes, rows: fold[rows, None] != np.arange(5))

    def without(f):
        return lambda epoch: ((x[fold[r] != f], c[fold[r] != f], r[fold[r] != f]) for x, c, r in source(epoch))

    for f in range(5):
        alone = trained([HeadSettings(0.01, 0.1, hidden=hidden)], without(f))
        assert_same(together.layers[f], alone.layers[0], 1e-4)


def test_a_head_that_diverges_harms_itself_alone():
    wild = HeadSettings(1e30, 0.0, hidden=16)
    run = trained([*SETTINGS, wild], optimizer="sgd", validation=lambda: ordered_batches(Z, Y))
    assert run.loss[-1] == np.inf and run.accuracy[-1] == 0.0
    calm = trained(SETTINGS, optimizer="sgd")
    for i, layers in enumerate(calm.layers):
        assert_same(run.layers[i], layers, 2e-4)


def test_early_stopping_keeps_the_best_weights_and_spares_nobody_else():
    rows, rest = slice(0, 200), slice(200, 400)
    settings = [HeadSettings(0.5, 0.0), HeadSettings(1e-3, 0.0), HeadSettings(0.05, 0.0, hidden=16)]
    options = {
        "source": shuffled_batches(Z[rows], Y[rows], 64),
        "steps_per_epoch": 4,
        "validation": lambda: ordered_batches(Z[rest], Y[rest]),
        "patience": 2,
        "epochs": 20,
    }
    run = trained(settings, **options)
    assert run.n_iter[0] < 20 and run.n_iter[1] == 20, "the fast head stops, the slow one goes on"
    assert np.isnan(run.train_loss[-1, 0]) and np.isfinite(run.train_loss[-1, 1])
    loss, accuracy = score_heads(run.layers, ordered_batches(Z[rest], Y[rest]))
    np.testing.assert_allclose(loss, run.loss, rtol=1e-5)
    np.testing.assert_allclose(accuracy, run.accuracy)
    for i, setting in enumerate(settings):
        alone = trained([setting], **options)
        assert alone.n_iter[0] == run.n_iter[i] and alone.loss[0] == pytest.approx(run.loss[i], rel=1e-3)


def test_scores_are_those_of_each_head():
    run = trained(SETTINGS, validation=lambda: ordered_batches(Z, Y, 50))
    for layers, accuracy in zip(run.layers, run.accuracy, strict=True):
        assert (forward(Z, layers).argmax(1) == Y).mean() == pytest.approx(accuracy, abs=0.003)


def test_standardised_inside_is_standardised_outside():
    big = X.astype(np.float64) * 1e3 + 1e6
    moments = Moments.of(big)
    inside = trained(SETTINGS[:1], shuffled_batches(big, Y, 64, seed=1), shift=moments.mean, scale=moments.scale())
    outside = ((big - moments.mean) / moments.scale()).astype(np.float32)
    assert_same(inside.layers[0], trained(SETTINGS[:1], shuffled_batches(outside, Y, 64, seed=1)).layers[0], 1e-5)


def test_moments_merge_and_are_the_scaler_s():
    whole = Moments(64)
    for block in np.array_split(X, 7):
        whole.add(block)
    scaler = ShrunkScaler().fit(X.astype(float))
    np.testing.assert_allclose(whole.mean, scaler.mean_, atol=1e-10)
    np.testing.assert_allclose(whole.scale(), scaler.scale_, rtol=1e-10)
    assert (Moments.of(np.full((5, 3), 7.7)).scale() == 1).all()


def test_batches_cover_each_row_once_on_disk_and_in_memory(tmp_path):
    mapped = np.memmap(tmp_path / "x", dtype=np.float16, mode="w+", shape=(40_000, 4))
    mapped[:] = np.arange(40_000)[:, None] % 2048
    codes = np.arange(40_000)
    for source in (shuffled_batches(mapped, codes, 300, seed=1), shuffled_batches(np.asarray(mapped)[:], codes, 300)):
        first, second = list(source(0)), list(source(1))
        for rows, numbers in ((x, n) for x, _, n in first):
            np.testing.assert_array_equal(rows[:, 0], numbers % 2048)
        order = np.concatenate([n for _, _, n in first])
        assert sorted(order) == list(range(40_000)) and (order != np.concatenate([n for _, _, n in second])).any()
        assert max(len(c) for _, c, _ in first) <= 300
        again = np.concatenate([n for _, _, n in source(0)])
        np.testing.assert_array_equal(again, order)


@pytest.mark.parametrize(
    ("settings", "options", "message"),
    [
        ([], {}, "expected one or more settings"),
        ([HeadSettings(-1.0)], {}, "learning_rate"),
        ([HeadSettings(dropout=1.0)], {}, "dropout"),
        ([HeadSettings(float("nan"))], {}, "learning_rate"),
        ([HeadSettings(columns=(0, 65))], {}, "columns"),
        ([HeadSettings()], {"n_features": 63}, "63 features"),
        ([HeadSettings()], {"n_classes": 9}, "from 0 to 8, got 9"),
        ([HeadSettings()], {"optimizer": "adam"}, "'adam'"),
        ([HeadSettings()], {"source": lambda epoch: iter(())}, "no batch"),
    ],
)
def test_what_cannot_be_trained_is_refused(settings, options, message):
    with pytest.raises(HeadError, match=message):
        trained(settings, **options)


# -- the estimators --------------------------------------------------------------------------------------------------


def test_mlp_learns_in_a_pipeline_and_a_grid():
    pipeline = make_pipeline(StandardScaler(), TorchMLPClassifier(max_iter=200))
    search = GridSearchCV(pipeline, {"torchmlpclassifier__dropout": [0.0, 0.5]}, cv=2)
    assert search.fit(X[:300], LABELS[:300]).score(X[300:], LABELS[300:]) > 0.9


@pytest.mark.parametrize("rows", [1, 2])
def test_few_rows_per_class_duplicates_zeros_and_constants(rows):
    few = np.concatenate([np.flatnonzero(c == Y)[:rows] for c in np.unique(Y)])
    for estimator in (TorchMLPClassifier(32, max_iter=100), HeadSweep(max_iter=60)):
        assert estimator.fit(X[few], LABELS[few]).score(X, LABELS) > 0.35
        twice = np.concatenate([few, few])
        assert np.isfinite(clone(estimator).fit(X[twice], LABELS[twice]).predict_proba(X)).all()
        assert np.isfinite(clone(estimator).fit(np.zeros((20, 3)), np.arange(20) % 2).predict_proba(X[:, :3])).all()
    if rows == 1:
        sweep = HeadSweep().fit(X[few], LABELS[few])
        assert np.isnan(sweep.best_score_) and sweep.best_params_ == sweep.cv_results_["params"][0]
        with pytest.raises(ValueError, match="early_stopping=False"):
            TorchMLPClassifier(early_stopping=True).fit(X[few], Y[few])


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int16"])
def test_dtypes_agree(dtype):
    labels = clone(QUICK).fit(X.astype(dtype), Y)
    assert (labels.predict(X.astype(dtype)) == clone(QUICK).fit(X, Y).predict(X)).mean() > 0.99


def test_weights_zero_are_rows_that_are_not_there():
    used = Y != 3
    for estimator in (TorchMLPClassifier(16), QUICK):
        one = clone(estimator).fit(X, Y, sample_weight=used.astype(float))
        two = clone(estimator).fit(X[used], Y[used])
        assert 3 not in one.classes_
        np.testing.assert_array_equal(one.predict_proba(X), two.predict_proba(X))


def test_class_weight_moves_the_border():
    rng = np.random.default_rng(0)
    rows = np.vstack([rng.normal(0, 1, (300, 2)), rng.normal(1.5, 1, (20, 2))])
    labels = np.repeat([0, 1], [300, 20])
    sweeps = [clone(QUICK).set_params(scoring=scoring) for scoring in ("neg_log_loss", "balanced_accuracy")]
    for plain in (TorchMLPClassifier(16, alpha=0.1, max_iter=60), *sweeps):
        even = clone(plain).set_params(class_weight="balanced").fit(rows, labels)
        assert even.predict(rows).sum() > plain.fit(rows, labels).predict(rows).sum() + 20


def test_early_stopping_and_members():
    one = TorchMLPClassifier(
        32, early_stopping=True, max_iter=200, learning_rate_init=0.03, n_iter_no_change=3, alpha=0.1
    )
    assert one.fit(X, LABELS).n_iter_ < 200 and one.score(X, LABELS) > 0.95
    three = TorchMLPClassifier(8, n_members=3, learning_rate_init=0.01, alpha=0.1).fit(X, LABELS)
    assert len(three.coefs_) == 6 and three.score(X, LABELS) > 0.9
    single = TorchMLPClassifier(8, random_state=1, learning_rate_init=0.01, alpha=0.1).fit(X, LABELS)
    assert single.coefs_[0].shape == three.coefs_[2].shape and not np.allclose(three.coefs_[0], three.coefs_[2])


@pytest.mark.parametrize("refit", [True, "average"])
def test_a_sweep_chooses_the_best_and_equals_its_heads_trained_alone(refit):
    grid = {"learning_rate": [1e-5, 1e-2], "hidden": [0, 8]}
    sweep = HeadSweep(grid, cv=3, refit=refit).fit(X[:300], LABELS[:300])
    assert sweep.best_params_["learning_rate"] == 1e-2 and sweep.score(X[300:], LABELS[300:]) > 0.9
    results = sweep.cv_results_
    assert results["rank_test_score"][sweep.best_index_] == 1
    assert sweep.best_score_ == results["mean_test_score"].max()
    folds = [results[f"split{f}_test_score"] for f in range(3)]
    np.testing.assert_allclose(np.mean(folds, axis=0), results["mean_test_score"])
    alone = HeadSweep({k: [v] for k, v in sweep.best_params_.items()}, cv=3, refit=refit).fit(X[:300], LABELS[:300])
    np.testing.assert_allclose(alone.predict_proba(X), sweep.predict_proba(X), atol=2e-3)
    assert alone.best_score_ == pytest.approx(sweep.best_score_, abs=0.005)


def test_the_choice_sees_no_row_twice():
    """Labels at random: a score far above chance would be a leak from training into validation."""
    rng = np.random.default_rng(0)
    noise, labels = rng.normal(size=(300, 200)), np.arange(300) % 3
    sweep = HeadSweep({"learning_rate": [0.01, 0.1], "hidden": [0, 32]}).fit(noise, labels)
    assert (sweep.predict(noise) == labels).mean() > 0.9 and sweep.best_score_ < 0.45


def test_groups_stay_on_one_side():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 50))
    rows = np.repeat(centres, 10, axis=0) + 0.01 * rng.normal(size=(400, 50))
    labels, groups = np.repeat(np.arange(40) % 4, 10), np.repeat(np.arange(40), 10)
    apart = HeadSweep({"learning_rate": [0.03]}).fit(rows, labels, groups=groups).best_score_
    mixed = HeadSweep({"learning_rate": [0.03]}).fit(rows, labels).best_score_
    assert apart < 0.6 < 0.95 < mixed


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"param_grid": {"C": [1.0]}}, "'C'"),
        ({"param_grid": []}, "no setting"),
        ({"param_grid": 3}, "dict of lists"),
        ({"cv": 1}, "cv"),
        ({"cv": 1.5}, "cv"),
        ({"refit": "yes"}, "refit"),
        ({"scoring": "auc"}, "scoring"),
        ({"max_iter": 0}, "max_iter"),
        ({"batch_size": 0}, "batch_size"),
        ({"param_grid": {"learning_rate": [1e30], "hidden": [4]}, "optimizer": "sgd"}, "diverged"),
    ],
)
def test_settings_out_of_range(changes, message):
    with pytest.raises(ValueError, match=message):
        HeadSweep(**changes).fit(X, Y)


@pytest.mark.parametrize(
    "changes",
    [{"alpha": -1}, {"dropout": 1.0}, {"hidden_layer_sizes": (3, 3)}, {"max_iter": 0}, {"activation": "tanh"}],
)
def test_mlp_settings_out_of_range(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        TorchMLPClassifier(**changes).fit(X, Y)


@pytest.mark.parametrize("classes", [2, 10])
@pytest.mark.parametrize("refit", [True, "average"])
def test_linear_form_of_a_sweep(classes, refit):
    keep = classes > Y
    sweep = clone(QUICK).set_params(refit=refit).fit(X[keep], LABELS[keep])
    for estimator in (sweep, make_pipeline(StandardScaler(), clone(QUICK)).fit(X[keep], LABELS[keep])):
        W, b = linear_form(estimator)
        scores = X.astype(float) @ W.T + b
        powers = np.exp(scores - scores.max(1, keepdims=True))
        np.testing.assert_allclose(powers / powers.sum(1, keepdims=True), estimator.predict_proba(X), atol=1e-4)
    with pytest.raises(HeadError, match="linear"):
        linear_form(HeadSweep({"hidden": [4]}, cv=2, max_iter=2).fit(X, Y))


@pytest.mark.parametrize(
    "estimator",
    [
        TorchMLPClassifier(8, n_members=2),
        QUICK,
        HeadSweep({"hidden": [4], "learning_rate": [0.01]}, cv=2, refit="average"),
    ],
)
def test_saved_heads_predict_bit_equal(estimator, tmp_path):
    head = FittedHead(estimator.fit(X, LABELS), estimator.classes_, "x", n_features=64)
    loaded = FittedHead.load(head.save(tmp_path / "head.fc"))
    np.testing.assert_array_equal(loaded.predict_scores(X), head.predict_scores(X))


# -- streams ---------------------------------------------------------------------------------------------------------


def test_a_stream_is_as_good_as_memory():
    source = shuffled_batches(X, Y, 64)
    grid = {"learning_rate": [1e-5, 1e-2], "hidden": [0, 16]}
    for validation in (None, lambda: ordered_batches(X[300:], Y[300:])):
        for refit in (True, "average"):
            sweep = HeadSweep(grid, cv=3, max_iter=20, refit=refit)
            sweep.fit_batches(source, np.unique(LABELS), 64, validation=validation)
            assert sweep.best_params_["learning_rate"] == 1e-2 and sweep.best_score_ > 0.9
            assert sweep.score(X, LABELS) > 0.95
    np.testing.assert_allclose(sweep.mean_, X.mean(0), rtol=1e-5)


def test_streams_that_cannot_be_used():
    sweep, names = HeadSweep(max_iter=2), np.unique(LABELS)
    with pytest.raises(HeadError, match="row numbers"):
        sweep.fit_batches(lambda epoch: [(X, Y)], names, 64)
    with pytest.raises(HeadError, match="63 features"):
        sweep.fit_batches(shuffled_batches(X, Y, 64), names, 63)
    with pytest.raises(HeadError, match="from 0 to 8"):
        sweep.fit_batches(shuffled_batches(X, Y, 64), names[:9], 64)
    with pytest.raises(HeadError, match="NaN"):
        sweep.fit_batches(shuffled_batches(np.where(X > 15, np.nan, X), Y, 64), names, 64)
    with pytest.raises(HeadError, match="two classes"):
        sweep.fit_batches(shuffled_batches(X, Y * 0, 64), names, 64)


def test_balanced_streams_weigh_classes():
    rng = np.random.default_rng(0)
    rows = np.vstack([rng.normal(0, 1, (600, 2)), rng.normal(1.5, 1, (40, 2))])
    codes = np.repeat([0, 1], [600, 40])
    plain, even = (
        HeadSweep(
            {"learning_rate": [0.03]}, cv=2, max_iter=20, class_weight=w, scoring="balanced_accuracy"
        ).fit_batches(shuffled_batches(rows, codes, 64), ["no", "yes"], 2)
        for w in (None, "balanced")
    )
    assert (even.predict(rows) == "yes").sum() > (plain.predict(rows) == "yes").sum() + 40
    assert even.best_score_ > plain.best_score_


def test_balanced_streams_count_the_rows_that_are_scored():
    """Classes of the validation rows are as rare there as they are there, not as in training."""
    from featcache.heads.metrics import check_metric

    rng = np.random.default_rng(1)
    rows = np.vstack([rng.normal(0, 1, (600, 2)), rng.normal(1.5, 1, (60, 2))])
    codes = np.repeat([0, 1], [600, 60])
    held, truth = rng.normal(0.7, 1.2, (220, 2)), np.repeat([0, 1], [20, 200])
    sweep = HeadSweep({"learning_rate": [0.03]}, max_iter=5, scoring="balanced_accuracy", refit="average")
    sweep.fit_batches(shuffled_batches(rows, codes, 64), [0, 1], 2, validation=lambda: ordered_batches(held, truth))
    assert sweep.best_score_ == pytest.approx(check_metric("balanced_accuracy")(truth, sweep.predict(held)))


def test_a_map_on_disk_is_never_in_memory(tmp_path):
    n = 60_000
    mapped = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.float16, shape=(n, 128))
    codes = np.arange(n) % 4
    for start in range(0, n, 10_000):
        rows = slice(start, start + 10_000)
        mapped[rows] = np.random.default_rng(start).normal(size=(10_000, 128)) + np.eye(4, 128)[codes[rows]] * 3
    source = shuffled_batches(mapped, codes, 1024)
    tracemalloc.start()
    sweep = HeadSweep({"learning_rate": [1e-3, 1e-2]}, cv=2, refit="average").fit_batches(source, np.arange(4), 128)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sweep.best_score_ > 0.85 and peak < mapped.nbytes, "two windows of 64 · 256 rows, whatever n"
    assert n_batches(n, 1024) == 59
