"""Results of other rooms as sections: whatever is a frozen dataclass with rows, sentences and notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..reporting.document import Block, Facts, Points, Section, Table
from ..reporting.escaping import short

__all__ = ["sections_of"]

_TITLES = {
    "Ranking": "Backbones and layers ranked",
    "Advice": "What to train",
    "Suggestions": "What to label next",
    "Evaluation": "One head measured",
    "Audit": "Audit",
}
_ROWS = 25
#: Of interest to machines, or said already by the sections on protocol and findings.
_SKIPPED = frozenset(("settings", "ids", "groups", "leave_out", "comparisons", "scores", "seeds"))


def sections_of(results: Sequence[Any]) -> list[Section]:
    """Return a section per result: its sentences, its tables (fields that are tuples of dict), its notes.

    Parameters
    ----------
    results : sequence of dataclass
        Such as what `rank`, `advise` and `suggest` return.

    Examples
    --------
    >>> from featcache import Result
    >>> sections_of([Result((), notes=("a note",))])[0].title
    'Result'
    """
    return [_section(result, i) for i, result in enumerate(results)]


def _section(result: Any, number: int) -> Section:
    said = getattr(result, "statements", None)
    blocks: list[Block] = [Points(tuple(map(str, said())))] if callable(said) else []
    facts: list[tuple[str, str]] = []
    for name in (field.name for field in fields(result) if not field.name.startswith("_")):
        value = getattr(result, name)
        if name in _SKIPPED or value in (None, "", ()) or name == "notes":
            continue
        if isinstance(value, tuple) and all(isinstance(row, Mapping) for row in value):
            blocks.append(_table(name, value))
        elif isinstance(value, Mapping):
            facts.append((name, short(value.get("text") or _said(value), 300)))
        elif isinstance(value, (str, int, float)):
            facts.append((name, short(value, 300)))
    notes = tuple(map(str, getattr(result, "notes", ())))
    kind = type(result).__name__
    head: list[Block] = [Facts(tuple(facts))] if facts else []
    return Section(
        f"more{'abcdefghijklmnopqrstuvwxyz'[number % 26]}", _TITLES.get(kind, kind), (*head, *blocks, Points(notes))
    )


def _table(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for row in rows for key in row if key not in _SKIPPED))
    cells = tuple(tuple(_said(row.get(key)) for key in columns) for row in rows[:_ROWS])
    numbers = tuple(i for i, key in enumerate(columns) if all(isinstance(row.get(key), (int, float)) for row in rows))
    caption = name.replace("_", " ") + (f", {_ROWS} of {len(rows)}" if len(rows) > _ROWS else "")
    return Table(tuple(key.replace("_", " ") for key in columns), cells, caption, numbers)


def _said(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_said(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        words = " to " if len(value) == 2 and all(isinstance(v, float) for v in value) else ", "
        return words.join(map(_said, value[:12]))
    return short(value, 200)
