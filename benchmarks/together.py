"""Claims over several parts of a benchmark, made of the cells that its results file holds.

They are made anew whenever benchmarks/README.md is rendered: no figure here can be older than the parts it is made of,
and a part that was not run leaves the claim out.
"""

from typing import Any

AUTO_PARTS = ("auto_few", "auto_some", "auto_all")
AUTO = "auto"
#: Points that `auto` may lose to the best rival of a cell.
MARGIN = 0.3
#: What a cell holds beside the accuracy of each contestant.
BESIDE = ("set", "shots", "draws", "best_rival", "auto_minus_best", "interval")


def auto_over_all(figures: dict[str, Any]) -> dict[str, Any] | None:
    """Return `auto` against each rival over the cells of all parts; None where a part has none.

    A rival that cannot be fitted in a cell (LDA on one row per class) is compared on the others; every cell counts
    once, however many draws it has.
    """
    parts = {name: figures.get(name) or {} for name in AUTO_PARTS}
    if not all(part.get("cells") for part in parts.values()):
        return None
    cells = [cell for part in parts.values() for cell in part["cells"]]
    rivals = [who for who in cells[0] if who not in (AUTO, *BESIDE)]
    rows, gains = [], {}
    for who in rivals:
        fitted = [cell for cell in cells if cell.get(who) is not None]
        gains[who] = sum(cell[AUTO] - cell[who] for cell in fitted) / len(fitted)
        rows.append({"rival": who, "cells": len(fitted), "auto minus rival, mean (points)": round(gains[who], 2)})
    worse = [f"{cell['set']} at {cell['shots']}" for cell in cells if cell["interval"][1] < -MARGIN]
    least = min(gains, key=lambda who: gains[who])
    return {
        "made of": ", ".join(f"{name} ({_measured(part)})" for name, part in parts.items()),
        "cells": len(cells),
        "claims": [
            _claim(f"cells wholly below -{MARGIN} points of the best rival (asked: none)", worse or "none", not worse),
            _claim(
                "auto minus each rival, mean over all cells, worst rival (asked: above 0)",
                f"{gains[least]:+.2f} ({least})",
                gains[least] > 0,
            ),
        ],
        "auto against each": rows,
    }


def _claim(text: str, measured: Any, holds: bool) -> dict[str, Any]:
    return {"claim": text, "measured": measured, "holds": holds}


def _measured(part: dict[str, Any]) -> str:
    about = part.get("about", {})
    return f"commit {about.get('commit', 'unknown')}, {about.get('date', 'undated')}"
