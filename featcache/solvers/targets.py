"""Sums of codes with numbers to predict, as `moments` keeps those of classes: what ridge regression is solved from."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import HeadError
from .sums import Moments

__all__ = ["TargetMoments", "sign_targets"]


class TargetMoments(Moments):
    """Sums of codes with numbers to predict: regression targets or indicators of several labels.

    Parameters
    ----------
    n_features : int
        Length of a code, d.
    n_targets : int
        Numbers per row, k.

    Attributes
    ----------
    rows, weight : ndarray of shape (1,)
        Rows of weight above 0, and the sum of their weights.
    mean, target : ndarray of shape (d,) and (k,)
        Weighted means of codes and targets.
    scatter : ndarray of shape (d, d)
        Σ w (x - mean)(x - mean)ᵀ.
    cross : ndarray of shape (d, k)
        Σ w (x - mean)(y - target)ᵀ.
    squares : ndarray of shape (k,)
        Σ w (y - target)².

    Examples
    --------
    >>> sums = TargetMoments(1, 1)
    >>> sums.update(np.array([[0.0], [2.0]]), np.array([[1.0], [5.0]]))
    >>> sums.cross.tolist(), sums.squares.tolist()
    ([[4.0]], [8.0])
    """

    _fields = ("rows", "weight", "mean", "target", "scatter", "cross", "squares")

    scatter: np.ndarray

    def __init__(self, n_features: int, n_targets: int) -> None:
        self.rows, self.weight = np.zeros(1), np.zeros(1)
        self.mean, self.target = np.zeros(n_features), np.zeros(n_targets)
        self.scatter, self.cross = np.zeros((n_features, n_features)), np.zeros((n_features, n_targets))
        self.squares = np.zeros(n_targets)

    @property
    def n_features(self) -> int:
        """Length of a code."""
        return len(self.mean)

    def update(self, X: Any, Y: np.ndarray, weight: np.ndarray | None = None) -> None:
        """Add rows X (n, d) with targets Y (n, n_targets) and weights (n,); as `ClassMoments.update`."""
        if Y.ndim != 2 or Y.shape[1] != len(self.target):
            raise HeadError(f"sums: expected targets of shape (n, {len(self.target)}), got {Y.shape}")
        for block, aims, heavy in self._blocks(X, Y, weight):
            total, roots = heavy.sum(), np.sqrt(heavy)[:, None]
            pivot, base = block[0], aims[0].astype(np.float64)
            rows, aims = block - pivot, aims - base
            mean, aim = heavy @ rows / total, heavy @ aims / total
            self.rows += len(block)
            self._add(total, mean + pivot, aim + base, (rows - mean) * roots, (aims - aim) * roots)

    def merge(self, other: TargetMoments) -> None:
        """Add the rows of other sums; theirs stay as they are."""
        self._check(other)
        if other.weight[0] > 0:
            d, k = self.cross.shape
            self.rows += other.rows
            self._add(other.weight[0], other.mean, other.target, np.zeros((0, d)), np.zeros((0, k)))
            self.scatter += other.scatter
            self.cross += other.cross
            self.squares += other.squares

    def _add(self, weight: float, mean: np.ndarray, target: np.ndarray, rows: np.ndarray, aims: np.ndarray) -> None:
        old, total = self.weight[0], self.weight[0] + weight
        root = np.sqrt(old * weight / total)
        moved, turned = mean - self.mean, target - self.target
        rows, aims = np.vstack([rows, root * moved]), np.vstack([aims, root * turned])
        self.mean = self.mean + moved * (weight / total) if old > 0 else mean.copy()
        self.target = self.target + turned * (weight / total) if old > 0 else target.copy()
        self.weight[0] = total
        self.scatter += rows.T @ rows
        self.cross += rows.T @ aims
        self.squares += np.square(aims).sum(axis=0)


def sign_targets(weights: np.ndarray, *, balanced: bool = False) -> np.ndarray:
    """Return the targets of each class, shape (k, k): 1 for its own column, -1 for the others.

    Parameters
    ----------
    weights : ndarray of shape (k,)
        Weight of each class in the rows.
    balanced : bool, default=False
        In each column 1/p for the class itself and -1/(1 - p) for the others, both halved, p the class's share. The
        column then has mean 0, and a rare class, whose ±1 scores hardly leave -1, gets scores as large as the others.
        It needs the weights only at the end, so it merges, where weights of rows that balance the classes do not.
    """
    k = len(weights)
    if not balanced:
        return 2.0 * np.eye(k) - 1.0
    share = np.clip(weights / weights.sum(), 1e-12, 1.0 - 1e-12)
    return np.where(np.eye(k, dtype=bool), 0.5 / share, -0.5 / (1.0 - share))
