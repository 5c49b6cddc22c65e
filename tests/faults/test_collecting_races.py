"""Moments at which somebody else compacts and collects: made to happen here, found by killing writers at random.

Each was a finding of benchmarks/bench_faults.py.
"""

import h5py
import pytest
from expectations import improper, keys_of
from operations import prepared

from featcache.store import FeatureStore, keeping
from featcache.store.shards import ShardSet


@pytest.fixture
def path(tmp_path):
    prepared(tmp_path / "s")
    return tmp_path / "s"


def meanwhile(monkeypatch, owner, name, action):
    """Do something just before the next call of a method, as another process might."""
    real = getattr(owner, name)

    def method(*args, **options):
        monkeypatch.setattr(owner, name, real)
        action()
        return real(*args, **options)

    monkeypatch.setattr(owner, name, method)


def compact_and_collect(path):
    other = FeatureStore.open(path)
    other.compact("main")
    other.gc(grace_days=0.0)
    other.gc(grace_days=0.0)


@pytest.mark.parametrize(
    "read",
    [lambda store: len(store.load()) == 7, lambda store: store.has(keys_of(range(2, 9))).all()],
    ids=["load", "has"],
)
def test_shards_replaced_between_listing_and_opening(path, monkeypatch, read):
    meanwhile(monkeypatch, ShardSet, "_open_shard", lambda: compact_and_collect(path))
    assert read(FeatureStore.open(path))


def test_a_collector_whose_shards_another_has_moved(path, monkeypatch):
    FeatureStore.open(path).compact("main")
    meanwhile(monkeypatch, keeping.Needs, "copies_hold", lambda: FeatureStore.open(path).gc(grace_days=0.0))
    FeatureStore.open(path).gc(grace_days=0.0)


def test_a_file_that_cannot_be_read_back_is_told_in_one_line(path, monkeypatch):
    from expectations import append_rows, attempt

    real = h5py.File

    def failing(file, mode, **options):
        if mode != "r":
            return real(file, mode, **options)
        raise OSError(5, "Unable to synchronously open file (file read failed: time = now\n, filename = 'x')")

    store = FeatureStore.open(path)
    monkeypatch.setattr(h5py, "File", failing)
    said = attempt(lambda: append_rows(store, [77]))
    monkeypatch.undo()
    assert said and not improper(said)
