"""The loop: what is recorded, micro-batches, losses, early stopping, what is said, what is left as it was."""

import json

import numpy as np
import pytest
import torch
from finetuning_parts import RECIPE, TinyNet, make_feed, make_source, run, same, two_stages
from torch import nn

from featcache.errors import FinetuneError
from featcache.finetuning import ImageFeed, Stage, Training, scores_of
from featcache.finetuning.finishing import still_falling
from featcache.finetuning.losses import Objective, class_weights
from featcache.finetuning.memory import MicroBatch
from featcache.finetuning.stepping import Stepper, scaler_for


def test_history_begins_before_the_first_step(tmp_path):
    model, feed = TinyNet(), make_feed()
    rows = feed.rows["val"]
    right = scores_of(model, feed, rows).argmax(1) == feed.labels[rows]
    trained = run(tmp_path / "run", feed=feed, model=model, plot=True)
    first = trained.history[0]
    assert (first["epoch"], first["train_loss"], first["val_accuracy"]) == (0, None, right.mean())
    assert [(row["stage"], row["epoch"]) for row in trained.history] == [(1, 0), (1, 1), (1, 2), (2, 1), (2, 2), (2, 3)]
    assert set(trained.history[-1]["lr"]) == {
        "head",
        "head, no decay",
        "three",
        "three, no decay",
        "two",
        "two, no decay",
    }
    assert all(row["images_per_second"] > 0 and row["micro_batch"] in (16, 8) for row in trained.history[1:])
    kept = json.loads((tmp_path / "run" / "history.json").read_text())
    assert kept["history"] == trained.history and kept["notes"] == trained.notes
    assert trained.curves.read_bytes()[:4] == b"\x89PNG"


def test_training_learns_and_frozen_parts_do_not_change(tmp_path):
    model = TinyNet()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    training = Training(
        Stage(1, epochs=12, batch_size=8, lr=3e-2, backbone_lr=3e-2), batch_norm="trained", restore_best=False
    )
    trained = run(tmp_path, training, model=model)
    losses = [row["train_loss"] for row in trained.history[1:]]
    assert losses[-1] < 0.8 * losses[0]
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {name for name in before if name.startswith(("three", "head"))}
    assert not model.training and trained.model is model


def test_batch_norms_are_frozen_by_default(tmp_path):
    model = TinyNet()
    norms = {n: v.clone() for n, v in model.state_dict().items() if ".1." in n}
    run(tmp_path, Training(Stage("all", epochs=2), restore_best=False), model=model)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in norms.items())


@pytest.mark.parametrize(
    "options", [{}, {"class_weight": "balanced"}, {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)}]
)
def test_gradients_are_means_over_the_effective_batch_whatever_the_micro_batch(options):
    torch.manual_seed(0)
    images, codes = torch.randn(11, 3, 16, 16), torch.tensor([0, 0, 0, 0, 0, 0, 1, 1, 1, 2, 2])
    gradients, losses = [], []
    for limit in (11, 4, 1):
        model = TinyNet().eval()
        objective = Objective.of(Training(Stage(), **options), codes.numpy(), ["a", "b", "c"])
        optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
        before = [p.detach().clone() for p in model.parameters()]
        stepper = Stepper(model, objective, optimizer, scaler_for(False, torch.device("cpu")), False, None)
        losses.append(stepper.step(images, codes, MicroBatch(limit, print), torch.random.fork_rng, "here"))
        gradients.append(
            torch.cat([(b - p.detach()).flatten() for b, p in zip(before, model.parameters(), strict=True)])
        )
    model = TinyNet().eval()
    loss = options.get("loss") or nn.CrossEntropyLoss(class_weights(options.get("class_weight"), codes.numpy(), "abc"))
    value = loss(model(images), codes)
    value.backward()
    direct = torch.cat([p.grad.flatten() for p in model.parameters()])
    for gradient, found in zip(gradients, losses, strict=True):
        assert torch.allclose(gradient, direct, atol=1e-5) and found == pytest.approx(value.item(), abs=1e-5)


