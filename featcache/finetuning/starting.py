"""What a run starts from: the given head, or one of its kind that has not seen the images it will be judged by.

`fit` trains on all rows that are not test rows, those that are to choose the epoch among them; a head that has seen
them makes the first epoch look better than any later one. Such a head is fitted again, with its own settings, on the
training rows alone. Its codes come from the network's own trunk in float32.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FinetuneError
from ..features import FeatureSet
from ..heads import FittedHead, fit
from ..heads.zoo import HEADS
from .evaluating import scores_of

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .feeding import ImageFeed

__all__ = ["Seen", "codes_of", "refitted", "said_of", "seen_by"]

#: Images handed to a frozen network at once.
_CHUNK = 32


@dataclass(frozen=True)
class Seen:
    """Which of a feed's parts a head was trained on; all False where its rows are other images."""

    known: bool
    val: bool
    test: bool


def seen_by(head: FittedHead, feed: ImageFeed) -> Seen:
    """Say what a head has seen, by the digest of its training rows' ids."""
    parts = {name: np.asarray(feed.rows.get(name, np.zeros(0, dtype=np.intp))) for name in ("train", "val", "test")}
    for used in (("train",), ("train", "val"), ("train", "val", "test"), ("train", "test")):
        rows = np.concatenate([parts[name] for name in used])
        if _digest(feed.ids[i] for i in rows.tolist()) == head.training_digest:
            return Seen(True, "val" in used and len(parts["val"]) > 0, "test" in used and len(parts["test"]) > 0)
    return Seen(False, False, False)


def _digest(ids: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(sorted(ids)).encode("utf-8", "surrogatepass")).hexdigest()


def refitted(head: FittedHead, model: nn.Module, feed: ImageFeed, *, seed: int = 0, device: str = "cpu") -> FittedHead:
    """Fit a head of the same kind and settings on the training rows alone.

    Parameters
    ----------
    head : FittedHead
        Whose kind and settings.
    model : nn.Module
        As `to_module` made it of that head: its trunk makes the codes.
    feed : ImageFeed
        The images.
    seed : int, default=0
        Of the head.
    device : str, default="cpu"
        Where the trunk runs.

    Raises
    ------
    FinetuneError
        The training rows cannot train it.
    """
    rows = np.asarray(feed.rows["train"])
    data = FeatureSet(
        codes_of(model, feed, rows, device=device),
        np.asarray(feed.classes)[feed.labels[rows]],
        np.asarray(feed.ids)[rows],
        _groups(feed, rows),
        spec=head.spec,
        locator=head.locator,
        node=head.node,
        fingerprint=head.fingerprint,
    )
    named = head.head in HEADS
    missing = sorted(set(head.classes_.tolist()) - set(data.y.tolist() if data.y is not None else []))
    if missing:
        raise FinetuneError(f"source: expected training images of every class of the head, got none of {missing[0]!r}")
    return fit(
        head.head if named else head.estimator,
        data,
        seed=seed,
        params=head.params if named else None,
        calibrate=head.temperature is not None,
    )


def _groups(feed: ImageFeed, rows: np.ndarray) -> np.ndarray | None:
    source = feed.source
    return source.columns[source.roles["group"]][rows] if "group" in source.roles else None


def codes_of(model: nn.Module, feed: ImageFeed, rows: np.ndarray, *, device: str = "cpu") -> np.ndarray:
    """Return the codes (n, n_features) that a network's head takes, of plain images, in float32."""
    from torch import nn

    network: Any = model  # with the attributes of a ClassifierNetwork

    class Codes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = network.trunk

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            found = self.trunk(images)
            return found[network.node].flatten(1) if network.node else network.join(found)

    return scores_of(Codes().to(device), feed, rows, batch_size=_CHUNK)


def said_of(model: nn.Module, feed: ImageFeed, rows: np.ndarray, *, device: str = "cpu") -> np.ndarray:
    """Return the class number (n,) that a network says of plain images."""
    return scores_of(model.to(device), feed, rows, batch_size=_CHUNK).argmax(axis=1)
