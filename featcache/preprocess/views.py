"""Augmented views: which part of an image a view shows, told by the image's key and the view's number alone.

The recipe "views-1". View 0 is the image as the recipe gives it, view 1 its mirror image. View k from 2 on is a crop:

1. SHA-256 of the bytes ``featcache-views-1``, the key, and k in 8 bytes (little-endian) gives 32 bytes. Five uniform
   numbers in [0, 1) are its first five groups of 6 bytes (little-endian), each divided by 2^48: a, r, x, y, m.
2. Area: 0.35 + 0.65 a of the image's. Aspect (width to height): 1 + t / 3 where t = 2 r - 1 is not negative, else
   1 / (1 - t / 3); so between 3/4 and 4/3, wide as often as tall.
3. Width and height follow; each is cut to the image's, then the longer one to 4/3 of the shorter one, so that a crop of
   a very elongated image keeps the aspect and gives up the area. Both are rounded to whole pixels, at least one.
4. Of the places that this leaves, x and y choose one. Where m is below 1/2 the view is mirrored.

Only correctly rounded operations (no logarithms, no generator of a library) are used, so that it is the same crop on
every machine and with every version of NumPy.
"""

from __future__ import annotations

import dataclasses
import hashlib
import math

__all__ = ["VIEWS_RECIPE", "View", "view_of"]

#: Name of the rule by which views are drawn; another rule gets another name.
VIEWS_RECIPE = "views-1"

_LEAST_AREA = 0.35
_WIDEST = 4 / 3


@dataclasses.dataclass(frozen=True)
class View:
    """A part of an image, perhaps mirrored.

    Parameters
    ----------
    box : (int, int, int, int)
        Left, upper, right, lower in pixels of the upright image.
    mirrored : bool
        Left for right.
    """

    box: tuple[int, int, int, int]
    mirrored: bool


def view_of(size: tuple[int, int], key: bytes, number: int) -> View:
    """Return what view `number` of an image shows.

    Parameters
    ----------
    size : (int, int)
        Width and height of the upright image.
    key : bytes
        Names the image, such as the digest of its content.
    number : int
        From 2 on.

    Returns
    -------
    View

    Examples
    --------
    >>> view_of((640, 480), b"a key", 2) == view_of((640, 480), b"a key", 2)
    True
    """
    area, ratio, across, down, mirror = _uniforms(key, number)
    width, height = _lengths(size, _LEAST_AREA + (1 - _LEAST_AREA) * area, _aspect(ratio))
    left, upper = int(across * (size[0] - width + 1)), int(down * (size[1] - height + 1))
    return View((left, upper, left + width, upper + height), mirror < 0.5)


def _uniforms(key: bytes, number: int) -> list[float]:
    digest = hashlib.sha256(b"featcache-" + VIEWS_RECIPE.encode() + key + number.to_bytes(8, "little")).digest()
    return [int.from_bytes(digest[i : i + 6], "little") / 2**48 for i in range(0, 30, 6)]


def _aspect(uniform: float) -> float:
    t = 2 * uniform - 1
    return 1 + t / 3 if t >= 0 else 1 / (1 - t / 3)


def _lengths(size: tuple[int, int], share: float, aspect: float) -> tuple[int, int]:
    area = share * (size[0] * size[1])
    width, height = min(math.sqrt(area * aspect), size[0]), min(math.sqrt(area / aspect), size[1])
    width, height = min(width, height * _WIDEST), min(height, width * _WIDEST)
    return max(1, min(size[0], int(width + 0.5))), max(1, min(size[1], int(height + 0.5)))
