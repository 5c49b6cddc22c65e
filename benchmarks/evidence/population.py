"""Synthetic populations fitted to real codes: as many images as one likes, of which everything is known."""

from dataclasses import dataclass

import numpy as np

from featcache import FeatureSet

_DIMENSIONS = 40
_POOLED = 0.3


@dataclass(frozen=True)
class Population:
    """Gaussian classes with the means, covariances and shares of real codes in their 40 first principal components.

    Each class's covariance is mixed with the pooled one (0.3), so that classes of few images have a full one. A
    population may have several blocks of codes that are alike in law: the same image seen by exchangeable backbones.
    """

    means: np.ndarray
    roots: np.ndarray
    shares: np.ndarray

    @classmethod
    def fitted(cls, data: FeatureSet) -> "Population":
        """Fit to labelled codes."""
        X, labels = data.xy
        y = np.unique(labels, return_inverse=True)[1]
        centred = np.asarray(X, dtype=np.float64) - X.mean(axis=0)
        U, s, _ = np.linalg.svd(centred, full_matrices=False)
        d = min(_DIMENSIONS, len(s), len(y) // 2)
        Z = U[:, :d] * s[:d]
        Z /= Z.std()
        own = [np.cov(Z[y == c].T) for c in range(y.max() + 1)]
        pooled = np.mean(own, axis=0)
        roots = [np.linalg.cholesky((1 - _POOLED) * each + _POOLED * pooled + 1e-6 * np.eye(d)) for each in own]
        means = np.stack([Z[y == c].mean(axis=0) for c in range(y.max() + 1)])
        return cls(means, np.stack(roots), np.bincount(y) / len(y))

    def labels(self, n: int, rng: np.random.Generator, least: int = 3) -> np.ndarray:
        """Draw classes, anew where one has fewer images than `least`."""
        while True:
            y = rng.choice(len(self.shares), n, p=self.shares)
            if least == 0 or np.bincount(y, minlength=len(self.shares)).min() >= least:
                return y

    def codes(self, y: np.ndarray, rng: np.random.Generator, blocks: int = 1, common: float = 0.0) -> np.ndarray:
        """Draw codes (n, blocks * d) for classes; of the noise, the share `common` is the same in all blocks."""
        shared = rng.standard_normal((len(y), self.means.shape[1]))
        out = []
        for _ in range(blocks):
            noise = np.sqrt(common) * shared + np.sqrt(1 - common) * rng.standard_normal(shared.shape)
            out.append(self.means[y] + np.einsum("nij,nj->ni", self.roots[y], noise))
        return np.hstack(out).astype(np.float32)
