"""The linear support vector machine, solved by `solvers` where liblinear would take several times as long."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.svm import LinearSVC
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, column_or_1d, validate_data

from ..solvers.linear_path import LinearProblem, Solution
from ..solvers.losses import SquaredHingeLoss

__all__ = ["SquaredHingeSVC"]

#: Shares of the objective that the next step promises at the end of the descents in float32 and float64. The second
#: leaves the objective within about 1e-9 of its minimum, which is liblinear's own at its default tolerance.
_LOOSELY, _TIGHTLY = 1e-6, 1e-10


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
