"""Running statistics and dropout of frozen blocks stay as they are, bit for bit."""

import pytest
import torch
from torch import nn

import featcache as fc
from featcache.errors import HandoffError
from featcache.finetuning import blocks_of, set_training


def network(arch="resnet18", **options):
    backbone = fc.Backbone(
        arch, weights="random", nodes="penultimate", preprocess={"resize": 64, "crop": 64}, model_kwargs=options
    )
    top = nn.Sequential(nn.Flatten(), nn.LazyLinear(3), nn.BatchNorm1d(3))
    return fc.assemble(backbone, top, list("abc"))


def buffers_after_steps(model, steps=2):
    """Return which buffers a few steps of training moved, by name."""
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    model.requires_grad_(True)
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 64, 64, generator=generator)).square().mean().backward()
        optimizer.step()
    return {name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])}


def within(model, names):
    """Buffers of the named blocks."""
    paths = {path for block in blocks_of(model) if block.name in names for path in block.modules}
    return {name for name, _ in model.named_buffers() if name.rpartition(".")[0] in paths}


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "densenet121"])
def test_buffers_of_frozen_blocks_are_bit_equal_and_the_others_move(arch):
    model = network(arch)
    names = [block.name for block in blocks_of(model)]
    frozen = names[: len(names) // 2]
    moved = buffers_after_steps(set_training(model, frozen))
    assert not moved & within(model, frozen)
    assert moved == within(model, names[len(names) // 2 :]) | {f"top.2.{n}" for n in (
        "running_mean", "running_var", "num_batches_tracked")}  # fmt: skip


def test_the_policies():
    names = [block.name for block in blocks_of(network())]
    top = {"top.2.running_mean", "top.2.running_var", "top.2.num_batches_tracked"}
    model = network()
    assert buffers_after_steps(set_training(model, names)) == top
    model = network()
    assert buffers_after_steps(set_training(model, batch_norm="all")) == top
    model = network()
    assert buffers_after_steps(set_training(model, names, batch_norm="none")) == within(model, names) | top
    model = network()
    assert buffers_after_steps(set_training(model)) == within(model, names) | top
    assert not buffers_after_steps(model.eval())


def test_dropout_of_frozen_blocks_is_off():
    model = network("densenet121", drop_rate=0.5)
    names = [block.name for block in blocks_of(model)]
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    set_training(model, names)
    with torch.no_grad():
        first, again = (model.trunk(x)[model.node] for _ in range(2))
        assert torch.equal(first, again)
        set_training(model, names[:-1], batch_norm="all")
        with torch.random.fork_rng():
            first, again = (model.trunk(x)[model.node] for _ in range(2))
        assert not torch.equal(first, again)


def test_unknown_blocks_and_policies_are_refused():
    model = network()
    with pytest.raises(HandoffError, match=r"layer9.*layer4\.1") as caught:
        set_training(model, ["layer4.1", "layer9"])
    assert "\n" not in str(caught.value)
    with pytest.raises(HandoffError, match="frozen, all, none"):
        set_training(model, batch_norm="some")
    with pytest.raises(HandoffError, match="to_module or assemble"):
        set_training(nn.Linear(1, 1))
