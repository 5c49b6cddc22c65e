"""SoftmaxClassifier: multinomial logistic regression in torch, as an ordinary scikit-learn estimator."""

from __future__ import annotations

import warnings
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

if TYPE_CHECKING:
    import torch

__all__ = ["SoftmaxClassifier"]


class SoftmaxClassifier(ClassifierMixin, BaseEstimator):
    """Multinomial logistic regression with L2 penalty, fitted by preconditioned full-batch L-BFGS in torch.

    The optimum is that of ``sklearn.linear_model.LogisticRegression`` with the same C: the sum of the log losses times
    C plus half the squared weights; the intercept is not penalised. Two classes give one row of weights, as there.

    Parameters
    ----------
    C : float, default=1.0
        Inverse strength of the penalty, > 0.
    class_weight : dict, "balanced" or None, default=None
        Weight per label; "balanced" is n_samples / (n_classes * count).
    tol : float, default=1e-6
        Stop when no component of the gradient of the mean loss, in preconditioned coordinates, exceeds this.
    max_iter : int, default=500
        L-BFGS iterations at most; a ConvergenceWarning says when they did not suffice.
    device : str, default="cpu"
        A torch device with float64, e.g. "cuda".

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    coef_ : ndarray of shape (n_classes, n_features), or (1, n_features) for two classes
        Weights, float64.
    intercept_ : ndarray of shape (n_classes,) or (1,)
        Intercepts, float64.
    n_iter_ : ndarray of shape (1,)
        L-BFGS iterations done.
    n_features_in_ : int
        Features seen in `fit`.

    Notes
    -----
    Features are centred (the intercept absorbs it) and rotated to the eigenbasis of their covariance, of at most
    min(n_samples, n_features) coordinates; each is scaled by the bound s/2 + penalty on its curvature, s the
    eigenvalue [1]_. L2-penalised weights have no part outside that basis, so nothing is lost. Computed in float64.

    References
    ----------
    .. [1] D. Böhning, "Multinomial logistic regression algorithm", Annals of the Institute of Statistical
       Mathematics 44 (1992), 197-200.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> SoftmaxClassifier(C=1.0).fit(X, y).coef_.shape
    (3, 4)
    """

    def __init__(
        self,
        C: float = 1.0,
        *,
        class_weight: Any = None,
        tol: float = 1e-6,
        max_iter: int = 500,
        device: str = "cpu",
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> SoftmaxClassifier:
        """Fit the weights.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes.
        y : array-like of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights >= 0 of the rows; None: 1.

        Returns
        -------
        SoftmaxClassifier
            Itself.

        Raises
        ------
        ValueError
            One class only, C or other settings out of range, NaN or Inf in X.
        """
        import torch

        self._check_settings()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"SoftmaxClassifier: expected two classes or more, got 1 class: {self.classes_[0]!r}")
        row_weight = np.array(_check_sample_weight(sample_weight, X, dtype=np.float64, copy=True))
        if (row_weight < 0).any() or not row_weight.any():
            raise ValueError("SoftmaxClassifier: expected sample_weight of 0 or more with a sum above 0")
        if self.class_weight is not None:
            row_weight *= self._class_weights(y, sample_weight)[codes]
        with torch.no_grad():
            problem = _Problem(X, codes, row_weight, len(self.classes_), self.C, self.device)
            theta, n_iter, converged = problem.solve(self.tol, self.max_iter)
            coef, intercept = problem.in_features(theta)
        self.n_iter_ = np.asarray([n_iter], dtype=np.int32)
        if not converged:
            warnings.warn(
                f"SoftmaxClassifier: {n_iter} iterations did not reach tol={self.tol}; raise max_iter or lower C",
                ConvergenceWarning,
                stacklevel=2,
            )
        if len(self.classes_) == 2:
            coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
        self.coef_, self.intercept_ = coef, intercept
        return self

    def _check_settings(self) -> None:
        for name in ("C", "tol", "max_iter"):
            value = getattr(self, name)
            if not isinstance(value, Real) or not 0.0 < float(value) < np.inf:
                raise ValueError(f"SoftmaxClassifier: expected a finite {name} above 0, got {value!r}")

    def _class_weights(self, y: np.ndarray, sample_weight: Any) -> np.ndarray:
        try:  # scikit-learn 1.6 and later balance by the sum of the row weights
            return compute_class_weight(self.class_weight, classes=self.classes_, y=y, sample_weight=sample_weight)
        except TypeError:
            return compute_class_weight(self.class_weight, classes=self.classes_, y=y)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores of shape (n_samples, n_classes), or (n_samples,) for two classes."""
        check_is_fitted(self)
        X = validate_data(self, X, dtype=[np.float64, np.float32], reset=False)
        scores = X @ self.coef_.T + self.intercept_
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each row, shape (n_samples,)."""
        scores = self.decision_function(X)
        return self.classes_[(scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)]

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return log probabilities of shape (n_samples, n_classes)."""
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return np.column_stack([-np.logaddexp(0.0, scores), -np.logaddexp(0.0, -scores)])
        return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities of shape (n_samples, n_classes); rows sum to 1."""
        return np.exp(self.predict_log_proba(X))


