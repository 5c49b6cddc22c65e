"""Glyph data for scripts/train_embedded.py: characters of free fonts, doodles, and what makes them look handwritten.

No digit is ever drawn: a character counts as a letter or a symbol only by its Unicode category (L*, S*, P*), never N*.
Sources: the DejaVu fonts that ship with matplotlib (Bitstream Vera licence); curves drawn from random control
points.
"""

import unicodedata
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont

CANVAS, INK = 48, 34  # side of a base glyph image, longest side of the ink on it

LETTER_RANGES = [
    (0x21, 0x7E), (0xA1, 0xFF), (0x100, 0x180), (0x391, 0x3CA), (0x410, 0x450), (0x531, 0x588), (0x5D0, 0x5EB),
    (0x621, 0x64B), (0x7CA, 0x7EB), (0x10D0, 0x10F6), (0x1401, 0x1450), (0x16A0, 0x16F0), (0x2190, 0x2200),
    (0x2200, 0x2300), (0x25A0, 0x25FF), (0x2D30, 0x2D66), (0xA4D0, 0xA4F8),
]  # fmt: skip


def font_files() -> list[Path]:
    """Return the DejaVu text fonts shipped with matplotlib, the upright sans first."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = sorted(p for p in folder.glob("DejaVu*.ttf") if "Display" not in p.name)
    return sorted(files, key=lambda p: p.stem != "DejaVuSans")


def candidate_characters() -> list[str]:
    """Return the letters and symbols to try; nothing of a numeric category, nothing that Unicode calls a digit."""
    chars = (chr(c) for first, last in LETTER_RANGES for c in range(first, last))
    return [
        c
        for c in chars
        if unicodedata.category(c)[0] in "LSP" and unicodedata.numeric(c, None) is None and "DIGIT" not in _name(c)
    ]


def _name(char: str) -> str:
    return unicodedata.name(char, "")


def fit_canvas(ink: Image.Image) -> np.ndarray | None:
    """Crop `ink` (mode L, bright on black) to its bounding box and centre it on the canvas; None when blank."""
    box = ink.getbbox()
    if box is None:
        return None
    ink = ink.crop(box)
    scale = INK / max(ink.size)
    size = tuple(max(2, round(side * scale)) for side in ink.size)
    canvas = Image.new("L", (CANVAS, CANVAS))
    canvas.paste(ink.resize(size, Image.Resampling.BILINEAR), ((CANVAS - size[0]) // 2, (CANVAS - size[1]) // 2))
    return np.asarray(canvas)


def render_character(font: ImageFont.FreeTypeFont, char: str) -> np.ndarray | None:
    """Draw one character, bright on black, as a (CANVAS, CANVAS) uint8 array; None when the font leaves it blank."""
    ink = Image.new("L", (160, 160))
    ImageDraw.Draw(ink).text((40, 30), char, fill=255, font=font)
    return fit_canvas(ink)


def font_glyphs(limit: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Render every distinct character in every font; return images (n, CANVAS, CANVAS) uint8 and class numbers (n,).

    Characters that look alike in DejaVu Sans (o and O, Latin A and Cyrillic A) share a class: correlation above 0.93
    after scaling to the same box, which is what the augmentation leaves of their size.
    """
    fonts = [ImageFont.truetype(str(path), 64) for path in font_files()]
    missing = [render_character(font, "\uffff") for font in fonts]
    prototypes: list[np.ndarray] = []
    images, labels = [], []
    for char in candidate_characters()[:limit]:
        drawn = [render_character(font, char) for font in fonts]
        drawn = [g if g is not None and not _same(g, m) else None for g, m in zip(drawn, missing, strict=True)]
        if drawn[0] is None:
            continue
        label = _match(drawn[0], prototypes)
        for glyph in drawn:
            if glyph is not None:
                images.append(glyph)
                labels.append(label)
    return np.stack(images), np.asarray(labels)


def _same(a: np.ndarray, b: np.ndarray | None) -> bool:
    return b is not None and np.array_equal(a, b)


def _match(glyph: np.ndarray, prototypes: list[np.ndarray]) -> int:
    """Return the number of the prototype that `glyph` looks like; append it as a new one when there is none."""
    code = np.asarray(Image.fromarray(glyph).resize((16, 16), Image.Resampling.BOX), dtype=np.float32).ravel()
    code = (code - code.mean()) / (np.linalg.norm(code - code.mean()) + 1e-6)
    if prototypes:
        likeness = np.stack(prototypes) @ code
        if likeness.max() > 0.93:
            return int(likeness.argmax())
    prototypes.append(code)
    return len(prototypes) - 1


