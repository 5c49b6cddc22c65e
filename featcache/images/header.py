"""What an encoded image will cost, told from its header alone.

Nothing here decides whether an image is read: a header that cannot be made sense of counts as unknown, and the decoder
has the last word.
"""

from __future__ import annotations

import dataclasses
import re
import struct
from typing import TypeGuard

import numpy as np
from PIL import Image

from .formats import HEAD_BYTES, sniff

__all__ = ["Frame", "decoding_bytes", "is_jpeg", "jpeg_frame", "size_of"]

#: Markers of JPEG that carry no length: padding, TEM, RST0 to RST7, SOI.
_BARE = frozenset((0xFF, 0x01, *range(0xD0, 0xD9)))
_FRAMES = frozenset((*range(0xC0, 0xD0),)) - {0xC4, 0xC8, 0xCC}

# Bytes per pixel while decoding with Pillow. RGB takes 4 there; transparency, 16 bits and formats whose libraries keep
# a canvas of their own take about four times that with the copies that the policy needs.
_PLAIN, _ROUNDABOUT = 8, 16
_SIMPLE = frozenset(("BMP", "PPM", "GIF", "TIFF"))


@dataclasses.dataclass(frozen=True)
class Frame:
    """The frame header of a JPEG file.

    Parameters
    ----------
    kind : int
        Second byte of its marker: 0xC0 baseline, 0xC1 extended, 0xC2 progressive, others rare.
    bits : int
        Per sample.
    width, height : int
        In pixels.
    components : int
        1 grey, 3 colour, 4 CMYK.
    samples : float
        Stored samples per pixel over all components: 3 without subsampling, 1.5 for 4:2:0.
    """

    kind: int
    bits: int
    width: int
    height: int
    components: int
    samples: float

    @property
    def size(self) -> tuple[int, int]:
        """(width, height)."""
        return self.width, self.height


def is_jpeg(payload: object) -> TypeGuard[bytes]:
    r"""Tell whether a payload is an encoded image that begins as JPEG files do.

    Parameters
    ----------
    payload : object
        Anything.

    Returns
    -------
    bool

    Examples
    --------
    >>> is_jpeg(b"\xff\xd8\xff\xe0")
    True
    """
    return isinstance(payload, (bytes, bytearray, memoryview)) and payload[:3] == b"\xff\xd8\xff"


def jpeg_frame(data: bytes) -> Frame | None:
    """Find the frame header of a JPEG file.

    Parameters
    ----------
    data : bytes
        The file, or a beginning of it.

    Returns
    -------
    Frame or None
        None where the markers do not lead to one.
    """
    place, end = 2, len(data) - 9
    while place < end:
        if data[place] != 0xFF:
            return None
        kind = data[place + 1]
        if kind in _BARE:
            place += 1 if kind == 0xFF else 2
        elif kind in _FRAMES:
            return _frame(data, place)
        else:
            place += 2 + (data[place + 2] << 8 | data[place + 3])
    return None


def _frame(data: bytes, place: int) -> Frame | None:
    bits, height, width, components = struct.unpack_from(">BHHB", data, place + 4)
    factors = data[place + 11 : place + 10 + 3 * components : 3]
    if components not in (1, 3, 4) or len(factors) != components or not all(f >> 4 and f & 15 for f in factors):
        return None
    most = max(f >> 4 for f in factors) * max(f & 15 for f in factors)
    samples = sum((f >> 4) * (f & 15) for f in factors) / most
    return Frame(data[place + 1], bits, width, height, components, samples)


def size_of(payload: bytes | Image.Image | np.ndarray) -> tuple[int, int] | None:
    r"""Return the (width, height) that an image states, as stored: not turned upright.

    Parameters
    ----------
    payload : bytes, PIL.Image.Image or numpy.ndarray
        As for `featcache.images.open_rgb`.

    Returns
    -------
    (int, int) or None
        None where the header does not say it plainly.

    Examples
    --------
    >>> size_of(b"GIF89a" + bytes([3, 0, 2, 0]))
    (3, 2)
    """
    if isinstance(payload, Image.Image):
        return payload.size
    if isinstance(payload, np.ndarray):
        return (payload.shape[1], payload.shape[0]) if payload.ndim in (2, 3) else None
    name = sniff(bytes(payload[:HEAD_BYTES]))
    try:
        return _SIZES[name](payload) if name in _SIZES else None
    except (struct.error, IndexError, ValueError):  # a header that ends too soon
        return None


