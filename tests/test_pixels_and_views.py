"""Faster pixels that a new store may take, augmented views, predictions: extraction as a whole."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from conftest import make_tiny_backbone, write_images

import featcache as fc
from featcache.errors import BackboneError, SpecMismatch, StoreError
from featcache.extraction import encoder, probing, publishing, remembered
from featcache.extraction import precision as precise
from featcache.extraction import run as module
from featcache.extraction.audit import audit
from featcache.extraction.settings import Settings
from featcache.preprocess import Preprocess


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("photos") / "images", 12, size=(90, 120))


@pytest.fixture(autouse=True)
def pixels_that_pay(monkeypatch):
    """What these small images and a busy machine would decide by chance."""
    monkeypatch.setattr(probing.Probe, "saves_time", lambda self, variant: True)


def run(source, path, **options):
    return fc.extract(source, options.pop("backbone", None) or make_tiny_backbone(), path, progress=False, **options)


def pixels_by(recipe, folder, store):
    return np.stack([recipe.pixels((folder / i).read_bytes()) for i in store.load().ids.tolist()])


# -- pixels --------------------------------------------------------------------------------------------------------


def test_a_new_store_takes_faster_pixels_that_agree_and_keeps_them(folder, tmp_path):
    store = run(folder, tmp_path / "auto")
    recipe = Preprocess.from_spec(store.spec["preprocess"])
    assert recipe in make_tiny_backbone().preprocess.fast_variants()
    codes = next(iter(make_tiny_backbone().encode(pixels_by(recipe, folder, store)).values()))
    assert np.array_equal(store.load().X, codes.astype(store.spec["dtype"]).astype("f4")), "what the spec says is done"
    exact = run(folder, tmp_path / "exact", precision="fp32")
    assert Preprocess.from_spec(exact.spec["preprocess"]) == make_tiny_backbone().preprocess
    assert precise.worst_cosine(exact.load().X, store.load().X) >= precise.TOLERANCE
    assert run(folder, tmp_path / "auto").report.computed == 0
    assert run(folder, tmp_path / "exact").spec == exact.spec, "an existing store's pixels are adopted"


def test_whether_faster_pixels_pay_is_remembered_for_the_images(folder, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(remembered, "_path", lambda: tmp_path / "timings.json")
    source, found = fc.ImageSource.open(folder), []
    for spent in (0.5, 5.0):  # what a busy machine would make of it the second time
        planned = encoder.Encoder(source, make_tiny_backbone(), Settings(), None)
        variant = planned.backbone.preprocess.fast_variants()[0]
        assert len(planned._probe.pixels(variant))
        planned._probe._seconds.update({planned.backbone.preprocess: 1.0, variant: spent})
        found.append(planned._probe.saves_time(variant))
    assert found == [True, True]


def test_reference_pixels_can_be_asked_for(folder, tmp_path):
    store = run(folder, tmp_path / "s", pixels="reference")
    assert store.spec["precision"]["class"] == "tolerance"
    assert store.spec["preprocess"]["resampling"] == "reference" and store.spec["preprocess"]["decoder"] == "pillow"
    auto = run(folder, tmp_path / "auto")
    with pytest.raises(SpecMismatch, match="resampling"):
        run(folder, auto.path, pixels="reference")


def test_pixels_that_do_not_agree_are_not_taken(folder, tmp_path, monkeypatch):
    original = Preprocess.pixels

    def spoilt(self, payload):
        pixels = original(self, payload)
        return pixels if self.resampling == "reference" else 255 - pixels

    monkeypatch.setattr(Preprocess, "pixels", spoilt)
    store = run(folder, tmp_path / "s")
    assert store.spec["preprocess"]["resampling"] == "reference"


def test_pixels_that_save_no_time_are_not_taken(folder, tmp_path, monkeypatch):
    monkeypatch.undo()
    for worth, expected in ((0.0, "reference"), (1e9, "torch")):
        monkeypatch.setattr(probing, "_WORTH_PIXELS", worth)
        assert run(folder, tmp_path / expected).spec["preprocess"]["resampling"] == expected


def test_the_exact_class_refuses_faster_pixels(folder, tmp_path):
    recipe = Preprocess(resize=64, crop=64, resampling="fused")
    backbone = fc.Backbone("squeezenet1_1", weights="random", preprocess=recipe)
    with pytest.raises(BackboneError, match="expected reference pixels under --precision fp32"):
        run(folder, tmp_path / "s", backbone=backbone, precision="fp32")
    assert not (tmp_path / "s").exists()
    assert run(folder, tmp_path / "s", backbone=backbone).spec["preprocess"]["resampling"] == "fused"


def test_the_usual_backbone_fits_a_store_with_faster_pixels(folder, tmp_path):
    store = run(folder, tmp_path / "s")
    found = audit(store, 6, source=folder, backbone=make_tiny_backbone(), progress=False)
    assert found.ok and found.compared == 6 and found.bit_equal == 6


# -- augmented views -----------------------------------------------------------------------------------------------


def test_views_of_an_image_are_rows_of_their_own(folder, tmp_path):
    backbone = make_tiny_backbone()
    store = run(folder, tmp_path / "s", backbone=backbone, precision="fp32", augmented=3)
    assert store.report.computed == len(store.load()) == 12 and store.report.augmented == 3
    plain, mirrored, crop = (store.load(view_number=n) for n in (0, 1, 2))
    pixels = pixels_by(backbone.preprocess, folder, store)
    codes = next(iter(backbone.encode(pixels[:, :, ::-1]).values()))
    assert np.array_equal(mirrored.X, codes), "view 1 is the mirrored image"
    assert not np.allclose(crop.X, plain.X) and crop.y.tolist() == plain.y.tolist()
    assert store.check(deep=True).ok


def test_more_views_compute_only_the_new_ones(folder, tmp_path):
    run(folder, tmp_path / "a", precision="fp32", augmented=1)
    assert run(folder, tmp_path / "a", precision="fp32", augmented=1).report.computed == 0
    grown = run(folder, tmp_path / "a", precision="fp32", augmented=2)
    assert sum(s.region("key")["shape"][0] for s in grown.shards) == 12 * 3, "no row twice"
    whole = run(folder, tmp_path / "b", precision="fp32", augmented=2)
    for number in range(3):
        assert np.array_equal(grown.load(view_number=number).X, whole.load(view_number=number).X)
    assert run(folder, tmp_path / "a", precision="fp32").report.computed == 0


def test_a_view_that_is_not_there_says_how_to_get_it(folder, tmp_path):
    store = run(folder, tmp_path / "s", precision="fp32")
    with pytest.raises(StoreError, match="12 of 12 keys have no augmented view 2; extract with --augmented 2"):
        store.load(view_number=2)


@pytest.mark.parametrize(
    ("option", "value"),
    [("pixels", "fast"), ("engine", "jit"), ("augmented", -1), ("augmented", True), ("augmented", 1e6)],
)
def test_impossible_settings_are_refused(folder, tmp_path, option, value):
    with pytest.raises(BackboneError, match=option):
        run(folder, tmp_path / "s", **{option: value})
    assert not (tmp_path / "s").exists()


# -- predictions ---------------------------------------------------------------------------------------------------


def test_a_plan_predicts_what_the_run_does(folder, tmp_path):
    planned = fc.plan(folder, make_tiny_backbone(), tmp_path / "s", progress=False, augmented=1)
    assert planned.compute == 12 and planned.seconds > 0 and planned.verdict
    store = run(folder, tmp_path / "s", augmented=1)
    assert planned.fingerprint == store.fingerprint
    assert planned.precision["mode"] == store.report.precision["mode"]
    written = sum(p.stat().st_size for p in store.path.rglob("*.h5"))
    assert planned.bytes == pytest.approx(written, rel=0.25)


def test_the_report_tells_where_the_time_went(folder, tmp_path):
    report = run(folder, tmp_path / "s").report
    assert sum(report.shares.values()) == pytest.approx(1, abs=0.02) and report.shares["model"] > 0
    assert report.bottleneck.split()[0] in {*report.shares, "device"}
    assert report.engine["engine"] in ("fused", "eager")
    assert report.images_per_second == pytest.approx(report.computed / report.seconds, rel=0.05)


# -- accelerators --------------------------------------------------------------------------------------------------


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs that are this CPU: what the run asks of them, and in which order it takes their answers."""
    asked = {"streams": [], "probes": []}
    encode = fc.Backbone.encode

    def stream(self, batches, *, mode, device, engine, chunk, threads):
        assert (threads is None) == (device != "cpu"), "a GPU computes itself"
        asked["streams"].append((mode, device, chunk))
        ahead = []
        for pixels in batches:  # two batches are on their way, as on a GPU
            ahead.append(encode(self, pixels, mode=mode))
            if len(ahead) > 2:
                yield ahead.pop(0)
        yield from ahead

    def on_one(self, pixels, *, mode="fp32", device="cpu", engine="auto"):
        asked["probes"].append(device)
        return encode(self, pixels, mode=mode)

    monkeypatch.setattr(fc.Backbone, "check_device", staticmethod(lambda device: None))
    monkeypatch.setattr(fc.Backbone, "stream", stream)
    monkeypatch.setattr(fc.Backbone, "encode", on_one)
    monkeypatch.setattr(fc.Backbone, "best_chunk", lambda self, mode, device: 128)
    monkeypatch.setattr(fc.Backbone, "engine_report", lambda self, **options: {**options, "engine": "eager"})
    monkeypatch.setattr(encoder.Encoder, "_device_name", lambda self: "fake GPU")
    return asked


