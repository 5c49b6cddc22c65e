"""Hand-off: a fitted head on raw images (`predict`), and backbone and head as one network (`to_module`)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np

from .backbone import Backbone
from .backbone.recorded import recorded_backbone
from .errors import HandoffError, HeadError, ImageError
from .features import FeatureSet
from .heads import FittedHead
from .heads.layers import LayerBlocks
from .heads.linear import network_form
from .heads.views import views_of
from .progress import Progress, progress_for
from .sources import ImageSource

if TYPE_CHECKING:
    from torch import nn

__all__ = ["predict", "to_module"]


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
    head = _open_head(fitted)
    if isinstance(images, FeatureSet):
        return _label(head, images.row_ids.tolist(), images)
    for name, value, least in (("batch_size", batch_size, 1), ("workers", workers, 0)):
        if value is not None and (not isinstance(value, int) or value < least):
            raise HandoffError(f"{name}: expected a whole number of {least} or more, got {value!r}")
    source = _open_images(images)
    network = _backbone_of(head, backbone, weights)
    blocks = _blocks(head, network)
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


def _open_head(fitted: Any) -> FittedHead:
    if isinstance(fitted, FittedHead):
        return fitted
    if isinstance(fitted, (str, os.PathLike)):
        return FittedHead.load(os.fspath(fitted))
    raise HandoffError(f"head: expected a FittedHead or the path of a saved one, got {type(fitted).__name__}")


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


def _blocks(head: FittedHead, network: Backbone) -> LayerBlocks | None:
    """The nodes that a head joins, None for one node; HandoffError where the network has no such codes."""
    if head.node in network.nodes:
        return None
    blocks = LayerBlocks.parse(head.node)
    if blocks is None or not set(blocks.nodes) <= set(network.nodes) or sum(blocks.sizes) != head.n_features:
        raise HandoffError(
            f"head {head.head!r}: expected a node (or several joined to {head.n_features} features) of the backbone, "
            f"which has {', '.join(network.nodes)}, got {head.node[:200]!r}; save the head again"
        )
    return blocks


def _backbone_of(head: FittedHead, backbone: Backbone | None, weights: Any) -> Backbone:
    if (views := views_of(head.node)) > 1:
        raise HandoffError(
            f"head {head.head!r}: it takes {views} augmented views of each image side by side, and images alone have "
            "one; predict codes of join_views, or fit on join_views(store, rows=True), whose heads take plain images"
        )
    return recorded_backbone(
        head.spec,
        head.locator,
        backbone=backbone,
        weights=weights,
        owner=f"head {head.head!r}",
        error=HandoffError,
    )


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


def to_module(
    fitted: FittedHead | str | os.PathLike[str], *, weights: Any = None, backbone: Backbone | None = None
) -> nn.Module:
    """Return backbone and head as one network, the head's standardisation folded into its last layer.

    Parameters
    ----------
    fitted : FittedHead or path
        A linear head (logreg, softmax, svm, ridge, lda), or one behind a power or a normalisation of the codes
        (centroid, `SearchedHead`), which become a layer; also on several nodes that `join_layers` put together.
    weights, backbone
        As for `predict`.

    Returns
    -------
    nn.Module
        Input: float32 of shape (N, C, H, W), normalised (``fitted.preprocess(image)`` gives one such image). Output:
        scores of shape (N, n_classes); the largest is the class in ``module.classes``, and where the head is a
        (multinomial) logistic regression, or calibrated, their softmax is its probability. For several labels per
        image one score per label, predicted where it is above 0 (of logreg and softmax the log odds: their sigmoid is
        the probability); for a number the number, of shape (N, 1). In eval mode; `trunk` is frozen
        (``requires_grad_(True)`` unlocks it), `head` is trainable.

    Raises
    ------
    HeadError
        When the head is not linear, or its numbers are out of the range of float32.
    HandoffError, WeightsError
        As for `predict`.

    Examples
    --------
    >>> import featcache as fc
    >>> model = fc.to_module("flowers.head")  # doctest: +SKIP
    >>> model(fitted.preprocess(image)[None]).argmax(1)  # doctest: +SKIP
    """
    import torch

    from ._modules import ClassifierNetwork, JoinLayers, Standardise

    head = _open_head(fitted)
    form = network_form(head.estimator)
    W, b, prelude = form.weight, form.bias, None
    if form.unit or form.power != 1.0:
        prelude = Standardise(torch.from_numpy(form.shift), torch.from_numpy(form.scale), form.power, form.unit)
    else:
        W = W / form.scale
        b = b - W @ form.shift
    if head.temperature is not None:
        W, b = W / head.temperature, b / head.temperature
    _check_float32(head, W, b, *([] if prelude is None else [form.shift, form.scale]))
    network = _backbone_of(head, backbone, weights)
    blocks = _blocks(head, network)
    node = head.node if blocks is None else JoinLayers(blocks.nodes, blocks.shapes)
    classes = [head.target] if head.target else [str(c) for c in head.classes_]
    module = ClassifierNetwork(network.module(), node, torch.from_numpy(W), torch.from_numpy(b), classes, prelude)
    return module.eval()


def _check_float32(head: FittedHead, weight: np.ndarray, *others: np.ndarray) -> None:
    """Raise HeadError for numbers that the network's float32 makes infinite, or weights that it makes all zero."""
    with np.errstate(over="ignore", under="ignore"):
        cast = [array.astype(np.float32) for array in (weight, *others)]
    finite = all(np.isfinite(array).all() for array in cast)
    if not finite or (weight.any() and not cast[0].any()):
        sizes = ", ".join(f"{np.abs(array).max():.3g}" for array in (weight, *others))
        raise HeadError(
            f"head {head.head!r}: expected weights and intercepts in the range of float32, got sizes up to {sizes}; "
            "rescale what it was fitted on and fit again, or use predict"
        )
