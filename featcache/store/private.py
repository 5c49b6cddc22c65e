"""Private files of arrays: caches that are mapped when they are sound and ignored when they are not.

A file is b"FCINDEX1", the length (uint32) and xxh3-64 (uint64) of a JSON text, the text, zeros to a multiple of 64,
then the arrays, each at a multiple of 64. Nothing in it is trusted beyond its checksums; it holds no pickles, and sizes
are compared with the file's before anything is allocated.
"""

from __future__ import annotations

import contextlib
import json
import math
import mmap
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..files import publish_bytes
from .safely import open_regular, parse_json

__all__ = ["load_private", "save_private"]

_MAGIC = b"FCINDEX1"
_HEADER = struct.Struct("<8sIQ")
_ALIGN = 64
_CHUNK = 1 << 24
_LARGEST_TEXT = 1 << 24
_DTYPES = {f"{order}{kind}{size}" for order in "<|" for kind in "iu" for size in (1, 2, 4, 8)}


def _padded(count: int) -> int:
    return -(-count // _ALIGN) * _ALIGN


def save_private(path: Path, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> bool:
    """Write a private file; failing to is not an error, only slower next time.

    Parameters
    ----------
    path : Path
        Where; its folder is made.
    about : mapping
        JSON values.
    arrays : mapping of str to ndarray
        One-dimensional or two-dimensional, of plain numbers.

    Returns
    -------
    bool
        Whether it was written.
    """
    digest, listed, pieces = xxhash.xxh3_128(), [], []
    for name, array in arrays.items():
        data = np.ascontiguousarray(array)
        piece = data.tobytes().ljust(_padded(data.nbytes), b"\0")
        listed.append({"name": name, "dtype": data.dtype.str, "shape": data.shape})
        digest.update(piece)
        pieces.append(piece)
    text = json.dumps({"about": dict(about), "arrays": listed, "xxh3": digest.hexdigest()}).encode()
    header = _HEADER.pack(_MAGIC, len(text), xxhash.xxh3_64_intdigest(text)) + text
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        publish_bytes(path, b"".join([header.ljust(_padded(len(header)), b"\0"), *pieces]), durable=False)
        return True
    return False


def load_private(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """Map a private file: what `save_private` was given; None when it is absent, damaged or of another kind."""
    try:
        with os.fdopen(open_regular(path), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            magic, length, expected = _HEADER.unpack(file.read(_HEADER.size))
            text = file.read(length) if magic == _MAGIC and length <= min(size, _LARGEST_TEXT) else b""
            if not text or xxhash.xxh3_64_intdigest(text) != expected:
                return None
            header = parse_json(text)
            position = start = _padded(_HEADER.size + length)
            places = []
            for item in header["arrays"]:
                shape = tuple(item["shape"])
                if item["dtype"] not in _DTYPES or len(shape) > 2 or any(type(n) is not int or n < 0 for n in shape):
                    return None
                dtype = np.dtype(item["dtype"])
                places.append((item["name"], dtype, shape, position))
                position += _padded(math.prod(shape) * dtype.itemsize)
            if position != size or _digest(file, start) != header["xxh3"]:
                return None
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        if not isinstance(header["about"], dict) or any(n >= 1 << 48 for _, _, shape, _ in places for n in shape):
            return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, struct.error):
        return None
    return header["about"], {
        name: np.frombuffer(mapped, dtype, math.prod(shape), place).reshape(shape)
        for name, dtype, shape, place in places
    }


def _digest(file: Any, start: int) -> str:
    """Return the xxh3-128 of the rest of a file, read, not mapped: verifying takes no memory."""
    digest = xxhash.xxh3_128()
    file.seek(start)
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
    return digest.hexdigest()
