"""Bundles: what goes in comes out, the same bytes each time, and whatever a stranger changes is refused."""

import hashlib
import io
import json
import os
import pickle
import struct
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_tiny_backbone, write_images
from sklearn.ensemble import VotingClassifier
from sklearn.linear_model import LogisticRegression

import featcache as fc
from featcache.errors import FeatcacheError, HandoffError, HeadError, WeightsError
from featcache.files import Disk
from featcache.handoff import archive
from featcache.handoff.archive import zip_of
from featcache.handoff.manifest import _dump
from featcache.heads import join_layers


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("bundle")
    folder = write_images(tmp / "images", 24, classes=("ant", "bee", "cow"))
    some = sorted((folder / "bee").iterdir())[:3]
    store = fc.extract(folder, fc.Backbone("embedded"), tmp / "s", precision="fp32", progress=False)
    data = store.load()
    fitted = fc.fit("logreg", data, calibrate=True, reject=0.3, novelty="mahalanobis")
    whole = fc.save_bundle(fitted, tmp / "whole.bundle", training_data=data, metrics={"accuracy": (0.5, 0.4, 0.6)})
    bare = fc.save_bundle(fitted, tmp / "bare.bundle", include_weights=False)
    return some, data, fitted, whole, bare


@pytest.fixture(scope="module")
def network(setting, tmp_path_factory):
    fitted = setting[2]
    return fc.save_bundle(fc.to_module(fitted), tmp_path_factory.mktemp("network") / "net.bundle", head=fitted)


def trained(fitted, **options):
    """Return a network whose every weight differs from the published ones."""
    module = fc.to_module(fitted, **options)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in module.parameters():
            tensor.mul_(1 + 0.02 * torch.randn(tensor.shape, generator=generator))
        module.get_submodule("trunk.trunk.features.0.1").running_mean.add_(0.1)
    return module


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return {info.filename: archive.read(info) for info in archive.infolist()}


