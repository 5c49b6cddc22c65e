"""The window that a crop keeps of a resized picture, by each of the ways in `RESAMPLINGS`."""

from __future__ import annotations

import numpy as np
from PIL import Image

from ..images import Picture
from .resampling import resize_window
from .torch_kernel import resize_with_torch

__all__ = ["INTERPOLATIONS", "MAX_SIDE", "RESAMPLINGS", "resized_crop", "window_of"]

#: Interpolations by the names that torchvision gives them.
INTERPOLATIONS: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

#: How resize and crop are combined: two steps as torchvision does, one call of Pillow's resize with a box, or two steps
#: with PyTorch's kernel.
RESAMPLINGS: tuple[str, ...] = ("reference", "fused", "torch")

#: Longest side that `resize` and `crop` may ask for, in pixels.
MAX_SIDE = 8192

# An image that is enlarged beyond this many pixels is computed only where the crop keeps it (see .resampling).
_MAX_RESIZED_PIXELS = MAX_SIDE * MAX_SIDE


def window_of(
    picture: Picture, size: tuple[int, int], columns: range, rows: range, interpolation: str, resampling: str
) -> np.ndarray:
    """Return a window of the resized picture.

    Parameters
    ----------
    picture : Picture
        Any.
    size : (int, int)
        Width and height of the whole resized picture.
    columns, rows : range
        The window, step 1.
    interpolation : str
        One of `INTERPOLATIONS`.
    resampling : str
        One of `RESAMPLINGS`.

    Returns
    -------
    numpy.ndarray
        uint8 (len(rows), len(columns)[, 3]), perhaps read-only.
    """
    if size == picture.size and not picture.scaled:
        return _part(picture, columns, rows)
    if resampling == "fused":
        box = _source_box(picture, size, columns, rows)
        return np.asarray(picture.image.resize((len(columns), len(rows)), INTERPOLATIONS[interpolation], box))
    if size[0] * size[1] > max(_MAX_RESIZED_PIXELS, picture.size[0] * picture.size[1]):
        return resize_window(picture.array, size, columns, rows, interpolation)
    if resampling == "torch":
        return resize_with_torch(picture.array, picture.box, size, columns, rows, interpolation)
    resized = picture.image.resize(size, INTERPOLATIONS[interpolation], picture.box)
    return _part(Picture.whole(resized), columns, rows)


def _part(picture: Picture, columns: range, rows: range) -> np.ndarray:
    """Return a window of the picture as it is, without a copy of the rest of it."""
    if isinstance(picture.pixels, Image.Image) and (len(columns), len(rows)) != picture.size:
        return np.asarray(picture.pixels.crop((columns.start, rows.start, columns.stop, rows.stop)))
    return picture.array[rows.start : rows.stop, columns.start : columns.stop]


def _source_box(
    picture: Picture, size: tuple[int, int], columns: range, rows: range
) -> tuple[float, float, float, float]:
    """Return the part of the pixels that the window of the resized picture shows."""
    left, upper, right, lower = picture.box
    across, down = (right - left) / size[0], (lower - upper) / size[1]
    return (
        left + columns.start * across,
        upper + rows.start * down,
        min(left + columns.stop * across, right),
        min(upper + rows.stop * down, lower),
    )


def resized_crop(
    picture: Picture, crop: tuple[int, int, int, int], size: tuple[int, int], interpolation: str, resampling: str
) -> np.ndarray:
    """Return a part of the picture, cut out first and resized then.

    Parameters
    ----------
    picture : Picture
        Any.
    crop : (int, int, int, int)
        Left, upper, right, lower in pixels of `picture.size`; rounded to those that a scaled picture has.
    size : (int, int)
        Width and height of the result.
    interpolation, resampling : str
        As for `window_of`.

    Returns
    -------
    numpy.ndarray
        uint8 (height, width[, 3]), perhaps read-only.
    """
    left, upper, right, lower = _scaled_crop(picture, crop) if picture.scaled else crop
    if resampling == "torch":
        cut: Image.Image | np.ndarray = picture.array[upper:lower, left:right]
    else:
        cut = picture.image.crop((left, upper, right, lower))
    everything = range(size[0]), range(size[1])
    return window_of(Picture.whole(cut), size, *everything, interpolation, resampling)


def _scaled_crop(picture: Picture, crop: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return the nearest whole pixels of a scaled picture, at least one each way."""
    left, upper, right, lower = picture.box
    across, down = (right - left) / picture.size[0], (lower - upper) / picture.size[1]
    start, top = int(left + crop[0] * across + 0.5), int(upper + crop[1] * down + 0.5)
    stop, bottom = int(left + crop[2] * across + 0.5), int(upper + crop[3] * down + 0.5)
    return start, top, max(stop, start + 1), max(bottom, top + 1)
