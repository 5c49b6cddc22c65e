"""What a network means travels with it, and what cannot be right is refused before it does harm."""

import copy
import io
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import make_tiny_backbone, write_images
from test_bundle import members_of, resealed

import featcache as fc
from featcache.cli import run
from featcache.errors import FeatcacheError, HandoffError, HeadError
from featcache.files import Disk
from featcache.handoff import publishing, with_fresh_head
from featcache.handoff.archive import zip_of
from featcache.handoff.bundling import _portable
from featcache.handoff.manifest import facts_of_head
from featcache.heads.contents import text_array
from featcache.heads.persistence import head_bytes, head_of_bytes


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("strict")
    folder = write_images(tmp / "images", 12, classes=("ant", "bee", "cow"))
    data = fc.extract(folder, make_tiny_backbone(), tmp / "s", precision="fp32", progress=False).load()
    return folder, data, fc.fit("logreg", data)


def of_kind(data, kind):
    if kind == "number":
        return fc.fit("ridge", replace(data, columns={"size": np.arange(len(data.X), dtype=float)}), target="size")
    if kind == "labels":
        return fc.fit("logreg", replace(data, y=np.asarray(["ant;bee", "bee", "cow;ant"] * 4)), separator=";")
    return fc.fit(kind, data)


# ------------------------------------------------------------------------------------------------ what scores mean


@pytest.mark.parametrize("kind", ["number", "labels", "ridge", "svm", "logreg"])
def test_a_network_knows_what_its_scores_mean(setting, tmp_path, kind):
    folder, data, _ = setting
    fitted = of_kind(data, kind)
    module = fc.to_module(fitted)
    expected = fc.predict(module, folder, head=fitted, progress=False)
    assert fc.predict(copy.deepcopy(module), folder, progress=False) == expected
    bundle = fc.save_bundle(module, tmp_path / "x.bundle")
    assert bundle.predict(folder, progress=False) == expected
    assert bundle.module().meaning == module.meaning == with_fresh_head(module).meaning
    assert fc.save_bundle(bundle.module(), tmp_path / "y.bundle").predict(folder, progress=False) == expected
    path = fc.export(module, tmp_path / "x.safetensors").path
    assert f'\\"scores\\": \\"{module.meaning["scores"]}\\"'.encode() in path.read_bytes()[:20000]


def test_one_class_alone_is_unknown(setting):
    lower = make_tiny_backbone(nodes="features.5")
    with pytest.raises(HandoffError, match="give head="):
        fc.predict(fc.assemble(lower, torch.nn.LazyLinear(1), ["a"]), setting[0], progress=False)
    with pytest.raises(HandoffError, match="unknown"):
        fc.export(fc.assemble(lower, torch.nn.LazyLinear(1), ["a"]), "x.pt2")


def test_scores_that_are_not_finite_are_refused_everywhere(setting, tmp_path):
    folder, data, fitted = setting
    module = fc.to_module(fitted)
    with torch.no_grad():
        module.head.bias[0] = float("nan")
    for call in (
        lambda: fc.predict(module, folder, progress=False),
        lambda: fc.save_bundle(module, tmp_path / "x.bundle"),
        lambda: fc.export(module, tmp_path / "x.pt2"),
    ):
        with pytest.raises(HandoffError, match="expected finite scores") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ strangers


@pytest.mark.parametrize(
    "locator",
    [
        {"kind": "url", "value": "https://example.org/w.pth"},
        {"kind": "file", "value": "/etc/passwd"},
        {"kind": "enum", "value": "https://example.org/w.pth"},
        {"kind": "enum", "value": "/etc/passwd.pth"},
        {"kind": "enum", "value": None},
        {"kind": ["enum"], "value": 3},
        {},
    ],
)
def test_nothing_that_a_bundle_names_is_opened(setting, tmp_path, monkeypatch, locator):
    folder, _, fitted = setting
    bundle = fc.save_bundle(replace(fitted, locator=locator), tmp_path / "x.bundle", include_weights=False)
    monkeypatch.setattr(fc.Backbone, "from_spec", None)
    with pytest.raises(HandoffError, match="pass weights="):
        bundle.predict(folder, progress=False)


