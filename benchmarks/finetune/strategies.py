"""Which strategy at how many labels? The textbook's table, measured.

Each strategy of the textbooks on the same draws: the cached head alone; the last one or two blocks trained; everything,
from the fitted head (LP-FT) and as the textbooks do it, from a random one; the last blocks replaced by blocks of one's
own; everything from random weights. From few labels per class to all there are; the same test images throughout.
"""

from typing import Any

import numpy as np
from measuring import claim

import featcache as fc

STRATEGIES = ("head", "last-1", "last-2", "all", "all, random head", "own blocks", "scratch")


def near(case: Any) -> dict[str, Any]:
    """Return the table of photos of clothing, of the kind that the network was trained on."""
    return _table_of(case, "clothing10", 96, ((1, 5), (5, 3), (20, 2), ("all", 1)))


def far(case: Any) -> dict[str, Any]:
    """Return the table of hand signs before a wall, which are unlike what the network was trained on."""
    return _table_of(case, "sign_digits", 64, ((2, 3), (10, 3), (40, 2), ("all", 1)))


def _table_of(case: Any, name: str, pixels: int, sizes: Any) -> dict[str, Any]:
    """Return test accuracy by strategy and number of labels, as many draws as stand beside each number."""
    sizes = ((5, 1),) if case.tiny else sizes
    rows = []
    for shots, draws in sizes:
        for seed in range(draws if case.repeats is None else min(draws, case.repeats)):
            rows += _draw(case, name, pixels, shots, seed)
    table = _table(rows)
    few, most = table[0], table[-1]
    textbook = ("all, random head", "own blocks", "scratch")
    gains = [round(max(line[s] for s in ("last-1", "last-2", "all")) - line["head"], 2) for line in table]
    claims = [
        claim(
            "with the fewest labels the head beats all strategies with new random layers",
            f"head {few['head']}, " + ", ".join(f"{s} {few[s]}" for s in textbook),
            max(few[s] for s in textbook) < few["head"],
        ),
        claim(
            "with all labels unfreezing beats the head",
            f"head {most['head']}, " + ", ".join(f"{s} {most[s]}" for s in ("last-1", "last-2", *textbook[:1], "all")),
            gains[-1] > 0 and most["all, random head"] > most["head"],
        ),
        claim(
            "what unfreezing gains over the head is least with the fewest labels",
            ", ".join(f"{line['shots']}: {gain:+.1f}" for line, gain in zip(table, gains, strict=True)),
            min(gains) == gains[0],
        ),
        claim(
            "from scratch is far below with few labels and gains most from more",
            f"{few['scratch']} to {most['scratch']}",
            few["scratch"] < few["head"] - 10 and most["scratch"] - few["scratch"] > most["head"] - few["head"],
        ),
    ]
    return {"data": name, "pixels": pixels, "table": table, "rows": rows, "claims": [] if case.tiny else claims}


def _table(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    table = []
    for shots in dict.fromkeys(row["shots"] for row in rows):
        own = [row for row in rows if row["shots"] == shots]
        line = {"shots": shots, "draws": len({row["seed"] for row in own})}
        for strategy in STRATEGIES:
            values = [row["accuracy"] for row in own if row["strategy"] == strategy]
            line[strategy] = round(float(np.mean(values)), 2)
        table.append(line)
    return table


def _draw(case: Any, name: str, pixels: int, shots: int | str, seed: int) -> list[dict[str, Any]]:
    source = case.images(name, shots, seed)
    head = case.head(source, case.backbone(pixels))
    rows = []
    for strategy in STRATEGIES:
        done = _trained(case, head, source, strategy, f"{shots}-{seed}-{strategy}", pixels, seed)
        accuracy = done.outcome.head if strategy == "head" else done.outcome.finetuned
        rows.append(
            {
                "shots": shots, "seed": seed, "strategy": strategy, "accuracy": round(100 * accuracy, 2),
                "seconds": round(sum(line.get("seconds", 0.0) for line in done.history), 1),
            }
        )  # fmt: skip
    return rows


def _trained(case: Any, head: Any, source: Any, strategy: str, folder: str, pixels: int, seed: int) -> Any:
    common = {"val_size": 0.0, "seed": seed, "progress": False}
    out = case.work / folder.replace(", ", "-").replace(" ", "-")
    if strategy == "head":
        return fc.finetune(head, source, out, stages="head", epochs=1, **common)
    if strategy == "scratch":
        epochs = 1 if case.tiny else 30
        return fc.finetune(head, source, out, stages="scratch", start="scratch", epochs=epochs, **common)
    epochs = 1 if case.tiny else 12
    if strategy == "all, random head":
        return fc.finetune(head, source, out, stages="all", start="fresh", epochs=epochs, **common)
    if strategy != "own blocks":
        return fc.finetune(head, source, out, stages=strategy, epochs=epochs, **common)
    node = "features.6" if case.tiny else "features.13"
    backbone = case.backbone(pixels, nodes=node, pooling="none")
    channels = backbone.output_shapes[backbone.nodes[0]][0]
    model = fc.assemble(backbone, _top(channels, len(head.classes_)), head.classes_.tolist(), seed=seed)
    return fc.finetune(model, source, out, stages="head", epochs=epochs, compare_with=head, **common)


def _top(channels: int, classes: int) -> Any:
    """Two convolutions and a linear layer of one's own, in place of the last blocks."""
    from torch import nn

    def block(inner: int) -> list[Any]:
        return [nn.Conv2d(inner, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU()]

    ends = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2), nn.Linear(256, classes)]
    return nn.Sequential(*block(channels), *block(256), *ends)
