"""Splits: named parts, seeded draws that follow ids, groups kept whole, reasons in errors."""

from __future__ import annotations

import numpy as np
import pytest

from featcache.errors import SplitError
from featcache.splits import has_named_splits, hash_split, holdout, k_fold, k_shot, named_splits

Y = np.repeat(["a", "b", "c"], [20, 12, 8])
IDS = np.asarray([f"{i:03d}.jpg" for i in range(40)])
GROUPS = np.asarray([f"g{i // 4}" for i in range(40)])


def test_named_splits_know_the_fields_spellings():
    parts = named_splits(["Train", "VALID", "validation", "test", "extra", "", "training"])
    assert {k: v.tolist() for k, v in parts.items()} == {"train": [0, 6], "val": [1, 2], "test": [3]}


@pytest.mark.parametrize("splits", [None, ["all"] * 3, ["train", "val"], ["BloodImage_1", "BloodImage_2"], ["", ""]])
def test_no_named_split_without_train_and_test(splits):
    assert not has_named_splits(splits)


def draws(y, ids, groups):
    train, test = holdout(y, ids=ids, groups=groups, seed=3)
    folds = k_fold(y, 3, ids=ids, groups=groups, seed=3)
    shots = k_shot(y, 2, ids=ids, groups=groups, seed=3)
    return [set(ids[rows]) for rows in (train, test, shots, *(v for _, v in folds))]


@pytest.mark.parametrize("groups", [None, GROUPS])
def test_the_order_of_rows_does_not_matter(groups):
    order = np.random.default_rng(0).permutation(40)
    assert draws(Y, IDS, groups) == draws(Y[order], IDS[order], None if groups is None else groups[order])


def test_another_seed_draws_other_rows():
    assert not np.array_equal(holdout(Y, ids=IDS, seed=0)[1], holdout(Y, ids=IDS, seed=1)[1])
    assert not np.array_equal(k_shot(Y, 3, ids=IDS, seed=0), k_shot(Y, 3, ids=IDS, seed=1))


def test_holdout_is_stratified_and_complete():
    train, test = holdout(Y, test_size=0.25)
    assert np.unique(Y[test], return_counts=True)[1].tolist() == [5, 3, 2]
    assert sorted([*train, *test]) == list(range(40))


def test_holdout_leaves_lonely_classes_in_training():
    y = np.asarray(["a"] * 4 + ["b"] * 4 + ["rare"])
    assert 8 in holdout(y)[0]


@pytest.mark.parametrize("seed", range(5))
def test_groups_stay_whole(seed):
    train, test = holdout(Y, groups=GROUPS, seed=seed)
    assert not set(GROUPS[train]) & set(GROUPS[test])
    assert set(Y[train]) == set(Y)
    for rows, held_out in k_fold(Y, 3, groups=GROUPS, seed=seed):
        assert not set(GROUPS[rows]) & set(GROUPS[held_out])


def test_every_row_is_validated_once_and_every_training_side_has_every_class():
    folds = k_fold(Y, 5)
    assert sorted(np.concatenate([v for _, v in folds])) == list(range(40))
    assert all(set(Y[rows]) == set(Y) for rows, _ in folds)
    assert folds.notes == ()


def test_fewer_folds_come_with_a_note():
    folds = k_fold(["a", "a", "b", "b"], 5)
    assert len(folds) == 2 and "2 folds instead of 5" in folds.notes[0]


def test_a_class_of_one_row_always_trains():
    folds = k_fold(["a"] * 5 + ["b"] * 5 + ["c"], 5)
    assert all(10 in rows for rows, _ in folds) and "1 class has one row" in folds.notes[0]


def test_k_shot_is_nested_and_takes_what_there_is():
    one, five = k_shot(Y, 1, ids=IDS), k_shot(Y, 5, ids=IDS)
    assert set(one) <= set(five) and len(one) == 3
    assert np.unique(Y[k_shot(Y, 10)], return_counts=True)[1].tolist() == [10, 10, 8]


def test_k_shot_prefers_new_groups():
    drawn = k_shot(Y, 3, groups=GROUPS)
    assert len(set(GROUPS[drawn[Y[drawn] == "a"]])) == 3


def test_k_shot_stays_inside_the_given_rows():
    rows = np.arange(0, 40, 2)
    assert set(k_shot(Y, 3, rows=rows)) <= set(rows)


def test_hash_split_is_stable_under_new_images():
    many = [f"{i}.jpg" for i in range(2000)]
    parts = hash_split(many, test_size=0.2, val_size=0.1)
    assert (hash_split(many[:50], test_size=0.2, val_size=0.1) == parts[:50]).all()
    assert abs((parts == "test").mean() - 0.2) < 0.03 and abs((parts == "val").mean() - 0.1) < 0.03
    assert hash_split(["a", "b"], groups=["g", "g"], test_size=0.5).tolist()[0] in ("train", "test")
    # A golden value: the rule never changes, or users' test rows would move into training.
    assert hash_split(["0.jpg", "1.jpg", "2.jpg", "3.jpg"], test_size=0.5).tolist() == GOLDEN


GOLDEN = ["train", "test", "test", "train"]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: holdout(["a", "a"]), "only 'a'"),
        (lambda: holdout([]), "no row"),
        (lambda: holdout(["a", "b"]), "divided"),
        (lambda: holdout(Y, test_size=1.5), "test_size"),
        (lambda: k_fold(["a", "b"]), "fixed settings"),
        (lambda: k_fold(Y, 1), "n_folds"),
        (lambda: k_fold(Y, groups=["g"] * 40), "groups"),
        (lambda: k_fold(Y, groups=["g"] * 3), "40 values"),
        (lambda: k_shot(Y, 0), "k of 1"),
        (lambda: hash_split(["a"], test_size=1.0), "shares"),
    ],
)
def test_errors_say_why(call, reason):
    with pytest.raises(SplitError, match=reason) as caught:
        call()
    assert "\n" not in str(caught.value)
