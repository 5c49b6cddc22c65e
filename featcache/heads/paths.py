"""What a whole grid of settings predicts on held-out rows, at little more than the price of one fit.

A path is a generator: given training rows and validation rows it yields, for one value of the grid after the other, the
predicted class codes and a loss that breaks ties. Each shares among the values what they have in common (a rotation, a
distance matrix, a decomposition) and starts each fit from the last one. Paths only choose settings; the head that the
user gets is fitted anew by its own estimator.

Heads with an L2 penalty do not notice a rotation of the features, so their problems are solved in the eigenbasis
of the training rows: at most as many coordinates as rows, exactly. There the curvature of the softmax loss is bounded
by s/2 per coordinate (Böhning 1992) and that of the squared hinge loss by 2 s, s the eigenvalues of the covariance.
Scaling by that bound makes L-BFGS take tens of passes where it would take hundreds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from .estimators import ShrunkScaler

__all__ = ["estimator_path", "hinge_path", "knn_path", "logistic_path", "rbf_path", "ridge_loo", "ridge_path"]

#: One step of a path: predicted codes (n_val,) and a loss (smaller is better; 0.0 where the head has none).
Step = tuple[np.ndarray, float]
Path = Iterator[Step]


class _Rotated:
    """Standardised rows in the eigenbasis of the training rows, with the eigenvalues of their covariance.

    Parameters
    ----------
    X, X_val : ndarray of shape (n, d) and (n_val, d)
        Raw codes; mean and deviation come from X alone.
    scaler : transformer, default=None
        What stands before the head in place of ShrunkScaler; not fitted yet.
    """

    def __init__(self, X: np.ndarray, X_val: np.ndarray, scaler: Any = None) -> None:
        X, X_val = standardised(X, X_val, scaler)
        n, d = X.shape
        values, vectors = np.linalg.eigh(X @ X.T if n <= d else X.T @ X)
        keep = values > max(values[-1], 0.0) * 1e-10
        values, vectors = values[keep], vectors[:, keep]
        basis = X.T @ (vectors / np.sqrt(values)) if n <= d else vectors
        self.rows = vectors * np.sqrt(values) if n <= d else X @ basis
        self.val = X_val @ basis
        self.spread = values / n


def standardised(X: np.ndarray, X_val: np.ndarray, scaler: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Standardise both by the rows X as the heads do, or as another transformer does, in float64."""
    scaler = (ShrunkScaler() if scaler is None else scaler).fit(X.astype(np.float64))
    rows = scaler.transform(X.astype(np.float64))
    return rows, scaler.transform(X_val.astype(np.float64)) if len(X_val) else np.empty((0, rows.shape[1]))


