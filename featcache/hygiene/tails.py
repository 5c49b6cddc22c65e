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


def standardised(values: np.ndarray, ordinary: np.ndarray | None = None) -> np.ndarray:
    """Return values (n,) less the median, in deviations of the lower half, which planted large values leave alone.

    Median and deviation are those of `ordinary` values where they are given. Zeros where more than a third of them
    are equal to the median.
    """
    middle, low = np.quantile(values if ordinary is None else ordinary, [0.5, 0.16])
    return (values - middle) / (middle - low) if middle > low else np.zeros(len(values))


def excess(values: np.ndarray, *, ordinary: np.ndarray | None = None, false_share: float = 0.05) -> Excess:
    """Find the values that an exponential tail does not explain.

    Parameters
    ----------
    values : ndarray of shape (n,)
        Evidence, larger is more suspicious; mostly of ordinary cases, unless these are given.
    ordinary : ndarray of shape (m,), default=None
        Evidence of cases that are nothing that is looked for: the tail is then theirs, at half its rate, because they
        are like ordinary values and not the same. None: the tail is that of the values.
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
    shown = values if ordinary is None else ordinary
    nothing = Excess(np.zeros(n, dtype=bool), np.ones(n), 0.0)
    if min(n, len(shown)) < 20:
        return nothing
    near = np.ones(len(shown), dtype=bool)
    for _ in range(3):  # by deviations of the lower half: a tail that is cut would move its own limit ever lower
        middle, low = np.quantile(shown[near], [0.5, 0.16])
        if middle <= low:
            return nothing
        near = shown <= middle + _FAR * (middle - low)
    start, end = np.quantile(shown[near], _TAIL)
    if end <= start:
        return nothing
    rate = np.log((1 - _TAIL[0]) / (1 - _TAIL[1])) / (end - start) * (1.0 if ordinary is None else 0.5)
    chance = (1 - _TAIL[0]) * np.exp(np.minimum((start - values) * rate, 0.0))
    chance[values <= start] = 1.0
    ranked = np.sort(chance) * (near.mean() if ordinary is None else 1.0)  # fewer than all are ordinary (Storey 2002)
    passing = np.flatnonzero(ranked <= false_share * np.arange(1, n + 1) / n)
    limit = np.sort(chance)[passing[-1]] if len(passing) else -1.0
    found = chance <= limit
    false = float(limit * (near if ordinary is None else ~found).sum()) if found.any() else 0.0
    return Excess(found, chance, min(false, float(found.sum())))
