"""Hand-off: a fitted head on raw images (`predict`), and backbone and head as one network (`to_module`).

* ``opening``: a head, its backbone and its nodes
* ``predicting``: `predict`
* ``modules``: `to_module`; ``initialising``: the same from random numbers
* ``assembling``: `assemble`, one's own network on top; `backbone_of_module`, a trained trunk as a backbone again
"""

from .assembling import assemble, backbone_of_module
from .initialising import fresh, initialise, with_fresh_head
from .modules import to_module
from .predicting import predict

__all__ = ["assemble", "backbone_of_module", "fresh", "initialise", "predict", "to_module", "with_fresh_head"]
