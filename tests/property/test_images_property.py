"""Whatever bytes, images and arrays come in, out comes an RGB image or an ImageError of one line."""

from __future__ import annotations

import io
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from featcache.errors import ImageError
from featcache.images import looks_like_image, open_rgb
from featcache.preprocess import INTERPOLATIONS, Preprocess
from featcache.sources.names import id_of, name_of

QUICK = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def _files() -> list[bytes]:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    files = []
    for form in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF"):
        stream = io.BytesIO()
        image.save(stream, form)
        files.append(stream.getvalue())
    return files


FILES = _files()


def read(payload) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = open_rgb(payload)
        except ImageError as error:
            assert "\n" not in str(error)
            assert len(str(error)) < 600
        else:
            assert image.mode == "RGB"
            assert min(image.size) > 0


@QUICK
@given(st.binary(max_size=200))
def test_arbitrary_bytes(data):
    looks_like_image(data)
    read(data)


@pytest.mark.parametrize("data", FILES, ids=lambda data: repr(data[:4]))
@QUICK
@given(st.data())
def test_damaged_files(data, draw):
    damaged = bytearray(data)
    for _ in range(draw.draw(st.integers(1, 4))):
        damaged[draw.draw(st.integers(0, min(len(data) - 1, 200)))] = draw.draw(st.integers(0, 255))
    read(bytes(damaged))


@QUICK
@given(hnp.arrays(st.sampled_from(["u1", "u2", "f4", "f8", "?", "i4", "f2"]), hnp.array_shapes(max_dims=4, max_side=5)))
def test_arbitrary_arrays(array):
    read(array)


@QUICK
@given(
    width=st.integers(1, 300),
    height=st.integers(1, 300),
    resize=st.one_of(st.none(), st.integers(1, 40), st.tuples(st.integers(1, 40), st.integers(1, 40))),
    crop=st.one_of(st.integers(1, 40), st.tuples(st.integers(1, 40), st.integers(1, 40))),
    interpolation=st.sampled_from(list(INTERPOLATIONS)),
    resampling=st.sampled_from(["reference", "fused"]),
)
def test_recipes_give_their_shape(width, height, resize, crop, interpolation, resampling):
    recipe = Preprocess(resize, crop, interpolation, resampling=resampling)
    pixels = recipe.pixels(np.full((height, width, 3), 77, np.uint8))
    assert pixels.shape == recipe.shape
    assert set(np.unique(pixels)) <= {0, 77}


@given(st.binary(min_size=1).filter(lambda raw: b"\0" not in raw and b"/" not in raw))
@QUICK
def test_ids_lead_back_to_names(raw):
    name = raw.decode("utf-8", "surrogateescape")
    identity = id_of(name)
    identity.encode("utf-8")
    assert name_of(identity) == name
