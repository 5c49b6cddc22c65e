"""The one network class of the hand-off, in a room of its own so that `handoff` imports without torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["ClassifierNetwork", "Standardise"]


class Standardise(nn.Module):
    """Centre, scale and L2-normalise codes, as the head "centroid" does.

    Parameters
    ----------
    shift, scale : Tensor of shape (n_features,)
        ``(x - shift) / scale`` is then divided by its length.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("shift", shift.to(torch.float32))
        self.register_buffer("scale", scale.to(torch.float32))

    def forward(self, codes: Tensor) -> Tensor:
        """Codes (N, D) → unit vectors (N, D)."""
        return nn.functional.normalize((codes - self.shift) / self.scale, dim=1)


class ClassifierNetwork(nn.Module):
    """A cut backbone and a linear head.

    Parameters
    ----------
    trunk : nn.Module
        Images → dict of node → codes.
    node : str
        Which of them the head takes.
    weight, bias : Tensor of shapes (n_classes, n_features), (n_classes,)
        The head, float64; stored in float32.
    classes : list of str
        Labels, in the order of the scores.
    prelude : tuple of Tensor, optional
        `shift` and `scale` of a `Standardise` in front of the head.
    """

    def __init__(
        self,
        trunk: nn.Module,
        node: str,
        weight: Tensor,
        bias: Tensor,
        classes: list[str],
        prelude: tuple[Tensor, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.node, self.classes = trunk, node, classes
        self.prelude: nn.Module = Standardise(*prelude) if prelude is not None else nn.Identity()
        # Without an initialisation, which would advance the global random state.
        self.head: nn.Linear = nn.utils.skip_init(nn.Linear, weight.shape[1], weight.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(weight)
            self.head.bias.copy_(bias)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) → scores (N, n_classes)."""
        return self.head(self.prelude(self.trunk(images)[self.node].flatten(1)))
