"""Which values are too large to be the largest of so many ordinary ones: the threshold follows from the data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["Excess", "excess", "standardised"]

#: What lies between these shares of the ordinary values says how their upper tail falls.
_TAIL = (0.6, 0.93)
#: Values so many deviations above the middle say nothing about the tail: they are what is looked for.
_FAR = 6.0


@dataclass(frozen=True)
class Excess:
    """Values that stand out.

    Parameters
    ----------
    found : ndarray of bool of shape (n,)
        Which do.
    chance : ndarray of shape (n,)
        For each value, the share of ordinary ones that are as large, by the tail.
    false : float
        How many of those found would be there if all were ordinary.
    """

    found: np.ndarray
    chance: np.ndarray
    false: float


def standardised(values: np.ndarray) -> np.ndarray:
    """Return values (n,) less their median, in deviations of their lower half, which planted large values leave alone.

    Zeros where more than a third of all values are equal to the median.
    """
    middle, low = np.quantile(values, [0.5, 0.16])
    return (values - middle) / (middle - low) if middle > low else np.zeros(len(values))


def excess(values: np.ndarray, *, false_share: float = 0.05) -> Excess:
    """Find the values that an exponential tail does not explain.

    Parameters
    ----------
    values : ndarray of shape (n,)
        Evidence, larger is more suspicious; mostly of ordinary cases.
    false_share : float, default=0.05
        Share of ordinary ones that is accepted among those found.

    Returns
    -------
    Excess
        Nothing is found among fewer than 20 values, or where they hardly vary.

    Notes
    -----
    Peaks over a threshold: above its 60th percentile the evidence of ordinary cases is taken to fall exponentially,
    at the rate at which it falls from there to the 93rd; the tails of Gaussians fall faster, so the chances are too
    large rather than too small. Values far from the bulk are left out of the fit. How many of them are reported
    follows from Benjamini and Hochberg, "Controlling the false discovery rate", 1995.

    Examples
    --------
    >>> values = np.append(np.random.default_rng(0).normal(size=500), [9.0, 11.0])
    >>> np.flatnonzero(excess(values).found).tolist()
    [500, 501]
    """
    n = len(values)
    nothing = Excess(np.zeros(n, dtype=bool), np.ones(n), 0.0)
    if n < 20:
        return nothing
    ordinary = np.ones(n, dtype=bool)
    for _ in range(3):  # by deviations of the lower half: a tail that is cut would move its own limit ever lower
        middle, low = np.quantile(values[ordinary], [0.5, 0.16])
        if middle <= low:
            return nothing
        ordinary = values <= middle + _FAR * (middle - low)
    start, end = np.quantile(values[ordinary], _TAIL)
    if end <= start:
        return nothing
    rate = np.log((1 - _TAIL[0]) / (1 - _TAIL[1])) / (end - start)
    chance = (1 - _TAIL[0]) * np.exp(np.minimum((start - values) * rate, 0.0))
    chance[values <= start] = 1.0
    ranked = np.sort(chance) * ordinary.mean()  # fewer than all are ordinary (Storey 2002)
    passing = np.flatnonzero(ranked <= false_share * np.arange(1, n + 1) / n)
    limit = np.sort(chance)[passing[-1]] if len(passing) else -1.0
    found = chance <= limit
    false = float(limit * ordinary.sum()) if found.any() else 0.0
    return Excess(found, chance, min(false, float(found.sum())))
