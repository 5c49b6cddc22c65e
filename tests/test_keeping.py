"""retire, gc, compact, diff: what is given up, when it goes, and that nothing else does."""

import contextlib
import io
import json
import os
import time

import numpy as np
import pytest
from conftest import make_tiny_backbone

import featcache as fc
from featcache.cli import run
from featcache.errors import MissingCodes, StoreError
from featcache.store import OK, Entries, FeatureStore
from featcache.store.pins import live_pins

SPEC = {"version": 1, "dtype": "float32"}
DAY = 86_400


def keys_for(numbers):
    rng = [np.random.default_rng(int(n)).integers(0, 256, 32, dtype="u1") for n in numbers]
    return np.stack(rng) if rng else np.zeros((0, 32), "u1")


def rows_for(numbers, width=4):
    return np.stack([np.random.default_rng(int(n)).random(width, dtype="f4") for n in numbers])


def entries_for(numbers, labels="ab", contents=None):
    numbers = list(numbers)
    return Entries(
        np.asarray([f"{n:04d}.jpg" for n in numbers], np.str_),
        keys_for(numbers if contents is None else contents),
        np.full(len(numbers), OK, "u1"),
        np.full(len(numbers), "", "U1"),
        {"label": np.asarray([labels[n % len(labels)] for n in numbers], np.str_)},
    )


def add(store, numbers):
    return store.append(keys_for(numbers), {"x": rows_for(numbers)})


@pytest.fixture
def store(tmp_path):
    made = FeatureStore.create(tmp_path / "s.features", SPEC)
    yield made
    report = FeatureStore.open(made.path).check(deep=True)
    assert report.ok, report.damaged


def committed(store, numbers, **options):
    add(store, numbers)
    return store.commit(entries_for(numbers), roles={"label": "label"}, **options)


def age(store, name, days):
    """Make a file look as if it had been written so long ago."""
    path = store.path / name
    when = time.time() - days * DAY
    os.utime(path, (when, when))
    return path


def trash(store):
    return sorted(p.name for p in (store.path / "trash").iterdir())


# -- gc ----------------------------------------------------------------------------------------------------------------


def test_what_no_state_names_goes_after_its_grace_period_and_is_deleted_after_another(store):
    committed(store, range(5))
    spare = "shards/" + add(store, range(100, 105))
    assert store.gc().waiting == [spare] and store.gc().trashed == []
    age(store, spare, 13.9)
    assert store.gc().waiting == [spare]
    age(store, spare, 14.1)
    assert store.gc(dry_run=True).trashed == [spare] and (store.path / spare).exists()
    report = store.gc()
    assert report.trashed == [spare] and report.bytes_trashed > 0 and not (store.path / spare).exists()
    (name,) = trash(store)
    assert store.gc().deleted == [] and trash(store) == [name]
    old = f"{int(name.split('~')[0]) - 15 * DAY:012d}~" + name.partition("~")[2]
    (store.path / "trash" / name).rename(store.path / "trash" / old)
    report = store.gc()
    assert report.deleted == [spare] and report.bytes_deleted > 0 and trash(store) == []
    assert np.array_equal(store.load().X, rows_for(range(5)))


def test_an_interrupted_extractions_rows_survive_and_are_used(store):
    add(store, range(5))  # published, never committed
    assert store.gc().trashed == []
    store.commit(entries_for(range(5)))
    assert store.gc(grace_days=0).trashed == [] and len(store.load()) == 5


def test_a_commit_that_needs_what_was_collected_gets_it_back(store):
    committed(store, range(3))
    add(store, range(50, 55))
    other = FeatureStore.open(store.path)
    assert other.has(keys_for([50])).all()
    assert len(store.gc(grace_days=0).trashed) == 1
    state = other.commit(entries_for(range(50, 55)), view="late")
    assert len(state) == 5 and trash(store) == []
    assert np.array_equal(FeatureStore.open(store.path).load("late").X, rows_for(range(50, 55)))


