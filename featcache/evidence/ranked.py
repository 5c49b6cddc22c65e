"""Codes ranked by how well heads would do on them, and how far that can be trusted: a page of a Ranking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..features import FeatureSet
from ..ranking import Ranking
from ..reporting.document import Block, Figure, Points, Section, Table, Text
from ..reporting.drawing import intervals
from ..reporting.escaping import short

__all__ = ["depth_of", "section"]

_ROWS = 30
#: Field of a row → its column, where some set of codes has it.
_SCORES = {"ridge": "ridge", "knn": "kNN", "logme": "LogME", "h_score": "H-score", "leep": "LEEP"}
_SHARES = ("ridge", "knn")


def section(found: Ranking, sets: Mapping[str, FeatureSet]) -> Section:
    """Return the section that ranks sets of codes.

    Parameters
    ----------
    found : Ranking
        Of `rank`.
    sets : mapping of str to FeatureSet
        What was ranked, by the names in it.
    """
    by, n = found.settings.get("by", "explained"), found.rows[0]["n_images"]
    measured = "share of the labels' spread explained" if by == "explained" else f"accuracy of {by}"
    text = (
        f"What ridge or the nearest neighbours say of each of {n:,} training images, from all others: quick, and "
        f"no test image is looked at. Sorted by: {measured}."
    )
    blocks: list[Block] = [Text(text), _figure(found, sets, measured), Points(found.statements()), _table(found, sets)]
    blocks += [Points(found.notes)] if found.notes else []
    blocks += [Text(f"How far to trust it: {found.trust}.", note=True)] if found.trust else []
    data = {"results": list(found.rows), "comparisons": list(found.comparisons), "notes": list(found.notes)}
    return Section("rank", "Codes ranked", tuple(blocks), data | {"trust": found.trust, "settings": found.settings})


def _figure(found: Ranking, sets: Mapping[str, FeatureSet], measured: str) -> Figure:
    """Node by node where networks have several, the best network first; else the best codes first."""
    networks: dict[str, list[dict[str, Any]]] = {}
    for row in found.rows:
        networks.setdefault(sets[row["codes"]].fingerprint or row["codes"], []).append(row)
    if all(len(rows) == 1 for rows in networks.values()):
        lines = [_line("", row["codes"], row, measured) for row in found.rows[:_ROWS]]
        return intervals(lines, "Score of each set of codes", width=28)
    lines = []
    for rows in networks.values():
        rows.sort(key=lambda row: depth_of(sets[row["codes"]]))
        network = f"{sets[rows[0]['codes']].name.removesuffix('.features')} {rows[0]['backbone']}".strip()
        lines += [_line(network, row["node"] or row["codes"], row, measured) for row in rows]
    title = "Score by depth: each network from its first layer to its last"
    return intervals(lines[:_ROWS], title, width=20, order="node by node")


def depth_of(data: FeatureSet) -> int:
    """Return the place of a node among those of its network, as far as the store knows."""
    nodes = ((data.spec or {}).get("backbone") or {}).get("nodes") or []
    return nodes.index(data.node) if data.node in nodes else len(nodes)


def _line(network: str, name: str, row: dict[str, Any], measured: str) -> dict[str, Any]:
    return {"dataset": network, "head": name, "metric": measured, "mean": row["score"], "ci95": row["ci95"]}


def _table(found: Ranking, sets: Mapping[str, FeatureSet]) -> Table:
    prints = {sets[row["codes"]].fingerprint for row in found.rows}
    said = "node" if len(prints) == 1 and all(row["node"] for row in found.rows) and "" not in prints else "codes"
    shown = {key: name for key, name in _SCORES.items() if any(row.get(key) is not None for row in found.rows)}
    header = (said, "score", "95 % interval", *shown.values(), "features")
    rows = tuple(
        (
            short(row[said], 48),
            f"{row['score']:.3f}",
            f"{row['ci95'][0]:.3f} to {row['ci95'][1]:.3f}",
            *(_number(key, row.get(key)) for key in shown),
            f"{row['features']:,}",
        )
        for row in found.rows[:_ROWS]
    )
    caption = "The best first; ridge and kNN: share of the images left out that each has right."
    return Table(header, rows, caption, tuple(range(1, len(header))))


def _number(key: str, value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %" if key in _SHARES else f"{value:.3f}"
