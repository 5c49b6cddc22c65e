"""A disk that refuses, lies or is full: an operation raises or is done, earlier rows stay, a retry succeeds."""

import contextlib
import errno
import os
import shutil
import tempfile
from pathlib import Path

import h5py
import injected
import numpy as np
import pytest
from builders import (
    LOCATOR,
    SPEC,
    NthCall,
    add_rows,
    build,
    digest,
    entries_for,
    in_child,
    keys_for,
    result_of,
    rows_for,
)

from featcache.files import Disk
from featcache.store import FeatureStore

#: More calls than any of these operations makes; each loop ends when the operation succeeds.
MANY = 60


def contents(path):
    """What a fresh reader sees: whether all is sound, and the rows of the view by id."""
    store = FeatureStore.open(path)
    assert store.check(deep=True).ok
    data = store.load()
    return dict(zip(data.ids.tolist(), data.X, strict=True))


def expected(numbers):
    return dict(zip([f"img{i:05d}.jpg" for i in numbers], rows_for(numbers), strict=True))


def same(left, right):
    return left.keys() == right.keys() and all(np.array_equal(left[k], right[k]) for k in left)


def leftovers(path):
    return [p.name for p in path.rglob("*") if p.is_file() and (p.parent.name == "tmp" or p.name.endswith(".tmp"))]


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("how", ["before", "after", "half"])
def test_create_with_the_nth_call_failing(tmp_path, number, how):
    for nth in range(1, MANY):
        path = tmp_path / f"{nth}" / "deep" / "a.features"
        disk = NthCall(nth, number, how)
        done = False
        try:
            FeatureStore.create(path, SPEC, locator=LOCATOR, disk=disk)
            done = True
        except OSError as error:
            assert "\n" not in str(error)
        # A failing removal of a temporary file is no failure of the operation: the next sweep takes it.
        assert done == (not disk.failed or disk.failed == "unlink"), f"call {nth} ({disk.failed})"
        again = FeatureStore.create(path, SPEC)
        add_rows(again, [1])
        again.commit(entries_for([1]))
        assert same(contents(path), expected([1]))
        if not disk.failed:
            break
    assert 10 < nth < MANY


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
@pytest.mark.parametrize("how", ["before", "after", "half"])
@pytest.mark.parametrize("what", ["append", "commit", "commit to a new view"])
def test_writing_with_the_nth_call_failing(tmp_path, number, how, what):
    path = tmp_path / "a.features"
    good = FeatureStore.create(path, SPEC)
    add_rows(good, range(5))
    good.commit(entries_for(range(5)))
    reached = set()
    for nth in range(1, MANY):
        new = [100 + nth]
        before = contents(path)
        view = f"view{nth}" if what == "commit to a new view" else "main"
        if what != "append":
            add_rows(good, new)
        disk = NthCall(nth, number, how)
        store = FeatureStore.open(path, disk=disk)
        parent = store.snapshot(view)

        def operation(store=store, new=new, view=view, parent=parent):
            if what == "append":
                add_rows(store, new)
            else:
                store.commit(entries_for(new), view=view, keep_old=True, parent=parent)

        done = False
        try:
            operation()
            done = True
        except OSError as error:
            assert "\n" not in str(error)
        assert done == (not disk.failed or disk.failed == "unlink"), f"call {nth} ({disk.failed})"
        reached.add(disk.failed)
        fresh = FeatureStore.open(path)
        assert fresh.check(deep=True).ok and not fresh.damaged
        seen = contents(path)
        assert same({k: seen[k] for k in before}, before), "earlier rows are unharmed"
        if done:
            readable = FeatureStore.open(path).codes(keys_for(new), "flatten")
            assert np.array_equal(readable, rows_for(new)), "acknowledged rows are there for everybody"
        disk.nth = 0
        operation()  # the same open store, whose disk works again
        if what == "append":
            store.commit(entries_for(new), keep_old=True)
        assert same(contents(path), {**before, **(expected(new) if view == "main" else {})})
        got = FeatureStore.open(path).load(view)
        assert got.ids[-1] == f"img{new[0]:05d}.jpg" and np.array_equal(got.X[-1:], rows_for(new))
        if not disk.failed:
            break
    assert nth < MANY and {"write", "fsync", "link", "unlink", ""} <= reached


def test_every_call_is_one_that_these_tests_fail():
    public = {n for n, f in vars(Disk).items() if callable(f) and not n.startswith("_")}
    assert public == {*NthCall.CALLS, "fsync_folder"} and "fsync_folder" not in vars(NthCall), "it goes through fsync"


