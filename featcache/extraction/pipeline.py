"""The stream: read and decode in threads, model in the caller's thread, publishing in a writer thread.

Everything is bounded: at most a window of images is in flight, whatever their number; results are taken in the source's
order, so that a run is deterministic. One pass over an image's bytes yields both its key and its pixels.
"""

from __future__ import annotations

import json
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ImageError
from ..fingerprint import digest_bytes, digest_pixels
from ..images import pixel_identity
from ..store import FeatureStore

__all__ = ["Read", "Writer", "key_of", "read_all"]

PUBLISH_BYTES = 64 << 20
FIRST_PUBLISH_SECONDS, LAST_PUBLISH_SECONDS = 5.0, 300.0


def key_by_version(version: str, image_id: str) -> bytes:
    """Return the key of an image that its owner identifies by a version text instead of its content."""
    return digest_bytes(json.dumps(["featcache-version-1", version, image_id], ensure_ascii=False).encode())


def key_of(payload: Any) -> bytes:
    """Return the content key of what a source's `read` gave: encoded bytes, or decoded pixels."""
    if isinstance(payload, bytes):
        return digest_bytes(payload)
    return digest_pixels(*pixel_identity(payload))


@dataclass(frozen=True)
class Read:
    """What became of one image: its key, and pixels when it has to be computed, or why it cannot be.

    Attributes
    ----------
    index : int
        Place in the source.
    key : bytes
        Content key; None when the image could not be read at all.
    pixels : ndarray of uint8 of shape (H, W, C), or None
        None when the codes are there already, or another image of the same content is ahead.
    error : str
        Why the image failed, or "".
    """

    index: int
    key: bytes | None
    pixels: np.ndarray | None = None
    error: str = ""


@dataclass
class Seen:
    """The keys met so far in this run; each is decoded once, by whoever claims it first."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    keys: set[bytes] = field(default_factory=set)

    def claim(self, key: bytes) -> bool:
        """Return True to the first who asks for a key."""
        with self.lock:
            if key in self.keys:
                return False
            self.keys.add(key)
            return True


def read_all(
    source: Any,
    indices: Sequence[int],
    *,
    decode: Callable[[Any], np.ndarray] | None,
    stored: Callable[[bytes], bool],
    on_key: Callable[[int, bytes], None],
    workers: int,
    window: int,
) -> Iterator[Read]:
    """Read the given images of a source, in order, decoding those that are not stored yet.

    Parameters
    ----------
    source : ImageSource
        Where to read.
    indices : sequence of int
        Which images, in the order in which results are wanted.
    decode : callable or None
        Payload → pixels; None: only keys are wanted.
    stored : callable
        Whether a key has codes already.
    on_key : callable
        Told each (index, key) as soon as it is known, from the reading threads.
    workers : int
        Reading threads; 0 reads in the caller's thread.
    window : int
        How many images may be in flight.

    Yields
    ------
    Read
    """
    seen = Seen()

    def read(index: int) -> Read:
        key = None
        try:
            if source.version:
                key = key_by_version(source.version, source.ids[index])
                if decode is None or stored(key):
                    on_key(index, key)
                    return Read(index, key)
            payload = source.read(index)
            key = key or key_of(payload)
            on_key(index, key)
            if decode is None or stored(key) or not seen.claim(key):
                return Read(index, key)
            return Read(index, key, decode(payload))
        except ImageError as error:
            return Read(index, key, error=str(error))
        except OSError as error:
            return Read(index, key, error=f"cannot be read: {error.strerror or error}")

    if workers == 0:
        yield from map(read, indices)
        return
    pool = ThreadPoolExecutor(workers, thread_name_prefix="featcache-read")
    flying: deque[Future[Read]] = deque()
    try:
        for index in indices:
            flying.append(pool.submit(read, index))
            if len(flying) >= window:
                yield flying.popleft().result()
        while flying:
            yield flying.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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
    """

    def __init__(self, store: FeatureStore, computed: Mapping[str, Any], seconds: float | None = None) -> None:
        self._store, self._computed = store, computed
        self._fixed = seconds
        self._age = FIRST_PUBLISH_SECONDS if seconds is None else seconds
        self._queue: queue.Queue[tuple[np.ndarray, dict[str, np.ndarray], np.ndarray] | None] = queue.Queue(maxsize=8)
        self._rows: list[tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]] = []
        self._bytes, self._since = 0, 0.0
        self._error: BaseException | None = None
        self.seconds, self.published = 0.0, 0
        self._thread = threading.Thread(target=self._run, name="featcache-write", daemon=True)
        self._thread.start()

    def put(self, keys: np.ndarray, codes: dict[str, np.ndarray], constant: np.ndarray) -> None:
        """Hand over rows; raises what went wrong in the thread, if anything did."""
        while True:
            self._raise()
            try:
                self._queue.put((keys, codes, constant), timeout=0.2)
                return
            except queue.Full:
                continue

    def close(self) -> None:
        """Publish the rest; when this returns, all rows handed over are durable."""
        while self._thread.is_alive():
            try:
                self._queue.put(None, timeout=0.2)
                break
            except queue.Full:
                continue
        self._thread.join()
        self._raise()

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while self._step():
                pass
        except BaseException as error:  # handed to the caller's thread, which raises it
            self._error = error

    def _step(self) -> bool:
        """Take one item, publish when it is time; False at the end."""
        wait = None if not self._rows else max(0.0, self._since + self._age - time.monotonic())
        try:
            item = self._queue.get(timeout=wait)
        except queue.Empty:
            self._publish()
            return True
        if item is None:
            self._publish()
            return False
        if not self._rows:
            self._since = time.monotonic()
        self._rows.append(item)
        self._bytes += sum(a.nbytes for a in item[1].values())
        if self._bytes >= PUBLISH_BYTES or time.monotonic() >= self._since + self._age:
            self._publish()
        return True

    def _publish(self) -> None:
        if not self._rows:
            return
        start = time.perf_counter()
        keys = np.concatenate([k for k, _, _ in self._rows])
        nodes = list(self._rows[0][1])
        codes = {node: np.concatenate([c[node] for _, c, _ in self._rows]) for node in nodes}
        constant = np.concatenate([c for _, _, c in self._rows])
        self._store.append(keys, codes, constant=constant, computed=self._computed)
        self._rows, self._bytes = [], 0
        self.published += len(keys)
        self.seconds += time.perf_counter() - start
        if self._fixed is None:
            self._age = min(2 * self._age, LAST_PUBLISH_SECONDS)
