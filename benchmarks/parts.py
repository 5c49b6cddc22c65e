"""Benchmarks of several parts: choose some, run each, keep the figures of the others."""

import argparse
import datetime
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from measuring import REPOSITORY, data_folder, load_average, machine, without_places, write_result


class Skip(Exception):
    """Something that cannot be measured here, and why."""


@dataclass(frozen=True)
class Part:
    """One question of the benchmark: how it is answered, and how many minutes that takes on two cores."""

    run: Callable[[Any], dict[str, Any]]
    minutes: float


def commit() -> str:
    """Return the commit that was measured, marked where the package differs from it."""
    words = ["git", "-C", str(REPOSITORY)]
    try:
        head = subprocess.run([*words, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True)
        dirty = subprocess.run([*words, "status", "--porcelain", "featcache"], capture_output=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + (" with changes" if dirty.strip() else "")


def measure(part: Part, case: Any) -> dict[str, Any]:
    """Run one part; what hinders it is its result."""
    about = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(),
        "load at start": load_average(),
    }
    start = time.perf_counter()
    try:
        figures = part.run(case)
    except Skip as reason:
        figures = {"left out": str(reason)}
    except RuntimeError as error:
        if case.tiny:
            raise
        figures = {"failed": str(error)}
    return {"about": {**about, "minutes": round((time.perf_counter() - start) / 60, 1)}, **figures}


def chosen(parts: Mapping[str, Part], only: str | None, tiny: tuple[str, ...] | None = None) -> list[str]:
    """Return the parts that were asked for, in their order; without a wish all, or those of a trial run."""
    if only is None:
        return [name for name in parts if tiny is None or name in tiny]
    wishes = [wish.strip() for wish in only.split(",")]
    unknown = [wish for wish in wishes if not any(name.startswith(wish) for name in parts)]
    if unknown:
        raise SystemExit(f"--only: expected parts such as {', '.join(parts)}, got {unknown[0]}")
    return [name for name in parts if any(name.startswith(wish) for wish in wishes)]


def known_figures(path: Path | None) -> dict[str, Any]:
    """Return the figures of an earlier run, by part, with the claims of each inside."""
    if path is None or not path.is_file():
        return {}
    figures = json.loads(path.read_text(encoding="utf-8"))["figures"]
    claims = figures.pop("claims", [])
    for name, part in figures.items():
        part["claims"] = [{k: v for k, v in c.items() if k != "part"} for c in claims if c["part"] == name]
    return figures


def assembled(order: Mapping[str, Part], parts: dict[str, Any]) -> dict[str, Any]:
    """Return the figures as they are written: the claims of all parts first."""
    parts = {name: parts[name] for name in order if name in parts}
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


@dataclass(frozen=True)
class Writing:
    """Where the figures go, and what stands above them; `places` are folders of this machine and what to call them."""

    out: Path | None
    question: str
    command: str
    about: dict[str, Any]
    places: Mapping[str, str]


def run_parts(
    parts: Mapping[str, Part], names: list[str], make_case: Callable[[Path, dict[str, Any]], Any], writing: Writing
) -> int:
    """Run the named parts, each in a folder of its own, and write the figures after each; return the exit status."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends what was started, removes what was made
    figures, claims, tiny = known_figures(writing.out), [], False
    for name in names:
        with tempfile.TemporaryDirectory(prefix="featcache-bench-") as folder:
            work = Path(folder).resolve()
            os.environ["FEATCACHE_CACHE"] = str(work / "cache")
            case = make_case(work, figures)
            tiny = case.tiny
            found = measure(parts[name], case)
        places = {str(work): "TMP", str(REPOSITORY): "REPOSITORY", **writing.places}
        figures[name] = without_places(found, places)
        claims += found.get("claims", [])
        report(name, figures[name], tiny)
        if writing.out:  # after each part: a run that is stopped keeps what it has
            write_result(writing.out, writing.question, writing.command, writing.about, assembled(parts, figures))
    failed = any("failed" in figures[name] for name in names)
    return 0 if tiny or (not failed and all(line["holds"] for line in claims)) else 1


def bench_on_codes(name: str, doc: str, parts: Mapping[str, Part], case: Callable[..., Any], argv: Any = None) -> int:
    """Be the program of a benchmark on cached codes: `case(work, data, stores, repeats, tiny)` makes what parts get."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="PART[,PART]")
    parser.add_argument("--list", action="store_true", help="show the parts and their minutes")
    parser.add_argument("--data", type=Path, help="folder with weights/, datasets/")
    parser.add_argument("--stores", type=Path, help="where codes are kept from run to run")
    parser.add_argument("--repeats", type=int, help="instead of each part's own number")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--tiny", action="store_true")
    args = parser.parse_args(argv)
    if args.list:
        print("\n".join(f"{part:24}{about.minutes:4g} min" for part, about in parts.items()))
        return 0
    data = None if args.tiny else data_folder(args.data)
    if data is None and not args.tiny:
        parser.error("no real data; give --data, or --tiny for a trial run on generated codes")
    out = args.out or (None if args.tiny else REPOSITORY / "benchmarks" / "results" / f"{name}.json")
    with tempfile.TemporaryDirectory(prefix="featcache-codes-") as folder:
        stores = args.stores or Path(folder)
        places = {str(stores): "STORES", **({str(data): "DATA"} if data else {})}
        writing = Writing(out, doc.split("\n")[0], f"python benchmarks/bench_{name}.py", machine(), places)

        def make_case(work: Path, known: dict[str, Any]) -> Any:
            return case(work, data, stores, args.repeats, args.tiny)

        return run_parts(parts, chosen(parts, args.only), make_case, writing)
