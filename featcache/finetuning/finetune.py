"""`finetune`: from a head on cached codes to a trained network, and whether that was worth it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backbone import Backbone
from ..errors import FinetuneError
from ..files import publish_bytes
from ..handoff.modules import to_module
from ..handoff.opening import open_head
from ..heads import FittedHead
from ..progress import Progress
from ..sources import ImageSource
from .outcome import Outcome, outcome_of
from .settings import STRATEGIES, Stage, Training, strategy
from .starting import refitted, said_of, seen_by

if TYPE_CHECKING:
    from torch import nn

    from .blocks import Block
    from .feeding import ImageFeed

__all__ = ["FineTuned", "finetune"]

_STARTS = ("auto", "head", "fresh", "scratch")


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A trained network, how it came about, and what it is worth.

    Parameters
    ----------
    module : nn.Module
        Normalised images (N, C, H, W) → scores (N, n_classes); in eval mode, on the CPU.
    classes : tuple of str
        In the order of the scores.
    folder : Path
        Of the run: checkpoints, history.json, curves.png, outcome.json, model.bundle.
    history : list of dict
        One line per epoch; the first, epoch 0, is before any training.
    outcome : Outcome or None
        The comparison with the head, on test images, or else on validation images; None where there are neither.
    notes : tuple of str
        What the user should know, one sentence each.
    bundle : Path or None
        The file that `predict` and `load_bundle` take; None for a network that cannot be bundled.
    """

    module: nn.Module
    classes: tuple[str, ...]
    folder: Path
    history: list[dict[str, Any]]
    outcome: Outcome | None
    notes: tuple[str, ...] = ()
    bundle: Path | None = None
    settings: dict[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        said = "no outcome" if self.outcome is None else self.outcome.verdict
        return f"FineTuned({len(self.history) - 1} epochs, {len(self.classes)} classes: {said})"

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the network, in JSON types."""
        return {
            "folder": str(self.folder),
            "bundle": None if self.bundle is None else str(self.bundle),
            "classes": list(self.classes),
            "epochs": len(self.history) - 1,
            "history": self.history,
            "outcome": None if self.outcome is None else self.outcome.as_dict(),
            "notes": list(self.notes),
            "settings": self.settings,
        }
