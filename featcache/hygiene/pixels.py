"""Are two images the same picture? Small grey versions of both, compared on their detail, shifted, scaled, mirrored.

No file is read twice: an image becomes 64 × 64 grey values, squeezed to a square, so that a copy of another size or
shape is compared at the same places.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from PIL import Image
from scipy.fft import irfft2, rfft2
from scipy.ndimage import gaussian_filter

from ..errors import FeatcacheError, ImageError, SourceError
from ..images import open_rgb
from ..sources import ImageSource

__all__ = ["SIDE", "alike", "detail", "layouts", "reader_of", "thumbnails"]

SIDE = 64
#: The middle of one image, at these sizes, is looked for in the other: crops of up to a tenth at either side.
_MIDDLE = 46
_SIZES = (40, 42, 44, 46, 48, 50, 52)
_TOGETHER = 32

Reader = Callable[[str], Image.Image]


def reader_of(images: Any) -> tuple[Reader, frozenset[str] | None]:
    """Return a function from id to RGB image, and the ids it knows (None: whatever it is asked for)."""
    if callable(images) and not hasattr(images, "read"):
        return lambda name: open_rgb(images(name)), None
    source = ImageSource.open(images)
    places = {name: i for i, name in enumerate(source.ids)}
    return lambda name: open_rgb(source.read(places[name])), frozenset(places)


def thumbnails(
    images: Any, ids: np.ndarray, *, workers: int = 4, step: Callable[[int], None] | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return small grey versions of the images of some ids.

    Parameters
    ----------
    images : folder, list, images, ImageSource, or callable
        Whatever `ImageSource.open` takes, or a function from id to an image.
    ids : ndarray of str of shape (n,)
        Wanted ones.
    workers : int, default=4
        Threads that decode.
    step : callable, default=None
        Told after each image how many are done.

    Returns
    -------
    thumbs : ndarray of uint8 of shape (n, 64, 64)
        Grey values; zeros where there is none.
    there : ndarray of bool of shape (n,)
        Which images could be read.

    Raises
    ------
    SourceError
        When no id is known to `images`.
    """
    read, known = reader_of(images)
    names = ids.tolist()
    if known is not None and names and not known.intersection(names):
        example = min(known, default="")
        raise SourceError(
            f"images: expected the images of these codes, with ids such as {names[0]!r}, got ids such as {example!r}; "
            "give the folder or list that the codes were extracted from"
        )

    def small(name: str) -> np.ndarray | None:
        if known is not None and name not in known:
            return None
        try:
            image = read(name).convert("L")
        except (FeatcacheError, ImageError, OSError, LookupError):
            return None  # what cannot be read is counted, and told
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX if min(image.size) >= SIDE else _SMOOTH))

    thumbs, there = np.zeros((len(names), SIDE, SIDE), dtype=np.uint8), np.zeros(len(names), dtype=bool)
    with ThreadPoolExecutor(workers) as pool:
        for i, thumb in enumerate(_in_order(pool, small, names)):
            if thumb is not None:
                thumbs[i], there[i] = thumb, True
            if step is not None:
                step(i + 1)
    return thumbs, there


_SMOOTH = Image.Resampling.BILINEAR


def _in_order(pool: ThreadPoolExecutor, work: Callable[[str], Any], names: list[str]) -> Iterable[Any]:
    """As `pool.map`, with no more than a few hundred results waiting."""
    for start in range(0, len(names), 256):
        yield from pool.map(work, names[start : start + 256])


def layouts(thumbs: np.ndarray, *, mirrored: bool = False) -> np.ndarray:
    """Return what an image looks like from afar, (n, 256) float32 at unit length: for the search for candidates."""
    turned = thumbs[:, :, ::-1] if mirrored else thumbs
    coarse = np.empty((len(thumbs), (SIDE // 4) ** 2), dtype=np.float32)
    for at in _blocks(len(thumbs), 1024):
        coarse[at] = _band(turned[at], 3.0, 10.0)[:, ::4, ::4].reshape(-1, coarse.shape[1])
    length = np.linalg.norm(coarse, axis=1, keepdims=True)
    return coarse / np.maximum(length, 1e-6)


def detail(thumbs: np.ndarray) -> np.ndarray:
    """Return thumbnails (n, 64, 64) without slow shades, which are alike in all photos of one place."""
    return _band(thumbs, 1.0, 4.0)


def alike(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how well the middle of one image is found in the other: correlations in [-1, 1], shape (n,).

    Parameters
    ----------
    first, second : ndarray of float32 of shape (n, 64, 64)
        Pairs, from `detail`.
    """
    out = np.empty(len(first), dtype=np.float32)
    for at in _blocks(len(first), _TOGETHER):  # small enough to stay in the processor's cache
        out[at] = _found(first[at], second[at])
    return out


def _found(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    edge = (SIDE - _MIDDLE) // 2
    middle = first[:, edge : edge + _MIDDLE, edge : edge + _MIDDLE]
    spectrum, sums, squares = rfft2(second), _integral(second), _integral(second * second)
    best = np.full(len(first), -1.0, dtype=np.float32)
    for size in _SIZES:
        grid = _resampling(_MIDDLE, size)
        wanted = grid @ middle @ grid.T
        wanted = wanted - wanted.mean(axis=(1, 2), keepdims=True)
        places = SIDE - size + 1
        products = irfft2(spectrum * np.conj(rfft2(wanted, (SIDE, SIDE))), (SIDE, SIDE))[:, :places, :places]
        spread = _windows(squares, size) - _windows(sums, size) ** 2 / size**2
        lengths = np.sqrt(np.maximum(spread, 0.0) * np.square(wanted).sum(axis=(1, 2))[:, None, None])
        # Windows without detail match nothing, instead of matching each other's noise.
        shares = np.where(lengths > size**2 * 0.25, products / np.maximum(lengths, 1e-6), 0.0)
        best = np.maximum(best, shares.reshape(len(first), -1).max(axis=1))
    return best


def _band(images: np.ndarray, fine: float, coarse: float) -> np.ndarray:
    grey = images.astype(np.float32)
    return gaussian_filter(grey, (0, fine, fine)) - gaussian_filter(grey, (0, coarse, coarse))


def _resampling(before: int, after: int) -> np.ndarray:
    """The matrix (after, before) of linear interpolation along one axis."""
    place = np.clip((np.arange(after) + 0.5) * before / after - 0.5, 0, before - 1)
    left = np.minimum(place.astype(np.intp), before - 2)
    matrix = np.zeros((after, before), dtype=np.float32)
    matrix[np.arange(after), left] = 1.0 - (place - left)
    matrix[np.arange(after), left + 1] += (place - left).astype(np.float32)
    return matrix


def _integral(images: np.ndarray) -> np.ndarray:
    total = np.zeros((len(images), SIDE + 1, SIDE + 1))
    np.cumsum(np.cumsum(images, axis=1, dtype=np.float64), axis=2, out=total[:, 1:, 1:])
    return total


def _windows(total: np.ndarray, size: int) -> np.ndarray:
    """Sums over all windows of a size, from an integral image."""
    return total[:, size:, size:] - total[:, :-size, size:] - total[:, size:, :-size] + total[:, :-size, :-size]


def _blocks(n: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, n, size)]
