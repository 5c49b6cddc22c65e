"""L-BFGS for several problems side by side that share their products."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["Point", "descend", "host"]

#: Pairs of steps and changes of the gradient that are kept, at least and at most, and the memory they may take.
_PAIRS = (3, 10)
_PAIR_BYTES = 1 << 30
#: Relative rounding error of an objective summed in this dtype: a line search must not chase smaller improvements.
_NOISE = {"float32": 2e-7, "float64": 1e-14}


@dataclass
class Point:
    """Where the problems stand.

    Attributes
    ----------
    theta : array of shape (r, folds, columns)
        The parameters.
    value : array of shape (folds,)
        The objectives.
    gradient : array of shape (r, folds, columns)
        Their gradients.
    passes : int
        Evaluations of the objective that led here.
    converged : ndarray of bool of shape (folds,)
        Whether each ended at the tolerance (or where rounding allows no more).
    memory : list
        Steps and changes of the gradient on the way, which another descent at the same penalty may go on with.
    """

    theta: Any
    value: Any
    gradient: Any
    passes: int
    converged: np.ndarray
    memory: list[tuple[Any, Any, Any]] = field(default_factory=list)


def descend(
    xp: Any,
    evaluate: Callable[[Any], tuple[Any, Any]],
    start: Point,
    precondition: Callable[[Any], Any],
    *,
    tol: float,
    max_iter: int,
    gap: Callable[[Any], Any] | None = None,
    enough: float = 0.0,
) -> Point:
    """Minimise from a point where value and gradient are known.

    Parameters
    ----------
    xp : module
        numpy or torch.
    evaluate : callable
        theta → (values (folds,), gradients like theta).
    start : Point
        Where to begin.
    precondition : callable
        gradient → gradient times an approximate inverse of the Hessian, symmetric and positive semidefinite.
    tol : float
        A problem ends when the decrease that its next step promises is below this share of its objective.
    max_iter : int
        Steps at most.
    gap : callable, default=None
        gradient → upper bounds (folds,) on what the objectives are above their minima, but for the intercepts.
    enough : float, default=0.0
        A problem ends, too, when this bound and the promised decrease are both below half this share of its objective.

    Returns
    -------
    Point
    """
    search = _Search(xp, evaluate, start, precondition, tol, gap if enough > 0 else None, enough)
    for _ in range(max_iter):
        if not search.step():
            break
    return search.point(exhausted=bool(search.active.any()))


class _Search:
    """The state of one descent."""

    def __init__(
        self, xp: Any, evaluate: Any, start: Point, precondition: Any, tol: float, gap: Any, enough: float
    ) -> None:
        self.xp, self.evaluate, self.precondition, self.tol = xp, evaluate, precondition, tol
        self.gap, self.enough = gap, enough
        self.theta, self.value, self.gradient, self.passes = start.theta, start.value, start.gradient, start.passes
        self.noise = _NOISE[str(self.theta.dtype).removeprefix("torch.")]
        self.active = np.ones(len(host(start.value)), dtype=bool)
        self.failed = np.zeros(len(self.active), dtype=bool)
        self.gamma = self._row(np.ones(len(self.active)))
        self.memory = list(start.memory)
        if self.memory:
            self._scale(*self.memory[-1][:2])
        size = 2 * math.prod(self.theta.shape) * (8 if self.noise < 1e-10 else 4)
        self.pairs = max(_PAIRS[0], min(_PAIRS[1], _PAIR_BYTES // size))

    def step(self) -> bool:
        """Do one step of all problems that are not at their end; False when none is left."""
        direction = self._direction()
        slope = -_dot(self.xp, self.gradient, direction)
        self.active &= self._unfinished(host(-slope), np.abs(host(self.value)))
        if not self.active.any():
            return False
        moved = self._line_search(direction, slope)
        if moved is None:
            return False
        step, self.theta, self.value, gradient = moved
        self._remember(step, gradient - self.gradient)
        self.gradient = gradient
        return True

    def _unfinished(self, promised: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Which problems are neither as good as they promise to become nor certified to be good enough."""
        left = promised > self.tol * value
        if self.gap is None or not left.any():
            return left
        # The bound is that of the weights: the other half is for the intercepts, whose share the promise shows.
        good = 0.5 * self.enough * value
        return left & ((host(self.gap(self.gradient)) > good) | (promised > good))

    def _direction(self) -> Any:
        """The two-loop recursion (Nocedal 1980), for all problems at once."""
        xp, q, alphas = self.xp, self.gradient, []
        for step, change, rho in reversed(self.memory):
            alpha = rho * _dot(xp, step, q)
            alphas.append(alpha)
            q = q - alpha[:, None] * change
        q = self.precondition(q) * self.gamma[:, None]
        for (step, change, rho), alpha in zip(self.memory, reversed(alphas), strict=True):
            q = q + step * (alpha - rho * _dot(xp, change, q))[:, None]
        return q

    def _line_search(self, direction: Any, slope: Any) -> tuple[Any, Any, Any, Any] | None:
        """Halve the steps of those problems whose objective does not fall; give one up whose step comes to nothing."""
        length = self._row(self.active)
        while True:
            step = direction * -length[:, None]
            theta = self.theta + step
            value, gradient = self.evaluate(theta)
            self.passes += 1
            limit = self.value + 1e-4 * length * slope + self.noise * abs(self.value)
            bad = self.active & ~host(value <= limit)
            if not bad.any():
                return step, theta, value, gradient
            hopeless = bad & (host(length) < 1e-4)
            # In float64 this is the end where no more than rounding stood to be gained; float32 can be gone on from.
            rounding = 100.0 * self.noise if self.noise < 1e-10 else 0.0
            self.failed |= hopeless & (host(-slope) > rounding * np.abs(host(self.value)))
            self.active &= ~hopeless
            if not self.active.any():
                return None
            length = length * self._row(np.where(bad & ~hopeless, 0.4, np.where(hopeless, 0.0, 1.0)))

    def _row(self, values: np.ndarray) -> Any:
        """One value per fold, beside the parameters and in their dtype."""
        return self.xp.asarray(values, dtype=self.theta.dtype, device=self.theta.device)

    def _remember(self, step: Any, change: Any) -> None:
        xp = self.xp
        useful, product = self._scale(step, change)
        one = xp.ones_like(product)
        rho = xp.where(useful, one, 0 * one) / xp.where(useful, product, one)
        self.memory = [*self.memory[1 - self.pairs :], (step, change, rho)]

    def _scale(self, step: Any, change: Any) -> tuple[Any, Any]:
        """Take from a pair how long steps are; return where it is of use, and the product of step and change."""
        xp = self.xp
        product, square = _dot(xp, step, change), _dot(xp, change, self.precondition(change))
        useful = product > 1e-10 * square
        self.gamma = xp.where(useful, product / xp.where(useful, square, xp.ones_like(square)), self.gamma)
        return useful, product

    def point(self, exhausted: bool) -> Point:
        converged = ~self.failed & ~(self.active if exhausted else np.zeros_like(self.active))
        return Point(self.theta, self.value, self.gradient, self.passes, converged, self.memory)


def _dot(xp: Any, a: Any, b: Any) -> Any:
    return xp.einsum("rfk,rfk->f", a, b)


def host(values: Any) -> np.ndarray:
    """Return an array of either library as NumPy's."""
    return values if isinstance(values, np.ndarray) else values.detach().cpu().numpy()