def resealed(members, **changes):
    """Return members with a manifest that was changed by somebody who knows how its digests are made."""
    manifest = json.loads(members["manifest.json"]) | changes
    manifest["members"] = {
        name: {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        for name, content in members.items()
        if name != "manifest.json"
    }
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    return members | {"manifest.json": _dump({**body, "sha256": hashlib.sha256(_dump(body)).hexdigest()})}


def refused(path, match, *, sha256=None):
    with pytest.raises((HandoffError, HeadError), match=match) as caught:
        fc.load_bundle(path, sha256)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ in and out


def test_a_bundle_predicts_what_its_head_does(setting):
    folder, _, fitted, whole, bare = setting
    expected = fc.predict(fitted, folder, progress=False)
    assert {"accepted", "novelty"} <= set(expected[0])
    for bundle in (whole, bare, str(whole.path), fc.load_bundle(bare.path)):
        assert fc.predict(bundle, folder, progress=False) == expected
    assert whole.predict(folder, progress=False) == expected
    assert list(whole.predict_iter(folder)) == expected
    assert whole.classes == ["ant", "bee", "cow"] and fc.predict(whole, setting[1])[0]["label"] in whole.classes


def test_the_manifest_says_what_is_inside(setting):
    _, data, fitted, whole, bare = setting
    found = whole.manifest
    assert found["spec"] == json.loads(json.dumps(fitted.spec)) and found["node"] == fitted.node
    assert found["temperature"] == fitted.temperature and found["training"]["digest"] == fitted.training_digest
    assert found["training"]["classes"] == {"ant": 8, "bee": 8, "cow": 8} and found["training"]["rows"] == 24
    assert found["thresholds"]["reject"]["wanted"] == 0.3 and found["thresholds"]["novelty"]["score"] == 0
    assert found["metrics"]["accuracy"] == {"value": 0.5, "low": 0.4, "high": 0.6}
    assert found["weights"] == {"included": True, "digest": data.spec["backbone"]["weights"]}
    assert not bare.manifest["weights"]["included"] and "weights.safetensors" not in members_of(bare.path)
    assert set(found["versions"]) >= {"featcache", "torch", "scikit-learn"}


def test_the_same_model_gives_the_same_bytes_as_file_and_folder(setting, tmp_path):
    _, data, fitted, whole, _ = setting
    options = {"training_data": data, "metrics": {"accuracy": (0.5, 0.4, 0.6)}}
    again = fc.save_bundle(fitted, tmp_path / "again.zip", **options)
    assert again.path.read_bytes() == whole.path.read_bytes() and again.sha256 == whole.sha256
    folder = fc.save_bundle(fitted, tmp_path / "folder", **options)
    assert folder.path.is_dir() and folder.sha256 == whole.sha256
    assert {p.name: p.read_bytes() for p in folder.path.iterdir()} == members_of(whole.path)
    assert fc.load_bundle(folder.path, sha256=whole.sha256).members == whole.members
    names = [i.filename for i in zipfile.ZipFile(whole.path).infolist()]
    assert names == sorted(names) and str(tmp_path.parent) not in json.dumps(whole.manifest)


def test_weights_come_from_the_bundle_and_nowhere_else(setting, tmp_path):
    folder, data, _, _, _ = setting
    tensors = fc.Backbone("squeezenet1_1", "random").module().trunk.state_dict()
    torch.save(dict(tensors), tmp_path / "w.pth")
    backbone = fc.Backbone("squeezenet1_1", tmp_path / "w.pth", preprocess={"resize": 64, "crop": 64})
    images = fc.ImageSource.from_arrays([np.full((64, 64, 3), 20 * i, "u1") for i in range(8)], list("abababab"))
    store = fc.extract(images, backbone, tmp_path / "s", precision="fp32", progress=False)
    fitted = fc.fit("ridge", store.load())
    whole = fc.save_bundle(fitted, tmp_path / "whole.bundle")
    bare = fc.save_bundle(fitted, tmp_path / "bare.bundle", include_weights=False)
    expected = fc.predict(fitted, folder, progress=False)
    (tmp_path / "w.pth").rename(tmp_path / "moved.pth")
    assert whole.predict(folder, progress=False) == expected
    assert str(tmp_path) not in json.dumps(whole.manifest)
    with pytest.raises(HandoffError, match="pass weights="):
        bare.predict(folder, progress=False)
    (tmp_path / "moved.pth").rename(tmp_path / "w.pth")  # nor is it opened where it lies
    with pytest.raises(HandoffError, match="pass weights="):
        bare.predict(folder, progress=False)
    (tmp_path / "w.pth").rename(tmp_path / "moved.pth")
    assert bare.predict(folder, weights=tmp_path / "moved.pth", progress=False) == expected


def test_a_fine_tuned_network_is_put_together_again(setting, tmp_path):
    folder, _, fitted, _, _ = setting
    module = trained(fitted)
    bundle = fc.save_bundle(module, tmp_path / "net.bundle", head=fitted)
    assert bundle.head is None and bundle.manifest["kind"] == "network"
    assert bundle.manifest["weights"]["digest"] != fitted.spec["backbone"]["weights"]
    assert bundle.manifest["thresholds"] == {"novelty": None, "reject": None}, "they held for other codes"
    again = fc.load_bundle(bundle.path).module()
    images = torch.rand(3, 3, 112, 112)
    with torch.inference_mode():
        assert torch.equal(again(images), module(images))
    rows = bundle.predict(folder, progress=False)
    assert rows == fc.predict(module, folder, head=fitted, progress=False)
    assert abs(sum(rows[0]["scores"].values()) - 1) < 1e-9 and "novelty" not in rows[0]
    bytes_in = bundle.module(images="uint8")
    pixels = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    inputs = torch.from_numpy(module.preprocess.normalize(pixels.permute(0, 2, 3, 1).contiguous().numpy()))
    with torch.inference_mode():
        assert torch.allclose(bytes_in(pixels), module(inputs), atol=1e-5)


def test_a_network_alone_says_enough(setting, tmp_path):
    folder, _, fitted, _, _ = setting
    module = trained(fitted, images="uint8")
    bundle = fc.save_bundle(module, tmp_path / "net")
    assert bundle.manifest["training"] == {"classes": None, "digest": "", "rows": 0}
    assert bundle.predict(folder, progress=False) == fc.predict(module, folder, progress=False)
    pixels = torch.randint(0, 256, (2, 3, 112, 112), dtype=torch.uint8)
    with torch.inference_mode():
        assert torch.equal(bundle.module()(pixels), module(pixels))


def test_a_network_with_a_prelude_and_a_saved_network_as_network(setting, tmp_path):
    folder, data, _, _, _ = setting
    fitted = fc.fit("centroid", data)
    bundle = fc.save_bundle(trained(fitted), tmp_path / "net.bundle", head=fitted, scores="softmax")
    assert bundle.manifest["network"]["prelude"] == {"power": 1.0, "unit": True}
    assert bundle.predict(folder, progress=False)[0]["label"] in bundle.classes


@pytest.mark.parametrize("kind", ["wrapped", "head", "top", "inside", "own"])
def test_a_network_with_modules_of_ones_own_is_refused(setting, tmp_path, kind):
    _, _, fitted, _, _ = setting
    module = fc.to_module(fitted)
    if kind == "wrapped":
        module = torch.nn.Sequential(module)
        module.preprocess, module.classes = module[0].preprocess, module[0].classes
    elif kind == "head":
        module.head = torch.nn.Sequential(module.head, torch.nn.ReLU())
    elif kind == "inside":  # the same tensors, another function
        module.trunk.trunk.set_submodule("features.0.2", torch.nn.Tanh())
    elif kind == "top":
        lower = fc.Backbone("embedded", nodes="features.3", pooling="none")
        top = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.LazyLinear(2))
        module = fc.assemble(lower, top, ["a", "b"])
    else:
        net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
        own = fc.Backbone(net, version="1", preprocess=fc.Preprocess(32, 32))
        top = torch.nn.Linear(4, 2)
        module = fc.assemble(own, top, ["a", "b"])
    with pytest.raises(HandoffError, match=r"\.pt2") as caught:
        fc.save_bundle(module, tmp_path / "x.bundle")
    assert "\n" not in str(caught.value) and not (tmp_path / "x.bundle").exists()


