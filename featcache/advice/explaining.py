"""The reasons of an advice, each a measured number with a command that measures it again; and what is missing."""

from __future__ import annotations

from typing import Any

from .command import Command
from .deciding import HEADROOM, MANY_PER_CLASS, SIMILAR, Found, scenario_of

__all__ = ["notes_of", "reasons_of"]


def reasons_of(found: Found, node: str, command: Command, *, seeds: int, whole: bool) -> list[dict[str, str]]:
    """Return sentences with the measured numbers, and the commands that measure them again.

    `node` is the best one's name in its store; `whole`: no labelled image was kept out of training, so that other
    verbs train on the same ones.
    """
    profile = found.profile
    best, last = profile.rows[profile.best], profile.rows[profile.last]
    low, high = best["ci95"]
    out = [
        {
            "text": f"A head on {best['node']} ({best['by']}) is right on about {best['accuracy']:.1%} of "
            f"{profile.n_images} images left out (95 % interval {low:.1%} to {high:.1%}; the best of several scores, "
            f"so a little too good): more training can win about {found.headroom:.1f} points, at most {found.most:.1f} "
            f"(about {HEADROOM:g} or less are not worth it).",
            "check": command.rank(node, best["by"]),
        },
        {
            "text": f"The smallest class has {found.per_class} images: {scenario_of(found)['labels']} labels (many "
            f"from {MANY_PER_CLASS}).",
            "check": command.info() if whole else command.advise("reasons"),
        },
    ]
    if len(profile.rows) > 1:
        out.append({"text": _depth(found, best, last), "check": command.rank()})
    if found.curve.doubling is not None:
        d, shots = found.curve.doubling, [row["shots"] for row in found.curve.rows]
        options = ("--heads", "ridge", "--shots", ",".join(map(str, shots)), "--seeds", str(seeds))
        out.append(
            {
                "text": f"From {shots[-1]} to {2 * shots[-1]} labelled images per class a head gains about "
                f"{d['points']:.1f} points ({d['low']:.1f} to {d['high']:.1f}): a learning curve up to {shots[-1]}, as "
                "far as a quarter of each class held out allows, extended.",
                "check": command.compare(node, *options) if whole else command.advise("curve"),
            }
        )
    if (s := found.source) is not None:
        out.append(
            {
                "text": f"The source classifier gives its first class {s['confidence']:.0%} on average, its entropy is "
                f"{s['entropy']:.0%} of the largest, {s['classes']:.0f} of its classes are in use, and they carry "
                f"{s['told']:.0%} of the labels' information: under {SIMILAR:.0%} the images are unlike the source's.",
                "check": command.advise("source"),
            }
        )
    return out


def _depth(found: Found, best: dict[str, Any], last: dict[str, Any]) -> str:
    profile = found.profile
    place = f"node {profile.best + 1} of {len(profile.rows)}"
    if profile.best == profile.last:
        return f"Heads are best on the last node, {last['node']} ({place}): its blocks suit these images."
    told = "worse, and not by chance" if profile.early else "but the two cannot be told apart"
    return (
        f"Heads are best on {best['node']} ({place}), explaining {best['explained']:.1%} of the labels' spread; the "
        f"last node, {last['node']}, {last['explained']:.1%}: {told}."
    )


def notes_of(found: Found) -> list[str]:
    """Return what could not be measured, and what would allow it."""
    notes = list(found.profile.notes)
    if len(found.profile.rows) < 2:
        notes.append(
            "one node: where along the network a head is best, and so how near the images are to the source, could not "
            "be measured; extract several, such as featcache extract IMAGES -o STORE --nodes layer2,layer3,penultimate "
            "(featcache backbones NAME --nodes lists them)"
        )
    if found.source is None:
        notes.append(
            "no source logits: what the network's own classifier makes of the images was not measured; extract its "
            "last layer as a node too"
        )
    if found.curve.doubling is None:
        notes.append("too few images per class (or groups that cannot be held out) for a learning curve")
    notes.append("what fine-tuning gains is no measurement on your images: compare it with the head on held-out ones")
    return notes
