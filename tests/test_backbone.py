"""Backbone: lightness, weights from everywhere, cuts, poolings, identity, and what it says when things do not fit."""

from __future__ import annotations

import copy
import hashlib
import http.server
import json
import pickle
import random
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

from featcache.backbone import Backbone, cut, list_backbones, list_nodes, weights, zoo
from featcache.backbone.crew import crew
from featcache.errors import BackboneError, FeatcacheError, PreprocessError, SpecError, WeightsError, WeightsUnavailable
from featcache.preprocess import Preprocess

SMALL = Preprocess(resize=72, crop=64)
DIMENSIONS = {
    "resnet50": 2048,
    "mobilenet_v2": 1280,
    "squeezenet1_1": 512,
    "vgg16": 4096,
    "vit_b_16": 768,
    "swin_t": 768,
    "swin_v2_t": 768,
    "convnext_tiny": 768,
    "densenet121": 1024,
    "inception_v3": 2048,
    "googlenet": 1024,
    "maxvit_t": 512,
    "efficientnet_b0": 1280,
    "regnet_y_400mf": 440,
    "shufflenet_v2_x0_5": 1024,
    "mnasnet0_5": 1280,
    "mobilenet_v3_small": 1024,
    "alexnet": 4096,
}


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pixels(n=3, size=64, channels=3, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, channels), np.uint8)


def squeezenet(seed=0, **options):
    return Backbone("squeezenet1_1", "random", init_seed=seed, **{"preprocess": SMALL, **options})


def state(arch="squeezenet1_1", seed=3, **kwargs):
    return zoo.build_random(arch, kwargs, seed).state_dict()


def one_line(error):
    text = str(error.value)
    assert "\n" not in text and len(text) < 1200
    return text


# -- lightness ---------------------------------------------------------------------------------------------------------


