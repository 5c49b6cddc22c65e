"""Learned metrics: scikit-learn transformers to vectors in which rows of one identity lie together, and their score."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ..solvers.neighbors import unit_rows
from ..solvers.powers import signed_power
from .moments import IdentityMoments
from .pairs import apart

__all__ = ["CosineMetric", "LDAMetric", "WCCNMetric", "WhiteningMetric", "exponent"]


class CosineMetric(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Cosine of centred rows: the baseline, which learns nothing but the mean.

    Parameters
    ----------
    power : float or "auto", default="auto"
        Exponent of the signed power transform sign(x)|x|^power before centring; "auto" is 0.5 where no training value
        is negative (codes after a ReLU), else 1.

    Attributes
    ----------
    power_ : float
        The exponent used.
    mean_ : ndarray of shape (n_features,)
        Mean of the transformed training rows.
    components_ : ndarray of shape (n_components, n_features) or None
        Linear map after centring; None for none.

    Notes
    -----
    `transform` gives unit vectors, whose scalar product is the score (and 1 - |a - b|²/2, so that the Euclidean
    distance ranks pairs alike). `score_matrix` and `score_rows` take transformed vectors.

    Examples
    --------
    >>> metric = CosineMetric(power=1.0).fit([[0.0, 0.0], [2.0, 0.0], [1.0, 3.0]])
    >>> metric.score_rows(metric.transform([[0.0, 1.0]]), metric.transform([[2.0, 1.0]])).round(3).tolist()
    [-1.0]
    """

    mean_: np.ndarray
    components_: np.ndarray | None

    def __init__(self, power: float | str = "auto") -> None:
        self.power = power

    def fit(self, X: Any, y: Any = None, *, groups: Any = None, bursts: Any = None) -> CosineMetric:
        """Learn from rows X (n_samples, n_features) and their identities y (n_samples,).

        groups and bursts, of shape (n_samples,), matter to a metric that holds identities out of its own training, as
        `SiameseMetric` does: identities that share a group are held out together, rows of one burst never paired.
        """
        X, codes = self._start(X, y)
        if groups is not None and np.shape(groups) != (len(X),):
            raise ValueError(f"groups: expected {len(X)} values (one per row), got shape {np.shape(groups)}")
        return self._learn(IdentityMoments(X, codes, self.power_, groups=groups, bursts=apart(bursts, len(X))))

    def transform(self, X: Any) -> np.ndarray:
        """Return vectors of float32 or float64, shape (n_samples, n_components)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return self._ends(self._mapped(X))

    def score_matrix(self, A: np.ndarray, B: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
        """Return the score of each vector of A with each of B; higher means more likely the same.

        Parameters
        ----------
        A, B : ndarray of shape (n, n_components) and (m, n_components)
            Vectors from `transform` or `template`.
        counts : ndarray of shape (m,), default=None
            How many images each of B is the template of; None: one.

        Returns
        -------
        ndarray of shape (n, m)
        """
        return A @ B.T

    def score_rows(self, A: np.ndarray, B: np.ndarray) -> np.ndarray:
        """Return the score of each vector of A with the vector of B in the same place, shape (n,)."""
        return np.einsum("ij,ij->i", A, B)

    def template(self, vectors: np.ndarray) -> np.ndarray:
        """Return one vector that stands for several images of one identity, shape (n_components,)."""
        return unit_rows(vectors.mean(axis=0, keepdims=True))[0]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return self.n_features_in_ if self.components_ is None else len(self.components_)

    def _start(self, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Check the input, settle the exponent, and number the identities."""
        needed = self.__sklearn_tags__().target_tags.required
        if y is None and not needed:
            X, codes = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2), None
        else:
            X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], ensure_min_samples=2)
            check_classification_targets(y)
            names, codes = np.unique(y, return_inverse=True)
            if needed and len(names) < 2:
                raise ValueError(
                    f"{type(self).__name__}: expected two identities or more, got 1 class: {names[0]!r}; give more"
                )
        if self.power != "auto" and (isinstance(self.power, (str, bool)) or not 0 < self.power <= 4):
            raise ValueError(f"{type(self).__name__}: expected power 'auto' or within (0, 4], got {self.power!r}")
        self.power_ = exponent(X) if self.power == "auto" else float(self.power)
        return X, codes

    def _learn(self, moments: IdentityMoments) -> CosineMetric:
        self.mean_, self.components_ = moments.mean, None
        return self

    def _learn_from(self, moments: IdentityMoments) -> Any:
        """Fit on moments that several settings share."""
        self.n_features_in_, self.power_ = moments.rows.shape[1], moments.power
        return self._learn(moments)

    def _mapped(self, X: np.ndarray) -> np.ndarray:
        rows = signed_power(X, self.power_) - self.mean_.astype(X.dtype)
        return rows if self.components_ is None else rows @ self.components_.T.astype(X.dtype)

    def _ends(self, vectors: np.ndarray) -> np.ndarray:
        return unit_rows(vectors)


def exponent(X: np.ndarray) -> float:
    """Return the exponent "auto" takes: the square root evens out the long tail that a ReLU leaves."""
    return 0.5 if X.min() >= 0 else 1.0


