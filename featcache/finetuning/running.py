"""`train`: the loop over stages, epochs and steps, from wherever the last checkpoint left it."""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import FinetuneError
from ..progress import Progress, progress_for
from .at_work import AtWork
from .blocks import Block
from .checkpoints import Checkpoints
from .evaluating import Judged, judge
from .feeding import Feed, fed
from .finishing import Trained, finish
from .losses import Objective
from .memory import MicroBatch, OutOfMemory
from .place import Place
from .rates import trained_blocks
from .records import Record, write_json
from .seeding import epoch_order, seed_of, seeded
from .settings import Stage, Training
from .stepping import NonFinite, deterministic, device_of

__all__ = ["StageView", "Trained", "train"]

#: (number of the stage, Stage) → what it trains and what goes into that.
StageView = Callable[[int, Stage], tuple[nn.Module, Feed]]


def train(
    model: nn.Module,
    feed: Feed,
    training: Training,
    folder: str | os.PathLike[str],
    *,
    blocks: Sequence[Block],
    stage_view: StageView | None = None,
    about: Mapping[str, Any] | None = None,
    progress: bool | str | Progress | None = "auto",
    resume: bool = True,
    extend_command: str = "",
    say: Callable[[str], None] | None = None,
    before_unfreezing: Callable[[nn.Module], Any] | None = None,
) -> Trained:
    """Train a network in stages; killed, it goes on where it was when it is called again.

    Parameters
    ----------
    model : nn.Module
        As it is before the first step; what `feed` gives → scores (N, n_classes). Changed in place: it comes back with
        the final weights, in evaluation mode, on the device that it was trained on.
    feed : Feed
        Batches: an `ImageFeed`, or activations at a cut with the network above it.
    training : Training
        The settings.
    folder : path-like
        Of this run: settings, checkpoints, history, curves, final weights. Made where it is missing.
    blocks : sequence of Block
        Of the model, from the input to the output; parameters in none of them are the head's.
    stage_view : callable, default=None
        (number of the stage from 0, Stage) → (network, Feed) that the stage trains on: a part of `model`, sharing its
        modules, and what goes into it, such as activations at a cut below which all is frozen. None = `model` and
        `feed`.
    about : mapping, default=None
        What else the run depends on, in JSON types, for its record.
    progress : {"auto", True, False} or Progress, default="auto"
        A bar on standard error.
    resume : bool, default=True
        Go on with the run in the folder, which must have the same settings; only the last stage may have more epochs.
        False: the folder must have no run.
    extend_command : str, default=""
        What the user types to let the last stage go on; said when the loss still falls at the end.
    say : callable, default=None
        Told each message; None = standard error, or nothing with ``progress=False``.
    before_unfreezing : callable, default=None
        Called once with the network, before the first stage that trains more than the head; may change it in place.

    Returns
    -------
    Trained

    Raises
    ------
    FinetuneError
        When settings, images and network do not fit each other or the run in the folder, when the loss is no number any
        more, or when memory does not suffice for one image.

    Notes
    -----
    On one machine with one number of threads the result is the same bit by bit, however often the run was interrupted:
    orders, augmentation, mixing and dropout depend on the seed and the place in the run. The caller's random states are
    left as they are.

    Examples
    --------
    >>> from featcache.finetuning import ImageFeed, Training, blocks_of, strategy, train
    >>> blocks = blocks_of(model)  # doctest: +SKIP
    >>> feed = ImageFeed("flowers/", recipe, classes=model.classes)  # doctest: +SKIP
    >>> train(model, feed, Training(strategy("gradual", len(blocks))), "run", blocks=blocks)  # doctest: +SKIP
    """
    told = say or ((lambda text: None) if progress in (False, None) else _to_stderr)
    with deterministic(), progress_for(progress) as bar:
        run = Run(model, feed, training, Path(folder), blocks, bar, told, stage_view)
        run.about, run.before_unfreezing = dict(about or {}), before_unfreezing
        run.open(resume)
        run.go()
        return finish(run, extend_command)


def _to_stderr(text: str) -> None:
    sys.stderr.write(f"{text}\n")


