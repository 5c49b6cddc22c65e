"""A store as an array and as a data set: NumPy semantics, workers of every kind, shuffling, what happens beside."""

import pickle
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from conftest import REPOSITORY
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache import CodesDataset, FeatureStore
from featcache.errors import DamagedStore, StoreError
from featcache.store import Entries, loading
from featcache.store.access import StoredCodes
from featcache.store.blocks import BlockShuffle

N, WIDTH, CLASSES = 1500, 24, 5


def keys_for(numbers, salt=0):
    return np.stack([np.random.default_rng([int(i), salt]).integers(0, 256, 32).astype("u1") for i in numbers])


def make_store(path, n=N, *, width=WIDTH, shards=6, dtype="float16", scatter=False, labels=None, seed=0):
    """Make a store of `n` rows in `shards` files, sorted by class; returns it and its codes as float32."""
    draw = np.random.default_rng(seed)
    label = np.sort(draw.integers(0, CLASSES, n))
    codes = (draw.standard_normal((n, width)) + 2.0 * np.eye(CLASSES, width)[label]).astype(dtype)
    codes[0, :4] = [6e-8, -6e-8, 0.0, -0.0]  # the smallest numbers of float16
    keys = draw.integers(0, 256, (n, 32)).astype("u1")
    store = FeatureStore.create(path, {"dtype": dtype})
    for part in np.array_split(draw.permutation(n) if scatter else np.arange(n), shards):
        store.append(keys[part], {"flatten": codes[part]})
    columns = {
        "label": np.array([f"class{c}" for c in label]) if labels is None else labels,
        "part": np.where(np.arange(n) % 3 == 0, "test", "train"),
    }
    ids = np.array([f"image{i:06d}" for i in range(n)])
    entries = Entries(ids, keys, np.zeros(n, "u1"), np.full(n, ""), columns)
    store.commit(entries, roles={"label": "label", "split": "part"})
    return store, codes.astype("f4")


@pytest.fixture(params=["in order", "scattered", "compacted"])
def made(request, tmp_path):
    store, codes = make_store(tmp_path / "s", scatter=request.param != "in order")
    if request.param == "compacted":
        store.compact()
    yield store, codes
    assert store.check(deep=True).ok


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    store, codes = make_store(tmp_path_factory.mktemp("shared") / "s", scatter=True)
    yield store, codes
    assert store.check(deep=True).ok


# -- StoredCodes: an array ---------------------------------------------------------------------------------------------

numbers = st.integers(-N - 3, N + 3)
indices = st.one_of(
    numbers,
    st.builds(slice, *[st.none() | numbers] * 2, st.none() | st.integers(-7, 7).filter(bool)),
    st.lists(numbers, max_size=20),
    st.lists(st.integers(-N, N - 1), max_size=600).map(lambda a: np.asarray(a, dtype=np.int64)),
    st.lists(st.lists(st.integers(-N, N - 1), min_size=2, max_size=2), max_size=5).map(np.asarray),
    st.integers(0, 2**32).map(lambda s: np.random.default_rng(s).random(N) < 0.1),
    st.sampled_from(
        [np.int64(3), np.uint8(200), ..., (), np.zeros(N - 1, bool), np.zeros(0, "i8"), [], np.array([0.5])]
    ),
)


@settings(max_examples=150, deadline=None)
@given(index=indices)
def test_indexing_is_numpys(shared, index):
    store, codes = shared
    stored = store.dataset().codes
    try:
        expected = codes[index]
    except IndexError:
        with pytest.raises(IndexError):
            stored[index]
        return
    found = stored[index]
    assert found.dtype == np.float32 and found.shape == expected.shape
    assert np.array_equal(found.view("u4"), np.ascontiguousarray(expected).view("u4"))


def test_it_looks_like_an_array(made):
    store, codes = made
    stored = store.dataset().codes
    assert stored.shape == codes.shape and stored.ndim == 2 and len(stored) == N and stored.dtype == np.float32
    assert stored.nbytes == codes.nbytes and "main@0" in repr(stored)
    assert np.array_equal(np.asarray(stored), store.load(in_memory=True).X)
    assert np.asarray(stored, dtype="f8").dtype == np.float64
    assert StoredCodes(stored.place, dtype=None)[:3].dtype == np.float16
    with pytest.raises(ValueError, match="copy"):
        np.array(stored, copy=False)


