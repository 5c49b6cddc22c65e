"""Real processes running `featcache extract`, killed, interrupted and racing: what was published is kept and reused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import make_tiny_backbone, write_images

import featcache as fc
from featcache.store import FeatureStore

IMAGES, BATCH = 60, 4
#: Each batch takes at least so long in a child that is to be killed.
SLEEP = 0.06
OPTIONS = "--backbone squeezenet1_1 --weights random --init-seed 0 --resize 64 --crop 64 --precision fp32 --device cpu"


class Driver:
    """Children that run the command line; see driver.py."""

    def __init__(self):
        here = Path(__file__).parent
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join([str(here.parents[1]), os.environ.get("PYTHONPATH", "")]),
        }
        command = [sys.executable, str(here / "driver.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=environment, text=True, bufsize=1, **pipes)
        assert self._hear() == "ready"

    def _hear(self):
        line = self.process.stdout.readline()
        assert line, "the driver died"
        return json.loads(line)

    def _ask(self, **order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._hear()

    def extract(self, images, store, *more, sleep=SLEEP):
        """Start `featcache extract`; its output goes to a file beside the store."""
        words = f"extract {images} -o {store} {OPTIONS} --batch-size {BATCH} --workers 2 --publish-seconds 0 --quiet"
        err = f"{store}.{time.time_ns()}.out"
        return self._ask(spawn=[*words.split(), *more], sleep=sleep, err=err), err

    def wait(self, pid):
        return self._ask(wait=pid)


@pytest.fixture(scope="module")
def driver():
    made = Driver()
    yield made
    made.process.stdin.close()
    made.process.wait(10)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("kill") / "images", IMAGES)


def extract(folder, path, **options):
    options = {"precision": "fp32", "batch_size": BATCH, "workers": 2, "progress": False, "device": "cpu", **options}
    return fc.extract(folder, make_tiny_backbone(), path, **options)


@pytest.fixture(scope="module")
def reference(images, tmp_path_factory):
    """What an uninterrupted run gives."""
    return extract(images, tmp_path_factory.mktemp("reference") / "s").load()


def shards(path):
    return len([p for p in (path / "shards").iterdir() if p.suffix == ".h5"]) if (path / "shards").is_dir() else 0


def wait_for_shards(path, n, seconds=60):
    end = time.monotonic() + seconds
    while shards(path) < n:
        assert time.monotonic() < end, f"only {shards(path)} shards after {seconds} s"
        time.sleep(0.002)


def published(path):
    """Different images whose codes a fresh reader finds."""
    keys = [shard.array("key") for shard in FeatureStore.open(path).shards]
    return len(np.unique(np.concatenate(keys), axis=0))


def assert_same(store, reference):
    data = store.load()
    assert data.ids.tolist() == reference.ids.tolist() and np.array_equal(data.y, reference.y)
    assert np.array_equal(data.X, reference.X), "bit-equal to an uninterrupted run's"
    assert store.check(deep=True).ok


def kill_and_rerun(driver, images, reference, path, rng, number):
    """Send one signal at a random moment after three shards; rerun; return how many rows had been published."""
    child, err = driver.extract(images, path)
    wait_for_shards(path, 3 + int(rng.integers(0, 5)))  # up to three batches are ahead of the shards
    time.sleep(rng.uniform(0, 1.5 * SLEEP))
    os.kill(child, number)
    status = driver.wait(child)
    before = published(path)
    assert 3 * BATCH <= before < IMAGES, "the signal came in the middle"
    assert FeatureStore.open(path).check(deep=True).ok, "also before anybody repairs anything"
    assert FeatureStore.open(path).views == [], "no half a view"
    store = extract(images, path)
    assert store.report.computed == IMAGES - before and store.report.reused == before, "nothing twice"
    assert_same(store, reference)
    assert extract(images, path).report.computed == 0
    return status, before, Path(err).read_text()


@pytest.mark.parametrize("seed", range(3))
def test_killed_in_the_middle_then_run_again(driver, images, reference, tmp_path, seed):
    rng = np.random.default_rng(seed)
    status, before, _ = kill_and_rerun(driver, images, reference, tmp_path / "s", rng, signal.SIGKILL)
    assert status == -signal.SIGKILL
    print(f"killed with {before} of {IMAGES} rows published")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3, 27))
def test_killed_at_many_moments_then_run_again(driver, images, reference, tmp_path, seed):
    test_killed_in_the_middle_then_run_again(driver, images, reference, tmp_path, seed)


def test_killed_again_and_again_it_gets_there(driver, images, reference, tmp_path):
    """Each run is killed after one more shard, whatever it is doing: opening, reusing, computing, committing."""
    path, rng, seen = tmp_path / "s", np.random.default_rng(0), []
    for n in range(1, 6):
        child, _ = driver.extract(images, path, sleep=0.02)
        wait_for_shards(path, shards(path) + 1)
        time.sleep(rng.uniform(0, 0.02 * n))
        os.kill(child, signal.SIGKILL)
        assert driver.wait(child) == -signal.SIGKILL
        seen.append(published(path))
        assert FeatureStore.open(path).check(deep=True).ok
    assert seen == sorted(seen) and seen[0] >= BATCH
    store = extract(images, path)
    assert store.report.computed == IMAGES - seen[-1]
    assert_same(store, reference)


def test_ctrl_c_keeps_what_was_computed_and_says_so_in_one_line(driver, images, reference, tmp_path):
    rng = np.random.default_rng(7)
    status, _, said = kill_and_rerun(driver, images, reference, tmp_path / "s", rng, signal.SIGINT)
    assert status == 130
    lines = said.splitlines()
    assert len(lines) == 1 and lines[0].startswith("featcache: interrupted") and "kept" in lines[0], said


def test_a_second_ctrl_c_loses_nothing_either(driver, images, reference, tmp_path):
    path = tmp_path / "s"
    child, _ = driver.extract(images, path)
    wait_for_shards(path, 3)
    for _ in range(4):
        os.kill(child, signal.SIGINT)
        time.sleep(0.005)
    assert driver.wait(child) in (130, -signal.SIGINT, 1, 120)
    before = published(path)
    store = extract(images, path)
    assert store.report.computed == IMAGES - before < IMAGES
    assert_same(store, reference)


def test_sigterm_keeps_what_was_published(driver, images, reference, tmp_path):
    rng = np.random.default_rng(8)
    status, _, _ = kill_and_rerun(driver, images, reference, tmp_path / "s", rng, signal.SIGTERM)
    assert status == -signal.SIGTERM or status > 0, "whoever waits for it sees that it did not finish"


def test_processes_that_add_to_one_store_at_once_lose_nothing(driver, tmp_path):
    path, children = tmp_path / "s", []
    for n in range(4):
        folder = write_images(tmp_path / f"f{n}", 8, classes=(f"k{n}",), seed=n, start=100 * n)
        children.append(driver.extract(folder, path, "--add", sleep=0.01))
    for child, err in children:
        assert driver.wait(child) == 0, Path(err).read_text()
    store = FeatureStore.open(path)
    data = store.load()
    assert len(data) == 32 and sorted(set(data.y)) == ["k0", "k1", "k2", "k3"] and store.check(deep=True).ok
    assert store.snapshots() == [0, 1, 2, 3]
    for n in range(4):
        alone = extract(tmp_path / f"f{n}", tmp_path / f"s{n}").load()
        assert np.array_equal(data.X[np.isin(data.ids, alone.ids)], alone.X)


def test_two_processes_that_extract_the_same_folder_agree(driver, images, reference, tmp_path):
    path = tmp_path / "s"
    children = [driver.extract(images, path, sleep=0.01) for _ in range(2)]
    for child, err in children:
        assert driver.wait(child) == 0, Path(err).read_text()
    assert_same(FeatureStore.open(path), reference)
    assert extract(images, path).report.computed == 0


def test_one_killed_does_not_hinder_the_other(driver, images, reference, tmp_path):
    path = tmp_path / "s"
    victim, _ = driver.extract(images, path)
    survivor, err = driver.extract(images, path, sleep=0.02)
    wait_for_shards(path, 6)
    os.kill(victim, signal.SIGKILL)
    assert driver.wait(victim) == -signal.SIGKILL
    assert driver.wait(survivor) == 0, Path(err).read_text()
    assert_same(FeatureStore.open(path), reference)


def test_leftovers_of_a_killed_process_do_no_harm(driver, images, reference, tmp_path):
    path = tmp_path / "s"
    child, _ = driver.extract(images, path)
    wait_for_shards(path, 3)
    os.kill(child, signal.SIGKILL)
    driver.wait(child)
    half = sorted((path / "shards").iterdir())[0].read_bytes()[:5000]
    for name in ("tmp/01795000000000000000-aa.h5", "index/.rows.npz.aa.tmp", ".store.json.aa.tmp"):
        (path / name).write_bytes(half)
    before = published(path)
    store = extract(images, path)
    assert store.report.computed == IMAGES - before
    assert_same(store, reference)
