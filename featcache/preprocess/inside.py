"""A recipe as a layer: bytes of pixels in, a network's input out, on whatever device the network is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import PreprocessError
from .recipe import Preprocess, centre_window

__all__ = ["PixelsToInput"]

#: Interpolation → torch's mode, and whether it has antialiasing.
_MODES = {"bilinear": ("bilinear", True), "bicubic": ("bicubic", True), "nearest": ("nearest-exact", False)}


class PixelsToInput(nn.Module):
    """Resize and centre crop where they are still to be done, then normalise.

    Parameters
    ----------
    recipe : Preprocess
        What to do. Decoding, orientation and transparency have been seen to by whoever has pixels.

    Notes
    -----
    Pixels of the recipe's own `shape` are taken for what ``recipe.pixels(image)`` gives and only normalised, with the
    same bits as ``recipe.normalize``. Others are resized by torch's antialiased interpolation in float32 and rounded to
    bytes once; Pillow rounds after each of two passes and has weights of 22 bits, so that some bytes differ by one grey
    level, seldom more (a test on photographs holds the mean difference below a tenth of a level). Of a recipe with
    "lanczos", "box" or "hamming", which torch does not have, other sizes are refused.
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
        x = pixels.to(torch.float32)
        if tuple(pixels.shape[2:]) != (height, width):
            x = self._sized(x)
        return (x / 255 - self.mean) / self.std

    def _sized(self, x: Tensor) -> Tensor:
        """Resize and crop levels, which stay whole numbers."""
        wide, high = self.recipe.resized((x.shape[3], x.shape[2]))
        if (high, wide) != tuple(x.shape[2:]):
            mode, antialias = self._mode()
            x = nn.functional.interpolate(x, (high, wide), mode=mode, antialias=antialias)
            x = x.round().clamp(0, 255)
        height, width, _ = self.recipe.shape
        rows, top = centre_window(high, height)
        columns, left = centre_window(wide, width)
        x = x[:, :, rows.start : rows.stop, columns.start : columns.stop]
        return nn.functional.pad(x, (left, width - left - len(columns), top, height - top - len(rows)))

    def _mode(self) -> tuple[str, bool]:
        if self.recipe.interpolation in _MODES:
            return _MODES[self.recipe.interpolation]
        raise PreprocessError(
            f"pixels: expected images of {self.recipe.shape[0]} × {self.recipe.shape[1]}, as torch has no "
            f"{self.recipe.interpolation!r} to resize others with; resize them with recipe.pixels(image)"
        )
