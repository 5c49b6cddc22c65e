"""Parts `jobs_*` and `steady_*`: whole processes and steady rates against the rivals, on the same photos."""

from collections.abc import Sequence
from typing import Any

from measuring import claim

from extraction import contestants as field
from extraction.case import Case, cpu_flags

PEERS = {"timm loop": "timm", "embetter": "embetter", "thingsvision": "thingsvision"}
#: Steady rate as a multiple of the tutorial loop's that a two-core CPU with AMX should reach: auto (or pinned), fp32.
TARGETS = {"mobilenet_v2": (4.0, 2.8), "squeezenet1_1": (4.0, 1.8), "resnet18": (5.5, 1.8), "resnet50": (7.0, 1.8)}
LARGE = 5000


def has_bf16() -> bool:
    """Whether an expert would try bfloat16 here: without instructions for it, it is emulated."""
    return bool({"avx512_bf16", "amx_bf16", "bf16"} & set(cpu_flags()))


def networks(case: Case, arch: str, real: bool) -> tuple[list[Any], list[Any]]:
    """Return the words that name a network: for featcache, for the rivals."""
    if not real:
        return ["--backbone", arch, "--weights", "random", "--init-seed", 0], ["--arch", arch]
    weights = case.weights(arch)
    return ["--backbone", arch, "--weights", weights], ["--arch", arch, "--weights", weights]


def loops(case: Case, network: Sequence[Any]) -> list[field.Contestant]:
    """Return the loops that everybody writes."""
    tuned = [field.loop(case, "tuned loop, fp32", "tuned_loop", network, "--mode", "fp32")]
    if has_bf16():
        tuned.append(field.loop(case, "tuned loop, bf16", "tuned_loop", network, "--mode", "bf16"))
    return [field.loop(case, "tutorial loop", "tutorial_loop", network), *tuned]


def peers(case: Case, network: Sequence[Any], repeats: int) -> list[field.Contestant]:
    """Return the libraries, each in its own environment."""
    return [
        field.loop(case, name, f"{package}_loop", network, of=package, repeats=repeats)
        for name, package in PEERS.items()
    ]


# ------------------------------------------------------------------------------------------------ jobs


def jobs(case: Case, n: int) -> dict[str, Any]:
    """One job of n photos, whole processes."""
    own, theirs = networks(case, case.network, real=True)
    n = 10 if case.tiny else n
    folder = case.many(n)
    large = n >= LARGE
    first = [
        field.featcache(case, f"featcache {p}, first use", own, p, cache=f"first-{p}", fresh=True)
        for p in ("auto", "fp32")
    ]
    again = [field.featcache(case, f"featcache {p}", own, p, cache=f"first-{p}") for p in ("auto", "fp32")]
    # A large job is run once, with an empty private cache: whatever has to be built first is counted.
    entries = [*first, *loops(case, theirs)] if large else [*first, *again, *loops(case, theirs)]
    if not large:
        entries += peers(case, theirs, repeats=case.times(3 if n < 1000 else 1))
    found = field.race(case, entries, folder, 1 if large else case.times(3))
    found["lines"] = field.with_ratios(found["lines"])
    if not large:
        scripts = ["tutorial_loop", "tuned_loop", *(f"{package}_loop" for package in PEERS.values())]
        found["worst centred cosine to featcache fp32 (of the tuned loops the last)"] = field.errors(
            case, folder, own, scripts
        )
    return {
        "claims": job_claims(found["lines"], n),
        "images": n,
        **found,
        "tuned settings": field.chosen_settings(),
    }


def job_claims(lines: Sequence[dict[str, Any]], n: int) -> list[dict[str, Any]]:
    """No job is slower than the tuned loop; and who is ahead."""
    rates = {line["who"]: line for line in lines}
    claims = []
    for kind, words in (("images_per_second", "whole process"), ("steady_images_per_second", "steady")):
        for who in (name for name in rates if name.startswith("featcache")):
            if kind.startswith("steady") and "first use" in who and n < LARGE:
                continue  # says the same as the later runs
            # Under fp32 the rivals are those in fp32, whose arithmetic is the same.
            others = [r[kind] for name, r in rates.items() if _rivals(name, who)]
            if others:
                ratio = round(rates[who][kind] / max(others), 2)
                claims.append(claim(f"{n} photos, {words}: {who} at least as fast as every rival", ratio, ratio >= 1))
    return claims


def _rivals(name: str, who: str) -> bool:
    return not name.startswith("featcache") and not ("fp32" in who and name.endswith("bf16"))


# ------------------------------------------------------------------------------------------------ steady


def steady(case: Case, arch: str) -> dict[str, Any]:
    """Steady rates of one network."""
    real = arch in ("mobilenet_v2", "squeezenet1_1")
    own, theirs = networks(case, arch, real)
    low = "auto" if real else "bf16"
    n = 10 if case.tiny else case.photos // (6 if arch == "resnet50" else 2 if arch == "resnet18" else 1)
    entries = [
        field.featcache(case, f"featcache {low}", own, low),
        field.featcache(case, "featcache fp32", own, "fp32"),
        *loops(case, theirs),
    ]
    found = field.race(case, entries, case.many(n), case.times(3))
    found["lines"] = field.with_ratios(found["lines"])
    remark = {} if real else {"weights": "random: they say how fast, and nothing about `auto`"}
    return {
        "claims": steady_claims(arch, low, found["lines"]),
        "images": n,
        "instructions": cpu_flags(),
        "amx": any(flag.startswith("amx") for flag in cpu_flags()),
        **remark,
        **found,
        "tuned settings": field.chosen_settings(),
    }


def steady_claims(arch: str, low: str, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    rates = {line["who"]: line["steady_images_per_second"] for line in lines}
    claims = []
    for precision, target in zip((low, "fp32"), TARGETS[arch], strict=True):
        own = rates.get(f"featcache {precision}")
        if own is None or "tutorial loop" not in rates:
            continue
        ratio = round(own / rates["tutorial loop"], 2)
        text = f"{arch}, {precision}, steady: at least {target} x the tutorial loop (the target for a CPU with AMX)"
        claims.append(claim(text, ratio, ratio >= target))
        others = [r for who, r in rates.items() if who.startswith("tuned") and (precision != "fp32" or "fp32" in who)]
        if others:
            ratio = round(own / max(others), 2)
            claims.append(claim(f"{arch}, {precision}, steady: ahead of the tuned loop", ratio, ratio > 1))
    return claims
