"""Reading what may come from a stranger: regular files only, never through a link, and JSON that cannot fill memory."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import StoreError

__all__ = ["open_regular", "parse_json", "read_at", "read_small", "require_permission", "with_descriptors"]

#: A JSON text larger than this is none of ours; nor is one of more brackets or commas. A bracket costs 64 bytes of
#: memory and more, so that a text of brackets alone would grow thirtyfold.
_LARGEST_TEXT = 1 << 24
_MOST_BRACKETS = 1 << 17
_MOST_ITEMS = 1 << 20
_T = TypeVar("_T")


def with_descriptors(action: Callable[[], _T]) -> _T:
    """Open or map a file. Each costs a descriptor, so where they run out, take as many as we may have."""
    try:
        return action()
    except OSError as error:
        if error.errno != errno.EMFILE or not _allow_more_files():
            raise
        return action()


def _allow_more_files() -> bool:
    try:
        import resource
    except ImportError:  # Windows: no such limit on maps
        return False
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == hard:
        return False
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0] > soft


def open_regular(path: Path) -> int:
    """Open a file for reading, never through a link and never a pipe or device, which might not end."""
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    descriptor = with_descriptors(lambda: os.open(path, flags))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def read_at(descriptor: int, count: int, offset: int) -> bytes:
    """Read `count` bytes at `offset`, or as many as there are."""
    if not hasattr(os, "pread"):  # Windows
        os.lseek(descriptor, offset, os.SEEK_SET)
        return os.read(descriptor, count)
    data = os.pread(descriptor, count, offset)
    while 0 < len(data) < count:
        more = os.pread(descriptor, count - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def read_small(path: Path, largest: int = _LARGEST_TEXT) -> bytes:
    """Read a whole small file.

    Raises
    ------
    OSError
        When it is not there, or no regular file.
    ValueError
        When it is larger than `largest`.
    """
    descriptor = open_regular(path)
    try:
        if os.fstat(descriptor).st_size > largest:
            raise ValueError("too large")
        return read_at(descriptor, largest, 0)
    finally:
        os.close(descriptor)


def require_permission(path: Path) -> None:
    """Refuse to give up a file that may be sound, and that we only may not read: StoreError."""
    try:
        os.close(open_regular(path))
    except PermissionError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}; look at its permissions, then repair") from error
    except OSError:
        return


def parse_json(text: bytes) -> Any:
    """Parse a JSON text that may come from anywhere; NaN and infinity, which JSON does not have, become None.

    Raises
    ------
    ValueError, RecursionError
        When it is no JSON, or such that its values would take a multiple of its size in memory.
    """
    if len(text) > _LARGEST_TEXT or text.count(b"[") + text.count(b"{") > _MOST_BRACKETS:
        raise ValueError("a JSON text that is too large")
    if text.count(b",") > _MOST_ITEMS:
        raise ValueError("a JSON text of too many values")
    return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)


def _finite(text: str) -> float | None:
    value = float(text)
    return value if math.isfinite(value) else None
