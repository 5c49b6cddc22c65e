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

``formats`` tells formats by their first bytes, ``decoding`` opens with Pillow, ``levels`` brings every mode to 8 bits,
``jpeg`` decodes plain JPEG files faster or smaller, ``header`` tells from the header alone how much memory that takes,
``identity`` says what makes a decoded image the same image.
"""

from .decoding import MAX_PIXELS, Payload, open_rgb
from .formats import EXTENSIONS, FORMATS, HEAD_BYTES, looks_like_image
from .header import decoding_bytes, is_jpeg, size_of
from .identity import pixel_identity
from .jpeg import DECODERS, Picture, open_picture, scale_for
from .levels import ALPHAS

__all__ = [
    "ALPHAS",
    "DECODERS",
    "EXTENSIONS",
    "FORMATS",
    "HEAD_BYTES",
    "MAX_PIXELS",
    "Payload",
    "Picture",
    "decoding_bytes",
    "is_jpeg",
    "looks_like_image",
    "open_picture",
    "open_rgb",
    "pixel_identity",
    "scale_for",
    "size_of",
]
