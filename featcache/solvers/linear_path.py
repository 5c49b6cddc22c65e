"""Linear heads with an L2 penalty: a whole path of penalties on all folds of a cross-validation, solved together.

The problem of one fold is

    minimise  sum_i w_i loss(x_i · W + b, y_i) / sum_i w_i  +  penalty / 2 · |W|²

with the fold's weights w, 0 for the rows that it leaves out. Three things make a path cheap:

*The basis.* In the eigenbasis of the rows the Hessian is nearly diagonal: s_j · c_k + penalty for direction j and class
k, with s_j the spread of the rows and c_k = mean p_k (1 - p_k) the curvature of the loss, taken anew at the start of
each penalty. Böhning's bound (1992) has 1/2 in the place of c_k, which is far off where classes are many or well
separated. The leading directions suffice; only where rows are few are they rotated into a basis of them all, since
L2-penalised weights have no part outside of it: so many coordinates as rows, in the place of all features.

*One product.* The weights of all folds lie side by side, so one wide product serves all of them.

*One line.* Solutions move almost on a line over log C: each penalty starts where the last two point to.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .blocks import in_memory, row_blocks
from .descent import Point, descend, host
from .eigenbasis import Eigenbasis
from .losses import Loss
from .preconditioner import Preconditioner

__all__ = ["LinearProblem", "Solution"]

#: Scores of a block of rows take so many bytes at most.
_SCORE_BYTES = 64 << 20
#: NumPy's products were as fast as torch's on the CPU at hand, but all else in it runs on one core. So many
#: multiplications per pass, and so many cores, make that matter.
_TORCH_FROM = 3e8
_TORCH_CORES = 8
#: Where the next step promises so little, the curvature is near enough to what it is at the minimum.
_NEAR = 1e-3


@dataclass(frozen=True)
class Solution:
    """The minimum at one penalty, for each fold.

    Attributes
    ----------
    coef : ndarray of shape (folds, columns, n_features)
        Weights on the rows as they were given.
    intercept : ndarray of shape (folds, columns)
        Intercepts.
    value : ndarray of shape (folds,)
        The objective: mean loss plus penalty.
    passes : int
        Times that all rows were gone through, since the last solution of the path.
    converged : ndarray of bool of shape (folds,)
        Whether the tolerance was reached.
    """

    coef: np.ndarray
    intercept: np.ndarray
    value: np.ndarray
    passes: int
    converged: np.ndarray


class LinearProblem:
    """One loss, one or several weightings of the same rows, any penalty.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Rows. An ndarray is rotated once and held; anything else (a map on disk, the codes of a store) is read block by
        block in every pass.
    target : ndarray
        Of the loss: int classes (n,) or a matrix (n, columns).
    columns : int
        Classes, or columns of the target.
    weight : ndarray of shape (folds, n)
        Weights of the rows, >= 0; each fold has some.
    loss : Loss
        See `losses`.
    fit_intercept : bool, default=True
        Whether there is an intercept.
    penalise_intercept : bool, default=False
        Whether it is penalised like a weight, as liblinear does; rows are not centred then, since that would matter.
    dtype : {"float32", "float64"}, default="float32"
        Of the products.
    device : str, default="cpu"
        Where; "cpu" uses NumPy for small problems and torch for others.
    basis : Eigenbasis, default=None
        When it is known already.
    """

    def __init__(
        self,
        X: Any,
        target: np.ndarray,
        columns: int,
        weight: np.ndarray,
        loss: Loss,
        *,
        fit_intercept: bool = True,
        penalise_intercept: bool = False,
        dtype: str = "float32",
        device: str = "cpu",
        basis: Eigenbasis | None = None,
    ) -> None:
        self.columns, self.loss, self.fit_intercept, self.dtype = columns, loss, fit_intercept, dtype
        self.penalise_intercept = penalise_intercept
        common = weight.sum(axis=0)
        self.folds, centred = len(weight), fit_intercept and not penalise_intercept
        self.basis = basis or Eigenbasis.of(X, common / common.sum(), centred=centred, columns=self.folds * columns)
        self.xp, self.to = _library(X.shape[0] * min(X.shape) * columns * self.folds, dtype, device)
        self.total = weight.sum(axis=1)
        self.weight = self.to((weight / self.total[:, None]).T[:, :, None])
        self.target = self.to(target)
        self.spread = self.to(self.basis.spread)
        self.vectors = None if self.basis.complete else self.to(self.basis.vectors)
        here = in_memory(X) or self.basis.complete
        self.rows = (_Held if here else _Streamed)(X, self.basis, self.to, dtype, self.folds * columns)
        self.ones = self.to(np.ones(min(self.rows.step, X.shape[0])))
        self.passes = 0
        #: The gradient of the loss by weights of zero (r, folds, columns), once a walk has begun there.
        self.pull_at_zero: np.ndarray | None = None

    def evaluate(self, theta: Any, penalty: Any, curvature: bool = False) -> tuple[Any, Any, Any]:
        """Return objectives (folds,) in float64, gradients like theta (r + 1, folds, columns), curvatures if wanted."""
        xp, self.passes = self.xp, self.passes + 1
        value, gradient, bend = self._penalty(theta, penalty), xp.zeros_like(theta), None
        slope: Any = 0.0
        flat = theta[:-1].reshape(len(theta) - 1, self.folds * self.columns)
        for rows, block in self.rows.blocks():
            scores = (block @ flat).reshape(len(block), self.folds, self.columns)
            scores += theta[-1]
            lost, bent = self.loss(xp, scores, self.target[rows], self.weight[rows], curvature)
            value = value + lost
            bend = bent if bend is None else bend + bent
            part = block.T @ scores.reshape(len(block), -1)
            slope = slope + part
            gradient[-1] += (self.ones[: len(block)] @ scores.reshape(len(block), -1)).reshape(gradient[-1].shape)
        gradient[:-1] = slope.reshape(theta[:-1].shape)
        if not self.fit_intercept:
            gradient[-1] = 0.0
        self._penalise(theta, penalty, gradient)
        return value, gradient, bend

    def _penalised(self, theta: Any) -> Any:
        return theta if self.penalise_intercept else theta[:-1]

    def _penalise(self, theta: Any, penalty: Any, gradient: Any) -> None:
        part = self._penalised(gradient)
        part += penalty[:, None] * self._penalised(theta)

    def _penalty(self, theta: Any, penalty: Any) -> Any:
        weights = self._penalised(theta)
        return 0.5 * penalty * self.xp.sum(weights * weights, axis=(0, 2), dtype=self.xp.float64)

    def walk(
        self,
        penalties: Sequence[np.ndarray],
        *,
        tol: float,
        max_iter: int = 500,
        enough: float = 0.0,
    ) -> Iterator[Point]:
        """Solve for one penalty after the other, best from large to small.

        Parameters
        ----------
        penalties : sequence of ndarray of shape (folds,)
            A penalty per fold.
        tol : float
            A fold ends when the decrease that its next step promises is below this share of its objective.
        max_iter : int, default=500
            Steps per penalty.
        enough : float, default=0.0
            A fold ends, too, when its objective lies within this share of its minimum, as far as `gap` and the next
            step's promise (for the intercepts) say.

        Yields
        ------
        Point
            See `solution` for its weights.
        """
        now, before, loss = self.to(self.first_theta()), None, None
        for i, penalty in enumerate(penalties):
            at, passes = self.to(np.asarray(penalty)), self.passes
            theta = now if before is None else now + (now - before) * _stride(penalties, i)
            value, gradient, bend = self.evaluate(theta, at, curvature=True)
            if not i:
                self.pull_at_zero = host(gradient[:-1])
            if before is not None:
                better = value <= loss + self._penalty(now, at)
                if not bool(better.all()):  # the line bends here; go on from where it was known to be good
                    theta = self.xp.where(better[:, None], theta, now)
                    value, gradient, bend = self.evaluate(theta, at, curvature=True)
            point = descend(
                self.xp,
                lambda candidate, at=at: self.evaluate(candidate, at)[:2],  # type: ignore[misc]
                Point(theta, value, gradient, 0, np.zeros(0)),
                self._preconditioner(bend, at),
                tol=tol,
                max_iter=max_iter,
                gap=lambda gradient, at=at: self.gap(gradient, at),  # type: ignore[misc]
                enough=enough,
            )
            point.passes = self.passes - passes
            yield point
            now, before = point.theta, now if i else None
            loss = point.value - self._penalty(now, at)

    def gap(self, gradient: Any, penalty: Any) -> Any:
        """Return what objectives (folds,) are above their minima at most, but for what their intercepts lack.

        The objective is strongly convex in the weights, with the penalty as modulus, hence this bound.
        """
        slope = self._penalised(gradient)
        return self.xp.einsum("rfk,rfk->f", slope, slope) / (2.0 * penalty)

    def solve(self, penalty: np.ndarray, *, tol: float, max_iter: int = 500, enough: float = 0.0) -> Point:
        """Solve for one penalty (folds,) from zero weights: loosely, then with the curvature that was found there.

        A way over larger penalties saves no more passes than it costs.
        """
        near = next(self.walk([penalty], tol=max(_NEAR, tol), max_iter=max_iter))
        return self.improve(near, penalty, tol=tol, max_iter=max_iter, enough=enough, keep=True)

    def improve(
        self,
        point: Point,
        penalty: np.ndarray,
        *,
        tol: float,
        max_iter: int = 500,
        enough: float = 0.0,
        intercepts_only: bool = False,
        keep: bool = False,
    ) -> Point:
        """Go on from another problem's point, such as the same one's in lower precision.

        With `keep` what the way there has taught of the curvature is kept: it must have been this problem's own, at
        this penalty.
        """
        at, theta, passes = self.to(penalty), self.to(host(point.theta)), self.passes
        value, gradient, bend = self.evaluate(theta, at, curvature=True)
        inverse = self._preconditioner(bend, at, weights=not intercepts_only)
        begin = Point(theta, value, gradient, 0, np.zeros(0), point.memory if keep else [])
        better = descend(
            self.xp,
            lambda candidate: self.evaluate(candidate, at)[:2],
            begin,
            inverse,
            tol=tol,
            max_iter=max_iter,
            gap=lambda gradient: self.gap(gradient, at),
            enough=enough,
        )
        better.passes = self.passes - passes + point.passes
        return better

    def _preconditioner(self, bend: Any, penalty: Any, weights: bool = True) -> Preconditioner:
        xp = self.xp
        floor = xp.clip(bend, 1e-6 * self.loss.bound, None)
        intercept = 1.0 / (floor + (penalty[:, None] if self.penalise_intercept else 0.0))
        if not self.fit_intercept:
            intercept = 0.0 * intercept
        return Preconditioner(xp, self.spread, self.vectors, bend, penalty, intercept, weights)

    def first_theta(self) -> np.ndarray:
        """Zero weights; intercepts that give each class its share where the loss has probabilities."""
        theta = np.zeros((self.rows.width + 1, self.folds, self.columns))
        if self.fit_intercept:
            theta[-1] = self.loss.intercepts(self.shares())
        return theta

    def shares(self) -> np.ndarray:
        """Return the weighted mean of the targets, shape (folds, columns): the classes' shares."""
        return self.loss.shares(host(self.target), host(self.weight)[:, :, 0], self.columns)

    def solution(self, point: Point) -> Solution:
        """Return the weights of a point on the rows as they were given."""
        theta = host(point.theta).astype(np.float64)
        coef = np.moveaxis(theta[:-1], 0, 2)
        if self.basis.complete:
            coef = coef @ self.basis.vectors.T
        intercept = theta[-1] - coef @ self.basis.centre
        return Solution(coef, intercept, host(point.value).astype(np.float64), point.passes, point.converged)

    def scores(self, point: Point, fold: int, rows: np.ndarray) -> np.ndarray:
        """Return what one fold's weights say of some rows, shape (rows, columns), in the problem's dtype."""
        weights = point.theta[:-1, fold]
        parts = [host(block @ weights + point.theta[-1, fold]) for block in self.rows.some(rows)]
        return np.concatenate(parts) if parts else np.zeros((0, self.columns), dtype=self.dtype)


