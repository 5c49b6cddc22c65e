"""check --repair and --untrusted: what is saved, what is lost, what is said, and what extract then computes."""

import json
import shutil
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import write_images

sys.path.insert(0, str(Path(__file__).parent / "faults"))

from builders import SPEC, add_rows, build, entries_for, keys_for, regions_of, rows_for
from repairing import flip, lines_of, repair, shard_files, verdict

import featcache as fc
from featcache import cli
from featcache.errors import DamagedStore, NotAStore, StoreError
from featcache.store import FeatureStore, layout, untrusted, writing
from featcache.store.container import Container
from featcache.store.limited import Crashed, in_limited_child
from featcache.store.repair import repair_header

FIRST, SECOND = set(range(256)), set(range(256, 300))
OTHERS = set(range(300, 380))


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    path = tmp_path_factory.mktemp("repair") / "a.features"
    build(path)
    return path


@pytest.fixture
def store_path(pristine, tmp_path):
    shutil.copytree(pristine, tmp_path / "a.features")
    return tmp_path / "a.features"


def start(file, part):
    return regions_of(file)[part][0]


def in_part(part, offset=0):
    return lambda file: flip(file, start(file, part) + offset)


def both(*harms):
    return lambda file: [harm(file) for harm in harms]


def cut_at(part, offset):
    return lambda file: file.write_bytes(file.read_bytes()[: start(file, part) + offset])


CASES = {
    "header": (in_part("json header", 30), FIRST | SECOND),
    "fixed header": (in_part("fixed header"), FIRST | SECOND),
    "HDF5 metadata": (in_part("hdf5 metadata 0"), FIRST | SECOND),
    "one byte too short": (lambda file: file.write_bytes(file.read_bytes()[:-1]), FIRST | SECOND),
    "one byte too long": (lambda file: file.write_bytes(file.read_bytes() + b"x"), FIRST | SECOND),
    "cut in the second group": (cut_at("x/flatten", 260 * 32), FIRST),
    "cut before the rows": (cut_at("x/flatten", 0), set()),
    "a row": (in_part("x/flatten", 280 * 32), FIRST),
    "a row and the header": (both(in_part("x/flatten", 5), in_part("json header", 30)), SECOND),
    "a key": (in_part("key", 299 * 32), FIRST),
    "a stored sum": (in_part("xxh3/x/flatten"), SECOND),
    "a view number": (in_part("view_number"), FIRST | SECOND),
    "a flag": (in_part("constant", 299), FIRST | SECOND),
    "the sum of flags": (in_part("xxh3/constant"), FIRST | SECOND),
    "junk": (lambda file: file.write_bytes(b"junk"), set()),
    "nothing": (lambda file: file.write_bytes(b""), set()),
}


@pytest.mark.parametrize("case", CASES)
def test_every_group_that_holds_is_saved(store_path, case):
    harm, saved = CASES[case]
    file, lines = shard_files(store_path)[0], lines_of(store_path)
    harm(file)
    harmed = file.read_bytes()
    _, report, _ = repair(store_path)
    (item,) = report.repaired
    lost = (FIRST | SECOND) - saved
    assert (item["file"], item["rows_saved"]) == (f"shards/{file.name}", len(saved))
    assert item["images_lost"] == len(item["images"]) == len(lost - {7, *range(50, 60)} | lost & {*range(290, 310)})
    assert (store_path / "damaged" / f"shards~{file.name}").read_bytes() == harmed and not file.exists()
    assert verdict(store_path, saved | OTHERS, lines) == []
    assert FeatureStore.open(store_path).has(keys_for(range(380))).sum() == len(saved) + 80
    assert report.ok == (not lost) and json.dumps(report.repaired)
    assert FeatureStore.open(store_path).info()["set_aside"] == {"files": 1, "bytes": len(harmed)}
    if saved:
        new = Container(store_path / item["saved_as"]).attributes
        assert new["salvaged_from"] == file.name and new["computed"] == {} and new["spec"] == SPEC


