"""How unlike the training rows a row is: detectors of images that no class of the head was made for."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ..solvers.neighbors import METRICS, nearest, nearest_others, unit_rows
from ..splits import whole_number
from .estimators import ledoit_wolf_share

__all__ = ["KNeighborsDetector", "MahalanobisDetector"]


class _Detector(OutlierMixin, BaseEstimator):
    """What both share: a threshold from the scores that training rows have when they are left out."""

    offset_: float
    false_alarm_rate: float
    _dtypes: tuple[type, ...] = (np.float64,)  # a squared distance along directions of little spread needs the digits

    def _rows(self, X: Any, *, reset: bool = False) -> np.ndarray:
        return validate_data(self, X, dtype=list(self._dtypes), reset=reset, ensure_min_samples=2 if reset else 1)

    def _set_offset(self, scores: np.ndarray) -> None:
        self.left_out_scores_ = np.sort(scores)
        self.offset_ = _threshold(self.left_out_scores_, float(self.false_alarm_rate))

    def _check_rate(self) -> None:
        rate = self.false_alarm_rate
        if not isinstance(rate, Real) or isinstance(rate, bool) or not 0.0 <= float(rate) < 1.0:
            raise ValueError(f"{type(self).__name__}: expected false_alarm_rate from 0 to below 1, got {rate!r}")

    def score_samples(self, X: Any) -> np.ndarray:
        """Return how normal each row of X is, shape (n_samples,); higher is more normal."""
        raise NotImplementedError

    def decision_function(self, X: Any) -> np.ndarray:
        """Return `score_samples` minus `offset_`, shape (n_samples,); below 0 is novel."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Return 1 for rows like the training rows and -1 for novel ones, shape (n_samples,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)


def _threshold(scores: np.ndarray, rate: float) -> float:
    """Return the score below which at most the share `rate` of ascending scores, and of one more, lies."""
    place = int(np.floor(rate * (len(scores) + 1)))
    return float(scores[max(place - 1, 0)])


