"""Preprocessing of codes as scikit-learn transformers: signed power, shrunken whitening, and all of it in four words.

A linear head on CNN codes gains or loses a point or two by what is done to the codes first, and which of it helps
differs from set to set. `CodeScaler` puts the usual steps in one fixed order behind plain parameters, so that a grid
or `SearchedHead` can try them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, OneToOneFeatureMixin, TransformerMixin
from sklearn.preprocessing import Normalizer
from sklearn.utils.validation import check_is_fitted, validate_data

from ..solvers.powers import signed_power
from .estimators import ShrunkScaler, ledoit_wolf_share

__all__ = ["CodeScaler", "ShrunkWhitener", "SignedPower"]

_FLOATS = (np.float64, np.float32)

#: Eigenvalues below this part of the largest are rounding, not variance.
_RANK = 1e-10


def _checked_alpha(value: Any, name: str, owner: Any) -> float:
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not 0.0 < value < np.inf:
        raise ValueError(f"{type(owner).__name__}: expected {name} above 0, such as 0.5, got {value!r}")
    return float(value)


class SignedPower(OneToOneFeatureMixin, TransformerMixin, BaseEstimator):
    """Raise each value to a power and keep its sign: x → sign(x) · |x| ** alpha.

    Codes behind a ReLU are skewed: a few large values rule every product. A power below one evens them out (Tukey's
    ladder); above one it does the opposite.

    Parameters
    ----------
    alpha : float, default=0.5
        The power, above 0; 1 leaves the values as they are. 0.25, 0.5 and 2 are usual.

    Attributes
    ----------
    n_features_in_ : int
        Width of the codes.

    References
    ----------
    Razavian et al. 2014, "CNN features off-the-shelf" (arXiv 1403.6382).

    Examples
    --------
    >>> SignedPower(0.5).fit_transform([[4.0, -9.0, 0.0]]).tolist()
    [[2.0, -3.0, 0.0]]
    """

    def __init__(self, alpha: float = 0.5) -> None:
        self.alpha = alpha

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    def fit(self, X: Any, y: Any = None) -> SignedPower:
        """Check X (n_samples, n_features); there is nothing to learn."""
        _checked_alpha(self.alpha, "alpha", self)
        validate_data(self, X, dtype=_FLOATS)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the powers, shape (n_samples, n_features)."""
        alpha = _checked_alpha(self.alpha, "alpha", self)
        X = validate_data(self, X, dtype=_FLOATS, reset=not hasattr(self, "n_features_in_"))
        return signed_power(X, alpha) if alpha != 1.0 else X.copy()


class ShrunkWhitener(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """PCA-whitening whose eigenvalues are shrunk towards their mean, for any number of rows.

    With fewer rows than features plain whitening blows the weakest directions, which are noise, up to the size of the
    strongest. Here the covariance is (1 - s) S + s mu I, mu the mean eigenvalue over all features, also those that no
    row spans. The result has as many columns as directions are kept; what lies outside them is dropped, and no head
    with an L2 penalty could use it, as no training row has any of it.

    Parameters
    ----------
    n_components : int, float or None, default=None
        Directions to keep: so many (fewer where the rows span fewer); as many as hold that share (in (0, 1)) of the
        variance; None: all that the rows span.
    shrinkage : "auto" or float, default="auto"
        Share s of the mean eigenvalue, in [0, 1]; "auto" is Ledoit and Wolf's.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,)
        Means of the rows.
    components_ : ndarray of shape (n_kept, n_features)
        Unit directions, the strongest first; the largest entry of each is positive, so that signs do not depend on the
        routine that found them.
    explained_variance_ : ndarray of shape (n_kept,)
        Eigenvalues of the covariance (of n, not n - 1 rows), not shrunk.
    scale_ : ndarray of shape (n_kept,)
        Shrunken deviations that the coordinates are divided by.
    shrinkage_ : float
        The share used.

    Notes
    -----
    Rows that are all the same span nothing; one column of zeros stands for that.

    References
    ----------
    Ledoit and Wolf 2004, "A well-conditioned estimator for large-dimensional covariance matrices".

    Examples
    --------
    >>> X = [[0.0, 0.0], [4.0, 0.0], [0.0, 2.0], [4.0, 2.0]]
    >>> ShrunkWhitener(shrinkage=0.0).fit_transform(X).round(3).tolist()
    [[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]]
    """

    def __init__(self, n_components: int | float | None = None, shrinkage: str | float = "auto") -> None:
        self.n_components = n_components
        self.shrinkage = shrinkage

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.scale_)

    def fit(self, X: Any, y: Any = None) -> ShrunkWhitener:
        """Decompose the covariance of X (n_samples, n_features)."""
        self._check()
        X = np.asarray(validate_data(self, X, dtype=_FLOATS), dtype=np.float64)
        self.mean_ = X.mean(axis=0)
        centred = X - self.mean_
        values, directions = _principal(centred)
        auto = isinstance(self.shrinkage, str)
        self.shrinkage_ = ledoit_wolf_share(centred) if auto else float(self.shrinkage)
        kept = self._kept(values)
        self.explained_variance_, self.components_ = values[:kept], directions[:kept]
        common = float(values.sum()) / X.shape[1]
        shrunk = (1.0 - self.shrinkage_) * self.explained_variance_ + self.shrinkage_ * common
        self.scale_ = np.where(shrunk > 0.0, np.sqrt(shrunk), 1.0)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return whitened coordinates, shape (n_samples, n_kept)."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=_FLOATS, reset=False)
        white = (X - self.mean_) @ self.components_.T / self.scale_
        return white.astype(X.dtype, copy=False)

    def _check(self) -> None:
        n, s = self.n_components, self.shrinkage
        whole = isinstance(n, (int, np.integer)) and not isinstance(n, bool) and n >= 1
        if n is not None and not whole and not (isinstance(n, (float, np.floating)) and 0.0 < n < 1.0):
            raise ValueError(
                f"ShrunkWhitener: expected n_components of 1 or more, a share between 0 and 1, or None, got {n!r}"
            )
        share = isinstance(s, (int, float, np.integer, np.floating)) and not isinstance(s, bool) and 0.0 <= s <= 1.0
        if s != "auto" if isinstance(s, str) else not share:
            raise ValueError(f"ShrunkWhitener: expected shrinkage 'auto' or a share in [0, 1], got {s!r}")

    def _kept(self, values: np.ndarray) -> int:
        n = self.n_components
        if n is None:
            return len(values)
        if isinstance(n, (int, np.integer)):
            return min(int(n), len(values))
        total = float(values.sum())
        if total == 0.0:
            return 1
        return min(int(np.searchsorted(np.cumsum(values) / total, n)) + 1, len(values))


