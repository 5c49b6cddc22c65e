"""The image policy, one rule at a time; nothing but ImageError for what cannot be read."""

from __future__ import annotations

import io
import threading
import warnings

import numpy as np
import pytest
from PIL import Image, ImageFile

from featcache.errors import ImageError
from featcache.fingerprint import digest_pixels
from featcache.images import (
    EXTENSIONS,
    FORMATS,
    HEAD_BYTES,
    decoding,
    formats,
    looks_like_image,
    open_rgb,
    pixel_identity,
)


def encoded(image: Image.Image, form: str, **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def rgb(width=8, height=6, seed=0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def values(image: Image.Image) -> list:
    return np.asarray(image).tolist()


# ------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "MPO"])
def test_every_format_is_sniffed_and_read_as_pillow_reads_it(form):
    data = encoded(rgb(16, 12), form)
    assert looks_like_image(data[:HEAD_BYTES])
    out = open_rgb(data)
    assert out.mode == "RGB"
    with Image.open(io.BytesIO(data)) as image:
        assert values(out) == values(image.convert("RGB"))
    assert form in FORMATS


@pytest.mark.parametrize("form", ["EPS", "ICO", "PCX", "TGA", "SGI", "DDS", "PDF", "JPEG2000"])
def test_other_formats_are_refused(form):
    data = encoded(rgb(16, 16), form)
    assert not looks_like_image(data[:HEAD_BYTES])
    with pytest.raises(ImageError, match="expected one of JPEG"):
        open_rgb(data)


@pytest.mark.parametrize(
    "head", [b"", b"BM and so on, a text", b"P6", b"P6 is not a picture", b"RIFF1234WAVE", b"GIF88a", b"\xff\xd8", b"P"]
)
def test_texts_that_begin_like_an_image_are_not_taken_for_one(head):
    assert not looks_like_image(head)


@pytest.mark.parametrize("brand", [b"heic", b"mif1", b"heix"])
def test_heic_without_the_extra_names_it(brand, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    data = b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1heic"
    assert looks_like_image(data)
    with pytest.raises(ImageError, match=r"featcache\[heic\]"):
        open_rgb(data)


def test_avif_with_a_generic_brand_is_no_heic():
    assert formats.sniff(b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif") == "AVIF"


def test_extensions_are_lower_case_with_a_dot():
    assert all(extension == extension.lower() and extension[0] == "." for extension in EXTENSIONS)
    assert ".eps" not in EXTENSIONS


# -------------------------------------------------------------------------------------------------------- colour


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "YCbCr", "HSV"])
def test_colour_goes_as_pillow_converts(mode):
    image = rgb().convert(mode)
    assert values(open_rgb(image)) == values(image.convert("RGB"))


def test_one_channel_is_luma_and_grey_survives_it():
    image = rgb()
    assert values(open_rgb(image, channels=1)) == values(image.convert("L"))
    grey = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))
    assert values(open_rgb(grey, channels=1)) == values(grey)
    assert values(open_rgb(grey.convert("RGB"), channels=1)) == values(grey)
    assert open_rgb(grey).mode == "RGB"


def transparent_images():
    """The same two pixels, one clear and one opaque, in every way that transparency is said."""
    rgba = Image.new("RGBA", (2, 1), (10, 20, 30, 255))
    rgba.putpixel((0, 0), (40, 50, 60, 0))
    palette = Image.new("P", (2, 1), 1)
    palette.putpalette([40, 50, 60, 10, 20, 30])
    palette.putpixel((0, 0), 0)
    keyed = rgba.convert("RGB")
    yield rgba, encoded(rgba, "PNG")
    yield rgba, encoded(palette, "PNG", transparency=0)
    yield rgba, encoded(palette, "PNG", transparency=bytes([0, 255]))
    yield rgba, encoded(palette, "GIF", transparency=0)
    yield rgba, encoded(keyed, "PNG", transparency=(40, 50, 60))
    yield rgba, encoded(rgba, "WEBP", lossless=True, exact=True)
    yield rgba, encoded(rgba, "TIFF")


