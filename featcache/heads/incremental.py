"""What the heads from sums share: scores that are an affine map, rows that are added, sums that are merged."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ..errors import HeadError
from ..solvers.blocks import row_blocks
from ..solvers.moments import ClassMoments
from .rows import check_classes

__all__ = ["NEVER", "ClassSums", "LinearScores", "check_choice", "fit_blocks", "row_weights", "same_settings"]

#: The intercept of a class that was announced and has no row yet: finite, so that files and networks can hold it.
NEVER = -1e30


class LinearScores(ClassifierMixin, BaseEstimator):
    """Scores that are an affine map of the input: one row of `coef_` per class, or a single one for two classes."""

    coef_: np.ndarray
    intercept_: np.ndarray
    classes_: np.ndarray

    def _class_scores(self, X: Any) -> np.ndarray:
        check_is_fitted(self, "coef_")
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        return X @ self.coef_.T + self.intercept_

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores of shape (n_samples, n_classes); (n_samples,) for two classes, as scikit-learn does."""
        scores = self._class_scores(X)
        if scores.shape[1] == 1:
            return scores[:, 0]
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the class of the highest score, shape (n_samples,)."""
        scores = self._class_scores(X)
        best = (scores[:, 0] > 0).astype(np.intp) if scores.shape[1] == 1 else scores.argmax(axis=1)
        return self.classes_[best]


class ClassSums(LinearScores):
    """A classifier that follows from the sums of its classes, whatever way the rows came."""

    #: Whether the (n_features, n_features) scatter is needed.
    _scatter = True

    sums_: dict[str, np.ndarray]

    def _check_settings(self) -> None:
        """Raise ValueError for settings out of range."""

    def _check_additive(self) -> None:
        """Raise ValueError for settings that need all rows at once."""

    def _check_classes(self, n_classes: int) -> None:
        """Raise ValueError for settings that do not fit so many classes."""

    def _prepared(self, X: np.ndarray) -> np.ndarray:
        """Return rows as they enter the sums."""
        return X

    def _fit_rows(self, X: Any, codes: np.ndarray, weight: np.ndarray | None) -> None:
        """Solve from rows; here by way of their sums, which are kept."""
        sums = ClassMoments(X.shape[1], len(self.classes_), scatter=self._scatter)
        for rows, block in row_blocks(X, dtype=np.float64):
            sums.update(self._prepared(block), codes[rows], None if weight is None else weight[rows])
        self.sums_ = sums.state()
        self._solve(sums)

    def _solve(self, sums: ClassMoments) -> None:
        """Set the solution from sums."""
        raise NotImplementedError

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """Fit on all rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes.
        y : array-like of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of 0 or more; None: 1. A row of weight 2 counts as two rows.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            One class only, settings out of range, NaN or Inf in X, negative weights.
        """
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classes(y)
        self._begin(y)
        codes = np.searchsorted(self.classes_, y)
        weight = self._weights(y, X, sample_weight, whole=True)
        if weight is not None and not (weight > 0).all():
            X, codes, weight = X[weight > 0], codes[weight > 0], weight[weight > 0]
        self._fit_rows(X, codes, weight)
        return self

    def _begin(self, y: np.ndarray) -> None:
        self.classes_ = np.unique(y)
        for name in ("sums_", "coef_"):
            self.__dict__.pop(name, None)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__}: expected two classes or more, got 1 class: {self.classes_[0]!r}")

    def _weights(self, y: np.ndarray, X: Any, sample_weight: Any, *, whole: bool) -> np.ndarray | None:
        class_weight = getattr(self, "class_weight", None)
        return row_weights(self, y, X, sample_weight, class_weight, self.classes_, whole=whole)

    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Any:
        """Add rows; afterwards the estimator is what one fit to all rows so far would give, up to rounding.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes, in memory; for data that are not, see `fit_blocks`. Every call solves anew, so large chunks are
            cheaper than small ones.
        y : array-like of shape (n_samples,)
            Labels; new ones may turn up in any chunk.
        classes : array-like, default=None
            Labels to know of from now on. One without rows is never predicted.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights of 0 or more; None: 1.

        Returns
        -------
        self
            Ready to predict as soon as two classes are known.

        Raises
        ------
        ValueError
            As in `fit`; also where the last fit kept no sums that rows could be added to.
        """
        self._check_settings()
        self._check_additive()
        if not hasattr(self, "sums_") and hasattr(self, "coef_"):
            raise ValueError(
                f"{type(self).__name__}: fit kept no sums that rows could be added to; begin with partial_fit, or fit "
                "with keep_sums=True"
            )
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32], reset=not hasattr(self, "sums_"))
        check_classes(y)
        y = _as_text(y)
        labels = np.unique(y) if classes is None else np.union1d(np.unique(y), np.unique(_as_text(classes)))
        with self._all_or_nothing():
            sums = self._know(labels, X.shape[1])
            weight = self._weights(y, X, sample_weight, whole=False)
            sums.update(self._prepared(X), np.searchsorted(self.classes_, y), weight)
            return self._keep(sums)

    @contextlib.contextmanager
    def _all_or_nothing(self) -> Iterator[None]:
        """Take back what was set where rows are refused half way."""
        before = dict(self.__dict__)
        try:
            yield
        except BaseException:
            self.__dict__.clear()
            self.__dict__.update(before)
            raise

    def _know(self, labels: np.ndarray, n_features: int) -> ClassMoments:
        """Return the sums with room for these labels, too."""
        if not hasattr(self, "sums_"):
            self._check_classes(len(labels))
            self.classes_ = labels
            return ClassMoments(n_features, len(labels), scatter=self._scatter)
        labels, known = _as_text(labels), _as_text(self.classes_)
        if (labels.dtype.kind in "US") != (known.dtype.kind in "US"):
            raise ValueError(
                f"{type(self).__name__}: expected labels of the kind of {self.classes_[0]!r}, got {labels[0]!r}"
            )
        sums = ClassMoments.from_state(self.sums_).copy()  # those of `self` stay until all is well
        known = np.union1d(known, labels)
        self._check_classes(len(known))
        if len(known) > len(self.classes_):
            sums.spread_to(np.searchsorted(known, _as_text(self.classes_)), len(known))
        self.classes_ = known
        return sums

    def _keep(self, sums: ClassMoments) -> Any:
        self.sums_ = sums.state()
        if len(self.classes_) >= 2 and sums.weights.sum() > 0:
            self._solve(sums)
        return self

    def merge(self, other: Any) -> Any:
        """Add the rows of another estimator of this class that was fitted in chunks; it stays as it is.

        Parameters
        ----------
        other : estimator
            With sums of the same features and settings; its classes may be others.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            Another class, other settings or features, or no sums.
        """
        name = type(self).__name__
        for one in (self, other):
            if type(one) is not type(self) or not hasattr(one, "sums_"):
                raise ValueError(
                    f"{name}.merge: expected two {name} with sums (partial_fit, or fit with keep_sums=True), got "
                    f"{type(one).__name__}{'' if hasattr(one, 'sums_') else ' without sums'}"
                )
        if self.n_features_in_ != other.n_features_in_ or not same_settings(self, other):
            raise ValueError(
                f"{name}.merge: expected the same settings and {self.n_features_in_} features, got {other} and "
                f"{other.n_features_in_}"
            )
        theirs = ClassMoments.from_state(other.sums_)
        with self._all_or_nothing():
            sums = self._know(other.classes_, self.n_features_in_)
            if len(other.classes_) != len(self.classes_):
                theirs.spread_to(np.searchsorted(self.classes_, _as_text(other.classes_)), len(self.classes_))
            sums.merge(theirs)
            return self._keep(sums)


def _as_text(labels: Any) -> np.ndarray:
    """Return labels as an array; objects that are all str (a column of pandas) as text."""
    labels = np.asarray(labels)
    words = labels.dtype.kind == "O" and labels.size > 0 and all(isinstance(label, str) for label in labels.flat)
    return labels.astype(np.str_) if words else labels


def row_weights(
    estimator: Any,
    y: np.ndarray,
    X: Any,
    sample_weight: Any,
    class_weight: Any,
    classes: np.ndarray | None,
    *,
    whole: bool,
) -> np.ndarray | None:
    """Return the weight of each row, None for 1; `whole` says that these are all rows there will be."""
    name = type(estimator).__name__
    weight = None
    if sample_weight is not None:
        weight = np.array(_check_sample_weight(sample_weight, X, dtype=np.float64, copy=True))
        if (weight < 0).any() or whole and not weight.any():
            raise ValueError(f"{name}: expected sample_weight of 0 or more with a sum above 0")
    if class_weight is None or classes is None:
        return weight
    codes = np.searchsorted(classes, y)
    if isinstance(class_weight, dict):
        each = np.array([float(class_weight.get(label, 1.0)) for label in classes.tolist()])
        if not (each >= 0).all() or not np.isfinite(each).all():
            raise ValueError(f"{name}: expected a class_weight of 0 or more for each label, got {class_weight!r}")
    elif class_weight == "balanced":
        if not whole:
            raise ValueError(
                f"{name}: class_weight='balanced' needs the counts of all rows, so rows cannot be added; give the "
                "weights as a dict, or targets='balanced' for ridge"
            )
        counts = np.bincount(codes, weight, minlength=len(classes))
        each = counts.sum() / (np.count_nonzero(counts) * np.where(counts > 0, counts, np.inf))
    else:
        raise ValueError(f"{name}: expected class_weight None, 'balanced' or a dict, got {class_weight!r}")
    return each[codes] * (1.0 if weight is None else weight)


def fit_blocks(estimator: Any, X: Any, y: Any, sample_weight: Any = None) -> Any:
    """Fit a head from sums to codes that need not fit in memory.

    Codes are read block by block, in float64 for the sums, once; a ridge head with ``select="loo"`` reads them a second
    time for its leave-one-out errors, any other ridge head chooses alpha by generalised cross-validation. Memory
    is that of one block and of the sums.

    Parameters
    ----------
    estimator : estimator
        IncrementalRidgeClassifier, IncrementalRidge, LDAClassifier, CentroidClassifier or SimpleShotClassifier. What
        it had learned is forgotten.
    X : array-like of shape (n_samples, n_features)
        Whatever has a shape and gives rows for a slice: an array, a map on disk, ``FeatureStore.dataset().codes``.
    y : array-like of shape (n_samples,) or (n_samples, n_targets)
        Labels or targets, in memory.
    sample_weight : array-like of shape (n_samples,), default=None
        Weights of 0 or more; None: 1.

    Returns
    -------
    estimator
        Fitted, with its sums, so that `partial_fit` goes on from here.

    Raises
    ------
    HeadError
        Another estimator, shapes that do not fit, NaN or Inf in a block (with its rows).
    ValueError
        Labels, weights or settings that the estimator refuses.

    Examples
    --------
    >>> from featcache.heads.closed_forms import CentroidClassifier
    >>> codes = np.array([[0.0], [1.0], [5.0]], dtype=np.float16)
    >>> fit_blocks(CentroidClassifier(), codes, ["a", "a", "b"]).predict([[2.0], [4.0]]).tolist()
    ['a', 'b']
    """
    if not hasattr(estimator, "_fit_blocks") and not isinstance(estimator, ClassSums):
        raise HeadError(
            f"fit_blocks: expected a head that is fitted from sums, got {type(estimator).__name__}; use fit"
        )
    y = np.asarray(y)
    shape = getattr(X, "shape", type(X).__name__)
    if y.ndim == 0 or not isinstance(shape, tuple) or len(shape) != 2 or shape[0] != len(y) or 0 in shape:
        raise HeadError(
            f"fit_blocks: expected X of shape (n, d) with n labels, got {shape} with labels of shape {y.shape}"
        )
    estimator._check_settings()
    source = _Finite(X)
    estimator.n_features_in_ = X.shape[1]
    if not isinstance(estimator, ClassSums):
        return estimator._fit_blocks(source, y, sample_weight)
    after = getattr(estimator, "_solve_with_rows", None)
    if after is None:
        estimator._check_additive()
    check_classes(y)
    estimator._begin(y)
    weight = estimator._weights(y, np.empty((len(y), 0)), sample_weight, whole=True)
    sums = ClassMoments(X.shape[1], len(estimator.classes_), scatter=estimator._scatter)
    codes = np.searchsorted(estimator.classes_, y)
    for rows, block in row_blocks(source, dtype=np.float64):
        sums.update(estimator._prepared(block), codes[rows], None if weight is None else weight[rows])
    estimator.sums_ = sums.state()
    if after is None:
        estimator._solve(sums)
    else:
        after(sums, source, codes, weight)
    return estimator


def same_settings(one: Any, two: Any) -> bool:
    """Return whether two estimators of one class have equal parameters, arrays among them."""
    mine, theirs = one.get_params(deep=False), two.get_params(deep=False)
    return all(np.array_equal(np.asarray(mine[name]), np.asarray(theirs[name])) for name in mine)


class _Finite:
    """Rows of anything sliceable, refused where they are no finite numbers."""

    def __init__(self, X: Any) -> None:
        self._X, self.shape = X, tuple(X.shape)

    def __getitem__(self, rows: slice) -> np.ndarray:
        block = np.asarray(self._X[rows])
        if not np.isfinite(block).all():
            bad = rows.start + int(np.flatnonzero(~np.isfinite(block).all(axis=1))[0])
            raise HeadError(f"codes: expected finite numbers, row {bad} holds NaN or Inf; extract it again or drop it")
        return block


def check_choice(estimator: Any, setting: str, choices: tuple[str, ...]) -> None:
    """Raise ValueError when a setting is none of the choices."""
    value = getattr(estimator, setting)
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{type(estimator).__name__}: expected {setting} one of {', '.join(choices)}, got {value!r}")
