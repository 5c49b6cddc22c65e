"""The same policy with other decoders for plain JPEG files: a faster one, and one that decodes large photos smaller.

A file is refused exactly where Pillow refuses it: Pillow reads every header first, and whatever the faster decoder does
not take, damaged files among them, is given to Pillow. Both stop at a file that ends too soon; both tolerate the same
faults inside the data, where libjpeg resynchronises (torchvision's then says so on standard error). Where both decode,
both give the same pixels.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, JpegImagePlugin

from .decoding import (
    UPRIGHT,
    Payload,
    check_size,
    in_channels,
    open_rgb,
    orientation_of,
    parse,
    turn_upright,
    unreadable,
)
from .header import is_jpeg, jpeg_frame
from .levels import flatten

__all__ = ["DECODERS", "Picture", "open_picture", "scale_for"]

#: Decoder families, see `open_picture`.
DECODERS: tuple[str, ...] = ("pillow", "turbo", "scaled")

#: (width, height) of an image → the least that must be left of it, None for all.
Least = Callable[[tuple[int, int]], tuple[int, int] | None]

# Baseline, extended and progressive Huffman coding: what every libjpeg reads alike.
_PLAIN_KINDS = frozenset((0xC0, 0xC1, 0xC2))
# After turning upright: does the left (upper) edge of the picture show the stored right or lower edge?
_ENDS_LEFT, _ENDS_UP = frozenset((2, 3, 6, 7)), frozenset((3, 4, 7, 8))


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A decoded image, upright, which may be smaller than the file says.

    Parameters
    ----------
    pixels : PIL.Image.Image or numpy.ndarray
        Mode "RGB" or "L", or uint8 (H, W, 3) or (H, W).
    size : (int, int)
        Width and height of the upright image in the file.
    box : (float, float, float, float)
        Left, upper, right, lower: the part of `pixels` that shows the image. Of an image scaled by 8, the last column
        may show less than 8 columns.
    """

    pixels: Image.Image | np.ndarray
    size: tuple[int, int]
    box: tuple[float, float, float, float]

    @classmethod
    def whole(cls, pixels: Image.Image | np.ndarray) -> Picture:
        """Make a picture of an image that was not scaled.

        Parameters
        ----------
        pixels : PIL.Image.Image or numpy.ndarray
            As above.

        Returns
        -------
        Picture
        """
        size = pixels.size if isinstance(pixels, Image.Image) else (pixels.shape[1], pixels.shape[0])
        return cls(pixels, size, (0, 0, *size))

    @property
    def scaled(self) -> bool:
        """Whether the pixels are fewer than those of the file."""
        return self.box != (0, 0, *self.size)

    @property
    def image(self) -> Image.Image:
        """The pixels as an image."""
        # Not a cached_property: up to Python 3.11 all threads wait for one another in those.
        if "_image" not in self.__dict__:
            given = isinstance(self.pixels, Image.Image)
            self.__dict__["_image"] = self.pixels if given else Image.fromarray(self.pixels)
        image: Image.Image = self.__dict__["_image"]
        return image

    @property
    def array(self) -> np.ndarray:
        """The pixels as an array, which may be read-only."""
        if "_array" not in self.__dict__:
            self.__dict__["_array"] = np.asarray(self.pixels)
        array: np.ndarray = self.__dict__["_array"]
        return array


def open_picture(
    payload: Payload,
    *,
    exif: bool = True,
    alpha: str = "white",
    channels: int = 3,
    decoder: str = "pillow",
    least: Least | None = None,
    arrays: bool = False,
) -> Picture:
    """Decode one image by the policy of this package with a given decoder.

    Parameters
    ----------
    payload, exif, alpha, channels
        As for `open_rgb`.
    decoder : {"pillow", "turbo", "scaled"}, default "pillow"
        "turbo" decodes plain upright JPEG files with torchvision, everything else with Pillow, and gives the same
        pixels. "scaled" does so, too, but lets libjpeg decode JPEG files at 1/2, 1/4 or 1/8 of their size where
        `least` is then still there.
    least : callable, optional
        (width, height) of the upright image → the least (width, height) that must be left of it, or None.
    arrays : bool, default False
        Whether pixels are rather wanted as an array. Where they are not, Pillow decodes: giving it pixels takes longer
        than "turbo" saves.

    Returns
    -------
    Picture

    Raises
    ------
    ImageError
        As `open_rgb` does.
    """
    if decoder != "pillow" and is_jpeg(payload):
        try:
            return _open_jpeg(bytes(payload), exif, alpha, channels, least if decoder == "scaled" else None, arrays)
        except Exception as error:  # as in open_rgb
            raise unreadable(error) from error
    if arrays and isinstance(payload, np.ndarray) and _is_rgb(payload, channels):
        check_size(payload.shape[1], payload.shape[0])
        return Picture.whole(payload)
    return Picture.whole(open_rgb(payload, exif=exif, alpha=alpha, channels=channels))


