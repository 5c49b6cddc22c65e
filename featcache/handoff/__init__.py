"""Hand-off: heads and networks on raw images, as one network, as one bundle, as files of other programs.

* ``predicting``: `predict`, `predict_iter` (``streaming``: images to batches; ``answering``: pixels to lines)
* ``modules``: `to_module`, backbone and head as one network
* ``bundle``: `save_bundle`, `load_bundle` (``archive``: its members in a file or folder, ``manifest``: what it says of
  them, ``rebuilding``: a network as tensors and recipe, ``card``: the model card)
* ``exporting``: `export`, by the ending of a name (``programs``: .pt2, .onnx, .safetensors; ``checking``: whether they
  compute the same)
* ``opening``: what all of them begin with
"""

from .bundle import Bundle, load_bundle, save_bundle
from .exporting import Exported, export
from .modules import to_module
from .predicting import predict, predict_iter

__all__ = ["Bundle", "Exported", "export", "load_bundle", "predict", "predict_iter", "save_bundle", "to_module"]