def test_class_weights_as_scikit_learn_has_them():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.array([0, 0, 0, 1, 2, 2])
    wanted = compute_class_weight("balanced", classes=np.arange(3), y=labels)
    assert class_weights("balanced", labels, ["a", "b", "c"]).numpy() == pytest.approx(wanted)
    assert class_weights({"b": 3.0}, labels, ["a", "b", "c"]).tolist() == [1.0, 3.0, 1.0]
    for wrong in ("even", {"z": 1.0}, [1.0, 2.0], [1.0, -1.0, 1.0], [float("nan")] * 3):
        with pytest.raises(FinetuneError, match="class_weight"):
            class_weights(wrong, labels, ["a", "b", "c"])


def test_losses_of_any_kind():
    scores, codes = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    mean = float(nn.functional.multi_margin_loss(scores, codes))
    for reduction in ("mean", "sum", "none"):
        objective = Objective(nn.MultiMarginLoss(reduction=reduction))
        assert float(objective.sum(scores, codes)) / objective.total(codes) == pytest.approx(mean, abs=1e-6)


def test_mixup_goes_through_and_depends_on_the_step_alone(tmp_path):
    from torchvision.transforms import v2

    mix = v2.RandomChoice([v2.MixUp(num_classes=3), v2.CutMix(num_classes=3)])
    one = run(tmp_path / "a", two_stages(mix=mix))
    torch.manual_seed(99)
    assert same(one.model, run(tmp_path / "b", two_stages(mix=mix)).model)
    assert not same(one.model, run(tmp_path / "c", two_stages()).model)


def test_the_callers_state_is_left_as_it_was(tmp_path):
    state, python = torch.get_rng_state(), np.random.get_state()[1].tobytes()
    flags = torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory
    run(tmp_path)
    assert torch.equal(state, torch.get_rng_state()) and python == np.random.get_state()[1].tobytes()
    assert flags == (torch.are_deterministic_algorithms_enabled(), torch.utils.deterministic.fill_uninitialized_memory)


def test_mixed_precision_in_bf16_trains(tmp_path):
    trained = run(tmp_path, Training(Stage("all", epochs=3, batch_size=12, lr=1e-2), amp=True))
    assert trained.history[-1]["train_loss"] < trained.history[1]["train_loss"]
    assert {p.dtype for p in trained.model.parameters()} == {torch.float32}


def test_scaled_gradients_of_fp16_survive_a_resume(tmp_path):
    def training(epochs):
        stage = Stage("all", epochs=epochs, batch_size=12, lr=1e-2, schedule="constant")
        return Training(stage, amp="fp16", clip_norm=1.0, restore_best=False)

    whole = run(tmp_path / "whole", training(4))
    run(tmp_path / "parts", training(2))
    assert same(whole.model, run(tmp_path / "parts", training(4)).model)
    assert whole.history[-1]["train_loss"] < whole.history[1]["train_loss"]


def test_clipping_changes_the_run(tmp_path):
    stage = Stage("all", epochs=1, optimizer="sgd", lr=1e-1)
    options = {"restore_best": False}
    one = run(tmp_path / "a", Training(stage, **options))
    assert not same(one.model, run(tmp_path / "b", Training(stage, clip_norm=0.01, **options)).model)


def test_early_stopping_ends_the_stage_and_the_next_one_begins(tmp_path):
    # A rate that is nothing brings nothing better.
    first = Stage("head", epochs=9, lr=1e-12, weight_decay=0.0)
    trained = run(tmp_path, Training((first, Stage("all", epochs=1)), patience=2))
    stages = [row["stage"] for row in trained.history if row["epoch"]]
    assert stages.count(1) <= 4 and stages[-1] == 2 and trained.stopped == "finished"
    assert any("stage 1 (head) ended" in note for note in trained.notes)


