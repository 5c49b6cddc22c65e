"""Who learns how fast: parameter groups, the schedule as a function of the step, and the optimiser."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..errors import FinetuneError
from .blocks import Block
from .settings import Stage

__all__ = ["Schedule", "factor", "groups_of", "make_optimizer", "trained_blocks"]


def trained_blocks(unfreeze: str | int | tuple[str, ...], blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Return the blocks that a stage trains, from the input to the output.

    Raises
    ------
    FinetuneError
        For a block that the network has not, or more blocks than it has.
    """
    if unfreeze == "head":
        return ()
    if unfreeze == "all":
        return tuple(blocks)
    if isinstance(unfreeze, int):
        if unfreeze > len(blocks):
            raise FinetuneError(
                f"stage.unfreeze: expected at most {len(blocks)} blocks, got {unfreeze}; 'all' trains everything"
            )
        return tuple(blocks[-unfreeze:])
    unknown = [name for name in unfreeze if name not in {block.name for block in blocks}]
    if unknown:
        names = ", ".join(block.name for block in blocks)
        raise FinetuneError(f"stage.unfreeze: expected blocks of the network ({names}), got {unknown[0]!r}; name those")
    return tuple(block for block in blocks if block.name in unfreeze)


def head_names(model: nn.Module, blocks: Sequence[Block]) -> tuple[str, ...]:
    """Return the parameters that no block has: head and own top."""
    inside = {name for block in blocks for name in block.parameters}
    return tuple(name for name, _ in model.named_parameters() if name not in inside)


def groups_of(
    model: nn.Module, blocks: Sequence[Block], stage: Stage, *, frozen: frozenset[str] = frozenset()
) -> list[dict[str, Any]]:
    """Return the parameter groups of a stage, the head first, then block by block from the output to the input.

    Parameters
    ----------
    model : nn.Module
        The network.
    blocks : sequence of Block
        All of its blocks.
    stage : Stage
        Which of them train, and how fast.
    frozen : frozenset of str, default=frozenset()
        Names of parameters that stay as they are all the same (those of frozen batch norms).

    Returns
    -------
    list of dict
        "params", "lr", "weight_decay", "name". Norms, biases and the like have a group of their own, without weight
        decay.
    """
    parameters = dict(model.named_parameters())
    parts = [("head", head_names(model, blocks), stage.lr)]
    depth = {block.name: len(blocks) - 1 - i for i, block in enumerate(blocks)}
    for block in reversed(trained_blocks(stage.unfreeze, blocks)):
        parts.append((block.name, block.parameters, stage.rate_of_backbone * stage.layer_decay ** depth[block.name]))
    groups = []
    for name, names, lr in parts:
        kept = [n for n in names if n not in frozen]
        for title, decay, chosen in (
            (name, stage.weight_decay, [n for n in kept if _decays(n, parameters[n])]),
            (f"{name}, no decay", 0.0, [n for n in kept if not _decays(n, parameters[n])]),
        ):
            if chosen:
                held = [parameters[n] for n in chosen]
                groups.append({"params": held, "lr": lr, "weight_decay": decay, "name": title})
    if not groups:
        raise FinetuneError(f"stage {stage.title!r}: expected parameters to train, got none; unfreeze blocks")
    return groups


def _decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay is for a parameter: not for norms, biases, scales, class tokens and positions."""
    leaf = name.rpartition(".")[2]
    vector = parameter.ndim <= 1 or (parameter.ndim == 3 and parameter.numel() == max(parameter.shape))
    return not (vector or "bias" in leaf or leaf in ("class_token", "pos_embedding"))


#: Of AdamW. A fitted head leaves gradients near zero; with torch's 1e-8 a step is as long for those as for any others,
#: and goes where rounding and the batch's accidents point.
_EPS = 1e-3


def make_optimizer(stage: Stage, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """Return the stage's optimiser over parameter groups; FinetuneError where a factory gives none."""
    if callable(stage.optimizer):
        made = stage.optimizer(groups)
        if not isinstance(made, torch.optim.Optimizer):
            raise FinetuneError(
                f"stage.optimizer: expected a callable that returns a torch optimiser, got {type(made).__name__}"
            )
        return made
    if stage.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=stage.lr, momentum=0.9)
    return torch.optim.AdamW(groups, lr=stage.lr, eps=_EPS)


def factor(stage: Stage, step: int, steps_per_epoch: int) -> float:
    """Return what the learning rates are multiplied by before a step of a stage.

    Parameters
    ----------
    stage : Stage
        With a schedule by name.
    step : int
        From 0, over all epochs of the stage.
    steps_per_epoch : int
        How many an epoch has.

    Returns
    -------
    float
        In [0, 1].

    Examples
    --------
    >>> stage = Stage(epochs=2, warmup=0.5, schedule="linear")
    >>> [round(factor(stage, step, 4), 2) for step in range(8)]
    [0.5, 1.0, 1.0, 0.83, 0.67, 0.5, 0.33, 0.17]
    """
    rising = round(stage.warmup * steps_per_epoch)
    if step < rising:
        return (step + 1) / rising
    if stage.schedule == "constant":
        return 1.0
    done = min(1.0, (step - rising) / max(1, stage.span * steps_per_epoch - rising))
    return 1.0 - done if stage.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


class Schedule:
    """The learning rates of a stage: a function of the step, or a scheduler of the user's.

    Parameters
    ----------
    stage : Stage
        Its schedule.
    optimizer : torch.optim.Optimizer
        Whose rates are set.
    steps_per_epoch : int
        How many an epoch has.
    """

    def __init__(self, stage: Stage, optimizer: torch.optim.Optimizer, steps_per_epoch: int) -> None:
        self.stage, self.optimizer, self.steps = stage, optimizer, steps_per_epoch
        self.top = [float(group["lr"]) for group in optimizer.param_groups]
        self.scheduler = stage.schedule(optimizer) if callable(stage.schedule) else None
        if callable(stage.schedule) and not hasattr(self.scheduler, "state_dict"):
            raise FinetuneError(
                "stage.schedule: expected a callable that returns a scheduler of torch.optim.lr_scheduler, got "
                f"{type(self.scheduler).__name__}"
            )
        self.by_loss = isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)

    def before(self, step: int) -> None:
        """Set the rates for a step of the stage."""
        if self.scheduler is None:
            share = factor(self.stage, step, self.steps)
            for group, lr in zip(self.optimizer.param_groups, self.top, strict=True):
                group["lr"] = lr * share

    def after(self) -> None:
        """Tell the user's scheduler that a step was taken."""
        if self.scheduler is not None and not self.by_loss:
            self.scheduler.step()

    def after_epoch(self, loss: float) -> None:
        """Tell a scheduler that goes by the loss how large it is."""
        if self.by_loss:
            self.scheduler.step(loss)  # type: ignore[union-attr]

    def rates(self) -> dict[str, float]:
        """Return the learning rate of each group, by name."""
        return {str(g.get("name", i)): float(g["lr"]) for i, g in enumerate(self.optimizer.param_groups)}

    def state(self) -> Mapping[str, Any]:
        """Return what a checkpoint keeps."""
        return {} if self.scheduler is None else self.scheduler.state_dict()

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where a checkpoint was made."""
        if self.scheduler is not None:
            self.scheduler.load_state_dict(dict(state))
