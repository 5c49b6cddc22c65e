"""Codes equal plain torchvision: its model with the classifier replaced by Identity, its preset, eager fp32."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms._presets import ImageClassification

from featcache.backbone import Backbone, zoo
from featcache.preprocess import Preprocess

#: Architecture → the attribute that is the classifier.
CLASSIFIERS = {
    "resnet18": "fc",
    "mobilenet_v3_small": "classifier.3",
    "googlenet": "fc",
    "efficientnet_b0": "classifier.1",
    "shufflenet_v2_x0_5": "fc",
    "mnasnet0_5": "classifier.1",
    "regnet_y_400mf": "fc",
    "densenet121": "classifier",
    "vit_b_32": "heads.head",
    "swin_t": "head",
    "swin_v2_t": "head",
    "convnext_tiny": "classifier.2",
    "maxvit_t": "classifier.5",
}
ALWAYS = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "swin_t")


def images(n=2):
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (15, 20, 3), np.uint8)).resize((300, 260)) for _ in range(n)]


def cosines(a, b):
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def plain(model, preset, pictures):
    with torch.inference_mode():
        return model.eval()(torch.stack([preset(p) for p in pictures])).numpy()


def without_classifier(model, path):
    parent, _, leaf = path.rpartition(".")
    setattr(model.get_submodule(parent), leaf, nn.Identity())
    return model


@pytest.mark.parametrize("arch", [a if a in ALWAYS else pytest.param(a, marks=pytest.mark.slow) for a in CLASSIFIERS])
def test_penultimate_equals_the_model_without_its_classifier(arch):
    size = 224 if arch == "maxvit_t" else 64  # small, so that this runs often
    kwargs = {"image_size": size} if arch.startswith("vit") else {}
    recipe = Preprocess(resize=72, crop=size)
    model = zoo.build_random(arch, kwargs, 0)
    backbone = Backbone(arch, model.state_dict(), preprocess=recipe, model_kwargs=kwargs)
    backbone.spec  # noqa: B018 - loads, while the model still has its classifier
    model = without_classifier(model, CLASSIFIERS[arch])
    want = plain(model, ImageClassification(resize_size=72, crop_size=size), images())
    (got,) = backbone.encode(np.stack([recipe.pixels(i) for i in images()])).values()
    assert got.shape == want.shape
    assert cosines(got, want).min() > 0.99999
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


def test_transform_input_is_kept():
    kwargs, recipe = {"transform_input": True}, Preprocess(resize=72, crop=64)
    model = zoo.build_random("googlenet", kwargs | {"init_weights": False}, 0)
    backbone = Backbone("googlenet", model.state_dict(), model_kwargs=kwargs, preprocess=recipe)
    backbone.spec  # noqa: B018 - loads, while the model still has its classifier
    model = without_classifier(model, "fc")
    (got,) = backbone.encode(np.stack([recipe.pixels(i) for i in images()])).values()
    assert cosines(got, plain(model, ImageClassification(resize_size=72, crop_size=64), images())).min() > 0.99999
    assert backbone.spec["backbone"]["kwargs"] == kwargs


@pytest.mark.real
@pytest.mark.parametrize(
    ("arch", "file", "classifier"),
    [
        ("mobilenet_v2", "mobilenet_v2-tf2_ptq_int8.pth", "classifier.1"),
        ("squeezenet1_1", "squeezenet1_1-caffe_ncnn_fp16.pth", "classifier"),
    ],
)
def test_real_weights_on_real_photos(data_dir, arch, file, classifier):
    path = data_dir / "weights" / file
    pictures = sorted((data_dir / "datasets" / "clothing10").glob("*/*.jpg"))[::400]
    model = torchvision.models.get_model(arch, weights=None)
    model.load_state_dict(torch.load(path, weights_only=True))
    if arch == "squeezenet1_1":
        model.classifier = nn.AdaptiveAvgPool2d(1)
    else:
        without_classifier(model, classifier)
    preset = next(iter(torchvision.models.get_model_weights(arch))).transforms()
    want = plain(model, preset, [Image.open(p).convert("RGB") for p in pictures])
    backbone = Backbone(arch, path)
    (got,) = backbone.encode(np.stack([backbone.preprocess.pixels(p.read_bytes()) for p in pictures])).values()
    assert len(pictures) >= 3 and cosines(got, want).min() > 0.99999
