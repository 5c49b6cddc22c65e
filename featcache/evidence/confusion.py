"""What is taken for what: the matrix or its largest pairs, each class, and the images that show it."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from ..reporting.document import Block, Gallery, Matrix, Picture, Points, Section, Table, Text
from ..reporting.escaping import short
from .held import HeldOut

__all__ = ["class_scores", "confused_pairs", "section"]

#: A matrix with more classes can be read nowhere, least of all on a phone.
MOST_CLASSES = 25
_ROWS = 40


def class_scores(held: HeldOut) -> list[dict[str, Any]]:
    """Return per class: its images, precision, recall, F1, and what it is most often taken for; the worst F1 first.

    Examples
    --------
    >>> y, said = np.array(["a", "a", "b"]), np.array(["a", "b", "b"])
    >>> class_scores(HeldOut("lda", ["a", "b"], y, y, said, None, ""))[0]["recall"]
    0.5
    """
    errors = held.y != held.predicted
    wrong = Counter(zip(held.y[errors].tolist(), held.predicted[errors].tolist(), strict=True))
    support, said = Counter(held.y.tolist()), Counter(held.predicted.tolist())
    right = Counter(held.y[~errors].tolist())
    most: dict[str, tuple[str, int]] = {}
    for (true, other), count in sorted(wrong.items(), key=lambda item: (-item[1], item[0])):
        most.setdefault(true, (other, count))
    out = []
    for name in sorted(set(support) | set(said)):
        precision = right[name] / said[name] if said[name] else 0.0
        recall = right[name] / support[name] if support[name] else 0.0
        f1 = 2 * right[name] / (said[name] + support[name])
        taken, times = most.get(name, ("", 0))
        line = {"class": name, "images": support[name], "precision": precision, "recall": recall, "f1": f1}
        out.append(line | {"taken_for": taken, "times": times})
    return sorted(out, key=lambda line: (line["f1"], line["class"]))


def confused_pairs(held: HeldOut) -> list[dict[str, Any]]:
    """Return unordered pairs of classes by how many images of one are taken for the other, the most first."""
    counts: Counter[tuple[str, str]] = Counter()
    for true, said in zip(held.y.tolist(), held.predicted.tolist(), strict=True):
        if true != said:
            counts[(true, said) if true < said else (said, true)] += 1
    return [{"pair": list(pair), "images": n} for pair, n in sorted(counts.items(), key=lambda i: (-i[1], i[0]))]


def section(held: HeldOut) -> Section:
    """Return the section on errors."""
    pairs, scores = confused_pairs(held), class_scores(held)
    wrong = int((held.y != held.predicted).sum())
    blocks: list[Block] = [
        Text(f"{held.head}, {held.how}: {wrong} of {len(held.y)} images are taken for another class.")
    ]
    if len(held.classes) <= MOST_CLASSES:
        blocks.append(_matrix(held))
    if pairs:
        blocks.append(_pairs(pairs, len(held.classes) <= MOST_CLASSES))
    blocks += [*_examples(held, pairs), _per_class(scores), Points(held.notes)]
    data = {"head": held.head, "how": held.how, "images": len(held.y), "wrong": wrong}
    return Section("errors", "What is mixed up", tuple(blocks), data | {"pairs": pairs, "classes": scores})


def _matrix(held: HeldOut) -> Matrix:
    names = sorted({*held.classes, *held.y.tolist()})
    place = {name: i for i, name in enumerate(names)}
    counts = np.zeros((len(names), len(names)), dtype=int)
    np.add.at(counts, ([place[c] for c in held.y.tolist()], [place[c] for c in held.predicted.tolist()]), 1)
    caption = "Rows are the labels, columns what the head says, by the numbers of the rows; blue is right."
    return Matrix(tuple(names), tuple(tuple(row) for row in counts.tolist()), caption)


def _pairs(pairs: list[dict[str, Any]], with_matrix: bool) -> Block:
    some = pairs[: 5 if with_matrix else 30]
    if with_matrix:
        words = [f"“{short(p['pair'][0])}” and “{short(p['pair'][1])}” ({p['images']})" for p in some]
        return Text("Most often mixed up: " + ", ".join(words) + ".")
    rows = tuple((short(p["pair"][0]), short(p["pair"][1]), str(p["images"])) for p in some)
    caption = f"The {len(some)} pairs that are mixed up most often, of {len(pairs)}: too many classes for a matrix."
    return Table(("class", "and", "images"), rows, caption, (2,))


def _examples(held: HeldOut, pairs: list[dict[str, Any]]) -> list[Block]:
    """Images of the pairs that are mixed up most: three each, the surest errors first."""
    sure = np.zeros(len(held.y)) if held.confidence is None else held.confidence
    pictures: list[Picture] = []
    for pair in pairs[:6]:
        both = np.isin(held.y, pair["pair"]) & np.isin(held.predicted, pair["pair"]) & (held.y != held.predicted)
        rows = np.flatnonzero(both)
        for i in rows[np.argsort(-sure[rows], kind="stable")][:3].tolist():
            lines = [f"{short(held.predicted[i], 22)}?", f"labelled {short(held.y[i], 22)}"]
            if held.confidence is not None:
                lines.append(f"{100 * sure[i]:.0f} % sure")
            pictures.append(Picture(str(held.ids[i]), str(held.ids[i]), tuple(lines), wrong=True))
    return [Gallery(tuple(pictures), "Examples of these pairs, the surest errors of each:")] if pictures else []


def _per_class(scores: list[dict[str, Any]]) -> Table:
    rows = tuple(
        (
            short(line["class"], 48),
            str(line["images"]),
            *(f"{100 * line[name]:.0f} %" for name in ("recall", "precision", "f1")),
            f"{short(line['taken_for'], 32)} ({line['times']})" if line["times"] else "",
        )
        for line in scores[:_ROWS]
    )
    some = f"The {_ROWS} hardest of {len(scores)} classes" if len(scores) > _ROWS else "Each class, the hardest first"
    header = ("class", "images", "recall", "precision", "F1", "taken for")
    caption = (
        f"{some}: the share of its images that is found (recall), and how often it is right when said (precision)."
    )
    return Table(header, rows, caption, (1, 2, 3, 4))
