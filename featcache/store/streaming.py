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


def _read_ahead(rows: Rows, blocks: BlockShuffle) -> Generator[tuple[np.ndarray, np.ndarray, np.ndarray], None, None]:
    """Yield (codes as stored, places, order of use) window by window, while a thread reads the next one."""
    size = min(blocks.block_rows * blocks.window, len(rows))
    room = [np.empty((size, *rows.shape), rows.dtype) for _ in range(2)]

    def read(number: int, places: np.ndarray, mixed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return rows.gather(room[number % 2][: len(places)], places), places, mixed

    with ThreadPoolExecutor(1, "featcache-read-ahead") as pool:
        ahead: Future[tuple[np.ndarray, np.ndarray, np.ndarray]] | None = None
        for number, window in enumerate(chain(blocks.windows(), [None])):
            ready = None if ahead is None else ahead.result()
            # Whoever asks for a window is done with the one before, whose room is taken for the one after.
            ahead = None if window is None else pool.submit(read, number, *window)
            if ready is not None:
                yield ready
