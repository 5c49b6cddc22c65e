"""rank(): which backbone, which layer, from cached codes: leave-one-out accuracies first, other scores beside them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import HeadError
from ..evaluation.intervals import Cell, Difference, differences, interval
from ..features import FeatureSet
from ..solvers.targets import sign_targets
from ..splits import whole_number
from .left_out import hits, knn_left_out, ridge_left_out
from .shared import Shared, is_logits, matrix_of, named, shared_by, sources_of, training_rows
from .table import Ranking
from .transferability import h_score, leep, logme
from .trust import TRUST

__all__ = ["Scores", "is_logits", "paired", "rank", "scored"]

BY = ("explained", "ridge", "knn")
_METRICS = ("accuracy", "balanced_accuracy")


@dataclass(frozen=True)
class Scores:
    """All that is measured of some sets of codes.

    Parameters
    ----------
    found : dict of str to dict
        Per set of codes: the fields of a row of a Ranking.
    cells : dict of str to dict of str to Cell
        Per set of codes and score ("explained", "ridge", "knn"): what intervals are made of.
    n_images : int
        Rows scored.
    notes : tuple of str
        What the reader should know.
    """

    found: dict[str, dict[str, Any]]
    cells: dict[str, dict[str, Cell]]
    n_images: int
    notes: tuple[str, ...]


def rank(
    data: FeatureSet | Mapping[str, FeatureSet] | Sequence[FeatureSet],
    *,
    by: str = "explained",
    metric: str = "accuracy",
    logits: str | None = "auto",
    max_rows: int = 10_000,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Ranking:
    """Rank sets of codes of the same images by how well heads would do on them.

    Each row is predicted by ridge and by its nearest neighbours from all others; rows of its group are left out with
    it. Rows that a split column calls test are never looked at, labelled or not.

    Parameters
    ----------
    data : FeatureSet, mapping of name to FeatureSet, or sequence of FeatureSet
        Codes of several backbones or nodes. What counts are the images that all have, with the same labels.
    by : {"explained", "ridge", "knn"}, default="explained"
        What to sort by. "explained" is the share of the labels' spread (of 0/1 indicators, one per class) that ridge
        or kNN, whichever is better, explains of the rows left out: 1 at best, 0 for guessing the shares of the
        classes. It still tells sets apart where few rows make accuracies equal. "ridge" and "knn" are the accuracies
        of the rows left out.
    metric : {"accuracy", "balanced_accuracy"}, default="accuracy"
        "balanced_accuracy" gives each class the same weight in all three.
    logits : str or None, default="auto"
        Node that holds the source classifier's outputs, for LEEP; such codes are not ranked while there are others of
        their network. "auto": 1000 numbers per image from the layer that torchvision's classifiers end in. None: there
        is none. Codes without a fingerprint, such as plain arrays, have no LEEP: whose outputs are whose is not known.
    max_rows : int, default=10_000
        Of more rows so many are drawn, class by class.
    seed : int, default=0
        Of that draw.
    progress : callable, default=None
        Called as progress(done, total, what) after each set of codes.

    Returns
    -------
    Ranking
        One row per set of codes, best first.

    Raises
    ------
    HeadError
        No labels, no labelled training row, one class only, sets without images in common, labels or groups that
        differ, a set given twice, NaN, an unknown word.

    Notes
    -----
    The penalty of ridge is the one of least left-out squared error; k = 20 neighbours by cosine of the centred codes,
    weighted by exp(cosine / 0.07). Leave-one-out is exact, for groups too: the residuals e of a group become
    (I - H)⁻¹ e. Rows whose class lies in one group (or has one row) are not asked. Where m classes have the same score,
    a row counts as 1/m right, so that codes that say nothing are as good as chance.

    Intervals and tests are those of `compare`, of one draw that tests all rows: Wilson's interval with the number of
    rows (of groups, where there are some) that would give the variance; all pairs of sets compared at once, row by row.
    Rows left out share their training rows; the variance is 1/n + 1/(n - 1) in place of 1/n for it (Nadeau and Bengio,
    Machine Learning 2003).

    References
    ----------
    LogME: You et al., ICML 2021. H-score, shrunken: Ibrahim et al., ECML PKDD 2022. LEEP: Nguyen et al., ICML 2020.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> ranking = rank({"upper half": FeatureSet(X[:, :32], y), "all": FeatureSet(X, y)})
    >>> [row["codes"] for row in ranking.rows], ranking.comparisons[0]["distinguishable"]
    (['all', 'upper half'], True)
    """
    _check(by, metric, logits, max_rows, seed)
    sets = named(data)
    sources, candidates = sources_of(sets, logits)
    scores = scored(sets, candidates, sources, metric, max_rows, seed, progress)
    # Of equals the smaller codes first: they cost less.
    order = sorted(candidates, key=lambda name: (-scores.found[name][by], scores.found[name]["features"], name))
    rows = [
        {"codes": name, "rank": place, "score": scores.found[name][by], **_intervals(scores.cells[name], by)}
        | {**scores.found[name], "n_images": scores.n_images}
        for place, name in enumerate(order, 1)
    ]
    notes = list(scores.notes)
    if sources:
        notes.append(f"LEEP judges a whole network by its classifier's outputs: {', '.join(sorted(sources.values()))}")
    settings = {"by": by, "metric": metric, "logits": logits, "max_rows": max_rows, "seed": seed}
    return Ranking(tuple(rows), tuple(_comparisons(order, scores, by)), tuple(notes), settings, TRUST)


def scored(
    sets: Mapping[str, FeatureSet],
    candidates: Sequence[str],
    sources: Mapping[str, str],
    metric: str = "accuracy",
    max_rows: int = 10_000,
    seed: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> Scores:
    """Score the candidates among some sets of codes; `sources` is fingerprint → the set with its logits."""
    rows = {name: training_rows(item) for name, item in sets.items()}
    shared = shared_by(rows, metric, max_rows, seed)
    found: dict[str, dict[str, Any]] = {}
    cells: dict[str, dict[str, Cell]] = {}
    for done, name in enumerate(candidates):
        start = time.perf_counter()
        each, scores = _scored(matrix_of(rows[name], shared, name), shared)
        cells[name] = {who: _cell(values, shared) for who, values in each.items()}
        source = sources.get(sets[name].fingerprint)
        scores["leep"] = None if source is None else leep(matrix_of(rows[source], shared, source), shared.codes)
        found[name] = {**_about(sets[name]), **scores, "seconds": time.perf_counter() - start}
        if progress is not None:
            progress(done + 1, len(candidates), name)
    notes = (*dict.fromkeys(note for each in rows.values() for note in each.notes), *shared.notes)
    return Scores(found, cells, len(shared.ids), notes)


def paired(scores: Scores, names: Sequence[str], by: str) -> dict[tuple[str, str], Difference]:
    """Return the first less the second of each pair of sets, in either order, all pairs compared at once."""
    pairs = differences([scores.cells[name][by] for name in names]) if len(names) > 1 else {}
    out = {(names[i], names[j]): found for (i, j), found in pairs.items()}
    for (one, other), d in list(out.items()):
        out[other, one] = Difference(-d.mean, (-d.ci95[1], -d.ci95[0]), d.p, d.p_adjusted)
    return out


def _check(by: str, metric: str, logits: str | None, max_rows: int, seed: int) -> None:
    for name, value, allowed in (("by", by, BY), ("metric", metric, _METRICS)):
        if value not in allowed:
            raise HeadError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    if logits is not None and (not isinstance(logits, str) or not logits):
        raise HeadError(f"logits: expected a node's name, 'auto' or None, got {logits!r}")
    for name, number, least in (("max_rows", max_rows, 20), ("seed", seed, 0)):
        if not whole_number(number, least):
            raise HeadError(f"{name}: expected a whole number of {least} or more, got {number!r}")


def _about(data: FeatureSet) -> dict[str, Any]:
    spec = (data.spec or {}).get("backbone", {})
    about = {"backbone": str(spec.get("arch", "")), "node": data.node, "features": int(np.prod(data.X.shape[1:]))}
    return {**about, "extract_seconds": data.extract_seconds}


def _scored(X: np.ndarray, shared: Shared) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what each row adds to each of the three scores, and all scores."""
    counts = np.bincount(shared.codes).astype(np.float64)
    targets = sign_targets(counts, balanced=shared.balanced)[shared.codes]
    votes = (1.0 / counts if shared.balanced else np.ones_like(counts))[shared.codes]
    predicted = {
        "ridge": (ridge_left_out(X, targets, shared.groups), targets),
        "knn": (knn_left_out(X, shared.codes, shared.groups, votes), np.eye(len(counts))[shared.codes]),
    }
    explained = {who: _explained(left, aims, shared.weight) for who, (left, aims) in predicted.items()}
    better = max(explained, key=lambda who: float(shared.weight @ explained[who]))
    right = {who: hits(left, shared.codes) for who, (left, _) in predicted.items()}
    scores: dict[str, Any] = {
        who: _mean(values, shared) for who, values in {**right, "explained": explained[better]}.items()
    }
    scores |= {"logme": logme(X, shared.codes), "h_score": h_score(X, shared.codes)}
    return {"explained": explained[better], **right}, {**scores, "explained_by": better}


