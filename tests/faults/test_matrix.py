"""Every operation of a store, with everything that can go wrong going wrong: a seeded part here, all of it when slow.

benchmarks/bench_faults.py runs the same functions and writes down the figures.
"""

import collections
import itertools

import numpy as np
import pytest
from builders import in_child, result_of
from injected import ACCIDENTS, Unavailable, small_disk
from operations import OPERATIONS, Step
from traced import calls_of, require_strace

from featcache.store import FeatureStore

CASES = list(itertools.product(OPERATIONS, ACCIDENTS))


def wrong(outcomes):
    return [o for o in outcomes if o["problems"]][:3]


def run(module, call, *arguments):
    """All of these fork, which a process that has imported torch had better not."""
    return result_of(in_child(call, *arguments, module=module, timeout=290))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_calls_of_the_disk_failing_or_fatal(operation):
    chosen = np.random.default_rng(len(operation)).permutation(len(ACCIDENTS) - 2)[:2].tolist()
    outcomes = run("injected", "some_calls", operation, [ACCIDENTS[i] for i in [*chosen, -2]], 3)
    assert not wrong(outcomes)
    assert {"raised", "killed", "done"} == {o["outcome"] for o in outcomes}


@pytest.mark.slow
@pytest.mark.parametrize(("operation", "accident"), CASES, ids=str)
def test_each_call_of_the_disk_failing_or_fatal(operation, accident):
    for form in range(4):
        outcomes = run("injected", "every_call", operation, *accident, form)
        assert len(outcomes) >= 3 and outcomes[-1]["outcome"] == "done" and not wrong(outcomes)


def _strace():
    try:
        require_strace()
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("operation", OPERATIONS)
def test_system_calls_failing_or_fatal(operation):
    _strace()
    outcomes = run("traced", "every_system_call", operation, 0, {"compact": 0.015, "gc": 0.015}.get(operation, 0.05))
    assert outcomes and not wrong(outcomes)


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("form", range(4))
def test_each_system_call_failing_or_fatal(operation, form):
    _strace()
    outcomes = run("traced", "every_system_call", operation, form)
    assert not wrong(outcomes)
    seen = collections.Counter((o["accident"], o["outcome"]) for o in outcomes)
    assert seen["kill", "killed"] >= 15 and seen["EIO", "raised"] >= 10 and seen["ENOSPC", "raised"] >= 5, seen


@pytest.mark.parametrize("operation", OPERATIONS)
def test_files_that_may_not_grow(operation):
    outcomes = run("injected", "limited_files", operation, 1, [0, 100, 8192, 1 << 20])
    assert not wrong(outcomes) and outcomes[-1]["outcome"] == "done"


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_file_system_without_room(operation):
    try:
        with small_disk():
            pass
    except Unavailable as error:
        pytest.skip(str(error))
    outcomes = run("injected", "full_disk", operation, 2, [0, 8192, 1 << 20])
    assert not wrong(outcomes) and outcomes[-1]["outcome"] == "done"


@pytest.mark.slow
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("form", range(4))
def test_every_amount_of_room(operation, form):
    test_a_file_system_without_room(operation)
    outcomes = run("injected", "limited_files", operation, form) + run("injected", "full_disk", operation, form)
    assert not wrong(outcomes)


def test_killed_writers_are_replaced_and_nothing_is_lost():
    found = run("writers", "massacre", 6, 0, 8, 1)
    assert not found["problems"] and not found["crashed writers"], found
    assert found["kills"] == 14 and found["acknowledged rows"] > 14


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
def test_many_killed_writers(seed):
    found = run("writers", "massacre", 60, seed)
    assert not found["problems"] and not found["crashed writers"], found


@pytest.mark.parametrize("how", ["flip", "cut"])
def test_each_kind_of_file_harmed(how, count=18, apart=False):
    found = run("harm", "harm_all", how, count, 0, apart)
    assert not found["wrong"] and found["detected"] and found["harmless"], found


@pytest.mark.slow
@pytest.mark.parametrize(("how", "count"), [("flip", 1000), ("cut", 300)])
def test_each_kind_of_file_harmed_often(how, count):
    test_each_kind_of_file_harmed(how, count, apart=True)


# -- the harness must be able to fail ----------------------------------------------------------------------------------


def test_a_swallowed_failure_is_caught(monkeypatch):
    from injected import every_call

    real = FeatureStore.append

    def append(self, *args, **options):
        try:
            return real(self, *args, **options)
        except OSError:
            return ""

    monkeypatch.setattr(FeatureStore, "append", append)
    bad = [o for o in every_call("append", 5, "before") if o["problems"]]
    assert {o["call"] for o in bad} >= {"write", "fsync", "link"}
    said = " ".join(p for o in bad for p in o["problems"])
    assert "acknowledged rows lost" in said and "a failing fsync was swallowed" in said


def test_an_operation_that_overwrites_in_place_is_caught(monkeypatch):
    from injected import every_call

    def overwrite(store):
        newest = store.path / "snapshots" / "main" / f"{store.snapshots()[-1]:08d}.h5"
        data = newest.read_bytes()
        newest.unlink()
        store._disk.write(newest, data)
        store._disk.fsync(newest)

    monkeypatch.setitem(OPERATIONS, "commit", lambda told, rng: Step("commit", overwrite, told))
    bad = [o for o in every_call("commit", 5, "before") if o["problems"]]
    assert bad[0]["call"] == "write" and "lost" in str(bad[0]["problems"])


def test_calls_of_a_trace_are_counted_over_all_and_kept_where_they_name_the_store(tmp_path):
    lines = [
        'openat(AT_FDCWD, "/etc/x", O_RDONLY) = 3</etc/x>',
        f'7 openat(AT_FDCWD, "{tmp_path}/a", O_RDONLY) = 3<{tmp_path}/a>',
        f"7 fsync(3<{tmp_path}/a>) = 0",
    ]
    assert calls_of(lines, tmp_path) == {"openat": [2], "fsync": [1]}
