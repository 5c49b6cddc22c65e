"""What scikit-learn lacks in a form fit for few shots: a shrunken scaler, nearest class mean, shrunken LDA."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import StandardScaler
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ..solvers.standardised import shrunk_scale

__all__ = ["CentroidClassifier", "LDAClassifier", "ShrunkScaler", "ledoit_wolf_share"]


class ShrunkScaler(StandardScaler):
    """StandardScaler whose variances are shrunk towards their mean over all features.

    A deviation estimated from ten rows is mostly noise, and dividing by it blows up features that happened to be quiet:
    with one row per class plain standardisation costs linear heads over ten points of accuracy on CNN codes. Here the
    mean variance counts as `prior_rows` rows, so that few rows are nearly only centred and thousands standardised.

    Parameters
    ----------
    prior_rows : float, default=20.0
        Weight of the mean variance in rows; 0 is StandardScaler.
    copy, with_mean, with_std : bool, default=True
        As in StandardScaler.

    Attributes
    ----------
    mean_, var_, scale_ : ndarray of shape (n_features,)
        As in StandardScaler; `scale_` is the square root of the shrunken variance.

    Examples
    --------
    >>> ShrunkScaler(prior_rows=2).fit([[0.0, 0.0], [2.0, 0.0]]).scale_.round(3).tolist()
    [0.866, 0.5]
    """

    def __init__(
        self, prior_rows: float = 20.0, *, copy: bool = True, with_mean: bool = True, with_std: bool = True
    ) -> None:
        super().__init__(copy=copy, with_mean=with_mean, with_std=with_std)
        self.prior_rows = prior_rows

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.array_api_support = False  # the shrinking is written for NumPy
        return tags

    def fit(self, X: Any, y: Any = None, sample_weight: Any = None) -> ShrunkScaler:
        """Compute means and shrunken deviations of X (n_samples, n_features)."""
        super().fit(X, y, sample_weight)
        if self.with_std:
            self.scale_ = shrunk_scale(self.var_, float(np.max(self.n_samples_seen_)), self.prior_rows)
        return self


class _LinearScores(ClassifierMixin, BaseEstimator):
    """What both share: scores that are an affine map of the input, one row of `coef_` per class."""

    coef_: np.ndarray
    intercept_: np.ndarray
    classes_: np.ndarray

    def _start(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__}: expected two classes or more, got 1 class: {self.classes_[0]!r}")
        counts = np.bincount(codes)
        # A product with the one-hot matrix sums per class at the speed of BLAS.
        onehot = np.eye(len(counts), dtype=X.dtype)[codes]
        return X, codes, (onehot.T @ X) / counts[:, None].astype(X.dtype)

    def _class_scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return X @ self.coef_.T + self.intercept_

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores of shape (n_samples, n_classes); (n_samples,) for two classes, as scikit-learn does."""
        scores = self._class_scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the class of the highest score, shape (n_samples,)."""
        scores = self._class_scores(X)
        return self.classes_[scores.argmax(axis=1)]


class CentroidClassifier(_LinearScores):
    """Nearest class mean in Euclidean distance.

    After centring and L2-normalisation (the head "centroid" puts both in front) this is SimpleShot's CL2N
    (Wang et al. 2019, arXiv 1911.04623), the strongest simple head for one or two shots.

    Attributes
    ----------
    coef_ : ndarray of shape (n_classes, n_features)
        The class means m.
    intercept_ : ndarray of shape (n_classes,)
        -|m|²/2, so that x·m - |m|²/2 ranks classes exactly as -|x - m|² does.
    classes_ : ndarray of shape (n_classes,)
        The labels.

    Examples
    --------
    >>> CentroidClassifier().fit([[0.0], [1.0], [5.0]], ["a", "a", "b"]).predict([[2.0], [4.0]]).tolist()
    ['a', 'b']
    """

    def fit(self, X: Any, y: Any) -> CentroidClassifier:
        """Compute the class means of X (n_samples, n_features)."""
        _, _, means = self._start(X, y)
        self.coef_ = means
        self.intercept_ = -0.5 * np.square(means).sum(axis=1)
        return self


class LDAClassifier(_LinearScores):
    """Linear discriminant analysis with one shrunken covariance for all classes, for any number of rows.

    Equal to ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s)`` for a given share s (a test holds this), with
    two differences that few-shot work needs: "auto" applies Ledoit and Wolf's formula (2004) to the pooled residuals
    instead of class by class, so that it works from one row per class on; and the covariance is inverted in the span
    of the residuals (Woodbury), which takes n³ instead of n_features³ when there are fewer rows than features.

    Parameters
    ----------
    shrinkage : "auto" or float, default="auto"
        Share of the scaled identity in the covariance, in [0, 1].

    Attributes
    ----------
    coef_, intercept_, classes_
        Scores are x @ coef_.T + intercept_: log posteriors up to a term common to all classes.
    shrinkage_ : float
        The share used.

    Examples
    --------
    >>> X = [[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [3.0, 1.0]]
    >>> LDAClassifier().fit(X, ["a", "a", "b", "b"]).predict([[2.0, 0.5]]).tolist()
    ['b']
    """

    def __init__(self, shrinkage: str | float = "auto") -> None:
        self.shrinkage = shrinkage

    def fit(self, X: Any, y: Any) -> LDAClassifier:
        """Fit on X (n_samples, n_features) and y (n_samples,)."""
        X, codes, means = self._start(X, y)
        if self.shrinkage != "auto" and not (not isinstance(self.shrinkage, str) and 0 <= self.shrinkage <= 1):
            raise ValueError(f"LDAClassifier: expected shrinkage 'auto' or a share in [0, 1], got {self.shrinkage!r}")
        means = means.astype(np.float64)
        residuals = X - means[codes]
        overall = residuals.std(axis=0).mean() if len(X) > len(means) else 0.0
        self.shrinkage_ = 1.0
        if overall > 0:
            auto = self.shrinkage == "auto"
            # A share of exactly 0 (residuals all along one line) would leave the other directions without a scale.
            self.shrinkage_ = max(ledoit_wolf_share(residuals), 1e-4) if auto else float(self.shrinkage)
        # Directions common to all classes cancel; taking the mean out first keeps the products small.
        centre = means.mean(axis=0)
        self.coef_ = _solve_covariance(residuals, self.shrinkage_, means - centre)
        priors = np.bincount(codes) / len(codes)
        self.intercept_ = np.log(priors) - 0.5 * ((means + centre) * self.coef_).sum(axis=1)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return posteriors of shape (n_samples, n_classes)."""
        scores = self._class_scores(X)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)


