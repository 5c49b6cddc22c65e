"""`to_module` in depth: the head's scores on the trunk's own codes, bytes in, export, weights out and in."""

import numpy as np
import pytest
import torch
from conftest import make_tiny_backbone, write_images
from PIL import Image
from safetensors.torch import load_file, save_file
from scipy.special import log_softmax
from torch import nn

import featcache as fc
from featcache._modules import ClassifierNetwork
from featcache.backbone.waking import trainable
from featcache.errors import HandoffError, PreprocessError, WeightsError
from featcache.finetuning import blocks_of
from featcache.handoff import fresh, with_fresh_head
from featcache.preprocess import Preprocess
from featcache.preprocess.inside import PixelsToInput

LINEAR = ["logreg", "softmax", "svm", "ridge", "lda", "centroid"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("modules")
    folder = write_images(tmp / "images", 36, classes=("ant", "bee", "cow"))
    backbone = make_tiny_backbone()
    data = fc.extract(folder, backbone, tmp / "s", precision="fp32", progress=False).load()
    images = [Image.open(folder / name) for name in data.ids]
    pixels = torch.from_numpy(np.stack([backbone.preprocess.pixels(image) for image in images]))
    return backbone, data, images, pixels.permute(0, 3, 1, 2).contiguous()


def codes_of(module, x):
    with torch.inference_mode():
        return module.trunk(x)[module.node].flatten(1).numpy()


@pytest.mark.parametrize("calibrate", [False, True])
@pytest.mark.parametrize("head", LINEAR)
@pytest.mark.parametrize("classes", [2, 3])
def test_scores_are_the_heads_on_the_trunks_own_codes(setting, head, calibrate, classes):
    backbone, data, _, pixels = setting
    kept = np.isin(data.y, ["ant", "bee", "cow"][:classes])
    fitted = fc.fit(head, data.select(kept), calibrate=calibrate)
    module = fc.to_module(fitted, backbone=backbone)
    x = torch.from_numpy(backbone.preprocess.normalize(pixels.permute(0, 2, 3, 1).numpy()))
    with torch.inference_mode():
        scores = module(x).numpy()
    codes = codes_of(module, x)
    if calibrate or head in ("logreg", "softmax", "lda"):
        got, expected = log_softmax(scores, axis=1), np.log(fitted.predict_proba(codes))
    else:
        got, expected = scores, fitted.predict_scores(codes)
    assert np.abs(got - expected).max() <= 1e-4 * max(1.0, np.abs(expected).max())
    assert (np.asarray(module.classes)[scores.argmax(1)] == fitted.predict(codes)).all()


def test_bytes_in_give_the_same_scores(setting):
    backbone, data, _, pixels = setting
    fitted = fc.fit("softmax", data)
    plain, inside = fc.to_module(fitted), fc.to_module(fitted, images="uint8")
    x = torch.from_numpy(backbone.preprocess.normalize(pixels.permute(0, 2, 3, 1).numpy()))
    with torch.inference_mode():
        assert torch.equal(inside.prepare(pixels), x)
        assert torch.equal(inside(pixels), plain(x))
    assert inside.state_dict().keys() == plain.state_dict().keys()
    assert inside.preprocess == plain.preprocess == backbone.preprocess
    assert [b.name for b in blocks_of(inside)] == [b.name for b in blocks_of(plain)]


def test_both_ways_survive_export_with_any_batch(setting):
    _, data, _, pixels = setting
    fitted = fc.fit("centroid", data)
    batch = torch.export.Dim("batch", min=1, max=64)
    other = torch.randint(0, 256, (3, 3, 50, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    for images, x in (("normalized", torch.rand(3, 3, 64, 64)), ("uint8", pixels[:3]), ("uint8", other)):
        module = fc.to_module(fitted, images=images)
        program = torch.export.export(module, (x,), dynamic_shapes=({0: batch},)).module()
        with torch.no_grad():
            for part in (x, x[:1], torch.cat([x, x, x])):
                assert torch.allclose(program(part), module(part), atol=1e-5)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "nearest"])
@pytest.mark.parametrize("resize", [256, 64, (50, 70), None])
def test_other_sizes_are_resized_and_cropped_as_the_recipe_does(interpolation, resize):
    generator = np.random.default_rng(0)
    recipe = Preprocess(resize=resize, crop=56, interpolation=interpolation)
    layer = PixelsToInput(recipe)
    for size in ((90, 120), (121, 57), (40, 300), (33, 44)):
        small = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype="u1"))
        image = small.resize(size[::-1], Image.Resampling.BICUBIC)
        got = layer(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].contiguous())[0]
        expected = recipe(image)
        step = 1 / 255 / min(recipe.std)
        off = np.abs(got.numpy() - expected) / step
        assert off.max() <= (1.01 if interpolation == "bilinear" else 2.01), (size, off.max())
        # With another aspect, Pillow may take its two passes in the other order.
        assert (off > 0.5).mean() < (0.25 if isinstance(resize, tuple) else 0.02), size
        assert interpolation != "nearest" or off.max() == 0


