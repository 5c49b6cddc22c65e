r"""Does a store keep what it acknowledged, whatever happens to the power, the process, the disk or the bytes?

Question
    After power loss at any moment, with any call failing or fatal, with writers killed at random, on a full disk and
    with damaged files: is an acknowledged row or state lost, a wrong row returned, a failure swallowed, or does an
    operation fail when it is repeated?

Command
    python benchmarks/bench_faults.py [--out benchmarks/results/faults.json] [--only NAME ...] [--tiny]

Rivals
    None: the figures to reach are zeros. The harness is tests/faults; its own tests show that it can fail.

Random moments are drawn from fixed seeds. Killed writers and system calls depend on the machine's timing, and are
counted as they came. --tiny: a few cases of each kind; it shows that the benchmark runs.
"""

import argparse
import collections
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import REPOSITORY, claim, machine, without_places, write_result

sys.path[:0] = [str(REPOSITORY), str(REPOSITORY / "tests" / "faults")]

from harm import harm_all  # noqa: E402
from injected import ACCIDENTS, Unavailable, every_call, full_disk, limited_files  # noqa: E402
from operations import OPERATIONS  # noqa: E402
from power_loss import sample  # noqa: E402
from traced import every_system_call, require_strace  # noqa: E402
from writers import WRITERS, massacre  # noqa: E402

#: How many distinct forms of each operation (lines added, relabelled, dropped; a second view; …) are tried.
FORMS = 3


def counted(outcomes: list[dict[str, Any]], *columns: str) -> list[dict[str, Any]]:
    """Return one line per combination of columns: how many runs ended how, and how often that was wrong."""
    rows: dict[tuple[str, ...], collections.Counter[str]] = {}
    for outcome in outcomes:
        row = rows.setdefault(tuple(outcome[c] for c in columns), collections.Counter())
        row.update(["runs", outcome["outcome"]])
        row["wrong"] += bool(outcome["problems"])
    results = ("runs", "killed", "raised", "done", "wrong")
    return [
        dict(zip(columns, key, strict=True)) | {name: found[name] for name in results} for key, found in rows.items()
    ]


def failures(outcomes: list[dict[str, Any]]) -> list[str]:
    """Return, in a few words each, what was wrong: for whoever has to find out why."""
    return [str({k: v for k, v in o.items() if k != "error"})[:600] for o in outcomes if o["problems"]][:10]


def judged(what: str, outcomes: list[dict[str, Any]], *columns: str) -> dict[str, Any]:
    wrong = sum(bool(o["problems"]) for o in outcomes)
    figures: dict[str, Any] = {"runs": len(outcomes), "outcomes": counted(outcomes, *columns)}
    if wrong:
        figures["what was wrong"] = failures(outcomes)
    return {"claims": [claim(what, f"{wrong} of {len(outcomes)} runs wrong", not wrong)], **figures}


def power_loss(tiny: bool) -> dict[str, Any]:
    found = sample(12 if tiny else 2500, seed=0, per_sequence=6 if tiny else 50)
    wrong = found.pop("wrong")
    text = "power loss at a random moment: all that was acknowledged is there, and nothing is wrong"
    line = claim(text, f"{len(wrong)} of {found['states']} states wrong", not wrong)
    return {"claims": [line], **found, **({"what was wrong": [str(w)[:600] for w in wrong[:10]]} if wrong else {})}


def calls_of_the_disk(tiny: bool) -> dict[str, Any]:
    outcomes = []
    for operation in OPERATIONS:
        for form in range(1 if tiny else FORMS):
            for number, how in ACCIDENTS[:: 4 if tiny else 1]:
                outcomes += every_call(operation, number, how, seed=form, stride=3 if tiny else 1)
    text = "each call of the disk layer failing or fatal: raised, nothing lost, nothing wrong, repeated with success"
    return judged(text, outcomes, "operation", "accident")


def system_calls(tiny: bool) -> dict[str, Any]:
    try:
        require_strace()
    except Unavailable as error:
        return {"left out": str(error)}
    outcomes = [o for name in OPERATIONS for o in every_system_call(name, share=0.02 if tiny else 1.0)]
    text = "each system call failing or fatal: raised, nothing lost, nothing wrong, repeated with success"
    return judged(text, outcomes, "operation", "accident")


