"""From a payload to an upright Pillow image, by the policy in the docstring of the package."""

from __future__ import annotations

import importlib
import io
import struct
import warnings
from typing import Any

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from ..errors import ImageError
from .formats import FORMATS, HEAD_BYTES, sniff
from .levels import ALPHAS, flatten, levels

__all__ = [
    "MAX_PIXELS",
    "UPRIGHT",
    "Payload",
    "check_size",
    "in_channels",
    "open_rgb",
    "orientation_of",
    "parse",
    "turn_upright",
    "unreadable",
]

#: What an image may come as: the bytes of an encoded file, a PIL image, or an array (see `open_rgb`).
Payload = bytes | Image.Image | np.ndarray

#: Images of more pixels than this are refused: twice Pillow's default warning threshold, where Pillow itself refuses.
MAX_PIXELS = 178_956_970

# Importing a plugin registers it with Pillow; naming them here keeps Image.init() from importing EPS and 40 others.
_PLUGINS = (
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
    TiffImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    PpmImagePlugin,
    AvifImagePlugin,
)
_ORIENTATION = 0x0112

#: EXIF orientation → what undoes it.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_UNDO = {**UPRIGHT, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
# Pillow warns above this many pixels (its default; the user's own setting does not matter here).
_LOUD_PIXELS = MAX_PIXELS // 2


def open_rgb(payload: Payload, *, exif: bool = True, alpha: str = "white", channels: int = 3) -> Image.Image:
    """Decode one image by the policy of this module.

    Parameters
    ----------
    payload : bytes, PIL.Image.Image or numpy.ndarray
        The bytes of an encoded file, a PIL image, or an array of shape (H, W), (H, W, 1), (H, W, 3) or (H, W, 4):
        uint8, uint16 (scaled by 255/65535), bool, or float in [0, 1] (scaled by 255; both rounded). The channel axis
        of an array is always the last; (C, H, W) is ambiguous and must be transposed first.
    exif : bool, default True
        Turn the image upright as its EXIF orientation says.
    alpha : {"white", "black", "drop"}, default "white"
        What transparent pixels are composited on; "drop" leaves the alpha channel out as ``convert("RGB")`` does.
    channels : {3, 1}, default 3
        3 gives mode "RGB", 1 gives mode "L" (Pillow's luma: 0.299 R + 0.587 G + 0.114 B).

    Returns
    -------
    PIL.Image.Image
        A loaded image of mode "RGB" or "L". It may be the very image that was given when there was nothing to do.

    Raises
    ------
    ImageError
        Whenever this image cannot be had: unknown format, damage, too many pixels, values without a stated range.
        One line, with Pillow's reason.
    ValueError
        For an unknown `alpha` or `channels`.

    Examples
    --------
    >>> import numpy as np
    >>> open_rgb(np.zeros((2, 3), np.uint8)).size
    (3, 2)
    """
    if alpha not in ALPHAS:
        raise ValueError(f"alpha: expected one of {', '.join(ALPHAS)}, got {alpha!r}")
    if channels not in (1, 3):
        raise ValueError(f"channels: expected 3 (RGB) or 1 (grey), got {channels!r}")
    try:
        return in_channels(flatten(_decoded(payload, exif), alpha), channels)
    except Exception as error:  # a decoder at work on bytes from anywhere: whatever it raises is about this image
        raise unreadable(error) from error


def in_channels(image: Image.Image, channels: int) -> Image.Image:
    """Convert a flattened image to the mode that has so many channels.

    Parameters
    ----------
    image : PIL.Image.Image
        Mode "L" or "RGB".
    channels : {3, 1}
        RGB, or grey.

    Returns
    -------
    PIL.Image.Image
        The image itself where there is nothing to do.
    """
    mode = "RGB" if channels == 3 else "L"
    return image if image.mode == mode else image.convert(mode)


def unreadable(error: Exception) -> ImageError:
    """Turn whatever a decoder raised into the one line that the ledger keeps.

    Parameters
    ----------
    error : Exception
        What was raised.

    Returns
    -------
    ImageError
        The error itself if it is one.
    """
    if isinstance(error, ImageError):
        return error
    if isinstance(error, Image.DecompressionBombError):  # some plugins check, by Pillow's own setting, before we can
        return ImageError(
            f"image: expected at most {MAX_PIXELS} pixels, got a decompression bomb ({error}); leave it out"
        )
    words = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__
    return ImageError(f"image: expected one that can be decoded, got {reason}; repair the file or leave it out")


def _decoded(payload: Payload, exif: bool) -> Image.Image:
    """Return the payload as a loaded PIL image of any mode, upright where that is asked for."""
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return _load(parse(bytes(payload)), exif)
    if isinstance(payload, Image.Image):
        return _load(payload, exif)
    if isinstance(payload, np.ndarray):
        return _from_array(payload)
    raise ImageError(
        f"image: expected bytes, a PIL image or a NumPy array, got {type(payload).__name__}; read the file, or convert "
        "a tensor with .permute(1, 2, 0).numpy()"
    )


