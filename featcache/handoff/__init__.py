"""Hand-off: a fitted head on raw images (`predict`), and backbone and head as one network (`to_module`)."""

from .modules import to_module
from .predicting import predict

__all__ = ["predict", "to_module"]
