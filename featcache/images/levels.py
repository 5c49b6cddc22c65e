"""Every mode and type to 8 bits without transparency."""

from __future__ import annotations

import numpy as np
from PIL import Image, TiffImagePlugin

from ..errors import ImageError

__all__ = ["ALPHAS", "flatten", "full_scale", "levels"]

#: What may be done with transparency.
ALPHAS: tuple[str, ...] = ("white", "black", "drop")

_BACKGROUND = {"white": (255, 255, 255), "black": (0, 0, 0)}


def flatten(image: Image.Image, alpha: str) -> Image.Image:
    """Bring any mode to 8 bits without transparency.

    Parameters
    ----------
    image : PIL.Image.Image
        Loaded.
    alpha : str
        One of `ALPHAS`.

    Returns
    -------
    PIL.Image.Image
        Mode "L" or "RGB".

    Raises
    ------
    ImageError
        For 32 bits, which have no stated range.
    """
    if image.mode[0] in "IF":
        return _to_8_bit(image, alpha)
    if image.mode in ("La", "RGBa"):  # Pillow only knows the way from premultiplied to straight alpha
        image = image.convert(image.mode.upper())
    if image.mode != "CMYK" and image.has_transparency_data:
        return _without_alpha(image.convert("RGBA"), alpha)
    return image if image.mode in ("L", "RGB") else image.convert("RGB")


def _without_alpha(image: Image.Image, alpha: str) -> Image.Image:
    if alpha == "drop":
        return image.convert("RGB")
    canvas = Image.new("RGB", image.size, _BACKGROUND[alpha])
    canvas.paste(image, mask=image.getchannel("A"))
    return canvas


def _to_8_bit(image: Image.Image, alpha: str) -> Image.Image:
    """Scale a grey image of 16 bits to 8, over the full range of its format."""
    full = full_scale(image)
    if full is None:
        raise ImageError(
            f"image: expected 8 or 16 bits per channel, got mode {image.mode} (32 bits, no stated range); scale it to "
            "8 bits first"
        )
    values = np.asarray(image).astype(np.uint32)
    grey = ((values * 255 + full // 2) // full).astype(np.uint8)
    key = image.info.get("transparency")
    if isinstance(key, int) and alpha != "drop":
        grey[values == key] = _BACKGROUND[alpha][0]
    return Image.fromarray(grey)


def full_scale(image: Image.Image) -> int | None:
    """Return the value that means white in an image of more than 8 bits.

    Parameters
    ----------
    image : PIL.Image.Image
        Of a mode that begins with "I" or "F".

    Returns
    -------
    int or None
        None where nobody says.
    """
    if image.mode.startswith("I;16"):
        twelve = isinstance(image, TiffImagePlugin.TiffImageFile) and tuple(image.tag_v2.get(258, ())) == (12,)
        return 4095 if twelve else 65535
    # Pillow spreads PGM files of any maxval over 0…65535 in mode "I"; elsewhere that mode means 32 bits.
    return 65535 if image.mode == "I" and image.format in ("PPM", "PNG") else None


def levels(array: np.ndarray) -> np.ndarray:
    """Scale the values of an array to 0…255 by the full range of their type.

    Parameters
    ----------
    array : numpy.ndarray
        uint8, uint16, bool, or float in [0, 1].

    Returns
    -------
    numpy.ndarray
        uint8; the array itself if it was.

    Raises
    ------
    ImageError
        For another type, or floats beyond [0, 1].
    """
    if array.dtype == np.uint8:
        return array
    if array.dtype == np.bool_:
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "u" and array.dtype.itemsize == 2:
        return ((array.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    if array.dtype.kind == "f":
        return _levels_of_floats(array)
    raise ImageError(
        f"array of {array.dtype}: expected uint8, uint16, bool or float in [0, 1]; convert it, e.g. with "
        ".astype(np.uint8) when the values are 0 to 255"
    )


def _levels_of_floats(array: np.ndarray) -> np.ndarray:
    low, high = float(array.min()), float(array.max())
    slack = 1e-3 if array.dtype.itemsize == 2 else 1e-6  # rounding of whoever scaled it to [0, 1]
    if not (low >= -slack and high <= 1 + slack):  # also true for NaN
        raise ImageError(
            f"array of {array.dtype}: expected values in [0, 1], got {low:.4g} to {high:.4g}; give the images without "
            "Normalize, or as uint8"
        )
    return np.rint(np.clip(array, 0, 1).astype(np.float64) * 255).astype(np.uint8)
