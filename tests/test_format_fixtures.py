"""Stores of every format version so far are read for ever; see scripts/make_format_fixtures.py."""

import contextlib
import hashlib
import importlib.util
import json
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from conftest import REPOSITORY

from featcache.errors import DamagedStore, StoreError
from featcache.store import FeatureStore, container

FIXTURES = REPOSITORY / "tests" / "fixtures"
STORES = sorted(FIXTURES.glob("format-*/*.features"))


def expected_of(path):
    said = json.loads(path.with_suffix(".json").read_text(encoding="ascii"))
    with np.load(path.with_suffix(".npz")) as codes:
        return said, dict(codes)


def digests_of(root):
    return {
        p.relative_to(root).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()
        for p in sorted(root.rglob("*"))
        if p.is_file()
    }


def require_all(root, path):
    """Compare everything that a store gives with what it gave when it was made."""
    said, codes = expected_of(path)
    store = FeatureStore.open(root)
    assert (store.spec, store.fingerprint, store.locator) == (said["spec"], said["fingerprint"], said["locator"])
    assert {name: list(shape) for name, shape in store.nodes.items()} == said["nodes"]
    assert {view: store.snapshots(view) for view in store.views} == said["views"]
    for name, expected in said["states"].items():
        state = store.snapshot(name)
        lines = state.entries
        assert (lines.ids.tolist(), lines.status.tolist()) == (expected["ids"], expected["status"])
        assert lines.errors.tolist() == expected["errors"]
        assert hashlib.sha256(lines.keys.tobytes()).hexdigest() == expected["keys"]
        assert (dict(state.roles), dict(state.source)) == (expected["roles"], expected["source"])
        found = {n: [c.dtype.kind, [None if v != v else v for v in c.tolist()]] for n, c in lines.columns.items()}
        assert found == expected["columns"]
        for node in said["nodes"]:
            if f"{name}/{node}" not in codes:
                with pytest.raises(DamagedStore) as caught:
                    store.load(name, node=node)
                assert any(Path(file).name in str(caught.value) for file in said["check"]["damaged"])
                continue
            for in_memory in (True, False):
                data = store.load(name, node=node, in_memory=in_memory)
                assert np.array_equal(np.asarray(data.X, "f4").view("u4"), codes[f"{name}/{node}"].view("u4"))
                assert data.ids.tolist() == [
                    i for i, s in zip(expected["ids"], expected["status"], strict=True) if s != 1
                ]
    report = FeatureStore.open(root).check(deep=True)
    assert report.ok == said["check"]["ok"]
    assert {d["file"]: sorted(d["images"]) for d in report.damaged} == said["check"]["damaged"]


def test_there_are_fixtures_of_this_format_and_they_are_small():
    folder = FIXTURES / f"format-{container.FORMAT_VERSION}"
    assert [p.name for p in sorted(folder.glob("*.features"))] == [
        "damaged.features",
        "half.features",
        "plain.features",
    ]
    assert sum(p.stat().st_size for p in folder.rglob("*") if p.is_file()) < 400_000
    assert any((folder / "half.features" / "trash").iterdir())
    assert list((folder / "plain.features" / "snapshots" / "main").glob("*.retired"))