def test_heads_that_cannot_be_written_safely_are_refused(setting, tmp_path):
    folder, data, fitted, _, _ = setting
    with pytest.raises(HeadError, match="not among the estimators"):
        fc.save_bundle(fc.fit(VotingClassifier([("a", LogisticRegression())]), data), tmp_path / "x.bundle")
    with pytest.raises(HandoffError, match="without a spec"):
        fc.save_bundle(fc.fit("ridge", fc.FeatureSet(data.X, data.y)), tmp_path / "x.bundle")
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())
    own = fc.Backbone(net, version="1", preprocess=fc.Preprocess(32, 32))
    images = fc.ImageSource.from_arrays([np.full((64, 64, 3), 20 * i, "u1") for i in range(8)], list("abababab"))
    head = fc.fit("ridge", fc.extract(images, own, tmp_path / "s", precision="fp32", progress=False).load())
    with pytest.raises(HandoffError, match="weights=False"):
        fc.save_bundle(head, tmp_path / "x.bundle", backbone=own)
    assert not (tmp_path / "x.bundle").exists()
    bare = fc.save_bundle(head, tmp_path / "bare.bundle", include_weights=False)
    expected = fc.predict(head, folder, backbone=own, progress=False)
    assert bare.predict(folder, weights=net, progress=False) == expected


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"metrics": {"accuracy": float("nan")}}, "metrics"),
        ({"metrics": {"accuracy": "good"}}, "metrics"),
        ({"metrics": {"accuracy": {"low": 0.1}}}, "metrics"),
        ({"licence": {"code": "MIT"}}, "licence"),
        ({"training_data": {"ant": -1}}, "training_data"),
        ({"head": "x"}, "head: expected a network"),
        ({"scores": "softmax"}, "scores: expected a network"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(setting, tmp_path, options, match):
    with pytest.raises(HandoffError, match=match):
        fc.save_bundle(setting[2], tmp_path / "x.bundle", **options)
    assert not list(tmp_path.iterdir())


def test_an_existing_bundle_is_kept_unless_it_may_be_replaced(setting, tmp_path):
    _, _, fitted, _, bare = setting
    for name in ("x.bundle", "x"):
        fc.save_bundle(fitted, tmp_path / name, include_weights=False)
        with pytest.raises(HandoffError, match="exists already"):
            fc.save_bundle(fitted, tmp_path / name, include_weights=False, description="new")
        assert fc.load_bundle(tmp_path / name).sha256 == bare.sha256
        fc.save_bundle(fitted, tmp_path / name, include_weights=False, description="new", overwrite=True)
        assert fc.load_bundle(tmp_path / name).manifest["description"] == "new"
    (tmp_path / "x" / "thesis.tex").write_text("precious")
    with pytest.raises(HandoffError, match="holds other things"):
        fc.save_bundle(fitted, tmp_path / "x", include_weights=False, overwrite=True)
    with pytest.raises(HandoffError, match="make it first"):
        fc.save_bundle(fitted, tmp_path / "no" / "x", include_weights=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x", "x.bundle"], "nothing is left behind"


@pytest.mark.parametrize("name", ["x.bundle", "x"])
@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_a_disk_that_refuses_leaves_the_old_bundle(setting, tmp_path, name, call):
    class Full(Disk):
        pass

    def fail(self, *args):
        raise OSError(28, "No space left on device")

    _, _, fitted, _, bare = setting
    fc.save_bundle(fitted, tmp_path / name, include_weights=False)
    setattr(Full, call, fail)
    with pytest.raises(HandoffError, match="No space left"):
        fc.save_bundle(fitted, tmp_path / name, include_weights=False, description="new", overwrite=True, disk=Full())
    assert fc.load_bundle(tmp_path / name).sha256 == bare.sha256
    assert [p.name for p in tmp_path.iterdir()] == [name]


# ------------------------------------------------------------------------------------------------ attacks


def test_loading_and_predicting_unpickle_nothing(setting, monkeypatch):
    folder, _, _, whole, _ = setting

    def never(*args, **options):
        raise AssertionError("something was unpickled")

    for module, name in ((pickle, "load"), (pickle, "loads"), (torch, "load")):
        monkeypatch.setattr(module, name, never)
    assert fc.load_bundle(whole.path).predict(folder, progress=False)


@pytest.mark.parametrize("name", ["manifest.json", "head.safetensors", "weights.safetensors", "MODEL_CARD.md"])
def test_a_changed_or_missing_member_is_named(setting, tmp_path, name):
    members = members_of(setting[3].path)
    changed = bytearray(members[name])
    changed[len(changed) // 2] ^= 1
    for made, match in (
        (members | {name: bytes(changed)}, "checksum|expected SHA-256|expected the manifest"),
        (members | {name: members[name] + b" "}, "checksum|expected [0-9,]+ bytes"),
        ({key: value for key, value in members.items() if key != name}, "is missing|got none"),
    ):
        (tmp_path / "x.bundle").write_bytes(zip_of(made))
        refused(tmp_path / "x.bundle", match)


def test_an_added_member_is_refused(setting, tmp_path):
    whole, bare = members_of(setting[3].path), members_of(setting[4].path)
    (tmp_path / "x.bundle").write_bytes(zip_of(whole | {"setup.py": b"import os"}))
    refused(tmp_path / "x.bundle", "got a member 'setup.py'")
    (tmp_path / "x.bundle").write_bytes(zip_of(bare | {"weights.safetensors": whole["weights.safetensors"]}))
    refused(tmp_path / "x.bundle", "was added")
    (tmp_path / "x.bundle").write_bytes(zip_of(resealed(bare | {"weights.safetensors": whole["weights.safetensors"]})))
    refused(tmp_path / "x.bundle", "weights as the manifest says")


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/etc/evil", "\\\\host\\evil", "C:evil", "..\\evil"])
def test_a_member_that_points_out_of_the_bundle_is_refused(setting, tmp_path, name):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "x.bundle").write_bytes(zip_of(members_of(setting[4].path) | {name: b"evil"}))
    refused(tmp_path / "inner" / "x.bundle", "points out of it")
    assert [p.name for p in tmp_path.iterdir()] == ["inner"]


def test_a_member_that_stands_twice_is_refused(setting, tmp_path):
    buffer = io.BytesIO()
    with pytest.warns(UserWarning), zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members_of(setting[4].path).items():
            archive.writestr(name, content)
        archive.writestr("head.safetensors", b"other")
    (tmp_path / "x.bundle").write_bytes(buffer.getvalue())
    refused(tmp_path / "x.bundle", "twice")


def test_a_bomb_is_refused_before_it_is_read(setting, tmp_path, monkeypatch):
    members = members_of(setting[4].path)
    with zipfile.ZipFile(tmp_path / "x.bundle", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
        archive.writestr("weights.safetensors", bytes(50_000_000))
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    refused(tmp_path / "x.bundle", "smaller than the file|stored as it is")
    with zipfile.ZipFile(tmp_path / "y.bundle", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", members["manifest.json"])
    refused(tmp_path / "y.bundle", "smaller than the file|stored as it is")


def test_sizes_that_lie_are_refused(setting, tmp_path):
    data = bytearray(setting[4].path.read_bytes())
    place = data.index(b"PK\x01\x02") + 20
    for sizes in ((2**32 - 2, 2**32 - 2), (10, 10), (2**31, 10)):
        data[place : place + 8] = struct.pack("<II", *sizes)
        (tmp_path / "x.bundle").write_bytes(bytes(data))
        refused(tmp_path / "x.bundle", "expected")
    manifest = b'{"a": "' + b" " * 2**24 + b'"}'
    (tmp_path / "x.bundle").write_bytes(zip_of({"manifest.json": manifest}))
    refused(tmp_path / "x.bundle", "bytes at most")
    (tmp_path / "x.bundle").write_bytes(zip_of({"manifest.json": b"[" * 1_000_000}))
    refused(tmp_path / "x.bundle", "expected the manifest")


def test_a_shortened_file_is_refused_wherever_it_ends(setting, tmp_path):
    data = setting[4].path.read_bytes()
    cuts = np.random.default_rng(0).integers(0, len(data), 40).tolist()
    for cut in [0, 1, 3, 4, 30, len(data) - 1, len(data) - 22, *cuts]:
        (tmp_path / "x.bundle").write_bytes(data[:cut])
        refused(tmp_path / "x.bundle", "damaged or shortened|expected")
    refused(tmp_path / "absent.bundle", "found nothing")


def test_every_flipped_byte_is_an_error(setting, tmp_path):
    data, generator = setting[4].path.read_bytes(), np.random.default_rng(1)
    places = [*generator.integers(0, len(data), 60), *range(40), *range(len(data) - 300, len(data))]
    for place in places:
        bad = bytearray(data)
        bad[place] ^= int(generator.integers(1, 256))
        (tmp_path / "x.bundle").write_bytes(bytes(bad))
        refused(tmp_path / "x.bundle", "x.bundle")
    (tmp_path / "x.bundle").write_bytes(data + b" ")
    refused(tmp_path / "x.bundle", "x.bundle")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"classes": ["ant", "bee", "dog"]}, "classes: the manifest says other"),
        ({"thresholds": {"reject": None, "novelty": None}}, "thresholds: the manifest says other"),
        ({"temperature": 1.0}, "temperature: the manifest says other"),
        ({"node": "x"}, "node: the manifest says other"),
        ({"classes": None}, "expected classes as list"),
        ({"kind": "network"}, "with their members"),
        ({"kind": "script"}, "with their members"),
        ({"format": 2}, "install a newer featcache"),
        ({"format": 0}, "checksum"),
        ({"format": "1"}, "checksum|as int"),
    ],
)
def test_a_manifest_that_was_changed_with_its_digests_is_refused(setting, tmp_path, changes, match):
    (tmp_path / "x.bundle").write_bytes(zip_of(resealed(members_of(setting[3].path), **changes)))
    refused(tmp_path / "x.bundle", match)