def ledoit_wolf_share(residuals: np.ndarray) -> float:
    """Return Ledoit and Wolf's share of the identity for centred rows (n, d), without forming a (d, d) matrix.

    Their b² needs the sum of squares of the covariance, which the smaller of the two Gram matrices gives.
    """
    n, d = residuals.shape
    gram = residuals @ residuals.T if n <= d else residuals.T @ residuals
    squares = float(np.square(gram).sum()) / n**2  # |S|²
    mu = float(np.square(residuals).sum()) / (n * d)
    distance = squares - d * mu**2  # |S - mu I|²
    fourth = float(np.square(np.square(residuals).sum(axis=1)).sum()) / n
    spread = (fourth - squares) / n
    return float(np.clip(spread / distance, 0.0, 1.0)) if distance > 0 else 1.0


def _solve_covariance(residuals: np.ndarray, share: float, rows: np.ndarray) -> np.ndarray:
    """Return rows @ inverse((1 - share) S + share mu I), S the covariance of the residuals, mu = trace(S) / d."""
    n, d = residuals.shape
    mu = float(np.square(residuals).sum()) / (n * d)
    if mu == 0.0:  # one row per class: no spread is known, and the nearest mean is all there is
        return rows
    if n <= d:
        values, vectors = np.linalg.eigh(residuals @ residuals.T / n)
        keep = values > max(values[-1], 0.0) * 1e-12
        basis = residuals.T @ (vectors[:, keep] / np.sqrt(n * values[keep]))
    else:
        values, basis = np.linalg.eigh(residuals.T @ residuals / n)
        keep = values > max(values[-1], 0.0) * 1e-12
        basis = basis[:, keep]
    inside = rows @ basis
    shrunk = (inside / ((1 - share) * values[keep] + share * mu)) @ basis.T
    # share = 0 leaves directions without spread undefined; like a least-squares solution, they get no weight.
    return shrunk if share == 0.0 else shrunk + (rows - inside @ basis.T) / (share * mu)
