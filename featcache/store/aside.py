"""Damaged files are set aside, never deleted: into ``damaged/``, whence a person may take them.

As with the trash, a file is linked there, synced, and only then unlinked, so that no crash leaves it in neither place.
"""

from __future__ import annotations

import contextlib
import itertools
import stat
from pathlib import Path

from ..files import DISK, Disk, link_or_rename, make_folder

__all__ = ["FOLDER", "aside_of", "keep_copy", "set_aside"]

FOLDER = "damaged"


def keep_copy(root: Path, path: Path, disk: Disk | None) -> Path:
    """Give a file of the store a second name under ``damaged/``, durably; return it."""
    disk = disk or DISK
    make_folder(root / FOLDER, disk=disk)
    target = _name_for(root, path)
    with contextlib.suppress(FileExistsError):  # after a crash, or another repair was first
        link_or_rename(path, target, disk)
    disk.fsync_folder(root / FOLDER)
    return target


def set_aside(root: Path, path: Path, disk: Disk | None) -> str:
    """Move a file to ``damaged/``; return its new name, relative to the store.

    Parameters
    ----------
    root : Path
        The store's folder.
    path : Path
        A file of the store, a link or anything else that lies where a file belongs.
    disk : Disk or None
        The layer to use.
    """
    disk = disk or DISK
    if stat.S_ISREG(path.lstat().st_mode):
        target = keep_copy(root, path, disk)
        disk.unlink(path)
    else:
        # Links, folders and pipes hold nothing of the store, and cannot be linked on every system.
        make_folder(root / FOLDER, disk=disk)
        target = _name_for(root, path)
        disk.rename(path, target)
        disk.fsync_folder(root / FOLDER)
    disk.fsync_folder(path.parent)
    return target.relative_to(root).as_posix()


def _name_for(root: Path, path: Path) -> Path:
    """Return a name under ``damaged/`` that is free, or that this very file has there already, after a crash."""
    folder = path.parent.relative_to(root).as_posix().replace("/", "+")
    name = path.name if folder == "." else f"{folder}~{path.name}"
    for number in itertools.count():
        target = root / FOLDER / (name if not number else f"{name}~{number}")
        with contextlib.suppress(FileNotFoundError):
            mine, theirs = path.lstat(), target.lstat()
            if (mine.st_ino, mine.st_dev) != (theirs.st_ino, theirs.st_dev):
                continue
        return target
    raise AssertionError


def aside_of(root: Path) -> dict[str, int]:
    """Return how many files have been set aside, and their bytes."""
    sizes = []
    with contextlib.suppress(OSError):
        for path in (root / FOLDER).iterdir():
            with contextlib.suppress(OSError):
                sizes.append(path.lstat().st_size)
    return {"files": len(sizes), "bytes": sum(sizes)}