class _Problem:
    """The convex problem in preconditioned coordinates, and the way back to features."""

    def __init__(self, X: np.ndarray, codes: np.ndarray, weight: np.ndarray, k: int, C: float, device: str) -> None:
        import torch

        used = weight > 0  # rows of weight 0 do not exist; without them the spread of the rest is right
        self.k, total = k, float(weight.sum())
        # Two rows of weights ±w/2 carry half the penalty of the one row w that scikit-learn penalises.
        self.penalty = (2.0 if k == 2 else 1.0) / (C * total)
        rows = torch.as_tensor(np.ascontiguousarray(X[used]), device=device).to(torch.float64)
        self.weight = torch.as_tensor(weight[used] / total, device=device)[:, None]
        self.target = torch.nn.functional.one_hot(torch.as_tensor(codes[used], device=device).long(), k).double()
        self.mean = (self.weight * rows).sum(dim=0)
        rows = rows - self.mean
        self.basis, spread = self._eigenbasis(rows)
        self.scale = (0.5 * spread + self.penalty).rsqrt()
        self.rows = (rows @ self.basis) * self.scale
        self.damp = (self.penalty * self.scale**2)[:, None]

    def _eigenbasis(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Orthonormal columns (d, r) that span the centred rows, and the weighted spread s along each (r,)."""
        import torch

        weighted = rows * self.weight.sqrt()
        wide = rows.shape[0] <= rows.shape[1]
        spread, vectors = torch.linalg.eigh(weighted @ weighted.T if wide else weighted.T @ weighted)
        keep = spread > spread[-1].clamp_min(0.0) * 1e-12
        spread, vectors = spread[keep], vectors[:, keep]
        return (weighted.T @ (vectors * spread.rsqrt()) if wide else vectors), spread

    def loss_and_gradient(self, theta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean loss plus penalty, and its gradient, at theta (r + 1, k); the last row is the intercept."""
        import torch

        log_p = torch.log_softmax(self.rows @ theta[:-1] + theta[-1], dim=1)
        damped = self.damp * theta[:-1]
        loss = -(self.weight * self.target * log_p).sum() + 0.5 * (damped * theta[:-1]).sum()
        error = self.weight * (log_p.exp() - self.target)
        return loss, torch.cat([self.rows.T @ error + damped, error.sum(dim=0, keepdim=True)])

    def solve(self, tol: float, max_iter: int) -> tuple[torch.Tensor, int, bool]:
        """Minimise from zero weights and the log priors; return (theta, iterations, converged)."""
        import torch

        theta = torch.zeros((self.rows.shape[1] + 1, self.k), dtype=torch.float64, device=self.rows.device)
        theta[-1] = (self.weight * self.target).sum(dim=0).clamp_min(1e-12).log()
        theta.requires_grad_(True)
        optimizer = torch.optim.LBFGS(
            [theta],
            max_iter=max_iter,
            max_eval=4 * max_iter,
            history_size=20,
            tolerance_grad=tol,
            tolerance_change=1e-14,
            line_search_fn="strong_wolfe",
        )

        def closure() -> torch.Tensor:
            loss, theta.grad = self.loss_and_gradient(theta)
            return loss

        optimizer.step(closure)
        state = optimizer.state[theta]
        _, gradient = self.loss_and_gradient(theta)
        # Progress below float64's resolution also ends the search; a gradient a little above tol is then all there is.
        return theta.detach(), int(state["n_iter"]), bool(gradient.abs().max() <= max(100 * tol, 1e-10))

    def in_features(self, theta: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return coef (k, d) and intercept (k,) for raw features; the intercepts sum to zero, a free choice."""
        coef = (self.basis @ (self.scale[:, None] * theta[:-1])).T
        intercept = theta[-1] - theta[-1].mean() - coef @ self.mean
        return coef.cpu().numpy(), intercept.cpu().numpy()