def _principal(centred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues (descending) and unit directions of the covariance of centred rows, from the smaller Gram matrix."""
    n, d = centred.shape
    values, vectors = np.linalg.eigh(centred @ centred.T if n <= d else centred.T @ centred)
    values, vectors = values[::-1], vectors[:, ::-1]
    keep = values > max(values[0], 0.0) * _RANK
    if not keep.any():
        return np.zeros(1), np.eye(1, d)
    values, vectors = values[keep], vectors[:, keep]
    directions = (centred.T @ (vectors / np.sqrt(values)) if n <= d else vectors).T
    largest = np.take_along_axis(directions, np.abs(directions).argmax(axis=1)[:, None], axis=1)
    return values / n, directions * np.where(largest < 0.0, -1.0, 1.0)


class CodeScaler(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Signed power, then L2-normalisation of the rows, then centring and scaling, each a plain parameter.

    The default, ``CodeScaler()``, is `ShrunkScaler`: what the linear heads of `HEADS` have in front of them.

    Parameters
    ----------
    power : float, default=1.0
        As `SignedPower`; 1 leaves the values as they are.
    norm : {"none", "l2"}, default="none"
        "l2": each row has length one after the power (a row of zeros stays one).
    scale : {"none", "centre", "standard", "whiten"}, default="standard"
        "centre": take the mean out and divide all features by one common deviation, so that a head's penalty means the
        same as behind the others; "standard": `ShrunkScaler`; "whiten": `ShrunkWhitener`.
    prior_rows : float, default=20.0
        Of `ShrunkScaler`.
    n_components, shrinkage
        Of `ShrunkWhitener`.

    Attributes
    ----------
    scaler_ : estimator or None
        The fitted last step, a ShrunkScaler or ShrunkWhitener; None for "none".

    Notes
    -----
    With ``power=1, norm="none"`` it is affine, and a linear head behind it still has a `linear_form`. Leave-one-out
    scores that fit the whitening on all rows are far too low with few rows: choose it by
    folds, with the transformer inside.

    References
    ----------
    Razavian et al. 2014, arXiv 1403.6382 (power and norm before a linear SVM); Wang et al. 2019, arXiv 1911.04623
    (centring).

    Examples
    --------
    >>> CodeScaler(power=0.5, norm="l2", scale="none").fit_transform([[9.0, 16.0]]).tolist()
    [[0.6, 0.8]]
    """

    def __init__(
        self,
        power: float = 1.0,
        norm: str = "none",
        scale: str = "standard",
        *,
        prior_rows: float = 20.0,
        n_components: int | float | None = None,
        shrinkage: str | float = "auto",
    ) -> None:
        self.power = power
        self.norm = norm
        self.scale = scale
        self.prior_rows = prior_rows
        self.n_components = n_components
        self.shrinkage = shrinkage

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

    @property
    def _n_features_out(self) -> int:
        return len(self.scaler_.scale_) if self.scale == "whiten" else self.n_features_in_

    def fit(self, X: Any, y: Any = None) -> CodeScaler:
        """Learn means and deviations of X (n_samples, n_features)."""
        self._check()
        X = self._rows(validate_data(self, X, dtype=_FLOATS))
        if self.scale == "whiten":
            self.scaler_: Any = ShrunkWhitener(self.n_components, self.shrinkage).fit(X)
        elif self.scale == "none":
            self.scaler_ = None
        else:
            self.scaler_ = ShrunkScaler(self.prior_rows).fit(X)
        if self.scale == "centre":
            common = float(np.sqrt(np.mean(self.scaler_.var_)))
            self.scaler_.scale_ = np.full(X.shape[1], common if common > 0.0 else 1.0)
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Return the scaled codes, shape (n_samples, n_features); fewer columns after whitening."""
        check_is_fitted(self, "scaler_")
        X = validate_data(self, X, dtype=_FLOATS, reset=False)
        rows = self._rows(X)
        if self.scaler_ is None:
            return rows.copy() if rows is X else rows
        return self.scaler_.transform(rows)

    def _rows(self, X: np.ndarray) -> np.ndarray:
        X = signed_power(X, float(self.power))
        return Normalizer().transform(X) if self.norm == "l2" else X

    def _check(self) -> None:
        _checked_alpha(self.power, "power", self)
        for name, known in (("norm", ("none", "l2")), ("scale", ("none", "centre", "standard", "whiten"))):
            if getattr(self, name) not in known:
                raise ValueError(f"CodeScaler: expected {name} of {', '.join(known)}, got {getattr(self, name)!r}")
