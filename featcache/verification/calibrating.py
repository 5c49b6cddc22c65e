"""Scores as probabilities."""

from __future__ import annotations

import numpy as np

from .rates import ScoreHistogram

__all__ = ["calibration"]


def calibration(histogram: ScoreHistogram) -> list[float]:
    """Slope and shift of the logistic function that turns a score into a log-odds at equal priors (Platt 1999)."""
    from sklearn.linear_model import LogisticRegression

    counts = histogram.counts
    centres = (histogram.edges[:-1] + histogram.edges[1:]) / 2
    # Platt's targets: each kind has one pseudo-count of the other, so that separable scores stay finite.
    impostor, genuine = counts.sum(axis=1)
    wrong = np.asarray([1 / (impostor + 2), 1 / (genuine + 2)])
    kinds = np.repeat([0, 1, 1, 0], len(centres))
    share = counts / counts.sum(axis=1, keepdims=True)
    weights = np.concatenate(
        [share[0] * (1 - wrong[0]), share[1] * (1 - wrong[1]), share[0] * wrong[0], share[1] * wrong[1]]
    )
    centre, spread = float((centres * share.sum(axis=0)).sum() / 2), float(np.ptp(centres)) or 1.0
    used = weights > 0
    x = np.tile((centres - centre) / spread, 4)[used, None]
    model = LogisticRegression(C=1e6, max_iter=1000).fit(x, kinds[used], sample_weight=1000 * weights[used])
    slope = float(model.coef_[0, 0]) / spread
    return [slope, float(model.intercept_[0]) - slope * centre]
