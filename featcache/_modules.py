"""The network classes of the hand-off, in a room of their own so that `handoff` imports without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from .preprocess import Preprocess

__all__ = ["AssembledNetwork", "ClassifierNetwork", "JoinLayers", "LowerPart", "Standardise"]


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
    prepare : nn.Module, optional
        What images go through before the trunk: uint8 pixels → normalised images.
    preprocess : Preprocess, optional
        The recipe from an image to the trunk's input, kept for whoever feeds the network.
    """

    #: Seed of the last random initialisation; None where there was none.
    initialised_seed: int | None = None
    #: What the scores mean: "scores", "separator" and "target" as in `handoff.answering.Meaning`; None: not known.
    meaning: dict[str, str] | None = None

    def __init__(
        self,
        trunk: nn.Module,
        node: str | JoinLayers,
        weight: Tensor,
        bias: Tensor,
        classes: list[str],
        prelude: Standardise | None = None,
        prepare: nn.Module | None = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.prepare: nn.Module = nn.Identity() if prepare is None else prepare
        self.trunk, self.node, self.classes = trunk, node if isinstance(node, str) else "", classes
        self.join: nn.Module = nn.Identity() if isinstance(node, str) else node
        self.prelude: nn.Module = nn.Identity() if prelude is None else prelude
        # Without an initialisation, which would advance the global random state.
        self.head: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), normalised or as `prepare` takes them → scores (N, n_classes)."""
        codes = self.trunk(self.prepare(images))
        joined = codes[self.node].flatten(1) if self.node else self.join(codes)
        return self.head(self.prelude(joined))


class AssembledNetwork(nn.Module):
    """A cut backbone and a module of one's own on top.

    Parameters
    ----------
    trunk : nn.Module
        Images → dict of node → codes.
    node : str
        Which of them the top takes, in the shape that it has.
    top : nn.Module
        Codes → scores (N, n_classes).
    classes : list of str
        Labels, in the order of the scores.
    prepare, preprocess
        As for `ClassifierNetwork`.
    """

    initialised_seed: int | None = None

    def __init__(
        self,
        trunk: nn.Module,
        node: str,
        top: nn.Module,
        classes: list[str],
        prepare: nn.Module | None = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        super().__init__()
        self.preprocess, self.node, self.classes = preprocess, node, classes
        self.prepare: nn.Module = nn.Identity() if prepare is None else prepare
        self.trunk, self.top = trunk, top

    def forward(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W), normalised or as `prepare` takes them → scores (N, n_classes)."""
        return self.top(self.trunk(self.prepare(images))[self.node])


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
