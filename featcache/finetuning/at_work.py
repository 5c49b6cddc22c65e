"""What belongs to one stage while it runs: optimiser, schedule, scaler, running mean of the weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from .averaging import average_of, first_averaged
from .blocks import Block
from .losses import Objective
from .modes import set_modes
from .rates import Schedule, groups_of, make_optimizer
from .settings import Stage, Training
from .stepping import Stepper, scaler_for

__all__ = ["AtWork"]


class AtWork:
    """A stage at work.

    Parameters
    ----------
    model : nn.Module
        Put into the stage's modes.
    blocks : sequence of Block
        All of its blocks.
    stage : Stage
        The stage.
    training : Training
        What holds for all stages.
    objective : Objective
        The loss.
    steps : int
        Steps of an epoch.
    last : bool
        Whether it is the last stage, whose weights are averaged.
    network : nn.Module, default=None
        The part of the model that the stage runs; None = all of it.
    """

    def __init__(
        self,
        model: nn.Module,
        blocks: Sequence[Block],
        stage: Stage,
        training: Training,
        objective: Objective,
        steps: int,
        last: bool,
        network: nn.Module | None = None,
    ) -> None:
        self.model, self.stage, self.training = model, stage, training
        held = set_modes(model, blocks, stage, stage.batch_norm or training.batch_norm)
        self.optimizer = make_optimizer(stage, groups_of(model, blocks, stage, frozen=held))
        self.schedule = Schedule(stage, self.optimizer, steps)
        self.scaler = scaler_for(training.amp, next(model.parameters()).device)
        self.averaged = average_of(model, training) if last else None
        self.stepper = Stepper(
            network or model, objective, self.optimizer, self.scaler, training.amp, training.clip_norm
        )

    def after_step(self) -> None:
        """Let schedule and mean know of a step."""
        self.schedule.after()
        if self.averaged is not None and self.training.average == "ema":
            self.averaged.update_parameters(self.model)

    def after_epoch(self, epoch: int, loss: float) -> None:
        """Let schedule and mean know of an epoch, numbered from 1, and of the loss at its end."""
        self.schedule.after_epoch(loss)
        counts = self.training.average == "swa" and epoch >= first_averaged(self.stage, self.training)
        if self.averaged is not None and counts:
            self.averaged.update_parameters(self.model)

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps beside the network."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "schedule": dict(self.schedule.state()),
            "scaler": self.scaler.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; one that was taken before the first stage holds nothing."""
        if "optimizer" not in state:
            return
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.averaged is not None and state["averaged"] is not None:
            self.averaged.load_state_dict(state["averaged"])
