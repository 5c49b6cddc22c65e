"""Images that are in memory already: arrays and PIL images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..errors import SourceError
from ..images import Payload
from .files import FileStat
from .names import sort_key

__all__ = ["MemoryReader", "default_ids", "image_list", "in_order"]


class MemoryReader:
    """Images held as they were given.

    Parameters
    ----------
    images : sequence
        Arrays, PIL images or encoded bytes.
    """

    def __init__(self, images: Sequence[Payload]) -> None:
        self.images = images

    def read(self, i: int) -> Payload:
        """Return image `i`."""
        return self.images[i]

    def stat(self, i: int) -> FileStat | None:
        """Return None: there is no file."""
        return None


def image_list(images: Any) -> list[Payload]:
    """Take images apart that were given together.

    Parameters
    ----------
    images : sequence of arrays, PIL images or bytes, or numpy.ndarray
        An array must be (N, H, W) or (N, H, W, C).

    Returns
    -------
    list
        N payloads; those of an array are views.

    Raises
    ------
    SourceError
        For nothing, for one image that is not in a list, and for what is no image.
    """
    # (H, W, 3) is one colour image, not H images of 3 pixels' width.
    if isinstance(images, np.ndarray) and (images.ndim not in (3, 4) or images.shape[2:] == (3,)):
        raise SourceError(
            f"images: expected an array (N, H, W) or (N, H, W, C), got {images.shape}; put a single image into a list"
        )
    if isinstance(images, (str, bytes, Image.Image)) or not hasattr(images, "__iter__"):
        raise SourceError(
            f"images: expected a list of images, got {type(images).__name__}; put a single image into a list"
        )
    payloads = list(images)
    if not payloads:
        raise SourceError("images: expected at least one image, got none; give arrays or PIL images")
    for i, payload in enumerate(payloads):
        if not isinstance(payload, (bytes, Image.Image, np.ndarray)):
            raise SourceError(
                f"images[{i}]: expected an array, a PIL image or encoded bytes, got {type(payload).__name__}; use "
                "from_paths() for files, from_dataset() for tensors"
            )
    return payloads


def default_ids(count: int) -> list[str]:
    """Return ids for images without names: their position, in 8 digits so that they sort by it."""
    return [f"{i:08d}" for i in range(count)]


def in_order(ids: Sequence[str] | None, count: int) -> tuple[list[str], list[int]]:
    """Sort ids that the user gave.

    Parameters
    ----------
    ids : sequence of str or None
        None for positions.
    count : int
        How many there must be.

    Returns
    -------
    ids : list of str
        Sorted.
    order : list of int
        Where each came from.

    Raises
    ------
    SourceError
        For another number of ids, for what is not text, and for repeated ones.
    """
    if ids is None:
        return default_ids(count), list(range(count))
    given = [str(identity) if isinstance(identity, np.str_) else identity for identity in ids]
    if len(given) != count:
        raise SourceError(f"ids: expected {count}, one per image, got {len(given)}; give one for each")
    for identity in given:
        if not isinstance(identity, str) or not identity or not _encodable(identity):
            raise SourceError(f"ids: expected text, got {identity!r}; give e.g. [str(i) for i in ids]")
    order = sorted(range(count), key=lambda i: sort_key(given[i]))
    ordered = [given[i] for i in order]
    for one, other in zip(ordered, ordered[1:], strict=False):
        if one == other:
            raise SourceError(f"ids: expected each once, got {one!r} twice; make them unique")
    return ordered, order


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
