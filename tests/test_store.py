"""The store: what is appended and committed comes back; every test ends in check()."""

import json
import pickle
import threading

import h5py
import numpy as np
import pytest

from featcache.errors import DamagedStore, NotAStore, SpecMismatch, StoreError, StoreTooNew
from featcache.store import CONSTANT, FAILED, OK, Entries, FeatureStore
from featcache.store.container import Container
from featcache.store.header import checksum
from featcache.store.snapshot import change_between
from featcache.store.texts import pack_text, unpack_text

SPEC = {"version": 1, "preprocess": {"crop": 224}, "dtype": "float32"}


def keys_for(numbers):
    return np.asarray([list(int(n).to_bytes(32, "big")) for n in numbers], "u1").reshape(-1, 32)


def rows_for(numbers, width=8):
    return np.stack([np.random.default_rng(int(n)).random(width, dtype="f4") for n in numbers])


def entries_for(numbers, labels=None, prefix="img"):
    n = len(numbers)
    labels = [f"c{i % 3}" for i in numbers] if labels is None else labels
    return Entries(
        np.asarray([f"{prefix}{i:05d}.jpg" for i in numbers]),
        keys_for(numbers),
        np.full(n, OK, "u1"),
        np.full(n, ""),
        {"label": np.asarray(labels)},
    )


@pytest.fixture
def store(tmp_path):
    made = FeatureStore.create(tmp_path / "a.features", SPEC, locator={"kind": "random", "value": "0"})
    yield made
    assert FeatureStore.open(made.path).check(deep=True).ok


def fill(store, numbers, **options):
    store.append(keys_for(numbers), {"flatten": rows_for(numbers)})
    return store.commit(entries_for(numbers), roles={"label": "label"}, **options)


def test_what_was_appended_and_committed_comes_back(store):
    fill(store, range(10))
    data = FeatureStore.open(store.path).load()
    assert np.array_equal(data.X, rows_for(range(10)))
    assert data.ids.tolist() == [f"img{i:05d}.jpg" for i in range(10)]
    assert data.y.tolist() == [f"c{i % 3}" for i in range(10)]
    assert data.fingerprint == store.fingerprint and data.node == "flatten" and data.spec == SPEC


def test_rows_come_in_the_order_of_ids_whatever_the_order_of_appends(store):
    order = np.random.default_rng(0).permutation(700)
    for part in np.array_split(order, 7):
        store.append(keys_for(part), {"flatten": rows_for(part)})
    store.commit(entries_for(order.tolist()))
    assert np.array_equal(store.load().X, rows_for(range(700)))


def test_a_copy_shares_the_row(store):
    store.append(keys_for([1]), {"flatten": rows_for([1])})
    twice = entries_for([1]).merged(entries_for([1], prefix="copy"))
    store.commit(twice)
    data = store.load()
    assert len(data) == 2 and np.array_equal(data.X[0], data.X[1])


def test_a_plain_hdf5_program_reads_a_shard(store):
    fill(store, range(5))
    with h5py.File(store.shards[0].path) as file:
        assert np.array_equal(file["x/flatten"][()], rows_for(range(5)))
        assert np.array_equal(file["key"][()], keys_for(range(5)))
        assert json.loads(file.attrs["fingerprint"]) == store.fingerprint


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_rows_of_any_shape(tmp_path, shape):
    store = FeatureStore.create(tmp_path / "s", {**SPEC, "dtype": "float16"})
    rows = np.random.default_rng(0).random((300, *(shape or (1,)))).astype("f2")
    store.append(keys_for(range(300)), {"a": rows, "b": rows * 2})
    store.commit(entries_for(range(300)))
    assert np.array_equal(store.load(node="b").X, (rows * 2).astype("f4"))
    with pytest.raises(StoreError, match="several nodes"):
        store.load()
    with pytest.raises(StoreError, match="no node 'c'"):
        store.load(node="c")
    assert store.check(deep=True).ok


