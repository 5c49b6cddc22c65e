"""The exact recipe from an image to the numbers that a network takes, as plain data.

`Preprocess` needs Pillow and NumPy only, so the same object serves extraction (where torch is at hand) and a fitted
head (where it may not be). With ``resampling="reference"`` it gives, bit for bit, what the ``ImageClassification``
preset of torchvision gives for the same PIL image; tests hold it to that over random sizes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from ..errors import ImageError, PreprocessError
from ..images import ALPHAS, Payload, open_rgb
from .resampling import resize_window

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

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: Interpolations by the names that torchvision gives them.
INTERPOLATIONS: dict[str, Image.Resampling] = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
    "box": Image.Resampling.BOX,
    "hamming": Image.Resampling.HAMMING,
}

#: How resize and crop are combined: two steps as torchvision does, or one call of Pillow's resize with a box.
RESAMPLINGS: tuple[str, ...] = ("reference", "fused")

#: Decoder families; one so far.
DECODERS: tuple[str, ...] = ("pillow",)

#: Longest side that `resize` and `crop` may ask for, in pixels.
MAX_SIDE = 8192

#: Longest side that an image may have after a resize of its shorter edge. 2^24 is an aspect ratio of 65,536 at 256.
MAX_RESIZED_SIDE = 2**24

# An image that is enlarged beyond this many pixels is computed only where the crop keeps it (see .resampling).
_MAX_RESIZED_PIXELS = MAX_SIDE * MAX_SIDE

# Fields that a spec may leave out: they were not there, or not thought of, when it was written.
_OPTIONAL = frozenset(("exif", "alpha", "resampling", "decoder", "channels"))


@dataclasses.dataclass(frozen=True)
class Preprocess:
    """Resize, centre crop and normalisation, with the image policy that comes before them.

    Parameters
    ----------
    resize : int, (int, int) or None, default 256
        Length of the shorter edge in pixels (the longer one becomes ``int(size * long / short)``), or exactly (height,
        width), or no resize.
    crop : int, (int, int) or None, default 224
        Side or (height, width) of the centre crop in pixels. An image that is smaller is padded with black (zeros
        before normalisation). May be None only when `resize` is a pair.
    interpolation : {"bilinear", "nearest", "bicubic", "lanczos", "box", "hamming"}, default "bilinear"
        Pillow's filters, all of them with antialiasing but "nearest".
    mean, std : sequence of float, default ImageNet's
        Per channel, for values scaled to [0, 1].
    exif : bool, default True
        Turn images upright as EXIF says.
    alpha : {"white", "black", "drop"}, default "white"
        What transparency is composited on.
    resampling : {"reference", "fused"}, default "reference"
        "fused" resizes and crops in one call, faster and about one grey level off in 2 % of the bytes.
    decoder : {"pillow"}, default "pillow"
        Decoder family.
    channels : {3, 1}, default 3
        RGB, or grey.

    Raises
    ------
    PreprocessError
        For a field that makes no sense, or when images of different sizes would stay different.

    Examples
    --------
    >>> recipe = Preprocess(resize=8, crop=4)
    >>> recipe.shape
    (4, 4, 3)
    >>> recipe(np.zeros((10, 20, 3), np.uint8)).shape
    (3, 4, 4)
    >>> Preprocess.from_spec(recipe.spec()) == recipe
    True
    """

    resize: int | tuple[int, int] | None = 256
    crop: int | tuple[int, int] | None = 224
    interpolation: str = "bilinear"
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    exif: bool = True
    alpha: str = "white"
    resampling: str = "reference"
    decoder: str = "pillow"
    channels: int = 3

    def __post_init__(self) -> None:
        _choice("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        _choice("alpha", self.alpha, ALPHAS)
        _choice("resampling", self.resampling, RESAMPLINGS)
        _choice("decoder", self.decoder, DECODERS)
        _choice("exif", self.exif, (True, False))
        _choice("channels", self.channels, (3, 1))
        self._set("resize", _sides("resize", self.resize))
        crop = _sides("crop", self.crop)
        # A square pair and a number mean the same crop, so they must have the same spec.
        self._set("crop", crop[0] if isinstance(crop, tuple) and crop[0] == crop[1] else crop)
        self._set("mean", _numbers("mean", self.mean, self.channels))
        self._set("std", _numbers("std", self.std, self.channels))
        if any(np.float32(value) == 0 for value in self.std):
            raise PreprocessError(f"preprocess.std: expected no zeros, got {list(self.std)}; give 1.0 for no scaling")
        if self.crop is None and not isinstance(self.resize, tuple):
            raise PreprocessError(
                f"preprocess: expected a crop, or resize=(height, width), got crop=None and resize={self.resize}: "
                "images of different sizes would stay different; add one of them"
            )

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    # ------------------------------------------------------------------------------------------------ as data

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (H, W, C) of every image that comes out of `pixels`."""
        height, width = self._crop or self._pair
        return height, width, self.channels

    @property
    def _crop(self) -> tuple[int, int] | None:
        return (self.crop, self.crop) if isinstance(self.crop, int) else self.crop

    @property
    def _pair(self) -> tuple[int, int]:
        assert isinstance(self.resize, tuple)  # __post_init__ sees to it when there is no crop
        return self.resize

    def spec(self) -> dict[str, Any]:
        """Return the recipe as JSON types, every field named.

        Returns
        -------
        dict
            Pairs and per-channel numbers are lists; the fields are those of the constructor.
        """
        fields = ((field.name, getattr(self, field.name)) for field in dataclasses.fields(self))
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields}

    @classmethod
    def from_spec(cls, spec: Mapping[str, Any]) -> Preprocess:
        """Make the recipe that `spec` described.

        Parameters
        ----------
        spec : mapping
            As `spec` gives it; `exif`, `alpha`, `resampling`, `decoder` and `channels` may be left out.

        Returns
        -------
        Preprocess

        Raises
        ------
        PreprocessError
            For a missing field, a value that makes no sense, or a field that only a newer featcache knows.
        """
        if not isinstance(spec, Mapping):
            raise PreprocessError(
                f"preprocess: expected a dict of fields, got {type(spec).__name__}; give recipe.spec()"
            )
        known = {field.name for field in dataclasses.fields(cls)}
        unknown = sorted(str(name) for name in spec if name not in known)
        if unknown:
            raise PreprocessError(
                f"preprocess.{unknown[0]}: expected one of {', '.join(sorted(known))}, got a field that this version "
                "does not know; update featcache (pip install -U featcache)"
            )
        missing = sorted(known - _OPTIONAL - set(spec))
        if missing:
            raise PreprocessError(
                f"preprocess.{missing[0]}: expected a value, got none; give every field of recipe.spec()"
            )
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()}
        return cls(**fields)

    @classmethod
    def from_torchvision(cls, preset: Any) -> Preprocess:
        """Read the recipe off the transforms of a torchvision weights enum.

        Parameters
        ----------
        preset : torchvision.transforms._presets.ImageClassification
            What ``weights.transforms()`` returns.

        Returns
        -------
        Preprocess
            Gives the same numbers for PIL images.

        Raises
        ------
        PreprocessError
            For anything but a classification preset.
        """
        names = ("resize_size", "crop_size", "interpolation", "mean", "std")
        missing = [name for name in names if not hasattr(preset, name)]
        if missing:
            raise PreprocessError(
                f"preset {type(preset).__name__}: expected torchvision's ImageClassification, got an object without "
                f"{missing[0]}; give Preprocess(resize=…, crop=…, interpolation=…, mean=…, std=…) instead"
            )
        return cls(
            resize=_one_or_two(preset.resize_size),
            crop=_one_or_two(preset.crop_size),
            interpolation=str(getattr(preset.interpolation, "value", preset.interpolation)),
            mean=tuple(preset.mean),
            std=tuple(preset.std),
        )

    # ------------------------------------------------------------------------------------------------ at work

    def pixels(self, payload: Payload) -> np.ndarray:
        """Decode, resize and crop one image.

        Parameters
        ----------
        payload : bytes, PIL.Image.Image or numpy.ndarray
            As for `featcache.images.open_rgb`.

        Returns
        -------
        numpy.ndarray
            uint8 of `shape` (H, W, C), writable and contiguous.

        Raises
        ------
        ImageError
            When the image cannot be read, or is so elongated that its longer side would exceed 2^24 pixels.
        """
        image = open_rgb(payload, exif=self.exif, alpha=self.alpha, channels=self.channels)
        size = self._resized(image.size)
        crop = self._crop or (size[1], size[0])
        rows, top = _window(size[1], crop[0])
        columns, left = _window(size[0], crop[1])
        kept = self._resample(image, size, columns, rows)
        out = np.zeros((crop[0], crop[1], self.channels), np.uint8)
        out[top : top + len(rows), left : left + len(columns)] = kept.reshape(len(rows), len(columns), self.channels)
        return out

    def _resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the (width, height) that an image of `size` is resized to: torchvision's rule."""
        if self.resize is None:
            return size
        if isinstance(self.resize, tuple):
            return self.resize[1], self.resize[0]
        width, height = size
        short, long = min(size), max(size)
        longer = int(self.resize * long / short)
        if longer > MAX_RESIZED_SIDE:
            raise ImageError(
                f"image of {width}x{height}: expected an aspect ratio up to {MAX_RESIZED_SIDE // self.resize} for a "
                f"shorter edge of {self.resize}, got {long // short}; cut the image into pieces or leave it out"
            )
        return (self.resize, longer) if width <= height else (longer, self.resize)

    def _resample(self, image: Image.Image, size: tuple[int, int], columns: range, rows: range) -> np.ndarray:
        """Return the window `rows` x `columns` of the image resized to `size`."""
        method = INTERPOLATIONS[self.interpolation]
        if size == image.size:
            return np.asarray(image)[rows.start : rows.stop, columns.start : columns.stop]
        if self.resampling == "fused":
            return np.asarray(image.resize((len(columns), len(rows)), method, _box(image.size, size, columns, rows)))
        if size[0] * size[1] > max(_MAX_RESIZED_PIXELS, image.width * image.height):
            return resize_window(np.asarray(image), size, columns, rows, self.interpolation)
        return np.asarray(image.resize(size, method))[rows.start : rows.stop, columns.start : columns.stop]

    def normalize(self, pixels: np.ndarray) -> np.ndarray:
        """Scale to [0, 1], subtract `mean`, divide by `std`, and put channels first.

        Parameters
        ----------
        pixels : numpy.ndarray
            uint8 (N, H, W, C), as stacked from `pixels`.

        Returns
        -------
        numpy.ndarray
            float32 (N, C, H, W), contiguous; the same bits as torchvision's ``normalize``.

        Raises
        ------
        PreprocessError
            For another type or shape.
        """
        if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] != self.channels:
            raise PreprocessError(
                f"pixels: expected uint8 (N, H, W, {self.channels}), got {pixels.dtype} {pixels.shape}; stack what "
                "Preprocess.pixels() returns"
            )
        count, height, width, channels = pixels.shape
        out = np.empty((count, channels, height, width), np.float32)
        for image, planes in zip(pixels, out, strict=True):  # plane by plane: each stays in the cache for all its steps
            for channel, plane in enumerate(planes):
                # Torch's own three steps in torch's own precision; folding them into two would round differently.
                plane[...] = image[..., channel]
                plane /= np.float32(255)
                plane -= np.float32(self.mean[channel])
                plane /= np.float32(self.std[channel])
        return out

    def __call__(self, payload: Payload) -> np.ndarray:
        """Return one image as the network takes it: float32 (C, H, W).

        Parameters
        ----------
        payload : bytes, PIL.Image.Image or numpy.ndarray
            As for `pixels`.

        Returns
        -------
        numpy.ndarray
            float32 (C, H, W).
        """
        return self.normalize(self.pixels(payload)[None])[0]


