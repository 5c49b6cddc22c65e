"""Parts `formats` (kinds of files), `memory` (flat in the number of images), `costs` (what writing takes; the plan)."""

import contextlib
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from measuring import claim, environment, index_rows
from PIL import Image

from extraction import contestants as field
from extraction.case import Case, Ran, measured, note, warmed
from extraction.speed import networks

PHONE = (8660, 5773)  # 50 megapixels
GIGABYTE_MB = 1024
WITHIN = 0.25


# ------------------------------------------------------------------------------------------------ formats


def formats(case: Case) -> dict[str, Any]:
    """Each kind of file in a folder of its own: rate, peak memory, and the tutorial loop on the same files."""
    own, theirs = networks(case, case.network, real=True)
    lines, left_out = [], {}
    for kind, make in KINDS.items():
        folder = case.work / "formats" / kind.replace(" ", "-")
        (folder / "a").mkdir(parents=True)
        make(case, folder / "a")
        entries = [
            field.featcache(case, "featcache auto", own, "auto"),
            field.featcache(case, "featcache fp32", own, "fp32"),
            field.loop(case, "tutorial loop", "tutorial_loop", theirs),
        ]
        found = field.race(case, entries, warmed(folder), 1)
        left_out.update({f"{kind}, {who}": why for who, why in found.get("left out", {}).items()})
        keep = ("who", "steady_images_per_second", "steady_times_tutorial", "peak_mb")
        for line in field.with_ratios(found["lines"]):
            count = sum(1 for _ in folder.rglob("*.*"))
            lines.append({"files": kind, "images": count, **{k: line[k] for k in keep if k in line}})
        shutil.rmtree(folder)
    phone = [line["peak_mb"] for line in lines if line["files"].startswith("JPEG, 50") and line.get("peak_mb")]
    above = round(max(phone) - _base(case)) if phone else 0
    text = "50-megapixel photos: peak memory under 1.5 GB above the model's"
    claims = [claim(text, f"{above} MB", above < 1.5 * GIGABYTE_MB)] if phone else []
    return {"claims": claims, "lines": lines, **({"left out": left_out} if left_out else {})}


def _originals(case: Case) -> Iterator[Image.Image]:
    folder = case.folder_of("clothing10")
    rows = index_rows(folder)
    while True:
        for row in rows:
            with Image.open(folder / row["file"]) as image:
                yield image.convert("RGB")


