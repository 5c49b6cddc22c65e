"""Duplicates and suspects: a page of what an audit found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..features import FeatureSet
from ..reporting.document import Block, Gallery, Picture, Points, Section, Strips, Text
from ..reporting.escaping import short

__all__ = ["section", "sentences"]

_SHOWN = 12


def sentences(found: Any) -> tuple[str, ...]:
    """Return what an audit says of its findings, and its notes."""
    said = getattr(found, "statements", None)
    return (*(map(str, said()) if callable(said) else ()), *map(str, getattr(found, "notes", ())))


def section(found: Sequence[Mapping[str, Any]], data: FeatureSet, notes: Sequence[str] = ()) -> Section:
    """Return the section on findings (kind, ids, score, detail), kind by kind.

    Kinds with two or more ids per finding are shown as rows of pictures, others as a gallery.
    """
    labels = dict(zip(data.row_ids.tolist(), [""] * len(data) if data.y is None else data.y.tolist(), strict=True))
    kinds = list(dict.fromkeys(str(row["kind"]) for row in found))
    blocks: list[Block] = [] if found or notes else [Text("Nothing was found in what was looked for.")]
    blocks.append(Points(tuple(notes)))
    for kind in kinds:
        rows = [row for row in found if row["kind"] == kind]
        shown = rows[:_SHOWN]
        caption = f"{_NAMES.get(kind, kind)}: {len(rows)}" + (
            f", {len(shown)} of them here" if len(rows) > len(shown) else ""
        )
        if any(len(row["ids"]) > 1 for row in shown):
            strips = tuple(
                tuple(
                    Picture(str(i), str(i), _lines(row, labels.get(str(i), ""), n))
                    for n, i in enumerate(row["ids"][:6])
                )
                for row in shown
            )
            blocks.append(Strips(strips, caption + "."))
        else:
            pictures = (
                Picture(str(row["ids"][0]), str(row["ids"][0]), _lines(row, labels.get(str(row["ids"][0]), ""), 0))
                for row in shown
                if row["ids"]
            )
            blocks.append(Gallery(tuple(pictures), caption + "."))
    return Section("findings", "Duplicates and suspects", tuple(blocks), {"findings": [dict(row) for row in found]})


_NAMES = {
    "exact duplicate": "Copies of one image",
    "near duplicate": "Nearly equal, most likely copies of one image",
    "group straddles": "Groups on both sides of a split",
    "label suspect": "Labels that look wrong to heads that never saw the image",
    "outlier": "Unlike all others",
    "constant": "Images that show nothing",
}


def _lines(row: Mapping[str, Any], label: str, number: int) -> tuple[str, ...]:
    own = short(label, 24) or "(no label)"
    if number:
        return (own,)
    if row.get("suggested"):
        return (f"labelled {own}", f"looks like {short(row['suggested'], 24)}")
    score = "" if row.get("score") is None else f"score {row['score']:.2f}"
    detail = short(row.get("detail") or "", 60)
    return tuple(filter(None, ("" if detail.startswith("labelled ") else own, detail, score)))
