"""The arguments of `extract`, checked."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ..errors import BackboneError, StoreError
from . import precision as precise

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """The arguments of `extract`; see there."""

    view: str = "main"
    add: bool = False
    replace: bool = False
    precision: str = "auto"
    dtype: str = "auto"
    batch_size: int | None = None
    workers: int | None = None
    device: str = "auto"
    publish_seconds: float | None = None
    max_failed: float = 0.01

    def __post_init__(self) -> None:
        if self.precision not in precise.CLASSES:
            raise BackboneError(f"precision {self.precision!r}: expected one of {', '.join(precise.CLASSES)}")
        if self.dtype not in ("auto", "float32", "float16"):
            raise StoreError(f"dtype {self.dtype!r}: expected auto, float32 or float16")
        if self.batch_size is not None and self.batch_size < 1:
            raise BackboneError(f"batch_size {self.batch_size}: expected at least 1")
        if self.workers is not None and self.workers < 0:
            raise BackboneError(f"workers {self.workers}: expected 0 or more")
        if self.add and self.replace:
            raise StoreError("add and replace exclude each other; give one of them")
        if not 0 <= self.max_failed <= 1:
            raise StoreError(f"max_failed {self.max_failed}: expected a part between 0 and 1")
        if self.publish_seconds is not None and self.publish_seconds < 0:
            raise StoreError(f"publish_seconds {self.publish_seconds}: expected 0 or more")

    @property
    def threads(self) -> int:
        """Reading threads."""
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, 8)
