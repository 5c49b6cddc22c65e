"""`assemble`: a backbone's lower part and a network of one's own on top. `backbone_of_module`: the way back."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..backbone import Backbone
from ..errors import HandoffError
from .initialising import initialise
from .modules import check_images, preparation

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["assemble", "backbone_of_module"]


def assemble(
    backbone: Backbone,
    top: nn.Module,
    classes: Sequence[str],
    *,
    seed: int | None = 0,
    images: str = "normalized",
) -> nn.Module:
    """Replace the last blocks of a backbone by a network of one's own.

    Parameters
    ----------
    backbone : Backbone
        Cut at one node, e.g. ``Backbone("resnet18", nodes="layer3", pooling="none")``; "none" hands on the map itself.
    top : nn.Module
        From a batch of the node's codes, (N, *backbone.output_shapes[node]), to scores (N, n_classes). It is copied and
        never touched; lazy layers get their sizes.
    classes : sequence of str
        Labels, in the order of the scores.
    seed : int or None, default=0
        The copy gets new numbers by `initialise`; None leaves the numbers that it has.
    images : {"normalized", "uint8"}, default "normalized"
        As for `to_module`.

    Returns
    -------
    nn.Module
        Images → scores (N, n_classes), with attributes `trunk`, `top`, `classes` and `initialised_seed`. In eval mode;
        `trunk` is frozen (``requires_grad_(True)`` unlocks it), `top` trainable.

    Raises
    ------
    HandoffError
        For a backbone with several nodes, classes that are not distinct, or a top that does not take the node's codes
        or does not give a score per class: a batch of two is tried.

    Examples
    --------
    >>> from torch import nn
    >>> lower = Backbone("resnet18", nodes="layer3", pooling="none")  # doctest: +SKIP
    >>> top = nn.Sequential(nn.Conv2d(256, 64, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))
    >>> model = assemble(lower, top, ["cat", "dog"])  # doctest: +SKIP
    """
    from .._modules import AssembledNetwork
    from ..backbone.waking import trainable

    check_images(images)
    names = _distinct(classes)
    node = _only_node(backbone)
    own = _copied(top)
    trunk, recipe = trainable(backbone.module()), backbone.preprocess
    _try(own, (2, *backbone.output_shapes[node]), len(names), node)
    if seed is not None:
        initialise(own, seed)
    model = AssembledNetwork(trunk, node, own.requires_grad_(True), names, preparation(images, recipe), recipe)
    model.initialised_seed = seed
    return model.eval()


def _distinct(classes: Sequence[str]) -> list[str]:
    names = [] if isinstance(classes, str) else [str(name) for name in classes]
    if not names or len(set(names)) != len(names):
        raise HandoffError(f"classes: expected distinct labels, one per score, got {classes!r:.200}; correct them")
    return names


def _only_node(backbone: Backbone) -> str:
    if not isinstance(backbone, Backbone):
        raise HandoffError(f"backbone: expected a Backbone, got {type(backbone).__name__}; wrap it in one")
    if len(backbone.nodes) != 1:
        raise HandoffError(
            f"backbone: expected one node for the top to stand on, got {', '.join(backbone.nodes)}; name one with "
            "nodes="
        )
    return backbone.nodes[0]


def _copied(top: nn.Module) -> nn.Module:
    from torch import nn

    if not isinstance(top, nn.Module):
        raise HandoffError(f"top: expected an nn.Module, got {type(top).__name__}; give codes → scores as a module")
    try:
        return copy.deepcopy(top).cpu()
    except Exception as error:  # whatever a user's class does when it is copied
        raise HandoffError(f"top {type(top).__name__}: cannot be copied ({_line(error)}); make it so") from error


def _try(top: nn.Module, shape: tuple[int, ...], classes: int, node: str) -> None:
    """Put a batch through the top, or say why it does not go."""
    import torch

    label = f"top {type(top).__name__} on node {node!r}"
    wanted = f"scores of shape (2, {classes}) for codes of shape {shape}"
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            scores: Tensor = top.eval()(torch.zeros(shape))
    except Exception as error:  # whatever a user's forward raises
        raise HandoffError(
            f"{label}: expected {wanted}, got an error ({_line(error)}); fit its first layer to the node, or "
            "name another"
        ) from error
    got = tuple(scores.shape) if isinstance(scores, torch.Tensor) else type(scores).__name__
    if not isinstance(scores, torch.Tensor) or got != (2, classes) or not scores.is_floating_point():
        raise HandoffError(f"{label}: expected {wanted}, got {got}; give one score per class")


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200].rstrip(". ") or type(error).__name__


def backbone_of_module(
    model: nn.Module, like: Backbone | None = None, *, nodes: str | Sequence[str] | None = None
) -> Backbone:
    """Return a fine-tuned network's trunk as a backbone, whose codes are what the trunk itself computes.

    Parameters
    ----------
    model : nn.Module
        From `to_module` or `assemble`, trained further since; copied, and never touched.
    like : Backbone, optional
        The backbone that the network was made with: needed for a network of one's own, and where it is not known how
        images become inputs.
    nodes : str or sequence of str, optional
        Other nodes; by default those of the network, pooled as they are there.

    Returns
    -------
    Backbone
        Cut at the same nodes. Its weights are a state_dict: what is to be found again by name must be saved
        (``torch.save(model.state_dict(), path)``) and given as ``weights=path``, which gives the same backbone.

    Raises
    ------
    HandoffError
        When the network has no trunk that is a cut backbone, or `like` is needed.
    WeightsError
        When `like` is another network.

    Examples
    --------
    >>> tuned = backbone_of_module(model)  # doctest: +SKIP
    >>> store = fc.extract("flowers/", tuned, "tuned.features")  # doctest: +SKIP
    """
    from ..backbone.cut import Cut, HookCut
    from ..backbone.own import with_weights

    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, (Cut, HookCut)):
        raise HandoffError(
            f"model {type(model).__name__}: expected a network from to_module or assemble, got one without a cut "
            "backbone; give its state_dict as Backbone(..., weights=)"
        )
    recipe = getattr(model, "preprocess", None) if like is None else like.preprocess
    built = trunk.built if isinstance(trunk, Cut) else None
    own = None if built is not None else like
    if recipe is None or (built is None and own is None):
        raise HandoffError(
            f"model {type(model).__name__}: expected the backbone that it was made with, got none; pass like="
        )
    pooling: Any = dict(trunk.poolings) if nodes is None else "avg"
    options = {"nodes": list(trunk.poolings) if nodes is None else nodes, "pooling": pooling, "preprocess": recipe}
    inner = trunk.trunk if isinstance(trunk, Cut) else trunk.model
    state = {name: tensor.detach().cpu().clone() for name, tensor in inner.state_dict().items()}
    if own is not None:
        return with_weights(own, state, **options)
    assert built is not None  # or there is an own network
    arch, kwargs, _ = built
    return Backbone(arch, state, model_kwargs=kwargs, **options)
