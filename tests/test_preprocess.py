"""The recipe: equal to torchvision bit for bit, plain data both ways, and safe with absurd images."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image

from featcache.errors import ImageError, PreprocessError
from featcache.preprocess import INTERPOLATIONS, MAX_RESIZED_SIDE, Preprocess, resizing
from featcache.preprocess.resampling import resize_window

#: Square, ordinary, tiny, one pixel wide, very elongated; (width, height).
SIZES = [(1, 1), (1, 9), (9, 1), (2, 3), (31, 17), (64, 64), (97, 101), (224, 224), (400, 300), (150, 3), (3, 200)]


def noise(width: int, height: int, mode: str = "RGB", seed: int = 0) -> Image.Image:
    shape = (height, width, 3) if mode == "RGB" else (height, width)
    return Image.fromarray(np.random.default_rng(seed + width * 7919 + height).integers(0, 256, shape, np.uint8))


def torchvision_result(image, *, resize, crop, interpolation, mean, std):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms import functional as F

    if resize is not None:
        image = F.resize(image, [resize] if isinstance(resize, int) else list(resize), InterpolationMode(interpolation))
    if crop is not None:
        image = F.center_crop(image, [crop, crop] if isinstance(crop, int) else list(crop))
    tensor = F.convert_image_dtype(F.pil_to_tensor(image))
    return F.normalize(tensor, list(mean), list(std)).numpy()


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize(("resize", "crop"), [(256, 224), (32, 32), (111, 96), (20, 31), (8, 3), (17, 16)])
def test_equals_the_torchvision_preset(interpolation, resize, crop):
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms._presets import ImageClassification

    preset = ImageClassification(
        crop_size=crop, resize_size=resize, interpolation=InterpolationMode(interpolation), antialias=True
    )
    recipe = Preprocess.from_torchvision(preset)
    assert (recipe.resize, recipe.crop, recipe.interpolation) == (resize, crop, interpolation)
    for width, height in SIZES:
        image = noise(width, height)
        assert same_bits(recipe(image), preset(image).numpy()), (width, height)


@pytest.mark.parametrize("seed", range(40))
def test_equals_torchvision_at_random(seed):
    rng = np.random.default_rng(seed)
    pair = tuple(int(v) for v in rng.integers(1, 90, 2))
    resize = [int(rng.integers(1, 90)), pair, None][seed % 3]
    crop = [int(rng.integers(1, 90)), tuple(int(v) for v in rng.integers(1, 90, 2))][seed % 2]
    if seed % 6 == 1:  # a pair needs no crop
        crop = None
    interpolation = list(INTERPOLATIONS)[seed % len(INTERPOLATIONS)]
    mean, std = rng.random(3).tolist(), (rng.random(3) + 0.1).tolist()
    image = noise(int(rng.integers(1, 200)), int(rng.integers(1, 200)), seed=seed)
    recipe = Preprocess(resize, crop, interpolation, mean, std)
    expected = torchvision_result(image, resize=resize, crop=crop, interpolation=interpolation, mean=mean, std=std)
    assert same_bits(recipe(image), expected)
    assert expected.shape == (3, *recipe.shape[:2])


def test_grey_equals_torchvision():
    image = noise(90, 40, "L")
    recipe = Preprocess(30, 24, channels=1, mean=(0.3,), std=(0.7,))
    expected = torchvision_result(image, resize=30, crop=24, interpolation="bilinear", mean=[0.3], std=[0.7])
    assert same_bits(recipe(image), expected)


def test_every_level_is_normalised_as_torch_does():
    import torch
    from torchvision.transforms import functional as F

    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1).repeat(3, axis=3)
    rng = np.random.default_rng(1)
    for _ in range(20):
        mean, std = rng.random(3).tolist(), (rng.random(3) + 0.01).tolist()
        ours = Preprocess(mean=mean, std=std).normalize(levels)
        tensor = F.convert_image_dtype(torch.from_numpy(levels).permute(0, 3, 1, 2), torch.float)
        assert same_bits(ours, F.normalize(tensor, mean, std).contiguous().numpy())


@pytest.mark.parametrize("interpolation", list(INTERPOLATIONS))
def test_window_equals_pillow(interpolation):
    rng = np.random.default_rng(3)
    for width, height in [(1, 300), (300, 1), (5, 7), (40, 90), (90, 40), (31, 30)]:
        image = noise(width, height, "RGB" if width != 5 else "L")
        for _ in range(4):
            short = min(width, height) + int(rng.integers(0, 40))
            size = tuple(int(short * side / min(width, height)) for side in (width, height))
            columns = range(*sorted(int(v) for v in rng.choice(size[0] + 1, 2, replace=False)))
            rows = range(*sorted(int(v) for v in rng.choice(size[1] + 1, 2, replace=False)))
            whole = np.asarray(image.resize(size, INTERPOLATIONS[interpolation]))
            window = resize_window(np.asarray(image), size, columns, rows, interpolation)
            assert np.array_equal(window, whole[rows.start : rows.stop, columns.start : columns.stop])


@pytest.mark.parametrize("interpolation", list(INTERPOLATIONS))
def test_elongated_image_by_its_window_equals_the_whole(interpolation, monkeypatch):
    image = noise(1, 3000)
    recipe = Preprocess(64, 48, interpolation)
    whole = recipe.pixels(image)
    assert len(np.unique(whole)) > 1
    monkeypatch.setattr(resizing, "_MAX_RESIZED_PIXELS", 1)
    assert np.array_equal(recipe.pixels(image), whole)


def test_elongated_image_costs_no_memory():
    import tracemalloc

    image = noise(1, 30_000)  # 256 x 7,680,000 pixels after the resize: 8 GB in Pillow
    tracemalloc.start()
    out = Preprocess(256, 224).pixels(image)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert out.shape == (224, 224, 3)
    assert peak < 50e6


def test_too_elongated_is_refused():
    image = Image.new("L", (1, MAX_RESIZED_SIDE // 256 + 1))
    with pytest.raises(ImageError, match="aspect ratio up to 65536"):
        Preprocess(256, 224).pixels(image)


def test_fused_is_close_and_a_spec_of_its_own():
    yy, xx = np.mgrid[:300, :420]
    smooth = np.stack([xx % 256, yy % 256, (xx + yy) // 3], axis=2).astype(np.uint8)
    reference, fused = Preprocess(64, 56), Preprocess(64, 56, resampling="fused")
    a, b = reference.pixels(smooth).astype(int), fused.pixels(smooth).astype(int)
    assert abs(a - b).max() <= 2
    assert reference.spec() != fused.spec()


@pytest.mark.parametrize("size", SIZES)
def test_fused_has_the_same_shape_and_padding(size):
    for resize, crop in [(20, 31), (32, 32), ((9, 50), 20), (None, 40)]:
        image = Image.new("RGB", size, (255, 255, 255))
        reference, fused = (Preprocess(resize, crop, resampling=r).pixels(image) for r in ("reference", "fused"))
        assert np.array_equal(reference, fused)


def test_pixels_are_writable_and_contiguous():
    out = Preprocess(8, 8).pixels(noise(8, 8))
    assert out.flags.writeable
    assert out.flags.c_contiguous
    assert out.dtype == np.uint8


def test_policy_reaches_the_decoder():
    clear = Image.new("RGBA", (4, 4), (10, 20, 30, 0))
    assert Preprocess(4, 4).pixels(clear)[0, 0].tolist() == [255, 255, 255]
    assert Preprocess(4, 4, alpha="black").pixels(clear)[0, 0].tolist() == [0, 0, 0]
    assert Preprocess(4, 4, alpha="drop").pixels(clear)[0, 0].tolist() == [10, 20, 30]
    turned = Image.new("RGB", (6, 2))
    turned.getexif()[0x0112] = 6
    assert Preprocess(None, (6, 2)).pixels(turned).shape == (6, 2, 3)
    turned.putpixel((0, 0), (255, 0, 0))
    assert Preprocess((6, 2), None).pixels(turned)[0, 1].tolist() == [255, 0, 0]
    assert Preprocess((2, 6), None, exif=False).pixels(turned)[0, 0].tolist() == [255, 0, 0]


# ------------------------------------------------------------------------------------------------------- as data


@pytest.mark.parametrize(
    "recipe",
    [
        Preprocess(),
        Preprocess((10, 20), None),
        Preprocess(None, (3, 4), "lanczos", exif=False, alpha="drop", resampling="fused"),
        Preprocess(channels=1, mean=[0], std=[1]),
    ],
)
def test_spec_round_trip(recipe):
    text = json.dumps(recipe.spec(), allow_nan=False)
    assert Preprocess.from_spec(json.loads(text)) == recipe
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert hash(Preprocess.from_spec(json.loads(text))) == hash(recipe)


def test_spec_has_json_types_whatever_came_in():
    recipe = Preprocess(np.int64(9), [np.int32(8), 8], mean=np.full(3, 0.5), std=[1, 1, 1])
    assert recipe == Preprocess(9, 8, mean=(0.5,) * 3, std=(1.0,) * 3)
    assert json.loads(json.dumps(recipe.spec())) == recipe.spec()
    assert [type(v) for v in recipe.spec()["std"]] == [float] * 3


def test_first_defaults_may_be_left_out_of_a_spec():
    from featcache.fingerprint import FIRST_DEFAULTS

    spec = Preprocess().spec()
    left_out = {key.partition(".")[2]: value for key, value in FIRST_DEFAULTS.items() if key.startswith("preprocess.")}
    for name, value in left_out.items():
        assert spec.pop(name) == value
    assert Preprocess.from_spec(spec) == Preprocess()


def test_unknown_and_missing_fields():
    with pytest.raises(PreprocessError, match=r"preprocess\.sharpen: .*update featcache"):
        Preprocess.from_spec({**Preprocess().spec(), "sharpen": 2})
    spec = Preprocess().spec()
    del spec["mean"]
    with pytest.raises(PreprocessError, match=r"preprocess\.mean"):
        Preprocess.from_spec(spec)
    with pytest.raises(PreprocessError, match="expected a dict"):
        Preprocess.from_spec([1])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"resize": 0}, "resize: expected whole pixels from 1"),
        ({"resize": -3}, "resize"),
        ({"resize": 2.5}, "resize"),
        ({"resize": True}, "resize"),
        ({"resize": (1, 2, 3)}, r"expected \(height, width\)"),
        ({"crop": 10**6}, "crop"),
        ({"crop": "224"}, "crop"),
        ({"crop": None}, "crop=None and resize=256"),
        ({"resize": None, "crop": None}, "stay different"),
        ({"interpolation": "cubic"}, "interpolation: expected one of nearest"),
        ({"mean": (0.5,)}, "mean: expected 3 finite"),
        ({"mean": 0.5}, "mean"),
        ({"mean": ("a", "b", "c")}, "mean"),
        ({"std": (1, 0, 1)}, "std: expected no zeros"),
        ({"std": (1, 1e-60, 1)}, "std: expected no zeros"),
        ({"std": (1, float("nan"), 1)}, "std"),
        ({"exif": 1}, "exif"),
        ({"alpha": "red"}, "alpha"),
        ({"resampling": "fast"}, "resampling"),
        ({"decoder": "fastest"}, "decoder"),
        ({"resampling": "torch", "interpolation": "lanczos"}, "only bilinear and bicubic"),
        ({"channels": 4}, "channels"),
        ({"channels": 1}, "mean: expected 1 finite"),
    ],
)
def test_fields_are_checked(fields, message):
    with pytest.raises(PreprocessError, match=message) as caught:
        Preprocess(**fields)
    assert "\n" not in str(caught.value)


def test_normalize_refuses_other_arrays():
    recipe = Preprocess(4, 4)
    for wrong in (np.zeros((1, 4, 4, 3), np.float32), np.zeros((4, 4, 3), np.uint8), np.zeros((1, 4, 4, 1), np.uint8)):
        with pytest.raises(PreprocessError, match=r"expected uint8 \(N, H, W, 3\)"):
            recipe.normalize(wrong)
    assert recipe.normalize(np.zeros((0, 4, 4, 3), np.uint8)).shape == (0, 3, 4, 4)


def test_presets_that_are_not_for_classification_are_refused():
    from torchvision.transforms._presets import ObjectDetection

    with pytest.raises(PreprocessError, match="ObjectDetection"):
        Preprocess.from_torchvision(ObjectDetection())
