"""One image in, one plain RGB (or grey) picture out, by a stated policy; everything else is an `ImageError`.

The policy, in the order in which it is applied:

==================  =================================================================================================
formats             JPEG, MPO, PNG (APNG), WebP, TIFF, BMP, GIF, PPM (PGM, PBM), AVIF; HEIC/HEIF where the extra
                    ``pillow-heif`` is installed. Nothing else is ever tried, EPS (which would run Ghostscript) least.
size                More than 178,956,970 pixels are refused before decoding, whatever Pillow's own limit is set to.
frames              Animated and multi-page files: the first frame.
broken files        A truncated or damaged file is an error, never a half-grey image. While Pillow's process-wide
                    ``ImageFile.LOAD_TRUNCATED_IMAGES`` is on this cannot be kept, so encoded images are refused.
EXIF orientation    Honoured (``exif=True``) in JPEG, WebP, PNG, TIFF and AVIF; an EXIF block that cannot be read counts
                    as none. The rotation inside a HEIC file belongs to the coding and is always applied.
16 bits             Grey values are scaled by 255/65535 and rounded (12-bit TIFF: by 255/4095); never clipped, never
                    stretched by the image's own extremes. Colour images of 16 bits come from Pillow as their high
                    bytes, at most one level away from that.
32 bits             Integers and floats have no stated range: refused.
transparency        Alpha channels, transparent palette entries and colour keys are composited on white
                    (``alpha="white"``), on black (``"black"``), or left out (``"drop"``) as ``Image.convert("RGB")``
                    and torchvision's loader do.
colour              Grey is replicated, palettes are looked up, CMYK, YCbCr and HSV go as Pillow converts them. ICC
                    profiles are not applied.
==================  =================================================================================================

Everything here is safe to call from several threads, each with its own payload.
"""

from __future__ import annotations

import importlib
import io
import struct
import sys
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

from .errors import ImageError

__all__ = [
    "ALPHAS",
    "EXTENSIONS",
    "FORMATS",
    "HEAD_BYTES",
    "MAX_PIXELS",
    "Payload",
    "looks_like_image",
    "open_rgb",
    "pixel_identity",
]

#: What an image may come as: the bytes of an encoded file, a PIL image, or an array (see `open_rgb`).
Payload = bytes | Image.Image | np.ndarray

#: Formats that are read, by Pillow's names; HEIF only where pillow-heif is installed.
FORMATS: tuple[str, ...] = ("JPEG", "MPO", "PNG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF", "HEIF")

#: File name extensions (lower case, with the dot) that make a file a candidate.
EXTENSIONS: frozenset[str] = frozenset(
    (
        ".jpg",
        ".jpeg",
        ".jpe",
        ".jfif",
        ".mpo",
        ".png",
        ".apng",
        ".webp",
        ".tif",
        ".tiff",
        ".bmp",
        ".gif",
        ".ppm",
        ".pgm",
        ".pbm",
        ".pnm",
        ".avif",
        ".heic",
        ".heif",
        ".hif",
    )
)

#: Images of more pixels than this are refused: twice Pillow's default warning threshold, where Pillow itself refuses.
MAX_PIXELS = 178_956_970

#: What may be done with transparency.
ALPHAS: tuple[str, ...] = ("white", "black", "drop")

