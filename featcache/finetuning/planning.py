"""What a run consists of: the network and its blocks, the settings, and what a stage leaves frozen."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..backbone import Backbone
from ..errors import FinetuneError
from ..handoff.modules import to_module
from ..handoff.opening import backbone_of, open_head
from ..heads import FittedHead
from ..preprocess import Preprocess
from .blocks import Block, blocks_of
from .settings import Stage, Training
from .strategies import strategy

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Opened", "frozen_below", "opened_network", "start_of", "training_of"]

_STARTS = ("auto", "head", "fresh", "scratch")


@dataclass(frozen=True, eq=False)
class Opened:
    """The network of a run.

    Parameters
    ----------
    module : nn.Module
        Backbone and head.
    blocks : tuple of Block
        Of its trunk.
    recipe : Preprocess
        From an image to its input.
    classes : tuple of str
        In the order of its scores.
    head : FittedHead or None
        What it was made of, or is to be compared with.
    backbone : Backbone or None
        Of that head.
    own : bool
        Whether a network was given, not a head.
    """

    module: nn.Module
    blocks: tuple[Block, ...]
    recipe: Preprocess
    classes: tuple[str, ...]
    head: FittedHead | None
    backbone: Backbone | None
    own: bool


def opened_network(
    head: Any, *, weights: Any = None, backbone: Backbone | None = None, compare_with: Any = None
) -> Opened:
    """Return the network of a head, or a given network with what it says of itself.

    Raises
    ------
    FinetuneError
        A head for several labels or numbers; a network without classes or without a recipe.
    """
    if isinstance(head, (FittedHead, str, os.PathLike)):
        fitted = open_head(head)
        if fitted.separator or fitted.target:
            raise FinetuneError(
                f"head {fitted.head!r}: expected one label per image, got a head for "
                f"{'a number' if fitted.target else 'several labels'}; train to_module(head) with a loop of your own"
            )
        found = backbone_of(fitted, backbone, weights)
        module = to_module(fitted, backbone=found)
        classes = tuple(str(name) for name in fitted.classes_)
        return Opened(module, blocks_of(module), found.preprocess, classes, fitted, found, False)
    classes = tuple(getattr(head, "classes", ()))
    recipe = backbone.preprocess if backbone is not None else getattr(head, "preprocess", None)
    if not classes or not isinstance(recipe, Preprocess):
        raise FinetuneError(
            f"network {type(head).__name__}: expected classes and a recipe, as to_module and assemble give them, "
            "got neither or one; use those, or pass backbone="
        )
    other = None if compare_with is None else open_head(compare_with)
    known = backbone if other is None or backbone is not None else backbone_of(other, None, weights)
    return Opened(head, blocks_of(head), recipe, classes, other, known, True)


def training_of(
    stages: str | Stage | Sequence[Stage] | Training,
    n_blocks: int,
    *,
    given: dict[str, Any],
    rates: dict[str, Any],
    sizes: dict[str, Any],
) -> Training:
    """Return the settings of a run: of a named strategy and what was given beside it, or as they are.

    Raises
    ------
    FinetuneError
        An unknown name; settings given twice.
    """
    twice = (
        {**given, **rates, **sizes} if isinstance(stages, Training) else sizes if not isinstance(stages, str) else {}
    )
    if twice:
        what = "a Training" if isinstance(stages, Training) else "stages of your own"
        raise FinetuneError(f"finetune: expected no {', '.join(twice)} beside {what}, which say it; leave one out")
    if isinstance(stages, Training):
        return stages
    if isinstance(stages, str):
        found = strategy(stages, n_blocks, **sizes)
        if stages == "scratch":
            given = {"batch_norm": "trained", **given}
    else:
        found = (stages,) if isinstance(stages, Stage) else tuple(stages)
    return Training(tuple(replace(stage, **rates) for stage in found), **given)


def start_of(start: str, stages: Any) -> str:
    """Return what a run starts from; "auto" is "scratch" for that strategy."""
    if start not in _STARTS:
        raise FinetuneError(f"start: expected one of {', '.join(_STARTS)}, got {start!r}")
    return "scratch" if start == "auto" and stages == "scratch" else start


def frozen_below(blocks: Sequence[Block], stage: Stage) -> int:
    """Return how many blocks, from the input on, a stage leaves frozen.

    Raises
    ------
    FinetuneError
        Blocks that the network has not.
    """
    if stage.unfreeze == "all":
        return 0
    if stage.unfreeze == "head":
        return len(blocks)
    if isinstance(stage.unfreeze, int):
        return max(0, len(blocks) - stage.unfreeze)
    names = [block.name for block in blocks]
    unknown = [name for name in stage.unfreeze if name not in names]
    if unknown:
        raise FinetuneError(
            f"stage {stage.title}: expected blocks such as {', '.join(names[-3:])}, got {unknown[0]!r}; "
            f"the network has {', '.join(names)}"
        )
    return min(names.index(name) for name in stage.unfreeze)
