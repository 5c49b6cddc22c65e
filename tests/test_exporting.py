"""Models as files of other programs: they compute the same, or there is no file."""

import importlib.util
import json
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from conftest import REPOSITORY, make_tiny_backbone, write_images

import featcache as fc
from featcache.cli import run
from featcache.errors import ExchangeError, FeatcacheError, HandoffError, HeadError, StoreError
from featcache.files import Disk
from featcache.handoff import publishing
from featcache.handoff.checking import compare, pixels_of

needs_onnx = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("onnx", "onnxscript")), reason="needs featcache[onnx]"
)
FORMATS = [".pt2", pytest.param(".onnx", marks=needs_onnx), ".safetensors"]


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("exporting")
    folder = write_images(tmp / "images", 12, classes=("ant", "bee", "cow"))
    backbone = make_tiny_backbone()
    store = fc.extract(folder, backbone, tmp / "s", precision="fp32", progress=False)
    fitted = fc.fit("logreg", store.load(), calibrate=True)
    fitted.save(tmp / "h.head")
    return tmp, folder, store, fitted


def inputs_of(fitted, n=5):
    pixels = np.random.default_rng(0).integers(0, 256, (n, 64, 64, 3), dtype="u1")
    return fc.Preprocess.from_spec(fitted.spec["preprocess"]).normalize(pixels)


@pytest.mark.parametrize("ending", FORMATS)
def test_the_file_gives_the_scores_of_the_head(setting, tmp_path, ending):
    tmp, folder, _, fitted = setting
    done = fc.export(tmp / "h.head", tmp_path / f"x{ending}", check=folder)
    assert done.difference <= 1e-4 and done.images == 12 and done.bytes == (tmp_path / f"x{ending}").stat().st_size
    x = inputs_of(fitted)
    with torch.inference_mode():
        expected = fc.to_module(fitted)(torch.from_numpy(x)).numpy()
    for n in (1, 2, 5):  # any number of images
        if ending == ".pt2":
            found = torch.export.load(str(done.path)).module()(torch.from_numpy(x[:n])).detach().numpy()
        elif ending == ".onnx":
            found = publishing.FORMATS[ending](done.path, None)(x[:n])
        else:
            from safetensors.torch import load_file

            again = fc.to_module(fitted)
            again.load_state_dict({name: tensor * 0 for name, tensor in again.state_dict().items()})
            again.load_state_dict(load_file(done.path))
            found = again(torch.from_numpy(x[:n])).detach().numpy()
        assert np.abs(found - expected[:n]).max() <= 1e-4 * max(1, np.abs(expected).max())


@pytest.mark.parametrize("ending", FORMATS)
def test_the_file_says_what_it_is(setting, tmp_path, ending):
    tmp, _, _, fitted = setting
    path = fc.export(fitted, tmp_path / f"x{ending}").path
    if ending == ".pt2":
        with zipfile.ZipFile(path) as archive:
            name = next(n for n in archive.namelist() if n.endswith("featcache.json"))
            facts = json.loads(archive.read(name))
        extra = {"featcache.json": ""}
        torch.export.load(str(path), extra_files=extra)
        assert json.loads(extra["featcache.json"]) == facts
    elif ending == ".onnx":
        import onnx

        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        properties = {entry.key: entry.value for entry in model.metadata_props}
        facts = json.loads(properties["featcache"])
        assert json.loads(properties["classes"]) == ["ant", "bee", "cow"]
        assert [i.name for i in model.graph.input] == ["images"] and [o.name for o in model.graph.output] == ["scores"]
        assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    else:
        from safetensors import safe_open

        with safe_open(path, framework="np") as file:
            facts = json.loads(file.metadata()["featcache"])
    assert facts["classes"] == ["ant", "bee", "cow"] and facts["scores"] == "softmax"
    assert facts["preprocess"] == fitted.spec["preprocess"] and facts["input"]["shape"] == [None, 3, 64, 64]
    again = fc.export(fitted, tmp_path / f"y{ending}", check=setting[1]).path
    assert again.read_bytes() == path.read_bytes(), "the same, without the images it was checked on"
    assert str(REPOSITORY).encode() not in path.read_bytes(), "no path of this machine"


@pytest.mark.parametrize("ending", FORMATS)
def test_networks_of_all_kinds(setting, tmp_path, ending):
    tmp, folder, _, fitted = setting
    lower = make_tiny_backbone(nodes="features.5", pooling="none")
    top = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.LazyLinear(2))
    assembled = fc.assemble(lower, top, ["a", "b"])
    assert fc.export(assembled, tmp_path / f"a{ending}").difference <= 1e-4
    assert fc.export(fitted, tmp_path / f"u{ending}", images="uint8").difference <= 1e-4
    tuned = fc.to_module(fitted, images="uint8").train()
    with torch.no_grad():
        tuned.head.weight.mul_(2)
    assert fc.export(tuned, tmp_path / f"t{ending}", head=fitted).difference <= 1e-4
    assert tuned.training and next(tuned.head.parameters()).requires_grad, "the user's network stays as it was"