def test_constructing_and_asking_imports_no_torch(tmp_path):
    file = tmp_path / "w.pth"
    file.write_bytes(b"x")
    code = (
        "import sys\nfrom featcache.backbone import Backbone\n"
        f"Backbone('resnet50').request(); print(Backbone('resnet18', {str(file)!r}).request()['weights'])\n"
        "assert not {'torch', 'torchvision', 'safetensors', 'pooch', 'sklearn', 'h5py'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert hashlib.sha256(b"x").hexdigest() in done.stdout


def test_request_holds_everything_that_could_change_the_spec(tmp_path):
    base = squeezenet().request()
    assert json.loads(json.dumps(base)) == base
    variants = [
        squeezenet(1),
        squeezenet(nodes="features"),
        squeezenet(pooling="max"),
        squeezenet(preprocess=Preprocess(crop=32)),
        squeezenet(model_kwargs={"num_classes": 3}),
        Backbone("squeezenet1_0", "random", init_seed=0, preprocess=SMALL),
    ]
    requests = [json.dumps(b.request(), sort_keys=True) for b in variants] + [json.dumps(base, sort_keys=True)]
    assert len(set(requests)) == len(requests)
    assert squeezenet().request() == base
    assert set(base["versions"]) == {"torch", "torchvision", "featcache"}
    assert Backbone("squeezenet1_1", {}).request() is None


# -- identity ----------------------------------------------------------------------------------------------------------


def test_spec_locator_and_from_spec():
    backbone = squeezenet(2)
    assert backbone.spec["backbone"] == {
        "arch": "squeezenet1_1",
        "kwargs": {},
        "weights": backbone.spec["backbone"]["weights"],
        "nodes": ["features.12.cat"],
        "pooling": {"features.12.cat": "avg"},
        "version": None,
    }
    assert json.loads(json.dumps(backbone.spec)) == backbone.spec
    assert backbone.locator == {"kind": "random", "value": "2"}
    again = Backbone.from_spec(json.loads(json.dumps(backbone.spec)), backbone.locator)
    assert again.spec == backbone.spec
    with pytest.raises(WeightsError, match="backbone.weights"):
        Backbone.from_spec(backbone.spec, {"kind": "random", "value": "9"})


def test_random_weights_are_seeded_and_leave_the_global_random_state_alone():
    before = torch.random.get_rng_state()
    a, b, c = squeezenet(0), squeezenet(0), squeezenet(1)
    assert a.spec == b.spec != c.spec
    a.encode(pixels())
    assert torch.equal(before, torch.random.get_rng_state())
    assert Backbone("squeezenet1_1", "random", preprocess=SMALL).spec == a.spec


def test_digest_covers_upstream_only(tmp_path):
    tensors = state()
    plain = Backbone("squeezenet1_1", tensors, preprocess=SMALL).spec
    head = {**tensors, "classifier.1.bias": tensors["classifier.1.bias"] + 1}
    assert Backbone("squeezenet1_1", head, preprocess=SMALL).spec == plain
    stem = {**tensors, "features.0.bias": tensors["features.0.bias"] + 1}
    assert Backbone("squeezenet1_1", stem, preprocess=SMALL).spec != plain
    assert Backbone("squeezenet1_1", head, preprocess=SMALL, nodes="output").spec != plain


def test_default_is_recorded_as_the_concrete_name(monkeypatch):
    assert zoo.weights_enum("resnet50", "DEFAULT").name == "IMAGENET1K_V2"
    assert zoo.weights_enum("resnet50", "ResNet50_Weights.IMAGENET1K_V1").name == "IMAGENET1K_V1"
    monkeypatch.setattr(Backbone, "_read", lambda self: (state("resnet50"), "x"))
    backbone = Backbone("resnet50")
    assert backbone.locator["value"] == "IMAGENET1K_V2"
    assert backbone.preprocess.resize == 232
    assert Backbone("resnet50", torchvision.models.ResNet50_Weights.IMAGENET1K_V1).preprocess.resize == 256


def test_published_weights_bring_their_arguments():
    member = zoo.weights_enum("googlenet", "DEFAULT")
    assert zoo.implied_kwargs("googlenet", member) == {"transform_input": True}
    assert zoo.implied_kwargs("googlenet", None) == {}
    swag = zoo.weights_enum("vit_b_16", "IMAGENET1K_SWAG_E2E_V1")
    assert zoo.implied_kwargs("vit_b_16", swag) == {"image_size": 384}
    assert zoo.published_as("resnet18", "f37072fd" + 56 * "0").name == "IMAGENET1K_V1"
    assert zoo.published_as("resnet18", 64 * "0") is None


# -- cuts --------------------------------------------------------------------------------------------------------------


def penultimate_width(name):
    return next(row for row in list_nodes(name) if row["penultimate"])["pooled"]


@pytest.mark.parametrize("name", random.Random(0).sample(sorted(DIMENSIONS), 8))
def test_penultimate_width_sample(name):
    assert penultimate_width(name) == [DIMENSIONS[name]]


@pytest.mark.slow
@pytest.mark.parametrize("name", torchvision.models.list_models(module=torchvision.models))
def test_penultimate_of_every_model_feeds_its_classifier(name):
    (width,) = penultimate_width(name)
    assert width == DIMENSIONS.get(name, width)
    model = zoo.build_skeleton(name, {})
    last = [m for m in model.modules() if isinstance(m, (nn.Linear, nn.Conv2d))][-1]
    assert width == (last.in_features if isinstance(last, nn.Linear) else last.in_channels)


def test_node_names_and_modules():
    rows = {row["node"]: row for row in list_nodes("resnet18")}
    assert rows["layer3.1.relu_1"]["module"] == "layer3"
    assert rows["layer3.1.relu_1"]["shape"] == [256, 14, 14]
    resnet = Backbone("resnet18", "random", preprocess=SMALL, nodes=["layer2", "layer3.1.relu_1", "layer3", "output"])
    assert resnet.nodes == ("layer2.1.relu_1", "layer3.1.relu_1", "fc")
    with pytest.raises(BackboneError, match="did you mean") as error:
        Backbone("resnet18", "random", preprocess=SMALL, nodes="layr3").spec  # noqa: B018
    one_line(error)


def test_an_inplace_operation_after_a_node_does_not_reach_its_codes():
    alone = Backbone("resnet18", "random", preprocess=SMALL, nodes="layer1.0.bn1,bn1", pooling="none")
    both = Backbone(
        "resnet18", "random", preprocess=SMALL, nodes="layer1.0.bn1,bn1,layer1.0.bn2,layer2", pooling="none"
    )
    one, two = alone.encode(pixels()), both.encode(pixels())
    assert one["bn1"].min() < 0
    for node, codes in one.items():  # the shorter cut runs in another memory layout, so not bit for bit
        np.testing.assert_allclose(codes, two[node], atol=1e-5)
    model = zoo.build_random("resnet18", {}, 0)
    want = cut.run_with_hooks(model, torch.from_numpy(SMALL.normalize(pixels())), ["layer1.0.bn2"])["layer1.0.bn2"]
    np.testing.assert_allclose(two["layer1.0.bn2"], want.detach().numpy(), atol=1e-4)


def test_poolings():
    maps = squeezenet(pooling="none").encode(pixels())["features.12.cat"]
    assert maps.shape == (3, 512, 3, 3)
    wanted = {
        "avg": maps.mean((2, 3)),
        "max": maps.max((2, 3)),
        "gem": (np.clip(maps, 1e-6, None) ** 3).mean((2, 3)) ** (1 / 3),
    }
    for pooling, want in wanted.items():
        np.testing.assert_allclose(squeezenet(pooling=pooling).encode(pixels())["features.12.cat"], want, rtol=1e-4)
    mixed = squeezenet(nodes="features.3,features.4", pooling={"features.3": "max"})
    assert mixed.spec["backbone"]["pooling"] == {"features.3.cat": "max", "features.4.cat": "avg"}
    with pytest.raises(BackboneError, match="tokens"):
        squeezenet(pooling="cls").spec  # noqa: B018
    with pytest.raises(BackboneError, match="names among the nodes"):
        squeezenet(pooling={"features.3": "max"}).spec  # noqa: B018


def test_pooling_does_nothing_to_a_vector_and_says_so():
    specs = [Backbone("resnet18", "random", preprocess=SMALL, pooling=p).spec for p in ("avg", "max", "cls", "none")]
    assert all(spec == specs[0] for spec in specs)
    assert specs[0]["backbone"]["pooling"] == {"flatten": "none"}


def test_spatial_axes():
    assert cut.applied_pooling("x", (96, 56, 56), "avg", (224, 224)) == ("avg", (2, 3))
    assert cut.applied_pooling("x", (56, 56, 96), "avg", (224, 224)) == ("avg", (1, 2))
    assert cut.applied_pooling("x", (8, 4, 96), "avg", (128, 64)) == ("avg", (1, 2))
    assert cut.applied_pooling("x", (96, 8, 4), "max", (128, 64)) == ("max", (2, 3))
    assert cut.applied_pooling("x", (512, 1, 1), "max", (64, 64)) == ("avg", (2, 3))
    assert cut.applied_pooling("x", (197, 768), "cls", (224, 224)) == ("cls", (1,))
    with pytest.raises(BackboneError):
        cut.applied_pooling("x", (64, 49, 96), "avg", (224, 224))


# -- encode ------------------------------------------------------------------------------------------------------------


def test_rows_depend_neither_on_batch_size_nor_on_neighbours():
    backbone = Backbone("mobilenet_v3_small", "random", preprocess=SMALL)
    batch = pixels(19)
    whole = backbone.encode(batch)["classifier.1"]
    for size in (1, 7, 8, 16):
        parts = [backbone.encode(batch[i : i + size])["classifier.1"] for i in range(0, 19, size)]
        assert np.array_equal(np.concatenate(parts), whole)
    order = np.random.default_rng(1).permutation(19)
    assert np.array_equal(backbone.encode(batch[order])["classifier.1"], whole[order])
    assert whole.dtype == np.float32 and backbone.output_shapes == {"classifier.1": (1024,)}
    assert backbone.encode(batch[:0])["classifier.1"].shape == (0, 1024)


def test_modes():
    full = squeezenet().encode(pixels())["features.12.cat"]
    for mode in ("bf16", "fp16"):
        low = squeezenet().encode(pixels(), mode=mode)["features.12.cat"]
        assert low.dtype == np.float32 and not np.array_equal(low, full)
        cosine = (low * full).sum(1) / np.linalg.norm(low, axis=1) / np.linalg.norm(full, axis=1)
        assert cosine.min() > 0.999
    with pytest.raises(BackboneError, match="fp32, bf16, fp16"):
        squeezenet().encode(pixels(), mode="int8")
    with pytest.raises(BackboneError, match="device"):
        squeezenet().encode(pixels(), device="cuda:99")
    for device in ("gpu", "meta", "cuda:99", "xpu"):
        with pytest.raises(BackboneError, match=f"device '{device}'"):
            Backbone.check_device(device)
    Backbone.check_device("cpu")
    with pytest.raises(BackboneError, match="device"):
        squeezenet().encode(pixels(), device="toaster")


@pytest.mark.parametrize("bad", [pixels().astype(np.float32), pixels(size=32), pixels()[0], [1, 2]])
def test_wrong_pixels_are_refused(bad):
    with pytest.raises(BackboneError, match=r"uint8 array \(N, 64, 64, 3\)") as error:
        squeezenet().encode(bad)
    one_line(error)


def test_read_only_and_strided_pixels():
    batch = pixels(4)
    want = squeezenet().encode(batch)["features.12.cat"]
    frozen = batch.copy()
    frozen.setflags(write=False)
    assert np.array_equal(squeezenet().encode(frozen)["features.12.cat"], want)
    assert np.array_equal(squeezenet().encode(batch[::-1])["features.12.cat"], want[::-1])


def test_batch_norm_is_untouched_and_nothing_needs_a_gradient():
    backbone = Backbone("mobilenet_v3_small", "random", preprocess=SMALL)
    before = {k: v.clone() for k, v in backbone.module().state_dict().items()}
    one = backbone.encode(pixels())["classifier.1"]
    backbone._network.module.train()  # even so
    two = backbone.encode(pixels())["classifier.1"]
    after = backbone.module()
    assert np.array_equal(one, two)
    assert any("running_mean" in k for k in before)
    assert all(torch.equal(v, after.state_dict()[k]) for k, v in before.items())
    assert not any(p.requires_grad for p in after.parameters())
    assert not any(v.device.type == "meta" for v in after.state_dict().values())


def test_global_settings_survive():
    torch.set_default_dtype(torch.float64)
    try:
        spec = squeezenet().spec
        codes = squeezenet().encode(pixels())["features.12.cat"]
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(squeezenet().encode(pixels())["features.12.cat"], codes)
    assert squeezenet().spec["backbone"]["nodes"] == spec["backbone"]["nodes"]
    assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled()


# -- weights files -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".weird"])
@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"module." + k: v for k, v in s.items()}])
def test_files(tmp_path, suffix, wrap):
    tensors, path = state(), tmp_path / ("w" + suffix)
    save_file(wrap(tensors), path) if suffix == ".safetensors" else torch.save(wrap(tensors), path)
    backbone = Backbone("squeezenet1_1", path, preprocess=SMALL) if suffix == ".weird" else None
    backbone = backbone or Backbone("squeezenet1_1", str(path), preprocess=SMALL)
    assert backbone.spec == Backbone("squeezenet1_1", tensors, preprocess=SMALL).spec
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    assert backbone.locator == {"kind": "file", "value": str(path), "sha256": sha256}
    moved = path.rename(tmp_path / "moved.bin")
    with pytest.raises(WeightsUnavailable, match=sha256):
        Backbone.from_spec(backbone.spec, backbone.locator)
    assert Backbone.from_spec(backbone.spec, backbone.locator, weights=moved).spec == backbone.spec


