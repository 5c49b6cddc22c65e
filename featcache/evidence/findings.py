"""Duplicates and suspects: a page of what an audit found, and a quick look of its own where none is at hand."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..features import FeatureSet
from ..reporting.document import Block, Gallery, Picture, Points, Section, Strips, Text
from ..reporting.escaping import short
from ..solvers.neighbors import nearest_others
from ..splits import has_named_splits, named_splits
from .held import HeldOut

__all__ = ["audited", "duplicates", "quick_look", "section", "sentences", "suspects"]

#: Cosine of centred codes above which two images are taken for copies of one another.
_COPY = 0.97
_ROWS = 20_000
_SHOWN = 12


def duplicates(data: FeatureSet) -> list[dict[str, Any]]:
    """Return pairs of images whose codes are nearly equal, the nearest first.

    Parameters
    ----------
    data : FeatureSet
        Images; of more than 20,000 the first 20,000 by id are searched.

    Returns
    -------
    list of dict
        kind ("near duplicate"), ids (two), score (cosine of centred codes), detail.

    Examples
    --------
    >>> X = np.vstack([np.eye(4), np.eye(4)[:1]])
    >>> duplicates(FeatureSet(X))[0]["ids"]
    ['0', '4']
    """
    X = np.asarray(data.X[:_ROWS], dtype=np.float32).reshape(min(len(data), _ROWS), -1)
    if len(X) < 2:
        return []
    cosines, found = nearest_others(X - X.mean(axis=0), min(3, len(X) - 1))
    parts = named_splits(data.splits) if has_named_splits(data.splits) else {}
    part = {int(i): name for name, rows in parts.items() for i in rows}
    pairs: dict[tuple[int, int], float] = {}
    for i, (values, others) in enumerate(zip(cosines.tolist(), found.tolist(), strict=True)):
        for value, other in zip(values, others, strict=True):
            if value >= _COPY and other >= 0:
                pairs[min(i, other), max(i, other)] = value
    out = []
    for (i, j), value in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        said = ["different labels"] if data.y is not None and data.y[i] != data.y[j] else []
        if part.get(i) != part.get(j):
            said.append(f"{part.get(i, 'no part')} and {part.get(j, 'no part')}")
        ids = [str(data.row_ids[i]), str(data.row_ids[j])]
        out.append({"kind": "near duplicate", "ids": ids, "score": round(value, 4), "detail": ", ".join(said)})
    return out


def suspects(held: HeldOut, most: int = 50) -> list[dict[str, Any]]:
    """Return images whose label a head that never saw them finds least likely, where it is sure of another class.

    Examples
    --------
    >>> scores = np.array([[0.99, 0.01], [0.4, 0.6]])
    >>> y, said = np.array(["b", "b"]), np.array(["a", "b"])
    >>> held = HeldOut("lda", ["a", "b"], np.array(["1", "2"]), y, said, scores, "")
    >>> [row["ids"] for row in suspects(held)]
    [['1']]
    """
    if held.of_label is None or held.confidence is None:
        return []
    # Sure as the head usually is when it is right: an error at that confidence is the label's as likely as the head's.
    right = held.y == held.predicted
    usual = float(np.median(held.confidence[right])) if right.any() else 1.0
    rows = np.flatnonzero(~right & (held.confidence >= usual))
    rows = rows[np.argsort(held.of_label[rows], kind="stable")][:most]
    return [
        {
            "kind": "label suspect",
            "ids": [str(held.ids[i])],
            "score": round(float(held.confidence[i]), 4),
            "detail": f"labelled {held.y[i]}, looks like {held.predicted[i]}",
        }
        for i in rows.tolist()
    ]


def quick_look(data: FeatureSet, held: HeldOut | None = None) -> list[dict[str, Any]]:
    """Return findings as `featcache.audit` has them: nearly equal codes, and labels that look wrong."""
    return [*duplicates(data), *([] if held is None else suspects(held))]


def audited(data: FeatureSet, images: Any, seed: int) -> Any:
    """Return what `featcache.audit` finds, None where there is none."""
    try:
        room = importlib.import_module("featcache.hygiene")
    except ModuleNotFoundError:
        return None
    return room.audit(data, images=images, seed=seed, progress=False)


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
    blocks: list[Block] = (
        [] if found or notes else [Text("Nothing was found: no near copies, no labels that look wrong.")]
    )
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
