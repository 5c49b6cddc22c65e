"""Sums of codes that merge exactly: weights, means and scatter, per class or with targets, from rows in blocks.

Everything is kept around the running mean and merged by the pairwise update of Chan, Golub and LeVeque [1]_, never as
the raw sum of x xᵀ, which loses all digits when the codes lie far from the origin. So rows in any number of chunks, in
any order, on any machine, give the sums of one pass up to rounding, and solutions that follow from sums alone (ridge,
LDA, class means) are those of a refit. One (d, d) matrix is held whatever the number of classes: the scatter within
the classes; that between them follows from the means.

What does not merge in this memory is Ledoit and Wolf's shrinkage of the residuals: their b² needs the fourth powers
Σ|x - m|⁴ around each class's final mean m. When a merge moves a mean by δ, that sum grows by 4 δᵀ S_k δ, S_k the
scatter of the class alone, and nothing smaller than one (d, d) matrix per class gives that for any later δ. The oracle
approximating shrinkage (`oas_share`) needs the traces of S and S² only, and merges.

References
----------
.. [1] T. F. Chan, G. H. Golub, R. J. LeVeque, "Algorithms for computing the sample variance", The American
   Statistician 37 (1983), 242-247.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
from scipy.sparse import csr_array

from ..errors import HeadError
from .blocks import row_blocks

__all__ = ["ClassMoments", "TargetMoments", "merged", "oas_share", "shrunk_scale"]

_Self = TypeVar("_Self", bound="_Moments")


class _Moments:
    """What both kinds share: named arrays that are read in blocks, copied, and written down."""

    _fields: tuple[str, ...]
    scatter: np.ndarray | None

    @property
    def n_features(self) -> int:
        """Length of a code."""
        raise NotImplementedError

    def state(self) -> dict[str, np.ndarray]:
        """Return the sums as plain arrays by name, not copied."""
        return {name: value for name in self._fields if (value := getattr(self, name)) is not None}

    @classmethod
    def from_state(cls: type[_Self], state: dict[str, np.ndarray]) -> _Self:
        """Make sums of what `state` returned; they take the arrays over and change them in place."""
        self = cls.__new__(cls)
        for name in cls._fields:
            setattr(self, name, state.get(name))
        return self

    def copy(self: _Self) -> _Self:
        """Return sums that share no memory with these."""
        return type(self).from_state({name: value.copy() for name, value in self.state().items()})

    def _check(self, other: Any) -> None:
        if type(other) is not type(self) or {n: v.shape for n, v in other.state().items()} != {
            n: v.shape for n, v in self.state().items()
        }:
            raise HeadError(
                f"sums: expected {type(self).__name__} of the same classes (or targets) and {self.n_features} "
                f"features, got {type(other).__name__} of other shapes; bring both to the same classes first"
            )

    def _blocks(
        self, X: Any, y: np.ndarray, weight: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (rows, their y, their weights) in float64, without rows of weight 0."""
        if len(X.shape) != 2 or X.shape[1] != self.n_features or len(y) != X.shape[0]:
            raise HeadError(
                f"sums: expected X of shape (n, {self.n_features}) with n labels, got {tuple(X.shape)} with {len(y)}"
            )
        if weight is not None and (len(weight) != len(y) or not np.all(np.asarray(weight) >= 0)):
            raise HeadError("sums: expected one weight of 0 or more per row; drop or correct the others")
        for rows, block in row_blocks(X, dtype=np.float64):
            heavy = np.ones(len(block)) if weight is None else np.asarray(weight[rows], dtype=np.float64)
            if (heavy > 0).all():
                yield block, y[rows], heavy
            elif (heavy > 0).any():
                yield block[heavy > 0], y[rows][heavy > 0], heavy[heavy > 0]


