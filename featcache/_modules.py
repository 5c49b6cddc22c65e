"""The one network class of the hand-off, in a room of its own so that `handoff` imports without torch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["ClassifierNetwork", "JoinLayers", "LowerPart", "Standardise"]


class JoinLayers(nn.Module):
    """Codes of several nodes as one matrix: pooled, each part of length one, side by side.

    Parameters
    ----------
    nodes : sequence of str
        Which, in the order of the columns.
    shapes : sequence of tuple of int
        Shape of a row of each after pooling: (C,) or (C, h, w).
    """

    def __init__(self, nodes: Sequence[str], shapes: Sequence[tuple[int, ...]]) -> None:
        super().__init__()
        self.nodes, self.shapes = tuple(nodes), tuple(tuple(shape) for shape in shapes)

    def forward(self, codes: dict[str, Tensor]) -> Tensor:
        """Node → codes, to (N, sum of the sizes)."""
        parts = []
        for node, shape in zip(self.nodes, self.shapes, strict=True):
            x = codes[node]
            if x.ndim == 3 and len(shape) == 1:
                x = x.mean(dim=1)  # tokens
            elif x.ndim == 4 and len(shape) == 3:
                x = nn.functional.adaptive_avg_pool2d(x, shape[1:])
            parts.append(nn.functional.normalize(x.flatten(1), dim=1))
        return torch.cat(parts, dim=1)


class Standardise(nn.Module):
    """Centre and scale codes, raise them to a power, bring them to length one: what stands before an affine head.

    Parameters
    ----------
    shift, scale : Tensor of shape (n_features,)
        ``(x - shift) / scale`` comes first.
    power : float, default=1.0
        Then sign(x) |x|^power.
    unit : bool, default=True
        Then rows of length one.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor, power: float = 1.0, unit: bool = True) -> None:
        super().__init__()
        self.power, self.unit = power, unit
        self.register_buffer("shift", shift.to(torch.float32))
        self.register_buffer("scale", scale.to(torch.float32))

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (N, D) → (N, D)."""
        x = (codes - self.shift) / self.scale
        if self.power != 1.0:
            # The slope of a root at zero is infinite; held off from it, zeros stay zeros and have no gradient.
            x = x.sign() * x.abs().clamp_min(1e-12) ** self.power
        return nn.functional.normalize(x, dim=1) if self.unit else x


class ClassifierNetwork(nn.Module):
    """A cut backbone and a linear head.

    Parameters
    ----------
    trunk : nn.Module
        Images → dict of node → codes.
    node : str or JoinLayers
        Which of them the head takes, or how several become one.
    weight, bias : Tensor of shapes (n_classes, n_features), (n_classes,)
        The head, float64; stored in float32.
    classes : list of str
        Labels, in the order of the scores.
    prelude : Standardise, optional
        What stands in front of the head.
    """

    def __init__(
        self,
        trunk: nn.Module,
        node: str | JoinLayers,
        weight: Tensor,
        bias: Tensor,
        classes: list[str],
        prelude: Standardise | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.node, self.classes = trunk, node if isinstance(node, str) else "", classes
        self.join: nn.Module = nn.Identity() if isinstance(node, str) else node
        self.prelude: nn.Module = nn.Identity() if prelude is None else prelude
        # Without an initialisation, which would advance the global random state.
        self.head: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) → scores (N, n_classes)."""
        codes = self.trunk(images)
        joined = codes[self.node].flatten(1) if self.node else self.join(codes)
        return self.head(self.prelude(joined))


class LowerPart(nn.Module):
    """The part of a network below a cut.

    Parameters
    ----------
    prepare : nn.Module
        What the network's input goes through first.
    trunk : nn.Module
        Normalised images (N, C, H, W) → the tensor at the cut.
    """

    def __init__(self, prepare: nn.Module, trunk: nn.Module) -> None:
        super().__init__()
        self.prepare, self.trunk = prepare, trunk

    def forward(self, images: Tensor) -> Tensor:
        """What the network takes → the tensor at the cut (N, …)."""
        return self.trunk(self.prepare(images))
