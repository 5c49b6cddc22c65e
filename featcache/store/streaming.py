"""Batches of rows in a block-shuffled order, two windows of blocks in memory: one in use, one being read."""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain

import numpy as np

from .blocks import BlockShuffle
from .loading import Rows, convert

__all__ = ["stream"]


def stream(
    rows: Rows, y: np.ndarray, blocks: BlockShuffle, batch_size: int, *, drop_last: bool, with_index: bool
) -> Iterator[tuple[np.ndarray, ...]]:
    """Yield the batches of one epoch; see `CodesDataset.batches`."""
    left = len(rows)
    X, places, filled = np.zeros(0), np.zeros(0, np.intp), 0
    with contextlib.closing(_read_ahead(rows, blocks)) as windows:
        for codes, where, mixed in windows:
            start = 0
            while start < len(mixed):
                if not filled:
                    size = min(batch_size, left)
                    if size < batch_size and drop_last:
                        return
                    X, places = np.empty((size, *rows.shape), np.float32), np.empty(size, np.intp)
                # A batch that reaches into the next window is filled in two steps, so that this window can go.
                some = mixed[start : start + len(places) - filled]
                part = slice(filled, filled + len(some))
                convert(codes.take(some, axis=0), X[part])
                places[part] = where[some]
                filled, start = part.stop, start + len(some)
                if filled == len(places):
                    left, filled = left - len(places), 0
                    yield (X, y[places], places) if with_index else (X, y[places])
            del codes  # before the next window is asked for: two of them are in memory, not three


def _read_ahead(rows: Rows, blocks: BlockShuffle) -> Generator[tuple[np.ndarray, np.ndarray, np.ndarray], None, None]:
    """Yield (codes as stored, places, order of use) window by window, while a thread reads the next one."""

    def read(places: np.ndarray, mixed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return rows.gather(index=places, dtype=rows.dtype), places, mixed

    with ThreadPoolExecutor(1, "featcache-read-ahead") as pool:
        ahead: list[Future[tuple[np.ndarray, np.ndarray, np.ndarray]]] = []
        for window in chain(blocks.windows(), [None]):
            ready = [ahead.pop().result()] if ahead else []
            if window is not None:
                ahead.append(pool.submit(read, *window))
            if ready:
                yield ready.pop()  # popped, so that this frame does not hold it while it is used
