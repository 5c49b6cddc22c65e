"""What to train, and the measurements behind it: a page of an Advice."""

from __future__ import annotations

import json
from typing import Any

from ..advice import Advice
from ..reporting.document import Block, Card, Points, Section, Table, Text
from ..reporting.drawing import curves, intervals
from ..reporting.escaping import short
from ..reporting.result import Result

__all__ = ["card", "section"]

_ANSWERS = {
    "head": "A head; leave the network",
    "last blocks": "A head, then the last blocks",
    "all": "A head, then the whole network",
    "from scratch": "A network from scratch",
}


def card(found: Advice) -> Card:
    """Return the advice in a few words."""
    return Card("What to train?", _ANSWERS[found.recommendation], f"{_said(found)} {_sentence(found.gain['text'])}")


def section(found: Advice) -> Section:
    """Return the section on what to train: recommendation, reasons with commands, the curves that they rest on."""
    words = found.scenario
    blocks: list[Block] = [
        Text(f"{found.headline()}."),
        Text(f"{_said(found)} Expected gain: {found.gain['text']}. Cost: {found.cost['text']}."),
        Text("Because, and how to measure it again:"),
        Points(tuple(f"{each['text']} → {each['check']}" for each in found.reasons)),
        *_figures(found),
        _options(found),
        Points(found.notes),
    ]
    return Section("advice", "What to train", tuple(blocks), {**json.loads(found.to_json()), "scenario": words})


def _said(found: Advice) -> str:
    domain = {"unclear": "how near the images are to the network's own is unclear"}
    said = domain.get(found.scenario["domain"], f"images {found.scenario['domain']} to the network's own")
    return f"Scenario: {found.scenario['labels']} labels, {said}."


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."


def _figures(found: Advice) -> list[Block]:
    out: list[Block] = []
    named: dict[str, Any] = {"dataset": "", "metric": "accuracy"}
    if len(found.profile) > 1:
        rows = [{**named, "head": r["node"], "mean": r["accuracy"], "ci95": r["ci95"]} for r in found.profile]
        title = "Accuracy from the first layer (top) to the last"
        out.append(intervals(rows, title, width=24, order="from the first layer"))
    if len(found.curve) > 1:
        rows = [{**named, "dataset": "ridge on this node", "head": "ridge", **row} for row in found.curve]
        out.append(curves(Result(tuple(rows)), "ridge on this node"))
    return out


def _options(found: Advice) -> Table:
    rows = tuple(
        (short(each["recommendation"]), _points(each["gain"]), each["gain"]["basis"], _passes(each["cost"]))
        for each in found.options
    )
    header = ("train", "points gained", "known from", "cost, in extractions")
    caption = (
        "All that could be done. A head gains over one on the last node, the others over the best head; ranges are "
        "95 % intervals where measured, else what was seen elsewhere."
    )
    return Table(header, rows, caption, (1, 3))


def _points(gain: dict[str, Any]) -> str:
    if gain["points"] is None:
        return "–" if gain["high"] is None else f"{gain['high']:.1f} at most"
    if gain["low"] == gain["high"]:
        return f"{gain['points']:+.1f}"
    return f"{gain['points']:+.1f} ({gain['low']:+.1f} to {gain['high']:+.1f})"


def _passes(cost: dict[str, Any]) -> str:
    seconds = "" if cost["seconds"] is None else f" ({cost['seconds']:,.1f} s)"
    return f"{cost['passes']:,.0f}{seconds}"
