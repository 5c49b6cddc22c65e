"""rank(): which backbone, which layer, from cached codes: leave-one-out accuracies first, other scores beside them."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from ..errors import HeadError
from ..features import FeatureSet
from ..heads.labelled import Rows, as_matrix, name_of
from ..solvers.targets import sign_targets
from ..splits import holdout, whole_number
from .left_out import answerable, knn_left_out, ridge_left_out
from .table import Ranking
from .transferability import h_score, leep, logme
from .trust import TRUST

__all__ = ["is_logits", "rank"]

BY = ("explained", "ridge", "knn")
_METRICS = ("accuracy", "balanced_accuracy")

#: Names of the layer that torchvision's classifiers end in.
_LAST_LAYER = re.compile(r"(fc|head|heads\.head|classifier)(\.\d+)?")
_SOURCE_CLASSES = 1000


@dataclass(frozen=True)
class _Common:
    """The rows that all sets of codes share: training rows only, by id."""

    ids: np.ndarray
    codes: np.ndarray
    groups: np.ndarray | None
    asked: np.ndarray  # mask: rows that some head could get right
    weight: np.ndarray  # of each row in a score, 0 where it is not asked; sums to 1
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
    it. Where the data name test rows, these are never looked at.

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
        Node that holds the source classifier's outputs, for LEEP; such codes are not ranked while there are others.
        "auto": 1000 numbers per image from the layer that torchvision's classifiers end in. None: there is none.
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
        No labels, one class only, sets without images in common, labels that differ, NaN, an unknown word.

    Notes
    -----
    The penalty of ridge is the one of least left-out squared error; k = 20 neighbours by cosine of the centred codes,
    weighted by exp(cosine / 0.07). Leave-one-out is exact, for groups too: the residuals e of a group become
    (I - H)⁻¹ e. Rows whose class lies in one group (or has one row) are not asked.

    Intervals are t intervals over the rows (over the groups, where there are some), for shares with half a row added to
    each outcome (Agresti and Min, Biometrics 2005). Rows left out share their training rows; the variance is 1/n + 1/(n
    - 1) in place of 1/n for it (Nadeau and Bengio, Machine Learning 2003). The best is compared with each other set row
    by row; p is corrected for all pairs there are (Holm), since the best was picked by looking.

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
    _check(by, metric, logits, max_rows)
    sets = _named(data)
    rows = {name: Rows.of(item, on_disk=True).plain() for name, item in sets.items()}
    common = _common(rows, metric, max_rows, seed)
    sources, candidates = _sources(sets, logits)
    found: dict[str, dict[str, Any]] = {}
    contributions: dict[str, dict[str, np.ndarray]] = {}
    for done, name in enumerate(candidates):
        start = time.perf_counter()
        contributions[name], scores = _scored(_matrix(rows[name], common, name), common, metric)
        source = sources.get(sets[name].fingerprint)
        scores["leep"] = None if source is None else leep(_matrix(rows[source], common, source), common.codes)
        found[name] = {**_about(sets[name]), **scores, "seconds": time.perf_counter() - start}
        if progress is not None:
            progress(done + 1, len(candidates), name)
    table = _table(found, contributions, common, by)
    settings = {"by": by, "metric": metric, "logits": logits, "max_rows": max_rows, "seed": seed}
    order = [row["codes"] for row in table]
    comparisons = _comparisons(order, {name: contributions[name][by] for name in order}, common, by)
    notes = [*dict.fromkeys(note for each in rows.values() for note in each.notes), *common.notes]
    if sources:
        notes.append(f"LEEP judges a whole network by its classifier's outputs: {', '.join(sorted(sources.values()))}")
    return Ranking(tuple(table), tuple(comparisons), tuple(notes), settings, TRUST)


def is_logits(data: FeatureSet) -> bool:
    """Return whether codes are the 1000 outputs of a torchvision classifier, by the name of their node."""
    return data.X.shape[1:] == (_SOURCE_CLASSES,) and bool(_LAST_LAYER.fullmatch(data.node))


def _check(by: str, metric: str, logits: str | None, max_rows: int) -> None:
    for name, value, allowed in (("by", by, BY), ("metric", metric, _METRICS)):
        if value not in allowed:
            raise HeadError(f"{name}: expected one of {', '.join(allowed)}, got {value!r}")
    if logits is not None and (not isinstance(logits, str) or not logits):
        raise HeadError(f"logits: expected a node's name, 'auto' or None, got {logits!r}")
    if not whole_number(max_rows, 20):
        raise HeadError(f"max_rows: expected a whole number of 20 or more, got {max_rows!r}")


def _named(data: Any) -> dict[str, FeatureSet]:
    if isinstance(data, Mapping):
        named = {str(name): item for name, item in data.items()}
    else:
        items = list(data) if isinstance(data, (list, tuple)) else [data]
        names = [name_of(item) for item in items]
        nodes = {name: len({item.node for item, n in zip(items, names, strict=True) if n == name}) for name in names}
        named = {}
        for item, name in zip(items, names, strict=True):
            name = f"{name}:{item.node}" if nodes[name] > 1 else name
            n = 2
            while (free := name if n == 2 else f"{name} ({n - 1})") in named:
                n += 1
            named[free] = item
    if not named:
        raise HeadError("data: expected a FeatureSet or several, got none")
    return named


def _common(rows: dict[str, Rows], metric: str, max_rows: int, seed: int) -> _Common:
    """What all sets share; where one names test rows, they are out for all."""
    training = {name: each.training() for name, each in rows.items()}
    first = next(iter(rows))
    ids, notes = rows[first].ids[training[first]], []
    for name, each in rows.items():
        ids = np.intersect1d(ids, each.ids[training[name]])
        if not len(ids):
            raise HeadError(f"{name}: no training image in common with {first}; rank codes of the same images")
    most = max(len(part) for part in training.values())
    if len(ids) < most:
        notes.append(f"{len(ids)} images that all sets have, of {most}")
    y = _labels(rows, ids)
    if len(np.unique(y)) < 2:
        raise HeadError(f"{first}: expected two classes or more among the training rows, got one")
    groups = _groups(rows, ids)
    if len(ids) > max_rows:
        chosen = holdout(y, test_size=max_rows / len(ids), ids=ids, seed=seed)[1]
        notes.append(f"{len(chosen)} of {len(ids)} images drawn, class by class (max_rows)")
        ids, y, groups = ids[chosen], y[chosen], None if groups is None else groups[chosen]
    codes = np.unique(y, return_inverse=True)[1]
    if groups is not None:
        groups = np.unique(groups, return_inverse=True)[1]
        notes.append(f"{len(np.unique(groups))} groups, each left out as a whole")
    asked = answerable(codes, groups)
    if not asked.all():
        unit = "row" if groups is None else "group"
        notes.append(f"{int((~asked).sum())} rows not asked: the only {unit} of their class")
    if len(np.unique(codes[asked])) < 2:
        raise HeadError(f"{first}: expected two classes of two rows (or groups) or more; label more images")
    share = 1.0 / np.bincount(codes[asked], minlength=int(codes.max()) + 1).clip(1)[codes]
    weight = asked * (share if metric == "balanced_accuracy" else 1.0)
    return _Common(ids, codes, groups, asked, weight / weight.sum(), tuple(notes))


def _at(rows: Rows, ids: np.ndarray) -> np.ndarray:
    """Row numbers of some ids."""
    order = np.argsort(rows.ids, kind="stable")
    return order[np.searchsorted(rows.ids[order], ids)]


def _labels(rows: dict[str, Rows], ids: np.ndarray) -> np.ndarray:
    first = next(iter(rows))
    y = rows[first].y[_at(rows[first], ids)]
    for name, each in rows.items():
        if (wrong := int((each.y[_at(each, ids)] != y).sum())) > 0:
            raise HeadError(f"{name}: {wrong} of {len(ids)} images have another label than in {first}; name one column")
    return y


def _groups(rows: dict[str, Rows], ids: np.ndarray) -> np.ndarray | None:
    """Groups of the first set that has some: bursts of one image hold for all of its codes."""
    for each in rows.values():
        if each.groups is not None:
            groups = each.groups[_at(each, ids)]
            return groups if len(np.unique(groups)) < len(groups) else None
    return None


def _sources(sets: dict[str, FeatureSet], logits: str | None) -> tuple[dict[str, str], list[str]]:
    """Return fingerprint → name of its logits, and the names of what is to be ranked."""
    if logits is None:
        return {}, list(sets)
    chosen = [name for name, item in sets.items() if (is_logits(item) if logits == "auto" else item.node == logits)]
    if logits != "auto" and not chosen:
        nodes = ", ".join(sorted({item.node for item in sets.values()} - {""})) or "none that has a name"
        raise HeadError(f"logits: no codes of the node {logits!r}; there are {nodes}")
    sources = {sets[name].fingerprint: name for name in chosen}
    others = {item.fingerprint for name, item in sets.items() if name not in chosen}
    # The outputs are codes, too: a network of which there is nothing else is ranked by them.
    return sources, [name for name, item in sets.items() if name not in chosen or item.fingerprint not in others]


def _matrix(rows: Rows, common: _Common, name: str) -> np.ndarray:
    return as_matrix(rows.X[_at(rows, common.ids)], name)


def _about(data: FeatureSet) -> dict[str, Any]:
    spec = (data.spec or {}).get("backbone", {})
    about = {"backbone": str(spec.get("arch", "")), "node": data.node, "features": int(np.prod(data.X.shape[1:]))}
    return {**about, "extract_seconds": data.extract_seconds}


def _scored(X: np.ndarray, common: _Common, metric: str) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return what each row adds to each of the three scores, and all scores."""
    counts = np.bincount(common.codes).astype(np.float64)
    balanced = metric == "balanced_accuracy"
    targets = sign_targets(counts, balanced=balanced)[common.codes]
    votes = (1.0 / counts if balanced else np.ones_like(counts))[common.codes]
    predicted = {
        "ridge": (ridge_left_out(X, targets, common.groups), targets),
        "knn": (knn_left_out(X, common.codes, common.groups, votes), np.eye(len(counts))[common.codes]),
    }
    hits = {who: (left.argmax(axis=1) == common.codes).astype(np.float64) for who, (left, _) in predicted.items()}
    explained = {who: _explained(left, aims, common.weight) for who, (left, aims) in predicted.items()}
    better = max(explained, key=lambda who: float(common.weight @ explained[who]))
    each = {"explained": explained[better], **hits}
    scores = {name: float(common.weight @ values) for name, values in each.items()}
    scores |= {"logme": logme(X, common.codes), "h_score": h_score(X, common.codes)}
    return each, {**scores, "explained_by": better}