def killed_writers(tiny: bool) -> dict[str, Any]:
    # Long enough that what compacting leaves outlives its grace period, and is collected beside the writers.
    stores = [massacre(3 if tiny else 240, seed=seed) for seed in range(1 if tiny else 3)]
    problems = [p for s in stores for p in s.pop("problems")]
    crashed = [c for s in stores for c in s.pop("crashed writers")]
    text = (
        f"{WRITERS} writers at once, killed and replaced: each acknowledged row and line there and right, no id twice"
    )
    kills = sum(s["kills"] for s in stores)
    figures: dict[str, Any] = {"stores": stores}
    if problems or crashed:
        figures["what was wrong"] = [*problems, *crashed][:10]
    lines = [
        claim(text, f"{len(problems)} findings after {kills} kills", not problems),
        claim("no writer is hindered by others that are killed", f"{len(crashed)} errors", not crashed),
    ]
    return {"claims": lines, **figures}


def no_room(tiny: bool) -> dict[str, Any]:
    outcomes = []
    for operation in OPERATIONS:
        for form in range(1 if tiny else FORMS):
            limits = (0, 4096, 1 << 20) if tiny else ()
            outcomes += [{**o, "disk": "file size limited"} for o in limited_files(operation, form, limits)]
            try:
                outcomes += [{**o, "disk": "full file system"} for o in full_disk(operation, form, limits)]
            except Unavailable as error:
                print(f"left out: {error}", file=sys.stderr)
    text = "no room on the disk: raised or done, nothing lost, nothing wrong, done when there is room"
    return judged(text, outcomes, "operation", "disk")


def damaged_files(tiny: bool) -> dict[str, Any]:
    lines, figures = [], {}
    for how, text, count in (("flip", "a flipped bit", 1100), ("cut", "a file cut short", 400)):
        found = harm_all(how, 8 if tiny else count, apart=not tiny)
        wrong = found.pop("wrong")
        counted = ", ".join(f"{k} {v}" for k, v in found.items() if k != "kinds")
        lines.append(claim(f"{text} is detected, naming the file, or harmless", counted, not wrong))
        figures[text] = found["kinds"]
        if wrong:
            figures[f"{text}: what was wrong"] = [str(w)[:600] for w in wrong[:10]]
    return {"claims": lines, **figures}


CHECKS: dict[str, Callable[[bool], dict[str, Any]]] = {
    "power_loss": power_loss,
    "calls_of_the_disk": calls_of_the_disk,
    "system_calls": system_calls,
    "killed_writers": killed_writers,
    "no_room": no_room,
    "damaged_files": damaged_files,
}


def run(names: list[str], tiny: bool) -> dict[str, Any]:
    """Run the checks; the claims of all of them come first."""
    claims, figures = [], {}
    for name in names:
        start = time.perf_counter()
        found = CHECKS[name](tiny)
        for line in found.pop("claims", []):
            claims.append(line)
            print(f"{'holds' if line['holds'] else 'FAILS'}  {line['claim']}: {line['measured']}", flush=True)
        figures[name] = found
        print(f"       ({name}: {time.perf_counter() - start:.0f} s)", file=sys.stderr, flush=True)
    return {"claims": claims, "operations": ", ".join(OPERATIONS), **figures}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="NAME")
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    whole = not args.tiny and args.only == list(CHECKS)
    out = args.out or (REPOSITORY / "benchmarks" / "results" / "faults.json" if whole else None)
    about = machine()
    with tempfile.TemporaryDirectory(prefix="featcache-bench-") as folder:
        os.environ["FEATCACHE_CACHE"] = folder
        places = {tempfile.gettempdir(): "TMP", "/dev/shm": "TMP", str(REPOSITORY): "REPOSITORY"}
        figures = without_places(run(args.only, args.tiny), places)
    if out:
        write_result(out, __doc__.split("\n")[0], "python benchmarks/bench_faults.py", about, figures)
    return 0 if all(line["holds"] for line in figures["claims"]) else 1


if __name__ == "__main__":
    sys.exit(main())
