"""Block shuffling: an order that is random enough to train on and still reads long pieces of a file.

A set larger than memory cannot be read row by row in random order: each row would cost the disk a seek. So blocks of
neighbouring rows are shuffled, several blocks at a time are brought into memory, and their rows are mixed there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

__all__ = ["BLOCK_ROWS", "WINDOW", "BlockSampler", "BlockShuffle"]

#: Rows of a block: a group of rows that is verified together, 640 KiB at 1280 float16 numbers a row.
BLOCK_ROWS = 256
#: Blocks that are mixed in memory.
WINDOW = 64


@dataclass(frozen=True, eq=False)
class BlockShuffle:
    """One epoch's order of `n` places.

    Parameters
    ----------
    n : int
        How many.
    order : ndarray of int of shape (n,) or None
        The places as they follow each other on disk; None: as they are numbered. Used where `shuffle` is.
    shuffle : bool
        False: 0, 1, 2, …
    seed, epoch : int
        What decides the order.
    block_rows : int
        Neighbours that stay together until they are mixed.
    window : int
        How many blocks are mixed at most. The blocks are spread evenly, so that no window is left with a few.
    """

    n: int
    order: np.ndarray | None
    shuffle: bool
    seed: int
    epoch: int
    block_rows: int = BLOCK_ROWS
    window: int = WINDOW

    def __post_init__(self) -> None:
        for name, least in (("block_rows", 1), ("window", 1), ("seed", 0), ("epoch", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")

    def windows(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (places in the order of reading, order in which they are then used), window by window."""
        size = self.block_rows * self.window
        if not self.shuffle:
            for start in range(0, self.n, size):
                places = np.arange(start, min(start + size, self.n))
                yield places, np.arange(len(places))
            return
        draw = np.random.default_rng([self.seed, self.epoch])
        # Blocks begin elsewhere in each epoch, so that neighbours do not stay together for ever.
        first = int(draw.integers(1, self.block_rows + 1))
        edges = np.unique(np.concatenate([[0], np.arange(first, self.n, self.block_rows), [self.n]]))
        blocks = draw.permutation(len(edges) - 1)
        for chosen in np.array_split(blocks, math.ceil(len(blocks) / self.window)) if self.n else []:
            places = np.concatenate([np.arange(edges[b], edges[b + 1]) for b in np.sort(chosen).tolist()])
            yield places if self.order is None else self.order[places].astype(np.intp), draw.permutation(len(places))

    def batches(self, batch_size: int, drop_last: bool = False) -> Iterator[np.ndarray]:
        """Yield the places of each batch: int64 of shape (batch_size,); the last one may be shorter."""
        left = np.zeros(0, np.intp)
        for places, mixed in self.windows():
            left = np.concatenate([left, places[mixed]])
            whole = len(left) - len(left) % batch_size
            for start in range(0, whole, batch_size):
                yield left[start : start + batch_size]
            left = left[whole:]
        if len(left) and not drop_last:
            yield left


class BlockSampler:
    """A sampler for ``torch.utils.data.DataLoader`` that reads long pieces of a file; see `CodesDataset.sampler`.

    Parameters
    ----------
    n : int
        Rows of the data set.
    order : ndarray or None
        As of `BlockShuffle`.
    batch_size : int or None
        Yield arrays of so many places; None: single places.
    shuffle, seed, block_rows, window, drop_last
        As of `CodesDataset.batches`.

    Attributes
    ----------
    epoch : int
        Which order comes next; it goes up by one each time the sampler is read from, or is set by `set_epoch`.
    """

    def __init__(
        self,
        n: int,
        order: np.ndarray | None,
        *,
        batch_size: int | None,
        shuffle: bool,
        seed: int,
        block_rows: int,
        window: int,
        drop_last: bool,
    ) -> None:
        self._n, self._order, self._batch_size, self._drop_last = n, order, batch_size, drop_last
        self._options = {"shuffle": shuffle, "seed": seed, "block_rows": block_rows, "window": window}
        self.epoch = 0
        if batch_size is not None:
            check_batch_size(batch_size)
        self._shuffle(0)

    def _shuffle(self, epoch: int) -> BlockShuffle:
        return BlockShuffle(self._n, self._order, epoch=epoch, **self._options)  # type: ignore[arg-type]

    def set_epoch(self, epoch: int) -> None:
        """Choose which epoch's order comes next, as `DistributedSampler` has it."""
        self._shuffle(epoch)
        self.epoch = epoch

    def __len__(self) -> int:
        if self._batch_size is None:
            return self._n
        return self._n // self._batch_size if self._drop_last else -(-self._n // self._batch_size)

    def __iter__(self) -> Iterator[int | np.ndarray]:
        epoch, self.epoch = self.epoch, self.epoch + 1
        return self._places(self._shuffle(epoch))

    def _places(self, shuffle: BlockShuffle) -> Iterator[int | np.ndarray]:
        if self._batch_size is not None:
            yield from shuffle.batches(self._batch_size, self._drop_last)
            return
        for places, mixed in shuffle.windows():
            yield from places[mixed].tolist()


def check_batch_size(batch_size: int) -> None:
    """Refuse what is no number of rows."""
    if isinstance(batch_size, bool) or not isinstance(batch_size, int | np.integer) or batch_size < 1:
        raise ValueError(f"batch_size: expected a whole number of at least 1, got {batch_size!r}")
