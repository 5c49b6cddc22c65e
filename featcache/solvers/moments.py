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

from typing import Any

import numpy as np
from scipy.sparse import csr_array

from ..errors import HeadError
from .sums import Moments
from .targets import TargetMoments

__all__ = ["ClassMoments"]


class ClassMoments(Moments):
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
    >>> whole.means.ravel().tolist(), whole.scatter.round(9).tolist()
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
