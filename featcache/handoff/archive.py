"""The members of a bundle as one file or one folder: written the same way each time, read as a stranger's.

A file is a zip of stored (uncompressed) members, sorted by name, all of one fixed date: equal members give equal bytes.
Nothing in it is trusted before it was checked: names are those of a short list, sizes are bounded by the file itself
and by the manifest, which is read first, contents by the digests of the manifest. What is left of a file, dates and
offsets, has to be what such a file has: none of its bytes can be changed.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from ..errors import HandoffError
from ..files import DISK, Disk, publish_bytes, unique_name

__all__ = [
    "CARD",
    "HEAD",
    "MANIFEST",
    "WEIGHTS",
    "check_target",
    "fits_file",
    "is_archive",
    "is_folder_name",
    "read_members",
    "write_members",
]

MANIFEST, HEAD, WEIGHTS, CARD = "manifest.json", "head.safetensors", "weights.safetensors", "MODEL_CARD.md"
_NAMES = frozenset({MANIFEST, HEAD, WEIGHTS, CARD})
_ZIP = b"PK\x03\x04"
#: Endings of other files of ours: a bundle of such a name would be taken for one.
_OTHERS = (".pt2", ".onnx", ".safetensors", ".head")
#: 1980-01-01: a zip knows no earlier date. Version 2.0 of the format, made under Unix, read and written by the owner.
_DATE, _VERSION, _UNIX, _MODE = 0x21, 20, 3, 0o100644
#: Bytes of members that a zip without extensions can hold, less room for its directory.
_MOST = 2**32 - 2**16
_AGAIN = "it is damaged or was changed, get the bundle again"


def is_folder_name(path: Path) -> bool:
    """Whether a bundle of that name is a folder: its name has no ending."""
    return not path.suffix


def is_archive(path: Path) -> bool:
    """Whether a path looks like a bundle: a zip, or a folder with a manifest."""
    if path.is_dir():
        return os.path.lexists(path / MANIFEST)
    try:
        with path.open("rb") as file:
            return file.read(4) == _ZIP
    except OSError:
        return False


def write_members(path: Path, members: Mapping[str, bytes], *, overwrite: bool, disk: Disk | None = None) -> None:
    """Write a bundle durably, as a file or, where its name has no ending, as a folder.

    Raises
    ------
    HandoffError
        When the name is taken, or the disk refuses; nothing has been written then.
    """
    check_target(path, overwrite)
    try:
        if is_folder_name(path):
            _write_folder(path, members, disk or DISK)
        else:
            _check_size(path, sum(map(len, members.values())))
            publish_bytes(path, zip_of(members), replace=overwrite, disk=disk)
    except FileExistsError:
        raise _taken(path) from None
    except OSError as error:
        raise HandoffError(
            f"{path}: the bundle cannot be written: {error.strerror or error}; look at the folder and the free space"
        ) from error


def check_target(path: Path, overwrite: bool) -> None:
    """Raise HandoffError where no bundle can be written, or may be: only a bundle is ever replaced by one."""
    if path.suffix.lower() in _OTHERS:
        raise HandoffError(
            f"{path}: expected a name for a bundle, ending in .bundle or .zip, or without an ending for a folder, got "
            f"{path.suffix!r}; give another name, or use export"
        )
    if not path.parent.is_dir():
        raise HandoffError(f"{path}: expected a folder {str(path.parent)!r} to write to, got none; make it first")
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise _taken(path)
    if path.is_dir() != is_folder_name(path):
        kind = "folder" if path.is_dir() else "file"
        raise HandoffError(f"{path}: exists and is a {kind}, so no bundle replaces it; give another name")
    if path.is_dir() and not {entry.name for entry in path.iterdir()} <= _NAMES:
        raise HandoffError(f"{path}: exists and holds other things than a bundle; give another name")
    if not path.is_dir() and path.exists() and not _is_ours(path):
        raise HandoffError(f"{path}: exists and is no bundle, so it is not replaced; give another name")


def _is_ours(path: Path) -> bool:
    """Whether a file may be replaced: a bundle, damaged or not, or an empty one."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
            return MANIFEST in names and names <= _NAMES
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return not path.stat().st_size


