"""Out of memory in the forward pass, the backward pass, the optimiser's step and the evaluation."""

import numpy as np
import pytest
import torch
from finetuning_parts import RECIPE, TinyNet, make_feed, make_source, run, same
from torch import nn

from featcache.errors import FinetuneError
from featcache.finetuning import ImageFeed, Stage, Training
from featcache.finetuning.memory import is_out_of_memory, pieces


class Fails(torch.autograd.Function):
    """Passes values on, and runs out of memory on the way back when a batch is too large."""

    @staticmethod
    def forward(ctx, x, net):
        ctx.net = net
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient):
        ctx.net.fail("backward", len(gradient))
        return gradient, None


class Hungry(TinyNet):
    """Runs out of memory in one place for more than so many images."""

    def __init__(self, place="", most=10**9, error=None):
        super().__init__()
        self.place, self.most, self.failures = place, most, 0
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    def fail(self, place, n):
        if place == self.place and n > self.most:
            self.failures += 1
            raise self.error

    def forward(self, x):
        x = self.two(self.one(x))
        # After batch norms have seen the batch: their statistics have to be taken back.
        self.fail("forward" if torch.is_grad_enabled() else "evaluation", len(x))
        scores = self.head(self.three(x).mean((2, 3)))
        return Fails.apply(scores, self) if torch.is_grad_enabled() else scores


def training(**options):
    stages = (Stage("head", 1, 16, lr=1e-2), Stage("all", 2, 16, lr=1e-2))
    return Training(stages, **{"restore_best": False, "checkpoint_minutes": 0.0, **options})


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=["cuda", "cpu", "python"])
@pytest.mark.parametrize("place", ["forward", "backward", "evaluation"])
def test_the_run_completes_with_half_of_the_images_at_once(tmp_path, place, error):
    said, model, feed = [], Hungry(place, 5, error), make_feed()
    # Statistics of batch norms that train depend on what they see at once; all else does not.
    trained = run(tmp_path / "hungry", training(), feed, model, say=said.append)
    assert model.failures == 2  # 16, 8, then 4
    assert [row["micro_batch"] for row in trained.history][-1] == 4
    halvings = [text for text in said if "out of memory" in text]
    assert len(halvings) == 2 and "8 images at once; going on with 4" in halvings[1]
    assert trained.notes.count(halvings[0]) == 1
    plain = run(tmp_path / "plain", training(), feed)
    for ours, theirs in zip(trained.history, plain.history, strict=True):
        assert ours["val_loss"] == pytest.approx(theirs["val_loss"], abs=2e-2)
    steps = [len(list(feed.rows["train"])) // 16 + 1] * 3
    assert trained.final["taken"] == plain.final["taken"] == sum(steps)


def test_a_failed_attempt_leaves_no_trace(tmp_path):
    """With the size known from the start, the same bits: gradients, statistics and randomness were taken back."""
    options = {"batch_norm": "trained"}
    hungry = run(tmp_path / "a", training(**options), model=Hungry("forward", 4), say=lambda text: None)
    # What is known from the start is a setting, here only its effect is wanted.
    known = Hungry("forward", 4)
    known.most = 10**9
    small = run(tmp_path / "b", training(micro_batch=4, **options), model=known)
    assert same(hungry.model, small.model)


class Heavy(torch.optim.SGD):
    """Runs out of memory in its third step, when half of the weights have changed already."""

    failures = 0

    def step(self, closure=None):
        group = self.param_groups[0]
        if Heavy.failures == 0 and group.setdefault("steps", 0) == 2:
            Heavy.failures += 1
            with torch.no_grad():
                group["params"][0].mul_(7.0)
            raise torch.OutOfMemoryError("CUDA out of memory")
        group["steps"] = group.get("steps", 0) + 1
        return super().step(closure)


@pytest.mark.parametrize("minutes", [0.0, 5.0])
def test_in_the_optimisers_step_the_last_checkpoint_is_taken_up(tmp_path, minutes):
    Heavy.failures = 0
    stage = Stage("all", 2, 6, lr=1e-2, optimizer=Heavy)
    settings = Training(stage, checkpoint_minutes=minutes, restore_best=False)
    said = []
    failed = run(tmp_path / "a", settings, say=said.append)
    assert Heavy.failures == 1 and any("out of memory" in text for text in said)
    assert failed.history[-1]["micro_batch"] == 3
    plain = run(tmp_path / "b", settings)  # fails no more
    assert failed.history[-1]["train_loss"] == pytest.approx(plain.history[-1]["train_loss"], abs=1e-2)
    assert failed.final["taken"] == plain.final["taken"]
    weights = zip(failed.model.parameters(), plain.model.parameters(), strict=True)
    assert max(float((a - b).abs().max()) for a, b in weights) < 1e-2


def test_a_resumed_run_remembers_the_size(tmp_path):
    class Stop(Exception):
        pass

    class Stops:
        def __enter__(self):
            return self

        def __exit__(self, *exc):
            return None

        def start(self, what, total):
            return None

        def advance(self, steps=1, note=""):
            if "epoch 2/2" in note:
                raise Stop

    with pytest.raises(Stop):
        run(tmp_path, training(), model=Hungry("forward", 5), progress=Stops(), say=lambda text: None)
    model, said = Hungry("forward", 5), []
    run(tmp_path, training(), model=model, say=said.append)
    assert model.failures == 0 and not any("out of memory" in text for text in said)


def test_with_one_image_it_is_an_error_in_one_line(tmp_path):
    for place in ("forward", "backward", "evaluation"):
        with pytest.raises(FinetuneError, match="out of memory with one image") as caught:
            run(tmp_path / place, training(), model=Hungry(place, 0), say=lambda text: None)
        assert "\n" not in str(caught.value)


def test_other_errors_are_not_taken_for_it(tmp_path):
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))
    with pytest.raises(RuntimeError, match="shapes"):
        run(tmp_path, training(), model=Hungry("forward", 4, RuntimeError("shapes differ")))


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 33])
@pytest.mark.parametrize("micro", [1, 4, 16])
def test_pieces_cover_a_batch_evenly(n, micro):
    found = list(pieces(n, micro))
    sizes = [piece.stop - piece.start for piece in found]
    assert sum(sizes) == n and max(sizes) <= micro and max(sizes) - min(sizes) <= 1
    assert np.array_equal(np.concatenate([np.arange(n)[piece] for piece in found]), np.arange(n))


def test_a_norm_that_trains_is_told_of_small_pieces(tmp_path):
    said = []
    run(tmp_path, training(micro_batch=4, batch_norm="trained"), say=said.append)
    assert any("batch norms see 4 images" in text for text in said)
    assert isinstance(TinyNet().one[1], nn.BatchNorm2d)


def test_statistics_of_an_averaged_network_are_taken_in_smaller_parts(tmp_path):
    said, model = [], Hungry("evaluation", 5)
    feed = ImageFeed(make_source(), RECIPE, progress=False, val_size=0.0)
    settings = training(batch_norm="trained", average="swa", average_from=1)
    trained = run(tmp_path / "a", settings, feed, model, say=said.append)
    assert model.failures == 2 and sum("statistics of the averaged network" in text for text in said) == 2
    plain = run(tmp_path / "b", settings, feed)
    for ours, theirs in zip(trained.model.buffers(), plain.model.buffers(), strict=True):
        if ours.is_floating_point():  # the mean of the parts' statistics: of means the same, of variances nearly
            assert torch.allclose(ours, theirs, rtol=0.1, atol=0.02)
    assert trained.model.three[1].momentum == 0.1
