"""The cells of a comparison: all draws of one head on one set of codes, as rows and pairs of a Result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..heads.labelled import Rows
from .draws import Draw
from .intervals import Cell, Difference, differences, interval
from .metrics import SMALLER_IS_BETTER, is_bounded
from .protocol import EvalProtocol
from .running import Run

__all__ = ["Scored", "cell_of", "comparisons", "interval_of", "row_of", "scored", "units_of"]


@dataclass(frozen=True)
class Scored:
    """All draws of one head at one number of shots on one set of codes.

    Parameters
    ----------
    dataset, head : str
        Their names.
    shots : int or "all"
        Rows per class that were asked for.
    draws : list of Draw
        In their order.
    runs : list of Run
        What the head did on each.
    cell : Cell or None
        For intervals; None where the head cannot give the metric.
    """

    dataset: str
    head: str
    shots: int | str
    draws: list[Draw]
    runs: list[Run]
    cell: Cell | None


def scored(rows: Rows, draws: list[Draw], runs: list[Run], head: str, metric: str) -> Scored:
    """Put the runs of one head together."""
    first = draws[0]
    cell = None
    if all(metric in run.values for run in runs):
        cell = cell_of(rows, draws, [run.values[metric] for run in runs], [run.gains for run in runs])
    return Scored(first.dataset, head, first.shots, draws, runs, cell)


def units_of(rows: Rows) -> np.ndarray:
    """Return what rows are resampled by: their group, or themselves where each image is alone (with its views)."""
    if rows.groups is None:
        return rows.ids
    own = rows.groups[rows.standing(np.arange(len(rows.y)))]
    return rows.ids if len(np.unique(own)) == len(own) else rows.groups


def cell_of(rows: Rows, draws: Sequence[Draw], scores: Sequence[float], parts: Sequence[np.ndarray]) -> Cell:
    """Return what intervals are made of: the draws' scores, and of each draw its test rows' contributions."""
    names = units_of(rows)
    tested = np.unique(np.concatenate([names[draw.test] for draw in draws]))
    gains, within = np.zeros((len(draws), len(tested))), np.zeros((len(draws), len(tested)))
    for i, (draw, part) in enumerate(zip(draws, parts, strict=True)):
        place = np.searchsorted(tested, names[draw.test])
        np.add.at(gains[i], place, part / len(draw.test))
        np.add.at(within[i], place, _around_classes(part, rows.y[draw.test]) / len(draw.test))
    overlap = float(np.mean([draw.overlap for draw in draws]))
    return Cell(np.asarray(scores), tested, gains, within, overlap, draws[0].reused)


def _around_classes(gains: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Contributions around the mean of their class, scaled for the freedom that it takes."""
    codes = np.unique(y, return_inverse=True)[1]
    n = np.bincount(codes)
    centred = gains - (np.bincount(codes, gains) / n)[codes]
    return centred * np.sqrt(n / np.maximum(n - 1, 1))[codes]


def row_of(some: Scored, protocol: EvalProtocol, *, extract_seconds: float | None) -> dict[str, Any]:
    """Return the row of a Result."""
    metric, runs, cell = protocol.metric, some.runs, some.cell
    n_train, n_test = (round(float(np.mean([len(getattr(d, part)) for d in some.draws]))) for part in ("train", "test"))
    values = {
        name: float(np.mean([run.values[name] for run in runs])) if all(name in run.values for run in runs) else None
        for name in dict.fromkeys(name for run in runs for name in run.values)
    }
    scores = [] if cell is None else cell.scores.tolist()
    return {
        "dataset": some.dataset,
        "head": some.head,
        "shots": some.shots,
        "metric": metric,
        "mean": None if cell is None else cell.mean,
        "std": float(np.std(scores, ddof=1)) if len(scores) > 1 else None,
        "ci95": [None, None] if cell is None else list(interval_of(cell, metric)),
        "ci_method": "rows and draws crossed" if len(runs) > 1 else "rows of one draw",
        "metrics": values,
        "fit_seconds": float(np.mean([run.seconds for run in runs])),
        "extract_seconds": extract_seconds,
        "n_train": n_train,
        "n_test": n_test,
        "n_images": _images(some),
        "seeds": [draw.seed for draw in some.draws],
        "scores": scores,
    }


def interval_of(cell: Cell, metric: str) -> tuple[float, float]:
    """Return the 95 % interval of a metric's expected value."""
    bounded = is_bounded(metric)
    return interval(cell, bounded=bounded, loss=not bounded)


def comparisons(cells: Sequence[Scored], metric: str, *, across: bool) -> list[dict[str, Any]]:
    """Return the best of some cells of the same draws against each other one.

    Parameters
    ----------
    cells : sequence of Scored
        Those without the metric are left out.
    metric : str
        Which values are better depends on it.
    across : bool
        Whether they are of several sets of codes: then each set's best cell is compared with the best of all.
    """
    cells = [some for some in cells if some.cell is not None]
    if len(cells) < 2:
        return []
    pairs = differences([some.cell for some in cells if some.cell is not None])
    sign = -1.0 if metric in SMALLER_IS_BETTER else 1.0
    rank = [sign * some.cell.mean for some in cells if some.cell is not None]
    best = int(np.argmax(rank))
    others = [i for i in range(len(cells)) if i != best]
    if across:
        sets = dict.fromkeys(cells[i].dataset for i in others if cells[i].dataset != cells[best].dataset)
        others = [max((i for i in others if cells[i].dataset == name), key=lambda i: rank[i]) for name in sets]
    return [_line(cells, best, other, pairs, across) for other in others]


def _images(some: Scored) -> int:
    """How many different images were tested."""
    return len(np.unique(np.concatenate([draw.test for draw in some.draws])))


def _line(
    cells: Sequence[Scored], best: int, other: int, pairs: Mapping[tuple[int, int], Difference], across: bool
) -> dict[str, Any]:
    found, flip = pairs[min(best, other), max(best, other)], 1.0 if best < other else -1.0
    low, high = sorted(flip * bound for bound in found.ci95)
    a, b = cells[best], cells[other]
    return {
        "dataset": a.dataset,
        "shots": a.shots,
        "best": a.head,
        "other": b.head,
        **({"other_dataset": b.dataset} if across else {}),
        "difference": flip * found.mean,
        "ci95": [low, high],
        "ci_method": "paired, rows and draws crossed; all pairs at once (Hothorn, Bretz and Westfall 2008)",
        "p": found.p,
        "p_adjusted": found.p_adjusted,
        "distinguishable": found.distinguishable,
        "n_images": _images(a),
    }
