"""What computing a store's rows took, remembered in a private file that may be lost."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from ..files import publish_bytes
from .safely import parse_json, read_small

__all__ = ["CostRecord"]

_LARGEST = 4096


class CostRecord:
    """Images computed and the seconds that took, over all extractions into a store.

    Parameters
    ----------
    path : Path
        The private file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.images, self.seconds = 0, 0.0
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
            known = parse_json(read_small(path, _LARGEST))
            images, seconds = int(known["images"]), float(known["seconds"])
            if 0 < images < 10**15 and 0.0 < seconds < 1e12:
                self.images, self.seconds = images, seconds

    @property
    def seconds_per_image(self) -> float | None:
        """Wall clock of one image, without the start of the program; None where nothing is remembered."""
        return self.seconds / self.images if self.images else None

    def add(self, images: int, seconds: float) -> None:
        """Remember one more extraction; failing to is not an error."""
        if images <= 0 or seconds <= 0.0:
            return
        self.images, self.seconds = self.images + images, self.seconds + seconds
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
            publish_bytes(
                self._path, json.dumps({"images": self.images, "seconds": self.seconds}).encode(), durable=False
            )
