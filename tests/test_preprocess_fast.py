"""The recipes beside the reference: torch's resize, turbo and scaled decoders; what they may change and what not."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
import pytest
from PIL import Image

from featcache.errors import ImageError
from featcache.images import Picture, open_picture, open_rgb
from featcache.images import jpeg as jpeg_module
from featcache.images.header import jpeg_frame
from featcache.preprocess import INTERPOLATIONS, Preprocess
from featcache.preprocess.resizing import window_of
from featcache.preprocess.torch_kernel import one_thread, resize_with_torch


def photo(width: int, height: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Blobs, edges and a little noise: compresses and resizes like a photo."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), np.uint8)).resize(
        (width, height), Image.Resampling.BICUBIC
    )
    levels = np.asarray(small).astype(int) + rng.integers(-6, 7, (height, width, 3))
    levels[height // 3 :, width // 2 :] //= 2
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).convert(mode)


def jpeg(image: Image.Image, *, orientation: int = 1, **options) -> bytes:
    stream = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(stream, "JPEG", **({"exif": exif} if orientation > 1 else {}), **options)
    return stream.getvalue()


def difference(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(int) - b.astype(int))


# ------------------------------------------------------------------------------------------------ torch's resize


def whole_by_torch(array, size, interpolation):
    import torch

    planes = torch.from_numpy(array.reshape(*array.shape[:2], -1).copy()).permute(2, 0, 1)[None]
    out = torch.nn.functional.interpolate(planes, size=size[::-1], mode=interpolation, antialias=True)
    return out[0].permute(1, 2, 0).numpy().reshape(*size[::-1], *array.shape[2:])


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("seed", range(8))
def test_the_window_has_the_bits_of_torchs_whole_resize(interpolation, seed):
    rng = np.random.default_rng(seed)
    for trial in range(40):
        height, width, tall, wide = (int(v) for v in rng.integers(1, 300, 4))
        tall, wide = (height if trial % 5 == 0 else tall), (width if trial % 7 == 0 else wide)
        array = rng.integers(0, 256, (height, width, 3)[: 2 + trial % 2], np.uint8)
        crop = int(rng.integers(1, tall + 1)), int(rng.integers(1, wide + 1))
        rows, columns = (range(start := (n - c) // 2, start + c) for n, c in zip((tall, wide), crop, strict=True))
        out = resize_with_torch(array, (0, 0, width, height), (wide, tall), columns, rows, interpolation)
        expected = whole_by_torch(array, (wide, tall), interpolation)
        assert np.array_equal(out, expected[rows.start : rows.stop, columns.start : columns.stop]), (trial, array.shape)


@pytest.mark.parametrize("channels", [3, 1])
def test_bilinear_is_one_level_off_at_most(channels):
    norm = {"mean": (0.5,) * channels, "std": (0.5,) * channels, "channels": channels}
    rng, shares = np.random.default_rng(0), []
    for seed in range(30):
        image = photo(*(int(v) for v in rng.integers(20, 700, 2)), seed)
        resize = int(rng.integers(8, 280))
        a, b = (Preprocess(resize, resize, resampling=r, **norm).pixels(image) for r in ("reference", "torch"))
        assert difference(a, b).max() <= 1
        if resize < min(image.size) / 1.5:  # where the scale is 1/2 or 2, many sums lie between two levels
            shares.append((a != b).mean())
    assert np.median(shares) < 0.01


def test_bilinear_noise_is_two_levels_off_at_most():
    rng = np.random.default_rng(0)
    for _ in range(60):
        image = Image.fromarray(rng.integers(0, 256, (*rng.integers(1, 400, 2), 3), np.uint8))
        a, b = (Preprocess(200, 180, resampling=r).pixels(image) for r in ("reference", "torch"))
        assert difference(a, b).max() <= 2


def test_bicubic_of_photos_is_near():
    # Both passes cut overshoots to 0…255, and Pillow may take the vertical one first: noise would differ by more.
    for seed in range(20):
        image = photo(300 + 11 * seed, 500 - 13 * seed, seed)
        a, b = (Preprocess(128, 112, "bicubic", resampling=r).pixels(image) for r in ("reference", "torch"))
        assert difference(a, b).max() <= 3
        assert (a != b).mean() < 0.05


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (2, 3), (224, 224), (256, 300), (3, 200), (150, 3)])
def test_torch_has_the_same_shape_and_padding(size):
    image = Image.new("RGB", size, (255, 255, 255))
    for resize, crop in [(20, 31), (32, 32), ((9, 50), 20), (None, 40), (256, 224), ((30, 40), None)]:
        reference, torch = (Preprocess(resize, crop, resampling=r).pixels(image) for r in ("reference", "torch"))
        assert np.array_equal(reference, torch)
        assert torch.flags.c_contiguous and torch.flags.writeable


def test_enlarging_an_elongated_image_costs_no_memory():
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30_000, 1, 3), np.uint8))
    reference, torch = (Preprocess(256, 224, resampling=r).pixels(image) for r in ("reference", "torch"))
    assert np.array_equal(reference, torch)  # the same arithmetic: PyTorch's own would need gigabytes


def test_no_setting_of_torch_is_changed():
    import torch

    before, seen = torch.get_num_threads(), []
    torch.set_num_threads(3)

    def work():
        Preprocess(32, 32, resampling="torch").pixels(photo(90, 80))
        with one_thread():
            seen.append(torch.get_num_threads())
        seen.append(torch.get_num_threads())

    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
            assert torch.get_num_threads() == 3
        for thread in threads:
            thread.join()
        work()
        assert sorted(seen) == [1] * 5 + [3] * 5
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_kernel_runs_on_one_thread(monkeypatch):
    import torch

    inside, kernel = [], torch._C._nn._upsample_bilinear2d_aa

    def watched(*arguments):
        inside.append(torch.get_num_threads())
        return kernel(*arguments)

    monkeypatch.setattr(torch._C._nn, "_upsample_bilinear2d_aa", watched)
    Preprocess(32, 32, resampling="torch").pixels(photo(90, 80))
    assert inside == [1]


def test_arrays_go_straight_into_the_kernel():
    whole = np.random.default_rng(0).integers(0, 256, (90, 140, 3), np.uint8)
    recipe = Preprocess(32, 32, resampling="torch")
    for array in (whole, whole[::2], whole[:, ::-1], whole[:, :, ::-1], whole[:40, :50]):
        before = array.copy()
        assert np.array_equal(recipe.pixels(array), recipe.pixels(Image.fromarray(np.ascontiguousarray(array))))
        assert np.array_equal(array, before)
    same = recipe.pixels(whole[:32, :32])
    assert np.array_equal(same, whole[:32, :32]) and not np.shares_memory(same, whole)
    with pytest.raises(ImageError, match="at least one pixel"):
        recipe.pixels(whole[:0])


# -------------------------------------------------------------------------------------------------- turbo decoder


def variants():
    for i, options in enumerate(
        [{}, {"progressive": True}, {"subsampling": 0}, {"subsampling": 1, "optimize": True}, {"keep_rgb": True},
         {"restart_marker_blocks": 2}, {"quality": 100}, {"quality": 5}]
    ):  # fmt: skip
        yield jpeg(photo(60 + 7 * i, 91 - 3 * i, i), **options)
        if "keep_rgb" not in options:
            options.pop("subsampling", None)
            yield jpeg(photo(61 - i, 33 + 5 * i, i, "L"), **options)


def turbo(data, **options):
    return open_picture(data, decoder="turbo", arrays=True, **options)


@pytest.mark.parametrize("channels", [3, 1])
def test_turbo_has_the_pixels_of_pillow(channels):
    for data in variants():
        picture = turbo(data, channels=channels)
        assert isinstance(picture.pixels, np.ndarray), "decoded by torchvision"
        assert np.array_equal(picture.array, np.asarray(open_rgb(data, channels=channels)))


def test_what_turbo_leaves_to_pillow():
    first, second = photo(40, 30), photo(40, 30, 1)
    stream = io.BytesIO()
    first.save(stream, "MPO", save_all=True, append_images=[second])
    png = io.BytesIO()
    first.save(png, "PNG")
    others = [jpeg(first.convert("CMYK")), stream.getvalue(), png.getvalue(), jpeg(first, orientation=6)]
    for data in others:
        picture = turbo(data)
        assert isinstance(picture.pixels, Image.Image)
        assert np.array_equal(picture.array, np.asarray(open_rgb(data)))
    assert isinstance(turbo(jpeg(first, orientation=6), exif=False).pixels, np.ndarray)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("decoder", ["turbo", "scaled"])
def test_orientation_of_whole_files(orientation, decoder):
    data = jpeg(photo(48, 32), orientation=orientation)
    for exif in (True, False):
        a, b = (Preprocess(40, 32, exif=exif, decoder=d, resampling="torch").pixels(data) for d in ("pillow", decoder))
        assert np.array_equal(a, b)


def outcome(data: bytes, **options) -> bytes | None:
    try:
        return np.asarray(open_picture(data, **options).array).tobytes()
    except ImageError as error:
        assert "\n" not in str(error)
        return None


@pytest.mark.parametrize("kind", ["cut", "flip", "header", "hole", "marker", "end"])
def test_turbo_refuses_what_pillow_refuses(kind, capfd):
    rng = np.random.default_rng(7)
    refused = 0
    for data in variants():
        for _ in range(40):
            i = int(rng.integers(2, len(data) if kind != "header" else min(len(data), 640)))
            changed = {
                "cut": data[:i],
                "flip": data[:i] + rng.bytes(1) + data[i + 1 :],
                "header": data[:i] + rng.bytes(1) + data[i + 1 :],
                "hole": data[:i] + data[i + int(rng.integers(1, 200)) :],
                "marker": data[:i] + b"\xff" + bytes([int(rng.integers(0xC0, 0xFF))]) + data[i:],
                "end": data[:i] + b"\xff\xd9" + data[i : i + int(rng.integers(0, 2)) * len(data)],
            }[kind]
            expected = outcome(changed)
            refused += expected is None
            assert outcome(changed, decoder="turbo", arrays=True) == expected
    assert refused > 20


def test_turbo_keeps_the_limit_and_the_global_of_pillow(monkeypatch):
    from PIL import ImageFile

    data = jpeg(photo(40, 30))
    frame = data.index(b"\xff\xc0")
    bomb = data[: frame + 5] + b"\xff\xf0\xff\xf0" + data[frame + 9 :]
    with pytest.raises(ImageError, match="65520x65520"):
        turbo(bomb)
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES"):
        turbo(data)


def test_without_torchvision_pillow_decodes(monkeypatch):
    monkeypatch.setattr(jpeg_module, "_decoder", lambda: None)
    data = jpeg(photo(40, 30))
    assert np.array_equal(turbo(data).array, np.asarray(open_rgb(data)))


def test_turbo_threads_agree():
    data = [jpeg(photo(200, 150, seed)) for seed in range(6)]
    recipe = Preprocess(64, 64, decoder="turbo", resampling="torch")
    expected = [recipe.pixels(d).tobytes() for d in data]
    wrong = []

    def work():
        for _ in range(5):
            wrong.extend(i for i, d in enumerate(data) if recipe.pixels(d).tobytes() != expected[i])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_turbo_lets_other_threads_run():
    data, waits = jpeg(photo(3000, 2000)), []
    stop = threading.Event()

    def tick():
        while not stop.is_set():
            before = time.perf_counter()
            time.sleep(0)
            waits.append(time.perf_counter() - before)

    thread = threading.Thread(target=tick)
    thread.start()
    start = len(waits)
    turbo(data)
    ticks = len(waits) - start
    stop.set()
    thread.join()
    assert ticks > 50, "the decoder holds the interpreter's lock"


# ------------------------------------------------------------------------------------------------- scaled decoder


def scaled_picture(data, least):
    return open_picture(data, decoder="scaled", arrays=True, least=lambda size: least)


@pytest.mark.parametrize(
    ("size", "resize", "scale"),
    [((1023, 900), 256, 1), ((1024, 1024), 256, 2), ((2047, 1200), 256, 2), ((800, 640), 40, 8), ((300, 400), 256, 1)],
)
def test_the_scale_leaves_twice_what_is_asked_for(size, resize, scale):
    data = jpeg(photo(*size), quality=70)
    picture = Preprocess(resize, 32, decoder="scaled", resampling="torch")._open(data)
    assert picture.size == size
    assert picture.array.shape[:2] == tuple(-(-side // scale) for side in size[::-1])
    assert picture.scaled == (scale > 1)
    if scale == 1:
        assert np.array_equal(picture.array, np.asarray(open_rgb(data)))


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_scaled_shows_the_same_at_the_same_place(orientation, progressive):
    image = photo(645, 483, 3)  # neither side is a multiple of 8, so that blocks reach beyond the photo
    data = jpeg(image, orientation=orientation, quality=95, progressive=progressive)
    for resampling in ("torch", "reference", "fused"):
        a, b = (Preprocess((52, 36), 32, decoder=d, resampling=resampling).pixels(data) for d in ("pillow", "scaled"))
        assert difference(a, b).mean() < 1.5, resampling


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_box_of_a_scaled_picture_follows_its_orientation(orientation):
    picture = scaled_picture(jpeg(photo(645, 483), orientation=orientation), (50, 50))
    left, upper, right, lower = picture.box
    height, width = picture.array.shape[:2]
    assert (right - left, lower - upper) == tuple(side / 8 for side in picture.size)
    assert 0 <= left < 1 and 0 <= upper < 1 and 0 <= width - right < 1 and 0 <= height - lower < 1
    # A gradient along the image tells which end is short: fitted over the box, it comes out the same as unscaled.
    assert (left > 0) == (orientation in (2, 3, 6, 7))
    assert (upper > 0) == (orientation in (3, 4, 7, 8))


def test_fractions_at_the_beginning_are_kept():
    ramp = np.broadcast_to(np.linspace(0, 255, 161)[None, :, None], (161, 161, 3)).astype(np.uint8).copy()
    for array in (ramp, ramp.swapaxes(0, 1).copy()):
        for box in [(0.0, 0.0, 160.5, 160.5), (0.5, 0.5, 161.0, 161.0), (0.25, 0, 161.0, 160.75)]:
            picture = Picture(array, (321, 321), box)
            a, b = (
                window_of(picture, (20, 20), range(3, 17), range(2, 18), "bilinear", r) for r in ("reference", "torch")
            )
            assert difference(a, b).max() <= 1


def test_scaled_files_that_are_cut_are_refused():
    data = jpeg(photo(900, 700))
    recipe = Preprocess(64, 56, decoder="scaled", resampling="torch")
    recipe.pixels(data)
    for part in (0.999, 0.9, 0.5, 0.1):
        with pytest.raises(ImageError):
            recipe.pixels(data[: int(len(data) * part)])


def test_scaled_leaves_other_formats_and_no_resize_alone():
    image = photo(600, 500)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    for recipe in (Preprocess(32, 32, decoder="scaled"), Preprocess(None, 64, decoder="scaled")):
        reference = Preprocess(recipe.resize, recipe.crop)
        payload = stream.getvalue() if recipe.resize else jpeg(image)
        assert np.array_equal(recipe.pixels(payload), reference.pixels(payload))


def test_a_scaled_mpo_is_its_first_image():
    stream = io.BytesIO()
    photo(640, 480, 1).save(stream, "MPO", save_all=True, append_images=[photo(640, 480, 2)])
    a, b = (Preprocess(64, 56, decoder=d).pixels(stream.getvalue()) for d in ("pillow", "scaled"))
    assert difference(a, b).mean() < 1.5


# --------------------------------------------------------------------------------------------------- as a choice


@pytest.mark.parametrize("interpolation", list(INTERPOLATIONS))
def test_fast_variants(interpolation):
    recipe = Preprocess(64, 56, interpolation)
    fast = recipe.fast_variants()
    assert bool(fast) == (interpolation != "nearest")
    reference = recipe.pixels(photo(700, 500))
    for variant in fast:
        assert variant.shape == recipe.shape
        assert {**variant.spec(), "resampling": "reference", "decoder": "pillow"} == recipe.spec()
        assert Preprocess.from_spec(variant.spec()) == variant
        assert variant.fast_variants() == []
        assert difference(variant.pixels(photo(700, 500)), reference).mean() < 1


# ------------------------------------------------------------------------------------------------------- headers


def test_jpeg_frames():
    frame = jpeg_frame(jpeg(photo(50, 40), progressive=True))
    assert (frame.kind, frame.bits, frame.size, frame.components, frame.samples) == (0xC2, 8, (50, 40), 3, 1.5)
    assert jpeg_frame(jpeg(photo(50, 40, mode="L"))).samples == 1
    assert jpeg_frame(jpeg(photo(50, 40), subsampling=0, orientation=3)).samples == 3
    for cut in range(2, 200):
        jpeg_frame(jpeg(photo(50, 40))[:cut])


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF"])
def test_memory_is_told_by_the_header(form):
    stream = io.BytesIO()
    photo(300, 200).save(stream, form)
    data = stream.getvalue()
    for recipe in (Preprocess(), *Preprocess().fast_variants()):
        assert 300 * 200 * 4 <= recipe.memory_of(data) <= 300 * 200 * 32
        assert recipe.memory_of(b"") == recipe.memory_of(b"no image at all") == 0
        for cut in range(1, min(len(data), 400)):
            assert recipe.memory_of(data[:cut]) >= 0


def test_memory_of_decoded_and_of_scaled():
    recipe = Preprocess(64, 56)
    assert recipe.memory_of(photo(30, 20)) == recipe.memory_of(np.zeros((20, 30, 3), np.uint8)) == 30 * 20 * 8
    assert recipe.memory_of(np.zeros(3)) == 0
    data = jpeg(photo(1200, 900))
    scaled = Preprocess(64, 56, decoder="scaled")
    assert scaled.memory_of(data) * 16 <= recipe.memory_of(data)
    assert scaled.memory_of(jpeg(photo(1200, 900), progressive=True)) > 1200 * 900 * 3
