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
import sys
from functools import partial
from pathlib import Path
from typing import Any

from extraction.case import Case, cpu_flags
from extraction.contract import contract
from extraction.gpu import gpu
from extraction.headline import headline
from extraction.inputs import costs, formats, memory
from extraction.limits import forward, limit
from extraction.speed import jobs, steady
from measuring import REPOSITORY, data_folder, machine
from parts import Part, Writing, chosen, run_parts

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
    places = {str(data): "DATA"} if data else {}
    places |= {python: environment for environment, python in (pair.split("=", 1) for pair in args.env)}
    writing = Writing(
        out,
        __doc__.split("\n")[0],
        "python benchmarks/bench_extraction.py",
        {**machine(), "instructions": cpu_flags()},
        places,
    )
    names = chosen(PARTS, args.only, TINY if args.tiny else None)
    return run_parts(PARTS, names, lambda work, known: case_of(args, work, data, known), writing)


if __name__ == "__main__":
    sys.exit(main())