@pytest.mark.parametrize("bad", [None, True, "3", 1.5, (0, 1, 2.0), (slice(None), 3)])
def test_what_is_no_row_is_refused(shared, bad):
    with pytest.raises(IndexError):
        shared[0].dataset().codes[bad]


def test_gather_into_an_array_of_any_type(made):
    store, codes = made
    stored, index = store.dataset().codes, np.random.default_rng(0).integers(-N, N, 700)
    for dtype in ("f4", "f2", "f8"):
        out = np.full((700, WIDTH), np.nan, dtype)
        assert stored.gather(index, out) is out and np.array_equal(out, codes[index].astype(dtype))
    strided = np.zeros((700, 2 * WIDTH), "f4")[:, ::2]
    assert np.array_equal(stored.gather(index, strided), codes[index])
    with pytest.raises(ValueError, match="expected shape"):
        stored.gather(index, np.zeros((3, WIDTH)))
    with pytest.raises(IndexError):
        stored.gather(index.reshape(7, 100))


@pytest.mark.parametrize("sizes", [(1 << 8, 1), (1 << 9, 2)])
def test_large_gathers_are_read_in_the_order_of_the_disk(made, monkeypatch, sizes):
    store, codes = made
    monkeypatch.setattr(loading, "_PIECE_BYTES", sizes[0])
    monkeypatch.setattr(loading, "_SORTED_FROM", sizes[1])
    index = np.random.default_rng(0).integers(0, N, 1000)
    assert np.array_equal(store.dataset().codes[index], codes[index])


@pytest.mark.parametrize("width", [1, 3, 7])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_of_odd_widths_over_many_shards(tmp_path, width, dtype):
    store, codes = make_store(tmp_path / "s", 400, width=max(width, 5), shards=9, dtype=dtype, scatter=True)
    assert np.array_equal(store.dataset().codes[::-1], codes[::-1])
    assert store.check().ok


def test_every_float16_is_widened_exactly():
    half = np.arange(1 << 16, dtype="u2").view("f2")
    half = half[np.isfinite(half)]
    out = np.empty(half.shape, "f4")
    loading.convert(half, out)
    assert np.array_equal(out.view("u4"), half.astype("f4").view("u4"))


def test_subnormal_numbers_survive_a_processor_that_flushes_them():
    torch = pytest.importorskip("torch")
    half, out = np.array([1, 0x8001], "u2").view("f2"), np.empty(2, "f4")
    expected = half.astype("f4")
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor does not flush")
    try:
        loading.convert(half, out)
    finally:
        torch.set_flush_denormal(False)
    assert np.array_equal(out, expected)


