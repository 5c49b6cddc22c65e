"""`to_module`: backbone and head as one network."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backbone import Backbone
from ..errors import HandoffError, HeadError
from ..heads import FittedHead
from ..heads.linear import network_form
from .answering import Meaning
from .opening import backbone_of, blocks_of_head, open_head

if TYPE_CHECKING:
    from torch import nn

    from ..preprocess import Preprocess

__all__ = ["check_images", "preparation", "to_module"]

IMAGES = ("normalized", "uint8")


def to_module(
    fitted: FittedHead | str | os.PathLike[str],
    *,
    weights: Any = None,
    backbone: Backbone | None = None,
    images: str = "normalized",
) -> nn.Module:
    """Return backbone and head as one network, the head's standardisation folded into its last layer.

    Parameters
    ----------
    fitted : FittedHead or path
        A linear head (logreg, softmax, svm, ridge, lda), or one behind a power or a normalisation of the codes
        (centroid, `SearchedHead`), which become a layer; also on several nodes that `join_layers` put together.
    weights, backbone
        As for `predict`.
    images : {"normalized", "uint8"}, default "normalized"
        What the network takes. "normalized": float32 (N, C, H, W), as ``fitted.preprocess(image)`` gives one image.
        "uint8": bytes (N, C, H, W), with the preprocessing inside. Those of the recipe's size (which
        ``module.preprocess.pixels(image)`` gives, channels last) are normalised, bit for bit as the recipe does it.
        Others, all of one size, are resized and cropped as the recipe says, by torch's antialiased interpolation: few
        bytes differ from Pillow's, by one grey level (see `featcache.preprocess.inside`). Orientation, transparency and
        grey images are the caller's matter.

    Returns
    -------
    nn.Module
        Output: scores of shape (N, n_classes); the largest is the class in ``module.classes``, and where the head is a
        (multinomial) logistic regression, or calibrated, their softmax is its probability. For several labels per
        image one score per label, predicted where it is above 0 (of logreg and softmax the log odds: their sigmoid is
        the probability); for a number the number, of shape (N, 1). In eval mode; `trunk` is frozen
        (``requires_grad_(True)`` unlocks it), `head` is trainable. ``module.meaning`` keeps what the scores mean, for
        `predict`, `save_bundle` and `export`; copies of the network have it, too.

    Raises
    ------
    HeadError
        When the head is not linear, or its numbers are out of the range of float32.
    HandoffError
        For another value of `images`, and as for `predict`.
    WeightsError
        As for `predict`.

    Examples
    --------
    >>> import featcache as fc
    >>> model = fc.to_module("flowers.head")  # doctest: +SKIP
    >>> model(fitted.preprocess(image)[None]).argmax(1)  # doctest: +SKIP
    """
    import torch

    from .._modules import ClassifierNetwork, JoinLayers, Standardise
    from ..backbone.waking import trainable

    check_images(images)
    head = open_head(fitted)
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
    network = backbone_of(head, backbone, weights)
    blocks = blocks_of_head(head, network)
    node = head.node if blocks is None else JoinLayers(blocks.nodes, blocks.shapes)
    classes = [head.target] if head.target else [str(c) for c in head.classes_]
    recipe = network.preprocess
    module = ClassifierNetwork(
        trainable(network.module()),
        node,
        torch.from_numpy(W),
        torch.from_numpy(b),
        classes,
        prelude,
        preparation(images, recipe),
        recipe,
    )
    module.meaning = Meaning.of(head).kept()
    return module.eval()


def check_images(images: str) -> None:
    """Raise HandoffError unless `images` is a kind of input that a network can take."""
    if images not in IMAGES:
        raise HandoffError(f"images: expected one of {', '.join(IMAGES)}, got {images!r}; correct it")


def preparation(images: str, recipe: Preprocess) -> nn.Module | None:
    """Return the layer that stands before a trunk which is given images of that kind."""
    if images == "normalized":
        return None
    from ..preprocess.inside import PixelsToInput

    return PixelsToInput(recipe)


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
