"""Streams of images: answered in order, as far as they are asked for, whatever comes along."""

import csv
import gc
import io
import weakref

import numpy as np
import pytest
import torch
from conftest import make_tiny_backbone, write_images
from PIL import Image

import featcache as fc
from featcache.errors import FeatcacheError, HandoffError


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("stream")
    folder = write_images(tmp / "images", 12, classes=("ant", "bee", "cow"))
    data = fc.extract(folder, make_tiny_backbone(), tmp / "s", precision="fp32", progress=False).load()
    return folder, data, fc.fit("logreg", data)


def images_of(folder):
    return [np.asarray(Image.open(path)) for path in sorted(folder.rglob("*.jpg"))]


def test_a_stream_gives_what_a_list_does(setting):
    folder, _, fitted = setting
    images = images_of(folder)
    expected = fc.predict(fitted, images, progress=False)
    for batch_size in (1, 5, 100):
        for workers in (0, 2):
            rows = fc.predict_iter(fitted, iter(images), batch_size=batch_size, workers=workers)
            assert list(rows) == expected
    assert fc.predict(fitted, iter(images), progress=False) == expected
    assert list(fc.predict_iter(fitted, images)) == expected
    assert list(fc.predict_iter(fitted, folder)) == fc.predict(fitted, folder, progress=False)
    assert list(fc.predict_iter(fitted, iter([]))) == []


def test_no_more_is_read_than_one_batch(setting):
    folder, _, fitted = setting
    taken = []

    def camera():
        image = images_of(folder)[0]
        while True:  # never ends
            taken.append(1)
            yield image

    rows = fc.predict_iter(fitted, camera(), batch_size=1)
    assert not taken, "nothing is read before an answer is asked for"
    next(rows), next(rows)
    assert len(taken) == 2
    rows = fc.predict_iter(fitted, camera(), batch_size=4)
    taken.clear()
    for _ in range(5):
        next(rows)
    assert len(taken) == 8
    rows.close()


def test_images_are_not_held(setting):
    folder, _, fitted = setting
    image, alive = images_of(folder)[0], []

    class Picture(np.ndarray):
        pass

    def camera():
        for _ in range(40):
            picture = image.copy().view(Picture)
            alive.append(weakref.ref(picture))
            yield picture
            del picture

    most = 0
    for _ in fc.predict_iter(fitted, camera(), batch_size=4, workers=0):
        gc.collect()
        most = max(most, sum(ref() is not None for ref in alive))
    assert len(alive) == 40 and most <= 9


def test_all_kinds_of_images_and_ids(setting):
    folder, data, fitted = setting
    path = folder / data.ids[0]
    image = Image.open(path)
    image.load()
    array = np.asarray(image)
    stream = [image, array, path.read_bytes(), path, str(path), ("mine", image), (7, path), ("x/é", array)]
    rows = list(fc.predict_iter(fitted, iter(stream)))
    names = ["00000000", "00000001", "00000002", str(path), str(path), "mine", "7", "x/é"]
    assert [row["id"] for row in rows] == names
    assert len({row["label"] for row in rows}) == 1
    first = list(rows[0]["scores"].values())
    assert all(np.allclose(list(row["scores"].values()), first, atol=1e-6) for row in rows)


def test_what_is_no_image_gives_a_line_with_an_error(setting, tmp_path):
    folder, _, fitted = setting
    good = images_of(folder)[0]
    stream = [good, None, 3, b"no", tmp_path / "absent.jpg", tmp_path, ("a", None), torch.zeros(3, 8, 8), (1, 2, 3),
              np.zeros((0, 4, 3), "u1"), np.full((4, 4, 3), np.nan), {"image": good}, good]  # fmt: skip
    rows = list(fc.predict_iter(fitted, iter(stream), batch_size=3))
    assert ["label" in row for row in rows] == [True, *[False] * 11, True]
    for row in rows[1:-1]:
        assert set(row) == {"id", "error"} and "\n" not in row["error"]
    assert "No such file" in rows[4]["error"] and rows[6]["id"] == "a"
    assert all("error" in row for row in fc.predict_iter(fitted, iter([None, 1]), batch_size=2))


def test_what_the_stream_raises_comes_after_the_answers_before(setting):
    folder, _, fitted = setting

    def camera():
        yield from images_of(folder)[:5]
        raise ConnectionError("unplugged")

    rows, found = fc.predict_iter(fitted, camera(), batch_size=4), []
    with pytest.raises(ConnectionError, match="unplugged"):
        for row in rows:
            found.append(row["id"])
    assert len(found) == 5


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"batch_size": 0}, "batch_size"),
        ({"workers": -1}, "workers"),
        ({"top_k": 0}, "top_k"),
        ({"top_k": True}, "top_k"),
        ({"top_k": 1.5}, "top_k"),
        ({"fitted": 3}, "expected a FittedHead"),
        ({"head": "x"}, "head: expected a network"),
        ({"device": "gpu"}, "gpu"),
    ],
)
def test_mistakes_are_told_before_the_first_image(setting, options, match):
    def camera():
        raise AssertionError("an image was asked for")
        yield

    with pytest.raises(FeatcacheError, match=match):
        given = {"fitted": setting[2], "images": camera(), **options}
        fc.predict_iter(**given)
    with pytest.raises(HandoffError, match="got codes"):
        fc.predict_iter(setting[2], setting[1])


