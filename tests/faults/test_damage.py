"""Whatever happens to the files of a store: what load() returns is what was stored, or an error that names the file."""

import collections
import json
import shutil

import h5py
import numpy as np
import pytest
from builders import (
    SPEC,
    add_rows,
    build,
    checked,
    digest,
    entries_for,
    flip_files,
    in_child,
    keys_for,
    loads,
    regions_of,
    result_of,
    rows_for,
    verdict,
)

from featcache.errors import DamagedStore, StoreError
from featcache.store import FeatureStore
from featcache.store.container import Container

SNAPSHOTS = ["snapshots/main/00000000.h5", "snapshots/main/00000001.h5", "snapshots/main/00000002.h5"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "a.features"
    build(path)
    return path, loads(path)


@pytest.fixture
def harmed(pristine, tmp_path):
    """A copy of the store that a test may harm, and what it said before."""
    path = tmp_path / "a.features"
    shutil.copytree(pristine[0], path)
    return path, pristine[1]


def shard_names(path):
    return sorted(f"shards/{p.name}" for p in (path / "shards").iterdir())


def files_of(path):
    return ["store.json", *shard_names(path), *SNAPSHOTS, "snapshots/few/00000000.h5"]


def test_the_judge_itself_sees_wrong_data_and_wrong_names(harmed):
    """The tests below rest on `verdict`: it must be able to fail."""
    path, truth = harmed
    assert verdict(path, "store.json", truth) == "harmless"
    other = {**truth, "main None True": "something else"}
    assert verdict(path, "store.json", other).startswith("silently other data")
    (path / SNAPSHOTS[0]).write_bytes(b"")
    assert "does not name" in verdict(path, "store.json", truth)
    assert len(set(truth.values())) == 4, "four different states"


def flip(path, truth, count, seed):
    outcomes = result_of(in_child("flip_files", str(path), files_of(path), count, seed))
    counted = collections.Counter(o["is"] for o in outcomes)
    print(f"{len(outcomes)} flips: {dict(counted)}")
    assert set(counted) <= {"harmless", "detected"}, [o for o in outcomes if o["is"] not in ("harmless", "detected")]
    harmless = {o["part"] for o in outcomes if o["is"] == "harmless"}
    assert harmless <= {"padding"}, f"only the zeros behind the header are not checksummed, but also: {harmless}"
    assert loads(path) == truth
    return outcomes


def test_a_flipped_bit_is_noticed_or_harmless(harmed):
    outcomes = flip(*harmed, count=26, seed=0)
    parts = {o["part"] for o in outcomes}
    assert {"fixed header", "json header", "x/flatten", "xxh3/x/flatten", "key", "view_number", "constant"} <= parts
    assert {"id/bytes", "status", "column/label/bytes", "column/weight/float", "removed/bytes"} <= parts


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_many_flipped_bits_are_noticed_or_harmless(harmed, seed):
    flip(*harmed, count=200, seed=seed)


def test_a_flip_in_process_is_judged_as_in_a_child(harmed):
    path, _ = harmed
    assert {o["is"] for o in flip_files(str(path), [shard_names(path)[0]], 5, 3)} <= {"harmless", "detected"}


def test_a_file_of_another_length_is_damaged(harmed):
    path, truth = harmed
    for name in [*shard_names(path)[:2], SNAPSHOTS[0], SNAPSHOTS[2]]:
        file, original = path / name, (path / name).read_bytes()
        ends = sorted({end for span in regions_of(file).values() for end in span} - {len(original)})
        ends = [0, 1, 7, 8, 23, *ends[:: max(1, len(ends) // 6)], len(original) - 1]
        for end in ends:
            file.write_bytes(original[:end])
            assert verdict(path, name, truth) == "detected", f"{name} cut at {end}"
        file.write_bytes(original + b"\0")
        assert verdict(path, name, truth) == "detected", f"{name} with one byte more"
        file.write_bytes(original)
    for end in (0, 1, 100):
        original = (path / "store.json").read_bytes()
        (path / "store.json").write_bytes(original[:end])
        assert verdict(path, "store.json", truth) == "detected", f"store.json cut at {end}"
        (path / "store.json").write_bytes(original)


def test_a_file_cut_after_it_was_opened_is_damaged_not_a_crash(harmed):
    path, _ = harmed
    file = path / shard_names(path)[0]
    for end in (0, 100, file.stat().st_size - 1):
        original = file.read_bytes()
        container = Container(file)
        file.write_bytes(original[:end])
        with pytest.raises(DamagedStore, match=file.name):
            container.raw("key")
        with pytest.raises(DamagedStore, match=file.name):
            container.read_rows("key", np.arange(300))
        file.write_bytes(original)


def test_check_names_the_images_that_a_damaged_group_costs(harmed):
    path, truth = harmed
    name = shard_names(path)[0]
    start, _ = regions_of(path / name)["x/flatten"]
    data = bytearray((path / name).read_bytes())
    data[start + 280 * 8 * 4] ^= 16  # row 280: in the second group of 256
    (path / name).write_bytes(data)
    _, (entry,) = checked(path)
    assert entry["file"] == name and "rows 256–299" in entry["reason"]
    assert set(entry["images"]) == {f"img{i:05d}.jpg" for i in range(256, 300)}
    assert FeatureStore.open(path).check().ok, "the quick check reads no codes"
    good = FeatureStore.open(path).codes(keys_for(range(256)), "flatten")
    assert np.array_equal(good, rows_for(range(256))), "the other groups of the shard stay readable"


@pytest.mark.parametrize("first", [0, 1, 10, 200, 255, 256])
@pytest.mark.parametrize("stop", [257, 258, 260, 300])
def test_a_map_of_a_slice_verifies_every_group_that_it_shows(tmp_path, first, stop):
    store = FeatureStore.create(tmp_path / "s", SPEC)
    shard = tmp_path / "s" / "shards" / add_rows(store, range(300))
    numbers = np.arange(first, stop)
    entries = entries_for(numbers)
    store.commit(entries)
    assert np.array_equal(FeatureStore.open(store.path).load(in_memory=False).X, rows_for(numbers))
    start, _ = regions_of(shard)["x/flatten"]
    data = bytearray(shard.read_bytes())
    data[start + (stop - 1) * 32] ^= 1
    shard.write_bytes(data)
    with pytest.raises(DamagedStore, match=shard.name):
        FeatureStore.open(store.path).load(in_memory=False)


def test_an_unreadable_shard_costs_exactly_its_images_and_extracting_again_heals(harmed):
    path, truth = harmed
    name = shard_names(path)[2]
    (path / name).write_bytes(b"junk")
    _, (entry,) = checked(path)
    assert entry["file"] == name and entry["images"] == [f"img{i:05d}.jpg" for i in range(360, 380)]
    store = FeatureStore.open(path)
    assert store.has(keys_for([0, 359, 360])).tolist() == [True, True, False]
    add_rows(store, range(360, 380))
    assert digest(store.load()) == truth["main None True"]
    _, (entry,) = checked(path)
    assert entry["file"] == name and entry["images"] == [], "still named, but it costs nothing any more"
    (path / name).unlink()
    assert checked(path) == (True, [])


def test_a_missing_shard_is_an_error_that_lists_its_images(harmed):
    path, truth = harmed
    away = (path / shard_names(path)[1]).rename(path.parent / "away.h5")
    for in_memory in (True, False):
        with pytest.raises(StoreError, match="have no codes in the store; run extract again"):
            FeatureStore.open(path).load(in_memory=in_memory)
    _, damaged = checked(path)
    assert [d["file"] for d in damaged] == ["snapshots/few", "snapshots/main"]
    assert damaged[1]["images"] == [f"img{i:05d}.jpg" for i in range(300, 360)]
    away.rename(path / "shards" / "00000000000000000000-restored-under-another-name.h5")
    assert loads(path) == truth and checked(path) == (True, [])


def test_a_missing_link_of_a_chain_is_named_with_what_is_left(harmed):
    path, truth = harmed
    for missing, left in ((SNAPSHOTS[0], None), (SNAPSHOTS[1], 0)):
        original = (path / missing).read_bytes()
        (path / missing).unlink()
        with pytest.raises(DamagedStore, match=missing):
            FeatureStore.open(path).load()
        _, (entry,) = checked(path)
        assert entry["file"] == missing
        if left is None:
            assert "no state is left" in entry["reason"] and entry["images"] == []
        else:
            assert "snapshot 0 can still be loaded" in entry["reason"] and len(entry["images"]) == 360
            assert digest(FeatureStore.open(path).load(snapshot=0)) == truth["main 0 True"]
        assert digest(FeatureStore.open(path).load("few")) == truth["few None True"], "other views are unharmed"
        (path / missing).write_bytes(original)
    assert verdict(path, SNAPSHOTS[0], truth) == "harmless"


def swap(a, b):
    first, second = a.read_bytes(), b.read_bytes()
    a.write_bytes(second)
    b.write_bytes(first)


def test_swapped_shards_give_the_same_codes(harmed):
    path, truth = harmed
    first, second, _ = shard_names(path)
    swap(path / first, path / second)
    assert loads(path) == truth and checked(path) == (True, [])


def test_swapped_snapshots_are_noticed(harmed):
    path, _ = harmed
    for a, b in ((SNAPSHOTS[0], "snapshots/few/00000000.h5"), (SNAPSHOTS[1], SNAPSHOTS[2])):
        swap(path / a, path / b)
        for view in {a.split("/")[1], b.split("/")[1]}:
            with pytest.raises(DamagedStore, match="another file is in its place"):
                FeatureStore.open(path).load(view)
        assert not FeatureStore.open(path).check().ok
        swap(path / a, path / b)


def test_a_snapshot_or_shard_of_another_store_is_noticed(harmed, tmp_path):
    path, truth = harmed
    other = FeatureStore.create(tmp_path / "other", {**SPEC, "dtype": "float16"})
    shard = add_rows(other, range(380))
    other.commit(entries_for(range(380)))
    shutil.copy(other.path / "shards" / shard, path / "shards")
    assert loads(path) == truth, "a foreign shard costs nothing"
    _, (entry,) = checked(path)
    assert entry["file"] == f"shards/{shard}" and "another store" in entry["reason"] and not entry["images"]
    (path / "shards" / shard).unlink()
    shutil.copy(other.path / SNAPSHOTS[0], path / "snapshots" / "few" / "00000000.h5")
    with pytest.raises(DamagedStore, match="few/00000000.h5: damaged .another file"):
        FeatureStore.open(path).load("few")
    for source, target in ((path / SNAPSHOTS[0], "shards/zzz.h5"), (path / shard_names(path)[0], SNAPSHOTS[2])):
        data = source.read_bytes()
        before = (path / target).read_bytes() if (path / target).exists() else None
        (path / target).write_bytes(data)
        assert target in [d["file"] for d in checked(path)[1]]
        (path / target).unlink() if before is None else (path / target).write_bytes(before)


def test_foreign_things_among_the_files_do_no_harm(harmed):
    path, truth = harmed
    shards, snapshots = path / "shards", path / "snapshots"
    (shards / "notes.txt").write_text("hello")
    (shards / ".DS_Store").write_bytes(b"\0")
    (snapshots / "README").write_text("not a view")
    (snapshots / "main" / "7.h5").write_text("not a snapshot's name")
    (snapshots / "empty view").mkdir()
    (path / "tmp" / "left.h5").write_bytes(b"half")
    assert loads(path) == truth and checked(path) == (True, [])
    assert FeatureStore.open(path).views == ["few", "main"]
    (shards / "text.h5").write_text("no HDF5")
    (shards / "folder.h5").mkdir()
    (shards / "nowhere.h5").symlink_to(path / "absent")
    (shards / "empty.h5").write_bytes(b"")
    with h5py.File(shards / "plain.h5", "w") as file:
        file["x"] = np.zeros(3)
    assert loads(path) == truth
    ok, damaged = checked(path)
    names = [f"shards/{n}.h5" for n in ("empty", "folder", "nowhere", "plain", "text")]
    assert not ok and [d["file"] for d in damaged] == names and not any(d["images"] for d in damaged)


def test_a_file_where_a_folder_belongs_is_an_error_not_a_loop(tmp_path):
    store = FeatureStore.create(tmp_path / "s", SPEC)
    add_rows(store, [1])
    (store.path / "snapshots" / "main").write_text("a file")
    with pytest.raises(OSError, match="a file is where a folder belongs"):
        store.commit(entries_for([1]))
    (store.path / "snapshots" / "main").unlink()
    store.commit(entries_for([1]))
    assert store.check(deep=True).ok


def test_spoiled_indexes_cost_time_only(harmed):
    path, truth = harmed
    index = path / "index"
    rows = max(index.glob("rows-*.run"), key=lambda p: p.stat().st_size)
    original = rows.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(len(original), size=20).tolist():
        data = bytearray(original)
        data[place] ^= 1 << int(rng.integers(8))
        rows.write_bytes(data)
        assert digest(FeatureStore.open(path).load()) == truth["main None True"]
    for junk in (b"", b"x", original[:50], original[:-1], b"[]", b"{}", b"null", b"\xff\xfe"):
        for name in (rows.name, "digests.bin", "requests.json"):
            (index / name).write_bytes(junk)
        store = FeatureStore.open(path)
        assert digest(store.load()) == truth["main None True"]
        assert store.digests.get(type("S", (), {"path": "a"})) is None and store.requests.get({"a": 1}) is None


def test_indexes_in_each_others_place_or_of_another_store_cost_time_only(harmed, tmp_path):
    path, truth = harmed
    stat = type("S", (), {"path": "a", "size": 1, "mtime_ns": 1, "ctime_ns": 1, "inode": 1, "device": 1})
    digests = FeatureStore.open(path).digests
    digests.put(stat, b"\1" * 32)
    digests.save()
    assert FeatureStore.open(path).digests.get(stat) == b"\1" * 32
    rows = next((path / "index").glob("rows-*.run"))
    swap(rows, path / "index" / "digests.bin")
    store = FeatureStore.open(path)
    assert store.digests.get(stat) is None and digest(store.load()) == truth["main None True"]
    other = FeatureStore.create(tmp_path / "other", SPEC)
    for n in range(5):
        add_rows(other, range(n * 100, n * 100 + 100))
    other.commit(entries_for(range(10)))
    theirs = next((other.path / "index").glob("rows-*.run"))
    for place in (path / "index").glob("rows-*.run"):
        shutil.copy(theirs, place)
    assert loads(path) == truth


def test_an_index_that_lies_about_the_rows_is_not_believed(harmed):
    """A wrong index with a right checksum: it may lose rows until it is rebuilt, never return another's."""
    from featcache.store.private import load_private, save_private

    path, truth = harmed
    rows = max((path / "index").glob("rows-*.run"), key=lambda p: p.stat().st_size)
    about, arrays = load_private(rows)
    arrays = {name: array.copy() for name, array in arrays.items()}
    arrays["row"][:] = np.roll(arrays["row"], 1)
    arrays["shard"][::5] = 999
    save_private(rows, about, arrays)
    assert loads(path) == truth
    for wrong in ({"shards": []}, {"shards": 7}, {}, {"shards": [1, None]}):
        save_private(rows, wrong, arrays)
        assert loads(path) == truth


def test_running_out_of_open_files_is_not_damage(tmp_path):
    store = FeatureStore.create(tmp_path / "s", SPEC)
    for n in range(60):
        add_rows(store, [n])
    store.commit(entries_for(range(60)))
    assert result_of(in_child("open_with_few_files", str(store.path), 30, 4000)) == "60 rows, 0 damaged"
    said = result_of(in_child("open_with_few_files", str(store.path), 30, 30))
    assert said.startswith("StoreError") and "Too many open files" in said and "ulimit -n" in said
    assert store.check(deep=True).ok


def test_the_locator_is_protected_too(harmed):
    """A changed weights locator would send a head to other weights."""
    path, _ = harmed
    header = json.loads((path / "store.json").read_text())
    header["locator"]["value"] = "seed 1"
    (path / "store.json").write_text(json.dumps(header))
    with pytest.raises(DamagedStore, match="store.json"):
        FeatureStore.open(path)
