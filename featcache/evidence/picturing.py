"""Thumbnails for a document that is otherwise done: as many as the page has room for."""

from __future__ import annotations

import random
from dataclasses import replace

from ..progress import Progress
from ..reporting.document import Cloud, Document, Text
from ..reporting.escaping import short
from ..sources import ImageSource
from .thumbnails import Album, thumbnails

__all__ = ["with_pictures"]

#: Bytes that are kept free below the limit.
_MARGIN = 20_000


def with_pictures(document: Document, source: ImageSource, max_bytes: int, bar: Progress) -> Document:
    """Add thumbnails, as many as the page has room for, and say what is missing."""
    shown = list(dict.fromkeys(picture.image for picture in document.pictures()))
    bar.start("thumbnails", len(shown))
    room = max(0, max_bytes - _MARGIN - len(document.to_html().encode()))
    on_page, hovered = _by_use(document)
    album = thumbnails(source, on_page, hovered, budget=room, advance=bar.advance)
    notes = _missing(album, len(shown))
    if not notes:
        return replace(document, images=album.pictures)
    first = document.sections[0]
    marked = replace(first, blocks=(*first.blocks, *(Text(note, note=True) for note in notes)))
    return replace(document, images=album.pictures, sections=(marked, *document.sections[1:]))


def _by_use(document: Document) -> tuple[list[str], list[str]]:
    """Ids of pictures on the page, and of those only hovered over, these in an order that no class comes first in."""
    clouds = [block for section in document.sections for block in section.blocks if isinstance(block, Cloud)]
    points = [picture.image for cloud in clouds for picture in cloud.pictures]
    pictures = [picture.image for picture in document.pictures()]
    hovered = sorted(points)
    random.Random(0).shuffle(hovered)
    return pictures[: len(pictures) - len(points)], hovered


def _missing(album: Album, wanted: int) -> list[str]:
    notes = []
    if album.unknown == wanted:
        notes.append(
            "None of the images is in the source given with --images (images=): give the folder or list that was "
            "extracted, so that ids match."
        )
    elif album.unknown:
        notes.append(f"{album.unknown} of {wanted} images shown here are not in the source: it has no such ids.")
    if album.failed:
        name, reason = next(iter(album.failed.items()))
        notes.append(f"{len(album.failed)} images cannot be read, such as {short(name)}: {short(reason, 120)}")
    if album.left_out:
        notes.append(f"{album.left_out} points of the map have no picture, so that the page stays small.")
    return notes
