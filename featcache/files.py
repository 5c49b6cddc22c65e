"""Durable publishing of files, behind one small layer that tests can make fail.

A file is published in this order: written under a temporary name on the same file system, fsynced, verified by reading
it back, linked to its final name (never over an existing one), and the folder fsynced. Only then may it be relied on. A
failed fsync is never retried on the same file: Linux may have dropped the dirty pages, so a second fsync would lie.
"""

from __future__ import annotations

import contextlib
import errno
import fnmatch
import os
import socket
import sys
import time
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

__all__ = [
    "DISK",
    "Disk",
    "cache_folder",
    "link_or_rename",
    "make_folder",
    "publish",
    "publish_bytes",
    "remove_stale",
    "unique_name",
]

#: File systems without hard links answer with one of these (FAT, some FUSE and network mounts).
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
#: File systems that cannot sync a folder (CIFS, some FUSE mounts) answer with one of these; nothing more can be done.
_NO_FOLDER_SYNC = {errno.EINVAL, errno.EBADF, errno.ENOTSUP, errno.EOPNOTSUPP}
_CLAIM_SECONDS = 60.0


class Disk:
    """The operating-system calls that durability rests on. Tests subclass it to fail or record any of them."""

    def write(self, path: Path, data: bytes | memoryview | Iterable[bytes | memoryview]) -> None:
        """Create `path` and write all of `data`: one buffer, or several one after the other."""
        with path.open("xb", buffering=0) as file:
            for piece in [data] if isinstance(data, (bytes, memoryview)) else data:
                rest = memoryview(piece).cast("B")
                while len(rest):  # one call writes 2 GiB at most, and less where the disk is nearly full
                    rest = rest[file.write(rest) :]

    def mkdir(self, path: Path) -> None:
        """Make a folder; nothing happens when it exists."""
        path.mkdir(exist_ok=True)

    def fsync(self, path: Path) -> None:
        """Force a file's content to the device."""
        descriptor = os.open(path, os.O_RDONLY)
        try:
            _full_fsync(descriptor)
        finally:
            os.close(descriptor)

    def fsync_folder(self, path: Path) -> None:
        """Force a folder's entries to the device (Windows has no such call, and needs none for NTFS metadata)."""
        if sys.platform == "win32":
            return
        try:
            self.fsync(path)
        except OSError as error:
            if error.errno not in _NO_FOLDER_SYNC:
                raise

    def link(self, source: Path, target: Path) -> None:
        """Give a file a second name; FileExistsError when the name is taken."""
        os.link(source, target)

    def rename(self, source: Path, target: Path) -> None:
        """Rename, replacing what is there."""
        source.replace(target)

    def unlink(self, path: Path) -> None:
        """Remove a name."""
        path.unlink(missing_ok=True)


DISK = Disk()


def _full_fsync(descriptor: int) -> None:
    # On macOS fsync only reaches the drive's cache; F_FULLFSYNC reaches the medium.
    if sys.platform == "darwin":
        import fcntl

        with contextlib.suppress(OSError):
            fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
            return
    os.fsync(descriptor)


def unique_name(suffix: str = "") -> str:
    """Return a name that sorts by time and that no other process on any host will choose."""
    return f"{time.time_ns():020d}-{uuid.uuid4().hex}{suffix}"


def publish(
    temporary: Path, target: Path, *, verify: Callable[[Path], None] | None = None, disk: Disk | None = None
) -> None:
    """Make a finished temporary file durable and visible under its final name, which must not exist yet.

    Parameters
    ----------
    temporary : Path
        A closed file on the same file system as `target`; removed afterwards, whether this succeeds or not.
    target : Path
        The final name.
    verify : callable, default=None
        Called with `temporary` after the fsync; raises when what is on disk is not what was meant.
    disk : Disk, default=None
        The layer to use.

    Raises
    ------
    FileExistsError
        When `target` exists: somebody else was first.
    OSError
        When the disk refuses; nothing has been published.
    """
    disk = disk or DISK
    try:
        disk.fsync(temporary)
        if verify is not None:
            verify(temporary)
        _link_new(temporary, target, disk)
    finally:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)
    disk.fsync_folder(target.parent)


def link_or_rename(source: Path, target: Path, disk: Disk) -> None:
    """Give a file a second name, or where the file system has no links its new one; FileExistsError when taken."""
    _link_new(source, target, disk)