def decoding_bytes(payload: bytes | Image.Image | np.ndarray, scale: int = 1) -> int:
    """Return about how much memory the decoder will hold at once for this image.

    Parameters
    ----------
    payload : bytes, PIL.Image.Image or numpy.ndarray
        As for `featcache.images.open_rgb`.
    scale : {1, 2, 4, 8}, default 1
        By how much a JPEG file is scaled down as it is decoded.

    Returns
    -------
    int
        0 where the header does not say it. An estimate from above for ordinary files, no guarantee.
    """
    if is_jpeg(payload):
        frame = jpeg_frame(payload)
        return 0 if frame is None else _jpeg_bytes(frame, scale)
    size = size_of(payload)
    return 0 if size is None else size[0] * size[1] * _per_pixel(payload)


def _jpeg_bytes(frame: Frame, scale: int) -> int:
    pixels = frame.width * frame.height
    # Grey and CMYK files are converted, so both images exist for a moment; progressive ones keep all coefficients.
    decoded = (4 if frame.components == 3 else 8) * pixels // scale**2
    return decoded + (0 if frame.kind in (0xC0, 0xC1) else int(2 * frame.samples * pixels))


def _per_pixel(payload: bytes | Image.Image | np.ndarray) -> int:
    if isinstance(payload, Image.Image):
        return _PLAIN if payload.mode in ("1", "L", "P", "RGB") else _ROUNDABOUT
    if isinstance(payload, np.ndarray):
        return _PLAIN if payload.dtype == np.uint8 else _ROUNDABOUT + 16  # floats are scaled in 64 bits
    name = sniff(bytes(payload[:HEAD_BYTES]))
    plain_png = name == "PNG" and payload[24:25] <= b"\x08" and payload[25:26] in (b"\0", b"\2", b"\3")
    return _PLAIN if plain_png or name in _SIMPLE else _ROUNDABOUT


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    frame = jpeg_frame(data)
    return None if frame is None else frame.size


def _png_size(data: bytes) -> tuple[int, int] | None:
    return struct.unpack_from(">II", data, 16) if data[12:16] == b"IHDR" else None


def _gif_size(data: bytes) -> tuple[int, int] | None:
    return struct.unpack_from("<HH", data, 6)


def _bmp_size(data: bytes) -> tuple[int, int] | None:
    if data[14] == 12:
        return struct.unpack_from("<HH", data, 18)
    width, height = struct.unpack_from("<ii", data, 18)
    return abs(width), abs(height)


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L":
        both = int.from_bytes(data[21:25], "little")
        return 1 + (both & 0x3FFF), 1 + (both >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    return None


def _ppm_size(data: bytes) -> tuple[int, int] | None:
    numbers = re.findall(rb"\d+", re.sub(rb"#[^\n]*", b"", bytes(data[2:512])))
    return (int(numbers[0]), int(numbers[1])) if len(numbers) > 1 else None


def _avif_size(data: bytes) -> tuple[int, int] | None:
    """Return the largest of the image sizes in the first kilobytes: there may be thumbnails and tiles, too."""
    head = bytes(data[:4096])
    sizes = [struct.unpack_from(">II", head, found.end() + 4) for found in re.finditer(rb"ispe", head)]
    return max(sizes, key=lambda size: size[0] * size[1], default=None)


def _tiff_size(data: bytes) -> tuple[int, int] | None:
    """Read the two tags of the first directory; of BigTIFF, none."""
    order = "<" if data[:1] == b"I" else ">"
    magic, place = struct.unpack_from(order + "HI", data, 2)
    if magic != 42:
        return None
    (count,) = struct.unpack_from(order + "H", data, place)
    found = {}
    for i in range(min(count, 64)):
        tag, kind = struct.unpack_from(order + "HH", data, place + 2 + 12 * i)
        if tag in (256, 257):
            (found[tag],) = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, place + 10 + 12 * i)
    return (found[256], found[257]) if len(found) == 2 else None


_SIZES = {
    "JPEG": _jpeg_size,
    "PNG": _png_size,
    "GIF": _gif_size,
    "BMP": _bmp_size,
    "WEBP": _webp_size,
    "PPM": _ppm_size,
    "TIFF": _tiff_size,
    "AVIF": _avif_size,
    "HEIF": _avif_size,
}