def test_threads_share_one(shared):
    store, codes = shared
    stored, wrong = pickle.loads(pickle.dumps(store.dataset().codes)), []

    def read(seed):
        draw = np.random.default_rng(seed)
        for _ in range(50):
            index = draw.integers(0, N, 100)
            if not np.array_equal(stored[index], codes[index]):
                wrong.append(seed)

    threads = [threading.Thread(target=read, args=(s,)) for s in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not wrong


@pytest.mark.parametrize("verify", ["touch", "always", "off"])
def test_verification_as_the_store_was_opened(tmp_path, verify):
    store, codes = make_store(tmp_path / "s")
    data = FeatureStore.open(store.path, verify=verify).dataset()
    assert data.codes.place.verify == verify
    for _ in range(2):
        assert np.array_equal(data.codes[3:900], codes[3:900])
    assert store.check().ok


# -- CodesDataset ------------------------------------------------------------------------------------------------------


def test_a_data_set_is_what_load_gives(made):
    store, codes = made
    data, loaded = store.dataset(), store.load()
    assert isinstance(data, CodesDataset) and len(data) == N and "5 classes" in repr(data)
    assert np.array_equal(data.classes, loaded.classes) and np.array_equal(data.classes[data.y], loaded.y)
    assert np.array_equal(data.ids, loaded.ids) and np.array_equal(data.splits, loaded.splits) and data.groups is None
    X, y = data[7]
    assert np.array_equal(X, codes[7]) and y == data.y[7] and type(y) is int
    X, y = data[[5, -1]]
    assert np.array_equal(X, codes[[5, -1]]) and np.array_equal(y, data.y[[5, -1]])
    items = data.__getitems__([4, 2])
    assert [i[1] for i in items] == data.y[[4, 2]].tolist() and np.array_equal(items[1][0], codes[2])


def test_unlabelled_rows_are_left_out_or_kept(tmp_path):
    labels = np.array(["" if i % 4 == 0 else f"class{i % 3}" for i in range(N)])
    store, codes = make_store(tmp_path / "s", labels=labels)
    data, every = store.dataset(), store.dataset(unlabelled=True)
    assert (
        len(data) == (labels != "").sum() and (data.y >= 0).all() and np.array_equal(data.codes[:], codes[labels != ""])
    )
    assert len(every) == N and np.array_equal(every.y < 0, labels == "")
    some = store.dataset(rows=np.arange(10))
    assert some.ids.tolist() == [f"image{i:06d}" for i in range(10) if i % 4]
    assert np.array_equal(pickle.loads(pickle.dumps(some)).codes[:], some.codes[:])
    with pytest.raises(StoreError, match="no row to train on has a label"):
        store.dataset(rows=[0, 4])
    assert store.check().ok


@pytest.mark.parametrize(
    "values", [np.arange(N) % 12, (np.arange(N) % 2).astype(bool), np.where(np.arange(N) % 5, 1.5, np.nan)]
)
def test_classes_of_columns_of_other_types_are_those_of_load(tmp_path, values):
    store, _ = make_store(tmp_path / "s", labels=values)
    data, loaded = store.dataset(), store.load()
    assert np.array_equal(data.classes, loaded.classes)
    assert np.array_equal(data.classes[data.y], loaded.y[loaded.labelled])
    assert store.check().ok


def test_subsets_keep_the_classes_and_may_repeat_rows(made):
    store, codes = made
    data = store.dataset()
    train = data.subset(data.splits == "train")
    one = train.subset(train.y == 2)
    assert set(one.splits) == {"train"} and set(one.y) == {2} and np.array_equal(one.classes, data.classes)
    again = one.subset([1, 1, -1])
    for version in (again, pickle.loads(pickle.dumps(again))):
        assert version.ids.tolist() == one.ids[[1, 1, -1]].tolist()
        assert np.array_equal(version.codes[:], one.codes[[1, 1, -1]])
    with pytest.raises(IndexError):
        data.subset([N])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"view": "none"}, "no view"),
        ({"view": "main@9"}, "no snapshot 9"),
        ({"view": "main@x"}, "main@x"),
        ({"view": "main@0", "snapshot": 1}, "another state"),
        ({"label": "colour"}, "no column 'colour' for the label"),
        ({"node": "none"}, "no node"),
    ],
)
def test_what_is_not_there_is_said_in_one_line(shared, options, message):
    with pytest.raises(StoreError, match=message) as caught:
        shared[0].dataset(**options)
    assert "\n" not in str(caught.value)


def test_an_empty_view(tmp_path):
    store, _ = make_store(tmp_path / "s")
    store.commit(Entries.empty(), view="empty")
    data = store.dataset("empty")
    assert len(data) == 0 and data.codes[:].shape == (0, WIDTH) and list(data.batches(3)) == []
    assert len(data.subset([])) == 0 and store.check().ok


# -- in other processes ------------------------------------------------------------------------------------------------


