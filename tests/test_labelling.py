"""suggest(): which images to label next; never test images, near-duplicates, or the same group while others wait."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

import featcache as fc
from featcache.cli import run
from featcache.errors import HeadError

STRATEGIES = ("coverage", "uncertainty", "mix", "random")


def clusters(per_class=40, classes=4, labelled=3, *, seed=0, width=24, **more):
    """Rows around the middles of classes; the first few of each class are labelled."""
    rng = np.random.default_rng(seed)
    y = np.repeat(np.arange(classes), per_class)
    X = 1.5 * rng.normal(size=(classes, width))[y] + rng.normal(size=(len(y), width))
    known = np.arange(len(y)) % per_class < labelled
    labels = np.where(known, np.char.add("class ", y.astype(str)), "")
    ids = np.char.add("img", rng.permutation(len(y)).astype(str))
    return fc.FeatureSet(X.astype("float32"), labels, ids=ids, **more)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_suggestions_are_unlabelled_different_and_independent_of_the_order(strategy):
    data = clusters()
    found = fc.suggest(data, 10, strategy=strategy)
    assert len(set(found.ids)) == 10 == len(found) and found.strategy == strategy
    assert set(found.ids) <= set(data.ids[~data.labelled].tolist())
    order = np.random.default_rng(5).permutation(len(data))
    assert fc.suggest(data.select(order), 10, strategy=strategy).to_json() == found.to_json()


def test_auto_covers_while_labels_are_few_then_mixes():
    assert fc.suggest(clusters(labelled=0), 4).strategy == "coverage"
    assert fc.suggest(clusters(labelled=1), 4).strategy == "coverage"
    assert fc.suggest(clusters(labelled=20), 4).strategy == "mix"


def test_without_labels_each_cluster_gives_one():
    data = clusters(labelled=0)
    truth = dict(zip(data.ids.tolist(), np.repeat(np.arange(4), 40).tolist(), strict=True))
    found = fc.suggest(data, 4)
    assert {truth[name] for name in found.ids} == {0, 1, 2, 3}
    assert all(row.guess is None and row.doubt is None and row.nearest is None for row in found.rows)
    assert sum(row.stands_for for row in found.rows) == 160


def test_coverage_goes_where_no_label_is():
    data = clusters(labelled=0)
    y = np.repeat(["a", "b", "c", "d"], 40)
    known = np.where(np.isin(y, ["a", "b"]) & (np.arange(160) % 40 < 10), y, "")
    some = fc.FeatureSet(data.X, known, ids=data.ids)
    truth = dict(zip(data.ids.tolist(), y.tolist(), strict=True))
    assert {truth[name] for name in fc.suggest(some, 2, strategy="coverage").ids} == {"c", "d"}


def test_uncertain_images_lie_between_classes():
    rng = np.random.default_rng(1)
    X = np.concatenate([rng.normal(size=(30, 6)) - 4, rng.normal(size=(30, 6)) + 4, 0.3 * rng.normal(size=(3, 6))])
    y = ["left"] * 15 + [""] * 15 + ["right"] * 15 + [""] * 15 + [""] * 3
    found = fc.suggest(fc.FeatureSet(X.astype("float32"), y), 3, strategy="uncertainty")
    assert set(found.ids) == {"60", "61", "62"}
    assert all("uncertain between" in row.why for row in found.rows if row.doubt >= 0.5)
    assert found.rows[0].doubt >= found.rows[2].doubt
    assert {found.rows[0].guess, found.rows[0].rival} == {"left", "right"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_near_duplicates_are_suggested_once(strategy):
    data = clusters(per_class=12, labelled=4)
    copies = data.X[~data.labelled] + 1e-3
    twice = fc.FeatureSet(
        np.concatenate([data.X, copies, data.X[data.labelled][:2] + 1e-3]),
        np.concatenate([data.y, np.full(len(copies) + 2, "")]),
    )
    found = fc.suggest(twice, 40, strategy=strategy)
    assert len(found) == 32 and any("no others are left" in note for note in found.notes)
    assert any("2 images are nearly the same as labelled ones" in note for note in found.notes)
    rows = np.asarray([int(name) for name in found.ids])
    units = twice.X[rows] - twice.X.mean(axis=0)
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    assert (units @ units.T - 2 * np.eye(len(units))).max() < 0.97


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_groups_give_one_each_first(strategy):
    data = clusters(per_class=20, labelled=5)
    groups = np.char.add("patient ", (np.arange(80) % 8).astype(str))
    found = fc.suggest(fc.FeatureSet(data.X, data.y, ids=data.ids, groups=groups), 10, strategy=strategy)
    of = dict(zip(data.ids.tolist(), groups.tolist(), strict=True))
    assert len({of[name] for name in found.ids[:8]}) == 8


def test_test_val_and_views_are_left_alone():
    data = clusters(per_class=20, labelled=6)
    splits = np.where(np.arange(80) % 3 == 0, "test", np.where(np.arange(80) % 3 == 1, "val", "train"))
    view_of = np.where(np.arange(80) % 20 == 19, data.ids[0], "")
    found = fc.suggest(fc.FeatureSet(data.X, data.y, ids=data.ids, splits=splits, view_of=view_of), 100)
    allowed = data.ids[(splits == "train") & (view_of == "") & (data.y == "")]
    assert set(found.ids) == set(allowed.tolist())
    assert any("test or val part were left alone" in note for note in found.notes)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_groups_of_some_rows_only_do_not_make_the_order_matter(strategy):
    data = clusters(per_class=20, labelled=8)
    groups = np.where(np.arange(80) % 2, "", np.char.add("patient ", (np.arange(80) // 4).astype(str)))
    data = fc.FeatureSet(data.X, data.y, ids=data.ids, groups=groups)
    found = fc.suggest(data, 10, strategy=strategy).to_json()
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(80)
        assert fc.suggest(data.select(order), 10, strategy=strategy).to_json() == found


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("part", ["test", "val"])
def test_copies_of_held_out_images_are_passed_over(strategy, part):
    data = clusters(per_class=20, labelled=6)
    new = np.flatnonzero(data.y == "")
    X = np.concatenate([data.X, data.X[new[:7]], data.X[new[7:10]] + 1e-3])
    for labels in (np.full(10, ""), np.full(10, "class 0")):
        splits = ["train"] * 80 + [part] * 10
        found = fc.suggest(fc.FeatureSet(X, np.concatenate([data.y, labels]), splits=splits), 100, strategy=strategy)
        assert set(map(int, found.ids)) == set(new[10:].tolist())
        assert "10 images are nearly the same as test or val images and were passed over" in found.notes


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_groups_with_held_out_images_are_passed_over(strategy):
    data = clusters(per_class=20, labelled=8)
    groups = np.char.add("patient ", (np.arange(80) // 4).astype(str))
    splits = np.where(np.isin(np.arange(80), [14, 35, 36]), ["test"], ["train"])
    groups[[34, 36]] = ""  # the second one is a test image without a group: it bars nobody
    found = fc.suggest(fc.FeatureSet(data.X, data.y, groups=groups, splits=splits), 100, strategy=strategy)
    barred = {12, 13, 15, 32, 33}
    assert set(map(int, found.ids)) == set(np.flatnonzero((data.y == "") & (splits == "train")).tolist()) - barred
    assert "5 images are in a group with test or val images and were passed over" in found.notes


def test_a_first_part_of_the_batch_is_the_smaller_batch_of_the_mix():
    data = clusters(labelled=8)
    assert fc.suggest(data, 12, strategy="mix").ids[:5] == fc.suggest(data, 5, strategy="mix").ids


def test_random_rounds_go_on_in_one_order():
    data = clusters(labelled=6)
    both = fc.suggest(data, 12, strategy="random").ids
    first = np.isin(data.ids, both[:5])
    later = fc.FeatureSet(data.X, np.where(first, "class 0", data.y), ids=data.ids)
    assert fc.suggest(later, 7, strategy="random").ids == both[5:]


def test_faces(tmp_path):
    data = clusters(labelled=6)
    found = fc.suggest(data, 6, strategy="mix")
    table = found.table()
    assert all(name in table and name in found.to_markdown() for name in found.ids) and "strategy mix" in table
    plain = json.loads(found.to_json())
    assert [row["id"] for row in plain["suggestions"]] == found.ids and plain["settings"]["classes"] == 4
    assert found.save(tmp_path / "next.txt").read_text().split() == found.ids
    with found.save(tmp_path / "next.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [row["id"] for row in rows] == found.ids and rows[0]["label"] == "" and rows[0]["guess"]
    assert json.loads(found.save(tmp_path / "next.json").read_text()) == plain
    for bad in ("next.xlsx", "none/next.txt"):
        with pytest.raises(HeadError, match="expected a file"):
            found.save(tmp_path / bad)


def test_odd_names_stay_in_their_cells(tmp_path):
    rng = np.random.default_rng(0)
    ids = ["a|b", "tab\there", "line\nbreak", '"quoted",', "</script>"]
    found = fc.suggest(fc.FeatureSet(rng.normal(size=(5, 8)).astype("float32"), [""] * 5, ids=ids), 5)
    assert len(found.table().splitlines()) == 1 + 5 + 2 and "line\\nbreak" in found.table()
    assert len(found.to_markdown().splitlines()[0].split("|")) == 9
    with found.save(tmp_path / "x.csv").open(newline="") as lines:
        assert {row["id"] for row in csv.DictReader(lines)} == set(ids)
    with pytest.raises(HeadError, match="line break"):
        found.save(tmp_path / "x.txt")


def test_one_image_and_equal_images():
    one = fc.FeatureSet(np.ones((1, 4), dtype="float32"), [""])
    assert fc.suggest(one, 3).ids == ["0"]
    same = fc.FeatureSet(np.ones((9, 4), dtype="float32"), [""] * 9)
    assert len(fc.suggest(same, 3)) >= 1


def test_many_rows_are_done_block_by_block():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(12_000, 8)).astype("float32")
    y = np.where(np.arange(12_000) < 60, (X[:, 0] > 0).astype(str), "")
    for strategy in ("coverage", "mix"):
        assert len(set(fc.suggest(fc.FeatureSet(X, y), 30, strategy=strategy).ids)) == 30


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n": 0}, "n: expected"),
        ({"n": 2.5}, "n: expected"),
        ({"strategy": "best"}, "strategy: expected one of auto, coverage"),
        ({"head": "no such head", "strategy": "mix"}, "no such head"),
    ],
)
def test_wrong_questions(change, words):
    with pytest.raises(HeadError, match=words):
        fc.suggest(clusters(labelled=6), **change)


def test_nothing_to_suggest_or_to_doubt():
    with pytest.raises(HeadError, match="no unlabelled image"):
        fc.suggest(clusters(labelled=40))
    with pytest.raises(HeadError, match="needs labelled images of two classes"):
        fc.suggest(clusters(labelled=0), strategy="uncertainty")
    with pytest.raises(HeadError, match="FeatureSet"):
        fc.suggest(np.eye(3))
    bad = clusters()
    bad.X[3] = np.nan
    with pytest.raises(HeadError, match="NaN"):
        fc.suggest(bad)


def test_the_verb(tmp_path, capsys):
    data = clusters(labelled=6, width=8)
    path = tmp_path / "codes.npz"
    fc.export(data, path)
    assert run(["suggest", str(path), "-n", "5", "--json", "-o", str(tmp_path / "next.txt")]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert [row["id"] for row in shown["suggestions"]] == fc.suggest(data, 5).ids
    assert (tmp_path / "next.txt").read_text().splitlines() == fc.suggest(data, 5).ids
    assert run(["suggest", str(path), "-n", "5", "--markdown"]) == 0 and "| image |" in capsys.readouterr().out
    assert run(["suggest", str(path), "--strategy", "mix"]) == 0 and "stands for" in capsys.readouterr().out
    assert run(["suggest", str(path), "--strategy", "best"]) == 1
    error = capsys.readouterr().err
    assert "strategy: expected one of" in error and len(error.splitlines()) == 1