def test_failed_and_constant_lines_are_kept_apart(store):
    store.append(keys_for([1, 2]), {"flatten": rows_for([1, 2])}, constant=np.array([False, True]))
    assert store.status(keys_for([1, 2, 3])).tolist() == [OK, CONSTANT, FAILED]
    good = entries_for([1, 2, 3])
    store.commit(Entries(good.ids, good.keys, np.array([OK, CONSTANT, FAILED], "u1"), np.array(["", "", "torn"]), {}))
    info = store.info()
    assert info["images"] == 2 and info["failed"] == [{"id": "img00003.jpg", "reason": "torn"}]
    assert info["constant"] == ["img00002.jpg"]
    assert len(store.load()) == 2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_refused(store, bad):
    rows = rows_for([1, 2])
    rows[1, 3] = bad
    with pytest.raises(StoreError, match="NaN or Inf"):
        store.append(keys_for([1, 2]), {"flatten": rows})
    assert not store.has(keys_for([1])).any()


def test_float16_overflow_is_refused(tmp_path):
    store = FeatureStore.create(tmp_path / "s", {**SPEC, "dtype": "float16"})
    with pytest.raises(StoreError, match="as float16"), np.errstate(over="ignore"):
        store.append(keys_for([1]), {"flatten": np.full((1, 4), 1e6, "f4")})


def test_a_commit_whose_keys_have_no_rows_is_refused(store):
    with pytest.raises(StoreError, match="2 images .* have no codes"):
        store.commit(entries_for([5, 6]))
    assert store.views == []


def test_no_change_makes_no_snapshot(store):
    first = fill(store, range(4))
    assert store.commit(entries_for(range(4)), roles={"label": "label"}).number == first.number == 0


def test_views_are_apart_and_old_snapshots_stay_readable(store):
    fill(store, range(6))
    store.commit(entries_for([0, 1]), view="few")
    store.commit(entries_for(range(3)))
    assert store.views == ["few", "main"]
    assert [len(store.load(v)) for v in ("few", "main")] == [2, 3]
    assert len(store.load(snapshot=0)) == 6
    with pytest.raises(StoreError, match="no snapshot 7"):
        store.load(snapshot=7)
    with pytest.raises(StoreError, match="no view 'absent'"):
        store.load("absent")


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 101, "a b"])
def test_names_of_views_cannot_leave_the_folder(store, name):
    with pytest.raises(StoreError, match="expected letters"):
        store.commit(entries_for([]), view=name)


def test_small_changes_are_written_as_deltas_and_read_back_the_same(store):
    store.append(keys_for(range(600)), {"flatten": rows_for(range(600))})
    current = entries_for(range(500))
    store.commit(current, roles={"label": "label"})
    sizes = []
    for i in range(40):
        labels = current.columns["label"].copy()
        labels[i] = f"new{i}"
        removed = np.arange(len(current)) != (i * 7) % len(current)
        current = current.with_columns({"label": labels}).take(removed).merged(entries_for([500 + i]))
        number = store.commit(current, roles={"label": "label"}).number
        sizes.append((store.path / "snapshots" / "main" / f"{number:08d}.h5").stat().st_size)
        again = FeatureStore.open(store.path).snapshot()
        assert again.entries.ids.tolist() == current.ids.tolist()
        assert again.entries.columns["label"].tolist() == current.columns["label"].tolist()
        assert again.chain <= 6, "deltas carry as the digits of a binary counter do"
    full = (store.path / "snapshots" / "main" / "00000000.h5").stat().st_size
    assert np.median(sizes) < 0.75 * full, "a header of 4 KB, and little else"


def test_columns_of_all_types_and_missing_values(store):
    n = 5
    store.append(keys_for(range(n)), {"flatten": rows_for(range(n))})
    columns = {
        "text": np.array(["ä", "", "01", "1", "line\nbreak"]),
        "int": np.arange(n) - 2,
        "float": np.array([0.5, np.nan, -1e300, 0, 1]),
        "flag": np.array([True, False, True, True, False]),
    }
    base = entries_for(range(n))
    store.commit(base.with_columns(columns))
    got = FeatureStore.open(store.path).load().columns
    for name, column in columns.items():
        assert got[name].dtype.kind == column.dtype.kind
        assert np.array_equal(got[name], column, equal_nan=column.dtype.kind == "f")
    assert store.load(label="text").y.tolist() == columns["text"].tolist()
    with pytest.raises(StoreError, match="no column 'nope'"):
        store.load(group="nope")


