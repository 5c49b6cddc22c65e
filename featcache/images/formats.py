"""Which bytes begin like an image: the formats that are read, their extensions and their first bytes."""

from __future__ import annotations

__all__ = ["EXTENSIONS", "FORMATS", "HEAD_BYTES", "looks_like_image", "sniff"]

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

#: How many bytes `looks_like_image` needs to see.
HEAD_BYTES = 32

_HEIF_BRANDS = frozenset((b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1"))
_AVIF_BRANDS = frozenset((b"avif", b"avis"))
_BMP_HEADERS = frozenset((12, 16, 40, 52, 56, 64, 108, 124))


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
    return sniff(bytes(head[:HEAD_BYTES])) is not None


def sniff(head: bytes) -> str | None:
    r"""Return the name of the format that a file begins like.

    Parameters
    ----------
    head : bytes
        As for `looks_like_image`.

    Returns
    -------
    str or None
        One of `FORMATS` (MPO counts as JPEG), or None.

    Examples
    --------
    >>> sniff(b"GIF89a")
    'GIF'
    """
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