def _taken(path: Path) -> HandoffError:
    return HandoffError(f"{path}: exists already; give another name, or allow replacing it (overwrite)")


def fits_file(size: int) -> bool:
    """Whether so many bytes can be a bundle of one file."""
    return size < _MOST


def _check_size(path: Path, size: int) -> None:
    if not fits_file(size):
        raise HandoffError(
            f"{path}: expected a bundle of less than {_MOST / 2**30:.1f} GiB for one file, got {size / 2**30:.1f} GiB; "
            "give a name without an ending, for a folder"
        )


def zip_of(members: Mapping[str, bytes]) -> bytes:
    """Return the bytes of the file: the same members give the same bytes, under each version of Python.

    PKWARE's APPNOTE 6.3, sections 4.3.7, 4.3.12 and 4.3.16, stored members only, as Python's zipfile writes them.
    """
    files, directory, offset = list[bytes](), list[bytes](), 0
    for name in sorted(members):
        content, named = members[name], name.encode("ascii")
        sizes = (zlib.crc32(content), len(content), len(content), len(named), 0)
        about = (_VERSION, 0, zipfile.ZIP_STORED, 0, _DATE, *sizes)
        files += [struct.pack("<4s5H3L2H", _ZIP, *about), named, content]
        made = _UNIX << 8 | _VERSION
        ends = (0, 0, 0, _MODE << 16, offset)
        directory += [struct.pack("<4s6H3L5H2L", b"PK\x01\x02", made, *about, *ends), named]
        offset += len(files[-3]) + len(named) + len(content)
    size = sum(map(len, directory))
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, len(members), len(members), size, offset, 0)
    return b"".join([*files, *directory, end])


def _write_folder(path: Path, members: Mapping[str, bytes], disk: Disk) -> None:
    """Write a folder aside, sync all of it, and only then give it its name."""
    aside = path.with_name(f".{path.name}.{unique_name('.tmp')}")
    old = path.with_name(f".{path.name}.{unique_name('.old')}")
    try:
        disk.mkdir(aside)
        for name, content in members.items():
            disk.write(aside / name, content)
            disk.fsync(aside / name)
        disk.fsync_folder(aside)
        if path.is_dir():
            disk.rename(path, old)
        disk.rename(aside, path)
        disk.fsync_folder(path.parent)
    except BaseException as error:  # Ctrl-C, too
        if not _restored(path, aside, old, disk) and isinstance(error, OSError):
            raise HandoffError(
                f"{path}: the bundle cannot be written: {error.strerror or error}; the old one is kept as {old.name}"
            ) from error
        raise
    _remove(old)


def _restored(path: Path, aside: Path, old: Path, disk: Disk) -> bool:
    """Give the old folder its name back; what cannot be is kept under its other name, never lost."""
    if old.is_dir():
        with contextlib.suppress(OSError):
            if path.is_dir():
                disk.rename(path, aside)
            disk.rename(old, path)
    _remove(aside)
    return not old.is_dir()


def _remove(folder: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(folder)


def read_members(path: Path, limit: int, sizes_of: Callable[[bytes], Mapping[str, int]]) -> dict[str, bytes]:
    """Read the members of a bundle.

    Parameters
    ----------
    path : Path
        File or folder.
    limit : int
        Bytes of the manifest, at most.
    sizes_of : callable
        Manifest to the bytes of each member, which are compared before it is read; empty for what is no manifest.

    Returns
    -------
    dict of str to bytes

    Raises
    ------
    HandoffError
        For a file that is no bundle or was cut short; a member of another name, or outside the bundle; two of one
        name; compressed, encrypted or oversized ones.
    """
    try:
        return _read_folder(path, limit, sizes_of) if path.is_dir() else _read_zip(path, limit, sizes_of)
    except HandoffError:
        raise
    except FileNotFoundError:
        raise HandoffError(f"{path}: expected a bundle, found nothing; check the path") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError, UnicodeError) as error:
        reason = " ".join(str(error).split())[:100]
        raise HandoffError(
            f"{path}: expected a whole bundle, got a damaged or shortened file ({reason}); {_AGAIN}"
        ) from error
    except OSError as error:
        raise HandoffError(f"{path}: the bundle cannot be read: {error.strerror or error}") from error


