"""Markdown of a Document; plots and pictures are files beside it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import quote

from .document import (
    Block,
    Cards,
    Cloud,
    Document,
    Facts,
    Figure,
    Gallery,
    Matrix,
    Picture,
    Points,
    Strips,
    Table,
    Text,
)
from .drawing import plane
from .escaping import markdown_text as safe
from .page import kind_of_image, unique_images

__all__ = ["markdown_of"]


def markdown_of(document: Document, folder: str | None) -> tuple[str, dict[str, bytes]]:
    """Return Markdown, and the files (by name within `folder`) that it shows; None: no files, captions alone."""
    writer = _Writer(document, folder)
    lines = [f"# {safe(document.title)}", safe(document.subtitle)]
    for section in document.sections:
        lines.append(f"## {safe(section.title)}")
        lines += [writer.block(section.key, block) for block in section.blocks]
    return "\n\n".join(line for line in lines if line) + "\n", writer.files


class _Writer:
    """Writes blocks, and collects the files that they show."""

    def __init__(self, document: Document, folder: str | None) -> None:
        self.folder, self.images = folder, document.images
        self.names = unique_images(document.images)
        self.files: dict[str, bytes] = {}
        self.drawn = 0

    def block(self, key: str, block: Block) -> str:
        match block:
            case Text():
                return f"> {safe(block.text)}" if block.note else safe(block.text)
            case Points():
                return "\n".join(f"- {safe(item)}" for item in block.items)
            case Cards():
                return "\n".join(f"- **{safe(c.question)}** {safe(c.answer)}. {safe(c.detail)}" for c in block.cards)
            case Table():
                return _table(block.header, block.rows, block.numbers, block.caption)
            case Facts():
                return "\n".join(
                    [*filter(None, [safe(block.caption)]), *(f"- {safe(k)}: {safe(v)}" for k, v in block.pairs)]
                )
            case Figure():
                return self.figure(key, block)
            case Cloud():
                return "\n\n".join(filter(None, [safe(block.caption), self.figure(key, plane(block))]))
            case Gallery():
                return "\n".join([safe(block.caption), "", *(f"- {self.picture(p)}" for p in block.pictures)])
            case Strips():
                rows = (
                    f"- {self.picture(row[0])}\n" + "\n".join(f"  - {self.picture(p)}" for p in row[1:])
                    for row in block.rows
                )
                return "\n".join([safe(block.caption), "", *rows])
            case Matrix():
                header = ["true \\ predicted", *map(str, range(1, len(block.labels) + 1))]
                body = [
                    [f"{i} {name}", *map(str, row)]
                    for i, (name, row) in enumerate(zip(block.labels, block.counts, strict=True), 1)
                ]
                return _table(header, body, range(1, len(header)), block.caption)
            case _:
                raise TypeError(f"no such block: {type(block).__name__}")

    def figure(self, key: str, figure: Figure) -> str:
        if self.folder is None:
            return f"{safe(figure.title)}: {safe(figure.alt)}"
        self.drawn += 1
        name = f"{key}-{self.drawn}"
        self.files |= {f"{name}.svg": figure.svg.encode(), f"{name}.png": figure.png}
        return f"![{safe(figure.title)}: {safe(figure.alt)}]({self._place(f'{name}.png')})"

    def picture(self, picture: Picture) -> str:
        text = " · ".join(safe(line) for line in [*picture.lines, picture.name])
        name = self.names.get(picture.image)
        if name is None or self.folder is None:
            return text
        content = self.images[picture.image]
        file = f"{name}.{kind_of_image(content)}"
        self.files[file] = content
        return f"![{safe(picture.name)}]({self._place(file)}) {text}"

    def _place(self, name: str) -> str:
        return f"{quote(self.folder or '', errors='surrogateescape')}/{name}"


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int], caption: str) -> str:
    right = set(numbers)
    rule = ["---:" if i in right else "---" for i in range(len(header))]
    lines = [[safe(cell) for cell in header], rule, *([safe(cell) for cell in row] for row in rows)]
    table = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return f"{safe(caption)}\n\n{table}" if caption else table
