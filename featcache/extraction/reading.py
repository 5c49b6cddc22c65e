"""The first stages of the stream: read, digest and decode in threads, in the source's order, within bounded memory.

One pass over an image's bytes yields both its key and its pixels. At most a window of images and a budget of bytes is
in flight, whatever their number and size. How many threads read is measured: one per core, each of which computes as
well; where they spend their time waiting for bytes (a network disk), helpers join them.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..backbone.joined import copy_whole
from ..errors import ImageError
from ..fingerprint import digest_bytes, digest_pixels
from ..images import pixel_identity
from .budget import ByteBudget
from .gauge import Gauge
from .pixels import PixelMemory
from .team import Team

__all__ = ["Read", "Reading", "key_of"]

#: Memory that images being decoded may take together; the largest image that is read at all (537 MB) always may.
DECODING_BYTES = 768 << 20
#: Images that a thread gets at a time, where there are many: handing over has its price, whatever is handed over.
_TOGETHER, _MANY_PER_THREAD = 4, 16
#: So many images between two looks at how long the threads wait for bytes.
_BETWEEN_LOOKS = 64
#: Threads that wait for bytes more than this part of their reading time are joined by helpers.
_MOSTLY_WAITING = 0.5
_MOST_THREADS_PER_CORE, _MOST_THREADS = 4, 64


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
    pixels : ndarray of uint8 of shape (len(numbers), H, W, C), or None
        None when the codes are there already, or another image of the same content is ahead.
    error : str
        Why the image failed, or "".
    numbers : tuple of int
        View numbers of the pixels: 0 is the plain image.
    """

    index: int
    key: bytes | None
    pixels: np.ndarray | None = None
    error: str = ""
    numbers: tuple[int, ...] = (0,)


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


class _Clock:
    """What one image costs, stage by stage: cores' time, and how long its thread waited for bytes."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self._begun = self._wall = time.perf_counter()
        self._cpu = time.thread_time()
        self.blocked = 0.0

    def lap(self, stage: str) -> None:
        """The stage named ends here."""
        wall, cpu = time.perf_counter(), time.thread_time()
        self.cpu[stage] = self.cpu.get(stage, 0.0) + cpu - self._cpu
        if stage == "read":
            self.blocked += (wall - self._wall) - (cpu - self._cpu)
        self._wall, self._cpu = wall, cpu

    def report(self, gauge: Gauge) -> None:
        """Tell the gauge."""
        gauge.add(self.cpu, blocked=self.blocked, reading=self._wall - self._begun)


class Reading:
    """How images are read: threads, window, memory, clocks.

    Parameters
    ----------
    source : ImageSource
        Where to read.
    team : callable
        Makes the threads that read, unless `results` gets them; one without any reads in the caller's thread.
    window : int
        How many images may be in flight.
    gauge : Gauge
        Told what each image cost.
    memory_of : callable, default: 0 of everything
        Payload → bytes that decoding it takes.
    memory : PixelMemory, optional
        Where pixels are put; whoever gets them gives them back.
    """

    def __init__(
        self,
        source: Any,
        *,
        team: Callable[[], Team],
        window: int,
        gauge: Gauge,
        memory_of: Callable[[Any], int] = lambda payload: 0,
        memory: PixelMemory | None = None,
    ) -> None:
        self.source, self.window, self.gauge = source, window, gauge
        self._team, self._memory_of, self._memory = team, memory_of, memory
        self._budget = ByteBudget(DECODING_BYTES)

    def results(
        self,
        indices: Sequence[int],
        *,
        decode: Callable[[Any, bytes, tuple[int, ...]], np.ndarray] | None,
        wanted: Callable[[bytes], tuple[int, ...]] = lambda key: (0,),
        on_key: Callable[[int, bytes], None] = lambda index, key: None,
        team: Team | None = None,
    ) -> Generator[Read, None, None]:
        """Read the given images, in order, decoding those that are wanted.

        Parameters
        ----------
        indices : sequence of int
            Which images, in the order in which results are wanted.
        decode : callable or None
            (payload, key, view numbers) → pixels of shape (len(view numbers), H, W, C); None: only keys are wanted.
        wanted : callable
            Key → view numbers whose codes are missing; () when everything is there.
        on_key : callable
            Told each (index, key) as soon as it is known, from the reading threads.
        team : Team, optional
            Threads that go on after the last image; else there are some for the time of reading.

        Yields
        ------
        Read
        """
        seen = Seen()

        def read(index: int) -> Read:
            clock = _Clock()
            try:
                return self._one(index, decode, wanted, on_key, seen, clock)
            finally:
                clock.report(self.gauge)

        with contextlib.nullcontext(team) if team is not None else self._team() as threads:
            alone = not (threads.size or threads.helpers)
            yield from map(read, indices) if alone else self._threaded(threads, read, indices)

    def _one(
        self,
        index: int,
        decode: Callable[[Any, bytes, tuple[int, ...]], np.ndarray] | None,
        wanted: Callable[[bytes], tuple[int, ...]],
        on_key: Callable[[int, bytes], None],
        seen: Seen,
        clock: _Clock,
    ) -> Read:
        source, key = self.source, None
        try:
            if source.version:
                key = key_by_version(source.version, source.ids[index])
                if decode is None or not wanted(key):
                    on_key(index, key)
                    return Read(index, key)
            payload = source.read(index)
            clock.lap("read")
            key = key or key_of(payload)
            on_key(index, key)
            numbers = wanted(key) if decode is not None else ()
            clock.lap("fingerprint")
            if decode is None or not numbers or not seen.claim(key):
                return Read(index, key)
            with self._budget.hold(self._memory_of(payload)):
                pixels = self._kept(decode(payload, key, numbers))
            clock.lap("decode")
            return Read(index, key, pixels, numbers=numbers)
        except ImageError as error:
            return Read(index, key, error=str(error))
        except OSError as error:
            return Read(index, key, error=f"cannot be read: {error.strerror or error}")

    def _kept(self, pixels: np.ndarray) -> np.ndarray:
        if self._memory is None:
            return pixels
        kept = self._memory.take(pixels.shape)
        copy_whole(pixels, kept)
        return kept

    def _threaded(self, team: Team, read: Callable[[int], Read], indices: Sequence[int]) -> Iterator[Read]:
        over = threading.Event()

        def read_all(some: Sequence[int]) -> list[Read]:
            return [read(index) for index in some if not over.is_set()]

        together = self._together(len(indices), team.size + team.helpers)
        flying: deque[Future[list[Read]]] = deque()
        try:
            for start in range(0, len(indices), together):
                flying.append(team.later(read_all, indices[start : start + together]))
                look = start % _BETWEEN_LOOKS < together and start > 0
                if look and team.size and self.gauge.blocked > _MOSTLY_WAITING:
                    team.grow(self._more_helpers(team))
                if (len(flying) + 1) * together > self.window:
                    yield from flying.popleft().result()
            while flying:
                yield from flying.popleft().result()
        finally:
            over.set()
            for future in flying:
                future.cancel()

    def _together(self, images: int, threads: int) -> int:
        """Return how many images a thread gets at a time: few where there are few, so that all threads end together."""
        return max(1, min(_TOGETHER, min(images, self.window) // (_MANY_PER_THREAD * threads)))

    def _more_helpers(self, team: Team) -> int:
        """Return the number of helpers that makes half as many more threads, up to a limit."""
        most = min(_MOST_THREADS_PER_CORE * self.gauge.cores, _MOST_THREADS) - team.size
        return min(most, team.helpers + max(1, (team.size + team.helpers) // 2))
