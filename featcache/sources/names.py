r"""Ids: text that names an image the same way on every machine, and leads back to its file.

An id is the path of the image relative to its source, with ``/`` between the parts. It is always valid Unicode: a byte
of a file name that is not UTF-8 is written as ``\xNN``, and a backslash in a file name as ``\x5c``, so no two names
share an id and `name_of` leads back. Ids are sorted by their UTF-8 bytes, whatever order the file system gives.
"""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path

from ..errors import SourceError

__all__ = ["id_of", "missing", "name_of", "shown", "sort_key"]

_ESCAPE = re.compile(r"\\x([0-9a-f]{2})")


def id_of(name: str) -> str:
    r"""Return the id of a file name as `os` gives it (undecodable bytes as lone surrogates).

    Parameters
    ----------
    name : str
        A path relative to the source, or an absolute one.

    Returns
    -------
    str
        Valid Unicode with ``/`` between the parts.

    Examples
    --------
    >>> id_of("cats/caf\udce9.jpg")
    'cats/caf\\xe9.jpg'
    """
    if os.sep != "/":
        name = name.replace(os.sep, "/")
    if "\\" in name:
        name = name.replace("\\", "\\x5c")
    if name.isascii():  # nearly all; spares two conversions for each of 10^5 files
        return name
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def name_of(identity: str) -> str:
    r"""Return the file name that `id_of` made this id of.

    Parameters
    ----------
    identity : str
        An id.

    Returns
    -------
    str
        The name as `os` takes it.

    Examples
    --------
    >>> name_of("a\\x5cb.jpg")
    'a\\b.jpg'
    """
    if "\\" in identity:
        raw = _ESCAPE.sub(
            lambda match: chr(int(match[1], 16) | 0xDC00 if match[1] >= "80" else int(match[1], 16)), identity
        )
        # Several escaped bytes may be the parts of what `os` decodes as one character.
        identity = raw.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
    return identity if os.sep == "/" else identity.replace("/", os.sep)


def sort_key(identity: str) -> bytes:
    """Return what ids are sorted by: their UTF-8 bytes."""
    return identity.encode("utf-8")


def shown(path: str | os.PathLike[str]) -> str:
    """Return a path as text that can be printed anywhere, for messages."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def missing(path: str | os.PathLike[str], expected: str) -> SourceError:
    """Return the error for a path at which there is nothing, with the likeliest intended one.

    Parameters
    ----------
    path : path-like
        What was asked for.
    expected : str
        What should have been there, e.g. "a folder of images".

    Returns
    -------
    SourceError
        To be raised by the caller.
    """
    place = Path(os.path.abspath(path))  # noqa: PTH100 - resolve() would follow links
    if os.path.lexists(place):
        got = "a broken link" if not place.exists() else "a file"
        return SourceError(f"{shown(path)}: expected {expected}, got {got}; correct the path")
    parent = next(folder for folder in place.parents if folder.is_dir())
    wanted = place.relative_to(parent).parts[0]
    try:
        siblings = os.listdir(parent)  # noqa: PTH208 - names only
    except OSError:
        siblings = []
    close = difflib.get_close_matches(wanted, siblings, n=1)
    hint = f"did you mean {shown(parent / close[0])!r}?" if close else f"{shown(parent)!r} has no {shown(wanted)!r}"
    return SourceError(f"{shown(path)}: expected {expected}, got nothing at that path; {hint}")
