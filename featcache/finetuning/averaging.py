"""Means of weights: over the last epochs (SWA), over all steps (EMA), and between two networks (WiSE-FT)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from .evaluating import Judged
from .modes import learning_norms
from .settings import Stage, Training

__all__ = ["ALPHAS", "average_of", "between", "choose_alpha", "first_averaged", "refresh_norms"]

#: Where between two networks "auto" looks.
ALPHAS = tuple(i / 10 for i in range(11))


def average_of(model: nn.Module, training: Training) -> AveragedModel | None:
    """Return the running mean of a network's weights that the settings ask for; None for none."""
    if training.average == "none":
        return None
    # Copied while the caller's random state is not at stake: a copy of a network draws no numbers.
    rule = get_ema_multi_avg_fn(training.ema_decay) if training.average == "ema" else None
    return AveragedModel(model, multi_avg_fn=rule)


def first_averaged(stage: Stage, training: Training) -> int:
    """Return the first epoch of the last stage, from 1, whose weights count with "swa".

    Examples
    --------
    >>> first_averaged(Stage("all", epochs=8), Training(Stage(), average="swa"))
    7
    """
    return training.average_from or math.floor(0.75 * stage.span) + 1


def between(anchor: Mapping[str, Tensor], final: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Return ``(1 - alpha) anchor + alpha final``, tensor by tensor; whole numbers are the final ones.

    At 0 and 1 it is the anchor and the final network bit by bit.
    """
    if alpha in (0.0, 1.0):
        return {name: (final if alpha else anchor)[name].clone() for name in final}
    return {
        name: torch.lerp(anchor[name].to(value), value, alpha) if value.is_floating_point() else value.clone()
        for name, value in final.items()
    }


def choose_alpha(judged: Callable[[float], Judged]) -> tuple[float, list[tuple[float, Judged]]]:
    """Return the best place between two networks by its accuracy, then its loss, and all that was tried."""
    tried = [(alpha, judged(alpha)) for alpha in ALPHAS]
    best = tried[0]
    for alpha, value in tried[1:]:
        if value.better_than(best[1]):
            best = (alpha, value)
    return best[0], tried


@torch.no_grad()
def refresh_norms(model: nn.Module, batches: Callable[[], object]) -> bool:
    """Estimate the running statistics of the batch norms that are in training mode anew.

    As `torch.optim.swa_utils.update_bn` does, but frozen batch norms keep theirs, and dropout stays off: the statistics
    are those of the network as it will be used.

    Parameters
    ----------
    model : nn.Module
        In the modes of its last stage; comes back in evaluation mode.
    batches : callable
        Returns the batches to run through the network: an iterable of tensors on its device.

    Returns
    -------
    bool
        Whether there were such batch norms.
    """
    norms = learning_norms(model)
    if not norms:
        return False
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    try:
        for images in batches():  # type: ignore[attr-defined]
            model(images)
    finally:  # out of memory: the caller tries again
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()
    return True
