"""What a sweep trains and scores on: folds of rows in memory or of a stream, as weights of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from scipy.stats import rankdata

from ..errors import HeadError, SplitError
from ..solvers.batches import BatchSource, Moments
from ..splits import holdout, k_fold

__all__ = ["RowWeight", "Stream", "SweepTask", "held_out_rows", "results"]

#: Class numbers, and row numbers or None → weights (n, folds).
RowWeight = Callable[[Any, Any], Any]


@dataclass(frozen=True)
class SweepTask:
    """Where batches come from, what each fold trains on, and what it is scored on."""

    source: BatchSource
    steps: int
    batch_size: int
    folds: int
    train_weight: RowWeight | None
    validation: Callable[[], Iterable[tuple[Any, ...]]]
    score_weight: RowWeight | None
    loss_weight: RowWeight | None
    all_weight: RowWeight | None
    scored_apart: bool
    shift: np.ndarray | None = None
    scale: np.ndarray | None = None


def held_out_rows(codes: np.ndarray, cv: Any, groups: np.ndarray | None, seed: int) -> np.ndarray:
    """Return which row each fold is scored on, (n, folds); no column where nothing can be held out."""
    try:
        if isinstance(cv, Integral):
            pairs = list(k_fold(codes, int(cv), groups=groups, seed=seed))
        else:
            pairs = [holdout(codes, test_size=float(cv), groups=groups, seed=seed)]
    except SplitError:
        pairs = []
    held_out = np.zeros((len(codes), len(pairs)), dtype=bool)
    for fold, (_, rows) in enumerate(pairs):
        held_out[rows, fold] = True
    return held_out


def results(grid: list[dict[str, Any]], score: np.ndarray, loss: np.ndarray, n_iter: np.ndarray) -> dict[str, Any]:
    """Return what GridSearchCV calls `cv_results_`, from tables (settings, folds)."""
    mean = score.mean(axis=1)
    return {
        "params": [dict(params) for params in grid],
        **{f"split{fold}_test_score": score[:, fold].copy() for fold in range(score.shape[1])},
        "mean_test_score": mean,
        "std_test_score": np.where(np.isfinite(mean), np.nan_to_num(score, posinf=0, neginf=0).std(axis=1), np.nan),
        "rank_test_score": rankdata(-np.nan_to_num(mean, nan=-np.inf), method="min").astype(np.int32),
        "mean_test_loss": loss.mean(axis=1),
        "mean_n_iter": n_iter.mean(axis=1),
    }


@dataclass(frozen=True)
class Stream:
    """What one pass over a stream tells: moments, rows per class, batches, the largest one, are rows numbered."""

    batches: BatchSource
    moments: Moments
    counts: np.ndarray
    steps: int
    widest: int
    numbered: bool

    @classmethod
    def of(cls, batches: BatchSource, n_classes: int, n_features: int) -> Stream:
        """Read a stream once; HeadError where no head can be trained on it."""
        moments, counts = Moments(n_features), np.zeros(n_classes, dtype=np.int64)
        steps, widest, numbered = 0, 1, True
        for batch in batches(0):
            X, codes = np.asarray(batch[0]), np.asarray(batch[1])
            if X.ndim != 2 or X.shape[1] != n_features or codes.shape != X.shape[:1]:
                raise HeadError(
                    f"HeadSweep: expected batches of {n_features} features and a class number a row, got shapes "
                    f"{X.shape} and {codes.shape}"
                )
            if len(codes) and (codes.min() < 0 or codes.max() >= n_classes):
                raise HeadError(
                    f"HeadSweep: expected class numbers from 0 to {n_classes - 1}, got {codes.min()} … {codes.max()}"
                )
            moments.add(X)
            counts += np.bincount(codes, minlength=n_classes)
            steps, widest, numbered = steps + 1, max(widest, len(codes)), numbered and len(batch) > 2
        if not np.isfinite(moments.mean).all() or not np.isfinite(moments.var).all():
            raise HeadError("HeadSweep: the batches hold NaN or Inf; leave those rows out, or extract them again")
        if (counts > 0).sum() < 2:
            raise HeadError(f"HeadSweep: expected rows of two classes or more, got {int((counts > 0).sum())}")
        return cls(batches, moments, counts, steps, widest, numbered)

    def task(
        self,
        validation: Callable[[], Iterable[tuple[Any, ...]]] | None,
        cv: Any,
        by_class: np.ndarray | None,
        balanced: bool,
        seed: int,
    ) -> SweepTask:
        """Return the task: scored on `validation`, or on folds dealt by row numbers."""
        own = None if by_class is None else lambda codes, rows: by_class[codes][:, None]
        train, held, used = own, None, 1
        if validation is None:
            if not self.numbered:
                raise HeadError(
                    "HeadSweep: expected batches of (X, codes, rows), to deal folds by row numbers, got (X, codes); "
                    "add them (with_index=True), or give validation="
                )
            folds = int(cv) if isinstance(cv, Integral) else max(2, round(1 / float(cv)))
            used = folds if isinstance(cv, Integral) else 1
            held = lambda codes, rows: _fold_of(rows, seed, folds)[:, None] == np.arange(used)  # noqa: E731
            train = lambda codes, rows: ~held(codes, rows) * (1.0 if own is None else own(codes, rows))  # noqa: E731
        score, loss, again = held, held, validation or (lambda: self.batches(0))
        if own is not None:
            loss = lambda codes, rows: own(codes, rows) * (1.0 if held is None else held(codes, rows))  # noqa: E731
        if balanced:
            rare = 1.0 / np.maximum(_class_counts(again(), held, len(self.counts), used), 1)
            score = lambda codes, rows: rare[codes] * (1.0 if held is None else held(codes, rows))  # noqa: E731
        apart = balanced or own is not None
        return SweepTask(self.batches, self.steps, self.widest, used, train, again, score, loss, own, apart)


def _class_counts(batches: Iterable[tuple[Any, ...]], held: RowWeight | None, n_classes: int, used: int) -> np.ndarray:
    """Rows of each class that each fold is scored on, (n_classes, folds)."""
    counts = np.zeros((n_classes, used))
    for batch in batches:
        codes = np.asarray(batch[1])
        scored = np.ones((len(codes), used)) if held is None else held(codes, batch[2] if len(batch) > 2 else None)
        np.add.at(counts, codes, scored)
    return counts


def _fold_of(rows: Any, seed: int, folds: int) -> np.ndarray:
    """Deal row numbers to folds by a hash (the finaliser of SplitMix64), which neighbours do not share."""
    if rows is None:
        raise HeadError("HeadSweep: expected batches of (X, codes, rows) in every epoch, got (X, codes)")
    with np.errstate(over="ignore"):
        mixed = np.asarray(rows, dtype=np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(folds)).astype(np.int64)
