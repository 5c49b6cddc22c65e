"""Ridge regression for a whole path of alphas from one eigendecomposition, with exact leave-one-out.

With centred rows Z = U diag(√s) Vᵀ and targets Y, the fit at alpha is Ŷ = U diag(s / (s + alpha)) Uᵀ Y. The residual
of a row that is left out is its training residual over 1 - h, h = Σ_j u_j² s_j / (s_j + alpha) + 1/n its leverage
(Allen's PRESS [1]_): no fit is repeated. The decomposition is that of the smaller of the two Gram matrices. Where
rows are many, they are read twice in blocks (once for the sums, once for the errors) and never held together; where
there are fewer rows than features, 1 - h and the residuals are summed from alpha / (s + alpha), which loses no digits
when the fit interpolates. From sums alone there is generalised cross-validation [2]_ (`RidgePath.gcv`).

References
----------
.. [1] D. M. Allen, "The relationship between variable selection and data augmentation and a method for prediction",
   Technometrics 16 (1974), 125-127.
.. [2] G. H. Golub, M. Heath, G. Wahba, "Generalized cross-validation as a method for choosing a good ridge
   parameter", Technometrics 21 (1979), 215-223.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import HeadError
from .blocks import row_blocks
from .shrinkage import shrunk_scale
from .targets import TargetMoments

__all__ = ["LeaveOneOut", "RidgePath", "about_origin", "on_raw"]

#: Columns of one product: wide enough for BLAS when there are few targets, small enough for the caches.
_COLUMNS = 256
#: Eigenvalues below this share of the largest are rounding, not spread.
_RANK = 1e-13


@dataclass(frozen=True)
class LeaveOneOut:
    """What a path of alphas does to rows that are left out.

    Parameters
    ----------
    squared_errors : ndarray of shape (n_alphas, n_targets)
        Weighted sum of the squared errors over the rows.
    winners : ndarray of int of shape (n_alphas, n_samples), or None
        The target with the highest prediction (the class number), where it was asked for.
    """

    squared_errors: np.ndarray
    winners: np.ndarray | None = None


class RidgePath:
    """Ridge regression of one problem for any alpha.

    Made by `of_sums` (any number of rows, leave-one-out only through rows that are handed in) or `of_rows`.

    Parameters
    ----------
    values : ndarray of shape (r,)
        Eigenvalues s of the centred, scaled Gram matrix.
    projected : ndarray of shape (r, n_targets)
        Uᵀ Y, centred and weighted.
    beside : ndarray of shape (n_targets,)
        Sum of squares of the targets outside the span of U: what no alpha can fit.
    sums : TargetMoments
        Rows, weight, means and squares of the rows; after `of_rows` it has no scatter.
    scale : ndarray of shape (d,), default=None
        Deviations by which the features are divided; None: 1.
    fit_intercept : bool, default=True
        Whether rows and targets were centred.

    Attributes
    ----------
    sums, scale
        As given.
    """

    def __init__(
        self,
        values: np.ndarray,
        projected: np.ndarray,
        beside: np.ndarray,
        sums: TargetMoments,
        *,
        scale: np.ndarray | None = None,
        fit_intercept: bool = True,
    ) -> None:
        d = len(sums.mean)
        self.scale = np.ones(d) if scale is None else scale
        self.sums = sums
        self._values, self._projected, self._beside = values, projected, beside
        self._weight = float(sums.weight[0])
        self._degrees = max(0.0, float(sums.rows[0]) - fit_intercept - len(values))
        self._centre = sums.mean if fit_intercept else np.zeros(d)
        self._aim = sums.target if fit_intercept else np.zeros_like(sums.target)
        self._fit_intercept = fit_intercept
        self._vectors: np.ndarray | None = None  # of features (d, r), or
        self._left: np.ndarray | None = None  # of rows (n, r), with
        self._rows: np.ndarray | None = None  # the weighted, centred, scaled rows (n, d)

    @classmethod
    def of_sums(cls, sums: TargetMoments, *, scale: np.ndarray | None = None, fit_intercept: bool = True) -> RidgePath:
        """Decompose the (d, d) scatter of sums."""
        scatter, cross, squares = about_origin(sums) if not fit_intercept else (sums.scatter, sums.cross, sums.squares)
        if scale is not None:
            scatter, cross = scatter / scale / scale[:, None], cross / scale[:, None]
        values, vectors = np.linalg.eigh(scatter)
        keep = values > max(values[-1], 0.0) * _RANK
        values, vectors = values[keep], vectors[:, keep]
        projected = vectors.T @ cross / np.sqrt(values)[:, None]
        full = sums.rows[0] - fit_intercept <= len(values)  # the rows span all there is: what is left is rounding
        beside = np.maximum(squares - np.square(projected).sum(axis=0), 0.0) * (not full)
        out = cls(values, projected, beside, sums, scale=scale, fit_intercept=fit_intercept)
        out._vectors = vectors
        return out

    @classmethod
    def of_rows(
        cls,
        X: np.ndarray,
        Y: np.ndarray,
        weight: np.ndarray | None = None,
        *,
        prior_rows: float | None = None,
        fit_intercept: bool = True,
    ) -> RidgePath:
        """Decompose the (n, n) Gram matrix of rows, for fewer rows than features.

        Parameters
        ----------
        X, Y : ndarray of shape (n, d) and (n, n_targets)
            Rows and targets; they are held in float64.
        weight : ndarray of shape (n,), default=None
            Weights above 0; None: 1.
        prior_rows : float, default=None
            Divide the features by `shrinkage.shrunk_scale` with this prior; None: do not.
        fit_intercept : bool, default=True
            Centre rows and targets.
        """
        heavy = np.ones(len(X)) if weight is None else np.asarray(weight, dtype=np.float64)
        total, roots = heavy.sum(), np.sqrt(heavy)[:, None]
        sums = TargetMoments.__new__(TargetMoments)
        sums.rows, sums.weight, sums.mean = np.array([float(len(X))]), np.array([total]), _mean(X, heavy)
        sums.target = heavy @ Y / total
        sums.squares = heavy @ np.square(Y - sums.target)
        rows, scale = X - sums.mean, None
        if prior_rows is not None:
            scale = shrunk_scale(heavy @ np.square(rows) / total, total, prior_rows)
        if not fit_intercept:
            rows += sums.mean
        if scale is not None:
            rows /= scale
        rows *= roots
        aims = (Y - sums.target if fit_intercept else Y) * roots
        values, left = np.linalg.eigh(rows @ rows.T)
        keep = values > max(values[-1], 0.0) * _RANK
        values, left = values[keep], left[:, keep]
        projected = left.T @ aims
        beside = np.square(aims - left @ projected).sum(axis=0)
        out = cls(values, projected, beside, sums, scale=scale, fit_intercept=fit_intercept)
        out._left, out._rows = left, rows
        return out

    def solve(self, alpha: float) -> tuple[np.ndarray, np.ndarray]:
        """Return coefficients (n_targets, d) for raw codes and intercepts (n_targets,) at one alpha > 0."""
        shrunk = self._projected * (np.sqrt(self._values) / (self._values + alpha))[:, None]
        if self._vectors is not None:
            coef = self._vectors @ shrunk
        else:
            assert self._rows is not None and self._left is not None
            coef = self._rows.T @ (self._left @ (shrunk / np.sqrt(self._values)[:, None]))
        return on_raw(coef, self.scale, self._centre, self._aim)

    def gcv(self, alphas: Sequence[float]) -> np.ndarray:
        """Return the generalised cross-validation error, a mean of squares per row, shape (n_alphas, n_targets).

        The leverage of every row is taken for their mean; rows count, not their weights.
        """
        rows = self._degrees + len(self._values) + float(self._fit_intercept)
        out = np.empty((len(alphas), len(self._aim)))
        for i, alpha in enumerate(alphas):
            missed = alpha / (self._values + alpha)
            left = self._beside + np.square(missed) @ np.square(self._projected)
            freedom = self._degrees + missed.sum()
            out[i] = rows * left / max(freedom, 1e-12 * rows) ** 2
        return out

    def leave_one_out(
        self,
        alphas: Sequence[float],
        X: Any,
        targets: Callable[[slice], np.ndarray],
        weight: np.ndarray | None = None,
        *,
        best: bool = False,
    ) -> LeaveOneOut:
        """Return the errors of every row when it is left out, for each alpha.

        Parameters
        ----------
        alphas : sequence of float
            Values > 0.
        X : array-like of shape (n, d)
            The rows that the sums came from, read once in blocks. After `of_rows` they are not looked at again.
        targets : callable
            slice → ndarray of shape (rows, n_targets).
        weight : ndarray of shape (n,), default=None
            Weights, as in the sums; above 0 after `of_rows`.
        best : bool, default=False
            Find the target with the highest prediction, too.
        """
        n, k = X.shape[0], len(self._aim)
        errors = np.zeros((len(alphas), k))
        winners = np.empty((len(alphas), n), dtype=np.intp) if best else None
        for rows, which, residuals, slack, aims in self._errors(alphas, X, targets, weight):
            rates = np.square(1.0 / slack) if weight is None else weight[rows, None] / np.square(slack)
            errors[which] += np.einsum("nak,nak,na->ak", residuals, residuals, rates, optimize=False)
            if winners is not None:
                # The maximum of y + e / slack is that of y slack + e.
                residuals += slack[:, :, None] * aims[:, None, :]
                winners[which, rows] = residuals.argmax(axis=2).T
        return LeaveOneOut(errors, winners)

    def left_out(self, alphas: Sequence[float], X: Any, targets: Callable[[slice], np.ndarray]) -> np.ndarray:
        """Return what is predicted of every row when it is left out, shape (n_alphas, n, n_targets).

        Parameters
        ----------
        alphas, X, targets
            As in `leave_one_out`; no row has a weight.
        """
        out = np.empty((len(alphas), X.shape[0], len(self._aim)))
        for rows, which, residuals, slack, aims in self._errors(alphas, X, targets, None):
            residuals /= slack[:, :, None]
            out[which, rows] = np.moveaxis(residuals + aims[:, None, :], 0, 1)
        return out

    def _errors(
        self, alphas: Sequence[float], X: Any, targets: Callable[[slice], np.ndarray], weight: np.ndarray | None
    ) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (rows, alphas, prediction - target (n, a, k), 1 - leverage (n, a), targets) block by block."""
        k = len(self._aim)
        group = max(1, _COLUMNS // k)
        missed = np.asarray(alphas)[:, None] / (self._values + np.asarray(alphas)[:, None])  # (n_alphas, r)
        share = 1.0 / self._weight if self._fit_intercept else 0.0
        for rows, part in self._parts(X, group * k):
            heavy = np.ones((len(part), 1)) if weight is None else np.asarray(weight[rows], dtype=np.float64)[:, None]
            aims, squares = targets(rows), np.square(part)
            centred = aims - self._aim
            for start in range(0, len(missed), group):
                which = slice(start, min(start + group, len(missed)))
                if self._left is None:
                    rates = 1.0 - missed[which]
                    residuals = self._filtered(part, rates, k) - centred[:, None, :]
                    slack = 1.0 - heavy * (share + squares @ rates.T)
                else:
                    # What lies outside the span of the rows is not fitted at all, whatever alpha is.
                    outside = (part @ self._projected) / np.sqrt(heavy) - centred
                    residuals = (
                        outside[:, None, :] - self._filtered(part, missed[which], k) / np.sqrt(heavy)[:, :, None]
                    )
                    beyond = np.maximum(1.0 - squares.sum(axis=1, keepdims=True) - share * heavy, 0.0)
                    slack = squares @ missed[which].T + beyond
                yield rows, which, residuals, np.maximum(slack, 1e-12), aims

    def _filtered(self, part: np.ndarray, rates: np.ndarray, k: int) -> np.ndarray:
        """Return part @ diag(rates) @ projected for each row of rates, shape (n, len(rates), k), in one product."""
        wide = rates.T[:, :, None] * self._projected[:, None, :]
        return (part @ wide.reshape(len(self._values), len(rates) * k)).reshape(len(part), len(rates), k)

    def _parts(self, X: Any, columns: int) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (rows, their rows of U); of rows that come in blocks, before their weights."""
        # A block's errors for one group of alphas should stay in the caches.
        step = max(64, (4 << 20) // (8 * columns))
        if self._left is not None:
            for start in range(0, len(self._left), step):
                rows = slice(start, min(start + step, len(self._left)))
                yield rows, self._left[rows]
            return
        if self._vectors is None:
            raise HeadError("ridge: leave-one-out needs a decomposition; make the path by of_sums or of_rows")
        basis = self._vectors / np.sqrt(self._values) / self.scale[:, None]
        for rows, block in row_blocks(X, dtype=np.float64, block_bytes=step * 8 * X.shape[1]):
            yield rows, (block - self._centre) @ basis


def _mean(X: np.ndarray, weight: np.ndarray) -> np.ndarray:
    pivot = X[0].astype(np.float64)  # far from the origin a mean of differences keeps the digits
    return pivot + weight @ (X - pivot) / weight.sum()


def about_origin(sums: TargetMoments) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scatter, cross products and squares of rows and targets that are not centred."""
    weight = sums.weight[0]
    return (
        sums.scatter + weight * np.outer(sums.mean, sums.mean),
        sums.cross + weight * np.outer(sums.mean, sums.target),
        sums.squares + weight * np.square(sums.target),
    )


def on_raw(coef: np.ndarray, scale: np.ndarray, centre: np.ndarray, aim: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Turn coefficients (d, k) of centred, scaled codes into those of raw codes (k, d), with intercepts."""
    raw = np.ascontiguousarray((coef / scale[:, None]).T)
    return raw, aim - raw @ centre
