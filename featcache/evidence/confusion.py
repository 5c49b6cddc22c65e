"""What is taken for what: the matrix or its largest pairs, each class, and the images that show it."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..evaluation import Evaluation
from ..reporting.document import Block, Gallery, Matrix, Picture, Points, Section, Table, Text
from ..reporting.escaping import short
from .held import HeldOut

__all__ = ["class_scores", "confused_pairs", "section"]

#: A matrix with more classes can be read nowhere, least of all on a phone.
MOST_CLASSES = 25
_ROWS = 40


def class_scores(found: Evaluation) -> list[dict[str, Any]]:
    """Return per class: its images, precision, recall, F1, and what it is most often taken for; the worst F1 first.

    Examples
    --------
    >>> from featcache import FeatureSet, evaluate
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> worst = class_scores(evaluate(FeatureSet(X, y), "centroid", seeds=1, splitter="k-fold"))[0]
    >>> worst["class"], worst["taken_for"], worst["images"]
    ('1', '2', 50)
    """
    wrong = found.confusion - np.diag(np.diag(found.confusion))
    out = []
    for i, line in enumerate(found.per_class):
        if not found.confusion[i].any() and not found.confusion[:, i].any():
            continue  # neither tested nor said
        scores = {name: line[name] or 0.0 for name in ("precision", "recall", "f1")}
        other = int(wrong[i].argmax())
        times = int(wrong[i, other])
        taken = {"taken_for": found.classes[other] if times else "", "times": times}
        out.append({"class": line["class"], "images": line["support"], **scores, **taken})
    return sorted(out, key=lambda line: (line["f1"], line["class"]))


def confused_pairs(found: Evaluation) -> list[dict[str, Any]]:
    """Return unordered pairs of classes by how many images of one are taken for the other, the most first."""
    both = np.triu(found.confusion + found.confusion.T, 1)
    pairs = [([found.classes[i], found.classes[j]], int(both[i, j])) for i, j in np.argwhere(both).tolist()]
    return [{"pair": pair, "images": n} for pair, n in sorted(pairs, key=lambda item: (-item[1], item[0]))]


def section(held: HeldOut) -> Section:
    """Return the section on errors."""
    found = held.evaluation
    pairs, scores = confused_pairs(found), class_scores(found)
    wrong = int((~held.right).sum())
    blocks: list[Block] = [
        Text(
            f"{held.head}, {held.how}: {wrong} of {len(held.y)} images are taken for another class. {_accuracy(found)}"
        )
    ]
    if len(found.classes) <= MOST_CLASSES:
        blocks.append(_matrix(found))
    if pairs:
        blocks.append(_pairs(pairs, len(found.classes) <= MOST_CLASSES))
    blocks += [*_examples(held, pairs), _per_class(scores), Points(found.notes)]
    data = {"head": held.head, "how": held.how, "images": len(held.y), "wrong": wrong}
    return Section("errors", "What is mixed up", tuple(blocks), data | {"pairs": pairs, "classes": scores})


def _accuracy(found: Evaluation) -> str:
    mean, (low, high) = found.metrics["accuracy"]["mean"], found.metrics["accuracy"]["ci95"]
    return f"Accuracy {100 * mean:.1f} % (95 % interval {100 * low:.1f} to {100 * high:.1f} %)."


def _matrix(found: Evaluation) -> Matrix:
    caption = "Rows are the labels, columns what the head says, by the numbers of the rows; blue is right."
    return Matrix(tuple(found.classes), tuple(tuple(row) for row in found.confusion.tolist()), caption)


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
        both = np.isin(held.y, pair["pair"]) & np.isin(held.predicted, pair["pair"]) & ~held.right
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
