"""The antialiased resize of PyTorch for bytes, for just what a crop keeps.

PyTorch's kernel repeats Pillow's with weights of 16 bits instead of 32, and so differs from it by one grey level here
and there. It computes from the first row and column on; those behind the crop's end are left out together with their
source, which changes no bit: the scale is given to it instead of being derived from the sizes, and tests compare.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Iterator
from typing import Any

import numpy as np

__all__ = ["TORCH_KERNELS", "one_thread", "resize_with_torch"]

#: Interpolation → the kernel's radius in source pixels where nothing is scaled down.
TORCH_KERNELS: dict[str, int] = {"bilinear": 1, "bicubic": 2}


def resize_with_torch(
    pixels: np.ndarray,
    box: tuple[float, float, float, float],
    size: tuple[int, int],
    columns: range,
    rows: range,
    interpolation: str,
) -> np.ndarray:
    """Return a window of a resized image.

    Parameters
    ----------
    pixels : numpy.ndarray
        uint8 (H, W, 3) or (H, W).
    box : (float, float, float, float)
        Left, upper, right, lower: the part of `pixels` that is resized; it ends less than a pixel from their edges.
    size : (int, int)
        Width and height of the whole resized image.
    columns, rows : range
        The window, step 1.
    interpolation : {"bilinear", "bicubic"}
        The filter.

    Returns
    -------
    numpy.ndarray
        uint8 (len(rows), len(columns)[, 3]).
    """
    # The kernel can begin only at a whole pixel, so a fraction that is missing there is brought to the end.
    across, down = (-1 if box[0] > 0 else 1), (-1 if box[1] > 0 else 1)
    if across < 0 or down < 0:
        pixels = pixels[::down, ::across]
        columns = _mirrored(columns, size[0]) if across < 0 else columns
        rows = _mirrored(rows, size[1]) if down < 0 else rows
    wide = _Axis.of(pixels.shape[1], box[2] - box[0], size[0], columns.stop, interpolation)
    high = _Axis.of(pixels.shape[0], box[3] - box[1], size[1], rows.stop, interpolation)
    out = _run(pixels[: high.source, : wide.source], high, wide, interpolation)
    return out[rows.start : rows.stop, columns.start : columns.stop][::down, ::across]


def _mirrored(window: range, length: int) -> range:
    return range(length - window.stop, length - window.start)


class _Axis:
    """How much of an axis goes into the kernel, how much comes out, and the scale that it is told."""

    __slots__ = ("result", "scale", "source")

    def __init__(self, source: int, result: int, scale: float | None) -> None:
        self.source, self.result, self.scale = source, result, scale

    @classmethod
    @functools.lru_cache(maxsize=4096)
    def of(cls, length: int, extent: float, wanted: int, stop: int, interpolation: str) -> _Axis:
        step = extent / wanted
        scale, exact = _scale(extent, wanted)
        whole = cls(length, wanted, None if extent == length else scale)
        # Of mirrored weights the kernel must see one, since it rounds all of them by the largest: half of the axis.
        if not exact or 2 * stop < wanted or stop == wanted:
            return whole
        if length == wanted == extent:
            return cls(stop, stop, None)
        reach = math.ceil((stop - 0.5) * step + TORCH_KERNELS[interpolation] * max(step, 1.0)) + 1
        # An axis of as many pixels before as after would be taken for one that stays as it is.
        source = min(length, reach + 1 if reach == stop else reach)
        return whole if source == stop else cls(source, stop, scale)


def _scale(extent: float, wanted: int) -> tuple[float, bool]:
    """Return the scale that PyTorch inverts to the step that it would derive itself, and whether there is one."""
    step, near = extent / wanted, wanted / extent
    for scale in (near, math.nextafter(near, math.inf), math.nextafter(near, 0.0)):
        if 1.0 / scale == step:
            return scale, True
    return near, False


def _run(pixels: np.ndarray, high: _Axis, wide: _Axis, interpolation: str) -> np.ndarray:
    """Call the kernel on an image that begins where `pixels` begin."""
    torch = _torch()
    # Where torch.nn.functional finds them; called by torch.ops.aten they ask for Python's lock several times.
    kernels = torch._C._nn
    kernel = kernels._upsample_bilinear2d_aa if interpolation == "bilinear" else kernels._upsample_bicubic2d_aa
    # It is at its fastest with contiguous rows, and PyTorch has no read-only tensors.
    coded = pixels if pixels.flags.c_contiguous and pixels.flags.writeable else np.array(pixels, order="C")
    planes = torch.from_numpy(coded if coded.ndim == 3 else coded[:, :, None]).permute(2, 0, 1).unsqueeze(0)
    with one_thread():
        out = kernel(planes, [high.result, wide.result], False, high.scale, wide.scale)
    result: np.ndarray = out[0].permute(1, 2, 0).numpy()
    return result if pixels.ndim == 3 else result[:, :, 0]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch compute on the calling thread alone, whatever its setting, which stays as it is.

    Decoding threads are as many as the processor has cores. `torch.set_num_threads` would also decide for threads that
    are yet to start, and for the libraries below; OpenMP's own setting is one of the calling thread.

    Yields
    ------
    None
    """
    openmp = _openmp()
    _torch().get_num_threads()  # a thread's first question sets OpenMP to PyTorch's number; later ones do not
    before = [(library, library.num_threads) for library in openmp if library.num_threads != 1]
    for library, _ in before:
        library.set_num_threads(1)
    try:
        yield
    finally:
        for library, threads in before:
            library.set_num_threads(threads)


@functools.cache
def _torch() -> Any:
    import torch

    return torch


@functools.cache
def _openmp() -> tuple[Any, ...]:
    """Return the OpenMP runtimes of this process as threadpoolctl knows them."""
    from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

    _torch().get_num_threads()  # loads them
    return tuple(ThreadpoolController().select(internal_api="openmp").lib_controllers)