def test_a_crafted_support_vector_machine_is_refused(setting):
    pytest.importorskip("sklearn")
    fitted = fc.fit("svm-rbf", setting[1])
    again = head_of_bytes(head_bytes(fitted), "x")
    assert (again.predict(setting[1]) == fitted.predict(setting[1])).all()
    crafted = {
        "_n_support": np.asarray([10**6, -(10**6), len(fitted.estimator[-1].support_)], np.int32),
        "_dual_coef_": np.zeros((2, 1)),
        "_intercept_": np.zeros(1),
        "support_": np.zeros(1, np.int32),
        "support_vectors_": np.zeros((3, 1)),
        "_probA": np.zeros(1),
        "_sparse": True,
        "_impl": "one_class",
        "kernel": "precomputed",
        "intercept_": np.zeros(3, np.float32),
    }
    for name, value in crafted.items():
        bad = copy.deepcopy(fitted)
        setattr(bad.estimator[-1], name, value)
        with pytest.raises(HeadError, match="save (the head|it) again") as caught:
            head_of_bytes(head_bytes(bad), "x")
        assert "\n" not in str(caught.value)


def test_text_takes_no_more_memory_than_it_needs():
    assert text_array(["a", "bc"], "<U9").dtype == "<U9" and text_array(["a", "bc"], "<U900000000").dtype == "<U2"
    assert text_array([], "<U5").shape == (0,)
    for dtype in ("O", "V900000000", "U1,U2"):
        with pytest.raises(HeadError, match="dtype"):
            text_array(["a"], dtype)


@pytest.mark.parametrize(
    "change",
    [
        {"join": {"nodes": ["features.12.cat"], "shapes": [[10**9]]}},
        {"join": {"nodes": ["features.12.cat"], "shapes": [["x"]]}},
        {"join": {"nodes": ["features.12.cat", "features.12.cat"], "shapes": [[1, 1, 10**6]]}},
        {"join": {"nodes": [["features.12.cat"]], "shapes": [[1]]}},
        {"prelude": {"power": 1.0, "unit": True}},
        {"prelude": {"power": float("1e400"), "unit": True}},
        {"prelude": {"power": -1, "unit": True}},
        {"node": 5},
    ],
)
def test_parts_that_do_not_belong_together_are_refused(setting, tmp_path, change):
    bundle = fc.save_bundle(fc.to_module(setting[2]), tmp_path / "x.bundle")
    parts = json.loads(json.dumps(bundle.manifest["network"] | change).replace("Infinity", "1e308"))
    (tmp_path / "y.bundle").write_bytes(zip_of(resealed(members_of(bundle.path), network=parts)))
    with pytest.raises(FeatcacheError, match="expected") as caught:
        fc.load_bundle(tmp_path / "y.bundle").module()
    assert "\n" not in str(caught.value)


def test_classes_of_a_stranger_fit_its_last_layer(setting, tmp_path):
    bundle = fc.save_bundle(fc.to_module(setting[2]), tmp_path / "x.bundle")
    for classes in (["a", "a", "b"], ["a", "b"], []):
        (tmp_path / "y.bundle").write_bytes(zip_of(resealed(members_of(bundle.path), classes=classes)))
        with pytest.raises(FeatcacheError, match="expected"):
            fc.load_bundle(tmp_path / "y.bundle").predict(setting[0], progress=False)


def test_the_manifest_agrees_with_what_is_inside(setting, tmp_path):
    whole = fc.save_bundle(setting[2], tmp_path / "x.bundle")
    for change in (
        {"weights": {"included": True, "digest": "0" * 64}},
        {"training": whole.manifest["training"] | {"rows": 10**6}},
        {"training": whole.manifest["training"] | {"digest": "0" * 64}},
    ):
        (tmp_path / "y.bundle").write_bytes(zip_of(resealed(members_of(whole.path), **change)))
        with pytest.raises(HandoffError, match="says other"):
            fc.load_bundle(tmp_path / "y.bundle")


