"""How the figures came about, and what identifies the codes: protocol, versions, fingerprints."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from ..features import FeatureSet
from ..reporting.document import Block, Facts, Points, Section
from ..reporting.escaping import short
from .subjects import digest_of

__all__ = ["section", "spec_facts", "versions"]

_PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "matplotlib", "pillow")


def versions() -> dict[str, str]:
    """Return versions of Python, featcache and what the figures were computed with."""
    from .. import __version__

    found = {"featcache": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            pass
    return found


def spec_facts(spec: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return an extraction spec as pairs of dotted names and values.

    Examples
    --------
    >>> spec_facts({"backbone": {"arch": "resnet18", "version": None}})
    [('backbone.arch', 'resnet18')]
    """
    return [(short(name, 60), short(value, 160)) for name, value in _leaves(spec or {}, "")]


def _leaves(value: Any, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}.{key}" if name else str(key))
    elif value is not None:
        yield name, ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)


def section(sets: Mapping[str, FeatureSet], settings: Mapping[str, Any], notes: tuple[str, ...] = ()) -> Section:
    """Return the section on provenance.

    Parameters
    ----------
    sets : mapping of str to FeatureSet
        All codes of the report, by name.
    settings : mapping
        The protocol, as JSON types.
    notes : tuple of str, default=()
        What was sampled or left out.
    """
    blocks: list[Block] = [Points(notes)] if notes else []
    blocks.append(Facts(tuple((k, short(_said(v), 160)) for k, v in settings.items()), "Protocol"))
    data: dict[str, Any] = {"settings": dict(settings), "versions": versions(), "codes": {}}
    for name, item in sets.items():
        locator = item.locator or {}
        own = {
            "fingerprint": item.fingerprint or "none: these codes were not made by featcache",
            "node": item.node,
            "images, labels, groups and splits (SHA-256)": digest_of(item),
            "rows": str(len(item)),
            # The place of the weights is a path on somebody's machine; their digest says more.
            "weights file (SHA-256)": str(locator.get("sha256") or ""),
        }
        pairs = [(k, v) for k, v in own.items() if v] + spec_facts(item.spec)
        blocks.append(Facts(tuple(pairs), f"Codes: {short(name, 80)}"))
        data["codes"][name] = {**own, "spec": item.spec}
    blocks.append(Facts(tuple(versions().items()), "Versions"))
    return Section("protocol", "Protocol and fingerprints", tuple(blocks), data)


def _said(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {item}" for name, item in value.items())
    return ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