def test_whoever_asks_for_a_row_in_the_trash_gets_it_back(store):
    committed(store, range(3))
    add(store, range(50, 55))
    other = FeatureStore.open(store.path)
    store.gc(grace_days=0)
    assert not other.has(keys_for([77])).any() and len(trash(store)) == 1
    assert other.has(keys_for([52, 77])).tolist() == [True, False] and trash(store) == []
    assert np.array_equal(other.codes(keys_for([52]), "x"), rows_for([52]))


def test_a_commit_of_what_is_gone_for_good_is_refused(store):
    committed(store, range(3))
    add(store, range(50, 55))
    other = FeatureStore.open(store.path)
    other.refresh()
    store.gc(grace_days=0)
    store.gc(grace_days=0)
    with pytest.raises(MissingCodes, match="5 images .*run extract again"):
        other.commit(entries_for(range(50, 55)), view="late")
    assert store.views == ["main"]


def test_a_state_committed_while_gc_moves_its_rows_brings_them_back(store, monkeypatch):
    from featcache.store import keeping

    committed(store, range(3))
    add(store, range(50, 55))
    real = keeping.throw_away

    def meanwhile(*args):
        FeatureStore.open(store.path).commit(entries_for(range(50, 55)), view="late")
        return real(*args)

    monkeypatch.setattr(keeping, "throw_away", meanwhile)
    report = store.gc(grace_days=0)
    assert report.trashed == [] and report.restored and len(FeatureStore.open(store.path).load("late")) == 5


def test_a_reader_finds_rows_that_two_deaths_left_in_the_trash(store):
    committed(store, range(3))
    name = add(store, range(50, 55))
    store.commit(entries_for(range(50, 55)), view="late")
    (store.path / "trash").mkdir(exist_ok=True)
    (store.path / "shards" / name).rename(store.path / "trash" / f"{int(time.time()):012d}~shards~{name}")
    assert len(FeatureStore.open(store.path).load("late")) == 5
    assert (store.path / "shards" / name).exists()


def test_while_somebody_extracts_nothing_moves(store):
    committed(store, range(3))
    spare = "shards/" + add(store, range(50, 55))
    with store.pin():
        report = FeatureStore.open(store.path).gc(grace_days=0)
        assert report.trashed == [] and report.waiting == [spare]
        (pin,) = report.pins
        assert pin["pid"] == os.getpid()
    assert store.gc(grace_days=0).trashed == [spare]


def test_pins_of_the_dead_do_not_count(store):
    with store.pin():
        (path,) = (store.path / "pins").glob("*.json")
        who = json.loads(path.read_text())
        now = path.stat().st_mtime
        assert len(live_pins(store.path, now)) == 1
        assert len(live_pins(store.path, now + 3599)) == 1
        path.write_text(json.dumps({**who, "host": "elsewhere", "system": "other", "pid": 1}))
        assert len(live_pins(store.path, path.stat().st_mtime)) == 1, "of other systems only the time tells"
        path.write_text(json.dumps({**who, "started": "1"}))
        assert live_pins(store.path, now) == [] and not path.exists(), "another process has its number now"
        for junk in ("", "[]", "{" * 100_000, "\xff"):
            path.write_text(junk, encoding="latin-1")
            assert len(live_pins(store.path, path.stat().st_mtime)) == 1, "unreadable ones are believed for an hour"
        assert live_pins(store.path, path.stat().st_mtime + 3601) == []


def test_a_copy_is_only_given_up_when_the_other_one_is_sound(store):
    committed(store, range(300))
    (old,) = [p.name for p in (store.path / "shards").iterdir()]
    merged = (
        add(store, range(400, 402)) and store.commit(entries_for([*range(300), 400, 401])) and store.compact().shard
    )
    shard = next(s for s in FeatureStore.open(store.path).shards if s.path.name == merged)
    data = bytearray(shard.path.read_bytes())
    data[shard.regions["x/x"]["offset"] + 290 * 16] ^= 1
    shard.path.write_bytes(data)
    report = FeatureStore.open(store.path).gc(grace_days=0)
    assert f"shards/{old}" in report.held and (store.path / "shards" / old).exists()
    data[shard.regions["x/x"]["offset"] + 290 * 16] ^= 1
    shard.path.write_bytes(data)
    assert f"shards/{old}" in FeatureStore.open(store.path).gc(grace_days=0).trashed


