"""Whether an exported network computes what the original does, on images."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import HandoffError, ImageError
from ..preprocess import Preprocess
from ..sources import ImageSource

if TYPE_CHECKING:
    from torch import nn

__all__ = ["TOLERANCE", "Run", "difference", "pixels_of", "run_of"]

#: Largest difference of two scores that are called equal, as a share of the largest score where that is above 1.
TOLERANCE = 1e-4
#: Images at a time: the last batch is smaller, so that another size than that of the example is tried, too.
_BATCH = 32
_GENERATED = 9

#: Inputs of a network to its scores.
Run = Callable[[np.ndarray], np.ndarray]


def pixels_of(check: Any, recipe: Preprocess) -> np.ndarray:
    """Return images to compare on, uint8 (N, H, W, C): those given, or generated ones.

    Raises
    ------
    HandoffError
        When not one of the images can be read.
    """
    if check is None:
        return _generated(recipe.shape)
    source = ImageSource.open(check)
    found, reason = [], ""
    for i in range(len(source)):
        try:
            found.append(recipe.pixels(source.read(i)))
        except (ImageError, OSError) as error:
            reason = f"{source.ids[i]}: {error}"
    if not found:
        raise HandoffError(f"check: expected images that can be read, got none ({reason}); give others")
    return np.stack(found)


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


def difference(ours: Run, theirs: Run, inputs: np.ndarray) -> float:
    """Return the largest difference of two networks' scores, relative to the largest score where that is above 1.

    Parameters
    ----------
    ours, theirs : callable
        Inputs to scores (N, n_classes).
    inputs : ndarray
        As the networks take them; given in batches of several sizes.

    Returns
    -------
    float
        Infinite where the shapes differ, or one has NaN or infinity where the other has not.
    """
    worst, scale = 0.0, 1.0
    cuts = [0, *range(1, len(inputs), _BATCH), len(inputs)]
    for start, end in zip(cuts, cuts[1:], strict=False):
        a, b = ours(inputs[start:end]).astype(float), theirs(inputs[start:end]).astype(float)
        if a.shape != b.shape or not np.array_equal(np.isfinite(a), np.isfinite(b)):
            return float("inf")
        finite = np.isfinite(a)
        scale = max(scale, float(np.abs(a[finite]).max(initial=0.0)))
        worst = max(worst, float(np.abs(a[finite] - b[finite]).max(initial=0.0)))
    return worst / scale
