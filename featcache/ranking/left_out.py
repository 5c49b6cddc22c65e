"""What two heads say of each row when it, with its group, is left out: exact, without a fit per row."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..heads.alphas import PRIOR_ROWS
from ..solvers.neighbors import nearest_others
from ..solvers.ridge import RidgePath
from ..solvers.shrinkage import shrunk_scale
from ..solvers.targets import TargetMoments

__all__ = ["ALPHAS", "NEIGHBORS", "TEMPERATURE", "answerable", "knn_left_out", "ridge_left_out"]

#: Penalties of ridge on standardised codes, two per decade, from strong to weak: those of the head "ridge".
ALPHAS = tuple(10.0 ** (e / 2) for e in range(12, -3, -1))

#: Fixed, so that a score is not the best of many: what DINO uses (Oquab et al. 2023).
NEIGHBORS, TEMPERATURE = 20, 0.07

#: Eigenvalues below this share of the largest are rounding, not spread.
_RANK = 1e-13
_ROWS_AT_ONCE = 4096


def answerable(codes: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Return the mask of rows whose class has a row outside their group: no head could get the others right."""
    units = np.arange(len(codes)) if groups is None else groups
    pairs = np.unique(np.stack([codes, units], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=int(codes.max()) + 1)[codes] > 1


def knn_left_out(X: np.ndarray, codes: np.ndarray, groups: np.ndarray | None, weight: np.ndarray) -> np.ndarray:
    """Return the shares (n, k) of the votes of each row's nearest others: cosine of the centred codes, softmax weights.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Codes.
    codes, groups : ndarray of int of shape (n,); groups may be None
        Classes from 0; rows of one group do not vote on each other.
    weight : ndarray of shape (n,)
        Of each row's vote.
    """
    n, k = len(codes), int(codes.max()) + 1
    centred = X - X.mean(axis=0, dtype=np.float64).astype(X.dtype)
    near, rows = nearest_others(centred, min(NEIGHBORS, n - 1), groups=groups)
    with np.errstate(invalid="ignore"):
        votes = np.where(near > -np.inf, np.exp((near.astype(np.float64) - near[:, :1]) / TEMPERATURE), 0.0)
    votes *= weight[rows]
    flat = (codes[rows] + k * np.arange(n)[:, None]).ravel()
    total = np.bincount(flat, votes.ravel(), n * k).reshape(n, k)
    indicators = np.eye(k)[codes]
    # As many rows of each class as in all: see ridge_left_out.
    total *= indicators.mean(axis=0) / np.maximum(_means_of_others(indicators, groups), 1.0 / n**2)
    return total / np.maximum(total.sum(axis=1, keepdims=True), 1e-300)


def ridge_left_out(X: np.ndarray, targets: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Return what ridge predicts of each row left out, shape (n, k), at the penalty of the least squared error.

    Codes are divided by shrunken deviations, as by the head "ridge". The deviations, and the mean of the targets, are
    those of all rows; all else is exactly what a fit without the row (without its group) would give. Were the mean left
    out, too, each row's own class would be the rarest among equally large ones, and codes that say nothing would
    get every row wrong in place of guessing.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Codes.
    targets : ndarray of shape (n, k)
        What to predict.
    groups : ndarray of int of shape (n,), or None
        Rows of one group are left out together.
    """
    mean = _means_of_others(targets, groups)
    if groups is not None:
        return _without_groups(X, targets, groups) + (targets.mean(axis=0) - mean)
    n, d = X.shape
    if n <= d:
        path = RidgePath.of_rows(X, targets, prior_rows=PRIOR_ROWS)
    else:
        sums = TargetMoments(d, targets.shape[1])
        sums.update(X, targets)
        path = RidgePath.of_sums(sums, scale=shrunk_scale(np.diag(sums.scatter) / n, float(n), PRIOR_ROWS))
    errors = path.leave_one_out(ALPHAS, X, lambda part: targets[part]).squared_errors
    best = ALPHAS[int(errors.sum(axis=1).argmin())]
    return path.left_out([best], X, lambda part: targets[part])[0] + (targets.mean(axis=0) - mean)


def _means_of_others(values: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Mean of values (n, k) over all rows outside each row's group."""
    n = len(values)
    units = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    own = np.zeros((int(units.max()) + 1, values.shape[1]))
    np.add.at(own, units, values)
    left = n - np.bincount(units)[units]
    return (values.sum(axis=0) - own[units]) / np.maximum(left, 1)[:, None]


def _without_groups(X: np.ndarray, targets: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Leave whole groups out: residuals e of a group become (I - H)⁻¹ e, H the group's block of the hat matrix."""
    Z = X.astype(np.float64)
    Z -= Z.mean(axis=0)
    n, d = Z.shape
    Z /= shrunk_scale(np.square(Z).mean(axis=0), float(n), PRIOR_ROWS)
    values, vectors = np.linalg.eigh(Z @ Z.T if n <= d else Z.T @ Z)
    keep = values > max(values[-1], 0.0) * _RANK
    values, vectors = values[keep], vectors[:, keep]
    left = vectors if n <= d else Z @ vectors / np.sqrt(values)
    centred = targets - targets.mean(axis=0)
    projected, blocks = left.T @ centred, list(_by_size(groups))
    least, best = np.inf, centred
    for alpha in ALPHAS:
        kept = values / (values + alpha)
        residuals = centred - left @ (kept[:, None] * projected)
        for members in blocks:
            basis = left[members]  # (groups of this size, size, r)
            hat = (basis * kept) @ basis.transpose(0, 2, 1) + 1.0 / n
            residuals[members] = np.linalg.solve(np.eye(members.shape[1]) - hat, residuals[members])
        if (error := float(np.square(residuals).sum())) < least:
            least, best = error, residuals
    return targets - best


def _by_size(groups: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of all groups of one size, shape (groups, size), in parts that stay small in memory."""
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    for size in np.unique(sizes).tolist():
        members = order[starts[sizes == size][:, None] + np.arange(size)]
        step = max(1, _ROWS_AT_ONCE // size)
        for first in range(0, len(members), step):
            yield members[first : first + step]
