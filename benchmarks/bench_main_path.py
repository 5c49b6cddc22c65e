r"""Does the main path keep its promises on real photos, and does it give the numbers that plain torchvision gives?

Question
    Images in, codes in a store, heads trained: is nothing computed twice, nothing lost by kill -9, no other spec mixed
    in; are codes and accuracies those of the same work by hand; and at which rate against the usual loop?

Command
    python benchmarks/bench_main_path.py [--data DIR] [--out benchmarks/results/main_path.json] [--tiny]

Rivals
    benchmarks/rival_torchvision.py: torchvision's ImageClassification preset on PIL images, eager fp32, a DataLoader
    (its rate interleaved with featcache's, run by run); scikit-learn's StandardScaler and LogisticRegression on those
    codes, C chosen on the validation rows, refitted on train and validation rows, test rows touched once.

Everything goes through the command line in processes of its own. --data is the folder with weights/, datasets/ and
odd_images/ (or FEATCACHE_TEST_DATA). --tiny: generated images, random weights, no processes but those that are killed;
it shows that the benchmark runs, not that the claims hold for real data.
"""

import argparse
import contextlib
import csv
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import (
    REPOSITORY,
    Outcome,
    as_process,
    claim,
    command,
    data_folder,
    environment,
    in_process,
    index_rows,
    load_average,
    machine,
    median,
    tree_digest,
    without_places,
    write_result,
)
from PIL import Image

SPLITS = ("train", "train", "train", "validation", "test")
WITHIN = 0.00001  # of a cosine of 1: "equal" for float32 arithmetic in another order


@dataclass(frozen=True)
class Case:
    """What one run of the benchmark works with.

    `images` is a writable copy of a set with its index.csv; `part` a folder with some of them; `other` a set that
    shares nothing with it; `within_points` how far accuracies may be apart: on few test rows one row is several points.
    """

    work: Path
    images: Path
    part: Path
    other: Path
    arch: str
    weights: Path
    resize: int
    crop: int
    cli: Callable[..., Outcome] = as_process
    data: Path | None = None
    kills: int = 10
    repeats: int = 5
    rate_images: int = 640
    kill_batch: int = 8
    loader_workers: int = 2
    within_points: float = 0.5
    tiny: bool = False

    @property
    def network(self) -> list[str]:
        """The words of the command line that name backbone, weights and size."""
        sizes = ["--resize", self.resize, "--crop", self.crop] if self.tiny else []
        return ["--backbone", self.arch, "--weights", str(self.weights), *map(str, sizes)]

    def extract(self, source: Path, store: Path, *more: Any) -> Outcome:
        """Run `featcache extract` with --json."""
        return self.cli("extract", source, "-o", store, *self.network, *more, "--json")


def load(store: Path):
    from featcache import FeatureStore

    return FeatureStore.open(store).load()


