"""The summary: answers for whoever reads no further, and what to do next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..advice import Advice
from ..features import FeatureSet
from ..reporting.document import Block, Card, Cards, Points, Section, Text
from ..reporting.escaping import short
from ..reporting.result import SMALLER_IS_BETTER, Result
from . import advised
from .confusion import class_scores, confused_pairs
from .contest import gained, most_shots, percent
from .describing import class_counts
from .held import HeldOut

__all__ = ["Known", "best_row", "next_steps", "section"]


#: What to call one finding of a kind, and several.
_FOUND = {
    "exact duplicate": ("copy", "copies"),
    "near duplicate": ("near copy", "near copies"),
    "group straddles": ("group on both sides", "groups on both sides"),
    "label suspect": ("label to look at", "labels to look at"),
    "outlier": ("outlier", "outliers"),
    "constant": ("blank image", "blank images"),
}


@dataclass(frozen=True)
class Known:
    """What the other sections found; None or empty where they were left out."""

    data: FeatureSet
    result: Result | None = None
    held: HeldOut | None = None
    found: Sequence[Mapping[str, Any]] | None = None
    forecasts: Sequence[Any] = ()
    advice: Advice | None = None
    pictures: bool = True


def best_row(result: Result) -> dict[str, Any]:
    """Return the best row among those with the most training images."""
    return most_shots(result)[0]


def section(known: Known) -> Section:
    """Return the first section."""
    cards = [*_best(known), *_labels(known), *_train(known), *_mixed(known), *_trust(known), *_found(known)]
    steps = next_steps(known)
    blocks: list[Block] = [Cards(tuple(cards))]
    if steps:
        blocks += [Text("What to do next:"), Points(tuple(steps))]
    data = {"cards": [{"question": c.question, "answer": c.answer, "detail": c.detail} for c in cards], "next": steps}
    return Section("summary", "In short", tuple(blocks), data)


def _best(known: Known) -> list[Card]:
    if known.result is None:
        return []
    best, codes = best_row(known.result), {row["dataset"] for row in known.result.rows}
    low, high = (best["mean"] if bound is None else bound for bound in best["ci95"] or (None, None))
    name = f"{short(best['head'], 24)}: {percent(best['mean'], best['metric'])}"
    on = f" on {short(best['dataset'], 32)}" if len(codes) > 1 else ""
    detail = (
        f"{str(best['metric']).replace('_', ' ')} on images that were held out{on}; 95 % interval "
        f"{percent(low, best['metric'])} to {percent(high, best['metric'])}."
    )
    cards = [Card("Which head?", name, detail)]
    here = (best["dataset"], best["shots"], best["head"])
    own = [c for c in known.result.comparisons if (c["dataset"], c["shots"], c["best"]) == here]
    heads = [(c["other"], c) for c in own if "other_dataset" not in c]
    across = [(f"{c['other']} on {c['other_dataset']}", c) for c in own if "other_dataset" in c]
    for question, others in (("Is it really the best head?", heads), ("And the best codes?", across)):
        equal = [name for name, c in others if not c["distinguishable"]]
        images = next((c["n_images"] for _, c in others if c.get("n_images")), best["n_test"])
        if equal:
            told = f"It cannot be told from {_and(equal)}"
            cards.append(Card(question, told, f"With these {images} test images the differences may be chance."))
        elif others:
            cards.append(Card(question, "Yes, better than the others", "By paired differences on the same images."))
    return cards


def _labels(known: Known) -> list[Card]:
    if known.result is None:
        return []
    best = best_row(known.result)
    for each in known.forecasts:
        if (each.dataset, each.head) == (best["dataset"], best["head"]):
            many = "Doubling them" if each.factor == 2 else f"{each.factor:g} times as many"
            answer = f"{many}: {gained(each)}"
            return [Card("Would more labels help?", answer, f"{short(each.statement(), 240)}")]
    mine = [r for r in known.result.rows if (r["dataset"], r["head"]) == (best["dataset"], best["head"])]
    numbers = sorted(
        (r for r in mine if r["n_train"] < best["n_train"] and r["mean"] is not None), key=lambda r: r["n_train"]
    )
    if not numbers:
        return []
    before, times = numbers[-1], best["n_train"] / max(numbers[-1]["n_train"], 1)
    gain = best["mean"] - before["mean"]
    points = f"{gain:+.3f}" if best["metric"] in SMALLER_IS_BETTER else f"{100 * gain:+.1f} points"
    detail = f"{short(best['head'], 24)}, measured: from {before['n_train']} to {best['n_train']} training images."
    return [Card("Would more labels help?", f"{times:.1f} times as many brought {points}", detail)]


def _train(known: Known) -> list[Card]:
    return [] if known.advice is None else [advised.card(known.advice)]


def _mixed(known: Known) -> list[Card]:
    if known.held is None:
        return []
    pairs = confused_pairs(known.held.evaluation)
    if not pairs:
        return [Card("What is mixed up?", "Nothing", f"All {len(known.held.y)} images that were held out are right.")]
    top, wrong = pairs[0], sum(p["images"] for p in pairs)
    answer = f"{short(top['pair'][0], 24)} and {short(top['pair'][1], 24)}"
    return [
        Card("What is mixed up?", answer, f"{top['images']} of the {wrong} errors among {len(known.held.y)} images.")
    ]


def _trust(known: Known) -> list[Card]:
    if known.held is None or known.held.confidence is None:
        return []
    right, error, mean = known.held.right, known.held.calibration_error or 0.0, known.held.confidence.mean()
    answer = "Nearly" if error <= 0.05 else "No, it is too sure" if mean > right.mean() else "It is too modest"
    detail = f"{100 * mean:.0f} % sure on average, right in {100 * right.mean():.0f} %; calibration error {error:.3f}."
    return [Card("Are its probabilities honest?", answer, detail)]


def _found(known: Known) -> list[Card]:
    if known.found is None:
        return []
    counts: dict[str, int] = {}
    for row in known.found:
        counts[row["kind"]] = counts.get(row["kind"], 0) + 1
    if not counts:
        return [Card("Are the data clean?", "Nothing was found", "What was looked for stands below.")]
    said = ", ".join(f"{n} {_FOUND.get(kind, (kind, kind))[n > 1]}" for kind, n in counts.items())
    return [Card("Are the data clean?", said, "Look at them below before you believe the figures to the last point.")]


def next_steps(known: Known) -> list[str]:
    """Return what the findings suggest, the most useful first."""
    steps = []
    kinds = {str(row["kind"]) for row in known.found or ()}
    if any(kind.endswith("duplicate") for kind in kinds):
        steps.append(
            "Look at the near copies: give those of one object the same group (--group), or remove them; copies in "
            "training and test make figures too good."
        )
    if "label suspect" in kinds:
        steps.append(
            "Look at the labels that seem wrong, correct them in the source, and extract again (only what changed)."
        )
    if known.held is not None and known.held.confidence is not None:
        right = known.held.right
        if (known.held.calibration_error or 0.0) > 0.05:
            steps.append(
                f"If you use the scores, fit with --calibrate: {known.held.head} is off by more than 5 points."
            )
        worst = [
            line
            for line in class_scores(known.held.evaluation)
            if line["recall"] < right.mean() - 0.1 and line["images"]
        ]
        if worst:
            names = _and([f"“{short(line['class'], 24)}”" for line in worst[:3]])
            steps.append(f"Label more images of {names}: fewer of them are found than of the other classes.")
    if known.result is not None and any(not c["distinguishable"] for c in known.result.comparisons):
        steps.append("Among heads that cannot be told apart take the cheapest, or the one whose scores you need.")
    if len(class_counts(known.data)) < 2:
        steps.append("Name two classes or more (one folder per class, or a label column): heads are compared then.")
    if not known.pictures:
        steps.append("Give the images (--images FOLDER, or images=) to see them here; none were given or found.")
    return steps


def _and(names: Sequence[str]) -> str:
    names = [short(name, 24) for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
