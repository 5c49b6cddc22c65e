"""Blocks of every family: each parameter in one, in a sensible number, and the network split between them."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn

import featcache as fc
from featcache._modules import ClassifierNetwork, JoinLayers
from featcache.backbone import zoo
from featcache.errors import HandoffError
from featcache.finetuning import blocks_of, head_parameters, set_training, split_after

#: One small member per family → (blocks at the penultimate node, a few of them).
FAMILIES = {
    "alexnet": (7, ("features.0", "classifier.4")),
    "convnext_tiny": (22, ("features.0", "features.1.0", "features.2", "features.7.2")),
    "densenet121": (62, ("features.conv0", "features.denseblock1.denselayer1", "features.transition1")),
    "efficientnet_b0": (18, ("features.0", "features.1.0", "features.8")),
    "efficientnet_v2_s": (42, ("features.0", "features.7")),
    "googlenet": (12, ("conv1", "inception5b")),
    "inception_v3": (16, ("Conv2d_1a_3x3", "Mixed_7c")),
    "maxvit_t": (14, ("stem.0", "blocks.0.layers.0", "classifier.3")),
    "mnasnet0_5": (20, ("layers.0", "layers.8.0", "layers.14")),
    "mobilenet_v2": (19, ("features.0", "features.17", "features.18")),
    "mobilenet_v3_small": (14, ("features.0", "features.12", "classifier.0")),
    "regnet_x_400mf": (23, ("stem", "trunk_output.block1.block1-0")),
    "regnet_y_400mf": (17, ("stem", "trunk_output.block1.block1-0")),
    "resnet18": (9, ("conv1", "layer1.0", "layer4.1")),
    "resnext50_32x4d": (17, ("conv1", "layer4.2")),
    "shufflenet_v2_x0_5": (18, ("conv1", "stage2.0", "conv5")),
    "squeezenet1_1": (9, ("features.0", "features.12")),
    "swin_t": (16, ("features.0", "features.1.0", "features.2", "features.7.1")),
    "swin_v2_t": (16, ("features.0", "features.7.1")),
    "vgg11": (10, ("features.0", "features.18", "classifier.3")),
    "vgg11_bn": (10, ("features.0", "classifier.3")),
    "vit_b_32": (13, ("conv_proj", "encoder.layers.encoder_layer_11")),
    "wide_resnet50_2": (17, ("conv1", "layer4.2")),
}

#: Too large for every run on two cores; their families are in the test of blocks all the same.
HEAVY = {"maxvit_t", "swin_v2_t", "vgg11", "vgg11_bn", "vit_b_32", "wide_resnet50_2", "convnext_tiny", "alexnet"}


def network(backbone, classes=3):
    node = backbone.nodes[-1]
    weight = torch.randn(classes, math.prod(backbone.output_shapes[node]), generator=torch.Generator().manual_seed(0))
    return ClassifierNetwork(backbone.module(), node, weight * 0.1, torch.zeros(classes), list("abc")).eval()


def image(backbone, count=2):
    height, width, channels = backbone.preprocess.shape
    return torch.randn(count, channels, height, width, generator=torch.Generator().manual_seed(1))


def family(arch):
    return arch.split("_")[0].rstrip("0123456789") if not arch.startswith("wide") else "wide"


def test_every_family_that_torchvision_has_is_here():
    assert {family(arch) for arch in zoo.architectures()} == {family(arch) for arch in FAMILIES}


@pytest.mark.parametrize("arch", [pytest.param(a, marks=pytest.mark.slow) if a in HEAVY else a for a in FAMILIES])
def test_each_parameter_is_in_one_block_and_the_parts_make_the_whole(arch):
    backbone = fc.Backbone(arch, weights="random")
    model, x = network(backbone), image(backbone, 1)
    blocks = blocks_of(model)
    count, some = FAMILIES[arch]
    names = [block.name for block in blocks]
    assert len(blocks) == count and not set(some) - set(names), names
    named = [parameter for block in blocks for parameter in block.parameters]
    assert sorted(named) == sorted(name for name, _ in model.named_parameters() if name.startswith("trunk."))
    modules = [module for block in blocks for module in block.modules]
    assert len(modules) == len(set(modules)) and set(modules) <= set(dict(model.named_modules()))
    held = [name for name, module in model.named_modules() if hasattr(module, "running_mean")]
    assert set(held) <= set(modules), "every module with running statistics is in a block"
    possible = [block for block in blocks if block.boundary]
    assert len(possible) == len(blocks) or arch.startswith("densenet")
    with torch.inference_mode():
        scores = model(x)
        for block in {possible[0], possible[len(possible) // 2], possible[-2], possible[-1]}:
            lower, upper = split_after(model, block.name)
            value = lower(x)
            kept = value.clone()
            assert torch.equal(upper(value), scores) and torch.equal(value, kept), block.name
            assert block.node


@pytest.mark.parametrize("arch", ["resnet18", "densenet121", "swin_t"])
def test_shapes_alone_tell_the_blocks(arch):
    """Blocks need no numbers: the larger members, built without memory, have units of the same kind."""
    from featcache.backbone.units import units_of

    for name in (a for a in zoo.architectures() if family(a) == family(arch)):
        model = zoo.build_skeleton(name, {})
        units = units_of(model)
        assert len(units) == len(set(units)) and 9 < len(units) < 150
        weights = [n for n, p in model.named_parameters() if p.ndim > 1]
        assert all(sum(n.startswith(unit + ".") for unit in units) == 1 for n in weights)


def test_the_upper_part_is_the_network_itself():
    backbone = fc.Backbone("embedded")
    model, x = network(backbone), image(backbone)
    blocks = blocks_of(model)
    cut = blocks[-3]
    lower, upper = split_after(model, cut.name)
    assert [block.name for block in blocks_of(upper)] == [block.name for block in blocks[-2:]]
    assert [block.parameters for block in blocks_of(upper)] == [block.parameters for block in blocks[-2:]]
    assert head_parameters(upper) == head_parameters(model) == ("head.weight", "head.bias")
    own = dict(model.named_parameters())
    assert all(own[name] is parameter for name, parameter in upper.named_parameters())
    with torch.no_grad():
        before, activations = model(x), lower(x)
        own[blocks[-1].parameters[0]].mul_(2)
        assert torch.equal(upper(activations), model(x)) and not torch.equal(model(x), before)
    again, rest = split_after(upper, blocks[-2].name)
    with torch.no_grad():
        assert torch.equal(rest(again(activations)), model(x))


def test_gradients_of_the_upper_part_are_those_of_the_whole():
    backbone = fc.Backbone("embedded")
    model, x = network(backbone), image(backbone, 4)
    blocks = blocks_of(model)
    for name in blocks[-1].parameters:
        model.get_parameter(name).requires_grad_(True)
    parameters = [p for p in model.parameters() if p.requires_grad]
    lower, upper = split_after(model, blocks[-2].name)
    whole = torch.autograd.grad(model(x).square().sum(), parameters)
    with torch.no_grad():
        activations = lower(x)
    parts = torch.autograd.grad(upper(activations).square().sum(), parameters)
    assert all(torch.equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_training_the_upper_part_on_kept_activations_is_training_the_whole():
    backbone = fc.Backbone("embedded")
    x, target = image(backbone, 6), torch.tensor([0, 1, 2, 0, 1, 2])
    names = [block.name for block in blocks_of(network(backbone))]
    whole, model = network(backbone), network(backbone)
    lower, upper = split_after(model, names[-3])
    with torch.no_grad():
        activations = lower(x)
    runs = []
    for net, given, frozen in ((whole, x, names[:-2]), (upper, activations, ())):
        trained = [p for b in blocks_of(net) if b.name in names[-2:] for p in b.parameters]
        for name in (*trained, *head_parameters(net)):
            net.get_parameter(name).requires_grad_(True)
        optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.01, momentum=0.9)
        losses = []
        for _ in range(4):
            set_training(net, frozen)
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(net(given), target)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        runs.append(losses)
    assert runs[0] == runs[1] and runs[0][-1] < runs[0][0]
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in whole.state_dict().items())


def test_a_head_on_several_nodes_sets_the_deepest_boundary():
    backbone = fc.Backbone("resnet18", weights="random", nodes="layer2,layer3", preprocess={"crop": 64})
    shapes = [backbone.output_shapes[node] for node in backbone.nodes]
    join = JoinLayers(backbone.nodes, shapes)
    width = sum(math.prod(shape) for shape in shapes)
    model = ClassifierNetwork(backbone.module(), join, torch.ones(2, width), torch.zeros(2), ["a", "b"]).eval()
    x = image(backbone)
    split = [block.name for block in blocks_of(model) if block.boundary]
    assert split == ["conv1", "layer1.0", "layer1.1", "layer2.0", "layer2.1"]
    for name in split:
        lower, upper = split_after(model, name)
        with torch.no_grad():
            assert torch.equal(upper(lower(x)), model(x)), name


def test_a_boundary_is_a_node_of_the_backbone():
    backbone = fc.Backbone("embedded")
    model, x = network(backbone), image(backbone)
    block = blocks_of(model)[-3]
    codes = fc.Backbone("embedded", nodes=block.node, pooling="none").module()(x)
    with torch.inference_mode():
        assert torch.equal(split_after(model, block.name)[0](x), next(iter(codes.values())))


def test_copies_and_pickles_have_the_same_blocks():
    model = network(fc.Backbone("embedded"))
    assert blocks_of(copy.deepcopy(model)) == blocks_of(model)
    again = pickle.loads(pickle.dumps(model))
    assert [b.parameters for b in blocks_of(again)] == [b.parameters for b in blocks_of(model)]


def test_what_cannot_be_split_is_refused_in_one_line():
    model = network(fc.Backbone("embedded"))
    for block in ("layer9", "", blocks_of(model)[0].name + ".0"):
        with pytest.raises(HandoffError, match="no block of this network") as caught:
            split_after(model, block)
        assert "\n" not in str(caught.value)
    with pytest.raises(HandoffError, match="to_module or assemble"):
        blocks_of(nn.Linear(2, 2))
    with pytest.raises(HandoffError, match="to_module or assemble"):
        head_parameters(nn.Linear(2, 2))
    dense = network(fc.Backbone("densenet121", weights="random", preprocess={"crop": 32}, nodes="features.denseblock1"))
    with pytest.raises(HandoffError, match="features.conv0.*got another"):
        split_after(dense, "features.denseblock1.denselayer2")


class Branching(nn.Module):
    """Tracing would take one of the two ways for ever."""

    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(4, 1, 1))
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.body = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)) for _ in range(2)])
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x):
        x = self.stem(x) + self.token
        for part in self.body:
            x = part(x) if x.sum() > -1e9 else x
        return self.norm(x)


def test_a_network_with_hooks_has_blocks_by_its_modules():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = Branching()
    recipe = fc.Preprocess(resize=8, crop=8)
    backbone = fc.Backbone(own, version="1", preprocess=recipe, nodes="output")
    model = network(backbone)
    blocks = blocks_of(model)
    assert [block.name for block in blocks] == ["stem", "body.0.0", "body.0.1", "body.1.0", "body.1.1"]
    assert not any(block.boundary for block in blocks)
    assert "trunk.model.token" in blocks[0].parameters and "trunk.model.norm.weight" in blocks[-1].parameters
    assert sum(len(block.parameters) for block in blocks) == len(list(model.trunk.parameters()))
    with pytest.raises(HandoffError, match="train it as a whole"):
        split_after(model, "stem")


def test_dropout_goes_with_the_block_that_it_feeds():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        own = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), nn.Flatten()
        )
    backbone = fc.Backbone(own, version="1", preprocess=fc.Preprocess(resize=8, crop=8), nodes="output")
    model, x = network(backbone), image(backbone)
    blocks = blocks_of(model)
    assert [block.modules for block in blocks][1] == ("trunk.trunk.2", "trunk.trunk.3")
    lower, upper = split_after(model, "0")
    lower.train()
    assert torch.equal(lower(x), lower(x)), "no dropout below the cut"
    upper.train()
    assert not torch.equal(upper(lower(x)), upper(lower(x)))
