"""What a run consists of: the network and its blocks, the settings, and what a stage leaves frozen."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backbone import Backbone
from ..errors import FinetuneError
from ..handoff.modules import to_module
from ..handoff.opening import backbone_of, open_head
from ..heads import FittedHead
from ..preprocess import Preprocess
from .blocks import Block, blocks_of
from .rates import trained_blocks
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
        Whether a network was given, not a head. It is a copy: the given one stays as it is.
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
        if compare_with is not None:
            raise FinetuneError(
                "compare_with: expected a network to compare with a head, got a head, which is compared anyway"
            )
        fitted = _one_label(open_head(head))
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
    if any(True for _ in getattr(head, "prepare", head).buffers()) and hasattr(head, "prepare"):
        raise FinetuneError("network: expected one for normalised images, got one for bytes; use images='normalized'")
    other = None if compare_with is None else _one_label(open_head(compare_with))
    if other is not None and sorted(classes) != sorted(map(str, other.classes_.tolist())):
        raise FinetuneError(
            f"compare_with: expected a head for the network's classes ({', '.join(classes[:5])}…), got one for "
            f"{', '.join(map(str, other.classes_[:5]))}…; compare with another"
        )
    known = None if other is None else backbone_of(other, None, weights)
    return Opened(copy.deepcopy(head), blocks_of(head), recipe, classes, other, known, True)


def _one_label(head: FittedHead) -> FittedHead:
    if head.separator or head.target:
        raise FinetuneError(
            f"head {head.head!r}: expected one label per image, got a head for "
            f"{'a number' if head.target else 'several labels'}; train to_module(head) with a loop of your own"
        )
    return head


def training_of(
    stages: str | Stage | Sequence[Stage] | Training,
    n_blocks: int,
    *,
    given: dict[str, Any],
    rates: dict[str, Any],
    sizes: dict[str, Any],
    start: str,
    folder: Path,
    own: bool = False,
) -> Training:
    """Return the settings of a run: of a named strategy and what was given beside it, or as they are.

    A network of one's own (`own`) has a new top, which learns as fast as a new head.

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
    if start == "scratch":  # statistics of random weights are none
        given = {"batch_norm": "trained", **given}
    fitted = start in ("auto", "head") and not own
    if isinstance(stages, str):
        span = rates.pop("schedule_epochs", None)
        found = _continued(strategy(stages, n_blocks, fitted=fitted, **sizes), sizes.get("epochs"), folder)
        if span is not None:
            before = sum(stage.epochs for stage in found[:-1])
            found = (*found[:-1], replace(found[-1], schedule_epochs=span - before))
    else:
        found = (stages,) if isinstance(stages, Stage) else tuple(stages)
    return Training(tuple(replace(stage, **rates) for stage in found), **given)


def _continued(found: tuple[Stage, ...], epochs: int | None, folder: Path) -> tuple[Stage, ...]:
    """Return the stages of a named strategy; of a run that is in the folder all but the last as long as they were."""
    try:
        there = json.loads((folder / "run.json").read_bytes())["run"]
        known = [there[f"stage {i}"] for i in range(1, len(found) + 1)]
        lengths, warmups = [int(s["epochs"]) for s in known], [float(s["warmup"]) for s in known]
    except (OSError, ValueError, KeyError, TypeError):
        return found
    if epochs is not None:
        lengths[-1] = epochs - sum(lengths[:-1])
    if lengths[-1] < 1 or f"stage {len(found) + 1}" in there:
        return found  # another run, which is refused
    return tuple(
        replace(stage, epochs=length, warmup=warmup, schedule_epochs=None)
        for stage, length, warmup in zip(found, lengths, warmups, strict=True)
    )


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
    trained = trained_blocks(stage.unfreeze, blocks)
    return [block.name for block in blocks].index(trained[0].name) if trained else len(blocks)
