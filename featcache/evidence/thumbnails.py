"""Small pictures of the images that a report shows, within a budget of bytes."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from ..errors import ImageError
from ..images import open_picture
from ..sources import ImageSource

__all__ = ["Album", "thumbnail", "thumbnails"]

SIDE, SMALL = 128, 64
_AT_ONCE = 64
#: What a picture costs on the page beside its own bytes: a rule of the style sheet.
_RULE = 64


@dataclass(frozen=True)
class Album:
    """Thumbnails by id, and why some are not there.

    Parameters
    ----------
    pictures : dict of str to bytes
        WebP by id.
    unknown : int, default=0
        Images that the source does not have.
    failed : dict of str to str, default={}
        Images that cannot be read, and why.
    left_out : int, default=0
        Images for which the budget had no room.
    """

    pictures: dict[str, bytes]
    unknown: int = 0
    failed: dict[str, str] = field(default_factory=dict)
    left_out: int = 0


def thumbnail(payload: Any, side: int = SIDE, *, quality: int = 60) -> bytes:
    """Return an image as WebP whose longer edge has `side` pixels; smaller images are not enlarged.

    Raises
    ------
    ImageError
        When it cannot be decoded (see `featcache.images.open_rgb`).

    Examples
    --------
    >>> import numpy as np
    >>> thumbnail(np.zeros((200, 100, 3), np.uint8))[:4]
    b'RIFF'
    """
    picture = open_picture(payload, decoder="scaled", least=lambda size: _fitted(size, 2 * side))
    size = _fitted(picture.size, side)
    image = picture.image.resize(size, Image.Resampling.BOX if min(picture.size) < side else None, box=picture.box)
    out = io.BytesIO()
    image.save(out, "WEBP", quality=quality, method=4)
    return out.getvalue()


def _fitted(size: tuple[int, int], side: int) -> tuple[int, int]:
    """The size within a square of `side`, in proportion and never larger than it is."""
    scale = min(1.0, side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def thumbnails(
    source: ImageSource,
    shown: Iterable[str],
    hovered: Iterable[str] = (),
    *,
    budget: int = 2_000_000,
    advance: Callable[[int], None] = lambda n: None,
) -> Album:
    """Read the images named and return thumbnails, as many as the budget allows, in this order.

    Parameters
    ----------
    source : ImageSource
        Where images with these ids are.
    shown : iterable of str
        Ids to show at 96 pixels (stored with 128, for sharp screens).
    hovered : iterable of str, default=()
        Ids that are seen only when they are pointed at: 64 pixels, from what is left of the budget.
    budget : int, default=2_000_000
        Bytes in the page, where pictures stand in base64. Equal pictures count once.
    advance : callable, default=nothing
        Told how many images were done.

    Returns
    -------
    Album

    Examples
    --------
    >>> import numpy as np
    >>> source = ImageSource.from_arrays(np.zeros((2, 8, 8), np.uint8), ids=["a", "b"])
    >>> sorted(thumbnails(source, ["b", "c"]).pictures)
    ['b']
    """
    place = {name: i for i, name in enumerate(source.ids)}
    large = list(dict.fromkeys(shown))
    small = [name for name in dict.fromkeys(hovered) if name not in set(large)]
    wanted = [(name, SIDE, 55) for name in large] + [(name, SMALL, 45) for name in small]
    known = [line for line in wanted if line[0] in place]
    pictures: dict[str, bytes] = {}
    failed: dict[str, str] = {}
    seen: set[bytes] = set()
    spent = done = 0

    def one(line: tuple[str, int, int]) -> tuple[str, bytes | None, str]:
        name, side, quality = line
        try:
            return name, thumbnail(source.read(place[name]), side, quality=quality), ""
        except (ImageError, OSError) as error:
            return name, None, str(error)

    with ThreadPoolExecutor(4) as pool:
        for start in range(0, len(known), _AT_ONCE):
            for name, content, reason in pool.map(one, known[start : start + _AT_ONCE]):
                done += 1
                if content is None:
                    failed[name] = reason
                    continue
                cost = 0 if content in seen else len(base64.b64encode(content)) + _RULE
                if spent + cost > budget:
                    continue
                spent += cost
                seen.add(content)
                pictures[name] = content
            advance(min(_AT_ONCE, len(known) - start))
            if spent > budget - 4 * _RULE - 2500:
                break
    return Album(pictures, len(wanted) - len(known), failed, len(known) - len(pictures) - len(failed))