class Run:
    """A run in progress: what it trains, where it is, and what belongs to its present stage."""

    def __init__(
        self,
        model: nn.Module,
        feed: Feed,
        training: Training,
        folder: Path,
        blocks: Sequence[Block],
        bar: Progress,
        say: Callable[[str], None],
        stage_view: StageView | None = None,
    ) -> None:
        self.stage_view = stage_view or (lambda index, stage: (model, feed))
        self.seen: tuple[nn.Module, Feed] = (model, feed)  # by the present stage
        self.model, self.feed, self.training, self.folder = model, feed, training, folder
        self.blocks, self.bar, self._say = tuple(blocks), bar, say
        self.stages: tuple[Stage, ...] = tuple(training.stages)
        for stage in self.stages:
            trained_blocks(stage.unfreeze, self.blocks)  # what does not fit is refused before anything is written
        self.device = device_of(training.device)
        model.to(self.device)
        self.rows = np.asarray(feed.rows["train"])
        self.val = np.asarray(feed.rows.get("val", []), dtype=np.intp)
        if not len(self.rows):
            raise FinetuneError("images: expected some that train, got none; check the parts")
        labels = np.asarray(feed.labels)[self.rows]
        self.objective = Objective.of(training, labels, feed.classes).to(self.device)
        self.about: dict[str, Any] = {}
        self.before_unfreezing: Callable[[nn.Module], Any] | None = None
        self.place = Place()
        self.micro = MicroBatch(training.micro_batch, self.say)
        self.pending: dict[str, Any] = {}
        self.work: AtWork | None = None
        self.saved_at = time.monotonic()

    # ------------------------------------------------------------------------------------------------ what is said

    def say(self, text: str) -> None:
        """Tell the user, and remember it."""
        if text not in self.place.notes:  # said before by the part of the run that is repeated
            self.place.notes.append(text)
        self._say(text)

    def where(self, moment: str = "") -> str:
        """Name the present moment."""
        place = self.place
        name = f"stage {place.stage + 1} ({self.stages[place.stage].title}), epoch {place.epoch + 1}"
        return f"{name}, {moment or f'step {place.step + 1}'}"

    # ------------------------------------------------------------------------------------------------ begin and go on

    def open(self, resume: bool) -> None:
        """Begin the run, or take up its last checkpoint."""
        record = Record(self.folder, self.model, self.feed, self.training, self.blocks, self.about)
        record.open(resume)
        self.checkpoints = Checkpoints(self.folder, self._say)
        if not self._take_up():
            self._first_evaluation()
            return
        for note in record.notes:
            self.say(note)
        if record.extended:
            if self.place.stopped:  # asked for more of a stage that was ended early
                self.place.stopped, self.place.waited = False, 0
            self._keep(self.pending)
            record.accept()

    def _take_up(self) -> bool:
        found = self.checkpoints.load()
        if found is None:
            return False
        self.place, self.pending = found
        self.model.load_state_dict(self.pending["model"])
        self.micro = MicroBatch(self.place.limit or self.training.micro_batch, self.say)
        return True

    def _first_evaluation(self) -> None:
        self.model.eval()
        self._write_down(0, None, self._judge("first evaluation"), {})
        self.save()

    def go(self) -> None:
        """Train until the last stage is done."""
        while True:
            try:
                self._stage()
                if self.place.stage == len(self.stages) - 1:
                    return
                self.place.next_stage()
            except OutOfMemory:
                self._roll_back()

    def _roll_back(self) -> None:
        """Memory ran out while weights changed: begin again at the last checkpoint, with half of the images at once."""
        batch, where, limit = self.stages[self.place.stage].batch_size, self.where(), self.micro.limit
        self.work, self.seen = None, (self.model, self.feed)  # their tensors go before new ones come
        if not self._take_up():
            raise FinetuneError(f"{where}: out of memory, and no checkpoint can be read; run again")
        self.micro.limit = limit
        self.micro.halve(batch, where)

    # ------------------------------------------------------------------------------------------------ a stage

    def _stage(self) -> None:
        stage = self.stages[self.place.stage]
        work = self.work = self._enter(stage)
        images = len(self.rows)
        self.bar.start(f"stage {self.place.stage + 1}/{len(self.stages)} {stage.title}", stage.epochs * images)
        self.bar.advance(min(self.place.epoch * images + self.place.step * stage.batch_size, stage.epochs * images))
        while self.place.epoch < stage.epochs and not self.place.stopped:
            self._epoch(stage, work)
        if self.place.stopped:
            self.say(
                f"stage {self.place.stage + 1} ({stage.title}) ended after epoch {self.place.epoch}: nothing better in "
                f"{self.training.patience} epochs"
            )

    def _enter(self, stage: Stage) -> AtWork:
        """Set up what the stage needs, as it was where a checkpoint was taken up."""
        self._unfreeze()
        left = self.place.epoch < stage.epochs and not self.place.stopped
        self.seen = self.stage_view(self.place.stage, stage) if left else (self.model, self.feed)
        network = self.seen[0].to(self.device)
        steps = len(self._batches(stage))
        work = AtWork(self.model, self.blocks, stage, self.training, self.objective, steps, self._last(), network)
        work.load(self.pending)
        self.pending = {}
        micro = self.micro.of(stage.batch_size)
        if work.stepper.norms and micro < stage.batch_size:
            self.say(f"stage {self.place.stage + 1} ({stage.title}): batch norms see {micro} images at once")
        return work

    def _last(self) -> bool:
        return self.place.stage == len(self.stages) - 1

    def _unfreeze(self) -> None:
        """Just before the first step that trains more than the head: change the network, keep it for WiSE-FT.

        No checkpoint is taken between this and the first step, so a resumed run does it neither twice nor never.
        """
        place, first = self.place, [i for i, s in enumerate(self.stages) if s.unfreeze != "head"]
        if not first or (place.stage, place.epoch, place.step) != (first[0], 0, 0):
            return
        if self.before_unfreezing is not None:
            self.before_unfreezing(self.model)
        if self.training.interpolate is not None:
            place.anchor = self.checkpoints.save_weights("anchor", self.model.state_dict())

    def _batches(self, stage: Stage) -> list[slice]:
        """Return where an epoch's batches begin and end; a last one of one image joins the one before it."""
        n, size = len(self.rows), stage.batch_size
        starts = list(range(0, n, size))
        if len(starts) > 1 and n - starts[-1] == 1:
            starts.pop()
        return [slice(a, b) for a, b in zip(starts, [*starts[1:], n], strict=True)]

    # ------------------------------------------------------------------------------------------------ an epoch

    def _epoch(self, stage: Stage, work: AtWork) -> None:
        place, batches = self.place, self._batches(stage)
        order = epoch_order(self.feed.ids, self.rows, self.training.seed, place.stage, place.epoch)
        began = time.monotonic()
        for images, targets in fed(
            self.seen[1], [order[batch] for batch in batches], place.stage, place.epoch, place.step
        ):
            n = len(images)
            work.schedule.before(place.epoch * len(batches) + place.step)
            loss, rates = self._step(images, targets, work), work.schedule.rates()
            work.after_step()
            place.loss, place.count = place.loss + loss * n, place.count + n
            place.losses.append(loss)
            place.step, place.taken = place.step + 1, place.taken + 1
            now = time.monotonic()
            place.seconds, began = place.seconds + now - began, now
            self.bar.advance(n, self._remark(stage, rates))
            if place.step < len(batches) and now - self.saved_at >= 60 * self.training.checkpoint_minutes:
                self.save()
        self._close_epoch(work, rates)

    def _step(self, images: Tensor, targets: Tensor, work: AtWork) -> float:
        place, seed = self.place, self.training.seed
        here = (place.stage, place.epoch, place.step)
        if self.training.mix is not None:
            with seeded(seed_of(seed, "mix", *here)):
                images, targets = self.training.mix(images, targets)
        number = seed_of(seed, "step", *here)
        return work.stepper.step(images, targets, self.micro, lambda: seeded(number, self.device), self.where())

    def _remark(self, stage: Stage, rates: dict[str, float]) -> str:
        place = self.place
        last = place.history[-1] if place.history else {}
        val = "" if last.get("val_accuracy") is None else f", val {last['val_accuracy']:.1%}"
        loss = place.loss / max(1, place.count)
        return f"epoch {place.epoch + 1}/{stage.epochs}, loss {loss:.4f}, lr {max(rates.values()):.1e}{val}"

    def _close_epoch(self, work: AtWork, rates: dict[str, float]) -> None:
        place, judged = self.place, self._judge("evaluation")
        loss = place.loss / max(1, place.count)
        work.after_epoch(place.epoch + 1, loss if judged is None else judged.loss)
        self._write_down(place.epoch + 1, loss, judged, rates)
        if judged is not None:
            place.wait(judged, self.training.patience)
        place.next_epoch()
        self.save()

    def _judge(self, moment: str) -> Judged | None:
        """Return loss and accuracy on the validation rows; None without such rows."""
        if not len(self.val):
            return None
        judged = judge(
            *self.seen,
            self.val,
            self.objective,
            batch=self.stages[self.place.stage].batch_size,
            micro=self.micro,
            amp=self.training.amp,
            where=self.where(moment),
        )
        if not math.isfinite(judged.loss):
            raise NonFinite(
                f"{self.where(moment)}: expected a finite validation loss, got {judged.loss}; lower the learning rates "
                "(find_lr) or set clip_norm=1.0. The last checkpoint is kept"
            )
        return judged

    def _write_down(self, epoch: int, loss: float | None, judged: Judged | None, rates: dict[str, float]) -> None:
        """Add an epoch to the history, and keep its weights where they are the best so far."""
        stage = self.stages[self.place.stage]
        micro = self.micro.of(stage.batch_size)
        self.place.add(stage.title, epoch, loss, judged, rates, micro)
        if judged is not None and self.place.is_best(judged):
            restore = self.training.restore_best
            file = self.checkpoints.save_weights("best", self.model.state_dict()) if restore else ""
            self.place.remember_best(judged, file)

    # ------------------------------------------------------------------------------------------------ checkpoints

    def save(self) -> None:
        """Write a checkpoint of the present place; NonFinite where a weight is no number any more."""
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and not bool(torch.isfinite(parameter).all()):
                raise NonFinite(
                    f"{self.where()}: expected finite weights, got others in {name}; lower the rates (find_lr) "
                    "or set clip_norm=1.0. The last checkpoint is kept"
                )
        self._keep({"model": self.model.state_dict(), **({} if self.work is None else self.work.state())})

    def _keep(self, state: dict[str, Any]) -> None:
        self.place.limit = self.micro.limit
        self.checkpoints.save(self.place, state)
        self.saved_at = time.monotonic()
        write_json(self.folder / "history.json", {"history": self.place.history, "notes": self.place.notes})