def test_what_travels_is_a_few_words(tmp_path):
    store, _ = make_store(tmp_path / "s", 20_000, width=5)
    data = store.dataset()
    data[3], data.ids, next(data.batches(10))
    assert len(pickle.dumps(data)) < 1000 and len(pickle.dumps(data.codes)) < 1000
    half = data.subset(np.arange(0, len(data), 2))
    assert len(pickle.dumps(half)) < 4 * len(half) + 1000  # rows that somebody chose travel in four bytes each
    assert store.check().ok


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_workers_of_every_kind(tmp_path, method):
    from torch.utils.data import DataLoader

    store, codes = make_store(tmp_path / "s", scatter=True)
    data = store.dataset("main@0")
    assert np.array_equal(data.codes[:], codes)  # opened and read before there are workers
    few = store.snapshot().entries.take(np.arange(10))
    store.commit(few)  # a newer state changes nothing
    options = {"num_workers": 2, "multiprocessing_context": method}
    seen = []
    for X, y in DataLoader(data, batch_size=None, sampler=data.sampler(100), **options):
        assert X.shape == (100, WIDTH) and X.dtype.is_floating_point and y.dtype.is_signed
        seen += [(row.tobytes(), int(c)) for row, c in zip(X.numpy(), y, strict=True)]
    assert sorted(seen) == sorted((row.tobytes(), int(c)) for row, c in zip(codes, data.y, strict=True))
    if method == "fork":
        loader = DataLoader(data, batch_size=64, sampler=data.sampler(), **options)
        assert sorted(int(c) for _, y in loader for c in y) == sorted(data.y.tolist())
    assert store.check().ok


