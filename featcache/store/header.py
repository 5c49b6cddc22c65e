"""store.json: written once, the first writer wins, everybody else adopts it; and the folders beside it."""

from __future__ import annotations

import errno
import json
import time
from pathlib import Path
from typing import Any

import xxhash

from .. import fingerprint as identity
from ..errors import DamagedStore, NotAStore, StoreError, StoreTooNew
from ..files import Disk, make_folder, publish_bytes
from .container import FORMAT_VERSION
from .safely import parse_json, read_small

__all__ = ["FOLDERS", "check_place", "lay_out", "read_header", "require_own_folders"]

FOLDERS = ("shards", "snapshots", "tmp", "index", "pins", "trash", "damaged")
_LARGEST = 1 << 24


def require_own_folders(root: Path) -> None:
    """Refuse a store whose folders are links: sweeping and collecting would remove files that are not its own."""
    for name in FOLDERS:
        if (root / name).is_symlink():
            raise StoreError(
                f"{root / name}: expected a folder of the store's own, got a link; move the folder back, or link the "
                "store as a whole"
            )


def read_header(root: Path) -> dict[str, Any]:
    """Read and verify store.json: NotAStore, StoreTooNew or DamagedStore when it is not what was published."""
    path = root / "store.json"
    try:
        header = parse_json(read_small(path, _LARGEST))
        version = header["format_version"]
        if header["format"] != "featcache" or not isinstance(version, int):
            raise ValueError("not written by featcache")
        if header["xxh3"] != checksum(header):
            raise ValueError("its checksum does not match")
        if version > FORMAT_VERSION:
            raise StoreTooNew(
                f"{root}: format version {version}, this featcache reads up to {FORMAT_VERSION}; "
                "install a newer one (pip install --upgrade featcache)"
            )
        if identity.fingerprint(header["spec"]) != header["fingerprint"]:
            raise ValueError("the spec does not have the recorded fingerprint")
        _require_types(header)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotAStore(f"{root}: {_what_is_there(root)}; `featcache extract SOURCE -o {root}` makes one") from error
    except StoreError:
        raise
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EINVAL, errno.ENXIO):
            raise DamagedStore.at(path, "damaged (no regular file); restore it from a copy") from error
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}; look at its permissions") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedStore.at(
            path, f"damaged ({error}); restore it from a copy of any store with the same spec"
        ) from error
    return header


def _require_types(header: dict[str, Any]) -> None:
    """Refuse what is consistent in itself, but not what other rooms rely on."""
    spec, locator = header["spec"], header.get("locator")
    if not isinstance(spec, dict) or not isinstance(locator, dict | None):
        raise ValueError("a spec or locator of the wrong type")
    if spec.get("dtype", "float32") not in ("float16", "float32", "float64"):
        raise ValueError(f"codes of type {str(spec['dtype'])[:40]!r}")


def checksum(header: dict[str, Any]) -> str:
    """Return the xxh3-128 of all other fields, as sorted compact JSON."""
    rest = {name: value for name, value in header.items() if name != "xxh3"}
    return xxhash.xxh3_128_hexdigest(json.dumps(rest, sort_keys=True, separators=(",", ":")).encode())


def _what_is_there(root: Path) -> str:
    if not root.exists():
        return "no such store"
    return (
        "not a featcache store (it has no store.json)" if root.is_dir() else "a file, not a store (a store is a folder)"
    )


def check_place(root: Path) -> None:
    """Raise StoreError when a store cannot be made at `root` for what is there already."""
    if root.exists() and not root.is_dir():
        raise StoreError(f"{root}: a file is in the way; a store is a folder: give another name with -o")
    if root.is_dir():
        foreign = sorted(
            p.name for p in root.iterdir() if p.name not in FOLDERS and not p.name.startswith(".store.json.")
        )
        if foreign:
            raise StoreError(
                f"{root}: the folder holds other things ({', '.join(foreign[:3])}{', …' if len(foreign) > 3 else ''}); "
                "a store needs a new or empty folder"
            )


def lay_out(root: Path, spec: dict[str, Any], locator: dict[str, Any], disk: Disk | None) -> None:
    """Make the folders and store.json; of several writers the first wins and the others adopt."""
    check_place(root)
    header = {
        "format": "featcache",
        "format_version": FORMAT_VERSION,
        "fingerprint": identity.fingerprint(spec),
        "spec": spec,
        "locator": locator,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    try:
        for name in FOLDERS:
            make_folder(root / name, disk=disk)
        header["xxh3"] = checksum(header)
        data = json.dumps(header, indent=1, ensure_ascii=False).encode("utf-8")
        publish_bytes(root / "store.json", data, replace=False, disk=disk)
    except FileExistsError:
        return
    except OSError as error:
        raise StoreError(f"{root}: cannot create a store there: {error.strerror or error}") from error
