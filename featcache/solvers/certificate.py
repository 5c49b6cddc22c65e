"""How far a linear head is from its optimum at most."""

from __future__ import annotations

import numpy as np

from .descent import Point, host
from .linear_path import LinearProblem
from .losses import SigmoidLoss

__all__ = ["duality_gap"]


def duality_gap(problem: LinearProblem, point: Point, penalty: float) -> float:
    """Return an upper bound on the objective at a point minus its minimum.

    Parameters
    ----------
    problem : LinearProblem
        With one fold and the softmax or the sigmoid loss.
    point : Point
        Its weights, with value and gradient.
    penalty : float
        The penalty.

    Returns
    -------
    float
        In units of the objective, mean loss plus penalty; as exact as the problem's dtype.

    Notes
    -----
    The dual's variables are the probabilities p. Those of the point miss one constraint of the dual by as much as the
    intercepts' gradient is not zero: their mean must be the classes' shares. Mixing a constant distribution into them,
    in a share eta, mends that; the bound is the objective minus the dual function there. Without an intercept, or with
    a gradient of zero, it is |gradient|² / (2 penalty).
    """
    theta, gradient = (host(values).astype(np.float64)[:, 0] for values in (point.theta, point.gradient))
    slope, slope_b = gradient[:-1], gradient[-1]
    gap = float(np.square(slope).sum()) / (2.0 * penalty)
    if not problem.fit_intercept:
        return gap
    pull = slope - penalty * theta[:-1]  # the gradient of the loss alone
    rest = pull - _pull_at_zero(problem)
    share = problem.shares()[0]
    by_column = isinstance(problem.loss, SigmoidLoss)
    eta = _mixing(share, share + slope_b, by_column)
    if by_column:
        lost = float((eta * _entropies(problem, point)).sum())
    else:
        loss = float(host(point.value)[0]) - 0.5 * penalty * float(np.square(theta[:-1]).sum())
        entropy = loss - float((pull * theta[:-1]).sum()) - float((slope_b * theta[-1]).sum())
        lost = float(eta[0]) * max(entropy, 0.0)
    gap += float((slope_b * theta[-1]).sum()) + lost
    mixed = float((eta * rest * (eta * rest - 2.0 * pull)).sum())
    return max(0.0, gap + mixed / (2.0 * penalty))


def _pull_at_zero(problem: LinearProblem) -> np.ndarray:
    """The gradient of the loss by the weights where all are zero, shape (r, columns)."""
    pull = problem.pull_at_zero
    if pull is None:
        start = problem.to(problem.first_theta())
        pull = host(problem.evaluate(start, problem.to(np.zeros(1)))[1])[:-1]
    return pull[:, 0].astype(np.float64)


def _entropies(problem: LinearProblem, point: Point) -> np.ndarray:
    """Weighted entropy of each column's probabilities, shape (columns,)."""
    total, weight = np.zeros(problem.columns), host(problem.weight)[:, 0].astype(np.float64)
    for start in range(0, len(weight), 8192):
        rows = np.arange(start, min(start + 8192, len(weight)))
        size = np.abs(problem.scores(point, 0, rows).astype(np.float64))
        small = np.exp(-size)
        total += (weight[rows] * (np.log1p(small) + size * small / (1.0 + small))).sum(axis=0)
    return total


def _mixing(share: np.ndarray, mean: np.ndarray, by_column: bool) -> np.ndarray:
    """The least share of another distribution that brings the mean probabilities to the classes' shares."""
    tiny = np.finfo(np.float64).tiny
    above = 1.0 - share / np.maximum(mean, tiny)
    if by_column:  # each column may be mixed with 0 or with 1
        below = (share - mean) / np.maximum(1.0 - mean, tiny)
        return np.clip(np.maximum(above, below), 0.0, 1.0)
    return np.full_like(share, np.clip(above.max(), 0.0, 1.0))