def test_rows_that_another_healthy_shard_holds_are_not_copied(store_path):
    store = FeatureStore.open(store_path)
    file = shard_files(store_path)[0]
    add_rows(store, range(100))
    flip(file, start(file, "x/flatten") + 280 * 32)
    item = FeatureStore.open(store_path).check(repair=True).repaired[0]
    assert (item["rows_saved"], item["rows_elsewhere"], item["rows_lost"]) == (156, 100, 44)


def test_a_row_is_kept_where_it_is_damaged_in_another_shard(store_path):
    """Two damaged shards that hold the same rows: each row survives that is good in either."""
    store = FeatureStore.open(store_path)
    new = store_path / "shards" / add_rows(store, range(300))
    file = shard_files(store_path)[0]
    flip(file, start(file, "x/flatten"))
    flip(new, start(new, "x/flatten") + 280 * 32)
    assert FeatureStore.open(store_path).check(repair=True).ok
    assert verdict(store_path, FIRST | SECOND | OTHERS, {}) == []


def test_augmented_views_keep_their_numbers_or_are_given_up(tmp_path):
    store = FeatureStore.create(tmp_path / "s", SPEC)
    plain, rows = rows_for(range(40)), rows_for(range(100, 140))
    store.append(keys_for(range(40)), {"flatten": plain})
    name = store.append(keys_for(range(40)), {"flatten": rows}, view_number=3)
    flip(store.path / "shards" / name, start(store.path / "shards" / name, "view_number"))
    report = FeatureStore.open(store.path).check(repair=True)
    assert report.ok and report.repaired[0]["rows_saved"] == 40
    fresh = FeatureStore.open(store.path)
    assert fresh.has(keys_for(range(40)), view_number=3).all() and not fresh.has(keys_for([0]), view_number=2).any()
    assert np.array_equal(fresh.codes(keys_for(range(40)), "flatten"), plain)
    mixed = np.arange(40) % 2
    name = fresh._shards.publish(
        keys_for(range(200, 240)), {"flatten": rows}, view_number=mixed, constant=mixed, attributes={"computed": {}}
    )
    flip(store.path / "shards" / name, start(store.path / "shards" / name, "view_number"))
    item = FeatureStore.open(store.path).check(repair=True).repaired[0]
    assert item["rows_saved"] == 0 and item["rows_lost"] == 40, "a view number that nobody knows is not guessed"


def test_flags_of_blank_images_are_computed_again(tmp_path):
    store = FeatureStore.create(tmp_path / "s", SPEC)
    rows = rows_for(range(10))
    rows[3] = 2.5
    name = store.append(keys_for(range(10)), {"flatten": rows}, constant=np.arange(10) == 3)
    flip(store.path / "shards" / name, start(store.path / "shards" / name, "constant") + 5)
    assert FeatureStore.open(store.path).check(repair=True).ok
    assert np.flatnonzero(FeatureStore.open(store.path).status(keys_for(range(10)))).tolist() == [3]


def test_a_compacted_shard_with_rows_that_repeat(store_path):
    store = FeatureStore.open(store_path)
    twice = entries_for(range(20))
    keys = twice.keys.copy()
    keys[10:] = keys[:10]
    from featcache.store import Entries

    store.commit(Entries(twice.ids, keys, twice.status, twice.errors, {}), view="twice")
    name = store.compact("twice").shard
    store.gc(grace_days=0.0)
    file = store_path / "shards" / name
    flip(file, start(file, "json header") + 40)
    assert FeatureStore.open(store_path).check(repair=True).ok
    assert len(FeatureStore.open(store_path).load("twice")) == 20 and len(FeatureStore.open(store_path).load()) > 300


def test_a_shard_of_another_store_is_left_and_named(store_path, tmp_path):
    other = FeatureStore.create(tmp_path / "other", {**SPEC, "dtype": "float16"})
    name = add_rows(other, range(5))
    shutil.copy(other.path / "shards" / name, store_path / "shards")
    report = FeatureStore.open(store_path).check(repair=True)
    assert [r["action"] for r in report.repaired] == ["left"] and "move it away" in report.repaired[0]["note"]
    assert not report.ok and (store_path / "shards" / name).exists()


