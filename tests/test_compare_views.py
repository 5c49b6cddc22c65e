"""Augmented views as rows: images are drawn, held out and counted; their views only train."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import make_tiny_backbone, write_images
from sklearn.neighbors import KNeighborsClassifier

import featcache as fc
from featcache.cli import run
from featcache.evaluation import compare
from featcache.features import FeatureSet
from featcache.heads import FittedHead, fit, join_views
from featcache.heads.labelled import Rows

N, D, V = 120, 30, 4
RNG = np.random.default_rng(0)
Y = np.arange(N) % 3
NOISE = RNG.normal(size=(N, D)).astype("float32")
CODES = (NOISE + 1.5 * np.eye(3, D)[Y]).astype("float32")


def views(X, y=Y, **fields):
    """A plain set and three views of it that are nearly copies."""
    ids = [f"image {i:03}" for i in RNG.permutation(N)]
    shifts = [0.0, *RNG.normal(0, 0.05, (V - 1, N, D))]
    sets = [FeatureSet((X + s).astype("float32"), y.astype(str), ids, name="set", node="f", **fields) for s in shifts]
    return sets[0], join_views(sets, rows=True)


NAMED = np.asarray(["train", "train", "val", "test", "", "train"] * (N // 6))


def test_a_group_that_is_named_after_one_of_its_images_stays_whole():
    ids = np.asarray(["a", "b", "c", "d", "e", "f"])
    plain = FeatureSet(CODES[:6], ["x", "y"] * 3, ids, groups=["a", "a", "c", "c", "", "f"], name="set")
    rows = Rows.of(join_views([plain, replace(plain, X=CODES[6:12])], rows=True))
    first = {str(name).split(" #")[0]: group for name, group in zip(rows.ids, rows.groups, strict=True)}
    assert first["a"] == first["b"] != first["c"] == first["d"]
    assert len({first[name] for name in "acef"}) == 4
    np.testing.assert_array_equal(
        rows.plain().groups == rows.plain().groups[:, None], np.equal.outer(*[np.asarray([0, 0, 1, 1, 2, 3])] * 2)
    )


def test_a_view_of_a_test_image_does_not_train():
    ids, view_of = np.asarray(["a", "b", "c", "d", "a #1", "b #1"]), np.asarray(["", "", "", "", "a", "b"])
    splits = np.asarray(["test", "train", "train", "test", "train", "train"])
    rows = Rows.of(FeatureSet(CODES[:6], ["x", "x", "y", "y", "x", "x"], ids, splits=splits, view_of=view_of))
    assert rows.ids[rows.parts["train"]].tolist() == ["b", "c", "b #1"]


@pytest.mark.parametrize("splits", [None, NAMED])
@pytest.mark.parametrize("groups", [None, np.arange(N) // 2, np.where(np.arange(N) < 40, "", np.arange(N) // 3)])
def test_draws_are_those_of_the_images_alone(groups, splits):
    plain, joined = views(CODES, groups=groups, splits=splits)
    result = compare([plain, joined], [Recorder()], shots=[1, 5, "all"], seeds=3)
    half = len(result.rows) // 2
    for one, other in zip(result.rows[:half], result.rows[half:], strict=True):
        assert (one["dataset"], other["dataset"]) == ("set", "set with views")
        for same in ("shots", "seeds", "n_train", "n_test"):
            assert one[same] == other[same]
    seen, again = (_seen(data) for data in (plain, joined))
    rows = {x.tobytes(): i for i, x in enumerate(plain.X)}
    for (X, test), (X_views, test_views) in zip(seen, again, strict=True):
        np.testing.assert_array_equal(test, test_views)  # plain images, in the same order
        images = {rows[x.tobytes()] for x in X}
        assert {rows[x.tobytes()] for x in X_views if x.tobytes() in rows} == images
        fewest = len(X) if splits is None else sum(NAMED[i] == "train" for i in images)
        assert len(X_views) == len(X) + (V - 1) * fewest  # views of val rows do not train
        if splits is None:  # a view of a test image never trains
            nearest = np.square(X_views[:, None] - test[None]).sum(2).min()
            assert nearest > 2.0


def _seen(data):
    Recorder.seen.clear()
    compare(data, [Recorder()], shots=[1, 5, "all"], seeds=3)
    return list(Recorder.seen)


class Recorder(KNeighborsClassifier):
    """Keeps what it was trained on and asked about."""

    seen: list = []  # clones share it

    def fit(self, X, y):
        self.rows_ = X
        return super().fit(X, y)

    def predict(self, X):
        self.n_neighbors = min(5, len(self.rows_))
        self.seen.append((self.rows_, X))
        return super().predict(X)


def test_labels_that_mean_nothing_stay_at_chance():
    """A view of a test or held-out image in training would give a nearest neighbour that knows the answer."""
    plain, joined = views(NOISE, RNG.integers(0, 3, N))
    heads = ["knn", "lda", "logreg", "ridge", "ensemble", KNeighborsClassifier(1)]
    for row in compare(joined, heads, shots=[10, "all"], seeds=4).rows:
        assert row["mean"] < 0.5, row
    for head in ("knn", "lda", "ridge", "auto"):
        fitted = fit(head, joined, reject=0.1)
        assert fitted.scores["cv"] < 0.5 and fitted.rejection["coverage"] < 0.1
        assert fitted.n_train == V * N


def test_gains_of_views_are_said_for_the_same_codes_only():
    plain, joined = views(CODES)
    other = replace(plain, X=plain.X + 1, name="other")
    notes = [n for n in compare([other, plain, joined], ["lda", "knn"], seeds=2).notes if "against" in n]
    assert len(notes) == 2 and all("set with views at all" in n and "against set (95 %" in n for n in notes)
    assert not [n for n in compare([other, joined], ["lda"], seeds=2).notes if "against" in n]
    relabelled = replace(plain, y=np.roll(plain.y, 1))
    assert not [n for n in compare([relabelled, joined], ["lda"], seeds=2).notes if "against" in n]


def test_the_order_of_rows_does_not_matter():
    _, joined = views(CODES)
    mixed = joined.select(RNG.permutation(len(joined)))
    one, two = (compare(s, ["lda", "knn"], shots=[3, "all"], seeds=2) for s in (joined, mixed))
    assert [r["scores"] for r in one.rows] == [r["scores"] for r in two.rows]
    scores = [fit("lda", s, calibrate=True).predict_scores(CODES) for s in (joined, mixed)]
    np.testing.assert_array_equal(*scores)


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_an_exported_set_knows_its_views(suffix, tmp_path):
    _, joined = views(CODES)
    again = fc.read_features(fc.export(joined, tmp_path / f"x{suffix}"))
    np.testing.assert_array_equal(again.view_of, joined.view_of)
    assert again.columns.keys() == joined.columns.keys()
    assert fc.read_features(fc.export(joined.select([0, 1]), tmp_path / f"y{suffix}")).view_of.tolist() == ["", ""]


def test_views_without_their_plain_row():
    _, joined = views(CODES)
    rows = Rows.of(joined.select(np.arange(60, len(joined))))  # the first 60 images have views only
    assert len(rows.plain().y) == N and rows.plain().ids[-1].endswith("#1")
    assert Rows.of(joined.select(np.arange(N))).images is None
    assert fit("lda", joined.select(np.arange(N, 2 * N))).scores["cv"] > 0.6


def test_the_command_line_compares_with_views(tmp_path, capsys):
    folder = write_images(tmp_path / "images", 24)
    backbone = make_tiny_backbone(nodes=["features.5", "penultimate"], pooling="avg")
    store = fc.extract(folder, backbone, tmp_path / "s.features", augmented=2, precision="fp32", progress=False)
    last = list(store.nodes)[-1]
    words = ["compare", str(store.path), "--heads", "ridge,knn", "--shots", "2,all", "--seeds", "2", "-q"]
    for more in (["--nodes", "all"], ["--node", last]):
        assert run([*words, *more, "--views", "all", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [r["dataset"] for r in found["results"]] == ["s.features"] * 4 + ["s.features with views"] * 4
        assert [r["n_train"] for r in found["results"][:4]] == [r["n_train"] for r in found["results"][4:]]
        assert sum("against s.features (" in note for note in found["notes"]) == 4
        assert any("24 images, and 48 augmented views" in note for note in found["notes"])
    assert run([*words, "--node", last, "--views", "1", "--plot", str(tmp_path / "p.png")]) == 0
    assert "24 images, and 24 augmented views" in capsys.readouterr().out and (tmp_path / "p.png").exists()
    for wrong, message in (("some", "expected 'all'"), ("9", "no augmented view 3"), ("", "expected 'all'")):
        assert run([*words, "--node", last, "--views", wrong]) != 0
        said = capsys.readouterr().err
        assert message in said and said.count("\n") == 1
    out = tmp_path / "x.head"
    assert run(["fit", str(store.path), "--node", last, "--views", "all", "--head", "lda", "-o", str(out)]) == 0
    assert FittedHead.load(out).n_train == 72 and "24 images" in capsys.readouterr().err


def test_groups_of_one_row_each_are_none():
    """Their draws, folds and scores are those of rows without groups, to the byte; so is one view of each image."""
    plain, _ = views(CODES)
    alone = replace(plain, groups=np.arange(N))
    one, two = (compare([s], ["ridge", "knn"], shots=[5, "all"], seeds=2) for s in (plain, alone))
    assert [r["scores"] for r in one.rows] == [r["scores"] for r in two.rows]
    single = join_views([plain], rows=True)
    assert [r["dataset"] for r in compare([plain, single], ["ridge"], seeds=1).rows] == ["set", "set (2)"]
    np.testing.assert_array_equal(fit("ridge", plain).predict_scores(CODES), fit("ridge", alone).predict_scores(CODES))