@pytest.mark.real
def test_on_photographs_few_bytes_differ_from_pillows(data_dir):
    files = sorted((data_dir / "datasets" / "clothing10").glob("*/*.jpg"))[::45]
    recipe = Preprocess()
    layer, differing, most = PixelsToInput(recipe), [], 0.0
    for file in files:
        with Image.open(file) as image:
            levels = layer._sized(torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None].float())
            off = np.abs(levels[0].permute(1, 2, 0).numpy() - recipe.pixels(image.convert("RGB")))
        differing.append((off > 0).mean())
        most = max(most, off.max())
    assert most <= 2 and np.mean(differing) < 0.005, (most, np.mean(differing))


def test_what_is_no_picture_is_refused_in_one_line(setting):
    _, data, _, pixels = setting
    module = fc.to_module(fc.fit("ridge", data), images="uint8")
    for wrong in (pixels.float(), pixels[0], pixels[:, :1], pixels.permute(0, 2, 3, 1)):
        with pytest.raises(PreprocessError, match="expected uint8") as caught:
            module(wrong)
        assert "\n" not in str(caught.value)
    with pytest.raises(PreprocessError, match="lanczos"):
        PixelsToInput(Preprocess(interpolation="lanczos"))(torch.zeros(1, 3, 50, 50, dtype=torch.uint8))
    with pytest.raises(HandoffError, match="normalized, uint8"):
        fc.to_module(fc.fit("ridge", data), images="float")


def test_grey_recipes_have_one_channel():
    recipe = Preprocess(resize=16, crop=16, mean=(0.5,), std=(0.25,), channels=1)
    pixels = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = recipe.normalize(pixels.permute(0, 2, 3, 1).numpy())
    assert torch.equal(PixelsToInput(recipe)(pixels), torch.from_numpy(expected))


def test_weights_go_out_and_in_as_safetensors(setting, tmp_path):
    _, data, _, pixels = setting
    module = fc.to_module(fc.fit("svm", data), images="uint8")
    save_file(module.state_dict(), tmp_path / "m.safetensors")
    other = fresh(module, seed=5)
    with torch.inference_mode():
        assert not torch.equal(other.eval()(pixels), module(pixels))
        other.load_state_dict(load_file(tmp_path / "m.safetensors"), strict=True)
        assert torch.equal(other(pixels), module(pixels))


# ------------------------------------------------------------------------------------------------ from random numbers


def test_a_fresh_head_has_its_shape_and_its_seed(setting):
    _, data, _, pixels = setting
    module = fc.to_module(fc.fit("centroid", data), images="uint8")
    before = torch.get_rng_state()
    first, again, other = (with_fresh_head(module, seed) for seed in (1, 1, 2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first.head.weight, again.head.weight) and not torch.equal(first.head.weight, other.head.weight)
    assert first.head.weight.shape == module.head.weight.shape and first.initialised_seed == 1
    assert isinstance(first.prelude, nn.Identity) and not isinstance(module.prelude, nn.Identity)
    assert torch.equal(
        first.trunk.state_dict()[key := next(iter(module.trunk.state_dict()))], module.trunk.state_dict()[key]
    )
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = nn.Linear(module.head.in_features, 3)
    assert torch.equal(first.head.weight, expected.weight) and torch.equal(first.head.bias, expected.bias)
    assert not first.training and all(p.requires_grad for p in first.head.parameters())


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "embedded"])
def test_from_scratch_is_how_torchvision_builds_it(arch):
    options = {} if arch == "embedded" else {"weights": "random", "preprocess": {"crop": 32}}
    backbone = fc.Backbone(arch, **options)
    model = network(backbone)
    started = fresh(model, seed=3)
    name, kwargs, _ = started.trunk.built
    expected = fc.Backbone(
        name, weights="random", init_seed=3, model_kwargs=kwargs, preprocess=backbone.preprocess
    ).module()
    own, theirs = started.trunk.state_dict(), expected.state_dict()
    assert own.keys() == theirs.keys() and all(torch.equal(own[k], theirs[k]) for k in own)
    assert any(not torch.equal(own[k], v) for k, v in model.trunk.state_dict().items())
    assert all(p.requires_grad for p in started.parameters()) and started.initialised_seed == 3
    assert torch.equal(started.head.weight, with_fresh_head(model, 3).head.weight)


def network(backbone, classes=2):
    node = backbone.nodes[-1]
    weight = torch.randn(
        classes, int(np.prod(backbone.output_shapes[node])), generator=torch.Generator().manual_seed(0)
    )
    return ClassifierNetwork(
        backbone.module(), node, weight, torch.zeros(classes), ["a", "b"][:classes], preprocess=backbone.preprocess
    ).eval()


def test_bad_seeds_and_other_networks_are_refused():
    model = network(fc.Backbone("embedded"))
    for seed in (-1, 1.5, True, "0", None):
        with pytest.raises(HandoffError, match="seed"):
            with_fresh_head(model, seed)
    with pytest.raises(HandoffError, match="linear head"):
        with_fresh_head(nn.Linear(2, 2))
    with pytest.raises(HandoffError, match="to_module or assemble"):
        fresh(nn.Linear(2, 2))
    with pytest.raises(HandoffError, match="expected the CPU"):
        fresh(network(fc.Backbone("embedded")).to("meta"))