def test_a_file_that_computes_something_else_does_not_stay(setting, tmp_path, monkeypatch):
    _, _, _, fitted = setting
    (tmp_path / "x.pt2").write_bytes(b"PK\x03\x04 the old one")
    original = publishing.FORMATS[".pt2"]

    def off(path, module):
        inner = original(path, module)
        return lambda images: inner(images) * 1.001 + 0.001

    monkeypatch.setitem(publishing.FORMATS, ".pt2", off)
    for name, overwrite in (("x.pt2", True), ("y.pt2", False)):
        with pytest.raises(HandoffError, match=r"a difference of .*nothing was written") as caught:
            fc.export(fitted, tmp_path / name, overwrite=overwrite)
        assert "\n" not in str(caught.value)
    assert [p.name for p in tmp_path.iterdir()] == ["x.pt2"] and (
        tmp_path / "x.pt2"
    ).read_bytes() == b"PK\x03\x04 the old one"


@pytest.mark.parametrize("call", ["write", "fsync", "link", "rename"])
def test_a_disk_that_refuses_leaves_nothing(setting, tmp_path, call):
    class Full(Disk):
        pass

    def fail(self, *args):
        raise OSError(28, "No space left on device")

    setattr(Full, call, fail)
    with pytest.raises(HandoffError, match="No space left"):
        fc.export(setting[3], tmp_path / "x.safetensors", overwrite=call == "rename", disk=Full())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("what", "name", "options", "error", "match"),
    [
        ("head", "x.foo", {}, HandoffError, "ending in .pt2"),
        ("head", "x.h5", {}, HandoffError, "ending in .pt2"),
        ("head", "no/x.pt2", {}, HandoffError, "make it first"),
        ("head", "taken.pt2", {}, HandoffError, "exists already"),
        ("head", "folder.pt2", {}, HandoffError, "got a folder"),
        ("head", "x.pt2", {"view": "main", "node": "x"}, HandoffError, "node: expected a store"),
        ("head", "x.pt2", {"head": "y"}, HandoffError, "head: expected a network"),
        ("head", "x.pt2", {"images": "bytes"}, HandoffError, "images: expected one of"),
        ("head", "x.bundle", {"images": "uint8"}, HandoffError, "images: expected a file of a network"),
        ("head", "x.pt2", {"check": [b"no image"]}, HandoffError, "check: expected images that can be read"),
        ("store", "x.pt2", {}, HandoffError, "got a store"),
        ("features", "x.onnx", {}, HandoffError, "fit a head"),
        ("features", "x.npz", {"check": []}, HandoffError, "check: expected a model"),
        ("features", "x.foo", {}, ExchangeError, "ends in .h5"),
        ("knn", "x.pt2", {}, HeadError, "linear"),
        ("absent", "x.pt2", {}, HeadError, "cannot be read"),
        ("absent", "x.h5", {}, StoreError, "no such store"),
        ("bundle", "x.zip", {}, HandoffError, "copy it"),
        ("bare", "x.pt2", {}, HandoffError, "preprocess images is unknown"),
        ("network", "x.pt2", {"weights": "w.pth"}, HandoffError, "weights: expected a head"),
        ("other", "x.pt2", {"head": "head"}, HandoffError, "classes of the head"),
        (3, "x.pt2", {}, FeatcacheError, "got int"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(setting, tmp_path, what, name, options, error, match):
    tmp, _, store, fitted = setting
    (tmp_path / "taken.pt2").write_bytes(b"")
    (tmp_path / "folder.pt2").mkdir()
    things = {
        "head": lambda: fitted,
        "store": lambda: store.path,
        "features": store.load,
        "knn": lambda: fc.fit("knn", store.load()),
        "absent": lambda: tmp / "absent",
        "bundle": lambda: fc.save_bundle(fitted, tmp_path / "b.bundle", include_weights=False),
        "bare": lambda: torch.nn.Linear(2, 2),
        "network": lambda: fc.to_module(fitted),
        "other": lambda: fc.assemble(make_tiny_backbone(), torch.nn.LazyLinear(2), ["a", "b"]),
    }
    options = {key: fitted if value == "head" and what == "other" else value for key, value in options.items()}
    with pytest.raises(error, match=match) as caught:
        fc.export(things[what]() if what in things else what, tmp_path / name, **options)
    assert "\n" not in str(caught.value)
    assert not {p.name for p in tmp_path.iterdir()} - {"taken.pt2", "folder.pt2", "b.bundle"}


def test_a_missing_extra_is_named(setting, tmp_path, monkeypatch):
    import importlib

    original = importlib.import_module

    def without(name, *args):
        if name.startswith("onnx"):
            raise ImportError(name)
        return original(name, *args)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(HandoffError, match=r"pip install 'featcache\[onnx\]'"):
        fc.export(setting[3], tmp_path / "x.onnx")


@needs_onnx
def test_without_onnxruntime_onnx_checks_itself(setting, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert fc.export(setting[3], tmp_path / "x.onnx").difference <= 1e-4


def test_a_network_that_cannot_be_exported_is_said_in_one_line(setting, tmp_path):
    class Odd(torch.nn.Module):
        def forward(self, images):
            return images.mean((2, 3)) if float(images.sum()) > 0 else images.amax((2, 3))

    module = Odd()
    module.preprocess, module.classes = fc.Preprocess(64, 64), ["a", "b", "c"]
    with pytest.raises(HandoffError, match="cannot be exported") as caught:
        fc.export(module, tmp_path / "x.pt2")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


def test_the_global_state_is_left_alone(setting, tmp_path):
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    fc.export(setting[3], tmp_path / "x.pt2")
    assert torch.equal(before[0], torch.get_rng_state()) and before[1] == np.random.get_state()[1].tolist()


def test_features_are_exported_without_what_heads_need():
    code = "import sys, featcache as fc; fc.export; assert not {'torch', 'sklearn', 'scipy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_differences_are_relative_to_the_largest_score():
    inputs = np.ones((40, 1), np.float32)
    large = compare(lambda x: x * 1000, lambda x: x * 1000 + 0.05, inputs)
    assert large.relative == pytest.approx(5e-5, rel=1e-3) and large.absolute == pytest.approx(0.05, rel=1e-3)
    assert compare(lambda x: x * 0.01, lambda x: x * 0.01 + 0.05, inputs).relative == pytest.approx(0.05, rel=1e-3)
    assert compare(lambda x: x, lambda x: x * np.nan, inputs).relative == np.inf
    assert compare(lambda x: x, lambda x: x[:, :0], inputs).relative == np.inf
    assert compare(lambda x: x, lambda x: x[:1].repeat(32, 0), inputs).relative == np.inf
    assert len(np.unique(pixels_of(None, fc.Preprocess(16, 16))[0].reshape(9, -1), axis=0)) == 9


def test_what_would_hide_a_difference_does_not():
    inputs = np.ones((40, 1), np.float32)
    never = compare(lambda x: x * [[1.0, 2.0, -1e30]], lambda x: x * [[9.0, -2.0, -1e30]], inputs)
    assert not never.same and never.relative == pytest.approx(4) and never.flipped == 40
    assert not compare(lambda x: x * [[1.0, -1e30]], lambda x: x * [[1.0, -2e30]], inputs).same
    close = compare(lambda x: x * [[1000.0, 1000.02]], lambda x: x * [[1000.02, 1000.0]], inputs)
    assert close.relative <= 1e-4 and close.flipped == 40 and not close.same
    with pytest.raises(HandoffError, match="finite scores"):
        compare(lambda x: x * np.nan, lambda x: x * np.nan, inputs)


def test_the_command_line(setting, tmp_path, capsys):
    tmp, folder, store, fitted = setting

    def ok(*words):
        assert run([str(w) for w in words]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "largest difference of a score" in ok("export", tmp / "h.head", tmp_path / "x.pt2", "--check", folder)
    facts = json.loads(ok("export", tmp / "h.head", tmp_path / "x.bundle", "--json"))
    assert facts["sha256"] == fc.load_bundle(tmp_path / "x.bundle").sha256
    assert "kB" in ok("export", store.path, tmp_path / "x.npz").replace("KB", "kB")
    image = folder / "ant" / "0000.jpg"
    out = ok("predict", tmp_path / "x.bundle", image, "--top-k", 2, "--sha256", facts["sha256"]).strip().split("\t")
    rows = fc.predict(fitted, [image], top_k=2, progress=False)
    assert out[1::2] == [entry["label"] for entry in rows[0]["top"]]
    assert out[2::2] == [f"{entry['score']:.4f}" for entry in rows[0]["top"]]
    assert run(["predict", str(tmp_path / "x.bundle"), str(image), "--sha256", "0" * 64]) == 1
    assert "expected a bundle with SHA-256" in capsys.readouterr().err


@pytest.mark.real
@pytest.mark.parametrize("ending", FORMATS)
def test_real_weights_on_real_images(data_dir, mobilenet_weights, tmp_path, ending):
    paths = sorted((data_dir / "datasets" / "clothing10").rglob("*.jpg"))[::60]
    (tmp_path / "l.csv").write_text("path,label\n" + "\n".join(f"{p},{p.parent.name}" for p in paths))
    backbone = fc.Backbone("mobilenet_v2", mobilenet_weights)
    store = fc.extract(tmp_path / "l.csv", backbone, tmp_path / "s", precision="fp32", progress=False)
    done = fc.export(fc.fit("ridge", store.load()), tmp_path / f"x{ending}", check=paths)
    assert done.difference <= 1e-4 and done.images == len(paths)