def test_wrappings_and_prefixes(tmp_path):
    tensors, path = state(), tmp_path / "w.pt"
    want = Backbone("squeezenet1_1", tensors, preprocess=SMALL).spec
    for key in ("state_dict", "model", "model_state_dict", "net", "module"):
        torch.save({"epoch": 3, key: {"module._orig_mod." + k: v for k, v in tensors.items()}, "optimizer": {}}, path)
        assert Backbone("squeezenet1_1", path, preprocess=SMALL).spec == want


def test_half_precision_files_become_float32(tmp_path):
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        path = tmp_path / "w.safetensors"
        save_file({k: v.to(dtype) for k, v in state().items()}, path)
        again = {k: v.to(dtype).float() for k, v in state().items()}
        assert Backbone("squeezenet1_1", path, preprocess=SMALL).spec == (
            Backbone("squeezenet1_1", again, preprocess=SMALL).spec
        )


def test_the_users_tensors_are_copied():
    tensors = state()
    backbone = Backbone("squeezenet1_1", tensors, preprocess=SMALL)
    before = backbone.encode(pixels())["features.12.cat"]
    for tensor in tensors.values():
        tensor.zero_()
    assert np.array_equal(backbone.encode(pixels())["features.12.cat"], before)


class Bomb:
    def __reduce__(self):
        return (print, ("BOOM",))