class MahalanobisDetector(_Detector):
    """Distance from the nearest class mean under one shrunken covariance of all classes.

    Parameters
    ----------
    shrinkage : "auto" or float, default="auto"
        Share of the scaled identity in the covariance, in [0, 1]; "auto": Ledoit and Wolf's formula on the residuals.
    relative : bool, default=True
        Subtract the distance from one Gaussian of all rows (with the same identity part): better above all for
        novelties that resemble the classes.
    false_alarm_rate : float, default=0.05
        Share of rows like the training rows that `predict` may call novel, estimated on rows left out.

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
    basis_ : ndarray of shape (n_features, rank)
        Orthonormal columns of the same span.
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
        no background to be relative to.

    Notes
    -----
    Left-out scores are exact for a covariance whose identity part is held fixed: leaving a row out takes one rank-one
    term from the covariance and moves one mean, which has a closed form. Rows alone in their class are not left out.

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

    def fit(self, X: Any, y: Any = None) -> MahalanobisDetector:
        """Fit means, covariance and threshold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes, two rows or more.
        y : array-like of shape (n_samples,), default=None
            Labels; None: all rows are one class.

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
        self._set_offset(scores[~alone])
        return self

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
        means = np.eye(len(counts))[codes].T @ X / counts[:, None]
        self.mean_ = means.mean(axis=0)
        centred, means = X - self.mean_, means - self.mean_
        residuals = centred - means[codes]
        mu = float(np.square(residuals).sum()) / (n * d)
        if share is None:
            auto = self.shrinkage == "auto"
            share = 1.0 if mu == 0.0 else max(ledoit_wolf_share(residuals) if auto else float(self.shrinkage), 1e-4)
        self.shrinkage_, self.floor_ = share, share * (mu or 1.0) if floor is None else floor
        self.basis_ = _span(centred)
        inside = residuals @ self.basis_
        values, turn = np.linalg.eigh((1.0 - self.shrinkage_) / n * (inside.T @ inside))
        self.transform_ = self.basis_ @ (turn / np.sqrt(np.maximum(values, 0.0) + self.floor_))
        self.class_means_ = means @ self.transform_
        self.spans_all_ = self.basis_.shape[1] == d
        return self._left_out(centred @ self.transform_, codes, counts, n)

    def _left_out(
        self, rows: np.ndarray, codes: np.ndarray, counts: np.ndarray, n: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores of rows in whitened coordinates when each is left out: a downdate of rank one (Sherman, Morrison)."""
        own = np.arange(len(rows)), codes
        alone = counts[codes] == 1
        grow = counts[codes] / np.maximum(counts[codes] - 1.0, 1.0)  # by which the distance from the own mean grows
        residuals = rows - self.class_means_[codes]
        squares = _squared_distances(rows, self.class_means_)
        along = np.einsum("ij,ij->i", residuals, rows)[:, None] - residuals @ self.class_means_.T
        squares[own] *= grow**2
        along[own] *= grow
        share = (1.0 - self.shrinkage_) * grow / n
        length = np.einsum("ij,ij->i", residuals, residuals)
        squares += (share / np.maximum(1.0 - share * length, 1e-9))[:, None] * along**2
        return -squares.min(axis=1), alone

    def score_samples(self, X: Any) -> np.ndarray:
        """Return minus the squared distance from the nearest class, shape (n_samples,); higher is more normal.

        Less that from the Gaussian of all rows where `relative`.
        """
        check_is_fitted(self)
        X = self._rows(X)
        return self._score(X) - (0.0 if self.background_ is None else self.background_._score(X))

    def _score(self, X: np.ndarray) -> np.ndarray:
        centred = X - self.mean_
        squares = _squared_distances(centred @ self.transform_, self.class_means_).min(axis=1)
        if not self.spans_all_:
            beyond = np.square(centred).sum(axis=1) - np.square(centred @ self.basis_).sum(axis=1)
            squares = squares + np.maximum(beyond, 0.0) / self.floor_
        return -squares


def _span(centred: np.ndarray) -> np.ndarray:
    """Orthonormal columns (d, r) that span the rows."""
    n, d = centred.shape
    if n > d:
        return np.eye(d)
    values, vectors = np.linalg.eigh(centred @ centred.T)
    keep = values > max(values[-1], 0.0) * 1e-12
    basis = centred.T @ (vectors[:, keep] / np.sqrt(values[keep]))
    return np.linalg.qr(basis)[0] if basis.size else np.zeros((d, 1))


def _squared_distances(rows: np.ndarray, means: np.ndarray) -> np.ndarray:
    """Squared distances (n, c) without a temporary of (n, c, d)."""
    squares = np.square(rows).sum(axis=1)[:, None] + np.square(means).sum(axis=1) - 2.0 * (rows @ means.T)
    return np.maximum(squares, 0.0)


class KNeighborsDetector(_Detector):
    """Distance from the k-th nearest training row.

    Parameters
    ----------
    n_neighbors : int, default=3
        k; at most one less than there are rows.
    metric : {"cosine", "euclidean"}, default="cosine"
        "cosine": Euclidean distance of rows at unit length.
    false_alarm_rate : float, default=0.05
        Share of rows like the training rows that `predict` may call novel, estimated by exact leave-one-out.

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
        near, _ = nearest_others(self.rows_, self.n_neighbors_, groups=groups, metric=self.metric)
        scores = self._far(near)
        # With few groups there may be no k rows outside a row's own; those rows say nothing about the threshold.
        self._set_offset(scores[np.isfinite(scores)] if np.isfinite(scores).any() else np.full(1, -np.inf))
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Return minus the distance from the k-th nearest training row, shape (n_samples,)."""
        check_is_fitted(self)
        X = self._rows(X)
        X = unit_rows(X) if self.metric == "cosine" else X
        return self._far(nearest(X, self.rows_, self.n_neighbors_, metric=self.metric)[0])

    def _far(self, near: np.ndarray) -> np.ndarray:
        last = near[:, -1].astype(np.float64)
        return -np.sqrt(np.maximum(2.0 - 2.0 * last if self.metric == "cosine" else -last, 0.0))
