"""From an image to the numbers that a network takes: `Preprocess`, the exact recipe as plain data.

``recipe`` holds the recipe, ``fields`` checks its fields, ``resizing`` chooses among the ways to resize: Pillow's,
``torch_kernel`` for PyTorch's, ``resampling`` for the exact window of a resized image that Pillow could not hold.
``views`` draws augmented views. ``inside`` is a recipe as a layer of a network.
"""

from ..images import DECODERS
from .recipe import IMAGENET_MEAN, IMAGENET_STD, MAX_RESIZED_SIDE, Preprocess
from .resizing import INTERPOLATIONS, MAX_SIDE, RESAMPLINGS
from .views import VIEWS_RECIPE

__all__ = [
    "DECODERS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INTERPOLATIONS",
    "MAX_RESIZED_SIDE",
    "MAX_SIDE",
    "RESAMPLINGS",
    "VIEWS_RECIPE",
    "Preprocess",
]