def _phone_photos(case: Case, folder: Path) -> None:
    """Enlarged real photos with a camera's noise, which JPEG cannot make small."""
    size = (300, 200) if case.tiny else PHONE
    generator = np.random.default_rng(0)
    noise = generator.normal(0, 4, (512, 512, 3)).astype(np.int8)
    tiles = (size[1] // 512 + 1, size[0] // 512 + 1, 1)
    for number, image in zip(range(2 if case.tiny else 8), _originals(case), strict=False):
        pixels = np.asarray(image.resize(size, Image.Resampling.BICUBIC)).astype(np.int16)
        pixels += np.tile(noise, tiles)[: size[1], : size[0]]
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg", quality=90)


def _saved(side: int, n: int, suffix: str, **options: Any) -> Callable[[Case, Path], None]:
    """Return what writes n photos of about one size in one format."""

    def make(case: Case, folder: Path) -> None:
        for number, image in zip(range(4 if case.tiny else n), _originals(case), strict=False):
            # Turned a little differently each time, so that no two files have the same content.
            crop = image.resize((side + number // 1000 + 8, side + 8)).crop((number % 8, number // 8 % 8, side, side))
            crop.resize((side, side)).save(folder / f"{number:05d}{suffix}", **options)

    return make


KINDS: dict[str, Callable[[Case, Path], None]] = {
    "JPEG, 50 megapixels": _phone_photos,
    "JPEG, 512 pixels": _saved(512, 300, ".jpg", quality=90),
    "PNG, 512 pixels": _saved(512, 300, ".png"),
    "WebP, 512 pixels": _saved(512, 300, ".webp", quality=90),
    "TIFF, 512 pixels": _saved(512, 300, ".tif"),
    "PNG icons, 32 pixels": _saved(32, 2000, ".png"),
}


# ------------------------------------------------------------------------------------------------ memory


def memory(case: Case) -> dict[str, Any]:
    """Peak memory above a process that has torch and the network loaded, for several numbers of images."""
    base, lines = _base(case), []
    own, _ = networks(case, case.network, real=True)
    for n in (6, 12) if case.tiny else (300, 1343):
        for precision in ("auto", "fp32"):
            ran = case.extract(case.many(n), *own, "--precision", precision)
            lines.append({"images": n, "precision": precision, "peak_mb": ran.peak_mb, "above": ran.peak_mb - base})
    for line in case.known.get("jobs_20000", {}).get("lines", []):
        if line["who"].startswith("featcache"):
            precision = line["who"].partition(" ")[2].partition(",")[0]
            above = line["peak_mb"] - base
            lines.append({"images": 20000, "precision": precision, "peak_mb": line["peak_mb"], "above": above})
    for line in lines:
        line["above"] = round(line["above"])
    worst = max(line["above"] for line in lines)
    claims = [claim("peak memory under 1.5 GB above the model's", f"{worst} MB", worst < 1.5 * GIGABYTE_MB)]
    large = [line["above"] for line in lines if line["images"] == 20000]
    if large:
        middle = max(line["above"] for line in lines if line["images"] == 1343)
        text = "flat: 20,000 images take at most 150 MB more than 1,343"
        claims.append(claim(text, f"{max(large) - middle} MB", max(large) - middle <= 150))
    note = {} if large else {"note": "no figures for 20,000 images: run part jobs_20000 before this one"}
    return {"claims": claims, "torch and network alone, MB": base, **note, "lines": lines}


LOADED = """
import sys
import torch, torchvision
from PIL import Image
from featcache import Backbone
Backbone(sys.argv[1], weights=sys.argv[2]).output_shapes
print("{}")
"""


def _base(case: Case) -> float:
    """Return the peak memory of a process that loads torch and the network, and does nothing with them."""
    if case.tiny:
        return 0.0
    words = [sys.executable, "-c", LOADED, case.network, case.weights(case.network)]
    return measured(words, environment()).peak_mb


# ------------------------------------------------------------------------------------------------ costs


def costs(case: Case) -> dict[str, Any]:
    """What the plan said, what it was, and which part writing and fingerprinting had in it."""
    lines = []
    for name in ("clothing10",) if case.tiny else ("clothing10", "sign_digits", "bccd_cells"):
        for arch in (case.network,) if case.tiny else ("mobilenet_v2", "squeezenet1_1"):
            own, _ = networks(case, arch, real=True)
            for precision in ("fp32",) if case.tiny else ("auto", "fp32"):
                folder = case.some(name, 10 if case.tiny else 2 * case.photos)
                # Each pair has a private cache of its own: a plan tries modes that its run then knows.
                caches = [f"costs-{len(lines)}-{i}" for i in range(case.times(3))]
                runs = [_planned(case, folder, own, precision, cache) for cache in caches]
                lines.append({"set": name, "network": arch, **_middle(runs)})
                note(f"{name}, {arch}, {precision} done")
    time = max(abs(line["predicted / true seconds"] - 1) for line in lines)
    disk = max(abs(line["predicted / true bytes"] - 1) for line in lines)
    shares = [line["write + fingerprint"] for line in lines if line["write + fingerprint"] is not None]
    claims = [
        claim("the plan predicts the time within 25 % (medians)", f"at most {time:.0%} off", time <= WITHIN),
        claim("the plan predicts the disk within 25 %", f"at most {disk:.0%} off", disk <= WITHIN),
    ]
    if shares:
        worst = max(shares)
        text = "writing and fingerprinting together: under 3 % of what the cores do (medians)"
        claims.append(claim(text, f"{worst:.1%}", worst < 0.03))
    return {"claims": claims, "lines": lines}


def _planned(case: Case, folder: Path, own: list[Any], precision: str, cache: str) -> dict[str, Any]:
    words = [*own, "--precision", precision]
    plan = case.extract(folder, *words, "--dry-run", cache=cache).answer
    store = case.work / "planned"
    try:
        done: Ran = case.extract(folder, *words, store=store, cache=cache)
        size = sum(p.stat().st_size for p in store.rglob("*") if p.is_file())
    finally:
        with contextlib.suppress(OSError):
            shutil.rmtree(store)
    report = done.answer
    shares = report.get("shares") or {}
    # Of what the cores did: as a part of all core-seconds it would shrink where cores have nothing to do.
    did = sum(value for name, value in shares.items() if name != "idle")
    small = round((shares["write"] + shares["fingerprint"]) / did, 4) if "fingerprint" in shares and did else None
    return {
        "precision": precision,
        "images": report["computed"],
        "predicted seconds": plan["seconds"],
        "true seconds": report["seconds"],
        "predicted / true seconds": round((plan["seconds"] or 0) / report["seconds"], 2),
        "predicted bytes": plan["bytes"],
        "true bytes": size,
        "predicted / true bytes": round(plan["bytes"] / size, 2),
        "write + fingerprint": small,
        "shares": shares,
    }


def _middle(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the run whose prediction of the time is the middle one, with the predictions and small shares of all."""
    ordered = sorted(runs, key=lambda run: run["predicted / true seconds"])
    every = [run["predicted / true seconds"] for run in runs]
    small = [run["write + fingerprint"] for run in runs if run["write + fingerprint"] is not None]
    return {
        **ordered[len(ordered) // 2],
        "predicted / true seconds, all": every,
        "write + fingerprint": sorted(small)[len(small) // 2] if small else None,
        "write + fingerprint, all": small,
    }