def test_gc_touches_nothing_while_it_cannot_tell_what_is_needed(store):
    committed(store, range(3))
    spare = store.path / "shards" / add(store, [77])
    newest = store.path / "snapshots" / "main" / "00000000.h5"
    good = newest.read_bytes()
    newest.write_bytes(good[:-1])
    with pytest.raises(StoreError, match="00000000.h5"):
        store.gc(grace_days=0)
    newest.write_bytes(good)
    needed = next(p for p in (store.path / "shards").iterdir() if p != spare)
    away = needed.rename(store.path.parent / needed.name)
    with pytest.raises(StoreError, match="3 images of kept states have no codes"):
        FeatureStore.open(store.path).gc(grace_days=0)
    assert spare.exists()
    away.rename(needed)


@pytest.mark.parametrize("days", [-1, float("nan"), float("inf"), 1e9])
def test_a_senseless_grace_period_is_refused(store, days):
    with pytest.raises(StoreError, match="grace_days"):
        store.gc(grace_days=days)


def test_augmented_views_of_kept_images_are_kept(store):
    committed(store, range(3))
    store.append(keys_for(range(3)), {"x": rows_for(range(10, 13))}, view_number=1)
    assert store.gc(grace_days=0).trashed == []
    store.compact()
    assert len(store.gc(grace_days=0).trashed) == 2
    assert FeatureStore.open(store.path).has(keys_for(range(3)), view_number=1).all()
    assert not FeatureStore.open(store.path).has(keys_for(range(3)), view_number=2).any()


def test_readers_keep_their_rows_while_others_compact_and_collect(store):
    for n in range(0, 40, 10):
        committed(store, range(n, n + 10), keep_old=True)
    reader = FeatureStore.open(store.path)
    reader.refresh()
    before = reader.load(in_memory=False)
    store.compact()
    store.gc(grace_days=0)
    store.gc(grace_days=0)
    assert np.array_equal(before.X, rows_for(range(40))), "a map of files that have lost their names"
    assert np.array_equal(reader.load().X, rows_for(range(40)))


# -- retire ------------------------------------------------------------------------------------------------------------


def test_retired_states_are_not_listed_and_what_only_they_need_goes(store):
    committed(store, range(10))
    committed(store, range(5, 15))
    committed(store, range(10, 20))
    assert store.retire("main", [0]) == [0] and store.snapshots() == [1, 2]
    with pytest.raises(StoreError, match=r"keeps no snapshot 0; it keeps 1, 2"):
        store.load(snapshot=0)
    with pytest.raises(StoreError, match="main@2 is the newest"):
        store.retire("main", [2])
    with pytest.raises(StoreError, match="keeps no snapshot 9"):
        store.retire("main", [9])
    with pytest.raises(StoreError, match="no view 'nope'"):
        store.retire("nope")
    assert store.retire("main", [0]) == [], "again: nothing new, and no error"
    assert store.retire("main", [0], undo=True) == [0] and len(store.load("main@0")) == 10
    store.retire("main", [0, 1])
    assert np.array_equal(store.load().X, rows_for(range(10, 20)))
    store.gc(grace_days=0)
    fresh = FeatureStore.open(store.path)
    assert len(trash(store)) == 4 and fresh.has(keys_for(range(10, 20))).all()
    store.gc(grace_days=0)
    assert not fresh.has(keys_for(range(5))).any()
    assert [row["kept"] for row in store.history()] == [False, False, True]


