"""The model card: everything that is known, nothing that is not, and no text that becomes markup."""

import re

import numpy as np
import pytest
from conftest import make_tiny_backbone, write_images

import featcache as fc
from featcache.handoff.card import card_of

SECTIONS = [
    "What it is", "Intended use", "Training data", "Evaluation", "Limits", "Preprocessing", "Licence", "How to load",
    "Versions",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("card")
    images = write_images(tmp / "images", 12)
    return fc.extract(images, make_tiny_backbone(), tmp / "s", precision="fp32", progress=False).load()


def section(card, name):
    return re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", card, re.M | re.S)[1]


def test_all_sections_with_what_is_known(data, tmp_path):
    fitted = fc.fit("logreg", data, calibrate=True, reject=0.3, novelty="mahalanobis")
    bundle = fc.save_bundle(
        fitted, tmp_path / "x.bundle", training_data=data, description="Cats and dogs.", intended_use="Doors.",
        metrics={"accuracy": (0.875, 0.75, 0.9375), "images per second": {"value": 12, "n": 64}},
        licence={"weights": "BSD-3-Clause", "data": "CC0"},
    )  # fmt: skip
    card = bundle.card
    assert re.findall(r"^## (.*)$", card, re.M) == SECTIONS
    assert "Cats and dogs." in section(card, "What it is") and data.spec["backbone"]["weights"] in card
    assert "cat, dog" in section(card, "What it is") and "Doors." in section(card, "Intended use")
    assert "| cat | 6 |" in section(card, "Training data") and fitted.training_digest in section(card, "Training data")
    assert "| accuracy | 0.8750 | 0.7500 to 0.9375 | not given |" in section(card, "Evaluation")
    assert "| images per second | 12 | not given | 64 |" in section(card, "Evaluation")
    assert f"{fitted.scores['cv']:.4f}" in section(card, "Evaluation")
    limits = section(card, "Limits")
    assert "called novel" in limits and "calibrated (temperature" in limits and "cut to 64 pixels" in limits
    assert "BSD-3-Clause" in section(card, "Licence") and "load\\_bundle" not in section(card, "How to load")
    assert "crop: 64" in section(card, "Preprocessing") and "torch" in section(card, "Versions")


def test_what_nobody_said_is_said_to_be_missing(data, tmp_path):
    fitted = fc.fit("ridge", data)
    manifest = fc.save_bundle(fitted, tmp_path / "x.bundle").manifest
    card = card_of(manifest)
    assert "Not stated" in section(card, "Intended use")
    assert "per class: not stated" in section(card, "Training data")
    assert section(card, "Licence").count("not stated") == 2
    limits = section(card, "Limits")
    assert "not detected" in limits and "no threshold was fitted" in limits and "not calibrated" in limits
    bare = manifest | {"head": manifest["head"] | {"scores": {}}, "training": {}}
    assert section(card_of(bare), "Evaluation").strip() == "No metric was given."
    assert "not recorded" in section(card_of(bare), "Training data")
    network = fc.save_bundle(fc.to_module(fitted), tmp_path / "net.bundle")
    assert "A whole network" in network.card and "No metric was given." in network.card


def test_text_from_anywhere_stays_text(data, tmp_path):
    evil = "<script>alert(1)</script>|[x](javascript:y)\n# big\u202e"
    names = np.asarray([evil, "b|c"] * 6)
    fitted = fc.fit("ridge", fc.FeatureSet(
        data.X, names, spec=data.spec, node=data.node, locator=data.locator, fingerprint=data.fingerprint
    ))  # fmt: skip
    card = fc.save_bundle(
        fitted, tmp_path / "x.bundle", description=evil, intended_use=evil, metrics={evil: 1.0},
        licence={"data": evil}, training_data={evil: 3},
    ).card  # fmt: skip
    assert "<script" not in card and "\u202e" not in card and "[x](" not in card
    assert re.findall(r"^#+ (.*)$", card, re.M)[1:] == SECTIONS
    assert "| b\\|c" not in card and "b\\|c" in card


def test_many_classes_are_shortened(data, tmp_path):
    manifest = fc.save_bundle(fc.fit("ridge", data), tmp_path / "x.bundle").manifest
    many = [f"class{i}" for i in range(500)]
    card = card_of(manifest | {"classes": many, "training": {"classes": dict.fromkeys(many, 1)}})
    assert "… and 450 more" in card and "class499" not in card and len(card) < 8000


def test_numbers_out_of_reach_are_no_numbers(data, tmp_path):
    manifest = fc.save_bundle(fc.fit("ridge", data), tmp_path / "x.bundle").manifest
    rejection = {"wanted": 0.05, "threshold": None, "coverage": 0, "error_rate": None}
    card = card_of(manifest | {"thresholds": {"reject": rejection, "novelty": None}})
    assert "(out of reach)" in card and "nan" not in card.lower().replace("banana", "")
