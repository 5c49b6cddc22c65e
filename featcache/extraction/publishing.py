"""The last stage of the stream: a thread that publishes rows as shards, for which nothing else waits."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ..store import FeatureStore
from .gauge import Gauge

__all__ = ["Writer"]

PUBLISH_BYTES = 64 << 20
FIRST_PUBLISH_SECONDS, LAST_PUBLISH_SECONDS = 5.0, 300.0
#: Rows that wait for the disk may take this much memory before the network has to wait for it, too.
WAITING_BYTES = 192 << 20
#: Thirty years: what a clock can wait for; an age of inf means the same.
_FOR_EVER = 1e9


class _Rows(NamedTuple):
    """Rows on their way to a shard."""

    keys: np.ndarray
    codes: dict[str, np.ndarray]
    constant: np.ndarray
    numbers: np.ndarray

    @property
    def nbytes(self) -> int:
        return sum(a.nbytes for a in self.codes.values()) + self.keys.nbytes


class Writer:
    """Collects rows and publishes them from a thread of its own.

    A shard is published at 64 MiB, or when its oldest row is 5 s old, then 10, 20, … up to 300 s: a crash soon after
    the start loses little, and a long run does not make thousands of files.

    Parameters
    ----------
    store : FeatureStore
        Where to.
    computed : mapping
        Recorded with each shard.
    seconds : float, default=None
        A fixed age instead of the growing one; 0 publishes each batch.
    gauge : Gauge, default=None
        Told what publishing costs.
    """

    def __init__(
        self, store: FeatureStore, computed: Mapping[str, Any], seconds: float | None = None, gauge: Gauge | None = None
    ) -> None:
        self._store, self._computed, self._gauge = store, computed, gauge
        self._fixed = seconds
        self._age = FIRST_PUBLISH_SECONDS if seconds is None else min(seconds, _FOR_EVER)
        self._waiting: deque[_Rows] = deque()
        self._waiting_bytes, self._closing = 0, False
        self._changed = threading.Condition()
        self._rows: list[_Rows] = []
        self._bytes, self._since = 0, 0.0
        self._error: BaseException | None = None
        self.seconds, self.published = 0.0, 0
        self._thread = threading.Thread(target=self._run, name="featcache-write", daemon=True)
        self._thread.start()

    def put(
        self,
        keys: np.ndarray,
        codes: dict[str, np.ndarray],
        constant: np.ndarray,
        numbers: np.ndarray | None = None,
    ) -> None:
        """Hand over rows; raises what went wrong in the thread, if anything did.

        Parameters
        ----------
        keys : ndarray of uint8 of shape (n, 32)
            Content keys.
        codes : dict of str to ndarray of shape (n, ...)
            Codes per node.
        constant : ndarray of bool of shape (n,)
            Rows of one value only.
        numbers : ndarray of int of shape (n,), default=None
            View numbers; None: all 0.
        """
        rows = _Rows(keys, codes, constant, np.zeros(len(keys), "u2") if numbers is None else numbers)
        with self._changed:
            self._changed.wait_for(lambda: self._error is not None or self._fits(rows))
            self._raise()
            self._waiting.append(rows)
            self._waiting_bytes += rows.nbytes
            self._changed.notify_all()

    def close(self) -> None:
        """Publish the rest; when this returns, all rows handed over are durable."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        self._raise()

    def _fits(self, rows: _Rows) -> bool:
        return not self._waiting or self._waiting_bytes + rows.nbytes <= WAITING_BYTES

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            FeatureStore.warm_up()  # while nothing waits for it
            while self._step():
                pass
        except BaseException as error:  # handed to the caller's thread, which raises it
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def _step(self) -> bool:
        """Take what waits, publish when it is time; False at the end."""
        wait = None if not self._rows else max(0.0, self._since + self._age - time.monotonic())
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing, timeout=wait)
            rows = self._waiting.popleft() if self._waiting else None
            if rows is not None:
                self._waiting_bytes -= rows.nbytes
                self._changed.notify_all()
            over = rows is None and self._closing
        if rows is None:
            self._publish()
            return not over
        if not self._rows:
            self._since = time.monotonic()
        self._rows.append(rows)
        self._bytes += rows.nbytes
        if self._bytes >= PUBLISH_BYTES or time.monotonic() >= self._since + self._age:
            self._publish()
        return True

    def _publish(self) -> None:
        if not self._rows:
            return
        start, cpu = time.perf_counter(), time.thread_time()
        nodes = list(self._rows[0].codes)
        keys = np.concatenate([r.keys for r in self._rows])
        codes = {node: np.concatenate([r.codes[node] for r in self._rows]) for node in nodes}
        constant = np.concatenate([r.constant for r in self._rows])
        numbers = np.concatenate([r.numbers for r in self._rows])
        self._store.append(
            keys, codes, constant=constant, computed=self._computed, view_number=numbers if numbers.any() else 0
        )
        self._rows, self._bytes = [], 0
        self.published += len(keys)
        self.seconds += time.perf_counter() - start
        if self._gauge is not None:
            self._gauge.add({"write": time.thread_time() - cpu})
        if self._fixed is None:
            self._age = min(2 * self._age, LAST_PUBLISH_SECONDS)