def test_things_that_are_no_files_are_set_aside(store_path, tmp_path):
    (tmp_path / "outside.h5").write_bytes(b"mine")
    (store_path / "shards" / "link.h5").symlink_to(tmp_path / "outside.h5")
    (store_path / "shards" / "folder.h5").mkdir()
    (store_path / "shards" / "folder.h5" / "inside").write_text("kept")
    assert FeatureStore.open(store_path).check(repair=True).ok
    assert (tmp_path / "outside.h5").read_bytes() == b"mine"
    assert (store_path / "damaged" / "shards~folder.h5" / "inside").read_text() == "kept"


def test_an_hdf5_file_with_tricks_gives_nothing(store_path, tmp_path):
    """Links to other files and virtual data sets are not followed: their bytes are not the store's."""
    shard = shard_files(store_path)[0]
    trick = store_path / "shards" / "trick.h5"
    with h5py.File(shard, "r") as source, h5py.File(trick, "w") as file:
        for name, value in source.attrs.items():
            file.attrs[name] = value
        for name in ("key", "view_number", "constant", "x/flatten"):
            file[f"xxh3/{name}"] = source[f"xxh3/{name}"][:]
        file["key"] = h5py.ExternalLink(str(shard), "key")
        file["view_number"] = h5py.SoftLink("/xxh3/key")
        plan = h5py.VirtualLayout(shape=(300,), dtype="u1")
        plan[:] = h5py.VirtualSource(str(shard), "constant", shape=(300,))
        file.create_virtual_dataset("constant", plan)
        file.create_dataset("x/flatten", data=rows_for(range(300)), chunks=True, compression="gzip")
    found = layout.find_layout(trick)
    assert not {"key", "view_number", "constant", "x/flatten"} & set(found.regions)
    (item,) = FeatureStore.open(store_path).check(repair=True).repaired
    assert item["file"] == "shards/trick.h5" and item["rows_saved"] == 0


# -- store.json ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("harm", [lambda p: flip(p, 20), Path.unlink, lambda p: p.write_bytes(b""), "folder"])
def test_store_json_is_rebuilt_from_any_shard(store_path, harm):
    before = json.loads((store_path / "store.json").read_text())
    if harm == "folder":
        (store_path / "store.json").unlink()
        (store_path / "store.json").mkdir()
    else:
        harm(store_path / "store.json")
    flip(shard_files(store_path)[0], 40)
    (item,) = repair_header(store_path)
    assert item["file"] == "store.json" and item["action"].startswith("rebuilt")
    after = json.loads((store_path / "store.json").read_text())
    assert {k: after[k] for k in ("spec", "locator", "fingerprint")} == {
        k: before[k] for k in ("spec", "locator", "fingerprint")
    }
    assert repair_header(store_path) == [] and FeatureStore.open(store_path).check(repair=True).ok


def test_store_json_is_not_made_up(store_path, tmp_path):
    with pytest.raises(NotAStore, match="no such store"):
        repair_header(tmp_path / "absent")
    (tmp_path / "other").mkdir()
    with pytest.raises(NotAStore):
        repair_header(tmp_path / "other")
    (store_path / "store.json").unlink()
    other = FeatureStore.create(tmp_path / "s", {**SPEC, "dtype": "float16"})
    shutil.copy(other.path / "shards" / add_rows(other, [1]), store_path / "shards")
    with pytest.raises(DamagedStore, match="of different stores"):
        repair_header(store_path)
    for file in shard_files(store_path):
        file.write_bytes(b"junk")
    with pytest.raises(NotAStore, match="cannot be rebuilt either"):
        repair_header(store_path)


# -- snapshots -----------------------------------------------------------------------------------------------------


def states(path):
    return FeatureStore.open(path).snapshots()


def test_a_damaged_column_costs_only_that_column(store_path):
    file = store_path / "snapshots" / "main" / "00000000.h5"
    before = FeatureStore.open(store_path).load()
    flip(file, start(file, "column/weight/float"))
    report = FeatureStore.open(store_path).check(repair=True)
    assert report.ok and states(store_path) == [3]
    assert {tuple(r["columns_lost"]) for r in report.repaired} == {("weight",)}
    assert "without weight are now main@3" in report.repaired[0]["note"] and not report.repaired[0]["newest_lost"]
    after = FeatureStore.open(store_path).load()
    assert after.ids.tolist() == before.ids.tolist() and np.array_equal(after.X, before.X)
    assert sorted(after.columns) == ["flag", "label", "size"] and after.y.tolist() == before.y.tolist()