def test_a_damaged_row_is_named_by_a_worker(tmp_path):
    from torch.utils.data import DataLoader

    store, codes = make_store(tmp_path / "s")
    shard = store.shards[2]
    region = shard.region("x/flatten")
    sound = shard.path.read_bytes()
    shard.path.chmod(0o644)
    with shard.path.open("r+b") as file:
        file.seek(region["offset"] + 100)
        file.write(bytes([sound[region["offset"] + 100] ^ 1]))
    data = FeatureStore.open(store.path).dataset()
    lost = N // 6 * 2 + 1
    assert np.array_equal(data.codes[: N // 6], codes[: N // 6])
    for read in (lambda: data[lost], lambda: list(data.batches(64)), lambda: np.asarray(data.codes)):
        with pytest.raises(DamagedStore, match=shard.path.name):
            read()
    with pytest.raises(Exception, match=shard.path.name) as caught:
        list(DataLoader(data, batch_size=None, sampler=data.sampler(64), num_workers=1))
    assert "DamagedStore" in str(caught.value) or isinstance(caught.value, DamagedStore)
    with shard.path.open("r+b") as file:
        file.write(sound)
    assert np.array_equal(FeatureStore.open(store.path).dataset().codes[:], codes) and store.check(deep=True).ok


def test_another_store_in_its_place_is_refused(tmp_path):
    store, _ = make_store(tmp_path / "s")
    sent = pickle.dumps(store.dataset())
    store.path.rename(tmp_path / "away")
    with pytest.raises(StoreError):
        len(pickle.loads(sent))
    make_store(tmp_path / "s", dtype="float32")
    with pytest.raises(StoreError, match="another store"):
        len(pickle.loads(sent))
    assert FeatureStore.open(tmp_path / "away").check().ok


# -- beside others -----------------------------------------------------------------------------------------------------


def test_compacting_and_collecting_between_batches(tmp_path):
    store, codes = make_store(tmp_path / "s", scatter=True)
    data, sent = store.dataset(), pickle.dumps(store.dataset())
    batches, seen = data.batches(50, with_index=True, block_rows=16, window=4), []
    for step, (X, _, rows) in enumerate(batches):
        if step == 3:
            writer = FeatureStore.open(store.path)
            writer.compact()
            for _ in range(2):
                report = writer.gc(grace_days=0)
            assert report.deleted or report.trashed
            assert len(FeatureStore.open(store.path).shards) == 1
        assert np.array_equal(X, codes[rows])
        seen.append(rows)
    assert np.array_equal(np.sort(np.concatenate(seen)), np.arange(N))
    assert np.array_equal(pickle.loads(sent).codes[:], codes) and np.array_equal(data.codes[::3], codes[::3])
    assert FeatureStore.open(store.path).check(deep=True).ok


def test_a_shard_that_goes_while_it_is_listed(tmp_path, monkeypatch):
    store, codes = make_store(tmp_path / "s", scatter=True)
    data = pickle.loads(pickle.dumps(store.dataset()))
    from featcache.store.shards import ShardSet

    listed, calls = ShardSet.names, []

    def names(self):
        found = listed(self)
        if not calls:
            calls.append(1)
            writer = FeatureStore.open(store.path)
            writer.compact()
            for _ in range(2):
                writer.gc(grace_days=0)
        return found

    monkeypatch.setattr(ShardSet, "names", names)
    assert np.array_equal(data.codes[:], codes)
    assert FeatureStore.open(store.path).check(deep=True).ok


# -- epochs ------------------------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(
    n=st.integers(0, 700),
    batch=st.integers(1, 90),
    block=st.integers(1, 70),
    window=st.integers(1, 9),
    seed=st.integers(0, 3),
    shuffle=st.booleans(),
    drop_last=st.booleans(),
    permuted=st.booleans(),
)
def test_each_row_comes_once_an_epoch(n, batch, block, window, seed, shuffle, drop_last, permuted):
    order = np.random.default_rng(0).permutation(n) if permuted else None
    blocks = BlockShuffle(n, order, shuffle, seed, 2, block, window)
    found = list(blocks.batches(batch, drop_last))
    assert [len(b) for b in found] == [batch] * (n // batch) + ([n % batch] if n % batch and not drop_last else [])
    rows = np.concatenate([np.zeros(0, int), *found])
    assert len(np.unique(rows)) == len(rows)
    assert drop_last or np.array_equal(np.sort(rows), np.arange(n))
    assert shuffle or np.array_equal(rows, np.arange(len(rows)))
    assert all(np.array_equal(a, b) for a, b in zip(found, blocks.batches(batch, drop_last), strict=True))
    assert all(len(places) <= block * window for places, _ in blocks.windows())


@pytest.mark.parametrize("options", [{}, {"drop_last": True}, {"shuffle": False}, {"block_rows": 16, "window": 3}])
@pytest.mark.parametrize("order", ["auto", "view", "storage"])
def test_batches_and_the_sampler_give_the_same_rows(made, options, order):
    store, codes = made
    data = store.dataset()
    found = list(data.batches(64, with_index=True, seed=1, epoch=3, order=order, **options))
    sampler = data.sampler(64, seed=1, order=order, **options)
    sampler.set_epoch(3)
    expected = list(sampler)
    assert len(sampler) == len(expected) == len(found) and sampler.epoch == 4
    for (X, y, rows), same in zip(found, expected, strict=True):
        assert np.array_equal(rows, same) and np.array_equal(X, codes[rows]) and np.array_equal(y, data.y[rows])
    single = data.sampler(seed=1, order=order, **{k: v for k, v in options.items() if k != "drop_last"})
    assert sorted(single) == list(range(N)) and len(single) == N


def test_orders_depend_on_seed_and_epoch_and_by_choice_not_on_the_layout(tmp_path):
    store, _ = make_store(tmp_path / "s", scatter=True)

    def rows(**options):
        data = FeatureStore.open(store.path).dataset()
        batches = data.batches(50, with_index=True, block_rows=16, window=4, **options)
        return np.concatenate([b[-1] for b in batches]).tolist()

    before = {order: rows(order=order) for order in ("auto", "view", "storage")}
    assert before["auto"] == before["storage"] != before["view"]  # scattered: long reads matter
    assert rows() == rows() and len({tuple(rows(**o)) for o in ({}, {"seed": 1}, {"epoch": 1})}) == 3
    store.compact()
    assert rows(order="view") == before["view"] == rows(order="auto") == rows(order="storage")
    assert store.check().ok


def test_batches_of_a_class_sorted_store_are_mixed(tmp_path):
    store, _ = make_store(tmp_path / "s", 12_000, width=5)
    data = store.dataset()
    share = np.bincount(data.y) / len(data)
    assert (np.diff(data.y) >= 0).all()
    found = [
        np.bincount(y, minlength=CLASSES) / len(y)
        for _, y in data.batches(256, block_rows=64, window=32, drop_last=True)
    ]
    # Each batch is drawn from 32 random blocks of the 188: about as mixed as 32 independent draws of a class.
    assert np.abs(np.array(found) - share).mean() < 0.08 and np.abs(np.array(found) - share).max() < 0.35
    assert min(len(set(y.tolist())) for _, y in data.batches(256, block_rows=64, window=32, drop_last=True)) >= 4
    assert store.check().ok


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"window": 0},
        {"block_rows": 1.5},
        {"seed": -1},
        {"epoch": -1},
        {"order": "random"},
        {"batch_size": True},
    ],
)
def test_sizes_that_make_no_sense_are_refused_at_once(shared, options):
    data = shared[0].dataset()
    with pytest.raises(ValueError, match=next(iter(options))):
        data.batches(**{"batch_size": 10, **options})
    if "epoch" not in options:
        with pytest.raises(ValueError, match=next(iter(options))):
            data.sampler(**{"batch_size": 10, **options})