def _link_new(temporary: Path, target: Path, disk: Disk) -> None:
    try:
        disk.link(temporary, target)
    except OSError as error:
        if isinstance(error, FileExistsError) and _is_same(temporary, target):
            return  # a file server that was asked twice, since its first answer was lost, says so of its own link
        if isinstance(error, FileExistsError) or error.errno not in _NO_LINKS:
            raise
        _claim_and_rename(temporary, target, disk)


def _is_same(source: Path, target: Path) -> bool:
    with contextlib.suppress(OSError):
        return source.samefile(target)
    return False


def _claim_and_rename(temporary: Path, target: Path, disk: Disk) -> None:
    """Do without links: creating a claim file exclusively stands for the link's "only if the name is free"."""
    claim = target.with_name(target.name + ".claim")
    try:
        disk.write(claim, f"{socket.gethostname()} {os.getpid()}".encode())
    except FileExistsError:
        # Its owner is between claim and rename, or died there; a claim outlives a rename by far after a minute.
        with contextlib.suppress(FileNotFoundError):
            if time.time() - claim.stat().st_mtime > _CLAIM_SECONDS:
                disk.unlink(claim)
        raise
    try:
        if target.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        disk.rename(temporary, target)
    finally:
        disk.unlink(claim)


def publish_bytes(
    path: Path | str, data: bytes, *, replace: bool = True, durable: bool = True, disk: Disk | None = None
) -> None:
    """Write a whole small file, durably: readers see the old content or the new one, never a part.

    Parameters
    ----------
    path : path-like
        The final name; its folder must exist.
    data : bytes
        The content.
    replace : bool, default=True
        Replace an existing file; otherwise FileExistsError.
    durable : bool, default=True
        Sync the file and its folder. False is for caches whose owner notices a file that power loss has emptied.
    disk : Disk, default=None
        The layer to use.

    Raises
    ------
    FileExistsError
        When `replace` is false and the file exists.
    OSError
        When the disk refuses; an existing file is unharmed.
    """
    disk = disk or DISK
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        disk.write(temporary, data)
        if not replace:
            publish(temporary, target, disk=disk)
            return
        if durable:
            disk.fsync(temporary)
        disk.rename(temporary, target)
    finally:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)
    if durable:
        disk.fsync_folder(target.parent)


def make_folder(path: Path, *, disk: Disk | None = None) -> None:
    """Make a folder and those above it that are missing, each durable: its name is synced in the folder that holds it.

    Parameters
    ----------
    path : Path
        The folder; nothing happens when it exists.
    disk : Disk, default=None
        The layer to use.

    Raises
    ------
    NotADirectoryError
        When a file has that name.
    OSError
        When the disk refuses.
    """
    disk = disk or DISK
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent, disk=disk)
    try:
        disk.mkdir(path)
    except FileExistsError as error:
        raise NotADirectoryError(errno.ENOTDIR, "a file is where a folder belongs", str(path)) from error
    disk.fsync_folder(path.parent)


def remove_stale(folder: Path, seconds: float, *, names: str = "*", disk: Disk | None = None) -> int:
    """Remove files that a dead process left in a folder of temporary files.

    Parameters
    ----------
    folder : Path
        The folder; one that does not exist is empty.
    seconds : float
        Age beyond which no live process can still be writing a file.
    names : str, default="*"
        Pattern of the names that are temporary ones.
    disk : Disk, default=None
        The layer to use.

    Returns
    -------
    int
        How many were removed.
    """
    disk = disk or DISK
    removed = 0
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(folder):
            with contextlib.suppress(OSError):
                if not fnmatch.fnmatchcase(entry.name, names) or not entry.is_file(follow_symlinks=False):
                    continue
                if time.time() - entry.stat().st_mtime > seconds:
                    disk.unlink(Path(entry.path))
                    removed += 1
    return removed


def cache_folder() -> Path:
    """Return the user's private cache folder: $FEATCACHE_CACHE, else the platform's (not created)."""
    named = os.environ.get("FEATCACHE_CACHE")
    if named:
        return Path(named)
    try:
        if sys.platform == "win32":
            base = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local"))
        elif sys.platform == "darwin":
            base = Path.home() / "Library" / "Caches"
        else:
            base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError as error:  # as any other folder that cannot be used
        raise FileNotFoundError("this user has no home folder; set FEATCACHE_CACHE") from error
    return base / "featcache"
