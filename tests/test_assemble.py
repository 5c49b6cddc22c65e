"""One's own network on a backbone's map; new layers that keep the variance, seeded."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn

import featcache as fc
from featcache.errors import HandoffError
from featcache.finetuning import blocks_of, head_parameters, split_after
from featcache.handoff import fresh, initialise


def lower(node="layer2", **options):
    recipe = {"resize": 64, "crop": 64}
    return fc.Backbone("resnet18", weights="random", nodes=node, pooling="none", preprocess=recipe, **options)


def own(channels=128, classes=3):
    return nn.Sequential(
        nn.Conv2d(channels, 16, 3),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, classes),
    )


def test_the_last_blocks_are_replaced():
    backbone, top = lower(), own()
    before, state = torch.get_rng_state(), copy.deepcopy(top.state_dict())
    model = fc.assemble(backbone, top, ["ant", "bee", "cow"], seed=4)
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(v, state[k]) for k, v in top.state_dict().items()), "the user's own is never touched"
    assert model.classes == ["ant", "bee", "cow"] and model.initialised_seed == model.top.initialised_seed == 4
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(x), model.top(backbone.module()(x)[backbone.nodes[0]]))
    assert not model.training and not any(p.requires_grad for p in model.trunk.parameters())
    assert all(p.requires_grad for p in model.top.parameters())
    assert [block.name for block in blocks_of(model)] == ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    assert head_parameters(model) == tuple(f"top.{name}" for name, _ in top.named_parameters())
    below, above = split_after(model, "layer1.1")
    with torch.no_grad():
        assert torch.equal(above(below(x)), model(x))
    assert above.classes == model.classes and head_parameters(above) == head_parameters(model)


def test_the_same_seed_gives_the_same_network():
    first, again, other = (fc.assemble(lower(), own(), list("abc"), seed=s) for s in (1, 1, 2))
    a, b, c = (m.top.state_dict() for m in (first, again, other))
    assert all(torch.equal(a[k], b[k]) for k in a) and any(not torch.equal(a[k], c[k]) for k in a)


def test_without_a_seed_the_numbers_stay():
    top = own()
    model = fc.assemble(lower(), top, list("abc"), seed=None)
    assert all(torch.equal(v, top.state_dict()[k]) for k, v in model.top.state_dict().items())
    assert model.initialised_seed is None


def test_bytes_in_and_tokens_and_lazy_layers():
    backbone = lower()
    top = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.LazyLinear(2))
    model = fc.assemble(backbone, top, ["a", "b"], images="uint8")
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), dtype="u1")
    plain = fc.assemble(backbone, top, ["a", "b"])
    with torch.no_grad():
        scores = model(torch.from_numpy(pixels).permute(0, 3, 1, 2))
        assert torch.equal(scores, plain(torch.from_numpy(backbone.preprocess.normalize(pixels))))
    assert model.top[2].in_features == 512


def test_a_whole_chain_of_stages_can_be_trained():
    """The gradient reaches the top alone, then the unlocked trunk too."""
    model = fc.assemble(lower(), own(), list("abc"))
    x = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    model.train()
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.top.parameters())
    assert all(p.grad is None for p in model.trunk.parameters())
    model.requires_grad_(True)
    model(x).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())


class Fails(nn.Module):
    def forward(self, x):
        raise RuntimeError("no\nidea")


@pytest.mark.parametrize(
    ("top", "classes", "reason"),
    [
        (own(channels=64), list("abc"), "layer2.*128"),
        (own(classes=4), list("abc"), r"expected scores of shape \(2, 3\).*got \(2, 4\)"),
        (nn.Identity(), list("abc"), "got"),
        (Fails(), list("abc"), "no idea"),
        (nn.Sequential(nn.Flatten(), nn.LSTM(128 * 64, 3)), list("abc"), "got tuple"),
        ("resnet", list("abc"), "expected an nn.Module"),
        (own(), ["a", "a", "b"], "distinct"),
        (own(), "abc", "distinct"),
        (own(), [], "distinct"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(top, classes, reason):
    with pytest.raises(HandoffError, match=reason) as caught:
        fc.assemble(lower(), top, classes)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


def test_several_nodes_or_none_are_refused():
    with pytest.raises(HandoffError, match="one node"):
        fc.assemble(lower("layer1,layer2"), own(), list("abc"))
    with pytest.raises(HandoffError, match="expected a Backbone"):
        fc.assemble("resnet18", own(), list("abc"))
    with pytest.raises(HandoffError, match="images"):
        fc.assemble(lower(), own(), list("abc"), images="RGB")
    with pytest.raises(HandoffError, match="seed"):
        fc.assemble(lower(), own(), list("abc"), seed=-1)


# ------------------------------------------------------------------------------------------------ new layers


def test_new_layers_keep_the_variance():
    layers = [nn.Sequential(nn.Conv2d(64, 64, 3, padding=1, padding_mode="circular"), nn.ReLU()) for _ in range(8)]
    deep = initialise(nn.Sequential(*layers), seed=0)
    x = torch.randn(4, 64, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ratio = float(deep(x).square().mean() / x.square().mean())
    assert 0.3 < ratio < 3
    wide = initialise(nn.Sequential(nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 4)))
    assert math.isclose(float(wide[0].weight.detach().std()), math.sqrt(2 / 300), rel_tol=0.02)
    assert math.isclose(float(wide[4].weight.detach().std()), 0.01, rel_tol=0.1)
    assert not wide[0].bias.any() and not wide[4].bias.any()


def test_norms_and_their_statistics_start_over_and_attention_too():
    module = nn.ModuleDict(
        {
            "norm": nn.BatchNorm2d(4),
            "layer": nn.LayerNorm(4),
            "attention": nn.MultiheadAttention(8, 2),
            "names": nn.Embedding(5, 4),
            "last": nn.Linear(4, 2),
        }
    )
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(7)
    initialise(module, seed=3)
    assert torch.equal(module["norm"].running_mean, torch.zeros(4)) and torch.equal(
        module["norm"].weight, torch.ones(4)
    )
    assert int(module["norm"].num_batches_tracked) == 0 and torch.equal(module["layer"].weight, torch.ones(4))
    for name, parameter in module.named_parameters():
        assert not (parameter == 7).any(), name
    again = initialise(copy.deepcopy(module), seed=3)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in module.state_dict().items())


def test_from_scratch_takes_the_top_along():
    model = fc.assemble(lower(), own(), list("abc"), seed=1)
    started = fresh(model, seed=2)
    expected = lower(init_seed=2).module().state_dict()
    assert all(torch.equal(v, expected[k]) for k, v in started.trunk.state_dict().items())
    assert torch.equal(started.top[0].weight, initialise(own(), seed=2)[0].weight)
    assert started.initialised_seed == started.top.initialised_seed == 2 and model.initialised_seed == 1
