"""extract(): what is computed, what is reused, what is refused, and what a crash may cost."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import make_tiny_backbone, write_images
from PIL import Image

import featcache as fc
from featcache.errors import BackboneError, FailureBudgetExceeded, SourceError, SpecMismatch, StoreError, ViewMismatch
from featcache.extraction import precision as precise
from featcache.extraction.encoder import Encoder
from featcache.extraction.publishing import Writer
from featcache.extraction.settings import Settings
from featcache.store import FeatureStore

#: Codes computed in other batch sizes differ by at most this much (worst centred cosine 1 - 1e-6).
BATCH_TOLERANCE = 1e-6


def run(folder, backbone, path, **options):
    options = {"precision": "fp32", "workers": 2, "progress": False, **options}
    return fc.extract(folder, backbone, path, **options)


@pytest.fixture
def done(image_folder, tiny_backbone, tmp_path):
    return run(image_folder, tiny_backbone, tmp_path / "s")


def test_codes_are_those_of_the_backbone_on_the_preprocessed_images(done, image_folder, tiny_backbone):
    data = done.load()
    pixels = [tiny_backbone.preprocess.pixels((image_folder / i).read_bytes()) for i in data.ids]
    expected = tiny_backbone.encode(np.stack(pixels))[data.node]
    assert np.array_equal(data.X, expected)
    assert data.y.tolist() == [i.split("/")[0] for i in data.ids]
    assert done.report.computed == 12 and done.report.reused == 0 and not done.report.failed
    assert done.check(deep=True).ok


def test_a_second_run_computes_nothing_and_commits_nothing(done, image_folder):
    again = run(image_folder, make_tiny_backbone(), done.path)
    assert (again.report.computed, again.report.reused) == (0, 12)
    assert again.snapshots() == [0]


def test_a_job_that_goes_on_keeps_its_compiled_code_in_the_same_environment(done, image_folder, monkeypatch):
    going_on = Encoder(fc.ImageSource.open(image_folder), make_tiny_backbone(), Settings(precision="fp32"), done)
    here = going_on.environment()
    assert going_on._newest()["environment"] == here and going_on._asked_engine() == "auto"
    for before, expected in (({**here, "engine": "compiled"}, "compiled"), ({"engine": "compiled"}, "auto")):
        monkeypatch.setattr(Encoder, "_newest", lambda self, before=before: {"environment": before})
        assert going_on._asked_engine() == expected
    asked = Settings(precision="fp32", engine="eager")
    assert Encoder(going_on.source, make_tiny_backbone(), asked, done)._asked_engine() == "eager"


def test_a_second_run_imports_no_torch(done, image_folder):
    code = f"""
