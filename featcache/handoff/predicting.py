"""`predict`: a fitted head on raw images, with the preprocessing and the backbone that it was trained with."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..backbone import Backbone
from ..errors import HandoffError, HeadError, ImageError
from ..features import FeatureSet
from ..heads import FittedHead
from ..heads.layers import LayerBlocks
from ..progress import Progress, progress_for
from ..sources import ImageSource
from .opening import backbone_of, blocks_of_head, open_head

__all__ = ["predict"]


def predict(
    fitted: FittedHead | str | os.PathLike[str],
    images: Any,
    *,
    weights: Any = None,
    backbone: Backbone | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
    progress: bool | str | Progress | None = "auto",
) -> list[dict[str, Any]]:
    """Predict labels of raw images, with exactly the preprocessing, backbone and node that the head was trained on.

    Parameters
    ----------
    fitted : FittedHead or path
        The head, or the file it was saved to.
    images : path, list of paths, folder, arrays, PIL images, ImageSource or FeatureSet
        What to predict. Codes (a FeatureSet) must have the head's own spec.
    weights : optional
        The backbone's weights where they lie now, when the recorded place no longer has them; verified by digest.
    backbone : Backbone, default=None
        The backbone to use; refused when its spec is not the head's. Default: made from what the head recorded.
    batch_size : int, default=None
        Images handed to the network at once (float32); None = what keeps the device busy.
    workers : int, default=None
        Threads that read and decode; None = one per core, at most 8; 0 = none.
    device : str, default="auto"
        "cpu", "cuda", …; "auto" = the first GPU, else the CPU.
    progress : {"auto", True, False} or Progress, default="auto"
        A bar on standard error.

    Returns
    -------
    list of dict
        In the order of the source: ``{"id", "label", "scores"}`` with scores by class, or ``{"id", "error"}`` for an
        image that cannot be read. A head fitted with `reject` adds ``"accepted"``: whether it is sure enough; one
        fitted with `novelty` adds ``"novelty": {"score", "novel"}``, novel where the score is above 0. A head for
        several labels per image joins them in ``"label"`` and lists them in ``"labels"``; one for numbers gives
        ``{"id", "value"}``.

    Raises
    ------
    HandoffError, HeadError
        When head and images (or codes) do not belong together; the message says what differs.
    WeightsError
        When the backbone's weights are gone or are not the recorded ones.

    Examples
    --------
    >>> import featcache as fc
    >>> fc.predict("flowers.head", ["new.jpg"])  # doctest: +SKIP
    [{'id': 'new.jpg', 'label': 'tulip', 'scores': {'rose': 0.02, 'tulip': 0.98}}]
    """
    head = open_head(fitted)
    if isinstance(images, FeatureSet):
        return _label(head, images.row_ids.tolist(), images)
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise HandoffError(f"{name}: expected a whole number of {least} or more, got {value!r}")
    source = _open_images(images)
    network = backbone_of(head, backbone, weights)
    blocks = blocks_of_head(head, network)
    target = Backbone.usual_device() if device == "auto" else device
    threads = Backbone.usual_threads() if workers is None else workers
    found: list[dict[str, Any]] = []
    with progress_for(progress) as bar:
        bar.start("predicting", len(source))
        for ids, pixels, errors in _decoded(source, network, batch_size or Backbone.usual_batch(target), threads):
            if len(pixels):
                codes = _joined(network.encode(pixels, mode="fp32", device=target), head.node, blocks)
                good = iter(_label(head, ids, codes))
            else:
                good = iter(())
            found += [{"id": i, "error": e} if e else next(good) for i, e in errors]
            bar.advance(len(errors))
    return found


def _open_images(images: Any) -> ImageSource:
    if isinstance(images, ImageSource):
        return images
    if isinstance(images, (str, os.PathLike)):
        return ImageSource.from_paths([images])
    if isinstance(images, Sequence) and images and all(isinstance(i, (str, os.PathLike)) for i in images):
        return ImageSource.from_paths(list(images))
    return ImageSource.open(images)


def _joined(codes: Mapping[str, np.ndarray], node: str, blocks: LayerBlocks | None) -> np.ndarray:
    """The codes that a head takes: of one node, or of several as it joined them."""
    return codes[node].reshape(len(codes[node]), -1) if blocks is None else blocks.join(codes)


Batch = tuple[list[str], np.ndarray, list[tuple[str, str]]]


def _decoded(source: ImageSource, network: Backbone, batch_size: int, workers: int) -> Iterator[Batch]:
    """Yield per batch: ids that could be read, their pixels, and (id, error or "") of all."""
    recipe = network.preprocess

    def decode(index: int) -> tuple[str, np.ndarray | None, str]:
        try:
            return source.ids[index], recipe.pixels(source.read(index)), ""
        except ImageError as error:
            return source.ids[index], None, str(error)
        except OSError as error:
            return source.ids[index], None, f"cannot be read: {error.strerror or error}"

    with ThreadPoolExecutor(max(1, workers)) as pool:
        for start in range(0, len(source), batch_size):
            part = range(start, min(start + batch_size, len(source)))
            results = list(pool.map(decode, part) if workers else map(decode, part))
            pixels = [p for _, p, _ in results if p is not None]
            stacked = np.stack(pixels) if pixels else np.zeros((0, *recipe.shape), dtype="u1")
            yield [i for i, p, _ in results if p is not None], stacked, [(i, e) for i, _, e in results]


def _scores(head: FittedHead, codes: FeatureSet | np.ndarray) -> np.ndarray | None:
    try:
        return head.predict_scores(codes)
    except HeadError:  # a foreign estimator may have none; its labels stand alone then
        return None


def _label(head: FittedHead, ids: Sequence[str], codes: FeatureSet | np.ndarray) -> list[dict[str, Any]]:
    found = _numbers(head, ids, codes) if head.target else _labels(head, ids, codes)
    if head.rejection is not None:
        for line, accepted in zip(found, head.accept(codes).tolist(), strict=True):
            line["accepted"] = accepted
    if head.detector is not None:
        for line, score in zip(found, head.novelty(codes).tolist(), strict=True):
            line["novelty"] = {"score": score if math.isfinite(score) else None, "novel": score > 0}
    return found


def _numbers(head: FittedHead, ids: Sequence[str], codes: FeatureSet | np.ndarray) -> list[dict[str, Any]]:
    return [{"id": i, "value": value} for i, value in zip(ids, head.predict(codes).tolist(), strict=True)]


def _labels(head: FittedHead, ids: Sequence[str], codes: FeatureSet | np.ndarray) -> list[dict[str, Any]]:
    labels, scores = head.predict(codes), _scores(head, codes)
    lists = head.predict_labels(codes) if head.separator else [[]] * len(ids)
    rows = [None] * len(ids) if scores is None else np.asarray(scores, dtype=float).tolist()
    classes = [str(c) for c in head.classes_]
    found: list[dict[str, Any]] = []
    for i, label, several, row in zip(ids, labels.tolist(), lists, rows, strict=True):
        line: dict[str, Any] = {"id": i, "label": str(label)}
        if head.separator:
            line["labels"] = several
        line["scores"] = {} if row is None else dict(zip(classes, row, strict=True))
        found.append(line)
    return found
