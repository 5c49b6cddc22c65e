"""A window of a resized image, without the resized image.

Resizing the shorter edge of a 1 x 30,000 image to 256 pixels would make one of 256 x 7,680,000, of which a centre crop
keeps 224 rows. Pillow's own ``box=`` does not help where the result must be exact: it rounds the box to 32-bit floats.
So this module repeats the arithmetic of Pillow's ``Resample.c`` (two passes, horizontal first, 22-bit fixed-point
weights, each pass rounded to 8 bits) and of its nearest-neighbour ``Geometry.c`` for just the rows and columns that are
kept. It is slower than Pillow per pixel, and is meant for the rare image for which Pillow would need gigabytes.

Only for enlarging: since Pillow 13 the vertical pass comes first where a height is reduced and that saves work
(python-pillow/Pillow#9549; tall images, for the most part), which may change a level by one. Enlarged images have the
same order in every version, and reduced ones need no window: they are smaller than their source.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

__all__ = ["resize_window"]

_PRECISION_BITS = 32 - 8 - 2


def resize_window(
    pixels: np.ndarray, size: tuple[int, int], columns: range, rows: range, interpolation: str
) -> np.ndarray:
    """Return what ``Image.resize(size)`` would hold in a window.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 (H, W) or (H, W, C).
    size : (int, int)
        Width and height of the whole resized image, neither below that of `pixels`.
    columns, rows : range
        The window, step 1.
    interpolation : str
        "nearest", "bilinear", "bicubic", "lanczos", "box" or "hamming".

    Returns
    -------
    numpy.ndarray
        uint8 (len(rows), len(columns)[, C]), equal to Pillow's.

    Examples
    --------
    >>> resize_window(np.array([[0, 100]], np.uint8), (4, 1), range(1, 3), range(1), "bilinear")
    array([[25, 75]], dtype=uint8)
    """
    if interpolation == "nearest":
        down, right = _nearest(pixels.shape[0], size[1], rows), _nearest(pixels.shape[1], size[0], columns)
        window = pixels[np.ix_(np.maximum(down, 0), np.maximum(right, 0))]
        window[down < 0] = 0
        window[:, right < 0] = 0
        return window
    vertical = _weights(pixels.shape[0], size[1], rows, interpolation)
    # Only the source rows that the second pass will read go through the first.
    first = min(start for start, _ in vertical)
    last = max(start + len(weights) for start, weights in vertical)
    horizontal = _weights(pixels.shape[1], size[0], columns, interpolation)
    narrow = _apply(pixels[first:last].swapaxes(0, 1), horizontal).swapaxes(0, 1)
    return _apply(narrow, [(start - first, weights) for start, weights in vertical])


def _apply(pixels: np.ndarray, weights: list[tuple[int, np.ndarray]]) -> np.ndarray:
    """Combine slices along axis 0: one output slice per (start, weights)."""
    out = np.empty((len(weights), *pixels.shape[1:]), np.uint8)
    for i, (start, taps) in enumerate(weights):
        total = np.tensordot(taps, pixels[start : start + len(taps)].astype(np.int64), axes=1)
        out[i] = np.clip((total + (1 << (_PRECISION_BITS - 1))) >> _PRECISION_BITS, 0, 255)
    return out


def _weights(length: int, wanted: int, window: range, interpolation: str) -> list[tuple[int, np.ndarray]]:
    """Return, for each output position, where its source pixels start and their fixed-point weights."""
    kernel, radius = _KERNELS[interpolation]
    scale = float(np.float32(length)) / wanted
    stretch = max(scale, 1.0)
    support = radius * stretch
    taps = []
    for position in window:
        centre = (position + 0.5) * scale
        start = max(int(centre - support + 0.5), 0)
        stop = min(int(centre + support + 0.5), length)
        values = [kernel((x + start - centre + 0.5) * (1.0 / stretch)) for x in range(stop - start)]
        taps.append((start, _fixed_point(values)))
    return taps


def _fixed_point(values: list[float]) -> np.ndarray:
    total = 0.0
    for value in values:  # not sum(): newer Pythons compensate its rounding, C does not
        total += value
    shares = [value / total if total else value for value in values]
    unit = 1 << _PRECISION_BITS
    return np.array([int(share * unit + (-0.5 if share < 0 else 0.5)) for share in shares], np.int64)


def _nearest(length: int, wanted: int, window: range) -> np.ndarray:
    """Return the source position of each output position, -1 where Pillow's summed steps run off the end."""
    step = float(np.float32(length)) / wanted
    # Pillow adds the step again and again; the same sum must be made to round the same way.
    places = np.full(window.stop, step)
    places[0] = step * 0.5
    found = np.add.accumulate(places)[window.start :].astype(np.int64)
    return np.where(found < length, found, -1)


def _box(x: float) -> float:
    return 1.0 if -0.5 < x <= 0.5 else 0.0


def _bilinear(x: float) -> float:
    return max(1.0 - abs(x), 0.0)


def _hamming(x: float) -> float:
    x = abs(x)
    if x == 0.0:
        return 1.0
    if x >= 1.0:
        return 0.0
    x *= math.pi
    return math.sin(x) / x * (0.54 + 0.46 * math.cos(x))


def _bicubic(x: float) -> float:
    a = -0.5
    x = abs(x)
    if x < 1.0:
        return ((a + 2.0) * x - (a + 3.0)) * x * x + 1
    return (((x - 5) * x + 8) * x - 4) * a if x < 2.0 else 0.0


def _sinc(x: float) -> float:
    if x == 0.0:
        return 1.0
    x *= math.pi
    return math.sin(x) / x


def _lanczos(x: float) -> float:
    return _sinc(x) * _sinc(x / 3) if -3.0 <= x < 3.0 else 0.0


_KERNELS: dict[str, tuple[Callable[[float], float], float]] = {
    "box": (_box, 0.5),
    "bilinear": (_bilinear, 1.0),
    "hamming": (_hamming, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