def test_a_damaged_label_leaves_no_role_behind(store_path):
    file = store_path / "snapshots" / "main" / "00000001.h5"
    flip(file, start(file, "column/label/bytes"))
    FeatureStore.open(store_path).check(repair=True)
    data = FeatureStore.open(store_path).load()
    assert data.y is None and "label" not in data.columns and states(store_path) == [0, 3]


def test_reasons_of_failures_may_be_lost_the_failures_are_not(store_path):
    file = store_path / "snapshots" / "main" / "00000000.h5"
    flip(file, start(file, "error/bytes"))
    assert FeatureStore.open(store_path).check(repair=True).repaired[0]["columns_lost"] == ["error"]
    (failed,) = FeatureStore.open(store_path).info()["failed"]
    assert failed["id"] == "img00007.jpg" and "damaged file" in failed["reason"]


@pytest.mark.parametrize(("number", "left"), [(0, []), (1, [0]), (2, [0, 1])])
@pytest.mark.parametrize("part", ["json header", "id/bytes", "missing"])
def test_a_view_falls_back_to_its_newest_readable_state(store_path, number, left, part):
    file = store_path / "snapshots" / "main" / f"{number:08d}.h5"
    if part == "missing":
        file.unlink()
    elif part not in regions_of(file):
        pytest.skip("the last delta only removes lines")
    else:
        flip(file, start(file, part) + 3)
    report = FeatureStore.open(store_path).check(repair=True)
    assert report.ok and states(store_path) == left
    if (number, part) == (2, "missing"):
        return  # nothing builds on it: nobody can tell
    assert all(r["newest_lost"] for r in report.repaired)
    said = f"as in main@{left[-1]}" if left else "no state of the view is left"
    assert said in report.repaired[0]["note"] and "run extract again" in report.repaired[0]["note"]
    assert len(FeatureStore.open(store_path).load("few")) == 20
    store = FeatureStore.open(store_path)
    assert store.commit(entries_for(range(5))).number == 3, "numbers of lost states are not used again"
    assert store.check(deep=True).ok


# -- extraction, collecting, the command ---------------------------------------------------------------------------


@pytest.fixture
def extracted(tmp_path, tiny_backbone, monkeypatch):
    monkeypatch.setattr(writing, "GROUP_ROWS", 16)
    monkeypatch.setattr(layout, "GROUP_ROWS", 16)
    images = write_images(tmp_path / "images", 44, size=(64, 64))

    def extract():
        options = {"precision": "fp32", "workers": 1, "progress": False}
        return fc.extract(images, tiny_backbone, tmp_path / "s.features", **options)

    return extract, extract()


@pytest.mark.parametrize("part", ["row", "row and header"])
def test_extract_computes_exactly_what_was_lost(extracted, part):
    extract, store = extracted
    before = store.load()
    (file,) = shard_files(store.path)
    region = next(name for name in regions_of(file) if name.startswith("x/"))
    place = start(file, region) + (regions_of(file)[region][1] - start(file, region)) // 2
    assert Container(file).region(region)["group_rows"] == 16
    flip(file, place)
    if part == "row and header":
        flip(file, 99)
    report = FeatureStore.open(store.path).check(repair=True)
    (item,) = report.repaired
    assert not report.ok and item["rows_saved"] == 28 and item["images_lost"] == 16
    (missing,) = report.damaged
    assert missing["file"] == "snapshots/main" and "exactly these are computed" in missing["reason"]
    assert missing["images"] == item["images"]
    with pytest.raises(StoreError):
        FeatureStore.open(store.path).gc(grace_days=0.0)
    again = extract()
    assert again.report.computed == 16 and again.report.reused == 28
    after = again.load()
    assert np.allclose(after.X, before.X, rtol=1e-4, atol=1e-4) and after.ids.tolist() == before.ids.tolist()
    kept = ~np.isin(before.ids, missing["images"])
    assert np.array_equal(after.X[kept], before.X[kept])
    assert again.check(deep=True).ok and not again.gc(grace_days=0.0).held


def command(capsys, *words):
    status = cli.run([str(w) for w in words])
    said = capsys.readouterr()
    return status, said.out, said.err