def test_the_way_to_every_row_is_synced(tmp_path):
    """After power loss a row is only there when each folder above it is: each is synced in the one that holds it."""

    class Recording(Disk):
        def __init__(self):
            self.log = []

        def fsync(self, path):
            self.log.append(("fsync", Path(path)))
            super().fsync(path)

        def link(self, source, target):
            assert ("fsync", Path(source)) in self.log, "content before name"
            self.log.append(("link", Path(target)))
            super().link(source, target)

    disk = Recording()
    root = tmp_path / "new" / "a.features"
    store = FeatureStore.create(root, SPEC, disk=disk)
    add_rows(store, [1])
    store.commit(entries_for([1]))
    synced = {p for call, p in disk.log if call == "fsync"}
    assert {tmp_path, tmp_path / "new", root, root / "shards", root / "snapshots", root / "snapshots/main"} <= synced
    links = [i for i, (call, _) in enumerate(disk.log) if call == "link"]
    assert len(links) == 3
    for i in links:
        assert ("fsync", disk.log[i][1].parent) in disk.log[i:], "each new name is synced afterwards"
    adopted = Recording()
    FeatureStore.create(root, SPEC, disk=adopted)
    assert {("fsync", root), ("fsync", tmp_path / "new")} <= set(adopted.log), "who adopts does not rely on the maker"


class Losing(Disk):
    """An fsync that says yes while one page of the file became zeros, or its end is lost."""

    def __init__(self, rng, cut=False):
        self.rng, self.cut, self.changed = rng, cut, False

    def fsync(self, path):
        super().fsync(path)
        if path.suffix != ".h5" or path.parent.name != "tmp":
            return
        data = path.read_bytes()
        place = int(self.rng.integers(len(data)))
        harmed = data[:place] if self.cut else data[:place] + bytes(min(512, len(data) - place)) + data[place + 512 :]
        self.changed = harmed != data
        path.write_bytes(harmed)


@pytest.mark.parametrize("cut", [False, True])
def test_what_the_disk_did_not_keep_is_never_acknowledged(tmp_path, cut):
    """ENOSPC that HDF5 swallows at close looks like this: no error anywhere, and a file that is not what was meant."""
    rng = np.random.default_rng(1)
    path = tmp_path / "a.features"
    good = FeatureStore.create(path, SPEC)
    outcomes = []
    for n in range(40):
        disk = Losing(rng, cut)
        store = FeatureStore.open(path, disk=disk)
        count = len(list((path / "shards").iterdir()))
        try:
            add_rows(store, range(10 * n, 10 * n + 10))
            outcomes.append("acknowledged")
            fresh = FeatureStore.open(path).codes(keys_for(range(10 * n, 10 * n + 10)), "flatten")
            assert np.array_equal(fresh, rows_for(range(10 * n, 10 * n + 10)))
        except OSError as error:
            assert disk.changed and "nothing was published" in str(error) and "\n" not in str(error)
            assert len(list((path / "shards").iterdir())) == count and not leftovers(path)
            outcomes.append("refused")
    assert outcomes.count("refused") >= (40 if cut else 15), outcomes
    assert cut or outcomes.count("acknowledged"), "some pages hold only zeros anyway"
    store = FeatureStore.open(path, disk=Losing(rng, cut=True))
    add_rows(good, [999])
    with pytest.raises(OSError, match="nothing was published"):
        store.commit(entries_for([999]))
    assert good.views == [] and good.check(deep=True).ok


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left"), RuntimeError("Can't decrement id ref count"), KeyError]
)
def test_hdf5_failing_in_the_middle_publishes_nothing(tmp_path, monkeypatch, error):
    path = tmp_path / "a.features"
    store = FeatureStore.create(path, SPEC)
    add_rows(store, range(3))
    store.commit(entries_for(range(3)))
    real = h5py.h5d.create
    for nth in range(1, 20):
        calls = []

        def failing(*args, calls=calls, nth=nth, **kwargs):
            calls.append(1)
            if len(calls) == nth:
                raise error
            return real(*args, **kwargs)

        monkeypatch.setattr(h5py.h5d, "create", failing)
        try:
            add_rows(store, [100 + nth])
            failed = False
        except (OSError, RuntimeError, KeyError):
            failed = True
        monkeypatch.setattr(h5py.h5d, "create", real)
        assert failed == (len(calls) == nth) and not leftovers(path)
        assert same(contents(path), expected(range(3)))
        if not failed:
            break
    assert nth == 9, "key, view_number, constant, codes, the checksums of each; then success"


def test_files_that_may_not_grow_raise_and_harm_nothing(tmp_path):
    """A real refusal by the kernel, at every kind of place of the file that HDF5 writes."""
    path = tmp_path / "a.features"
    store = FeatureStore.create(path, SPEC)
    add_rows(store, range(50))
    store.commit(entries_for(range(50)))
    full = 200_000
    stages = []
    for limit in (0, 4096, 20_000, 70_000, full):
        found = result_of(in_child("grow_until_full", str(path), limit))
        stages.append((limit, found["stage"]))
        assert found["error"] in ("", "OSError", "StoreError"), found
        assert "\n" not in found["text"]
        assert not leftovers(path / "tmp"), "what could not be finished was removed"
        seen = contents(path)
        rows = range(50) if found["stage"] != "done" else [*range(50), *range(1000, 2000)]
        assert same(seen, expected(rows)), f"limit {limit}"
    assert stages[0] == (0, "append") and stages[-1] == (full, "done"), stages
    print(stages)


