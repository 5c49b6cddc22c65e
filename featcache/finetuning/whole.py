"""A whole run: images, start, stages (on cached activations where that is possible), outcome, files."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FeatcacheError, FinetuneError
from ..files import make_folder, publish_bytes
from ..handoff.initialising import fresh, with_fresh_head
from ..handoff.modules import to_module
from ..progress import Progress
from .blocks import split_after
from .caching import CachedFeed, trunk_store
from .feeding import Feed, ImageFeed
from .outcome import Outcome, outcome_of
from .planning import Opened, frozen_below
from .running import device_of, train
from .settings import Stage, Training
from .starting import refitted, said_of, seen_by
from .tuning import FineTuned

if TYPE_CHECKING:
    from torch import nn

__all__ = ["WholeRun"]

#: Share of the free disk that activations may take.
_OF_DISK = 0.25


@dataclass
class WholeRun:
    """What `finetune` does, step by step.

    Parameters
    ----------
    opened : Opened
        The network.
    training : Training
        The settings.
    folder : Path
        Of the run.
    start : str
        As `finetune` takes it.
    cache : bool or "auto"
        As `finetune` takes it.
    command : str
        For the advice to extend.
    progress : optional
        Bars.
    """

    opened: Opened
    training: Training
    folder: Path
    start: str
    cache: bool | str
    command: str
    progress: bool | str | Progress | None
    notes: list[str] = field(default_factory=list)
    trunk_seconds: float = 0.0

    def done(self, source: Any, *, val_size: float, test_size: float, workers: int | None) -> FineTuned:
        """Run, and return what came of it."""
        settings, _ = self.training, self._device  # refused before anything is read
        make_folder(self.folder)
        feed = ImageFeed(
            source,
            self.opened.recipe,
            classes=self.opened.classes,
            val_size=val_size,
            test_size=test_size,
            seed=settings.seed,
            augment=settings.augment,
            n_views=settings.n_views,
            workers=workers,
            progress=self.progress,
        )
        rival, model = self._started(feed)
        part = next((name for name in ("test", "val") if len(feed.rows[name])), None)
        before = None if part is None else said_of(rival, feed, feed.rows[part], device=self._device)

        def stage_view(index: int, stage: Stage) -> tuple[nn.Module, Feed]:
            return self._view(model, feed, stage)

        trained = train(
            model,
            feed,
            settings,
            self.folder,
            blocks=self.opened.blocks,
            stage_view=stage_view,
            progress=self.progress,
            extend_command=self.command,
        )
        outcome = None
        if part is not None and before is not None:
            outcome = self._judged(trained.model, feed, part, before)
        return self._kept(trained, feed, outcome)

    @property
    def _device(self) -> str:
        return str(device_of(self.training.device))

    # -- where it starts ----------------------------------------------------------------------------------------------

    def _started(self, feed: ImageFeed) -> tuple[nn.Module, nn.Module]:
        """Return the network that the outcome is compared with, and the one that is trained."""
        opened, seed = self.opened, self.training.seed
        given = opened.module
        rival = to_module(opened.head, backbone=opened.backbone) if opened.own and opened.head is not None else given
        if opened.head is not None:
            rival = self._unseeing(opened.head, rival, feed)
        if self.start == "scratch":
            return rival, fresh(given, seed)
        if self.start == "fresh":
            return rival, with_fresh_head(given, seed)
        return rival, (given if opened.own or self.start == "head" else rival)

    def _unseeing(self, head: Any, module: nn.Module, feed: ImageFeed) -> nn.Module:
        """Return the head's network, or that of a head fitted again where it has seen what is to judge it."""
        seen = seen_by(head, feed)
        if not seen.known:
            self.notes.append(
                "the head was trained on other images than these train here; it may have seen some that test"
            )
        if not (seen.test or (seen.val and self.start == "auto" and not self.opened.own)):
            return module
        which = "test" if seen.test else "validation"
        self.notes.append(
            f"the head has seen the {which} images: {head.head} was fitted again, with its settings, on the training "
            "images alone"
        )
        again = refitted(head, module, feed, seed=self.training.seed, device=self._device)
        return to_module(again, backbone=self.opened.backbone)

    # -- the frozen part, once ----------------------------------------------------------------------------------------

    def _view(self, model: nn.Module, feed: ImageFeed, stage: Stage) -> tuple[nn.Module, Feed]:
        """Return what a stage trains on: activations above the deepest cut, or the whole network on images."""
        block, why = self._cut(feed, stage)
        if block is None:
            if self.cache is True:
                raise FinetuneError(f"stage {stage.title}: cannot be cached, {why}; use cache='auto'")
            return model, feed
        lower, upper = split_after(model, block)
        if self.cache == "auto" and not self._fits(lower, feed):
            self.notes.append(
                f"stage {stage.title}: activations after {block} would take too much of the disk; not cached"
            )
            return model, feed
        start = time.perf_counter()
        store = trunk_store(feed, lower, block, self.folder, device=self._device, progress=self.progress)
        cached = CachedFeed(feed, store)
        self.trunk_seconds += time.perf_counter() - start
        return upper, cached

    def _cut(self, feed: ImageFeed, stage: Stage) -> tuple[str | None, str]:
        """Return the last block below which all is frozen, or why there is none."""
        if self.cache is False:
            return None, "cache is off"
        if callable(feed.augment):
            return None, "images are augmented by a callable"
        frozen = self.opened.blocks[: frozen_below(self.opened.blocks, stage)]
        found = [block.name for block in frozen if block.boundary]
        if not found:
            return None, "the network cannot be split below what trains"
        passes = 1 + (feed.n_views if feed.augment == "views" else 0)
        if self.cache == "auto" and stage.span < 2 * passes:
            return None, "so few epochs do not repay it"
        return found[-1], ""

    def _fits(self, lower: nn.Module, feed: ImageFeed) -> bool:
        import torch

        row = np.asarray(feed.rows["train"][:1])
        with torch.inference_mode():
            device = next((parameter.device for parameter in lower.parameters()), torch.device("cpu"))
            one = lower.eval()(feed.batch(row, 0, 0, 0, False)[0].to(device))
        views = 1 + (feed.n_views if feed.augment == "views" else 0)
        return one.numel() * 4 * len(feed) * views < _OF_DISK * shutil.disk_usage(self.folder).free

    # -- what came of it ----------------------------------------------------------------------------------------------

    def _judged(self, model: nn.Module, feed: ImageFeed, part: str, before: np.ndarray) -> Outcome:
        rows = np.asarray(feed.rows[part])
        source = feed.source
        groups = source.columns[source.roles["group"]][rows] if "group" in source.roles else None
        after = said_of(model, feed, rows, device=self._device)
        return outcome_of(feed.labels[rows], before, after, part=part, units=groups)

    def _kept(self, trained: Any, feed: ImageFeed, outcome: Outcome | None) -> FineTuned:
        model = trained.model.cpu().eval()
        settings = {
            "training": self.training.as_dict(),
            "start": self.start,
            "rows": {name: len(rows) for name, rows in feed.rows.items()},
            "trunk seconds": round(self.trunk_seconds, 2),
        }
        bundle = self._bundled(model, feed, outcome)
        notes = tuple(dict.fromkeys([*feed.notes, *self.notes, *trained.notes]))
        result = FineTuned(model, self.opened.classes, self.folder, trained.history, outcome, notes, bundle, settings)
        publish_bytes(self.folder / "outcome.json", json.dumps(result.as_dict(), indent=1).encode(), replace=True)
        return result

    def _bundled(self, model: nn.Module, feed: ImageFeed, outcome: Outcome | None) -> Path | None:
        from ..handoff.bundling import save_bundle

        path = self.folder / "model.bundle"
        train = feed.labels[np.asarray(feed.rows["train"])]
        counts = np.bincount(train, minlength=len(feed.classes)).tolist()
        try:
            save_bundle(
                model,
                path,
                head=self.opened.head,
                metrics=None if outcome is None else outcome.metrics,
                training_data=dict(zip(feed.classes, counts, strict=True)),
                overwrite=True,
            )
        except FeatcacheError as error:
            self.notes.append(f"no bundle was written: {error}")
            return None
        return path