#: How many bytes `looks_like_image` needs to see.
HEAD_BYTES = 32

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
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNDO = {**_UPRIGHT, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
_BACKGROUND = {"white": (255, 255, 255), "black": (0, 0, 0)}
_HEIF_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_BMP_HEADERS = frozenset((12, 16, 40, 52, 56, 64, 108, 124))
# Pillow warns above this many pixels (its default; the user's own setting does not matter here).
_LOUD_PIXELS = MAX_PIXELS // 2


def looks_like_image(head: bytes) -> bool:
    r"""Tell from its first bytes whether a file has one of the formats that are read.

    Parameters
    ----------
    head : bytes
        The first `HEAD_BYTES` bytes of the file, fewer if it is shorter.

    Returns
    -------
    bool
        True does not promise that the image can be decoded.

    Examples
    --------
    >>> looks_like_image(b"\xff\xd8\xff\xe0\x00\x10JFIF")
    True
    >>> looks_like_image(b"file,class,split")
    False
    """
    return _sniff(bytes(head[:HEAD_BYTES])) is not None


def _sniff(head: bytes) -> str | None:
    """Return the name of the format that `head` begins like, None when it is none of `FORMATS`."""
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "PNG"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "GIF"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "WEBP"
    if head.startswith((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")):
        return "TIFF"
    if head[4:8] == b"ftyp":
        return _sniff_iso(head)
    # "BM" and "P6" alone also begin ordinary texts, so what must follow is looked at too.
    if head.startswith(b"BM") and int.from_bytes(head[14:18], "little") in _BMP_HEADERS:
        return "BMP"
    if (
        head[:1] == b"P"
        and head[1:2] in b"123456"
        and head[2:3].isspace()
        and (head[3:4].isdigit() or head[3:4] == b"#")
    ):
        return "PPM"
    return None


def _sniff_iso(head: bytes) -> str | None:
    """Tell AVIF from HEIF by the brands of an ISO media file; the major brand of both may be the generic ``mif1``."""
    brands = {head[8:12], *(head[i : i + 4] for i in range(16, len(head) - 3, 4))}
    if brands & _AVIF_BRANDS:
        return "AVIF"
    return "HEIF" if brands & _HEIF_BRANDS else None


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
        image = _flatten(_decode(payload, exif), alpha)
        return image if image.mode == ("RGB", "L")[channels == 1] else image.convert("RGB" if channels == 3 else "L")
    except ImageError:
        raise
    except Image.DecompressionBombError as error:  # some plugins check, by Pillow's own setting, before we can
        raise ImageError(
            f"image: expected at most {MAX_PIXELS} pixels, got a decompression bomb ({error}); leave it out"
        ) from error
    except Exception as error:  # a decoder at work on bytes from anywhere: whatever it raises is about this image
        raise _unreadable(error) from error


def _unreadable(error: Exception) -> ImageError:
    """Turn whatever a decoder raised into the one line that the ledger keeps."""
    words = " ".join(str(error).split())
    reason = f"{type(error).__name__}: {words[:200]}" if words else type(error).__name__
    return ImageError(f"image: expected one that can be decoded, got {reason}; repair the file or leave it out")


def _decode(payload: Payload, exif: bool) -> Image.Image:
    """Return the payload as a loaded PIL image of any mode, upright where that is asked for."""
    if isinstance(payload, (bytes, bytearray, memoryview)):
        return _load(_parse(bytes(payload)), exif)
    if isinstance(payload, Image.Image):
        return _load(payload, exif)
    if isinstance(payload, np.ndarray):
        return _from_array(payload)
    raise ImageError(
        f"image: expected bytes, a PIL image or a NumPy array, got {type(payload).__name__}; read the file, or convert "
        "a tensor with .permute(1, 2, 0).numpy()"
    )


def _parse(data: bytes) -> Image.Image:
    """Read the header of an encoded image with the one plugin that its first bytes name."""
    if not data:
        raise ImageError("image: expected an encoded image, got an empty file; copy it again or leave it out")
    name = _sniff(data[:HEAD_BYTES])
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
    _check_size(*image.size)
    turned = _tiff_orientation(image)
    image.load()
    if turned is not None:
        return image if exif or turned not in _UNDO else image.transpose(_UNDO[turned])
    orientation = _orientation(image) if exif else 1
    return image.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else image


def _check_size(width: int, height: int) -> None:
    """Refuse an image without pixels or with too many, before any memory is spent on it."""
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


def _orientation(image: Image.Image) -> int:
    """Return the EXIF (or XMP) orientation, 1 where there is none or the block cannot be read."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # a bad EXIF block must not cost an image that is otherwise fine
        return 1


def _flatten(image: Image.Image, alpha: str) -> Image.Image:
    """Bring any mode to 8 bits without transparency: mode "L" or "RGB"."""
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
    full = _full_scale(image)
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


def _full_scale(image: Image.Image) -> int | None:
    """Return the value that means white in an image of more than 8 bits, None where nobody says."""
    if image.mode.startswith("I;16"):
        twelve = isinstance(image, TiffImagePlugin.TiffImageFile) and tuple(image.tag_v2.get(258, ())) == (12,)
        return 4095 if twelve else 65535
    # Pillow spreads PGM files of any maxval over 0…65535 in mode "I"; elsewhere that mode means 32 bits.
    return 65535 if image.mode == "I" and image.format in ("PPM", "PNG") else None


def _from_array(array: np.ndarray) -> Image.Image:
    """Make an image of an array (H, W[, 1 | 3 | 4]) of a type that has a stated range."""
    shape = array.shape
    if array.ndim == 3 and shape[0] in (1, 3, 4) and shape[2] not in (1, 3, 4):
        raise ImageError(
            f"array of shape {shape}: expected (H, W, C), got what looks like (C, H, W); use array.transpose(1, 2, 0)"
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and shape[2] not in (1, 3, 4)):
        raise ImageError(f"array of shape {shape}: expected (H, W), (H, W, 1), (H, W, 3) or (H, W, 4); reshape it")
    _check_size(shape[1], shape[0])
    levels = _levels(array)
    return Image.fromarray(np.ascontiguousarray(levels[:, :, 0] if levels.shape[2:] == (1,) else levels))


def _levels(array: np.ndarray) -> np.ndarray:
    """Scale the values of an array to 0…255 by the full range of their type."""
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
        _check_size(*payload.size)
        payload.load()
        pixels = np.asarray(payload)
        mode, palette = _mode_and_palette(payload)
        return mode, pixels.shape, pixels.dtype.name, _little_endian(pixels) + palette
    except ImageError:
        raise
    except Exception as error:
        raise _unreadable(error) from error


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
        parts.append(f"full={_full_scale(image)}")
    orientation = _orientation(image)
    if orientation in _UPRIGHT:
        parts.append(f"orientation={orientation}")
    return ";".join(parts), palette
