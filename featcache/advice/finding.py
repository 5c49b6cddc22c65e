"""Advice: what `advise` found, as text, JSON and Markdown."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Advice"]


@dataclass(frozen=True)
class Advice:
    """What to train, and why.

    Parameters
    ----------
    recommendation : {"head", "last blocks", "all", "from scratch"}
        What to train: a head on frozen codes, the network's blocks above `node` with it, the whole network from its
        pretrained weights, or the whole network from random weights.
    node : str
        The head's node ("head"), or the node above which layers train ("last blocks"); "" otherwise.
    k : int or None
        For "last blocks": how many of the stored nodes lie above `node`.
    scenario : dict
        labels ("few" or "many"), domain ("similar", "dissimilar" or "unclear").
    reasons : tuple of dict
        text (a sentence with the measured number) and check (a command that measures it again; from Python with the
        set's name for its place).
    gain : dict
        points of accuracy, over ("the last node" for a head, "the best head" for training the network), low and high
        (95 % interval, or the range seen), basis ("measured", "rule of thumb" or "unknown") and text.
    cost : dict
        seconds (None where the network's speed is not known), passes (in extractions of the same images), text.
    options : tuple of dict
        All four recommendations with their gain and cost.
    profile : tuple of dict
        Per node in the order of the network: node, by ("ridge" or "knn"), accuracy, ci95, explained, best, seconds.
    curve : tuple of dict
        Per number of images per class: shots, mean, ci95.
    doubling : dict or None
        What twice the images per class of the end of the curve would add: points, low, high.
    source : dict or None
        What the source classifier says of the images: confidence, entropy (share of the largest there is), classes
        (effective number), told (share of the label's information that its classes carry).
    notes : tuple of str, default=()
        What could not be measured, and what would allow it.
    settings : dict, default={}
        What was asked for, and the thresholds.
    """

    recommendation: str
    node: str
    k: int | None
    scenario: dict[str, str]
    reasons: tuple[dict[str, str], ...]
    gain: dict[str, Any]
    cost: dict[str, Any]
    options: tuple[dict[str, Any], ...]
    profile: tuple[dict[str, Any], ...]
    curve: tuple[dict[str, Any], ...]
    doubling: dict[str, Any] | None
    source: dict[str, Any] | None
    notes: tuple[str, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.table()

    def headline(self) -> str:
        """Return the recommendation as one sentence."""
        return {
            "head": f"Train a head on frozen codes of {self.node or 'this node'}; leave the network as it is",
            "last blocks": f"Train a head, then unfreeze the blocks above {self.node} (the last {self.k} of the stored "
            "nodes) from it",
            "all": "Train a head, then fine-tune the whole network from it",
            "from scratch": "Train the whole network from random weights",
        }[self.recommendation]

    def table(self) -> str:
        """Return all of it as plain text."""
        lines = [self.headline(), ""]
        lines += [f"scenario: {self.scenario['labels']} labels, {self.scenario['domain']} domain"]
        lines += [f"expected gain: {self.gain['text']}", f"cost: {self.cost['text']}", "", "because"]
        lines += [line for each in self.reasons for line in (f"- {each['text']}", f"  check: {each['check']}")]
        lines += ["", "node by node (accuracy of rows left out)"] * bool(self.profile)
        width = max((len(row["node"]) for row in self.profile), default=0)
        for row in self.profile:
            mark = "  best" if row["best"] else ""
            lines.append(f"  {row['node'].ljust(width)}  {row['accuracy']:.4f}  explained {row['explained']:.4f}{mark}")
        lines += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines)

    def to_markdown(self) -> str:
        """Return all of it as Markdown."""
        lines = [f"**{self.headline()}.**", ""]
        lines += [f"- scenario: {self.scenario['labels']} labels, {self.scenario['domain']} domain"]
        lines += [f"- expected gain: {self.gain['text']}", f"- cost: {self.cost['text']}", "", "Because:", ""]
        lines += [f"- {each['text']} Check: `{each['check']}`" for each in self.reasons]
        lines += ["", "| node | accuracy | 95 % interval | explained |", "| --- | ---: | ---: | ---: |"]
        for row in self.profile:
            name, (low, high) = row["node"].replace("|", "\\|"), row["ci95"]
            cells = [f"**{name}**" if row["best"] else name, f"{row['accuracy']:.4f}", f"{low:.4f}-{high:.4f}"]
            lines.append("| " + " | ".join([*cells, f"{row['explained']:.4f}"]) + " |")
        lines += ["", *(f"- note: {note}" for note in self.notes)] if self.notes else []
        return "\n".join(lines) + "\n"

    def to_json(self, *, indent: int | None = None) -> str:
        """Return the fields as JSON, with "headline" before them."""
        document = {"headline": self.headline(), **asdict(self)}
        return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Advice:
        """Return the Advice that `to_json` wrote."""
        document = json.loads(text)
        document.pop("headline", None)
        for name in ("reasons", "options", "profile", "curve", "notes"):
            document[name] = tuple(document[name])
        return cls(**document)
