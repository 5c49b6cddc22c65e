"""Repairs that fail or die half-way, and damage anywhere: nothing that was good is lost, and the count is exact."""

import errno

import pytest
from builders import in_child, result_of


def run(call, *arguments):
    return result_of(in_child(call, *arguments, module="repairing", timeout=290))


def wrong(outcomes):
    return [o for o in outcomes if o["problems"]][:3]


@pytest.mark.parametrize(
    ("number", "how", "first"), [(errno.EIO, "before", 1), (errno.ENOSPC, "half", 2), (None, "kill", 3)]
)
def test_a_repair_that_fails_or_dies_loses_nothing_and_can_be_repeated(number, how, first):
    outcomes = run("every_call", number, how, 31, first)
    assert not wrong(outcomes) and len(outcomes) > 1
    assert {"done", "killed" if number is None else "raised"} <= {o["outcome"] for o in outcomes}


@pytest.mark.slow
@pytest.mark.parametrize("how", ["before", "after", "half", "kill", "kill half"])
def test_a_repair_that_fails_or_dies_at_each_call(how):
    assert not wrong(run("every_call", None if "kill" in how else errno.EIO, how, 1))


def test_bits_flipped_anywhere_in_the_shards():
    outcomes = run("random_flips", 8, 0)
    assert not wrong(outcomes) and sum(o["repaired"] for o in outcomes) > 8


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 4))
def test_many_bits_flipped_anywhere_in_the_shards(seed):
    assert not wrong(run("random_flips", 150, seed))
