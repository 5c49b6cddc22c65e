"""Losses of linear heads on a block of scores, for several weightings of the rows (folds) side by side.

Each turns scores into what a solver needs, in place: the sum of the weighted losses per fold, the derivative by each
score, and the curvature per class. They run on NumPy and on torch alike: `xp` is the one or the other.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

#: Scores of this size can be exponentiated as they are, also in float32, without over- or underflow of their ratios.
_SAFE = 40.0

__all__ = ["Loss", "SigmoidLoss", "SoftmaxLoss", "SquaredHingeLoss"]


class Loss(Protocol):
    """What a solver wants of a loss."""

    #: Upper bound on the curvature by one score.
    bound: float

    def shares(self, target: np.ndarray, weight: np.ndarray, columns: int) -> np.ndarray:
        """Return the mean target (folds, columns) under weights (rows, folds) of sum 1."""
        ...

    def intercepts(self, shares: np.ndarray) -> np.ndarray:
        """Return the best intercepts for zero weights, shape (folds, columns)."""
        ...

    def __call__(self, xp: Any, scores: Any, target: Any, weight: Any, curvature: bool) -> tuple[Any, Any]:
        """Overwrite the scores with the weighted derivatives; return the sums of losses and of curvatures.

        Parameters
        ----------
        xp : module
            numpy or torch.
        scores : array of shape (rows, folds, classes)
            Overwritten.
        target : array
            What `Loss` says, for these rows.
        weight : array of shape (rows, folds, 1)
            Weights of the rows per fold, summing to 1 over all blocks.
        curvature : bool
            Whether the second is wanted.

        Returns
        -------
        loss : array of shape (folds,)
        curvature : array of shape (folds, classes) or None
        """
        ...


def _row_sums(xp: Any, scores: Any) -> Any:
    """Sums over the classes, by BLAS: NumPy's own sums over short axes are slow."""
    n, folds, k = scores.shape
    return (scores.reshape(-1, k) @ xp.ones(k, dtype=scores.dtype, device=scores.device)).reshape(n, folds)


def _fold_sums(xp: Any, losses: Any) -> Any:
    """Sums over the rows (rows, folds), in float64: a line search must not meet the rounding of a long sum."""
    return xp.sum(losses, axis=0, dtype=xp.float64)


class SoftmaxLoss:
    """Cross-entropy of the softmax; target: the class of each row, int of shape (rows,).

    Parameters
    ----------
    smoothing : float, default=0.0
        Share of the target that is spread over all classes (Szegedy et al. 2016, arXiv 1512.00567).
    """

    bound = 0.5

    def __init__(self, smoothing: float = 0.0) -> None:
        self.smoothing = smoothing

    def shares(self, target: np.ndarray, weight: np.ndarray, columns: int) -> np.ndarray:
        """Return the classes' shares, smoothed."""
        plain = np.stack([np.bincount(target, part, minlength=columns) for part in weight.T])
        return plain * (1.0 - self.smoothing) + self.smoothing / columns

    def intercepts(self, shares: np.ndarray) -> np.ndarray:
        """Return the logarithms of the shares."""
        return np.log(np.maximum(shares, 1e-12))

    def __call__(self, xp: Any, scores: Any, target: Any, weight: Any, curvature: bool) -> tuple[Any, Any]:
        """Do as `Loss` says."""
        n, folds, k = scores.shape
        own = (xp.arange(n, device=scores.device), slice(None), target)
        if max(float(xp.amax(scores)), -float(xp.amin(scores))) > _SAFE:
            scores -= xp.amax(scores, axis=2, keepdims=True)
        score = scores[own]
        even = _row_sums(xp, scores) * (self.smoothing / k) if self.smoothing else 0.0
        xp.exp(scores, out=scores)
        hit = xp.exp(score)
        # The other classes are summed by themselves: where a row is nearly certain, 1 - p of its own class would be
        # a rounding error, and so would be the loss.
        scores[own] = 0.0
        rest = _row_sums(xp, scores)
        total = rest + hit
        lost = xp.where(score > -2.0 * _SAFE, xp.log1p(rest / xp.clip(hit, 1e-36, None)), xp.log(total) - score)
        if self.smoothing:
            lost = lost + score * self.smoothing - even
        weight = weight[..., 0]
        loss = _fold_sums(xp, lost * weight)
        bend = None
        if curvature:
            share = scores / total[..., None]
            share[own] = hit / total
            bend = xp.sum((share - share * share) * weight[..., None], axis=0)
        scores *= (weight / total)[..., None]
        scores[own] = (self.smoothing - rest / total) * weight
        if self.smoothing:
            scores -= (self.smoothing / k) * weight[..., None]
        return loss, bend


class SigmoidLoss:
    """Logistic loss of each column by itself; target: shares in [0, 1] of shape (rows, columns)."""

    bound = 0.25

    def shares(self, target: np.ndarray, weight: np.ndarray, columns: int) -> np.ndarray:
        """Return the mean of each column."""
        return weight.T.astype(np.float64) @ target

    def intercepts(self, shares: np.ndarray) -> np.ndarray:
        """Return the log odds of the shares."""
        inner = np.clip(shares, 1e-9, 1.0 - 1e-9)
        return np.log(inner / (1.0 - inner))

    def __call__(self, xp: Any, scores: Any, target: Any, weight: Any, curvature: bool) -> tuple[Any, Any]:
        """Do as `Loss` says."""
        target = target[:, None, :]
        small = xp.exp(-xp.abs(scores))
        # Each side by itself, so that nearly certain rows keep a loss and a derivative in float32.
        wrong = (1.0 - target) * xp.clip(scores, 0.0, None) + target * xp.clip(-scores, 0.0, None)
        loss = _fold_sums(xp, xp.sum((wrong + xp.log1p(small)) * weight, axis=2))
        low = small / (1.0 + small)
        bend = xp.sum((low - low * low) * weight, axis=0) if curvature else None
        scores[...] = xp.where(scores >= 0, (1.0 - target) - low, low - target) * weight
        return loss, bend


class SquaredHingeLoss:
    """Squared hinge loss of each column by itself; target: 1 or -1 of shape (rows, columns)."""

    bound = 2.0

    def shares(self, target: np.ndarray, weight: np.ndarray, columns: int) -> np.ndarray:
        """Return the mean of each column."""
        return weight.T.astype(np.float64) @ target

    def intercepts(self, shares: np.ndarray) -> np.ndarray:
        """Return zeros."""
        return np.zeros_like(shares)

    def __call__(self, xp: Any, scores: Any, target: Any, weight: Any, curvature: bool) -> tuple[Any, Any]:
        """Do as `Loss` says."""
        target = target[:, None, :]
        slack = xp.clip(1.0 - target * scores, 0.0, None)
        loss = _fold_sums(xp, xp.sum(slack * slack * weight, axis=2))
        bend = 2.0 * xp.sum((slack > 0) * weight, axis=0) if curvature else None
        scores[...] = -2.0 * target * slack * weight
        return loss, bend
