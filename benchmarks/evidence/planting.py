"""What is planted to be found: recompressed copies and bursts of real images, and wrong labels."""

import io
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

__all__ = ["KINDS", "burst", "noisy", "recompressed"]

#: How a copy differs beside its JPEG quality, which is drawn from 30 to 90 for all.
KINDS = ("compressed", "resized", "cropped", "mirrored")


def recompressed(image: Image.Image, kind: str, rng: np.random.Generator) -> Image.Image:
    """Return a copy as it comes back from a web site: compressed again and, by kind, resized, cropped or mirrored."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    width, height = image.size
    if kind == "resized":
        by = 1.0 + float(rng.choice([-1, 1])) * float(rng.uniform(0.10, 0.25))
        image = image.resize((max(8, round(width * by)), max(8, round(height * by))))
    elif kind == "cropped":
        left, top, right, bottom = rng.uniform(0.0, 0.05, size=4)
        image = image.crop((int(width * left), int(height * top), int(width * (1 - right)), int(height * (1 - bottom))))
    elif kind == "mirrored":
        image = ImageOps.mirror(image)
    return _jpeg(image, int(rng.integers(30, 91)))


def burst(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return another shot of the same: turned a little, framed and lit otherwise, compressed."""
    image = ImageOps.exif_transpose(image).convert("RGB")
    image = image.rotate(float(rng.uniform(-5, 5)), resample=Image.Resampling.BILINEAR, expand=False)
    width, height = image.size
    left, top, right, bottom = rng.uniform(0.03, 0.10, size=4)
    image = image.crop((int(width * left), int(height * top), int(width * (1 - right)), int(height * (1 - bottom))))
    image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.85, 1.15)))
    return _jpeg(image, int(rng.integers(60, 95)))


def noisy(y: np.ndarray, share: float, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which a share were replaced by another class drawn at random, and a mask of those rows."""
    classes = np.unique(y)
    wrong = np.zeros(len(y), dtype=bool)
    wrong[rng.choice(len(y), max(1, round(share * len(y))), replace=False)] = True
    out = y.copy()
    for row in np.flatnonzero(wrong):
        out[row] = rng.choice(classes[classes != y[row]])
    return out, wrong


def _jpeg(image: Image.Image, quality: int) -> Any:
    held = io.BytesIO()
    image.save(held, "JPEG", quality=quality)
    return Image.open(io.BytesIO(held.getvalue())).convert("RGB")