def test_concurrent_commits_lose_no_lines(store):
    for n in range(6):
        store.append(keys_for(range(10 * n, 10 * n + 10)), {"flatten": rows_for(range(10 * n, 10 * n + 10))})
    barrier, errors = threading.Barrier(6), []

    def commit(n):
        try:
            mine = FeatureStore.open(store.path)
            barrier.wait()
            mine.commit(entries_for(range(10 * n, 10 * n + 10)), keep_old=True)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=commit, args=(n,)) for n in range(6)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors
    assert np.array_equal(store.load().X, rows_for(range(60)))


def test_a_writer_that_lost_the_race_keeps_the_others_lines(store):
    fill(store, range(4))
    parent = store.snapshot()
    other = FeatureStore.open(store.path)
    other.append(keys_for([50]), {"flatten": rows_for([50])})
    other.commit(entries_for([50]), keep_old=True)
    store.append(keys_for([60]), {"flatten": rows_for([60])})
    store.commit(entries_for([0, 1, 60]), parent=parent)  # drops 2 and 3, adds 60; knows nothing of 50
    ids = store.snapshot().entries.ids.tolist()
    assert ids == [f"img{i:05d}.jpg" for i in (0, 1, 50, 60)]


def test_two_creators_of_one_store_agree(tmp_path):
    stores, barrier = [], threading.Barrier(4)

    def create():
        barrier.wait()
        stores.append(FeatureStore.create(tmp_path / "s", SPEC))

    threads = [threading.Thread(target=create) for _ in range(4)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert len({s.fingerprint for s in stores}) == 1 and len(stores) == 4


def test_another_spec_is_refused_with_the_difference(store):
    with pytest.raises(SpecMismatch, match=r"preprocess.crop: 224, not 192"):
        FeatureStore.create(store.path, {**SPEC, "preprocess": {"crop": 192}})


def test_opening_what_is_not_a_store(tmp_path):
    with pytest.raises(NotAStore, match="no such store"):
        FeatureStore.open(tmp_path / "absent")
    with pytest.raises(NotAStore, match="no store.json"):
        FeatureStore.open(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(NotAStore, match="a file, not a store"):
        FeatureStore.open(tmp_path / "file")
    with pytest.raises(StoreError, match="a file is in the way"):
        FeatureStore.create(tmp_path / "file", SPEC)
    with pytest.raises(StoreError, match="holds other things"):
        FeatureStore.create(tmp_path, SPEC)


def test_a_newer_format_says_what_to_install(store):
    path = store.path / "store.json"
    original = path.read_text()
    newer = {**json.loads(original), "format_version": 99}
    path.write_text(json.dumps({**newer, "xxh3": checksum(newer)}))
    with pytest.raises(StoreTooNew, match="pip install --upgrade featcache"):
        FeatureStore.open(store.path)
    path.write_text(original[:-20])
    with pytest.raises(DamagedStore, match="store.json: damaged"):
        FeatureStore.open(store.path)
    path.write_text(original.replace("224", "225"))
    with pytest.raises(DamagedStore, match="checksum does not match"):
        FeatureStore.open(store.path)
    path.write_text(original)


def test_the_index_is_disposable_and_not_trusted(store):
    fill(store, range(300))
    index = store.path / "index"
    for spoil in (lambda p: p.unlink(), lambda p: p.write_bytes(b"junk"), lambda p: p.write_bytes(p.read_bytes()[:-9])):
        for path in list(index.iterdir()):
            spoil(path)
        assert np.array_equal(FeatureStore.open(store.path).load().X, rows_for(range(300)))


def test_look_ups_find_exactly_what_is_there(store):
    # Keys that agree in their first eight bytes must be told apart by the rest.
    keys = keys_for(range(1000))
    store.append(keys[::2], {"flatten": rows_for(range(0, 1000, 2))})
    store.append(keys[1::4], {"flatten": rows_for(range(1, 1000, 4))})
    expected = [i % 2 == 0 or i % 4 == 1 for i in range(1000)]
    assert store.has(keys).tolist() == expected
    assert FeatureStore.open(store.path).has(keys).tolist() == expected
    assert not store.has(keys, view_number=1).any()
    assert np.array_equal(store.codes(keys[[4, 1, 4]], "flatten"), rows_for([4, 1, 4]))
    with pytest.raises(StoreError, match="no codes"):
        store.codes(keys[[3]], "flatten")


def test_a_map_has_the_stored_dtype_and_leaves_nothing_behind(tmp_path):
    store = FeatureStore.create(tmp_path / "s", {**SPEC, "dtype": "float16"})
    for part in ([3, 1], [0, 2]):
        store.append(keys_for(part), {"flatten": rows_for(part)})
    store.commit(entries_for(range(4)))
    scattered = store.load(in_memory=False).X
    assert scattered.dtype == np.float16 and np.array_equal(scattered, rows_for(range(4)).astype("f2"))
    assert not list((store.path / "index").glob("gathered*"))
    ordered = FeatureStore.create(tmp_path / "t", {**SPEC, "dtype": "float16"})
    fill(ordered, range(600))
    direct = ordered.load(in_memory=False).X
    assert not direct.flags.owndata and not direct.flags.writeable
    assert np.array_equal(direct, rows_for(range(600)).astype("f2"))


def test_a_store_pickles_without_handles(store):
    fill(store, range(3))
    store.load()
    again = pickle.loads(pickle.dumps(store))
    assert np.array_equal(again.load().X, rows_for(range(3)))


def test_a_reader_keeps_its_snapshot_while_others_write(store):
    fill(store, range(3))
    reader = FeatureStore.open(store.path)
    before = reader.snapshot()
    store.append(keys_for([9]), {"flatten": rows_for([9])})
    store.commit(entries_for([9]), keep_old=True)
    assert len(before.entries) == 3 and len(reader.load()) == 4


@pytest.mark.parametrize("texts", [[], [""], ["a", "", "ü\n", "x" * 1000], ["\udcff bad byte"]])
def test_text_round_trips(texts):
    assert unpack_text(*pack_text(texts)).tolist() == texts


def test_a_change_is_what_turns_one_state_into_the_other(store):
    store.append(keys_for(range(6)), {"flatten": rows_for(range(6))})
    old, new = entries_for([1, 2, 3]), entries_for([2, 3, 4], labels=["c2", "other", "c1"])
    change = change_between(store.commit(old), new, keep_old=False)
    assert change.upserts.ids.tolist() == ["img00003.jpg", "img00004.jpg"] and change.removed.tolist() == [
        "img00001.jpg"
    ]
    assert change.apply(old).ids.tolist() == new.ids.tolist()
    assert not change_between(store.commit(new), new, keep_old=False)


def test_entries_refuse_repeated_ids_and_ragged_columns():
    one = entries_for([1])
    with pytest.raises(StoreError, match="repeat"):
        Entries(np.array(["a", "a"]), keys_for([1, 2]), np.zeros(2, "u1"), np.full(2, ""))
    with pytest.raises(StoreError, match="expected columns of 1 values"):
        Entries(one.ids, one.keys, one.status, one.errors, {"x": np.zeros(3)})


def test_a_header_that_points_outside_the_file_is_refused(store, tmp_path):
    fill(store, range(3))
    source = store.shards[0]
    data = bytearray(source.path.read_bytes())
    header = {
        "format_version": 1,
        "kind": "shard",
        "size": len(data),
        "block": source.block,
        "meta": "",
        "attributes": source.attributes,
        "regions": [
            {"name": "key", "offset": len(data) - 8, "bytes": 96, "dtype": "uint8", "shape": [3, 32], "xxh3": ""}
        ],
    }
    from featcache.store.writing import _pack

    data[: header["block"]] = _pack(header, header["block"])
    path = tmp_path / "evil.h5"
    path.write_bytes(data)
    with pytest.raises(DamagedStore, match="outside the file"):
        Container(path)
    header["regions"][0] |= {"dtype": "object", "offset": source.block}
    data[: header["block"]] = _pack(header, header["block"])
    path.write_bytes(data)
    with pytest.raises(DamagedStore, match="of type 'object'"):
        Container(path)


def test_rows_found_stay_right_while_other_threads_publish_and_compact(store):
    """Numbers of shards do not shift: a compacted shard's name is last, so later ones come in before it."""
    store.append(keys_for(range(50)), {"flatten": rows_for(range(50))})
    store.commit(entries_for(range(50)))
    store.compact()
    stop, wrong = threading.Event(), []

    def read():
        rng = np.random.default_rng(threading.get_ident())
        while not stop.is_set():
            some = rng.permutation(50)[:20]
            if not np.array_equal(store.codes(keys_for(some), "flatten"), rows_for(some)):
                wrong.append(some)

    threads = [threading.Thread(target=read) for _ in range(3)]
    [t.start() for t in threads]
    for n in range(50, 75):
        store.append(keys_for([n]), {"flatten": rows_for([n])})
        if n % 5 == 0:
            store.refresh()
    stop.set()
    [t.join() for t in threads]
    assert not wrong and np.array_equal(store.codes(keys_for(range(75)), "flatten"), rows_for(range(75)))


def test_two_first_states_of_a_view_are_merged(store, monkeypatch):
    """Both writers see an empty view; the slower one must not replace the other's lines."""
    from featcache.store import view_store

    for n in (0, 5):
        store.append(keys_for(range(n, n + 5)), {"flatten": rows_for(range(n, n + 5))})
    real = view_store.change_between

    def meanwhile(*args, **options):
        monkeypatch.setattr(view_store, "change_between", real)
        FeatureStore.open(store.path).commit(entries_for(range(5)), keep_old=True)
        return real(*args, **options)

    monkeypatch.setattr(view_store, "change_between", meanwhile)
    state = store.commit(entries_for(range(5, 10)), keep_old=True)
    assert state.number == 1 and len(state) == 10
    assert np.array_equal(store.load().X, rows_for(range(10)))


def test_an_image_copied_ten_thousand_times_is_found_at_once(store):
    import time

    store.append(keys_for([1, 2]), {"flatten": rows_for([1, 2])})
    n = 10_000
    ids = np.asarray([f"copy{i:05d}.jpg" for i in range(n)], np.str_)
    store.commit(Entries(ids, keys_for([1] * (n - 1) + [2]), np.zeros(n, "u1"), np.full(n, "", "U1")))
    assert store.compact().rows == n
    start = time.perf_counter()
    fresh = FeatureStore.open(store.path)
    assert fresh.has(keys_for([1] * n)).all() and len(fresh.load()) == n
    assert time.perf_counter() - start < 2


def test_a_view_is_mapped_from_a_store_that_cannot_be_written(store, monkeypatch):
    import os

    fill(store, [5, 3, 4])
    monkeypatch.setattr(os, "access", lambda *args, **options: False)
    data = FeatureStore.open(store.path).load(in_memory=False)
    assert np.array_equal(data.X, rows_for([3, 4, 5])) and not data.X.flags.writeable


def test_a_reader_opened_before_the_first_shard_sees_what_comes(store):
    reader = FeatureStore.open(store.path)
    assert reader.nodes == {} and not reader.has(keys_for([1])).any()
    fill(store, [1, 2])
    assert len(reader.load()) == 2


def test_files_that_begin_with_a_dot_are_other_programs(store):
    fill(store, [1, 2])
    for name in (".h5", "._x.h5"):
        (store.path / "shards" / name).write_bytes(b"junk")
    fresh = FeatureStore.open(store.path)
    assert fresh.check(deep=True).ok and fresh.gc(grace_days=0).trashed == [] and len(fresh.load()) == 2
