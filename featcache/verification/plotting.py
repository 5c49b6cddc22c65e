"""Figures of a verification: ROC, DET and the scores of both kinds of pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ..errors import HeadError

__all__ = ["check_figure", "plot_verification"]

# Okabe and Ito's palette, as in all of featcache's figures; dashes carry what colour vision may miss.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DASHES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (3, 3)), "-")
_ENDINGS = (".png", ".svg", ".pdf")
_TICKS = (0.001, 0.01, 0.05, 0.1, 0.2, 0.4)


def check_figure(path: str | Path) -> Path:
    """Return the path, or raise HeadError where no figure can be written to it."""
    place = Path(path)
    if place.suffix.lower() not in _ENDINGS:
        raise HeadError(f"plot {str(path)!r}: expected a file name ending in {', '.join(_ENDINGS)}; add one of them")
    if place.is_dir() or not place.parent.is_dir():
        raise HeadError(f"plot {str(path)!r}: expected a file in a folder that exists; make the folder first")
    return place


def plot_verification(result: dict[str, Any], path: str | Path) -> Path:
    """Draw what `verify` found: ROC, DET, and the scores of the first draw under the last metric.

    Parameters
    ----------
    result : dict
        From `verify`.
    path : str or Path
        PNG, PDF or SVG, by its ending.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    HeadError
        For another ending, or a folder that does not exist.
    """
    place = check_figure(path)
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: no global state, nothing left open

    figure = Figure(figsize=(14.5, 4.4), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    roc, det, scores = figure.subplots(1, 3)
    for i, row in enumerate(result["results"]):
        _draw_rates(roc, det, row, result["curves"][row["metric"]], i)
    _dress_roc(roc)
    _dress_det(det)
    _draw_scores(scores, result["results"][-1], result["curves"][result["results"][-1]["metric"]])
    for panel in (roc, det, scores):
        panel.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{result['settings']['dataset']}: pairs of identities that were not trained on", fontsize=11)
    figure.savefig(place)
    return place


def _draw_rates(roc: Any, det: Any, row: dict[str, Any], curve: dict[str, Any], i: int) -> None:
    from scipy.stats import norm

    style = {"color": _COLOURS[i % len(_COLOURS)], "linestyle": _DASHES[i % len(_DASHES)], "linewidth": 1.5}
    far, frr = np.asarray(curve["far"]), np.asarray(curve["frr"])
    roc.plot(far, 1 - frr, label=f"{row['metric']}, EER {row['eer']:.1%}", **style)
    inside = (frr > 1e-4) & (frr < 1 - 1e-4) & (far < 1 - 1e-4)
    det.plot(norm.ppf(far[inside]), norm.ppf(frr[inside]), **style)


def _dress_roc(panel: Any) -> None:
    panel.set_xscale("log")
    panel.set_xlim(1e-4, 1)
    panel.set_ylim(0, 1.01)
    panel.set_xlabel("false accepts")
    panel.set_ylabel("true accepts")
    panel.set_title("ROC", fontsize=10)
    panel.grid(color="0.9", linewidth=0.8)
    panel.legend(frameon=False, fontsize=8, loc="lower right")


def _dress_det(panel: Any) -> None:
    from scipy.stats import norm

    places, labels = norm.ppf(_TICKS), [f"{tick:.1%}".replace(".0%", "%") for tick in _TICKS]
    panel.set_xticks(places, labels)
    panel.set_yticks(places, labels)
    ends = norm.ppf([0.0007, 0.6])
    panel.set_xlim(*ends)
    panel.set_ylim(*ends)
    panel.plot(ends, ends, color="0.75", linewidth=0.8, zorder=0)  # where both rates are equal
    panel.set_xlabel("false accepts")
    panel.set_ylabel("false rejects")
    panel.set_title("DET: equal errors on the diagonal", fontsize=10)
    panel.grid(color="0.9", linewidth=0.8)


def _draw_scores(panel: Any, row: dict[str, Any], curve: dict[str, Any]) -> None:
    view = curve["histogram"]
    for i, (kind, name) in enumerate((("impostor", "two identities"), ("genuine", "one identity"))):
        counts = np.asarray(view[kind])
        share = counts / max(counts.sum(), 1)
        panel.stairs(share, view["edges"], fill=True, alpha=0.25, color=_COLOURS[i])
        panel.stairs(share, view["edges"], color=_COLOURS[i], linestyle=_DASHES[i], label=name, linewidth=1.4)
    panel.axvline(curve["threshold"], color="0.3", linewidth=1.0, linestyle=":", label="threshold of the training part")
    panel.set_xlabel(f"score ({row['metric']})")
    panel.set_ylabel("share of pairs")
    panel.set_title("scores of the first draw", fontsize=10)
    panel.legend(frameon=False, fontsize=8)
