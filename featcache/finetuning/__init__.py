"""Fine-tuning: a network that begins at a head's accuracy, trained stage by stage.

* ``settings``, ``strategies``: stages as data, and those of the field by name
* ``parting``, ``feeding``: which images train, which judge; images as batches, whatever their order and the threads
* ``blocks``, ``modes``: what can be frozen, and which norms keep their running statistics
* ``rates``, ``finding``: who learns how fast, and which rate to begin with
* ``losses``, ``stepping``, ``memory``, ``seeding``: one step of the optimiser
* ``running``, ``at_work``, ``place``, ``evaluating``: the loop over stages, epochs and steps
* ``checkpoints``, ``records``: what of it survives, and what a run's folder says
* ``averaging``, ``finishing``, ``plotting``: means of weights, what comes out, its curves
* ``tuning``, ``planning``, ``starting``, ``caching``, ``whole``, ``outcome``: `finetune`: what a run starts from, its
  frozen part run once, and whether it was worth it
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blocks import Block as Block
    from .blocks import blocks_of as blocks_of
    from .blocks import head_parameters as head_parameters
    from .blocks import split_after as split_after
    from .evaluating import scores_of as scores_of
    from .feeding import ImageFeed as ImageFeed
    from .finding import find_lr as find_lr
    from .outcome import Outcome as Outcome
    from .running import Trained as Trained
    from .running import train as train
    from .settings import Stage as Stage
    from .settings import Training as Training
    from .strategies import strategy as strategy
    from .tuning import FineTuned as FineTuned
    from .tuning import finetune as finetune

_WHERE = {
    "Block": "blocks",
    "FineTuned": "tuning",
    "ImageFeed": "feeding",
    "Outcome": "outcome",
    "Stage": "settings",
    "Trained": "running",
    "Training": "settings",
    "blocks_of": "blocks",
    "find_lr": "finding",
    "finetune": "tuning",
    "head_parameters": "blocks",
    "scores_of": "evaluating",
    "split_after": "blocks",
    "strategy": "strategies",
    "train": "running",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
