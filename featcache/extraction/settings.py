"""The arguments of `extract`, checked."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import BackboneError, StoreError
from ..store import check_view_name
from . import precision as precise

__all__ = ["ENGINES", "PIXELS", "Settings"]

#: What `pixels=` accepts: "auto" measures faster decoding and resizing, "reference" never uses it,
#: "given" takes the backbone's own recipe as it is.
PIXELS = ("auto", "reference", "given")
#: What `engine=` accepts; see `Backbone.encode`.
ENGINES = ("auto", "eager", "fused", "compiled")
#: More augmented views of an image than this are a mistake; the format has room for 65,535.
MOST_AUGMENTED = 1000


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
    pixels: str = "auto"
    engine: str = "auto"
    augmented: int = 0

    def __post_init__(self) -> None:
        if not isinstance(self.precision, str) or self.precision not in precise.CLASSES:
            raise BackboneError(f"precision {self.precision!r}: expected one of {', '.join(precise.CLASSES)}")
        if self.dtype not in ("auto", "float32", "float16"):
            raise StoreError(f"dtype {self.dtype!r}: expected auto, float32 or float16")
        if self.pixels not in PIXELS:
            raise BackboneError(f"pixels {self.pixels!r}: expected one of {', '.join(PIXELS)}")
        if self.engine not in ENGINES:
            raise BackboneError(f"engine {self.engine!r}: expected one of {', '.join(ENGINES)}")
        if not isinstance(self.device, str) or not self.device:
            raise BackboneError(f"device {self.device!r}: expected auto, cpu, cuda, cuda:1, …")
        check_view_name(self.view)
        for name, least in (("batch_size", 1), ("workers", 0), ("augmented", 0)):
            value = getattr(self, name)
            allowed = value is None and name != "augmented"
            if not allowed and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise BackboneError(f"{name} {value!r}: expected a whole number of {least} or more")
        if self.augmented > MOST_AUGMENTED:
            raise BackboneError(f"augmented {self.augmented}: expected at most {MOST_AUGMENTED} views of an image")
        if self.add and self.replace:
            raise StoreError("add and replace exclude each other; give one of them")
        if not isinstance(self.max_failed, (int, float)) or not 0 <= self.max_failed <= 1:
            raise StoreError(f"max_failed {self.max_failed!r}: expected a part between 0 and 1")
        seconds = self.publish_seconds
        if seconds is not None and (not isinstance(seconds, (int, float)) or not seconds >= 0):
            raise StoreError(f"publish_seconds {seconds!r}: expected 0 or more")
