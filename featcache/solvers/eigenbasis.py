"""The directions in which codes vary most, and how much: what preconditions every linear head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .blocks import row_blocks

__all__ = ["Eigenbasis"]

#: Leading directions that are told apart; more gain nothing. Where columns are few, passes are cheap: fewer will do.
_LEADING = 32
#: Rows that each of them is taken from.
_ROWS_EACH = 12
#: Rounds of the subspace iteration that finds them.
_ROUNDS = 2
#: Directions with less than this share of the largest eigenvalue are rounding errors of the rows' Gram matrix.
_RANK_TOL = 1e-9
#: Where so much of a row (in units of the longest) lies outside of the other directions, that is more than rounding.
_OUTSIDE = 1e-10
#: Beyond such a spread the squares of scores do not fit into float32.
_LARGEST = 1e30


@dataclass(frozen=True)
class Eigenbasis:
    """Orthonormal directions along which the rows vary without correlation (the leading ones only nearly so).

    Attributes
    ----------
    centre : ndarray of shape (n_features,)
        What was subtracted from the rows; zeros when they were not to be centred.
    vectors : ndarray of shape (n_features, r)
        Orthonormal columns.
    spread : ndarray of shape (r,)
        Weighted mean square of the rows along each, falling.
    complete : bool
        Whether the directions span the rows, so that rows may be written in these coordinates.
    """

    centre: np.ndarray
    vectors: np.ndarray
    spread: np.ndarray
    complete: bool

    @classmethod
    def of(cls, X: Any, weight: np.ndarray, *, centred: bool = True, columns: int = 1) -> Eigenbasis:
        """Compute the basis of the weighted rows: complete where they are few and none is lost, else the leading.

        Parameters
        ----------
        X : array-like of shape (n, d)
            Rows; read block by block.
        weight : ndarray of shape (n,)
            Weights of the rows with sum 1.
        centred : bool, default=True
            Whether to subtract the weighted mean.
        columns : int, default=1
            Columns of scores that are to be computed from the rows: the more, the sooner a complete basis of few rows
            repays itself.

        Returns
        -------
        Eigenbasis
            In float64.

        Raises
        ------
        ValueError
            NaN or Inf in the rows, or a spread whose squares leave the range of float32.
        """
        n, d = X.shape
        centre, exact = np.zeros(d), np.result_type(getattr(X, "dtype", np.float32), np.float32)
        for rows, block in row_blocks(X, dtype=exact):
            total = weight[rows].astype(exact) @ block
            if not np.isfinite(total).all():
                raise ValueError(f"codes: NaN or Inf in rows {rows.start} to {rows.stop - 1}; drop them")
            centre += total if centred else 0.0
        with np.errstate(over="ignore", invalid="ignore"):
            basis = cls._found(X, weight, centre, columns)
        if not (basis.spread < _LARGEST).all():
            raise _too_large()
        return basis

    @classmethod
    def _found(cls, X: Any, weight: np.ndarray, centre: np.ndarray, columns: int) -> Eigenbasis:
        (n, d), basis = X.shape, None
        # A decomposition costs some n³, a pass in n coordinates in the place of d features saves (d - n) n columns.
        if n < d and n * n <= 8 * columns * (d - n):
            basis = _complete(X, weight, centre)
        if basis is None and d <= _LEADING:
            basis = _narrow(X, weight, centre)
        if basis is None:
            basis = _leading(X, weight, centre, min(_LEADING, 10 + 2 * columns))
        return basis


def _complete(X: Any, weight: np.ndarray, centre: np.ndarray) -> Eigenbasis | None:
    """From the rows' products with each other: as many directions as the rows span; None where some are lost.

    Products square the rows: what varies far less than the largest direction is not found in them.
    """
    rows = (np.asarray(X[:], dtype=np.float64) - centre) * np.sqrt(weight)[:, None]
    values, vectors = _descending(rows @ rows.T)
    keep = values > max(values[0], 0.0) * _RANK_TOL if len(values) else np.zeros(0, dtype=bool)
    values, vectors = values[keep], vectors[:, keep]
    directions = rows.T @ (vectors / np.sqrt(values))
    if not keep.all():
        outside = rows - (rows @ directions) @ directions.T
        if np.abs(outside).max(initial=0.0) > _OUTSIDE * np.sqrt(max(values.max(initial=0.0), 0.0)):
            return None
    return Eigenbasis(centre, directions, values, True)


def _narrow(X: Any, weight: np.ndarray, centre: np.ndarray) -> Eigenbasis:
    """From the features' products with each other: all directions there are."""
    gram = np.zeros((X.shape[1], X.shape[1]))
    for rows, block in row_blocks(X, dtype=np.float64):
        part = block - centre
        gram += part.T @ (part * weight[rows, None])
    values, vectors = _descending(gram)
    return Eigenbasis(centre, vectors, np.maximum(values, 0.0), False)


def _leading(X: Any, weight: np.ndarray, centre: np.ndarray, k: int) -> Eigenbasis:
    """From an evenly spaced sample of the rows; how much all rows vary along them is measured on all."""
    used = np.flatnonzero(weight > 0)
    sample = used[np.linspace(0, len(used) - 1, min(_ROWS_EACH * k, len(used))).round().astype(int)]
    some = np.asarray(X[sample], dtype=np.float32) - centre.astype(np.float32)
    directions = _principal(some, min(k, len(sample)))
    narrow, shift, spread = directions.astype(np.float32), centre.astype(np.float32), np.zeros(directions.shape[1])
    for rows, block in row_blocks(X):
        spread += weight[rows] @ np.square((block - shift) @ narrow, dtype=np.float64)
    order = np.argsort(-spread, kind="stable")
    return Eigenbasis(centre, directions[:, order], spread[order], False)


def _principal(rows: np.ndarray, k: int) -> np.ndarray:
    """Return about the k leading principal directions (d, k) of centred rows, by subspace iteration.

    Its orthogonalisations take NumPy's own BLAS as the solver does: another library's threads would still be spinning
    when the solver's begin.
    """
    gram = (rows @ rows.T).astype(np.float64)
    basis = np.random.default_rng(0).standard_normal((len(rows), min(k + 8, len(rows))))
    for _ in range(_ROUNDS):
        basis = np.linalg.qr(gram @ basis)[0]
    values, mixing = _descending(basis.T @ gram @ basis)
    keep = np.flatnonzero(values > max(values[0], 0.0) * 1e-6)[:k]
    found = rows.T.astype(np.float64) @ (basis @ mixing[:, keep]) / np.sqrt(values[keep])
    return np.linalg.qr(found)[0] if len(keep) else found


def _too_large() -> ValueError:
    return ValueError("codes: they vary so widely that their squares leave the range of float32; standardise them")


def _descending(gram: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if not np.isfinite(gram).all():
        raise _too_large()
    values, vectors = np.linalg.eigh(gram)
    return values[::-1], vectors[:, ::-1]
