"""How unlike the training rows a row is: detectors of images that no class of the head was made for."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from ..solvers.moments import ClassMoments
from ..solvers.neighbors import METRICS, nearest, nearest_others, unit_rows
from ..splits import whole_number
from .detecting import Detector, group_folds
from .estimators import ledoit_wolf_share

__all__ = ["KNeighborsDetector", "MahalanobisDetector"]

#: Numbers of a block of distances.
_BLOCK = 1 << 20


class MahalanobisDetector(Detector):
    """Distance from the nearest class mean under one shrunken covariance of all classes.

    Parameters
    ----------
    shrinkage : "auto" or float, default="auto"
        Share of the scaled identity in the covariance, in [0, 1]; "auto": Ledoit and Wolf's formula on the residuals.
        Shares below 1e-4 count as 1e-4, so that the covariance has an inverse.
    relative : bool, default=True
        Subtract the distance from one Gaussian of all rows (with the same identity part): better above all for
        novelties that resemble the classes.
    false_alarm_rate : float, default=0.05
        Share of rows like the training rows that `predict` may call novel, estimated on rows left out; 1 / (n + 1)
        where fewer than 1 / rate - 1 of them were (a note says so).

    Attributes
    ----------
    offset_ : float
        `score_samples` below this is novel.
    left_out_scores_ : ndarray of shape (n_left_out,)
        Scores of the training rows when they are left out, ascending.
    mean_ : ndarray of shape (n_features,)
        Mean of the class means.
    transform_ : ndarray of shape (n_features, rank)
        Takes centred rows to coordinates in which the covariance is the identity.
    basis_ : ndarray of shape (n_features, rank) or None
        Orthonormal columns of the same span; None where there are more rows than features: it is the whole space.
    class_means_ : ndarray of shape (n_classes, rank)
        The means in those coordinates.
    floor_ : float
        The identity part of the covariance: the variance along directions in which the training rows do not vary.
    spans_all_ : bool
        Whether there is no such direction.
    shrinkage_ : float
        The share used.
    background_ : MahalanobisDetector or None
        The Gaussian of all rows; None unless `relative`.
    notes_ : list of str
        With one row per class there is no spread within classes: all rows then count as one class. A single class has
        no background to be relative to. Too few rows, or groups, for the threshold.

    Notes
    -----
    Left-out scores are exact for a covariance whose identity part is held fixed: leaving a row out takes one rank-one
    term from the covariance and moves one mean, which has a closed form. Rows alone in their class are not left out.
    With groups the scores are those of fits to the other folds, of five into which whole groups are dealt.

    References
    ----------
    K. Lee et al., "A simple unified framework for detecting out-of-distribution samples and adversarial attacks",
    NeurIPS 2018, arXiv 1807.03888; J. Ren et al., "A simple fix to Mahalanobis distance for improving near-OOD
    detection", 2021, arXiv 2106.09022 (`relative`).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> MahalanobisDetector().fit(X, y).predict([X[0], X[0] + 3.0]).tolist()
    [1, -1]
    """

    def __init__(
        self, *, shrinkage: str | float = "auto", relative: bool = True, false_alarm_rate: float = 0.05
    ) -> None:
        self.shrinkage = shrinkage
        self.relative = relative
        self.false_alarm_rate = false_alarm_rate

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> MahalanobisDetector:
        """Fit means, covariance and threshold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes, two rows or more.
        y : array-like of shape (n_samples,), default=None
            Labels; None: all rows are one class.
        groups : array-like of shape (n_samples,), default=None
            Rows of one group are left out together when the threshold is set.

        Returns
        -------
        MahalanobisDetector
            Itself.
        """
        self._check_rate()
        share = self.shrinkage
        if share != "auto" and not (isinstance(share, Real) and 0.0 <= float(share) <= 1.0):
            raise ValueError(f"MahalanobisDetector: expected shrinkage 'auto' or a share in [0, 1], got {share!r}")
        X = self._rows(X, reset=True)
        self.notes_: list[str] = []
        codes = self._codes(y, len(X))
        scores, alone = self._fit(X, codes)
        self.background_ = None
        if self.relative and codes.max() == 0:
            self.notes_.append("one class is its own background: distances are not relative")
        elif self.relative:
            self.background_ = MahalanobisDetector(shrinkage=self.shrinkage, false_alarm_rate=self.false_alarm_rate)
            self.background_.n_features_in_, self.background_.notes_ = X.shape[1], []
            # The same identity part for both: else the one with the larger would be nearer to whatever is far away.
            whole = np.zeros(len(X), dtype=np.intp)
            behind, _ = self.background_._fit(X, whole, self.shrinkage_, self.floor_)
            self.background_.background_ = None
            self.background_._set_offset(behind)
            scores = scores - behind
        grouped = None if groups is None else self._held_out_scores(X, codes, groups)
        self._set_offset(scores[~alone] if grouped is None else grouped)
        return self

    def _held_out_scores(self, X: np.ndarray, codes: np.ndarray, groups: Any) -> np.ndarray | None:
        """Scores of rows by fits without their groups; None, with a note, where no group can be left out."""
        if len(groups) != len(X):
            raise ValueError(f"MahalanobisDetector: expected {len(X)} groups (one per row), got {len(groups)}")
        found = []
        for kept, held in group_folds(codes, groups):
            held = held[np.isin(codes[held], codes[kept])]
            if len(held) and len(kept) > 1:
                found.append(clone(self).fit(X[kept], codes[kept]).score_samples(X[held]))
        if found:
            return np.concatenate(found)
        self.notes_.append("no group can be left out: single rows set the threshold, and new rows may seem novel")
        return None

    def _codes(self, y: Any, n: int) -> np.ndarray:
        codes = np.zeros(n, dtype=np.intp) if y is None else np.unique(np.asarray(y), return_inverse=True)[1]
        if codes.shape != (n,):
            raise ValueError(f"MahalanobisDetector: expected {n} labels (one per row), got {len(codes)}")
        if np.bincount(codes).max() < 2:
            self.notes_.append("one row per class: all rows count as one class")
            return np.zeros(n, dtype=np.intp)
        return codes

    def _fit(
        self, X: np.ndarray, codes: np.ndarray, share: float | None = None, floor: float | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Fit the Gaussians; return the left-out scores and which rows are alone in their class."""
        n, d = X.shape
        counts = np.bincount(codes)
        sums = ClassMoments(d, len(counts), scatter=False)
        sums.update(X, codes)
        means = sums.means
        self.mean_ = means.mean(axis=0)
        centred, means = X - self.mean_, means - self.mean_
        residuals = centred - means[codes]
        mu = float(np.square(residuals).sum()) / (n * d)
        if share is None:
            auto = self.shrinkage == "auto"
            share = 1.0 if mu == 0.0 else max(ledoit_wolf_share(residuals) if auto else float(self.shrinkage), 1e-4)
        self.shrinkage_, self.floor_ = share, share * (mu or 1.0) if floor is None else floor
        self.basis_ = _span(centred)
        inside = residuals if self.basis_ is None else residuals @ self.basis_
        values, turn = np.linalg.eigh((1.0 - self.shrinkage_) / n * (inside.T @ inside))
        whiten = turn / np.sqrt(np.maximum(values, 0.0) + self.floor_)
        self.transform_ = whiten if self.basis_ is None else self.basis_ @ whiten
        self.class_means_ = means @ self.transform_
        self.spans_all_ = self.basis_ is None or self.basis_.shape[1] == d
        return self._left_out(centred @ self.transform_, codes, counts, n)

    def _left_out(
        self, rows: np.ndarray, codes: np.ndarray, counts: np.ndarray, n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores of rows in whitened coordinates when each is left out: a downdate of rank one (Sherman, Morrison)."""
        parts = [self._left_out_part(rows[at], codes[at], counts, n) for at in _parts(len(rows), len(counts))]
        return np.concatenate(parts), counts[codes] == 1

    def _left_out_part(self, rows: np.ndarray, codes: np.ndarray, counts: np.ndarray, n: int) -> np.ndarray:
        own = np.arange(len(rows)), codes
        grow = counts[codes] / np.maximum(counts[codes] - 1.0, 1.0)  # by which the distance from the own mean grows
        residuals = rows - self.class_means_[codes]
        squares = _squared_distances(rows, self.class_means_)
        along = np.einsum("ij,ij->i", residuals, rows)[:, None] - residuals @ self.class_means_.T
        squares[own] *= grow**2
        along[own] *= grow
        share = (1.0 - self.shrinkage_) * grow / n
        length = np.einsum("ij,ij->i", residuals, residuals)
        squares += (share / np.maximum(1.0 - share * length, 1e-9))[:, None] * along**2
        return -squares.min(axis=1)

    def score_samples(self, X: Any) -> np.ndarray:
        """Return minus the squared distance from the nearest class, shape (n_samples,); higher is more normal.

        Less that from the Gaussian of all rows where `relative`.
        """
        check_is_fitted(self)
        X = self._rows(X)
        return self._score(X) - (0.0 if self.background_ is None else self.background_._score(X))

    def _score(self, X: np.ndarray) -> np.ndarray:
        centred = X - self.mean_
        rows = centred @ self.transform_
        squares = np.empty(len(rows))
        for at in _parts(len(rows), len(self.class_means_)):
            squares[at] = _squared_distances(rows[at], self.class_means_).min(axis=1)
        if not self.spans_all_:
            beyond = np.square(centred).sum(axis=1) - np.square(centred @ self.basis_).sum(axis=1)
            squares = squares + np.maximum(beyond, 0.0) / self.floor_
        return -squares


def _parts(n: int, width: int) -> list[slice]:
    """Slices of n rows whose blocks of so many columns are small."""
    step = max(1, _BLOCK // width)
    return [slice(start, start + step) for start in range(0, n, step)]


def _span(centred: np.ndarray) -> np.ndarray | None:
    """Orthonormal columns (d, r) that span the rows; None: all directions."""
    n, d = centred.shape
    if n > d:
        return None
    values, vectors = np.linalg.eigh(centred @ centred.T)
    keep = values > max(values[-1], 0.0) * 1e-12
    basis = centred.T @ (vectors[:, keep] / np.sqrt(values[keep]))
    return np.linalg.qr(basis)[0] if basis.size else np.zeros((d, 1))


def _squared_distances(rows: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Squared distances (n, c) without a temporary of (n, c, d)."""
    squares = np.square(rows).sum(axis=1)[:, None] + np.square(means).sum(axis=1) - 2.0 * (rows @ means.T)
    return np.maximum(squares, 0.0)


class KNeighborsDetector(Detector):
    """Distance from the k-th nearest training row.

    Parameters
    ----------
    n_neighbors : int, default=3
        k; at most one less than there are rows.
    metric : {"cosine", "euclidean"}, default="cosine"
        "cosine": Euclidean distance of rows at unit length.
    false_alarm_rate : float, default=0.05
        Share of rows like the training rows that `predict` may call novel, estimated by exact leave-one-out;
        1 / (n + 1) where fewer than 1 / rate - 1 rows were left out (a note says so).

    Attributes
    ----------
    offset_ : float
        `score_samples` below this is novel.
    left_out_scores_ : ndarray of shape (n_samples,)
        Scores of the training rows when they are left out, ascending.
    rows_ : ndarray of shape (n_samples, n_features)
        Training rows, at unit length for cosines, float32 (float64 where they came so).
    n_neighbors_ : int
        The k used.
    notes_ : list of str
        Too few rows, or groups, for the threshold.

    References
    ----------
    Y. Sun et al., "Out-of-distribution detection with deep nearest neighbors", ICML 2022, arXiv 2204.06507.

    Examples
    --------
    >>> X = [[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [1.0, 0.05]]
    >>> KNeighborsDetector(n_neighbors=1).fit(X).predict([[2.0, 0.2], [0.0, 1.0]]).tolist()
    [1, -1]
    """

    _dtypes = (np.float32, np.float64)

    def __init__(self, n_neighbors: int = 3, *, metric: str = "cosine", false_alarm_rate: float = 0.05) -> None:
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.false_alarm_rate = false_alarm_rate

    def fit(self, X: Any, y: Any = None, groups: Any = None) -> KNeighborsDetector:
        """Keep the rows and set the threshold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes, two rows or more.
        y : ignored
            Labels do not matter.
        groups : array-like of shape (n_samples,), default=None
            Rows of one group are left out together when the threshold is set.

        Returns
        -------
        KNeighborsDetector
            Itself.
        """
        self._check_rate()
        if not whole_number(self.n_neighbors, 1):
            raise ValueError(f"KNeighborsDetector: expected n_neighbors of 1 or more, got {self.n_neighbors!r}")
        if self.metric not in METRICS:
            raise ValueError(f"KNeighborsDetector: expected metric among {METRICS}, got {self.metric!r}")
        X = self._rows(X, reset=True)
        self.rows_ = unit_rows(X) if self.metric == "cosine" else np.array(X)
        self.n_neighbors_ = min(int(self.n_neighbors), len(X) - 1)
        self.notes_ = []
        scores = self._left_out(groups)
        if not np.isfinite(scores).any():
            self.notes_.append("no group can be left out: single rows set the threshold, and new rows may seem novel")
            scores = self._left_out(None)
        # With few groups there may be no k rows outside a row's own; those rows say nothing about the threshold.
        self._set_offset(scores[np.isfinite(scores)])
        return self

    def _left_out(self, groups: Any) -> np.ndarray:
        return self._far(nearest_others(self.rows_, self.n_neighbors_, groups=groups, metric=self.metric)[0])

    def score_samples(self, X: Any) -> np.ndarray:
        """Return minus the distance from the k-th nearest training row, shape (n_samples,)."""
        check_is_fitted(self)
        X = self._rows(X)
        X = unit_rows(X) if self.metric == "cosine" else X
        return self._far(nearest(X, self.rows_, self.n_neighbors_, metric=self.metric)[0])

    def _far(self, near: np.ndarray) -> np.ndarray:
        last = near[:, -1].astype(np.float64)
        return -np.sqrt(np.maximum(2.0 - 2.0 * last if self.metric == "cosine" else -last, 0.0))
