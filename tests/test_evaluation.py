"""compare(): paired splits, honest intervals, notes, and no leak."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

from featcache.errors import HeadError, SplitError
from featcache.evaluation import EvalProtocol, compare
from featcache.features import FeatureSet
from featcache.reporting import Result

X, Y = load_digits(return_X_y=True)
X, Y = X[:500].astype("float32"), Y[:500].astype(str)
IDS = np.asarray([f"{i:04d}" for i in range(500)])
SPLITS = np.asarray((["train"] * 5 + ["val", "test", "test", "test", "train"]) * 50)


def digits(**fields):
    return FeatureSet(**{"X": X, "y": Y, "ids": IDS, "name": "digits", **fields})


def strip(result):
    return [{k: v for k, v in row.items() if k != "fit_seconds"} for row in result.rows]


def test_shape_of_the_result_without_named_splits():
    result = compare(digits(), ["lda", "centroid"], shots=[1, 5, "all"], seeds=3)
    assert [(r["shots"], r["head"]) for r in result.rows] == [
        (s, h) for s in (1, 5, "all") for h in ("lda", "centroid")
    ]
    row = result.rows[-1]
    assert row["n_train"] + row["n_test"] == 500 and len(row["scores"]) == 3
    assert row["ci95"][0] <= row["mean"] <= row["ci95"][1] and row["std"] == pytest.approx(
        np.std(row["scores"], ddof=1)
    )


def test_named_splits_have_one_draw_of_all():
    result = compare(digits(splits=SPLITS), ["lda", "ridge"], shots=[2, "all"], seeds=3)
    few, whole = result.rows[0], result.rows[-1]
    assert few["n_train"] == 20 and few["n_test"] == whole["n_test"] == 150
    assert whole["n_train"] == 350 and whole["std"] is None and whole["ci_method"] == "rows of one draw"
    assert any("val rows" in note for note in result.notes)


def test_deterministic_whatever_the_order_of_rows_and_processes():
    order = np.random.default_rng(0).permutation(500)
    heads, kwargs = ["ridge", "knn"], {"shots": [3, "all"], "seeds": 2}
    first = strip(compare(digits(), heads, **kwargs))
    assert first == strip(compare(digits(X=X[order], y=Y[order], ids=IDS[order]), heads, **kwargs))
    assert first == strip(compare(digits(), heads, n_jobs=2, **kwargs))


def test_test_labels_choose_nothing():
    """The predictions stay; only what they are compared with changes."""
    from featcache.evaluation import running

    predicted = []
    original = running.predictions

    def spy(*args):
        found = original(*args)
        predicted.append(found[0].codes)
        return found

    shuffled, test = Y.copy(), SPLITS == "test"
    shuffled[test] = np.random.default_rng(0).permutation(shuffled[test])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "predictions", spy)
        for labels in (Y, shuffled):
            compare(digits(y=labels, splits=SPLITS), ["logreg", "auto"], shots=[4, "all"], seeds=2)
    half = len(predicted) // 2
    assert all(np.array_equal(a, b) for a, b in zip(predicted[:half], predicted[half:], strict=True))


@pytest.mark.parametrize("groups", [None, np.arange(500) // 2])
def test_a_planted_leak_is_refused(groups, monkeypatch):
    """A split that hands out a test row (or a member of a test row's group) for training raises; nothing is scored."""
    from featcache.evaluation import comparing, draws

    def leaking(y, **_):
        rows = np.arange(len(y))
        return (rows[:-10], rows[-12:]) if groups is None else (rows[:-11], rows[-11:])

    monkeypatch.setattr(draws, "holdout", leaking)
    monkeypatch.setattr(comparing, "run", lambda *args: pytest.fail("trained on a draw that leaks"))
    with pytest.raises(SplitError, match="stand in train and test"):
        compare(digits(groups=groups), ["centroid"], seeds=1)


def test_groups_never_stand_on_both_sides():
    """Labels that can only be learnt from a row of the same group: group-aware draws must score at chance."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(40, 30))
    groups = np.repeat(np.arange(40), 5)
    x = (centres[groups] + 0.01 * rng.normal(size=(200, 30))).astype("float32")
    y = np.asarray(["a", "b"])[rng.integers(0, 2, 40)][groups]
    together = compare(FeatureSet(x, y, groups=groups), ["knn"], seeds=5).best()["mean"]
    apart = compare(FeatureSet(x, y), ["knn"], seeds=5).best()["mean"]
    assert apart > 0.95 and together < 0.75


def test_heads_that_are_the_same_cannot_be_told_apart():
    result = compare(digits(), ["logreg", "softmax", "centroid"], shots=[5], seeds=3)
    pair = next(c for c in result.comparisons if {c["best"], c["other"]} <= {"logreg", "softmax"})
    assert not pair["distinguishable"] and "cannot be told" in result.statements()[0]


def test_noise_is_told_from_signal():
    rng = np.random.default_rng(0)
    noise = digits(X=rng.normal(size=(500, 8)).astype("float32"), name="noise")
    result = compare([digits(), noise], ["centroid"], shots=["all"], seeds=3)
    assert [row["dataset"] for row in result.rows] == ["digits", "noise"]
    assert result.rows[0]["ci95"][0] > result.rows[1]["ci95"][1]


def test_stopping_early_is_a_note_and_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = compare(digits(), [LogisticRegression(max_iter=1, C=100.0)], shots=[5], seeds=2)
    assert any("LogisticRegression stopped 2 times before convergence" in note for note in result.notes)


def test_small_and_lopsided_sets():
    labels = Y.copy()
    labels[:496] = np.where(np.arange(496) % 2, "a", "b")
    labels[496:] = ["c", "c", "d", ""]
    result = compare(digits(y=labels), ["lda", "knn"], shots=[1, 5], seeds=2, metric="balanced_accuracy")
    assert any("fewer rows" in note for note in result.notes)
    assert any("without a label" in note for note in result.notes)


def test_progress_counts_all_fits():
    seen = []
    compare(digits(), ["lda"], shots=[1, 2], seeds=2, progress=lambda *args: seen.append(args))
    assert [(done, total) for done, total, _ in seen] == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        (lambda: compare(digits(), ["lda", "lda"]), "twice"),
        (lambda: compare(digits(), []), "one or more"),
        (lambda: compare({}, ["lda"]), "got none"),
        (lambda: compare(digits(), ["lda"], shots=["many"]), "shots"),
        (lambda: compare(digits(), ["lda"], shots=[0]), "shots"),
        (lambda: compare(digits(), ["lda"], shots=[3, np.int64(3)]), "different"),
        (lambda: compare(digits(), ["lda"], shots=None), "shots"),
        (lambda: compare(digits(), None), "name such as"),
        (lambda: compare(None, ["lda"]), "FeatureSet"),
        (lambda: compare(digits(), ["lda"], test_size="a"), "test_size"),
        (lambda: compare(digits(), ["lda"], n_jobs=0), "n_jobs"),
        (lambda: compare(digits(), ["lda"], seeds=0), "seeds"),
        (lambda: compare(digits(), ["lda"], metric="auc"), "metric"),
        (lambda: compare(digits(y=["x"] * 500), ["lda"]), "only 'x'"),
        (lambda: compare(digits(), ["nope"]), "logreg"),
        (lambda: EvalProtocol(test_size=1.0), "test_size"),
    ],
)
def test_errors_are_one_clear_line(call, reason):
    with pytest.raises(HeadError, match=reason) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_copies_on_both_sides_are_told():
    """Row 3 of training stands among the test rows, with noise that the eye would not see."""
    rng = np.random.default_rng(0)
    x, test = X.copy(), np.flatnonzero(SPLITS == "test")
    x[test[5]] = x[3] + 0.01 * rng.normal(size=x.shape[1])
    notes = compare(digits(X=x, splits=SPLITS), ["centroid"], shots=["all"]).notes
    (note,) = (note for note in notes if "copy" in note)
    assert f"{test[5]:04d}" in note and "'0003'" in note and "audit" in note
    assert not any("copy" in note for note in compare(digits(splits=SPLITS), ["centroid"]).notes)


def test_copies_in_one_group_never_straddle():
    x = np.repeat(X[:120], 2, axis=0)
    data = FeatureSet(x, np.repeat(Y[:120], 2), groups=np.arange(240) // 2)
    assert not any("copy" in note for note in compare(data, ["centroid"], seeds=2).notes)
    alone = compare(FeatureSet(x, np.repeat(Y[:120], 2)), ["centroid"], seeds=2).notes
    assert any("copy" in note for note in alone)


def test_sets_of_the_same_images_are_compared_with_each_other():
    rng = np.random.default_rng(0)
    noisy = digits(X=X + 8.0 * rng.normal(size=X.shape).astype("float32"), name="noisy")
    result = compare([digits(), noisy], ["centroid", "lda"], shots=[5], seeds=3)
    (line,) = (c for c in result.comparisons if "other_dataset" in c)
    assert line["dataset"] == "digits" and line["other_dataset"] == "noisy" and line["distinguishable"]
    assert any(s.startswith("best of all codes, 5 shots: ") for s in result.statements())
    others = digits(X=X, y=np.roll(Y, 1), name="other labels")
    assert not any("other_dataset" in c for c in compare([digits(), others], ["lda"], shots=[5], seeds=2).comparisons)


def test_more_metrics_and_less_is_better_for_some():
    result = compare(digits(), ["logreg", "lda", "ridge"], shots=[5], seeds=2, metric="log_loss")
    rows = {row["head"]: row for row in result.rows}
    assert rows["ridge"]["mean"] is None and any("ridge gives no log loss" in note for note in result.notes)
    assert result.best()["mean"] == min(rows[h]["mean"] for h in ("logreg", "lda"))
    assert result.comparisons[0]["best"] == result.best()["head"] and "-" in result.table()
    assert {"accuracy", "balanced_accuracy", "macro_f1", "top_2", "auroc", "ece"} <= set(rows["lda"]["metrics"])


def test_one_row_per_class_is_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compare(digits(), ["lda", "logreg", "knn", "ridge", "centroid"], shots=[1], seeds=1)


def test_partly_filled_groups_do_not_depend_on_the_order_of_rows():
    groups = np.where(np.arange(500) % 3 == 0, np.char.add("g", (np.arange(500) // 9).astype(str)), "")
    order = np.random.default_rng(1).permutation(500)
    for splitter in ("holdout", "k-fold", "hash"):
        kwargs = {"shots": ["all"], "seeds": 2, "splitter": splitter}
        first = compare(digits(groups=groups), ["centroid"], **kwargs)
        other = compare(digits(X=X[order], y=Y[order], ids=IDS[order], groups=groups[order]), ["centroid"], **kwargs)
        assert strip(first) == strip(other)


def test_images_are_counted_where_groups_are_the_units():
    groups = np.arange(500) // 10
    result = compare(digits(groups=groups), ["centroid", "lda"], seeds=1)
    assert result.comparisons[0]["n_images"] == result.rows[0]["n_test"] > 50
    apart = compare([digits(groups=groups), digits(name="no groups")], ["lda"], seeds=1, shots=[5]).comparisons
    assert not any("other_dataset" in line for line in apart)


def test_a_split_column_that_parts_groups_is_told():
    notes = compare(digits(groups=np.arange(500) // 10, splits=SPLITS), ["centroid"]).notes
    assert any("50 groups stand in train and test" in note for note in notes)


def test_scores_that_are_of_no_classes_are_not_used():
    from sklearn.svm import SVC

    three = np.isin(Y, ["0", "1", "2"])
    data = FeatureSet(X[three], Y[three])
    rows = {shape: compare(data, [SVC(decision_function_shape=shape)], seeds=2).rows[0] for shape in ("ovo", "ovr")}
    assert rows["ovr"]["metrics"]["auroc"] > 0.99 and rows["ovo"]["metrics"].get("auroc", 1.0) > 0.9


def test_numbers_of_numpy_are_numbers():
    result = compare(digits(), ["centroid"], shots=[np.int64(2)], seeds=np.int64(2), cv=np.int64(3))
    assert Result.from_json(result.to_json()) == result
    with pytest.raises(HeadError, match="k below its 10 classes"):
        compare(digits(), ["centroid"], metric="top_10")


def test_names_of_sets_stay_apart():
    other = digits(name="a (3)")
    result = compare([digits(name="a"), other, digits(name="a")], ["centroid"], seeds=1)
    assert len({row["dataset"] for row in result.rows}) == 3
    with pytest.raises(HeadError, match="different names"):
        compare({1: digits(), "1": digits()}, ["centroid"])


def test_codes_whose_squares_overflow_are_refused():
    with pytest.raises(HeadError, match="squares overflow"):
        compare(digits(X=X * np.float32(1e30)), ["centroid"])
