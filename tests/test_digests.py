"""The cache of file digests: never a stale hit, whatever the clocks do; any file instead of it is an empty cache."""

from __future__ import annotations

import os
import struct
import threading
import time
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featcache.sources import FileStat
from featcache.store import digests as module
from featcache.store.digests import DigestCache

SECOND = 1_000_000_000
OLD = 1_600_000_000 * SECOND


def stat(path="a", size=1, mtime=OLD, ctime=OLD, inode=1, device=1):
    return FileStat(path, size, mtime, ctime, inode, device)


def digest(i=1):
    return bytes([i % 256, i // 256 % 256]) * 16


@pytest.fixture
def path(tmp_path):
    return tmp_path / "index" / "digests.bin"


def filled(path, numbers, **options):
    cache = DigestCache(path)
    for i in numbers:
        cache.put(stat(f"f{i}", **options), digest(i))
    cache.save()
    return cache


def known(path, numbers):
    cache = DigestCache(path)
    found, digests = cache.get_many([stat(f"f{i}") for i in numbers])
    right = np.stack([np.frombuffer(digest(i), "u1") for i in numbers])
    assert (digests[found] == right[found]).all() and not digests[~found].any()
    return found


# ------------------------------------------------------------------------------------------------ what it remembers


def test_what_was_put_is_found_again_by_everything_that_stat_says(path):
    cache = DigestCache(path)
    assert cache.get(stat()) is None
    cache.put(stat(), digest())
    assert cache.get(stat()) == digest()
    cache.save()
    again = DigestCache(path)
    assert again.get(stat()) == digest()
    others = [
        stat(path="b"),
        stat(size=2),
        stat(mtime=OLD + 1),
        stat(ctime=OLD + 1),
        stat(inode=2),
        stat(device=2),
        stat(inode=2**63),
    ]
    assert not again.get_many(others)[0].any()
    found, digests = again.get_many([None, stat(), None, stat("b")])
    assert found.tolist() == [False, True, False, False] and digests[1].tobytes() == digest()
    assert again.get_many([])[1].shape == (0, 32)


def test_odd_numbers_and_names(path):
    odd = [
        stat("inode", inode=2**64 - 1, device=2**64 - 1),
        stat("before 1970", mtime=-5, ctime=-7),
        stat("empty", size=0),
        stat("a\nb\0ü\\xff", size=2**40),
        stat(""),
    ]
    cache = DigestCache(path)
    for i, each in enumerate(odd):
        cache.put(each, digest(i))
    cache.save()
    assert [DigestCache(path).get(each) for each in odd] == [digest(i) for i in range(len(odd))]
    assert DigestCache(path).get(stat("year 2500", mtime=2**64, ctime=2**64)) is None
    cache.put(stat("year 2500", mtime=2**64, ctime=2**64), digest())
    assert cache.get(stat("year 2500", mtime=2**64, ctime=2**64)) is None, "the future is not trusted"


def test_a_file_that_changed_replaces_its_entry(path):
    filled(path, range(5))
    filled(path, range(5), size=2)
    assert not known(path, range(5)).any()
    assert sum(len(r) for r in DigestCache(path)._disk_runs.values()) == 5


def test_nothing_new_writes_nothing(path):
    DigestCache(path).save()
    assert not path.parent.exists()
    filled(path, range(3))
    before = path.stat().st_mtime_ns, path.stat().st_ino
    cache = DigestCache(path)
    assert cache.get_many([stat(f"f{i}") for i in range(3)])[0].all()
    cache.save()
    assert (path.stat().st_mtime_ns, path.stat().st_ino) == before
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no probe of the clock is left behind"


def test_runs_are_merged_upwards_and_one_entry_rewrites_the_smallest_only(path, monkeypatch):
    monkeypatch.setattr(module, "_CAPACITY", (4, 16, 64, 10_000))
    rng = np.random.default_rng(0)
    have = 0
    for size in rng.integers(1, 9, 60).tolist():
        filled(path, range(have, have + size))
        have += size
        runs = DigestCache(path)._disk_runs
        assert all(len(run) <= module._CAPACITY[level] for level, run in runs.items())
        assert known(path, range(have)).all()
    names = {p.name: p.stat().st_ino for p in path.parent.iterdir()}
    filled(path, [have])
    filled(path, [have + 1])
    after = {p.name: p.stat().st_ino for p in path.parent.iterdir()}
    largest = f"{path.name}.3"
    assert names[largest] == after[largest] and known(path, range(have + 2)).all()


def test_many_new_entries_are_no_python_objects_for_long(path, monkeypatch):
    monkeypatch.setattr(module, "_SPILL", 10)
    cache = DigestCache(path)
    for i in range(137):
        cache.put(stat(f"f{i}"), digest(i))
        assert len(cache._fresh) < 10
    cache.put(stat("f3", size=7), digest(99))
    assert cache.get(stat("f3")) is None and cache.get(stat("f3", size=7)) == digest(99)
    cache.save()
    assert known(path, [i for i in range(137) if i != 3]).all()


def test_ten_million_entries_are_opened_not_read(path):
    """A quarter of a million, in fact, and no allocation that grows with them."""
    n = 1 << 18
    rng = np.random.default_rng(0)
    rows = np.zeros(n, dtype=module._ROW)
    rows["day"] = 30_000
    path.parent.mkdir()
    keys = np.sort(rng.integers(0, 2**64, n, dtype="u8"))
    data = module._file_of(module._Run(keys, rows, None))
    path.with_name(path.name + ".2").write_bytes(data)
    tracemalloc.start()
    cache = DigestCache(path)
    assert cache.get(stat()) is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200_000 < len(data) / 100
    cache.put(stat(), digest())
    cache.save()
    assert path.stat().st_size < 1000 and DigestCache(path).get(stat()) == digest()


def test_entries_that_nobody_asks_for_are_dropped_and_others_marked(path, monkeypatch):
    day, now = 86_400 * SECOND, time.time_ns()
    filled(path, range(10))
    clock = [now]
    monkeypatch.setattr(module.time, "time_ns", lambda: clock[0])
    for days in range(0, 400, 25):
        clock[0] = now + days * day
        cache = DigestCache(path)
        assert cache.get_many([stat(f"f{i}") for i in range(5)])[0].all(), days
        cache.save()
    filled(path, [77])
    assert known(path, range(10)).tolist() == [True] * 5 + [False] * 5


# ------------------------------------------------------------------------------------------------------- racily clean


def test_files_that_changed_just_now_or_in_the_future_are_not_remembered(path):
    path.parent.mkdir()
    device = path.parent.stat().st_dev
    now = time.time_ns()
    cache = DigestCache(path)
    ages = {"now": 0, "1 s": 1, "1.9 s": 1.9, "2.2 s": 2.2, "future": -1000, "old": 10**6}
    for name, age in ages.items():
        cache.put(stat(name, mtime=int(now - age * SECOND), device=device), digest())
        cache.put(stat("c" + name, ctime=int(now - age * SECOND), device=device), digest())
        cache.put(stat("other " + name, ctime=int(now - age * SECOND), device=device + 1), digest())
    stats = {n: int(now - a * SECOND) for n, a in ages.items()}
    mine = [n for n in ages if cache.get(stat(n, mtime=stats[n], device=device))]
    changed = [n for n in ages if cache.get(stat("c" + n, ctime=stats[n], device=device))]
    elsewhere = [n for n in ages if cache.get(stat("other " + n, ctime=stats[n], device=device + 1))]
    assert mine == changed == ["2.2 s", "old"] and elsewhere == ["old"]


def test_a_host_clock_that_is_ahead_of_the_file_system_s(path, monkeypatch):
    path.parent.mkdir()
    device, real = path.parent.stat().st_dev, time.time_ns
    monkeypatch.setattr(module.time, "time_ns", lambda: real() + 3600 * SECOND)
    cache = DigestCache(path)
    cache.put(stat("fresh", ctime=real(), device=device), digest())
    cache.put(stat("old", ctime=real() - 10 * SECOND, device=device), digest())
    assert cache.get_many([stat("fresh", ctime=real(), device=device)])[0].tolist() == [False]
    assert len(cache._new_runs[0]) == 1


def test_now_is_when_the_cache_was_opened_not_when_the_file_had_been_read(path, monkeypatch):
    path.parent.mkdir()
    device, real, later = path.parent.stat().st_dev, time.time_ns, [0]
    monkeypatch.setattr(module.time, "time_ns", lambda: real() + later[0])
    cache = DigestCache(path)
    changed = real() - SECOND
    later[0] = 600 * SECOND  # a slow read
    cache.put(stat(ctime=changed, device=device), digest())
    assert cache.get(stat(ctime=changed, device=device)) is None


class World:
    """A file server with a coarse clock of its own, a host whose clock is off, and one file of one size."""

    def __init__(self, skew, granularity):
        self.time, self.skew, self.granularity = 1_700_000_000 * SECOND, skew, granularity
        self.content, self.mtime, self.ctime, self.inode = 0, self.stamp(), self.stamp(), 1

    def stamp(self):
        return self.time // self.granularity * self.granularity

    def host(self):
        return self.time + self.skew

    def stat(self, device=1):
        return FileStat("f", 10, self.mtime, self.ctime, self.inode, device)


CHANGES = ("write", "write and put the old time back", "replace", "touch into the future", "touch into the past")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["wait", "scan", "scan and change meanwhile", *CHANGES]),
        st.sampled_from([1, 10**6, 10**8, SECOND // 2, SECOND, 2 * SECOND, 3 * SECOND, 61 * SECOND]),
    ),
    min_size=3,
    max_size=25,
)


def change(world, how):
    before = world.mtime
    world.content += 1
    world.mtime = world.ctime = world.stamp()
    if how == "replace":
        world.inode = 1 if world.content % 2 else 2
    if how == "write and put the old time back":
        world.mtime = before
    if how == "touch into the future":
        world.mtime = world.time + 10**12
    if how == "touch into the past":
        world.mtime = OLD


@settings(deadline=None, max_examples=150)
@given(
    steps=STEPS,
    skew=st.sampled_from([0, 1, -1, 5, -5, 3600, -3600]),
    granularity=st.sampled_from([1, 4_000_000, SECOND, 2 * SECOND]),
    same_device=st.booleans(),
)
def test_never_a_stale_hit_on_a_simulated_file_server(tmp_path_factory, steps, skew, granularity, same_device):
    """Whatever happens between and during runs, a hit has the content that the file has now."""
    path = tmp_path_factory.mktemp("cache") / "digests.bin"
    if not same_device:
        skew = max(-SECOND * 3600, min(skew, 50))  # another clock may be off by up to a minute: that is the promise
    world = World(skew * SECOND, granularity)

    class Clocked(DigestCache):
        """Sees the simulated clocks: the host's, and that of the file system by touching a file."""

        def _now(self):
            if self._clock is None:
                opened = min(self._opened, world.host())
                touched = world.stamp() if same_device else world.host()
                self._clock = opened + min(0, touched - world.host()), 1 if same_device else 2
            return self._clock

    hits = 0
    for step, pause in steps:
        if step in CHANGES:
            change(world, step)
        elif step.startswith("scan"):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(module.time, "time_ns", world.host)
                cache = Clocked(path)
                before = world.stat()
                hit = cache.get(before)
                if hit is not None:
                    hits += 1
                    assert hit == digest(world.content), "stale"
                else:
                    read = world.content
                    world.time += pause
                    if step != "scan":
                        change(world, CHANGES[pause % len(CHANGES)])
                    if world.stat() == before:
                        cache.put(before, digest(read))
                cache.save()
        world.time += pause


def test_a_real_file_rewritten_in_place_at_once_with_its_time_put_back(path, tmp_path):
    file = tmp_path / "f"
    file.write_bytes(b"1")
    cache = DigestCache(path)

    def state():
        s = file.stat()
        return FileStat(str(file), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino, s.st_dev)

    before = state()
    cache.put(before, digest(1))
    file.write_bytes(b"2")
    os.utime(file, ns=(before.mtime_ns, before.mtime_ns))
    assert cache.get(state()) is None


# ---------------------------------------------------------------------------------------- what may be there instead


def test_any_damage_is_a_miss_never_a_wrong_digest(path):
    filled(path, range(600))
    original = path.read_bytes()
    rng = np.random.default_rng(0)
    for place in rng.integers(len(original), size=150).tolist():
        data = bytearray(original)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        found = known(path, range(600))
        assert not found.all()
    for cut in (0, 1, 31, 32, 33, 1000, len(original) - 1):
        path.write_bytes(original[:cut])
        assert not known(path, range(600)).any()
    path.write_bytes(original + b"\0")
    assert not known(path, range(600)).any()


def test_damaged_groups_are_not_given_new_checksums_by_a_merge(path):
    filled(path, range(600))
    data = bytearray(path.read_bytes())
    data[-50] ^= 1  # in the last group's rows
    path.write_bytes(data)
    filled(path, [1000])
    found = known(path, range(600))
    assert 0 < (~found).sum() <= 256 and known(path, [1000]).all()


@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"x",
        b"FCDIGST1",
        b"FCDIGST1" + b"\xff" * 24,
        b"FCDIGST1" + struct.pack("<Q", 2**63) + b"\0" * 1000,
        b"\x80\x04cposix\nsystem\n(S'touch pwned'\ntR.",
        b"PK\x03\x04" + b"\0" * 100,
        b"{}",
    ],
)
def test_foreign_and_hostile_files_are_an_empty_cache_and_are_replaced(path, junk):
    path.parent.mkdir()
    for level in ("", ".1", ".4"):
        path.with_name(path.name + level).write_bytes(junk)
    assert not known(path, range(3)).any()
    filled(path, range(3))
    assert known(path, range(3)).all()


