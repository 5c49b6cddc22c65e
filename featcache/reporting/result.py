"""Result: what a comparison found, as a table, JSON, Markdown and learning curves."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import HeadError
from .escaping import markdown_text

__all__ = ["SMALLER_IS_BETTER", "Result"]

#: Metrics of which less is better.
SMALLER_IS_BETTER = frozenset({"log_loss", "ece"})

# Okabe and Ito's palette: told apart by all common kinds of colour vision; markers and dashes carry the rest.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31", "#7F7F7F")
_PLOTS = (".png", ".svg", ".pdf")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")
_DASHES = ("-", "--", "-.", (0, (1, 1)))


@dataclass(frozen=True)
class Result:
    """What a comparison found.

    Parameters
    ----------
    rows : tuple of dict
        One per data set, shots and head: dataset, head, shots, metric, mean, std (None for one draw), ci95 ([low,
        high]), ci_method, metrics (means of further ones), fit_seconds (mean seconds of one fit, choice of settings
        included), extract_seconds (of one image, or None), n_train, n_test, n_images (different ones tested), seeds,
        scores (one per draw). Of a head that cannot give the metric mean and ci95 are None.
    comparisons : tuple of dict, default=()
        The best head of each data set and shots against each other head: best, other, difference, ci95, ci_method, p,
        p_adjusted, distinguishable, n_images. With other_dataset: the best of all data sets of the same images against
        the best of another one.
    notes : tuple of str, default=()
        What the reader should know.
    settings : dict, default={}
        The protocol.

    Examples
    --------
    >>> row = {"dataset": "d", "head": "lda", "shots": 1, "metric": "accuracy", "mean": 0.5, "std": None}
    >>> row |= {"ci95": [0.4, 0.6], "fit_seconds": 0.1, "n_train": 10, "n_test": 90}
    >>> Result((row,)).best()["head"]
    'lda'
    """

    rows: tuple[dict[str, Any], ...]
    comparisons: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.table()

    def best(self, *, dataset: str | None = None, shots: int | str | None = None) -> dict[str, Any]:
        """Return the row of the best mean, among all or those of one data set or number of shots.

        Raises
        ------
        ValueError
            When no row is left.
        """
        rows = [
            row
            for row in self.rows
            if (dataset is None or row["dataset"] == dataset) and (shots is None or row["shots"] == shots)
            if row["mean"] is not None
        ]
        if not rows:
            raise ValueError(f"Result: no row of dataset={dataset!r}, shots={shots!r}")
        return (min if rows[0]["metric"] in SMALLER_IS_BETTER else max)(rows, key=lambda row: row["mean"])

    def statements(self) -> tuple[str, ...]:
        """Return one sentence per data set and shots: which head is best, and which cannot be told from it.

        Then one per number of shots over several data sets of the same images.
        """
        families: dict[tuple[str, Any, bool], list[dict[str, Any]]] = {}
        for line in self.comparisons:
            families.setdefault((line["dataset"], line["shots"], "other_dataset" in line), []).append(line)
        own = [_statement(lines) for (_, _, across), lines in families.items() if not across]
        return (*own, *(_statement(lines) for (_, _, across), lines in families.items() if across))

    def table(self) -> str:
        """Return a plain text table, followed by what can be told apart and the notes."""
        header, body = self._cells()
        widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
        left = header.index("shots")  # names to the left, numbers to the right

        def line(cells: Iterable[str]) -> str:
            parts = [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
            return "  ".join(parts).rstrip()

        lines = [line(header), line("-" * w for w in widths), *map(line, body)]
        return "\n".join([*lines, *self._tail("")])

    def to_markdown(self) -> str:
        """Return a Markdown table, followed by what can be told apart and the notes as a list."""
        header, body = self._cells()
        rule = ["---" if i < header.index("shots") else "---:" for i in range(len(header))]
        shown = [[markdown_text(cell) for cell in line] for line in (header, *body)]
        lines = ["| " + " | ".join(line) + " |" for line in (shown[0], rule, *shown[1:])]
        tail = ["", *(f"- {markdown_text(line)}" for line in self._tail("")[1:])] if self._tail("") else []
        return "\n".join([*lines, *tail]) + "\n"

    def to_json(self, *, indent: int | None = None) -> str:
        """Return {"results": rows, "comparisons", "statements", "notes", "settings"} as JSON."""
        document = {
            "results": list(self.rows),
            "comparisons": list(self.comparisons),
            "statements": list(self.statements()),
            "notes": list(self.notes),
            "settings": self.settings,
        }
        return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Result:
        """Return the Result that `to_json` wrote."""
        document = json.loads(text)
        rows, comparisons, notes = (tuple(document.get(key, ())) for key in ("results", "comparisons", "notes"))
        return cls(rows, comparisons, notes, document.get("settings", {}))

    @staticmethod
    def check_plot(path: str | Path) -> None:
        """Raise HeadError unless `plot` can write a figure to `path`."""
        place = Path(path)
        if place.suffix.lower() not in _PLOTS:
            raise HeadError(f"plot {str(path)!r}: expected a file name ending in {', '.join(_PLOTS)}; add one of them")
        if place.is_dir() or not place.parent.is_dir():
            raise HeadError(f"plot {str(path)!r}: expected a file in a folder that exists; make the folder first")

    def plot(self, path: str | Path) -> Path:
        """Draw learning curves: metric against rows per class, one line per head, one panel per data set.

        Parameters
        ----------
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
        self.check_plot(path)
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure  # not pyplot: no global state, nothing left open

        measured = [row for row in self.rows if row["mean"] is not None]
        if not measured:
            raise HeadError(f"plot {str(path)!r}: expected a head that gives the metric, got none; take another metric")
        datasets = list(dict.fromkeys(row["dataset"] for row in measured))
        heads = list(dict.fromkeys(row["head"] for row in measured))
        figure = Figure(figsize=(1.8 + 5.2 * len(datasets), 4.4), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
        for panel, dataset in zip(panels, datasets, strict=True):
            self._draw_panel(panel, dataset, heads)
        panels[0].set_ylabel(str(self.rows[0]["metric"]).replace("_", " ") + " on test rows")
        # Labels in the order of the curves' right ends, so that the eye need not search.
        last = {row["head"]: row["mean"] for row in self.rows if row["dataset"] == datasets[-1] and row["mean"]}
        handles, labels = panels[-1].get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: -last.get(labels[i], 0.0))
        figure.legend([handles[i] for i in order], [labels[i] for i in order], loc="outside right upper", frameon=False)
        figure.savefig(path)
        return Path(path)

    def _draw_panel(self, panel: Any, dataset: str, heads: list[str]) -> None:
        rows = [row for row in self.rows if row["dataset"] == dataset and row["mean"] is not None]
        places = _places(rows)
        for i, head in enumerate(heads):
            own = sorted((row for row in rows if row["head"] == head), key=lambda row: places[row["shots"]])
            if not own:
                continue
            # A small shift to the side keeps error bars of equal shots apart.
            x = [places[row["shots"]] * 1.018 ** (i - (len(heads) - 1) / 2) for row in own]
            mean = np.asarray([row["mean"] for row in own])
            bars = np.abs(np.asarray([row["ci95"] for row in own]).T - mean)
            panel.errorbar(
                x,
                mean,
                yerr=bars,
                label=head,
                color=_COLOURS[i % len(_COLOURS)],
                marker=_MARKERS[i % len(_MARKERS)],
                linestyle=_DASHES[i % len(_DASHES)],
                markersize=4.5,
                linewidth=1.4,
                elinewidth=0.8,
                capsize=2,
            )
        panel.set_xscale("log")
        panel.set_xticks(list(places.values()), [str(shots) for shots in places])
        panel.minorticks_off()
        panel.set_xlim(min(places.values()) / 1.3, max(places.values()) * 1.3)
        panel.set_xlabel("training rows per class")
        panel.set_title(dataset, fontsize=10)
        panel.grid(axis="y", color="0.9", linewidth=0.8)
        panel.set_axisbelow(True)
        panel.spines[["top", "right"]].set_visible(False)

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        several = len({row["dataset"] for row in self.rows}) > 1
        metric = str(self.rows[0]["metric"]).replace("_", " ") if self.rows else "mean"
        costs = any(row.get("extract_seconds") is not None for row in self.rows)
        header = ["dataset"] * several + ["head", "shots", metric, "std", "95 % interval"]
        header += ["extract s"] * costs + ["fit s", "train", "test"]
        return header, [self._line(row, several, costs) for row in self.rows]

    def _line(self, row: Mapping[str, Any], several: bool, costs: bool) -> list[str]:
        low, high = row["ci95"]
        cells = [str(row["dataset"])] * several
        cells += [row["head"], str(row["shots"]), "-" if row["mean"] is None else f"{row['mean']:.4f}"]
        cells += ["-" if row["std"] is None else f"{row['std']:.4f}"]
        cells += ["-" if low is None else f"{low:.4f}-{high:.4f}"]
        if costs:  # of the images that this row trains on and tests
            each = row.get("extract_seconds")
            cells.append("-" if each is None else f"{each * (row['n_train'] + row['n_test']):.2f}")
        return cells + [f"{row['fit_seconds']:.2f}", str(row["n_train"]), str(row["n_test"])]

    def _tail(self, bullet: str) -> list[str]:
        lines = [*self.statements(), *(f"note: {note}" for note in self.notes)]
        return ["", *(bullet + line for line in lines)] if lines else []