class ClassMoments(_Moments):
    """Weights, means and scatter of the rows of each class.

    Parameters
    ----------
    n_features : int
        Length of a code, d.
    n_classes : int
        Number of classes, k; `spread_to` adds more later.
    scatter : bool, default=True
        Whether to keep the scatter within the classes; class means alone need k x d numbers only.

    Attributes
    ----------
    rows, weights : ndarray of shape (k,)
        Rows of weight above 0, and the sum of their weights, of each class.
    means : ndarray of shape (k, d)
        Weighted class means; 0 for a class without rows.
    spread : ndarray of shape (k,)
        Weighted sum of the squared distances to the class mean.
    scatter : ndarray of shape (d, d) or None
        Σ w (x - m)(x - m)ᵀ over all rows, m the mean of the row's class.

    Examples
    --------
    >>> whole, part = ClassMoments(1, 2), ClassMoments(1, 2)
    >>> whole.update(np.array([[0.0], [2.0]]), np.array([0, 1]))
    >>> part.update(np.array([[1.0]]), np.array([0]))
    >>> whole.merge(part)
    >>> whole.means.ravel().tolist(), whole.scatter.tolist()
    ([0.5, 2.0], [[0.5]])
    """

    _fields = ("rows", "weights", "means", "spread", "scatter")

    def __init__(self, n_features: int, n_classes: int, *, scatter: bool = True) -> None:
        self.rows, self.weights = np.zeros(n_classes), np.zeros(n_classes)
        self.means = np.zeros((n_classes, n_features))
        self.spread = np.zeros(n_classes)
        self.scatter = np.zeros((n_features, n_features)) if scatter else None

    @property
    def n_features(self) -> int:
        """Length of a code."""
        return self.means.shape[1]

    def spread_to(self, places: np.ndarray, n_classes: int) -> None:
        """Make room for more classes: what was class i becomes class places[i] of n_classes."""
        for name in ("rows", "weights", "means", "spread"):
            old = getattr(self, name)
            new = np.zeros((n_classes, *old.shape[1:]))
            new[places] = old
            setattr(self, name, new)

    def update(self, X: Any, codes: np.ndarray, weight: np.ndarray | None = None) -> None:
        """Add rows.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Anything that gives rows for a slice; it is read once, in blocks.
        codes : ndarray of int of shape (n,)
            Class numbers from 0 to k - 1.
        weight : ndarray of shape (n,), default=None
            Row weights of 0 or more; None: 1.

        Raises
        ------
        HeadError
            Shapes that do not fit, or negative weights.
        """
        codes = np.asarray(codes)
        if len(codes) and not 0 <= codes.min() <= codes.max() < len(self.weights):
            raise HeadError(f"sums: expected class numbers below {len(self.weights)}, got {codes.min()}..{codes.max()}")
        for block, of_block, heavy in self._blocks(X, codes, weight):
            present, local = np.unique(of_block, return_inverse=True)
            n, pivot = len(block), block[0]
            rows = block - pivot  # distances within the codes, not to the origin, keep the digits
            weights = np.bincount(local, heavy)
            sums = csr_array((heavy, local, np.arange(n + 1)), shape=(n, len(present))).T @ rows
            means = sums / weights[:, None]
            rows -= means[local]
            rows *= np.sqrt(heavy)[:, None]
            spread = np.bincount(local, np.einsum("ij,ij->i", rows, rows))
            self.rows[present] += np.bincount(local)
            self._add(present, weights, means + pivot, spread, rows)

    def merge(self, other: ClassMoments) -> None:
        """Add the rows of other sums; theirs stay as they are."""
        self._check(other)
        present = np.flatnonzero(other.weights > 0)
        self.rows += other.rows
        self._add(present, other.weights[present], other.means[present], other.spread[present], None)
        if self.scatter is not None and other.scatter is not None:
            self.scatter += other.scatter

    def _add(
        self, places: np.ndarray, weights: np.ndarray, means: np.ndarray, spread: np.ndarray, rows: np.ndarray | None
    ) -> None:
        total = self.weights[places] + weights
        moved = means - self.means[places]
        between = np.sqrt(self.weights[places] * weights / total)[:, None] * moved
        self.means[places] = np.where(
            self.weights[places, None] > 0, self.means[places] + moved * (weights / total)[:, None], means
        )
        self.weights[places] = total
        self.spread[places] += spread + np.square(between).sum(axis=1)
        if self.scatter is not None:
            # One symmetric product for the rows and the shifts of the means together.
            rows = between if rows is None else np.vstack([rows, between])
            self.scatter += rows.T @ rows

    def subtract(self, other: ClassMoments) -> None:
        """Take rows out again that were added before.

        The error is that of the sums before, so what is left of 10^6 rows after all but ten were taken out has about
        five digits less than a new sum of the ten.

        Raises
        ------
        HeadError
            Sums of other shapes, or more weight than there is.
        """
        self._check(other)
        left = self.weights - other.weights
        if (left < -1e-9 * self.weights).any():
            raise HeadError("sums: expected rows that were added before, got more weight than there is; check the rows")
        left[left <= 1e-9 * self.weights] = 0.0
        kept = left > 0
        means = np.zeros_like(self.means)
        shift = (other.weights[kept] / left[kept])[:, None] * (self.means[kept] - other.means[kept])
        means[kept] = self.means[kept] + shift
        between = np.zeros_like(means)
        factor = left[kept] * other.weights[kept] / self.weights[kept]
        between[kept] = np.sqrt(factor)[:, None] * (other.means[kept] - means[kept])
        spread = self.spread - other.spread - np.square(between).sum(axis=1)
        self.spread = np.where(kept, np.maximum(spread, 0.0), 0.0)
        self.rows = np.where(kept, np.maximum(self.rows - other.rows, 0.0), 0.0)
        self.weights, self.means = left, means
        if self.scatter is not None and other.scatter is not None:
            self.scatter -= other.scatter
            self.scatter -= between.T @ between

    def with_targets(self, table: np.ndarray) -> TargetMoments:
        """Return the sums of the same rows with targets that depend on the class alone.

        Parameters
        ----------
        table : ndarray of shape (k, n_targets)
            The target of each class.
        """
        if self.scatter is None:
            raise HeadError("sums: expected sums with a scatter, got class means alone; make them with scatter=True")
        out = TargetMoments.__new__(TargetMoments)
        total = self.weights.sum()
        share = self.weights / total
        # Two passes: a mean of values far from 0 is only as good as its rounding.
        centre = share @ self.means
        centre += share @ (self.means - centre)
        aim = share @ table
        rows, aims = self.means - centre, table - aim
        rows[self.weights == 0] = 0.0
        heavy = rows * np.sqrt(self.weights)[:, None]
        out.rows, out.weight = np.array([self.rows.sum()]), np.array([total])
        out.mean, out.target = centre, aim
        out.scatter = self.scatter + heavy.T @ heavy
        out.cross = rows.T @ (self.weights[:, None] * aims)
        out.squares = self.weights @ np.square(aims)
        return out


