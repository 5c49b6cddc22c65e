"""What two heads say of each row when it, with its group, is left out: exact, without a fit per row."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..heads.alphas import PRIOR_ROWS
from ..solvers.neighbors import nearest_others, unit_rows
from ..solvers.ridge import RidgePath
from ..solvers.shrinkage import shrunk_scale
from ..solvers.targets import TargetMoments

__all__ = ["ALPHAS", "NEIGHBORS", "TEMPERATURE", "answerable", "hits", "knn_left_out", "ridge_left_out"]

#: Penalties of ridge on standardised codes, two per decade, from strong to weak: those of the head "ridge".
ALPHAS = tuple(10.0 ** (e / 2) for e in range(12, -3, -1))

#: Fixed, so that a score is not the best of many: what DINO uses (Oquab et al. 2023).
NEIGHBORS, TEMPERATURE = 20, 0.07

#: Eigenvalues below this share of the largest are rounding, not spread.
_RANK = 1e-13
_ROWS_AT_ONCE = 4096
_PAIRS_AT_ONCE = 1 << 22
#: Cosines that differ by less are equal: float32 knows no more of sums of thousands of products.
_SAME_COSINE = 1e-5
#: Scores of targets of about 1 that differ by less are equal. Which class rounding favours is no answer, and the
#: correction for the row left out (below) would make it the right one.
_SAME_SCORE = 1e-6


def answerable(codes: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Return the mask of rows whose class has a row outside their group: no head could get the others right."""
    units = np.arange(len(codes)) if groups is None else groups
    pairs = np.unique(np.stack([codes, units], axis=1), axis=0)
    return np.bincount(pairs[:, 0], minlength=int(codes.max()) + 1)[codes] > 1


