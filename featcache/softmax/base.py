"""What the softmax estimators share: targets, the solution at one C with its certificate, predictions."""

from __future__ import annotations

import warnings
from numbers import Real
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
from ..solvers.linear_path import LinearProblem, Solution
from ..solvers.losses import SigmoidLoss, SoftmaxLoss
from ..solvers.standardised import Standardised

__all__ = ["PROMISE", "SoftmaxBase"]

#: A step that promises this share of `tol` leaves an objective within `tol` of the minimum (bench_heads measures it).
PROMISE = 0.05
#: Below this tolerance float32 is followed by float64.
_FLOAT64_BELOW = 2e-6
#: Problems of up to so many multiplications per pass are solved in float64 to this tolerance: it costs milliseconds.
_SMALL, _TOL_OF_SMALL = 1e5, 1e-12


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

    def _fit_at(self, C: float, X: Any, y: np.ndarray, sample_weight: Any) -> Self:
        row_weight = np.array(_check_sample_weight(sample_weight, np.empty((len(y), 1)), dtype=np.float64, copy=True))
        if (row_weight < 0).any() or not row_weight.any():
            raise ValueError(f"{type(self).__name__}: expected sample_weight of 0 or more with a sum above 0")
        target, columns, loss, class_weight = self._target(y, sample_weight)
        row_weight *= class_weight
        used = row_weight > 0
        if not used.all() and in_memory(X):  # rows of weight 0 do not exist
            X, target, row_weight = X[used], target[used], row_weight[used]
        scaled = Standardised.of(X, row_weight) if self.standardize else None
        weight = row_weight[None, :]
        solution, self.gap_ = self._solve(C, X if scaled is None else scaled.at_hand(), target, columns, weight, loss)
        coef, intercept = solution.coef[0], solution.intercept[0]
        if scaled is not None:
            coef, intercept = scaled.on_features(coef, intercept)
        if columns > 1 and isinstance(loss, SoftmaxLoss):
            intercept = intercept - intercept.mean()  # a free choice
        total = float(C * row_weight.sum())
        self.coef_, self.intercept_ = np.ascontiguousarray(coef), intercept
        self.objective_, self.gap_ = total * float(solution.value[0]), total * self.gap_
        self.n_iter_ = np.asarray([solution.passes], dtype=np.int32)
        if not solution.converged.all():
            warnings.warn(
                f"{type(self).__name__}: {solution.passes} passes miss tol={self.tol}; raise max_iter or lower C",
                ConvergenceWarning,
                stacklevel=3,
            )
        return self

    def _target(self, y: np.ndarray, sample_weight: Any) -> tuple[np.ndarray, int, Any, np.ndarray]:
        """Return the loss's target, its columns, the loss, and the weight of each row by its class."""
        check_classification_targets(y)
        self.multilabel_ = y.ndim == 2 and y.shape[1] > 1
        if self.multilabel_:
            if self.class_weight is not None:
                raise ValueError(
                    f"{type(self).__name__}: class_weight is not for multi-label targets; give sample_weight"
                )
            if type_of_target(y) != "multilabel-indicator" or not np.isin(y, (0, 1)).all():
                raise ValueError(
                    f"{type(self).__name__}: expected a matrix y of 0 and 1 (multi-label), got other numbers"
                )
            self.classes_ = np.arange(y.shape[1])
            return self._smoothed(np.asarray(y)), y.shape[1], SigmoidLoss(), np.ones(len(y))
        y = column_or_1d(y, warn=True)
        self.classes_, codes = np.unique(y, return_inverse=True)
        k = len(self.classes_)
        if k < 2:
            raise ValueError(f"{type(self).__name__}: expected two classes or more, got 1 class: {self.classes_[0]!r}")
        weights = np.ones(k) if self.class_weight is None else self._class_weights(y, sample_weight)
        if k == 2:  # one row of weights, as scikit-learn has it; the softmax of ±s/2 would halve its penalty
            return self._smoothed(codes[:, None]), 1, SigmoidLoss(), weights[codes]
        return codes, k, SoftmaxLoss(self.label_smoothing), weights[codes]

    def _smoothed(self, target: np.ndarray) -> np.ndarray:
        return target * (1.0 - self.label_smoothing) + self.label_smoothing / 2.0

    def _solve(
        self, C: float, X: Any, target: np.ndarray, columns: int, weight: np.ndarray, loss: Any
    ) -> tuple[Solution, float]:
        """Solve in float32, and go on in float64 where that cannot reach the tolerance; certify the outcome."""
        make: dict[str, Any] = {"fit_intercept": self.fit_intercept, "device": self.device}
        steps = int(self.max_iter)
        small = X.shape[0] * min(X.shape) * columns <= _SMALL
        tol = min(self.tol, _TOL_OF_SMALL) if small else self.tol
        penalty = np.asarray([1.0 / (C * float(weight.sum()))])
        problem = LinearProblem(X, target, columns, weight, loss, **make, dtype="float64" if small else "float32")
        point = problem.solve(penalty, tol=(tol if small else max(tol, _FLOAT64_BELOW)) * PROMISE, max_iter=steps)
        if tol < _FLOAT64_BELOW and not small:
            problem = LinearProblem(X, target, columns, weight, loss, **make, dtype="float64", basis=problem.basis)
            point = problem.improve(point, penalty, tol=tol * PROMISE, max_iter=steps)
        converged = point.converged
        if self.fit_intercept:  # the certificate wants intercepts that leave no gradient
            point = problem.improve(point, penalty, tol=1e-12, max_iter=5, intercepts_only=True)
        point.converged = converged
        return problem.solution(point), duality_gap(problem, point, float(penalty[0]))

    def _check_settings(self) -> None:
        for name in ("C", "tol", "max_iter"):
            value = getattr(self, name, 1.0)
            if not isinstance(value, Real) or not 0.0 < float(value) < np.inf:
                raise ValueError(f"{type(self).__name__}: expected a finite {name} above 0, got {value!r}")
        if not isinstance(self.label_smoothing, Real) or not 0.0 <= float(self.label_smoothing) < 1.0:
            raise ValueError(f"{type(self).__name__}: expected label_smoothing in [0, 1), got {self.label_smoothing!r}")

    def _class_weights(self, y: np.ndarray, sample_weight: Any) -> np.ndarray:
        return compute_class_weight(self.class_weight, classes=self.classes_, y=y, sample_weight=sample_weight)

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
