"""check --repair: save what holds of damaged files, then set those aside.

For each file the order is: publish what could be saved (verified and durable, as everything is published), and only
then move the damaged file to ``damaged/``. A crash in between leaves both; repeating the repair finds the rows there
and goes on. Nothing is deleted.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import fingerprint as identity
from ..errors import DamagedStore, NotAStore, SpecError, StoreError
from ..files import Disk, publish_bytes
from .aside import keep_copy, set_aside
from .check import CheckReport, check_store
from .container import Container
from .header import FORMAT_VERSION, checksum, read_header, require_own_folders
from .index import RowIndex
from .layout import Layout, find_layout
from .mending import mend_view
from .pins import hold_pin
from .safely import require_permission
from .salvage import Salvage, open_salvage
from .shards import ShardSet

if TYPE_CHECKING:
    from .feature_store import FeatureStore

__all__ = ["repair_header", "repair_store"]


def repair_store(store: FeatureStore, disk: Disk | None) -> CheckReport:
    """Repair a store; see `FeatureStore.check`."""
    root = store.path
    with hold_pin(root, disk):
        shards = ShardSet(root, store.fingerprint, "touch", disk)
        entries = _repair_shards(root, store, shards, disk)
        for place in sorted(p for p in (root / "snapshots").glob("*") if p.is_dir() and not p.is_symlink()):
            for item in mend_view(root, place.name, store.fingerprint, disk):
                entries.append((item, np.zeros((0, 32), "u1"), False))
    report = check_store(store, deep=True)
    _charge(type(store)(root), entries)
    return CheckReport(report.ok, report.damaged, report.checked, [item for item, _, _ in entries])


#: What is reported of a file, the keys of rows that it lost, and whether there are lost rows of unknown key.
_Entry = tuple[dict[str, Any], np.ndarray, bool]


def _repair_shards(root: Path, store: FeatureStore, shards: ShardSet, disk: Disk | None) -> list[_Entry]:
    """Save what holds of each damaged shard, and set it aside."""
    shards.refresh()
    healthy: list[Container] = []
    damaged: list[str] = []
    for name in shards.names():
        shard = shards.open(name)
        if shard is not None and not shard.problem():
            healthy.append(shard)
        else:
            damaged.append(name)
    if not damaged:
        return []
    with tempfile.TemporaryDirectory() as scratch:
        # An index of its own: the store's also knows the damaged shards' rows, which would hide the healthy ones.
        index = RowIndex(Path(scratch), healthy, range(len(healthy)))
        return [_repair_shard(root, name, store, shards, index, disk) for name in damaged]


def _repair_shard(
    root: Path, name: str, store: FeatureStore, shards: ShardSet, index: RowIndex, disk: Disk | None
) -> _Entry:
    path = shards.folder / name
    require_permission(path)
    layout = find_layout(path)
    item: dict[str, Any] = {
        "file": f"shards/{name}",
        "action": "",
        "rows_saved": 0,
        "rows_elsewhere": 0,
        "rows_lost": 0,
        "images_lost": 0,
        "images": [],
        "saved_as": "",
        "note": "",
    }
    nothing = np.zeros((0, 32), "u1")
    if layout is not None and layout.attributes.get("fingerprint") not in (None, store.fingerprint):
        item |= {"action": "left", "note": "it belongs to another store; move it away"}
        return item, nothing, False
    keys, unknown = nothing, True
    if layout is not None and layout.kind == "shard" and layout.attributes.get("fingerprint") == store.fingerprint:
        with open_salvage(path, layout) as found:
            if found is not None and _alike(found, shards, index):
                _publish(name, found, item, store, shards, index)
                keys, unknown = found.lost_keys, found.unknown
    item["action"] = f"set aside as {set_aside(root, path, disk)}"
    return item, keys, unknown


def _alike(found: Salvage, shards: ShardSet, index: RowIndex) -> bool:
    """Tell whether rows can stand beside those of the healthy shards."""
    shapes = {tuple(sorted(found.shapes().items()))}
    for shard in index.shards:
        shapes.add(tuple(sorted((n, tuple(shard.region(f"x/{n}")["shape"][1:])) for n in shard.attributes["nodes"])))
    return len(shapes) == 1


def _publish(
    name: str, found: Salvage, item: dict[str, Any], store: FeatureStore, shards: ShardSet, index: RowIndex
) -> None:
    """Publish the rows that hold and that no healthy shard has: those have just been verified, all of them."""
    chosen = _first_of_each(found.keys, found.views)
    for value in np.unique(found.views).tolist():
        mine = np.flatnonzero(chosen & (found.views == value))
        chosen[mine] = index.find(found.keys[mine], value)[0] < 0
    item |= {
        "rows_saved": int(chosen.sum()),
        "rows_elsewhere": len(found) - int(chosen.sum()),
        "rows_lost": found.lost,
    }
    if not chosen.any():
        return
    item["saved_as"] = "shards/" + shards.publish(
        found.keys[chosen],
        found.codes(chosen),
        view_number=found.views[chosen],
        constant=found.constant[chosen],
        attributes={
            "computed": found.computed,
            "salvaged_from": name,
            "spec": store.spec,
            "locator": store.locator,
        },
    )
    new = shards.open(Path(item["saved_as"]).name)
    assert new is not None
    index.shards.append(new)
    index.add(len(index.shards) - 1)


def _first_of_each(keys: np.ndarray, views: np.ndarray) -> np.ndarray:
    """Return a mask of the first row of each key and view number: a compacted shard may repeat rows."""
    both = np.concatenate([keys, np.ascontiguousarray(views, "<u2").view("u1").reshape(-1, 2)], axis=1)
    _, first = np.unique(np.ascontiguousarray(both).view("V34").ravel(), return_index=True)
    mask = np.zeros(len(keys), dtype=bool)
    mask[first] = True
    return mask


def _charge(store: FeatureStore, entries: list[_Entry]) -> None:
    """Say of each shard that was set aside which images of newest states have no codes now."""
    open_: dict[bytes, set[str]] = {}
    for view in store.views:
        try:
            state = store.snapshot(view)
            lines = state.entries if state is not None else None
        except DamagedStore:
            continue
        if lines is None:
            continue
        keys, ids = lines.keys[lines.stored], lines.ids[lines.stored]
        gone = np.flatnonzero(store.locate(keys)[0] < 0).tolist()
        for place in gone:
            open_.setdefault(keys[place].tobytes(), set()).add(str(ids[place]))
    for item, keys, _ in entries:
        ids_ = {i for key in keys for i in open_.pop(key.tobytes(), ())}
        item |= {"images_lost": len(ids_), "images": sorted(ids_)}
    # Whose key is not known any more is charged to the first shard of which that is so.
    for item, _, unknown in entries:
        if unknown and open_:
            ids_ = {*item["images"], *(i for ids in open_.values() for i in ids)}
            item |= {"images_lost": len(ids_), "images": sorted(ids_)}
            open_ = {}


def repair_header(path: str | os.PathLike[str], *, disk: Disk | None = None) -> list[dict[str, Any]]:
    """Rebuild a damaged or missing store.json from the store's shards, each of which says what the spec was.

    Parameters
    ----------
    path : path-like
        The store's folder.
    disk : Disk, default=None
        The layer to use.

    Returns
    -------
    list of dict
        What was done, as `CheckReport.repaired`; empty when store.json is sound.

    Raises
    ------
    NotAStore
        When there is no store.json, and no shard either.
    DamagedStore
        When no shard can be read, or shards contradict each other.
    StoreTooNew
        When a newer featcache wrote it.
    """
    root = Path(path)
    try:
        read_header(root)
        return []
    except (DamagedStore, NotAStore) as error:
        reason: StoreError = error
    if not (root / "shards").is_dir():
        raise reason
    require_own_folders(root)
    about = _spec_of_shards(root, reason)
    header = {
        "format": "featcache",
        "format_version": FORMAT_VERSION,
        **about,
        "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    header["xxh3"] = checksum(header)
    place, action = root / "store.json", "rebuilt"
    if place.is_symlink() or (place.exists() and not place.is_file()):
        action = f"rebuilt; the old one set aside as {set_aside(root, place, disk)}"
    elif place.exists():
        # Only copied: there is a store.json at any moment, the old one until the new one takes its place.
        action = f"rebuilt; the old one set aside as {keep_copy(root, place, disk).relative_to(root).as_posix()}"
    data = json.dumps(header, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")
    publish_bytes(place, data, replace=True, disk=disk)
    read_header(root)
    return [
        {
            "file": "store.json",
            "action": action,
            "rows_saved": 0,
            "images_lost": 0,
            "images": [],
            "note": "from what the shards say",
        }
    ]


def _spec_of_shards(root: Path, reason: StoreError) -> dict[str, Any]:
    """Return fingerprint, spec and locator that all readable shards agree on."""
    found: dict[str, tuple[str, dict[str, Any]]] = {}
    for path in sorted((root / "shards").glob("*.h5")):
        about = _about(path)
        if about is not None:
            found.setdefault(json.dumps(about, sort_keys=True), (path.name, about))
    if not found:
        text = f"{reason}; it cannot be rebuilt either: no shard that says what its codes are can be read"
        raise (
            type(reason)(text)
            if not isinstance(reason, DamagedStore)
            else DamagedStore.at(reason.file, text.removeprefix(f"{reason.file}: "))
        )
    if len(found) > 1:
        names = " and ".join(name for name, _ in list(found.values())[:2])
        raise DamagedStore.at(
            root / "store.json",
            f"damaged or missing, and its shards are of different stores ({names}); move away those that do not belong",
        )
    return next(iter(found.values()))[1]


def _about(path: Path) -> dict[str, Any] | None:
    """Return what one shard says about its store, when that is consistent in itself."""
    layout: Layout | None
    try:
        with_container = Container(path)
        layout = Layout(with_container.kind, with_container.attributes, {}, "header")
        with_container.close()
    except DamagedStore:
        layout = find_layout(path) if path.exists() else None
    if layout is None or layout.kind != "shard":
        return None
    about: Mapping[str, Any] = layout.attributes
    spec, locator = about.get("spec"), about.get("locator")
    try:
        if not isinstance(spec, dict) or identity.fingerprint(spec) != about.get("fingerprint"):
            return None
    except (SpecError, RecursionError):
        return None
    return {"fingerprint": about["fingerprint"], "spec": spec, "locator": locator if isinstance(locator, dict) else {}}