def bad_files(folder):
    good = folder / "good.pth"
    torch.save(state(), good)
    data = good.read_bytes()
    save_file(state(), folder / "good.safetensors")
    tensors = (folder / "good.safetensors").read_bytes()
    torch.save({"state_dict": Bomb()}, folder / "bomb.pth")
    (folder / "pickle.pth").write_bytes(pickle.dumps(Bomb()))
    (folder / "truncated.pth").write_bytes(data[: len(data) // 2])
    (folder / "empty.pth").write_bytes(b"")
    (folder / "text.pth").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\n")
    (folder / "truncated.safetensors").write_bytes(tensors[: len(tensors) // 2])
    (folder / "head.safetensors").write_bytes(tensors[:40])
    torch.save({}, folder / "nothing.pth")
    torch.save([1, 2], folder / "list.pth")
    torch.save({"epoch": 3}, folder / "epoch.pth")
    torch.save(zoo.build_random("squeezenet1_1", {}, 0), folder / "module.pth")
    (folder / "folder.pth").mkdir()
    return [*sorted(p for p in folder.iterdir() if not p.name.startswith("good")), folder / "absent.pth"]


def test_bad_files_give_one_clear_line(tmp_path, capsys):
    for path in bad_files(tmp_path):
        with pytest.raises(WeightsError) as error:
            Backbone("squeezenet1_1", path, preprocess=SMALL).spec  # noqa: B018
        assert str(path) in one_line(error)
        if path.name in ("bomb.pth", "pickle.pth", "module.pth"):
            assert "refused" in str(error.value)
    assert "BOOM" not in capsys.readouterr().out
    with pytest.raises(FileNotFoundError):
        Backbone("squeezenet1_1", tmp_path / "absent.pth").request()


def test_wrong_architecture_is_recognised():
    with pytest.raises(WeightsError, match="look like weights of 'squeezenet1_0'") as error:
        Backbone("resnet18", state("squeezenet1_0"), preprocess=SMALL).spec  # noqa: B018
    one_line(error)
    with pytest.raises(WeightsError, match="resnet18") as error:
        Backbone("resnet34", state("resnet18"), preprocess=SMALL).spec  # noqa: B018
    one_line(error)
    with pytest.raises(WeightsError, match="another architecture"):
        Backbone("squeezenet1_1", {"a": torch.zeros(1)}, preprocess=SMALL).spec  # noqa: B018


def test_partial_weights():
    tensors = {k: v for k, v in state().items() if not k.startswith(("features.10", "features.11", "features.12"))}
    tensors["extra"] = torch.zeros(1)
    with pytest.raises(WeightsError, match="deepest usable node is 'features.9'") as error:
        Backbone("squeezenet1_1", tensors, preprocess=SMALL).spec  # noqa: B018
    one_line(error)
    backbone = Backbone("squeezenet1_1", tensors, preprocess=SMALL, nodes="features.9")
    assert backbone.report.unexpected == ("extra",)
    assert "features.10.squeeze.weight" in backbone.report.missing
    filled = [Backbone("squeezenet1_1", tensors, preprocess=SMALL, init_seed=s) for s in (0, 0, 1)]
    assert filled[0].spec == filled[1].spec != filled[2].spec
    assert filled[0].locator["init_seed"] == 0
    assert Backbone.from_spec(filled[0].spec, filled[0].locator, weights=tensors).spec == filled[0].spec
    assert np.isfinite(filled[0].encode(pixels())["features.12.cat"]).all()


def test_a_head_of_another_size_does_not_matter():
    tensors = state(num_classes=7)
    backbone = Backbone("squeezenet1_1", tensors, preprocess=SMALL)
    assert [m[0] for m in backbone.report.mismatched] == ["classifier.1.weight", "classifier.1.bias"]
    with_classes = Backbone("squeezenet1_1", tensors, preprocess=SMALL, model_kwargs={"num_classes": 7})
    assert with_classes.spec == backbone.spec
    logits = Backbone("squeezenet1_1", tensors, preprocess=SMALL, model_kwargs={"num_classes": 7}, nodes="output")
    assert logits.output_shapes == {"flatten": (7,)}
    assert Backbone.from_spec(logits.spec, logits.locator, weights=tensors).spec == logits.spec


def test_non_finite_weights_are_refused():
    tensors = state()
    tensors["features.0.bias"][0] = float("nan")
    with pytest.raises(WeightsError, match="features.0.bias"):
        Backbone("squeezenet1_1", tensors, preprocess=SMALL).spec  # noqa: B018


def test_channels():
    grey = Preprocess(resize=72, crop=64, channels=1, mean=(0.5,), std=(0.25,))
    backbone = Backbone("squeezenet1_1", "random", preprocess=grey)
    assert backbone.encode(pixels(channels=1))["features.12.cat"].shape == (3, 512)
    tensors = state() | {"features.0.weight": torch.zeros(64, 1, 3, 3)}
    with pytest.raises(WeightsError, match=r"expected \(64, 3, 3, 3\), got \(64, 1, 3, 3\)") as error:
        Backbone("squeezenet1_1", tensors, preprocess=SMALL).spec  # noqa: B018
    assert "channels=1" in one_line(error)
    assert Backbone("squeezenet1_1", tensors, preprocess=grey).nodes == ("features.12.cat",)


def test_input_sizes():
    with pytest.raises(BackboneError, match="192 × 192 × 3.*expected 224 × 224 × 3") as error:
        Backbone("vit_b_32", "random", preprocess=Preprocess(crop=192)).spec  # noqa: B018
    assert "crop=224" in one_line(error)
    with pytest.raises(BackboneError, match="32 × 32 × 3"):
        Backbone("alexnet", "random", preprocess=Preprocess(resize=32, crop=32)).spec  # noqa: B018


def test_embedded(tmp_path, monkeypatch):
    path = tmp_path / "embedded.safetensors"
    tensors = {k: v for k, v in state("squeezenet1_1").items() if k.startswith("features")}
    packed = {k: v.half() for k, v in tensors.items()}
    scale = tensors["features.0.weight"].abs().amax((1, 2, 3)) / 127
    packed["features.0.weight"] = (tensors["features.0.weight"] / scale.view(-1, 1, 1, 1)).round().to(torch.int8)
    packed["features.0.weight.scale"] = scale
    metadata = {
        "arch": "squeezenet1_1",
        "kwargs": "{}",
        "preprocess": json.dumps(SMALL.spec()),
        "licence": "BSD-3-Clause",
    }
    save_file(packed, path, metadata)
    from featcache.backbone import arguments, frozen

    for module in (arguments, weights):
        monkeypatch.setattr(module, "embedded_file", lambda: path)
    backbone = Backbone("embedded")
    assert backbone.preprocess == SMALL
    assert backbone.spec["backbone"]["arch"] == "squeezenet1_1"
    assert backbone.locator["kind"] == "embedded"
    assert backbone.request()["weights"]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert Backbone.from_spec(backbone.spec, backbone.locator).spec == backbone.spec
    assert frozen.list_backbones()[0]["name"] == "embedded"
    assert frozen.list_backbones()[0]["input"] == [64, 64, 3]
    assert next(r for r in list_nodes("embedded") if r["penultimate"])["pooled"] == [512]
    restored = backbone._read()[0]["features.0.weight"]
    assert (restored - tensors["features.0.weight"]).abs().max() <= scale.max() / 2 + 1e-6
    with pytest.raises(WeightsError, match="squeezenet1_1"):
        Backbone("resnet18", path).spec  # noqa: B018


# -- downloads ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path):
    files, hits = {}, []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            hits.append(self.path)
            data = files.get(self.path)
            self.send_response(200 if data is not None else 404)
            length = len(data or b"")
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write((data or b"")[: length // 2 if "short" in self.path else length])

        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", files, hits
    server.shutdown()
    server.server_close()


def test_urls(server, tmp_path, monkeypatch):
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path / "cache"))
    address, files, hits = server
    torch.save(state(), tmp_path / "w.pth")
    data = (tmp_path / "w.pth").read_bytes()
    sha256 = hashlib.sha256(data).hexdigest()
    files.update({"/a/w.pth": data, f"/w-{sha256[:8]}.pth": data, "/w-00000000.pth": data, "/short.pth": data})
    for url in (f"{address}/a/w.pth", f"{address}/a/w.pth#sha256={sha256}", f"{address}/w-{sha256[:8]}.pth"):
        backbone = Backbone("squeezenet1_1", url, preprocess=SMALL)
        assert backbone.locator == {"kind": "url", "value": url, "sha256": sha256}
    count = len(hits)
    assert count == 2  # the fragment is the same address, and it was in the cache
    assert Backbone.from_spec(backbone.spec, backbone.locator).spec == backbone.spec
    assert len(hits) == count
    with pytest.raises(WeightsError, match="expected SHA-256 00000000"):
        Backbone("squeezenet1_1", f"{address}/w-00000000.pth").spec  # noqa: B018
    with pytest.raises(WeightsUnavailable, match="HTTP 404.*by hand") as error:
        Backbone("squeezenet1_1", f"{address}/none.pth").spec  # noqa: B018
    assert str(weights.cached_path(f"{address}/none.pth")) in one_line(error)
    with pytest.raises(WeightsUnavailable):
        Backbone("squeezenet1_1", f"{address}/short.pth").spec  # noqa: B018
    assert len(list((tmp_path / "cache" / "weights").iterdir())) == 2  # nothing partial, nothing unchecked
    weights.cached_path(f"{address}/a/w.pth").write_bytes(b"spoilt")
    with pytest.raises(WeightsError, match="delete it"):
        Backbone("squeezenet1_1", f"{address}/a/w.pth#sha256={sha256}").spec  # noqa: B018


def test_enum_weights_offline_and_from_the_hub_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(WeightsUnavailable, match="squeezenet1_1-b8a52dc0.pth") as error:
        Backbone("squeezenet1_1").spec  # noqa: B018
    assert str(tmp_path / "hub" / "checkpoints") in one_line(error) and "weights=FILE" in str(error.value)
    assert list((tmp_path / "hub" / "checkpoints").iterdir()) == []
    member = zoo.weights_enum("squeezenet1_1", "DEFAULT")
    torch.save(state(), tmp_path / "hub" / "checkpoints" / "squeezenet1_1-b8a52dc0.pth")
    with pytest.raises(WeightsError, match="b8a52dc0"):
        Backbone("squeezenet1_1").spec  # noqa: B018
    sha256 = hashlib.sha256((tmp_path / "hub/checkpoints/squeezenet1_1-b8a52dc0.pth").read_bytes()).hexdigest()
    monkeypatch.setattr(weights, "_check_hash", lambda *a: None)
    backbone = Backbone("squeezenet1_1", preprocess=SMALL)
    assert backbone.locator == {"kind": "enum", "value": member.name, "sha256": sha256}


# -- own networks ------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x):
        return self.fc(torch.relu_(self.bn(self.conv(x))).mean((2, 3)))


class Untraceable(Plain):
    def forward(self, x):
        x = self.bn(self.conv(x))
        if x.sum() > 0:
            x = x + 1
        return self.fc(x.mean((2, 3)))


def own(model, **options):
    return Backbone(model, version="1", preprocess=SMALL, **options)


def test_own_module_is_copied_and_cut():
    model = Plain().train()
    before = copy.deepcopy(model.state_dict())
    backbone = own(model)
    assert backbone.request() is None
    assert backbone.spec["backbone"] | {"weights": ""} == {
        "arch": "Plain",
        "kwargs": {},
        "weights": "",
        "nodes": ["mean"],
        "pooling": {"mean": "none"},
        "version": "1",
    }
    assert backbone.encode(pixels())["mean"].shape == (3, 8)
    assert own(model, nodes="output").encode(pixels())["fc"].shape == (3, 4)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        x = torch.from_numpy(SMALL.normalize(pixels()))
        want = model.eval()(x).numpy()
    np.testing.assert_allclose(own(model, nodes="output").encode(pixels())["fc"], want, atol=1e-5)
    assert Backbone.from_spec(backbone.spec, backbone.locator, weights=model).spec == backbone.spec
    with pytest.raises(WeightsUnavailable, match="pass it as weights="):
        Backbone.from_spec(backbone.spec, backbone.locator)
    with pytest.raises(WeightsError, match="backbone.weights"):
        Backbone.from_spec(backbone.spec, backbone.locator, weights=Plain())


def test_untraceable_modules_run_with_hooks():
    model = Untraceable()
    backbone = own(model, nodes="bn,penultimate")
    assert backbone.nodes == ("bn", "output")
    codes = backbone.encode(pixels())
    assert codes["bn"].shape == (3, 8) and codes["output"].shape == (3, 4)
    spec = backbone.spec
    assert Backbone.from_spec(spec, backbone.locator, weights=model).spec == spec
    with torch.no_grad():
        model.fc.bias += 1
    assert (
        own(model, nodes="bn").spec["backbone"]["weights"] != own(Untraceable(), nodes="bn").spec["backbone"]["weights"]
    )
    with pytest.raises(BackboneError, match="name of a module"):
        own(model, nodes="nope").spec  # noqa: B018


def test_an_encoder_without_a_classifier_gives_its_output():
    trunk = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(True), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    assert own(trunk).output_shapes == {"4": (8,)}
    assert own(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())).encode(pixels())["1"].shape == (3, 8)
    assert own(lambda: Plain()).output_shapes == {"mean": (8,)}


def test_own_modules_that_do_not_fit():
    with pytest.raises(SpecError, match="version="):
        Backbone(Plain(), preprocess=SMALL)
    with pytest.raises(BackboneError, match="preprocess="):
        Backbone(Plain(), version="1")
    with pytest.raises(BackboneError, match="refuses an input of 64 × 64 × 3"):
        own(nn.Conv2d(1, 8, 3)).spec  # noqa: B018
    with pytest.raises(BackboneError, match="carries its own weights"):
        own(Plain(), weights="IMAGENET1K_V1")
    with pytest.raises(BackboneError, match="one row per image"):
        own(nn.Flatten(0), nodes="output").spec  # noqa: B018


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Backbone("resnet5").spec,
        lambda: Backbone("resnet50", "IMAGENET1K_V9").spec,
        lambda: Backbone("resnet50", None),
        lambda: Backbone("resnet50", "ftp://x/y.pth"),
        lambda: Backbone("resnet50", "https://x/y.pth#md5=1").spec,
        lambda: Backbone("resnet50", nodes=""),
        lambda: Backbone("resnet50", nodes=[]),
        lambda: Backbone("resnet50", nodes=3),
        lambda: Backbone("resnet50", pooling="mean"),
        lambda: Backbone("resnet50", init_seed=-1),
        lambda: Backbone("resnet50", version="1"),
        lambda: Backbone("resnet50", model_kwargs={"norm_layer": nn.BatchNorm2d}),
        lambda: Backbone("resnet50", model_kwargs={"weights": None}),
        lambda: Backbone("resnet50", "random", model_kwargs={"colour": "red"}).spec,
        lambda: Backbone("embedded", "random"),
        lambda: Backbone(3),
        lambda: list_nodes("resnet5"),
    ],
)
def test_arguments_that_make_no_sense(make):
    with pytest.raises(FeatcacheError) as error:
        make()
    assert ";" in one_line(error) or ":" in str(error.value)


def test_listings():
    rows = {row["name"]: row for row in list_backbones()}
    assert rows["resnet50"] == {
        "name": "resnet50",
        "parameters": 25557032,
        "weights": ["IMAGENET1K_V1", "IMAGENET1K_V2"],
        "default": "IMAGENET1K_V2",
        "input": [224, 224, 3],
    }
    assert set(torchvision.models.list_models(module=torchvision.models)) <= set(rows)
    assert json.dumps(list(rows.values()))


def test_a_mapping_changes_fields_of_the_default_recipe():
    changed = Backbone("squeezenet1_1", weights="random", preprocess={"crop": 192})
    assert changed.preprocess == Preprocess(resize=256, crop=192)
    assert changed.request() != Backbone("squeezenet1_1", weights="random").request()
    with pytest.raises(PreprocessError, match="crap"):
        Backbone("squeezenet1_1", weights="random", preprocess={"crap": 1}).preprocess  # noqa: B018


def test_codes_do_not_depend_on_the_number_of_cores():
    backbone, images = Backbone("embedded"), pixels(17, 112)
    codes = []
    for cores in (1, 2, 3):
        torch.set_num_threads(cores)
        codes.append(backbone.encode(images)[backbone.nodes[0]])
        asked = [crew(cores).submit(torch.get_num_threads) for _ in range(2 * cores)]
        assert {one.result() for one in asked} == {1} and torch.get_num_threads() == cores
    assert np.array_equal(codes[0], codes[1]) and np.array_equal(codes[0], codes[2])


def test_a_file_of_one_tensor_is_no_state_dict(tmp_path):
    for thing in (torch.zeros(3), [], {}):
        torch.save(thing, tmp_path / "w.pth")
        with pytest.raises(WeightsError, match="expected a state_dict"):
            Backbone("squeezenet1_1", tmp_path / "w.pth").spec  # noqa: B018


def test_random_weights_do_not_stand_in_for_a_file(tmp_path):
    backbone = Backbone("squeezenet1_1", "random", init_seed=3)
    torch.save(backbone.module().state_dict(), tmp_path / "w.pth")
    locator = {"kind": "file", "value": str(tmp_path / "w.pth")}
    with pytest.raises(WeightsError):
        Backbone.from_spec(Backbone("squeezenet1_1", tmp_path / "w.pth").spec, locator, weights="random")


class Faulty(torch.nn.Module):
    """An own network with one fault."""

    def __init__(self, fault):
        super().__init__()
        self.fault, self.calls, self.layer = fault, 0, torch.nn.Linear(3, 4)

    def forward(self, x):
        rows = self.layer(x.mean((2, 3)))
        self.calls += 1
        return {
            "noise": lambda: rows + torch.rand(1),
            "dropout": lambda: torch.nn.functional.dropout(rows),
            "counter": lambda: rows * self.calls,
            "batch": lambda: rows - rows.mean(0),
            "numbers": lambda: rows.argmax(1, keepdim=True),
            "none": lambda: rows,
        }[self.fault]()


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ("noise", "two runs"),
        ("dropout", "two runs"),
        ("counter", "two runs"),
        ("batch", "batch"),
        ("numbers", "real numbers"),
    ],
)
def test_an_own_network_must_give_each_image_its_own_codes(fault, reason):
    with pytest.raises(BackboneError, match=reason):
        Backbone(Faulty(fault), version="1", preprocess=Preprocess(resize=8, crop=8), nodes="output").spec  # noqa: B018


@pytest.mark.parametrize("used", [False, True])
def test_backbones_can_be_pickled_and_copied(used):
    recipe = Preprocess(resize=64, crop=64)
    for backbone in (
        Backbone("squeezenet1_1", weights="random", preprocess=recipe),
        Backbone(Faulty("none"), version="1", preprocess=recipe),
    ):
        codes = backbone.encode(pixels()) if used else None
        for twin in (pickle.loads(pickle.dumps(backbone)), copy.deepcopy(backbone)):
            assert twin.spec == backbone.spec
            for node, rows in (codes or {}).items():
                assert np.array_equal(twin.encode(pixels())[node], rows)


def test_what_cannot_be_frozen_is_refused_in_one_line():
    recipe = Preprocess(resize=8, crop=8)
    lazy = torch.nn.Sequential(torch.nn.LazyConv2d(4, 3), torch.nn.Flatten())
    with pytest.raises(BackboneError, match="cannot be frozen"):
        Backbone(lazy, version="1", preprocess=recipe).spec  # noqa: B018
    with pytest.raises(WeightsError, match="got Flatten") as error:
        Backbone("squeezenet1_1", torch.nn.Flatten())
    one_line(error)
