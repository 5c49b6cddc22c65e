"""What all tests share: a clean environment, seeds, and the way to the real data."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

REPOSITORY = Path(__file__).resolve().parents[1]


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch, tmp_path_factory):
    """No test reads the user's caches, and none depends on the global random state."""
    monkeypatch.setenv("FEATCACHE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
    np.random.seed(0)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Folder of real images and weights; FEATCACHE_TEST_DATA names another one, set to nothing it means none."""
    path = Path(os.environ.get("FEATCACHE_TEST_DATA", REPOSITORY.parent / "shared" / "data") or os.devnull)
    if not (path / "README.md").is_file():
        pytest.skip(f"no real data at {path} (set FEATCACHE_TEST_DATA to a folder that has it)")
    return path


@pytest.fixture(scope="session")
def mobilenet_weights(data_dir) -> Path:
    return data_dir / "weights" / "mobilenet_v2-tf2_ptq_int8.pth"


@pytest.fixture(scope="session")
def squeezenet_weights(data_dir) -> Path:
    return data_dir / "weights" / "squeezenet1_1-caffe_ncnn_fp16.pth"


@pytest.fixture(scope="session")
def resnet18_partial_weights(data_dir) -> Path:
    return data_dir / "weights" / "resnet18_upto_layer3-onnx_bnfolded.pth"


def write_images(folder: Path, n: int, *, classes=("cat", "dog"), size=(80, 64), seed=0, start=0) -> Path:
    """Write n small random JPEGs (blurred noise, so that codes differ) into one folder per class."""
    from PIL import Image

    generator = np.random.default_rng(seed)
    for i in range(start, start + n):
        place = folder / classes[i % len(classes)]
        place.mkdir(parents=True, exist_ok=True)
        noise = generator.integers(0, 256, (8, 8, 3), dtype="u1")
        Image.fromarray(noise).resize(size).save(place / f"{i:04d}.jpg", quality=90)
    return folder


@pytest.fixture
def image_folder(tmp_path) -> Path:
    return write_images(tmp_path / "images", 12)


@pytest.fixture(scope="session")
def tiny_backbone():
    """A real torchvision architecture on small inputs: fast, and deterministic by its seed."""
    return make_tiny_backbone()


def make_tiny_backbone(seed: int = 0, crop: int = 64, **options):
    from featcache import Backbone, Preprocess

    recipe = Preprocess(resize=crop, crop=crop)
    return Backbone("squeezenet1_1", weights="random", init_seed=seed, preprocess=recipe, **options)
