"""The threads of a stream, and the memory that its pixels lie in."""

from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError, wait

import numpy as np
import pytest
import torch

from featcache import Backbone, Preprocess
from featcache.backbone.arguments import parse_mode
from featcache.backbone.crew import settle
from featcache.backbone.joined import copy_whole
from featcache.errors import BackboneError
from featcache.extraction.pixels import PixelMemory
from featcache.extraction.reading import Reading
from featcache.extraction.team import Team


class Held:
    """Tasks that note that they began, and wait until they are released."""

    def __init__(self):
        self.begun, self.inside, self.most = [], 0, 0
        self.go, self._lock = threading.Event(), threading.Lock()

    def __call__(self, name):
        with self._lock:
            self.begun.append(name)
            self.inside += 1
            self.most = max(self.most, self.inside)
        assert self.go.wait(10)
        with self._lock:
            self.inside -= 1
        return name


def until(condition, seconds=5.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.001)
    assert condition()


# -- order ---------------------------------------------------------------------------------------------------------


def test_urgent_tasks_come_first_and_each_kind_in_its_order():
    held, done = Held(), []
    with Team(1) as team:
        team.later(held, "first")
        until(lambda: held.begun)
        others = [team.later(done.append, f"later {i}") for i in range(3)]
        urgent = [team.submit(done.append, f"urgent {i}") for i in range(3)]
        held.go.set()
        wait([*others, *urgent])
    assert done == [*(f"urgent {i}" for i in range(3)), *(f"later {i}" for i in range(3))]


def test_helpers_leave_what_is_urgent():
    held = Held()
    with Team(1, helpers=2) as team:
        tasks = [team.submit(held, "urgent") for _ in range(3)] + [team.later(held, "other") for _ in range(4)]
        until(lambda: len(held.begun) == 3)
        time.sleep(0.02)
        assert sorted(held.begun) == ["other", "other", "urgent"]
        held.go.set()
        wait(tasks)
    assert sorted(held.begun) == ["other"] * 4 + ["urgent"] * 3


def test_no_more_urgent_tasks_at_once_than_allowed():
    held = Held()
    with Team(3) as team:
        team.urgent_at_once = 1
        tasks = [team.submit(held, "urgent") for _ in range(4)]
        until(lambda: held.begun)
        time.sleep(0.02)
        assert held.most == 1
        other = team.later(lambda: "other")
        assert other.result(5) == "other", "the threads that may not compute still read"
        held.go.set()
        wait(tasks)
    assert held.most == 1 and len(held.begun) == 4


def test_all_work_is_done_whoever_asks():
    with Team(2, helpers=1) as team:
        team.grow(3)
        team.grow(2)
        assert team.helpers == 3
        futures = [(team.submit if i % 3 else team.later)(lambda i=i: i * i) for i in range(2000)]
        assert [f.result(10) for f in futures] == [i * i for i in range(2000)]


def test_errors_reach_whoever_waits_and_the_thread_goes_on():
    def fails():
        raise KeyError("mine")

    with Team(1) as team:
        with pytest.raises(KeyError, match="mine"):
            team.submit(fails).result(5)
        assert team.submit(int, "7").result(5) == 7


# -- the end -------------------------------------------------------------------------------------------------------


def test_the_end_cancels_what_was_not_begun_and_whoever_waits_goes_on():
    held = Held()
    team = Team(1)
    running = team.later(held, "running")
    until(lambda: held.begun)
    waiting = [team.submit(held, "never"), team.later(held, "never")]
    woken = threading.Thread(target=wait, args=(waiting,))
    woken.start()
    waiting[1].cancel()
    team.shutdown(wait=False)
    woken.join(5)
    assert not woken.is_alive(), "concurrent.futures.wait must hear of it"
    held.go.set()
    team.shutdown()
    assert running.result(5) == "running" and held.begun == ["running"]
    with pytest.raises(CancelledError):
        waiting[0].result(5)
    with pytest.raises(RuntimeError, match="ended"):
        team.submit(int)


def test_a_team_leaves_no_threads():
    for _ in range(5):
        with Team(3, helpers=2) as team:
            team.submit(int).result(5)
    assert not [t for t in threading.enumerate() if t.name == "featcache-team"]


# -- PyTorch's threads -----------------------------------------------------------------------------------------------


