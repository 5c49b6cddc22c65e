"""The compiled engine's packages: native code in a private cache, so nothing is loaded that others could have written.

A package is a folder ``<key>/`` with ``package.pt2`` and ``package.sha256``, renamed into place as a whole. The key
covers all that the code depends on. The digest is verified before the code is loaded; what is damaged is built anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import cache_folder
from .compiling import compiler
from .native import NativeCall

__all__ = ["Package", "PackageError", "Packages", "key_of"]

#: Bytes that all packages together may take, and seconds after which what a dead build left is removed.
_ROOM, _STALE = 4 << 30, 6 * 3600.0
_FORMAT = 2


class PackageError(Exception):
    """A package cannot be used or built; the message is the reason, in a few words."""


class Package(nn.Module):
    """A loaded package: normalised images → node → codes.

    Attributes
    ----------
    parallel : bool
        Whether several threads compute at once: not through PyTorch's own loader, which keeps the interpreter's lock.
    """

    def __init__(self, path: Path, nodes: tuple[str, ...], runners: int) -> None:
        super().__init__()
        self.nodes = nodes
        self.call: Callable[[Tensor], Sequence[Tensor]]
        try:
            self.call, self.parallel = NativeCall(path, runners), True
        except (RuntimeError, OSError, AttributeError):  # packages of another version of PyTorch
            self.call, self.parallel = torch._inductor.aoti_load_package(str(path)), False

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return node → codes."""
        return dict(zip(self.nodes, self.call(x), strict=True))


def key_of(identity: Mapping[str, Any]) -> str:
    """Return the name of a package: a digest of what it computes, and of what it was compiled with and for."""
    machine = {
        "format": _FORMAT,
        "torch": torch.__version__,
        "capability": torch.backends.cpu.get_cpu_capability(),
        "machine": platform.machine(),
        "flags": hashlib.sha256(_flags().encode()).hexdigest(),
    }
    text = json.dumps({"network": identity, "machine": machine}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def _flags() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.lower().startswith(("flags", "features")):
                return " ".join(sorted(line.partition(":")[2].split()))
    return platform.processor()


class Packages:
    """The folder of packages of this user.

    Parameters
    ----------
    folder : Path, optional
        "packages" in the private cache by default.
    """

    def __init__(self, folder: Path | None = None) -> None:
        try:
            self.folder = folder if folder is not None else cache_folder() / "packages"
        except OSError as error:
            raise PackageError(str(error)) from error

    def state(self, key: str) -> str:
        """Return "built", "absent", or "impossible: …" with the reason."""
        try:
            if self.folder.exists() or self.folder.is_symlink():
                self._check_private()
                if self._intact(key):
                    return "built"
        except PackageError as error:
            return f"impossible: {error}"
        return "absent" if compiler() else "impossible: there is no C++ compiler"

    def load(self, key: str, nodes: tuple[str, ...], runners: int) -> Package | None:
        """Return a package, None where there is none that is intact.

        Raises
        ------
        PackageError
            When somebody else could have written it, or it cannot be loaded.
        """
        if not (self.folder.exists() or self.folder.is_symlink()):
            return None
        self._check_private()
        if not self._intact(key):
            return None
        path = self.folder / key / "package.pt2"
        with contextlib.suppress(OSError):
            os.utime(path.parent)  # the ones not used for longest go first
        try:
            return Package(path, nodes, runners)
        except Exception as error:  # whatever the loader of another version says
            raise PackageError(f"the package cannot be loaded ({' '.join(str(error).split())[:120]})") from error

    def build(self, key: str, make: Callable[[Path], str]) -> None:
        """Build a package unless it is there; `make` writes it to a path, or says why it cannot.

        Raises
        ------
        PackageError
            When it cannot be built.
        """
        if not compiler():
            raise PackageError("there is no C++ compiler")
        self._make_folder()
        with self._locked(key):
            if self._intact(key):  # another process was first
                return
            self._remove_stale()
            work = self.folder / "tmp"
            try:
                work = Path(tempfile.mkdtemp(dir=self.folder, prefix="tmp-"))
                path = work / "package.pt2"
                problem = make(path)
                if problem:
                    raise PackageError(problem)
                (work / "package.sha256").write_text(_digest(path))
                path.chmod(0o600)
                shutil.rmtree(self.folder / key, ignore_errors=True)  # damaged
                work.rename(self.folder / key)
            except (OSError, RuntimeError) as error:  # torch's own writer knows no OSError
                reason = " ".join(str(getattr(error, "strerror", None) or error).split())[:120]
                raise PackageError(f"the cache cannot be written ({reason})") from error
            finally:
                shutil.rmtree(work, ignore_errors=True)
            self._evict(key)

    # -- who may have written it --------------------------------------------------------------------------------------

    def _make_folder(self) -> None:
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            self.folder.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise PackageError(f"the cache cannot be written ({error.strerror or error})") from error
        self._check_private()

    def _check_private(self) -> None:
        """Refuse folders that another user owns or may write: the code in them would run as this user."""
        for folder in (self.folder.parent, self.folder):
            _check_owned(folder, folder=True)

    def _intact(self, key: str) -> bool:
        place = self.folder / key
        if not (place.is_dir() or place.is_symlink()):
            return False
        _check_owned(place, folder=True)
        for name in ("package.pt2", "package.sha256"):
            if not os.path.lexists(place / name):
                return False
            _check_owned(place / name, folder=False)
        try:
            return (place / "package.sha256").read_text().strip() == _digest(place / "package.pt2")
        except (OSError, UnicodeDecodeError):
            return False

    # -- housekeeping -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, key: str) -> Iterator[None]:
        try:
            import fcntl
        except ImportError:  # no such locks here: two processes may build the same, and the later one wins
            yield
            return
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        try:
            descriptor = os.open(self.folder / f"{key}.lock", flags, 0o600)
        except OSError as error:
            raise PackageError(f"the cache cannot be written ({error.strerror or error})") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)

    def _remove_stale(self) -> None:
        for entry in self.folder.glob("tmp-*"):
            with contextlib.suppress(OSError):
                if time.time() - entry.lstat().st_mtime > _STALE:
                    shutil.rmtree(entry, ignore_errors=True)

    def _evict(self, key: str) -> None:
        """Remove the packages that were not used for longest until the rest fits."""
        found = []
        for place in self.folder.iterdir():
            with contextlib.suppress(OSError):
                if place.is_dir() and not place.name.startswith("tmp-"):
                    size = sum(f.stat().st_size for f in place.iterdir())
                    found.append((place.name != key, -place.stat().st_mtime, size, place))
        used = 0
        for _, _, size, place in sorted(found):
            used += size
            if used > _ROOM and place.name != key:
                shutil.rmtree(place, ignore_errors=True)


def _check_owned(path: Path, *, folder: bool) -> None:
    try:
        found = path.lstat()
    except OSError as error:
        raise PackageError(f"{path.name} in the cache cannot be read ({error.strerror})") from error
    kind = stat.S_ISDIR(found.st_mode) if folder else stat.S_ISREG(found.st_mode)
    if not kind:
        raise PackageError(f"{path.name} in the cache is a link or no plain {'folder' if folder else 'file'}")
    if hasattr(os, "getuid") and found.st_uid != os.getuid():
        raise PackageError(f"{path.name} in the cache belongs to another user")
    if os.name == "posix" and kind and found.st_mode & 0o022:
        raise PackageError(f"{path.name} in the cache can be written by other users")


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
