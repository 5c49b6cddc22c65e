"""`finetune`: from a head on cached codes to a trained network, and whether that was worth it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backbone import Backbone
from ..heads import FittedHead
from ..progress import Progress
from ..sources import ImageSource
from .outcome import Outcome
from .settings import Stage, Training

if TYPE_CHECKING:
    from torch import nn

__all__ = ["FineTuned", "finetune"]


@dataclass(frozen=True, eq=False)
class FineTuned:
    """A trained network, how it came about, and what it is worth.

    Parameters
    ----------
    module : nn.Module
        Normalised images (N, C, H, W) → scores (N, n_classes), in eval mode, on the CPU. Where there are validation
        images, the loss is the default one, and the last layer is linear, the scores are calibrated on them.
    classes : tuple of str
        In the order of the scores.
    folder : Path
        Of the run: checkpoints, history.json, curves.png, outcome.json, model.bundle.
    history : list of dict
        One line per epoch; the first, epoch 0, is before any training.
    outcome : Outcome or None
        The comparison with the head, on test images, or else on validation images; None where there are neither.
    notes : tuple of str, default=()
        What the user should know, one sentence each.
    bundle : Path or None, default=None
        The file that `predict` and `load_bundle` take; None for a network that cannot be bundled.
    settings : dict, default={}
        What the run was asked for, its start, the number of images per part, seconds of extracting activations, the
        temperature that calibrated the scores (final.safetensors has the weights before it).
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
        return f"FineTuned(epochs={len(self.history) - 1}, classes={len(self.classes)}: {said})"

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


