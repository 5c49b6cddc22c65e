"""The stages of the stream: reading within limits, publishing behind, the gauge, and what pays."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from featcache.errors import ImageError, StoreError
from featcache.extraction import budget, choosing, gauge, publishing, remembered
from featcache.extraction.choosing import Trial, choose_engine, choose_mode
from featcache.extraction.gauge import STAGES, Gauge, verdict
from featcache.extraction.precision import require_same_codes, row_distances, same_nearest
from featcache.extraction.publishing import Writer
from featcache.extraction.reading import Reading
from featcache.extraction.team import Team


class Numbers:
    """A source of images that are their own number."""

    version = None

    def __init__(self, n: int, seconds: float = 0.0) -> None:
        self.ids = tuple(f"{i:06d}" for i in range(n))
        self._seconds = seconds

    def read(self, i: int) -> bytes:
        """Return the number's bytes, after a while."""
        time.sleep(self._seconds)
        return i.to_bytes(8, "little")


def decoded(payload, key, numbers):
    return np.full((len(numbers), 1, 1, 3), payload[0], "u1")


def reading(source, workers=2, window=8, cores=2):
    def team():
        return Team(cores) if workers is None else Team(0, workers)

    return Reading(source, team=team, window=window, gauge=Gauge(cores))


# -- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 1, 3, None])
def test_results_come_in_order_whatever_the_threads(workers):
    found = list(reading(Numbers(50), workers).results(range(50), decode=decoded))
    assert [r.index for r in found] == list(range(50))
    assert [int(r.pixels[0, 0, 0, 0]) for r in found] == list(range(50))


@pytest.mark.parametrize(("images", "workers"), [(18, 3), (150, 2)])
def test_no_more_images_are_in_flight_than_the_window_holds(images, workers):
    begun, taken, most = [], 0, 0

    def watched(payload, key, numbers):
        begun.append(payload)
        return decoded(payload, key, numbers)

    n, window = images, images - 10
    for _ in reading(Numbers(n), workers=workers, window=window).results(range(n), decode=watched):
        taken += 1
        most = max(most, len(begun) - taken)
    assert taken == n and most <= window


@pytest.mark.parametrize(("images", "together"), [(8, 1), (63, 1), (64, 2), (131, 4), (1000, 4)])
def test_threads_get_several_images_at_a_time_only_where_there_are_many(images, together):
    by_thread = []

    def watched(payload, key, numbers):
        by_thread.append((threading.get_ident(), int.from_bytes(payload, "little")))
        return decoded(payload, key, numbers)

    two = reading(Numbers(images), workers=2, window=136)
    found = list(two.results(range(images), decode=watched))
    assert two._together(images, 2) == together
    assert [r.index for r in found] == list(range(images))
    of = {number: thread for thread, number in by_thread}
    groups = [{of[i] for i in range(start, min(start + together, images))} for start in range(0, images, together)]
    assert all(len(threads) == 1 for threads in groups)


def test_what_no_one_foresaw_in_a_group_of_images_comes_out_once_those_before_it_have():
    def decode(payload, key, numbers):
        if int.from_bytes(payload, "little") == 70:
            raise RuntimeError("unforeseen")
        return decoded(payload, key, numbers)

    seen = []
    with pytest.raises(RuntimeError, match="unforeseen"):
        seen.extend(r.index for r in reading(Numbers(200), workers=2, window=136).results(range(200), decode=decode))
    assert seen == list(range(68))


def test_no_image_of_a_group_begins_once_nobody_wants_results():
    begun, two = [], Team(0, 2)

    def slow(payload, key, numbers):
        begun.append(payload)
        time.sleep(0.02)
        return decoded(payload, key, numbers)

    results = reading(Numbers(200), workers=2, window=136).results(range(200), decode=slow, team=two)
    assert next(results).index == 0
    results.close()
    before = len(begun)
    two.shutdown()
    assert len(begun) <= before + 2, "each thread ends the image that it has begun"


