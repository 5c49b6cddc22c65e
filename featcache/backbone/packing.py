"""Layers as oneDNN computes them: weights folded and packed, activations it can apply on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

__all__ = ["Activation", "PackedConv", "PackedLinear", "activation_of", "folded"]


@dataclass(frozen=True)
class Activation:
    """An elementwise function as oneDNN names it, with its numbers and algorithm."""

    name: str
    numbers: tuple[float, ...] = ()
    algorithm: str = ""

    @property
    def after_addition(self) -> bool:
        """Whether it can also follow an addition in the same call."""
        return self.name == "relu"

    @property
    def never_negative(self) -> bool:
        """Whether its values are 0 or more, as oneDNN computes it: even of NaN."""
        return self.name == "relu" or (self.name == "hardtanh" and self.numbers[0] >= 0)


def _gelu(approximate: Any) -> Activation | None:
    return Activation("gelu", (), str(approximate)) if approximate in ("none", "tanh") else None


_PLAIN: dict[type[nn.Module], Activation] = {
    nn.ReLU: Activation("relu"),
    nn.ReLU6: Activation("hardtanh", (0.0, 6.0)),
    nn.Hardswish: Activation("hardswish"),
    nn.SiLU: Activation("swish"),
    nn.Hardsigmoid: Activation("hardsigmoid"),
    nn.Sigmoid: Activation("sigmoid"),
    nn.Tanh: Activation("tanh"),
}
_BY_FUNCTION: dict[Any, Activation] = {
    F.relu: Activation("relu"),
    F.relu_: Activation("relu"),
    torch.relu: Activation("relu"),
    torch.relu_: Activation("relu"),
    F.relu6: Activation("hardtanh", (0.0, 6.0)),
    F.hardswish: Activation("hardswish"),
    F.silu: Activation("swish"),
    F.hardsigmoid: Activation("hardsigmoid"),
    F.sigmoid: Activation("sigmoid"),
    torch.sigmoid: Activation("sigmoid"),
    torch.tanh: Activation("tanh"),
}
_BY_METHOD = {name: Activation(name.rstrip("_")) for name in ("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "tanh_")}


def activation_of(node: fx.Node, module: nn.Module | None) -> Activation | None:
    """Return the activation that a node of a graph applies to its one input, None for anything else."""
    if len(node.all_input_nodes) != 1 or len(node.args) != 1:
        return None
    if node.op == "call_module" and module is not None:
        return _of_module(module)
    if node.op == "call_function" and node.target in (F.gelu,):
        return _gelu(node.kwargs.get("approximate", "none"))
    if set(node.kwargs) - {"inplace"}:
        return None
    known: Mapping[Any, Activation] = _BY_METHOD if node.op == "call_method" else _BY_FUNCTION
    return known.get(node.target)


def _of_module(module: nn.Module) -> Activation | None:
    if type(module) is nn.LeakyReLU:
        return Activation("leaky_relu", (float(module.negative_slope),))
    if type(module) is nn.Hardtanh:
        return Activation("hardtanh", (float(module.min_val), float(module.max_val)))
    if type(module) is nn.GELU:
        return _gelu(module.approximate)
    return _PLAIN.get(type(module))


def folded(conv: nn.Conv2d, norm: nn.BatchNorm2d | None, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """Return a convolution's weight and bias with its batch norm in them, computed in float64 and rounded once."""
    if norm is None:
        return conv.weight.detach().to(dtype), None if conv.bias is None else conv.bias.detach().to(dtype)
    assert norm.running_mean is not None and norm.running_var is not None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    bias = (0.0 if conv.bias is None else conv.bias.double()) - norm.running_mean.double()
    bias = bias * scale + (0.0 if norm.bias is None else norm.bias.double())
    weight = (conv.weight.double() * scale[:, None, None, None]).to(dtype)
    return weight, bias.to(dtype)


class PackedConv(nn.Module):
    """A convolution with packed weights, an optional addition and an optional activation, in one call."""

    def __init__(
        self,
        conv: nn.Conv2d,
        weight: Tensor,
        bias: Tensor | None,
        activation: Activation | None,
        adds: bool,
        shape: tuple[int, ...],
    ) -> None:
        super().__init__()
        padding = _padding(conv)
        geometry = (padding, list(conv.stride), list(conv.dilation), conv.groups)
        kernels = torch.ops.mkldnn
        # Plain attributes: packed weights are opaque, and must not be moved or converted with the module.
        self.weight = kernels._reorder_convolution_weight(
            weight.contiguous(memory_format=torch.channels_last), *geometry, list(shape)
        )
        self.bias, self.geometry = bias, geometry
        chosen = activation or Activation("none")
        self.unary = (chosen.name, list(chosen.numbers), chosen.algorithm)
        self.binary: tuple[Any, ...] = ("add", 1.0, chosen.name if activation else None, [], "")
        self.kernel = getattr(kernels._convolution_pointwise, "binary" if adds else "default")
        self.kernel_in_place = kernels._convolution_pointwise_.binary
        #: Whether the sum is left where `other` was: oneDNN adds to its output far faster than it reads a third array.
        self.in_place = False

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Convolve `x`, add `other`, apply the activation."""
        if other is None:
            return self.kernel(x, self.weight, self.bias, *self.geometry, *self.unary)
        if self.in_place:
            return self.kernel_in_place(other, x, self.weight, self.bias, *self.geometry, *self.binary)
        return self.kernel(x, other, self.weight, self.bias, *self.geometry, *self.binary)


class PackedLinear(nn.Module):
    """A linear layer with packed weights and an optional activation."""

    def __init__(self, linear: nn.Linear, activation: Activation | None, dtype: torch.dtype, rows: int) -> None:
        super().__init__()
        kernels = torch.ops.mkldnn
        self.weight = kernels._reorder_linear_weight(linear.weight.detach().to(dtype).contiguous(), rows)
        self.bias = None if linear.bias is None else linear.bias.detach().to(dtype)
        chosen = activation or Activation("none")
        self.unary = (chosen.name, list(chosen.numbers), chosen.algorithm)
        self.kernel = kernels._linear_pointwise.default

    def forward(self, x: Tensor) -> Tensor:
        """Multiply the last axis of `x` by the weights."""
        return self.kernel(x, self.weight, self.bias, *self.unary)


def _padding(conv: nn.Conv2d) -> list[int]:
    """Return padding in numbers; NotImplementedError where the two sides differ."""
    if conv.padding == "valid":
        return [0, 0]
    if conv.padding == "same":
        whole = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if any(p % 2 for p in whole):
            raise NotImplementedError("padding that differs between the sides")
        return [p // 2 for p in whole]
    assert not isinstance(conv.padding, str)
    return [int(p) for p in conv.padding]
