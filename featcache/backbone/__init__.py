"""Frozen pretrained networks: which there are, where their weights come from, where they are cut.

Importing this package, constructing a `Backbone` and asking for its ``request()`` import neither torch nor torchvision.

* ``frozen``: `Backbone`, light until it is used, and the two listings; ``working``: what it does then
* ``arguments``: what its arguments mean
* ``zoo``: torchvision's architectures, recipes and weights enums
* ``weights``: reading, fetching and matching tensors; ``misfits``: what to say of those that do not match
* ``cut``: cutting a network at nodes, pooling
* ``network``: the loaded network, its digest and its forward pass (``crew``: the threads it runs in; ``joined`` and
  ``normalise``: pixels as its input)
* ``engines``: what runs a network, and proof that it computes what it should; ``fused``: layers fused and packed for a
  CPU, dtypes per layer (``packing``: one layer; ``pooling``: max pooling); ``packages``: compiled ones and their
  private cache (``compiling``: the child that makes them, ``native``: calls into them); ``mixed``: which layers must
  stay in float32; ``cuda``: streams through GPUs
* ``own``: a user's own network instead of torchvision's
* ``units``: the blocks that a network is built of; ``waking``: what it does in training only
* ``recorded``: the backbone of a store or a head, found again by what these recorded
"""

from .frozen import Backbone, list_backbones, list_nodes

__all__ = ["Backbone", "list_backbones", "list_nodes"]