def test_a_view_is_dropped_as_a_whole_and_its_numbers_go_on(store):
    committed(store, range(3))
    committed(store, range(5), view="other")
    assert store.retire("other") == [0] and store.views == ["main"]
    with pytest.raises(StoreError, match="no view 'other'"):
        store.load("other")
    assert store.retire("other", undo=True) == [0] and store.views == ["main", "other"]
    store.retire("other")
    assert store.commit(entries_for(range(2)), view="other").name == "other@1"
    assert len(store.load("other")) == 2


def test_a_retired_state_that_others_build_on_stays_readable_for_them(store):
    committed(store, range(100))
    for n in range(100, 105):
        committed(store, [n], keep_old=True)
    store.retire("main", [0, 1, 2, 3, 4])
    for _ in range(3):
        store.gc(grace_days=0)
    assert np.array_equal(FeatureStore.open(store.path).load().X, rows_for(range(105)))


# -- compact -----------------------------------------------------------------------------------------------------------


def test_after_compacting_a_view_is_a_map_without_a_copy(store):
    for n in range(0, 30, 10):
        add(store, range(n, n + 10))
    order = np.random.default_rng(0).permutation(30).tolist()
    store.commit(entries_for(range(30), contents=order), roles={"label": "label"})
    report = store.compact()
    assert (report.rows, report.merged, report.views) == (30, 3, ["main"])
    assert store.compact().shard == ""
    data = FeatureStore.open(store.path).load(in_memory=False)
    assert np.array_equal(data.X, rows_for(order)) and not data.X.flags.owndata and not data.X.flags.writeable
    shard = next(s for s in store.shards if s.path.name == report.shard)
    assert shard.attributes["views"] == {"main": 0}
    assert np.shares_memory(np.asarray(store.load(in_memory=False).X), shard.raw("x/x")), "the shard's own map"


def test_an_image_that_a_view_names_twice_does_not_break_the_map(store):
    add(store, range(5))
    store.commit(entries_for(range(7), contents=[3, 0, 1, 3, 2, 4, 0]))
    assert store.compact().rows == 7
    data = FeatureStore.open(store.path).load(in_memory=False)
    assert np.array_equal(data.X, rows_for([3, 0, 1, 3, 2, 4, 0])) and not list(
        (store.path / "index").glob("gathered*")
    )


def test_compacting_keeps_what_other_views_and_older_states_need(store):
    committed(store, range(10))
    committed(store, range(5, 12))
    committed(store, range(20, 25), view="other")
    add(store, range(90, 93))  # in no state: stays where it is
    report = store.compact("other")
    assert report.rows == 17 and report.views == ["other", "main"]
    store.gc(grace_days=0)
    store.gc(grace_days=0)
    fresh = FeatureStore.open(store.path)
    assert np.array_equal(fresh.load("main@0").X, rows_for(range(10)))
    assert np.array_equal(fresh.load("other").X, rows_for(range(20, 25)))
    assert not fresh.has(keys_for([90])).any()


def test_compacting_what_is_not_there_says_so(store):
    with pytest.raises(StoreError, match="no view"):
        store.compact()
    committed(store, range(2))
    with pytest.raises(StoreError, match="no view 'nope'"):
        store.compact("nope")


