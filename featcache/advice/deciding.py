"""From measurements to one of four recommendations: few thresholds, each named and justified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .measuring import Curve, Profile

__all__ = ["SETTINGS", "Found", "Option", "choose", "options_of", "scenario_of"]

#: Points of accuracy: where a head misses no more, training the network cannot win more than the measurement's noise.
HEADROOM = 2.0
#: Images per class from which labels are "many": in the benchmark's part "advise" fine-tuning lost to a head on
#: product photos at 10 per class, and won at 40.
MANY_PER_CLASS = 30
#: Images per class from which few labels of unlike images are worth training the last blocks: the least that was tried.
SOME_PER_CLASS = 10
#: Share of the labels' information that the source's classes carry, from which images are like the source's: in the
#: benchmark product photos lie above, X-rays, cells and hands (with 20 images per class) below.
SIMILAR = 0.25
#: Images from which random weights are worth a thought. K. He, R. Girshick, P. Dollár, "Rethinking ImageNet
#: pre-training", ICCV 2019: with 10,000 labelled images of COCO training from scratch catches up, in several times the
#: steps; below it falls behind.
FROM_SCRATCH = 10_000
#: Share of the labels' spread under which frozen codes say next to nothing about them.
NOTHING = 0.1
#: Passes over the images that fine-tuning is reckoned with; a backward pass costs two forward passes.
EPOCHS, BACKWARD = 30, 2

_LAST, _HEAD = "the last node", "the best head"

SETTINGS = {
    "headroom_points": HEADROOM,
    "many_per_class": MANY_PER_CLASS,
    "some_per_class": SOME_PER_CLASS,
    "similar_told": SIMILAR,
    "from_scratch_images": FROM_SCRATCH,
    "nothing_explained": NOTHING,
    "epochs": EPOCHS,
}


@dataclass(frozen=True)
class Found:
    """All that was measured."""

    profile: Profile
    curve: Curve
    source: dict[str, float] | None
    n_images: int
    per_class: int  # of the smallest class

    @property
    def headroom(self) -> float:
        """Points of accuracy that the best head misses, about: the best of several is somewhat better by chance."""
        return 100.0 * (1.0 - self.profile.rows[self.profile.best]["accuracy"])

    @property
    def most(self) -> float:
        """Points that it misses at most, by the interval of its accuracy: more cannot be won."""
        return 100.0 * (1.0 - self.profile.rows[self.profile.best]["ci95"][0])


@dataclass(frozen=True)
class Option:
    """One of the four, with what it may bring and cost."""

    recommendation: str
    node: str
    k: int | None
    gain: dict[str, Any]
    cost: dict[str, Any]


def scenario_of(found: Found) -> dict[str, str]:
    """Return which of the four classic scenarios this is."""
    labels = "many" if found.per_class >= MANY_PER_CLASS else "few"
    if found.profile.early:
        return {"labels": labels, "domain": "dissimilar"}
    if found.source is None:  # that late nodes do well is needed for similar images, and not enough
        return {"labels": labels, "domain": "unclear"}
    return {"labels": labels, "domain": "similar" if found.source["told"] >= SIMILAR else "dissimilar"}


def choose(found: Found) -> str:
    """Return the recommendation."""
    scenario, best = scenario_of(found), found.profile.rows[found.profile.best]
    if found.n_images >= FROM_SCRATCH and best["explained"] < NOTHING:
        return "from scratch"
    several, unlike = len(found.profile.rows) > 1, scenario["domain"] == "dissimilar"
    if found.headroom <= HEADROOM:
        return "head"
    if scenario["labels"] == "few":
        return "last blocks" if unlike and several and found.per_class >= SOME_PER_CLASS else "head"
    # One node cannot say what the blocks below it are worth; the whole network needs no cut.
    return "last blocks" if several and not unlike else "all"


def options_of(found: Found, images_per_second: float | None) -> dict[str, Option]:
    """Return all four."""
    rows, best, last = found.profile.rows, found.profile.best, found.profile.last
    cut = min(best, last - 1) if last else 0
    above = last - cut
    share = above / (last + 1)  # of the stored nodes, for want of the blocks' own cost
    nodes = {
        "head": (rows[best]["node"], None, 0.0),
        "last blocks": (rows[cut]["node"], above, share),
        "all": ("", None, 1.0),
        "from scratch": ("", None, 1.0),
    }
    return {
        name: Option(name, node, k, _gain(name, found), _cost(name, found, trained, images_per_second))
        for name, (node, k, trained) in nodes.items()
        if not (name == "last blocks" and last == 0)
    }


def _gain(name: str, found: Found) -> dict[str, Any]:
    if name == "head":
        best, difference = found.profile.rows[found.profile.best]["node"], found.profile.difference
        if difference is None:
            text = "none over a head on the last node, which is this one"
            return {"points": 0.0, "over": _LAST, "low": 0.0, "high": 0.0, "basis": "measured", "text": text}
        text = "{points:+.1f} points over a head on the last node (95 % interval {low:+.1f} to {high:+.1f}, measured)"
        return {**difference, "over": _LAST, "basis": "measured", "text": f"{best}: " + text.format(**difference)}
    scenario = scenario_of(found)
    seen = _SEEN.get((name, scenario["labels"], scenario["domain"]))
    most = found.most
    if seen is None:
        text = f"unknown, at most the {most:.1f} points that a head may miss (95 %); fine-tune once and compare"
        return {"points": None, "over": _HEAD, "low": None, "high": most, "basis": "unknown", "text": text}
    points, low, high = (min(value, most) for value in seen)
    saw = (
        f"{seen[0]:+.1f} on one small set" if seen[1] == seen[2] else f"{seen[1]:+.1f} to {seen[2]:+.1f} on small sets"
    )
    text = (
        f"perhaps {points:+.1f} points over the best head, a rule of thumb: our benchmark saw {saw} in this scenario; "
        f"at most the {most:.1f} points that a head may miss (95 %)"
    )
    return {"points": points, "over": _HEAD, "low": low, "high": high, "basis": "rule of thumb", "text": text}


def _cost(name: str, found: Found, trained: float, images_per_second: float | None) -> dict[str, Any]:
    """Seconds and passes; a pass is the work of one extraction of these images."""
    if name == "head":
        fit = float(found.profile.rows[found.profile.best]["seconds"])
        return {"seconds": fit, "passes": 0.0, "text": f"{fit:.1f} s to score this node; no image is read again"}
    epochs = EPOCHS * (3 if name == "from scratch" else 1)
    passes = epochs * trained * (1 + BACKWARD) + (1.0 if trained < 1 else 0.0)
    seconds = None if images_per_second is None else passes * found.n_images / images_per_second
    text = f"about {passes:.0f} extractions of these images ({epochs} epochs, a backward pass as two forward ones)"
    if seconds is None:
        return {"seconds": None, "passes": passes, "text": f"{text}; give images_per_second for seconds"}
    return {"seconds": seconds, "passes": passes, "text": f"{text}: {seconds:.0f} s at {images_per_second:g} images/s"}


#: (recommendation, labels, domain) → points over the best head in the benchmark's part "advise": mean, least, most.
_SEEN: dict[tuple[str, str, str], tuple[float, float, float]] = {
    ("all", "few", "dissimilar"): (7.5, 0.0, 15.0),
    ("all", "few", "similar"): (-1.4, -1.4, -1.4),
    ("all", "many", "dissimilar"): (4.9, 0.7, 9.2),
    ("all", "many", "similar"): (2.4, 2.4, 2.4),
    ("last blocks", "few", "dissimilar"): (5.6, -1.4, 12.6),
    ("last blocks", "few", "similar"): (-6.4, -6.4, -6.4),
    ("last blocks", "many", "dissimilar"): (4.5, 2.1, 7.0),
    ("last blocks", "many", "similar"): (1.0, 1.0, 1.0),
}
