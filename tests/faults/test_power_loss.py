"""Power loss at any moment of any sequence of operations: what was acknowledged is there, and nothing wrong is."""

import dataclasses

import numpy as np
import pytest
from builders import SPEC, rows_for
from crash_states import Medium, RecordingDisk, torn
from expectations import Expected, append_rows, entries_of, judge, keys_of, lines_of
from operations import OPERATIONS, prepared
from power_loss import record, sample

from featcache.store import FeatureStore


def test_power_loss_costs_nothing_that_was_acknowledged():
    found = sample(60, seed=0, per_sequence=15)
    assert not found["wrong"], found["wrong"][:3]
    assert found["states"] == 60


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 5))
def test_power_loss_at_many_more_moments(seed):
    found = sample(600, seed=seed)
    assert not found["wrong"], found["wrong"][:3]
    assert set(found["by_operation"]) == {"create", *OPERATIONS}


# -- the model, and the judge, must be able to fail --------------------------------------------------------------------


class NoFileSync(RecordingDisk):
    """The content of no file is ever synced."""

    def fsync(self, path):
        if path.is_dir():
            self.fsync_folder(path)


class NoFolderSync(RecordingDisk):
    def fsync_folder(self, path):
        pass


class LinkFirst(RecordingDisk):
    """A file is synced after it got its final name, not before; yet before that name is synced."""

    def fsync(self, path):
        pass

    def unlink(self, path):
        if path.exists() and path.suffix in (".h5", ".tmp"):
            self.note("fsync", self._name(path))
        super().unlink(path)


class SkipsShards(RecordingDisk):
    """One folder of several is forgotten."""

    def fsync_folder(self, path):
        if path.name != "shards":
            super().fsync_folder(path)


@pytest.mark.parametrize(
    ("disk_class", "states"), [(NoFileSync, 30), (NoFolderSync, 30), (SkipsShards, 60), (LinkFirst, 120)]
)
def test_a_disk_layer_that_forgets_a_sync_is_caught(disk_class, states):
    found = sample(states, seed=0, per_sequence=40, disk_class=disk_class)
    assert found["wrong"], found


def test_a_write_past_the_disk_layer_is_caught(monkeypatch):
    real = FeatureStore.commit

    def commit(self, *args, **options):
        (self.path / "shards" / "notes").write_text("unseen")
        return real(self, *args, **options)

    monkeypatch.setattr(FeatureStore, "commit", commit)
    with pytest.raises(AssertionError, match="past the disk layer.*notes"):
        record(["append", "commit"], seed=0)


def test_the_judge_sees_what_is_lost_and_what_is_wrong(tmp_path):
    told = prepared(tmp_path / "s")
    assert judge(tmp_path / "s", told, use=False) == []
    more = told.with_rows([50])
    assert "lost: [50]" in judge(tmp_path / "s", more)[0]
    assert judge(tmp_path / "s", told, more, use=False) == [], "an append that may not have happened"
    newer = told.with_state(lines_of(range(4)))
    assert "lost: [3]" in judge(tmp_path / "s", newer)[0] and not judge(tmp_path / "s", told, newer, use=False)
    assert judge(tmp_path / "nothing", Expected(made=False), use=False) == []
    assert "no store any more" in judge(tmp_path / "nothing", Expected())[0]
    relabelled = {**told.states, "main": {**told.states["main"], 1: lines_of(range(3))}}
    assert "other lines" in judge(tmp_path / "s", dataclasses.replace(told, states=relabelled))[0]
    store = FeatureStore.open(tmp_path / "s")
    store.commit(entries_of(lines_of(range(5))))
    assert "neither" in " ".join(judge(tmp_path / "s", told))
    wrong = FeatureStore.create(tmp_path / "wrong", SPEC)
    wrong.append(keys_of([1]), {"flatten": rows_for([2])})
    assert "wrong rows" in judge(tmp_path / "wrong", Expected().with_rows([1]))
    append_rows(wrong, [3])
    (shard := sorted((tmp_path / "wrong" / "shards").iterdir())[1]).write_bytes(b"\0" * shard.stat().st_size)
    assert len(judge(tmp_path / "wrong", Expected(ever=frozenset([3])))) == 2, "called damaged, and found by check"


def states(log, count=300, chance=0.5):
    medium, rng = Medium().replay(log), np.random.default_rng(0)
    return [medium.after_power_loss(rng, chance) for _ in range(count)]


def test_only_a_synced_file_is_whole_and_only_a_synced_folder_has_its_names():
    data = bytes(range(1, 251)) * 40
    made = [("write", "a", data), ("fsync", "a"), ("link", "a", "b")]
    assert {frozenset(s) for s in states(made)} == {frozenset(n) for n in ((), ("a",), ("b",), ("a", "b"))}
    assert all(content == data for s in states(made) for content in s.values())
    assert states([*made, ("fsync_folder", "."), ("unlink", "a")], 50, chance=0) == [{"a": data, "b": data}] * 50
    loose = states([("write", "a", data), ("link", "a", "b"), ("fsync_folder", ".")])
    assert all(s["a"] == s["b"] for s in loose), "two names of one file"
    lengths = {len(s["a"]) for s in loose}
    assert len(lengths) > 20 and len(data) in lengths
    assert any(
        len(s["a"]) == len(data) and s["a"][:4096] == bytes(4096) and s["a"][4096:] == data[4096:] for s in loose
    )


def test_a_rename_is_atomic_in_a_folder_and_not_between_two():
    start = [("mkdir", "x"), ("mkdir", "y"), ("write", "x/a", b"1"), ("fsync", "x/a")]
    start += [("fsync_folder", "x"), ("fsync_folder", "y"), ("fsync_folder", ".")]
    names = lambda log: {frozenset(n for n, d in s.items() if d is not None) for s in states(log)}  # noqa: E731
    assert names([*start, ("rename", "x/a", "x/b")]) == {frozenset({"x/a"}), frozenset({"x/b"})}
    either = {frozenset(), frozenset({"x/a"}), frozenset({"y/a"}), frozenset({"x/a", "y/a"})}
    assert names([*start, ("rename", "x/a", "y/a")]) == either
    assert names([("mkdir", "z"), ("write", "z/a", b"1"), ("fsync", "z/a"), ("fsync_folder", "z")]) == {
        frozenset(),
        frozenset({"z/a"}),
    }, "what is in a folder whose own name was not synced goes with it"


def test_torn_content_is_never_other_content():
    rng = np.random.default_rng(0)
    data = bytes(range(1, 251)) * 60
    for _ in range(200):
        left = torn(data, rng, 0.5)
        assert len(left) <= len(data) and all(a in (b, 0) for a, b in zip(left, data, strict=False))
