"""The plots of a report, through matplotlib: each as SVG with text as text, and as PNG."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .document import Cloud, Figure
from .escaping import short
from .result import _COLOURS, _MARKERS, Result

__all__ = ["COLOURS", "MARKERS", "curves", "intervals", "inline_svg", "plane", "reliability"]

COLOURS, MARKERS = _COLOURS, _MARKERS

_INCHES = 4.7  # about 450 CSS pixels: read at nearly this size on a phone, too
_STYLE: Any = {
    "text.parse_math": False,  # a class may be called $x$
    "svg.fonttype": "none",
    "svg.hashsalt": "featcache",
    "font.size": 9.5,
    "font.family": ["DejaVu Sans"],
    "axes.titlesize": 10,
}


def _drawn(title: str, alt: str, inches: float, draw: Callable[[Any], None]) -> Figure:
    """Draw on a figure of the usual width and return it in both forms; nothing global is touched."""
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as Canvas

    log = logging.getLogger("matplotlib.font_manager")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        with mpl.rc_context(_STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*[Gg]lyph")  # a reader's own fonts show what ours lack
            figure = Canvas(figsize=(_INCHES, inches), dpi=150, layout="constrained")
            FigureCanvasAgg(figure)
            draw(figure)
            vector, raster = io.StringIO(), io.BytesIO()
            figure.savefig(vector, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
            figure.savefig(raster, format="png", metadata={"Software": None})
    finally:
        log.setLevel(before)
    return Figure(title, alt, vector.getvalue(), raster.getvalue())


def inline_svg(svg: str, prefix: str, alt: str) -> str:
    """Return matplotlib's SVG as it can stand within a page.

    Ids get a prefix, the style that would fall on the whole page goes, black becomes the colour of the page's text (so
    that the drawing follows a dark page), and nothing names a place on the network. `alt` is HTML already.
    """
    body = svg[svg.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", body, flags=re.S)
    head, rest = body.split(">", 1)
    box = re.search(r'viewBox="[^"]*"', head)
    rest = re.sub(r'\bid="([^"]*)"', rf'id="{prefix}\1"', rest)
    rest = re.sub(r'(?:xlink:)?href="#([^"]*)"', rf'href="#{prefix}\1"', rest)
    rest = re.sub(r"url\(#([^)]*)\)", rf"url(#{prefix}\1)", rest)
    rest = rest.replace("stroke: #000000", "stroke: currentColor").replace("#e5e5e5", "var(--line)")
    rest = rest.replace("#0072b2", "var(--blue)")
    rest = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", rest)
    rest = re.sub(r">\s+<", "><", rest)
    return f'<svg {box[0] if box else ""} role="img" aria-label="{alt}">{rest}'.rstrip()


def _bare(panel: Any, *, grid: str) -> None:
    panel.grid(axis=grid, color="#e5e5e5", linewidth=0.8)
    panel.set_axisbelow(True)
    panel.spines[["top", "right"]].set_visible(False)


def curves(result: Result, dataset: str, more: Mapping[str, Any] | None = None) -> Figure:
    """Draw learning curves of one data set: metric against rows per class, one line per head."""
    rows = [row for row in result.rows if row["dataset"] == dataset]
    heads = list(dict.fromkeys(row["head"] for row in result.rows))
    metric = str(rows[0]["metric"]).replace("_", " ")
    last = {row["head"]: row["mean"] for row in rows if row["mean"] is not None}

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        result._draw_panel(panel, dataset, heads)
        panel.set_title("")
        panel.set_ylabel(f"{metric} on test images")
        panel.set_xlabel("training images per class")
        _bare(panel, grid="y")
        handles, labels = panel.get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: -last.get(labels[i], 0.0))
        panel.legend(
            [handles[i] for i in order], [short(labels[i], 20) for i in order], loc="lower right", frameon=False
        )

    ends = ", ".join(f"{head} {value:.3f}" for head, value in sorted(last.items(), key=lambda item: -item[1]))
    return _drawn(f"Learning curves of {short(dataset)}", f"{metric} at the most training images: {ends}", 3.5, draw)


def intervals(rows: Sequence[Mapping[str, Any]], title: str, *, width: int = 16, order: str = "best first") -> Figure:
    """Draw means with 95 % intervals, one line per row of a Result, the first on top; colour and marker by data set.

    Parameters
    ----------
    rows : sequence of mapping
        dataset, head (the line's name), metric, mean, ci95.
    title : str
        What it shows.
    width : int, default=16
        Characters that a name may have.
    order : str, default="best first"
        What the rows are sorted by, for those who cannot see them.
    """
    datasets = list(dict.fromkeys(row["dataset"] for row in rows))
    ordered = list(reversed(rows))
    metric = str(rows[0]["metric"]).replace("_", " ")

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        for place, row in enumerate(ordered):
            i = datasets.index(row["dataset"])
            low, high = (row["mean"] if bound is None else bound for bound in row["ci95"] or (None, None))
            panel.plot([low, high], [place, place], color=COLOURS[i % 9], linewidth=2, alpha=0.55)
            panel.plot([row["mean"]], [place], marker=MARKERS[i % 9], color=COLOURS[i % 9], linestyle="none")
        names = [short(row["head"], width) for row in ordered]
        if len(datasets) > 1:
            names = [
                f"{name}, {chr(65 + datasets.index(r['dataset']))}" for name, r in zip(names, ordered, strict=True)
            ]
            for i, dataset in enumerate(datasets):
                label = f"{chr(65 + i)}: {short(dataset, 40)}"
                panel.plot([], [], marker=MARKERS[i % 9], color=COLOURS[i % 9], linewidth=2, label=label)
            figure.legend(loc="outside lower center", frameon=False)
        panel.set_yticks(range(len(ordered)), names)
        panel.set_ylim(-0.6, len(ordered) - 0.4)
        panel.set_xlabel(f"{metric}, 95 % interval")
        _bare(panel, grid="x")

    said = ", ".join(f"{row['head']} {row['mean']:.3f}" for row in rows[:6])
    return _drawn(title, f"{order}: {said}", 0.9 + 0.26 * len(ordered) + 0.22 * (len(datasets) - 1), draw)


def reliability(bins: Sequence[Mapping[str, float]], error: float) -> Figure:
    """Draw how often predictions are right against how sure the head was, with the number of images per bin.

    Parameters
    ----------
    bins : sequence of mapping
        low, high, confidence (mean), accuracy, count.
    error : float
        Expected calibration error.
    """

    def draw(figure: Any) -> None:
        panel, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        panel.plot([0, 1], [0, 1], color="#7f7f7f", linestyle="--", linewidth=1, label="as sure as right")
        some = [b for b in bins if b["count"]]
        x, y = [b["confidence"] for b in some], np.asarray([b["accuracy"] for b in some])
        # Wilson's interval: a bin of five images says little, and should look so.
        n = np.asarray([b["count"] for b in some], dtype=float)
        middle, half = (y + 1.92 / n) / (1 + 3.84 / n), 1.96 * np.sqrt(y * (1 - y) / n + 0.96 / n**2) / (1 + 3.84 / n)
        bars = np.abs([middle - half - y, middle + half - y])
        panel.errorbar(x, y, yerr=bars, color=COLOURS[0], marker="o", markersize=5, linestyle="none", elinewidth=1,
                       capsize=2, label="predictions, with 95 % interval")  # fmt: skip
        panel.set_ylabel("share that is right")
        panel.set_ylim(-0.03, 1.03)
        panel.legend(loc="lower right", frameon=False)
        below.bar(
            [(b["low"] + b["high"]) / 2 for b in bins],
            [b["count"] for b in bins],
            width=[0.9 * (b["high"] - b["low"]) for b in bins],
            color=COLOURS[5],
        )
        below.set_ylabel("images")
        below.set_xlabel("probability of the predicted class")
        below.set_xlim(0, 1)
        for each in (panel, below):
            _bare(each, grid="y")

    return _drawn("Calibration", f"expected calibration error {error:.3f}", 4.2, draw)


def plane(cloud: Cloud) -> Figure:
    """Draw a cloud of points for pages that cannot be hovered over."""
    of, x, y = np.asarray(cloud.of), np.asarray(cloud.x), np.asarray(cloud.y)

    def draw(figure: Any) -> None:
        panel = figure.subplots()
        for i, name in enumerate(cloud.classes):
            look = {"color": COLOURS[i % 9], "marker": MARKERS[(i + i // 9) % 9], "s": 9, "linewidths": 0}
            panel.scatter(x[of == i], -y[of == i], label=short(name, 18), alpha=0.8, **look)
        panel.set_xticks([])
        panel.set_yticks([])
        if len(cloud.classes) <= 30:
            figure.legend(loc="outside lower center", ncols=3, frameon=False, markerscale=1.6)

    rows = min(-(-len(cloud.classes) // 3), 10)
    return _drawn("Map of the codes", cloud.alt, 4.4 + 0.19 * rows, draw)