def test_only_the_views_that_are_missing_are_decoded_and_equal_images_once():
    source = Numbers(4)
    source.read = lambda i: (i // 2).to_bytes(8, "little")
    asked = []

    def noted(payload, key, numbers):
        asked.append(numbers)
        return decoded(payload, key, numbers)

    found = list(reading(source, workers=0).results(range(4), decode=noted, wanted=lambda key: (0, 2)))
    assert asked == [(0, 2), (0, 2)] and [r.pixels is None for r in found] == [False, True, False, True]
    assert found[0].numbers == (0, 2) and found[0].pixels.shape == (2, 1, 1, 3)


def test_what_cannot_be_read_or_decoded_is_a_result_with_its_reason():
    source = Numbers(3)
    original = source.read
    source.read = lambda i: original(i) if i else (_ for _ in ()).throw(OSError(5, "Input/output error"))

    def decode(payload, key, numbers):
        if payload[0] == 1:
            raise ImageError("no image")
        return decoded(payload, key, numbers)

    found = list(reading(source).results(range(3), decode=decode))
    assert [r.error for r in found] == ["cannot be read: Input/output error", "no image", ""]
    assert found[0].key is None and found[1].key is not None


def test_threads_that_wait_for_bytes_are_joined_by_others():
    start = time.perf_counter()
    list(reading(Numbers(256, seconds=0.01), workers=None, window=64, cores=1).results(range(256), decode=decoded))
    grown = time.perf_counter() - start
    assert grown < 0.75 * 256 * 0.01, "one thread alone would wait for each image in turn"


def test_a_budget_of_bytes_lets_one_giant_in_and_no_second():
    holds, most, now = budget.ByteBudget(100), 0, 0
    lock = threading.Lock()

    def work(size):
        nonlocal most, now
        with holds.hold(size):
            with lock:
                now += size
                most = max(most, now)
            time.sleep(0.005)
            with lock:
                now -= size

    threads = [threading.Thread(target=work, args=(s,)) for s in (40, 40, 40, 500, 40, 500, 60)]
    [t.start() for t in threads]
    [t.join(5) for t in threads]
    assert not any(t.is_alive() for t in threads) and most == 500


# -- publishing ----------------------------------------------------------------------------------------------------


def test_the_writer_bounds_what_waits_for_a_slow_disk(monkeypatch):
    monkeypatch.setattr(publishing, "WAITING_BYTES", 1000)
    held, free = [], threading.Event()

    class Slow:
        def append(self, keys, codes, **options):
            free.wait(5)
            held.append(len(keys))

    writer = Writer(Slow(), {}, 0.0)
    row = (np.zeros((1, 32), "u1"), {"x": np.zeros((1, 50), "f4")}, np.zeros(1, bool))
    done = []

    def feed():
        for _ in range(20):
            writer.put(*row)
            done.append(1)

    feeder = threading.Thread(target=feed)
    feeder.start()
    time.sleep(0.2)
    assert len(done) <= 7, "232 bytes each: four wait, one or two are being written"
    free.set()
    feeder.join(5)
    writer.close()
    assert sum(held) == 20


def test_rows_of_several_views_go_to_the_store_with_their_numbers():
    seen = {}

    class Store:
        def append(self, keys, codes, *, view_number, **options):
            seen["numbers"] = np.asarray(view_number).tolist()

    writer = Writer(Store(), {}, 60.0)
    writer.put(np.zeros((3, 32), "u1"), {"x": np.zeros((3, 2), "f4")}, np.zeros(3, bool), np.array([0, 1, 2], "u2"))
    writer.close()
    assert seen["numbers"] == [0, 1, 2] and writer.published == 3


@pytest.mark.parametrize("seconds", [float("inf"), 1e300, 10**400])
def test_rows_may_wait_for_ever_to_be_published(seconds):
    held = []

    class Store:
        def append(self, keys, codes, **options):
            held.append(len(keys))

    writer = Writer(Store(), {}, seconds)
    for _ in range(3):
        writer.put(np.zeros((1, 32), "u1"), {"x": np.zeros((1, 2), "f4")}, np.zeros(1, bool))
        time.sleep(0.02)
    writer.close()
    assert held == [3]


# -- the gauge -----------------------------------------------------------------------------------------------------


def test_shares_are_parts_of_the_cores_time():
    g = Gauge(2)
    g.begin()
    end = time.perf_counter() + 0.1
    spent = time.thread_time()
    while time.perf_counter() < end:
        sum(range(1000))
    g.add({"decode": (time.thread_time() - spent) * 0.75})
    shares = g.shares()
    assert set(shares) == set(STAGES) and sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert shares["decode"] > shares["model"] > 0 and shares["idle"] > 0.2, "one of two cores worked"


def test_what_was_read_ahead_counts_as_if_all_cores_had_shared_it():
    g = Gauge(2)
    g.add({"decode": 3.0})
    g.begin()
    assert g.wall == pytest.approx(1.5, abs=0.1)
    assert g.shares()["decode"] == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(
    ("shares", "blocked", "device", "expected"),
    [
        ({"decode": 0.6, "model": 0.3, "idle": 0.1}, 0.0, 0.0, "decode"),
        ({"decode": 0.2, "model": 0.7, "idle": 0.1}, 0.9, 0.0, "model"),
        ({"decode": 0.1, "model": 0.2, "idle": 0.7}, 0.8, 0.0, "read"),
        ({"decode": 0.5, "model": 0.1, "idle": 0.4}, 0.0, 0.9, "device"),
        ({"write": 0.5, "model": 0.3, "idle": 0.2}, 0.0, 0.0, "write"),
    ],
)
def test_the_verdict_names_what_holds_a_run_up(shares, blocked, device, expected):
    found = verdict({**dict.fromkeys(STAGES, 0.0), **shares}, blocked, device)
    assert found.bottleneck == expected and found.advice and str(found).startswith(f"{expected} ")
    assert set(gauge._ADVICE) >= {expected}


# -- what pays -----------------------------------------------------------------------------------------------------


@pytest.fixture
def private(monkeypatch, tmp_path):
    monkeypatch.setattr(remembered, "_path", lambda: tmp_path / "timings.json")


def trial(noise=1e-4, mixed=None, rows=32, seconds=2e-4):
    """Codes that are the pixels; "bf16" is faster and noisy, what `mixed` names a little less of both."""
    pixels = np.random.default_rng(0).integers(0, 256, (rows, 4, 4, 3), dtype="u1")

    def encode(pixels, mode):
        codes = pixels.reshape(len(pixels), -1).astype("f4") / 255
        time.sleep(len(pixels) * seconds * {"fp32": 1.0, "bf16": 0.2}.get(mode, 0.4))
        scale = {"fp32": 0.0, "bf16": noise}.get(mode, 1e-4)
        return {"x": codes + scale * np.random.default_rng(1).normal(size=codes.shape)}

    exact = encode(pixels, "fp32")
    return Trial(encode, pixels, exact, lambda mode: mixed, f"t{noise}{mixed}", "processor")


def choose(monkeypatch, n, t, before=None, possible=("bf16",), precision="tolerance"):
    monkeypatch.setattr(choosing, "faster_modes", lambda device: list(possible))
    return choose_mode(precision, n, lambda: t, device="cpu", used_before=before)


def test_the_fastest_mode_within_the_tolerance_is_chosen(monkeypatch, private):
    found = choose(monkeypatch, 10**6, trial())
    assert found.mode == "bf16" and found.worst_cosine > 0.998 and found.speedup > 1.5 and found.same_nearest == 1.0


def test_layers_are_kept_in_fp32_where_the_whole_network_fails(monkeypatch, private):
    assert choose(monkeypatch, 10**6, trial(0.3)).mode == "fp32"
    found = choose(monkeypatch, 10**6, trial(0.3, "bf16-except:stem"))
    assert found.mode == "bf16-except:stem" and "need it" in found.reason
    assert choose(monkeypatch, 2000, trial(0.3, "bf16-except:stem")).mode == "fp32", "2,000 do not repay the choice"


def test_few_images_do_not_repay_a_trial(monkeypatch, private):
    found = choose(monkeypatch, 100, None)
    assert found.mode == "fp32" and "100 images do not repay" in found.reason


def test_pinned_and_exact_classes_need_no_trial(monkeypatch, private):
    assert choose(monkeypatch, 10**6, None, precision="exact").mode == "fp32"
    assert choose(monkeypatch, 10, None, precision="bf16").mode == "bf16"


def test_a_store_keeps_its_mode_where_it_can(monkeypatch, private):
    assert choose(monkeypatch, 1, trial(), before="fp32", possible=("bf16",)).mode == "fp32"
    assert choose(monkeypatch, 1, trial(), before="bf16").mode == "bf16"
    assert choose(monkeypatch, 1, trial(), before="bf16-except:a").mode == "bf16-except:a"
    assert choose(monkeypatch, 1, trial(0.3), before="bf16").mode == "fp32", "these images do not bear it"
    assert choose(monkeypatch, 1, trial(), before="fp16").mode == "fp32", "this machine cannot"
    assert choose(monkeypatch, 1, None, before="bf16").mode == "fp32", "nothing to try it on"


def test_figures_of_a_machine_are_measured_once(private):
    calls = []

    def measure():
        calls.append(1)
        return 1.23456

    before = remembered.seconds_measuring()
    assert remembered.remembered("a", "m", measure) == remembered.remembered("a", "m", measure) == 1.235
    assert remembered.seconds_measuring() > before, "a plan does not count what its run will know"
    assert remembered.remembered("a", "other", measure) == 1.235 and len(calls) == 2


def test_a_user_without_a_home_has_no_memory(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(remembered, "cache_folder", no_home)
    assert remembered.remembered("a", "m", lambda: 2.0) == 2.0
    assert remembered.remembered("a", "m", lambda: 3.0) == 3.0


def test_what_another_run_measured_meanwhile_counts(private):
    def measure():
        remembered.remembered("a", "m", lambda: 7.0)
        return 1.0

    assert remembered.remembered("a", "m", measure) == remembered.remembered("a", "m", lambda: 2.0) == 7.0


def test_the_memory_keeps_the_newest_figures(private, monkeypatch):
    monkeypatch.setattr(remembered, "_MOST", 3)
    for i in range(10):
        remembered.remembered(f"{i}", "m", lambda: 1.0)
    assert len(remembered._known()) == 4 and remembered.remembered("9", "m", lambda: 2.0) == 1.0


@pytest.mark.parametrize("content", ["", "[]", "{", '{"x": "y"}', "null", pytest.param("[" * 100_000, id="deep")])
def test_a_damaged_memory_is_measured_anew(private, content):
    remembered._path().write_text(content)
    assert remembered.remembered("a", "m", lambda: 2.0) == 2.0
    assert remembered.remembered("a", "m", lambda: 3.0) == 2.0


def test_compiling_is_for_very_many_images():
    assert choose_engine("auto", 300, lambda: 1 / 0) == "auto"
    assert choose_engine("auto", 20_000, lambda: 0.003) == "auto"
    assert choose_engine("auto", 500_000, lambda: 0.01) == "compiled"
    assert choose_engine("eager", 500_000, lambda: 0.01) == "eager"


def test_nearest_neighbours_agree_until_codes_are_spoilt():
    codes = np.random.default_rng(0).normal(size=(40, 16))
    assert same_nearest(codes, codes) == same_nearest(codes, codes + 1e-6) == 1.0
    assert same_nearest(codes, np.random.default_rng(1).normal(size=codes.shape)) < 0.3
    assert same_nearest(codes[:2], codes[1::-1]) == 1.0, "two rows have only each other"


def test_rows_that_differ_by_rounding_alone_are_the_same_codes():
    rng = np.random.default_rng(0)
    exact = (rng.normal(size=64) + rng.normal(size=(8, 64)) * 1e-2).astype("f4")  # images that are nearly alike
    a, b = (exact + rng.normal(size=exact.shape).astype("f4") * 3e-3 for _ in range(2))
    noise = float(row_distances(a, exact).max())
    with pytest.raises(StoreError, match="other codes"):
        require_same_codes("bf16", {"x": a}, {"x": b}, "here", "")
    assert require_same_codes("bf16", {"x": a}, {"x": b}, "here", "", lambda: {"x": noise}) < 0.998
    other = {"x": rng.permuted(a, axis=1)}
    for wrong in (other, {"x": np.where(np.arange(64) == 3, np.nan, a)}):
        with pytest.raises(StoreError, match="other codes"):
            require_same_codes("bf16", {"x": a}, wrong, "here", "", lambda: {"x": noise})
