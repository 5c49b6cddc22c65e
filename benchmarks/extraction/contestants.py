"""Who takes part in a race, and the race: interleaved, so that what disturbs one disturbs all."""

import itertools
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import median
from parts import Skip

from extraction.case import Case, Ran, note

TUNE_IMAGES = 96


@dataclass(frozen=True)
class Contestant:
    """A name in the tables, and how to run it on a folder; `repeats` where it has fewer than the others."""

    name: str
    run: Callable[[Path], Ran]
    repeats: int = 99


def race(case: Case, contestants: Sequence[Contestant], folder: Path, repeats: int) -> dict[str, Any]:
    """Return one line per contestant (medians), and who was left out for which reason."""
    runs: dict[str, list[Ran]] = {}
    skipped: dict[str, str] = {}
    for repeat in range(repeats):
        for who in contestants:
            if who.name in skipped or repeat >= who.repeats or not _wanted(case, who.name):
                continue
            try:
                runs.setdefault(who.name, []).append(who.run(folder))
                note(f"{folder.name}, {who.name}: {runs[who.name][-1].seconds:.1f} s")
            except (Skip, RuntimeError) as reason:
                skipped[who.name] = str(reason)
    lines = [_line(name, ran) for name, ran in runs.items() if ran]
    return {"lines": lines, **({"left out": skipped} if skipped else {})}


def _wanted(case: Case, name: str) -> bool:
    return not case.contestants or any(name.startswith(wish) for wish in case.contestants)


def _line(name: str, runs: Sequence[Ran]) -> dict[str, Any]:
    answers = [ran.answer for ran in runs]
    rows = answers[0].get("computed", answers[0].get("images", 0))
    whole = [rows / ran.seconds for ran in runs]
    steady = [a["steady_images_per_second"] for a in answers]
    line: dict[str, Any] = {
        "who": name,
        "images_per_second": median(whole, 2),
        "steady_images_per_second": median(steady, 2),
        "lowest_to_highest": [round(min(whole), 2), round(max(whole), 2)],
        "runs": len(runs),
    }
    remarks = {k: answers[-1][k] for k in ("version", "weights") if answers[-1].get(k)}
    mode = answers[-1].get("precision", {}).get("mode")
    if mode:
        remarks = {"mode": mode, "worst_cosine": answers[-1]["precision"].get("worst_cosine"), **remarks}
        remarks["engine"] = engine_name(answers[-1])
        line["peak_mb"] = round(max(ran.peak_mb for ran in runs))
    return {**line, "remarks": remarks}


def engine_name(report: Mapping[str, Any]) -> str | None:
    """Return what ran the network, of the reports that say so."""
    engine = report.get("engine")
    return str(engine.get("engine")) if isinstance(engine, Mapping) else engine


def with_ratios(lines: list[dict[str, Any]], to: str = "tutorial loop") -> list[dict[str, Any]]:
    """Add each contestant's rates as multiples of one of them."""
    base = next((line for line in lines if line["who"] == to), None)
    for line in lines if base else []:
        assert base is not None
        line["times_tutorial"] = round(line["images_per_second"] / base["images_per_second"], 2)
        line["steady_times_tutorial"] = round(line["steady_images_per_second"] / base["steady_images_per_second"], 2)
    return lines


# ------------------------------------------------------------------------------------------------ who there is


def featcache(
    case: Case, name: str, network: Sequence[Any], precision: str, cache: str = "cache", fresh: bool = False
) -> Contestant:
    """Our own command line; `fresh`: each run has an empty private cache, the first one of the name given."""
    words, runs = [*network, "--precision", precision], itertools.count()

    def run(folder: Path) -> Ran:
        number = next(runs)
        return case.extract(folder, *words, cache=f"{cache}-{number}" if fresh and number else cache)

    return Contestant(name, run)


def loop(case: Case, name: str, script: str, network: Sequence[Any], *more: Any, **options: Any) -> Contestant:
    """A rival's script; `of` names its environment."""
    of, repeats = options.get("of"), options.get("repeats", 99)
    sizes = [word for k, v in case.sizes.items() for word in (f"--{k}", v)]
    workers = ["--workers", 0] if case.tiny else []

    def run(folder: Path) -> Ran:
        out = case.work / f"{script}.h5"
        words = [folder, "--out", out, *network, *sizes, *more, *workers]
        if not case.tiny and script == "tuned_loop":
            words += tuned_settings(case, folder, network, *more)
        return case.script(f"rivals/{script}.py", *words, of=of)

    return Contestant(name, run, repeats)


_SETTINGS: dict[tuple[str, ...], list[Any]] = {}


def tuned_settings(case: Case, folder: Path, network: Sequence[Any], *more: Any) -> list[Any]:
    """Find out, outside any clock, with how many workers and threads and which batches the tuned loop is fastest."""
    key = tuple(map(str, (*network, *more)))
    if key not in _SETTINGS:
        words = [folder, "--out", case.work / "none.h5", *network, *more, "--tune", TUNE_IMAGES]
        found = case.script("rivals/tuned_loop.py", *words)
        best = found.answer
        note(f"tuning took {found.seconds:.1f} s: {best}")
        _SETTINGS[key] = [word for k, v in best.items() for word in (f"--{k.replace('_', '-')}", v)]
    return _SETTINGS[key]


def chosen_settings() -> dict[str, str]:
    """Return the settings that the tuned loops ran with."""
    return {" ".join(Path(k).name for k in key): " ".join(map(str, words)) for key, words in _SETTINGS.items()}


# ------------------------------------------------------------------------------------------------ are they the same


def errors(case: Case, folder: Path, network: Sequence[Any], scripts: Sequence[str]) -> dict[str, Any]:
    """Return the worst centred cosine of what rivals wrote last to featcache's fp32 codes, row by row by name."""
    import h5py

    from featcache import FeatureStore

    store = case.work / "fp32-store"
    try:
        case.extract(folder, *network, "--precision", "fp32", store=store)
    except RuntimeError as reason:
        return {"left out": str(reason)}
    data = FeatureStore.open(store).load()
    own = dict(zip(data.ids.tolist(), np.asarray(data.X, np.float64), strict=True))
    shutil.rmtree(store)
    found: dict[str, Any] = {}
    for script in scripts:
        path = case.work / f"{script}.h5"
        if path.exists():
            with h5py.File(path) as file:
                names, codes = [n.decode() for n in file["names"][:]], file["codes"][:]
            found[script] = cosine(np.stack([own[n] for n in names]), codes) if set(names) <= set(own) else None
    return found


def cosine(exact: np.ndarray, other: np.ndarray) -> float:
    """Return the worst cosine of rows centred by the mean of the exact ones, not rounded up."""
    from featcache.extraction.precision import worst_cosine

    return float(np.floor(worst_cosine(exact, other) * 1e7) / 1e7)