@pytest.mark.parametrize("case", range(7))
def test_transparency_policy(case):
    _, data = list(transparent_images())[case]
    opaque = [10, 20, 30]
    assert values(open_rgb(data)) == [[[255, 255, 255], opaque]]
    assert values(open_rgb(data, alpha="black")) == [[[0, 0, 0], opaque]]
    assert values(open_rgb(data, alpha="drop")) == [[[40, 50, 60], opaque]]
    with Image.open(io.BytesIO(data)) as image, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert values(open_rgb(data, alpha="drop")) == values(image.convert("RGB"))


def test_half_transparent_is_rounded_to_the_nearest_level():
    alpha = np.arange(256, dtype=np.uint8)
    pixels = np.dstack([np.full((1, 256, 3), 100, np.uint8), alpha[None, :, None]])
    expected = np.rint((100 * alpha.astype(float) + 255 * (255 - alpha.astype(float))) / 255)
    assert np.array_equal(np.asarray(open_rgb(Image.fromarray(pixels)))[0, :, 0], expected)


@pytest.mark.parametrize("mode", ["LA", "La", "RGBa", "PA"])
def test_other_alpha_modes(mode):
    image = Image.new("RGBA", (1, 1), (100, 100, 100, 0))
    image = image.convert("LA").convert("La") if mode == "La" else image.convert(mode)
    if mode == "PA" and image.convert("RGBA").getpixel((0, 0))[3]:
        pytest.skip("this Pillow loses the alpha on the way to PA")
    assert values(open_rgb(image)) == [[[255, 255, 255]]]


# --------------------------------------------------------------------------------------------------- many bits


def test_16_bit_grey_is_scaled_by_the_full_range():
    ramp = np.array([[0, 128, 129, 257, 1000, 30000, 65406, 65407, 65535]], np.uint16)
    expected = [round(v / 257) for v in ramp[0].tolist()]
    for form in ("PNG", "TIFF", "PPM"):
        grey = open_rgb(encoded(Image.fromarray(ramp), form), channels=1)
        assert values(grey) == [expected], form
    assert values(open_rgb(ramp, channels=1)) == [expected]
    assert values(open_rgb(ramp.astype(">u2"), channels=1)) == [expected]


def test_16_bit_is_not_stretched_by_its_own_extremes():
    dark = np.full((2, 2), 257 * 3, np.uint16)
    assert values(open_rgb(encoded(Image.fromarray(dark), "PNG"), channels=1)) == [[3, 3], [3, 3]]


def test_12_bit_tiff_is_scaled_by_its_own_full_range():
    row = bytes([0xFF, 0xF0, 0x00])  # 4095, 0
    tags = [(256, 2), (257, 1), (258, 12), (259, 1), (262, 1), (273, 8), (277, 1), (278, 1), (279, 3)]
    directory = b"".join(tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + v.to_bytes(4, "little") for tag, v in tags)
    head = b"II*\0" + (12).to_bytes(4, "little") + row + b"\0"
    data = head + len(tags).to_bytes(2, "little") + directory + b"\0\0\0\0"
    assert values(open_rgb(data, channels=1)) == [[255, 0]]


@pytest.mark.parametrize("mode", ["I", "F"])
def test_32_bit_is_refused(mode):
    with pytest.raises(ImageError, match="32 bits, no stated range"):
        open_rgb(Image.new(mode, (2, 2)))
    with pytest.raises(ImageError, match="32 bits"):
        open_rgb(encoded(Image.new(mode, (2, 2)), "TIFF"))


def test_16_bit_colour_key():
    image = Image.fromarray(np.array([[500, 257]], np.uint16))
    data = encoded(image, "PNG", transparency=500)
    assert values(open_rgb(data, channels=1)) == [[255, 1]]
    assert values(open_rgb(data, channels=1, alpha="drop")) == [[2, 1]]


