"""How sure a mean over draws is: intervals for what heads score, and tests of their differences.

What is estimated is the expected score of a head that is trained on so many images, over all images and all training
sets of the kind at hand. Two things make a mean over draws differ from that: which images are tested, and which are
trained on. Draws share both, so they are no independent trials, and the usual t interval over draws is too short.

*Tested images.* Each row's contribution to the mean over draws is known (`metrics`), so its variance over rows (over
groups, where rows come in groups) is, whatever number of draws tested it: rows and draws are crossed, as in the
analysis of readers and cases (Gallas, Academic Radiology 2006).

*Training rows.* What scores of draws differ by, beyond what their test rows explain, is the training sets' doing. Part
of it averages out over draws; the part that all draws share, because they train on rows of one data set, does not: for
a linear effect of rows it is rho / (1 - rho) of what is seen between draws, rho being the share of training rows that
two draws have in common (Nadeau and Bengio, Machine Learning 2003, have the same form for the test rows). It is taken
as at most a half, since what little is seen between nearly equal training sets is mostly noise.

*Both at once.* Where rows that train in one draw are tested in another, easy images help twice, and the errors of
both kinds are correlated (Bates, Hastie and Tibshirani, JASA 2023). The correlation cannot be estimated from a few
draws; it is taken to be one half, which benchmarks/bench_evidence.py tries on synthetic populations fitted to real
codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

__all__ = ["Cell", "Difference", "differences", "interval"]

#: Of the errors by test rows and by training rows, where rows are both in turn.
_CORRELATION = 0.5
#: Most that is counted for training rows that draws share, times what is seen between draws.
_MOST_SHARED = 0.5
#: What differs between draws is at least this part of what their test rows explain: a difference that is lost in noise
#: is not nothing.
_LEAST_SEEN = 0.005
_SIMULATED = 20_000
_LEVEL = 0.95


@dataclass(frozen=True)
class Cell:
    """All draws of one head on one set of codes at one number of shots.

    Parameters
    ----------
    scores : ndarray of shape (n_draws,)
        The metric, draw by draw.
    tested : ndarray of int of shape (n_units,)
        Names of the images (or groups) that any draw tested, ascending: what two cells are paired by.
    gains : ndarray of shape (n_draws, n_units)
        What each of them adds to a draw's score, around the score: sums of contributions over rows, divided by the
        draw's number of test rows.
    within : ndarray of shape (n_draws, n_units)
        The same around the mean of each class: what varies between draws that are stratified.
    overlap : float
        Share of training rows that two draws have in common, 0 to 1.
    reused : bool
        Whether rows that one draw trains on are tested in another.
    """

    scores: np.ndarray
    tested: np.ndarray
    gains: np.ndarray
    within: np.ndarray
    overlap: float
    reused: bool

    @property
    def mean(self) -> float:
        """Mean over the draws."""
        return float(self.scores.mean())

    def __sub__(self, other: Cell) -> Cell:
        """Return the cell of the paired difference; both must have the same draws."""
        if not np.array_equal(self.tested, other.tested):
            raise ValueError("cells: expected the same images in both, got others; compare what was drawn alike")
        return Cell(
            self.scores - other.scores,
            self.tested,
            self.gains - other.gains,
            self.within - other.within,
            self.overlap,
            self.reused,
        )

    def variance(self) -> tuple[float, float]:
        """Return the variance of the mean over draws, and its degrees of freedom (Satterthwaite)."""
        n_draws, n_units = self.gains.shape
        spare = n_units / max(n_units - 1, 1)
        rows = float(np.square(self.gains.mean(axis=0)).sum()) * spare
        seen = self._between_draws()
        shared = min(self.overlap / max(1.0 - self.overlap, 1e-9), _MOST_SHARED) if n_draws > 1 else 0.0
        training = seen * (1.0 / n_draws + shared)
        both = 2.0 * _CORRELATION * np.sqrt(rows * seen * shared) if self.reused else 0.0
        total = rows + training + float(both)
        noise = rows**2 / max(n_units - 1, 1) + (training**2 / (n_draws - 1) if n_draws > 1 else 0.0)
        return total, max(total**2 / noise, 1.0) if noise > 0 else float(max(n_units - 1, 1))

    def _between_draws(self) -> float:
        """Variance between draws that their training sets make: what is seen, less what their test rows explain."""
        n = len(self.scores)
        if n < 2:
            return 0.0
        own = float(np.square(self.within).sum())  # of all draws: the trace of their covariance
        common = float(np.square(self.within.sum(axis=0)).sum()) - own
        explained = own / n - common / (n * (n - 1))
        return max(_LEAST_SEEN * explained, float(self.scores.var(ddof=1)) - explained)


def interval(cell: Cell, *, bounded: bool = True, loss: bool = False) -> tuple[float, float]:
    """Return the 95 % interval of the expected score.

    Of a bounded metric it is Wilson's (1927) with the number of rows that would give this variance, so that it stays
    within 0 and 1 and is wider than nothing where every row is right.

    Parameters
    ----------
    cell : Cell
        All draws.
    bounded : bool, default=True
        Whether the metric lies between 0 and 1.
    loss : bool, default=False
        Whether it has no upper bound but is above 0: the interval is then made on its logarithm.
    """
    mean, (variance, df) = cell.mean, cell.variance()
    t = float(stats.t.ppf(0.5 + _LEVEL / 2, df))
    if loss and mean > 0.0:
        half = t * float(np.sqrt(variance)) / mean
        return float(mean * np.exp(-half)), float(mean * np.exp(half))
    if not bounded:
        half = t * float(np.sqrt(variance))
        return mean - half, mean + half
    inside = 0.0 < mean < 1.0 and variance > 0.0
    n = mean * (1.0 - mean) / variance if inside else float(cell.gains.shape[1])
    share = t * t / n
    centre = (mean + share / 2) / (1 + share)
    half = float(np.sqrt(share * (mean * (1 - mean) + share / 4))) / (1 + share)
    return max(0.0, centre - half), min(1.0, centre + half)


@dataclass(frozen=True)
class Difference:
    """A paired difference of two cells among several that are compared at once.

    Parameters
    ----------
    mean : float
        Mean over draws of the first less the second.
    ci95 : tuple of float
        95 % interval that holds for all pairs of the family at once.
    p : float
        Two-sided p-value of this pair alone.
    p_adjusted : float
        p-value among all pairs of the family: the chance that any of them would look so different if none were.
    """

    mean: float
    ci95: tuple[float, float]
    p: float
    p_adjusted: float

    @property
    def distinguishable(self) -> bool:
        """Whether it is told from 0 at the 5 % level, all pairs considered."""
        return self.p_adjusted < 1.0 - _LEVEL


def differences(cells: Sequence[Cell]) -> dict[tuple[int, int], Difference]:
    """Compare all pairs of cells that have the same draws.

    One step for the whole family: the largest of all |t| is simulated from the covariance of the heads' errors
    (Hothorn, Bretz and Westfall, Biometrical Journal 2008), so that whoever looks for the best head after seeing the
    scores is no more often wrong than 5 % of the time. Heads that agree on most images cost less than unlike ones.

    Parameters
    ----------
    cells : sequence of Cell
        Two or more, of the same draws.

    Returns
    -------
    dict of (int, int) to Difference
        For i < j: the i-th less the j-th.
    """
    pairs = [(i, j) for i in range(len(cells)) for j in range(i + 1, len(cells))]
    # One by one: all differences at once are as large as all cells times half their number.
    found = np.asarray([(each.mean, *_error(each)) for each in (cells[i] - cells[j] for i, j in pairs)])
    means, errors, dfs = found.reshape(-1, 3).T
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(errors > 0, np.abs(means) / errors, 0.0)
    alone = 2.0 * stats.t.sf(t, dfs)
    largest = _largest_of_all(cells, pairs, dfs)
    beyond = len(largest) - np.searchsorted(largest, t, side="left")
    adjusted = np.maximum(alone, (beyond + 1.0) / (len(largest) + 1.0))
    quantile = np.maximum(np.quantile(largest, _LEVEL), stats.t.ppf(0.5 + _LEVEL / 2, dfs))
    return {
        pair: Difference(float(m), (float(m - q * e), float(m + q * e)), float(p), float(a))
        for pair, m, q, e, p, a in zip(pairs, means, quantile, errors, alone, adjusted, strict=True)
    }


def _error(difference: Cell) -> tuple[float, float]:
    """Standard error and degrees of freedom of a paired difference.

    Few rows on which two heads disagree make the variance uncertain: half a row is added to either side, as Agresti
    and Min (Statistics in Medicine 2005) do for matched pairs.
    """
    variance, df = difference.variance()
    if not np.any(difference.gains) and not np.any(difference.scores):
        return 0.0, df
    return float(np.sqrt(variance + 1.0 / difference.gains.shape[1] ** 2)), df


def _largest_of_all(cells: Sequence[Cell], pairs: Sequence[tuple[int, int]], dfs: np.ndarray) -> np.ndarray:
    """Simulated largest |t| of all pairs when no two heads differ, ascending."""
    if len(pairs) < 2:
        generator = np.random.default_rng(0)
        return np.sort(np.abs(generator.standard_t(dfs[0] if len(dfs) else 1.0, _SIMULATED)))
    rows = np.stack([cell.gains.mean(axis=0) for cell in cells])
    scores = np.stack([cell.scores - cell.mean for cell in cells])
    covariance = rows @ rows.T + scores @ scores.T / max(scores.shape[1] * (scores.shape[1] - 1), 1)
    values, vectors = np.linalg.eigh(covariance)
    generator = np.random.default_rng(0)
    errors = generator.standard_normal((_SIMULATED, len(cells))) @ (vectors * np.sqrt(np.maximum(values, 0.0))).T
    # Each pair's error is known with an uncertainty of its own, so that the largest |t| is often one whose error came
    # out too small: a scale per pair, at the fewest degrees of freedom, keeps small sets to the level.
    df = float(dfs.min())
    largest = np.zeros(_SIMULATED)
    for i, j in pairs:
        spread = covariance[i, i] + covariance[j, j] - 2.0 * covariance[i, j]
        if spread > 1e-18:  # heads that say the same differ by nothing
            scale = np.sqrt(generator.chisquare(df, _SIMULATED) / df)
            np.maximum(largest, np.abs(errors[:, i] - errors[:, j]) / (scale * np.sqrt(spread)), out=largest)
    return np.sort(largest)
