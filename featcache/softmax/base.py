"""What the softmax estimators share: targets, the solution at one C with its certificate, predictions."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from scipy.special import log_expit, log_softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, column_or_1d, validate_data

from ..solvers.blocks import in_memory
from ..solvers.certificate import duality_gap
from ..solvers.descent import Point, host
from ..solvers.linear_path import LinearProblem, Solution
from ..solvers.losses import SigmoidLoss, SoftmaxLoss
from ..solvers.standardised import Standardised

__all__ = ["SoftmaxBase", "Training"]

#: A step that promises this share of `tol` leaves an objective within about `tol` of the minimum.
_PROMISE = 0.03
#: Below this tolerance float32 is followed by float64.
_FLOAT64_BELOW = 2e-6
#: Problems of up to so many multiplications per pass are solved in float64 to this tolerance: it costs milliseconds.
_SMALL, _TOL_OF_SMALL = 1e5, 1e-18


#: The largest weight of a row is more than this, and less than its inverse.
_TINY = 1e-100
#: The bound is often some ten times what is missing. Where it is so many times `tol`, or this share of the objective,
#: something is wrong.
_MANY, _SHARE = 100.0, 1e-3


def _doubtful(tol: float, at: Point | Solution) -> float:
    """The bound from which on a solution is not trusted, in units of the mean loss."""
    return max(_MANY * tol, _SHARE) * abs(float(host(at.value)[0]))


@dataclass(frozen=True)
class Training:
    """Checked training rows.

    Attributes
    ----------
    X : array-like of shape (n, d)
    target : ndarray
        Of the loss: int of shape (n,), or (n, columns).
    columns : int
    loss : SoftmaxLoss or SigmoidLoss
    weight : ndarray of shape (n,)
        Of the rows in the loss: sample weight times class weight.
    row_weight : ndarray of shape (n,)
        Of the rows as rows: sample weight alone.
    """

    X: Any
    target: np.ndarray
    columns: int
    loss: SoftmaxLoss | SigmoidLoss
    weight: np.ndarray
    row_weight: np.ndarray

    def standardised(self) -> Standardised:
        """The rows, standardised as ShrunkScaler does, whatever the classes weigh."""
        return Standardised.of(self.X, self.row_weight)


class SoftmaxBase(ClassifierMixin, BaseEstimator):
    """Fitting at one C, and predictions; the settings are those of `SoftmaxClassifier`."""

    classes_: np.ndarray
    multilabel_: bool = False  # as it is in heads that were saved before there was another
    class_weight: Any
    fit_intercept: bool
    label_smoothing: float
    standardize: bool
    tol: float
    max_iter: int
    device: str

    def _training(self, X: Any, y: np.ndarray, sample_weight: Any) -> Training:
        """Check labels and weights; rows of weight 0 do not exist, and neither do classes that have no others."""
        who = type(self).__name__
        weight = np.array(_check_sample_weight(sample_weight, np.empty((len(y), 1)), dtype=np.float64, copy=True))
        if (weight < 0).any() or not _TINY < float(weight.max(initial=0.0)) < 1.0 / _TINY:
            raise ValueError(f"{who}: expected sample_weight of 0 or more with a sum above 0 (1e-100 to 1e100)")
        used = weight > 0
        if not used.all() and in_memory(X):
            X, y, weight, used = X[used], y[used], weight[used], used[used]
        with warnings.catch_warnings():  # one row per class is no regression problem
            warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
            check_classification_targets(y)
        self.multilabel_ = y.ndim == 2 and y.shape[1] > 1
        if self.multilabel_:
            return self._many_labels(X, y, weight)
        y = column_or_1d(y, warn=True)
        self.classes_ = np.unique(y[used])
        k = len(self.classes_)
        if k < 2:
            raise ValueError(f"{who}: expected two classes or more, got 1 class: {self.classes_[0]!r}")
        codes = np.minimum(np.searchsorted(self.classes_, y), k - 1)  # rows of weight 0 on disk may have other labels
        by_class = np.ones(k)
        if self.class_weight is not None:
            by_class = compute_class_weight(
                self.class_weight, classes=self.classes_, y=y[used], sample_weight=weight[used]
            )
        if not (np.isfinite(by_class).all() and (by_class > 0).all()):
            raise ValueError(f"{who}: expected class weights above 0, got {by_class.tolist()}")
        balanced = weight * by_class[codes]
        if k == 2:  # one row of weights, as scikit-learn has it; the softmax of ±s/2 would halve its penalty
            return Training(X, self._smoothed(codes[:, None]), 1, SigmoidLoss(), balanced, weight)
        return Training(X, codes, k, SoftmaxLoss(self.label_smoothing), balanced, weight)

    def _many_labels(self, X: Any, y: np.ndarray, weight: np.ndarray) -> Training:
        if self.class_weight is not None:
            raise ValueError(f"{type(self).__name__}: class_weight is not for multi-label targets; give sample_weight")
        if type_of_target(y) != "multilabel-indicator" or not np.isin(y, (0, 1)).all():
            raise ValueError(f"{type(self).__name__}: expected a matrix y of 0 and 1 (multi-label), got other numbers")
        self.classes_ = np.arange(y.shape[1])
        return Training(X, self._smoothed(np.asarray(y)), y.shape[1], SigmoidLoss(), weight, weight)

    def _smoothed(self, target: np.ndarray) -> np.ndarray:
        return target * (1.0 - self.label_smoothing) + self.label_smoothing / 2.0

    def _fit_at(self, C: float, data: Training) -> Self:
        """Solve at one C and set the fitted attributes."""
        scaled = data.standardised() if self.standardize else None
        rows = data.X if scaled is None else scaled.at_hand()
        total = float(C * data.weight.sum())
        solution, gap = self._solve(total, rows, data)
        coef, intercept = solution.coef[0], solution.intercept[0]
        if scaled is not None:
            coef, intercept = scaled.on_features(coef, intercept)
        if isinstance(data.loss, SoftmaxLoss):
            intercept = intercept - intercept.mean()  # a free choice
        self.coef_, self.intercept_ = np.ascontiguousarray(coef), intercept
        self.objective_, self.gap_ = total * float(solution.value[0]), total * gap
        self.n_iter_ = np.asarray([solution.passes], dtype=np.int32)
        allowed = self.tol * self.objective_
        doubtful = self.gap_ > total * _doubtful(self.tol, solution)
        if (not solution.converged.all() and self.gap_ > allowed) or doubtful:
            ended = solution.passes < self.max_iter
            why = ", and rounding lets it fall no more; " if ended else "; raise max_iter, "
            warnings.warn(
                f"{type(self).__name__}: after {solution.passes} passes the objective may be {self.gap_:.2g} above its "
                f"minimum, tol={self.tol:g} allows {allowed:.2g}{why}standardise the codes or lower C",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def _solve(self, total: float, rows: Any, data: Training) -> tuple[Solution, float]:
        """Solve in float32, go on in float64 where that does not reach the tolerance, and certify the outcome."""
        steps, penalty = int(self.max_iter), np.asarray([1.0 / total])
        small = rows.shape[0] * min(rows.shape) * data.columns <= _SMALL
        tol = min(self.tol, _TOL_OF_SMALL) if small else self.tol
        problem = self._problem(rows, data, data.weight[None, :], dtype="float64" if small else "float32")
        loosely = max(tol, _FLOAT64_BELOW)
        point = problem.solve(penalty, tol=loosely * _PROMISE, max_iter=steps, enough=loosely)
        stuck = not point.converged.all() and point.passes < steps
        if small and tol < loosely:
            point = problem.improve(point, penalty, tol=tol * _PROMISE, max_iter=steps)
        point, gap = self._settled(problem, point, penalty)
        if not small and (tol < loosely or stuck or gap > _doubtful(tol, point)):
            problem = self._problem(rows, data, data.weight[None, :], dtype="float64", basis=problem.basis)
            point = problem.improve(point, penalty, tol=tol * _PROMISE, max_iter=steps)
            point, gap = self._settled(problem, point, penalty)
        return problem.solution(point), gap

    def _settled(self, problem: LinearProblem, point: Point, penalty: np.ndarray) -> tuple[Point, float]:
        """Return the point with intercepts that leave no gradient, as the certificate wants them, and its gap."""
        converged = point.converged
        if self.fit_intercept:
            point = problem.improve(point, penalty, tol=1e-11, max_iter=5, intercepts_only=True)
        point.converged = converged
        return point, duality_gap(problem, point, float(penalty[0]))

    def _problem(self, rows: Any, data: Training, weight: np.ndarray, **settings: Any) -> LinearProblem:
        """The problem of one weighting of the rows (1, n) or of several (folds, n)."""
        return LinearProblem(
            rows,
            data.target,
            data.columns,
            weight,
            data.loss,
            fit_intercept=self.fit_intercept,
            device=self.device,
            **settings,
        )

    def _check_settings(self) -> None:
        who = type(self).__name__
        for name in ("C", "tol"):
            value = getattr(self, name, 1.0)
            if not isinstance(value, Real) or not 0.0 < float(value) < np.inf:
                raise ValueError(f"{who}: expected a finite {name} above 0, got {value!r}")
        if not isinstance(self.max_iter, Integral) or self.max_iter < 1:
            raise ValueError(f"{who}: expected a max_iter of 1 or more, got {self.max_iter!r}")
        if not isinstance(self.label_smoothing, Real) or not 0.0 <= float(self.label_smoothing) < 1.0:
            raise ValueError(f"{who}: expected label_smoothing in [0, 1), got {self.label_smoothing!r}")

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores of shape (n_samples, n_classes), or (n_samples,) for two classes."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.intercept_) == 1 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each row, shape (n_samples,); for multi-label a matrix of 0 and 1."""
        scores = self.decision_function(X)
        if self.multilabel_:
            return (scores > 0).astype(np.int64)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return log probabilities of shape (n_samples, n_classes)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.column_stack([log_expit(-scores), log_expit(scores)])
        return log_expit(scores) if self.multilabel_ else log_softmax(scores, axis=1)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities of shape (n_samples, n_classes); rows sum to 1, except for multi-label."""
        return np.exp(self.predict_log_proba(X))