def test_what_a_manifest_says_of_settings_depends_on_no_print_options(setting):
    params = {
        "w": np.arange(3000.0),
        "x": {"y": [np.float32(0.5), np.nan]},
        "f": test_text_takes_no_more_memory_than_it_needs,
    }
    facts = facts_of_head(replace(setting[2], params=params))["head"]["params"]
    assert facts["w"] == list(range(3000)) and facts["x"] == {"y": [0.5, None]} and facts["f"] == "function"


def test_addresses_lose_their_passwords():
    found = _portable({"kind": "url", "value": "https://me:secret@host.org/a/w.pth?token=x#y", "sha256": "a"})
    assert found == {"kind": "url", "value": "w.pth", "sha256": "a"}


# ------------------------------------------------------------------------------------------------ files


class Broken(Disk):
    """Fails, or is interrupted, at some of its renames."""

    def __init__(self, error, *at):
        self.error, self.at, self.count = error, at, 0

    def rename(self, source, target):
        self.count += 1
        if self.count in self.at:
            raise self.error
        super().rename(source, target)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(5, "Input/output error")])
def test_a_replaced_folder_is_never_lost(setting, tmp_path, error):
    old = fc.save_bundle(setting[2], tmp_path / "x", include_weights=False)
    options = {"include_weights": False, "overwrite": True, "description": "new"}
    with pytest.raises((KeyboardInterrupt, HandoffError)):
        fc.save_bundle(setting[2], tmp_path / "x", **options, disk=Broken(error, 2))
    assert fc.load_bundle(tmp_path / "x").sha256 == old.sha256 and [p.name for p in tmp_path.iterdir()] == ["x"]
    with pytest.raises((KeyboardInterrupt, HandoffError)) as caught:  # nor can it be given its name back
        fc.save_bundle(setting[2], tmp_path / "x", **options, disk=Broken(error, 2, 3))
    kept = next(tmp_path.glob("*.old"))
    assert fc.load_bundle(kept).sha256 == old.sha256
    assert isinstance(error, KeyboardInterrupt) or kept.name in str(caught.value)


