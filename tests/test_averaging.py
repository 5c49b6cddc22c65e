"""Means of weights: SWA, EMA, WiSE-FT, and statistics of batch norms for weights that no step has made."""

import pytest
import torch
from finetuning_parts import TinyNet, blocks_of_tiny, make_feed, run, same
from safetensors.torch import load_file

from featcache.finetuning import Stage, Training
from featcache.finetuning.averaging import between, choose_alpha, refresh_norms
from featcache.finetuning.evaluating import Judged
from featcache.finetuning.modes import set_modes

STAGE = Stage("all", 4, 12, lr=1e-2, backbone_lr=1e-2, schedule="constant")


def weights_after(tmp_path, epochs):
    """The weights at the end of an epoch, as a run of so many epochs has them."""
    stage = Stage("all", epochs, 12, lr=1e-2, backbone_lr=1e-2, schedule="constant")
    model = run(tmp_path / f"to{epochs}", Training(stage, restore_best=False)).model
    return {name: value.clone() for name, value in model.state_dict().items()}


def test_swa_is_the_mean_of_the_last_epochs(tmp_path):
    trained = run(tmp_path / "swa", Training(STAGE, average="swa", average_from=3))
    third, fourth = weights_after(tmp_path, 3), weights_after(tmp_path, 4)
    for name, value in trained.model.state_dict().items():
        assert torch.allclose(value.double(), (third[name].double() + fourth[name].double()) / 2, atol=1e-6)
    assert trained.final["weights"].startswith("swa")


def test_ema_of_no_memory_is_the_last_step_and_of_all_memory_the_first(tmp_path):
    last = run(tmp_path / "last", Training(STAGE, average="ema", ema_decay=0.0))
    assert same(last.model, run(tmp_path / "plain", Training(STAGE, restore_best=False)).model)
    first = run(tmp_path / "first", Training(STAGE, average="ema", ema_decay=1.0))
    assert not same(first.model, last.model)


def test_without_an_epoch_that_counts_the_best_weights_stand_in(tmp_path):
    trained = run(tmp_path, Training(STAGE, average="swa", average_from=9))
    assert any("no epoch counted" in note for note in trained.notes) and trained.final["weights"].startswith("best")


@pytest.mark.parametrize("batch_norm", ["frozen", "trained"])
def test_interpolation_ends_are_the_two_networks(tmp_path, batch_norm):
    def stages(alpha):
        training = Training(
            (Stage("head", 2, 12, lr=1e-2), STAGE), interpolate=alpha, restore_best=False, batch_norm=batch_norm
        )
        return run(tmp_path / f"{alpha}", training)

    head_only = run(tmp_path / "head", Training(Stage("head", 2, 12, lr=1e-2), restore_best=False))
    assert same(stages(0.0).model, head_only.model)
    assert same(stages(1.0).model, stages(None).model)
    half = stages(0.5)
    assert not same(half.model, head_only.model) and half.final["alpha"] == 0.5


def test_auto_is_not_worse_on_the_validation_rows_than_either_end(tmp_path):
    training = Training((Stage("head", 2, 12, lr=1e-2), STAGE), interpolate="auto")
    trained = run(tmp_path, training)
    tried = trained.final["tried"]
    assert len(tried) == 11
    best = max(tried, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert trained.final["alpha"] == best["alpha"]
    assert (trained.final["val_accuracy"], trained.final["val_loss"]) == (best["val_accuracy"], best["val_loss"])


def test_a_run_of_the_head_alone_has_nothing_to_interpolate(tmp_path):
    trained = run(tmp_path, Training(Stage("head", 1), interpolate=0.5))
    assert "alpha" not in trained.final and any("interpolate" in note for note in trained.notes)


def test_between_two_networks():
    a, b = TinyNet(seed=0).state_dict(), TinyNet(seed=1).state_dict()
    middle = between(a, b, 0.25)
    assert torch.allclose(middle["head.weight"], 0.75 * a["head.weight"] + 0.25 * b["head.weight"])
    assert middle["one.1.num_batches_tracked"].dtype == torch.int64


def test_of_equally_good_places_the_first_is_taken():
    alpha, tried = choose_alpha(lambda a: Judged(1.0, 0.5 + (a in (0.3, 0.7))))
    assert alpha == 0.3 and len(tried) == 11


def test_statistics_are_estimated_for_the_norms_that_train_and_no_others():
    model = TinyNet()
    blocks, feed = blocks_of_tiny(model), make_feed()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    set_modes(model, blocks, Stage(1), "trained")
    images = feed.batch(feed.rows["train"], 0, 0, 0, False)[0]
    assert refresh_norms(model, lambda: [images])
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"three.1.running_mean", "three.1.running_var", "three.1.num_batches_tracked"}
    with torch.no_grad():
        inner = model.three[0](model.two(model.one(images)))
    assert torch.allclose(model.three[1].running_mean, inner.mean((0, 2, 3)), atol=1e-5)
    assert not any(module.training for module in model.modules()) and model.three[1].momentum == 0.1
    set_modes(model, blocks, Stage(1), "frozen")
    assert not refresh_norms(model, lambda: [images])


def test_the_final_weights_are_on_disk(tmp_path):
    trained = run(tmp_path, Training(STAGE, average="ema"))
    assert all(torch.equal(v, trained.model.state_dict()[k]) for k, v in load_file(trained.weights).items())
