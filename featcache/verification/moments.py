"""What the learned metrics need to know of the training rows: means per identity and shrunken covariances."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..solvers.blocks import row_blocks
from ..solvers.powers import signed_power

__all__ = ["IdentityMoments", "Spectrum"]


@dataclass(frozen=True)
class Spectrum:
    """A covariance by its eigenvalues, in the span of the rows it was made of.

    Parameters
    ----------
    values : ndarray of float64 of shape (rank,)
        Eigenvalues above zero.
    vectors : ndarray of float64 of shape (n_features, rank)
        Their directions; all others have variance 0.
    """

    values: np.ndarray
    vectors: np.ndarray

    @classmethod
    def of(cls, rows: np.ndarray, codes: np.ndarray | None, means: np.ndarray | None, dof: int) -> Spectrum:
        """Return the covariance of rows (n, d) about the means of their identities, or about zero.

        The smaller of the two Gram matrices is taken apart, so that few rows cost n³ and many d³.
        """
        n, d = rows.shape
        gram = np.zeros((min(n, d),) * 2)
        if n < d:
            centred = _about(rows.astype(np.float64), codes, means)
            gram = centred @ centred.T / max(dof, 1)
        else:
            for part, block in row_blocks(rows, dtype=np.float64):
                block = _about(block, None if codes is None else codes[part], means)
                gram += block.T @ block / max(dof, 1)
        values, vectors = np.linalg.eigh(gram)
        keep = values > max(values[-1], 0.0) * 1e-10
        values, vectors = values[keep], vectors[:, keep]
        if n < d:
            vectors = centred.T @ (vectors / np.sqrt(values * max(dof, 1)))
        return cls(values, vectors)

    def inverse_root(self, share: float) -> InverseRoot:
        """Return the root of the inverse of (1 - share) S + share (trace(S) / d) I; the identity where S is zero."""
        d = self.vectors.shape[0]
        common = float(self.values.sum()) / d
        if common == 0.0:
            return InverseRoot(self.vectors, np.ones(0), 1.0)
        # Without shrinkage, directions in which no row varies get no weight: any other would be made up.
        outside = 1.0 / np.sqrt(share * common) if share > 0 else 0.0
        return InverseRoot(self.vectors, 1.0 / np.sqrt((1 - share) * self.values + share * common), outside)


@dataclass(frozen=True)
class InverseRoot:
    """A symmetric matrix: `scales` along `vectors`, `outside` everywhere else."""

    vectors: np.ndarray
    scales: np.ndarray
    outside: float

    def apply(self, rows: np.ndarray) -> np.ndarray:
        """Return rows (n, d) times the matrix."""
        return self.outside * rows + ((rows @ self.vectors) * (self.scales - self.outside)) @ self.vectors.T

    @property
    def turned(self) -> bool:
        """Whether `matrix` leaves rows in the coordinates of `vectors`, which spares a product."""
        return self.vectors.shape[0] == self.vectors.shape[1] or self.outside == 0.0

    def matrix(self) -> np.ndarray:
        """Return a matrix (k, d) that gives the same scalar products."""
        return (self.vectors * self.scales).T if self.turned else self.apply(np.eye(self.vectors.shape[0]))

    def turn(self, rows: np.ndarray) -> np.ndarray:
        """Return rows of the symmetric root's space in the coordinates of `matrix`."""
        return rows @ self.vectors if self.turned else rows


def _about(block: np.ndarray, codes: np.ndarray | None, means: np.ndarray | None) -> np.ndarray:
    return block if codes is None or means is None else block - means[codes]


class IdentityMoments:
    """The training rows after the power transform and centring, and their covariances, each computed once.

    Parameters
    ----------
    X : ndarray of float of shape (n, d)
        Rows.
    codes : ndarray of int of shape (n,), default=None
        Identity of each row, from 0; None: each row is of an identity of its own.
    power : float, default=1.0
        Exponent of the signed power transform.
    groups, bursts : ndarray of shape (n,), default=None
        For a metric that holds identities out of its own training: what keeps them together, and what keeps rows
        apart in pairs.
    """

    def __init__(
        self,
        X: np.ndarray,
        codes: np.ndarray | None,
        power: float = 1.0,
        *,
        groups: np.ndarray | None = None,
        bursts: np.ndarray | None = None,
    ) -> None:
        rows = signed_power(X, power)
        self.groups, self.bursts = groups, bursts
        self.power = power
        self.mean = rows.mean(axis=0, dtype=np.float64)
        self.rows = rows - self.mean.astype(rows.dtype)
        self.codes = np.arange(len(X)) if codes is None else codes
        self.counts = np.bincount(self.codes)

    @cached_property
    def identity_means(self) -> np.ndarray:
        """Mean of each identity's centred rows, float64, shape (n_identities, d)."""
        order = np.argsort(self.codes, kind="stable")
        starts = np.cumsum(self.counts) - self.counts
        # Identities in slices, so that no float64 copy of all rows is needed.
        sums = np.stack(
            [
                self.rows[order[s : s + c]].sum(axis=0, dtype=np.float64)
                for s, c in zip(starts, self.counts, strict=True)
            ]
        )
        return sums / self.counts[:, None]

    @cached_property
    def within(self) -> Spectrum:
        """Covariance of rows about the mean of their identity."""
        dof = len(self.rows) - len(self.counts)
        if dof == 0:
            return Spectrum(np.zeros(0), np.zeros((self.rows.shape[1], 0)))
        return Spectrum.of(self.rows, self.codes, self.identity_means, dof)

    @cached_property
    def total(self) -> Spectrum:
        """Covariance of all rows."""
        return Spectrum.of(self.rows, None, None, len(self.rows) - 1)

    def between(self, root: InverseRoot) -> tuple[np.ndarray, np.ndarray]:
        """Return the variances of identities and their directions, where the within-covariance is the identity.

        Parameters
        ----------
        root : InverseRoot
            Makes it so.

        Returns
        -------
        variances : ndarray of shape (k,)
            Falling, k = n_identities - 1 at most. Moments of a one-way analysis of variance: the mean square between
            identities, less the 1 that the rows' own spread adds to it, over the mean number of images. Never negative.
        directions : ndarray of shape (k, d)
            Orthonormal, after `root`.
        """
        means = root.apply(self.identity_means)
        n, identities = float(self.counts.sum()), len(self.counts)
        _, sizes, directions = np.linalg.svd(means * np.sqrt(self.counts)[:, None], full_matrices=False)
        k = min(identities - 1, int((sizes > sizes[:1] * 1e-7).sum()))
        square = np.square(sizes[:k]) / (identities - 1)
        images = (n - np.square(self.counts, dtype=np.float64).sum() / n) / (identities - 1)
        return np.clip((square - 1.0) / max(images, 1e-12), 0.0, None), directions[:k]