def _explained(left: np.ndarray, aims: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """What each row adds to 1 - squared error over spread."""
    spread = weight @ np.square(aims - weight @ aims).sum(axis=1)
    return 1.0 - np.square(left - aims).sum(axis=1) / float(spread)


def _table(
    found: dict[str, dict[str, Any]], contributions: dict[str, dict[str, np.ndarray]], common: _Common, by: str
) -> list[dict[str, Any]]:
    # Of equals the smaller codes first: they cost less.
    order = sorted(found, key=lambda name: (-found[name][by], found[name]["features"], name))
    table = []
    for place, name in enumerate(order, 1):
        low, high, _ = _interval(contributions[name][by], common, by)
        row = {"codes": name, "rank": place, "score": found[name][by]}
        row["ci95"] = [low, min(1.0, high)] if by == "explained" else [max(0.0, low), min(1.0, high)]
        for who in ("ridge", "knn"):
            low, high, _ = _interval(contributions[name][who], common, who)
            row[f"{who}_ci95"] = [max(0.0, low), min(1.0, high)]
        table.append({**row, **found[name], "n_images": len(common.ids)})
    return table


def _interval(values: np.ndarray, common: _Common, by: str) -> tuple[float, float, float]:
    """Return a 95 % t interval of the weighted mean of what rows add, and the p of its being 0."""
    mean = float(common.weight @ values)
    units = np.flatnonzero(common.asked) if common.groups is None else common.groups[common.asked]
    _, unit = np.unique(units, return_inverse=True)
    sums = np.bincount(unit, (common.weight * (values - mean))[common.asked])
    n = len(sums)
    # Nadeau and Bengio's allowance for draws that share their training rows, 1/n + test/train, at one row left out of
    # n: what other training rows would have given is as uncertain as what other test rows would.
    variance = float(np.square(sums).sum()) * n / max(n - 1, 1) * (1.0 + n / max(n - 1, 1))
    if by != "explained":
        variance += 1.0 / (n + 2) ** 2  # half a row more of each outcome: no difference among 20 rows is not certainty
    error, t = np.sqrt(variance), stats.t(max(n - 1, 1))
    half = float(t.ppf(0.975) * error)
    p = 1.0 if mean == 0 else float(2 * t.sf(abs(mean) / error)) if error > 0 else 0.0
    return mean - half, mean + half, p


def _comparisons(order: list[str], values: dict[str, np.ndarray], common: _Common, by: str) -> list[dict[str, Any]]:
    best = order[0]
    out: list[dict[str, Any]] = []
    for other in order[1:]:
        difference = values[best] - values[other]
        low, high, p = _interval(difference, common, by)
        mean = float(common.weight @ difference)
        out.append({"best": best, "other": other, "difference": mean, "ci95": [low, high], "p": p})
    corrected, pairs = 0.0, len(order) * len(out) // 2  # all pairs: which one is best was seen first
    for place, i in enumerate(sorted(range(len(out)), key=lambda i: out[i]["p"])):  # Holm
        corrected = max(corrected, min(1.0, out[i]["p"] * (pairs - place)))
        out[i] |= {"p": corrected, "distinguishable": corrected < 0.05}
    return out
