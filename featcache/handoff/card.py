"""The model card of a bundle: Markdown in the usual sections, of what is known and nothing else.

Sections after Mitchell et al. 2019, "Model Cards for Model Reporting" (arXiv 1810.03993).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..reporting.escaping import markdown_text as safe

__all__ = ["card_of"]

_CLASSES_SHOWN = 50


def card_of(manifest: Mapping[str, Any]) -> str:
    """Return the model card of a bundle.

    Parameters
    ----------
    manifest : mapping
        The bundle's manifest; all text in it is escaped, since labels and notes come from anywhere.

    Returns
    -------
    str
        Markdown. What nobody stated is said to be missing; no number is made up.
    """
    title = manifest["target"] or f"{len(manifest['classes'])} classes"
    sections = {
        "What it is": _what(manifest),
        "Intended use": _intended(manifest),
        "Training data": _training(manifest),
        "Evaluation": _evaluation(manifest),
        "Limits": _limits(manifest),
        "Preprocessing": _preprocessing(manifest),
        "Licence": _licence(manifest),
        "How to load": _loading(manifest),
        "Versions": [f"- {safe(name)} {safe(version)}" for name, version in manifest["versions"].items()],
    }
    parts = [f"# Model card: {safe(title)}"]
    parts += [f"## {name}\n\n" + "\n".join(lines) for name, lines in sections.items()]
    return "\n\n".join(parts) + "\n"


def _what(manifest: Mapping[str, Any]) -> list[str]:
    backbone, head = manifest["spec"].get("backbone", {}), manifest["head"]
    network = manifest["kind"] == "network"
    first = "A whole network with weights of its own"
    if not network:
        first = f"A head ({safe(head['name'])}) on a frozen backbone"
    elif begun := manifest["network"].get("begun_from"):
        first += f", begun from {safe(begun)}"
    elif head:
        first += f", begun from a head ({safe(head['name'])})"
    answer = f"the number {safe(manifest['target'])}" if manifest["target"] else _classes(manifest)
    lines = [safe(manifest["description"])] if manifest["description"] else []
    return [
        *lines,
        f"- {first}: {safe(backbone.get('arch', 'unknown architecture'))}, node {safe(manifest['node'])}",
        f"- Answers: {answer}",
        f"- Weights: {safe(manifest['weights'].get('digest', 'unknown'))}, "
        + ("inside" if manifest["weights"].get("included") else "not inside; they are found by this digest"),
    ]


def _classes(manifest: Mapping[str, Any]) -> str:
    names = manifest["classes"]
    several = f", several per image (joined by {safe(manifest['separator'])})" if manifest["separator"] else ""
    more = f", … and {len(names) - _CLASSES_SHOWN} more" if len(names) > _CLASSES_SHOWN else ""
    return f"{len(names)} labels{several}: " + ", ".join(safe(name) for name in names[:_CLASSES_SHOWN]) + more


def _intended(manifest: Mapping[str, Any]) -> list[str]:
    if manifest["intended_use"]:
        return [safe(manifest["intended_use"])]
    return ["Not stated by whoever made this bundle. It knows images like those that it was trained on, and no others."]


def _training(manifest: Mapping[str, Any]) -> list[str]:
    training = manifest["training"]
    counts, rows, digest = training.get("classes"), training.get("rows"), training.get("digest")
    lines = [
        f"- Images: {rows}" if rows else "- Images: number not recorded",
        f"- Digest of their ids (SHA-256): {safe(digest)}" if digest else "- Digest of their ids: not recorded",
    ]
    if not counts:
        return [*lines, "- Images per class: not stated"]
    shown = list(counts.items())[:_CLASSES_SHOWN]
    rest = [f"| … and {len(counts) - len(shown)} more | |"] if len(counts) > len(shown) else []
    return [*lines, "", "| class | images |", "| --- | ---: |", *(f"| {safe(n)} | {c} |" for n, c in shown), *rest]


def _evaluation(manifest: Mapping[str, Any]) -> list[str]:
    head, metrics = manifest["head"], manifest["metrics"]
    names = {"test": "test rows, touched once", "val": "validation rows, which chose settings", "cv": "cross-validated"}
    rows = [
        f"| {safe(head.get('metric', ''))} ({names.get(part, safe(part))}) | {_number(value)} | not given | not given |"
        for part, value in head.get("scores", {}).items()
        if value is not None
    ]
    rows += [
        f"| {safe(name)} | {_number(entry['value'])} | {_interval(entry)} | {safe(entry.get('n', 'not given'))} |"
        for name, entry in metrics.items()
    ]
    if not rows:
        return ["No metric was given."]
    return ["| metric | value | interval | images |", "| --- | ---: | --- | ---: |", *rows]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, float) else safe(value)


def _interval(entry: Mapping[str, Any]) -> str:
    if entry.get("low") is None or entry.get("high") is None:
        return "not given"
    return f"{_number(entry['low'])} to {_number(entry['high'])}"


def _limits(manifest: Mapping[str, Any]) -> list[str]:
    reject, novelty = manifest["thresholds"]["reject"], manifest["thresholds"]["novelty"]
    recipe = manifest["spec"].get("preprocess", {})
    lines = [
        f"- Image size: everything is resized to {safe(_size(recipe.get('resize')))} and cut to "
        f"{safe(_size(recipe.get('crop')))} pixels; what is outside the centre, or smaller than a few of these pixels, "
        "is not seen."
    ]
    if novelty is None:
        lines.append("- Images unlike the training images: not detected; they get one of the known labels, too.")
    else:
        rate = novelty.get("false_alarm_rate")
        note = (
            f" ({rate:g} of images like the training images are called novel, too)" if isinstance(rate, float) else ""
        )
        lines.append(f"- Images unlike the training images: called novel above a score of 0{note}; not all are found.")
    if reject is None:
        lines.append("- Doubtful answers: not marked; no threshold was fitted.")
    else:
        wanted, threshold = reject.get("wanted"), reject.get("threshold")
        lines.append(
            f"- Doubtful answers: accepted from a probability of {_known(threshold)}, for an error rate of "
            f"{_known(wanted)} among accepted ones, on images like the training images."
        )
    calibrated = manifest["temperature"]
    lines.append(
        f"- Probabilities: calibrated (temperature {calibrated:.4g})"
        if calibrated
        else "- Probabilities: not calibrated"
    )
    return [*lines, *(f"- {safe(note)}" for note in manifest["notes"])]


def _known(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "(out of reach)"


def _size(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "their own size" if value is None else str(value)


def _preprocessing(manifest: Mapping[str, Any]) -> list[str]:
    recipe = manifest["spec"].get("preprocess", {})
    return [f"- {safe(name)}: {safe(_size(value))}" for name, value in recipe.items()] or ["Not recorded."]


def _licence(manifest: Mapping[str, Any]) -> list[str]:
    licence = manifest["licence"]
    return [f"- {part}: {safe(licence.get(part) or 'not stated')}" for part in ("weights", "data")]


def _loading(manifest: Mapping[str, Any]) -> list[str]:
    lines = ["```python", "import featcache as fc", 'bundle = fc.load_bundle("BUNDLE")  # sha256= pins its content']
    needs = "" if manifest["weights"].get("included") else ", weights=FILE"
    return [*lines, f'rows = bundle.predict(["image.jpg"]{needs})', "```", "", "Loading runs no code from the bundle."]
