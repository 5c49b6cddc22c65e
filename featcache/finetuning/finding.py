"""`find_lr`: which learning rate to begin with, by letting it rise until the loss does."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import FinetuneError
from ..progress import Progress, progress_for
from .blocks import Block
from .feeding import Feed
from .losses import Objective
from .memory import MicroBatch
from .modes import set_modes
from .rates import groups_of, make_optimizer
from .seeding import epoch_order, seed_of, seeded
from .settings import Stage, Training
from .stepping import NonFinite, Stepper, deterministic, device_of, scaler_for

__all__ = ["RateCurve", "find_lr"]

#: The test ends where the smoothed loss is so many times the lowest one.
_TOO_HIGH = 4.0
_SMOOTH = 0.9


@dataclass(frozen=True)
class RateCurve:
    """Loss over learning rate.

    Parameters
    ----------
    rates : list of float
        Of the head, rising; those of the blocks rise with it in the stage's proportions.
    losses, smoothed : list of float
        Of each step, and their exponential mean without its bias towards the start.
    suggestion : float
        Where the smoothed loss falls most steeply over the logarithm of the rate: good for `Stage.lr`.
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float

    def plot(self, path: Any) -> Any:
        """Draw the curve to a PNG, SVG or PDF; returns the path."""
        from pathlib import Path

        from .plotting import plot_rates

        return plot_rates(self.rates, self.losses, self.smoothed, self.suggestion, Path(path))


def find_lr(
    model: nn.Module,
    feed: Feed,
    training: Training,
    *,
    blocks: Sequence[Block],
    stage: int = 0,
    start: float = 1e-6,
    stop: float = 1.0,
    steps: int = 100,
    progress: bool | str | Progress | None = "auto",
) -> RateCurve:
    """Find a learning rate by a range test: it rises exponentially, step by step, until the loss explodes.

    Parameters
    ----------
    model : nn.Module
        As for `train`. Weights, buffers, modes and what has gradients are afterwards as before, bit by bit.
    feed : Feed
        Its training rows are used, in as many epochs as needed.
    training : Training
        Loss, mixing, precision, seed, device; and the stages.
    blocks : sequence of Block
        Of the model.
    stage : int, default=0
        Which stage of `training` the rate is for, from 0.
    start, stop : float, default=1e-6 and 1.0
        First and last learning rate of the head.
    steps : int, default=100
        At most so many.
    progress : {"auto", True, False} or Progress, default="auto"
        A bar on standard error.

    Returns
    -------
    RateCurve

    Raises
    ------
    FinetuneError
        For bounds that make no sense, or when the loss explodes at once.

    Notes
    -----
    Smith, Cyclical learning rates for training neural networks, WACV 2017. The point of the steepest descent, instead
    of the last one before the loss rises, is a rate with some room above it.

    Examples
    --------
    >>> find_lr(model, feed, training, blocks=blocks).suggestion  # doctest: +SKIP
    0.0023
    """
    if not 0 <= stage < len(training.stages) or not 0 < start < stop or steps < 10:
        raise FinetuneError(
            f"find_lr: expected a stage of the {len(training.stages)}, 0 < start < stop and 10 steps or more, got "
            f"stage={stage}, start={start}, stop={stop}, steps={steps}"
        )
    device = device_of(training.device)
    state = {name: value.detach().clone() for name, value in model.state_dict().items()}
    modes = {name: module.training for name, module in model.named_modules()}
    learning = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    place = next(model.parameters()).device
    try:
        with deterministic(), progress_for(progress) as bar:
            model.to(device)
            rates, losses = _rise(model, feed, training, blocks, stage, np.geomspace(start, stop, steps), bar)
    finally:
        model.to(place)
        _put_back(model, state, modes, learning)
    return _curve(rates, losses)


def _put_back(model: nn.Module, state: dict[str, Any], modes: dict[str, bool], learning: dict[str, bool]) -> None:
    with torch.no_grad():
        for name, value in model.state_dict().items():
            value.copy_(state[name])
    for name, module in model.named_modules():
        module.training = modes[name]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learning[name])
        parameter.grad = None


def _rise(
    model: nn.Module, feed: Feed, training: Training, blocks: Sequence[Block], number: int, rising: np.ndarray, bar: Any
) -> tuple[list[float], list[float]]:
    """Take a step at each rate; returns the rates and losses up to where the loss exploded."""
    stage: Stage = training.stages[number]
    held = set_modes(model, blocks, stage, stage.batch_norm or training.batch_norm)
    groups = groups_of(model, blocks, stage, frozen=held)
    shares = [group["lr"] / stage.lr for group in groups]
    optimizer = make_optimizer(stage, groups)
    device = next(model.parameters()).device
    rows = np.asarray(feed.rows["train"])
    objective = copy.copy(Objective.of(training, np.asarray(feed.labels)[rows], feed.classes)).to(device)
    stepper = Stepper(model, objective, optimizer, scaler_for(training.amp, device), training.amp, training.clip_norm)
    micro = MicroBatch(training.micro_batch, lambda text: None)
    rates, losses, lowest, mean = list[float](), list[float](), math.inf, 0.0
    bar.start("finding a learning rate", len(rising))
    for step, rate in enumerate(rising.tolist()):
        for group, share in zip(optimizer.param_groups, shares, strict=True):
            group["lr"] = rate * share
        try:
            loss = _step(stepper, feed, training, rows, stage.batch_size, number, step, micro)
        except NonFinite:
            break
        rates.append(rate)
        losses.append(loss)
        mean = _SMOOTH * mean + (1 - _SMOOTH) * loss
        smooth = mean / (1 - _SMOOTH ** (step + 1))
        lowest = min(lowest, smooth)
        bar.advance(1, f"lr {rate:.1e}, loss {loss:.4f}")
        if smooth > _TOO_HIGH * lowest and step > 10:
            break
    return rates, losses


def _step(
    stepper: Stepper,
    feed: Feed,
    training: Training,
    rows: np.ndarray,
    size: int,
    stage: int,
    step: int,
    micro: MicroBatch,
) -> float:
    per_epoch = max(1, len(rows) // size)
    order = epoch_order(feed.ids, rows, training.seed, stage, step // per_epoch)
    begin = step % per_epoch * size
    images, targets = feed.batch(order[begin : begin + size], stage, step // per_epoch, step, True)
    if training.mix is not None:
        with seeded(seed_of(training.seed, "mix", stage, "find_lr", step)):
            images, targets = training.mix(images, targets)
    number = seed_of(training.seed, "step", stage, "find_lr", step)
    return stepper.step(images, targets, micro, lambda: seeded(number, stepper.device), f"find_lr, step {step + 1}")


def _curve(rates: list[float], losses: list[float]) -> RateCurve:
    if len(rates) < 5:
        raise FinetuneError(
            f"find_lr: expected a loss that stays finite for some steps, got {len(rates)}; begin lower (start) or look "
            "at the images and the loss"
        )
    mean, smoothed = 0.0, []
    for i, loss in enumerate(losses):
        mean = _SMOOTH * mean + (1 - _SMOOTH) * loss
        smoothed.append(mean / (1 - _SMOOTH ** (i + 1)))
    # Beyond its lowest point a curve may fall again, from where it has exploded to.
    end = max(3, int(np.argmin(smoothed)) + 1)
    slope = np.gradient(np.asarray(smoothed[:end]), np.log(np.asarray(rates[:end])))
    skipped = min(len(slope) - 1, 5) if end > 10 else 0  # the mean of the first few steps is hardly one
    return RateCurve(rates, losses, smoothed, float(rates[skipped + int(np.argmin(slope[skipped:]))]))