def _window(length: int, wanted: int) -> tuple[range, int]:
    """Return what a centre crop keeps of an axis, and how many zeros come before it: torchvision's rounding."""
    if wanted > length:
        return range(length), (wanted - length) // 2
    start = round((length - wanted) / 2.0)  # to even, as in torchvision
    return range(start, start + wanted), 0


def _box(
    source: tuple[int, int], size: tuple[int, int], columns: range, rows: range
) -> tuple[float, float, float, float]:
    """Return the part of the source that the window of the resized image shows."""
    across, down = source[0] / size[0], source[1] / size[1]
    return (
        columns.start * across,
        rows.start * down,
        min(columns.stop * across, source[0]),
        min(rows.stop * down, source[1]),
    )


def _choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if not any(value is item or (type(value) is type(item) and value == item) for item in allowed):
        listed = ", ".join(map(str, allowed))
        raise PreprocessError(f"preprocess.{name}: expected one of {listed}, got {value!r}; choose one of them")


def _side(name: str, value: Any) -> int:
    number = _integer(value)
    if number is None or not 1 <= number <= MAX_SIDE:
        raise PreprocessError(
            f"preprocess.{name}: expected whole pixels from 1 to {MAX_SIDE}, got {value!r}; give e.g. {name}=224 or "
            f"{name}=(224, 224)"
        )
    return number


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else None


def _sides(name: str, value: Any) -> int | tuple[int, int] | None:
    if value is None:
        return None
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise PreprocessError(f"preprocess.{name}: expected (height, width), got {list(value)!r}; give two numbers")
        return _side(name, value[0]), _side(name, value[1])
    return _side(name, value)


def _one_or_two(value: Any) -> Any:
    """Torchvision keeps a single size as a list of one; everything else is checked by the constructor."""
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def _numbers(name: str, values: Any, channels: int) -> tuple[float, ...]:
    try:
        numbers = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        numbers = ()
    if len(numbers) != channels or not all(math.isfinite(value) for value in numbers):
        raise PreprocessError(
            f"preprocess.{name}: expected {channels} finite numbers, one per channel, got {values!r}; give e.g. "
            f"{name}={(0.5,) * channels}"
        )
    return numbers