def test_without_room_nothing_is_written(store, monkeypatch):
    import shutil

    committed(store, range(3))
    committed(store, range(3, 6), keep_old=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(StoreError, match="make room"):
        store.compact()
    assert len(list((store.path / "shards").iterdir())) == 2


# -- looking -----------------------------------------------------------------------------------------------------------


def test_two_states_compared(store):
    add(store, range(20))
    store.commit(entries_for(range(10)), roles={"label": "label"})
    new = entries_for(range(2, 12), labels="ab", contents=[2, 3, 4, 15, *range(6, 12)])
    labels = new.columns["label"].copy()
    labels[0] = "z"
    store.commit(new.with_columns({"label": labels}), roles={"label": "label"})
    found = store.diff("main@0", "main")
    assert found["before"] == "main@0" and found["after"] == "main@1"
    assert found["added"] == ["0010.jpg", "0011.jpg"] and found["removed"] == ["0000.jpg", "0001.jpg"]
    assert found["moved"] == [] and found["changed"] == ["0005.jpg"] and found["columns"] == {"label": 1}
    assert found["relabelled"] == [{"id": "0002.jpg", "before": "a", "after": "z"}]
    same = store.diff("main", "main@1")
    assert not any(same[k] for k in ("added", "removed", "changed", "relabelled", "columns"))
    assert [row["images"] for row in store.history()] == [10, 10]
    store.commit(entries_for([30, *range(3, 12)], contents=[2, 3, 4, 15, *range(6, 12)]), roles={"label": "label"})
    assert store.diff("main@1", "main")["moved"] == [{"before": "0002.jpg", "after": "0030.jpg"}]
    for wrong in ("main@7", "nope", "main@x", "main@-1", "@1", ""):
        with pytest.raises(StoreError):
            store.diff("main", wrong)


def call(*words):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = run([str(w) for w in words])
    return status, out.getvalue(), err.getvalue()


def test_the_commands(store):
    committed(store, range(5))
    add(store, range(5, 8))
    store.commit(entries_for(range(3, 8)), roles={"label": "label"})
    status, out, _ = call("info", store.path)
    assert status == 0 and "main@0 (5 images" in out and "main@1 (5 images" in out
    status, out, _ = call("info", store.path, "--diff", "main@0", "main@1")
    assert status == 0 and "3 added, 3 removed, 0 changed" in out and "+ 0005.jpg" in out
    assert json.loads(call("info", store.path, "--diff", "main@0", "main", "--json")[1])["removed"][0] == "0000.jpg"
    status, out, _ = call("retire", store.path, "main@0")
    assert status == 0 and "retired: main@0" in out
    status, _, err = call("retire", store.path, "main@1")
    assert status == 1 and err.count("\n") == 1 and "newest" in err
    status, out, err = call("compact", store.path)
    assert status == 0 and "5 rows of 2 shards" in out
    status, out, err = call("gc", store.path, "--grace-days", "0", "--dry-run")
    assert status == 0 and "would move 3 files" in out
    assert json.loads(call("gc", store.path, "--json")[1])["waiting"]
    status, out, _ = call("gc", store.path, "--grace-days", "0")
    assert status == 0 and "moved 3 files" in out
    assert "3 files of" in call("info", store.path)[1]
    status, _, err = call("gc", store.path, "--grace-days", "-1")
    assert status == 2 and err.count("\n") == 1


# -- beside an extraction ----------------------------------------------------------------------------------------------


def test_rows_collected_under_a_running_extraction_are_computed_again(image_folder, tmp_path, monkeypatch):
    from featcache.extraction.run import Extraction

    options = {"precision": "fp32", "workers": 0, "progress": False, "device": "cpu"}
    first = fc.extract(image_folder, make_tiny_backbone(), tmp_path / "s", **options)
    before = first.load()
    real, calls = Extraction._commit, []

    def commit(self, store, entries, head):
        calls.append(self.tally.computed)
        if len(calls) == 1:  # by hand: gc itself sees the pin
            for path in (tmp_path / "s" / "shards").iterdir():
                path.unlink()
        return real(self, store, entries, head)

    monkeypatch.setattr(Extraction, "_commit", commit)
    again = fc.extract(image_folder, make_tiny_backbone(), tmp_path / "s", **options)
    assert calls == [0, 12] and again.report.computed == 12 and not again.report.failed
    assert np.array_equal(again.load().X, before.X) and again.check(deep=True).ok


def test_an_extraction_holds_a_pin(image_folder, tmp_path, monkeypatch):
    from featcache.extraction.run import Extraction

    seen = []
    real = Extraction._commit
    monkeypatch.setattr(
        Extraction,
        "_commit",
        lambda self, store, *rest: seen.append(store.gc(grace_days=0).pins) or real(self, store, *rest),
    )
    store = fc.extract(image_folder, make_tiny_backbone(), tmp_path / "s", workers=0, progress=False)
    assert len(seen[0]) == 1 and not list((store.path / "pins").iterdir()) and store.check(deep=True).ok


def test_nothing_is_collected_while_a_view_has_lost_its_newest_state(store):
    committed(store, range(3))
    committed(store, range(10, 15), view="other")
    (store.path / "snapshots" / "other" / "00000000.lost").write_text("{}")
    with pytest.raises(StoreError, match="newest state of view 'other' was lost"):
        store.gc(grace_days=0)
    store.commit(entries_for(range(10, 12)), view="other")
    assert store.gc(grace_days=0).trashed == []
    (store.path / "snapshots" / "other" / "00000001.lost").write_text("{}")
    assert store.retire("other") == [0, 1] and len(store.gc(grace_days=0).trashed) == 3


# -- beside others, and many of them -----------------------------------------------------------------------------------


def test_states_that_are_retired_while_gc_and_compact_look_are_passed_over(store, monkeypatch):
    for n in (5, 6, 7):
        committed(store, range(n))
    committed(store, range(50, 60), view="other")
    real = FeatureStore.snapshots

    def listed_then_retired(self, view="main"):
        numbers = real(self, view)
        if view == "other" and numbers:
            FeatureStore.open(self.path).retire("other") if not marks.append(view) and len(marks) == 2 else None
        return numbers

    for work in (lambda: FeatureStore.open(store.path).compact(), lambda: FeatureStore.open(store.path).gc()):
        marks: list[str] = []
        store.retire("other", undo=True)
        with monkeypatch.context() as patch:
            patch.setattr(FeatureStore, "snapshots", listed_then_retired)
            work()
        assert len(store.load("main")) == 7


def test_of_many_states_on_one_base_only_the_base_is_asked_which_rows_it_needs(store, monkeypatch):
    add(store, range(120))
    for n in range(100, 121):
        store.commit(entries_for(range(n)), roles={"label": "label"})
    asked = []
    real = fc.store.snapshot.Snapshot.live_keys
    monkeypatch.setattr(fc.store.snapshot.Snapshot, "live_keys", lambda self: asked.append(self.number) or real(self))
    assert store.gc(grace_days=0).trashed == [] and asked == [0]
    asked.clear()
    store.retire("main", [0])
    assert store.gc(grace_days=0).trashed == [] and asked == list(range(1, 21))


def test_without_a_view_compact_says_so(store):
    with pytest.raises(StoreError, match="no view to compact; it has none yet: run extract"):
        store.compact()
    committed(store, range(3))
    with pytest.raises(StoreError, match="no view ''; it has main"):
        store.compact("")


def test_a_dry_run_needs_no_right_to_write(store, monkeypatch):
    committed(store, range(3))
    spare = "shards/" + add(store, range(100, 103))
    monkeypatch.setattr(fc.store.keeping, "file_system_now", refuse)
    assert store.gc(grace_days=0, dry_run=True).trashed == [spare]
    with pytest.raises(PermissionError):
        store.gc(grace_days=0)


def refuse(*_):
    raise PermissionError(13, "Permission denied", "tmp")


def test_a_store_without_the_folder_of_snapshots_is_repaired_as_one_of_no_view(store):
    add(store, range(3))
    (store.path / "snapshots").rmdir()
    assert store.check(repair=True).ok


def test_names_with_control_characters_never_reach_a_terminal(tmp_path, capsys):
    assert run(["gc", str(tmp_path / "a\x1b[31m")]) == 1
    assert "\\x1b[31m: no such store" in (said := capsys.readouterr().err) and "\x1b" not in said
    made = FeatureStore.create(tmp_path / "a\nb", SPEC)
    committed(made, range(3))
    for words in (["gc"], ["compact"], ["retire", "main"], ["info"]):
        assert run([words[0], str(made.path), *words[1:]]) == 0
        assert "a\\nb" in capsys.readouterr().out.splitlines()[0]