def _is_rgb(array: np.ndarray, channels: int) -> bool:
    """Tell whether an array holds just the pixels that are wanted."""
    return channels == 3 and array.dtype == np.uint8 and array.ndim == 3 and array.shape[2] == 3


def _open_jpeg(data: bytes, exif: bool, alpha: str, channels: int, least: Least | None, arrays: bool) -> Picture:
    image = parse(data)
    check_size(*image.size)
    orientation = orientation_of(image) if exif else 1
    stored = image.size
    scale = 1 if least is None else scale_for(stored, orientation, least)
    if scale > 1 and isinstance(image, JpegImagePlugin.JpegImageFile):
        image.draft(None, (stored[0] // scale, stored[1] // scale))
    elif arrays and orientation not in UPRIGHT:  # Pillow turns faster than NumPy
        pixels = _turbo(data, image, channels)
        if pixels is not None:
            return Picture.whole(pixels)
    image.load()
    upright = in_channels(flatten(turn_upright(image, orientation), alpha), channels)
    return Picture.whole(upright) if image.size == stored else _scaled(upright, stored, scale, orientation)


def scale_for(stored: tuple[int, int], orientation: int, least: Least) -> int:
    """Return by how much a JPEG file may be scaled down.

    Parameters
    ----------
    stored : (int, int)
        Width and height in the file.
    orientation : int
        As EXIF counts.
    least : callable
        As for `open_picture`.

    Returns
    -------
    {1, 2, 4, 8}
    """
    width, height = stored[::-1] if 5 <= orientation <= 8 else stored
    needed = least((width, height))
    if needed is None:
        return 1
    most = min(width // needed[0], height // needed[1])
    return next((scale for scale in (8, 4, 2) if scale <= most), 1)


def _scaled(upright: Image.Image, stored: tuple[int, int], scale: int, orientation: int) -> Picture:
    """Say which part of a scaled image shows the photo: blocks at its end may reach beyond it."""
    size = stored[::-1] if 5 <= orientation <= 8 else stored
    width, height = size[0] / scale, size[1] / scale
    left = upright.width - width if orientation in _ENDS_LEFT else 0.0
    upper = upright.height - height if orientation in _ENDS_UP else 0.0
    return Picture(upright, size, (left, upper, left + width, upper + height))


def _turbo(data: bytes, image: Image.Image, channels: int) -> np.ndarray | None:
    """Decode a plain JPEG file with torchvision; None for every file that is better left to Pillow."""
    frame, decode = jpeg_frame(data), _decoder()
    # Pillow's class tells MPO from JPEG, and its parser has refused what has other than 8 bits.
    if decode is None or frame is None or image.format != "JPEG" or image.mode not in ("L", "RGB"):
        return None
    if frame.kind not in _PLAIN_KINDS or frame.size != image.size:
        return None
    grey = channels == 1 and image.mode == "L"
    try:
        levels: np.ndarray = decode(data, grey)
    except Exception:  # Pillow says what is wrong with it, if anything is
        return None
    if levels.shape != (frame.height, frame.width, 1 if grey else 3):
        return None
    if grey:
        return levels[:, :, 0]
    return levels if channels == 3 else np.asarray(Image.fromarray(levels).convert("L"))


@functools.cache
def _decoder() -> Callable[[bytes, bool], Any] | None:
    """Return torchvision's decoder as a function of bytes, None where it was built without."""
    try:
        import torch
        from torchvision.io import ImageReadMode

        # Not torchvision.io.decode_jpeg: it warns at every call that some release will be without it.
        decode_jpeg = torch.ops.image.decode_jpeg
    except Exception:  # whatever keeps a binary package from loading, Pillow is there
        return None

    def decode(data: bytes, grey: bool) -> Any:
        # A copy, as PyTorch has no read-only tensors; it is small beside the pixels.
        coded = torch.frombuffer(bytearray(data), dtype=torch.uint8)
        mode = ImageReadMode.GRAY if grey else ImageReadMode.RGB
        return decode_jpeg(coded, mode.value, False).permute(1, 2, 0).numpy()

    return decode
