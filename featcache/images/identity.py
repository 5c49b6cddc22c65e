"""What makes a decoded image the same image as another."""

from __future__ import annotations

import sys

import numpy as np
from PIL import Image

from ..errors import ImageError
from .decoding import UPRIGHT, check_size, orientation_of, unreadable
from .levels import full_scale

__all__ = ["pixel_identity"]


def pixel_identity(payload: Image.Image | np.ndarray) -> tuple[str, tuple[int, ...], str, bytes]:
    r"""Return what makes a decoded image the same image, for `featcache.fingerprint.digest_pixels`.

    Parameters
    ----------
    payload : PIL.Image.Image or numpy.ndarray
        An image that has no encoded bytes of its own.

    Returns
    -------
    mode : str
        "array", or Pillow's mode, followed by everything beside the pixels that changes the picture: the palette's
        mode, transparency, an EXIF orientation, the range of 16-bit values.
    shape : tuple of int
        Shape of the pixel array.
    dtype : str
        NumPy's name of its type.
    data : bytes
        Pixels in C order, little-endian, followed by the palette if there is one.

    Raises
    ------
    ImageError
        When the image cannot be loaded.

    Examples
    --------
    >>> import numpy as np
    >>> pixel_identity(np.zeros((1, 2), np.uint8))
    ('array', (1, 2), 'uint8', b'\x00\x00')
    """
    if isinstance(payload, np.ndarray):
        return "array", payload.shape, payload.dtype.name, _little_endian(payload)
    try:
        check_size(*payload.size)
        payload.load()
        pixels = np.asarray(payload)
        mode, palette = _mode_and_palette(payload)
        return mode, pixels.shape, pixels.dtype.name, _little_endian(pixels) + palette
    except ImageError:
        raise
    except Exception as error:
        raise unreadable(error) from error


def _little_endian(array: np.ndarray) -> bytes:
    big = array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big")
    return (array.byteswap() if big else array).tobytes()


def _mode_and_palette(image: Image.Image) -> tuple[str, bytes]:
    """Collect what beside the pixels decides how an image looks."""
    parts, palette = [image.mode], b""
    if image.palette is not None:
        parts.append(f"palette={image.palette.mode}")
        palette = bytes(image.getpalette(image.palette.mode) or ())
    transparency = image.info.get("transparency")
    if transparency is not None:
        parts.append(f"transparency={transparency.hex() if isinstance(transparency, bytes) else transparency}")
    if image.mode[0] == "I":
        parts.append(f"full={full_scale(image)}")
    orientation = orientation_of(image)
    if orientation in UPRIGHT:
        parts.append(f"orientation={orientation}")
    return ";".join(parts), palette
