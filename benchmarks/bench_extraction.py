r"""How fast are images turned into codes, how near is that to the machine's limit, and what does it cost in accuracy?

Question
    Images per second of whole processes and in the steady state, against the loops that everybody writes and the
    libraries there are; the share of the machine's own limit; the forward pass beside OpenVINO; the numerical contract;
    kinds of files; memory; what the plan says; the time that a whole tutorial takes.

Command
    python benchmarks/bench_extraction.py [--only PART[,PART]] [--data DIR] [--env NAME=PYTHON ...] [--tiny]
        [--repeats N] [--photos N] [--epochs N] [--contestant NAME ...] [--out benchmarks/results/extraction.json]

    `--only jobs` means all parts that begin with "jobs". Parts that are not run keep the figures that the results file
    has; each part has its own date, load and commit. `--list` shows the parts and how long they take on two cores.

Rivals (benchmarks/rivals/, each a script of its own)
    tutorial_loop       DataLoader with 4 workers, torchvision's preset, eager fp32, HDF5 at the end
    tuned_loop          channels_last, autocast where the CPU has bf16, workers, threads and batches tuned beforehand
    timm_loop           timm's inference.py: create_model, create_loader, that script's defaults
    embetter_loop       embetter's ImageLoader and TimmEncoder
    thingsvision_loop   thingsvision's extractor, ImageDataset and DataLoader
    forward_pass, openvino_forward   the network alone
    tutorial_training   PyTorch's transfer learning tutorial, the frozen network

    timm, embetter, thingsvision and OpenVINO have environments of their own, named by --env; who has none is left out,
    and the results say so. To make them:
        python -m venv NAME && NAME/bin/pip install PACKAGE
    with PACKAGE timm, "embetter[vision]", thingsvision (Python up to 3.11; it brings torch 2.0 and TensorFlow) or
    openvino. Except for thingsvision, a file NAME/lib/python3.*/site-packages/shared.pth with the path of another
    environment's site-packages gives them that one's torch, which saves 5 GB each and makes torch the same for all.

--data is the folder with weights/ and datasets/ (or FEATCACHE_TEST_DATA). --tiny: generated images, small networks with
random weights, one process; it shows that the benchmark runs, not that the claims hold.
"""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from extraction.case import Case, Skip, cpu_flags
from extraction.contract import contract
from extraction.gpu import gpu
from extraction.headline import headline
from extraction.inputs import costs, formats, memory
from extraction.limits import forward, limit
from extraction.speed import jobs, steady
from measuring import (
    REPOSITORY,
    data_folder,
    load_average,
    machine,
    without_places,
    write_result,
)


@dataclass(frozen=True)
class Part:
    """One question of the benchmark: how it is answered, and how many minutes that takes on two cores."""

    run: Callable[[Case], dict[str, Any]]
    minutes: float


PARTS: dict[str, Part] = {
    "jobs_300": Part(partial(jobs, n=300), 6),
    "jobs_1343": Part(partial(jobs, n=1343), 11),
    "jobs_20000": Part(partial(jobs, n=20000), 32),
    "steady_mobilenet_v2": Part(partial(steady, arch="mobilenet_v2"), 5),
    "steady_squeezenet1_1": Part(partial(steady, arch="squeezenet1_1"), 5),
    "steady_resnet18": Part(partial(steady, arch="resnet18"), 5),
    "steady_resnet50": Part(partial(steady, arch="resnet50"), 5),
    "limit": Part(limit, 8),
    "forward": Part(forward, 12),
    "contract_mobilenet_v2": Part(partial(contract, arch="mobilenet_v2"), 4),
    "contract_squeezenet1_1": Part(partial(contract, arch="squeezenet1_1"), 4),
    "contract_resnet18": Part(partial(contract, arch="resnet18"), 4),
    "formats": Part(formats, 5),
    "memory": Part(memory, 3),
    "costs": Part(costs, 9),
    "headline_clothing10": Part(partial(headline, name="clothing10"), 14),
    "headline_sign_digits": Part(partial(headline, name="sign_digits"), 8),
    "gpu": Part(gpu, 10),
}
#: Of a trial run: one of each kind.
TINY = (
    "jobs_300",
    "steady_squeezenet1_1",
    "limit",
    "forward",
    "contract_mobilenet_v2",
    "formats",
    "memory",
    "costs",
    "headline_sign_digits",
    "gpu",
)