import sys
import featcache as fc
recipe = fc.Preprocess(resize=64, crop=64)
backbone = fc.Backbone("squeezenet1_1", weights="random", init_seed=0, preprocess=recipe)
store = fc.extract({str(image_folder)!r}, backbone, {str(done.path)!r}, precision="fp32")
plan = fc.plan({str(image_folder)!r}, backbone, {str(done.path)!r}, precision="fp32")
assert store.report.computed == plan.compute == 0, store.report
heavy = {{"torch", "torchvision", "sklearn", "matplotlib"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_reading_fresh_files_again_imports_no_torch(tmp_path):
    """A file just written has no remembered digest; recognising it needs the spec's recipe, not the network's."""
    folder = write_images(tmp_path / "images", 4)
    words = [str(folder), "-o", str(tmp_path / "s"), "--backbone", "embedded", "--quiet"]
    code = f"""
import sys
from featcache.cli import run
assert run(["extract", *{words!r}]) == 0
assert not {{"torch", "torchvision"}} & set(sys.modules), "the network was loaded"
"""
    subprocess.run([sys.executable, "-m", "featcache", "extract", *words], check=True)
    for path in sorted(folder.rglob("*.jpg")):
        path.write_bytes(path.read_bytes())
    subprocess.run([sys.executable, "-c", code], check=True)


def test_moved_renamed_copied_and_relabelled_images_cost_nothing(done, image_folder, tiny_backbone, tmp_path):
    before = done.load()
    moved = tmp_path / "elsewhere"
    shutil.move(image_folder, moved)
    (moved / "cat" / "0000.jpg").rename(moved / "cat" / "renamed.jpg")
    shutil.copy(moved / "cat" / "0002.jpg", moved / "cat" / "copy.jpg")
    (moved / "bird").mkdir()
    (moved / "cat" / "0004.jpg").rename(moved / "bird" / "0004.jpg")
    store = run(moved, tiny_backbone, done.path)
    report = store.report
    assert (report.computed, report.images, report.gone) == (0, 13, 2)
    after = store.load()
    assert after.y[after.ids == "bird/0004.jpg"].tolist() == ["bird"]
    old = dict(zip(before.ids, before.X, strict=True))
    new = dict(zip(after.ids, after.X, strict=True))
    assert np.array_equal(new["cat/renamed.jpg"], old["cat/0000.jpg"])
    assert np.array_equal(new["cat/copy.jpg"], old["cat/0002.jpg"])


def test_an_edited_image_is_computed_again_and_no_other(done, image_folder, tiny_backbone):
    Image.new("RGB", (80, 64), "red").save(image_folder / "dog" / "0001.jpg")
    plan = fc.plan(image_folder, tiny_backbone, done.path, precision="fp32", progress=False)
    assert (plan.compute, plan.changed, plan.new, plan.gone) == (1, 1, 0, 0)
    assert plan.seconds is not None and plan.bytes > 0
    store = run(image_folder, tiny_backbone, done.path)
    assert (store.report.computed, store.report.reused) == (1, 11)
    assert store.check(deep=True).ok


def test_an_image_edited_at_once_with_the_same_size_and_time_is_seen(done, image_folder, tiny_backbone):
    """The digest cache must not trust files that changed within the clock's granularity (as git's racily clean)."""
    path = image_folder / "cat" / "0000.jpg"
    stat, data = path.stat(), bytearray(path.read_bytes())
    run(image_folder, tiny_backbone, done.path)
    data[-40] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert path.stat().st_size == stat.st_size
    report = run(image_folder, tiny_backbone, done.path, max_failed=1).report
    assert report.computed + len(report.failed) == 1


def test_another_crop_is_refused_and_the_store_untouched(done, image_folder):
    before = {p: p.stat().st_mtime_ns for p in done.path.rglob("*") if p.is_file()}
    with pytest.raises(SpecMismatch, match=r"preprocess.crop: 64, not 48"):
        run(image_folder, make_tiny_backbone(crop=48), done.path)
    assert {p: p.stat().st_mtime_ns for p in done.path.rglob("*") if p.is_file()} == before


@pytest.mark.parametrize("options", [{"seed": 1}, {"pooling": "max"}, {"nodes": "features.6"}])
def test_another_network_is_refused(done, image_folder, options):
    with pytest.raises(SpecMismatch, match="backbone"):
        run(image_folder, make_tiny_backbone(**options), done.path)


def test_another_precision_is_refused_but_auto_adopts_the_stores(done, image_folder, tiny_backbone):
    with pytest.raises(SpecMismatch, match="precision.class: exact, not bf16"):
        run(image_folder, tiny_backbone, done.path, precision="bf16")
    with pytest.raises(SpecMismatch, match="dtype: float32, not float16"):
        run(image_folder, tiny_backbone, done.path, dtype="float16")
    assert run(image_folder, tiny_backbone, done.path, precision="auto").report.computed == 0


def test_a_disjoint_source_needs_to_say_what_it_wants(done, tiny_backbone, tmp_path):
    other = write_images(tmp_path / "other", 4, classes=("fish",), seed=9, start=100)
    with pytest.raises(ViewMismatch, match="--add"):
        run(other, tiny_backbone, done.path)
    assert done.snapshots() == [0]
    added = run(other, tiny_backbone, done.path, add=True)
    assert len(added.load()) == 12 + 4 - 0
    assert run(other, tiny_backbone, done.path, view="fish").load("fish").classes.tolist() == ["fish"]
    replaced = run(other, tiny_backbone, done.path, replace=True)
    assert len(replaced.load()) == 4 and replaced.report.computed == 0
    assert replaced.check(deep=True).ok


def test_a_source_that_lies_one_level_up_is_recognised_by_content(done, image_folder, tiny_backbone):
    assert run(image_folder.parent / "images", tiny_backbone, done.path).report.computed == 0
    nested = image_folder.parent / "nested" / "deeper"
    shutil.copytree(image_folder, nested)
    store = run(nested.parent, tiny_backbone, done.path)
    assert store.report.computed == 0 and set(store.load().y) == {"deeper"}


def test_batch_sizes_and_workers_do_not_change_the_codes(image_folder, tiny_backbone, tmp_path):
    reference = run(image_folder, tiny_backbone, tmp_path / "r", batch_size=64, workers=0).load().X
    for batch_size in (1, 7, 64):
        for workers in (0, 2):
            path = tmp_path / f"{batch_size}-{workers}"
            codes = run(image_folder, tiny_backbone, path, batch_size=batch_size, workers=workers).load().X
            assert precise.worst_cosine(reference, codes) >= 1 - BATCH_TOLERANCE
    again = run(image_folder, tiny_backbone, tmp_path / "again", batch_size=64, workers=2).load().X
    assert np.array_equal(reference, again), "the same settings give the same bytes"


def test_every_image_is_a_row_or_an_entry_with_its_reason(image_folder, tiny_backbone, tmp_path):
    (image_folder / "cat" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 not an image")
    (image_folder / "cat" / "empty.png").write_bytes(b"")
    (image_folder / "cat" / "notes.txt").write_text("hello")
    Image.new("RGB", (64, 64)).save(image_folder / "cat" / "black.png")
    unreadable = image_folder / "cat" / "gone.jpg"
    unreadable.symlink_to(image_folder / "nowhere.jpg")
    with pytest.raises(FailureBudgetExceeded, match=r"of 16 images failed.*kept") as caught:
        run(image_folder, tiny_backbone, tmp_path / "s")
    report = caught.value.report
    failed = {f["id"]: f["reason"] for f in report.failed}
    assert {"cat/broken.jpg", "cat/empty.png"} <= set(failed) and all(failed.values())
    assert report.ignored == {".txt": 1}
    store = FeatureStore.open(tmp_path / "s")
    assert len(store.load()) + len(store.info()["failed"]) == report.images
    again = run(image_folder, tiny_backbone, tmp_path / "s", max_failed=0.5)
    assert again.report.computed == 0 and {f["id"] for f in again.report.failed} == set(failed)
    assert "\n" not in str(caught.value)


def test_images_mended_after_a_failure_are_taken_in(image_folder, tiny_backbone, tmp_path):
    broken = image_folder / "cat" / "new.jpg"
    broken.write_bytes(b"")
    run(image_folder, tiny_backbone, tmp_path / "s", max_failed=1)
    shutil.copy(image_folder / "cat" / "0000.jpg", broken)
    report = run(image_folder, tiny_backbone, tmp_path / "s").report
    assert not report.failed and report.computed == 0


def test_only_failures_make_a_ledger_and_an_error(tiny_backbone, tmp_path):
    folder = tmp_path / "bad" / "x"
    folder.mkdir(parents=True)
    (folder / "a.jpg").write_bytes(b"no")
    with pytest.raises(FailureBudgetExceeded):
        run(tmp_path / "bad", tiny_backbone, tmp_path / "s")
    assert len(FeatureStore.open(tmp_path / "s").info()["failed"]) == 1


def test_an_empty_or_absent_source_leaves_no_store(tiny_backbone, tmp_path):
    (tmp_path / "empty").mkdir()
    for source in ("empty", "absent"):
        with pytest.raises(SourceError):
            run(tmp_path / source, tiny_backbone, tmp_path / "s")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("precision", "fp64"),
        ("dtype", "int8"),
        ("batch_size", 0),
        ("batch_size", "a"),
        ("workers", -1),
        ("workers", 1.5),
        ("max_failed", 2),
        ("max_failed", None),
        ("publish_seconds", -1),
        ("publish_seconds", "a"),
        ("view", "../x"),
        ("view", None),
    ],
)
def test_impossible_settings_are_refused_before_anything_happens(image_folder, tiny_backbone, tmp_path, option, value):
    with pytest.raises((BackboneError, StoreError), match=option):
        run(image_folder, tiny_backbone, tmp_path / "s", **{option: value})
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("backbone", [None, np.zeros(3), {"arch": "resnet18"}])
def test_what_is_no_backbone_is_refused(image_folder, tmp_path, backbone):
    with pytest.raises(BackboneError, match="expected a Backbone"):
        run(image_folder, backbone, tmp_path / "s")


def test_arrays_and_views_of_several_nodes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 70, 70, 3), dtype="u1")
    backbone = make_tiny_backbone(nodes=("features.6", "penultimate"), pooling="max")
    store = run(fc.ImageSource.from_arrays(images, ["a", "b"] * 3), backbone, tmp_path / "s")
    first, second = (store.load(node=n) for n in store.nodes)
    assert len(first) == len(second) == 6 and first.X.shape[1] != second.X.shape[1]
    assert run(fc.ImageSource.from_arrays(images, ["a", "b"] * 3), backbone, tmp_path / "s").report.computed == 0


