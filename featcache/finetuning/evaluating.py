"""Scores, loss and accuracy of a network on rows of a feed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from .feeding import Feed
from .losses import Objective
from .memory import MicroBatch, is_out_of_memory
from .stepping import autocast

__all__ = ["Judged", "judge", "scores_of"]


@dataclass(frozen=True)
class Judged:
    """Loss and accuracy on some rows.

    Parameters
    ----------
    loss : float
        Mean, weighted as the training loss is.
    accuracy : float
        Share of the rows whose class has the largest score.
    """

    loss: float
    accuracy: float

    def better_than(self, other: Judged | None) -> bool:
        """Whether the accuracy is higher, or the same and the loss lower."""
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and each of its modules back into its own after that."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module in training:
            module.training = True


def scores_of(
    model: nn.Module, feed: Feed, rows: np.ndarray, *, batch_size: int = 32, amp: bool | str = False
) -> np.ndarray:
    """Return the scores of rows, without augmentation.

    Parameters
    ----------
    model : nn.Module
        The network; its modes are left as they are.
    feed : Feed
        Where the rows come from.
    rows : ndarray of int
        Which.
    batch_size : int, default=32
        How many go through the network at once; fewer when memory runs out.
    amp : {False, True, "bf16", "fp16"}, default=False
        As in `Training`.

    Returns
    -------
    ndarray of float32 of shape (n_rows, n_classes)
    """
    return _scores(model, feed, rows, batch_size, MicroBatch(None, lambda text: None), amp, "scores")


def _scores(
    model: nn.Module, feed: Feed, rows: np.ndarray, batch: int, micro: MicroBatch, amp: bool | str, where: str
) -> np.ndarray:
    device, done, found = next(model.parameters()).device, 0, []
    with evaluating(model):
        while done < len(rows):
            taken = rows[done : done + micro.of(batch)]
            try:
                images, _ = feed.batch(taken, 0, 0, 0, False)
                with autocast(amp, device):
                    found.append(model(images.to(device)).float().cpu().numpy())
                done += len(taken)
                continue
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            micro.halve(batch, where)
    return np.concatenate(found) if found else np.zeros((0, len(feed.classes)), np.float32)


def judge(
    model: nn.Module,
    feed: Feed,
    rows: np.ndarray,
    objective: Objective,
    *,
    batch: int,
    micro: MicroBatch,
    amp: bool | str,
    where: str,
) -> Judged:
    """Return loss and accuracy on rows; `where` names the moment in messages."""
    scores = torch.from_numpy(_scores(model, feed, rows, batch, micro, amp, where))
    targets = torch.from_numpy(np.asarray(feed.labels)[rows])
    device = next(model.parameters()).device
    with torch.no_grad():
        total = objective.sum(scores.to(device), targets.to(device))
    loss = float(total) / max(objective.total(targets), 1e-12)
    return Judged(loss, float((scores.argmax(1) == targets).double().mean()))
