"""The curves of a run: losses, accuracy and learning rates over the epochs of all stages."""

from __future__ import annotations

from pathlib import Path
from typing import Any

__all__ = ["plot_history", "plot_rates"]

# Okabe and Ito's palette, as in all of featcache's figures; markers and dashes carry what colour vision may miss.
_BLUE, _RED, _GREEN, _GREY = "#0072B2", "#D55E00", "#009E73", "0.6"


def _figure(panels: int, width: float) -> tuple[Any, Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure  # not pyplot: no global state, nothing left open

    figure = Figure(figsize=(width, 3.8), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, panels, squeeze=False)[0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="0.92", linewidth=0.8)
    return figure, axes


def plot_history(history: list[dict[str, Any]], path: Path, final: dict[str, Any] | None = None) -> Path:
    """Draw a run's history.

    Parameters
    ----------
    history : list of dict
        As `Trained.history`.
    path : Path
        PNG, SVG or PDF, by its ending.
    final : dict, optional
        As `Trained.final`; its accuracy is drawn as a line.

    Returns
    -------
    Path
    """
    judged = any(row["val_accuracy"] is not None for row in history)
    figure, axes = _figure(3 if judged else 2, 12.5 if judged else 8.5)
    at = list(range(len(history)))
    _steps(axes[0], history)
    _line(axes[0], at, [row["train_loss"] for row in history], _BLUE, "-", "o", "training")
    _line(axes[0], at, [row["val_loss"] for row in history], _RED, "--", "s", "validation")
    axes[0].set_title("loss", fontsize=10)
    axes[0].legend(frameon=False, fontsize=8)
    if judged:
        _accuracies(axes[1], at, history, final or {})
    _rates(axes[-1], at, history)
    for panel in axes:
        _stages(panel, history)
        panel.set_xlabel("epoch, over all stages")
        panel.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path)
    return path


def _line(panel: Any, at: list[int], values: list[Any], colour: str, dashes: str, marker: str, label: str) -> None:
    there = [(x, y) for x, y in zip(at, values, strict=True) if y is not None]
    if there:
        x, y = zip(*there, strict=True)
        panel.plot(x, y, dashes, color=colour, marker=marker, markersize=3.5, linewidth=1.4, label=label)


def _steps(panel: Any, history: list[dict[str, Any]]) -> None:
    """Draw each step's loss between the end of the epoch before and that of its own."""
    at, losses = list[float](), list[float]()
    for x, row in enumerate(history):
        steps = row.get("step_losses", [])
        at += [x - 1 + (i + 1) / len(steps) for i in range(len(steps))]
        losses += steps
    panel.plot(at, losses, color=_BLUE, alpha=0.25, linewidth=0.7, label="each step")


def _accuracies(panel: Any, at: list[int], history: list[dict[str, Any]], final: dict[str, Any]) -> None:
    _line(panel, at, [row["val_accuracy"] for row in history], _RED, "--", "s", "each epoch")
    if final.get("val_accuracy") is not None:
        panel.axhline(final["val_accuracy"], color=_GREEN, linewidth=1.2, linestyle="-.", label="final weights")
    panel.yaxis.set_major_formatter(
        lambda value, _: f"{value:.0%}" if round(100 * value, 6) % 1 == 0 else f"{value:.1%}"
    )
    panel.set_title("accuracy on the validation rows", fontsize=10)
    panel.legend(frameon=False, fontsize=8, loc="lower right")


def _rates(panel: Any, at: list[int], history: list[dict[str, Any]]) -> None:
    head = [row["lr"].get("head", row["lr"].get("head, no decay")) for row in history]
    blocks = [[lr for name, lr in row["lr"].items() if not name.startswith("head")] for row in history]
    _line(panel, at, head, _BLUE, "-", "o", "head")
    _line(panel, at, [max(lr) if lr else None for lr in blocks], _RED, "--", "s", "fastest block")
    _line(panel, at, [min(lr) if lr else None for lr in blocks], _GREEN, "-.", "^", "slowest block")
    if any(value for value in head if value):
        panel.set_yscale("log")
    panel.set_title("learning rate of each epoch's last step", fontsize=10)
    if panel.lines:
        panel.legend(frameon=False, fontsize=8)


def _stages(panel: Any, history: list[dict[str, Any]]) -> None:
    """Mark where stages begin, and name them."""
    seen = 0
    for x, row in enumerate(history):
        if row["stage"] != seen and row["epoch"] > 0:
            seen = row["stage"]
            panel.axvline(x - 0.5, color=_GREY, linewidth=0.8, linestyle=":")
            panel.text(
                x - 0.42, 0.99, row["name"], transform=panel.get_xaxis_transform(), fontsize=7, color="0.35", va="top",
                rotation=90, bbox={"facecolor": "white", "alpha": 0.7, "linewidth": 0, "pad": 0.5},
            )  # fmt: skip


def plot_rates(rates: list[float], losses: list[float], smoothed: list[float], suggestion: float, path: Path) -> Path:
    """Draw a range test: loss over learning rate, and the rate that it suggests.

    Parameters
    ----------
    rates, losses, smoothed : list of float
        As `RateCurve` has them.
    suggestion : float
        Marked.
    path : Path
        PNG, SVG or PDF, by its ending.

    Returns
    -------
    Path
    """
    figure, (panel,) = _figure(1, 6.0)
    panel.plot(rates, losses, color=_GREY, linewidth=0.8, label="each step")
    panel.plot(rates, smoothed, color=_BLUE, linewidth=1.6, label="smoothed")
    panel.axvline(suggestion, color=_RED, linestyle="--", linewidth=1.2, label=f"suggested: {suggestion:.1e}")
    panel.set_xscale("log")
    panel.set_ylim(*_bounds(smoothed))
    panel.set_xlabel("learning rate of the head")
    panel.set_title("loss as the rate rises", fontsize=10)
    panel.legend(frameon=False, fontsize=8)
    figure.savefig(path)
    return path


def _bounds(values: list[float]) -> tuple[float, float]:
    low, high = min(values), max(values[0], min(values) * 1.2)
    room = 0.15 * max(high - low, 1e-6)
    return low - room, high + 2 * room