def test_lent_threads_compute_on_one_core_each_and_the_caller_keeps_its_own():
    before = torch.get_num_threads()
    held = threading.Barrier(3)

    def threads():
        held.wait(10)
        return torch.get_num_threads()

    with Team(3) as team:
        settle(team)
        settle(team)  # a second time, when fewer may compute
        assert team.urgent_at_once == min(3, before)
        team.urgent_at_once = 3
        assert [f.result(10) for f in [team.submit(threads) for _ in range(3)]] == [1, 1, 1]
    assert torch.get_num_threads() == before


def test_teams_that_begin_at_the_same_time_leave_pytorchs_number_alone():
    before, found = torch.get_num_threads(), []

    def stream():
        with Team(2) as team:
            settle(team)
            found.append((torch.get_num_threads(), team.urgent_at_once))

    for _ in range(20):
        threads = [threading.Thread(target=stream) for _ in range(4)]
        [t.start() for t in threads]
        [t.join(20) for t in threads]
    fresh = threading.Thread(target=lambda: found.append((torch.get_num_threads(), min(2, before))))
    fresh.start()
    fresh.join()
    assert set(found) == {(before, min(2, before))} and len(found) == 81


def test_while_a_thread_still_reads_pytorchs_number_is_as_it_was():
    before, held, seen = torch.get_num_threads(), Held(), []
    with Team(2) as team:
        team.later(held, "a slow read")
        until(lambda: held.begun)
        starting = threading.Thread(target=settle, args=(team,))
        starting.start()
        time.sleep(0.05)
        fresh = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
        fresh.start()
        fresh.join()
        held.go.set()
        starting.join(10)
    assert seen == [before] == [torch.get_num_threads()]


def test_an_error_stops_the_chunks_that_were_not_begun(monkeypatch):
    backbone, pixels = small(), noise(64)
    backbone.encode(pixels[:4])
    runner = backbone._network.engines.runner(parse_mode("fp32"), torch.device("cpu"), "auto", (3, 64, 64))
    calls = []

    def failing(self, x):
        calls.append(len(x))
        raise RuntimeError("broken chunk")

    monkeypatch.setattr(type(runner.module), "forward", failing)
    with pytest.raises(RuntimeError, match="broken chunk"):
        backbone.encode([pixels] * 20)
    begun = len(calls)
    time.sleep(0.05)
    assert len(calls) == begun < 100


# -- memory ----------------------------------------------------------------------------------------------------------


def test_memory_that_is_given_back_is_taken_again_and_no_other():
    memory = PixelMemory()
    one, two = memory.take((2, 3)), memory.take((2, 3))
    one[...], two[...] = 1, 2
    assert one.dtype == np.uint8 and not np.shares_memory(one, two)
    memory.give_back(one)
    memory.give_back(one)  # a second time means nothing
    again, new = memory.take((2, 3)), memory.take((2, 3))
    assert np.shares_memory(again, one) and not np.shares_memory(new, one) and not np.shares_memory(new, two)
    assert (two == 2).all()
    foreign = np.zeros((2, 3), np.uint8)
    memory.give_back(foreign)
    assert not np.shares_memory(memory.take((2, 3)), foreign)
    assert memory.take((3, 2)).shape == (3, 2)


def test_pixels_in_memory_of_their_own_are_the_same():
    class Source:
        version, ids = None, tuple(map(str, range(40)))

        def read(self, i):
            return bytes([i])

    def decode(payload, key, numbers):
        return np.full((len(numbers), 2, 2, 3), payload[0], np.uint8)

    from featcache.extraction.gauge import Gauge

    memory, seen, places = PixelMemory(), [], set()
    found = Reading(Source(), team=lambda: Team(2), window=4, gauge=Gauge(2), memory=memory)
    for read in found.results(range(40), decode=decode):
        seen.append(int(read.pixels.max()))
        assert (read.pixels == read.index).all()
        places.add(read.pixels.ctypes.data)
        memory.give_back(read.pixels)
    assert seen == list(range(40))
    assert len(places) <= 6, "no more of it than was in flight"


def test_many_small_arrays_are_few_pieces_of_memory():
    memory = PixelMemory()
    arrays = [memory.take((1, 4, 4, 3)) for _ in range(70_000)]  # a process may have 65,530 pieces
    assert len({a.ctypes.data for a in arrays}) == len(arrays)


@pytest.mark.parametrize("side", [4, 800])
def test_arrays_are_copied_whatever_their_size_order_and_rights(side):
    pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
    pixels.flags.writeable = False
    for array in (pixels, pixels[::-1, ::2], pixels.transpose(1, 0, 2)):
        to = np.zeros(array.shape, np.uint8)
        copy_whole(array, to)
        assert np.array_equal(to, array)


