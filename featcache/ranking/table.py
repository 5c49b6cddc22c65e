"""Ranking: what `rank` found, as a table, JSON and Markdown."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Ranking"]

#: Column of the table → field of a row, and how it is written.
_COLUMNS = {
    "ridge": ("ridge", "{:.4f}"),
    "kNN": ("knn", "{:.4f}"),
    "LogME": ("logme", "{:.4f}"),
    "H-score": ("h_score", "{:.3f}"),
    "LEEP": ("leep", "{:.3f}"),
}


@dataclass(frozen=True)
class Ranking:
    """Sets of codes of the same images, best first.

    Parameters
    ----------
    rows : tuple of dict
        One per set of codes, best first: codes (its name), rank (from 1), score (what they are sorted by), ci95 ([low,
        high] of it), explained (share of the labels' spread), explained_by ("ridge" or "knn"), ridge and knn
        (accuracies of the rows left out), ridge_ci95, knn_ci95, logme (None of codes without spread), h_score, leep
        (None without logits), backbone, node, features (numbers per image), n_images, extract_seconds (of one image,
        or None), seconds (to score it).
    comparisons : tuple of dict, default=()
        The best against each other: best, other, difference, ci95 (holds for all pairs at once), ci_method, p (of this
        pair alone), p_adjusted (among all pairs), distinguishable, n_images; as in a Result.
    notes : tuple of str, default=()
        What the reader should know.
    settings : dict, default={}
        What was asked for.
    trust : str, default=""
        How far such a ranking can be believed.

    Examples
    --------
    >>> row = {"codes": "a", "rank": 1, "score": 0.5, "ci95": [0.4, 0.6], "ridge": 0.5, "knn": 0.5, "logme": 0.1}
    >>> Ranking((row | {"h_score": 1.0, "leep": None, "features": 8, "n_images": 9, "seconds": 0.1},)).best()["codes"]
    'a'
    """

    rows: tuple[dict[str, Any], ...]
    comparisons: tuple[dict[str, Any], ...] = ()
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    trust: str = ""

    def __str__(self) -> str:
        return self.table()

    def best(self) -> dict[str, Any]:
        """Return the first row."""
        return self.rows[0]

    def statements(self) -> tuple[str, ...]:
        """Return which set of codes leads, and which cannot be told apart from it with so many images."""
        if not self.comparisons:
            return ()
        best, n = self.rows[0]["codes"], self.rows[0]["n_images"]
        equal = [each["other"] for each in self.comparisons if not each["distinguishable"]]
        if not equal:
            return (f"{best} is better than all others (paired over {n} images, corrected for their number)",)
        names = equal[0] if len(equal) == 1 else f"{', '.join(equal[:-1])} and {equal[-1]}"
        return (f"{best} leads, but cannot be told apart from {names} with your {n} images",)

    def table(self) -> str:
        """Return a plain text table, then what can be told apart, the notes and how far to trust it."""
        header, body = self._cells()
        widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]

        def line(cells: Iterable[str]) -> str:
            parts = [c.ljust(w) if i == 1 else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
            return "  ".join(parts).rstrip()

        return "\n".join([line(header), line("-" * w for w in widths), *map(line, body), *self._tail("")])

    def to_markdown(self) -> str:
        """Return a Markdown table, then the same as a list."""
        header, body = self._cells()
        rule = ["---" if i == 1 else "---:" for i in range(len(header))]
        lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in [header, rule, *body]]
        return "\n".join([*lines, *self._tail("- ")]) + "\n"

    def to_json(self, *, indent: int | None = None) -> str:
        """Return {"results": rows, "comparisons", "statements", "notes", "trust", "settings"} as JSON."""
        document = {
            "results": list(self.rows),
            "comparisons": list(self.comparisons),
            "statements": list(self.statements()),
            "notes": list(self.notes),
            "trust": self.trust,
            "settings": self.settings,
        }
        return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Ranking:
        """Return the Ranking that `to_json` wrote."""
        document = json.loads(text)
        rows, comparisons, notes = (tuple(document.get(key, ())) for key in ("results", "comparisons", "notes"))
        return cls(rows, comparisons, notes, document.get("settings", {}), document.get("trust", ""))

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        shown = {
            name: (key, form) for name, (key, form) in _COLUMNS.items() if any(r[key] is not None for r in self.rows)
        }
        header = ["rank", "codes", "score", "95 % interval", *shown, "features", "s"]
        return header, [self._line(row, shown) for row in self.rows]

    @staticmethod
    def _line(row: dict[str, Any], shown: dict[str, tuple[str, str]]) -> list[str]:
        low, high = row["ci95"]
        cells = [str(row["rank"]), row["codes"], _number(row["score"]), f"{_number(low)} to {_number(high)}"]
        cells += ["-" if row[key] is None else form.format(row[key]) for key, form in shown.values()]
        return [*cells, str(row["features"]), f"{row['seconds']:.2f}"]

    def _tail(self, bullet: str) -> list[str]:
        lines = [*self.statements(), *(f"note: {note}" for note in self.notes)]
        lines += [f"trust: {self.trust}"] * bool(self.trust)
        return ["", *(bullet + line for line in lines)] if lines else []


def _number(value: float) -> str:
    """Return four digits, without the sign of what rounds to 0."""
    text = f"{value:.4f}"
    return "0.0000" if text == "-0.0000" else text