def _places(rows: list[dict[str, Any]]) -> dict[int | str, float]:
    """Place of each number of shots on the axis; "all" at its mean rows per class, or clear of the rest."""
    numbers = sorted({row["shots"] for row in rows if row["shots"] != "all"})
    places: dict[int | str, float] = {shots: float(shots) for shots in numbers}
    whole = [row for row in rows if row["shots"] == "all"]
    if whole:
        classes = max((row["n_train"] / row["shots"] for row in rows if row["shots"] != "all"), default=1.0)
        per_class = float(np.mean([row["n_train"] for row in whole])) / max(math.ceil(classes), 1)
        places["all"] = max(per_class, 1.6 * max(numbers, default=0), 1.0)
    return places


def _statement(lines: list[dict[str, Any]]) -> str:
    """What the comparisons of one family say: the best, and who cannot be told from it."""
    across = "other_dataset" in lines[0]

    def who(head: str, dataset: str) -> str:
        return f"{head} on {dataset}" if across else head

    best = who(lines[0]["best"], lines[0]["dataset"])
    where = f"{'best of all codes' if across else lines[0]['dataset']}, {_shots(lines[0]['shots'])}: "
    if all(line["difference"] == 0.0 for line in lines):
        return f"{where}all score the same"
    equal = [who(line["other"], line.get("other_dataset", "")) for line in lines if not line["distinguishable"]]
    if not equal:
        return f"{where}{best} is better than the others (5 % level, all pairs considered)"
    images = lines[0].get("n_images")
    given = f"with your {images} test images" if images else "on these splits"
    return f"{where}{best} leads, but cannot be told apart from {_and(equal)} {given}"


def _shots(shots: int | str) -> str:
    return "all rows" if shots == "all" else f"{shots} shot{'s' if shots != 1 else ''}"


def _and(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
