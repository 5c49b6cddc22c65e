"""Shares and deviations that few rows are drawn towards, from sums of squares alone."""

from __future__ import annotations

import numpy as np

__all__ = ["oas_share", "shrunk_scale"]


def shrunk_scale(variances: np.ndarray, weight: float, prior_rows: float = 20.0) -> np.ndarray:
    """Return the deviations by which `heads.ShrunkScaler` divides.

    Parameters
    ----------
    variances : ndarray of shape (d,)
        Mean squared deviations of the features.
    weight : float
        Rows (or their weight) that they come from.
    prior_rows : float, default=20.0
        How many rows the mean variance counts for.
    """
    common = float(variances.mean())
    scale = np.sqrt((weight * np.maximum(variances, 0.0) + prior_rows * common) / (weight + prior_rows))
    return np.where(scale > 0, scale, 1.0)


def oas_share(scatter_squares: float, trace: float, n_features: int, degrees: float) -> float:
    """Return the share of the scaled identity by the oracle approximating shrinkage.

    Parameters
    ----------
    scatter_squares, trace : float
        Sum of the squared entries, and of the diagonal, of the scatter of residuals.
    n_features : int
        Side of the matrix.
    degrees : float
        Rows minus estimated means.

    References
    ----------
    Y. Chen, A. Wiesel, Y. C. Eldar, A. O. Hero, "Shrinkage algorithms for MMSE covariance estimation", IEEE
    Transactions on Signal Processing 58 (2010), 5016-5029.
    """
    if trace <= 0.0 or degrees <= 0.0:
        return 1.0
    ratio, d = scatter_squares / trace**2, n_features  # 1/d for a multiple of the identity, 1 for one direction
    distance = (degrees + 1.0 - 2.0 / d) * (ratio - 1.0 / d)
    return float(np.clip(((1.0 - 2.0 / d) * ratio + 1.0) / distance, 0.0, 1.0)) if distance > 0 else 1.0