# -------------------------------------------------------------------------------------------------------- EXIF


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "AVIF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(form, orientation):
    corners = np.zeros((16, 32, 3), np.uint8)
    corners[:8, :16] = 255
    image = Image.fromarray(corners)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if form in ("JPEG", "AVIF") else {"lossless": True} if form == "WEBP" else {}
    data = encoded(image, form, exif=exif, **options)
    upright = image.transpose(decoding.UPRIGHT[orientation]) if orientation > 1 else image
    assert np.abs(np.asarray(open_rgb(data)).astype(int) - np.asarray(upright)).max() < 40
    assert np.abs(np.asarray(open_rgb(data, exif=False)).astype(int) - corners).max() < 40


def test_bad_exif_does_not_cost_the_image():
    data = encoded(rgb(16, 12), "JPEG")
    for block in (b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\xff\0\0\0\xff"):
        segment = b"\xff\xe1" + (len(block) + 8).to_bytes(2, "big") + b"Exif\0\0" + block
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert values(open_rgb(data[:2] + segment + data[2:])) == values(open_rgb(data))


def test_strange_orientation_counts_as_none():
    for value in (0, 9, 65535, "6"):
        image = rgb()
        image.getexif()[0x0112] = value
        assert open_rgb(image).size == ((8, 6) if value != "6" else (6, 8))


# ------------------------------------------------------------------------------------------- damage and bombs


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF"])
def test_truncated_files_are_errors(form):
    data = encoded(rgb(64, 64), form)
    for part in (0.99, 0.6, 0.2, 0.05):
        with pytest.raises(ImageError) as caught:
            open_rgb(data[: int(len(data) * part)])
        assert "\n" not in str(caught.value)


def test_truncation_is_not_hidden_by_a_global_of_pillow(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES"):
        open_rgb(encoded(rgb(), "JPEG"))


def bomb(width=20_000, height=10_000) -> bytes:
    return encoded(Image.new("1", (width, height)), "PNG")


@pytest.mark.parametrize("limit", [None, 10**9, 100])
def test_bombs_are_refused_whatever_pillow_allows(limit, monkeypatch):
    data = bomb()
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(ImageError, match="20000x10000 = 200000000"):
        open_rgb(data)


def test_pillows_own_limit_does_not_refuse_what_ours_allows(monkeypatch):
    data = encoded(rgb(), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)
    assert open_rgb(data).size == (8, 6)


def test_large_images_do_not_warn():
    header = decoding.parse(bomb(10_000, 9_000))  # 90 million: Pillow would warn
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        decoding.parse(bomb(10_000, 9_000))
    with warnings.catch_warnings(record=True) as seen:
        decoding.check_size(*header.size)
        Image._decompression_bomb_check(header.size)
    assert not seen


def test_memory_error_becomes_a_reason(monkeypatch):
    def load(self):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", load)
    with pytest.raises(ImageError, match="got MemoryError;"):
        open_rgb(Image.new("RGB", (2, 2)))


@pytest.mark.parametrize("payload", [b"", b"not an image", "a path", None, 3, [[1, 2]]])
def test_what_is_no_image(payload):
    with pytest.raises(ImageError, match="image: expected"):
        open_rgb(payload)


def test_options_are_checked():
    with pytest.raises(ValueError, match="alpha"):
        open_rgb(rgb(), alpha="red")
    with pytest.raises(ValueError, match="channels"):
        open_rgb(rgb(), channels=4)


# ------------------------------------------------------------------------------------------- frames and arrays


@pytest.mark.parametrize("form", ["GIF", "PNG", "WEBP", "TIFF"])
def test_first_frame(form):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if form == "WEBP" else {}
    data = encoded(frames[0], form, save_all=True, append_images=frames[1:], **options)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 3
    assert values(open_rgb(data))[0][0] == [255, 0, 0]


def test_arrays():
    pixels = np.asarray(rgb())
    assert values(open_rgb(pixels)) == pixels.tolist()
    assert values(open_rgb(pixels / 255)) == pixels.tolist()
    assert values(open_rgb((pixels / 255).astype(np.float16))) == pixels.tolist()
    assert values(open_rgb(pixels[::-1, ::2])) == pixels[::-1, ::2].tolist()
    assert values(open_rgb(pixels[..., 0], channels=1)) == pixels[..., 0].tolist()
    assert values(open_rgb(pixels[..., :1], channels=1)) == pixels[..., 0].tolist()
    assert values(open_rgb(pixels[..., 0] > 9, channels=1)) == np.where(pixels[..., 0] > 9, 255, 0).tolist()
    clear = np.zeros((1, 1, 4), np.uint8)
    assert values(open_rgb(clear)) == [[[255, 255, 255]]]


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 8), np.uint8), "looks like"),
        (np.zeros((8, 8, 2), np.uint8), r"expected \(H, W\)"),
        (np.zeros(8, np.uint8), r"expected \(H, W\)"),
        (np.zeros((2, 2, 2, 2), np.uint8), r"expected \(H, W\)"),
        (np.zeros((0, 8), np.uint8), "at least one pixel"),
        (np.zeros((8, 8), np.int64), "expected uint8"),
        (np.zeros((8, 8), np.uint32), "expected uint8"),
        (np.full((8, 8), 2.0), r"\[0, 1\], got 2 to 2; give the images without Normalize"),
        (np.full((8, 8), -0.1), "without Normalize"),
        (np.full((8, 8), np.nan), "without Normalize"),
        (np.array([["a"]]), "expected uint8"),
    ],
)
def test_arrays_that_are_refused(array, message):
    with pytest.raises(ImageError, match=message):
        open_rgb(array)