def hits(left: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Return 1 where a row's class has the highest score (n, k), 1/m where m classes share the highest, else 0.

    A head that cannot tell m classes apart is right by chance in one of m cases.

    Examples
    --------
    >>> hits(np.array([[0.7, 0.3], [0.5, 0.5], [0.9, 0.1]]), np.array([0, 0, 1])).tolist()
    [1.0, 0.5, 0.0]
    """
    first = _first(left)
    return first[np.arange(len(codes)), codes] / first.sum(axis=1)


def _first(scores: np.ndarray) -> np.ndarray:
    """Mask (n, k) of the classes that share the highest score."""
    return np.asarray(scores >= scores.max(axis=1, keepdims=True) - _SAME_SCORE)


def knn_left_out(X: np.ndarray, codes: np.ndarray, groups: np.ndarray | None, weight: np.ndarray) -> np.ndarray:
    """Return the shares (n, k) of the votes of each row's nearest others: cosine of the centred codes, softmax weights.

    Where more rows are equally near than there are votes left, all of them share these. A row's own class then lacks
    one vote of a few whole ones, which no factor makes good: so its own vote (its group's) is let in with the chance
    that any row votes, drawn once per row. Codes that are constant give the shares of the classes.

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
    units = np.arange(n) if groups is None else groups
    unit = unit_rows(X - X.mean(axis=0, dtype=np.float64).astype(X.dtype))
    most = min(NEIGHBORS, n - 1)
    near, rows = nearest_others(unit, min(most + 1, n), groups=units)
    with np.errstate(invalid="ignore"):
        shared = np.flatnonzero((near[:, -1] > -np.inf) & (near[:, most - 1] - near[:, -1] <= _SAME_COSINE))
        near, rows = near[:, :most], rows[:, :most]
        votes = np.where(near > -np.inf, np.exp((near.astype(np.float64) - near[:, :1]) / TEMPERATURE), 0.0)
    votes *= weight[rows]
    flat = (codes[rows] + k * np.arange(n)[:, None]).ravel()
    total = np.bincount(flat, votes.ravel(), n * k).reshape(n, k)
    indicators = np.eye(k)[codes]
    left = n - np.bincount(units, minlength=n)[units]
    # As many rows of each class as in all: see ridge_left_out. Where the votes of a few of the others are equal, this
    # must not decide: it knows the row's class.
    undecided = (_first(total / total.sum(axis=1, keepdims=True).clip(1e-300)).sum(axis=1) > 1) & (left > most)
    fair = indicators.mean(axis=0) / np.maximum(_means_of_others(indicators, groups), 1.0 / n**2)
    total *= np.where(undecided[:, None], 1.0, fair)
    luck = np.random.default_rng(0).random(n)
    step = max(1, _PAIRS_AT_ONCE // n)
    for some in (shared[start : start + step] for start in range(0, len(shared), step)):
        own = units[:, None] == units[some]
        parts = _shared_votes(unit @ unit[some].T, near[some], own, luck[some] * left[some])
        total[some] = parts.T @ (weight[:, None] * indicators)
    return total / np.maximum(total.sum(axis=1, keepdims=True), 1e-300)


def _shared_votes(cosines: np.ndarray, near: np.ndarray, own: np.ndarray, luck: np.ndarray) -> np.ndarray:
    """Votes (n, q) of all rows on q rows whose last neighbours are equally near; `near` (q, most) their nearest.

    Rows of the `own` group vote, too, where more others than `luck` do.
    """
    last, first = near[:, -1], near[:, 0]
    closer = (cosines > last + _SAME_COSINE) & ~own
    equal = np.abs(cosines - last) <= _SAME_COSINE
    equal &= ~own | ((closer | (equal & ~own)).sum(axis=0) > luck)
    left = (near.shape[1] - closer.sum(axis=0)) / np.maximum(equal.sum(axis=0), 1)
    strength = np.exp((np.minimum(cosines, first) - first).astype(np.float64) / TEMPERATURE)
    even = np.exp((last - first).astype(np.float64) / TEMPERATURE)
    return np.where(closer, strength, 0.0) + np.where(equal, np.maximum(left, 0.0) * even, 0.0)


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
    basis = np.hstack([left, np.full((n, 1), n**-0.5)])  # of the intercept, which is not penalised, too
    projected, blocks = left.T @ centred, [_Block.of(members, basis) for members in _by_size(groups)]
    least, best = np.inf, centred
    for alpha in ALPHAS:
        kept = values / (values + alpha)
        residuals = centred - left @ (kept[:, None] * projected)
        for block in blocks:
            residuals[block.members] = block.without(np.append(kept, 1.0), basis, residuals[block.members])
        if (error := float(np.square(residuals).sum())) < least:
            least, best = error, residuals
    return targets - best


@dataclass(frozen=True)
class _Block:
    """Groups of one size: row numbers (g, size); where they are larger than the basis is wide, its products (g, r, r).

    The cost grows with the smaller of the two, cubed: I + U (1/D - U'U)⁻¹ U' is the inverse of I - U D U' (Woodbury).
    """

    members: np.ndarray
    gram: np.ndarray | None

    @classmethod
    def of(cls, members: np.ndarray, basis: np.ndarray) -> _Block:
        if members.shape[1] <= basis.shape[1]:
            return cls(members, None)
        U = basis[members]
        return cls(members, U.transpose(0, 2, 1) @ U)

    def without(self, kept: np.ndarray, basis: np.ndarray, residuals: np.ndarray) -> np.ndarray:
        """Return the residuals (g, size, k) of fits without each group; `kept` (r,) is the diagonal of D."""
        U = basis[self.members] * np.sqrt(kept)
        if self.gram is None:
            return np.linalg.solve(np.eye(U.shape[1]) - U @ U.transpose(0, 2, 1), residuals)
        inner = np.eye(len(kept)) - self.gram * np.sqrt(np.outer(kept, kept))
        return residuals + U @ np.linalg.solve(inner, U.transpose(0, 2, 1) @ residuals)


def _by_size(groups: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of all groups of one size, shape (groups, size), in parts that stay small in memory."""
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)
    for size in np.unique(sizes).tolist():
        members = order[starts[sizes == size][:, None] + np.arange(size)]
        step = max(1, _ROWS_AT_ONCE // size)
        for first in range(0, len(members), step):
            yield members[first : first + step]
