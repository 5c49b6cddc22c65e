"""NystroemClassifier: a Gaussian kernel at the price of a linear head."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.kernel_approximation import Nystroem
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import check_is_fitted, validate_data

from ..solvers.blocks import row_blocks
from ..splits import whole_number
from .rows import labelled_rows

__all__ = ["NystroemClassifier"]

GAMMA_FACTORS = (0.25, 1.0, 4.0)
ALPHAS = tuple(10.0 ** (e / 2) for e in range(4, -11, -1))

#: Rows among which the median distance is taken.
_MEDIAN_ROWS = 1000


class NystroemClassifier(ClassifierMixin, BaseEstimator):
    """Ridge on Nyström features of a Gaussian kernel, its width and the penalty chosen by leave-one-out.

    The kernel is exp(-gamma d²). n rows cost O(n n_components²), where a support vector machine takes O(n²) and more.

    Parameters
    ----------
    n_components : "auto" or int, default="auto"
        Landmark rows; "auto": all of them up to 1,000.
    gamma : "auto" or float, default="auto"
        "auto" tries 0.25, 1 and 4 times 1 / median squared distance.
    alpha : "auto" or float, default="auto"
        Penalty of the squared weights, > 0; "auto" chooses from 100 to 10^-5 in half decades.
    class_weight : dict, "balanced" or None, default=None
        Weight of the rows by label.
    random_state : int, default=0
        Seed of the landmarks.

    Attributes
    ----------
    nystroem_ : Nystroem
        The fitted features.
    coef_ : ndarray of shape (n_classes, n_components), or (1, n_components) for two classes
        Weights of the features.
    intercept_ : ndarray of shape (n_classes,) or (1,)
        Intercepts.
    classes_ : ndarray of shape (n_classes,)
        The labels.
    gamma_, alpha_ : float
        Used.
    loo_score_ : float
        Accuracy of the chosen settings on rows left out (weighted as `class_weight` says).

    Notes
    -----
    Settings are chosen by left-out accuracy, then by squared error, then the stronger penalty. The residual of a row
    left out is its residual over 1 - leverage (Allen's PRESS), exact for the features at hand; these (landmarks, and
    the median distance of "auto") are those of all rows, and see no label.

    References
    ----------
    C. Williams and M. Seeger, "Using the Nyström method to speed up kernel machines", NIPS 2000; the median: B.
    Schölkopf and A. Smola, "Learning with kernels", 2002.

    Examples
    --------
    >>> X = [[0.0], [1.0], [2.0], [3.0], [4.0], [5.0]]
    >>> NystroemClassifier().fit(X, ["a", "a", "b", "b", "a", "a"]).predict([[0.4], [2.5], [4.6]]).tolist()
    ['a', 'b', 'a']
    """

    def __init__(
        self,
        n_components: str | int = "auto",
        *,
        gamma: str | float = "auto",
        alpha: str | float = "auto",
        class_weight: Any = None,
        random_state: int = 0,
    ) -> None:
        self.n_components = n_components
        self.gamma = gamma
        self.alpha = alpha
        self.class_weight = class_weight
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> NystroemClassifier:
        """Choose width and penalty and fit.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes, of a common scale (the head puts a scaler in front).
        y : array-like of shape (n_samples,)
            Labels.

        Returns
        -------
        NystroemClassifier
            Itself.

        Raises
        ------
        ValueError
            One class only, settings out of range, NaN or Inf in X.
        """
        self._check_settings()
        X, y = labelled_rows(self, X, y)
        codes = np.searchsorted(self.classes_, y)
        targets = np.where(np.eye(len(self.classes_), dtype=bool)[codes], 1.0, -1.0)
        weight = compute_class_weight(self.class_weight, classes=self.classes_, y=y)[codes]
        alphas = ALPHAS if self.alpha == "auto" else (float(self.alpha),)
        best: tuple[Any, ...] | None = None
        for gamma in self._gammas(X):
            features = Nystroem(gamma=gamma, n_components=self._landmarks(len(X)), random_state=self.random_state)
            ridge = _Ridge(_transformed(features.fit(X), X), targets, weight)
            for alpha in alphas:
                found = (*ridge.left_out(alpha, codes), features, ridge, gamma, alpha)
                if best is None or (-found[0], found[1]) < (-best[0], best[1]):
                    best = found
        assert best is not None
        self.loo_score_, _, self.nystroem_, ridge, self.gamma_, self.alpha_ = best
        coef, intercept = ridge.weights(self.alpha_)
        # Of two classes scikit-learn keeps one row: the targets are mirror images.
        last = slice(1, 2) if len(self.classes_) == 2 else slice(None)
        self.coef_, self.intercept_ = np.ascontiguousarray(coef.T[last]), intercept[last]
        return self

    def _check_settings(self) -> None:
        who = type(self).__name__
        if self.n_components != "auto" and not whole_number(self.n_components, 1):
            raise ValueError(f"{who}: expected n_components 'auto' or 1 or more, got {self.n_components!r}")
        for name in ("gamma", "alpha"):
            value = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool) and 0.0 < float(value) < np.inf
            if value != "auto" and not number:
                raise ValueError(f"{who}: expected {name} 'auto' or a finite number above 0, got {value!r}")

    def _landmarks(self, n: int) -> int:
        return min(n, 1000 if self.n_components == "auto" else int(self.n_components))

    def _gammas(self, X: np.ndarray) -> tuple[float, ...]:
        if self.gamma != "auto":
            return (float(self.gamma),)
        n = min(len(X), _MEDIAN_ROWS)
        some = X[np.arange(n) * len(X) // n].astype(np.float64)
        squares = euclidean_distances(some - some.mean(axis=0), squared=True)[np.triu_indices(n, 1)]
        squares = squares[squares > 0]  # duplicated rows say nothing about the scale
        middle = float(np.median(squares)) if len(squares) else 1.0
        return tuple(factor / middle for factor in GAMMA_FACTORS)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores of shape (n_samples, n_classes), or (n_samples,) for two classes."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        scores = _transformed(self.nystroem_, X) @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the class of the highest score, shape (n_samples,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]


def _transformed(features: Nystroem, X: np.ndarray) -> np.ndarray:
    """Nyström features in float64, block by block."""
    return np.concatenate([features.transform(block) for _, block in row_blocks(X, dtype=np.float64)])


class _Ridge:
    """Ridge with intercept for many penalties from one decomposition, with the predictions of rows left out."""

    def __init__(self, Z: np.ndarray, targets: np.ndarray, weight: np.ndarray) -> None:
        self.weight = weight = weight * (len(weight) / weight.sum())
        self.total = weight.sum()
        self.mean, self.centre = weight @ Z / self.total, weight @ targets / self.total
        self.targets, root = targets, np.sqrt(weight)[:, None]
        rows = (Z - self.mean) * root
        values, self.basis = np.linalg.eigh(rows.T @ rows)
        self.values = np.maximum(values, 0.0)
        self.rows = rows @ self.basis
        self.moments = self.rows.T @ ((targets - self.centre) * root)

    def left_out(self, alpha: float, codes: np.ndarray) -> tuple[float, float]:
        """Weighted accuracy and squared error of left-out predictions."""
        shrink = 1.0 / (self.values + alpha)
        root = np.sqrt(np.maximum(self.weight, 1e-300))[:, None]
        residuals = self.targets - self.centre - (self.rows @ (shrink[:, None] * self.moments)) / root
        leverage = np.square(self.rows) @ shrink + self.weight / self.total
        left_out = residuals / np.maximum(1.0 - leverage, 1e-9)[:, None]
        right = (self.targets - left_out).argmax(axis=1) == codes
        return float(self.weight @ right / self.total), float(self.weight @ np.square(left_out).sum(axis=1))

    def weights(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        coef = self.basis @ (self.moments / (self.values + alpha)[:, None])
        return coef, self.centre - self.mean @ coef
