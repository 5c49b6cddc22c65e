"""FeatureSet: what it takes, what it makes of it, and what it says to what it does not take."""

import numpy as np
import pytest

from featcache.errors import FeaturesError
from featcache.features import FeatureSet

X = np.arange(12, dtype="f4").reshape(4, 3)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["01", "1", "", "ü"], ["01", "1", "", "ü"]),
        ([1, 2, 2, 10], ["1", "2", "2", "10"]),
        ([None, "a", "b", None], ["", "a", "b", ""]),
        (np.array([np.nan, 1, 2, 1]), ["", "1.0", "2.0", "1.0"]),
        (np.array(["a", np.nan, None, "b"], dtype=object), ["a", "", "", "b"]),
        (np.array([b"a", b"b", b"a", b"b"]), ["a", "b", "a", "b"]),
    ],
)
def test_labels_become_text_and_what_is_missing_is_unlabelled(labels, expected):
    data = FeatureSet(X, labels)
    assert data.y.tolist() == expected
    assert data.classes.tolist() == sorted(set(expected) - {""})


def test_select_takes_rows_and_masks_and_keeps_the_columns():
    data = FeatureSet(X, ["a", "b", "a", "b"], groups=[1, 1, 2, 2], columns={"n": [1, 2, 3, 4]})
    for rows in ([2, 0], np.array([2, 0])):
        assert data.select(rows).columns["n"].tolist() == [3, 1] and data.select(rows).ids.tolist() == ["2", "0"]
    assert data.select([False, True, False, True]).y.tolist() == ["b", "b"]
    assert len(data.select([])) == 0


def test_it_is_shown_in_one_short_line():
    text = repr(FeatureSet(np.zeros((1000, 500), "f4"), ["a", "b"] * 500, name="birds"))
    assert text == "FeatureSet('birds', X (1000, 500) of float32, 2 classes)"


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: FeatureSet([[1, 2], [3]]), "X: expected an array"),
        (lambda: FeatureSet(None), "numeric"),
        (lambda: FeatureSet(X.astype(object)), "numeric"),
        (lambda: FeatureSet(X, ["a"]), "y: expected 4 values"),
        (lambda: FeatureSet(X, "a"), "one dimension"),
        (lambda: FeatureSet(X, ids=["a"] * 4), "repeats"),
        (lambda: FeatureSet(X, columns={"n": 3}), "columns"),
        (lambda: FeatureSet(X).select([4]), "rows: expected numbers below 4"),
        (lambda: FeatureSet(X).select([True]), "rows"),
        (lambda: FeatureSet(X).select([0.5]), "rows"),
        (lambda: FeatureSet(X).select([1, 1]), "repeats"),
        (lambda: FeatureSet(X).xy, "no row has a label"),
    ],
)
def test_errors_are_one_clear_line(call, reason):
    with pytest.raises(FeaturesError, match=reason) as caught:
        call()
    assert "\n" not in str(caught.value)
