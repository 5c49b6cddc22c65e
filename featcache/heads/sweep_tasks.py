"""What a sweep trains and scores on: folds of rows in memory or of a stream, as weights of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from scipy.stats import rankdata

from ..errors import HeadError, SplitError
from ..solvers.batches import BatchSource, RunningMoments
from ..splits import holdout, k_fold

__all__ = ["RowWeight", "Stream", "SweepTask", "dealt_folds", "held_out_rows", "results"]

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


def held_out_rows(
    codes: np.ndarray, cv: Any, groups: np.ndarray | None, seed: int
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return which row each fold is scored on, (n, folds), and notes; no column where nothing can be held out."""
    pairs: list[tuple[np.ndarray, np.ndarray]] = []
    try:
        if isinstance(cv, Integral):
            folds = k_fold(codes, int(cv), groups=groups, seed=seed)
            pairs, notes = list(folds), tuple(folds.notes)
        else:
            pairs, notes = [holdout(codes, test_size=float(cv), groups=groups, seed=seed)], ()
    except SplitError as error:  # arguments were checked before: what is left is rows that cannot be divided
        notes = (f"first setting of the grid taken untried: {error}",)
    held_out = np.zeros((len(codes), len(pairs)), dtype=bool)
    for fold, (_, rows) in enumerate(pairs):
        held_out[rows, fold] = True
    return held_out, notes


def dealt_folds(cv: Any, seed: int) -> tuple[RowWeight, int]:
    """Return which rows of a stream each fold is scored on, by a hash of their numbers, and how many folds there are.

    A share is the first of so many folds as come nearest to it.
    """
    folds = int(cv) if isinstance(cv, Integral) else max(2, round(1 / float(cv)))
    used = folds if isinstance(cv, Integral) else 1
    return lambda codes, rows: _fold_of(rows, seed, folds)[:, None] == np.arange(used), used


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
    """What one pass over a stream tells: moments, rows per class, batches, the largest one, and what folds hold out.

    `scored` counts the rows of each class that each fold is scored on, (n_classes, folds).
    """

    batches: BatchSource
    moments: RunningMoments
    counts: np.ndarray
    steps: int
    widest: int
    held: RowWeight | None
    scored: np.ndarray

    @classmethod
    def of(
        cls, batches: BatchSource, n_classes: int, n_features: int, held: RowWeight | None = None, folds: int = 1
    ) -> Stream:
        """Read a stream once; HeadError where no head can be trained on it, or its rows have no numbers for folds."""
        moments, counts = RunningMoments(n_features), np.zeros(n_classes, dtype=np.int64)
        scored = np.zeros((n_classes, folds), dtype=np.int64)
        steps, widest = 0, 1
        for batch in batches(0):
            X, codes = np.asarray(batch[0]), np.asarray(batch[1])
            if X.ndim != 2 or X.shape[1] != n_features or codes.shape != X.shape[:1]:
                raise HeadError(
                    f"HeadSweep: expected batches of {n_features} features and a class number a row, got shapes "
                    f"{X.shape} and {codes.shape}"
                )
            moments.add(X)
            counts += _class_counts(codes, n_classes)
            if held is not None:
                if len(batch) < 3:
                    raise HeadError(
                        "HeadSweep: expected batches of (X, codes, rows), to deal folds by row numbers, got "
                        "(X, codes); add them (with_index=True), or give validation="
                    )
                np.add.at(scored, codes, held(codes, batch[2]))
            steps, widest = steps + 1, max(widest, len(codes))
        if not np.isfinite(moments.mean).all() or not np.isfinite(moments.var).all():
            raise HeadError("HeadSweep: the batches hold NaN or Inf; leave those rows out, or extract them again")
        if (counts > 0).sum() < 2:
            raise HeadError(f"HeadSweep: expected rows of two classes or more, got {int((counts > 0).sum())}")
        return cls(batches, moments, counts, steps, widest, held, scored)

    def task(
        self,
        validation: Callable[[], Iterable[tuple[Any, ...]]] | None,
        by_class: np.ndarray | None,
        balanced: bool,
    ) -> SweepTask:
        """Return the task: scored on `validation`, or on the folds."""
        own = None if by_class is None else lambda codes, rows: by_class[codes][:, None]
        train, held, used = own, self.held, self.scored.shape[1]
        if held is not None:
            train = lambda codes, rows: ~held(codes, rows) * (1.0 if own is None else own(codes, rows))  # noqa: E731
        score, loss = held, held
        if own is not None:
            loss = lambda codes, rows: own(codes, rows) * (1.0 if held is None else held(codes, rows))  # noqa: E731
        if balanced:
            # A class counts by the rows that are scored, whatever its share of those trained on.
            scored = self.scored if validation is None else self._counted(validation)
            rare = 1.0 / np.maximum(scored, 1)
            score = lambda codes, rows: rare[codes] * (1.0 if held is None else held(codes, rows))  # noqa: E731
        again = validation or (lambda: self.batches(0))
        apart = balanced or own is not None
        return SweepTask(self.batches, self.steps, self.widest, used, train, again, score, loss, own, apart)

    def _counted(self, validation: Callable[[], Iterable[tuple[Any, ...]]]) -> np.ndarray:
        counts = np.zeros(len(self.counts), dtype=np.int64)
        for batch in validation():
            counts += _class_counts(np.asarray(batch[1]), len(counts))
        return counts[:, None]


def _class_counts(codes: np.ndarray, n_classes: int) -> np.ndarray:
    if len(codes) and (codes.min() < 0 or codes.max() >= n_classes):
        raise HeadError(
            f"HeadSweep: expected class numbers from 0 to {n_classes - 1}, got {codes.min()} … {codes.max()}"
        )
    return np.bincount(codes, minlength=n_classes)


def _fold_of(rows: Any, seed: int, folds: int) -> np.ndarray:
    """Deal row numbers to folds by a hash (the finaliser of SplitMix64), which neighbours do not share."""
    if rows is None:
        raise HeadError("HeadSweep: expected batches of (X, codes, rows) in every epoch, got (X, codes)")
    with np.errstate(over="ignore"):
        mixed = np.asarray(rows, dtype=np.uint64) + np.uint64((seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) % 2**64)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return ((mixed ^ (mixed >> np.uint64(31))) % np.uint64(folds)).astype(np.int64)
