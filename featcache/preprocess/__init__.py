"""From an image to the numbers that a network takes: `Preprocess`, the exact recipe as plain data.

``recipe`` holds the recipe, ``resampling`` the exact window of a resized image that Pillow could not hold.
"""

from .recipe import (
    DECODERS,
    IMAGENET_MEAN,
    IMAGENET_STD,
    INTERPOLATIONS,
    MAX_RESIZED_SIDE,
    MAX_SIDE,
    RESAMPLINGS,
    Preprocess,
)

__all__ = [
    "DECODERS",
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "INTERPOLATIONS",
    "MAX_RESIZED_SIDE",
    "MAX_SIDE",
    "RESAMPLINGS",
    "Preprocess",
]
