"""Ridge regression from sums alone: one alpha by Cholesky, and cross-validation over folds of sums."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve

from ..errors import HeadError
from .ridge import RidgePath, about_origin, on_raw
from .shrinkage import shrunk_scale
from .targets import TargetMoments, merged

__all__ = ["fold_errors", "ridge_solution"]


def ridge_solution(
    sums: TargetMoments, alpha: float, *, scale: np.ndarray | None = None, fit_intercept: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Solve ridge regression at one alpha from sums, by Cholesky: several times cheaper than a path.

    Parameters
    ----------
    sums : TargetMoments
        Sums of the rows.
    alpha : float
        Penalty on the squared coefficients, > 0.
    scale : ndarray of shape (d,), default=None
        Divide the features by these first; None: do not.
    fit_intercept : bool, default=True
        Fit an intercept, which is not penalised.

    Returns
    -------
    coef : ndarray of shape (n_targets, d)
        For raw codes.
    intercept : ndarray of shape (n_targets,)
    """
    scatter, cross, _ = (sums.scatter, sums.cross, sums.squares) if fit_intercept else about_origin(sums)
    one = np.ones(len(sums.mean)) if scale is None else scale
    matrix = scatter / one / one[:, None]
    matrix.flat[:: len(one) + 1] += alpha
    try:
        coef = cho_solve(cho_factor(matrix, lower=True, overwrite_a=True, check_finite=False), cross / one[:, None])
    except LinAlgError:  # an alpha below the rounding of the sums
        return RidgePath.of_sums(sums, scale=scale, fit_intercept=fit_intercept).solve(alpha)
    centre, aim = (sums.mean, sums.target) if fit_intercept else (np.zeros(len(one)), np.zeros(cross.shape[1]))
    return on_raw(coef, one, centre, aim)


def fold_errors(
    folds: Sequence[TargetMoments],
    alphas: Sequence[float],
    *,
    prior_rows: float | None = None,
    fit_intercept: bool = True,
) -> np.ndarray:
    """Cross-validate a path over folds of which only sums are known.

    Parameters
    ----------
    folds : sequence of TargetMoments
        Two or more; each is predicted from all others. Their sums are added, never subtracted.
    alphas : sequence of float
        Values > 0.
    prior_rows : float, default=None
        As in `RidgePath.of_rows`; the deviations are those of the training folds.
    fit_intercept : bool, default=True
        Fit an intercept.

    Returns
    -------
    ndarray of shape (n_alphas, n_targets)
        Weighted sum of the squared errors over all folds.

    Raises
    ------
    HeadError
        Fewer than two folds.
    """
    if len(folds) < 2:
        raise HeadError(f"ridge: expected two folds of sums or more, got {len(folds)}")
    out = np.zeros((len(alphas), len(folds[0].target)))
    for i, held in enumerate(folds):
        train = merged([fold for j, fold in enumerate(folds) if j != i])
        scale = None
        if prior_rows is not None:
            scale = shrunk_scale(np.diag(train.scatter) / train.weight[0], train.weight[0], prior_rows)
        path = RidgePath.of_sums(train, scale=scale, fit_intercept=fit_intercept)
        for a, alpha in enumerate(alphas):
            coef, intercept = path.solve(alpha)
            quadratic = np.einsum("kd,dk->k", coef, held.scatter @ coef.T - 2.0 * held.cross)
            offset = held.target - coef @ held.mean - intercept
            out[a] += np.maximum(held.squares + quadratic, 0.0) + held.weight[0] * np.square(offset)
    return out
