"""Images that show nothing, and images that are like no other of the set."""

from __future__ import annotations

import numpy as np

from ..solvers.neighbors import nearest_others
from .near import whitened
from .tails import excess

__all__ = ["blank_codes", "blank_images", "far_off"]

#: Grey levels (of 255) by which a picture must vary; JPEG alone makes one or two.
_LEVELS = 2.0
#: A row's distance from its 5th neighbour says whether it is alone; nearer ones may be copies of it.
_NEIGHBOUR = 5


def blank_images(thumbs: np.ndarray) -> np.ndarray:
    """Return which thumbnails (n, 64, 64) are one flat colour, black above all: bool (n,)."""
    flat = thumbs.reshape(len(thumbs), -1)
    return np.asarray([float(row.std()) < _LEVELS for row in flat], dtype=bool)


def blank_codes(X: np.ndarray) -> np.ndarray:
    """Return which rows (n, d) have one value in all features, as a broken extraction gives: bool (n,)."""
    return np.ptp(X, axis=1) == 0 if X.shape[1] > 1 else np.zeros(len(X), dtype=bool)


def far_off(X: np.ndarray, *, false_share: float = 0.05) -> tuple[np.ndarray, np.ndarray, float]:
    """Find rows that lie too far from all others.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Codes.
    false_share : float, default=0.05
        Accepted share of ordinary rows among those found.

    Returns
    -------
    rows : ndarray of int
        Row numbers.
    distance : ndarray
        From the 5th neighbour, among centred codes at unit length: 0 to 2.
    false : float
        How many of them are expected to be ordinary.
    """
    if len(X) < 20:
        return np.zeros(0, dtype=np.intp), np.zeros(0), 0.0
    Z = whitened(X, power=0.0)
    nearness = nearest_others(Z, min(_NEIGHBOUR, len(X) - 1))[0][:, -1].astype(np.float64)
    distance = np.sqrt(np.maximum(2.0 - 2.0 * nearness, 1e-12))
    judged = excess(distance, false_share=false_share)
    rows = np.flatnonzero(judged.found)
    return rows, distance[rows], judged.false