def test_a_blank_image_is_stored_and_flagged(tmp_path, monkeypatch):
    backbone = make_tiny_backbone()
    monkeypatch.setattr(
        type(backbone), "encode", lambda self, pixels, **k: {"features.12.cat": np.ones((len(pixels), 4), "f4")}
    )
    store = run(write_images(tmp_path / "i", 3), backbone, tmp_path / "s")
    assert len(store.report.constant) == 3 and len(store.load()) == 3


def test_codes_that_are_not_finite_go_to_the_ledger(tmp_path, monkeypatch):
    backbone = make_tiny_backbone()

    def encode(self, pixels, **options):
        codes = np.random.default_rng(0).random((len(pixels), 4), dtype="f4")
        codes[np.concatenate(pixels).mean(axis=(1, 2, 3)) > 250] = np.nan
        return {"features.12.cat": codes}

    monkeypatch.setattr(type(backbone), "encode", encode)
    folder = write_images(tmp_path / "i", 4)
    Image.new("RGB", (64, 64), "white").save(folder / "cat" / "white.png")
    report = run(folder, backbone, tmp_path / "s", max_failed=0.5).report
    assert [f["id"] for f in report.failed] == ["cat/white.png"] and "NaN or Inf" in report.failed[0]["reason"]


def test_ctrl_c_publishes_what_was_computed(image_folder, tmp_path, monkeypatch):
    backbone = make_tiny_backbone()
    original, calls = type(backbone).encode, []

    def encode(self, pixels, **options):
        calls.append(len(pixels))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self, pixels, **options)

    monkeypatch.setattr(type(backbone), "encode", encode)
    with pytest.raises(KeyboardInterrupt):
        run(image_folder, backbone, tmp_path / "s", batch_size=4)
    monkeypatch.setattr(type(backbone), "encode", original)
    report = run(image_folder, backbone, tmp_path / "s", batch_size=4).report
    assert (report.computed, report.reused) == (4, 8)


