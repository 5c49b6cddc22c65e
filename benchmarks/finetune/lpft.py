"""Is fine-tuning from the fitted head (LP-FT, Kumar et al. 2022) better than from a random one at the same budget?

All train everything, for the same epochs, on the same images in the same order, the blocks at the same rates. One
begins with the head that was fitted on cached codes of the training images (its scores divided by ten, as `finetune`
begins), the others with a random layer: one that learns as fast as the fitted head, and one that learns three times as
fast, which is featcache's default for new heads and ten times the last block's rate. Several splits and draws per set;
the difference is paired by draw, its 95 % interval is mean ± t·s/√draws (of draws that share test images, hence
optimistic). The rates and the ten were chosen on other draws of these sets (seeds 10 to 14).
"""

from typing import Any

import numpy as np
from measuring import claim
from scipy import stats

import featcache as fc

from .case import SETS

ARMS: dict[str, dict[str, Any]] = {
    "from the head": {},
    "from a random head": {"start": "fresh"},
    "from a random head at the same rates": {"start": "fresh", "lr": 1e-3, "backbone_lr": 3e-4},
}


def run(case: Any) -> dict[str, Any]:
    """Return test accuracies of both by set, after each epoch's budget."""
    draws = case.repeats or (1 if case.tiny else 8)
    shots, epochs = (5, 1) if case.tiny else (20, 8)
    rows, sums = [], []
    for name, pixels in list(SETS.items())[: 1 if case.tiny else None]:
        found = [_draw(case, name, pixels, shots, epochs, seed) for seed in range(draws)]
        rows += found
        sums.append(
            {"data": name, "draws": draws, **{key: _mean(found, key) for key in ("head alone", *ARMS)}}
            | {f"less {key}": _difference(found, key) for key in list(ARMS)[1:]}
        )
    claims = [
        claim(
            f"LP-FT is not below fine-tuning {key} after {epochs} epochs, on each set",
            "; ".join("{} {:+.1f} [{:.1f}, {:.1f}]".format(s["data"], *s[f"less {key}"]) for s in sums),
            all(s[f"less {key}"][0] >= 0 or s[f"less {key}"][2] >= 0 for s in sums),
        )
        for key in list(ARMS)[1:]
    ]
    return {"shots": shots, "epochs": epochs, "means": sums, "rows": rows, "claims": [] if case.tiny else claims}


def _difference(rows: list[dict[str, Any]], other: str) -> list[float]:
    """Return the mean of LP-FT's accuracy less another's, and the ends of its interval."""
    gain = np.asarray([row["from the head"] - row[other] for row in rows])
    draws = len(gain)
    half = float(stats.t.ppf(0.975, draws - 1) * gain.std(ddof=1) / draws**0.5) if draws > 1 else 0.0
    return [round(float(value), 2) for value in (gain.mean(), gain.mean() - half, gain.mean() + half)]


def _mean(rows: list[dict[str, Any]], key: str) -> float:
    return round(float(np.mean([row[key] for row in rows])), 2)


def _draw(case: Any, name: str, pixels: int, shots: int, epochs: int, seed: int) -> dict[str, Any]:
    source = case.images(name, shots, seed)
    head = case.head(source, case.backbone(pixels))
    row: dict[str, Any] = {"data": name, "seed": seed}
    for key, settings in ARMS.items():
        done = fc.finetune(
            head, source, case.work / f"{name}-{seed}-{key}", stages="all", epochs=epochs, val_size=0.0, seed=seed,
            progress=False, **settings,
        )  # fmt: skip
        row[key] = round(100 * done.outcome.finetuned, 2)
        row["head alone"] = round(100 * done.outcome.head, 2)
        row[f"{key}, seconds"] = round(sum(line.get("seconds", 0.0) for line in done.history), 1)
    return row
