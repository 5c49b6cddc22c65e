"""Heads on codes that stay on disk: the same heads as in memory, settings from a sample, clear refusals."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from featcache.errors import HeadError
from featcache.features import FeatureSet
from featcache.heads import FittedHead, fit
from featcache.heads.mapped import MAPPED
from featcache.solvers.blocks import ChosenRows

X, Y = load_digits(return_X_y=True)
X, Y = (X[:600] / 16.0).astype("float16"), Y[:600].astype(str)
IDS = np.asarray([f"{i:04d}" for i in range(600)])


@pytest.fixture
def mapped(tmp_path):
    codes = np.memmap(tmp_path / "codes", dtype="float16", mode="w+", shape=X.shape)
    codes[:] = X
    codes.flush()
    return np.memmap(tmp_path / "codes", dtype="float16", mode="r", shape=X.shape)


@pytest.mark.parametrize("name", MAPPED)
def test_a_head_on_disk_is_the_head_in_memory(name, mapped, tmp_path):
    params = {"softmax": {"C": 0.1}, "logreg": {"C": 0.1}, "ridge": {"alpha": 10.0}}.get(name)
    on_disk = fit(name, FeatureSet(mapped, Y, IDS), params=params)
    here = fit(name, FeatureSet(X.astype("float32"), Y, IDS), params=params)
    assert (on_disk.predict(X) == here.predict(X)).mean() > 0.985
    assert "600 of 600 rows" in on_disk.notes[-1] and on_disk.n_train == 600
    on_disk.save(tmp_path / "head")
    np.testing.assert_array_equal(FittedHead.load(tmp_path / "head").predict(X), on_disk.predict(X))


def test_test_rows_train_nothing_and_settings_come_from_a_sample(mapped, monkeypatch):
    monkeypatch.setattr("featcache.heads.mapped.SAMPLE_ROWS", 150)
    monkeypatch.setattr("featcache.heads.labelled._ROWS_AT_ONCE", 7)
    splits = np.asarray(["train", "train", "test"] * 200)
    fitted = fit("logreg", FeatureSet(mapped, Y, IDS, splits=splits))
    assert fitted.n_train == 400 and "150 of 400 rows" in fitted.notes[-1]
    assert fitted.scores["test"] == pytest.approx((fitted.predict(X[2::3]) == Y[2::3]).mean())
    spoilt = Y.copy()
    spoilt[2::3] = np.random.default_rng(0).permutation(spoilt[2::3])
    again = fit("logreg", FeatureSet(mapped, spoilt, IDS, splits=splits))
    np.testing.assert_array_equal(fitted.predict(X), again.predict(X))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [({"head": "knn"}, "use load"), ({"head": "logreg", "calibrate": True}, "in memory"), ({"head": None}, "use load")],
)
def test_what_needs_memory_says_so(settings, reason, mapped):
    with pytest.raises(HeadError, match=reason):
        fit(data=FeatureSet(mapped, Y, IDS), **settings)


@pytest.mark.parametrize("name", MAPPED)
def test_nan_on_disk_is_refused(name, tmp_path):
    codes = np.memmap(tmp_path / "codes", dtype="float32", mode="w+", shape=X.shape)
    codes[:] = X
    codes[5, 3] = np.nan
    with pytest.raises(HeadError, match="NaN"):
        fit(name, FeatureSet(codes, Y, IDS))


def test_chosen_rows_are_those_rows():
    table = np.arange(40.0).reshape(20, 2)
    rows = np.asarray([3, 4, 5, 6, 1, 19])
    chosen = ChosenRows(table, rows)
    assert chosen.shape == (6, 2) == (len(chosen), 2)
    for which in (slice(0, 4), slice(2, 6), slice(0, 0), np.asarray([5, 0])):
        np.testing.assert_array_equal(chosen[which], table[rows][which])


def test_val_rows_train_and_unlabelled_rows_leave_the_codes_on_disk(mapped):
    splits = np.asarray(["train", "train", "val", "test"] * 150)
    fitted = fit("logreg", FeatureSet(mapped, Y, IDS, splits=splits))
    assert "450 of 450 rows, val rows among them" in fitted.notes[-1] and set(fitted.scores) == {"cv", "test"}
    y = Y.copy()
    y[::100] = ""
    fitted = fit("logreg", FeatureSet(mapped, y, IDS), params={"C": 0.1})
    here = fit("logreg", FeatureSet(X.astype("float32"), y, IDS), params={"C": 0.1})
    assert "594 of 594 rows" in fitted.notes[-1] and "6 rows without a label" in fitted.notes[0]
    assert (fitted.predict(X) == here.predict(X)).mean() > 0.985
    with pytest.raises(HeadError, match="use load"):
        fit("knn", FeatureSet(mapped, y, IDS))