def test_pixels_in_several_places_count_as_one_array():
    rng = np.random.default_rng(0)
    backbone = Backbone("squeezenet1_1", weights="random", preprocess={"resize": 64, "crop": 64})
    parts = [rng.integers(0, 256, (n, 64, 64, 3), dtype="u1") for n in (1, 3, 1, 2)]
    whole = backbone.encode(np.concatenate(parts))["features.12.cat"]
    assert np.array_equal(backbone.encode(parts)["features.12.cat"], whole)
    streamed = [rows["features.12.cat"] for rows in backbone.stream([parts, parts[:1], np.concatenate(parts)])]
    assert np.array_equal(np.concatenate(streamed), np.concatenate([whole, whole[:1], whole]))
    with pytest.raises(BackboneError, match=r"expected a uint8 array"):
        backbone.encode([parts[0], parts[1][:, :32]])
    with pytest.raises(BackboneError, match=r"expected a uint8 array"):
        backbone.encode([])


# -- streams ---------------------------------------------------------------------------------------------------------


def small(**options):
    return Backbone("squeezenet1_1", weights="random", preprocess={"resize": 64, "crop": 64}, **options)


def noise(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 64, 64, 3), dtype="u1")


def test_two_streams_on_one_team_and_one_that_nobody_finishes():
    backbone, pixels = small(), noise(40)
    expected = backbone.encode(pixels)["features.12.cat"]
    with Team(2) as team:
        for _ in range(2):
            rows = list(backbone.stream(np.array_split(pixels, 5), threads=team))
            assert np.array_equal(np.concatenate([r["features.12.cat"] for r in rows]), expected)
        unfinished = backbone.stream(np.array_split(pixels, 10), threads=team)
        next(unfinished)
        unfinished.close()
        assert team.submit(int, "7").result(5) == 7


@pytest.mark.parametrize("message", ["broken chunk", "out of memory: DefaultCPUAllocator"])
def test_an_error_in_a_chunk_reaches_the_caller_or_halves_the_chunk(monkeypatch, message):
    backbone, pixels = small(), noise(30)
    expected = backbone.encode(pixels)["features.12.cat"]
    runner = backbone._network.engines.runner(parse_mode("fp32"), torch.device("cpu"), "auto", (3, 64, 64))
    original, calls = type(runner.module).forward, []

    def failing(self, x):
        calls.append(len(x))
        if len(x) == runner.chunk and len(calls) > 3:
            raise RuntimeError(message)
        return original(self, x)

    monkeypatch.setattr(type(runner.module), "forward", failing)
    with Team(2) as team:
        streamed = backbone.stream([pixels], threads=team)
        if "memory" not in message:
            with pytest.raises(RuntimeError, match="broken chunk"):
                list(streamed)
        else:
            assert np.allclose(next(streamed)["features.12.cat"], expected, rtol=1e-4, atol=1e-5)
            assert backbone.engine_report()["chunk"] == runner.chunk // 2
        assert team.submit(int, "7").result(5) == 7


def test_a_network_that_runs_in_one_thread_only_gets_one_batch_at_a_time():
    seen = {"inside": 0, "most": 0}

    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = torch.nn.Conv2d(3, 4, 3)

        def forward(self, x):
            if x.sum() > 1e9:  # cannot be traced
                return x
            seen["inside"] += 1
            seen["most"] = max(seen["most"], seen["inside"])
            time.sleep(0.01)
            y = self.body(x).mean((2, 3))
            seen["inside"] -= 1
            return y

    torch.manual_seed(0)
    model = Own()
    backbone = Backbone(model, version="1", nodes="body", preprocess=Preprocess(resize=64, crop=64))
    pixels = noise(24)
    expected = backbone.encode(pixels)["body"]
    with Team(2) as team:
        rows = list(backbone.stream(np.array_split(pixels, 8), threads=team))
    assert seen["most"] == 1 and np.array_equal(np.concatenate([r["body"] for r in rows]), expected)


def test_lists_where_none_may_be_are_refused():
    backbone, pixels = small(), noise(2)
    for call in (lambda: backbone.mixed_mode([pixels, pixels]), lambda: backbone.encode([[pixels], [pixels]])):
        with pytest.raises(BackboneError, match="expected a uint8 array"):
            call()
