"""Where a run is: all of it that is no tensor, as JSON types."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from .evaluating import Judged

__all__ = ["Place"]

#: Losses of single steps that an epoch's row in the history keeps, evenly spaced; all of them in most runs.
_MOST_LOSSES = 1000


@dataclass
class Place:
    """Where a run is, between two steps of the optimiser.

    Parameters
    ----------
    stage, epoch, step : int
        What comes next, from 0. After the last epoch of a stage `epoch` is the number of its epochs.
    taken : int
        Steps taken in all.
    loss, count, seconds : float, int, float
        Of the epoch so far: sum of the losses, images, time.
    losses : list of float
        Of each step of the epoch so far.
    waited : int
        Epochs of this stage in a row that have brought nothing better.
    stage_best : list of float or None
        Loss and accuracy that they are compared with.
    stopped : bool
        Whether the stage was ended early.
    best : dict or None
        "stage", "epoch", "loss", "accuracy", "file" of the best epoch of all.
    limit : int or None
        How many images go through the network at once, where memory has run out.
    anchor : str
        File of the weights with only the head trained.
    history : list of dict
        One row per epoch.
    notes : list of str
        What was said.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    taken: int = 0
    loss: float = 0.0
    count: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    waited: int = 0
    stage_best: list[float] | None = None
    stopped: bool = False
    best: dict[str, Any] | None = None
    limit: int | None = None
    anchor: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """Return the place as JSON types."""
        return dataclasses.asdict(self)

    def add(
        self, name: str, epoch: int, loss: float | None, judged: Judged | None, rates: dict[str, float], micro: int
    ) -> None:
        """Add an epoch of the present stage (0: the evaluation before the first one) to the history."""
        self.history.append(
            {
                "stage": self.stage + 1,
                "name": name,
                "epoch": epoch,
                "train_loss": loss,
                "step_losses": self.losses[:: -(-len(self.losses) // _MOST_LOSSES) or 1],
                "val_loss": None if judged is None else judged.loss,
                "val_accuracy": None if judged is None else judged.accuracy,
                "lr": rates,
                "seconds": round(self.seconds, 3),
                "images_per_second": round(self.count / self.seconds, 1) if self.seconds else None,
                "micro_batch": micro,
            }
        )

    def is_best(self, judged: Judged) -> bool:
        """Whether nothing better came before."""
        return judged.better_than(None if self.best is None else Judged(self.best["loss"], self.best["accuracy"]))

    def remember_best(self, judged: Judged, file: str) -> None:
        """Take the epoch that was added last for the best of all."""
        row = self.history[-1]
        self.best = {"stage": row["stage"], "epoch": row["epoch"], "file": file}
        self.best |= {"loss": judged.loss, "accuracy": judged.accuracy}

    def next_epoch(self) -> None:
        """Go on to the next epoch of the stage."""
        self.epoch, self.step, self.loss, self.count, self.seconds = self.epoch + 1, 0, 0.0, 0, 0.0
        self.losses = []

    def next_stage(self) -> None:
        """Go on to the next stage."""
        self.stage, self.epoch, self.waited, self.stage_best, self.stopped = self.stage + 1, 0, 0, None, False

    def wait(self, judged: Judged, patience: int | None) -> None:
        """Compare an epoch with the best one of its stage, and end the stage when nothing better came for long."""
        best = None if self.stage_best is None else Judged(*self.stage_best)
        if judged.better_than(best):
            self.stage_best, self.waited = [judged.loss, judged.accuracy], 0
            return
        self.waited += 1
        self.stopped = patience is not None and self.waited >= patience
