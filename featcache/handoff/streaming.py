"""Images from anywhere to answers, a batch at a time: no more of them are held than one batch."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError
from ..images import Payload
from ..preprocess import Preprocess
from ..sources import ImageSource
from ..sources.files import read_file
from ..sources.names import id_of
from .answering import Answers

__all__ = ["Item", "answered", "items_of", "items_of_source"]

#: An id, and how to get at its image.
Item = tuple[str, Callable[[], Payload]]


def items_of_source(source: ImageSource) -> Iterator[Item]:
    """Return the images of a source."""
    return ((name, partial(source.read, i)) for i, name in enumerate(source.ids))


def items_of(images: Iterable[Any]) -> Iterator[Item]:
    """Return the images of a stream: of pairs their id, of paths the path, of others the position in 8 digits."""
    for position, given in enumerate(images):
        name, image = f"{position:08d}", given
        if isinstance(given, tuple) and len(given) == 2 and isinstance(given[0], (str, int, np.integer)):
            name, image = str(given[0]), given[1]
        elif isinstance(given, (str, os.PathLike)):
            name = id_of(os.fsdecode(given))
        yield name, partial(_payload, image)


def _payload(image: Any) -> Payload:
    if isinstance(image, (str, os.PathLike)):
        return read_file(os.fsdecode(image))
    if isinstance(image, (bytes, Image.Image, np.ndarray)):
        return image
    raise ImageError(
        f"expected a PIL image, an array, encoded bytes, a path, or a pair of an id and one of them, got "
        f"{type(image).__name__}"
    )


def answered(answers: Answers, items: Iterator[Item], batch_size: int, workers: int) -> Iterator[list[dict[str, Any]]]:
    """Yield the lines of one batch after the other, in order.

    Parameters
    ----------
    answers : Answers
        What answers.
    items : iterator of Item
        Images; what it raises comes out after the lines of the images before.
    batch_size : int
        Images decoded and answered at once.
    workers : int
        Threads that read and decode; 0: none.
    """
    recipe = answers.recipe
    with ThreadPoolExecutor(max(1, workers)) as pool:
        ended: Exception | None = None
        while ended is None:
            part: list[Item] = []
            try:
                while len(part) < batch_size:
                    part.append(next(items))
            except Exception as error:  # the end, or what the stream raises
                ended = error
            if part:
                work = [(recipe, *item) for item in part]
                yield _lines(answers, list(pool.map(_decoded, work) if workers else map(_decoded, work)))
        if not isinstance(ended, StopIteration):
            raise ended


def _decoded(work: tuple[Preprocess, str, Callable[[], Payload]]) -> tuple[str, np.ndarray | None, str]:
    recipe, name, read = work
    try:
        return name, recipe.pixels(read()), ""
    except ImageError as error:
        return name, None, str(error)
    except OSError as error:
        return name, None, f"cannot be read: {error.strerror or error}"


def _lines(answers: Answers, decoded: list[tuple[str, np.ndarray | None, str]]) -> list[dict[str, Any]]:
    names = [name for name, pixels, _ in decoded if pixels is not None]
    stack = [pixels for _, pixels, _ in decoded if pixels is not None]
    good = iter(answers(names, np.stack(stack)) if stack else ())
    return [{"id": name, "error": reason} if pixels is None else next(good) for name, pixels, reason in decoded]
