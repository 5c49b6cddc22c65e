"""HeadToToeClassifier: the features of several layers that matter, and a plain head on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import validate_data

from ..splits import Folds, whole_number
from .choosing import few_threads, tuning_folds
from .chosen import ChosenHead, Walked, fitted, paired_gain, walk
from .estimators import ShrunkScaler
from .metrics import check_metric
from .paths import estimator_path
from .rows import check_classes
from .zoo import HeadInfo, head_info, make_head

__all__ = ["FRACTIONS", "HeadToToeClassifier", "relevance"]

#: Shares of the features that are tried, all of them first.
FRACTIONS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)


def relevance(X: np.ndarray, y: np.ndarray, alphas: Sequence[float]) -> np.ndarray:
    """Return how much each feature matters: the norm of its weights in a ridge solution on standardised codes.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Codes.
    y : ndarray of int of shape (n,)
        Class codes.
    alphas : sequence of float
        Penalties; exact leave-one-out squared error chooses among them.

    Returns
    -------
    ndarray of shape (d,), float64
        Relevances; 0 for constant features.

    Notes
    -----
    The solution is found among the rows (n × n), so that it takes one pass over the features however many there are.
    """
    classes, codes = np.unique(y, return_inverse=True)
    n = len(codes)
    rows = ShrunkScaler().fit_transform(X)
    rows = rows - rows.mean(axis=0)  # the rounding of float32
    targets = np.where(np.eye(len(classes), dtype=bool)[codes], 1.0, -1.0)
    targets = targets - targets.mean(axis=0)
    values, vectors = np.linalg.eigh(_gram(rows))
    keep = values > max(values[-1], 0.0) * 1e-10
    values, vectors = values[keep], vectors[:, keep]
    moments, squares, best = vectors.T @ targets, np.square(vectors), (np.inf, np.zeros_like(targets))
    for alpha in alphas:
        left_out = targets - vectors @ ((values / (values + alpha))[:, None] * moments)
        left_out = left_out / np.maximum(1.0 - squares @ (values / (values + alpha)) - 1.0 / n, 1e-12)[:, None]
        loss = float(np.square(left_out).sum())
        if loss < best[0]:
            best = (loss, vectors @ (moments / (values + alpha)[:, None]))
    weights = rows.T @ best[1].astype(rows.dtype)
    return np.sqrt(np.square(weights, dtype=np.float64).sum(axis=1))


def _gram(rows: np.ndarray) -> np.ndarray:
    """Inner products of all rows in float64, without a copy of them in it."""
    total = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], 4096):
        part = rows[:, start : start + 4096].astype(np.float64, copy=False)
        total += part @ part.T
    return total


class HeadToToeClassifier(ChosenHead):
    """Keep the share of the features that matters most, chosen by cross-validation, and fit a plain head on them.

    After Head2Toe: codes of many layers lie side by side, most of their features are of no use to the task, and with
    few rows those cost accuracy. A feature's relevance is the norm of its weights over all classes in a ridge solution
    (the paper uses a group lasso's). Relevances, share and the head's own setting are all found inside the training
    rows, and inside each fold.

    Parameters
    ----------
    blocks : sequence of int, default=None
        Sizes of the blocks of columns, one per layer, as ``LayerBlocks.parse(joined.node).sizes``; None: one block.
    fractions : sequence of float, default=(1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01)
        Shares of the features to try, in (0, 1]; the first one stays unless another is clearly better.
    head : str, default="ridge"
        The plain head, a key of `HEADS` other than "auto".
    normalise : bool, default=False
        Whether to bring each block of each row to length one first; `join_layers` has done so.
    guard : float, default=2.0
        Paired standard errors by which a share must beat the first one; 0 takes the best.
    metric : str, default="accuracy"
        "accuracy", "balanced_accuracy" or "macro_f1".
    cv : int, default=5
        Folds; where each class has one row, nothing is chosen and all features stay.
    random_state : int, default=0
        Seed of the folds and of the head.

    Attributes
    ----------
    relevance_ : ndarray of shape (n_features,)
        Relevance of each feature on all rows.
    selected_ : ndarray of int of shape (n_selected,)
        Sorted column numbers that the head uses.
    selected_per_block_ : ndarray of int of shape (n_blocks,)
        How many of them lie in each block.
    fraction_ : float
        The share chosen.
    best_estimator_ : Pipeline
        The plain head, fitted on the selected columns of all rows.
    best_params_ : dict
        "fraction" and the head's own setting.
    best_score_ : float or None
        Their validated metric.
    tried_ : list of dict
        Per share: "fraction", the head's best setting, "score", and "gain" over the first share with its "error".
    classes_ : ndarray of shape (n_classes,)
        Labels.

    References
    ----------
    Evci et al. 2022, "Head2Toe: Utilizing Intermediate Representations for Better Transfer Learning", arXiv 2201.03529.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> y = np.arange(60) % 2
    >>> X = np.column_stack([y[:, None] * 3 + rng.normal(size=(60, 2)), rng.normal(size=(60, 38))])
    >>> model = HeadToToeClassifier(blocks=[2, 38], fractions=[0.05]).fit(X, y)
    >>> model.selected_.tolist(), model.selected_per_block_.tolist()
    ([0, 1], [2, 0])
    """

    def __init__(
        self,
        blocks: Sequence[int] | None = None,
        *,
        fractions: Sequence[float] = FRACTIONS,
        head: str = "ridge",
        normalise: bool = False,
        guard: float = 2.0,
        metric: str = "accuracy",
        cv: int = 5,
        random_state: int = 0,
    ) -> None:
        self.blocks = blocks
        self.fractions = fractions
        self.head = head
        self.normalise = normalise
        self.guard = guard
        self.metric = metric
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> HeadToToeClassifier:
        """Select and fit on X (n_samples, n_features); rows of one group never stand on both sides of a fold."""
        info = self._checked()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classes(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"HeadToToeClassifier: expected two classes or more, got 1 class: {self.classes_[0]!r}")
        sizes = self._sizes(X.shape[1])
        X = self._normalised(X)
        self.tried_: list[dict[str, Any]] = []
        self.best_score_: float | None = None
        self.best_params_ = {"fraction": 1.0, **({info.param: info.default} if info.param else {})}
        folds = tuning_folds(y, X.shape[1], cv=self.cv, ids=None, groups=groups, seed=self.random_state)
        if folds is not None:
            with few_threads(X):
                self._choose(info, X, codes, folds, groups)
        self.fraction_ = float(self.best_params_["fraction"])
        self.relevance_ = relevance(X, codes, _ALPHAS)
        self.selected_ = np.sort(_ranked(self.relevance_)[: _count(self.fraction_, X.shape[1])])
        ends = np.cumsum(sizes)
        self.selected_per_block_ = np.bincount(np.searchsorted(ends, self.selected_, side="right"), minlength=len(ends))
        setting = {info.param: self.best_params_[info.param]} if info.param else {}
        head = make_head(self.head, random_state=self.random_state, **setting)
        self.best_estimator_ = fitted(head, X[:, self.selected_], y, groups)
        return self

    def _checked(self) -> HeadInfo:
        info = head_info(self.head)
        if not isinstance(make_head(self.head), Pipeline):
            raise ValueError(f"HeadToToeClassifier: expected a plain head, such as 'ridge', got {self.head!r}")
        fractions = np.asarray(self.fractions, dtype=float)
        if fractions.ndim != 1 or not len(fractions) or not ((fractions > 0) & (fractions <= 1)).all():
            raise ValueError(f"HeadToToeClassifier: expected fractions in (0, 1], got {self.fractions!r}")
        if not isinstance(self.guard, (int, float)) or not self.guard >= 0:
            raise ValueError(f"HeadToToeClassifier: expected guard of 0 or more, got {self.guard!r}")
        check_metric(self.metric)
        return info

    def _sizes(self, n_features: int) -> list[int]:
        if self.blocks is None:
            return [n_features]
        sizes = list(self.blocks)
        if not sizes or not all(whole_number(s, 1) for s in sizes) or sum(sizes) != n_features:
            raise ValueError(
                f"HeadToToeClassifier: expected blocks that add up to {n_features} features, got {self.blocks!r}"
            )
        return sizes

    def _normalised(self, X: np.ndarray) -> np.ndarray:
        if not self.normalise:
            return X
        X, start = X.copy(), 0
        for size in self._sizes(X.shape[1]):
            part = X[:, start : start + size]
            lengths = np.linalg.norm(part, axis=1, keepdims=True)
            part /= np.where(lengths > 0.0, lengths, 1.0).astype(X.dtype)
            start += size
        return X

    def _choose(self, info: HeadInfo, X: np.ndarray, y: np.ndarray, folds: Folds, groups: Any) -> None:
        """Score each share with the head's grid on the same folds, then ask the guard."""
        truth = np.concatenate([y[held_out] for _, held_out in folds])
        grid = info.grid if info.param else (None,)
        ranks = [_ranked(relevance(X[rows], y[rows], _ALPHAS)) for rows, _ in folds]
        found: list[Walked] = []
        for fraction in self.fractions:
            n = _count(fraction, X.shape[1])
            runs = [
                _path(info, X, y, pair, np.sort(rank[:n]), grid, self.random_state, groups)
                for pair, rank in zip(folds, ranks, strict=True)
            ]
            found.append(walk(zip(*runs, strict=True), len(grid), truth, self.metric, info.patience))
        gains = [paired_gain(truth, self.metric, found[0].hits, one.hits) for one in found]
        best = min(range(len(found)), key=lambda i: (-found[i].score, i))
        gain, error = gains[best]
        chosen = best if found[best].score > found[0].score and gain > self.guard * error else 0
        settings = [{info.param: grid[one.place]} if info.param else {} for one in found]
        self.tried_ = [
            {"fraction": float(fraction), **setting, "score": one.score, "gain": gain, "error": error}
            for fraction, setting, one, (gain, error) in zip(self.fractions, settings, found, gains, strict=True)
        ]
        self.best_params_ = {"fraction": float(self.fractions[chosen]), **settings[chosen]}
        self.best_score_ = found[chosen].score

    def _rows(self, X: Any) -> np.ndarray:
        return self._normalised(super()._rows(X))[:, self.selected_]


#: Penalties of the ridge solution that relevance is read from.
_ALPHAS = tuple(10.0**e for e in range(6, -3, -1))


def _ranked(values: np.ndarray) -> np.ndarray:
    """Column numbers, the most relevant first, of equals the first column first."""
    return np.argsort(-values, kind="stable")


def _count(fraction: float, n_features: int) -> int:
    return max(1, round(float(fraction) * n_features))


def _path(
    info: HeadInfo,
    X: np.ndarray,
    y: np.ndarray,
    pair: Any,
    columns: np.ndarray,
    grid: Sequence[Any],
    seed: int,
    groups: Any,
) -> Any:
    rows, held_out = pair
    whole = len(columns) == X.shape[1]
    part, part_val = (X[r] if whole else X[np.ix_(r, columns)] for r in (rows, held_out))
    if info.path is not None:
        return info.path(part, y[rows], part_val, y[held_out], grid)
    heads = {v: make_head(info.name, random_state=seed, **({} if v is None else {info.param: v})) for v in grid}
    own = None if groups is None else np.asarray(groups)[rows]
    return estimator_path(lambda v: clone(heads[v]), part, y[rows], part_val, grid, own)