def parse(data: bytes) -> Image.Image:
    """Read the header of an encoded image with the one plugin that its first bytes name.

    Parameters
    ----------
    data : bytes
        A file.

    Returns
    -------
    PIL.Image.Image
        Not loaded yet.

    Raises
    ------
    ImageError
        When the format is unknown or the header damaged.
    """
    if not data:
        raise ImageError("image: expected an encoded image, got an empty file; copy it again or leave it out")
    name = sniff(data[:HEAD_BYTES])
    if name is None:
        raise ImageError(
            f"image: expected one of {', '.join(FORMATS)}, got bytes that begin with {data[:8]!r}; convert the file "
            "or leave it out"
        )
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(
            "image: expected PIL.ImageFile.LOAD_TRUNCATED_IMAGES to be False, got True (some library turned it on), "
            "which would pass damaged files off as whole ones; set it back to False"
        )
    if name == "HEIF":
        return _parse_heif(data)
    factory, accept = Image.OPEN[name]
    verdict = accept(data[:16]) if accept else True
    if isinstance(verdict, str):  # Pillow built without the library for this format says so in words
        raise ImageError(f"image: expected Pillow to read {name}, got '{verdict}'; install Pillow with {name} support")
    try:
        # Not Image.open(): it warns and refuses by process-wide settings, and may fall through to other plugins.
        return factory(io.BytesIO(data), "")
    except (SyntaxError, IndexError, TypeError, struct.error) as error:  # what plugins mean by "not mine after all"
        raise ImageError(
            f"image: expected a whole {name} file, got a damaged header ({' '.join(str(error).split())[:200]}); repair "
            "the file or leave it out"
        ) from error


def _parse_heif(data: bytes) -> Image.Image:
    """Read a HEIC or HEIF file with the optional pillow-heif, without registering it with Pillow for everyone."""
    try:
        plugin: Any = importlib.import_module("pillow_heif")
    except ImportError as error:
        raise ImageError(
            "image: expected a format that Pillow reads, got HEIC/HEIF; pip install 'featcache[heic]' or convert the "
            "file to JPEG"
        ) from error
    return plugin.HeifImageFile(io.BytesIO(data))


def _load(image: Image.Image, exif: bool) -> Image.Image:
    """Decode the first frame and turn it upright; Pillow's TIFF plugin has always turned it already."""
    check_size(*image.size)
    turned = _tiff_orientation(image)
    image.load()
    if turned is not None:
        return image if exif or turned not in _UNDO else image.transpose(_UNDO[turned])
    return turn_upright(image, orientation_of(image) if exif else 1)


def turn_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Undo an EXIF orientation.

    Parameters
    ----------
    image : PIL.Image.Image
        As stored.
    orientation : int
        As EXIF counts; 1, and anything unknown, means that nothing is to be done.

    Returns
    -------
    PIL.Image.Image
        The image itself where there is nothing to do.
    """
    return image.transpose(UPRIGHT[orientation]) if orientation in UPRIGHT else image


def check_size(width: int, height: int) -> None:
    """Refuse an image without pixels or with too many, before any memory is spent on it.

    Parameters
    ----------
    width, height : int
        In pixels.

    Raises
    ------
    ImageError
        When there are none, or more than `MAX_PIXELS`.
    """
    if width < 1 or height < 1:
        raise ImageError(f"image: expected at least one pixel, got {width}x{height}; leave the file out")
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"image: expected at most {MAX_PIXELS} pixels, got {width}x{height} = {width * height} (a decompression "
            "bomb?); scale it down or leave it out"
        )
    if width * height > _LOUD_PIXELS:
        # Pillow's TIFF plugin warns while decoding. catch_warnings() is not thread-safe, and appended last this
        # filter yields to any that the user has set.
        warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning, append=True)


def _tiff_orientation(image: Image.Image) -> int | None:
    """Return the orientation that loading a TIFF file will apply; None for every other image."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return None
    value = image.tag_v2.get(_ORIENTATION, 1)
    return value if isinstance(value, int) else 1


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF (or XMP) orientation.

    Parameters
    ----------
    image : PIL.Image.Image
        Of any format but TIFF, which Pillow turns by itself.

    Returns
    -------
    int
        1 where there is none or the block cannot be read.
    """
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a bad EXIF block must not cost an image that is otherwise fine
        return 1


def _from_array(array: np.ndarray) -> Image.Image:
    """Make an image of an array (H, W[, 1 | 3 | 4]) of a type that has a stated range."""
    shape = array.shape
    if array.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        raise ImageError(
            f"array of shape {shape}: expected (H, W, C), got what looks like (C, H, W); use array.transpose(1, 2, 0)"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(f"array of shape {shape}: expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); reshape it")
    check_size(shape[1], shape[0])
    scaled = levels(array)
    return Image.fromarray(np.ascontiguousarray(scaled[:, :, 0] if scaled.shape[2:] == (1,) else scaled))
