"""The frozen part of a network, run once: its activations at the cut stand in for the images.

While the blocks below a cut stay frozen and images are plain (or K recorded views of each stand in for augmentation),
what comes out of them is the same in every epoch. It is extracted into a store (float32, eager, the recipe's pixels:
exactly what the network itself computes, but for the last bits that depend on the size of a batch), and only the blocks
above are trained. A store in the run's folder makes a killed run go on with what was extracted.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..backbone import Backbone
from ..errors import FeatcacheError, FinetuneError
from ..extraction import extract
from ..preprocess import Preprocess
from ..progress import Progress
from ..store import FeatureStore
from .records import write_json

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .feeding import ImageFeed

__all__ = ["CachedFeed", "Cuts", "trunk_backbone", "trunk_store"]

#: Bytes of activations that are held in memory; more stay on the disk.
_MOST_MEMORY = 4 * 1024**3


def trunk_backbone(lower: nn.Module, block: str, recipe: Preprocess) -> Backbone:
    """Return the network up to a cut, normalised images (N, C, H, W) → activations, as a backbone.

    Parameters
    ----------
    lower : nn.Module
        That part of the network.
    block : str
        Name of its last block.
    recipe : Preprocess
        From an image to its input.
    """
    return Backbone(lower, nodes="output", pooling="none", version=f"featcache trunk up to {block}", preprocess=recipe)


def trunk_store(
    feed: ImageFeed,
    part: str,
    backbone: Backbone,
    block: str,
    folder: Path,
    *,
    device: str = "auto",
    progress: bool | str | Progress | None = "auto",
) -> FeatureStore:
    """Extract the activations of images at a cut, or open those that an earlier run extracted.

    Parameters
    ----------
    feed : ImageFeed
        The images and their recipe.
    part : {"train", "val"}
        Which of them. Those that train have the views beside themselves; the others need none.
    backbone : Backbone
        As `trunk_backbone` gives it.
    block : str
        Name of the last frozen block.
    folder : Path
        Of the run; the store lies in it, named by the block and a digest of the weights below the cut.
    device : str, default="auto"
        Where to compute.
    progress : optional
        A bar on standard error.
    """
    digest = hashlib.sha256(repr(backbone.spec).encode()).hexdigest()[:12]
    path = folder / "trunk" / f"{block.replace('/', '_')}-{part}-{digest}.features"
    source = feed.source.take(feed.rows[part])
    views = feed.n_views if part == "train" and feed.augment == "views" else 0

    def extracted() -> FeatureStore:
        return extract(
            source,
            backbone,
            path,
            precision="fp32",
            dtype="float32",
            pixels="given",
            engine="eager",
            augmented=views,
            max_failed=1.0,  # the feed has told of images that cannot be read
            device=device,
            progress=progress,
        )

    if not path.exists():
        return extracted()
    try:
        return extracted()
    except FeatcacheError:  # damaged: what is in it can be computed again
        shutil.rmtree(path, ignore_errors=True)
        path.unlink(missing_ok=True)
        return extracted()


class Cuts:
    """After which block each stage of a run was cut: decided once, so that a resumed run computes as it began.

    Parameters
    ----------
    folder : Path
        Of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "cuts.json"
        self._known: dict[str, str | None] = {}
        with contextlib.suppress(OSError, ValueError):
            found = json.loads(self.path.read_bytes())
            if not isinstance(found, dict):
                raise ValueError("no decisions in it")
            self._known = {str(k): v for k, v in found.items() if v is None or isinstance(v, str)}

    def __contains__(self, index: int) -> bool:
        return str(index) in self._known

    def known(self, index: int) -> str | None:
        """Return the block, None for a stage on images."""
        return self._known[str(index)]

    def remember(self, index: int, block: str | None) -> None:
        """Write a decision down."""
        if index not in self or self._known[str(index)] != block:
            self._known[str(index)] = block
            write_json(self.path, self._known)


class CachedFeed:
    """Batches of stored activations, of the same rows and views in the same order as the images they stand for.

    Parameters
    ----------
    images : ImageFeed
        Whose rows, labels and parts these are; augmented by nothing or by "views".
    train, val : FeatureStore
        As `trunk_store` gives them; None for a part without images.

    Raises
    ------
    FinetuneError
        A store lacks an image.
    """

    def __init__(self, images: ImageFeed, train: FeatureStore, val: FeatureStore | None) -> None:
        self.images, self.ahead = images, True
        self.ids, self.labels, self.classes = images.ids, images.labels, images.classes
        self.rows, self.digest = images.rows, images.digest
        self._views, self._places = self._held(train, "train", images.n_views if images.augment == "views" else 0)
        self._plain, self._val_places = self._views[0], self._places
        if val is not None:
            (self._plain,), self._val_places = self._held(val, "val", 0)

    def _held(self, store: FeatureStore, part: str, n_views: int) -> tuple[list[np.ndarray], np.ndarray]:
        """Return the activations of a part, view by view, and where each row's are (-1: not there)."""
        memory = None if store.load().X.nbytes * (1 + n_views) < _MOST_MEMORY else False
        loaded = [store.load(view_number=number, in_memory=memory) for number in range(1 + n_views)]
        place = {identity: i for i, identity in enumerate(loaded[0].row_ids.tolist())}
        places = np.full(len(self.ids), -1, dtype=np.intp)
        for row in np.asarray(self.rows[part]).tolist():
            places[row] = place.get(self.ids[row], -1)
            if places[row] < 0:
                raise FinetuneError(
                    f"{store.path}: expected activations of {self.ids[row]!r}, got none; delete it and run again"
                )
        return [each.X for each in loaded], places

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: np.ndarray, stage: int, epoch: int, step: int, augment: bool) -> tuple[Tensor, Tensor]:
        """Return activations (n, *shape), float32, and class numbers of some rows; as `ImageFeed.batch`."""
        import torch

        rows = np.asarray(rows, dtype=np.intp)
        places = self._places[rows]
        if (places < 0).any():  # rows of one part at a time
            places, views = self._val_places[rows], [self._plain]
        else:
            views = self._views
        if (places < 0).any():
            raise FinetuneError(
                f"rows: expected those of train or of val, got {self.ids[rows[int(places.argmin())]]!r} of another part"
            )
        if augment and len(views) > 1:
            numbers = self.images.view_numbers(rows, stage, epoch)
            found = np.stack([views[n][place] for n, place in zip(numbers, places.tolist(), strict=True)])
        else:
            found = views[0][places]
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32)), torch.from_numpy(self.labels[rows])
