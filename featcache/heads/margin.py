"""Support vector machines where liblinear and libsvm would take several times as long.

The linear one is solved by `solvers`. That with a Gaussian kernel is libsvm's on a kernel that BLAS has computed.
"""

from __future__ import annotations

import warnings
from itertools import combinations, pairwise
from typing import Any, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics.pairwise import rbf_kernel
from sklearn.svm import SVC, LinearSVC
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data

from ..solvers.blocks import BLOCK_BYTES
from ..solvers.linear_path import LinearProblem, Solution
from ..solvers.losses import SquaredHingeLoss

__all__ = ["GaussianSVC", "SquaredHingeSVC"]

#: Shares of the objective that the next step promises at the end of the descents in float32 and float64. The second
#: leaves the objective within about 1e-9 of its minimum, which is liblinear's own at its default tolerance.
_LOOSELY, _TIGHTLY = 1e-6, 1e-10

#: Rows up to which the kernel of all pairs is held (512 MiB); beyond, libsvm computes the rows that it needs.
_KERNEL_ROWS = 8192


class SquaredHingeSVC(LinearSVC):
    """LinearSVC whose minimum is found for all classes at once by descent.

    The objective is scikit-learn's: squared hinge, one class against the rest, L2 penalty of the weights and the
    intercept. It has one minimum, so nothing but the time differs, and no random state is used. Where other settings
    than `C`, `max_iter` and `random_state` are given, liblinear solves it (Fan et al. 2008).

    Parameters
    ----------
    C : float, default=1.0
        Weight of the rows' losses against the penalty.
    max_iter : int, default=1000
        Steps of each descent at most (there are three), or of liblinear.
    penalty, loss, dual, tol, multi_class, fit_intercept, intercept_scaling, class_weight, verbose, random_state
        As in LinearSVC.

    Attributes
    ----------
    classes_, coef_, intercept_, n_features_in_, n_iter_
        As in LinearSVC; `n_iter_` counts passes over the rows.

    Examples
    --------
    >>> SquaredHingeSVC(C=0.1).fit([[0.0], [1.0], [3.0], [4.0]], [0, 0, 1, 1]).predict([[0.5], [3.5]]).tolist()
    [0, 1]
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows of shape (n, d) and labels (n,); weights of rows (n,) are 0 or more.

        Raises
        ------
        ValueError
            As LinearSVC.
        """
        usual = LinearSVC(C=self.C, max_iter=self.max_iter, random_state=self.random_state, dual=self.dual)
        if self.get_params() != usual.get_params() or hasattr(X, "toarray"):
            return super().fit(X, y, sample_weight)
        self._validate_params()
        X, y = validate_data(self, X, column_or_1d(y, warn=True), dtype=[np.float64, np.float32])
        with warnings.catch_warnings():  # one row per class is no regression problem
            warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
            check_classification_targets(y)
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64, ensure_non_negative=True)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"{type(self).__name__}: expected two classes or more, got 1 class: {self.classes_[0]!r}")
        positive = self.classes_[1:] if len(self.classes_) == 2 else self.classes_
        found = self._solve(X, np.where(y[:, None] == positive, 1.0, -1.0), weight)
        self.coef_, self.intercept_ = np.ascontiguousarray(found.coef[0]), found.intercept[0]
        self.n_iter_ = int(found.passes)
        if not found.converged.all():
            warnings.warn(
                f"{type(self).__name__}: not converged in {self.max_iter} steps; raise max_iter, standardise the codes "
                "or lower C",
                ConvergenceWarning,
                stacklevel=2,
            )
        return self

    def _solve(self, X: np.ndarray, signs: np.ndarray, weight: np.ndarray) -> Solution:
        """Go most of the way in float32 and the rest in float64."""
        penalty = np.asarray([1.0 / (self.C * weight.sum())])

        def problem(**settings: Any) -> LinearProblem:
            loss = SquaredHingeLoss()
            return LinearProblem(X, signs, signs.shape[1], weight[None, :], loss, penalise_intercept=True, **settings)

        fast = problem()
        near = fast.solve(penalty, tol=_LOOSELY, max_iter=self.max_iter)
        exact = problem(dtype="float64", basis=fast.basis)
        point = exact.improve(near, penalty, tol=_TIGHTLY, max_iter=self.max_iter)
        point.passes += near.passes
        return exact.solution(point)


