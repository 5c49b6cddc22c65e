"""Is fine-tuning from the fitted head (LP-FT, Kumar et al. 2022) better than from a random one at the same budget?

Both train everything, for the same epochs, at the same rates, on the same images in the same order; one begins with the
head that was fitted on cached codes of the training images, the other with a random layer. Several splits and draws per
set; the difference is paired by draw, its 95 % interval is mean ± t·s/√draws (of draws that share test images, hence
optimistic), and beside it stands the share of draws in which LP-FT is below.
"""

from typing import Any

import numpy as np
from measuring import claim
from scipy import stats

import featcache as fc

from .case import SETS


def run(case: Any) -> dict[str, Any]:
    """Return test accuracies of both by set, after each epoch's budget."""
    draws = case.repeats or (1 if case.tiny else 5)
    shots, epochs = (5, 1) if case.tiny else (20, 8)
    rows, sums = [], []
    for name, pixels in list(SETS.items())[: 1 if case.tiny else None]:
        found = [_draw(case, name, pixels, shots, epochs, seed) for seed in range(draws)]
        rows += found
        gain = np.asarray([row["from the head"] - row["from a random head"] for row in found])
        half = float(stats.t.ppf(0.975, draws - 1) * gain.std(ddof=1) / draws**0.5) if draws > 1 else float("nan")
        sums.append(
            {
                "data": name, "draws": draws, "head alone": _mean(found, "head alone"),
                "from the head": _mean(found, "from the head"),
                "from a random head": _mean(found, "from a random head"),
                "difference": round(float(gain.mean()), 2),
                "ci95": [round(float(gain.mean()) - half, 2), round(float(gain.mean()) + half, 2)],
            }
        )  # fmt: skip
    claims = [
        claim(
            f"LP-FT is not below fine-tuning from a random head after {epochs} epochs, on each set",
            "; ".join(f"{s['data']} {s['difference']:+.1f} {s['ci95']}" for s in sums),
            all(s["difference"] >= 0 or s["ci95"][1] >= 0 for s in sums),
        )
    ]
    return {"shots": shots, "epochs": epochs, "means": sums, "rows": rows, "claims": [] if case.tiny else claims}


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return round(float(np.mean([row[key] for row in rows])), 2)


def _draw(case: Any, name: str, pixels: int, shots: int, epochs: int, seed: int) -> dict[str, Any]:
    source = case.images(name, shots, seed)
    head = case.head(source, case.backbone(pixels))
    row: dict[str, Any] = {"data": name, "seed": seed}
    for key, start in (("from the head", "head"), ("from a random head", "fresh")):
        done = fc.finetune(
            head, source, case.work / f"{name}-{seed}-{start}", stages="all", start=start, epochs=epochs, val_size=0.0,
            seed=seed, progress=False,
        )  # fmt: skip
        row[key] = round(100 * done.outcome.finetuned, 2)
        row["head alone"] = round(100 * done.outcome.head, 2)
        row[f"{key}, seconds"] = round(sum(line.get("seconds", 0.0) for line in done.history), 1)
    return row
