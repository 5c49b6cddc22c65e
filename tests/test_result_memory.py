"""Remembered results: looked up when nothing changed, computed when anything did, and never trusted when damaged."""

from __future__ import annotations

import json

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from featcache.errors import HeadError
from featcache.evaluation import compare, comparing, memory
from featcache.features import FeatureSet

X, Y = load_digits(return_X_y=True)
X, Y = X[:200].astype("float32"), Y[:200].astype(str)
IDS = np.asarray([f"{i:03d}" for i in range(200)])


def digits(**fields):
    return FeatureSet(**{"X": X, "y": Y, "ids": IDS, "name": "digits", **fields})


@pytest.fixture
def fits(monkeypatch):
    """The heads that were fitted, one by one."""
    seen, original = [], comparing.run

    def spy(rows, draw, head, *rest):
        seen.append(head)
        return original(rows, draw, head, *rest)

    monkeypatch.setattr(comparing, "run", spy)
    return seen


def without_times(result):
    return [{k: v for k, v in row.items() if k != "fit_seconds"} for row in result.rows], result.comparisons


def test_a_rerun_computes_nothing_and_says_the_same(tmp_path, fits):
    first = compare(digits(), ["lda", "centroid"], shots=[2, "all"], seeds=3, cache=tmp_path)
    assert len(fits) == 12
    again = compare(digits(), ["lda", "centroid"], shots=[2, "all"], seeds=3, cache=tmp_path)
    assert len(fits) == 12 and again == first  # seconds, too: they are remembered
    assert without_times(compare(digits(), ["lda", "centroid"], shots=[2, "all"], seeds=3)) == without_times(first)


def test_one_more_head_seed_or_shot_costs_just_that(tmp_path, fits):
    compare(digits(), ["lda"], shots=[2], seeds=2, cache=tmp_path)
    del fits[:]
    compare(digits(), ["lda", "centroid"], shots=[2], seeds=2, cache=tmp_path)
    assert fits == ["centroid"] * 2
    compare(digits(), ["lda"], shots=[2], seeds=4, cache=tmp_path)
    assert fits[2:] == ["lda"] * 2
    compare(digits(), ["lda"], shots=[2, 3], seeds=2, cache=tmp_path)
    assert fits[4:] == ["lda"] * 2
    compare(digits(), ["lda"], shots=[2, 3], seeds=4, cache=tmp_path)
    assert len(fits) == 8


