"""Suggestions: which images to label next, and why, as a table, JSON, Markdown and a list of ids."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ..errors import HeadError
from ..reporting.escaping import visible

__all__ = ["Suggestion", "Suggestions"]


@dataclass(frozen=True)
class Suggestion:
    """One image to label.

    Parameters
    ----------
    id : str
        The image.
    why : str
        The reason, for people.
    doubt : float or None
        1 less the lead of the most probable class, from 0 (sure) to 1; None where there is no head.
    guess, rival : str or None
        The two most probable classes.
    probabilities : tuple of float or None
        Theirs.
    nearest : float or None
        Cosine of its code with that of the nearest labelled image, centred; None where none is labelled.
    stands_for : int
        Unlabelled images to which it is nearer than any other suggestion or labelled image is, itself included.
    usefulness : float
        Share of the unlabelled images it stands for, times the chance that the head's guess is wrong (1 where there is
        no head): a rough measure to compare suggestions by, not a promised gain.
    """

    id: str
    why: str
    doubt: float | None
    guess: str | None
    rival: str | None
    probabilities: tuple[float, float] | None
    nearest: float | None
    stands_for: int
    usefulness: float


@dataclass(frozen=True)
class Suggestions:
    """Which images to label next; made by `suggest`.

    Parameters
    ----------
    rows : tuple of Suggestion
        In the order in which they were picked: any first part of them is a good batch, too.
    strategy : str
        What was used: "coverage", "uncertainty", "mix" or "random".
    notes : tuple of str
        What the reader should know.
    settings : dict
        How they were asked for, and how many images there were.

    Examples
    --------
    >>> row = Suggestion("a.jpg", "stands for 3 images", None, None, None, None, None, 3, 0.3)
    >>> Suggestions((row,), "coverage").ids
    ['a.jpg']
    """

    rows: tuple[Suggestion, ...]
    strategy: str
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.table()

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> list[str]:
        """The images, in order."""
        return [row.id for row in self.rows]

    def table(self) -> str:
        """Return a plain text table and the notes."""
        header, body = _HEADER, [[visible(cell) for cell in cells] for cells in self._cells()]
        widths = [max(len(line[i]) for line in [header, *body]) for i in range(len(header))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in [header, *body]]
        return "\n".join([*lines, "", *(f"note: {note}" for note in self._said())])

    def to_markdown(self) -> str:
        """Return a Markdown table, and the notes as a list."""
        body = [[visible(cell).replace("\\", "\\\\").replace("|", "\\|") for cell in cells] for cells in self._cells()]
        lines = ["| " + " | ".join(line) + " |" for line in [_HEADER, ["---"] * len(_HEADER), *body]]
        return "\n".join([*lines, "", *(f"- {note}" for note in self._said())]) + "\n"

    def to_json(self, *, indent: int | None = None) -> str:
        """Return {"strategy", "suggestions", "notes", "settings"} as JSON."""
        rows = [asdict(row) for row in self.rows]
        document = {"strategy": self.strategy, "suggestions": rows, "notes": self.notes, "settings": self.settings}
        return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)

    def save(self, path: str | Path) -> Path:
        """Write the ids for a labelling tool.

        Parameters
        ----------
        path : str or Path
            .txt: one id a line; .csv: columns id, label (empty, to be filled in), guess, why; .json: `to_json`.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        HeadError
            For another ending, a folder that does not exist, or, in .txt, an id with a line break.
        """
        place = check_list(path)
        if place.suffix.lower() == ".json":
            text = self.to_json(indent=1) + "\n"
        elif place.suffix.lower() == ".csv":
            out = io.StringIO()
            lines = csv.writer(out, lineterminator="\n")
            lines.writerow(["id", "label", "guess", "why"])
            lines.writerows([row.id, "", row.guess or "", row.why] for row in self.rows)
            text = out.getvalue()
        else:
            if odd := [name for name in self.ids if len(name.splitlines()) > 1]:
                raise HeadError(f"{place}: the id {odd[0]!r} has a line break; write a .csv or .json file")
            text = "".join(f"{name}\n" for name in self.ids)
        place.write_text(text, encoding="utf-8", errors="surrogateescape")
        return place

    def _cells(self) -> list[list[str]]:
        return [
            [
                str(number),
                row.id,
                "-" if row.guess is None or row.probabilities is None else f"{row.guess} {row.probabilities[0]:.2f}",
                "-" if row.doubt is None else f"{row.doubt:.2f}",
                str(row.stands_for),
                f"{row.usefulness:.4f}",
                row.why,
            ]
            for number, row in enumerate(self.rows, 1)
        ]

    def _said(self) -> tuple[str, ...]:
        return (f"strategy {self.strategy}", *self.notes)


_HEADER = ["", "image", "guess", "doubt", "stands for", "usefulness", "why"]


def check_list(path: str | Path) -> Path:
    """Return the path when `Suggestions.save` can write there; HeadError otherwise."""
    place = Path(path)
    if place.suffix.lower() not in (".txt", ".csv", ".json"):
        raise HeadError(f"{place}: expected a file name ending in .txt, .csv or .json; add one of them")
    if place.is_dir() or not place.parent.is_dir():
        raise HeadError(f"{place}: expected a file in a folder that exists; make the folder first")
    return place
