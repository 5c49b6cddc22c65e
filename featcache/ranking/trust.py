"""How far scores of transferability can be believed: what our benchmark measured, what is published."""

from __future__ import annotations

__all__ = ["MEASURED", "TRUST"]

#: "trust" of the part "rank" of benchmarks/results/evidence.json: over its data sets and numbers of rows.
MEASURED = {"kendall": 0.73, "lowest kendall": 0.34, "regret": 0.1, "largest regret": 3.7}

TRUST = (
    "on four real sets, all nodes of four networks, the order agreed with that of trained heads on other images with a "
    "Kendall's tau of {kendall} (median; lowest {lowest kendall}, with 10 images per class), and taking the first cost "
    "{regret} points of accuracy (at most {largest regret}). Published comparisons of such scores find that none does "
    "well everywhere and that plain kNN accuracy does best (arXiv 2503.18528), that all suffer on medical images "
    "(arXiv 2405.20420), and that usual benchmarks flatter them (arXiv 2510.06448): compare heads on the first few "
    "before you choose"
).format_map(MEASURED)