def test_the_best_labels(setting):
    folder, data, fitted = setting
    whole = fc.predict(fitted, folder, progress=False)
    for k in (1, 2, 9):
        rows = fc.predict(fitted, folder, top_k=k, progress=False)
        for row, full in zip(rows, whole, strict=True):
            ordered = sorted(full["scores"].items(), key=lambda item: -item[1])[:k]
            assert [t["label"] for t in row["top"]] == [name for name, _ in ordered]
            assert [t["score"] for t in row["top"]] == pytest.approx([score for _, score in ordered])
            assert "scores" not in row and row["top"][0]["label"] == row["label"]
    assert fc.predict(fitted, data, top_k=1)[0]["top"][0]["label"] == fitted.predict(data)[0]


def test_guards_stay_beside_the_best_labels(setting):
    folder, data, _ = setting
    fitted = fc.fit("logreg", data, reject=0.3, novelty="knn")
    row = fc.predict(fitted, folder, top_k=1, progress=False)[0]
    assert set(row) == {"id", "label", "top", "accepted", "novelty"}


def test_networks_answer_as_their_heads(setting):
    folder, _, fitted = setting
    expected = fc.predict(fitted, folder, progress=False)
    for module in (fc.to_module(fitted), fc.to_module(fitted, images="uint8").train()):
        training = module.training
        for options in ({}, {"head": fitted}):
            rows = list(fc.predict_iter(module, folder, **options))
            assert [(r["id"], r["label"]) for r in rows] == [(r["id"], r["label"]) for r in expected]
            assert np.allclose(
                [list(r["scores"].values()) for r in rows], [list(r["scores"].values()) for r in expected], atol=1e-4
            )
        assert module.training == training
    ridge = fc.fit("ridge", setting[1])
    raw = fc.predict(fc.to_module(ridge), folder, head=ridge, progress=False)
    assert np.allclose([list(r["scores"].values()) for r in raw], ridge.predict_scores(setting[1]), atol=1e-3), (
        "scores that are no log odds stay as they are"
    )


def test_networks_that_do_not_fit_are_refused(setting):
    folder, data, fitted = setting
    with pytest.raises(HandoffError, match="preprocess images is unknown"):
        fc.predict(torch.nn.Linear(2, 2), folder)
    wide = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.LazyLinear(7))
    wide.preprocess, wide.classes = fc.Preprocess(8, 8), ["a", "b"]
    with pytest.raises(HandoffError, match="expected scores of shape"):
        fc.predict(wide, folder, progress=False)
    odd = torch.nn.Linear(5, 2)
    odd.preprocess, odd.classes = fc.Preprocess(8, 8), ["a", "b"]
    with pytest.raises(HandoffError, match="it fails on images") as caught:
        fc.predict(odd, folder, progress=False)
    assert "\n" not in str(caught.value)
    with pytest.raises(HandoffError, match="got codes"):
        fc.predict(fc.to_module(fitted), data)
    with pytest.raises(HandoffError, match="weights: expected a head"):
        fc.predict(fc.to_module(fitted), folder, weights="x")


def test_progress_counts_the_images_of_a_folder(setting):
    seen = []

    class Counting:
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            return None

        def start(self, what, total):
            seen.append(total)

        def advance(self, steps=1, note=""):
            seen.append(steps)

    fc.predict(setting[2], setting[0], progress=Counting(), batch_size=5)
    fc.predict(setting[2], iter(images_of(setting[0])), progress=Counting(), batch_size=12)
    assert seen == [12, 5, 5, 2, None, 12]


@pytest.mark.real
def test_odd_images(setting, data_dir):
    place = data_dir / "odd_images"
    with (place / "index.csv").open() as file:
        known = {row["file"]: row["pillow13_result"] for row in csv.DictReader(file)}
    paths = sorted(place / name for name in known)
    rows = list(fc.predict_iter(setting[2], iter(paths), batch_size=7))
    assert [row["id"] for row in rows] == [str(path) for path in paths]
    assert all(set(row) in ({"id", "label", "scores"}, {"id", "error"}) for row in rows)
    failed = {row["id"].rsplit("/", 1)[1] for row in rows if "error" in row}
    assert {name for name, result in known.items() if result != "ok"} <= failed
    assert len(failed) < len(paths) / 2 and all("\n" not in row.get("error", "") for row in rows)
    streamed = [io.BytesIO(path.read_bytes()).getvalue() for path in paths]
    again = list(fc.predict_iter(setting[2], iter(streamed)))
    assert [row.get("label") for row in again] == [row.get("label") for row in rows]
