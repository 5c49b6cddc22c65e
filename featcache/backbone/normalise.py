"""Pixels as a network's input: normalised a few images at a time, into the layout that the network wants."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

__all__ = ["normalised", "normalised_on"]

#: Values treated at a time. Four passes over fewer would stay nearer to the core, but mean more calls, each of which
#: gives Python's lock away and waits to get it back.
_BLOCK = 1 << 20


def normalised(pixels: np.ndarray, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype) -> Tensor:
    """Normalise on the CPU, bit for bit as torchvision does: ``(x.float() / 255 - mean) / std``, then cast.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (N, H, W, C)
        Images.
    mean, std : sequence of float
        One number per channel.
    dtype : torch.dtype
        Of the result; the arithmetic is float32's.

    Returns
    -------
    Tensor
        (N, C, H, W) in channels_last layout, which is the order that pixels have.
    """
    n, height, width, channels = pixels.shape
    rows = torch.from_numpy(_usable(pixels)).view(n * height, width * channels)
    out = torch.empty(n * height, width * channels, dtype=dtype)
    # One long row per line of pixels: a tiled row of means is added without strides, so it vectorises.
    mean_, std_ = (torch.tensor(v, dtype=torch.float32).repeat(width) for v in (mean, std))
    step = max(1, _BLOCK // max(1, width * channels))
    scratch = None if dtype == torch.float32 else torch.empty(min(step, n * height), width * channels)
    for start in range(0, n * height, step):
        part = out[start : start + step]
        block = part if scratch is None else scratch[: len(part)]
        block.copy_(rows[start : start + step]).div_(255).sub_(mean_).div_(std_)
        if scratch is not None:
            part.copy_(block)
    return out.view(n, height, width, channels).permute(0, 3, 1, 2)


def normalised_on(x: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Normalise pixels (N, H, W, C) that already lie on a device, in the same order of operations."""
    return x.permute(0, 3, 1, 2).to(torch.float32).div_(255).sub_(mean).div_(std).to(dtype)


def _usable(pixels: np.ndarray) -> np.ndarray:
    """Return contiguous pixels that torch takes without a warning; it may not write to them."""
    array = np.ascontiguousarray(pixels)
    return array if array.flags.writeable else array.copy()
