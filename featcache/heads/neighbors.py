"""CosineKNeighborsClassifier: a vote of the nearest rows, k and temperature chosen by exact leave-one-out."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import check_is_fitted, validate_data

from ..solvers.blocks import row_blocks
from ..solvers.neighbors import METRICS, nearest, nearest_others, unit_rows
from ..splits import whole_number
from .approximate import approximate_nearest
from .rows import check_classes

__all__ = ["NEIGHBORS_GRID", "TEMPERATURE_GRID", "CosineKNeighborsClassifier"]

#: What "auto" tries.
NEIGHBORS_GRID = (1, 3, 5, 10, 20, 50, 100, 200)
TEMPERATURE_GRID = (0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)

#: What "auto" takes where no row can be left out: with one row per class.
_ONE_SHOT = (1, 0.07)

_VOTES_BYTES = 32 << 20


class CosineKNeighborsClassifier(ClassifierMixin, BaseEstimator):
    """Vote of the k nearest training rows by cosine, weighted by the softmax of their similarities over a temperature.

    Parameters
    ----------
    n_neighbors : "auto" or int, default="auto"
        Rows that vote; at most all of them do. "auto" chooses among 1, 3, 5, 10, 20, 50, 100 and 200 by exact
        leave-one-out on the training rows: by accuracy, then by log loss, then the larger k.
    temperature : "auto" or float, default="auto"
        T of the weights exp(similarity / T); "auto" chooses together with k, from 0.01 to 0.5. DINO takes 0.07.
        Other weights do not use it.
    weights : {"softmax", "uniform", "distance"}, default="softmax"
        "distance": 1 / distance, as scikit-learn's; rows at distance 0 then outvote all others.
    metric : {"cosine", "euclidean"}, default="cosine"
        With "euclidean" the similarity is 1 - d² / (2 v), v the mean squared distance of the training rows from their
        mean, so that temperatures mean the same.
    search : {"exact", "approximate"}, default="exact"
        "approximate" looks into the likeliest cells of an inverted file only (faiss, the extra "ann"): for more than
        10^6 rows.
    class_weight : dict, "balanced" or None, default=None
        Weight of a vote by its label, and of a row left out; "balanced" is n_samples / (n_classes * count).
    device : str, default=None
        Torch device of the exact search; None: NumPy.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels.
    n_neighbors_ : int
        The k used.
    temperature_ : float
        The T used.
    scale_ : float
        The v of the metric; 1.0 for cosines.
    loo_score_, loo_log_loss_ : float or None
        Accuracy and mean log loss of the chosen pair on the rows left out; None where nothing was chosen.
    rows_ : ndarray of shape (n_samples, n_features)
        Training rows, at unit length for cosines, float32 (float64 where they came so).
    codes_ : ndarray of shape (n_samples,)
        Their positions in `classes_`.
    groups_ : ndarray of int or None
        Their groups; rows of one group are left out together.

    Notes
    -----
    Probabilities are (k v + 1 / n_classes) / (k + 1), v the share of the votes: one vote more, spread over all classes,
    so that no probability is 0. Above 10,000 rows leave-one-out asks for that many evenly spaced
    rows, above 10^5 for 10^9 / n of them, at least 1,000.

    References
    ----------
    M. Oquab et al., "DINOv2: Learning robust visual features without supervision", arXiv 2304.07193 (k in 10 to 200,
    T = 0.07); Z. Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", CVPR 2018.

    Examples
    --------
    >>> X = [[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0]]
    >>> CosineKNeighborsClassifier().fit(X, ["a", "a", "b", "b"]).predict([[5.0, 1.0]]).tolist()
    ['a']
    """

    def __init__(
        self,
        n_neighbors: str | int = "auto",
        *,
        temperature: str | float = "auto",
        weights: str = "softmax",
        metric: str = "cosine",
        search: str = "exact",
        class_weight: Any = None,
        device: str | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.temperature = temperature
        self.weights = weights
        self.metric = metric
        self.search = search
        self.class_weight = class_weight
        self.device = device

    def fit(self, X: Any, y: Any, groups: Any = None) -> CosineKNeighborsClassifier:
        """Keep the rows and choose what is to be chosen.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes.
        y : array-like of shape (n_samples,)
            Labels.
        groups : array-like of shape (n_samples,), default=None
            Rows of one group never vote on each other while k and T are chosen.

        Returns
        -------
        CosineKNeighborsClassifier
            Itself.

        Raises
        ------
        ValueError
            One class only, settings out of range, NaN or Inf in X.
        """
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        check_classes(y)
        self.classes_, self.codes_ = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__}: expected two classes or more, got 1 class: {self.classes_[0]!r}")
        self.groups_ = None if groups is None else self._group_codes(groups, len(X))
        self.rows_ = self._prepared(X)
        return self._choose()

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> CosineKNeighborsClassifier:
        """Append rows, exactly as if they had been there from the start; "auto" chooses anew.

        Parameters
        ----------
        X, y : array-like
            As in `fit`.
        classes : array-like of shape (n_classes,), default=None
            All labels there will be; needed at the first call only.

        Returns
        -------
        CosineKNeighborsClassifier
            Itself.
        """
        first = not hasattr(self, "rows_")
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64], reset=first)
        check_classes(y)
        if first:
            self.classes_ = np.unique(y if classes is None else classes)
            self.codes_, self.groups_ = np.zeros(0, dtype=np.int64), None
            if len(self.classes_) < 2:
                raise ValueError(f"{type(self).__name__}: expected two classes or more; give all labels in classes")
        elif self.groups_ is not None:
            raise ValueError(f"{type(self).__name__}: rows cannot be appended to rows with groups; fit them together")
        if len(unknown := np.setdiff1d(y, self.classes_)):
            raise ValueError(f"{type(self).__name__}: expected labels among classes, got {unknown[:3].tolist()}")
        rows = self._prepared(X)
        self.rows_ = rows if first else np.concatenate([self.rows_, rows])
        self.codes_ = np.concatenate([self.codes_, np.searchsorted(self.classes_, y)])
        return self._choose()

    def kneighbors(self, X: Any, n_neighbors: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return distances (1 - cosine, or Euclidean) and row numbers of the nearest training rows.

        Parameters
        ----------
        X : array-like of shape (n_queries, n_features)
            Codes.
        n_neighbors : int, default=None
            How many; None: `n_neighbors_`.

        Returns
        -------
        distances, rows : ndarray of shape (n_queries, n_neighbors)
            Nearest first; of equally near rows the smaller number first.
        """
        check_is_fitted(self)
        k = self.n_neighbors_ if n_neighbors is None else n_neighbors
        if not whole_number(k, 1) or k > len(self.rows_):
            raise ValueError(f"kneighbors: expected n_neighbors from 1 to {len(self.rows_)}, got {k!r}")
        near, rows = self._nearest(self._queries(X), int(k))
        return (1.0 - near if self.metric == "cosine" else np.sqrt(-near)), rows

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return smoothed shares of the votes, shape (n_samples, n_classes); rows sum to 1."""
        check_is_fitted(self)
        X = self._queries(X)
        k, c = self.n_neighbors_, len(self.classes_)
        found = np.empty((len(X), c))
        weight = self._class_weights()
        step = max(1, _VOTES_BYTES // (8 * max(c, k)))
        for start in range(0, len(X), step):
            part = slice(start, start + step)
            near, rows = self._nearest(X[part], k)
            votes = self._vote_weights(self._similarity(near), near, self.temperature_) * weight[self.codes_[rows]]
            found[part] = _smoothed(_counted(votes, self.codes_[rows], c), k)
        return found

    def predict(self, X: Any) -> np.ndarray:
        """Return the class of most votes, shape (n_samples,); of equals the first in `classes_`."""
        best = self.predict_proba(X).argmax(axis=1)
        return self.classes_[best]

    def _check_settings(self) -> None:
        who = type(self).__name__
        for name, allowed in (
            ("weights", ("softmax", "uniform", "distance")),
            ("metric", METRICS),
            ("search", ("exact", "approximate")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{who}: expected {name} among {allowed}, got {getattr(self, name)!r}")
        if self.n_neighbors != "auto" and not whole_number(self.n_neighbors, 1):
            raise ValueError(f"{who}: expected n_neighbors 'auto' or a whole number above 0, got {self.n_neighbors!r}")
        T = self.temperature
        if T != "auto" and not (isinstance(T, Real) and not isinstance(T, bool) and 0 < float(T) < np.inf):
            raise ValueError(f"{who}: expected temperature 'auto' or a finite number above 0, got {T!r}")

    def _group_codes(self, groups: Any, n: int) -> np.ndarray:
        codes = np.unique(np.asarray(groups), return_inverse=True)[1]
        if codes.shape != (n,):
            raise ValueError(f"groups: expected {n} values (one per row), got {len(codes)}")
        return codes

    def _prepared(self, X: np.ndarray) -> np.ndarray:
        return unit_rows(X) if self.metric == "cosine" else np.array(X)

    def _queries(self, X: Any) -> np.ndarray:
        return validate_data(self, X, dtype=[np.float32, np.float64], reset=False)

    def _nearest(self, X: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self.search == "approximate":
            return approximate_nearest(self, X, self.rows_, k, self.metric)
        return nearest(X, self.rows_, k, metric=self.metric, device=self.device)

    def _similarity(self, near: np.ndarray) -> np.ndarray:
        return near if self.metric == "cosine" else 1.0 + near / (2.0 * self.scale_)

    def _vote_weights(self, similarity: np.ndarray, near: np.ndarray, temperature: float) -> np.ndarray:
        """Weights in (0, 1], the largest of each row 1; 0 where there is no neighbour."""
        there = near > -np.inf
        if self.weights == "uniform":
            return there.astype(np.float64)
        if self.weights == "softmax":
            with np.errstate(invalid="ignore"):
                powers = np.exp((similarity.astype(np.float64) - similarity[:, :1]) / temperature)
            return np.where(there, powers, 0.0)
        far = 1.0 - near.astype(np.float64) if self.metric == "cosine" else -near.astype(np.float64)
        if self.metric == "cosine":
            far *= 2.0  # the squared distance of unit vectors
        # A share of the nearest distance: no overflow, and equal rows win as they do in the limit.
        far = np.sqrt(np.maximum(far, np.finfo(near.dtype).eps if self.metric == "cosine" else 1e-300))
        return np.where(there, far[:, :1] / far, 0.0)

    def _class_weights(self) -> np.ndarray:
        if self.class_weight == "balanced":  # classes that `partial_fit` has announced may have no row yet
            counts = np.bincount(self.codes_, minlength=len(self.classes_))
            return len(self.codes_) / (len(counts) * np.maximum(counts, 1))
        return compute_class_weight(self.class_weight, classes=self.classes_, y=self.classes_[self.codes_])

    def _choose(self) -> CosineKNeighborsClassifier:
        n = len(self.rows_)
        self.scale_ = 1.0 if self.metric == "cosine" else _mean_square(self.rows_)
        wanted = NEIGHBORS_GRID if self.n_neighbors == "auto" else (int(self.n_neighbors),)
        ks = tuple(sorted({min(k, n) for k in wanted}))
        temperatures = TEMPERATURE_GRID if self.temperature == "auto" else (float(self.temperature),)
        if self.weights != "softmax":
            temperatures = (_ONE_SHOT[1],)
        self.loo_score_: float | None = None
        self.loo_log_loss_: float | None = None
        self.n_neighbors_ = ks[0] if len(ks) == 1 else _ONE_SHOT[0]
        self.temperature_ = temperatures[0] if len(temperatures) == 1 else _ONE_SHOT[1]
        asked = self._rows_to_leave_out()
        if len(ks) * len(temperatures) > 1 and len(asked):
            # Without the row itself there is one fewer, so that k = n cannot be tried.
            tried = tuple(k for k in ks if k < n) or (n - 1,)
            self._choose_among(asked, tried, temperatures)
        return self

    def _rows_to_leave_out(self) -> np.ndarray:
        """Rows whose class has a row outside their own group, evenly thinned out in large sets."""
        members = self.codes_
        if self.groups_ is not None:
            members = np.unique(np.stack([self.codes_, self.groups_], axis=1), axis=0)[:, 0]
        spread = np.bincount(members, minlength=len(self.classes_))
        asked = np.flatnonzero(spread[self.codes_] > 1)
        most = max(1000, min(10_000, 10**9 // len(self.rows_)))
        return asked if len(asked) <= most else asked[np.arange(most) * len(asked) // most]

    def _choose_among(self, asked: np.ndarray, ks: tuple[int, ...], temperatures: tuple[float, ...]) -> None:
        near, rows = nearest_others(
            self.rows_, max(ks), groups=self.groups_, rows=asked, metric=self.metric, device=self.device
        )
        neighbours, truth, similarity = self.codes_[rows], self.codes_[asked], self._similarity(near)
        classes = self._class_weights()
        weight, counts = classes[neighbours], classes[truth]
        hits, losses = np.zeros((len(ks), len(temperatures))), np.zeros((len(ks), len(temperatures)))
        c = len(self.classes_)
        step = max(1, _VOTES_BYTES // (8 * c))
        for start in range(0, len(asked), step):
            part = slice(start, start + step)
            for j, temperature in enumerate(temperatures):
                votes = self._vote_weights(similarity[part], near[part], temperature) * weight[part]
                for i, share in enumerate(_growing(votes, neighbours[part], c, ks)):
                    hits[i, j] += counts[part] @ (share.argmax(axis=1) == truth[part])
                    share = _smoothed(share, ks[i])
                    losses[i, j] -= counts[part] @ np.log(share[np.arange(len(share)), truth[part]])
        order = [(-hits[i, j], losses[i, j], -ks[i], i, j) for i in range(len(ks)) for j in range(len(temperatures))]
        *_, i, j = min(order)
        self.n_neighbors_, self.temperature_ = ks[i], temperatures[j]
        self.loo_score_, self.loo_log_loss_ = float(hits[i, j] / counts.sum()), float(losses[i, j] / counts.sum())


def _mean_square(rows: np.ndarray) -> float:
    """Mean squared distance from the mean; 1 where all rows are equal."""
    mean = rows.mean(axis=0, dtype=np.float64)
    total = sum(float(np.square(block - mean).sum()) for _, block in row_blocks(rows, dtype=np.float64))
    return total / len(rows) or 1.0


def _counted(votes: np.ndarray, codes: np.ndarray, c: int) -> np.ndarray:
    """Sum the votes (m, k) per class: (m, c)."""
    flat = codes + c * np.arange(len(codes))[:, None]
    return np.bincount(flat.ravel(), weights=votes.ravel(), minlength=len(codes) * c).reshape(len(codes), c)


def _growing(votes: np.ndarray, codes: np.ndarray, c: int, ks: tuple[int, ...]) -> Iterator[np.ndarray]:
    """Yield the sums of the first k votes for each k, ascending."""
    total, done = np.zeros((len(votes), c)), 0
    for k in ks:
        total += _counted(votes[:, done:k], codes[:, done:k], c)
        done = k
        yield total


def _smoothed(votes: np.ndarray, k: int) -> np.ndarray:
    total = votes.sum(axis=1, keepdims=True)
    share = votes / np.where(total > 0, total, 1.0)
    found = (k * share + 1.0 / votes.shape[1]) / (k + 1)
    return found / found.sum(axis=1, keepdims=True)
