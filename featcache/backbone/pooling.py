"""Max pooling for a CPU, channels last: whole rows compared at once, and no table of where the maxima were.

PyTorch's own remembers each maximum's place in 8 bytes, four times the size of the result in bfloat16, and compares
low precisions as float32. The order of floats that are not negative is that of their bits read as integers, so those
are compared as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["MaxPool"]

_INTEGERS = {torch.bfloat16: torch.int16, torch.float16: torch.int16}


class MaxPool(nn.Module):
    """`nn.MaxPool2d`; among values said to be not negative a NaN may be lost, and a zero its sign.

    Parameters
    ----------
    pool : nn.MaxPool2d
        Without dilation, and not asked for indices.
    nonnegative : bool
        Whether no input is ever negative.
    """

    def __init__(self, pool: nn.MaxPool2d, nonnegative: bool) -> None:
        super().__init__()
        if not self.can_stand_for(pool):
            raise NotImplementedError("dilated max pooling, or one that returns indices")
        self.kernel, self.stride, self.padding = _pair(pool.kernel_size), _pair(pool.stride), _pair(pool.padding)
        self.ceil_mode, self.nonnegative = pool.ceil_mode, nonnegative

    @staticmethod
    def can_stand_for(pool: nn.Module) -> bool:
        """Whether a module is max pooling of the kind that is done here."""
        return type(pool) is nn.MaxPool2d and _pair(pool.dilation) == (1, 1) and not pool.return_indices

    def forward(self, x: Tensor) -> Tensor:
        """Return the maxima of `x` (N, C, H, W)."""
        integers = _INTEGERS.get(x.dtype) if self.nonnegative else None
        pooled = x if integers is None else x.view(integers)
        for axis, (kernel, stride, padding) in enumerate(zip(self.kernel, self.stride, self.padding, strict=True), 2):
            pooled = self._along(pooled, axis, kernel, stride, padding)
        return pooled if integers is None else pooled.view(x.dtype)

    def _along(self, x: Tensor, axis: int, kernel: int, stride: int, padding: int) -> Tensor:
        size = x.shape[axis]
        out = _length(size, kernel, stride, padding, self.ceil_mode)
        parts = list(_parts(size, out, kernel, stride, padding))
        whole = [_strided(x, axis, begin, out, stride) for places, begin in parts if len(places) == out]
        cut = [(places, begin) for places, begin in parts if len(places) < out]
        found = self._maximum(whole, x, axis, out)
        for places, begin in cut:
            one, part = _strided(x, axis, begin, len(places), stride), found.narrow(axis, places.start, len(places))
            torch.maximum(part, one, out=part)
        return found

    def _maximum(self, values: Sequence[Tensor], x: Tensor, axis: int, out: int) -> Tensor:
        """Return the maximum of values of `out` places along an axis, in memory of its own; the lowest of none."""
        if not values:
            lowest = float("-inf") if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
            return torch.full_like(x.narrow(axis, 0, 1).repeat_interleave(out, axis), lowest)
        found = torch.maximum(*values[:2]) if len(values) > 1 else values[0].clone()
        for value in values[2:]:
            torch.maximum(found, value, out=found)
        return found


def _parts(size: int, out: int, kernel: int, stride: int, padding: int) -> Iterator[tuple[range, int]]:
    """Yield, per place within the window, the outputs for which it lies inside the input, and the first input there."""
    for offset in range(kernel):
        low = max(0, -(-(padding - offset) // stride))
        high = min(out - 1, (size - 1 - offset + padding) // stride)
        if low <= high:
            yield range(low, high + 1), low * stride + offset - padding


def _strided(x: Tensor, axis: int, begin: int, count: int, stride: int) -> Tensor:
    index: list[Any] = [slice(None)] * x.dim()
    index[axis] = slice(begin, begin + (count - 1) * stride + 1, stride)
    return x[tuple(index)]


def _length(size: int, kernel: int, stride: int, padding: int, ceil_mode: bool) -> int:
    """Return how many windows there are, as PyTorch counts them."""
    room = size + 2 * padding - kernel
    count = (-(-room // stride) if ceil_mode else room // stride) + 1
    # A window may not begin in the padding on the right.
    count -= ceil_mode and (count - 1) * stride >= size + padding
    if count < 1:
        raise RuntimeError(f"max pooling: expected an input of at least {kernel - 2 * padding} values, got {size}")
    return count


def _pair(value: Any) -> tuple[int, int]:
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))