def test_the_command_repairs_and_says_what_it_did(store_path, capsys):
    file = shard_files(store_path)[0]
    flip(file, start(file, "x/flatten") + 280 * 32)
    (store_path / "store.json").write_text("{}")
    status, out, _ = command(capsys, "check", store_path, "--repair")
    assert status == 3 and "repaired store.json: rebuilt" in out and "256 rows saved" in out
    assert "44 images must be extracted again: img00256.jpg" in out and "exactly these are computed" in out
    add_rows(FeatureStore.open(store_path), range(256, 300))
    status, out, _ = command(capsys, "check", store_path, "--repair", "--json")
    assert status == 0 and json.loads(out)["repaired"] == [] and json.loads(out)["ok"]
    assert command(capsys, "check", store_path, "--deep")[0] == 0


def test_the_command_is_not_content_with_an_older_state(store_path, capsys):
    (store_path / "snapshots" / "main" / "00000001.h5").write_bytes(b"x")
    status, out, _ = command(capsys, "check", store_path, "--repair")
    assert status == 3 and "as in main@0; run extract again" in out
    assert command(capsys, "check", store_path, "--repair")[0] == 0


# -- a stranger's store --------------------------------------------------------------------------------------------


def test_a_strangers_store_is_read_elsewhere(store_path, capsys):
    report = FeatureStore.open(store_path).check(deep=True, untrusted=True)
    assert report == FeatureStore.open(store_path).check(deep=True)
    file = shard_files(store_path)[0]
    flip(file, start(file, "x/flatten"))
    report = FeatureStore.open(store_path).check(deep=True, untrusted=True)
    assert not report.ok and len(report.damaged[0]["images"]) == 245
    assert command(capsys, "check", store_path, "--deep", "--untrusted", "--json")[0] == 3
    (store_path / "store.json").write_bytes(b"[" * 10**6)
    status, out, _ = command(capsys, "check", store_path, "--untrusted")
    assert status == 3 and "store.json: damaged" in out
    with pytest.raises(NotAStore):
        untrusted.check_untrusted(store_path / "absent")
    for more in ("--repair", "--audit"):
        status, _, err = command(
            capsys, "check", store_path, "--untrusted", *([more, 3] if "audit" in more else [more])
        )
        assert status == 2 and "only read" in err and err.count("\n") == 1


def test_repair_of_what_is_not_trusted_is_refused(store_path):
    with pytest.raises(StoreError, match="is not repaired"):
        FeatureStore.open(store_path).check(repair=True, untrusted=True)


def truncate_under_the_map(path):
    import mmap
    import os

    with open(path, "r+b") as file:
        mapped = mmap.mmap(file.fileno(), 0)
        os.ftruncate(file.fileno(), 0)
        return mapped[0]


@pytest.mark.parametrize(("call", "died"), [("os:abort", "SIGABRT"), ("test_repair:truncate_under_the_map", "SIGBUS")])
def test_a_reader_that_crashes_is_reported(store_path, monkeypatch, call, died):
    victim = store_path / "victim"
    victim.write_bytes(b"x" * 5000)
    arguments = [] if call.startswith("os:") else [str(victim)]
    with pytest.raises(Crashed, match=died):
        in_limited_child(call, arguments, memory=2 << 30, seconds=20)
    real = in_limited_child
    monkeypatch.setattr(untrusted, "in_limited_child", lambda *_, **limits: real("os:abort", [], **limits))
    report = FeatureStore.open(store_path).check(untrusted=True)
    assert not report.ok and "crashed the reader (SIGABRT)" in report.damaged[0]["reason"]


def too_much(what):
    if what == "memory":
        return len(bytearray(1 << 40))
    if what == "answer":
        return ["x" * 100] * 10**6
    while True:
        pass


@pytest.mark.parametrize(
    ("what", "died"), [("memory", "MemoryError"), ("answer", "cannot be read|status 1"), ("time", "SIG(XCPU|KILL)")]
)
def test_a_reader_is_limited(what, died):
    with pytest.raises(Crashed, match=died):
        in_limited_child("test_repair:too_much", [what], memory=2 << 30, seconds=1 if what == "time" else 30)
