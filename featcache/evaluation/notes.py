"""What the reader of a comparison should know besides the numbers."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import numpy as np

from ..heads.labelled import Rows
from .cells import Scored, units_of
from .draws import Draw
from .intervals import differences

__all__ = ["drawn", "gains_of_views", "notes_of_cell", "notes_of_draws"]


def drawn(rows: Rows, draws: Sequence[Draw]) -> str:
    """Return a digest of ids, labels and groups of all draws: equal where two sets of codes were drawn alike."""
    total = hashlib.sha256()
    columns = (rows.ids, rows.y, units_of(rows))
    for draw in draws:
        for part in (draw.train, draw.test):
            total.update(repr([names[part].tolist() for names in columns]).encode("utf-8", "surrogatepass"))
    return total.hexdigest()


def gains_of_views(sets: Mapping[str, Rows], families: Mapping[tuple[str, int | str], Sequence[Scored]]) -> list[str]:
    """Return what views add to each head, where the same codes without them were compared on the same draws."""
    notes = []
    for (dataset, shots), family in families.items():
        if sets[dataset].images is None:
            continue
        plain = sets[dataset].plain()
        twin = next((n for n, rows in sets.items() if rows.images is None and np.array_equal(rows.X, plain.X)), None)
        if twin is None or drawn(sets[dataset], family[0].draws) != drawn(sets[twin], families[twin, shots][0].draws):
            continue
        for some, other in zip(family, families[twin, shots], strict=True):
            if some.cell is None or other.cell is None:
                continue
            found = differences([some.cell, other.cell])[0, 1]
            notes.append(
                f"{dataset} at {shots}: {some.head} {found.mean:+.4f} against {twin} (95 % interval of the paired "
                f"difference {found.ci95[0]:+.4f} to {found.ci95[1]:+.4f})"
            )
    return notes


def notes_of_cell(rows: Rows, family: Sequence[Scored], metric: str) -> list[str]:
    """Return what is odd about the draws of one number of shots, and about heads on them."""
    draws = family[0].draws
    where = f"{family[0].dataset} at {family[0].shots}"
    return [f"{where}: {note}" for note in (*notes_of_draws(rows, draws), *_of_heads(family, metric))]


def notes_of_draws(rows: Rows, draws: Sequence[Draw]) -> list[str]:
    """Return what is odd about the draws of one number of shots."""
    told = (note for draw in draws for note in (*draw.notes, *(draw.folds.notes if draw.folds else ())))
    notes = list(dict.fromkeys(told))
    if any(draw.folds is None for draw in draws):
        unit = "row" if rows.plain().groups is None else "group"
        notes.append(f"fixed settings, one {unit} per class leaves nothing to choose on")
    if draws[0].shots != "all":
        fewest = min(int(np.unique(rows.y[draw.train], return_counts=True)[1].min()) for draw in draws)
        if fewest < int(draws[0].shots):
            notes.append(f"a class has fewer rows than that, {fewest} at least; it gives all it has")
    unknown = {label for draw in draws for label in np.setdiff1d(rows.y[draw.test], rows.y[draw.train]).tolist()}
    if unknown:
        notes.append(f"{_classes(unknown)} of the test rows not in training, counted as errors")
    absent = {label for draw in draws for label in np.setdiff1d(rows.y[draw.train], rows.y[draw.test]).tolist()}
    if absent:
        notes.append(f"{_classes(absent)} without test rows in some draw")
    return notes


def _of_heads(family: Sequence[Scored], metric: str) -> list[str]:
    notes = []
    for some in family:
        if some.cell is None:
            notes.append(f"{some.head} gives no {metric.replace('_', ' ')}; take a head that gives scores for it")
        if stopped := sum(run.unconverged for run in some.runs):
            notes.append(f"{some.head} stopped {stopped} times before convergence; its score stands, read with care")
    return notes


def _classes(labels: set[str]) -> str:
    return f"{len(labels)} class" + "es" * (len(labels) > 1)
