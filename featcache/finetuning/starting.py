"""What a run starts from, and what it is compared with: heads that have not seen the images that judge.

`fit` trains on all rows that are not test rows, those that are to choose the epoch among them; a head that has seen
them makes the first epoch look better than any later one. Such a head is fitted again, with its own settings, on the
training rows alone. Its codes come from the network's own trunk in float32. It is kept in the run's folder: whoever
goes on with the run begins with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import FinetuneError
from ..features import FeatureSet
from ..handoff.initialising import fresh, with_fresh_head
from ..handoff.modules import to_module
from ..heads import FittedHead, fit
from ..heads.zoo import HEADS
from .evaluating import scores_of
from .feeding import ImageFeed
from .records import digest_of, write_json
from .scaling import SOFTENING, divide_scores

if TYPE_CHECKING:
    import torch
    from torch import nn

    from .planning import Opened

__all__ = ["Seen", "Start", "codes_of", "refitted", "said_of", "seen_by"]

#: Images handed to a frozen network at once.
_CHUNK = 32


@dataclass(frozen=True)
class Seen:
    """Which of a feed's parts a head was trained on; all False where its rows are other images."""

    known: bool
    val: bool
    test: bool


class Start:
    """The network that is trained, and the one that it is compared with.

    Parameters
    ----------
    opened : Opened
        The given network or head.
    feed : ImageFeed
        The images.
    start : {"auto", "head", "fresh", "scratch"}
        As `finetune` takes it.
    seed : int
        Of a head fitted again, and of random weights.
    device : str
        Where trunks run.
    folder : Path
        Of the run.
    part : str or None
        The part that judges; None = no comparison.
    say : callable
        Told each decision.
    soften : bool, default=True
        Whether "auto" divides the head's scores; not under a loss whose scale is unknown.

    Attributes
    ----------
    model : nn.Module
        To be trained, on the CPU.
    said : ndarray of int or None
        Class numbers that the rival says of the part's images.
    head : FittedHead or None
        What the model begins with.
    caution : str
        Why the comparison would not be fair, "" where it is.
    about : dict
        For the record of the run.
    softer : bool
        Whether the model's scores are divided when more than its head begins to train.
    """

    def __init__(
        self,
        opened: Opened,
        feed: ImageFeed,
        start: str,
        seed: int,
        device: str,
        folder: Path,
        part: str | None,
        say: Callable[[str], None],
        soften: bool = True,
    ) -> None:
        self.softer = soften and start == "auto" and not opened.own
        self.opened, self.feed, self.seed, self.device, self.folder = opened, feed, seed, device, folder
        self.caution, self.head = "", opened.head
        rival = self._heads(start, part, say)
        given = opened.module
        if self.head is not opened.head and self.head is not None:
            given = to_module(self.head, backbone=opened.backbone)
        self.model = self._begun(given, start)
        self.said = None if part is None else self._rival_says(rival, np.asarray(feed.rows[part]))
        self.about: dict[str, Any] = {"start": start, "network": digest_of(opened.module), "rows": self._rows()}
        self.about["softening"] = SOFTENING if self.softer else 1.0
        if opened.own:
            self.about["layers"] = _layers_of(opened.module)

    def _rows(self) -> dict[str, int]:
        return {name: len(rows) for name, rows in self.feed.rows.items()}

    def _begun(self, given: nn.Module, start: str) -> nn.Module:
        if start == "scratch":
            return fresh(given, self.seed)
        return with_fresh_head(given, self.seed) if start == "fresh" else given

    def soften(self, model: nn.Module) -> None:
        """Divide the scores of the network in training, where that is to be done."""
        if self.softer:
            divide_scores(model, SOFTENING)

    def _heads(self, start: str, part: str | None, say: Callable[[str], None]) -> FittedHead | None:
        """Choose what training begins with (`self.head`), and return what it is compared with."""
        head = self.opened.head
        if head is None:
            self.caution = "the network was compared with itself as it was given, which may have seen them"
            return None
        seen = seen_by(head, self.feed)
        judged = not seen.known or seen.test or (seen.val and part == "val")
        begins = not self.opened.own and start == "auto" and (judged or seen.val)
        if not begins and not (judged and part):
            return head
        what = "validation" if seen.val and not seen.test else "test"
        why = (
            f"has seen the {what} images" if seen.known else "was trained on other images, perhaps on those that judge"
        )
        say(f"the head {why}: {head.head} was fitted again, with its settings, on the training images alone")
        again = self._kept(head)
        if begins:
            self.head = again
        elif start == "head" and judged:
            self.caution = "training began with a head that may have seen them"
        return again if judged else head

    def _kept(self, head: FittedHead) -> FittedHead:
        """Return the head that was fitted again, from the run's folder where it is there."""
        module = to_module(head, backbone=self.opened.backbone)
        path, about = self.folder / "start.head", self.folder / "start.json"
        wanted = {"images": self.feed.digest, "network": digest_of(module), "seed": self.seed}
        try:
            if json.loads(about.read_bytes()) == wanted:
                return FittedHead.load(path)
        except (OSError, ValueError):
            pass
        again = refitted(head, module, self._seen_by_rival(), seed=self.seed, device=self.device)
        again.save(path)
        write_json(about, wanted)
        return again

    def _seen_by_rival(self) -> ImageFeed:
        """Return the feed as the head's own backbone sees it: another recipe has other pixels."""
        backbone, feed = self.opened.backbone, self.feed
        if not self.opened.own or backbone is None or backbone.preprocess == feed.recipe:
            return feed
        return ImageFeed(
            feed.source, backbone.preprocess, classes=feed.classes, parts=feed.rows, seed=feed.seed, progress=False
        )

    def _rival_says(self, fair: FittedHead | None, rows: np.ndarray) -> np.ndarray:
        if fair is None:
            return self.ask(self.opened.module, self.feed, rows)
        module = to_module(fair, backbone=self.opened.backbone)
        place = {name: i for i, name in enumerate(self.feed.classes)}
        codes = np.asarray([place[str(name)] for name in fair.classes_])
        return codes[said_of(module, self._seen_by_rival(), rows, device=self.device)]

    def ask(self, model: nn.Module, feed: ImageFeed, rows: np.ndarray) -> np.ndarray:
        """Return the class numbers (n,) that a network says of images; it is on the CPU afterwards."""
        said = said_of(model, feed, rows, device=self.device)
        model.cpu()
        return said

    def units(self, rows: np.ndarray) -> np.ndarray | None:
        """Return the group of each image, None where there are none."""
        return _groups(self.feed, rows)


def _layers_of(module: nn.Module) -> str:
    """Return a digest of a network's layers: two with the same tensors may differ in what has none."""
    lines = [f"{name} {type(layer).__qualname__} {layer.extra_repr()}" for name, layer in module.named_modules()]
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()[:16]


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
    """Fit a head of the same kind and settings on the training rows alone, calibrated: it says the same classes.

    Where scores are too sure of the training rows, their loss has no slope left to learn from.

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
        calibrate=True,
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

    found = scores_of(Codes().to(device), feed, rows, batch_size=_CHUNK)
    model.cpu()
    return found


def said_of(model: nn.Module, feed: ImageFeed, rows: np.ndarray, *, device: str = "cpu") -> np.ndarray:
    """Return the class number (n,) that a network says of plain images."""
    return scores_of(model.to(device), feed, rows, batch_size=_CHUNK).argmax(axis=1)