def commit() -> str:
    """Return the commit that was measured, marked where the package differs from it."""
    words = ["git", "-C", str(REPOSITORY)]
    try:
        head = subprocess.run([*words, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*words, "status", "--porcelain", "featcache"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (" with changes" if dirty.strip() else "")


def measure(name: str, case: Case) -> dict[str, Any]:
    """Run one part; what hinders it is its result."""
    about = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "load at start": load_average(),
    }
    start = time.perf_counter()
    try:
        figures = PARTS[name].run(case)
    except Skip as reason:
        figures = {"left out": str(reason)}
    except RuntimeError as error:
        if case.tiny:
            raise
        figures = {"failed": str(error)}
    return {"about": {**about, "minutes": round((time.perf_counter() - start) / 60, 1)}, **figures}


def chosen(only: str | None, tiny: bool) -> list[str]:
    """Return the parts that were asked for, in their order."""
    if only is None:
        return [name for name in PARTS if not tiny or name in TINY]
    wishes = [wish.strip() for wish in only.split(",")]
    unknown = [wish for wish in wishes if not any(name.startswith(wish) for name in PARTS)]
    if unknown:
        raise SystemExit(f"--only: expected parts such as {', '.join(PARTS)}, got {unknown[0]}")
    return [name for name in PARTS if any(name.startswith(wish) for wish in wishes)]


def known_figures(path: Path | None) -> dict[str, Any]:
    """Return the figures of an earlier run, by part, with the claims of each inside."""
    if path is None or not path.is_file():
        return {}
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    claims = figures.pop("claims", [])
    for name, part in figures.items():
        part["claims"] = [{k: v for k, v in c.items() if k != "part"} for c in claims if c["part"] == name]
    return figures


def assembled(parts: dict[str, Any]) -> dict[str, Any]:
    """Return the figures as they are written: the claims of all parts first."""
    parts = {name: parts[name] for name in PARTS if name in parts}
    claims = [{"part": name, **line} for name, part in parts.items() for line in part.get("claims", [])]
    return {"claims": claims, **{n: {k: v for k, v in p.items() if k != "claims"} for n, p in parts.items()}}


def report(name: str, figures: dict[str, Any], tiny: bool) -> None:
    for line in figures.get("claims", []):
        word = "trial" if tiny else "holds" if line["holds"] else "FAILS"
        print(f"{word}  {line['claim']}: {line['measured']}")
    for hindrance in ("left out", "failed"):
        if hindrance in figures:
            print(f"       {name}, {hindrance}: {figures[hindrance]}")
    print(f"       ({name}: {figures['about']['minutes']} min)", file=sys.stderr, flush=True)


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PART[,PART]")
    parser.add_argument("--list", action="store_true", help="show the parts and their minutes")
    parser.add_argument("--data", type=Path, help="folder with weights/, datasets/")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--contestant", action="append", default=[], help="only those whose names begin so")
    parser.add_argument("--repeats", type=int, help="instead of each part's own number")
    parser.add_argument("--photos", type=int, default=600, help="for steady rates")
    parser.add_argument("--epochs", type=int, default=25, help="the tutorial's, at most")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    return parser


def case_of(args: argparse.Namespace, work: Path, data: Path | None, known: dict[str, Any]) -> Case:
    if args.tiny:
        import torch

        torch.set_num_threads(1)  # such small products only lose by threads, on a busy machine a lot
    return Case(
        work=work,
        data=data,
        environments=dict(pair.partition("=")[::2] for pair in args.env),
        contestants=frozenset(args.contestant),
        repeats=args.repeats,
        photos=10 if args.tiny else args.photos,
        epochs=args.epochs,
        tiny=args.tiny,
        known=known,
    )


def main(argv: list[str] | None = None) -> int:
    parser = arguments()
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(f"{name:24}{part.minutes:4g} min" for name, part in PARTS.items()))
        return 0
    data = None if args.tiny else data_folder(args.data)
    if data is None and not args.tiny:
        parser.error("no real data; give --data, or --tiny for a trial run on generated images")
    out = args.out or (None if args.tiny else REPOSITORY / "benchmarks" / "results" / "extraction.json")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started, removes what was made
    names, parts = chosen(args.only, args.tiny), known_figures(out)
    about = {**machine(), "instructions": cpu_flags()}
    claims = []
    for name in names:
        with tempfile.TemporaryDirectory(prefix="featcache-bench-") as folder:
            work = Path(folder).resolve()
            os.environ["FEATCACHE_CACHE"] = str(work / "cache")
            found = measure(name, case_of(args, work, data, parts))
        places = {str(work): "TMP", str(REPOSITORY): "REPOSITORY", **({str(data): "DATA"} if data else {})}
        places |= {python: environment for environment, python in (pair.split("=", 1) for pair in args.env)}
        parts[name] = without_places(found, places)
        claims += found.get("claims", [])
        report(name, parts[name], args.tiny)
        if out:  # after each part: a run that is stopped keeps what it has
            write_result(out, __doc__.split("\n")[0], "python benchmarks/bench_extraction.py", about, assembled(parts))
    failed = any("failed" in parts[name] for name in names)
    return 0 if args.tiny or (not failed and all(line["holds"] for line in claims)) else 1


if __name__ == "__main__":
    sys.exit(main())
