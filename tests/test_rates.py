"""Who learns how fast: groups, schedules, user's own objects, the range test."""

import functools

import numpy as np
import pytest
import torch
from finetuning_parts import TinyNet, blocks_of_tiny, make_feed, run, same

from featcache.errors import FinetuneError
from featcache.finetuning import Stage, Training, find_lr
from featcache.finetuning.modes import set_modes
from featcache.finetuning.rates import Schedule, factor, groups_of, make_optimizer, trained_blocks


def test_the_head_learns_ten_times_as_fast_and_each_block_slower_than_the_one_above():
    model = TinyNet()
    groups = groups_of(model, blocks_of_tiny(model), Stage("all", lr=1.0, layer_decay=0.5, weight_decay=0.1))
    rates = {group["name"]: group["lr"] for group in groups}
    assert rates["head"] == 1.0 and rates["three"] == pytest.approx(0.1)
    assert rates["two"] == pytest.approx(0.05) and rates["one"] == pytest.approx(0.025)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))


def test_no_weight_decay_on_norms_and_biases():
    model = TinyNet()
    names = {id(p): name for name, p in model.named_parameters()}
    groups = groups_of(model, blocks_of_tiny(model), Stage("all", weight_decay=0.1))
    decayed = {names[id(p)] for g in groups if g["weight_decay"] for p in g["params"]}
    assert decayed == {"one.0.weight", "two.0.weight", "three.0.weight", "head.weight"}


def test_which_blocks_train():
    blocks = blocks_of_tiny(TinyNet())
    assert [b.name for b in trained_blocks(2, blocks)] == ["two", "three"]
    assert [b.name for b in trained_blocks(("three", "one"), blocks)] == ["one", "three"]
    assert trained_blocks("head", blocks) == () and trained_blocks("all", blocks) == blocks
    with pytest.raises(FinetuneError, match="at most 3"):
        trained_blocks(4, blocks)
    with pytest.raises(FinetuneError, match="'four'"):
        trained_blocks(("four",), blocks)


def test_modes_of_a_stage():
    model = TinyNet()
    blocks = blocks_of_tiny(model)
    held = set_modes(model, blocks, Stage(1), "frozen")
    assert held == {"three.1.weight", "three.1.bias"}
    assert model.three[3].training and not model.three[1].training and not model.one[1].training
    learning = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learning == {"three.0.weight", "three.0.bias", "head.weight", "head.bias"}
    assert set_modes(model, blocks, Stage(1), "statistics") == frozenset()
    assert model.three[1].weight.requires_grad and not model.three[1].training
    set_modes(model, blocks, Stage(1), "trained")
    assert model.three[1].training and not model.two[1].training
    set_modes(model, blocks, Stage("head"), "trained")
    assert not any(m.training for m in model.three.modules())


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_schedules_rise_and_fall(schedule):
    stage = Stage(epochs=4, warmup=1.0, schedule=schedule)
    values = [factor(stage, step, 10) for step in range(40)]
    assert values[:10] == pytest.approx(np.arange(1, 11) / 10)
    assert all(a >= b for a, b in zip(values[10:], values[11:], strict=False))
    assert values[-1] == 1.0 if schedule == "constant" else 0 < values[-1] < 0.05


def test_a_schedule_that_spans_more_epochs_is_the_longer_one():
    short, long = Stage(epochs=5, schedule_epochs=10), Stage(epochs=10)
    assert [factor(short, step, 7) for step in range(35)] == [factor(long, step, 7) for step in range(35)]


def test_a_scheduler_of_the_users_is_stepped_and_kept():
    model = TinyNet()
    stage = Stage("head", lr=1.0, schedule=functools.partial(torch.optim.lr_scheduler.StepLR, step_size=2, gamma=0.1))
    optimizer = make_optimizer(stage, groups_of(model, blocks_of_tiny(model), stage))
    schedule, seen = Schedule(stage, optimizer, 2), []
    for step in range(5):
        schedule.before(step)
        seen.append(schedule.rates()["head"])
        optimizer.step()
        schedule.after()
    assert seen == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    other = Schedule(stage, make_optimizer(stage, groups_of(model, blocks_of_tiny(model), stage)), 2)
    other.load(schedule.state())
    assert other.scheduler.last_epoch == 5


@pytest.mark.parametrize(
    "options",
    [
        {"optimizer": functools.partial(torch.optim.RMSprop, momentum=0.5)},
        {"optimizer": "sgd"},
        {"schedule": lambda optimizer: torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, total_steps=100)},
        {"schedule": functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=1)},
    ],
)
def test_objects_of_torch_are_passed_through_and_survive_a_resume(tmp_path, options):
    training = Training(Stage("all", epochs=2, batch_size=12, **options))
    long = Training(Stage("all", epochs=4, batch_size=12, schedule_epochs=4, **options))
    short = Training(Stage("all", epochs=2, batch_size=12, schedule_epochs=4, **options))
    whole = run(tmp_path / "whole", long)
    run(tmp_path / "parts", short)
    assert same(whole.model, run(tmp_path / "parts", long).model)
    assert training.as_dict()["stages"][0]["optimizer"] is not None


def test_factories_that_give_something_else_are_named():
    model = TinyNet()
    with pytest.raises(FinetuneError, match="optimiser"):
        make_optimizer(Stage(optimizer=len), groups_of(model, blocks_of_tiny(model), Stage()))
    with pytest.raises(FinetuneError, match="schedule"):
        Schedule(Stage(schedule=id), make_optimizer(Stage(), groups_of(model, blocks_of_tiny(model), Stage())), 3)


def test_the_range_test_restores_everything_and_suggests_a_rate_that_learns(tmp_path):
    model, feed = TinyNet(), make_feed()
    before, random = {n: v.clone() for n, v in model.state_dict().items()}, torch.get_rng_state()
    model.train()
    training = Training(Stage("all", batch_size=12, lr=1e-3), batch_norm="trained")
    curve = find_lr(
        model, feed, training, blocks=blocks_of_tiny(model), start=1e-5, stop=10.0, steps=60, progress=False
    )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(m.training for m in model.modules()) and all(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters()) and torch.equal(random, torch.get_rng_state())
    assert curve.rates == sorted(curve.rates) and 1e-4 < curve.suggestion < 1.0
    lowest = curve.rates[int(np.argmin(curve.smoothed))]
    assert curve.suggestion < lowest
    assert curve.plot(tmp_path / "rates.png").stat().st_size > 5000
    with pytest.raises(FinetuneError, match="find_lr"):
        find_lr(model, feed, training, blocks=blocks_of_tiny(model), start=1.0, stop=0.1, progress=False)
