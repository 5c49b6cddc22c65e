"""A recipe as a layer: bytes of pixels in, a network's input out, on whatever device the network is."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ..errors import PreprocessError
from .recipe import Preprocess, centre_window

__all__ = ["PixelsToInput"]

#: Interpolations that torch has with antialiasing; "nearest" needs none.
_ANTIALIASED = ("bilinear", "bicubic")


class PixelsToInput(nn.Module):
    """Resize and centre crop where they are still to be done, then normalise.

    Parameters
    ----------
    recipe : Preprocess
        What to do. Decoding, orientation and transparency have been seen to by whoever has pixels.

    Notes
    -----
    Pixels of the recipe's own `shape` are taken for what ``recipe.pixels(image)`` gives and only normalised, with the
    same bits as ``recipe.normalize`` on a CPU. Others are resized as Pillow does it, in two passes each of which is
    rounded to bytes, with torch's antialiased interpolation in float32. Its weights are not rounded as Pillow's are:
    few bytes differ, by one grey level, hardly ever by two (a test on photographs holds it to that). More differ, by
    as little, where ``resize=(height, width)`` changes the aspect: since version 13 Pillow does there the vertical pass
    first when that saves work. "nearest" takes the pixels that Pillow takes. Of a recipe with "lanczos", "box" or
    "hamming", which torch does not have, other sizes are refused.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, recipe: Preprocess) -> None:
        super().__init__()
        self.recipe = recipe
        # Not in the state_dict: it is the same with preprocessing inside and without.
        for name, values in (("mean", recipe.mean), ("std", recipe.std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels uint8 (N, C, H, W), all of one size → float32 (N, C, *recipe.shape[:2])."""
        height, width, channels = self.recipe.shape
        if pixels.dtype != torch.uint8 or pixels.ndim != 4 or pixels.shape[1] != channels:
            raise PreprocessError(
                f"pixels: expected uint8 (N, {channels}, H, W), got {pixels.dtype} {tuple(pixels.shape)}; give e.g. "
                "torch.from_numpy(recipe.pixels(image)).permute(2, 0, 1)[None]"
            )
        # Of one layout whatever that of the pixels, on which the last bits of a convolution depend.
        x = pixels.to(torch.float32, memory_format=torch.contiguous_format)
        if tuple(pixels.shape[2:]) != (height, width):
            x = self._sized(x)
        return (x / 255 - self.mean) / self.std

    def _sized(self, x: Tensor) -> Tensor:
        """Resize and crop levels, which stay whole numbers."""
        wide, high = self.recipe.resized((x.shape[3], x.shape[2]))
        for axis, length in ((3, wide), (2, high)):
            if x.shape[axis] != length:
                x = self._resized(x, axis, length)
        height, width, _ = self.recipe.shape
        rows, top = centre_window(high, height)
        columns, left = centre_window(wide, width)
        x = x[:, :, rows.start : rows.stop, columns.start : columns.stop]
        return nn.functional.pad(x, (left, width - left - len(columns), top, height - top - len(rows)))

    def _resized(self, x: Tensor, axis: int, length: int) -> Tensor:
        """Resize one axis."""
        mode = self.recipe.interpolation
        if mode == "nearest":
            # Pillow adds up its steps instead of multiplying them.
            step = x.shape[axis] / length
            centres = itertools.accumulate(itertools.repeat(step, length - 1), initial=step * 0.5)
            return x.index_select(axis, torch.tensor([int(centre) for centre in centres], device=x.device))
        if mode not in _ANTIALIASED:
            raise PreprocessError(
                f"pixels: expected images of {self.recipe.shape[0]} × {self.recipe.shape[1]}, as torch has no {mode!r} "
                "to resize others with; resize them with recipe.pixels(image)"
            )
        size = (x.shape[2], length) if axis == 3 else (length, x.shape[3])
        x = nn.functional.interpolate(x, size, mode=mode, antialias=True)
        return (x + 0.5).floor().clamp(0, 255)