def test_an_iterator_that_is_left_leaves_no_thread(shared):
    for _ in range(3):
        batches = shared[0].dataset().batches(10, block_rows=16, window=2)
        next(batches)
        batches.close()
    assert not [t for t in threading.enumerate() if "read-ahead" in t.name]


def test_memory_of_an_epoch_is_bounded(tmp_path):
    store, codes = make_store(tmp_path / "s", 40_000, width=1000, shards=4)  # 80 MB, 160 MB as float32
    code = f"""
        import resource
        import numpy as np
        from featcache import FeatureStore
        data = FeatureStore.open({str(store.path)!r}).dataset()
        data[0]
        lines = open("/proc/self/status").read().split("\\n")
        used = next(int(line.split()[1]) for line in lines if line.startswith("VmData")) << 10
        limit = used + (40 << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        total = sum(X.sum(dtype="f8") for X, _ in data.batches(256, window=16))
        try:
            np.asarray(data.codes)
        except MemoryError:
            print(total)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": ""},
    )
    assert not done.returncode, done.stderr
    assert float(done.stdout) == pytest.approx(codes.sum(dtype="f8"), abs=1e-3)
    assert store.check().ok


def test_a_head_trained_from_batches_is_as_good_as_in_memory(tmp_path):
    import torch

    store, codes = make_store(tmp_path / "s", 4000)
    data = store.dataset()
    train, test = (data.subset(data.splits == name) for name in ("train", "test"))
    X, y = torch.from_numpy(train.codes[:]), torch.from_numpy(train.y)

    def in_memory(epoch):
        for rows in torch.randperm(len(y), generator=torch.Generator().manual_seed(epoch)).split(128):
            yield X[rows], y[rows]

    def from_disk(epoch):
        for some, theirs in train.batches(128, epoch=epoch, block_rows=32, window=8):
            yield torch.from_numpy(some), torch.from_numpy(theirs)

    def accuracy(batches):
        torch.manual_seed(0)
        head = torch.nn.Linear(WIDTH, CLASSES)
        optimiser = torch.optim.Adam(head.parameters(), lr=0.02)
        for epoch in range(8):
            for some, theirs in batches(epoch):
                optimiser.zero_grad()
                torch.nn.functional.cross_entropy(head(some), theirs).backward()
                optimiser.step()
        with torch.no_grad():
            return (head(torch.from_numpy(test.codes[:])).argmax(1).numpy() == test.y).mean()

    first, second = accuracy(in_memory), accuracy(from_disk)
    assert first > 0.7 and abs(first - second) < 0.02
    assert store.check().ok


def test_two_indices_are_refused_rather_than_taken_for_two_rows(tmp_path):
    store, codes = make_store(tmp_path / "s", 30)
    data = store.dataset()
    for index in ((0, 1), (0, slice(None)), (Ellipsis, 0), (slice(None), None)):
        with pytest.raises(IndexError, match="by row, with one index, not 2; load the rows first"):
            data.codes[index]
    assert np.array_equal(data.codes[(3,)], data.codes[3]) and np.array_equal(data.codes[()], data.codes[:])
