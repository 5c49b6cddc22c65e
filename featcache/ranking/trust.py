"""How far scores of transferability can be believed: what our benchmark measured, what is published."""

from __future__ import annotations

__all__ = ["MEASURED", "TRUST"]

#: Of the part "rank" of benchmarks/results/evidence.json: medians over its data sets and numbers of rows.
MEASURED: dict[str, float] = {}

TRUST = (
    "published comparisons of such scores find that none does well everywhere and that plain kNN accuracy does best "
    "(arXiv 2503.18528), that all of them suffer on medical images (arXiv 2405.20420), and that usual benchmarks "
    "flatter them (arXiv 2510.06448): compare heads on the first few before you choose"
)
