"""Mini-batches of anything sliceable in a seeded order, and the moments of a stream of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from .blocks import row_blocks
from .shrinkage import shrunk_scale

__all__ = ["BatchSource", "RunningMoments", "n_batches", "ordered_batches", "shuffled_batches"]

#: epoch → the batches of that epoch: (X, codes), or (X, codes, numbers of the rows).
BatchSource = Callable[[int], Iterable[tuple[Any, ...]]]

#: Rows read in one piece, and pieces mixed, where the rows lie on disk.
_BLOCK_ROWS = 256
_WINDOW = 64


def n_batches(n_rows: int, batch_size: int) -> int:
    """Return how many batches `shuffled_batches` makes of so many rows (on disk at least one a window)."""
    return max(1, -(-n_rows // batch_size))


def shuffled_batches(X: Any, codes: np.ndarray, batch_size: int, *, seed: int = 0) -> BatchSource:
    """Return a source of batches in a new order each epoch.

    Arrays in memory (and torch tensors) are shuffled wholly. Of all else (a map on disk, the store's ``StoredCodes``)
    64 random blocks of 256 neighbouring rows are read at a time and mixed, so that reads stay long and memory bounded.
    The batches of an epoch (in memory) or of a window (on disk) differ by one row at most in size.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Gives rows for a slice.
    codes : ndarray of int of shape (n,)
        Class numbers.
    batch_size : int
        Rows of a batch at most.
    seed : int, default=0
        Decides the order, with the epoch.

    Returns
    -------
    callable
        epoch → iterator of (X, codes, rows).

    Examples
    --------
    >>> source = shuffled_batches(np.arange(10.0).reshape(5, 2), np.arange(5), 2)
    >>> sorted(np.concatenate([rows for _, _, rows in source(0)]).tolist())
    [0, 1, 2, 3, 4]
    """
    in_memory = type(X) is np.ndarray or hasattr(X, "requires_grad")

    def whole(epoch: int) -> Iterator[tuple[Any, ...]]:
        order = np.random.default_rng([seed, epoch]).permutation(len(codes))
        for rows in np.array_split(order, n_batches(len(order), batch_size)):
            yield X[rows], codes[rows], rows

    def in_windows(epoch: int) -> Iterator[tuple[Any, ...]]:
        draw = np.random.default_rng([seed, epoch])
        first = int(draw.integers(1, _BLOCK_ROWS + 1))
        edges = np.unique(np.concatenate([[0], np.arange(first, len(codes), _BLOCK_ROWS), [len(codes)]]))
        blocks = draw.permutation(len(edges) - 1)
        for chosen in np.array_split(blocks, n_batches(len(blocks), _WINDOW)):
            chosen = np.sort(chosen)
            rows = np.concatenate([np.arange(edges[b], edges[b + 1]) for b in chosen])
            window = np.concatenate([np.asarray(X[edges[b] : edges[b + 1]]) for b in chosen])
            for mixed in np.array_split(draw.permutation(len(rows)), n_batches(len(rows), batch_size)):
                yield window[mixed], codes[rows[mixed]], rows[mixed]

    return whole if in_memory else in_windows


def ordered_batches(X: Any, codes: np.ndarray, batch_size: int = 4096) -> Iterator[tuple[Any, ...]]:
    """Yield (X, codes, rows) from top to bottom, for scoring."""
    for start in range(0, len(codes), batch_size):
        rows = slice(start, start + batch_size)
        yield X[rows], codes[rows], np.arange(start, min(start + batch_size, len(codes)))


class RunningMoments:
    """Count, mean and variance of each feature, from blocks that come one after the other, in float64.

    Attributes
    ----------
    n : int
        Rows seen.
    mean, var : ndarray of shape (n_features,)
        Of the rows seen; `var` divides by n.

    Notes
    -----
    Blocks merge by the formula of Chan, Golub and LeVeque (1979), which large offsets do not hurt.

    Examples
    --------
    >>> RunningMoments(1).add([[0.0]]).add([[2.0], [4.0]]).mean.tolist()
    [2.0]
    """

    def __init__(self, n_features: int) -> None:
        self.n = 0
        self.mean = np.zeros(n_features)
        self._squares = np.zeros(n_features)

    @classmethod
    def of(cls, X: Any) -> RunningMoments:
        """Return the moments of anything sliceable."""
        made = cls(X.shape[1])
        for _, block in row_blocks(X, dtype=np.float64):
            made.add(block)
        return made

    @property
    def var(self) -> np.ndarray:
        """Variance of each feature."""
        return self._squares / max(self.n, 1)

    def add(self, X: Any) -> RunningMoments:
        """Merge a block of rows."""
        block = np.asarray(X, dtype=np.float64)
        if not len(block):
            return self
        mean, n = block.mean(axis=0), len(block)
        delta, total = mean - self.mean, self.n + n
        self._squares += np.square(block - mean).sum(axis=0) + np.square(delta) * (self.n * n / total)
        self.mean = self.mean + delta * (n / total)
        self.n = total
        return self

    def scale(self, prior_rows: float = 20.0) -> np.ndarray:
        """Return deviations whose variances are shrunk towards their mean over all features, as `ShrunkScaler` does."""
        var = self.var
        common = float(var.mean()) if var.size else 0.0
        # Below rounding a variance says nothing, and dividing by it would make numbers out of nothing.
        if not common > 1e-30 * max(1.0, float(np.square(self.mean).mean())):
            return np.ones_like(var)
        return shrunk_scale(var, self.n, prior_rows)