def doodles(n_classes: int, per_class: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Invent characters of one to three curved strokes and let them be written `per_class` times by a shaky hand."""
    images, labels = [], []
    for label in range(n_classes):
        strokes = [rng.uniform(0.1, 0.9, (rng.integers(2, 6), 2)) for _ in range(rng.integers(1, 4))]
        for _ in range(per_class):
            glyph = fit_canvas(_write(strokes, rng))
            if glyph is not None:
                images.append(glyph)
                labels.append(label)
    return np.stack(images), np.asarray(labels)


def _write(strokes: list[np.ndarray], rng: np.random.Generator) -> Image.Image:
    """Draw the strokes once, each control point displaced a little."""
    side = 144
    ink = Image.new("L", (side, side))
    pen = ImageDraw.Draw(ink)
    width = int(rng.integers(7, 20))
    for points in strokes:
        curve = _spline(points + rng.normal(0, 0.045, points.shape)) * side
        pen.line([tuple(p) for p in curve], fill=255, width=width, joint="curve")
        for x, y in (curve[0], curve[-1]):
            pen.ellipse((x - width / 2, y - width / 2, x + width / 2, y + width / 2), fill=255)
    return ink


def _spline(points: np.ndarray, steps: int = 8) -> np.ndarray:
    """Catmull-Rom curve through the points."""
    p = np.concatenate([points[:1], points, points[-1:]])
    t = np.linspace(0, 1, steps)[:, None]
    pieces = []
    for a, b, c, d in zip(p[:-3], p[1:-2], p[2:-1], p[3:], strict=True):
        pieces.append(0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3))
    return np.concatenate(pieces)


def handwrite(ink: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Turn base glyphs (n, 1, CANVAS, CANVAS) in 0..1 into varied pictures (n, 3, size, size) in 0..1.

    Pen width, affine and elastic distortion, blur; then a low-resolution scan blown up again for most of them; then
    ink on paper, paper on ink, or two random colours, with noise.
    """
    ink = _pen_width(ink, generator)
    ink = _distort(ink, generator)
    ink = torch.cat([_rescan(part, size, generator) for part in ink.chunk(6)])
    return _colour(ink, generator)


def _uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> torch.Tensor:
    return torch.rand(shape, generator=generator) * (high - low) + low


def _pick(options: list, generator: torch.Generator):
    return options[int(torch.randint(len(options), (1,), generator=generator))]


def _pen_width(ink: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    choice = _uniform((len(ink), 1, 1, 1), 0, 1, generator)
    thick = F.max_pool2d(ink, 3, 1, 1)
    thicker = F.max_pool2d(ink, 5, 1, 2)
    thin = -F.max_pool2d(-ink, (2, 2), 1, 1)[..., :CANVAS, :CANVAS]
    ink = torch.where(choice < 0.4, thick, ink)
    ink = torch.where(choice < 0.15, thicker, ink)
    return torch.where(choice > 0.9, thin, ink)


def _distort(ink: torch.Tensor, generator: torch.Generator, side: int = 64) -> torch.Tensor:
    """Sample each glyph through a random affine map plus a smooth random displacement."""
    n = len(ink)
    angle, shear = (torch.randn(n, generator=generator) * s for s in (0.14, 0.18))
    zoom = _uniform((n,), 1.0, 1.5, generator)
    stretch = torch.exp(torch.randn(n, generator=generator) * 0.13)
    cos, sin = torch.cos(angle), torch.sin(angle)
    shift = torch.randn((n, 2), generator=generator) * 0.05
    matrix = (
        torch.stack(
            [
                torch.stack([cos * stretch, (shear * cos - sin) * stretch, shift[:, 0] * zoom], 1),
                torch.stack([sin / stretch, (shear * sin + cos) / stretch, shift[:, 1] * zoom], 1),
            ],
            1,
        )
        / zoom[:, None, None]
    )
    grid = F.affine_grid(matrix, [n, 1, side, side], align_corners=False)
    strength = _uniform((n, 1, 1, 1), 0.0, 0.16, generator)
    waves = torch.randn((n, 2, 5, 5), generator=generator) * strength
    waves = F.interpolate(waves, size=(side, side), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    return F.grid_sample(ink, grid + waves, mode="bilinear", padding_mode="zeros", align_corners=False)


def _rescan(ink: torch.Tensor, size: int, generator: torch.Generator) -> torch.Tensor:
    """Scan at a random low resolution, store at some other size by some interpolation, bring to `size`."""
    low = _pick([8, 8, 8, 10, 12, 16, 24, 32, 64], generator)
    small = F.interpolate(ink, size=(low, low), mode="area") if low < 64 else ink
    gain = _uniform((len(small), 1, 1, 1), 0.8, 1.6, generator)
    small = (small * gain).clamp(0, 1)
    if low <= 16:
        small = (small * 16).round() / 16
    stored = _pick([None, 32, 64, 64, 96], generator)
    if stored is not None and stored != low:
        mode = _pick(["nearest", "bilinear", "bicubic"], generator)
        align = {} if mode == "nearest" else {"align_corners": False}
        small = F.interpolate(small, size=(stored, stored), mode=mode, **align)
    return F.interpolate(small, size=(size, size), mode="bilinear", antialias=True, align_corners=False).clamp(0, 1)


def _colour(ink: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """White on black (half), black on white (a quarter), any two colours (a quarter); a little noise."""
    n = len(ink)
    kind = _uniform((n, 1, 1, 1), 0, 1, generator)
    coloured = _uniform((n, 2, 3, 1, 1), 0, 1, generator)
    pen = torch.where(kind < 0.5, torch.ones(3, 1, 1), torch.where(kind < 0.75, torch.zeros(3, 1, 1), coloured[:, 0]))
    paper = torch.where(kind < 0.5, torch.zeros(3, 1, 1), torch.where(kind < 0.75, torch.ones(3, 1, 1), coloured[:, 1]))
    close = (pen - paper).abs().amax(1, keepdim=True) < 0.35
    paper = torch.where(close, (pen > 0.5).float() * -1 + 1, paper)
    noise = torch.randn(ink.shape, generator=generator) * _uniform((n, 1, 1, 1), 0.0, 0.05, generator)
    return (paper + (pen - paper) * ink + noise).clamp(0, 1)
