"""Augmented views: the same for ever, within their bounds, one decode."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import pytest
from PIL import Image

from featcache.errors import PreprocessError
from featcache.preprocess import VIEWS_RECIPE, Preprocess
from featcache.preprocess import recipe as recipe_module
from featcache.preprocess.views import view_of

GOLDEN = [
    ((12, 0, 533, 480), True),
    ((169, 105, 637, 476), False),
    ((51, 2, 633, 465), True),
    ((189, 12, 637, 442), True),
    ((57, 86, 480, 417), True),
]


def noise(width: int, height: int) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, 3), np.uint8)


def test_the_crops_never_change():
    assert VIEWS_RECIPE == "views-1"
    found = [(view.box, view.mirrored) for view in (view_of((640, 480), b"featcache", k) for k in range(2, 7))]
    assert found == GOLDEN


def test_the_rule_as_it_is_written():
    size, key, number = (333, 251), hashlib.sha256(b"x").digest(), 5
    digest = hashlib.sha256(b"featcache-views-1" + key + number.to_bytes(8, "little")).digest()
    a, r, x, y, m = (int.from_bytes(digest[i : i + 6], "little") / 2**48 for i in range(0, 30, 6))
    t = 2 * r - 1
    aspect, area = (1 + t / 3 if t >= 0 else 1 / (1 - t / 3)), (0.35 + 0.65 * a) * size[0] * size[1]
    view = view_of(size, key, number)
    left, upper, right, lower = view.box
    assert abs((right - left) - min((area * aspect) ** 0.5, size[0], 4 / 3 * size[1])) <= 1
    assert abs((lower - upper) - min((area / aspect) ** 0.5, size[1])) <= 1
    assert left == int(x * (size[0] - (right - left) + 1)) and upper == int(y * (size[1] - (lower - upper) + 1))
    assert view.mirrored == (m < 0.5)


def test_crops_keep_their_bounds():
    shares, aspects, mirrored = [], [], []
    for number in range(2, 3000):
        view = view_of((1000, 800), b"k", number)
        left, upper, right, lower = view.box
        assert 0 <= left < right <= 1000 and 0 <= upper < lower <= 800
        shares.append((right - left) * (lower - upper) / 800_000)
        aspects.append((right - left) / (lower - upper))
        mirrored.append(view.mirrored)
    assert 0.34 < min(shares) < 0.36 and 0.95 < max(shares) <= 1
    assert 0.74 < min(aspects) < 0.76 and 1.3 < max(aspects) < 1.34
    assert 0.47 < np.mean(mirrored) < 0.53


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 60_000), (60_000, 1), (3, 5), (16_000_000, 2)])
def test_crops_of_absurd_images(size):
    for number in range(2, 200):
        left, upper, right, lower = view_of(size, b"", number).box
        assert 0 <= left < right <= size[0] and 0 <= upper < lower <= size[1]


@pytest.mark.parametrize(
    "recipe",
    [
        Preprocess(32, 24),
        Preprocess(32, (24, 30), "bicubic", resampling="torch"),
        Preprocess((20, 30), None, "nearest"),
        Preprocess(None, 40, resampling="fused"),
        Preprocess(32, 24, channels=1, mean=(0.5,), std=(0.5,), resampling="torch", decoder="scaled"),
    ],
)
@pytest.mark.parametrize("size", [(50, 40), (1, 1), (1, 500), (500, 2), (24, 24)])
def test_rows(recipe, size):
    image = noise(*size)
    views = recipe.views(image, b"key", 4)
    assert views.shape == (5, *recipe.shape) and views.dtype == np.uint8
    assert np.array_equal(views[0], recipe.pixels(image))
    assert np.array_equal(views[1], views[0][:, ::-1])
    for count in range(4):
        assert np.array_equal(recipe.views(image, b"key", count), views[: 1 + count])


def test_a_view_is_the_crop_resized():
    image = noise(90, 70)
    for resampling in ("reference", "fused", "torch"):
        views = Preprocess(32, 24, resampling=resampling).views(image, b"another key", 9)
        for number in range(2, 10):
            view = view_of((90, 70), b"another key", number)
            expected = Image.fromarray(image).crop(view.box).resize((24, 24), Image.Resampling.BILINEAR)
            flipped = np.asarray(expected)[:, ::-1] if view.mirrored else np.asarray(expected)
            assert np.abs(views[number].astype(int) - flipped).max() <= (1 if resampling == "torch" else 0)


def test_keys_and_numbers_give_other_views():
    image = noise(64, 64)
    recipe = Preprocess(16, 16)
    a, b = recipe.views(image, b"a", 6), recipe.views(image, b"b", 6)
    assert np.array_equal(a[:2], b[:2])
    assert len({row.tobytes() for row in (*a, *b[2:])}) == 12


def test_one_decode(monkeypatch):
    calls, real = [], recipe_module.open_picture
    monkeypatch.setattr(recipe_module, "open_picture", lambda *a, **k: calls.append(1) or real(*a, **k))
    Preprocess(16, 16).views(noise(30, 30), b"k", 8)
    assert calls == [1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_views_of_a_scaled_photo_show_the_same_places(orientation):
    small = Image.fromarray(noise(16, 12)).resize((803, 605), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=92, exif=exif)
    whole, scaled = (
        Preprocess(64, 56, decoder=d, resampling="torch").views(stream.getvalue(), b"k", 6)
        for d in ("pillow", "scaled")
    )
    assert np.abs(whole.astype(int) - scaled).mean() < 3


@pytest.mark.parametrize(("key", "count"), [("text", 1), (b"k", -1), (b"k", 1.5)])
def test_arguments_are_checked(key, count):
    with pytest.raises(PreprocessError, match="views: expected a key of bytes"):
        Preprocess().views(noise(8, 8), key, count)
