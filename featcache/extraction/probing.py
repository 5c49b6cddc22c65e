"""The probe: a few of the user's own images, decoded by each recipe that may be used, and their exact codes.

On it faster pixels and modes are judged, end to end from the file to the code, and float16 is tried for storage.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..fingerprint import digest_bytes
from ..preprocess import Preprocess
from .precision import PIXEL_TOLERANCE, processor, worst_cosine
from .reading import Reading
from .remembered import remembered

__all__ = ["PROBE_IMAGES", "Probe"]

PROBE_IMAGES = 32
#: Faster pixels must take less than this part of the reference's time to be worth another spec.
_WORTH_PIXELS = 0.9


class Probe:
    """A few images, spread evenly over a source; each is read once for all recipes.

    Parameters
    ----------
    n_images : int
        Length of the source.
    reading : callable
        Rows of pixels per image → how to read.
    encode : callable
        (pixels, mode) → codes per node.
    recipes : sequence of Preprocess
        The reference first.
    """

    def __init__(
        self,
        n_images: int,
        reading: Callable[[int], Reading],
        encode: Callable[[np.ndarray, str], dict[str, np.ndarray]],
        recipes: Sequence[Preprocess],
    ) -> None:
        self._n, self._reading, self._encode = n_images, reading, encode
        self.recipes = list(dict.fromkeys(recipes))
        self._lock = threading.Lock()
        self._seconds: dict[Preprocess, float] = defaultdict(float)  # of a core, by recipe

    @property
    def reference(self) -> Preprocess:
        """The recipe that the others are judged by."""
        return self.recipes[0]

    def pixels(self, recipe: Preprocess) -> np.ndarray:
        """Return the probe's pixels by one of its recipes: uint8 of shape (n, H, W, C); unreadable ones are left out.

        n is 0 when no image of the probe can be read.
        """
        return self._decoded[:, self.recipes.index(recipe)]

    @cached_property
    def exact(self) -> Mapping[str, np.ndarray]:
        """Codes in fp32 on reference pixels; {} when no image can be read."""
        pixels = self.pixels(self.reference)
        return self._encode(pixels, "fp32") if len(pixels) else {}

    def saves_time(self, variant: Preprocess) -> bool:
        """Tell whether pixels by a recipe take clearly less of a core's time here than the reference's.

        Remembered for these very images: a plan and its run, and a run that is repeated, come to the same spec.
        """
        seen = digest_bytes(self.pixels(self.reference).tobytes()).hex()
        name = f"pixels-{self.reference.spec()}-{variant.spec()}-{seen}"
        part = remembered(name, processor(), lambda: self._seconds[variant] / max(self._seconds[self.reference], 1e-9))
        return part < _WORTH_PIXELS

    def agrees(self, variant: Preprocess) -> bool:
        """Tell whether faster pixels give the same codes in fp32, with reserve for the modes."""
        pixels = self.pixels(variant)
        if not len(pixels):
            return False
        codes = self._encode(pixels, "fp32")
        return all(worst_cosine(self.exact[node], codes[node]) >= PIXEL_TOLERANCE for node in codes)

    @cached_property
    def _decoded(self) -> np.ndarray:
        """Pixels of shape (n, len(recipes), H, W, C)."""
        self._sample(1)  # what a first use imports must not count
        self._seconds.clear()
        return self._sample(PROBE_IMAGES)

    def _sample(self, n: int) -> np.ndarray:
        places = np.unique(np.linspace(0, self._n - 1, min(n, self._n)).astype(int)).tolist()
        reads = self._reading(len(self.recipes)).results(
            places, decode=lambda payload, key, numbers: np.stack([self._timed(r, payload) for r in self.recipes])
        )
        pixels = [read.pixels for read in reads if read.pixels is not None]
        return np.stack(pixels) if pixels else np.zeros((0, len(self.recipes), *self.reference.shape), dtype="u1")

    def _timed(self, recipe: Preprocess, payload: Any) -> np.ndarray:
        start = time.thread_time()
        pixels = recipe.pixels(payload)
        spent = time.thread_time() - start
        with self._lock:
            self._seconds[recipe] += spent
        return pixels