def test_an_error_of_the_writer_reaches_the_caller(tmp_path):
    class Broken:
        def append(self, *args, **kwargs):
            raise OSError(28, "No space left on device")

    writer = Writer(Broken(), {}, 0.0)
    with pytest.raises(OSError, match="No space left"):
        for _ in range(100):
            writer.put(np.zeros((1, 32), "u1"), {"x": np.zeros((1, 2), "f4")}, np.zeros(1, bool))
        writer.close()
    with pytest.raises(OSError, match="No space left"):
        writer.close()


def test_the_writer_publishes_by_age(tmp_path):
    store = FeatureStore.create(tmp_path / "s", {"dtype": "float32"})
    writer = Writer(store, {"mode": "fp32"}, 0.0)
    for n in range(3):
        writer.put(np.full((1, 32), n, "u1"), {"x": np.full((1, 2), n, "f4")}, np.zeros(1, bool))
    writer.close()
    assert len(FeatureStore.open(tmp_path / "s").shards) == 3 and writer.published == 3


# -- precision -----------------------------------------------------------------------------------------------------


def test_centred_cosine_sees_what_raw_cosine_does_not():
    rng = np.random.default_rng(0)
    codes = 100 + rng.normal(size=(50, 32))
    wrong = codes[rng.permutation(50)]
    raw = (codes * wrong).sum(1) / np.linalg.norm(codes, axis=1) / np.linalg.norm(wrong, axis=1)
    assert raw.min() > 0.999 and precise.worst_cosine(codes, wrong) < 0.5
    assert precise.worst_cosine(codes, codes) == pytest.approx(1)
    assert precise.worst_cosine(codes, np.full_like(codes, np.nan)) == -1.0
    assert precise.worst_cosine(codes[:0], codes[:0]) == 1.0
    assert precise.worst_cosine(np.ones((4, 3)), np.ones((4, 3))) == 1.0


