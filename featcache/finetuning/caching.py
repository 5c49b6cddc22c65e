"""The frozen part of a network, run once: its activations at the cut stand in for the images.

While the blocks below a cut stay frozen and images are plain (or K recorded views of each stand in for augmentation), what comes
out of them is the same in every epoch. It is extracted into a store (float32, eager, reference pixels: exactly what the
network itself computes, but for the last bits that depend on the size of a batch), and only the blocks above are trained.
A store in the run's folder makes a killed run go on with what was extracted.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backbone import Backbone
from ..errors import FinetuneError
from ..extraction import extract
from ..progress import Progress
from ..store import FeatureStore

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .feeding import ImageFeed

__all__ = ["CachedFeed", "trunk_store"]


def trunk_store(
    feed: ImageFeed,
    lower: nn.Module,
    block: str,
    folder: Path,
    *,
    views: int = 0,
    device: str = "auto",
    progress: bool | str | Progress | None = "auto",
) -> FeatureStore:
    """Extract the activations of all images at a cut, or open those that an earlier run extracted.

    Parameters
    ----------
    feed : ImageFeed
        The images and their recipe.
    lower : nn.Module
        The network up to the cut: normalised images (N, C, H, W) → activations.
    block : str
        Name of the last frozen block.
    folder : Path
        Of the run; the store lies in it, named by the block and a digest of the weights below the cut.
    views : int, default=0
        Augmented views per image, beside the plain one.
    device : str, default="auto"
        Where to compute.
    progress : optional
        A bar on standard error.
    """
    backbone = Backbone(
        lower, nodes="output", pooling="none", version=f"featcache trunk up to {block}", preprocess=feed.recipe
    )
    digest = hashlib.sha256(repr(backbone.spec).encode()).hexdigest()[:12]
    path = folder / "trunk" / f"{block.replace('/', '_')}-{digest}.features"
    return extract(
        feed.source,
        backbone,
        path,
        precision="fp32",
        dtype="float32",
        pixels="reference",
        engine="eager",
        augmented=views,
        max_failed=1.0,  # the feed has told of images that cannot be read
        device=device,
        progress=progress,
    )


class CachedFeed:
    """Batches of stored activations, of the same rows in the same order as the images they stand for.

    Parameters
    ----------
    images : ImageFeed
        Whose rows, labels and parts these are.
    store : FeatureStore
        As `trunk_store` gives it.
    views : int, default=0
        Views per image that training draws from; 0: the plain image.
    seed : int, default=0
        Of the draws of views.
    """

    def __init__(self, images: ImageFeed, store: FeatureStore, *, views: int = 0, seed: int = 0) -> None:
        self.images, self.views, self.seed = images, views, seed
        self._codes = [store.load(view_number=number) for number in range(1 + views)]
        place = {identity: i for i, identity in enumerate(self._codes[0].row_ids.tolist())}
        missing = [identity for identity in images.ids if identity not in place]
        if missing:
            raise FinetuneError(
                f"{store.path}: expected activations of {len(images)} images, got none of {missing[0]!r} (and "
                f"{len(missing) - 1} more); delete the folder and run again"
            )
        self._places = np.asarray([place[identity] for identity in images.ids], dtype=np.intp)

    def __len__(self) -> int:
        return len(self.images)

    def __getattr__(self, name: str) -> Any:
        """Labels, rows and parts are those of the images."""
        return getattr(self.images, name)

    def batch(
        self, rows: np.ndarray, stage: int, epoch: int, step: int, augment: bool
    ) -> tuple[torch.Tensor, np.ndarray]:
        """Return activations (n, *shape), float32, and class numbers of some rows."""
        import torch

        places = self._places[rows]
        out = np.empty((len(rows), *self._codes[0].X.shape[1:]), dtype=np.float32)
        if not augment or not self.views:
            np.take(self._codes[0].X, places, axis=0, out=out)
        else:
            for i, (row, place) in enumerate(zip(rows.tolist(), places.tolist(), strict=True)):
                out[i] = self._codes[self._view(stage, epoch, row)].X[place]
        return torch.from_numpy(out), self.images.labels[rows]

    def _view(self, stage: int, epoch: int, row: int) -> int:
        """Which view of an image an epoch shows: all of them in turn, in an order of its own per image."""
        drawn = hashlib.sha256(f"{self.seed}/{stage}/{self.images.ids[row]}".encode()).digest()
        order = np.random.default_rng(int.from_bytes(drawn[:8], "little")).permutation(self.views)
        return 1 + int(order[epoch % self.views])
