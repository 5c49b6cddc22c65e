"""`ImageFeed`: labelled images as batches that depend on the place in the run alone."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..backbone import Backbone
from ..errors import FinetuneError, ImageError
from ..fingerprint import digest_bytes, digest_pixels, fingerprint
from ..images import open_rgb, pixel_identity
from ..preprocess import Preprocess
from ..progress import Progress, progress_for
from ..sources import ImageSource
from .parting import class_codes, given_parts, parts_of
from .seeding import seed_of, seeded
from .settings import recorded

__all__ = ["Feed", "ImageFeed", "fed"]

_BUDGET = 2 * 1024**3


class Feed(Protocol):
    """What `train` takes its batches from.

    Attributes
    ----------
    ids : sequence of str
        Of all rows; the order of an epoch follows them.
    labels : ndarray of int64
        Code of each row's class.
    classes : sequence of str
        What the codes mean.
    rows : mapping of str to ndarray of int
        Of "train", "val" and "test".
    digest : str
        Of all that the batches depend on.
    """

    @property
    def ids(self) -> Sequence[str]:
        """Of all rows."""

    @property
    def labels(self) -> np.ndarray:
        """Code of each row's class, int64."""

    @property
    def classes(self) -> Sequence[str]:
        """What the codes mean."""

    @property
    def rows(self) -> Mapping[str, np.ndarray]:
        """Row numbers of each part."""

    @property
    def digest(self) -> str:
        """Of all that the batches depend on."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray, stage: int, epoch: int, step: int, augment: bool) -> tuple[Tensor, Tensor]:
        """Return float32 (N, …) for the network and int64 (N,), on the CPU; a function of its arguments alone."""


def fed(
    feed: Feed, batches: Sequence[np.ndarray], stage: int, epoch: int, step: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of an epoch from a step on, each made while the one before it is used.

    Only of a feed that says so (``ahead = True``): one that draws from the global generators would disturb the step.
    """
    if not getattr(feed, "ahead", False):
        for number in range(step, len(batches)):
            yield feed.batch(batches[number], stage, epoch, number, True)
        return
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(
            [pool.submit(feed.batch, batches[step], stage, epoch, step, True)] if step < len(batches) else []
        )
        for number in range(step + 1, len(batches) + 1):
            if number < len(batches):
                waiting.append(pool.submit(feed.batch, batches[number], stage, epoch, number, True))
            yield waiting.popleft().result()


