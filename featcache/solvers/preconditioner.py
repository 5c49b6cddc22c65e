"""The inverse of a linear head's Hessian, as far as it is diagonal in the codes' eigenbasis."""

from __future__ import annotations

from typing import Any

__all__ = ["Preconditioner"]


class Preconditioner:
    """Approximate inverse curvature of (r + 1, folds, columns) parameters, the last row of which are intercepts.

    Direction j of spread s_j has the curvature s_j c + penalty in a column of curvature c. Where only the leading
    directions are known, the others count as varying as little as the last of these: that passes over what little they
    vary less, and L-BFGS learns the rest.

    Parameters
    ----------
    xp : module
        numpy or torch.
    spread : array of shape (directions,)
        Falling.
    vectors : array of shape (r, directions) or None
        The leading directions; None when the parameters are themselves along the directions.
    bend : array of shape (folds, columns)
        Curvature of the loss by the scores of each column.
    penalty : array of shape (folds,)
        Curvature of the penalty.
    intercept : array of shape (folds, columns)
        Inverse curvature of the intercepts; zeros keep them as they are.
    weights : bool, default=True
        Whether the weights may move; else only the intercepts.
    """

    def __init__(
        self, xp: Any, spread: Any, vectors: Any, bend: Any, penalty: Any, intercept: Any, weights: bool = True
    ) -> None:
        self.xp, self.vectors, self.intercept, self.weights = xp, vectors, intercept, weights
        self.along = 1.0 / (spread[:, None, None] * bend + penalty[:, None])
        if vectors is not None:
            self.other = self.along[-1] if len(spread) else 1.0 / penalty[:, None]
            self.along = self.along - self.other

    def __call__(self, gradient: Any) -> Any:
        """Return the gradient times the inverse curvature."""
        out = self.xp.empty_like(gradient)
        out[-1] = gradient[-1] * self.intercept
        inner = gradient[:-1]
        if not self.weights:
            out[:-1] = 0.0
        elif self.vectors is None:
            out[:-1] = inner * self.along
        else:
            columns = inner.shape[1] * inner.shape[2]
            known = (self.vectors.T @ inner.reshape(len(inner), columns)).reshape(self.along.shape) * self.along
            out[:-1] = inner * self.other
            out[:-1] += (self.vectors @ known.reshape(len(known), columns)).reshape(inner.shape)
        return out
