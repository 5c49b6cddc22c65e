"""Hand-off: heads and networks on raw images, as one network, as one bundle, as files of other programs.

* ``predicting``: `predict`, `predict_iter` (``streaming``: images to batches; ``answering``: pixels to lines)
* ``modules``: `to_module`, backbone and head as one network; ``initialising``: the same from random numbers
* ``assembling``: `assemble`, one's own network on top; `backbone_of_module`, a trained trunk as a backbone again
* ``bundle``: `save_bundle`, `load_bundle` (``archive``: its members in a file or folder, ``manifest``: what it says of
  them, ``rebuilding``: a network as tensors and recipe, ``card``: the model card)
* ``exporting``: `export`, by the ending of a name (``programs``: .pt2, .onnx, .safetensors; ``checking``: whether they
  compute the same)
* ``opening``: what all of them begin with
"""

from .assembling import assemble, backbone_of_module
from .bundle import Bundle, load_bundle, save_bundle
from .exporting import Exported, export
from .initialising import fresh, initialise, with_fresh_head
from .modules import to_module
from .predicting import predict, predict_iter

__all__ = [
    "Bundle",
    "Exported",
    "assemble",
    "backbone_of_module",
    "export",
    "fresh",
    "initialise",
    "load_bundle",
    "predict",
    "predict_iter",
    "save_bundle",
    "to_module",
    "with_fresh_head",
]