def test_only_the_digest_pins_what_nothing_else_contradicts(setting, tmp_path):
    whole = setting[3]
    changed = resealed(members_of(whole.path), metrics={"accuracy": {"value": 1.0}})
    (tmp_path / "x.bundle").write_bytes(zip_of(changed))
    assert fc.load_bundle(tmp_path / "x.bundle").sha256 != whole.sha256
    refused(tmp_path / "x.bundle", f"expected a bundle with SHA-256 {whole.sha256}", sha256=whole.sha256)
    assert fc.load_bundle(whole.path, sha256="sha256:" + whole.sha256.upper()[:0] + whole.sha256).classes


def test_weights_of_another_network_are_refused(setting, tmp_path):
    from safetensors.torch import load, save

    folder, _, fitted, whole, _ = setting
    members = members_of(whole.path)
    tensors = load(members["weights.safetensors"])
    for name, made in (
        ("values", {key: tensor + 1 for key, tensor in tensors.items()}),
        ("names", {f"x.{key}": tensor for key, tensor in tensors.items()}),
        ("none", {}),
    ):
        (tmp_path / name).with_suffix(".bundle").write_bytes(
            zip_of(resealed(members | {"weights.safetensors": save(made)}))
        )
        bundle = fc.load_bundle((tmp_path / name).with_suffix(".bundle"))
        with pytest.raises((WeightsError, HandoffError)) as caught:
            bundle.predict(folder, progress=False)
        assert "\n" not in str(caught.value)
    (tmp_path / "p.bundle").write_bytes(zip_of(resealed(members | {"weights.safetensors": pickle.dumps([1])})))
    with pytest.raises(HandoffError, match="expected tensors"):
        fc.load_bundle(tmp_path / "p.bundle").predict(folder, progress=False)
    (tmp_path / "h.bundle").write_bytes(zip_of(resealed(members | {"head.safetensors": pickle.dumps([1])})))
    refused(tmp_path / "h.bundle", "expected a head saved by featcache")