def test_what_is_no_file_is_an_empty_cache(path):
    path.mkdir(parents=True)
    os.mkfifo(path.with_name(path.name + ".1"))
    path.with_name(path.name + ".2").symlink_to(path.parent / "nowhere")
    assert not known(path, range(3)).any()
    filled(path, range(3))  # cannot be written there: no error either
    assert not known(path, range(3)).any()


def test_a_sparse_giant_is_not_read(path):
    path.parent.mkdir()
    with path.open("wb") as file:
        count = 1 << 27
        groups = count // 256
        file.write(struct.pack("<8sQ16s", b"FCDIGST1", count, b"\0" * 16))
        file.truncate(32 + 8 * groups + count * (8 + module._ROW.itemsize))
    start = time.perf_counter()
    assert not known(path, range(3)).any()
    assert time.perf_counter() - start < 2


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_store_that_cannot_be_written(path):
    path.parent.mkdir()
    path.parent.chmod(0o500)
    cache = filled(path, range(3))
    assert cache.get(stat("f1")) == digest(1)


def test_a_failing_disk_is_no_error_and_the_entries_are_kept_for_the_next_try(path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(28, "No space left on device")

    cache = filled(path, range(3))
    cache.put(stat("f9"), digest(9))
    with monkeypatch.context() as patch:
        patch.setattr(module, "publish_bytes", refuse)
        cache.save()
    assert known(path, range(3)).all() and not known(path, [9]).any()
    cache.save()
    assert known(path, [0, 1, 2, 9]).all()


def test_concurrent_savers_lose_entries_at_most(path, monkeypatch):
    monkeypatch.setattr(module, "_CAPACITY", (8, 64, 10_000))
    errors = []

    def work(first):
        try:
            for start in range(first, first + 300, 3):
                filled(path, range(start, start + 3))
                known(path, range(start - 30 if start >= 30 else 0, start + 3))
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(1000 * i,)) for i in range(3)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert not errors
    assert known(path, range(300)).any()
    assert not [p for p in path.parent.iterdir() if p.name.endswith(".tmp")]
