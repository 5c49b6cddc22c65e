"""How large a network's scores are: small enough to learn from when blocks begin to train, calibrated at the end.

Dividing all scores by one number changes no class that a network says, only how sure it is. A head fitted on the
training images is so sure of them that their loss has little slope left; with its scores divided it says the same, and
all below it learns about as fast as under a random head. At the end the number comes from the validation images
(temperature scaling: Guo et al., On calibration of modern neural networks, ICML 2017).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from ..heads.calibration import fit_temperature
from .evaluating import scores_of
from .feeding import ImageFeed

__all__ = ["SOFTENING", "calibrate", "divide_scores"]

#: By what the scores of a fitted head are divided when blocks begin to train, not before: a stage that trains the head
#: alone would overwrite what `fit` has found. Chosen on draws that no benchmark uses.
SOFTENING = 10.0


def _is_plain(head: Any) -> bool:
    """Whether a layer's scores are its weights' alone: not where something computes the weights anew each time."""
    return type(head) is nn.Linear and "weight" in dict(head.named_parameters(recurse=False))


def divide_scores(model: nn.Module, number: float) -> bool:
    """Divide a network's scores, in its last layer; False where it has no linear one, and nothing was changed."""
    head: Any = getattr(model, "head", None)
    if not _is_plain(head):
        return False
    with torch.no_grad():
        head.weight.div_(number)
        if head.bias is not None:
            head.bias.div_(number)
    return True


def calibrate(model: nn.Module, feed: ImageFeed, *, device: str = "cpu") -> float | None:
    """Divide a network's scores so that their softmax fits the validation images.

    Parameters
    ----------
    model : nn.Module
        Changed in place; on the CPU afterwards.
    feed : ImageFeed
        The images.
    device : str, default="cpu"
        Where to compute.

    Returns
    -------
    float or None
        The temperature; None without validation images, or for a network without a linear last layer.
    """
    rows: Any = np.asarray(feed.rows.get("val", []), dtype=np.intp)
    if not len(rows) or not _is_plain(getattr(model, "head", None)):
        return None
    scores = scores_of(model.to(device), feed, rows)
    model.cpu()
    temperature = fit_temperature(scores.astype(np.float64), feed.labels[rows])
    divide_scores(model, temperature)
    return temperature
