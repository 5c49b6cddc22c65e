"""One HTML page of a Document: no network, no other file, readable on a phone, with every text escaped.

A Content-Security-Policy allows nothing but the page's own styles, pictures within the page, and one script, named by
its digest: text from data could not run or load anything even if it got past `escape`.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

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
from .drawing import inline_svg
from .escaping import escape, json_for_script, short
from .style import CSS, SCRIPT

__all__ = ["html_of", "kind_of_image", "unique_images"]

_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    f"script-src 'sha256-{_DIGEST}'; base-uri 'none'; form-action 'none'"
)

#: Outlines within a circle of radius 5: one per colour of the palette, so that neither colour nor shape stands alone.
_SHAPES = (
    "M-5 0a5 5 0 1 0 10 0a5 5 0 1 0-10 0z",
    "M-4.4-4.4h8.8v8.8h-8.8z",
    "M0-5.6 5.2 4h-10.4z",
    "M0-6 4.8 0 0 6-4.8 0z",
    "M0 5.6-5.2-4h10.4z",
    "M-1.8-5.4h3.6v3.6h3.6v3.6h-3.6v3.6h-3.6v-3.6h-3.6v-3.6h3.6z",
    "M-5-3-3-5 0-2 3-5 5-3 2 0 5 3 3 5 0 2-3 5-5 3-2 0z",
    "M-5.6 0 4-5.2v10.4z",
    "M5.6 0-4-5.2v10.4z",
)
_WIDTH, _HEIGHT, _EDGE = 1000, 760, 24


def html_of(document: Document) -> str:
    """Return the page."""
    names, styles = unique_images(document.images), []
    for name, content in {names[key]: document.images[key] for key in names}.items():
        styles.append(f".{name}{{background-image:url({_data_uri(content)})}}")
    writer = _Writer(names)
    sections = [
        f'<section id="{escape(s.key)}"><h2>{escape(s.title)}</h2>{writer.blocks(s.key, s.blocks)}</section>'
        for s in document.sections
    ]
    links = [f'<li><a href="#{escape(s.key)}">{escape(s.title)}</a></li>' for s in document.sections]
    return "\n".join(
        [
            '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width,initial-scale=1">',
            '<meta name="referrer" content="no-referrer"><meta name="color-scheme" content="light dark">',
            f"<title>{escape(document.title)}</title><style>{CSS}{''.join(styles)}</style></head><body>",
            f'<header><h1>{escape(document.title)}</h1><p class="sub">{escape(document.subtitle)}</p></header>',
            f'<nav aria-label="Sections"><ul>{"".join(links)}</ul></nav><main>',
            *sections,
            "</main><footer>Made by featcache. This file needs no network and sends nothing anywhere.</footer>",
            f"<script>{SCRIPT}</script>" if writer.has_cloud else "",
            "</body></html>\n",
        ]
    )


def unique_images(images: Mapping[str, bytes]) -> dict[str, str]:
    """Return key → a name made by us; equal pictures share one."""
    known: dict[bytes, str] = {}
    return {key: known.setdefault(content, f"t{len(known)}") for key, content in images.items()}


def kind_of_image(content: bytes) -> str:
    """Return "webp", "png" or "jpeg", by the first bytes."""
    return "png" if content[:4] == b"\x89PNG" else "webp" if content[:4] == b"RIFF" else "jpeg"


def _data_uri(content: bytes) -> str:
    return f"data:image/{kind_of_image(content)};base64,{base64.b64encode(content).decode()}"


@dataclass
class _Writer:
    """Writes blocks; knows the class names of the pictures, and whether a cloud was met (a page has one)."""

    names: dict[str, str]
    has_cloud: bool = False

    def blocks(self, key: str, blocks: Sequence[Block]) -> str:
        out, number = [], 0
        for figures, some in groupby(blocks, key=lambda block: isinstance(block, Figure)):
            if not figures:
                out += [self.block(block) for block in some]
                continue
            drawn = []
            for figure in some:
                number += 1
                drawn.append(_figure(figure, f"{key}{number}-"))  # type: ignore[arg-type]
            out.append(f'<div class="plots">{"".join(drawn)}</div>')
        return "\n".join(out)

    def block(self, block: Block) -> str:
        match block:
            case Text():
                return f"<p{_class('note', block.note)}>{escape(block.text)}</p>"
            case Points():
                return f'<ul class="points">{_items(escape(item) for item in block.items)}</ul>'
            case Cards():
                return f'<ul class="cards">{_items(_card(card) for card in block.cards)}</ul>'
            case Table():
                return _table(block)
            case Facts():
                pairs = "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in block.pairs)
                return f'{_caption(block.caption)}<dl class="facts">{pairs}</dl>'
            case Gallery():
                pictures = _items(self.picture(picture) for picture in block.pictures)
                return f'{_caption(block.caption)}<ul class="gallery">{pictures}</ul>'
            case Strips():
                rows = "".join(
                    f'<ul class="strip" tabindex="0" aria-label="{escape(short(row[0].name))} and its neighbours">'
                    f"{_items(self.picture(picture) for picture in row)}</ul>"
                    for row in block.rows
                )
                return f'{_caption(block.caption)}<div class="strips">{rows}</div>'
            case Matrix():
                return _matrix(block)
            case Cloud():
                return self.cloud(block)
            case _:
                raise TypeError(f"no such block: {type(block).__name__}")

    def picture(self, picture: Picture) -> str:
        lines = "".join(
            f"<span{_class('wrong', picture.wrong and i == 0)}>{escape(line)}</span>"
            for i, line in enumerate(picture.lines)
        )
        name = self.names.get(picture.image)
        said = escape(short(picture.name, 60))
        shown = (
            f'<span class="p {name}" role="img" aria-label="{said}"></span>'
            if name
            else '<span class="p none">no picture</span>'
            if self.names
            else ""
        )
        return (
            f'{shown}{lines}<span class="id" title="{escape(picture.name)}">{escape(_tail(picture.name, 120))}</span>'
        )

    def cloud(self, cloud: Cloud) -> str:
        """The points as one SVG, class by class, and what the script shows of each, in the same order."""
        if self.has_cloud:
            raise ValueError("a page has room for one Cloud")
        self.has_cloud = True
        order = sorted(range(len(cloud.of)), key=lambda i: cloud.of[i])
        groups = [f'<g class="k{c % 9}">' for c in range(len(cloud.classes))]
        for i in order:
            x = round(_EDGE + cloud.x[i] * (_WIDTH - 2 * _EDGE))
            y = round(_EDGE + cloud.y[i] * (_HEIGHT - 2 * _EDGE))
            groups[cloud.of[i]] += f'<use href="#m{_shape(cloud.of[i])}" x="{x}" y="{y}"/>'
        shapes = "".join(f'<path id="m{i}" class="mark" d="{path}"/>' for i, path in enumerate(_SHAPES))
        legend = _items(
            f'<button type="button" aria-pressed="false"><svg viewBox="-7 -7 14 14" class="k{c % 9}" '
            f'aria-hidden="true"><path d="{_SHAPES[_shape(c)]}"/></svg>{escape(short(name, 28))}</button>'
            for c, name in enumerate(cloud.classes)
        )
        data = [self._point(cloud.pictures[i]) for i in order]
        return (
            f'{_caption(cloud.caption)}<div class="cloud" id="cloud"><svg viewBox="0 0 {_WIDTH} {_HEIGHT}" '
            f'tabindex="0" role="application" aria-label="{escape(cloud.alt)}; arrow keys go from point to point">'
            f"<defs>{shapes}</defs>{'</g>'.join(groups)}</g></svg>"
            f'<div class="tip" aria-live="polite" hidden></div><ul class="legend">{legend}</ul></div>'
            f'<script type="application/json" id="cloud-data">{json_for_script(data)}</script>'
        )

    def _point(self, picture: Picture) -> list[Any]:
        return [self.names.get(picture.image, ""), *picture.lines, _tail(picture.name)]


def _shape(number: int) -> int:
    """Shape of a class: with the tenth, colours come again with another shape."""
    return (number + number // 9) % 9


def _tail(name: str, limit: int = 24) -> str:
    """The part of an id that tells images of one folder apart."""
    return short(name.rsplit("/", 1)[-1] or name, limit)


def _class(name: str, on: bool) -> str:
    return f' class="{name}"' if on else ""


def _items(texts: Iterable[str]) -> str:
    return "".join(f"<li>{text}</li>" for text in texts)


def _caption(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _card(card: Any) -> str:
    detail = f'<p class="d">{escape(card.detail)}</p>' if card.detail else ""
    return f'<p class="q">{escape(card.question)}</p><p class="a">{escape(card.answer)}</p>{detail}'


def _figure(figure: Figure, prefix: str) -> str:
    vector = inline_svg(figure.svg, prefix, escape(f"{figure.title}: {figure.alt}"))
    raster = _data_uri(figure.png)
    shown = vector if len(vector) <= len(raster) else f'<img src="{raster}" alt="{escape(figure.alt)}">'
    return f'<figure class="plot"><figcaption>{escape(figure.title)}</figcaption>{shown}</figure>'


def _table(table: Table) -> str:
    def cell(kind: str, i: int, text: str, scope: str = "") -> str:
        return f"<{kind}{_class('n', i in table.numbers)}{scope}>{escape(text)}</{kind}>"

    head = "".join(cell("th", i, text, ' scope="col"') for i, text in enumerate(table.header))
    body = "".join(
        "<tr>"
        + "".join(cell("th", i, text, ' scope="row"') if i == 0 else cell("td", i, text) for i, text in enumerate(row))
        + "</tr>"
        for row in table.rows
    )
    inside = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return _scrolled(inside, table.caption)


def _matrix(matrix: Matrix) -> str:
    """Counts on a ground as dark as their share of the row; columns bear numbers, so that they stay narrow."""
    head = "".join(
        f'<th scope="col" title="{escape(name)}"><abbr title="{escape(name)}">{i}</abbr></th>'
        for i, name in enumerate(matrix.labels, 1)
    )
    body = []
    for i, (name, row) in enumerate(zip(matrix.labels, matrix.counts, strict=True)):
        total, cells = max(sum(row), 1), []
        for j, count in enumerate(row):
            style = f' style="--s:{0.12 + 0.5 * count / total:.2f}"' if count else ""
            kind = " class=right" if i == j else ""
            cells.append(f"<td{kind}{style}>{count}</td>" if count else "<td class=zero>·</td>")
        body.append(
            f'<tr><th scope="row" title="{escape(name)}">{i + 1} {escape(short(name, 24))}</th>{"".join(cells)}</tr>'
        )
    inside = f"<thead><tr><td></td>{head}</tr></thead><tbody>{''.join(body)}</tbody>"
    return _scrolled(f'<table class="matrix">{inside}</table>', matrix.caption)


def _scrolled(table: str, caption: str) -> str:
    """A table that scrolls within itself where it is wider than the page, by keys, too; its caption stays in sight."""
    said = f'<p class="cap">{escape(caption)}</p>' if caption else ""
    return f'{said}<div class="wide" tabindex="0" role="region" aria-label="{escape(caption or "table")}">{table}</div>'
