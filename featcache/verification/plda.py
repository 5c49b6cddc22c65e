"""Probabilistic linear discriminant analysis: a likelihood ratio in place of a cosine."""

from __future__ import annotations

import numpy as np

from ..solvers.neighbors import unit_rows
from .metrics import LDAMetric

__all__ = ["PLDAMetric"]


class PLDAMetric(LDAMetric):
    """Probabilistic linear discriminant analysis: the log-likelihood ratio of one identity against two.

    The two-covariance model: an identity's centre is drawn from N(0, B), its images from N(centre, W). Both covariances
    are made diagonal together (W = I, B = diag(between_)), where the ratio is a closed form; B comes from the moments
    of a one-way analysis of variance, W is shrunken. With `length_norm` rows are scaled to the length that the model
    expects, which makes real codes more nearly Gaussian.

    Parameters
    ----------
    shrinkage : float, default=0.3
        Share of the scaled identity in the within-identity covariance, in [0, 1].
    n_components : int, default=None
        Directions kept; None for all, one less than the identities at most.
    length_norm : bool, default=True
        Whether vectors are scaled to one length; not done in fewer than 8 directions, where length says much.
    power : float or "auto", default="auto"
        As in `CosineMetric`.

    Attributes
    ----------
    between_ : ndarray of shape (n_components,)
        Variance of identities along each direction, in units of the variance within them.
    power_, mean_, components_
        As in `CosineMetric`.

    Notes
    -----
    The score of a template of n images (`score_matrix` with `counts`) is the ratio that the model has for all n: the
    more images, the surer of the centre.

    References
    ----------
    Ioffe: Probabilistic linear discriminant analysis. ECCV 2006.
    Prince, Elder: Probabilistic linear discriminant analysis for inferences about identity. ICCV 2007.
    Garcia-Romero, Espy-Wilson: Analysis of i-vector length normalization in speaker recognition systems. 2011.

    Examples
    --------
    >>> X = [[0.0], [0.2], [5.0], [5.2], [9.0], [9.2]]
    >>> metric = PLDAMetric(power=1.0).fit(X, ["ann", "ann", "bob", "bob", "eve", "eve"])
    >>> Z = metric.transform([[2.0], [2.1], [7.0]])
    >>> (metric.score_matrix(Z, Z)[0] > 0).tolist()
    [True, True, False]
    """

    def __init__(
        self,
        shrinkage: float = 0.3,
        n_components: int | None = None,
        length_norm: bool = True,
        power: float | str = "auto",
    ) -> None:
        super().__init__(shrinkage, n_components, power)
        self.length_norm = length_norm

    def _ends(self, vectors: np.ndarray) -> np.ndarray:
        if not self.length_norm or vectors.shape[1] < 8:
            return vectors
        return unit_rows(vectors) * float(np.sqrt((1.0 + self.between_).sum()))

    def template(self, vectors: np.ndarray) -> np.ndarray:
        """Return the mean of several images' vectors, shape (n_components,)."""
        return vectors.mean(axis=0)

    def score_matrix(self, A: np.ndarray, B: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
        """Return log-likelihood ratios (n, m) of each of A with each of B; see `CosineMetric.score_matrix`."""
        A, B = np.asarray(A, dtype=np.float64), np.asarray(B, dtype=np.float64)
        if counts is None or (np.asarray(counts) == 1).all():
            product, of_a, of_b, constant = self._terms(1.0)
            return (A * product) @ B.T + (np.square(A) @ of_a)[:, None] + np.square(B) @ of_b + constant
        out = np.empty((len(A), len(B)))
        for n in np.unique(counts):
            columns = np.flatnonzero(np.asarray(counts) == n)
            product, of_a, of_b, constant = self._terms(float(n))
            some = B[columns]
            out[:, columns] = (
                (A * product) @ some.T + (np.square(A) @ of_a)[:, None] + np.square(some) @ of_b + constant
            )
        return out

    def score_rows(self, A: np.ndarray, B: np.ndarray) -> np.ndarray:
        """Return the log-likelihood ratio of each of A with the one of B in the same place, shape (n,)."""
        A, B = np.asarray(A, dtype=np.float64), np.asarray(B, dtype=np.float64)
        product, of_a, of_b, constant = self._terms(1.0)
        return (A * B) @ product + np.square(A) @ of_a + np.square(B) @ of_b + constant

    def _terms(self, n: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, float]:
        """Coefficients of a·b, a² and b² and the constant, b being the mean of n images.

        Given b, the centre is N(g b, p / (n p + 1)) with g = n p / (n p + 1), so that a is N(g b, v) with
        v = 1 + p / (n p + 1); of another identity it is N(0, t) with t = 1 + p.
        """
        p = self.between_
        g, v, t = n * p / (n * p + 1.0), 1.0 + p / (n * p + 1.0), 1.0 + p
        return g / v, -0.5 * (1.0 / v - 1.0 / t), -0.5 * np.square(g) / v, float(-0.5 * np.log(v / t).sum())
