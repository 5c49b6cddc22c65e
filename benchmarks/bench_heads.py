r"""How fast are heads trained on cached codes, at equal objective, and how good are they beside what people use?

Question
    Multinomial logistic regression alone and as a path over folds against scikit-learn at the same objective, up to
    10,000 classes, and on codes that stay on disk; settings chosen on a sample against settings chosen on all rows;
    ridge with leave-one-out against RidgeClassifierCV; many heads in one pass; verification against the cosine; heads
    over layers and views; the error rate of answers that a head is sure of; and `auto` against seven heads that people
    use, from 1 shot to all rows.

Command
    python benchmarks/bench_heads.py [--only PART[,PART]] [--data DIR] [--stores DIR] [--repeats N] [--tiny]
        [--out benchmarks/results/heads.json]

    `--only solver` means all parts that begin with "solver". Parts that are not run keep the figures that the results
    file has; each has its own date, load and commit. `--list` shows the parts and how long they take on two cores.

--data is the folder with datasets/ and weights/ (or FEATCACHE_TEST_DATA); codes are extracted from it once, into
--stores where that is given. --tiny: generated codes, seconds; it shows that the benchmark runs, not that the claims
hold.
"""

import argparse
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from heads import auto, layers_views, many, rejection, ridge, sampled, solver, streaming, verification
from heads.case import Case
from measuring import REPOSITORY, data_folder, machine
from parts import Part, Writing, chosen, run_parts

PARTS: dict[str, Part] = {
    "solver_single": Part(solver.single, 6),
    "solver_path": Part(solver.path, 16),
    "solver_large": Part(solver.large, 15),
    "streaming": Part(streaming.run, 2),
    "sampled": Part(sampled.run, 7),
    "ridge": Part(ridge.run, 8),
    "many": Part(many.run, 6),
    "verification": Part(verification.run, 12),
    "layers_views": Part(layers_views.run, 10),
    "rejection": Part(rejection.run, 6),
    "auto_few": Part(partial(auto.run, shots=(1, 5)), 8),
    "auto_some": Part(partial(auto.run, shots=(10, 20)), 5),
    "auto_all": Part(partial(auto.run, shots=("all",)), 25),
}


def arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PART[,PART]")
    parser.add_argument("--list", action="store_true", help="show the parts and their minutes")
    parser.add_argument("--data", type=Path, help="folder with weights/, datasets/")
    parser.add_argument("--stores", type=Path, help="where codes are kept from run to run")
    parser.add_argument("--repeats", type=int, help="instead of each part's own number")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    return parser


def main(argv: list[str] | None = None) -> int:
    parser = arguments()
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(f"{name:24}{part.minutes:4g} min" for name, part in PARTS.items()))
        return 0
    data = None if args.tiny else data_folder(args.data)
    if data is None and not args.tiny:
        parser.error("no real data; give --data, or --tiny for a trial run on generated codes")
    out = args.out or (None if args.tiny else REPOSITORY / "benchmarks" / "results" / "heads.json")
    with tempfile.TemporaryDirectory(prefix="featcache-codes-") as folder:
        stores = args.stores or Path(folder)
        places = {str(stores): "STORES", **({str(data): "DATA"} if data else {})}
        writing = Writing(out, __doc__.split("\n")[0], "python benchmarks/bench_heads.py", machine(), places)

        def make_case(work: Path, known: dict[str, Any]) -> Case:
            return Case(work, data, stores, args.repeats, args.tiny)

        return run_parts(PARTS, chosen(PARTS, args.only), make_case, writing)


if __name__ == "__main__":
    sys.exit(main())
