"""Parts `limit` (how near to what the machine can do) and `forward` (the network alone, against OpenVINO)."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from measuring import claim, index_rows, median
from parts import Skip

from extraction.case import Case, Ran, note, spread
from extraction.contestants import cosine, engine_name
from extraction.speed import has_bf16

AT_LEAST = 0.93
CHUNK = 64


def limit(case: Case) -> dict[str, Any]:
    """How much of 1 / (1/decode + 1/forward) extraction comes to; all on the CPU that the two share."""
    lines, left_out = [], {}
    for arch, weights, precisions in _networks(case):
        for precision in precisions:
            try:
                lines.append(_limit_line(case, arch, weights, precision))
            except RuntimeError as reason:
                left_out[f"{arch}, {precision}"] = str(reason)
    claims = []
    if lines:
        worst = min(line["achieved / limit"] for line in lines)
        text = f"at least {AT_LEAST} of the machine's own limit, the worst of {len(lines)} cases"
        claims.append(claim(text, worst, worst >= AT_LEAST))
    return {"claims": claims, "lines": lines, **({"left out": left_out} if left_out else {})}


def _networks(case: Case) -> list[tuple[str, str, tuple[str, ...]]]:
    if case.tiny:
        return [(case.network, case.weights(case.network), ("fp32",))]
    real = [(arch, case.weights(arch), ("auto", "fp32")) for arch in ("mobilenet_v2", "squeezenet1_1")]
    return [*real, ("resnet18", "random", ("bf16", "fp32") if has_bf16() else ("fp32",))]


def _limit_line(case: Case, arch: str, weights: str, precision: str) -> dict[str, Any]:
    work = case.work / "limit"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    sizes = [word for k, v in case.sizes.items() for word in (f"--{k}", v)]
    n = 10 if case.tiny else 2 * case.photos // (3 if arch == "resnet18" else 1)
    words = [case.many(n), "--work", work, "--arch", arch, "--weights", weights, "--precision", precision, *sizes]
    words += ["--least", 0, "--rounds", 1] if case.tiny else []
    found = case.script("extraction/child_limit.py", *words, benchmarks=True).answer
    shutil.rmtree(work)
    note(f"{arch}, {precision}: {found}")
    bounds = [_bound(found, i) for i in range(len(found["achieved"]))]
    return {
        "network": arch,
        "precision": precision,
        "mode": found["mode"],
        "engine": engine_name(found),
        "decode only, before, between and after": found["decode"],
        "forward only, before, between and after": found["forward"],
        "limits": [round(bound, 1) for bound in bounds],
        "achieved": found["achieved"],
        "achieved / limit": median([rate / bound for rate, bound in zip(found["achieved"], bounds, strict=True)]),
    }


def _bound(found: dict[str, Any], i: int) -> float:
    """Return what an extraction could at most reach, by the measurements just before and after it."""
    decode, forward = (sum(found[name][i : i + 2]) / 2 for name in ("decode", "forward"))
    return 1 / (1 / decode + 1 / forward)


# ------------------------------------------------------------------------------------------------ forward


def forward(case: Case) -> dict[str, Any]:
    """The same chunk of real photos through each way of running the network; codes beside the rates."""
    lines, left_out = [], {}
    for arch in (case.network,) if case.tiny else ("mobilenet_v2", "squeezenet1_1", "resnet50"):
        weights = "random" if arch == "resnet50" else case.weights(arch)
        found, reasons = _forward_lines(case, arch, weights)
        lines += found
        left_out.update(reasons)
    return {
        "claims": [c for arch in dict.fromkeys(line["network"] for line in lines) for c in _claims(arch, lines)],
        "note": "featcache normalises inside its time, the others get normalised images; ResNet-50's weights are "
        "random, so that its errors say nothing about real ones",
        "lines": lines,
        **({"left out": left_out} if left_out else {}),
    }


def _forward_lines(case: Case, arch: str, weights: str) -> tuple[list[dict[str, Any]], dict[str, str]]:
    runs: dict[str, list[Ran]] = {}
    left_out: dict[str, str] = {}
    pixels = _chunk(case)
    entries = _entries(case, arch, weights)
    for _ in range(case.times(2)):
        for name, (script, words, of) in entries.items():
            if name in left_out:
                continue
            out = case.work / f"{name}.npy"
            seconds = 0 if case.tiny else 4
            common = [pixels, "--out", out, "--arch", arch, "--weights", weights, "--seconds", seconds]
            try:
                runs.setdefault(name, []).append(case.script(script, *common, *words, of=of, benchmarks=of is None))
            except (Skip, RuntimeError) as reason:
                left_out[name] = str(reason)
        note(f"{arch}: one round of {len(entries)} done")
    exact = np.load(case.work / "eager fp32.npy")
    lines = []
    for name, ran in runs.items():
        if not ran:
            continue
        rates = [r.answer["images_per_second"] for r in ran]
        codes = np.load(case.work / f"{name}.npy")
        lines.append(
            {
                "network": arch,
                "who": name,
                "images_per_second": median(rates, 1),
                "lowest_to_highest": [min(rates), max(rates)],
                "worst_centred_cosine": cosine(exact[: len(codes)], codes),
                "remarks": {k: v for k, v in ran[-1].answer.items() if k != "images_per_second"},
            }
        )
    return lines, {f"{arch}: {name}": reason for name, reason in left_out.items()}


def _entries(case: Case, arch: str, weights: str) -> dict[str, tuple[str, list[Any], str | None]]:
    from extraction.child_forward import engines

    own = "extraction/child_forward.py"
    # A compiler's package takes longer to build than --tiny may take.
    which = [e for e in engines() if not (case.tiny and e == "compiled")]
    modes = ["fp32", *(["bf16"] if has_bf16() and not case.tiny else [])]
    if weights != "random" and not case.tiny:
        chosen = _auto_mode(case, arch, weights)
        modes += [chosen] if chosen not in modes else []
    found: dict[str, tuple[str, list[Any], str | None]] = {"eager fp32": ("rivals/forward_pass.py", [], None)}
    for mode in modes:
        for engine in which:
            name = f"featcache {mode.partition(':')[0]}{'' if engine == 'auto' else ', ' + engine}"
            found[name] = (own, ["--mode", mode, "--engine", engine], None)
    if has_bf16():
        words = ["--mode", "bf16", "--channels-last"]
        found["autocast bf16, channels_last"] = ("rivals/forward_pass.py", words, None)
    found["eager fp32, channels_last"] = ("rivals/forward_pass.py", ["--channels-last"], None)
    for mode in ("fp32", "bf16"):
        found[f"OpenVINO {mode}"] = ("rivals/openvino_forward.py", ["--mode", mode], "openvino")
    return found


def _auto_mode(case: Case, arch: str, weights: str) -> str:
    """Return the mode that `auto` chooses for these photos."""
    done = case.extract(case.many(case.photos), "--backbone", arch, "--weights", weights, "--precision", "auto")
    return str(done.answer["precision"]["mode"])


def _chunk(case: Case) -> Path:
    """Return the file with the pixels of a few real photos."""
    from featcache import Preprocess

    path = case.work / "chunk.npy"
    if not path.exists():
        folder, recipe = case.folder_of("clothing10"), Preprocess(**case.sizes)
        files = spread([row["file"] for row in index_rows(folder)], 8 if case.tiny else CHUNK)
        np.save(path, np.stack([recipe.pixels((folder / file).read_bytes()) for file in files]))
    return path


def _claims(arch: str, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Level with OpenVINO or ahead, among those of ours whose codes are at least as near to fp32's."""
    here = [line for line in lines if line["network"] == arch]
    claims = []
    for rival in (line for line in here if line["who"].startswith("OpenVINO")):
        error = 1 - rival["worst_centred_cosine"]
        # Errors of rounding are the same error.
        own = [x for x in here if "featcache" in x["who"] and 1 - x["worst_centred_cosine"] <= max(error * 1.1, 1e-5)]
        if own:
            best = max(own, key=lambda line: line["images_per_second"])
            ratio = round(best["images_per_second"] / rival["images_per_second"], 2)
            text = f"{arch}: {best['who']} level with {rival['who']} (0.97 x) or ahead, at no larger error"
            claims.append(claim(text, ratio, ratio >= 0.97))
    return claims
