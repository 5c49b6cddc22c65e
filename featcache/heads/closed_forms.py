"""Heads that follow from sums of their classes in closed form: nearest class mean, SimpleShot, shrunken LDA.

They are fitted at once (`fit`), in chunks (`partial_fit`), in parts that are merged (`merge`), or from codes that
stay on disk (`fit_blocks`), always to the same solution. The ridge heads (`ridge`,
`regression`) share that.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from ..solvers.moments import ClassMoments
from ..solvers.shrinkage import oas_share, shrunk_scale
from .incremental import NEVER, ClassSums, LinearScores, fit_blocks
from .regression import IncrementalRidge
from .ridge import IncrementalRidgeClassifier

__all__ = [
    "CentroidClassifier",
    "IncrementalRidge",
    "IncrementalRidgeClassifier",
    "LDAClassifier",
    "LinearScores",
    "SimpleShotClassifier",
    "fit_blocks",
    "ledoit_wolf_share",
]


class CentroidClassifier(ClassSums):
    """Nearest class mean in Euclidean distance.

    After centring and L2-normalisation (the head "centroid" puts both in front) this is SimpleShot's CL2N
    (Wang et al. 2019, arXiv 1911.04623), the strongest simple head for one or two shots. `SimpleShotClassifier` has
    the normalisation inside and takes new rows without a refit.

    Attributes
    ----------
    coef_ : ndarray of shape (n_classes, n_features)
        The class means m.
    intercept_ : ndarray of shape (n_classes,)
        -|m|²/2, so that x·m - |m|²/2 ranks classes exactly as -|x - m|² does.
    classes_ : ndarray of shape (n_classes,)
        The labels.
    sums_ : dict of str to ndarray
        What `partial_fit` and `merge` add to.

    Examples
    --------
    >>> CentroidClassifier().fit([[0.0], [1.0], [5.0]], ["a", "a", "b"]).predict([[2.0], [4.0]]).tolist()
    ['a', 'b']
    """

    _scatter = False

    def _solve(self, sums: ClassMoments) -> None:
        self.coef_ = sums.means.copy()
        self.intercept_ = np.where(sums.weights > 0, -0.5 * np.square(sums.means).sum(axis=1), NEVER)


class SimpleShotClassifier(ClassSums):
    """Nearest class mean of unit vectors around their common mean, from sums that merge.

    SimpleShot's CL2N (Wang et al. 2019, arXiv 1911.04623) centres codes by the training mean, scales each to length 1
    and takes class means; a new row moves the centre, and then every row would have to be scaled again. Here rows get
    length 1 first, and a class is scaled as a whole: its centred mean is divided by the root of its rows' mean squared
    distance to the centre, which the sums give exactly. With one row per class that is CL2N on unit vectors. A query is
    scaled to length 1, centred, scaled to length 1.

    Attributes
    ----------
    centre_ : ndarray of shape (n_features,)
        Mean of the unit vectors.
    coef_ : ndarray of shape (n_classes, n_features)
        Prototypes p.
    intercept_ : ndarray of shape (n_classes,)
        -|p|²/2: scores rank classes as the distance to the prototypes does.
    classes_ : ndarray of shape (n_classes,)
        The labels.
    sums_ : dict of str to ndarray
        What `partial_fit` and `merge` add to.

    Examples
    --------
    >>> head = SimpleShotClassifier().partial_fit([[1.0, 0.0], [0.0, 1.0]], ["a", "b"])
    >>> head.partial_fit([[-1.0, -1.0]], ["c"]).predict([[9.0, 1.0], [-3.0, -2.0]]).tolist()
    ['a', 'c']
    """

    _scatter = False

    def _prepared(self, X: np.ndarray) -> np.ndarray:
        return _unit(X.astype(np.float64))

    def _solve(self, sums: ClassMoments) -> None:
        known = sums.weights > 0
        self.centre_ = sums.weights @ sums.means / sums.weights.sum()
        away = sums.means - self.centre_
        away[~known] = 0.0
        radius = sums.spread / np.where(known, sums.weights, 1.0) + np.square(away).sum(axis=1)
        self.coef_ = away / np.sqrt(np.where(radius > 0, radius, 1.0))[:, None]
        self.intercept_ = np.where(known, -0.5 * np.square(self.coef_).sum(axis=1), NEVER)

    def _class_scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "coef_")
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return _unit(_unit(X.astype(np.float64)) - self.centre_) @ self.coef_.T + self.intercept_


class LDAClassifier(ClassSums):
    """Linear discriminant analysis with one shrunken covariance for all classes, for any number of rows.

    Equal to ``LinearDiscriminantAnalysis(solver="lsqr", shrinkage=s)`` for a given share s (a test holds this), with
    two differences that few-shot work needs: "auto" takes one share for the pooled residuals instead of one class by
    class, so that it works from one row per class on; and where there are fewer rows than features the covariance
    is inverted in the span of the residuals (Woodbury), which takes n³ instead of n_features³.

    Parameters
    ----------
    shrinkage : "auto", "ledoit-wolf", "gda" or float, default="auto"
        Share of the scaled identity in the covariance. A number in [0, 1] is that share. "auto": oracle approximating
        shrinkage [1]_ of the pooled residuals. "ledoit-wolf": Ledoit and Wolf's formula [2]_, which needs the rows
        (`fit` only) and predicts no better. "gda": d / (n - 1 + d), which is the form
        ((n - 1) S + trace(S) I)⁻¹ of [3]_ up to a factor; here the trace is kept, so that
        posteriors stay on the scale of the data.
    priors : "counts", "uniform" or array-like of shape (n_classes,), default="counts"
        Class probabilities; an array is in the order of `classes_` and is divided by its sum. They enter the
        intercepts only: the covariance weighs rows alike, whereas scikit-learn's weighs classes by their priors.
    standardize : bool, default=False
        Divide features by their shrunken deviations (`ShrunkScaler`, 20 prior rows) first; folded into `coef_`.
    keep_sums : bool, default=True
        Whether `fit` keeps the sums, one (n_features, n_features) matrix, so that rows can be added; False makes a
        smaller file. `partial_fit` and `fit_blocks` always keep them.

    Attributes
    ----------
    coef_, intercept_, classes_
        Scores are x @ coef_.T + intercept_: log posteriors up to a term common to all classes.
    shrinkage_ : float
        The share used.
    sums_ : dict of str to ndarray
        Where kept: what `partial_fit` and `merge` add to.

    References
    ----------
    .. [1] Y. Chen, A. Wiesel, Y. C. Eldar, A. O. Hero, "Shrinkage algorithms for MMSE covariance estimation", IEEE
       Transactions on Signal Processing 58 (2010), 5016-5029.
    .. [2] O. Ledoit, M. Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", Journal of
       Multivariate Analysis 88 (2004), 365-411.
    .. [3] Z. Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024,
       arXiv 2402.04087.

    Examples
    --------
    >>> X = [[0.0, 0.0], [0.0, 1.0], [3.0, 0.0], [3.0, 1.0]]
    >>> LDAClassifier().fit(X, ["a", "a", "b", "b"]).predict([[2.0, 0.5]]).tolist()
    ['b']
    """

    def __init__(
        self,
        shrinkage: str | float = "auto",
        *,
        priors: Any = "counts",
        standardize: bool = False,
        keep_sums: bool = True,
    ) -> None:
        self.shrinkage = shrinkage
        self.priors = priors
        self.standardize = standardize
        self.keep_sums = keep_sums

    def _check_settings(self) -> None:
        share = self.shrinkage
        if isinstance(share, str) and share in ("auto", "ledoit-wolf", "gda"):
            return
        if isinstance(share, str) or not np.isscalar(share) or not 0 <= float(share) <= 1:  # type: ignore[arg-type]
            raise ValueError(
                "LDAClassifier: expected shrinkage 'auto', 'ledoit-wolf', 'gda' or a share in [0, 1], got "
                f"{self.shrinkage!r}"
            )

    def _check_classes(self, n_classes: int) -> None:
        self._class_priors(np.full(n_classes, 1.0 / n_classes))

    def _check_additive(self) -> None:
        if self.shrinkage == "ledoit-wolf":
            raise ValueError(
                "LDAClassifier: shrinkage='ledoit-wolf' needs all rows at once; use 'auto', which rows can be added to"
            )

    @available_if(lambda self: self.shrinkage != "ledoit-wolf")
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Any:
        """Add rows; see `CentroidClassifier.partial_fit`."""
        return super().partial_fit(X, y, classes, sample_weight)

    def _fit_rows(self, X: Any, codes: np.ndarray, weight: np.ndarray | None) -> None:
        few = len(X) <= X.shape[1]
        sums = ClassMoments(X.shape[1], len(self.classes_), scatter=self.keep_sums or not few)
        sums.update(X, codes, weight)
        if self.keep_sums and self.shrinkage != "ledoit-wolf":
            self.sums_ = sums.state()
        if not few and self.shrinkage != "ledoit-wolf":
            self._solve(sums)
            return
        residuals = X - sums.means[codes]
        if weight is not None:
            residuals *= np.sqrt(weight)[:, None]
        centre, scale = self._frame(sums, np.square(residuals).sum(axis=0))
        residuals /= scale
        gram = residuals @ residuals.T if few else residuals.T @ residuals
        exact = ledoit_wolf_share(residuals, weight) if self.shrinkage == "ledoit-wolf" else None
        self._finish(sums, centre, scale, gram, residuals if few else None, exact)

    def _solve(self, sums: ClassMoments) -> None:
        assert sums.scatter is not None
        centre, scale = self._frame(sums, np.diag(sums.scatter))
        scatter = sums.scatter / scale / scale[:, None] if self.standardize else sums.scatter
        self._finish(sums, centre, scale, scatter, None, None)

    def _frame(self, sums: ClassMoments, within: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return a point amid the class means, and the deviations to divide by."""
        known, total = sums.weights > 0, float(sums.weights.sum())
        # Directions common to all classes cancel; taking the mean out first keeps the products small.
        centre = sums.means[known].mean(axis=0)
        if not self.standardize:
            return centre, np.ones(sums.n_features)
        away = sums.means - centre
        mean = sums.weights @ away / total
        between = sums.weights @ np.square(away - mean)
        return centre, shrunk_scale((within + between) / total, total)

    def _share(self, sums: ClassMoments, squares: float, trace: float, exact: float | None) -> float:
        total, d = float(sums.weights.sum()), sums.n_features
        if trace <= 0.0:
            return 1.0
        if self.shrinkage == "gda":
            return d / (max(total - 1.0, 0.0) + d)
        if self.shrinkage not in ("auto", "ledoit-wolf"):
            return float(self.shrinkage)
        share = oas_share(squares, trace, d, total - np.count_nonzero(sums.weights)) if exact is None else exact
        # A share of exactly 0 (residuals all along one line) would leave the other directions without a scale.
        return max(share, 1e-4)

    def _finish(
        self,
        sums: ClassMoments,
        centre: np.ndarray,
        scale: np.ndarray,
        gram: np.ndarray,
        residuals: np.ndarray | None,
        exact: float | None,
    ) -> None:
        """Set the solution from the scatter, or from residuals (n, d) and their Gram matrix over the rows."""
        known, total = sums.weights > 0, float(sums.weights.sum())
        trace = float(np.trace(gram))
        self.shrinkage_ = self._share(sums, float(np.square(gram).sum()), trace, exact)
        rows = (sums.means - centre) / scale
        coef = _apply_inverse(residuals, gram / total, trace / total, self.shrinkage_, rows)
        self.coef_ = np.where(known[:, None], coef / scale, 0.0)
        priors = self._class_priors(sums.weights / total)
        logs = np.log(np.where(priors > 0, priors, 1.0)) - 0.5 * (rows * coef).sum(axis=1) - self.coef_ @ centre
        self.intercept_ = np.where(known & (priors > 0), logs, NEVER)

    def _class_priors(self, counted: np.ndarray) -> np.ndarray:
        if isinstance(self.priors, str) and self.priors in ("counts", "uniform"):
            return counted if self.priors == "counts" else np.full(len(counted), 1.0 / len(counted))
        priors = np.asarray(self.priors, dtype=np.float64) if not isinstance(self.priors, str) else np.empty(0)
        if priors.shape != counted.shape or not (priors >= 0).all() or not priors.any():
            raise ValueError(
                f"LDAClassifier: expected priors 'counts', 'uniform' or {len(counted)} numbers of 0 or more, got "
                f"{self.priors!r}"
            )
        return priors / priors.sum()

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return posteriors of shape (n_samples, n_classes)."""
        scores = self._class_scores(X)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return scores / scores.sum(axis=1, keepdims=True)


def ledoit_wolf_share(residuals: np.ndarray, weight: np.ndarray | None = None) -> float:
    """Return Ledoit and Wolf's share of the identity for centred rows (n, d), without forming a (d, d) matrix.

    Their b² needs the sum of squares of the covariance, which the smaller of the two Gram matrices gives. Rows that
    carry weights have been multiplied by their roots already.
    """
    d, n = residuals.shape[1], len(residuals) if weight is None else float(weight.sum())
    gram = residuals @ residuals.T if len(residuals) <= d else residuals.T @ residuals
    squares = float(np.square(gram).sum()) / n**2  # |S|²
    mu = float(np.square(residuals).sum()) / (n * d)
    distance = squares - d * mu**2  # |S - mu I|²
    lengths = np.square(np.square(residuals).sum(axis=1))
    fourth = float((lengths if weight is None else lengths / weight).sum()) / n
    spread = (fourth - squares) / n
    return float(np.clip(spread / distance, 0.0, 1.0)) if distance > 0 else 1.0


def _apply_inverse(
    residuals: np.ndarray | None, gram: np.ndarray, trace: float, share: float, rows: np.ndarray
) -> np.ndarray:
    """Return rows @ inverse((1 - share) S + share mu I), mu = trace / d; gram is S, or its twin over the rows."""
    d = rows.shape[1]
    mu = trace / d
    if mu <= 0.0:  # one row per class: no spread is known, and the nearest mean is all there is
        return rows
    if residuals is None and share >= 1e-6:
        from scipy.linalg import cho_factor, cho_solve

        matrix = (1.0 - share) * gram
        matrix.flat[:: d + 1] += share * mu
        return cho_solve(cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False), rows.T).T
    values, vectors = np.linalg.eigh(gram)
    keep = values > max(values[-1], 0.0) * 1e-12
    values, basis = values[keep], vectors[:, keep]
    if residuals is not None:
        basis = residuals.T @ basis
        basis /= np.linalg.norm(basis, axis=0)
    inside = rows @ basis
    shrunk = (inside / ((1 - share) * values + share * mu)) @ basis.T
    # share = 0 leaves directions without spread undefined; like a least-squares solution, they get no weight.
    return shrunk if share == 0.0 else shrunk + (rows - inside @ basis.T) / (share * mu)


def _unit(X: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(lengths > 0, lengths, 1.0)
