"""What a report is made of: sections of text, tables, figures and pictures, as plain frozen data.

Nothing here knows how it will look: `page` makes HTML of a Document, `markdown` Markdown, and `Document.to_json` JSON.
All texts are plain text; whatever markup is in them is shown, never followed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from ..errors import HeadError
from .escaping import json_text

__all__ = [
    "Block",
    "Card",
    "Cards",
    "Cloud",
    "Document",
    "Facts",
    "Figure",
    "Gallery",
    "Matrix",
    "Picture",
    "Points",
    "Section",
    "Strips",
    "Table",
    "Text",
]

ENDINGS = (".html", ".htm", ".md", ".json")


@dataclass(frozen=True)
class Text:
    """A paragraph; a `note` is set apart."""

    text: str
    note: bool = False


@dataclass(frozen=True)
class Points:
    """A list of sentences."""

    items: tuple[str, ...]


@dataclass(frozen=True)
class Card:
    """One answer of the summary: what was asked, the answer in a few words, and what stands behind it."""

    question: str
    answer: str
    detail: str = ""


@dataclass(frozen=True)
class Cards:
    """Answers for whoever reads no further."""

    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Table:
    """Cells as text; columns of numbers are set to the right."""

    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    caption: str = ""
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Facts:
    """Names and values: provenance, settings."""

    pairs: tuple[tuple[str, str], ...]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """A drawing, as SVG (text) and as PNG (bytes): whoever shows it takes what suits.

    Parameters
    ----------
    title, alt : str
        What it shows; the same for those who cannot see it, with the figures that matter.
    svg : str
        A standalone SVG document.
    png : bytes
        The same drawing.
    """

    title: str
    alt: str
    svg: str
    png: bytes


@dataclass(frozen=True)
class Picture:
    """An image of the data by its key in `Document.images`, its name, and lines below it; `wrong` marks an error."""

    image: str
    name: str
    lines: tuple[str, ...] = ()
    wrong: bool = False


@dataclass(frozen=True)
class Gallery:
    """Pictures side by side."""

    pictures: tuple[Picture, ...]
    caption: str = ""


@dataclass(frozen=True)
class Strips:
    """Rows of pictures; the first of each row is the one that the others are shown for."""

    rows: tuple[tuple[Picture, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Matrix:
    """Counts, true (rows) against predicted (columns)."""

    labels: tuple[str, ...]
    counts: tuple[tuple[int, ...], ...]
    caption: str = ""


@dataclass(frozen=True)
class Cloud:
    """Rows as points of a plane, by class, each with its picture.

    Parameters
    ----------
    x, y : tuple of float
        Places in [0, 1].
    classes : tuple of str
        What `of` counts in.
    of : tuple of int
        Class of each point.
    pictures : tuple of Picture
        One per point.
    alt, caption : str
        For those who cannot see it; for all.
    """

    x: tuple[float, ...]
    y: tuple[float, ...]
    classes: tuple[str, ...]
    of: tuple[int, ...]
    pictures: tuple[Picture, ...]
    alt: str
    caption: str = ""


Block = Text | Points | Cards | Table | Facts | Figure | Gallery | Strips | Matrix | Cloud


@dataclass(frozen=True)
class Section:
    """A part of the report with a key (letters only; its anchor), and its figures as JSON types."""

    key: str
    title: str
    blocks: tuple[Block, ...]
    data: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Document:
    """A report: what was found, in sections, with the pictures that it shows.

    Parameters
    ----------
    title : str
        Its name.
    subtitle : str
        What it is about, in a line.
    sections : tuple of Section
        In the order of reading.
    images : mapping of str to bytes, default={}
        Thumbnails (WebP, JPEG or PNG) by key; a key that is missing is shown as a placeholder.
    about : mapping, default={}
        Versions, settings and fingerprints, as JSON types.

    Examples
    --------
    >>> report = Document("Flowers", "3 images", (Section("summary", "Summary", (Text("a < b"),)),))
    >>> "a &lt; b" in report.to_html()
    True
    """

    title: str
    subtitle: str
    sections: tuple[Section, ...]
    images: Mapping[str, bytes] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)

    @staticmethod
    def check_target(path: str | Path) -> Path:
        """Return the path as a Path; HeadError unless `write` can make a file there."""
        place = Path(path)
        if place.suffix.lower() not in ENDINGS:
            raise HeadError(
                f"report {str(path)!r}: expected a file name ending in .html, .md or .json; add one of them"
            )
        if place.is_dir() or not place.parent.is_dir():
            raise HeadError(f"report {str(path)!r}: expected a file in a folder that exists; make the folder first")
        return place

    def pictures(self) -> Iterator[Picture]:
        """Yield every picture that is shown, those that are only points of a cloud last."""
        later: list[Picture] = []
        for section in self.sections:
            for block in section.blocks:
                if isinstance(block, Gallery):
                    yield from block.pictures
                elif isinstance(block, Strips):
                    yield from (picture for row in block.rows for picture in row)
                elif isinstance(block, Cloud):
                    later += block.pictures
        yield from later

    def to_html(self) -> str:
        """Return one page that needs nothing else: no network, no other file."""
        from .page import html_of

        return html_of(self)

    def to_markdown(self, folder: str | None = None) -> str:
        """Return Markdown; with `folder` its figures and pictures are named as files there (see `write`)."""
        from .markdown import markdown_of

        return markdown_of(self, folder)[0]

    def to_json(self, *, indent: int | None = None) -> str:
        """Return title, subtitle, about and sections (blocks and figures as JSON types; no pictures)."""
        sections = [
            {"key": s.key, "title": s.title, "data": dict(s.data), "blocks": [_plain(b) for b in s.blocks]}
            for s in self.sections
        ]
        document = {"title": self.title, "subtitle": self.subtitle, "about": dict(self.about), "sections": sections}
        return json_text(document, indent=indent)

    def write(self, path: str | Path) -> Path:
        """Write the report as its ending says: .html, .md (figures go to a folder beside it) or .json.

        Raises
        ------
        HeadError
            For another ending, a folder that does not exist, or a file that cannot be written.
        """
        place = self.check_target(path)
        files: dict[str, bytes] = {}
        folder = place.with_name(place.stem + ".files")
        if place.suffix.lower() == ".md":
            from .markdown import markdown_of

            text, files = markdown_of(self, folder.name)
        else:
            text = self.to_json(indent=1) + "\n" if place.suffix.lower() == ".json" else self.to_html()
        try:
            if files:
                folder.mkdir(exist_ok=True)
            for name, content in files.items():
                (folder / name).write_bytes(content)
            place.write_bytes(text.encode("utf-8"))
        except OSError as error:
            raise HeadError(
                f"report {str(path)!r}: cannot be written: {error.strerror or error}; choose another place"
            ) from error
        return place


def _plain(block: Any) -> Any:
    """A block as JSON types, without the drawings."""
    if is_dataclass(block) and not isinstance(block, type):
        kind = {} if isinstance(block, (Card, Picture)) else {"kind": type(block).__name__.lower()}
        return kind | {f.name: _plain(getattr(block, f.name)) for f in fields(block) if f.name not in ("svg", "png")}
    return [_plain(item) for item in block] if isinstance(block, tuple) else block