@pytest.mark.parametrize(
    "changes",
    [
        {"images": "bytes"},
        {"node": "nowhere"},
        {"join": {"nodes": ["a"], "shapes": [[1]]}},
        {"join": 3},
        {"prelude": {"power": "x", "unit": 1}},
        {"kwargs": {"width_mult": -5}},
        {"kwargs": [1]},
        {"scores": "magic"},
    ],
)
def test_a_recipe_that_makes_no_network_is_refused_in_one_line(setting, network, tmp_path, changes):
    parts = network.manifest["network"] | changes
    (tmp_path / "x.bundle").write_bytes(zip_of(resealed(members_of(network.path), network=parts)))
    with pytest.raises(FeatcacheError) as caught:
        fc.load_bundle(tmp_path / "x.bundle").predict(setting[0], progress=False)
    assert "\n" not in str(caught.value)


def test_attacks_on_a_folder_are_refused(setting, tmp_path):
    fitted, bare = setting[2], setting[4]
    place = tmp_path / "x"
    fc.save_bundle(fitted, place, include_weights=False)
    (place / "evil.py").write_text("import os")
    refused(place, "got a member 'evil.py'")
    (place / "evil.py").unlink()
    card = (place / "MODEL_CARD.md").read_bytes()
    (place / "MODEL_CARD.md").write_bytes(card + b"changed")
    refused(place, "MODEL_CARD.md: expected [0-9,]+ bytes")
    (place / "MODEL_CARD.md").unlink()
    refused(place, "MODEL_CARD.md' is missing")
    (tmp_path / "elsewhere").write_bytes(card)
    (place / "MODEL_CARD.md").symlink_to(tmp_path / "elsewhere")
    refused(place, "got a link or folder")
    (place / "MODEL_CARD.md").unlink()
    (place / "MODEL_CARD.md").mkdir()
    refused(place, "got a link or folder")
    (place / "MODEL_CARD.md").rmdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(place / "MODEL_CARD.md")
        refused(place, "got a link or folder")
        (place / "MODEL_CARD.md").unlink()
    (place / "MODEL_CARD.md").write_bytes(card)
    assert fc.load_bundle(place).sha256 == bare.sha256
    (place / "manifest.json").unlink()
    refused(place, "got none")


