"""Error rates of same-or-different scores: ROC, equal error rate, thresholds, and how far the pairs support them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import HeadError
from .pairs import pair_blocks

__all__ = [
    "RULE_OF",
    "AcceptanceThreshold",
    "Curve",
    "ScoreHistogram",
    "all_scores",
    "d_prime",
    "eer_interval",
    "streamed_histogram",
]

#: Doddington's rule: 30 errors must have been seen for the true rate to lie within 30 % of the measured one (90 %).
RULE_OF = 30

_BOOTSTRAP_PAIRS = 200_000
_BINS = 4096


@dataclass(frozen=True)
class AcceptanceThreshold:
    """The score from which on two rows are taken as the same, and what supports it.

    Parameters
    ----------
    threshold : float
        Accept where score >= threshold.
    far : float
        Share of the impostor pairs that it accepts.
    n_impostor : int
        Impostor pairs it was set on.
    supported : bool
        Whether the wanted rate means 30 accepted pairs or more (Doddington's rule of 30).
    """

    threshold: float
    far: float
    n_impostor: int
    supported: bool


@dataclass(frozen=True)
class Curve:
    """False accepts and false rejects at every threshold: ROC and DET at once.

    Parameters
    ----------
    thresholds : ndarray of shape (n_thresholds,)
        Rising; a pair is accepted where its score is not below the threshold.
    far : ndarray of shape (n_thresholds,)
        Share of the impostor pairs (two identities) that is accepted; from 1 down to 0.
    frr : ndarray of shape (n_thresholds,)
        Share of the genuine pairs (one identity) that is rejected; from 0 up to 1.
    n_genuine, n_impostor : int
        Pairs of each kind.

    Examples
    --------
    >>> curve = Curve.of([0.9, 0.8, 0.4], [0.5, 0.2, 0.1])
    >>> round(curve.eer(), 4), curve.tar_at(0.0), curve.threshold_at(0.34).threshold
    (0.3333, 0.6666666666666667, 0.4)
    """

    thresholds: np.ndarray
    far: np.ndarray
    frr: np.ndarray
    n_genuine: int
    n_impostor: int

    @classmethod
    def of(cls, genuine: Any, impostor: Any) -> Curve:
        """Return the exact curve of two sets of scores; HeadError where one is empty or holds NaN."""
        genuine, impostor = (np.sort(np.asarray(side, dtype=np.float64).ravel()) for side in (genuine, impostor))
        for side, name in ((genuine, "genuine"), (impostor, "impostor")):
            if not len(side) or not np.isfinite(side[[0, -1]]).all():  # sorted: NaN and Inf lie at the ends
                raise HeadError(f"{name} scores: expected one or more finite numbers, got {len(side)} with NaN or Inf")
        steps = np.unique(np.concatenate([genuine, impostor]))
        steps = np.append(steps, np.nextafter(steps[-1], np.inf))
        far = 1.0 - np.searchsorted(impostor, steps) / len(impostor)
        frr = np.searchsorted(genuine, steps) / len(genuine)
        return cls(steps, far, frr, len(genuine), len(impostor))

    def eer(self) -> float:
        """Return the equal error rate: where both rates meet, between thresholds on the straight line."""
        return self._crossing()[0]

    def eer_threshold(self) -> float:
        """Return the threshold at which both rates meet."""
        return self._crossing()[1]

    def _crossing(self) -> tuple[float, float]:
        ahead = self.far - self.frr  # falls from 1 to -1
        k = int(np.flatnonzero(ahead >= 0)[-1])
        if ahead[k] == 0 or k + 1 == len(ahead):
            return float(self.far[k]), float(self.thresholds[k])
        share = float(ahead[k] / (ahead[k] - ahead[k + 1]))
        at, step = (float(v[k] + share * (v[k + 1] - v[k])) for v in (self.far, self.thresholds))
        return at, step

    def threshold_at(self, far: float) -> AcceptanceThreshold:
        """Return the lowest threshold that accepts at most a wanted share of the impostor pairs.

        Parameters
        ----------
        far : float
            Wanted false-accept rate, 0 to 1.

        Returns
        -------
        AcceptanceThreshold
            `supported` is False where fewer than 30 accepted pairs stand behind the rate.

        Raises
        ------
        HeadError
            `far` outside [0, 1].
        """
        if isinstance(far, bool) or not isinstance(far, (int, float, np.number)) or not 0 <= far <= 1:
            raise HeadError(f"far: expected a false-accept rate between 0 and 1, got {far!r}")
        k = int(np.flatnonzero(self.far <= far * (1 + 1e-12))[0])
        # The relative slack keeps 0.3 * 100 from counting as 29.999….
        supported = far * self.n_impostor * (1 + 1e-9) >= RULE_OF
        return AcceptanceThreshold(float(self.thresholds[k]), float(self.far[k]), self.n_impostor, bool(supported))

    def rates_at(self, threshold: float) -> tuple[float, float]:
        """Return (FAR, FRR) at a threshold."""
        k = min(int(np.searchsorted(self.thresholds, threshold)), len(self.thresholds) - 1)
        return float(self.far[k]), float(self.frr[k])

    def tar_at(self, far: float) -> float:
        """Return the share of genuine pairs accepted (1 - FRR) where at most `far` of the impostors are."""
        return 1.0 - self.rates_at(self.threshold_at(far).threshold)[1]

    def frr_on(self, far: np.ndarray) -> np.ndarray:
        """Return the FRR on a grid of false-accept rates, each at the lowest threshold that keeps to it."""
        k = np.searchsorted(-self.far, -np.asarray(far) * (1 + 1e-12))
        return self.frr[np.minimum(k, len(self.frr) - 1)]

    def auroc(self) -> float:
        """Return the area under the ROC: the chance that a genuine pair scores above an impostor pair, ties half."""
        return float(np.trapezoid(1.0 - self.frr[::-1], self.far[::-1]))


class ScoreHistogram:
    """Counts of genuine and impostor scores in even bins: what is left of pairs that are too many to keep.

    Scores outside the range fall into the bins at its ends. Rates are exact at the bins' edges, so that the equal error
    rate is off by the share of pairs in one bin at most. Histograms of parts add up.

    Parameters
    ----------
    low, high : float
        Range of the scores, e.g. -1 and 1 for cosines.
    bins : int, default=4096
        Bins.

    Examples
    --------
    >>> parts = ScoreHistogram(-1.0, 1.0, 200)
    >>> parts.add([0.9, 0.1, -0.2], [True, False, False])
    >>> parts.curve().eer()
    0.0
    """

    def __init__(self, low: float, high: float, bins: int = _BINS) -> None:
        if not np.isfinite([low, high]).all() or low > high or bins < 2:
            raise HeadError(f"histogram: expected low < high and two bins or more, got {low!r}, {high!r}, {bins!r}")
        self.edges = np.linspace(low, high if high > low else low + 1e-9 + 1e-9 * abs(low), bins + 1)
        self.counts = np.zeros((2, bins))

    def add(self, scores: Any, same: Any) -> None:
        """Count scores; `same` says which pairs are of one identity."""
        scores, same = np.asarray(scores, dtype=np.float64).ravel(), np.asarray(same, dtype=bool).ravel()
        self.counts += self.weigh(self.bins_of(scores), same)

    def bins_of(self, scores: np.ndarray) -> np.ndarray:
        """Return the bin of each score."""
        if not np.isfinite(scores).all():
            raise HeadError("scores: expected finite numbers, got NaN or Inf; look at the codes")
        n, low, high = self.counts.shape[1], self.edges[0], self.edges[-1]
        return np.clip((scores - low) * (n / (high - low)), 0, n - 1).astype(np.intp)

    def weigh(self, bins: np.ndarray, same: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
        """Return the (impostor, genuine) counts per bin."""
        n = self.counts.shape[1]
        return np.bincount(bins + n * same, weights=weights, minlength=2 * n).reshape(2, n).astype(np.float64)

    def curve(self) -> Curve:
        """Return the rates at the bins' edges."""
        return self._curve_of(self.counts, self.edges)

    @staticmethod
    def _curve_of(counts: np.ndarray, edges: np.ndarray) -> Curve:
        impostor, genuine = counts.sum(axis=1)
        if not impostor or not genuine:
            raise HeadError("pairs: expected some of one identity and some of two, got one kind only; give more rows")
        below = np.concatenate([np.zeros((2, 1)), np.cumsum(counts, axis=1)], axis=1)
        return Curve(edges, 1.0 - below[0] / impostor, below[1] / genuine, round(genuine), round(impostor))


def all_scores(
    vectors: np.ndarray,
    codes: np.ndarray,
    score_matrix: Callable[[np.ndarray, np.ndarray], np.ndarray],
    bursts: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Score all pairs of rows, block by block: scores, same, first identity, second identity."""
    parts = []
    for rows, columns, mask in pair_blocks(len(vectors), bursts=bursts):
        one, other = np.nonzero(mask)
        first, second = codes[rows][one], codes[columns][other]
        parts.append((score_matrix(vectors[rows], vectors[columns])[one, other], first == second, first, second))
    scores, same, first, second = (np.concatenate(side) for side in zip(*parts, strict=True))
    return scores, same, first, second


def streamed_histogram(
    vectors: np.ndarray,
    codes: np.ndarray,
    score_matrix: Callable[[np.ndarray, np.ndarray], np.ndarray],
    bursts: np.ndarray | None = None,
    *,
    bins: int = _BINS,
    block_rows: int = 1024,
) -> ScoreHistogram:
    """Count the scores of all pairs without keeping them: memory does not grow with the number of pairs."""
    sample = vectors[np.linspace(0, len(vectors) - 1, min(len(vectors), 512)).astype(np.intp)]
    seen = score_matrix(sample, sample)  # holds each row with itself, too: the top of the range
    spare = 0.05 * float(np.ptp(seen))
    found = ScoreHistogram(float(seen.min()) - spare, float(seen.max()) + spare, bins)
    for rows, columns, mask in pair_blocks(len(vectors), block_rows, bursts):
        scores = score_matrix(vectors[rows], vectors[columns])
        found.add(scores[mask], (codes[rows][:, None] == codes[columns])[mask])
    return found


def d_prime(genuine: Any, impostor: Any) -> float:
    """Return (mean genuine - mean impostor) / root of the mean variance; 0 where neither varies."""
    genuine, impostor = np.asarray(genuine, dtype=np.float64), np.asarray(impostor, dtype=np.float64)
    spread = np.sqrt((genuine.var() + impostor.var()) / 2)
    return float((genuine.mean() - impostor.mean()) / spread) if spread > 0 else 0.0


def eer_interval(
    scores: np.ndarray,
    first: np.ndarray,
    second: np.ndarray,
    *,
    n_bootstraps: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Return a bootstrap interval of the equal error rate over identities.

    Pairs of one identity share its images, so that resampling pairs would promise far too much. Identities are drawn
    with replacement; a genuine pair counts as often as its identity was drawn, an impostor pair as the product of both.

    Parameters
    ----------
    scores : ndarray of shape (n_pairs,)
        Scores; of more than 200,000 impostor pairs so many are drawn.
    first, second : ndarray of int of shape (n_pairs,)
        Identities of the two rows of each pair.
    n_bootstraps, seed, level : int, int, float
        Draws of identities, their seed, and the share of them between the bounds.

    Returns
    -------
    low, high : float
        Bounds; draws that leave no pair of one kind are left out.
    """
    same = first == second
    generator = np.random.default_rng([seed, 0xB007])
    impostor = np.flatnonzero(~same)
    if len(impostor) > _BOOTSTRAP_PAIRS:
        impostor = generator.choice(impostor, _BOOTSTRAP_PAIRS, replace=False)
    kept = np.concatenate([np.flatnonzero(same), impostor])
    scores, same, first, second = scores[kept], same[kept], first[kept], second[kept]
    frame = ScoreHistogram(float(scores.min()), float(scores.max()), 2048)
    bins, n = frame.bins_of(scores.astype(np.float64)), int(max(first.max(), second.max())) + 1
    present = np.unique(np.concatenate([first, second]))
    rates = []
    for _ in range(n_bootstraps):
        drawn = np.zeros(n)
        drawn[present] = np.bincount(generator.integers(0, len(present), len(present)), minlength=len(present))
        weights = np.where(same, drawn[first], drawn[first] * drawn[second])
        counts = frame.weigh(bins, same, weights)
        if counts.sum(axis=1).all():
            rates.append(ScoreHistogram._curve_of(counts, frame.edges).eer())
    if not rates:
        return float("nan"), float("nan")
    low, high = np.quantile(rates, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)