class TargetMoments(_Moments):
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

    def subtract(self, other: TargetMoments) -> None:
        """Take rows out again that were added before; see `ClassMoments.subtract`."""
        self._check(other)
        left = self.weight[0] - other.weight[0]
        if left <= 1e-9 * self.weight[0]:
            raise HeadError("sums: expected fewer rows than there are, got all of them; begin with new sums instead")
        share = other.weight[0] / left
        mean, target = (
            now + share * (now - gone) for now, gone in ((self.mean, other.mean), (self.target, other.target))
        )
        root = np.sqrt(left * other.weight[0] / self.weight[0])
        moved, turned = root * (other.mean - mean), root * (other.target - target)
        self.rows = np.maximum(self.rows - other.rows, 1.0)
        self.weight, self.mean, self.target = np.array([left]), mean, target
        self.scatter -= other.scatter + np.outer(moved, moved)
        self.cross -= other.cross + np.outer(moved, turned)
        self.squares = np.maximum(self.squares - other.squares - np.square(turned), 0.0)


def shrunk_scale(variances: np.ndarray, weight: float, prior_rows: float = 20.0) -> np.ndarray:
    """Return the deviations by which `heads.ShrunkScaler` divides.

    Parameters
    ----------
    variances : ndarray of shape (d,)
        Mean squared deviations of the features.
    weight : float
        Rows (or their weight) that they come from.
    prior_rows : float, default=20.0
        How many rows the mean variance counts for.
    """
    common = float(variances.mean())
    scale = np.sqrt((weight * np.maximum(variances, 0.0) + prior_rows * common) / (weight + prior_rows))
    return np.where(scale > 0, scale, 1.0)


def oas_share(scatter_squares: float, trace: float, n_features: int, degrees: float) -> float:
    """Return the share of the scaled identity by the oracle approximating shrinkage.

    Parameters
    ----------
    scatter_squares, trace : float
        Sum of the squared entries, and of the diagonal, of the scatter of residuals.
    n_features : int
        Side of the matrix.
    degrees : float
        Rows minus estimated means.

    References
    ----------
    Y. Chen, A. Wiesel, Y. C. Eldar, A. O. Hero, "Shrinkage algorithms for MMSE covariance estimation", IEEE
    Transactions on Signal Processing 58 (2010), 5016-5029.
    """
    if trace <= 0.0 or degrees <= 0.0:
        return 1.0
    ratio, d = scatter_squares / trace**2, n_features  # 1/d for a multiple of the identity, 1 for one direction
    distance = (degrees + 1.0 - 2.0 / d) * (ratio - 1.0 / d)
    return float(np.clip(((1.0 - 2.0 / d) * ratio + 1.0) / distance, 0.0, 1.0)) if distance > 0 else 1.0


def merged(parts: Sequence[TargetMoments]) -> TargetMoments:
    """Return the sums of several parts, which stay as they are."""
    whole = parts[0].copy()
    for part in parts[1:]:
        whole.merge(part)
    return whole