class ImageFeed:
    """Labelled images as batches.

    Every image is decoded once at the start: what cannot be read is told and left out of its part before the first
    epoch, and what fits into the budget of memory is kept.

    Parameters
    ----------
    source : ImageSource or what `ImageSource.open` takes
        Images with labels.
    recipe : Preprocess
        The network's own.
    classes : sequence of str, optional
        Order of the network's scores; by default the labels, sorted.
    parts : mapping of str to array of int, optional
        Rows of "train", "val" and "test". By default named splits, else hold-outs.
    val_size : float, default=0.2
        Share of the training rows that judge, where no split column names some.
    test_size : float, default=0.0
        Share that tests; only where no split column names a training part.
    seed : int, default=0
        Of the hold-outs and of all augmentation.
    augment : None, "views" or callable, default=None
        What training images go through. "views": the recipe's own views, drawn anew in each epoch among the first
        `n_views` of an image (see `Preprocess.views`). A callable, such as torchvision.transforms.v2, takes the decoded
        PIL image; an image that it returns (PIL, uint8 array (H, W, C) or uint8 tensor (C, H, W)) is normalised by the
        recipe, and resized and cropped when it has not the recipe's size; a float tensor (C, H, W) is taken as it is.
    n_views : int, default=8
        Views beside the image itself.
    memory : int, default=2 GiB
        Bytes of decoded pixels that are kept; others are decoded again each time.
    workers : int, optional
        Threads that read and decode; by default one per core, at most 8.
    max_failed : float, default=0.01
        Share of the images that may be unreadable.
    progress : {"auto", True, False} or Progress, default="auto"
        A bar on standard error.

    Attributes
    ----------
    ids, labels, classes, rows, digest
        As `Feed` has them; `labels` is -1 for images without a label.
    ahead : bool
        Whether a batch may be made while another one is used: not with a transform, which draws from the global
        generators.
    failures : list of (str, str)
        Id and reason of each image that could not be read.
    notes : list of str
        What was decided about parts, and that images failed.

    Raises
    ------
    FinetuneError
        When there are no labels, unknown ones, or a class or part without images that can be read.

    Examples
    --------
    >>> images = np.zeros((8, 6, 6, 3), np.uint8)
    >>> feed = ImageFeed(ImageSource.from_arrays(images, labels=list("aabbaabb")), Preprocess(6, 4), progress=False)
    >>> feed.batch(feed.rows["train"][:2], 0, 0, 0, False)[0].shape
    torch.Size([2, 3, 4, 4])
    """

    def __init__(
        self,
        source: Any,
        recipe: Preprocess,
        *,
        classes: Sequence[str] | None = None,
        parts: Mapping[str, Any] | None = None,
        val_size: float = 0.2,
        test_size: float = 0.0,
        seed: int = 0,
        augment: str | Callable[[Any], Any] | None = None,
        n_views: int = 8,
        memory: int = _BUDGET,
        workers: int | None = None,
        max_failed: float = 0.01,
        progress: bool | str | Progress | None = "auto",
    ) -> None:
        if augment not in (None, "views") and not callable(augment):
            raise FinetuneError(f"augment: expected None, 'views' or a callable, got {augment!r}; give a transform")
        self.source, self.recipe, self.seed = ImageSource.open(source), recipe, seed
        self.augment, self.n_views = augment, n_views
        self.ahead = not callable(augment)
        self.workers = max(1, Backbone.usual_threads() if workers is None else workers)
        self.ids = self.source.ids
        self.labels, self.classes = class_codes(self.source, classes)
        if parts is None:
            self.rows, self.notes = parts_of(
                self.source, self.labels, val_size=val_size, test_size=test_size, seed=seed
            )
        else:
            self.rows, self.notes = given_parts(parts, self.labels), []
        self.failures: list[tuple[str, str]] = []
        self._kept, self._left, self._lock = dict[int, Any](), memory, threading.Lock()
        self._training = frozenset(self.rows["train"].tolist())
        self._keys: dict[int, bytes] = {}
        self._read_all(progress, max_failed)
        self.digest = self._digest()

    def __len__(self) -> int:
        return len(self.ids)

    def batch(self, rows: np.ndarray, stage: int, epoch: int, step: int, augment: bool) -> tuple[Tensor, Tensor]:
        """Return a batch.

        Parameters
        ----------
        rows : array of int
            Which images.
        stage, epoch, step : int
            Where in the run it is. Augmentation depends on the seed, stage, epoch and each image's id, not on the step.
        augment : bool
            Whether they are augmented.

        Returns
        -------
        images : Tensor of shape (n, C, H, W)
            float32, normalised.
        codes : Tensor of shape (n,)
            int64.

        Raises
        ------
        FinetuneError
            When an image that could be read at the start cannot be read any more.
        """
        rows = np.asarray(rows, dtype=np.intp)
        codes = torch.from_numpy(self.labels[rows])
        if augment and callable(self.augment):
            return self._transformed(rows, stage, epoch), codes
        numbers = [0] * len(rows)
        if augment and self.augment == "views":
            numbers = self.view_numbers(rows, stage, epoch)
        pixels = self._each(lambda pair: self._view(*pair), list(zip(rows.tolist(), numbers, strict=True)))
        return torch.from_numpy(self.recipe.normalize(np.stack(pixels))), codes

    def view_numbers(self, rows: np.ndarray, stage: int, epoch: int) -> list[int]:
        """Return which view of each image an epoch shows; 0 is the image itself."""
        return [self._seed(row, stage, epoch) % (1 + self.n_views) for row in rows.tolist()]

    def _seed(self, row: int, stage: int, epoch: int) -> int:
        return seed_of(self.seed, "augment", stage, epoch, self.ids[row])

    # ------------------------------------------------------------------------------------------------ reading

    def _read_all(self, progress: bool | str | Progress | None, max_failed: float) -> None:
        """Decode every image of a part once: keep it where there is room, leave it out where it cannot be read."""
        rows = np.sort(np.concatenate([self.rows[name] for name in ("train", "val", "test")])).tolist()
        with progress_for(progress) as bar, ThreadPoolExecutor(self.workers) as pool:
            bar.start("reading images", len(rows))
            for row, reason in zip(rows, pool.map(self._try, rows), strict=True):
                if reason:
                    self.failures.append((self.ids[row], reason))
                bar.advance()
        if not self.failures:
            return
        bad = {self.ids.index(name) for name, _ in self.failures}
        self.rows = {name: np.asarray([r for r in rows if r not in bad], np.intp) for name, rows in self.rows.items()}
        first = f"{self.failures[0][0]}: {self.failures[0][1]}"
        if len(self.failures) > max_failed * len(rows):
            raise FinetuneError(
                f"images: expected at most {max_failed:.0%} that cannot be read, got {len(self.failures)} of "
                f"{len(rows)}, the first {first}; mend or remove them, or allow more (max_failed)"
            )
        self.notes.append(f"{len(self.failures)} of {len(rows)} images cannot be read and are left out, first {first}")
        if not len(self.rows["train"]):
            raise FinetuneError(f"images: expected some that can be read, got none; the first: {first}")

    def _try(self, row: int) -> str:
        try:
            payload = self.source.read(row)
            self._keys[row] = digest_bytes(payload) if isinstance(payload, bytes) else _pixel_key(payload)
            self._keep(row, self._decode(row, payload))
        except ImageError as error:
            return str(error)
        except OSError as error:
            return f"cannot be read: {error.strerror or error}"
        return ""

    def _decode(self, row: int, payload: Any) -> Any:
        """Return what is kept of an image: uint8 (1 or 1 + n_views, H, W, C), or the decoded image for a transform."""
        if row in self._training and callable(self.augment):
            return self._open(payload)
        if row in self._training and self.augment == "views":
            return self.recipe.views(payload, self._keys[row], self.n_views)
        return self.recipe.pixels(payload)[None]

    def _keep(self, row: int, decoded: Any) -> None:
        size = decoded.nbytes if isinstance(decoded, np.ndarray) else decoded.width * decoded.height * 4
        with self._lock:
            if size <= self._left:
                self._left -= size
                self._kept[row] = decoded

    def _open(self, payload: Any) -> Image.Image:
        recipe = self.recipe
        return open_rgb(payload, exif=recipe.exif, alpha=recipe.alpha, channels=recipe.channels)

    def _image(self, row: int) -> Image.Image:
        """Return a decoded image for a transform."""
        kept = self._kept.get(row)
        return kept if isinstance(kept, Image.Image) else self._again(row, self._open)

    def _again(self, row: int, decode: Callable[[Any], Any]) -> Any:
        try:
            return decode(self.source.read(row))
        except (ImageError, OSError) as error:
            raise FinetuneError(
                f"image {self.ids[row]!r}: expected to be read as at the start of the run, got: {error}; put it "
                "back and run again"
            ) from error

    def _view(self, row: int, number: int) -> np.ndarray:
        """Return one view of an image; 0 is the image itself."""
        kept = self._kept.get(row)
        if isinstance(kept, np.ndarray) and number < len(kept):
            return kept[number]
        if number:
            return self._again(row, lambda payload: self.recipe.views(payload, self._keys[row], number)[number])
        return self._again(row, self.recipe.pixels) if kept is None else self.recipe.pixels(kept)

    def _each(self, function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
        """Map in threads where something has to be decoded."""
        waiting = sum((item[0] if isinstance(item, tuple) else item) not in self._kept for item in items)
        if waiting < 2 or self.workers == 1:
            return [function(item) for item in items]
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(function, items))

    # ------------------------------------------------------------------------------------------------ transforms

    def _transformed(self, rows: np.ndarray, stage: int, epoch: int) -> Tensor:
        # Transforms draw from the global generators, which threads share: only decoding is done side by side.
        transform, images, done = self.augment, self._each(self._image, rows.tolist()), []
        assert callable(transform)  # `batch` looks
        for row, image in zip(rows.tolist(), images, strict=True):
            with seeded(self._seed(row, stage, epoch)):
                done.append(self._as_input(transform(image.copy()), self.ids[row]))
        return torch.stack(done)

    def _as_input(self, image: Any, name: str) -> Tensor:
        height, width, channels = self.recipe.shape
        if isinstance(image, Tensor) and image.is_floating_point():
            if tuple(image.shape) != (channels, height, width):
                raise FinetuneError(
                    f"augment: expected a float tensor of shape {(channels, height, width)} for {name!r}, got "
                    f"{tuple(image.shape)}; end with a crop to that size, or return uint8"
                )
            return image.to(torch.float32)
        if isinstance(image, Tensor) and image.ndim == 3:
            image = image.permute(1, 2, 0).contiguous().numpy()
        if not isinstance(image, (Image.Image, np.ndarray)):
            raise FinetuneError(
                f"augment: expected an image or a tensor (C, H, W) for {name!r}, got {type(image).__name__}; leave out "
                "what comes after the transforms of images"
            )
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8 or pixels.shape != (height, width, channels):
            pixels = self.recipe.pixels(image)
        return torch.from_numpy(self.recipe.normalize(pixels[None])[0])

    def _digest(self) -> str:
        rows = sorted(row for part in self.rows.values() for row in part.tolist())
        return fingerprint(
            {
                "ids": [self.ids[row] for row in rows],
                "keys": [self._keys[row].hex() for row in rows],
                "labels": self.labels[rows].tolist(),
                "classes": list(self.classes),
                "parts": {name: [self.ids[row] for row in part] for name, part in self.rows.items()},
                "recipe": self.recipe.spec(),
                "augment": recorded(self.augment),
                "n_views": self.n_views,
            }
        )


def _pixel_key(payload: Image.Image | np.ndarray) -> bytes:
    return digest_pixels(*pixel_identity(payload))
