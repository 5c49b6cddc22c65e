"""Heads and backbones compared, and how the results grow with labels: pages of a Result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..reporting.document import Block, Points, Section, Table, Text
from ..reporting.drawing import curves, intervals
from ..reporting.escaping import short
from ..reporting.result import SMALLER_IS_BETTER, Result

__all__ = ["comparison_section", "curves_section", "gained", "most_shots", "percent", "shots_for"]

_ROWS = 30


def shots_for(sizes: list[int]) -> tuple[int | str, ...]:
    """Return rows per class for learning curves: 1, 5, 20, 80 where half of the classes have twice as many, and all.

    Examples
    --------
    >>> shots_for([12, 40, 60])
    (1, 5, 20, 'all')
    """
    middle = sorted(sizes)[len(sizes) // 2] if sizes else 0
    return (*(k for k in (1, 5, 20, 80) if 2 * k <= middle), "all")


def most_shots(result: Result) -> list[dict[str, Any]]:
    """Return the rows of a Result with the most training images, of every data set, the best first.

    Rows without a value (heads that give no probabilities, where these are measured) are left out.
    """
    shots = {row["shots"] for row in result.rows}
    most = "all" if "all" in shots else max(shots, key=int, default="all")
    rows = [row for row in result.rows if row["shots"] == most and row["mean"] is not None]
    return sorted(rows, key=lambda row: row["mean"] if row["metric"] in SMALLER_IS_BETTER else -row["mean"])


def percent(value: float, metric: str = "accuracy") -> str:
    """Return a share as percents; what is no share of images as the number it is."""
    return f"{value:.3f}" if metric in SMALLER_IS_BETTER else f"{100 * value:.1f} %"


def _interval(row: dict[str, Any]) -> str:
    bounds = row.get("ci95")
    return (
        "–"
        if not bounds or None in bounds
        else f"{percent(bounds[0], row['metric'])} to {percent(bounds[1], row['metric'])}"
    )


def _extraction(row: dict[str, Any]) -> str:
    """Seconds to extract the images of a row once, where the store knows."""
    each = row.get("extract_seconds")
    return "–" if each is None else f"{each * (row['n_train'] + row['n_test']):.0f}"


def comparison_section(result: Result) -> Section | None:
    """Return the section that compares heads and codes on all training images; None where nothing was measured."""
    rows = most_shots(result)
    if not rows:
        return None
    costs = any(row.get("extract_seconds") is not None for row in rows)
    several = len({row["dataset"] for row in rows}) > 1
    metric = str(rows[0]["metric"])
    cells = tuple(
        (
            short(row["head"], 28),
            *([short(row["dataset"], 40)] if several else []),
            percent(row["mean"], metric),
            _interval(row),
            *([_extraction(row)] if costs else []),
            f"{row['fit_seconds']:.2f}",
            str(row["n_train"]),
            str(row["n_test"]),
        )
        for row in rows[:_ROWS]
    )
    measured = (metric.replace("_", " "), "95 % interval", *(["extract s"] if costs else []), "fit s", "train", "test")
    header = ("head", *(["codes"] if several else []), *measured)
    numbers = tuple(range(2 if several else 1, len(header)))
    said = [s for s in result.statements() if "all rows" in s or len(result.statements()) == 1]
    draws = len(rows[0].get("seeds") or [0])
    text = Text(
        f"Each head on the same {draws} draw{'s' if draws != 1 else ''} of training and test images; settings are "
        f"chosen within the training images. Intervals: {rows[0].get('ci_method') or 'of 95 %'}."
    )
    blocks: list[Block] = [text, intervals(rows[:_ROWS], "All training images"), Points(tuple(said))]
    blocks.append(Table(header, cells, "The best first; fit s: one fit with the choice of its settings.", numbers))
    blocks.append(Points(result.notes))
    return Section("comparison", "Heads and codes compared", tuple(blocks), _plain(result))


def curves_section(result: Result, forecasts: Sequence[Any] = ()) -> Section | None:
    """Return the section with learning curves, and what carries them on; None where one number of shots was tried.

    Parameters
    ----------
    result : Result
        Of `compare`.
    forecasts : sequence of Forecast, default=()
        Of `featcache.evaluation.forecast`.
    """
    if len({row["shots"] for row in result.rows}) < 2:
        return None
    datasets = list(dict.fromkeys(row["dataset"] for row in result.rows))
    blocks: list[Block] = [Text("Mean over draws with 95 % intervals; the same images for all heads.")]
    blocks += [curves(result, dataset) for dataset in datasets[:6]]
    if forecasts:
        blocks.append(_forecasts(forecasts, len(datasets) > 1))
    said = [statement for statement in result.statements() if "all rows" not in statement]
    blocks.append(Points(tuple(said[:6])))
    data = {"forecasts": [each.statement() for each in forecasts]}
    return Section("curves", "How much labels help", tuple(blocks), data)


def _forecasts(forecasts: Sequence[Any], several: bool) -> Table:
    """What more labels of the same kind would bring, the largest gain first."""
    ordered = sorted(forecasts, key=lambda each: -abs(each.gain))[:_ROWS]
    rows = tuple(
        (short(each.head, 28), *([short(each.dataset, 40)] if several else []), gained(each), _bounds(each))
        for each in ordered
    )
    factor = "twice" if ordered[0].factor == 2 else f"{ordered[0].factor:g} times"
    header = ("head", *(["codes"] if several else []), f"with {factor} the labels", "95 % interval")
    caption = "Curves carried on by power laws: what more labels of the same kind would bring."
    return Table(header, rows, caption, tuple(range(len(header) - 2, len(header))))


def gained(forecast: Any) -> str:
    """Return the gain of a forecast with its standard deviation, in points where the metric is a share."""
    if forecast.metric in SMALLER_IS_BETTER:
        return f"{forecast.gain:+.3f} ± {forecast.gain_sd:.3f}"
    return f"{100 * forecast.gain:+.1f} ± {100 * forecast.gain_sd:.1f} points"


def _bounds(forecast: Any) -> str:
    scale, digits = (1, 3) if forecast.metric in SMALLER_IS_BETTER else (100, 1)
    return " to ".join(f"{scale * bound:+.{digits}f}" for bound in forecast.gain_ci95)


def _plain(result: Result) -> dict[str, Any]:
    return {
        "results": list(result.rows),
        "comparisons": list(result.comparisons),
        "notes": list(result.notes),
        "settings": dict(result.settings),
    }
