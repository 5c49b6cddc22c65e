"""What does caching the frozen trunk's activations save, and does it change anything?

The last block of MobileNetV2 and the head are trained, everything below is frozen: once with the whole network in the
loop, once on activations that were extracted once. The same draws, order, seeds and steps: the losses of all steps are
compared, and the time of an epoch (decoded pixels are in memory in both; the first epoch, which decodes or extracts, is
reported apart).
"""

from typing import Any

import numpy as np
from measuring import claim

import featcache as fc


def run(case: Any) -> dict[str, Any]:
    """Return losses and times, full loop and cached, interleaved."""
    repeats = case.repeats or (1 if case.tiny else 3)
    shots, pixels, epochs = (5, 64, 2) if case.tiny else (30, 224, 3)
    source = case.images("clothing10", shots, 0, n_val=50)
    head = case.head(source, case.backbone(pixels))
    rows = []
    for repeat in range(repeats):
        pair = {}
        for cache in (False, True):
            out = case.work / f"depth-{repeat}-{cache}"
            done = fc.finetune(
                head,
                source,
                out,
                stages="last-1",
                start="head",
                cache=cache,
                epochs=epochs,
                seed=repeat,
                progress=False,
            )
            pair[cache] = done
        lost = [[loss for line in pair[cache].history for loss in line["step_losses"]] for cache in (False, True)]
        steps = [[line["val_loss"] for line in pair[cache].history] for cache in (False, True)]
        times = [[line["seconds"] for line in pair[cache].history[1:]] for cache in (False, True)]
        rows.append(
            {
                "repeat": repeat,
                "steps": len(lost[0]),
                "largest difference of a step's loss": float(np.abs(np.subtract(*lost)).max()),
                "largest difference of validation losses": float(np.abs(np.subtract(*steps)).max()),
                "seconds per epoch, full loop": round(float(np.median(times[0])), 2),
                "seconds per epoch, cached": round(float(np.median(times[1])), 3),
                "seconds of extracting": round(pair[True].settings.get("trunk seconds", float("nan")), 2),
                "times": round(float(np.median(times[0]) / np.median(times[1])), 1),
            }
        )
    worst = max(row["largest difference of a step's loss"] for row in rows)
    ratio = float(np.median([row["times"] for row in rows]))
    claims = [
        claim(
            "each step's loss with a cached trunk equals that of the full loop to 1e-5", f"{worst:.1e}", worst <= 1e-5
        ),
        claim("an epoch of the last block is at least 3 times as fast", f"{ratio:.1f} times", ratio >= 3.0),
    ]
    return {"images": 10 * shots, "pixels": pixels, "rows": rows, "claims": [] if case.tiny else claims}