def test_given_image_is_not_changed():
    image = Image.new("RGBA", (2, 3), (1, 2, 3, 4))
    image.getexif()[0x0112] = 6
    before = pixel_identity(image)
    open_rgb(image)
    assert pixel_identity(image) == before


def test_threads_agree():
    payloads = [
        encoded(rgb(40, 30, seed), form) for seed in range(3) for form in ("JPEG", "PNG", "TIFF", "GIF", "WEBP")
    ]
    expected = [values(open_rgb(data)) for data in payloads]
    wrong = []

    def work():
        for data, right in zip(payloads, expected, strict=True):
            if values(open_rgb(data)) != right:
                wrong.append(data)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---------------------------------------------------------------------------------------------------- identity


def test_identity_tells_apart_what_looks_different():
    plain = Image.new("P", (2, 2), 0)
    plain.putpalette([1, 2, 3])
    other = Image.new("P", (2, 2), 0)
    other.putpalette([4, 5, 6])
    clear = plain.copy()
    clear.info["transparency"] = 0
    turned = Image.new("L", (2, 2), 0)
    turned.getexif()[0x0112] = 6
    variants = [plain, other, clear, turned, Image.new("L", (2, 2)), Image.new("L", (4, 1)), Image.new("1", (2, 2))]
    variants += [np.zeros((2, 2), np.uint8), np.zeros((2, 2), np.uint16), np.zeros((2, 2, 1), np.uint8)]
    assert len({digest_pixels(*pixel_identity(v)) for v in variants}) == len(variants)


def test_identity_is_that_of_the_values():
    pixels = np.arange(12, dtype=np.uint16).reshape(3, 4)
    assert pixel_identity(pixels) == pixel_identity(pixels.astype(">u2"))
    assert pixel_identity(pixels) == pixel_identity(np.asfortranarray(pixels))
    assert pixel_identity(rgb()) == pixel_identity(rgb().copy())
    data = encoded(rgb(), "PNG")
    with Image.open(io.BytesIO(data)) as lazy:
        assert pixel_identity(lazy) == pixel_identity(rgb())


def test_identity_of_a_broken_image_is_an_image_error():
    data = encoded(rgb(64, 64), "PNG")
    with Image.open(io.BytesIO(data[: len(data) // 2])) as lazy, pytest.raises(ImageError):
        pixel_identity(lazy)
