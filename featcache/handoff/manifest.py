"""The manifest of a bundle: what it is, in JSON, with the digest of every member."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np

from ..backbone.arguments import version_of
from ..errors import HandoffError
from ..features import FeatureSet
from ..heads import FittedHead
from .answering import Meaning
from .archive import MANIFEST

__all__ = [
    "FORMAT",
    "LIMIT",
    "counts_of",
    "facts_of_head",
    "facts_of_network",
    "licence_of",
    "metrics_of",
    "read_manifest",
    "seal",
    "sizes_of",
    "training_of",
]

FORMAT = 1
#: Bytes of a manifest, at most: 10^5 classes take a few million.
LIMIT = 2**24
_PACKAGES = ("featcache", "torch", "torchvision", "scikit-learn", "numpy")
_AGAIN = "it is damaged or was changed, get the bundle again"
#: Fields that every manifest has, and the types that they may have.
_FIELDS: dict[str, tuple[type, ...]] = {
    "format": (int,), "kind": (str,), "classes": (list,), "separator": (str,), "target": (str,), "spec": (dict,),
    "node": (str,), "locator": (dict,), "weights": (dict,), "head": (dict,), "network": (dict, type(None)),
    "temperature": (float, int, type(None)), "thresholds": (dict,), "training": (dict,), "metrics": (dict,),
    "licence": (dict,), "notes": (list,), "versions": (dict,), "members": (dict,), "sha256": (str,),
    "description": (str,), "intended_use": (str,),
}  # fmt: skip


def _finite(value: Any) -> Any:
    """Return JSON types; numbers that JSON does not have become None."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, np.ndarray):
        return _finite(value.tolist())
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def facts_of_head(head: FittedHead) -> dict[str, Any]:
    """Return what a manifest says of a head; compared with the head again when a bundle is read."""
    detector = head.detector
    novelty = None
    if detector is not None:
        rate = getattr(detector, "false_alarm_rate", None)
        novelty = {"method": type(detector).__name__, "score": 0.0, "false_alarm_rate": rate}
    facts = _finite(
        {
            "classes": [str(c) for c in head.classes_],
            "separator": head.separator,
            "target": head.target,
            "spec": head.spec,
            "node": head.node,
            "temperature": head.temperature,
            "thresholds": {"reject": head.rejection, "novelty": novelty},
            "notes": list(head.notes),
            "head": {"name": head.head, "params": head.params, "scores": head.scores, "metric": head.metric},
        }
    )
    return _plain(facts)


