"""The exact recipe from an image to the numbers that a network takes, as plain data.

`Preprocess` needs Pillow and NumPy only, and torch where its fields ask for it, so the same object serves extraction
and a fitted head. With ``resampling="reference"`` it gives, bit for bit, what the ``ImageClassification`` preset of
torchvision gives for the same PIL image; tests hold it to that over random sizes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import ImageError, PreprocessError
from ..images import ALPHAS, DECODERS, Payload, Picture, decoding_bytes, is_jpeg, open_picture, scale_for, size_of
from .fields import choice, numbers, one_or_two, sides
from .resizing import INTERPOLATIONS, RESAMPLINGS, resized_crop, window_of
from .torch_kernel import TORCH_KERNELS
from .views import view_of

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "MAX_RESIZED_SIDE", "Preprocess"]

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

#: Longest side that an image may have after a resize of its shorter edge. 2^24 is an aspect ratio of 65,536 at 256.
MAX_RESIZED_SIDE = 2**24

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
    resampling : {"reference", "fused", "torch"}, default "reference"
        How resize and crop are computed, see below.
    decoder : {"pillow", "turbo", "scaled"}, default "pillow"
        Decoder family, see below.
    channels : {3, 1}, default 3
        RGB, or grey.

    Raises
    ------
    PreprocessError
        For a field that makes no sense, or when images of different sizes would stay different.

    Notes
    -----
    Every value below follows the same rules for sizes, crops, orientation, transparency and broken files. "reference"
    with "pillow" is what torchvision's presets do, bit for bit; the others are for the precision class "tolerance".

    ============= ============ =========================================================================================
    field         value        what it computes
    ============= ============ =========================================================================================
    `resampling`  "reference"  Pillow's resize, then the crop
    `resampling`  "fused"      one call of Pillow's resize for the cropped part: about one grey level off in 2 % of
                               the bytes
    `resampling`  "torch"      PyTorch's antialiased resize of bytes, then the crop; "bilinear" and "bicubic" only: of
                               photos, one grey level off in about 1 % of the bytes or less
    `decoder`     "pillow"     Pillow's decoders
    `decoder`     "turbo"      torchvision's for plain upright JPEG files (the same pixels), Pillow's for all others; no
                               effect but with "torch", since Pillow's resizes take Pillow's images
    `decoder`     "scaled"     as "turbo", but JPEG files of which 1/2, 1/4 or 1/8 is at least twice what `resize` asks
                               for are decoded at that size; smaller ones have the same pixels as ever. No effect with
                               ``resize=None``
    ============= ============ =========================================================================================

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
        choice("interpolation", self.interpolation, tuple(INTERPOLATIONS))
        choice("alpha", self.alpha, ALPHAS)
        choice("resampling", self.resampling, RESAMPLINGS)
        choice("decoder", self.decoder, DECODERS)
        choice("exif", self.exif, (True, False))
        choice("channels", self.channels, (3, 1))
        self._set("resize", sides("resize", self.resize))
        crop = sides("crop", self.crop)
        # A square pair and a number mean the same crop, so they must have the same spec.
        self._set("crop", crop[0] if isinstance(crop, tuple) and crop[0] == crop[1] else crop)
        self._set("mean", numbers("mean", self.mean, self.channels))
        self._set("std", numbers("std", self.std, self.channels))
        if any(np.float32(value) == 0 for value in self.std):
            raise PreprocessError(f"preprocess.std: expected no zeros, got {list(self.std)}; give 1.0 for no scaling")
        if self.resampling == "torch" and self.interpolation not in TORCH_KERNELS:
            raise PreprocessError(
                f"preprocess.resampling: expected another than 'torch' for {self.interpolation!r}, as PyTorch has only "
                f"{' and '.join(TORCH_KERNELS)}; choose reference or fused"
            )
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

    def fast_variants(self) -> list[Preprocess]:
        """Return recipes that may stand in for this one where a tolerance allows it.

        Returns
        -------
        list of Preprocess
            The fastest first. Empty for "nearest", which has no tolerance, and for a recipe that names a resampling or
            decoder other than the defaults: that has been decided.

        Examples
        --------
        >>> [(fast.decoder, fast.resampling) for fast in Preprocess().fast_variants()]
        [('scaled', 'torch'), ('turbo', 'torch')]
        """
        if (self.resampling, self.decoder) != ("reference", "pillow") or self.interpolation == "nearest":
            return []
        resampling = "torch" if self.interpolation in TORCH_KERNELS else "fused"
        decoders = ("scaled", "turbo" if resampling == "torch" else "pillow")
        return [dataclasses.replace(self, resampling=resampling, decoder=decoder) for decoder in decoders]

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
            resize=one_or_two(preset.resize_size),
            crop=one_or_two(preset.crop_size),
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
        return self._centre(self._open(payload))

    def views(self, payload: Payload, key: bytes, count: int) -> np.ndarray:
        """Decode one image and return augmented views of it, by the rule `VIEWS_RECIPE`.

        Parameters
        ----------
        payload : bytes, PIL.Image.Image or numpy.ndarray
            As for `pixels`.
        key : bytes
            Names the image: the same key gives the same views, on every machine.
        count : int
            How many views beside the image itself; view k is the same whatever their number.

        Returns
        -------
        numpy.ndarray
            uint8 (1 + count, H, W, C). Row 0 is what `pixels` gives, row 1 its mirror image. Each further row is a
            random crop of 0.35 to 1 of the image's area, with an aspect of 3/4 to 4/3, resized to `shape` (see
            `featcache.preprocess.views`), every other one mirrored. A crop of a very elongated image keeps the aspect
            and has less area.

        Raises
        ------
        ImageError
            As `pixels` does.
        PreprocessError
            For a key that is no bytes or a negative count.

        Examples
        --------
        >>> Preprocess(8, 4).views(np.zeros((10, 20, 3), np.uint8), b"key", 3).shape
        (4, 4, 4, 3)
        """
        if not isinstance(key, bytes) or not isinstance(count, (int, np.integer)) or count < 0:
            raise PreprocessError(
                f"views: expected a key of bytes and a count from 0, got {type(key).__name__} and {count!r}; give e.g. "
                "the digest of the image and count=4"
            )
        picture = self._open(payload)
        out = np.empty((1 + count, *self.shape), np.uint8)
        out[0] = self._centre(picture)
        out[1:2] = out[:1, :, ::-1]
        for number in range(2, 1 + count):
            view = view_of(picture.size, key, number)
            levels = resized_crop(picture, view.box, self.shape[1::-1], self.interpolation, self.resampling)
            out[number] = (levels[:, ::-1] if view.mirrored else levels).reshape(self.shape)
        return out

    def memory_of(self, payload: Payload) -> int:
        """Return about how much memory decoding an image will take, by its header alone.

        Parameters
        ----------
        payload : bytes, PIL.Image.Image or numpy.ndarray
            As for `pixels`.

        Returns
        -------
        int
            Bytes, beside those of the payload itself; 0 where the header does not say it. Meant for bounding how many
            images are in flight, not a guarantee.
        """
        size = size_of(payload)
        if size is None or min(size) < 1:
            return 0
        scale = 1
        if self.decoder == "scaled" and is_jpeg(payload):
            try:  # the orientation takes longer to find: whichever leaves more
                scale = min(scale_for(size, orientation, self._least) for orientation in (1, 6))
            except ImageError:  # too elongated; it will be refused after its header
                return 0
        # PyTorch takes an array, which Pillow makes by way of a string.
        arrays = 6 * size[0] * size[1] // scale**2 if self.resampling == "torch" else 0
        return decoding_bytes(payload, scale) + arrays

    def _open(self, payload: Payload) -> Picture:
        return open_picture(
            payload,
            exif=self.exif,
            alpha=self.alpha,
            channels=self.channels,
            decoder=self.decoder,
            least=self._least,
            arrays=self.resampling == "torch",
        )

    def _least(self, size: tuple[int, int]) -> tuple[int, int] | None:
        """Return what a scaled decoder must leave of an image: twice what it is resized to."""
        if self.resize is None:
            return None
        width, height = self.resized(size)
        return 2 * width, 2 * height

    def _centre(self, picture: Picture) -> np.ndarray:
        """Resize and crop."""
        size = self.resized(picture.size)
        crop = self._crop or (size[1], size[0])
        rows, top = centre_window(size[1], crop[0])
        columns, left = centre_window(size[0], crop[1])
        kept = window_of(picture, size, columns, rows, self.interpolation, self.resampling)
        out = np.zeros((crop[0], crop[1], self.channels), np.uint8)
        out[top : top + len(rows), left : left + len(columns)] = kept.reshape(len(rows), len(columns), self.channels)
        return out

    def resized(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return what an image is resized to before the crop, by torchvision's rule.

        Parameters
        ----------
        size : (int, int)
            Width and height in pixels.

        Returns
        -------
        (int, int)
            Width and height in pixels.

        Raises
        ------
        ImageError
            When the image is so elongated that its longer side would exceed 2^24 pixels.
        """
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


def centre_window(length: int, wanted: int) -> tuple[range, int]:
    """Return what a centre crop keeps of an axis, and how many zeros come before it: torchvision's rounding."""
    if wanted > length:
        return range(length), (wanted - length) // 2
    start = round((length - wanted) / 2.0)  # to even, as in torchvision
    return range(start, start + wanted), 0