# ------------------------------------------------------------------------------------------------ the way back


def trained(model):
    """Every number of a trunk moved, running statistics too."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.mul_(1 + 0.1 * torch.rand(tensor.shape, generator=generator))
    return model


@pytest.mark.parametrize("arch", ["embedded", "squeezenet1_1", "swin_t"])
def test_a_trained_trunk_is_a_backbone_again(arch, tmp_path):
    options = {} if arch == "embedded" else {"weights": "random", "preprocess": {"resize": 64, "crop": 64}}
    backbone = fc.Backbone(arch, **options)
    model = trained(network(backbone))
    back = fc.backbone_of_module(model)
    assert back.preprocess == backbone.preprocess and back.nodes == backbone.nodes
    assert back.spec["backbone"]["weights"] != backbone.spec["backbone"]["weights"]
    changed = {key: value for key, value in back.spec["backbone"].items() if key != "weights"}
    assert changed == {key: value for key, value in backbone.spec["backbone"].items() if key != "weights"}
    pixels = np.random.default_rng(0).integers(0, 256, (3, *backbone.preprocess.shape), dtype="u1")
    x = torch.from_numpy(backbone.preprocess.normalize(pixels))
    expected = codes_of(model, x)
    assert np.array_equal(back.module()(x)[back.nodes[0]].flatten(1).numpy(), expected)
    # Codes for a store are computed in chunks and in another layout.
    assert np.allclose(back.encode(pixels)[back.nodes[0]].reshape(3, -1), expected, rtol=1e-4, atol=1e-4)
    # The whole network's own state_dict, prefixes and head and all, from memory and from a file.
    torch.save({"model": model.state_dict()}, tmp_path / "tuned.pth")
    name, kwargs, _ = model.trunk.built
    for weights in (
        model.state_dict(),
        {f"module.{k}": v for k, v in model.state_dict().items()},
        tmp_path / "tuned.pth",
    ):
        again = fc.Backbone(name, weights, model_kwargs=kwargs, preprocess=backbone.preprocess)
        assert again.spec == back.spec


def test_part_of_a_trained_network_is_enough_up_to_its_nodes():
    model = trained(network(fc.Backbone("squeezenet1_1", weights="random", preprocess={"crop": 64})))
    lower = {k: v for k, v in model.state_dict().items() if "features.12" not in k}
    recipe = model.preprocess
    backbone = fc.Backbone("squeezenet1_1", lower, nodes="features.11", preprocess=recipe)
    assert backbone.spec == fc.backbone_of_module(model, nodes="features.11").spec
    with pytest.raises(WeightsError, match=r"features\.12"):
        fc.Backbone("squeezenet1_1", lower, preprocess=recipe).spec  # noqa: B018


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x):
        return self.norm(self.conv(x)).mean((2, 3))


class OwnWithHooks(Own):
    def forward(self, x):
        return super().forward(x) if x.sum() > -1e9 else x


@pytest.mark.parametrize("kind", [Own, OwnWithHooks])
def test_a_network_of_ones_own_comes_back_too(kind):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        backbone = fc.Backbone(kind(), version="7", preprocess=Preprocess(resize=8, crop=8), nodes="output")
    model = trained(network(backbone))
    back = fc.backbone_of_module(model, backbone)
    pixels = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype="u1")
    x = torch.from_numpy(backbone.preprocess.normalize(pixels))
    assert np.array_equal(back.encode(pixels, engine="eager")[back.nodes[0]], codes_of(model, x))
    assert back.spec["backbone"]["version"] == "7"
    with pytest.raises(HandoffError, match="like="):
        fc.backbone_of_module(model)
    with pytest.raises(WeightsError, match="was made with"):
        other = fc.Backbone(nn.Flatten(), version="1", preprocess=Preprocess(resize=8, crop=8), nodes="output")
        fc.backbone_of_module(model, other)
    scratch = fresh(model, seed=1)
    assert not torch.equal(*(next(m.trunk.parameters()) for m in (scratch, model)))


# ------------------------------------------------------------------------------------------------ training behaviour


@pytest.mark.parametrize(
    ("arch", "kwargs"), [("efficientnet_b0", {}), ("densenet121", {"drop_rate": 0.2}), ("convnext_tiny", {})]
)
def test_what_acts_in_training_only_acts_again(arch, kwargs):
    recipe = {"resize": 32, "crop": 32}
    trunk = fc.Backbone(arch, weights="random", model_kwargs=kwargs, preprocess=recipe, init_seed=1).module()
    x = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = next(iter(trunk(x).values()))
        awake = trainable(trunk)
        assert torch.equal(next(iter(awake(x).values())), expected)
        for module in awake.modules():
            module.training = not isinstance(module, nn.BatchNorm2d)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            assert not torch.equal(next(iter(awake(x).values())), expected)
