"""Reading image files and asking for their state, without being held up by what is not a regular file."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

from ..errors import ImageError
from ..images import Payload
from .names import id_of, shown

__all__ = ["FileReader", "FileStat", "Reader", "read_file"]

#: Encoded images above this size are not read into memory: no image below the pixel limit needs it.
MAX_FILE_BYTES = 2**31


class FileStat(NamedTuple):
    """What tells cheaply that a file has not changed.

    Attributes
    ----------
    path : str
        Absolute path, written as ids are (see `featcache.sources.names`).
    size : int
        Bytes.
    mtime_ns, ctime_ns : int
        Times of the last change of content and of metadata, in nanoseconds.
    inode, device : int
        The file's identity.
    """

    path: str
    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int
    device: int


class Reader(Protocol):
    """How an `ImageSource` gets at its images; `i` counts in the order of its ids."""

    def read(self, i: int) -> Payload:
        """Return image `i`; raise OSError or ImageError."""

    def stat(self, i: int) -> FileStat | None:
        """Return the state of the file of image `i`, None where there is no file."""


class FileReader:
    """Images in files.

    Parameters
    ----------
    base : str
        Absolute path of a folder.
    names : sequence of str
        Paths relative to `base`, or absolute, as `os` takes them.
    """

    def __init__(self, base: str, names: Sequence[str]) -> None:
        self.base = base
        self.names = tuple(names)
        self._prefix = os.path.join(base, "")  # noqa: PTH118

    def path(self, i: int) -> str:
        """Return the absolute path of image `i`."""
        name = self.names[i]
        # os.path.join asks the same, three times as slowly; only lists have absolute names.
        return os.path.join(self.base, name) if os.path.isabs(name) else self._prefix + name  # noqa: PTH117, PTH118

    def read(self, i: int) -> bytes:
        """Return the encoded bytes of image `i`."""
        return read_file(self.path(i))

    def stat(self, i: int) -> FileStat | None:
        """Return the state of the file of image `i`, None when it is missing or out of reach."""
        path = self.path(i)
        try:
            found = os.stat(path)  # noqa: PTH116 - 10^5 times
        except OSError:
            return None
        return FileStat(id_of(path), found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino, found.st_dev)


class TakenReader:
    """Some of the images of another reader.

    Parameters
    ----------
    inner : Reader
        Of all images.
    rows : sequence of int
        Which of them, in the order of this one.
    """

    def __init__(self, inner: Reader, rows: Iterable[int]) -> None:
        self.inner, self.rows = inner, tuple(int(row) for row in rows)

    def read(self, i: int) -> Payload:
        """Return image `i`."""
        return self.inner.read(self.rows[i])

    def stat(self, i: int) -> FileStat | None:
        """Return the state of the file of image `i`, None where there is no file."""
        return self.inner.stat(self.rows[i])


def read_file(path: str) -> bytes:
    """Return the bytes of a regular file.

    Parameters
    ----------
    path : str
        Path as `os` takes it.

    Returns
    -------
    bytes

    Raises
    ------
    OSError
        When the file is missing or cannot be read.
    ImageError
        When it is a folder, pipe, socket or device (which might never end), or too large for an image.
    """
    # Without O_NONBLOCK, opening a pipe waits for somebody to write to it.
    handle = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(handle, "rb") as file:  # noqa: PTH123 - a descriptor, not a path
        found = os.fstat(handle)
        if not stat.S_ISREG(found.st_mode):
            raise ImageError(f"{shown(path)}: expected a file, got {_kind(found.st_mode)}; leave it out")
        if found.st_size > MAX_FILE_BYTES:
            raise ImageError(
                f"{shown(path)}: expected an image of at most {MAX_FILE_BYTES} bytes, got {found.st_size}; leave it out"
            )
        return file.read()


def _kind(mode: int) -> str:
    kinds = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}
    return kinds.get(stat.S_IFMT(mode), "something else")
