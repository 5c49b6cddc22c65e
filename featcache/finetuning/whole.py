"""A whole run: images, start, stages (on cached activations where that is possible), outcome, files."""

from __future__ import annotations

import hashlib
import shutil
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FeatcacheError, FinetuneError
from ..files import make_folder
from ..progress import Progress
from ..sources import ImageSource
from .blocks import split_after
from .caching import CachedFeed, Cuts, trunk_backbone, trunk_store
from .feeding import Feed, ImageFeed
from .outcome import Outcome, outcome_of
from .planning import Opened, frozen_below
from .records import check_folder, write_json
from .running import train
from .scaling import calibrate
from .settings import Stage, Training
from .starting import Start
from .stepping import deterministic, device_of
from .tuning import FineTuned

if TYPE_CHECKING:
    from torch import nn

__all__ = ["WholeRun"]

#: Share of the free disk that activations may take.
_OF_DISK = 0.25

#: Bytes of a bundle beside its weights, at most: a head, a manifest, a card.
_CARD = 256 << 20

#: Bytes of activations that a finished run speaks of.
_LARGE = 1_000_000_000


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

    def done(self, source: Any, **of_feed: Any) -> FineTuned:
        """Run on images, with what is said of them (`ImageFeed`), and return what came of it."""
        device = str(device_of(self.training.device))  # refused before anything is read
        images = ImageSource.open(source)
        check_folder(self.folder, images)
        try:
            return self._done(images, device, of_feed)
        except FeatcacheError:
            raise
        except OSError as error:
            raise FinetuneError(
                f"{self.folder}: the run cannot go on: {error.strerror or error}; see to the folder and the free "
                "space, then run again: it goes on where it was"
            ) from error

    def _done(self, images: ImageSource, device: str, of_feed: dict[str, Any]) -> FineTuned:
        make_folder(self.folder)
        feed = self._feed(images, of_feed)
        for note in feed.notes:
            self._say(note)
        with deterministic():
            return self._trained(feed, device)

    def _feed(self, source: ImageSource, of_feed: dict[str, Any]) -> ImageFeed:
        return ImageFeed(
            source,
            self.opened.recipe,
            classes=self.opened.classes,
            seed=self.training.seed,
            augment=self.training.augment,
            n_views=self.training.n_views,
            progress=self.progress,
            **of_feed,
        )

    def _trained(self, feed: ImageFeed, device: str) -> FineTuned:
        part = next((name for name in ("test", "val") if len(feed.rows[name])), None)
        # Of a loss of one's own nobody knows what its scores mean, nor on what scale they are learned best.
        known, seed = self.training.loss is None, self.training.seed
        start = Start(self.opened, feed, self.start, seed, device, self.folder, part, self._say, soften=known)
        before, model = start.said, start.model
        cuts = Cuts(self.folder)

        def stage_view(index: int, stage: Stage) -> tuple[nn.Module, Feed]:
            return self._view(model, feed, index, stage, cuts, device)

        trained = train(
            model,
            feed,
            self.training,
            self.folder,
            blocks=self.opened.blocks,
            stage_view=stage_view,
            about=start.about,
            progress=self.progress,
            extend_command=self.command,
            before_unfreezing=start.soften,
        )
        temperature = calibrate(trained.model, feed, device=device) if known else None
        if start.softer and temperature is None and any(stage.unfreeze != "head" for stage in self.training.stages):
            self._say(
                "the network's scores are not calibrated and less sure than they should be: there are no validation "
                "images (val_size); its classes are not touched by that"
            )
        outcome = None
        if part is not None and before is not None:
            rows = np.asarray(feed.rows[part])
            after = start.ask(trained.model, feed, rows)
            outcome = outcome_of(
                feed.labels[rows], before, after, part=part, units=start.units(rows), caution=start.caution
            )
        return self._kept(trained, feed, outcome, start, temperature)

    def _say(self, text: str) -> None:
        self.notes.append(text)
        if self.progress not in (False, None):
            sys.stderr.write(f"{text}\n")

    # -- the frozen part, once ----------------------------------------------------------------------------------------

    def _view(
        self, model: nn.Module, feed: ImageFeed, index: int, stage: Stage, cuts: Cuts, device: str
    ) -> tuple[nn.Module, Feed]:
        """Return what a stage trains on: activations above the deepest cut, or the whole network on images."""
        block = cuts.known(index) if index in cuts else self._cut(model, feed, stage)
        cuts.remember(index, block)
        if block is None:
            return model, feed
        start = time.perf_counter()
        lower, upper = split_after(model, block)
        try:
            trunk = trunk_backbone(lower, block, feed.recipe)
            stores = {
                part: trunk_store(feed, part, trunk, block, self.folder, device=device, progress=self.progress)
                for part in ("train", "val")
                if len(feed.rows[part])
            }
            cached = CachedFeed(feed, stores["train"], stores.get("val"))
        except (FeatcacheError, OSError) as error:
            if self.cache is True:
                raise
            self._say(f"stage {stage.title}: not cached after {block}: {error}")
            cuts.remember(index, None)
            return model, feed
        self.trunk_seconds += time.perf_counter() - start
        return upper, cached

    def _cut(self, model: nn.Module, feed: ImageFeed, stage: Stage) -> str | None:
        """Return the last block below which all is frozen, None where the whole network is to run in the loop."""
        frozen = self.opened.blocks[: frozen_below(self.opened.blocks, stage)]
        if not frozen or self.cache is False:
            return None
        found = [block.name for block in frozen if block.boundary]
        why = self._hindrance(feed, bool(found))
        if why and self.cache is True:
            raise FinetuneError(f"stage {stage.title}: cannot be cached, {why}; use cache='auto'")
        if why or (self.cache == "auto" and not self._pays(model, feed, stage, found[-1])):
            return None
        return found[-1]

    def _hindrance(self, feed: ImageFeed, divisible: bool) -> str:
        if callable(feed.augment):
            return "images are augmented by a callable"
        if feed.augment == "views" and feed.source.version:
            return "views of a source with a version differ in a store"
        if self.training.amp:
            return "activations are float32, and mixed precision was asked for"
        return "" if divisible else "the network cannot be split below what trains"

    def _pays(self, model: nn.Module, feed: ImageFeed, stage: Stage, block: str) -> bool:
        """Whether epochs repay the views that are extracted, and a quarter of the free disk holds them."""
        import torch

        views = feed.n_views if feed.augment == "views" else 0
        if views and stage.span < 2 * (1 + views):
            return False
        lower, _ = split_after(model, block)
        device = next((parameter.device for parameter in lower.parameters()), torch.device("cpu"))
        with torch.inference_mode():
            one = lower.eval()(feed.batch(np.asarray(feed.rows["train"][:1]), 0, 0, 0, False)[0].to(device))
        images = len(feed.rows["train"]) * (1 + views) + len(feed.rows["val"])
        fits = one.numel() * 4 * images < _OF_DISK * shutil.disk_usage(self.folder).free
        if not fits:
            self._say(f"stage {stage.title}: activations after {block} would take too much of the disk; not cached")
        return fits

    # -- what came of it ----------------------------------------------------------------------------------------------

    def _kept(
        self, trained: Any, feed: ImageFeed, outcome: Outcome | None, start: Start, temperature: float | None
    ) -> FineTuned:
        model: Any = trained.model.cpu().eval()
        if self.training.loss is None and isinstance(getattr(model, "meaning", None), dict):
            model.meaning = model.meaning | {"scores": "softmax"}  # it was trained with cross entropy
        settings = {
            "training": self.training.as_dict(),
            "start": self.start,
            "rows": {name: len(rows) for name, rows in feed.rows.items()},
            "trunk seconds": round(self.trunk_seconds, 2),
            "temperature": temperature,
        }
        bundle = self._bundled(model, feed, outcome, start)
        self._say_size()
        notes = tuple(dict.fromkeys([*self.notes, *trained.notes]))
        result = FineTuned(model, self.opened.classes, self.folder, trained.history, outcome, notes, bundle, settings)
        write_json(self.folder / "outcome.json", result.as_dict())
        return result

    def _say_size(self) -> None:
        size = sum(path.stat().st_size for path in (self.folder / "trunk").rglob("*") if path.is_file())
        if size >= _LARGE:
            self._say(
                f"{self.folder / 'trunk'}: stored activations take {size / 1e9:.1f} GB; delete the folder when the run "
                "shall not be extended (an extension would extract them again)"
            )

    def _bundled(self, model: nn.Module, feed: ImageFeed, outcome: Outcome | None, start: Start) -> Path | None:
        from ..handoff.archive import fits_file
        from ..handoff.bundling import save_bundle

        size = sum(value.numel() * value.element_size() for value in model.state_dict().values())
        path = self.folder / ("model.bundle" if fits_file(size + _CARD) else "model")
        train_rows = np.asarray(feed.rows["train"])
        counts = np.bincount(feed.labels[train_rows], minlength=len(feed.classes)).tolist()
        ids = "\n".join(sorted(feed.ids[row] for row in train_rows.tolist()))
        digest = hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest()
        begun = start.head is not None and not self.opened.own and self.start in ("auto", "head")
        try:
            save_bundle(
                model,
                path,
                head=None if self.opened.own else start.head,
                scores="softmax" if self.training.loss is None else None,
                training={"rows": len(train_rows), "digest": digest},
                begun_from=f"the head {start.head.head} on cached codes" if begun and start.head else "",
                metrics=None if outcome is None else outcome.metrics,
                training_data=dict(zip(feed.classes, counts, strict=True)),
                overwrite=True,
            )
        except FeatcacheError as error:
            self._say(f"no bundle was written: {error}")
            return None
        return path
