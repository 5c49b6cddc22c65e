"""Which modules are in training mode and which parameters have a gradient, stage by stage."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from .blocks import Block
from .rates import head_names, trained_blocks
from .settings import Stage

__all__ = ["frozen_norms", "learning_norms", "set_modes"]


def set_modes(model: nn.Module, blocks: Sequence[Block], stage: Stage, batch_norm: str) -> frozenset[str]:
    """Put a network into the state that a stage trains it in.

    Parameters
    ----------
    model : nn.Module
        The network. What trains is in training mode and has gradients; all else is in evaluation mode and has none.
    blocks : sequence of Block
        All of its blocks.
    stage : Stage
        Which of them train.
    batch_norm : {"frozen", "statistics", "trained"}
        What batch norms of those do; see `Training`.

    Returns
    -------
    frozenset of str
        Parameters of batch norms in trained blocks that stay as they are.
    """
    trained = trained_blocks(stage.unfreeze, blocks)
    modules = dict(model.named_modules())
    model.eval()
    for name in (*_head_modules(model, blocks), *(name for block in trained for name in block.modules)):
        modules[name].training = True
    held = frozen_norms(model, trained) if batch_norm == "frozen" else frozenset()
    if batch_norm != "trained":
        for name in (name for block in trained for name in block.modules):
            if isinstance(modules[name], nn.modules.batchnorm._BatchNorm):
                modules[name].eval()
    learning = {*head_names(model, blocks), *(name for block in trained for name in block.parameters)} - held
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in learning)
    return held


def frozen_norms(model: nn.Module, trained: Sequence[Block]) -> frozenset[str]:
    """Return the names of the parameters of batch norms in blocks."""
    modules = dict(model.named_modules())
    return frozenset(
        f"{name}.{leaf}"
        for block in trained
        for name in block.modules
        if isinstance(modules[name], nn.modules.batchnorm._NormBase)
        for leaf, _ in modules[name].named_parameters(recurse=False)
    )


def learning_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """Return the batch norms whose running statistics change in the network's present modes."""
    norms = (m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm))
    return [norm for norm in norms if norm.training and norm.track_running_stats]


def _head_modules(model: nn.Module, blocks: Sequence[Block]) -> list[str]:
    """Return the modules that are neither in the trunk nor above it: of head and own top, dropout included."""
    inside = [name for block in blocks for name in (*block.modules, *block.parameters)]
    above = {name[:i] for name in inside for i in range(len(name)) if name[i] == "."}
    tops = {name.split(".")[0] for name in above}
    held = {name for block in blocks for name in block.modules}
    return [
        name
        for name, _ in model.named_modules()
        if name and name not in held and name not in above and name.split(".")[0] not in tops
    ]
