"""Audit: what was found wrong with a data set, as rows, a table, JSON and Markdown, and what to do about it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..reporting.escaping import visible

__all__ = ["KINDS", "Audit"]

#: What can be found, in the order in which it is told.
KINDS = ("exact duplicate", "near duplicate", "group straddles", "label suspect", "outlier", "constant")
_SHOWN = 20
_HEADER = ("kind", "score", "images", "labels", "splits", "what it means")


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Parameters
    ----------
    rows : tuple of dict
        Findings, by kind (`KINDS`), the surest first: kind, ids (list of str), score (0 to 1), labels and splits (one
        per id, "" where there is none), across (whether train, val and test share it), conflict (whether labels
        differ), suggested (a label suspect's other label, else None), detail (one sentence). A score orders findings of
        one kind; the scores of label suspects add up to their `expected` number.
    ids : tuple of str
        Images that were audited, in their order.
    groups : tuple of str
        For each of them its group: its own group and all copies share one. As ``groups`` of a FeatureSet it keeps
        copies on one side of every split.
    leave_out : tuple of str
        Ids without which no copies and no blank images are left; of copies across splits the test image stays.
    expected : dict of str to float, default={}
        For each kind found how many findings are expected to be real.
    notes : tuple of str, default=()
        What could not be examined, and why.
    settings : dict, default={}
        The audit's own settings, `images` (how many pixels were seen) among them.
    dataset : str, default=""
        What was audited.
    examined : tuple of str, default=KINDS
        Kinds that were looked for.

    Examples
    --------
    >>> row = {"kind": "constant", "ids": ["a.png"], "score": 1.0, "labels": ["cat"], "splits": [""]}
    >>> row |= {"across": False, "conflict": False, "suggested": None, "detail": "one flat colour"}
    >>> print(Audit((row,), ("a.png", "b.png"), ("", ""), ("a.png",)).statements()[0])
    1 constant image shows nothing: leave it out.
    """

    rows: tuple[dict[str, Any], ...]
    ids: tuple[str, ...]
    groups: tuple[str, ...]
    leave_out: tuple[str, ...]
    expected: dict[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    dataset: str = ""
    examined: tuple[str, ...] = KINDS

    def __str__(self) -> str:
        return self.table()

    def of(self, kind: str) -> tuple[dict[str, Any], ...]:
        """Return the findings of one kind.

        Raises
        ------
        ValueError
            For a kind that there is not.
        """
        if kind not in KINDS:
            raise ValueError(f"kind: expected one of {', '.join(KINDS)}, got {kind!r}")
        return tuple(row for row in self.rows if row["kind"] == kind)

    def groups_of(self, ids: Iterable[str]) -> list[str]:
        """Return the group of each of some ids, in their order: for ``groups`` of the FeatureSet that was audited.

        Ids that were not audited, such as augmented views, have none ("").
        """
        held = dict(zip(self.ids, self.groups, strict=True))
        return [held.get(name, "") for name in ids]

    @property
    def leaking(self) -> tuple[dict[str, Any], ...]:
        """Findings that make test results too good: copies and groups across splits."""
        return tuple(row for row in self.rows if row["across"])

    def statements(self) -> tuple[str, ...]:
        """Return one sentence for each kind found: how much, what it does, what to do."""
        out = [_SAID[kind](found) + self._real(kind) for kind in KINDS if (found := self.of(kind))]
        return tuple(out) or (self._nothing(),)

    def _nothing(self) -> str:
        *most, last = [_NONE_OF[kind] for kind in KINDS if kind in self.examined] or ["kind of fault was looked for"]
        if not self.examined:
            return f"Nothing was found: no {last}."
        return f"Nothing was found: no {', '.join(most)}{' or ' if most else ''}{last}."

    def _real(self, kind: str) -> str:
        if kind not in ("near duplicate", "label suspect", "outlier") or kind not in self.expected:
            return ""
        return f" About {self.expected[kind]:.0f} of {len(self.of(kind))} are expected to be real."

    def table(self, *, limit: int = _SHOWN) -> str:
        """Return a plain text table with at most `limit` findings of each kind, the statements and the notes."""
        body = self._cells(limit)
        widths = [max(len(line[i]) for line in [_HEADER, *body]) for i in range(len(_HEADER))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in _ruled(body)]
        return "\n".join([*(lines if body else []), *self._tail("", limit)])

    def to_markdown(self, *, limit: int = _SHOWN) -> str:
        """Return a Markdown table with at most `limit` findings of each kind, the statements and the notes."""
        body = self._cells(limit)
        lines = ["| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in [_HEADER, ("---",) * 6, *body]]
        return "\n".join([*(lines if body else []), *self._tail("- ", limit)]) + "\n"

    def to_json(self, *, indent: int | None = None) -> str:
        """Return {"findings": rows, "statements", "leave_out", "ids", "groups", "expected", …} as JSON."""
        return json.dumps(self.document(), indent=indent, ensure_ascii=False, allow_nan=False)

    def document(self) -> dict[str, Any]:
        """Return what `to_json` writes, as plain types."""
        held = {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}
        return {"findings": held.pop("rows"), "statements": list(self.statements()), **held}

    @classmethod
    def from_json(cls, text: str) -> Audit:
        """Return the Audit that `to_json` wrote."""
        document = json.loads(text)
        rows, ids, groups, leave_out, notes = (
            tuple(document.get(name, ())) for name in ("findings", "ids", "groups", "leave_out", "notes")
        )
        expected, settings = document.get("expected", {}), document.get("settings", {})
        name, examined = document.get("dataset", ""), tuple(document.get("examined", KINDS))
        return cls(rows, ids, groups, leave_out, expected, notes, settings, name, examined)

    def _cells(self, limit: int) -> list[tuple[str, ...]]:
        return [_line(row) for kind in KINDS for row in self.of(kind)[:limit]]

    def _tail(self, bullet: str, limit: int) -> list[str]:
        more = [f"{len(self.of(k)) - limit} more of kind {k}: to_json() has them all" for k in KINDS]
        more = [line for line in more if not line.startswith(("-", "0"))]
        lines = [*self.statements(), *(f"note: {note}" for note in [*more, *self.notes])]
        return ["", *(bullet + line for line in lines)] if self.rows else [bullet + line for line in lines]


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    labels = "" if row["labels"] == [""] * len(row["labels"]) else _some(_distinct(row["labels"]))
    if row["suggested"]:
        labels = f"{labels} -> {row['suggested']}"
    splits = _some(_distinct(name for name in row["splits"] if name))
    return row["kind"], f"{row['score']:.3f}", _some(row["ids"]), labels, splits, row["detail"]


def _ruled(body: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    widths = [max(len(line[i]) for line in [_HEADER, *body]) for i in range(len(_HEADER))]
    return [_HEADER, tuple("-" * width for width in widths), *body]


def _distinct(values: Any) -> list[str]:
    return list(dict.fromkeys(values))


def _some(values: Sequence[str]) -> str:
    shown = [visible(value) for value in values[:3]]
    return ", ".join(shown) + (f", … ({len(values)})" if len(values) > 3 else "")


def _escaped(cell: str) -> str:
    return cell.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _n(count: int, one: str, many: str = "") -> str:
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"


def _leak(found: Sequence[Mapping[str, Any]]) -> str:
    across, conflict = sum(row["across"] for row in found), sum(row["conflict"] for row in found)
    parts = []
    if across:
        parts.append(f"{across} across splits, so the test is easier than it looks: leave out the training copies")
    else:
        parts.append("keep copies on one side of every split (groups), or leave them out")
    if conflict:
        parts.append(f"{conflict} under different labels, of which one is wrong: look at them")
    return "; ".join(parts) + "."


def _suspects(found: Sequence[Mapping[str, Any]]) -> str:
    tested = sum("test" in row["splits"] for row in found)
    where = f", {tested} of them in the test part, where they distort every result" if tested else ""
    return f"{_n(len(found), 'label')} in doubt{where}: look at each, and correct it where the other label is right."


#: What there is none of, by kind.
_NONE_OF = {
    "exact duplicate": "equal images",
    "near duplicate": "near copies",
    "group straddles": "groups on two sides of a split",
    "label suspect": "doubtful labels",
    "outlier": "outliers",
    "constant": "blank images",
}
_SAID: dict[str, Any] = {
    "exact duplicate": lambda found: f"{_n(len(found), 'set')} of equal images: {_leak(found)}",
    "near duplicate": lambda found: (
        f"{_n(len(found), 'pair')} of images that are nearly the same picture: {_leak(found)}"
    ),
    "group straddles": lambda found: (
        f"{_n(len(found), 'group')} of images on both sides of a split, so the test is easier than it looks: "
        "split by group."
    ),
    "label suspect": _suspects,
    "outlier": lambda found: (
        f"{_n(len(found), 'image')} unlike all others: look whether "
        f"{'it belongs' if len(found) == 1 else 'they belong'} to the set."
    ),
    "constant": lambda found: (
        "1 constant image shows nothing: leave it out."
        if len(found) == 1
        else f"{len(found)} constant images show nothing: leave them out."
    ),
}
