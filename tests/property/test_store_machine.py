"""The store against a dictionary: appends, commits, stale parents, failing disks and crashes, in any order."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from featcache.errors import StoreError
from featcache.files import Disk
from featcache.store import CONSTANT, FAILED, OK, Entries, FeatureStore

SPEC = {"version": 1, "preprocess": {"crop": 224}, "dtype": "float32"}
VIEWS = ["main", "c.d-e"]
NUMBERS = st.lists(st.integers(0, 40), max_size=12, unique=True)
#: One line of a view: (content, or None when it failed; label).
LABELS = st.sampled_from(["", "cat", "ü\n", "01"])


def key(number):
    # Keys of the same tens agree in their first eight bytes, so that the index has to tell them apart by the rest.
    return hashlib.sha256(str(number // 10).encode()).digest()[:8] + hashlib.sha256(str(number).encode()).digest()[8:]


def keys_for(numbers):
    return np.asarray([list(key(n)) for n in numbers], "u1").reshape(-1, 32)


def row(number):
    return np.random.default_rng(number).random(3, dtype="f4") if number % 7 else np.full(3, number, "f4")


class Refusing(Disk):
    """Fails the n-th call from now, before or after doing it; 0 = none."""

    def __init__(self):
        self.left, self.after = 0, False

    def __getattribute__(self, name):
        attribute = super().__getattribute__(name)
        if name not in ("write", "mkdir", "fsync", "link", "rename", "unlink"):
            return attribute

        def call(*args):
            self.left -= 1
            if self.left == 0 and not self.after:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            attribute(*args)
            if self.left == 0:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        return call


class StoreMachine(RuleBasedStateMachine):
    """`rows` and `states` say what a store must hold; two clients work on one folder."""

    @initialize()
    def create(self):
        self.folder = Path(tempfile.mkdtemp())
        self.path = self.folder / "a.features"
        self.disks = [Refusing(), Refusing()]
        self.clients = [FeatureStore.create(self.path, SPEC, disk=disk) for disk in self.disks]
        #: Rows that must be there, and all that ever were: what was collected comes back when a commit needs it.
        self.rows: set[int] = set()
        self.ever: set[int] = set()
        #: All states ever committed; those of `kept` can still be loaded.
        self.states: dict[str, list[dict[str, tuple]]] = {view: [] for view in VIEWS}
        self.kept: dict[str, set[int]] = {view: set() for view in VIEWS}

    def teardown(self):
        if hasattr(self, "folder"):
            try:
                store = FeatureStore.open(self.path)
                report = store.check(deep=True)
                assert report.ok, report.damaged
                for view in VIEWS:
                    for number in sorted(self.kept[view]):
                        self.compare(store, view, number, True)
                assert store.has(keys_for(sorted(self.rows))).all()
            finally:
                shutil.rmtree(self.folder)

    # -- writing -----------------------------------------------------------------------------------------------------

    @rule(client=st.integers(0, 1), numbers=NUMBERS, fail=st.integers(0, 12), after=st.booleans())
    def append(self, client, numbers, fail, after):
        store, disk = self.clients[client], self.disks[client]
        disk.left, disk.after = fail, after
        self.ever |= set(numbers)
        codes = {"x": np.stack([row(n) for n in numbers]) if numbers else np.zeros((0, 3), "f4")}
        constant = np.asarray([n % 7 == 0 for n in numbers], bool)
        try:
            store.append(keys_for(numbers), codes, constant=constant)
            self.rows |= set(numbers)
        except OSError:
            # Nothing was promised; a shard may be there nevertheless (its folder's sync failed), and is right then.
            fresh = FeatureStore.open(self.path)
            there = fresh.has(keys_for(numbers))
            self.rows |= {n for n, has in zip(numbers, there, strict=True) if has}
        finally:
            disk.left = 0

    @rule(client=st.integers(0, 1), view=st.sampled_from(VIEWS), data=st.data(), keep_old=st.booleans(),
          stale=st.booleans(), fail=st.integers(0, 25), after=st.booleans())  # fmt: skip
    def commit(self, client, view, data, keep_old, stale, fail, after):
        store, disk = self.clients[client], self.disks[client]
        ids = data.draw(st.lists(st.integers(0, 30), max_size=25, unique=True))
        contents = st.one_of(st.none(), st.sampled_from(sorted(self.rows))) if self.rows else st.none()
        new = {f"{i:02d}.jpg": (data.draw(contents), data.draw(LABELS)) for i in ids}
        head = self.states[view][-1] if self.states[view] else {}
        parent, known = None, head
        if not self.kept[view]:
            head = known = {}  # the view was dropped as a whole; its numbers go on
        elif stale and head:
            # What this client saw some time ago; other writers may have committed since.
            number = data.draw(st.sampled_from(sorted(self.kept[view])[-3:]))
            parent, known = store.snapshot(view, number), self.states[view][number]
        upserts = {i: line for i, line in new.items() if known.get(i) != line}
        removed = set() if keep_old else known.keys() - new.keys()
        after_commit = {i: line for i, line in head.items() if i not in removed} | upserts
        disk.left, disk.after = fail, after
        count = len(self.states[view])
        try:
            store.commit(self.entries(new), view=view, keep_old=keep_old, parent=parent, roles={"label": "label"})
            failed = False
        except OSError:
            failed = True
        disk.left = 0
        made = count in FeatureStore.open(self.path).snapshots(view)
        if made:
            self.states[view].append(after_commit)
            self.kept[view].add(count)
        elif not failed:
            assert not upserts and not removed, "acknowledged, so it is there"

    @rule(client=st.integers(0, 1), view=st.sampled_from(VIEWS))
    def commit_what_is_not_there(self, client, view):
        missing = sorted(set(range(41)) - self.ever)[:1]
        if missing:
            try:
                self.clients[client].commit(self.entries({"x.jpg": (missing[0], "")}), view=view, keep_old=True)
                raise AssertionError("a line without codes was accepted")
            except StoreError:
                pass

    @staticmethod
    def entries(lines):
        ids = list(lines)
        contents = [lines[i][0] for i in ids]
        status = [FAILED if c is None else CONSTANT if c % 7 == 0 else OK for c in contents]
        return Entries(
            np.asarray(ids, np.str_),
            np.stack([np.frombuffer(b"\0" * 32 if c is None else key(c), "u1") for c in contents])
            if ids
            else np.zeros((0, 32), "u1"),
            np.asarray(status, "u1"),
            np.asarray(["torn" if c is None else "" for c in contents], np.str_),
            {"label": np.asarray([lines[i][1] for i in ids], np.str_)},
        )

    # -- keeping -----------------------------------------------------------------------------------------------------

    @rule(client=st.integers(0, 1), view=st.sampled_from(VIEWS), data=st.data(), fail=st.integers(0, 6),
          after=st.booleans())  # fmt: skip
    def retire(self, client, view, data, fail, after):
        kept = sorted(self.kept[view])
        numbers = data.draw(st.lists(st.sampled_from(kept[:-1]), unique=True)) if kept[:-1] else []
        whole = bool(kept) and data.draw(st.integers(0, 9)) == 0
        if not numbers and not whole:
            return
        disk = self.disks[client]
        disk.left, disk.after = fail, after
        with contextlib.suppress(OSError):
            self.clients[client].retire(view, None if whole else numbers)
        disk.left = 0
        left = set(FeatureStore.open(self.path).snapshots(view))
        assert left <= self.kept[view] and self.kept[view] - left <= (set(kept) if whole else set(numbers))
        self.kept[view] = left

    @rule(client=st.integers(0, 1), view=st.sampled_from(VIEWS), fail=st.integers(0, 12), after=st.booleans())
    def compact(self, client, view, fail, after):
        store, disk = self.clients[client], self.disks[client]
        disk.left, disk.after = fail, after
        try:
            store.compact(view)
            done = True
        except OSError:
            done = fail == 0 and not self.kept[view]
            assert done or fail
        disk.left = 0
        if done and fail == 0 and self.kept[view] and self.states[view][max(self.kept[view])]:
            newest = FeatureStore.open(self.path)
            rows = sum(c is not None for c, _ in self.states[view][max(self.kept[view])].values())
            if rows and newest.nodes:
                folder = set((self.path / "index").glob("gathered*"))
                X = newest.load(view, in_memory=False).X
                assert (
                    len(X) == rows
                    and not X.flags.writeable
                    and not set((self.path / "index").glob("gathered*")) - folder
                )

    @rule(client=st.integers(0, 1), fail=st.integers(0, 20), after=st.booleans(), dry=st.booleans())
    def gc(self, client, fail, after, dry):
        """Without a grace period: what no kept state names may go, at once; nothing else."""
        store, disk = self.clients[client], self.disks[client]
        disk.left, disk.after = fail, after
        with contextlib.suppress(OSError):
            store.gc(grace_days=0, dry_run=dry)
        disk.left = 0
        live = {c for v in VIEWS for n in self.kept[v] for c, _ in self.states[v][n].values() if c is not None}
        fresh = FeatureStore.open(self.path)
        there = {n for n in self.rows if fresh.has(keys_for([n]))[0]}
        assert live <= there, live - there
        self.rows = there
        for client_ in self.clients:
            client_.refresh()

    # -- reading -----------------------------------------------------------------------------------------------------

    @rule(client=st.integers(0, 1), view=st.sampled_from(VIEWS), data=st.data(), in_memory=st.booleans())
    def load(self, client, view, data, in_memory):
        if self.kept[view]:
            number = data.draw(st.sampled_from(sorted(self.kept[view])))
            self.compare(self.clients[client], view, number, in_memory)

    def compare(self, store, view, number, in_memory):
        lines = self.states[view][number]
        snapshot = store.snapshot(view, number)
        assert snapshot.entries.ids.tolist() == sorted(lines)
        failed = snapshot.entries.status == FAILED
        assert snapshot.entries.ids[failed].tolist() == sorted(i for i, (c, _) in lines.items() if c is None)
        constant = snapshot.entries.status == CONSTANT
        assert constant.sum() == sum(c is not None and c % 7 == 0 for c, _ in lines.values())
        good = {i: line for i, line in sorted(lines.items()) if line[0] is not None}
        if not store.nodes:
            assert not good
            return
        found = store.load(view, snapshot=number, in_memory=in_memory)
        assert found.ids.tolist() == list(good)
        assert np.array_equal(found.X, np.asarray([row(c) for c, _ in good.values()], "f4").reshape(-1, 3))
        assert found.columns["label"].tolist() == [label for _, label in good.values()] if good else True

    @rule(client=st.integers(0, 1), numbers=NUMBERS)
    def look_up(self, client, numbers):
        store = self.clients[client]
        store.refresh()
        for n, has, status in zip(numbers, store.has(keys_for(numbers)), store.status(keys_for(numbers)), strict=True):
            assert has if n in self.rows else n in self.ever or not has
            assert status == (FAILED if not has else CONSTANT if n % 7 == 0 else OK)
        there = [n for n in numbers if n in self.rows]
        if there:
            assert np.array_equal(store.codes(keys_for(there), "x"), np.stack([row(n) for n in there]))

    # -- what happens to a store -------------------------------------------------------------------------------------

    @rule(client=st.integers(0, 1))
    def reopen(self, client):
        self.clients[client] = FeatureStore.create(self.path, SPEC, disk=self.disks[client])

    @rule(client=st.integers(0, 1), what=st.sampled_from(["tmp", "no index", "bad index", "old index"]))
    def crash(self, client, what):
        """The client dies; what it was doing may have left something."""
        index = next((self.path / "index").glob("rows-*.run"), self.path / "index" / "rows-1.run")
        if what == "tmp":
            (self.path / "tmp" / f"{len(list(self.path.rglob('*')))}.h5").write_bytes(b"FEATCACH half")
        elif what == "no index":
            shutil.rmtree(self.path / "index")
        elif what == "bad index" and index.exists():
            index.write_bytes(index.read_bytes()[:-3])
        elif what == "old index":
            kept = self.folder / "kept.run"
            if kept.exists() and index.parent.exists():
                shutil.copy(kept, index)
            elif index.exists():
                shutil.copy(index, kept)
        self.reopen(client)

    @precondition(lambda self: hasattr(self, "path"))
    @invariant()
    def nothing_is_half_there(self):
        for view in VIEWS:
            folder = self.path / "snapshots" / view
            names = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
            every = {f"{n:08d}.h5" for n in range(len(self.states[view]))}
            assert {f"{n:08d}.h5" for n in self.kept[view]} <= names
            assert {n for n in names if n.endswith(".h5")} <= every


COMMON = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "derandomize": True,
    "phases": [Phase.generate, Phase.shrink],
}
TestStore = StoreMachine.TestCase
TestStore.settings = settings(max_examples=20, stateful_step_count=25, **COMMON)


class ThoroughMachine(StoreMachine):
    """The same, longer."""


TestStoreThoroughly = pytest.mark.slow(ThoroughMachine.TestCase)
TestStoreThoroughly.settings = settings(max_examples=400, stateful_step_count=60, **COMMON)