def finetune(
    head: FittedHead | str | os.PathLike[str] | nn.Module,
    source: ImageSource | str | os.PathLike[str] | Any,
    out: str | os.PathLike[str],
    *,
    stages: str | Stage | Sequence[Stage] | Training = "gradual",
    start: str = "auto",
    epochs: int | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    backbone_lr: float | None = None,
    schedule_epochs: int | None = None,
    augment: str | Callable[[Any], Any] | None = None,
    n_views: int | None = None,
    mix: Callable[..., Any] | None = None,
    loss: Callable[..., Any] | None = None,
    class_weight: Any = None,
    batch_norm: str | None = None,
    patience: int | None = None,
    average: str | None = None,
    interpolate: float | str | None = None,
    micro_batch: int | None = None,
    amp: bool | str | None = None,
    checkpoint_minutes: float | None = None,
    val_size: float = 0.2,
    test_size: float = 0.2,
    seed: int | None = None,
    cache: bool | str = "auto",
    compare_with: FittedHead | str | os.PathLike[str] | None = None,
    weights: Any = None,
    backbone: Backbone | None = None,
    workers: int | None = None,
    max_failed: float = 0.01,
    device: str | None = None,
    command: str = "",
    progress: bool | str | Progress | None = "auto",
) -> FineTuned:
    """Train backbone and head further, from the head's own accuracy, and say whether it was worth it.

    A run that was killed goes on by the same call, bit for bit; a finished one is extended by the same call with more
    epochs. While blocks stay frozen and images are plain or recorded views, they run once.

    Parameters
    ----------
    head : FittedHead, path, or nn.Module
        A linear head, or the network that `to_module` or `assemble` made of one.
    source : ImageSource or anything `ImageSource.open` takes
        Labelled images. A split column names what trains, judges each epoch, and tests; without one `val_size` and
        `test_size` of the images, class by class, are held out.
    out : path
        Folder of the run: checkpoints, history.json, curves.png, outcome.json, final.safetensors, model.bundle.
    stages : str, Stage, sequence of Stage, or Training, default="gradual"
        "head", "last-1", "last-2", "gradual" (the head, then the last quarter of the blocks, then all), "all" or
        "scratch"; or stages of your own; or a `Training`, which says all that the other settings say.
    start : {"auto", "head", "fresh", "scratch"}, default="auto"
        "head": the head as it is. "auto": the same, but its scores are divided by ten when blocks begin to train, so
        that their loss has a slope to learn from (not with a loss of your own); and where it has seen the images that
        judge or test, one of its kind fitted on the training images alone. Of a network that is given both mean the
        network as it is. "fresh": a random last layer. "scratch": random weights throughout (what "auto" means with
        the stages "scratch").
    epochs, batch_size, lr : optional
        Of the named strategy: 10 in all, 32 images per step (four times as many where only the head trains), 1e-3 for
        a fitted head and 3e-3 for a new one or a network that is given. See `strategy`.
    backbone_lr : float, default=None
        Of the last block, in all stages; None = three tenths of a fitted head's, a tenth of another's.
    schedule_epochs : int, default=None
        Of a named strategy: as many epochs in all as the run may be extended to, so that its schedule is that of the
        longer run.
    augment, n_views, mix, loss, class_weight, batch_norm, patience, average, interpolate, micro_batch, amp, \
checkpoint_minutes, seed, device : optional
        As in `Training`.
    val_size, test_size : float, default=0.2
        Shares that are held out where no split column names a training part: to choose the epoch (0: the last one
        counts), and to compare head and network (0: no verdict).
    cache : {"auto", True, False}, default="auto"
        Whether the frozen part's activations are stored. "auto": where they fit the disk, and with views where epochs
        repay it; what was decided is kept with the run. True refuses what cannot be cached: augmentation other than
        "views", mixed precision, networks that cannot be split.
    compare_with : FittedHead or path, default=None
        What the outcome is compared with, where `head` is a network (which is copied); None = the network as given.
    weights, backbone
        As for `predict`.
    workers : int, default=None
        Threads that read and decode.
    max_failed : float, default=0.01
        Share of the images that may be unreadable; they are left out, and said.
    command : str, default=""
        What the advice to extend the run says; filled in by the command line.
    progress : {"auto", True, False} or Progress, default="auto"
        Bars on standard error.

    Returns
    -------
    FineTuned

    Raises
    ------
    FinetuneError
        Settings, images or folder that do not fit; the message says what differs.
    HandoffError, HeadError, WeightsError
        As for `to_module`.

    Notes
    -----
    To begin with the fitted head and then train everything is LP-FT (Kumar et al., ICLR 2022).

    Examples
    --------
    >>> import featcache as fc
    >>> done = fc.finetune("flowers.head", "flowers/", "flowers-run", stages="last-2")  # doctest: +SKIP
    >>> done.outcome.verdict  # doctest: +SKIP
    'fine-tuning was worth it: +2.4 points [+0.9, +3.9] on 800 test images'
    """
    given = {
        "augment": augment, "n_views": n_views, "mix": mix, "loss": loss, "class_weight": class_weight,
        "batch_norm": batch_norm, "patience": patience, "average": average, "interpolate": interpolate,
        "micro_batch": micro_batch, "amp": amp, "checkpoint_minutes": checkpoint_minutes, "seed": seed,
        "device": device,
    }  # fmt: skip
    rates = {"backbone_lr": backbone_lr, "schedule_epochs": schedule_epochs}
    sizes = {"epochs": epochs, "batch_size": batch_size, "lr": lr}
    from .planning import frozen_below, opened_network, start_of, training_of
    from .whole import WholeRun

    opened = opened_network(head, weights=weights, backbone=backbone, compare_with=compare_with)
    folder, begin = Path(out), start_of(start, stages)
    training = training_of(
        stages,
        len(opened.blocks),
        given=_said(given),
        rates=_said(rates),
        sizes=_said(sizes),
        start=begin,
        folder=folder,
        own=opened.own,
    )
    for stage in training.stages:
        frozen_below(opened.blocks, stage)  # blocks that the network has not are refused before anything is read
    run = WholeRun(opened, training, folder, begin, cache, command, progress)
    return run.done(source, val_size=val_size, test_size=test_size, workers=workers, max_failed=max_failed)


def _said(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}
