"""Hand-off: heads and networks on raw images, as one network, as one bundle, as files of other programs.

* ``opening``: what all of them begin with: a head, its backbone and its nodes; ``kinds``: what was given
* ``predicting``: `predict`, `predict_iter` (``streaming``: images to batches; ``answering``: pixels to lines)
* ``modules``: `to_module`, backbone and head as one network; ``initialising``: the same from random numbers
* ``assembling``: `assemble`, one's own network on top; `backbone_of_module`, a trained trunk as a backbone again
* ``bundling``: `save_bundle`; ``bundle``: `load_bundle` (``archive``: its members in a file or folder, ``manifest``:
  what it says of them, ``rebuilding``: a network as tensors and recipe, ``parts``: whether these fit,
  ``card``: the model card)
* ``exporting``: `export`, by the ending of a name (``publishing``: models; ``programs``: .pt2, .onnx, .safetensors;
  ``checking``: whether they compute the same)

Names are loaded when they are first used, since features are exported without all that heads need.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .assembling import assemble as assemble
    from .assembling import backbone_of_module as backbone_of_module
    from .bundle import Bundle as Bundle
    from .bundle import load_bundle as load_bundle
    from .bundling import save_bundle as save_bundle
    from .exporting import export as export
    from .initialising import fresh as fresh
    from .initialising import initialise as initialise
    from .initialising import with_fresh_head as with_fresh_head
    from .modules import to_module as to_module
    from .predicting import predict as predict
    from .predicting import predict_iter as predict_iter
    from .publishing import Exported as Exported

_WHERE = {
    "Bundle": "bundle",
    "Exported": "publishing",
    "assemble": "assembling",
    "backbone_of_module": "assembling",
    "export": "exporting",
    "fresh": "initialising",
    "initialise": "initialising",
    "load_bundle": "bundle",
    "predict": "predicting",
    "predict_iter": "predicting",
    "save_bundle": "bundling",
    "to_module": "modules",
    "with_fresh_head": "initialising",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
