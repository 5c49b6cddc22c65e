"""Powers that keep the sign."""

from __future__ import annotations

import numpy as np

__all__ = ["signed_power"]


def signed_power(X: np.ndarray, alpha: float) -> np.ndarray:
    """Return sign(X) · |X| ** alpha, element by element; alpha = 1 returns X itself."""
    if alpha == 1.0:
        return X
    powers = np.sqrt(np.abs(X)) if alpha == 0.5 else np.abs(X) ** X.dtype.type(alpha)
    return np.copysign(powers, X)
