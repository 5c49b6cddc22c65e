"""What the data are: images, classes, groups, splits, and some images of each class."""

from __future__ import annotations

import numpy as np

from ..features import FeatureSet
from ..reporting.document import Block, Facts, Gallery, Picture, Points, Section, Table
from ..reporting.escaping import short
from ..splits import generator_for, has_named_splits, named_splits

__all__ = ["class_counts", "examples", "section"]

_ROWS = 40
_EXAMPLES = 24


def class_counts(data: FeatureSet) -> dict[str, int]:
    """Return class → number of images, the largest first.

    Examples
    --------
    >>> class_counts(FeatureSet(np.zeros((3, 1)), ["b", "a", "b"]))
    {'b': 2, 'a': 1}
    """
    if data.y is None:
        return {}
    names, counts = np.unique(data.y[data.y != ""], return_counts=True)
    return {str(names[i]): int(counts[i]) for i in np.argsort(-counts, kind="stable").tolist()}


def examples(data: FeatureSet, n: int = _EXAMPLES, *, seed: int = 0) -> np.ndarray:
    """Draw n images (row numbers), class after class in turn; the same for the same ids and seed."""
    order = generator_for(seed, "examples").permutation(len(data))
    labels = np.zeros(len(data), dtype="U1") if data.y is None else data.y
    turn: dict[str, int] = {}
    rounds = []
    for i in order.tolist():
        rounds.append(turn.get(labels[i], 0))
        turn[labels[i]] = rounds[-1] + 1
    first = order[np.argsort(np.asarray(rounds), kind="stable")][:n]
    return first[np.argsort(labels[first], kind="stable")]


def _notes(data: FeatureSet, counts: dict[str, int]) -> list[str]:
    notes = []
    if unlabelled := int((~data.labelled).sum()):
        notes.append(f"{unlabelled} images have no label: they are in the map and among the neighbours only.")
    if not counts:
        return notes
    most, least = max(counts.values()), min(counts.values())
    if most >= 3 * least:
        notes.append(
            f"Classes differ in size ({least} to {most} images): look at balanced accuracy or the table per class, too."
        )
    if least < 10:
        few = sum(n < 10 for n in counts.values())
        notes.append(
            f"{few} class{'es have' if few > 1 else ' has'} fewer than 10 images: what is said of them is vague."
        )
    if data.groups is None:
        notes.append(
            "No groups are named: where several images show one thing (patient, burst), name them with --group."
        )
    return notes


def section(data: FeatureSet, *, seed: int = 0, pictures: bool = True) -> Section:
    """Return the section on the data (images only, see `plain_images`), with or without examples."""
    counts = class_counts(data)
    values = list(counts.values())
    pairs = [("images", f"{len(data):,}"), ("classes", f"{len(counts):,}")]
    if values:
        pairs.append(("images per class", f"{min(values):,} to {max(values):,}, median {int(np.median(values)):,}"))
    if data.groups is not None:
        named = data.groups[data.groups != ""]
        pairs.append(("groups", f"{len(np.unique(named)):,} ({len(named):,} images in them)"))
    if has_named_splits(data.splits):
        parts = named_splits(data.splits)
        pairs.append(("parts", ", ".join(f"{part} {len(rows):,}" for part, rows in parts.items())))
    pairs.append(("features", f"{int(np.prod(data.X.shape[1:])):,} per image, node {data.node or 'not recorded'}"))
    rows = tuple((short(name, 48), f"{n:,}", f"{100 * n / sum(values):.1f} %") for name, n in counts.items())
    caption = f"The {_ROWS} largest of {len(rows)} classes" if len(rows) > _ROWS else "Images per class"
    blocks: list[Block] = [Facts(tuple(pairs)), Points(tuple(_notes(data, counts)))]
    if pictures:
        blocks.append(_gallery(data, max(_EXAMPLES, min(2 * len(counts), 30)), seed))
    if rows:
        blocks.append(Table(("class", "images", "share"), rows[:_ROWS], caption, (1, 2)))
    return Section("data", "The data", tuple(blocks), {"images": len(data), "classes": counts})


def _gallery(data: FeatureSet, n: int, seed: int) -> Gallery:
    labels = np.full(len(data), "") if data.y is None else data.y
    pictures = tuple(
        Picture(str(data.row_ids[i]), str(data.row_ids[i]), (short(labels[i], 24) or "(no label)",))
        for i in examples(data, n, seed=seed).tolist()
    )
    return Gallery(pictures, f"{len(pictures)} images drawn by seed {seed}, class after class:")
