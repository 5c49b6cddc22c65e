"""Whether an exported network computes what the original does, on images."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import HandoffError, ImageError
from ..preprocess import Preprocess
from ..sources import ImageSource

if TYPE_CHECKING:
    from torch import nn

__all__ = ["MOST", "TOLERANCE", "Agreement", "Run", "compare", "pixels_of", "run_of"]

#: Largest difference of two scores that are called equal, as a share of the largest score where that is above 1.
TOLERANCE = 1e-4
#: Images at a time: the last batch is smaller, so that another size than that of the example is tried, too.
_BATCH = 32
_GENERATED = 9
#: Images that are compared, at most: all of them are held in memory.
MOST = 256
#: Scores as large stand for "never" (a class without rows), and say nothing about the size of the others.
_HUGE = 1e20
#: Best scores that are closer, as a share of the largest one in their row, may change places.
_TIE = 1e-5

#: Inputs of a network to its scores.
Run = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Agreement:
    """How far the scores of two networks are apart.

    Attributes
    ----------
    relative : float
        Largest difference of two scores, as a share of the largest score where that is above 1. Infinite where the
        shapes differ, or the second network has NaN or infinity.
    absolute : float
        The same as it is, of scores below 1e20.
    flipped : int
        Images whose best label is another one, ties aside.
    """

    relative: float
    absolute: float
    flipped: int

    @property
    def same(self) -> bool:
        """Whether they are called equal."""
        return self.relative <= TOLERANCE and not self.flipped

    def __str__(self) -> str:
        return f"a difference of {self.relative:.3g}, and {self.flipped} other labels,"


def pixels_of(check: Any, recipe: Preprocess) -> tuple[np.ndarray, int]:
    """Return images to compare on, uint8 (N, H, W, C): those given, or generated ones; and how many were unreadable.

    Of more than `MOST` images so many are taken, evenly spaced.

    Raises
    ------
    HandoffError
        When not one of the images can be read.
    """
    if check is None:
        return _generated(recipe.shape), 0
    source = ImageSource.open(check)
    found, reason = [], ""
    wanted = np.linspace(0, len(source) - 1, min(len(source), MOST)).round().astype(int).tolist() if len(source) else []
    for i in wanted:
        try:
            found.append(recipe.pixels(source.read(i)))
        except (ImageError, OSError) as error:
            reason = f"{source.ids[i]}: {error}"
    if not found:
        raise HandoffError(f"check: expected images that can be read, got none ({reason}); give others")
    return np.stack(found), len(wanted) - len(found)


def _generated(shape: tuple[int, int, int]) -> np.ndarray:
    """Coarse and fine noise, an even grey, black and white: nothing that any class was trained on."""
    generator = np.random.default_rng(0)
    height, width, channels = shape
    images = generator.integers(0, 256, (_GENERATED, height, width, channels), dtype=np.uint8)
    for image in images[:-4]:
        small = generator.integers(0, 256, (8, 8, channels), dtype=np.uint8)
        image[...] = small[np.arange(height) * 8 // height][:, np.arange(width) * 8 // width]
    images[-3], images[-2], images[-1] = 0, 127, 255
    return images


def run_of(module: nn.Module) -> Run:
    """Return a network as a function of arrays."""
    import torch

    def run(images: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(images)).cpu().numpy()

    return run


def compare(ours: Run, theirs: Run, inputs: np.ndarray) -> Agreement:
    """Return how far two networks' scores are apart.

    Parameters
    ----------
    ours, theirs : callable
        Inputs to scores (N, n_classes): the original, and what is to compute the same.
    inputs : ndarray
        As the networks take them; given in batches of several sizes.

    Returns
    -------
    Agreement

    Raises
    ------
    HandoffError
        When the original's own scores are not finite.
    """
    absolute, share, scale, flipped = 0.0, 0.0, 1.0, 0
    cuts = [0, *range(1, len(inputs), _BATCH), len(inputs)]
    for start, end in zip(cuts, cuts[1:], strict=False):
        a, b = ours(inputs[start:end]).astype(float), theirs(inputs[start:end]).astype(float)
        if not np.isfinite(a).all():
            raise HandoffError(
                "network: expected finite scores, got NaN or infinity; its weights are out of range, train it again"
            )
        if a.shape != b.shape or not np.isfinite(b).all():
            return Agreement(float("inf"), float("inf"), end - start)
        off, usual = np.abs(a - b), np.abs(a) < _HUGE
        scale = max(scale, float(np.abs(a[usual]).max(initial=0.0)))
        absolute = max(absolute, float(off[usual].max(initial=0.0)))
        share = max(share, float((off[~usual] / np.abs(a[~usual])).max(initial=0.0)))
        flipped += _flipped(a, b)
    return Agreement(max(absolute / scale, share), absolute, flipped)


def _flipped(a: np.ndarray, b: np.ndarray) -> int:
    """How many rows have another best column."""
    if a.ndim != 2 or not a.shape[1]:
        return 0
    rows = np.arange(len(a))
    best, other = a[rows, a.argmax(axis=1)], a[rows, b.argmax(axis=1)]
    return int((best - other > _TIE * np.maximum(1.0, np.abs(best))).sum())