def test_what_is_no_bundle_is_said(tmp_path):
    (tmp_path / "x.bundle").write_bytes(zip_of({"a.txt": b"hello"}))
    refused(tmp_path / "x.bundle", "got a member 'a.txt'")
    with pytest.raises(HandoffError):
        fc.predict(tmp_path / "x.bundle", [np.zeros((8, 8, 3), "u1")])
    refused(tmp_path, "got a member|got none")


# ------------------------------------------------------------------------------------------------ other kinds of heads


def test_heads_of_numbers_and_of_several_labels(setting, tmp_path):
    folder, data, _, _, _ = setting
    number = replace(data, columns={**data.columns, "size": np.arange(len(data.X), dtype=float)})
    fitted = fc.fit("ridge", number, target="size")
    for bundle in (
        fc.save_bundle(fitted, tmp_path / "n.bundle"),
        fc.save_bundle(fc.to_module(fitted), tmp_path / "m.bundle", head=fitted),
    ):
        rows = bundle.predict(folder, progress=False)
        assert bundle.classes == [] and np.allclose(
            [r["value"] for r in rows], [r["value"] for r in fc.predict(fitted, folder, progress=False)], atol=1e-3
        )
        with pytest.raises(HandoffError, match="top_k"):
            bundle.predict(folder, top_k=2)
    labels = np.asarray(["ant;bee", "bee", "cow;ant"] * 8)
    fitted = fc.fit("logreg", replace(data, y=labels), separator=";")
    for bundle in (
        fc.save_bundle(fitted, tmp_path / "s.bundle"),
        fc.save_bundle(fc.to_module(fitted), tmp_path / "t.bundle", head=fitted),
    ):
        rows, expected = bundle.predict(folder, progress=False), fc.predict(fitted, folder, progress=False)
        assert [(r["label"], r["labels"]) for r in rows] == [(r["label"], r["labels"]) for r in expected]
        assert np.allclose(
            [list(r["scores"].values()) for r in rows], [list(r["scores"].values()) for r in expected], atol=1e-4
        )
        assert [t["label"] for t in bundle.predict(folder, top_k=2, progress=False)[0]["top"]] == sorted(
            rows[0]["scores"], key=lambda name: -rows[0]["scores"][name]
        )[:2]