def test_half_precision_storage_is_used_only_where_it_fits():
    codes = np.random.default_rng(0).random((16, 32)).astype("f4")
    assert precise.half_fits({"a": codes})
    assert not precise.half_fits({"a": codes, "b": codes * 1e5})
    assert not precise.half_fits({"a": codes * 1e-7})
    assert precise.half_fits({})


def test_auto_stores_half_precision_within_the_class(image_folder, tiny_backbone, tmp_path):
    exact = run(image_folder, tiny_backbone, tmp_path / "e").load().X
    auto = run(image_folder, tiny_backbone, tmp_path / "a", precision="auto")
    again = run(image_folder, tiny_backbone, tmp_path / "a", precision="auto").report.precision
    assert again["mode"] == auto.report.precision["mode"] and again["reason"].startswith("as recorded")
    assert auto.spec["dtype"] == "float16" and auto.spec["precision"] == {"class": "tolerance", "cosine": 0.998}
    assert precise.worst_cosine(exact, auto.load().X) >= 0.998


def test_another_environment_is_audited_on_stored_rows(done, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(precise, "environment", lambda device, name="": {"torch": "other", "device": device})
    write_images(image_folder, 2, seed=5, start=50)
    store = run(image_folder, make_tiny_backbone(), done.path)
    assert store.report.precision["audited"] >= precise.EXACT_TOLERANCE
    assert store.shards[-1].attributes["computed"]["audited"] >= precise.EXACT_TOLERANCE
    write_images(image_folder, 2, seed=6, start=60)
    backbone = make_tiny_backbone()
    original = type(backbone).encode
    monkeypatch.setattr(
        type(backbone), "encode", lambda self, p, **k: {n: a[::-1].copy() for n, a in original(self, p, **k).items()}
    )
    monkeypatch.setattr(precise, "environment", lambda device, name="": {"torch": "third", "device": device})
    with pytest.raises(StoreError, match="other codes than the store holds.*other then, third now"):
        run(image_folder, backbone, done.path)


def test_a_folder_of_many_known_images_under_new_names_is_looked_up_at_once(
    image_folder, tiny_backbone, tmp_path, monkeypatch
):
    """Above a number of images to read, the view's keys are asked for together; what of them is lost is computed."""
    from featcache.extraction import run as module
    from featcache.extraction.tally import KnownKeys

    monkeypatch.setattr(module, "_MANY", 1)
    store = run(image_folder, tiny_backbone, tmp_path / "s")
    keys = store.snapshot().entries.keys
    known = KnownKeys(store, np.concatenate([keys, keys[:1] ^ 1, keys[:1]]))
    assert all(k.tobytes() in known for k in keys)
    assert (keys[0] ^ 1).tobytes() not in known and keys[0, :8].tobytes() + bytes(24) not in known
    moved = shutil.move(image_folder, tmp_path / "moved")
    write_images(moved, 3, seed=5, start=50)
    assert (run(moved, tiny_backbone, store.path).report.computed, len(store.load())) == (3, 15)
    for shard in (store.path / "shards").iterdir():
        shard.unlink()
    shutil.rmtree(store.path / "index")
    assert run(moved, tiny_backbone, store.path).report.computed == 15


def test_what_an_image_costs_is_remembered_and_compared(done, image_folder, tiny_backbone):
    """Seconds per image stand with the codes and beside the accuracy; lost or damaged, they are just not known."""
    import numpy as np

    from featcache.evaluation import compare

    first = done.load()
    assert 0 < first.extract_seconds < 60
    run(image_folder, tiny_backbone, done.path)  # computes nothing, and so says nothing of what an image costs
    assert done.load().extract_seconds == first.extract_seconds
    row = compare(first, ["centroid"], seeds=2).rows[0]
    assert row["extract_seconds"] == first.extract_seconds and np.isfinite(row["fit_seconds"])
    for damage in ("{}", "[1]", '{"images": 3, "seconds": -1}', '{"images": 1' + "0" * 400 + ', "seconds": 1}', "\0"):
        (done.path / "index" / "cost.json").write_text(damage)
        assert done.load().extract_seconds is None
    assert done.check().ok