def test_batches_go_through_accelerators_in_order(folder, tmp_path, two_gpus):
    store = run(folder, tmp_path / "gpu", precision="fp32", device="cuda:0,cuda:1", batch_size=2)
    assert two_gpus["streams"] == [("fp32", "cuda:0,cuda:1", 128)] and set(two_gpus["probes"]) <= {"cuda:0"}
    computed = store.shards[-1].attributes["computed"]
    assert computed["chunk"] == 128 and computed["environment"]["processor"] == "fake GPU"
    assert store.report.engine["engine"] == "eager"
    alone = run(folder, tmp_path / "cpu", precision="fp32", device="cpu")
    assert np.array_equal(alone.load().X, store.load().X), "each row belongs to its image"


def test_a_store_of_another_device_is_audited(folder, tmp_path, two_gpus):
    run(folder, tmp_path / "s", precision="fp32", device="cpu")
    more = write_images(tmp_path / "more", 3, seed=7, start=40)
    store = run(more, tmp_path / "s", precision="fp32", device="cuda:0", add=True)
    assert store.report.computed == 3
    again = run(folder, tmp_path / "s", precision="fp32", device="cuda:0", add=True, augmented=1)
    assert again.report.precision["audited"] is None, "the newest rows are of this device"


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", "float16"), ("fp32", "float16")])
def test_another_engine_goes_on_with_images_that_are_nearly_alike(tmp_path, precision, dtype):
    rng = np.random.default_rng(0)
    photo = rng.integers(40, 200, (64, 64, 3))
    images = [(photo + rng.integers(-2, 3, photo.shape)).astype("u1") for _ in range(12)]
    few, all_ = (fc.ImageSource.from_arrays(images[:n], ids=[f"{i:02d}" for i in range(n)]) for n in (6, 12))
    run(few, tmp_path / "s", precision=precision, dtype=dtype, engine="eager")
    store = run(all_, tmp_path / "s", engine="fused")
    assert store.report.computed == 6 and store.report.precision["audited"] is not None
    report = audit(store, 12, source=all_, backbone=make_tiny_backbone(), progress=False)
    assert report.ok and report.compared == 12


