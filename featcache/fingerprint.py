r"""Identity: the canonical form of a spec, the digest of weights, the key of an image.

The rules are part of the file format and never change (golden pairs are committed in tests/golden_fingerprints.json):

* A spec is a tree of dicts with JSON leaves. Its canonical form is compact JSON with sorted keys, from which every
  field that equals its documented first default (`FIRST_DEFAULTS`) is left out: a field added later with a default that
  means "as before" never voids a store.
* The fingerprint is the SHA-256 of ``featcache-spec-1\n`` + canonical form, as 64 hex digits.
* The key of an encoded image is the SHA-256 of its bytes; decoded pixels live in a namespace of their own.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .errors import SpecError

__all__ = [
    "FIRST_DEFAULTS",
    "canonical",
    "describe_difference",
    "digest_bytes",
    "digest_pixels",
    "digest_tensors",
    "fingerprint",
]

#: Fields that the canonical form leaves out when they hold this value. Entries may be added (with a value that means
#: what was done before the field existed); none may ever be changed or removed.
FIRST_DEFAULTS: dict[str, Any] = {
    "backbone.kwargs": {},
    "backbone.version": None,
    "preprocess.exif": True,
    "preprocess.alpha": "white",
    "preprocess.resampling": "reference",
    "preprocess.decoder": "pillow",
    "preprocess.channels": 3,
    "precision.cosine": 0.998,
}

_PREFIX = b"featcache-spec-1\n"


def canonical(spec: Mapping[str, Any]) -> bytes:
    """Return the canonical form of a spec.

    Parameters
    ----------
    spec : mapping
        Dicts, lists, text, numbers, booleans and None. Tuples count as lists, integral floats stay floats.

    Returns
    -------
    bytes
        UTF-8 JSON, keys sorted, first defaults left out.

    Raises
    ------
    SpecError
        For anything that has no unambiguous JSON form: NaN, objects, keys that are not text.

    Examples
    --------
    >>> canonical({"preprocess": {"crop": 224, "exif": True}})
    b'{"preprocess":{"crop":224}}'
    """
    return json.dumps(
        _plain(spec, ""), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode("utf-8")


def fingerprint(spec: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a spec's canonical form as 64 hex digits."""
    return hashlib.sha256(_PREFIX + canonical(spec)).hexdigest()


def _plain(value: Any, path: str) -> Any:
    if isinstance(value, Mapping):
        out = {}
        for key, item in value.items():
            if not isinstance(key, str):
                raise SpecError(f"spec{path and ' at ' + path}: expected text as a key, got {key!r}")
            where = f"{path}.{key}" if path else key
            plain = _plain(item, where)
            if where in FIRST_DEFAULTS and plain == FIRST_DEFAULTS[where]:
                continue
            out[key] = plain
        return out
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{path}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, (bool, str, int)) or value is None:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise SpecError(
        f"spec at {path or 'the top'}: {type(value).__name__} {value!r} cannot be fingerprinted; give a version string "
        "that names what you use and change it whenever that changes"
    )


def describe_difference(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Name every leaf in which two specs differ.

    Parameters
    ----------
    ours, theirs : mapping
        Two specs, `ours` the one in force (the store's).

    Returns
    -------
    list of str
        ``"preprocess.crop: 224, not 192"`` and so on, sorted; empty when the specs are the same.
    """
    a, b = dict(_leaves(ours, "")), dict(_leaves(theirs, ""))
    lines = []
    for key in sorted(a.keys() | b.keys()):
        old, new = a.get(key, FIRST_DEFAULTS.get(key)), b.get(key, FIRST_DEFAULTS.get(key))
        if old != new:
            lines.append(f"{key}: {_short(old)}, not {_short(new)}")
    return lines


def _leaves(value: Any, path: str) -> Iterable[tuple[str, Any]]:
    if isinstance(value, Mapping) and value and path not in FIRST_DEFAULTS:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, list(value) if isinstance(value, tuple) else value


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:19] + "…" if text.startswith("sha256:") else text


def digest_bytes(data: bytes | memoryview) -> bytes:
    """Return the key of an encoded image: the 32 bytes of its SHA-256."""
    return hashlib.sha256(data).digest()


def digest_pixels(mode: str, shape: Sequence[int], dtype: str, data: bytes | memoryview) -> bytes:
    """Return the key of a decoded image.

    Parameters
    ----------
    mode : str
        Pillow's mode, or "array" for a bare array.
    shape : sequence of int
        Shape of the pixel array.
    dtype : str
        NumPy's name of the dtype, e.g. "uint8".
    data : bytes-like
        The pixels in C order, little-endian.

    Returns
    -------
    bytes
        32 bytes; never equal to the key of an encoded image (a namespace of its own).
    """
    header = json.dumps(["featcache-pixels-1", mode, [int(n) for n in shape], dtype], separators=(",", ":"))
    digest = hashlib.sha256(header.encode("utf-8") + b"\n")
    digest.update(data)
    return digest.digest()


def digest_tensors(tensors: Iterable[tuple[str, str, Sequence[int], bytes | memoryview | np.ndarray]]) -> str:
    """Digest named tensors: names, dtypes, shapes and values, whatever the order they come in.

    Parameters
    ----------
    tensors : iterable of (name, dtype, shape, data)
        `dtype` as torch names it without the prefix ("float32", "bfloat16"); `data` the bytes in C order.

    Returns
    -------
    str
        ``"sha256:"`` and 64 hex digits.
    """
    digest = hashlib.sha256(b"featcache-tensors-1\n")
    for name, dtype, shape, data in sorted(tensors, key=lambda item: item[0]):
        content = np.ascontiguousarray(data).tobytes() if isinstance(data, np.ndarray) else bytes(data)
        header = json.dumps([name, dtype, [int(n) for n in shape], hashlib.sha256(content).hexdigest()])
        digest.update(header.encode("utf-8") + b"\n")
    return "sha256:" + digest.hexdigest()
