"""The three genuine weights files load, cut where they can be cut, and give sane codes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from featcache.backbone import Backbone, weights, zoo
from featcache.errors import WeightsError

pytestmark = pytest.mark.real


def photos(data_dir, backbone, n=4):
    files = sorted((data_dir / "datasets" / "clothing10").glob("*/*.jpg"))
    chosen = files[:: max(1, len(files) // n)][:n]
    return np.stack([backbone.preprocess.pixels(path.read_bytes()) for path in chosen])


@pytest.mark.parametrize(
    ("name", "nodes"),
    [
        ("mobilenet_v2-tf2_ptq_int8.pth", "penultimate"),
        ("squeezenet1_1-caffe_ncnn_fp16.pth", "penultimate"),
        ("resnet18_upto_layer3-onnx_bnfolded.pth", "layer3"),
    ],
)
def test_real_files(data_dir, name, nodes):
    about = json.loads((data_dir / "weights" / "weights.json").read_text())[name]
    backbone = Backbone(about["arch"], data_dir / "weights" / name, nodes=nodes)
    (codes,) = backbone.encode(photos(data_dir, backbone)).values()
    assert codes.shape == (4, about["feature_dim"])
    assert np.isfinite(codes).all() and codes.std(axis=0).max() > 0
    assert backbone.locator["sha256"] == about["sha256"] == backbone.request()["weights"]["sha256"]
    assert backbone.preprocess.spec()["resize"] == 256
    assert Backbone.from_spec(backbone.spec, backbone.locator).spec == backbone.spec


def test_the_partial_file(resnet18_partial_weights):
    with pytest.raises(WeightsError, match="deepest usable node is 'layer3', pass nodes='layer3'"):
        Backbone("resnet18", resnet18_partial_weights).spec  # noqa: B018
    backbone = Backbone("resnet18", resnet18_partial_weights, nodes="layer3")
    assert backbone.nodes == ("layer3.1.relu_1",)
    assert len(backbone.report.missing) == 20 and not backbone.report.unexpected
    seeded = Backbone("resnet18", resnet18_partial_weights, init_seed=0)
    assert seeded.output_shapes == {"flatten": (512,)}


def test_real_files_are_recognised_when_the_wrong_model_is_named(squeezenet_weights):
    with pytest.raises(WeightsError, match="look like weights of 'squeezenet1_1'"):
        Backbone("mobilenet_v2", squeezenet_weights).spec  # noqa: B018
    shapes = {k: tuple(v.shape) for k, v in weights.read(squeezenet_weights)[0].items()}
    assert zoo.guess_architecture(shapes) == "squeezenet1_1"
