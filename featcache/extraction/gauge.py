"""The gauge: where the cores' time of a run goes, what holds it up, and what would help."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["STAGES", "Gauge", "Verdict", "verdict"]

#: Stages of the stream, in its order; "idle" is what no stage used of the cores: nothing to do, or another program.
STAGES = ("read", "fingerprint", "decode", "model", "write", "idle")

#: More than this part of the cores' time idle, and they are not what holds a run up.
_MUCH_IDLE = 0.35

_ADVICE = {
    "read": "put the images on a nearer or faster disk, or let more threads read than 4 per core (--workers)",
    "fingerprint": "nothing: the digest is what recognises an image",
    "decode": "store smaller images (the network sees only the crop), leave --precision auto (faster pixels), or use "
    "more cores",
    "model": "a smaller backbone, --precision auto or bf16, more cores, or a GPU",
    "write": "put the store on a faster disk, or write less: fewer nodes, pooling, --dtype float16",
    "idle": "look for other programs on these cores; or reading that waits: a nearer or faster disk",
    "device": "nothing on this machine: the accelerator is busy; a smaller backbone, --precision auto, or another GPU",
}


@dataclass(frozen=True)
class Verdict:
    """What holds a run up.

    Attributes
    ----------
    bottleneck : str
        A stage, or "device" for an accelerator that is busy.
    share : float
        Its share of the time: of the cores', for "read" of the reading threads', for "device" of the wall clock.
    advice : str
        What to change.
    """

    bottleneck: str
    share: float
    advice: str

    def __str__(self) -> str:
        return f"{self.bottleneck} {self.share:.0%}: {self.advice}"


class Gauge:
    """Seconds of the cores per stage, from all threads of a stream.

    Decoding, digests and writing are measured by their threads' own clocks. The network gets
    what the process used beyond that: the little that Python needs to hand batches over counts as "model".

    Parameters
    ----------
    cores : int
        Cores that the process may use.
    """

    def __init__(self, cores: int) -> None:
        self.cores = cores
        self._lock = threading.Lock()
        self._cpu: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._blocked, self._reading, self._device = 0.0, 0.0, 0.0
        self.begin()

    def begin(self) -> None:
        """The stream begins now; what its reading threads did ahead counts as if all cores had shared it."""
        with self._lock:
            ahead = sum(self._cpu.values())
            self._wall, self._process = time.perf_counter() - ahead / self.cores, time.process_time() - ahead

    def add(self, cpu: Mapping[str, float], *, blocked: float = 0.0, reading: float = 0.0) -> None:
        """Take what one image (or one shard) cost.

        Parameters
        ----------
        cpu : mapping of str to float
            Stage → seconds of a core.
        blocked, reading : float, default=0
            Of a reading thread's wall clock: seconds spent waiting for bytes, and in all.
        """
        with self._lock:
            for stage, seconds in cpu.items():
                self._cpu[stage] += seconds
            self._blocked += blocked
            self._reading += reading

    def add_device(self, seconds: float) -> None:
        """Take wall clock during which the stream waited for an accelerator."""
        with self._lock:
            self._device += seconds

    @property
    def wall(self) -> float:
        """Seconds since the stream began."""
        return time.perf_counter() - self._wall

    @property
    def blocked(self) -> float:
        """Part of the reading threads' time that they waited for bytes."""
        return self._blocked / self._reading if self._reading else 0.0

    def shares(self) -> dict[str, float]:
        """Return the part of the cores' time that each stage took; all parts together are 1.

        Returns
        -------
        dict of str to float
        """
        with self._lock:
            used = dict(self._cpu)
        process = max(time.process_time() - self._process, 1e-9)
        used["model"] = max(0.0, process - sum(used.values()))
        capacity = max(self.wall * self.cores, process)
        used["idle"] = capacity - sum(used.values())
        return {stage: round(max(0.0, used[stage]) / capacity, 4) for stage in STAGES}

    def verdict(self) -> Verdict:
        """Return what holds the run up."""
        return verdict(self.shares(), self.blocked, self._device / max(self.wall, 1e-9))

    def note(self) -> str:
        """Return the largest stages as a short remark beside the bar."""
        shares = self.shares()
        largest = sorted(STAGES, key=shares.__getitem__, reverse=True)[:2]
        return " · ".join(f"{stage} {shares[stage]:.0%}" for stage in largest)


def verdict(shares: Mapping[str, float], blocked: float, device: float) -> Verdict:
    """Judge a run by its figures.

    Parameters
    ----------
    shares : mapping of str to float
        As `Gauge.shares` gives them.
    blocked : float
        Part of the reading threads' time that they waited for bytes.
    device : float
        Part of the wall clock that the stream waited for an accelerator.

    Returns
    -------
    Verdict
    """
    if device > 0.5:
        return Verdict("device", round(device, 3), _ADVICE["device"])
    busiest = max((s for s in STAGES if s != "idle"), key=lambda s: shares[s])
    if shares["idle"] > _MUCH_IDLE and blocked > 0.5:
        return Verdict("read", round(blocked, 3), _ADVICE["read"])
    if shares["idle"] > max(_MUCH_IDLE, shares[busiest]):
        return Verdict("idle", shares["idle"], _ADVICE["idle"])
    return Verdict(busiest, shares[busiest], _ADVICE[busiest])
