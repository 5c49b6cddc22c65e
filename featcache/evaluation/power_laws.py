"""All power laws that agree with a measured learning curve, weighted by how well they do.

A metric's distance from perfection is taken as z = -(1 - y) / y, the negative odds of an error (for metrics that fall,
z = -y): on real codes odds follow a power law in the training rows over a longer stretch than errors do, and where
errors are few the two are the same. With x = log2(n / n_last) and a ratio r = 2^-c the law z = a - b n^-c is linear:

    z = L + g h(x),  h(x) = r (1 - r^x) / (1 - r)

where L is z now, g the gain of the last doubling, and r says how fast gains shrink (r → 1: a straight line over log n).
Real curves wander off such a law: a Brownian motion over log n, times the root of the odds, so that curves of easy and
of hard sets wander about equally far in the metric. It makes early points count less than late ones, and grows beyond
the last.

How far they wander, and how alike errors at neighbouring n are, was chosen by the gains of users with small and large
sets in benchmarks/evidence/forecasting.py, who are drawn anew there; one of its sets was held out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import special, stats

from ..reporting import SMALLER_IS_BETTER

__all__ = ["LEAST", "Curves", "curves_through"]

_RATIOS = np.linspace(0.32, 0.98, 23)
#: Prior of the ratio, Beta(8, 2): exponents c from 0.04 to 0.9, in the middle 0.3.
_RATIO_PRIOR = (8.0, 2.0)
#: How far real curves wander off a power law per doubling, times the root of the odds of an error; equally likely.
_WANDERING = (0.02, 0.04, 0.08)
#: Values of g.
_GAINS = 120
_DRAWS = 4000
#: Correlation of errors per doubling apart: of draws of one seed, which are nested, and of what all draws share.
_ALIKE_DRAWS, _ALIKE_IMAGES = 0.7, 0.9
#: Below this share of hits the odds of an error say nothing.
LEAST = 0.02


@dataclass(frozen=True)
class Curves:
    """Draws from the posterior, each of shape (m,), on the scale z.

    Parameters
    ----------
    level, gain, ratio : ndarray
        L, g and r.
    wander : ndarray
        How far off the law after one doubling.
    falls : bool
        Whether the metric falls as labels come.
    """

    level: np.ndarray
    gain: np.ndarray
    ratio: np.ndarray
    wander: np.ndarray
    falls: bool

    def at(self, doublings: float) -> np.ndarray:
        """Return the metric on each curve so many doublings from now."""
        law = self.level + self.gain * _shape(self.ratio, doublings)
        return _metric(law + self.wander * np.sqrt(doublings), self.falls)

    def ends(self) -> np.ndarray:
        """Return where each curve would end with labels without number."""
        return _metric(self.level + self.gain * self.ratio / (1.0 - self.ratio), self.falls)


def curves_through(rows: Sequence[Mapping[str, Any]]) -> Curves:
    """Return the curves that agree with rows of a Result: of one head and data set, by ascending n_train."""
    falls = str(rows[-1]["metric"]) in SMALLER_IS_BETTER
    x = np.log2([row["n_train"] / rows[-1]["n_train"] for row in rows])
    means = np.asarray([row["mean"] for row in rows], dtype=np.float64)
    kept = means if falls else np.clip(means, LEAST, [_most(row) for row in rows])
    z, slope = (-kept, np.ones(len(kept))) if falls else ((kept - 1.0) / kept, 1.0 / kept**2)
    return _posterior(x, z, _covariance(x, rows) * slope[:, None] * slope[None, :], falls)


def _metric(z: np.ndarray, falls: bool) -> np.ndarray:
    z = np.minimum(z, 0.0)
    return -z if falls else 1.0 / (1.0 - z)


def _shape(ratio: Any, x: Any) -> Any:
    """Return h of the law: 0 now, -1 a doubling ago, `ratio` a doubling from now."""
    return ratio * (1.0 - ratio**x) / (1.0 - ratio)


def _covariance(x: np.ndarray, rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Covariance of the errors of the means.

    Their sizes are those of the rows' intervals. Part of it is what draws differ by; the rest is what all draws share,
    the images that there are, and at neighbouring n it is nearly the same.
    """
    apart = np.abs(x[:, None] - x[None, :])
    total = np.asarray([_standard_error(row) for row in rows])
    own = np.minimum([_between_draws(row) for row in rows], total)
    shared = np.sqrt(total**2 - own**2)
    return np.asarray(
        own[:, None] * _ALIKE_DRAWS**apart * own[None, :] + shared[:, None] * _ALIKE_IMAGES**apart * shared[None, :]
    )