class GaussianSVC(SVC):
    """SVC whose Gaussian kernel is computed once, by BLAS.

    libsvm (Chang and Lin 2011) computes each row of the kernel by itself and anew for each pair of classes, and again
    for `predict` and `decision_function`. The solver, the minimum and the answers are its own, to the rounding of the
    kernel. With another kernel, sparse rows, `probability` or more than 8,192 rows, SVC does it all.

    Parameters
    ----------
    C, kernel, degree, gamma, coef0, shrinking, probability, tol, cache_size, class_weight, verbose, max_iter
        As in SVC.
    decision_function_shape, break_ties, random_state
        As in SVC.

    Attributes
    ----------
    classes_, support_, support_vectors_, n_support_, dual_coef_, intercept_, n_features_in_
        As in SVC.

    Examples
    --------
    >>> GaussianSVC(C=10.0).fit([[0.0], [1.0], [3.0], [4.0]], [0, 1, 1, 0]).predict([[0.5], [2.0], [3.9]]).tolist()
    [0, 1, 0]
    """

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Fit to rows of shape (n, d) and labels (n,); weights of rows (n,) multiply C.

        Raises
        ------
        ValueError
            As SVC.
        """
        if self.kernel != "rbf" or self.probability is True or hasattr(X, "toarray"):
            return super().fit(X, y, sample_weight)
        self._validate_params()
        X, y = validate_data(self, X, y, dtype=np.float64, order="C")
        if len(X) > _KERNEL_ROWS:
            return super().fit(X, y, sample_weight)
        gamma = self._gamma_of(X)
        inner = SVC(**{**self.get_params(), "kernel": "precomputed"}).fit(rbf_kernel(X, gamma=gamma), y, sample_weight)
        params = self.get_params()
        for name, value in vars(inner).items():
            if name not in params:
                setattr(self, name, value)
        # libsvm numbers the rows that are left when those of no weight are gone.
        kept = X if sample_weight is None else X[np.asarray(sample_weight) > 0]
        self.support_vectors_ = kept[self.support_]
        self.n_features_in_, self.shape_fit_, self._gamma = X.shape[1], X.shape, gamma
        return self

    def _gamma_of(self, X: np.ndarray) -> float:
        if self.gamma == "auto":
            return 1.0 / X.shape[1]
        if self.gamma == "scale":
            spread = float(X.var())
            return 1.0 / (X.shape[1] * spread) if spread else 1.0
        return float(self.gamma)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return the scores of rows (n, d): (n, n_classes), of two classes (n,), of "ovo" (n, pairs) in float64."""
        check_is_fitted(self)
        if not self._by_blas(X):
            return super().decision_function(X)
        pairs = self._pairs(X)
        if len(self.classes_) == 2:
            return -pairs[:, 0]
        if self.decision_function_shape == "ovo":
            return pairs
        votes, margins = self._votes(pairs >= 0.0, pairs)
        return votes + margins / (3.0 * (np.abs(margins) + 1.0))  # as scikit-learn: a margin never outweighs a vote

    def predict(self, X: Any) -> np.ndarray:
        """Return the labels (n,) of rows (n, d)."""
        check_is_fitted(self)
        if not self._by_blas(X) or self.break_ties:
            return super().predict(X)
        pairs = self._pairs(X)
        return self.classes_[self._votes(pairs > 0.0, pairs)[0].argmax(axis=1)]

    def _by_blas(self, X: Any) -> bool:
        return self.kernel == "rbf" and not hasattr(X, "toarray") and not self._sparse

    def _pairs(self, X: Any) -> np.ndarray:
        """Return what libsvm compares, for each pair of classes (n, pairs): above 0 is for the first."""
        X = validate_data(self, X, dtype=np.float64, order="C", reset=False)
        vectors, size = self.support_vectors_, len(self.classes_)
        found = np.empty((len(X), size * (size - 1) // 2))
        step = max(1, BLOCK_BYTES // (8 * max(1, len(vectors))))
        for start in range(0, len(X), step):
            rows = slice(start, start + step)
            found[rows] = self._pairs_of(rbf_kernel(X[rows], vectors, gamma=self._gamma))
        return found + self._intercept_

    def _pairs_of(self, kernel: np.ndarray) -> np.ndarray:
        """Sum up the vectors of both classes of each pair, whose coefficients depend on the other class."""
        ends = np.concatenate([[0], np.cumsum(self._n_support)])
        parts = [slice(a, b) for a, b in pairwise(ends.tolist())]
        sums = [kernel[:, own] @ self._dual_coef_[:, own].T for own in parts]
        found = [sums[i][:, j - 1] + sums[j][:, i] for i, j in combinations(range(len(parts)), 2)]
        return np.stack(found, axis=1)

    def _votes(self, first: np.ndarray, pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return each class's duels won and the sum of its margins, both (n, n_classes)."""
        size = len(self.classes_)
        votes, margins = np.zeros((len(pairs), size)), np.zeros((len(pairs), size))
        for column, (i, j) in enumerate(combinations(range(size), 2)):
            votes[:, i] += first[:, column]
            votes[:, j] += ~first[:, column]
            margins[:, i] += pairs[:, column]
            margins[:, j] -= pairs[:, column]
        return votes, margins
