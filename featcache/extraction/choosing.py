"""Which numerical mode computes the codes: the fastest that the precision class allows and that repays its trial.

Candidates run end to end on a probe of the user's own images, from the file to the code, and are judged against
float32 arithmetic on reference pixels. How many images are planned decides what is tried at all: the costs of a trial
and its usual gains are stated here, the speed of the network in float32 is measured once per machine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from .precision import PROBE_TOLERANCE, TOLERANCE, faster_modes, same_nearest, worst_cosine
from .remembered import remembered

__all__ = ["ModeChoice", "Trial", "choose_engine", "choose_mode"]

#: A mode must be so many times as fast as fp32 to be worth its rounding.
_WORTH_SPEEDUP = 1.15
#: The part of the network's time that low precision usually saves; how many times over a trial must win itself back.
_USUAL_GAIN, _RESERVE = 0.375, 1.5
#: What trials cost, in images computed in fp32 and in seconds: one whole-network mode; the choice of layers.
_TRIAL_IMAGES, _TRIAL_SECONDS = 72, 0.6
_LAYERS_IMAGES, _LAYERS_SECONDS = 900, 0.5
#: What building a package usually takes, and the part of the network's time that it saves beyond the fused engine.
_BUILD_SECONDS, _BUILD_GAIN = 40.0, 0.1
_TIMED_ROWS, _ROUNDS = 16, 3


@dataclass(frozen=True)
class ModeChoice:
    """The mode in use and the evidence for it.

    Attributes
    ----------
    mode : str
        What the network runs in: "fp32", "bf16", "fp16", or e.g. "bf16-except:features.0.0", which names the layers
        that stay in fp32.
    worst_cosine : float or None
        Smallest centred cosine with the exact codes over the probe; None when nothing had to be probed.
    same_nearest : float or None
        Part of the probe's images whose nearest neighbour in the probe is the same in both.
    speedup : float or None
        Measured rate of the network in this mode over fp32's.
    reason : str
        Why this mode.
    """

    mode: str
    worst_cosine: float | None = None
    same_nearest: float | None = None
    speedup: float | None = None
    reason: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True)
class Trial:
    """What modes are tried on.

    Attributes
    ----------
    encode : callable
        (pixels, mode) → codes per node.
    pixels : ndarray of uint8 of shape (n, H, W, C)
        The probe as it will be decoded.
    exact : mapping of str to ndarray
        Codes of the same images: fp32 on reference pixels.
    mixed : callable
        Low-precision mode → the mode that keeps the layers in fp32 which need it, or None.
    name, machine : str
        Network and processor, for the memory of timings.
    """

    encode: Callable[[np.ndarray, str], Mapping[str, np.ndarray]]
    pixels: np.ndarray
    exact: Mapping[str, np.ndarray]
    mixed: Callable[[str], str | None]
    name: str
    machine: str

    def seconds(self) -> float:
        """Return seconds of one image in fp32, remembered for this machine."""
        rows = self.pixels[:_TIMED_ROWS]
        return remembered(f"{self.name}|seconds", self.machine, lambda: self._timed(rows, "fp32") / len(rows))

    def speedup(self, mode: str) -> float:
        """Return how many times as fast as fp32 a mode is, remembered for this machine."""
        rows = self.pixels[:_TIMED_ROWS]

        def measure() -> float:
            # Interleaved, so that another process disturbs both alike.
            pairs = [(self._timed(rows, "fp32"), self._timed(rows, mode)) for _ in range(_ROUNDS)]
            return float(np.median([a / b for a, b in pairs]))

        return remembered(f"{self.name}|{mode}", self.machine, measure)

    def _timed(self, rows: np.ndarray, mode: str) -> float:
        start = time.perf_counter()
        self.encode(rows, mode)
        return time.perf_counter() - start

    def judge(self, mode: str, reason: str) -> ModeChoice:
        """Run the probe in a mode and compare."""
        codes = self.encode(self.pixels, mode)
        cosine = min(worst_cosine(self.exact[node], codes[node]) for node in self.exact)
        nearest = min(same_nearest(self.exact[node], codes[node]) for node in self.exact)
        return ModeChoice(mode, round(cosine, 6), round(nearest, 4), round(self.speedup(mode), 3), reason)


def choose_mode(
    precision: str, n_images: int, trial: Callable[[], Trial | None], *, device: str, used_before: str | None
) -> ModeChoice:
    """Choose the fastest mode that a precision class allows.

    Parameters
    ----------
    precision : {"exact", "tolerance", "bf16", "fp16"}
        The store's class.
    n_images : int
        How many images are still to be computed, at most.
    trial : callable
        Makes what modes are tried on; None where there are no images to try them on. Called only when it is needed.
    device : str
        "cpu", "cuda", …
    used_before : str or None
        The mode of the store's newest shard, which is kept when this machine can run it and the images bear it.

    Returns
    -------
    ModeChoice
    """
    if precision == "exact":
        return ModeChoice("fp32", reason="class exact")
    if precision != "tolerance":
        return ModeChoice(precision, reason="pinned")
    possible = faster_modes(device)
    if used_before is not None:
        return _as_before(used_before, possible, trial)
    if not possible:
        return ModeChoice("fp32", reason="no faster mode on this processor")
    if not _repays(n_images, 1e9, _TRIAL_IMAGES, 0.0):
        return ModeChoice("fp32", reason=_too_few(n_images))
    tried = trial()
    return _fastest(possible, n_images, tried) if tried else ModeChoice("fp32", reason="no image to try modes on")


def _as_before(mode: str, possible: list[str], trial: Callable[[], Trial | None]) -> ModeChoice:
    if mode == "fp32":
        return ModeChoice("fp32", reason="as the store")
    if mode.split("-")[0] not in possible:
        return ModeChoice("fp32", reason=f"{mode.split('-')[0]}, as the store has it, cannot be run fast here")
    tried = trial()
    if tried is None:
        return ModeChoice("fp32", reason="no image to try the store's mode on")
    found = tried.judge(mode, "as the store")
    if _fits(found, TOLERANCE):
        return found
    return ModeChoice("fp32", reason=f"these images do not bear {mode.split('-')[0]}")


def _fastest(possible: list[str], n_images: int, trial: Trial) -> ModeChoice:
    seconds = trial.seconds()
    if not _repays(n_images, seconds, _TRIAL_IMAGES, _TRIAL_SECONDS):
        return ModeChoice("fp32", reason=_too_few(n_images))
    best = ModeChoice("fp32", 1.0, 1.0, 1.0, "no faster mode meets the tolerance or is worth it here")
    for mode in possible:
        found = trial.judge(mode, "fastest mode within the tolerance")
        if not _fits(found) and _repays(n_images, seconds, _LAYERS_IMAGES, _LAYERS_SECONDS):
            found = _with_layers_kept(mode, trial) or found
        if _fits(found) and (found.speedup or 0) > max(_WORTH_SPEEDUP, best.speedup or 0):
            best = found
    return best


def _with_layers_kept(mode: str, trial: Trial) -> ModeChoice | None:
    mixed = trial.mixed(mode)
    return None if mixed is None else trial.judge(mixed, f"{mode} with the layers in fp32 that need it")


def _fits(choice: ModeChoice, limit: float = PROBE_TOLERANCE) -> bool:
    return choice.worst_cosine is not None and choice.worst_cosine >= limit


def _repays(n_images: int, seconds: float, images: float, fixed: float) -> bool:
    """Tell whether a faster mode wins its trial back, with reserve: all by figures that do not change between runs."""
    return n_images * _USUAL_GAIN * seconds > _RESERVE * (images * seconds + fixed)


def _too_few(n_images: int) -> str:
    return f"{n_images} images do not repay a trial of faster modes"


def choose_engine(asked: str, n_images: int, seconds: Callable[[], float]) -> str:
    """Choose how the network is run: compiled code only where it repays being built.

    Parameters
    ----------
    asked : {"auto", "eager", "fused", "compiled"}
        What the user said.
    n_images : int
        How many images are still to be computed, at most.
    seconds : callable
        Seconds of one image in the mode in use; called only when the number of images may repay a build at all.

    Returns
    -------
    str
        As `Backbone.encode` takes it.
    """
    if asked != "auto" or n_images < 10_000:
        return asked
    return "compiled" if n_images * seconds() * _BUILD_GAIN > _RESERVE * _BUILD_SECONDS else "auto"