def test_a_head_on_several_nodes(setting, tmp_path):
    folder = setting[0]
    backbone = make_tiny_backbone(nodes="features.5,features.12")
    images = write_images(tmp_path / "images", 12)
    store = fc.extract(images, backbone, tmp_path / "s", precision="fp32", progress=False)
    fitted = fc.fit("logreg", join_layers([store.load(node=node) for node in backbone.nodes]))
    expected = fc.predict(fitted, folder, progress=False)
    assert fc.save_bundle(fitted, tmp_path / "h.bundle").predict(folder, progress=False) == expected
    network = fc.save_bundle(fc.to_module(fitted), tmp_path / "n.bundle", head=fitted)
    assert network.manifest["network"]["join"]["nodes"] == list(backbone.nodes)
    rows = network.predict(folder, progress=False)
    assert [r["label"] for r in rows] == [r["label"] for r in expected]


@pytest.mark.real
def test_a_bundle_of_real_weights(data_dir, mobilenet_weights, tmp_path):
    paths = sorted((data_dir / "datasets" / "clothing10").rglob("*.jpg"))[::40]
    (tmp_path / "l.csv").write_text("path,label\n" + "\n".join(f"{p},{p.parent.name}" for p in paths))
    backbone = fc.Backbone("mobilenet_v2", mobilenet_weights)
    store = fc.extract(tmp_path / "l.csv", backbone, tmp_path / "s", precision="fp32", progress=False)
    fitted = fc.fit("centroid", store.load())
    bundle = fc.save_bundle(fitted, tmp_path / "x.bundle", licence={"weights": "Apache-2.0", "data": "CC0"})
    some = [Path(p) for p in paths[:8]]
    assert bundle.predict(some, progress=False) == fc.predict(fitted, some, progress=False)


def test_the_file_is_what_zipfile_writes():
    members = {"manifest.json": b"{}", "weights.safetensors": bytes(range(256)) * 9, "MODEL_CARD.md": b""}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as file:
        for name in sorted(members):
            info = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            info.create_system, info.external_attr = 3, 0o100644 << 16
            file.writestr(info, members[name])
    assert zip_of(members) == buffer.getvalue()


def test_a_bundle_too_large_for_a_file_is_a_folder(setting, tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "_MOST", 5000)
    head = setting[2]
    with pytest.raises(HandoffError, match="without an ending"):
        fc.save_bundle(head, tmp_path / "x.bundle")
    assert not (tmp_path / "x.bundle").exists()
    folder = fc.save_bundle(head, tmp_path / "x")
    monkeypatch.undo()
    whole = fc.save_bundle(head, tmp_path / "y.bundle")
    assert fc.load_bundle(tmp_path / "x").sha256 == folder.sha256 == whole.sha256
    monkeypatch.setattr(archive, "_MOST", 5000)
    with pytest.raises(HandoffError, match="GiB"):
        fc.load_bundle(tmp_path / "y.bundle")