def _stride(penalties: Sequence[np.ndarray], i: int) -> float:
    """How far the next penalty lies on the line through the last two, in steps of log C."""
    a, b, c = (math.log(float(np.mean(penalties[j]))) for j in (i - 2, i - 1, i))
    return min(2.0, max(0.0, (c - b) / (b - a))) if b != a else 0.0


class _Held:
    """Rows in memory, centred once and, where the basis is complete, written in its fewer coordinates."""

    def __init__(self, X: Any, basis: Eigenbasis, to: Any, dtype: str, columns: int) -> None:
        vectors, shift = basis.vectors.astype(dtype), basis.centre.astype(dtype)
        self.width = vectors.shape[1] if basis.complete else len(vectors)
        held = np.empty((X.shape[0], self.width), dtype=dtype)
        for rows, block in row_blocks(X, dtype=dtype):
            held[rows] = (block - shift) @ vectors if basis.complete else block - shift
        self.held = to(held)
        self.step = max(256, _SCORE_BYTES // (columns * held.itemsize))

    def blocks(self) -> Iterator[tuple[slice, Any]]:
        for start in range(0, len(self.held), self.step):
            rows = slice(start, start + self.step)
            yield rows, self.held[rows]

    def some(self, rows: np.ndarray) -> Iterator[Any]:
        yield self.held[rows]


class _Streamed:
    """Rows that are read anew in every pass."""

    def __init__(self, X: Any, basis: Eigenbasis, to: Any, dtype: str, columns: int) -> None:
        self.X, self.to, self.dtype, self.shift = X, to, dtype, basis.centre.astype(dtype)
        self.width, size = X.shape[1], np.dtype(dtype).itemsize
        self.step = max(1, min(32 << 20, _SCORE_BYTES // columns * self.width) // (self.width * size))

    def blocks(self) -> Iterator[tuple[slice, Any]]:
        for start in range(0, self.X.shape[0], self.step):
            rows = slice(start, min(start + self.step, self.X.shape[0]))
            yield rows, self._centred(rows)

    def some(self, rows: np.ndarray) -> Iterator[Any]:
        for start in range(0, len(rows), self.step):
            yield self._centred(rows[start : start + self.step])

    def _centred(self, rows: Any) -> Any:
        return self.to(np.asarray(self.X[rows], dtype=self.dtype) - self.shift)


def _library(work: float, dtype: str, device: str) -> tuple[Any, Any]:
    """Return numpy or torch, and the function that turns NumPy arrays into its arrays."""
    if device == "cpu" and (work < _TORCH_FROM or (os.cpu_count() or 1) < _TORCH_CORES):
        return np, lambda a: a if a.dtype.kind in "iu" else np.ascontiguousarray(a, dtype=dtype)
    import torch

    kind = getattr(torch, dtype)

    def to(a: np.ndarray) -> torch.Tensor:
        if a.dtype.kind in "iu":
            return torch.as_tensor(a.astype(np.int64), device=device)
        return torch.as_tensor(np.ascontiguousarray(a), dtype=kind, device=device)

    return torch, to