def test_the_best_weights_come_back_not_the_last(tmp_path):
    stage = Stage("all", epochs=4, batch_size=8, lr=3.0, backbone_lr=3.0, optimizer="sgd", schedule="constant")
    trained = run(tmp_path, Training(stage, clip_norm=1.0))
    best = max(trained.history, key=lambda row: (row["val_accuracy"], -row["val_loss"]))
    assert (trained.final["val_accuracy"], trained.final["val_loss"]) == (best["val_accuracy"], best["val_loss"])
    assert trained.final["val_accuracy"] >= trained.history[0]["val_accuracy"]


def rows_of(losses, key="val_loss"):
    empty = {"stage": 1, "train_loss": None, "val_loss": None}
    return [{**empty, "epoch": i, key: loss} for i, loss in enumerate(losses)]


def test_when_a_loss_still_falls():
    assert "validation" in still_falling(rows_of([3.0, 2.0, 1.0]))
    assert "training" in still_falling(rows_of([None, 2.0, 1.0], "train_loss"))
    assert not still_falling(rows_of([3.0, 1.0, 2.0])) and not still_falling(rows_of([3.0, 2.0, 1.999]))
    assert not still_falling(rows_of([3.0, 0.5, 2.0, 1.0]))


def test_a_falling_loss_is_said_with_the_command(tmp_path):
    said = []
    stage = Stage("all", epochs=3, batch_size=8, lr=1e-2, backbone_lr=1e-2, schedule="constant", batch_norm="trained")
    trained = run(tmp_path, Training(stage), say=said.append, extend_command="featcache finetune --epochs 20")
    assert trained.falling and any("featcache finetune --epochs 20" in text for text in said)


def test_a_loss_that_explodes_names_the_step_and_keeps_the_checkpoint(tmp_path):
    def loss(scores, codes):
        counted.append(1)
        value = nn.functional.cross_entropy(scores, codes)
        return value * float("nan") if scores.requires_grad and len(counted) > 8 else value

    counted = []
    with pytest.raises(FinetuneError, match=r"stage 1 \(all\), epoch 2, step \d.*finite loss") as caught:
        run(tmp_path, Training(Stage("all", epochs=4, batch_size=6), loss=loss))
    assert "\n" not in str(caught.value) and list(tmp_path.glob("checkpoint-*.pt"))


def test_weights_that_explode_never_reach_a_checkpoint(tmp_path):
    stage = Stage(
        "all", epochs=2, batch_size=36, lr=1e30, backbone_lr=1e30, optimizer="sgd", schedule="constant", warmup=0
    )
    with pytest.raises(FinetuneError, match="finite"):
        run(tmp_path, Training(stage))
    from featcache.finetuning.checkpoints import Checkpoints

    _, state = Checkpoints(tmp_path, print).load()
    assert all(bool(torch.isfinite(value).all()) for value in state["model"].values() if value.is_floating_point())


def test_without_validation_rows(tmp_path):
    feed = ImageFeed(make_source(24), RECIPE, val_size=0.0, progress=False)
    trained = run(tmp_path, Training(Stage("all", epochs=3), patience=1, interpolate="auto"), feed=feed)
    assert trained.history[-1]["val_loss"] is None and "val_loss" not in trained.final and trained.best is None
    assert len(trained.history) == 4


def test_test_rows_are_only_judged_at_the_end(tmp_path):
    feed = make_feed(60, test_size=0.2)
    trained = run(tmp_path, feed=feed)
    rows = feed.rows["test"]
    right = scores_of(trained.model, feed, rows).argmax(1) == feed.labels[rows]
    assert trained.final["test_accuracy"] == right.mean()


def test_a_last_batch_of_one_image_joins_the_one_before(tmp_path):
    feed = ImageFeed(make_source(17), RECIPE, parts={"train": np.arange(17)}, progress=False)
    run(tmp_path, Training(Stage("all", epochs=1, batch_size=8), batch_norm="trained"), feed=feed)
    state = torch.load(
        __import__("io").BytesIO(sorted(tmp_path.glob("checkpoint-*.pt"))[-1].read_bytes().partition(b"\n")[2]),
        weights_only=True,
    )
    assert int(state["model"]["one.1.num_batches_tracked"]) == 2


