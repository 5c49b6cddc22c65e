"""`predict` and `predict_iter`: labels of raw images, with the preprocessing and the network that belong to a model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..backbone import Backbone
from ..errors import HandoffError
from ..features import FeatureSet
from ..heads import FittedHead
from ..progress import Progress, progress_for
from ..sources import ImageSource
from .answering import Answers, HeadAnswers, Meaning, NetworkAnswers, best, lines_of_head
from .bundle import Bundle, load_bundle
from .kinds import is_bundle, is_module
from .opening import backbone_of, open_head
from .streaming import Item, answered, items_of, items_of_source

if TYPE_CHECKING:
    from torch import nn

__all__ = ["predict", "predict_iter"]


def predict(
    fitted: FittedHead | Bundle | nn.Module | str | os.PathLike[str],
    images: Any,
    *,
    head: FittedHead | str | os.PathLike[str] | None = None,
    top_k: int | None = None,
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
    fitted : FittedHead, Bundle, nn.Module or path
        The head or bundle, or the file it was saved to; or a network of `to_module` or `assemble`, fine-tuned or not.
    images : path, list of paths, folder, arrays, PIL images, ImageSource, iterator or FeatureSet
        What to predict. Codes (a FeatureSet) must have the head's own spec. An iterator as for `predict_iter`, which
        does not wait for its end.
    head : FittedHead or path, default=None
        Of a network that does not itself know its preprocessing or what its scores mean: the head that it was made
        of. Networks of `to_module` know both.
    top_k : int, default=None
        So many labels with the highest scores, instead of the scores of all.
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
        image that cannot be read. With `top_k` ``"top"`` instead of ``"scores"``: a list of ``{"label", "score"}``,
        the best first. A head fitted with `reject` adds ``"accepted"``: whether it is sure enough; one
        fitted with `novelty` adds ``"novelty": {"score", "novel"}``, novel where the score is above 0. A head for
        several labels per image joins them in ``"label"`` and lists them in ``"labels"``; one for numbers gives
        ``{"id", "value"}``. A network gives the softmax of its scores; one made of a head gives them as they
        are where the head has no probabilities, and the sigmoid for several labels. `reject` and `novelty` belong to
        the head's codes, which fine-tuning changes, so a network gives neither.

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
    _check(top_k=top_k, batch_size=batch_size, workers=workers)
    model = _opened(fitted)
    if isinstance(images, FeatureSet):
        return best(_of_codes(model, images, top_k), top_k)
    source = None if _is_stream(images) else _open_images(images)
    items = items_of(images) if source is None else items_of_source(source)
    found: list[dict[str, Any]] = []
    answers = _answers(model, head, weights, backbone, device, top_k)
    with progress_for(progress) as bar:
        bar.start("predicting", None if source is None else len(source))
        for lines in _run(answers, items, batch_size, workers, device):
            found += best(lines, top_k)
            bar.advance(len(lines))
    return found


def predict_iter(
    fitted: FittedHead | Bundle | nn.Module | str | os.PathLike[str],
    images: Any,
    *,
    head: FittedHead | str | os.PathLike[str] | None = None,
    top_k: int | None = None,
    weights: Any = None,
    backbone: Backbone | None = None,
    batch_size: int | None = None,
    workers: int | None = None,
    device: str = "auto",
) -> Iterator[dict[str, Any]]:
    """Predict a stream of images lazily: neither images nor answers are held for longer than a batch.

    Parameters
    ----------
    fitted, head, top_k, weights, backbone, workers, device
        As for `predict`.
    images : iterable
        PIL images, arrays, encoded bytes, paths, or pairs ``(id, image)`` of a text or number and one of these; also
        whatever `predict` takes but codes. It is read only as far as answers are asked for, one batch at a time.
    batch_size : int, default=None
        Images read before the first of them is answered; 1 answers each at once (a camera), None = what keeps the
        device busy.

    Returns
    -------
    iterator of dict
        As the lines of `predict`, in the order of the stream. An image that came without an id gets its position, in
        8 digits, or its path. What is no image gives ``{"id", "error"}``; what the stream itself raises comes out
        after the answers for the images before.

    Raises
    ------
    HandoffError, HeadError, WeightsError
        As for `predict`; at once, before the first image is asked for.

    Examples
    --------
    >>> import featcache as fc
    >>> for line in fc.predict_iter("flowers.head", camera(), batch_size=1):  # doctest: +SKIP
    ...     print(line["label"])
    """
    _check(top_k=top_k, batch_size=batch_size, workers=workers)
    if isinstance(images, FeatureSet):
        raise HandoffError("images: expected a stream of images, got codes; use predict, which answers them at once")
    model = _opened(fitted)
    items = items_of(images) if _is_stream(images) else items_of_source(_open_images(images))
    answers = _answers(model, head, weights, backbone, device, top_k)
    batches = _run(answers, items, batch_size, workers, device)
    return (line for lines in batches for line in best(lines, top_k))


def _check(**numbers: int | None) -> None:
    for name, value in numbers.items():
        least = 0 if name == "workers" else 1
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
            raise HandoffError(f"{name}: expected a whole number of {least} or more, got {value!r}")


def _opened(model: Any) -> Any:
    """The head, bundle or network that is meant."""
    if isinstance(model, Bundle) or is_module(model):
        return model
    return load_bundle(model) if is_bundle(model) else open_head(model)


def _of_codes(model: Any, codes: FeatureSet, top_k: int | None) -> list[dict[str, Any]]:
    fitted = model.head if isinstance(model, Bundle) else model
    if not isinstance(fitted, FittedHead):
        raise HandoffError("images: expected images for a network, got codes; give images, or a head for codes")
    _check_top(fitted.target, top_k)
    return lines_of_head(fitted, codes.row_ids.tolist(), codes)


def _answers(model: Any, head: Any, weights: Any, backbone: Backbone | None, device: str, top_k: int | None) -> Answers:
    target = Backbone.usual_device() if device == "auto" else device
    if is_module(model):
        given = {"weights": weights, "backbone": backbone}
        if wrong := [name for name, value in given.items() if value is not None]:
            raise HandoffError(f"{wrong[0]}: expected a head to find the backbone of, got a network; leave it out")
        meaning = Meaning.of_module(model, None if head is None else open_head(head))
        _check_top(meaning.target, top_k)
        return NetworkAnswers(model, meaning, target)
    if head is not None:
        raise HandoffError("head: expected a network that was made of it, got a head or bundle; leave it out")
    if isinstance(model, Bundle):
        _check_top(model.manifest["target"], top_k)
        return model.answers(weights=weights, backbone=backbone, device=target)
    _check_top(model.target, top_k)
    return HeadAnswers(model, backbone_of(model, backbone, weights), target)


def _check_top(target: str, top_k: int | None) -> None:
    if target and top_k is not None:
        raise HandoffError(f"top_k: expected a head with labels, got one for the number {target!r}; leave it out")


def _run(
    answers: Answers, items: Iterator[Item], batch_size: int | None, workers: int | None, device: str
) -> Iterator[list[dict[str, Any]]]:
    target = Backbone.usual_device() if device == "auto" else device
    threads = Backbone.usual_threads() if workers is None else workers
    return answered(answers, items, batch_size or Backbone.usual_batch(target), threads)


def _is_stream(images: Any) -> bool:
    """Whether images come one by one, and nobody knows how many; HandoffError for an open file, which gives lines."""
    if hasattr(images, "read") and not isinstance(images, ImageSource):
        raise HandoffError(
            f"images: expected images or a stream of them, got an open file ({type(images).__name__}); give [its path] "
            "or [file.read()]"
        )
    return hasattr(images, "__iter__") and not hasattr(images, "__len__") and not isinstance(images, ImageSource)


def _open_images(images: Any) -> ImageSource:
    if isinstance(images, ImageSource):
        return images
    if isinstance(images, (str, os.PathLike)):
        return ImageSource.from_paths([images])
    if isinstance(images, Sequence) and images and all(isinstance(i, (str, os.PathLike)) for i in images):
        return ImageSource.from_paths(list(images))
    return ImageSource.open(images)