@pytest.mark.parametrize("content", [b"PK\x03\x04 not ours", b"precious"])
def test_only_files_of_the_same_kind_are_replaced(setting, tmp_path, content):
    for name in ("x.bundle", "x.safetensors", "x.onnx"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(HandoffError, match="is not replaced|pip install"):
            fc.export(setting[2], tmp_path / name, overwrite=True)
        assert (tmp_path / name).read_bytes() == content
    head = setting[2].save(tmp_path / "h.safetensors")
    with pytest.raises(HandoffError, match="is not replaced"):
        fc.export(setting[2], head, overwrite=True)
    for name in ("x.pt2", "y.onnx", "y.safetensors", "y.head"):
        with pytest.raises(HandoffError, match="expected a name for a bundle"):
            fc.save_bundle(setting[2], tmp_path / name)


def test_a_reader_that_fails_is_one_line(setting, tmp_path, monkeypatch):
    def broken(path, module):
        raise Exception("a page\nof text")

    monkeypatch.setitem(publishing.FORMATS, ".pt2", broken)
    with pytest.raises(HandoffError, match="cannot be read again") as caught:
        fc.export(setting[2], tmp_path / "x.pt2")
    assert "\n" not in str(caught.value) and not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------ options


def test_a_network_says_what_it_was_trained_on(setting, tmp_path):
    module, fitted = fc.to_module(setting[2]), setting[2]
    facts = {"rows": 7, "digest": "a" * 64}
    bundle = fc.save_bundle(
        module, tmp_path / "x.bundle", head=fitted, training=facts, scores="softmax", begun_from="random numbers"
    )
    assert bundle.manifest["training"] == facts | {"classes": None} and bundle.manifest["head"] == {}
    assert "begun from random numbers" in bundle.card and "begun from a head" not in bundle.card
    assert "begun from" not in fc.save_bundle(module, tmp_path / "y.bundle", head=fitted, begun_from="").card
    assert "begun from a head" in fc.save_bundle(module, tmp_path / "z.bundle", head=fitted).card
    for options in ({"training": {"rows": -1}}, {"training": 3}, {"training": {"images": 3}}):
        with pytest.raises(HandoffError, match="training: expected"):
            fc.save_bundle(module, tmp_path / "w.bundle", **options)
    for options in ({"training": facts}, {"begun_from": "x"}):
        with pytest.raises(HandoffError, match="expected a network"):
            fc.save_bundle(fitted, tmp_path / "w.bundle", **options)


def test_weights_are_where_they_lie(setting, tmp_path):
    folder, _, fitted = setting
    torch.save(dict(make_tiny_backbone().module().trunk.state_dict()), tmp_path / "w.pth")
    lost = replace(fitted, locator={"kind": "file", "value": "gone.pth"})
    done = fc.export(lost, tmp_path / "x.bundle", weights=tmp_path / "w.pth", licence="MIT", intended_use="Doors.")
    bundle = fc.load_bundle(done.path)
    assert bundle.predict(folder, progress=False) == fc.predict(fitted, folder, progress=False)
    assert bundle.manifest["licence"]["weights"] == "MIT" and "Doors." in bundle.card
    with pytest.raises(HandoffError, match="use include_weights=False"):
        fc.save_bundle(fitted, tmp_path / "y.bundle", weights=False)
    with pytest.raises(HandoffError, match="licence: expected a bundle"):
        fc.export(fitted, tmp_path / "y.pt2", licence="MIT")
    with pytest.raises(HandoffError, match="include_weights: expected a bundle"):
        fc.export(fitted, tmp_path / "y.pt2", include_weights=False)


def test_the_command_line_of_bundles(setting, tmp_path, capsys):
    head, out = setting[2].save(tmp_path / "h.head"), tmp_path / "x.bundle"
    words = ["--without-weights", "--licence", "MIT", "--description", "Ants.", "--intended-use", "Doors."]
    assert run(["export", str(head), str(out), *words]) == 0, capsys.readouterr().err
    found = fc.load_bundle(out).manifest
    assert not found["weights"]["included"] and found["licence"]["weights"] == "MIT"
    assert (found["description"], found["intended_use"]) == ("Ants.", "Doors.")


def test_images_to_check_on_are_few_and_counted(setting, tmp_path, monkeypatch):
    from featcache.handoff import checking

    images = sorted(setting[0].rglob("*.jpg"))
    (tmp_path / "odd.jpg").write_bytes(b"no image")
    done = fc.export(setting[2], tmp_path / "x.safetensors", check=[*images, tmp_path / "odd.jpg"])
    assert (done.images, done.unread, done.absolute) == (12, 1, 0.0)
    monkeypatch.setattr(checking, "MOST", 5)
    assert fc.export(setting[2], tmp_path / "y.safetensors", check=images).images == 5


def test_an_open_file_is_no_stream_of_images(setting):
    with pytest.raises(HandoffError, match="got an open file"):
        fc.predict(setting[2], io.BytesIO(b"x"), progress=False)
    with pytest.raises(HandoffError, match="got an open file"):
        fc.predict_iter(setting[2], io.BytesIO(b"x"))
    rows = fc.predict(setting[2], iter([(np.int64(7), np.zeros((70, 70, 3), "u1"))]), progress=False)
    assert rows[0]["id"] == "7" and "label" in rows[0]


def test_the_command_line_prints_as_it_goes(setting, capsys, monkeypatch):
    from featcache.cli import show

    seen = []
    monkeypatch.setattr(show, "predictions", lambda rows: seen.append(iter(rows) is rows) or False)
    head = setting[2].save(setting[0].parent / "h.head")
    assert run(["predict", str(head), str(setting[0])]) == 0 and seen == [True]
