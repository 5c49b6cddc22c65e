"""A stranger's store: whatever is in it, one line says so, in little memory and time; nothing outside is touched."""

import json

import pytest
from builders import in_child, result_of
from hostile import HARMS, small

from featcache.store import FeatureStore

PARTS = 4


def take(tmp_path, names, repaired):
    small(tmp_path / "template")
    arguments = str(tmp_path / "template"), str(tmp_path / "work"), names, repaired
    found = result_of(in_child("take_all", *arguments, module="hostile", timeout=290))
    assert [f["harm"] for f in found] == names
    assert not [f for f in found if f["problems"]]


def test_some_hostile_stores(tmp_path):
    take(tmp_path, sorted(HARMS)[::5], 8)


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_all_hostile_stores(tmp_path, part):
    take(tmp_path, sorted(HARMS)[part::PARTS], 1)


def test_the_template_is_a_sound_store(tmp_path):
    small(tmp_path / "s")
    store = FeatureStore.open(tmp_path / "s")
    assert store.check(deep=True).ok and len(store.load()) == 60
    assert json.dumps(store.info(), allow_nan=False)
