"""The trash of a store: files that nothing needed when they were moved there, to be deleted or brought back.

Moving is linking into the trash, syncing, and only then unlinking, so that no crash leaves a file in neither place.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import StoreError
from ..files import DISK, Disk, link_or_rename, make_folder
from .container import Container

__all__ = ["Trashed", "TrashedKeys", "bring_back", "empty", "in_trash", "throw_away"]

#: ``<second when it was moved>~<folder>~<name>``, where a slash of the folder is written as "+".
_NAME = re.compile(r"([0-9]{12})~(shards|snapshots\+[A-Za-z0-9][A-Za-z0-9._-]{0,99})~([^/~]+\.h5)")


@dataclass(frozen=True)
class Trashed:
    """A file in the trash.

    Attributes
    ----------
    path : Path
        Where it lies now.
    when : int
        Second at which it was moved, by the file system's clock.
    origin : Path
        Where it came from.
    """

    path: Path
    when: int
    origin: Path


def in_trash(root: Path) -> list[Trashed]:
    """Return what is in the trash; names that `throw_away` would not give come from elsewhere and are passed over."""
    folder = root / "trash"
    with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
        # No call for each file: there may be very many, and writers ask often.
        names = sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
        found = [match for name in names if (match := _NAME.fullmatch(name))]
        return [Trashed(folder / m[0], int(m[1]), root / m[2].replace("+", "/") / m[3]) for m in found]
    return []


def throw_away(root: Path, paths: Sequence[Path], now: float, disk: Disk | None) -> None:
    """Move files to the trash."""
    disk = disk or DISK
    if not paths:
        return
    trash = root / "trash"
    make_folder(trash, disk=disk)
    targets = {path: trash / _name_of(root, path, now) for path in paths}
    for path, target in targets.items():
        with contextlib.suppress(FileExistsError, FileNotFoundError):  # another collector was there first
            link_or_rename(path, target, disk)
    disk.fsync_folder(trash)
    for path, target in targets.items():
        if target.exists():  # a file that is in no other place yet stays
            disk.unlink(path)
    for place in sorted({path.parent for path in paths}):
        disk.fsync_folder(place)


def _name_of(root: Path, path: Path, now: float) -> str:
    folder = path.parent.relative_to(root).as_posix().replace("/", "+")
    return f"{math.ceil(now):012d}~{folder}~{path.name}"


def empty(root: Path, due: float, *, dry_run: bool, disk: Disk | None) -> tuple[list[str], int]:
    """Delete what was moved to the trash at `due` or before; return the names it had, and how many bytes."""
    disk = disk or DISK
    names, count = [], 0
    for item in in_trash(root):
        if item.when <= math.ceil(due):
            with contextlib.suppress(FileNotFoundError):
                count += item.path.stat().st_size
            names.append(item.origin.relative_to(root).as_posix())
            if not dry_run:
                disk.unlink(item.path)
    if names and not dry_run:
        disk.fsync_folder(root / "trash")
    return names, count


def bring_back(root: Path, keys: np.ndarray, disk: Disk | None) -> list[str]:
    """Bring back the shards that hold any of some keys; return their names.

    Parameters
    ----------
    root : Path
        The store's folder.
    keys : ndarray of uint8 of shape (n, 32)
        Keys that no shard has.
    disk : Disk, default=None
        The layer to use.
    """
    disk = disk or DISK
    wanted = np.ascontiguousarray(keys[:, :8]).view("<u8").ravel()
    done = []
    for item in in_trash(root):
        if item.origin.parent.name != "shards" or not _holds_any(item.path, wanted):
            continue
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            link_or_rename(item.path, item.origin, disk)
        disk.fsync_folder(item.origin.parent)
        with contextlib.suppress(OSError):
            disk.unlink(item.path)
        if item.origin.exists():
            done.append(item.origin.name)
    return done


class TrashedKeys:
    """Which keys the shards in the trash hold, read once per shard.

    Parameters
    ----------
    root : Path
        The store's folder.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, np.ndarray] = {}

    def any_of(self, keys: np.ndarray) -> bool:
        """Tell whether a trashed shard has a key that begins like one of some: uint8 of shape (n, 32)."""
        there = {item.path.name: item.path for item in in_trash(self._root) if item.origin.parent.name == "shards"}
        self._known = {name: self._known[name] if name in self._known else _prefixes(p) for name, p in there.items()}
        wanted = np.ascontiguousarray(keys[:, :8]).view("<u8").ravel()
        return any(bool(np.isin(wanted, known).any()) for known in self._known.values())


def _holds_any(path: Path, wanted: np.ndarray) -> bool:
    """Tell whether a shard has a key that begins like one of some."""
    return bool(np.isin(_prefixes(path), wanted).any())


def _prefixes(path: Path) -> np.ndarray:
    """Return the first eight bytes of a shard's keys; a damaged one has none that counts."""
    with contextlib.suppress(StoreError, OSError, KeyError), contextlib.closing(Container(path)) as shard:
        count = shard.region("key")["shape"][0]
        return np.ascontiguousarray(shard.read_rows("key", np.arange(count))[0][:, :8]).view("<u8").ravel()
    return np.zeros(0, "<u8")
