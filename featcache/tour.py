"""The demo: the whole job on real data, offline, in under a minute."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["demo"]

_SIDE = 64
_SHOTS = (1, 5, 10, "all")
_HEADS = ("centroid", "ridge", "logreg", "knn")
_SEEDS = 5


def demo(out: str | Path = "featcache-demo", *, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Write scikit-learn's handwritten digits as images, extract codes twice, compare heads with raw pixels beside.

    Parameters
    ----------
    out : path, default="featcache-demo"
        Folder for images, store and plot; a second run there reuses what is there.
    say : callable, default=print
        Takes each line of the report.

    Returns
    -------
    dict
        JSON types: "seconds", "images", "first_run" and "second_run" (reports), "results" (rows of both comparisons),
        "plot".

    Examples
    --------
    >>> demo("my-demo")["second_run"]["computed"]  # doctest: +SKIP
    0
    """
    from . import Backbone, FeatureSet, compare, extract

    start = time.perf_counter()
    folder = Path(out)
    pixels, labels, ids = _write_digits(folder / "digits")
    say(f"1. {len(ids)} handwritten digits (scikit-learn's, 8×8 pixels) as PNG files in {folder / 'digits'}/<class>/")
    backbone = Backbone("embedded")
    first = extract(folder / "digits", backbone, folder / "digits.features", precision="fp32").report
    say(
        f"2. featcache extract: {first.computed} images through the frozen embedded backbone in {first.seconds:.1f} s "
        f"({first.steady_images_per_second:.0f} images/s), {first.reused} reused"
    )
    store = extract(folder / "digits", Backbone("embedded"), folder / "digits.features", precision="fp32")
    second = store.report
    say(f"3. the same again: {second.computed} computed, {second.reused} reused, {second.seconds:.2f} s")
    raw = FeatureSet(pixels, labels, ids, name="raw pixels")
    data = {"CNN codes": store.load(), "raw pixels": raw}
    result = compare(data, _HEADS, shots=_SHOTS, seeds=_SEEDS, n_jobs=2)
    say(f"4. featcache compare: accuracy over {_SEEDS} draws, the same images for all\n")
    for line in _table(result.rows):
        say("   " + line)
    plot = result.plot(folder / "learning-curves.png")
    seconds = time.perf_counter() - start
    say(f"\n   learning curves: {plot}; {seconds:.0f} s in all")
    for line in _what_next(folder):
        say(line)
    return {
        "seconds": round(seconds, 2),
        "images": len(ids),
        "first_run": first.as_dict(),
        "second_run": second.as_dict(),
        "results": list(result.rows),
        "plot": str(plot),
    }


def _write_digits(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Write the digits as PNGs, enlarged; return their raw pixels, labels and ids in id order."""
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    ids, labels = [], []
    for number, (values, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        ids.append(f"{label}/{number:04d}.png")
        labels.append(str(label))
        path = folder / ids[-1]
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            grey = (values * (255 / 16)).round().astype("u1")
            Image.fromarray(grey).resize((_SIDE, _SIDE), Image.Resampling.BICUBIC).save(path)
    order = np.argsort(ids)
    return digits.data[order].astype("f4"), np.asarray(labels)[order], np.asarray(ids)[order]


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """One line per head, codes above pixels, a column per number of shots."""
    by_cell = {(r["dataset"], r["head"], r["shots"]): r for r in rows}
    names = [f"{s} per class" if s != "all" else "all" for s in _SHOTS]
    lines = [f"{'':<22}" + "".join(f"{n:>16}" for n in names)]
    for dataset in dict.fromkeys(r["dataset"] for r in rows):
        for head in _HEADS:
            cells = [by_cell[dataset, head, shots] for shots in _SHOTS]
            lines.append(f"{dataset}, {head:<10}"[:22].ljust(22) + "".join(f"{_cell(c):>16}" for c in cells))
    return lines


def _cell(row: dict[str, Any]) -> str:
    if row["ci95"] is None:
        return f"{100 * row['mean']:.1f}"
    low, high = row["ci95"]
    return f"{100 * row['mean']:.1f} ± {50 * (high - low):.1f}"


def _what_next(folder: Path) -> list[str]:
    return [
        "",
        "The embedded backbone is small; a script of this project trained it, not on these digits. It is there for a",
        "first try without a network. For your own photos take a large one: --backbone resnet50 (downloads once).",
        "",
        "Next:  featcache fit " + str(folder / "digits.features") + " --head logreg -o digits.head",
        "       featcache predict digits.head " + str(folder / "digits" / "3"),
        "       featcache extract YOUR/FOLDER -o yours.features && featcache compare yours.features",
    ]