def worst_cosines(exact: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Return the worst cosine of two sets of codes row by row: raw, and centred by the mean of the first."""
    worst = []
    for shift in (0.0, exact.mean(0, dtype=np.float64)):
        a, b = exact.astype(np.float64) - shift, other.astype(np.float64) - shift
        worst.append(float(((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()))
    return worst[0], worst[1]


def decimals(value: float) -> float:
    """Round a cosine so that 0.9999999 is not shown as 1."""
    return float(np.floor(value * 1e9) / 1e9)


# ------------------------------------------------------------------------------------------------ nothing done twice


def reuse(case: Case) -> dict[str, Any]:
    """Extract the whole set as a folder, then change one thing after the other."""
    images, store = case.images, case.work / "codes"
    n = len(index_rows(images))
    first = case.extract(images, store).json
    claims = [claim(f"{n} images give {n} rows", first["images"] - len(first["failed"]), first["computed"] == n)]

    again = [as_process("extract", images, "-o", store, *case.network, "--json") for _ in range(case.repeats)]
    seconds = median([run.seconds for run in again])
    computed = max(run.json["computed"] for run in again)
    claims += [
        claim("a rerun computes nothing", f"{computed} computed", computed == 0),
        claim("a rerun takes under 2 s of wall clock (median of processes)", f"{seconds} s", seconds < 2),
    ]

    def after(what: str, expected: int, source: Path = images) -> None:
        found = case.extract(source, store).json
        good = found["computed"] == expected and not found["failed"]
        claims.append(claim(f"{what}: computes {expected}", f"{found['computed']} of {found['images']}", good))

    rows = index_rows(images)
    edited, renamed, copied, relabelled = (images / rows[i]["file"] for i in (0, 1, 2, 3))
    with Image.open(edited) as image:
        pixels = image.convert("RGB")
    pixels.putpixel((0, 0), (1, 2, 3))
    pixels.save(edited, quality=95)
    after("one image edited", 1)
    moved = images.with_name("moved")
    images.rename(moved)
    after("the folder moved", 0, moved)
    moved.rename(images)
    renamed.rename(renamed.with_name("renamed" + renamed.suffix))
    after("one file renamed", 0)
    shutil.copy(copied, copied.with_name("copied" + copied.suffix))
    after("one file copied", 0)
    target = next(row["class"] for row in rows if row["class"] != rows[3]["class"])
    relabelled.rename(images / target / f"relabelled{relabelled.suffix}")
    after("one label changed (moved to another class's folder)", 0)
    claims += refusals(case, store)
    figures = {
        "images": n,
        "first_run_seconds": first["seconds"],
        "first_run_steady_images_per_second": first["steady_images_per_second"],
        "precision": {k: first["precision"][k] for k in ("class", "mode", "worst_cosine", "speedup")},
        "rerun_seconds": [round(run.seconds, 3) for run in again],
    }
    return {"claims": claims, **figures}


def refusals(case: Case, store: Path) -> list[dict[str, Any]]:
    """Another crop size, and a folder that shares nothing with the view."""
    before, rows = tree_digest(store), len(load(store))
    other = case.extract(case.images, store, "--crop", case.crop - 32)
    disjoint = case.extract(case.other, store)
    untouched = tree_digest(store) == before
    added = case.extract(case.other, store, "--add").json
    both = len(load(store))
    return [
        claim(
            "another crop size is refused with the difference",
            other.err.strip(),
            other.status == 1 and "preprocess.crop" in other.err and other.err.count("\n") == 1,
        ),
        claim("a disjoint folder is refused without --add", disjoint.err.strip(), disjoint.status == 1),
        claim("after both refusals the store is the same, byte for byte", untouched, untouched),
        claim("with --add both are there", f"{rows} + {added['images']} = {both}", rows + added["images"] == both),
    ]


# ------------------------------------------------------------------------------------------------ the same by hand


def by_hand(case: Case) -> dict[str, Any]:
    """Codes, and logistic regression on the set's own split, against plain torchvision and scikit-learn."""
    import rival_torchvision as rival

    from featcache.heads import HEADS

    exact, auto, source = case.work / "exact", case.work / "auto", case.images / "index.csv"
    case.extract(source, exact, "--precision", "fp32").json  # noqa: B018 (raises when it failed)
    found = case.extract(source, auto).json
    rows = sorted(index_rows(case.images), key=lambda row: row["file"])
    photos = rival.Photos([case.images / row["file"] for row in rows], case.resize, case.crop)
    plain, _ = rival.extract(rival.load_model(case.arch, case.weights), photos, 32, case.loader_workers)
    data = load(exact)
    assert data.ids.tolist() == [row["file"] for row in rows]
    raw, centred = worst_cosines(plain, data.X)
    auto_raw, auto_centred = worst_cosines(plain, load(auto).X)
    y, split = (np.asarray([row[name] for row in rows]) for name in ("class", "split"))
    hand, C = rival.logreg_on_split(plain, y, split, tuple(HEADS["logreg"].grid))
    heads = [case.cli("fit", s, "--head", "logreg", "-o", case.work / "head", "--json").json for s in (exact, auto)]
    scores = [100 * head["scores"]["test"] for head in heads]
    limit = case.within_points
    return {
        "claims": [
            claim(
                "fp32 codes equal plain torchvision's: worst cosine at least 0.99999", decimals(raw), raw >= 1 - WITHIN
            ),
            claim("the same, both centred by the mean code", decimals(centred), centred >= 1 - WITHIN),
            claim(
                f"logreg on the set's own split, codes under fp32: test accuracy within {limit:g} points of by hand",
                f"{scores[0]:.2f} % against {100 * hand:.2f} %, difference {scores[0] - 100 * hand:+.2f}",
                abs(scores[0] - 100 * hand) <= limit,
            ),
            claim(
                "the same, codes under --precision auto",
                f"{scores[1]:.2f} % against {100 * hand:.2f} %, difference {scores[1] - 100 * hand:+.2f}",
                abs(scores[1] - 100 * hand) <= limit,
            ),
        ],
        "auto_mode": found["precision"]["mode"],
        "auto_worst_cosine": decimals(auto_raw),
        "auto_worst_centred_cosine": decimals(auto_centred),
        "test_rows": int((split == "test").sum()),
        "C_by_hand": C,
        "C_featcache": [head["params"]["C"] for head in heads],
    }


# ------------------------------------------------------------------------------------------------ awkward input


def partial_weights(case: Case) -> dict[str, Any]:
    """Weights of ResNet-18 that end after layer3."""
    assert case.data is not None
    words = ["--backbone", "resnet18", "--weights", case.data / "weights" / "resnet18_upto_layer3-onnx_bnfolded.pth"]
    good = case.cli("extract", case.part, "-o", case.work / "partial", *words, "--nodes", "layer3", "--json").json
    refused = case.cli("extract", case.part, "-o", case.work / "refused", *words, "--json")
    nodes = case.cli("info", case.work / "partial", "--json").json["nodes"]
    return {
        "claims": [
            claim("works at layer3", f"{good['computed']} images, {nodes}", good["computed"] == good["images"]),
            claim(
                "refused at the penultimate node, the deepest usable one named",
                refused.err.strip(),
                refused.status == 1 and refused.err.count("\n") == 1 and "layer3" in refused.err,
            ),
        ]
    }


def odd_images(case: Case) -> dict[str, Any]:
    """Each awkward file is a row, or an entry of the ledger with its reason."""
    assert case.data is not None
    store, folder = case.work / "odd", case.data / "odd_images"
    found = case.extract(folder, store, "--max-failed", 1).json
    expected = {row["file"]: row["pillow13_result"] == "ok" for row in index_rows(folder)}
    failed = {entry["id"]: entry["reason"] for entry in found["failed"]}
    rows = set(load(store).ids.tolist())
    wrong = sorted(name for name, readable in expected.items() if (name in rows) != readable)
    both = len(rows) + len(failed)
    return {
        "claims": [
            claim(
                f"each of {len(expected)} files is a row or a ledger entry",
                f"{len(rows)} rows, {len(failed)} entries",
                rows | set(failed) == set(expected) and both == len(expected),
            ),
            claim("rows are what Pillow reads per index.csv", f"{len(wrong)} differ {wrong or ''}", not wrong),
            claim("each entry has a reason of one line", "", all(r and "\n" not in r for r in failed.values())),
            claim(
                "the decompression bomb is refused",
                failed.get("decompression_bomb.gif", "it was read"),
                "bomb" in failed.get("decompression_bomb.gif", ""),
            ),
        ],
        "ledger": [{"file": name, "reason": reason} for name, reason in failed.items()],
    }


# ------------------------------------------------------------------------------------------------ kill -9


def published_rows(store: Path) -> int:
    from featcache import FeatureStore

    return sum(int(shard.attributes["rows"]) for shard in FeatureStore.open(store).shards)


def kill(case: Case, store: Path, words: list[Any], shards: int, delay: float) -> bool:
    """Start an extraction and kill it that long after so many shards were published; False when it was over by then."""
    process = subprocess.Popen(
        command(["extract", case.part, "-o", store, *case.network, *words, "--json"]),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment(),
    )
    try:
        until = time.monotonic() + 300
        while process.poll() is None and time.monotonic() < until:
            if len(list((store / "shards").glob("*.h5"))) >= shards:
                time.sleep(delay)
                break
            time.sleep(0.002)
        return process.poll() is None
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        process.wait()


def kill_midway(case: Case, store: Path, words: list[Any], shards: int, delay: float, total: int) -> int:
    """Kill a run while rows are still missing, trying again where it was too fast; return the rows it published."""
    for attempt in range(5):
        alive = kill(case, store, words, shards if attempt < 2 else 3, delay if attempt < 1 else 0.0)
        kept = published_rows(store)
        if alive and kept < total:
            return kept
        shutil.rmtree(store)
    raise RuntimeError(f"the run was over before it could be killed after {shards} shards: use more images")


def killed_runs(case: Case) -> dict[str, Any]:
    """Kill -9 at several moments, go on, and compare with a run that nobody disturbed."""
    batch = case.kill_batch
    words = ["--precision", "fp32", "--publish-seconds", 0, "--batch-size", batch]
    whole = case.work / "whole"
    total = case.extract(case.part, whole, *words).json["computed"]
    reference, generator, rows = load(whole), random.Random(0), []
    last = 3 * total // (4 * batch)
    for number in range(case.kills):
        store = case.work / f"killed-{number}"
        shards = 3 + round(number * max(0, last - 3) / max(1, case.kills - 1))
        kept = kill_midway(case, store, words, shards, generator.uniform(0, 0.05), total)
        done = case.extract(case.part, store, *words).json
        data, sound = load(store), case.cli("check", store, "--deep", "--json").json["ok"]
        same_ids = data.ids.tolist() == reference.ids.tolist()
        difference = float(np.abs(data.X - reference.X).max()) if same_ids else None
        rows.append(
            {
                "shards_waited_for": shards,
                "rows_published_at_kill": kept,
                "computed_by_rerun": done["computed"],
                "all_ids": same_ids,
                "bit_equal": same_ids and data.X.tobytes() == reference.X.tobytes(),
                "max_abs_difference": difference,
                "check_deep": sound,
            }
        )
        shutil.rmtree(store)
    again = sum(row["rows_published_at_kill"] + row["computed_by_rerun"] - total for row in rows)
    equal = sum(row["bit_equal"] for row in rows)
    worst = max(row["max_abs_difference"] or 0.0 for row in rows)
    return {
        "claims": [
            claim(
                "after kill -9 and a rerun every id is there, and the store is sound",
                f"{sum(r['all_ids'] and r['check_deep'] for r in rows)} of {len(rows)} runs",
                all(r["all_ids"] and r["check_deep"] for r in rows),
            ),
            claim(
                "vectors equal an uninterrupted run's",
                f"largest difference {worst:.3g}, {equal} of {len(rows)} runs bit-equal",
                worst <= 1e-5 * float(np.abs(reference.X).max()),
            ),
            claim("nothing that was published is computed again", f"{again} rows", again == 0),
        ],
        "images": total,
        "kills": rows,
    }


# ------------------------------------------------------------------------------------------------ same vectors


def settings(case: Case) -> dict[str, Any]:
    """Batch sizes and workers must not matter; the same settings must give the same bytes."""
    rows, first, stores = [], None, []
    combinations = [(b, w) for b in (1, 7, 64) for w in (0, 2)] + [(64, 2)]
    for number, (batch, workers) in enumerate(combinations):
        store = case.work / f"settings-{number}"
        words = ["--precision", "fp32", "--batch-size", batch, "--workers", workers]
        case.extract(case.part, store, *words).json  # noqa: B018
        data = load(store).X
        stores.append(data.tobytes())
        first = data if first is None else first
        row = {
            "batch_size": batch,
            "workers": workers,
            "worst_centred_cosine": decimals(worst_cosines(first, data)[1]),
            "bit_equal_rows": int((data == first).all(axis=1).sum()),
            "rows": len(data),
        }
        rows.append(row)
    worst = min(row["worst_centred_cosine"] for row in rows)
    equal = min(row["bit_equal_rows"] for row in rows)
    return {
        "claims": [
            claim(
                "batch sizes 1, 7, 64 with 0 or 2 workers: worst centred cosine at least 0.99999",
                f"{worst}; at least {equal} of {rows[0]['rows']} rows bit-equal",
                worst >= 1 - WITHIN,
            ),
            claim("the same settings twice give the same bytes", stores[-1] == stores[-2], stores[-1] == stores[-2]),
        ],
        "against_batch_size_1_without_workers": rows[1:-1],
    }


# ------------------------------------------------------------------------------------------------ words


def one_line_each(case: Case) -> dict[str, Any]:
    """Each mistake gets one clear line."""
    work, store = case.work, case.work / "codes"
    (work / "empty").mkdir()
    single = work / "single" / "only"
    single.mkdir(parents=True)
    for path in sorted(case.part.rglob("*.jpg"))[:4]:
        shutil.copy(path, single)
    case.extract(single.parent, work / "one-class").json  # noqa: B018
    cases = {
        "wrong flag": (2, ["extract", case.part, "-o", work / "x", "--bach-size", 3]),
        "missing folder": (1, ["extract", work / "absent", "-o", work / "x", *case.network]),
        "missing list": (1, ["extract", work / "absent.csv", "-o", work / "x", *case.network]),
        "empty folder": (1, ["extract", work / "empty", "-o", work / "x", *case.network]),
        "single-class set": (1, ["fit", work / "one-class", "--head", "logreg", "-o", work / "h"]),
        "single-class set, compare": (1, ["compare", work / "one-class"]),
        "wrong store": (1, ["info", case.part]),
        "missing store": (1, ["compare", work / "absent"]),
        "a store where a head belongs": (1, ["predict", store, case.part]),
        "missing weights": (1, ["extract", case.part, "-o", work / "x", "--backbone", case.arch,
                                "--weights", work / "absent.pth"]),
        "unreachable weights": (1, ["extract", case.part, "-o", work / "x", "--backbone", case.arch,
                                    "--weights", "http://127.0.0.1:9/absent-0123abcd.pth"]),
        "unknown backbone": (1, ["extract", case.part, "-o", work / "x", "--backbone", "resnet5000"]),
    }  # fmt: skip
    rows = []
    for name, (status, words) in cases.items():
        done = case.cli(*words)
        good = done.status == status and not done.out and done.err.count("\n") == 1
        rows.append({"mistake": name, "exit_status": done.status, "line": done.err.strip(), "holds": good})
    good = sum(row["holds"] for row in rows)
    help_ = [as_process("--help") for _ in range(1 if case.tiny else 2 * case.repeats)]
    seconds = median([run.seconds for run in help_])
    return {
        "claims": [
            claim("each mistake gets one line and its exit status", f"{good} of {len(rows)}", good == len(rows)),
            claim("featcache --help takes under 0.5 s (median of processes)", f"{seconds} s", seconds < 0.5),
        ],
        "mistakes": rows,
    }


# ------------------------------------------------------------------------------------------------ rate


def rate(case: Case) -> dict[str, Any]:
    """Extraction against the usual loop, one after the other, several times."""
    import rival_torchvision as rival

    chosen = _spread(index_rows(case.images), case.rate_images)
    source = case.work / "rate.csv"
    with source.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file"], *([row["file"]] for row in chosen)])
    photos = rival.Photos([case.images / row["file"] for row in chosen], case.resize, case.crop)
    model, runs = rival.load_model(case.arch, case.weights), []
    for repeat in range(1 if case.tiny else 3):
        run: dict[str, Any] = {"plain_loop": round(rival.extract(model, photos, 32, case.loader_workers)[1], 2)}
        for precision in ("fp32", "auto"):
            store = case.work / f"rate-{precision}-{repeat}"
            done = case.extract(source, store, "--root", case.images, "--precision", precision).json
            run[precision] = done["steady_images_per_second"]
            run[f"{precision}_whole_process"] = done["images_per_second"]
            run[f"{precision}_mode"] = done["precision"]["mode"]
        runs.append(run)
    ratios = {p: median([run[p] / run["plain_loop"] for run in runs], 2) for p in ("fp32", "auto")}
    return {
        "images": len(chosen),
        "ratio_to_plain_loop_median": ratios,
        "images_per_second_median": {k: median([run[k] for run in runs], 1) for k in ("plain_loop", "fp32", "auto")},
        "runs_images_per_second": runs,
    }


# ------------------------------------------------------------------------------------------------ putting it together


def real_case(data: Path, work: Path, n: int | None = None, part: int = 240, other: int = 20, **changes: Any) -> Case:
    """Clothing10 (n of its photos) with genuine MobileNetV2 weights; cells are the set that shares nothing with it."""
    photos, cells = data / "datasets" / "clothing10", data / "datasets" / "bccd_cells"
    rows = index_rows(photos)
    images = _copy(photos, _spread(rows, n or len(rows)), work / "images")
    return Case(
        work=work,
        images=images,
        part=_copy(images, _spread(index_rows(images), part), work / "part"),
        other=_copy(cells, _spread(index_rows(cells), other), work / "other"),
        arch="mobilenet_v2",
        weights=data / "weights" / "mobilenet_v2-tf2_ptq_int8.pth",
        resize=256,
        crop=224,
        data=data,
        **changes,
    )


def tiny_case(work: Path) -> Case:
    """Generated images and random weights."""
    import torch
    import torchvision

    torch.set_num_threads(1)  # such small products only lose by threads, on a busy machine a lot
    os.environ["OMP_NUM_THREADS"] = "1"
    images = _generated(work / "images", 40, seed=0)
    torch.manual_seed(0)
    torch.save(torchvision.models.get_model("squeezenet1_1", weights=None).state_dict(), work / "random.pth")
    return Case(
        work=work,
        images=images,
        part=_copy(images, index_rows(images)[:24], work / "part"),
        other=_generated(work / "other", 4, seed=1),
        arch="squeezenet1_1",
        weights=work / "random.pth",
        resize=64,
        crop=64,
        cli=in_process,
        kills=1,
        repeats=1,
        rate_images=16,
        kill_batch=2,
        loader_workers=0,
        within_points=100.0,
        tiny=True,
    )


def _spread(rows: list[dict[str, str]], n: int) -> list[dict[str, str]]:
    return [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, min(n, len(rows))).astype(int))]


