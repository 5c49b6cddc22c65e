"""The loss of an effective batch as a sum over its parts, so that it does not matter how many parts there are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import FinetuneError
from .settings import Training

__all__ = ["Objective", "class_weights"]


def class_weights(wanted: Any, labels: np.ndarray, classes: Sequence[str]) -> Tensor | None:
    """Return one weight per class, or None.

    Parameters
    ----------
    wanted : None, "balanced", sequence of float or dict
        As `Training.class_weight`.
    labels : ndarray of int64
        Codes of the training rows.
    classes : sequence of str
        What the codes mean.

    Returns
    -------
    Tensor of shape (n_classes,) or None
        float32. "balanced": n / (n_classes * rows of the class), as in scikit-learn; 0 for a class without rows.

    Raises
    ------
    FinetuneError
        When the weights do not fit the classes.
    """
    if wanted is None:
        return None
    if isinstance(wanted, str):
        if wanted != "balanced":
            raise FinetuneError(f"class_weight: expected 'balanced', one number per class or a dict, got {wanted!r}")
        counts = np.bincount(labels, minlength=len(classes)).astype(np.float64)
        values = np.divide(counts.sum(), len(classes) * counts, out=np.zeros_like(counts), where=counts > 0)
    elif isinstance(wanted, dict):
        unknown = [name for name in wanted if str(name) not in set(classes)]
        if unknown:
            raise FinetuneError(f"class_weight: expected names of classes ({', '.join(classes)}), got {unknown[0]!r}")
        named = {str(name): value for name, value in wanted.items()}
        values = np.asarray([float(named.get(name, 1.0)) for name in classes])
    else:
        values = np.asarray(wanted, dtype=np.float64)
    if values.shape != (len(classes),) or not np.isfinite(values).all() or (values < 0).any() or not values.any():
        raise FinetuneError(f"class_weight: expected {len(classes)} numbers of 0 or more, got {wanted!r}")
    return torch.from_numpy(values).to(torch.float32)


class Objective:
    """A loss of which parts of a batch can be added up.

    Parameters
    ----------
    loss : callable
        Cross entropy of torch is summed and divided by the weights of the whole batch; of any other loss, the value is
        taken for the mean over the rows given to it (one value per row: their sum is taken).
    """

    def __init__(self, loss: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.loss: Any = loss
        self.weight: Tensor | None = None
        self.cross_entropy = type(loss) is nn.CrossEntropyLoss and loss.reduction == "mean"
        if self.cross_entropy:
            self.loss = copy.deepcopy(loss)
            self.loss.reduction = "sum"
            self.weight = self.loss.weight

    @classmethod
    def of(cls, training: Training, labels: np.ndarray, classes: Sequence[str]) -> Objective:
        """Return the objective that the settings ask for."""
        if training.loss is not None:
            return cls(training.loss)
        return cls(nn.CrossEntropyLoss(weight=class_weights(training.class_weight, labels, classes)))

    def to(self, device: torch.device) -> Objective:
        """Move the weights of the classes."""
        if isinstance(self.loss, nn.Module):
            self.loss = self.loss.to(device)
        if self.weight is not None:
            self.weight = self.weight.to(device)
        return self

    def total(self, targets: Tensor) -> float:
        """Return what the sums over a whole batch are divided by."""
        if not self.cross_entropy or targets.is_floating_point():
            return float(len(targets))
        counted = targets != self.loss.ignore_index
        if self.weight is None:
            return float(counted.sum())
        return float(self.weight.to(targets.device)[targets[counted]].sum())

    def sum(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the sum over the rows given, with its gradient."""
        value = self.loss(scores, targets)
        if self.cross_entropy:
            return value
        if value.ndim:
            return value.sum()
        return value if getattr(self.loss, "reduction", "") == "sum" else value * len(targets)