def facts_of_network(head: FittedHead | None, meaning: Meaning, spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a manifest says of a network, perhaps made of a head: the head's guards do not hold for it."""
    started = {"name": head.head, "params": _plain(_finite(head.params))} if head else {}
    return {
        "classes": list(meaning.classes),
        "separator": meaning.separator,
        "target": meaning.target,
        "spec": _finite(spec),
        "node": ",".join(spec["backbone"]["nodes"]),
        "temperature": None,
        "thresholds": {"reject": None, "novelty": None},
        "notes": [],
        "head": started,
    }


def _plain(value: Any) -> Any:
    """Return what is no JSON type by its class alone: its text differs with print options and versions."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value if isinstance(value, (str, bool, int, float, type(None))) else type(value).__name__


def training_of(given: Mapping[str, Any] | None, head: FittedHead | None) -> dict[str, Any]:
    """Return what a network was trained on, as given, or as its head says."""
    if given is None:
        return {"rows": head.n_train if head else 0, "digest": head.training_digest if head else ""}
    rows, digest = (given.get("rows", 0), given.get("digest", "")) if isinstance(given, Mapping) else (None, None)
    known = type(rows) is int and rows >= 0 and isinstance(digest, str)
    if not known or set(given) - {"rows", "digest"}:
        raise HandoffError(
            f"training: expected {{'rows': number of images, 'digest': SHA-256 of their ids}}, got {given!r:.200}; "
            "correct it"
        )
    return {"rows": rows, "digest": digest}


def counts_of(given: FeatureSet | Mapping[str, int] | None) -> dict[str, int] | None:
    """Return images per class, None where nobody said."""
    if given is None:
        return None
    if isinstance(given, FeatureSet):
        if given.y is None:
            return None
        labels, counts = np.unique(given.y.astype(str), return_counts=True)
        return dict(zip(labels.tolist(), counts.tolist(), strict=True))
    if not isinstance(given, Mapping) or not all(isinstance(n, int) and n >= 0 for n in given.values()):
        raise HandoffError(
            "training_data: expected a FeatureSet, or a mapping of class to number of images; correct it"
        )
    return {str(label): int(count) for label, count in given.items()}


def metrics_of(given: Mapping[str, Any] | None) -> dict[str, dict[str, Any]]:
    """Return metric → value, low, high, n and so on; a bare number is a value, three are value, low and high."""
    found: dict[str, dict[str, Any]] = {}
    for name, entry in (given or {}).items():
        if isinstance(entry, (list, tuple)) and len(entry) == 3:
            entry = dict(zip(("value", "low", "high"), entry, strict=True))
        entry = dict(entry) if isinstance(entry, Mapping) else {"value": entry}
        value = entry.get("value")
        numbers = [entry[key] for key in ("value", "low", "high") if entry.get(key) is not None]
        if not all(isinstance(n, (Real, np.generic)) and math.isfinite(float(n)) for n in numbers) or value is None:
            raise HandoffError(
                f"metrics[{name!r}]: expected a number, (value, low, high), or a mapping with 'value', got {entry!r}; "
                "leave out what was not measured"
            )
        found[str(name)] = {str(key): _finite(item) for key, item in entry.items()}
    return found


def licence_of(given: str | Mapping[str, str] | None) -> dict[str, str | None]:
    """Return the licence notes of weights and data, None where nobody said."""
    notes = {"weights": given} if isinstance(given, str) else dict(given or {})
    if unknown := sorted(set(notes) - {"weights", "data"}):
        raise HandoffError(f"licence: expected 'weights' and 'data', got {unknown[0]!r}; correct it")
    return {part: notes.get(part) for part in ("weights", "data")}


def seal(facts: Mapping[str, Any], members: Mapping[str, bytes]) -> bytes:
    """Return a manifest's bytes: facts, versions, digests of the members, and a digest of all that."""
    body = {
        **_finite(facts),
        "format": FORMAT,
        "versions": {name: version_of(name) for name in _PACKAGES},
        "members": {n: {"sha256": hashlib.sha256(c).hexdigest(), "bytes": len(c)} for n, c in members.items()},
    }
    try:
        return _dump({**body, "sha256": hashlib.sha256(_dump(body)).hexdigest()})
    except (TypeError, ValueError) as error:
        raise HandoffError(f"bundle: expected facts of JSON types, got others ({error}); correct metrics") from error


def _dump(body: Mapping[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False)
    return text.encode() + b"\n"


def read_manifest(path: Any, members: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the manifest of a bundle whose members are exactly those that it names, to the last bit.

    Raises
    ------
    HandoffError
        For a manifest that is none, is newer than this featcache or does not fit itself; for a member that is missing,
        was added, or has another content.
    """
    data = members[MANIFEST]
    try:
        manifest = json.loads(data)
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        number = manifest["format"]
        intact = manifest["sha256"] == hashlib.sha256(_dump(body)).hexdigest() and _dump(manifest) == data
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise HandoffError(
            f"{path}: {MANIFEST}: expected the manifest of a bundle, got something else; {_AGAIN}"
        ) from error
    if type(number) is int and number > FORMAT:
        raise HandoffError(f"{path}: expected bundle format {FORMAT} or older, got {number}; install a newer featcache")
    if not intact or type(number) is not int or number < 1:
        raise HandoffError(f"{path}: {MANIFEST}: its checksum does not fit its contents; {_AGAIN}")
    for name, types in _FIELDS.items():
        if not isinstance(manifest.get(name, ...), types):
            raise HandoffError(
                f"{path}: {MANIFEST}: expected {name} as {types[0].__name__}, got something else; {_AGAIN}"
            )
    _check_members(path, manifest["members"], members)
    return manifest


def sizes_of(data: bytes) -> dict[str, int]:
    """Return how large each member is to be, by a manifest that nobody has checked yet; empty where it says nothing."""
    try:
        listed = json.loads(data)["members"]
        sizes = {str(name): entry["bytes"] for name, entry in listed.items()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return {}
    return sizes if all(type(size) is int for size in sizes.values()) else {}


def _check_members(path: Any, listed: dict[str, Any], members: Mapping[str, bytes]) -> None:
    for name in sorted(set(listed) | set(members) - {MANIFEST}):
        if name not in members:
            raise HandoffError(f"{path}: {ascii(name)[:100]} is missing; {_AGAIN}")
        if name not in listed:
            raise HandoffError(f"{path}: {name} was added: the manifest does not name it; {_AGAIN}")
        entry = listed[name]
        digest = entry.get("sha256") if isinstance(entry, dict) else None
        if digest != hashlib.sha256(members[name]).hexdigest():
            raise HandoffError(f"{path}: {name}: expected SHA-256 {ascii(digest)[:70]}, got another; {_AGAIN}")