def _copy(folder: Path, rows: list[dict[str, str]], to: Path) -> Path:
    """Copy the images of some lines of an index.csv, and those lines."""
    for row in rows:
        (to / row["file"]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / row["file"], to / row["file"])
    _write_index(to, rows)
    return to


def _write_index(folder: Path, rows: list[dict[str, str]]) -> None:
    with (folder / "index.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["file", "class", "split"], *([r["file"], r["class"], r["split"]] for r in rows)])


def _generated(folder: Path, n: int, seed: int) -> Path:
    generator, rows = np.random.default_rng(seed), []
    for i in range(n):
        label = ("cat", "dog")[i % 2]
        (folder / label).mkdir(parents=True, exist_ok=True)
        name = f"{label}/{seed}-{i:03d}.jpg"
        small = generator.integers(0, 256, (8, 8, 3), dtype="u1")
        Image.fromarray(small).resize((90, 70)).save(folder / name)
        rows.append({"file": name, "class": label, "split": SPLITS[i // 2 % len(SPLITS)]})
    _write_index(folder, rows)
    return folder


#: In this order: `reuse` makes the store that `one_line_each` looks at, and changes the images last.
CHECKS: dict[str, Callable[[Case], dict[str, Any]]] = {
    "codes_and_accuracy_as_by_hand": by_hand,
    "rate": rate,
    "batch_sizes_and_workers": settings,
    "killed_runs": killed_runs,
    "partial_weights": partial_weights,
    "odd_images": odd_images,
    "nothing_computed_twice": reuse,
    "clear_words": one_line_each,
}


def run(case: Case) -> dict[str, Any]:
    """Run all checks; the claims of all of them come first."""
    claims, figures = [], {}
    for name, check in CHECKS.items():
        if case.data is None and check in (partial_weights, odd_images):
            continue
        start = time.perf_counter()
        found = check(case)
        for line in found.pop("claims", []):
            claims.append(line)
            print(f"{'holds' if line['holds'] else 'FAILS'}  {line['claim']}: {line['measured']}", flush=True)
        figures[name] = found
        print(f"       ({name}: {time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
    return {"claims": claims, **{name: found for name, found in figures.items() if found}}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with weights/, datasets/, odd_images/")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    data = None if args.tiny else data_folder(args.data)
    if data is None and not args.tiny:
        parser.error("no real data; give --data, or --tiny for a trial run on generated images")
    out = args.out or (None if args.tiny else REPOSITORY / "benchmarks" / "results" / "main_path.json")
    about = machine()
    with tempfile.TemporaryDirectory(prefix="featcache-bench-") as folder:
        work = Path(folder).resolve()
        os.environ["FEATCACHE_CACHE"] = str(work / "cache")
        figures = run(tiny_case(work) if data is None else real_case(data, work))
        about["load at end"] = load_average()
        places = {str(work): "TMP", str(REPOSITORY): "REPOSITORY", **({str(data): "DATA"} if data else {})}
        figures = without_places(figures, places)
    if out:
        write_result(out, __doc__.split("\n")[0], "python benchmarks/bench_main_path.py", about, figures)
    return 0 if all(line["holds"] for line in figures["claims"]) else 1


if __name__ == "__main__":
    sys.exit(main())