@contextlib.contextmanager
def small_disk(size="600k"):
    """A file system of so many bytes, where the machine lets us mount one."""
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(injected.small_disk(size))
        except injected.Unavailable as error:
            pytest.skip(str(error))
        yield folder


def test_a_disk_that_is_really_full():
    with small_disk() as disk:
        path = disk / "a.features"
        truth = digest(build(path).load())
        free = shutil.disk_usage(disk).free
        assert free > 100_000
        stages = []
        for left in (0, 20_000, 60_000, 90_000):
            ballast = injected.fill(disk, left)
            found = result_of(in_child("grow", str(path)))
            stages.append(found["stage"])
            assert found["error"] in ("", "OSError", "StoreError"), found
            store = FeatureStore.open(path)
            assert store.check(deep=True).ok
            if found["stage"] != "done":
                assert digest(store.load()) == truth
            ballast.unlink()
        assert stages[0] == "append", stages
        assert result_of(in_child("grow", str(path)))["stage"] == "done"
        assert FeatureStore.open(path).check(deep=True).ok


def test_a_map_for_which_there_is_no_room_is_an_error_not_a_crash():
    """Writing into a sparse map on a full disk would be a SIGBUS."""
    with small_disk("900k") as disk:
        path = disk / "a.features"
        truth = digest(build(path).load())
        assert result_of(in_child("map_all", str(path))) == truth
        injected.fill(disk, 4096)
        said = result_of(in_child("map_all", str(path)))
        assert said.startswith("OSError") and "No space" in said
        assert not list((path / "index").glob("gathered*"))
        (disk / "ballast").unlink()
        assert result_of(in_child("map_all", str(path))) == truth


def test_a_folder_that_may_not_be_written():
    folder = Path(tempfile.mkdtemp())
    try:
        path = folder / "a.features"
        truth = digest(build(path).load())
        shutil.rmtree(path / "index")
        for place in (folder, *folder.rglob("*")):
            place.chmod(0o555 if place.is_dir() else 0o444)
        options = {"as_nobody": os.geteuid() == 0}  # root may write everywhere
        assert result_of(in_child("open_with_few_files", str(path), 200, 200, **options)) == "369 rows, 0 damaged"
        found = result_of(in_child("grow", str(path), **options))
        assert found["stage"] == "append" and "ermission denied" in found["text"], found
        said = result_of(in_child("create_there", str(folder / "b.features"), **options))
        assert said.startswith("StoreError") and "cannot create a store there: Permission denied" in said
        for place in (folder, *folder.rglob("*")):
            place.chmod(0o755 if place.is_dir() else 0o644)
        assert digest(FeatureStore.open(path).load()) == truth and FeatureStore.open(path).check(deep=True).ok
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_killed_at_each_call_of_the_disk(tmp_path):
    """What was acknowledged before the kill is there, nothing else is half there, and the same work then succeeds."""
    outcomes = result_of(in_child("kill_at_each_call", str(tmp_path)))
    assert not outcomes[-1]["killed"] and outcomes[-1]["said"] == "acac"
    assert 20 < len(outcomes) < 199 and all(o["killed"] for o in outcomes[:-1])
    print(f"{len(outcomes) - 1} kills")
    for outcome in outcomes:
        path = Path(outcome["root"])
        rows, lines = outcome["said"].count("a") * 10, outcome["said"].count("c") * 10
        store = FeatureStore.create(path, SPEC)
        assert store.has(keys_for(range(rows))).all()
        if lines:
            assert same({k: v for k, v in contents(path).items() if k < f"img{lines:05d}"}, expected(range(lines)))
        assert store.check(deep=True).ok
        add_rows(store, range(20))
        store.commit(entries_for(range(20)))
        assert same(contents(path), expected(range(20)))


def test_leftovers_of_dead_processes_are_swept_after_a_day(tmp_path):
    path = tmp_path / "a.features"
    build(path)
    dead = [path / n for n in ("tmp/x.h5", "index/.rows.npz.1.tmp", "index/gathered-1.npy", ".store.json.1.tmp")]
    for place in dead:
        place.write_bytes(b"half")
    keep = [next((path / "index").glob("rows-*.run")), path / "store.json"]
    for place in keep:
        os.utime(place, (0, 0))
    FeatureStore.create(path, SPEC)
    assert all(p.exists() for p in dead), "they may be a live writer's"
    for place in dead:
        os.utime(place, (0, 0))
    FeatureStore.create(path, SPEC)
    assert not any(p.exists() for p in dead) and all(p.exists() for p in keep)