def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(FinetuneError, match="at most 3"):
        run(tmp_path / "a", Training((Stage("head"), Stage(9))))
    with pytest.raises(FinetuneError, match="device"):
        run(tmp_path / "a", Training(Stage(), device="abacus"))
    assert not (tmp_path / "a").exists()


def test_progress_tells_loss_rate_and_all_images(tmp_path):
    class Told:
        def __init__(self):
            self.totals, self.done, self.notes = [], [], []

        def __enter__(self):
            return self

        def __exit__(self, *exc):
            return None

        def start(self, what, total):
            self.totals.append(total)
            self.done.append(0)

        def advance(self, steps=1, note=""):
            self.done[-1] += steps
            self.notes.append(note)

    told, feed = Told(), make_feed()
    run(tmp_path, feed=feed, progress=told)
    assert told.totals == told.done == [2 * len(feed.rows["train"]), 3 * len(feed.rows["train"])]
    assert "loss" in told.notes[-1] and "lr" in told.notes[-1] and "epoch 3/3" in told.notes[-1]


def handed_over():
    """A network as `to_module` gives it, and a feed for it."""
    from conftest import make_tiny_backbone

    from featcache._modules import ClassifierNetwork

    backbone = make_tiny_backbone(crop=32)
    weight = torch.zeros(3, 512, dtype=torch.float64)
    classes = ["blue", "green", "red"]
    model = ClassifierNetwork(backbone.module(), backbone.nodes[0], weight, weight[:, 0], classes)
    return model, ImageFeed(make_source(18), backbone.preprocess, classes=classes, progress=False)


def test_blocks_of_a_handed_over_network(tmp_path):
    from featcache.finetuning import blocks_of, train

    model, feed = handed_over()
    training = Training((Stage("head", 1, 8), Stage(1, 1, 8, lr=1e-2)))
    trained = train(model, feed, training, tmp_path, blocks=blocks_of(model), progress=False)
    assert len(trained.history) == 3 and np.isfinite(trained.history[-1]["train_loss"])
    assert {"head", blocks_of(model)[-1].name} <= set(trained.history[-1]["lr"])


class Activations:
    """Activations at a cut, computed once: a feed for the network above it."""

    def __init__(self, feed, lower):
        self.ids, self.labels, self.classes, self.rows = feed.ids, feed.labels, feed.classes, feed.rows
        self.digest, self.ahead = feed.digest + " below", True
        with torch.no_grad():
            self.kept = lower.eval()(feed.batch(np.arange(len(feed)), 0, 0, 0, False)[0])

    def __len__(self):
        return len(self.ids)

    def batch(self, rows, stage, epoch, step, augment):
        return self.kept[torch.from_numpy(rows)], torch.from_numpy(self.labels[rows])


def test_training_above_a_cut_is_training_the_whole(tmp_path):
    from featcache.finetuning import blocks_of, split_after, train

    # Not Adam, whose first steps are as long where a gradient is all rounding as where it is large.
    rates = {"lr": 1e-1, "optimizer": "sgd"}
    training = Training((Stage("head", 1, 8, **rates), Stage(1, 3, 8, **rates)), restore_best=False)
    whole, feed = handed_over()
    full = train(whole, feed, training, tmp_path / "full", blocks=blocks_of(whole), progress=False)
    model, _ = handed_over()
    lower, upper = split_after(model, blocks_of(model)[-2].name)
    part = train(upper, Activations(feed, lower), training, tmp_path / "part", blocks=blocks_of(upper), progress=False)
    for ours, theirs in zip(part.history, full.history, strict=True):
        assert ours["lr"] == theirs["lr"] and ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-6)
    for name, value in model.state_dict().items():  # the upper part shares its layers
        assert torch.allclose(value, whole.state_dict()[name], atol=1e-6)
