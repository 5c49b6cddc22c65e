"""Pictures for scripts/train_embedded.py: crops of freely licensed photos, and pictures made of noise and shapes."""

import csv
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter


def indexed_files(folder: Path, splits: set[str]) -> list[tuple[Path, str]]:
    """Return (file, class) of the rows of `folder`/index.csv whose split is one of `splits`; empty without the file."""
    index = folder / "index.csv"
    if not index.exists():
        return []
    with index.open(newline="", encoding="utf-8") as lines:
        rows = [row for row in csv.DictReader(lines) if row["split"] in splits]
    return sorted((folder / row["file"], row["class"]) for row in rows)


def scenic_files() -> list[Path]:
    """Return the photos that come with scikit-learn (CC BY 2.0) and matplotlib (public domain)."""
    import matplotlib
    import sklearn.datasets

    images = Path(sklearn.datasets.__file__).parent / "images"
    files = [images / "china.jpg", images / "flower.jpg"]
    files.append(Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg")
    return [path for path in files if path.exists()]


def random_crop(photo: Image.Image, size: int, smallest: float, rng: np.random.Generator) -> Image.Image:
    """Cut a random rectangle of at least `smallest` of the area, scale it to a square, mirror half of them."""
    area = photo.width * photo.height * rng.uniform(smallest, 1.0)
    ratio = np.exp(rng.uniform(-0.29, 0.29))
    w = int(min(photo.width, max(8, (area * ratio) ** 0.5)))
    h = int(min(photo.height, max(8, (area / ratio) ** 0.5)))
    x, y = rng.integers(0, photo.width - w + 1), rng.integers(0, photo.height - h + 1)
    crop = photo.resize((size, size), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h), reducing_gap=2.0)
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def vary(picture: Image.Image, rng: np.random.Generator) -> np.ndarray:
    """Jitter brightness, contrast and colour balance; blur some; swap the colour bands of a few."""
    if rng.random() < 0.15:
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 3.0)))
    pixels = np.asarray(picture, dtype=np.float32)
    if rng.random() < 0.1:
        pixels = pixels[..., rng.permutation(3)]
    if rng.random() < 0.1:
        pixels = np.repeat(pixels.mean(2, keepdims=True), 3, 2)
    mean = pixels.mean()
    pixels = (pixels - mean) * rng.uniform(0.6, 1.4) + mean * rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)
    return pixels.clip(0, 255).astype(np.uint8)


def invented(size: int, rng: np.random.Generator) -> np.ndarray:
    """Make a picture of nothing: textured background with a few textured shapes on it."""
    picture = _texture(size, rng)
    for _ in range(rng.integers(0, 7)):
        mask = Image.new("L", (size, size))
        _shape(ImageDraw.Draw(mask), size, rng)
        if rng.random() < 0.4:
            mask = mask.filter(ImageFilter.GaussianBlur(rng.uniform(1, 6)))
        alpha = np.asarray(mask, dtype=np.float32)[..., None] / 255
        picture = picture * (1 - alpha) + _texture(size, rng) * alpha
    return picture.clip(0, 255).astype(np.uint8)


def _texture(size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a two-colour blend driven by flat, fractal, striped or cellular values, (size, size, 3) float32."""
    first, second = rng.uniform(0, 255, (2, 3))
    values = (_flat, _fractal, _fractal, _stripes, _cells)[rng.integers(5)](size, rng)[..., None]
    return (first * values + second * (1 - values)).astype(np.float32)


def _flat(size: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size] / size
    angle = rng.uniform(0, 2 * np.pi)
    return (np.cos(angle) * x + np.sin(angle) * y) * rng.uniform(0, 0.5) + 0.5


def _fractal(size: int, rng: np.random.Generator) -> np.ndarray:
    """Sum octaves of smooth noise with a random fall-off; sometimes folded into veins."""
    total, decay = np.zeros((size, size)), rng.uniform(0.3, 0.9)
    for octave in range(1, 7):
        noise = Image.fromarray(rng.random((2**octave, 2**octave), dtype=np.float32))
        total += decay**octave * np.asarray(noise.resize((size, size), Image.Resampling.BICUBIC))
    total = (total - total.min()) / (np.ptp(total) + 1e-6)
    return np.abs(2 * total - 1) if rng.random() < 0.3 else total


def _stripes(size: int, rng: np.random.Generator) -> np.ndarray:
    y, x = np.mgrid[0:size, 0:size] / size
    angle, turns = rng.uniform(0, np.pi), rng.uniform(2, 40)
    wave = np.sin(2 * np.pi * turns * (np.cos(angle) * x + np.sin(angle) * y + 0.1 * _fractal(size, rng)))
    return (wave > 0).astype(np.float64) if rng.random() < 0.5 else (wave + 1) / 2


def _cells(size: int, rng: np.random.Generator) -> np.ndarray:
    """Distance to the nearest of a few random points (Worley noise)."""
    points = rng.uniform(0, size, (rng.integers(4, 40), 2))
    y, x = np.mgrid[0:size:2, 0:size:2]
    distance = np.sqrt(((np.stack([x, y], -1)[..., None, :] - points) ** 2).sum(-1)).min(-1)
    image = Image.fromarray((distance / distance.max()).astype(np.float32))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


def _shape(pen: ImageDraw.ImageDraw, size: int, rng: np.random.Generator) -> None:
    """Draw an ellipse, a polygon or a thick line."""
    centre, radius = rng.uniform(0, size, 2), rng.uniform(0.05, 0.4) * size
    kind = rng.integers(3)
    if kind == 0:
        rx, ry = radius * rng.uniform(0.5, 1, 2)
        pen.ellipse((centre[0] - rx, centre[1] - ry, centre[0] + rx, centre[1] + ry), fill=255)
    elif kind == 1:
        angles = np.sort(rng.uniform(0, 2 * np.pi, rng.integers(3, 9)))
        lengths = radius * rng.uniform(0.4, 1, len(angles))
        corners = centre + lengths[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)
        pen.polygon([tuple(corner) for corner in corners], fill=255)
    else:
        pen.line([tuple(p) for p in rng.uniform(0, size, (3, 2))], fill=255, width=int(rng.integers(2, 24)))