def _images(row: Mapping[str, Any]) -> float:
    """How many different images were tested."""
    return float(row.get("n_images") or row["n_test"])


def _most(row: Mapping[str, Any]) -> float:
    """A few images without an error do not show that there is none: half a one more is thought to stand beside them."""
    return 1.0 - 0.5 / (_images(row) + 1.0)


def _between_draws(row: Mapping[str, Any]) -> float:
    """Standard error of the mean by the spread of the draws alone."""
    n = len(row["scores"])
    return float(np.std(row["scores"], ddof=1) / np.sqrt(n)) if n > 1 else 0.0


def _standard_error(row: Mapping[str, Any]) -> float:
    """From the wider side of the interval: the other one may have been cut at a bound."""
    if row["ci95"] is None or None in row["ci95"]:
        return 0.05
    # That of a normal: where few draws made the interval wide, what they leave open about their spread stays in.
    found = max(row["mean"] - row["ci95"][0], row["ci95"][1] - row["mean"], 2e-3) / 1.96
    if row["metric"] in SMALLER_IS_BETTER:
        return found
    share = min(max(row["mean"], LEAST), _most(row))
    return max(found, float(np.sqrt(share * (1.0 - share) / _images(row))))


def _posterior(x: np.ndarray, z: np.ndarray, noise: np.ndarray, falls: bool) -> Curves:
    """Draws on a grid of wandering, r, g ≥ 0; L has a closed form, its prior is flat where a curve ends below 0."""
    left = np.maximum(-z, 1e-3)
    # Wandering goes on between neighbouring points, from the last one backwards, by the odds there.
    steps = np.diff(x) * (left[1:] + left[:-1]) / 2
    behind = np.concatenate([np.cumsum(steps[::-1])[::-1], [0.0]])
    wandering = np.minimum(behind[:, None], behind[None, :])
    grid = (np.arange(_GAINS) + 0.5) / _GAINS
    gains = grid**2 * max(3.0 * float((np.diff(z) / np.diff(x)).max()), float(left[-1]))  # finer near 0
    cells = []
    for share in _WANDERING:
        covariance = noise + share**2 * wandering
        inverse, log_det = np.linalg.inv(covariance), np.linalg.slogdet(covariance)[1]
        precision = inverse.sum()
        for ratio, prior in zip(_RATIOS, stats.beta.logpdf(_RATIOS, *_RATIO_PRIOR), strict=True):
            rest = z[None, :] - gains[:, None] * _shape(ratio, x)[None, :]
            level = rest @ inverse.sum(axis=1) / precision
            rest -= level[:, None]
            room = (-gains * ratio / (1.0 - ratio) - level) * np.sqrt(precision)  # in standard deviations of L
            weight = -0.5 * (((rest @ inverse) * rest).sum(axis=1) + log_det + np.log(precision))
            # `grid` is what a step of g is wide: its prior is flat.
            weight += special.log_ndtr(room) + np.log(grid) + prior
            same = np.ones(_GAINS)
            cells.append(np.stack([weight, level, gains, ratio * same, share * same, room, precision * same]))
    return _drawn(np.concatenate(cells, axis=1), float(left[-1]), falls)


def _drawn(cells: np.ndarray, left: float, falls: bool) -> Curves:
    """Systematic draws of the grid's cells, with L and the wandering drawn within each."""
    share = np.cumsum(np.exp(cells[0] - cells[0].max()))
    drawn = np.searchsorted(share / share[-1], (np.arange(_DRAWS) + 0.5) / _DRAWS)
    level, gain, ratio, wander, room, precision = cells[1:, np.minimum(drawn, cells.shape[1] - 1)]
    generator = np.random.default_rng(0)
    # A normal cut off above at `room`, by its quantiles; in logarithms, since far in the tail the plain ones are 0.
    cut = special.ndtri_exp(special.log_ndtr(room) + np.log(generator.uniform(1e-9, 1.0, _DRAWS)))
    level = np.minimum(level + cut / np.sqrt(precision), 0.0)
    return Curves(level, gain, ratio, wander * np.sqrt(left) * generator.standard_normal(_DRAWS), falls)