@pytest.mark.parametrize("path", STORES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_store_of_any_format_reads_as_it_did_and_reading_changes_nothing(tmp_path, path):
    before = digests_of(path)
    shutil.copytree(path, tmp_path / path.name)
    require_all(tmp_path / path.name, path)
    after = digests_of(tmp_path / path.name)
    assert {name: digest for name, digest in after.items() if not name.startswith("index/")} == before
    require_all(tmp_path / path.name, path)  # by its index this time


@pytest.mark.parametrize("path", STORES, ids=lambda p: f"{p.parent.name}-{p.stem}")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_store_of_any_format_reads_from_a_read_only_copy(path):
    """As a user who may not write, also where the tests run as root."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))  # pytest's own folders are root's alone
        place.chmod(0o755)
        root = place / path.name
        shutil.copytree(path, root)
        require_all(root, path)  # imports what is imported late
        shutil.rmtree(root)
        shutil.copytree(path, root)
        before, expected = digests_of(root), expected_of(path)
        for p in [*root.rglob("*"), root]:
            p.chmod(stat.S_IMODE(p.stat().st_mode) & ~0o222 | 0o444 | (0o111 if p.is_dir() else 0))
        stack.callback(lambda: [p.chmod(0o755) for p in [root, *root.rglob("*")] if p.is_dir()])
        assert in_child(lambda: require_read_only(root, *expected)) == 0
        assert digests_of(root) == before


def require_read_only(root, said, codes):
    """Compare codes in memory and the report of a check; a map of gathered rows would need a place to write."""
    if os.geteuid() == 0:
        os.setgid(65534)
        os.setuid(65534)
    assert not os.access(root, os.W_OK)
    store = FeatureStore.open(root)
    for name, expected in codes.items():
        state, _, node = name.partition("/")
        data = store.load(state, node=node, in_memory=True)
        assert np.array_equal(data.X.view("u4"), expected.view("u4"))
    report = store.check(deep=True)
    assert {d["file"]: sorted(d["images"]) for d in report.damaged} == said["check"]["damaged"]


def in_child(act):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            act()
            code = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_damage_costs_the_damaged_rows_only(tmp_path):
    path = FIXTURES / "format-1" / "damaged.features"
    shutil.copytree(path, tmp_path / path.name)
    said, codes = expected_of(path)
    assert set(codes) == {"sound@0/flatten"}
    (name,) = said["check"]["damaged"]
    store = FeatureStore.open(tmp_path / path.name)
    with pytest.raises(DamagedStore) as caught:
        store.load("main")
    assert caught.value.file.endswith(name) and "rows 256–299 of 'x/flatten'" in str(caught.value)
    lost = said["check"]["damaged"][name]
    lines = store.snapshot("main").entries
    assert 0 < len(lost) <= 44 and set(lost) < set(lines.ids.tolist())
    good = lines.take(lines.stored & ~np.isin(lines.ids, lost))
    assert store.codes(good.keys, "flatten").shape == (len(good), 3)


def test_a_retired_state_is_a_part_of_the_next_one_but_not_read(tmp_path):
    path = FIXTURES / "format-1" / "plain.features"
    shutil.copytree(path, tmp_path / path.name)
    store = FeatureStore.open(tmp_path / path.name)
    with pytest.raises(StoreError, match="keeps no snapshot 1"):
        store.load("main@1")
    assert [p.name for p in store.snapshot("main@2").files] == ["00000002.h5", "00000001.h5", "00000000.h5"]


def test_what_was_once_compacted_is_mapped_still(tmp_path):
    path = FIXTURES / "format-1" / "half.features"
    shutil.copytree(path, tmp_path / path.name)
    store = FeatureStore.open(tmp_path / path.name)
    assert [s.path.name.split("-")[0] for s in store.shards] == ["compact"]
    lines = store.snapshot("main").entries
    assert store.has(lines.keys[lines.stored], view_number=1).all()
    data = store.load(node="layer3", in_memory=False)
    assert data.X.dtype == np.float16 and not data.X.flags.owndata
    assert not list((store.path / "index").glob("gathered-*"))


def test_fixtures_are_made_once(tmp_path):
    spec = importlib.util.spec_from_file_location("maker", REPOSITORY / "scripts" / "make_format_fixtures.py")
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert Path(maker.FOLDER).relative_to(FIXTURES).name == f"format-{container.FORMAT_VERSION}"
    with pytest.raises(SystemExit, match="made once"):
        maker.main()
    assert "tests/fixtures/** binary" in (REPOSITORY / ".gitattributes").read_text()
