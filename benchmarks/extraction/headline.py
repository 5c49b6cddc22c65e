"""Parts `headline_*`: PyTorch's tutorial against extract and fit, by the time to the same test accuracy."""

import csv
import shutil
from pathlib import Path
from typing import Any

from measuring import claim, index_rows

from extraction.case import Case, note, spread
from extraction.speed import networks

MOST_IMAGES = {"sign_digits": 600}


def headline(case: Case, name: str) -> dict[str, Any]:
    """One set: featcache's whole processes first, then the tutorial until it is as good, or 25 epochs long."""
    own, theirs = networks(case, case.network, real=True)
    listing = write_list(case, name)
    root = case.folder_of(name)
    tests = sum(",test" in line for line in listing.read_text().splitlines())
    mine = _featcache(case, listing, root, own)
    note(f"{name}: featcache {mine}; now the tutorial")
    sizes = [word for k, v in case.sizes.items() for word in (f"--{k}", v)]
    # One test row less is not a worse head: the tutorial need not beat featcache, only come as far.
    words = [listing, "--root", root, *theirs, *sizes, "--stop-at", mine["test_accuracy"] - 1e-9]
    words += ["--epochs", 1, "--workers", 0] if case.tiny else ["--epochs", case.epochs]
    rival = case.script("rivals/tutorial_training.py", *words)
    epochs = rival.answer["epochs"]
    best = max(epoch["test_accuracy"] for epoch in epochs)
    reached = best >= mine["test_accuracy"] - 1e-9
    ratio = round(rival.seconds / mine["seconds"], 1)
    sign = "" if reached else "over "
    first = epochs[0]["seconds"]
    return {
        "claims": [claim(f"{name}: time to the same test accuracy, tutorial / featcache", f"{sign}{ratio}", ratio > 1)],
        "set": name,
        "note": "batches and rates are the tutorial's own; its best epoch on the test images counts",
        "test images": tests,
        "featcache": mine,
        "tutorial": {
            "seconds": round(rival.seconds, 1),
            "test_accuracy_best": best,
            "as good as featcache": reached,
            "epochs run": len(epochs),
            "seconds of an epoch": first,
            "25 epochs, extrapolated": round(first * 25, 1) if len(epochs) < 25 else round(rival.seconds, 1),
        },
        "epochs": epochs,
    }


def _featcache(case: Case, listing: Path, root: Path, own: list[Any]) -> dict[str, Any]:
    """Run extract and fit as their user does, with an empty private cache."""
    store = case.work / "headline"
    words = ["--root", root, "--label-column", "class", "--path-column", "file", "--split-column", "split"]
    cache = f"headline-{listing.stem}"
    extracted = case.extract(listing, *own, *words, cache=cache, store=store)
    fitted = case.featcache("fit", store, "--head", "logreg", "-o", case.work / "head.skops", "--json", cache=cache)
    shutil.rmtree(store)
    scores = fitted.answer["scores"]
    return {
        "seconds": round(extracted.seconds + fitted.seconds, 1),
        "extract": round(extracted.seconds, 1),
        "fit": round(fitted.seconds, 1),
        "mode": extracted.answer["precision"]["mode"],
        "test_accuracy": round(float(scores["test"]), 4),
    }


def write_list(case: Case, name: str) -> Path:
    """Write a list with splits: the set's own where it has them, else every fifth image."""
    rows = index_rows(case.folder_of(name))
    rows = spread(rows, MOST_IMAGES.get(name, len(rows)))
    if not {"train", "test"} <= {row["split"] for row in rows}:
        # Rows are in the order of their classes, so that each class is divided alike.
        parts = ("test", "validation", "train", "train", "train")
        rows = [{**row, "split": parts[i % 5]} for i, row in enumerate(rows)]
    path = case.work / f"{name}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = [[row["file"], row["class"], row["split"]] for row in rows]
        csv.writer(file).writerows([["file", "class", "split"], *lines])
    return path