def test_large_rows_reach_the_writer_in_pieces(folder, tmp_path, monkeypatch):
    at_once = run(folder, tmp_path / "s", augmented=1)
    pieces, put = [], publishing.Writer.put

    def counted(self, keys, *rest):
        pieces.append(len(keys))
        put(self, keys, *rest)

    monkeypatch.setattr(publishing.Writer, "put", counted)
    monkeypatch.setattr(module, "_PIECE_BYTES", 5 * 4 * at_once.load().X.shape[1])
    store = run(folder, tmp_path / "t", augmented=1)
    assert max(pieces) == 5 and sum(pieces) == 24
    assert all(np.array_equal(at_once.load(view_number=k).X, store.load(view_number=k).X) for k in (0, 1))


def test_after_an_error_nothing_is_read_any_more(folder, tmp_path, monkeypatch):
    class Full(Exception):
        pass

    def full(self, *args, **options):
        raise Full

    monkeypatch.setattr(fc.FeatureStore, "append", full)
    with pytest.raises(Full) as caught:
        run(folder, tmp_path / "s", workers=3, batch_size=1, publish_seconds=0)
    assert caught.value.__traceback__ is not None
    assert not [t.name for t in threading.enumerate() if t.name.startswith("featcache-team") and t.is_alive()]


@pytest.mark.parametrize("options", [{"precision": []}, {"device": None}, {"device": 3}, {"device": ""}])
def test_arguments_that_are_no_text_are_refused(folder, tmp_path, options):
    with pytest.raises(BackboneError, match="expected"):
        run(folder, tmp_path / "s", **options)
    assert not (tmp_path / "s").exists()


def test_the_network_is_busy_while_results_are_handed_over(folder, tmp_path, monkeypatch):
    under_way, most = 0, 0
    lock, original = threading.Lock(), fc.Backbone.encode

    def watched(self, pixels, **options):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        time.sleep(0.02)
        try:
            return original(self, pixels, **options)
        finally:
            with lock:
                under_way -= 1

    reference = run(folder, tmp_path / "r", precision="fp32")
    monkeypatch.setattr(fc.Backbone, "encode", watched)
    store = run(folder, tmp_path / "s", precision="fp32", batch_size=1)
    assert 2 <= most <= 3 and np.array_equal(store.load().X, reference.load().X)


def test_an_error_in_a_batch_ahead_loses_none_before_it(folder, tmp_path, monkeypatch):
    original, calls = fc.Backbone.encode, []

    def failing(self, pixels, **options):
        calls.append(len(pixels))
        if len(calls) == 4:
            raise BackboneError("the fourth batch fails")
        return original(self, pixels, **options)

    monkeypatch.setattr(fc.Backbone, "encode", failing)
    with pytest.raises(BackboneError, match="the fourth"):
        run(folder, tmp_path / "s", precision="fp32", batch_size=2)
    monkeypatch.setattr(fc.Backbone, "encode", original)
    again = run(folder, tmp_path / "s", precision="fp32", batch_size=2).report
    assert (again.computed, again.reused) == (6, 6), "three batches of two were published"
