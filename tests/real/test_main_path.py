"""The claims of benchmarks/bench_main_path.py on a few real photos with genuine weights; all photos with -m slow."""

from __future__ import annotations

import pytest
from conftest import REPOSITORY

pytestmark = pytest.mark.real

NAMES = (
    "codes_and_accuracy_as_by_hand",
    "batch_sizes_and_workers",
    "killed_runs",
    "partial_weights",
    "odd_images",
    "nothing_computed_twice",
    "clear_words",
)


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import bench_main_path

    return bench_main_path


@pytest.fixture
def one_thread(monkeypatch):
    """Threads that wait for each other on a busy machine would be most of the time."""
    import torch
    from threadpoolctl import threadpool_limits

    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with threadpool_limits(1):
        yield
    torch.set_num_threads(before)


def held(claims):
    assert claims
    broken = [line for line in claims if not line["holds"]]
    assert not broken, broken


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("name", NAMES)
def test_on_a_few_photos(bench, data_dir, tmp_path, name):
    case = bench.real_case(
        data_dir,
        tmp_path,
        n=30,
        part=6 if name == "batch_sizes_and_workers" else 12,
        other=4,
        cli=bench.in_process,
        kills=1,
        repeats=1,
        kill_batch=2,
        loader_workers=0,
        within_points=20.0,  # a few test rows: one row is over ten points
    )
    held(bench.CHECKS[name](case)["claims"])


def test_no_check_is_left_out(bench):
    assert set(bench.CHECKS) == {*NAMES, "rate"}  # the rate claims nothing, and takes long


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_on_the_whole_set(bench, data_dir, tmp_path):
    held(bench.run(bench.real_case(data_dir, tmp_path))["claims"])