def _codes(y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Classes that the training rows have, and the rows' positions among them (a fold may lack a rare class)."""
    classes, codes = np.unique(y, return_inverse=True)
    return classes, codes


def _descend(objective: Callable[[np.ndarray], tuple[float, np.ndarray]], start: np.ndarray, tol: float) -> np.ndarray:
    options = {"maxiter": 300, "maxcor": 12, "gtol": tol, "ftol": 1e-9}
    return minimize(objective, start.ravel(), jac=True, method="L-BFGS-B", options=options).x.reshape(start.shape)


def logistic_path(
    X: np.ndarray,
    y: np.ndarray,
    X_val: np.ndarray,
    y_val: np.ndarray,
    grid: Sequence[float],
    scaler: Any = None,
) -> Path:
    """Walk multinomial logistic regression through ascending C, as LogisticRegression parameterises it."""
    data, (classes, codes) = _Rotated(X, X_val, scaler), _codes(y)
    n, k = len(codes), len(classes)
    onehot = np.eye(k)[codes]
    weights, bias = np.zeros((data.rows.shape[1], k)), np.log(onehot.mean(axis=0))
    for value in grid:
        # Two rows ±w/2 carry half the penalty of scikit-learn's one row w, so two classes take it twice.
        penalty = (2.0 if k == 2 else 1.0) / (value * n)
        scale = 1.0 / np.sqrt(0.5 * data.spread + penalty)
        rows = data.rows * scale

        def objective(flat: np.ndarray, rows: np.ndarray = rows, damp: np.ndarray = penalty * scale**2) -> Any:
            theta = flat.reshape(-1, k)
            scores = rows @ theta[:-1] + theta[-1]
            scores -= scores.max(axis=1, keepdims=True)
            powers = np.exp(scores)
            sums = powers.sum(axis=1)
            damped = damp[:, None] * theta[:-1]
            loss = (np.log(sums) - scores[np.arange(n), codes]).mean() + 0.5 * (damped * theta[:-1]).sum()
            error = (powers / sums[:, None] - onehot) / n
            return loss, np.vstack([rows.T @ error + damped, error.sum(axis=0)]).ravel()

        theta = _descend(objective, np.vstack([weights / scale[:, None], bias]), 1e-4)
        weights, bias = theta[:-1] * scale[:, None], theta[-1]
        scores = data.val @ weights + bias
        yield classes[scores.argmax(axis=1)], _log_loss(scores, classes, y_val)


def _log_loss(scores: np.ndarray, classes: np.ndarray, y_val: np.ndarray) -> float:
    """Sum of the log loss over the validation rows whose class was trained."""
    known = np.isin(y_val, classes)
    picked = scores[known, np.searchsorted(classes, y_val[known])]
    return float((logsumexp(scores[known], axis=1) - picked).sum())


def hinge_path(
    X: np.ndarray,
    y: np.ndarray,
    X_val: np.ndarray,
    y_val: np.ndarray,
    grid: Sequence[float],
    scaler: Any = None,
) -> Path:
    """Walk LinearSVC (squared hinge, one against the rest, penalised intercept) through ascending C."""
    data, (classes, codes) = _Rotated(X, X_val, scaler), _codes(y)
    n, k = len(codes), len(classes)
    signs = np.where(np.eye(k, dtype=bool)[codes], 1.0, -1.0)
    # liblinear treats the intercept as one more feature of value 1; centred rows leave it at right angles to the rest.
    spread = np.append(data.spread, 1.0)
    full, full_val = (np.hstack([part, np.ones((len(part), 1))]) for part in (data.rows, data.val))
    weights = np.zeros((full.shape[1], k))
    for value in grid:
        penalty = 1.0 / (value * n)
        scale = 1.0 / np.sqrt(2.0 * spread + penalty)
        rows = full * scale

        def objective(flat: np.ndarray, rows: np.ndarray = rows, damp: np.ndarray = penalty * scale**2) -> Any:
            theta = flat.reshape(-1, k)
            slack = np.maximum(1.0 - signs * (rows @ theta), 0.0)
            damped = damp[:, None] * theta
            gradient = rows.T @ (signs * slack) * (-2.0 / n) + damped
            return np.square(slack).sum() / n + 0.5 * (damped * theta).sum(), gradient.ravel()

        weights = _descend(objective, weights / scale[:, None], 1e-4) * scale[:, None]
        yield classes[(full_val @ weights).argmax(axis=1)], 0.0


def ridge_path(
    X: np.ndarray,
    y: np.ndarray,
    X_val: np.ndarray,
    y_val: np.ndarray,
    grid: Sequence[float],
    scaler: Any = None,
) -> Path:
    """Solve RidgeClassifier for each alpha from one decomposition."""
    data, (classes, codes) = _Rotated(X, X_val, scaler), _codes(y)
    targets = np.where(np.eye(len(classes), dtype=bool)[codes], 1.0, -1.0)
    truth = np.where(y_val[:, None] == classes, 1.0, -1.0)
    centre = targets.mean(axis=0)
    moments = data.rows.T @ (targets - centre)
    for alpha in grid:
        scores = data.val @ (moments / (data.spread * len(codes) + alpha)[:, None]) + centre
        yield classes[scores.argmax(axis=1)], float(np.square(scores - truth).sum())


def ridge_loo(X: np.ndarray, y: np.ndarray, grid: Sequence[float], scaler: Any = None) -> Path:
    """Yield what RidgeClassifier predicts for each row when that row is left out, exactly, for each alpha.

    The residual of a left-out row is its training residual over 1 - h, h the row's leverage (Allen's PRESS). The
    standardisation is that of all rows.
    """
    data, (classes, codes) = _Rotated(X, X[:0], scaler), _codes(y)
    n = len(codes)
    targets = np.where(np.eye(len(classes), dtype=bool)[codes], 1.0, -1.0)
    centre = targets.mean(axis=0)
    moments, squares = data.rows.T @ (targets - centre), np.square(data.rows)
    for alpha in grid:
        shrink = 1.0 / (data.spread * n + alpha)
        residuals = targets - centre - data.rows @ (shrink[:, None] * moments)
        left_out = residuals / np.maximum(1.0 - squares @ shrink - 1.0 / n, 1e-12)[:, None]
        yield classes[(targets - left_out).argmax(axis=1)], float(np.square(left_out).sum())


def knn_path(X: np.ndarray, y: np.ndarray, X_val: np.ndarray, y_val: np.ndarray, grid: Sequence[int]) -> Path:
    """Vote among the k nearest by cosine, weighted by 1 / distance, for each k from one sorted distance matrix."""
    (classes, codes), most = _codes(y), min(max(grid), len(y))
    unit, unit_val = _normalised(X), _normalised(X_val)
    distances = np.sqrt(np.maximum(2.0 - 2.0 * (unit_val @ unit.T), 0.0))
    nearest = np.argpartition(distances, most - 1, axis=1)[:, :most]
    nearest = np.take_along_axis(nearest, np.take_along_axis(distances, nearest, 1).argsort(axis=1), 1)
    weights = 1.0 / np.maximum(np.take_along_axis(distances, nearest, 1), 1e-9)
    votes = np.eye(len(classes))[codes[nearest]] * weights[:, :, None]
    for k in grid:
        yield classes[votes[:, : min(k, most)].sum(axis=1).argmax(axis=1)], 0.0


def _normalised(X: np.ndarray) -> np.ndarray:
    lengths = np.linalg.norm(X, axis=1, keepdims=True)
    return X / np.where(lengths > 0, lengths, 1.0)


def rbf_path(
    X: np.ndarray,
    y: np.ndarray,
    X_val: np.ndarray,
    y_val: np.ndarray,
    grid: Sequence[float],
    scaler: Any = None,
) -> Path:
    """Fit SVC for each C on one precomputed kernel; gamma is SVC's "scale" on the standardised rows."""
    from sklearn.metrics.pairwise import rbf_kernel
    from sklearn.svm import SVC

    X, X_val = standardised(X, X_val, scaler)
    gamma = 1.0 / (X.shape[1] * (X.var() or 1.0))
    kernel, kernel_val = rbf_kernel(X, gamma=gamma), rbf_kernel(X_val, X, gamma=gamma)
    for value in grid:
        yield SVC(C=value, kernel="precomputed", random_state=0).fit(kernel, y).predict(kernel_val), 0.0


def estimator_path(
    make: Callable[[Any], Any], X: np.ndarray, y: np.ndarray, X_val: np.ndarray, grid: Sequence[Any]
) -> Path:
    """Fit an estimator for each value; for heads whose values share nothing."""
    for value in grid:
        yield make(value).fit(X, y).predict(X_val), 0.0