class WhiteningMetric(CosineMetric):
    """Cosine after whitening all rows with a shrunken covariance; identities are not used.

    Parameters
    ----------
    shrinkage : float, default=0.3
        Share of the scaled identity in the covariance, in [0, 1]; 1 is the cosine baseline.
    power : float or "auto", default="auto"
        As in `CosineMetric`.

    Attributes
    ----------
    power_, mean_, components_
        As in `CosineMetric`.

    References
    ----------
    Jégou, Chum: Negative evidences and co-occurences in image retrieval: the benefit of PCA and whitening. ECCV 2012.

    Examples
    --------
    >>> X = [[0.0, 9.0], [0.0, -9.0], [1.0, 0.0], [-1.0, 0.0]]
    >>> Z = WhiteningMetric(shrinkage=0.0, power=1.0).fit(X).transform([[1.0, 9.0], [1.0, -9.0]])
    >>> abs(round(float(Z[0] @ Z[1]), 6))
    0.0
    """

    def __init__(self, shrinkage: float = 0.3, power: float | str = "auto") -> None:
        super().__init__(power)
        self.shrinkage = shrinkage

    def _learn(self, moments: IdentityMoments) -> CosineMetric:
        self.mean_ = moments.mean
        self.components_ = moments.total.inverse_root(self._share()).matrix().astype(moments.rows.dtype)
        return self

    def _share(self) -> float:
        share = self.shrinkage
        if isinstance(share, (str, bool)) or share is None or not 0 <= share <= 1:
            raise ValueError(f"{type(self).__name__}: expected a shrinkage within [0, 1], got {share!r}")
        return float(share)


class WCCNMetric(WhiteningMetric):
    """Cosine after within-class covariance normalisation: directions in which one identity varies count less.

    Where no identity has two rows there is no such variation to see, and this is the cosine baseline.

    Parameters
    ----------
    shrinkage : float, default=0.3
        Share of the scaled identity in the within-identity covariance, in [0, 1]; 1 is the cosine baseline.
    power : float or "auto", default="auto"
        As in `CosineMetric`.

    Attributes
    ----------
    power_, mean_, components_
        As in `CosineMetric`.

    References
    ----------
    Hatch, Kajarekar, Stolcke: Within-class covariance normalization for SVM-based speaker recognition. 2006.

    Examples
    --------
    >>> X = [[0.0, 9.0], [0.0, -9.0], [1.0, 9.0], [1.0, -9.0]]
    >>> metric = WCCNMetric(shrinkage=0.001, power=1.0).fit(X, ["ann", "ann", "bob", "bob"])
    >>> metric.score_rows(metric.transform([[0.0, 3.0]]), metric.transform([[1.0, 3.0]])).round(1).tolist()
    [-1.0]
    """

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        return tags

    def _learn(self, moments: IdentityMoments) -> CosineMetric:
        self.mean_ = moments.mean
        self.components_ = moments.within.inverse_root(self._share()).matrix().astype(moments.rows.dtype)
        return self


class LDAMetric(WCCNMetric):
    """Cosine in the space of linear discriminant analysis: what tells identities apart, and nothing else.

    Parameters
    ----------
    shrinkage : float, default=0.3
        Share of the scaled identity in the within-identity covariance, in [0, 1].
    n_components : int, default=None
        Directions kept; None for all, one less than the identities at most.
    power : float or "auto", default="auto"
        As in `CosineMetric`.

    Attributes
    ----------
    between_ : ndarray of shape (n_components,)
        Variance of identities along each direction, in units of the variance within them.
    power_, mean_, components_
        As in `CosineMetric`.

    References
    ----------
    Fisher: The use of multiple measurements in taxonomic problems. Annals of Eugenics 7, 1936.

    Examples
    --------
    >>> X = [[0.0, 1.0], [0.0, -1.0], [3.0, 1.0], [3.0, -1.0]]
    >>> abs(LDAMetric(power=1.0).fit(X, ["ann", "ann", "bob", "bob"]).components_[0, 1].round(6)).item()
    0.0
    """

    def __init__(self, shrinkage: float = 0.3, n_components: int | None = None, power: float | str = "auto") -> None:
        super().__init__(shrinkage, power)
        self.n_components = n_components

    def _learn(self, moments: IdentityMoments) -> CosineMetric:
        wanted = self.n_components
        if wanted is not None and (isinstance(wanted, bool) or not isinstance(wanted, (int, np.integer)) or wanted < 1):
            raise ValueError(f"{type(self).__name__}: expected n_components of 1 or more, or None, got {wanted!r}")
        root = moments.within.inverse_root(self._share())
        variances, directions = moments.between(root)
        if not len(variances):  # all identities have one mean: nothing tells them apart, and one direction is kept
            variances, directions = np.zeros(1), np.eye(1, moments.rows.shape[1])
        self.mean_ = moments.mean
        self.between_ = variances[:wanted]
        self.components_ = root.apply(directions[:wanted]).astype(moments.rows.dtype)
        return self
