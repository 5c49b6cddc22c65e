"""What an extraction will do (Plan) and did (ExtractionReport)."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ExtractionReport", "Plan", "process_seconds"]

_IMPORTED = time.time()


def process_seconds() -> float:
    """Return how long this process has been running, in seconds of wall clock."""
    try:
        # Field 22 of /proc/self/stat: start time in clock ticks since boot; the name in field 2 may hold spaces.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        uptime = float(Path("/proc/uptime").read_text().split()[0])
        return max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return time.time() - _IMPORTED


@dataclass(frozen=True)
class Plan:
    """What `extract` would do.

    Attributes
    ----------
    store, view : str
        Where to.
    images : int
        Images of the source.
    reused, new, changed : int
        Images whose codes are there; that are not in the view yet; that are, with other content. New and changed
        ones may still be reused (a copy, a file renamed): `compute` counts what the network has to see.
    gone : int
        Images of the view that the source no longer has (they leave the view, their codes stay in the store).
    compute : int
        Different images to be computed.
    unreadable : int
        Images whose bytes cannot be read.
    bytes : int
        Size of the codes to be written.
    seconds : float or None
        Wall clock of the run, loading the network included, predicted from a short probe; 0.0 when there is nothing to
        compute.
    fingerprint : str
        Of the spec in force.
    precision : dict
        Class, mode and evidence: those that the run will come to.
    verdict : str
        What will hold the run up, and what would help.
    """

    store: str
    view: str
    images: int
    reused: int
    new: int
    changed: int
    gone: int
    compute: int
    unreadable: int
    bytes: int
    seconds: float | None
    fingerprint: str
    precision: Mapping[str, Any] = field(default_factory=dict)
    verdict: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class ExtractionReport:
    """What `extract` did.

    Attributes
    ----------
    store, view, fingerprint : str
        Where to, and the spec's fingerprint.
    snapshot : int
        Number of the view's state after the run.
    images : int
        Images of the source: rows and failures.
    computed : int
        Different images that the network saw.
    reused : int
        Images whose codes were in the store before, or that are copies of another one.
    gone : int
        Images that left the view.
    failed : list of dict
        ``{"id", "reason"}``.
    constant : list of str
        Ids of images whose codes are all one value (a blank image, usually).
    seconds : float
        Wall clock of this run.
    images_per_second : float
        `computed` over `seconds`.
    steady_images_per_second : float
        `computed` over the time of the stream alone, from the first batch to the last row's being durable: without
        imports, loading the network, probing and compiling.
    precision : dict
        Class, mode, evidence.
    engine : dict
        How the network was run, and why not in another way.
    augmented : int
        Augmented views per image.
    shares : dict
        Parts of the cores' time during the stream: "read", "fingerprint", "decode", "model", "write" and "idle".
    bottleneck : str
        What held the stream up, and what would help.
    ignored : dict
        Files of the source that are no images: extension → count.
    """

    store: str
    view: str
    fingerprint: str
    snapshot: int
    images: int
    computed: int
    reused: int
    gone: int
    failed: list[dict[str, str]]
    constant: list[str]
    seconds: float
    images_per_second: float
    steady_images_per_second: float
    precision: Mapping[str, Any]
    engine: Mapping[str, Any] = field(default_factory=dict)
    augmented: int = 0
    shares: Mapping[str, float] = field(default_factory=dict)
    bottleneck: str = ""
    ignored: Mapping[str, int] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)