def _mean(values: np.ndarray, shared: Shared) -> float:
    """The weighted mean; weights sum to 1 but for rounding, and all right is 1."""
    return round(float(shared.weight @ values), 12)


def _explained(left: np.ndarray, aims: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What each row adds to 1 - squared error over spread."""
    spread = weight @ np.square(aims - weight @ aims).sum(axis=1)
    return 1.0 - np.square(left - aims).sum(axis=1) / float(spread)


def _cell(values: np.ndarray, shared: Shared) -> Cell:
    """One draw that tests all rows asked; what rows (or groups) add to the weighted mean is wider by the allowance.

    Nadeau and Bengio's allowance for draws that share their training rows is 1/n + test/train, here one row left out of
    n: what other training rows would have given is as uncertain as what other test rows would.
    """
    asked = shared.asked
    units = np.flatnonzero(asked) if shared.groups is None else shared.groups[asked]
    tested, unit = np.unique(units, return_inverse=True)
    mean = _mean(values, shared)
    middle = np.full(len(values), mean)
    if shared.balanced:  # as `compare`: each class around its own recall
        totals = np.bincount(shared.codes, shared.weight)
        middle = (np.bincount(shared.codes, shared.weight * values) / np.where(totals > 0, totals, 1))[shared.codes]
    gains = np.bincount(unit, (shared.weight * (values - middle))[asked])[None, :]
    n = len(tested)
    gains = gains * np.sqrt(1.0 + n / max(n - 1, 1))
    return Cell(np.asarray([mean]), tested, gains, gains, 0.0, reused=False)


def _intervals(cells: Mapping[str, Cell], by: str) -> dict[str, list[float]]:
    low, high = interval(cells["explained"], bounded=False)
    out = {
        "explained": [low, min(1.0, high)],
        **{who: list(interval(cells[who])) for who in ("ridge", "knn")},
    }
    return {"ci95": out[by], "ridge_ci95": out["ridge"], "knn_ci95": out["knn"]}


def _comparisons(order: list[str], scores: Scores, by: str) -> list[dict[str, Any]]:
    pairs = paired(scores, order, by)
    return [
        {
            "best": order[0],
            "other": other,
            "difference": pairs[order[0], other].mean,
            "ci95": list(pairs[order[0], other].ci95),
            "ci_method": "paired by row; all pairs at once (Hothorn, Bretz and Westfall 2008)",
            "p": pairs[order[0], other].p,
            "p_adjusted": pairs[order[0], other].p_adjusted,
            "distinguishable": pairs[order[0], other].distinguishable,
            "n_images": scores.n_images,
        }
        for other in order[1:]
    ]
