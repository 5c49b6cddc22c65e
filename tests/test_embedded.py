"""The small backbone in the package: small, described, loadable, and worth having on digits it has never seen."""

from __future__ import annotations

import json
import unicodedata

import numpy as np
import pytest
from conftest import REPOSITORY
from safetensors import safe_open

ASSET = REPOSITORY / "featcache" / "assets" / "embedded.safetensors"


@pytest.fixture(scope="module")
def metadata():
    with safe_open(ASSET, "pt") as file:
        return file.metadata()


def test_the_asset_is_small_and_says_what_it_is(metadata):
    assert ASSET.stat().st_size <= 2_000_000
    assert set(metadata) == {"arch", "kwargs", "preprocess", "licence", "description"}
    assert json.loads(metadata["kwargs"]) == {"width_mult": 0.5}
    assert "digit" in metadata["description"] and "Apache-2.0" in metadata["licence"]


def test_it_holds_finite_numbers_and_nothing_of_the_classifier():
    with safe_open(ASSET, "np") as file:
        names = list(file.keys())
        assert all(name.startswith("features.") and not name.endswith("num_batches_tracked") for name in names)
        assert all(np.isfinite(file.get_tensor(name)).all() for name in names)


def test_the_backbone_takes_its_recipe_from_the_asset(metadata):
    from featcache.backbone import Backbone

    backbone, recipe = Backbone("embedded"), json.loads(metadata["preprocess"])
    spec = backbone.spec["preprocess"]
    for name in ("resize", "crop", "interpolation"):
        assert spec[name] == recipe[name]
    codes = backbone.encode(np.zeros((2, *backbone.preprocess.shape), np.uint8))[backbone.nodes[0]]
    assert codes.shape == (2, 1280) and np.isfinite(codes).all()


def test_no_digit_is_among_the_characters_of_the_training_script(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY / "scripts"))
    from embedded_glyphs import candidate_characters

    chars = candidate_characters()
    assert len(chars) > 500
    assert not any(c.isdigit() or c.isnumeric() or unicodedata.category(c).startswith("N") for c in chars)


def test_its_codes_beat_raw_pixels_on_digits_at_five_shots(monkeypatch):
    """Enlarged smoothly, as the demo does; by nearest neighbour the centroid head's margin is about the noise."""
    monkeypatch.syspath_prepend(str(REPOSITORY / "benchmarks"))
    import bench_embedded as bench
    from PIL import Image
    from sklearn.datasets import load_digits

    from featcache.backbone import Backbone

    found = load_digits()
    y, small = found.target, found.images
    images = [
        Image.fromarray((s * (255 / 16)).round().astype(np.uint8)).resize((64, 64), Image.Resampling.BICUBIC)
        for s in small
    ]
    codes, _ = bench.encode(Backbone("embedded"), images)
    raw = small.reshape(len(small), -1) / 16
    for head in ("logreg", "centroid"):
        gain = bench.accuracies(codes, y, head, 5, 10) - bench.accuracies(raw, y, head, 5, 10)
        found_gain = bench.interval(gain)
        assert found_gain["mean"] > found_gain["ci95"] > 0, (head, found_gain)
