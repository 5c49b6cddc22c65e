"""Choosing a metric and its settings on identities that it was not trained on, inside the training identities."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import HeadError, SplitError
from .metrics import CosineMetric, LDAMetric, WCCNMetric, WhiteningMetric, exponent
from .moments import IdentityMoments
from .pairs import identity_folds, make_pairs, pair_counts
from .plda import PLDAMetric
from .rates import Curve, ScoreHistogram, streamed_histogram
from .siamese import SiameseMetric

__all__ = ["AUTO", "METRICS", "Chosen", "check_metric_name", "choose", "make_metric"]

_SHARES = (0.1, 0.3, 0.6, 0.9)

#: name → (class, grid of settings)
METRICS: dict[str, tuple[type[CosineMetric], Mapping[str, Sequence[Any]]]] = {
    "cosine": (CosineMetric, {}),
    "whiten": (WhiteningMetric, {"shrinkage": _SHARES}),
    "wccn": (WCCNMetric, {"shrinkage": _SHARES}),
    "lda": (LDAMetric, {"shrinkage": _SHARES, "n_components": (None, 64)}),
    "plda": (PLDAMetric, {"shrinkage": _SHARES, "n_components": (None, 64)}),
    "siamese": (SiameseMetric, {}),
}

#: What "auto" tries, in the order that wins ties. "siamese" is left out: it takes longest and has not been the best.
AUTO = ("cosine", "whiten", "wccn", "lda", "plda")

#: Pairs of each kind on which a setting is judged in a fold, and rows a fold keeps at most.
_JUDGED = 20_000
_FOLD_ROWS = 4000


@dataclass(frozen=True)
class Chosen:
    """The metric that was chosen and how it does on identities that it was not trained on.

    Parameters
    ----------
    name : str
        A key of `METRICS`.
    params : dict
        Settings.
    eer : float or None
        Mean equal error rate over the folds; None where nothing could be validated.
    tried : tuple of dict
        Each setting tried: metric, params, eer.
    histogram : ScoreHistogram or None
        Scores of all pairs within the folds, of the metric trained on the other folds.
    notes : tuple of str
        What the user should know.
    """

    name: str
    params: dict[str, Any]
    eer: float | None = None
    tried: tuple[dict[str, Any], ...] = ()
    histogram: ScoreHistogram | None = None
    notes: tuple[str, ...] = field(default=())


def check_metric_name(name: Any, known: Sequence[str] = ("auto", *METRICS)) -> str:
    """Return the name, or raise HeadError with the names there are."""
    if not isinstance(name, str) or name not in known:
        raise HeadError(f"metric: expected one of {', '.join(known)}, got {name!r}")
    return name


def make_metric(name: str, *, random_state: int = 0, **params: Any) -> CosineMetric:
    """Build an unfitted metric by its name."""
    cls = METRICS[check_metric_name(name, tuple(METRICS))][0]
    extra = {"random_state": random_state} if name == "siamese" else {}
    return cls(**extra, **params)


@dataclass(frozen=True)
class _Fold:
    """Training moments and the rows to judge on, with pairs that are the same for all settings."""

    moments: IdentityMoments
    rows: np.ndarray
    codes: np.ndarray
    bursts: np.ndarray | None
    first: np.ndarray
    second: np.ndarray
    same: np.ndarray


def choose(
    name: str,
    X: np.ndarray,
    codes: np.ndarray,
    *,
    cv: int = 3,
    groups: np.ndarray | None = None,
    bursts: np.ndarray | None = None,
    random_state: int = 0,
) -> Chosen:
    """Choose metric and settings by the equal error rate on held-out identities.

    Parameters
    ----------
    name : str
        A key of `METRICS`, or "auto" for the best of `AUTO`.
    X : ndarray of shape (n_samples, n_features)
        Rows of the training identities; no other row is looked at.
    codes : ndarray of int of shape (n_samples,)
        Identity of each row.
    cv : int, default=3
        Folds of identities.
    groups, bursts : ndarray of shape (n_samples,), default=None
        See `identity_folds` and `make_pairs`.
    random_state : int, default=0
        Seed of the folds.

    Returns
    -------
    Chosen
        Ties go to the simpler metric. Where nothing can be validated: the cosine for "auto", else fixed settings.
    """
    names = AUTO if name == "auto" else (name,)
    # A fold of one identity has no pair of two.
    wanted = min(cv, max(2, len(np.unique(codes)) // 2))
    try:
        folds = list(_folds(X, codes, wanted, groups, bursts, random_state))
    except SplitError as error:
        folds, why = [], str(error)
    else:
        why = "no fold of identities has pairs of both kinds"
    if len(folds) < 2:
        return Chosen(names[0], {}, notes=(f"fixed settings, nothing to choose on: {why}",))
    tried: list[dict[str, Any]] = []
    best: dict[str, Any] = {"eer": np.inf}
    metrics: list[CosineMetric] = []
    for each in names:
        for params in _settings(each):
            fitted = [make_metric(each, random_state=random_state, **params)._learn_from(f.moments) for f in folds]
            rates = [_judge(metric, fold) for metric, fold in zip(fitted, folds, strict=True)]
            tried.append({"metric": each, "params": params, "eer": float(np.mean(rates))})
            if tried[-1]["eer"] < best["eer"]:  # of equals the first, the simpler one, stays
                best, metrics = tried[-1], fitted
    notes = () if len(folds) == cv else (f"{len(folds)} folds of identities instead of {cv}",)
    histogram = _crossed(metrics, folds)
    return Chosen(best["metric"], best["params"], best["eer"], tuple(tried), histogram, notes)


def _settings(name: str) -> Iterator[dict[str, Any]]:
    grid = METRICS[name][1]
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def _folds(
    X: np.ndarray,
    codes: np.ndarray,
    cv: int,
    groups: np.ndarray | None,
    bursts: np.ndarray | None,
    seed: int,
) -> Iterator[_Fold]:
    power = exponent(X)
    for rows in identity_folds(codes, cv, groups=groups, seed=seed):
        rest = np.setdiff1d(np.arange(len(X)), rows)
        rows = _whole_identities(rows, codes, seed)
        within = None if bursts is None else bursts[rows]
        genuine, impostor = pair_counts(codes[rows], within)
        if not genuine or not impostor or len(np.unique(codes[rest])) < 2:
            continue
        wanted = 2 * min(genuine, _JUDGED)
        pairs = make_pairs(codes[rows], wanted, seed, bursts=within)
        train = np.unique(codes[rest], return_inverse=True)[1]
        moments = IdentityMoments(
            X[rest],
            train,
            power,
            groups=None if groups is None else groups[rest],
            bursts=None if bursts is None else bursts[rest],
        )
        yield _Fold(moments, X[rows], codes[rows], within, pairs.first, pairs.second, pairs.same)


def _whole_identities(rows: np.ndarray, codes: np.ndarray, seed: int) -> np.ndarray:
    """As many whole identities as stay below the limit of rows; they decide a setting as well as more would."""
    if len(rows) <= _FOLD_ROWS:
        return rows
    order = np.random.default_rng([seed, 0x1D5]).permutation(np.unique(codes[rows]))
    sizes = np.bincount(codes[rows])[order]
    kept = order[: max(2, int((np.cumsum(sizes) <= _FOLD_ROWS).sum()))]
    return rows[np.isin(codes[rows], kept)]


def _judge(metric: CosineMetric, fold: _Fold) -> float:
    """Equal error rate of a metric on the identities of a fold that it was not trained on."""
    vectors = metric.transform(fold.rows)
    if vectors.shape[1] * len(fold.same) > 8 * len(vectors) ** 2:  # the whole matrix costs less than gathering rows
        scores = metric.score_matrix(vectors, vectors)[fold.first, fold.second]
    else:
        scores = metric.score_rows(vectors[fold.first], vectors[fold.second])
    return Curve.of(scores[fold.same], scores[~fold.same]).eer()


def _crossed(metrics: Sequence[CosineMetric], folds: Sequence[_Fold]) -> ScoreHistogram:
    """Scores of all pairs within each fold, of the metric trained on the others, as one histogram."""
    parts = [
        streamed_histogram(metric.transform(fold.rows), fold.codes, metric.score_matrix, fold.bursts)
        for metric, fold in zip(metrics, folds, strict=True)
    ]
    low, high = min(p.edges[0] for p in parts), max(p.edges[-1] for p in parts)
    joined = ScoreHistogram(float(low), float(high))
    for part in parts:
        centres = (part.edges[:-1] + part.edges[1:]) / 2
        for kind in (0, 1):
            joined.counts += joined.weigh(joined.bins_of(centres), np.full(len(centres), bool(kind)), part.counts[kind])
    return joined
