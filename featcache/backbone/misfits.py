"""Weights that do not fit an architecture: what is missing, what they look like, and what to do."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import WeightsError
from . import cut, weights, zoo

__all__ = ["check_upstream"]

_NAMES_SHOWN = 4  # in a message


def check_upstream(
    matched: weights.Matched,
    traced: cut.Traced,
    upstream: Sequence[str],
    arch: str,
    label: str,
    nodes: Sequence[str],
    seed: int | None,
) -> None:
    """Refuse weights that lack tensors which the nodes need, unless a seed was given to fill them."""
    report = matched.report
    lacking = [name for name in upstream if name in report.unavailable]
    foreign = not matched.tensors
    if not lacking and not foreign:
        return
    if foreign:
        names = ", ".join(sorted(matched.given)[:_NAMES_SHOWN]) or "nothing"
        raise WeightsError(
            f"weights {label}: none of its {len(matched.given)} tensors ({names}, …) fits {arch}, which expects "
            f"{', '.join(upstream[:2])}, …; {_advice(matched, arch)}"
        )
    if seed is not None:
        return
    usable = traced.deepest_usable(report.unavailable)
    where = (
        f"the deepest usable node is {traced.friendly(usable)!r}, pass nodes={traced.friendly(usable)!r}"
        if usable
        else ""
    )
    raise WeightsError(
        f"weights {label} for {arch} at node {','.join(nodes)}: {len(lacking)} of the {len(upstream)} tensors upstream "
        f"do not fit ({_describe(lacking, report)}); {where or _advice(matched, arch)}, or init_seed=0 to start them "
        "from random numbers" + ("" if not where else _guessed(matched, arch))
    )


def _describe(lacking: Sequence[str], report: weights.LoadReport) -> str:
    shapes = {name: (expected, got) for name, expected, got in report.mismatched}
    parts = []
    for name in lacking[:_NAMES_SHOWN]:
        expected, got = shapes.get(name, (None, None))
        parts.append(f"{name}: expected {expected}, got {got}" if expected else f"{name} is missing")
    return ", ".join(parts) + (", …" if len(lacking) > _NAMES_SHOWN else "")


def _advice(matched: weights.Matched, arch: str) -> str:
    channels = _stem_channels(matched.report)
    if channels is not None:
        return f"they take {channels} channels, pass preprocess=Preprocess(..., channels={channels})"
    guess = zoo.guess_architecture({k: tuple(v.shape) for k, v in matched.given.items()})
    if guess and guess != arch:
        return f"they look like weights of {guess!r}, pass that as the model"
    return "they seem to be for another architecture, pass the one they were made for"


def _guessed(matched: weights.Matched, arch: str) -> str:
    if len(matched.report.unavailable) * 4 < len(matched.tensors):
        return ""
    guess = zoo.guess_architecture({k: tuple(v.shape) for k, v in matched.given.items()})
    return f" (they look like weights of {guess!r})" if guess and guess != arch else ""


def _stem_channels(report: weights.LoadReport) -> int | None:
    """Return the number of input channels that weights were made for, when only that differs from the architecture."""
    if len(report.mismatched) > 3:  # the stem, and perhaps the classifier's weight and bias
        return None
    for _, expected, got in report.mismatched:
        others_agree = expected[:1] + expected[2:] == got[:1] + got[2:]
        if len(expected) == len(got) == 4 and others_agree and expected[1] in (1, 3):
            return got[1]
    return None