@pytest.mark.parametrize(
    "change",
    [
        {"X": X + np.float32(1e-3) * (np.arange(200)[:, None] == 7)},
        {"y": np.where(np.arange(200) == 9, "3", Y)},
        {"ids": np.char.add("x", IDS)},
        {"groups": np.arange(200) // 2},
        {"splits": np.where(np.arange(200) % 4, "train", "test")},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_data_are_computed(change, tmp_path, fits):
    compare(digits(), ["centroid"], shots=[2], seeds=2, cache=tmp_path)
    compare(digits(**change), ["centroid"], shots=[2], seeds=2, cache=tmp_path)
    assert len(fits) == 4


@pytest.mark.parametrize("change", [{"metric": "macro_f1"}, {"cv": 4}, {"test_size": 0.3}, {"splitter": "hash"}])
def test_another_protocol_is_computed(change, tmp_path, fits):
    compare(digits(), ["centroid"], shots=[2], seeds=2, cache=tmp_path)
    compare(digits(), ["centroid"], shots=[2], seeds=2, cache=tmp_path, **change)
    assert len(fits) == 4


def test_other_source_code_is_computed(tmp_path, fits, monkeypatch):
    compare(digits(), ["centroid"], shots=[2], seeds=1, cache=tmp_path)
    monkeypatch.setattr(memory, "_environment", lambda: ["another version"])
    compare(digits(), ["centroid"], shots=[2], seeds=1, cache=tmp_path)
    assert len(fits) == 2


def test_the_order_of_rows_does_not_matter(tmp_path, fits):
    order = np.random.default_rng(0).permutation(200)
    first = compare(digits(), ["knn"], shots=[2], seeds=2, cache=tmp_path)
    assert compare(digits(X=X[order], y=Y[order], ids=IDS[order]), ["knn"], shots=[2], seeds=2, cache=tmp_path) == first
    assert len(fits) == 2


def test_settings_of_estimators_tell_them_apart(tmp_path, fits):
    for head in (KNeighborsClassifier(1), KNeighborsClassifier(3), KNeighborsClassifier(1)):
        compare(digits(), [head], shots=[2], seeds=1, cache=tmp_path)
    assert len(fits) == 2


class Own(ClassifierMixin, BaseEstimator):
    def fit(self, X, y):
        self.classes_ = np.unique(y)
        return self

    def predict(self, X):
        return np.full(len(X), self.classes_[0])


@pytest.mark.parametrize("head", [Own(), LogisticRegression(random_state=np.random.RandomState(0))])
def test_what_cannot_be_told_apart_is_computed_each_time(head, tmp_path, fits):
    for _ in range(2):
        compare(digits(), [head], shots=[2], seeds=1, cache=tmp_path)
    assert len(fits) == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 not really", None])
def test_a_damaged_file_is_computed_again(damage, tmp_path, fits):
    first = compare(digits(), ["centroid"], shots=[2], seeds=2, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-40] if damage is None else damage)
    assert without_times(compare(digits(), ["centroid"], shots=[2], seeds=2, cache=tmp_path)) == without_times(first)
    assert len(fits) == 4


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, fits):
    (tmp_path / "file").write_text("")
    with pytest.raises(HeadError, match="expected a folder"):
        compare(digits(), ["centroid"], shots=[2], seeds=1, cache=tmp_path / "file")
    with pytest.raises(HeadError, match="expected a folder"):
        compare(digits(), ["centroid"], shots=[2], seeds=1, cache=3)
    compare(digits(), ["centroid"], shots=[2], seeds=1, cache=tmp_path / "file" / "below")
    assert len(fits) == 1


def test_true_is_the_users_own_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path))
    compare(digits(), ["centroid"], shots=[2], seeds=1, cache=True)
    assert len(list((tmp_path / "results").iterdir())) == 1


def test_a_frozen_head_is_computed_each_time(tmp_path, fits):
    """What a frozen estimator learned is no setting of it: another one would look the same."""
    from sklearn.frozen import FrozenEstimator

    answers = []
    for rows in (slice(0, 100), slice(0, 15)):
        head = FrozenEstimator(KNeighborsClassifier(1).fit(X[rows], Y[rows]))
        answers.append(compare(digits(), [head], shots=[2], seeds=1, cache=tmp_path).rows[0]["mean"])
    assert len(fits) == 2 and answers[0] != answers[1] and not list(tmp_path.iterdir())


def test_what_was_computed_is_kept_when_a_head_refuses_the_data(tmp_path, fits):
    heads = ["centroid", KNeighborsClassifier(500)]
    with pytest.raises(HeadError, match="KNeighborsClassifier"):
        compare(digits(), heads, shots=[2], seeds=1, cache=tmp_path)
    compare(digits(), ["centroid"], shots=[2], seeds=1, cache=tmp_path)
    assert fits.count("centroid") == 1


@pytest.mark.parametrize(
    "about",
    [
        [{"draw": "0.0", "values": None, "seconds": 1.0, "unconverged": 0, "n": 3}],
        [{"draw": "0.0", "values": {"accuracy": 7.0}, "seconds": 1.0, "unconverged": 0, "n": 3}],
        [{"draw": "0.0", "values": {"accuracy": 0.5}, "seconds": "x", "unconverged": 0, "n": 3}],
        [{"draw": "0.0", "values": {"accuracy": 0.5}, "seconds": 1.0, "unconverged": 0, "n": 2}],
        [{"draw": "0.0", "values": {"accuracy": 0.5}, "seconds": 1.0, "unconverged": 0, "n": 3}],
        {"deep": "down"},
    ],
)
def test_a_forged_file_is_not_believed(about, tmp_path, fits):
    """Right arrays, wrong content: three contributions where the draw tests another number of rows, and worse."""
    first = compare(digits(), ["centroid"], shots=[2], seeds=1, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    with file.open("wb") as stream:
        np.savez(stream, about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8), gains=np.zeros(3))
    assert without_times(compare(digits(), ["centroid"], shots=[2], seeds=1, cache=tmp_path)) == without_times(first)
    assert len(fits) == 2
