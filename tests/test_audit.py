"""audit: what is stored is what the recorded backbone makes of the images, and what else can have happened."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from conftest import make_tiny_backbone, write_images
from PIL import Image

import featcache as fc
from featcache.cli import run
from featcache.errors import BackboneError, DamagedStore, SourceError, StoreError
from featcache.extraction.audit import audit
from featcache.store import Entries


@pytest.fixture
def done(image_folder, tiny_backbone, tmp_path):
    return fc.extract(image_folder, tiny_backbone, tmp_path / "a.features", precision="fp32", progress=False)


def look(store, n=8, **options):
    return audit(store, n, device="cpu", progress=False, **options)


def with_wrong_codes(store, path):
    """Copy a store, one image's row holding another image's codes: every checksum is right."""
    entries, node = store.snapshot().entries, next(iter(store.nodes))
    codes = store.codes(entries.keys, node)
    codes[3] = codes[8]
    wrong = fc.FeatureStore.create(path, store.spec, locator=store.locator)
    wrong.append(entries.keys, {node: codes}, computed=store.shards[-1].attributes["computed"])
    state = store.snapshot()
    wrong.commit(entries, roles=state.roles, source=state.source)
    return wrong, str(entries.ids[3])


def test_a_sound_store_agrees_to_the_last_bit(done):
    before = {p: p.stat().st_mtime_ns for p in done.path.rglob("*")}
    report = look(done.path, 100)
    assert report and report.ok and report.rows == report.compared == report.bit_equal == 12
    assert report.worst_centred_cosine == report.worst_cosine == 1.0 and report.mode == "fp32"
    assert (report.disagree, report.changed, report.missing) == ([], [], {})
    assert json.loads(json.dumps(report.as_dict()))["limit"] == 0.9999
    assert before == {p: p.stat().st_mtime_ns for p in done.path.rglob("*")}, "an audit writes nothing"


def test_the_seed_chooses_the_rows(done, image_folder):
    shutil.rmtree(image_folder / "dog")
    gone = {seed: tuple(look(done, 3, seed=seed).missing) for seed in range(6)}
    assert len(set(gone.values())) > 1 and gone[2] == tuple(look(done, 3, seed=2).missing)


def test_a_row_of_another_image_with_right_checksums_is_caught(done, tmp_path):
    wrong, name = with_wrong_codes(done, tmp_path / "b.features")
    assert wrong.check(deep=True).ok
    report = look(wrong, 12)
    assert not report.ok and report.disagree == [name] and report.bit_equal == 11
    assert report.worst_centred_cosine < 0.9


def test_one_wrong_row_is_caught_alone(done, tmp_path):
    """Raw cosines of different images are alike; with one row to look at, its own mean would hide everything."""
    wrong, name = with_wrong_codes(done, tmp_path / "b.features")
    found = [look(wrong, 1, seed=seed) for seed in range(40)]
    caught = [r for r in found if not r.ok]
    assert caught and all(r.disagree == [name] for r in caught)
    assert all(r.rows == 1 for r in found)


def test_changed_missing_and_unreadable_images_are_no_damage(done, image_folder):
    Image.new("RGB", (80, 64), "red").save(image_folder / "dog" / "0001.jpg")
    (image_folder / "cat" / "0002.jpg").unlink()
    (image_folder / "cat" / "0004.jpg").write_bytes(b"no image")
    report = look(done, 12)
    assert report.ok and report.changed == ["cat/0004.jpg", "dog/0001.jpg"]
    assert report.missing == {"cat/0002.jpg": "not in the source"} and report.compared == 9


def test_copies_of_one_image_are_one_row(image_folder, tiny_backbone, tmp_path):
    for i in range(20):
        shutil.copy(image_folder / "cat" / "0000.jpg", image_folder / "cat" / f"copy{i}.jpg")
    store = fc.extract(image_folder, tiny_backbone, tmp_path / "s", precision="fp32", progress=False)
    report = look(store, 50)
    assert report.ok and report.rows == report.compared == 12


def test_the_class_tolerance_and_half_precision_storage(image_folder, tiny_backbone, tmp_path):
    store = fc.extract(image_folder, tiny_backbone, tmp_path / "s", dtype="float16", progress=False)
    report = look(store, 12)
    assert report.ok and report.bit_equal == 12 and report.limit == 0.998


def test_another_place_of_the_images(done, image_folder, tmp_path):
    moved = shutil.move(image_folder, tmp_path / "moved")
    with pytest.raises(SourceError, match=r"no longer at .*--source"):
        look(done)
    assert look(done, source=moved).ok
    with pytest.raises(SourceError, match=r"none of the 12 images.*--source"):
        look(done, source=write_images(tmp_path / "others", 3, classes=("bird",)))


def test_images_in_memory_must_be_given(tiny_backbone, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype="u1")
    store = fc.extract(images, tiny_backbone, tmp_path / "s", precision="fp32", progress=False)
    with pytest.raises(SourceError, match=r"came from 'arrays'.*--source"):
        look(store)
    assert look(store, source=images).compared == 6
    assert look(store, source=images[::-1].copy()).changed


def test_single_paths_must_be_given(image_folder, tiny_backbone, tmp_path):
    paths = sorted(image_folder.glob("*/*.jpg"))
    store = fc.extract(paths, tiny_backbone, tmp_path / "s", precision="fp32", progress=False)
    with pytest.raises(SourceError, match=r"came from 'paths'.*--source"):
        look(store)
    assert look(store, source=paths).ok


def test_a_list_is_opened_again(image_folder, tiny_backbone, tmp_path):
    names = sorted(p.relative_to(image_folder).as_posix() for p in image_folder.glob("*/*.jpg"))
    (image_folder / "list.csv").write_text("path\n" + "\n".join(names) + "\n")
    store = fc.extract(image_folder / "list.csv", tiny_backbone, tmp_path / "s", precision="fp32", progress=False)
    assert look(store, 12).bit_equal == 12
    (image_folder / "list.csv").write_text("nothing\n1\n")
    with pytest.raises(SourceError, match="--source"):
        look(store)


def test_a_backbone_that_is_given_must_be_the_recorded_one(done, tiny_backbone):
    assert look(done, backbone=tiny_backbone).ok
    with pytest.raises(BackboneError, match=r"another backbone.*backbone\.weights"):
        look(done, backbone=make_tiny_backbone(seed=1))
    with pytest.raises(BackboneError, match="expected a Backbone, got str"):
        look(done, backbone="squeezenet1_1")


def test_nothing_to_audit(done, tmp_path):
    with pytest.raises(StoreError, match="'other' has no rows"):
        look(done, view="other")
    empty = fc.FeatureStore.create(tmp_path / "e", done.spec)
    empty.commit(Entries.empty())
    with pytest.raises(StoreError, match="has no rows"):
        look(empty)
    for n in (0, -1, True, "8", 1.5):
        with pytest.raises(StoreError, match="n: expected a whole number"):
            look(done, n)


def test_damaged_rows_are_named_not_compared(done):
    shard = done.shards[0]
    start = next(r["offset"] for name, r in shard.regions.items() if name.startswith("x/"))
    data = bytearray(shard.path.read_bytes())
    data[start + 5] ^= 1
    shard.path.write_bytes(data)
    with pytest.raises(DamagedStore, match="checksum of rows"):
        look(done.path)


def test_on_the_command_line(done, tmp_path, capsys):
    assert run(["check", str(done.path), "--audit", "5"]) == 0
    said = capsys.readouterr().out
    assert ": ok (" in said and "audit: ok: 5 of 5 rows computed again (fp32), 5 equal to the last bit" in said
    wrong, name = with_wrong_codes(done, tmp_path / "b.features")
    assert run(["check", str(wrong.path), "--audit", "12"]) == 3
    said = capsys.readouterr().out
    assert "audit: 1 rows disagree" in said and name in said
    assert run(["check", str(wrong.path), "--audit", "12", "--json"]) == 3
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"] and found["damaged"] == [] and found["audit"]["disagree"] == [name]
    assert run(["check", str(wrong.path), "--json"]) == 0 and "audit" not in json.loads(capsys.readouterr().out)
    assert run(["check", str(wrong.path), "--audit", "3", "--source", str(tmp_path / "nowhere")]) == 1
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
