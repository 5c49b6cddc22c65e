"""Part `contract`: what each mode and each way to the pixels does to codes, and to the accuracy of heads."""

from typing import Any

from measuring import claim

from extraction.case import Case, note
from extraction.speed import has_bf16

SETS = ("clothing10", "sign_digits", "bccd_cells", "pneumonia_xray")
NODES = {"resnet18": ["--nodes", "layer3"]}
MOST_IMAGES = 600  # below 512 `auto` may find that a trial of faster modes does not pay
POINTS = 0.2


def contract(case: Case, arch: str) -> dict[str, Any]:
    """One network with real weights on sets of real photos; truth is fp32 on reference pixels."""
    lines: list[dict[str, Any]] = []
    same: dict[str, Any] = {}
    for name in SETS[:1] if case.tiny else SETS:
        folder = case.some(name, 20 if case.tiny else min(case.photos, MOST_IMAGES))
        words = [folder, "--arch", arch, "--weights", case.weights(arch), *NODES.get(arch, [])]
        words += [word for k, v in case.sizes.items() for word in (f"--{k}", v)]
        words += ["--modes", "fp32"] if case.tiny or not has_bf16() else []
        words += ["--draws", 2, "--shots", 2] if case.tiny else []
        found = case.script("extraction/child_contract.py", *words, benchmarks=True).answer
        lines += [{"set": name, **line} for line in found["lines"]]
        same[name] = ", ".join(f"{a} = {b}" for a, b in found["same_pixels"].items())
        note(f"{arch}, {name} done")
    summary = _summary(lines)
    return {
        "claims": _claims(arch, lines, summary),
        "how": "10 images a class train a ridge head (alpha by leave-one-out), the rest is the test, the same draws "
        "for all; points: accuracy in this mode minus that of the truth, with the 95 % interval over the draws. "
        "`auto`: the codes of an extraction end to end, stored as it stores them",
        "over the sets": summary,
        "ways that gave the very pixels of another": same,
        "lines": lines,
    }


def _summary(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the mean over the sets of each way."""
    found = []
    for way in dict.fromkeys(line["way"] for line in lines):
        some = [line for line in lines if line["way"] == way]
        points = [line["points"] for line in some]
        half = sum(line["plus_minus"] ** 2 for line in some) ** 0.5 / len(some)
        found.append(
            {
                "way": way,
                "sets": len(some),
                "points_mean": round(sum(points) / len(points), 3),
                "plus_minus": round(half, 3),
                "worst_set": min(points),
                "worst_centred_cosine": min(line["worst_centred_cosine"] for line in some),
            }
        )
    return found


def _claims(arch: str, lines: list[dict[str, Any]], summary: list[dict[str, Any]]) -> list[dict[str, Any]]:
    auto = [line for line in lines if line["way"] == "auto"]
    overall = next(s for s in summary if s["way"] == "auto")
    worst = min(auto, key=lambda line: line["points"])
    cosine = min(line["worst_centred_cosine"] for line in auto)
    measured = f"{worst['points']} ± {worst['plus_minus']} ({worst['set']})"
    mean = f"{overall['points_mean']} ± {overall['plus_minus']}"
    text = f"{arch}: `auto` costs under {POINTS} points of accuracy"
    return [
        claim(f"{text} on average", mean, overall["points_mean"] > -POINTS),
        claim(f"{text} on each set", measured, worst["points"] > -POINTS),
        claim(f"{arch}: `auto`, worst centred cosine at least 0.998 on each set", cosine, cosine >= 0.998),
    ]