def _check_names(path: Path, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        shown = ascii(name)[:100]
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or ":" in name:
            raise HandoffError(
                f"{path}: expected members inside the bundle, got {shown}, which points out of it; do not use it"
            )
        if name not in _NAMES:
            raise HandoffError(f"{path}: expected only {', '.join(sorted(_NAMES))}, got a member {shown}; {_AGAIN}")
        if name in seen:
            raise HandoffError(f"{path}: expected each member once, got {shown} twice; {_AGAIN}")
        seen.add(name)
    if MANIFEST not in seen:
        raise HandoffError(f"{path}: expected a bundle with {MANIFEST}, got none; give a bundle that save_bundle wrote")


def _checked(
    path: Path,
    found: Mapping[str, int],
    limit: int,
    sizes_of: Callable[[bytes], Mapping[str, int]],
    read: Callable[[str], bytes],
) -> dict[str, bytes]:
    """Read the manifest, and what it names if it is as large as it says."""
    if found[MANIFEST] > limit:
        raise HandoffError(f"{path}: {MANIFEST}: expected {limit:,} bytes at most, got {found[MANIFEST]:,}; {_AGAIN}")
    manifest = read(MANIFEST)
    sizes = sizes_of(manifest)
    if not sizes:  # no manifest; whoever called says what is wrong with it
        return {MANIFEST: manifest}
    for name, size in found.items():
        if name == MANIFEST:
            continue
        if name not in sizes:
            raise HandoffError(f"{path}: {name} was added: the manifest does not name it; {_AGAIN}")
        if size != sizes[name]:
            raise HandoffError(f"{path}: {name}: expected {sizes[name]:,} bytes, got {size:,}; {_AGAIN}")
    return {name: manifest if name == MANIFEST else read(name) for name in found}


def _read_zip(path: Path, limit: int, sizes_of: Callable[[bytes], Mapping[str, int]]) -> dict[str, bytes]:
    whole = path.stat().st_size
    _check_size(path, whole)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
        _check_names(path, (info.orig_filename for info in infos))
        if sum(info.file_size for info in infos) > whole:
            raise HandoffError(
                f"{path}: expected members smaller than the file of {whole:,} bytes, got larger ones; {_AGAIN}"
            )
        for info in infos:
            # Stored members cannot grow when they are read, which is all that a zip bomb does.
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.file_size != info.compress_size:
                raise HandoffError(
                    f"{path}: {info.filename}: expected a member stored as it is, got it packed; {_AGAIN}"
                )
        found = {info.filename: info.file_size for info in infos}
        members = _checked(path, found, limit, sizes_of, archive.read)
    if len(members) == len(found) and zip_of(members) != path.read_bytes():
        raise HandoffError(
            f"{path}: expected members and nothing else, got other bytes between them (dates, attributes, comments); "
            f"{_AGAIN}"
        )
    return members


def _read_folder(path: Path, limit: int, sizes_of: Callable[[bytes], Mapping[str, int]]) -> dict[str, bytes]:
    names = sorted(entry.name for entry in path.iterdir())
    _check_names(path, names)
    for name in names:
        file = path / name
        if file.is_symlink() or not file.is_file():
            raise HandoffError(f"{path}: {name}: expected a plain file, got a link or folder; {_AGAIN}")
    found = {name: (path / name).stat().st_size for name in names}
    return _checked(path, found, limit, sizes_of, lambda name: (path / name).read_bytes())
