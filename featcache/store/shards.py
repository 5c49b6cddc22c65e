"""The shards of a store as one set of rows: opened when they are first needed, looked up by key."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DamagedStore, StoreError
from ..files import Disk, unique_name
from .container import Container
from .entries import CONSTANT, FAILED, OK
from .index import RowIndex
from .loading import Rows
from .storable import view_numbers
from .trash import TrashedKeys, bring_back, in_trash
from .writing import RowSource, write_container

__all__ = ["ShardSet"]

#: Shards that `compact` made: their names come last, and of several rows of a key the last shard's counts.
COMPACTED = "compact-"
#: So many keys at least are compared with a compacted shard's before they are searched one by one.
_WORTH_A_GUESS = 64


class ShardSet:
    """All shards of a store.

    Parameters
    ----------
    root : Path
        The store's folder.
    fingerprint : str
        Of the store's spec: a shard of another store is not read.
    verify : {"touch", "always", "off"}
        When checksums are compared.
    disk : Disk or None
        The layer that writes go through.
    """

    def __init__(self, root: Path, fingerprint: str, verify: str, disk: Disk | None) -> None:
        self._root, self._fingerprint, self._verify, self._disk = root, fingerprint, verify, disk
        #: All shards opened so far, also those that have been moved away since: numbers stay what they are.
        self._numbered: list[Container] = []
        self._open: dict[str, int] = {}
        self._damaged: dict[str, str] = {}
        self._index: RowIndex | None = None
        self._listed: list[str] = []
        self._lock = threading.RLock()
        self._trashed = TrashedKeys(root)

    def __reduce__(self) -> tuple[Any, ...]:
        # Opened afresh in another process: no handle, map or lock travels.
        return ShardSet, (self._root, self._fingerprint, self._verify, self._disk)

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self._root / "shards"

    @property
    def anything_in_trash(self) -> bool:
        """Whether there is any file in the trash, a shard or not."""
        return bool(in_trash(self._root))

    def names(self) -> list[str]:
        """Return the names of all shard files, sorted: the order that decides between rows of one key."""
        with contextlib.suppress(FileNotFoundError), os.scandir(self.folder) as entries:
            # Names that begin with a dot are other programs' (macOS puts ._x.h5 beside x.h5).
            return sorted(e.name for e in entries if e.name.endswith(".h5") and not e.name.startswith("."))
        return []

    def refresh(self) -> None:
        """Look for shards that came, went or were set aside meanwhile."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        names = self.names()
        if self._index is not None and names == self._listed:
            return
        good = [n for n in map(self._open_shard, names) if n is not None]
        # Somebody may have replaced shards since they were listed: what has gone must be looked for elsewhere.
        while (again := self.names()) != names:
            names = again
            good = [n for n in map(self._open_shard, names) if n is not None]
        self._listed = names
        self._damaged = {name: reason for name, reason in self._damaged.items() if name in names}
        self._open = {self._numbered[n].path.name: n for n in good}
        self._index = RowIndex(self._root / "index", self._numbered, good)

    def open(self, name: str) -> Container | None:
        """Return a shard by name, None when it is damaged (see `damaged`) or has been moved away."""
        number = self._open_shard(name)
        return None if number is None else self._numbered[number]

    def _open_shard(self, name: str) -> int | None:
        """Return a shard's number, None when it is damaged (see `damaged`) or has been moved away."""
        if name not in self._open:
            path = self.folder / name
            try:
                shard = Container(path, self._verify)
                _require_shard(shard, self._fingerprint)
                self._numbered.append(shard)
                self._open[name] = len(self._numbered) - 1
                self._damaged.pop(name, None)
            except DamagedStore as error:
                if path.is_symlink() or path.exists():
                    self._damaged[name] = str(error)
                return None
        return self._open[name]

    @property
    def index(self) -> RowIndex:
        """Key → row."""
        if self._index is None:
            self.refresh()
        assert self._index is not None
        return self._index

    @property
    def all(self) -> list[Container]:
        """The readable shards by number: as they were opened, by name, then as they came."""
        return list(self.index.shards)

    @property
    def damaged(self) -> dict[str, str]:
        """Shards that cannot be read, or some of whose keys cannot, with the reason; their rows count as missing."""
        return {**self._damaged, **(self._index.damaged if self._index is not None else {})}

    @property
    def nodes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one row per node, from the newest shard; empty before the first one."""
        if not self.index.shards:
            self.refresh()  # somebody may have published the first one since
        for shard in reversed(self.index.shards):
            return {n: tuple(shard.region("x/" + n)["shape"][1:]) for n in shard.attributes["nodes"]}
        return {}

    def find(self, keys: np.ndarray, view_number: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return (shard, row) of each key; −1 where it has none."""
        return self.index.find(keys, view_number)

    def find_anywhere(self, keys: np.ndarray, view_number: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Look keys up among the known shards and in the trash: what somebody asks for is no garbage."""
        shard, row = self.find(keys, view_number)
        missing = shard < 0
        if not view_number and missing.any() and self._trashed.any_of(keys[missing]):
            self._bring_back(keys[missing])
            shard, row = self.find(keys, view_number)
        return shard, row

    def find_all(self, keys: np.ndarray, view_number: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Look keys up among the shards that are there now; before any is called missing, look everywhere."""
        self.refresh()
        if not view_number and (at := self._compacted_place(keys)) is not None:
            return np.full(len(keys), at[0]), at[1] + np.arange(len(keys))
        shard, row = self.find(keys, view_number)
        if view_number:
            return shard, row
        if (shard < 0).any():
            self.refresh()  # once more: a shard that was moved away while we listed them may stand in a compacted one
            self.index.rebuild()
            shard, row = self.find(keys)
        if (shard < 0).any():
            self._bring_back(keys[shard < 0])
            shard, row = self.find(keys)
        return shard, row

    def _compacted_place(self, keys: np.ndarray) -> tuple[int, int] | None:
        """Return (shard, first row) where a compacted shard holds just these rows in this order, without a search."""
        if len(keys) < _WORTH_A_GUESS:
            return None
        known = self._open  # replaced, never changed in place, but by another thread's shard
        for name in sorted(known, reverse=True):
            number = known[name]
            starts = self._numbered[number].attributes.get("views")
            if not isinstance(starts, dict):
                continue
            for start in {s for s in starts.values() if type(s) is int and s >= 0}:
                if self._holds(number, start, keys[:1]) and self._holds(number, start, keys):
                    return number, start
        return None

    def _holds(self, number: int, start: int, keys: np.ndarray) -> bool:
        """Tell whether the plain images of these keys lie in a shard from one row on."""
        container, stop = self._numbered[number], start + len(keys)
        if stop > container.region("key")["shape"][0]:
            return False
        theirs, good = container.read_rows("key", np.arange(start, stop))
        views, sound = container.read_rows("view_number", np.arange(start, stop))
        return bool((good & sound).all()) and not views.any() and np.array_equal(theirs, keys)

    def _bring_back(self, keys: np.ndarray) -> None:
        """Take shards out of the trash that hold what is missing; where nothing can be written, it stays missing."""
        with contextlib.suppress(OSError):
            bring_back(self._root, keys, self._disk)
        self.refresh()

    def status(self, keys: np.ndarray) -> np.ndarray:
        """Return OK, CONSTANT or (where a key has no row) FAILED: uint8 of shape (n,)."""
        shard, row = self.find(keys)
        status = np.full(len(keys), FAILED, dtype="u1")
        for number in np.unique(shard[shard >= 0]).tolist():
            mine = np.flatnonzero(shard == number)
            flagged, good = self.index.shards[number].read_rows("constant", row[mine])
            status[mine] = np.where(good, np.where(flagged != 0, CONSTANT, OK), FAILED)
        return status

    def rows(self, shard: np.ndarray, row: np.ndarray, node: str, keys: np.ndarray | None = None) -> Rows:
        """Return the rows of one node that `find` found; with their keys, from where they lie in order, if they do."""
        if keys is not None and self._in_order(keys, shard, row):
            row = int(row[0]) + np.arange(len(row))
        return Rows(self.index.shards, shard, row, node, self.nodes[node])

    def span(self, keys: np.ndarray, shard: np.ndarray, row: np.ndarray, node: str) -> np.ndarray | None:
        """Return the rows of `keys`, found at (shard, row), as a slice of one shard where they lie in order there."""
        if not self._in_order(keys, shard, row):
            return None
        return self.index.shards[int(shard[0])].span("x/" + node, int(row[0]), int(row[0]) + len(keys))

    def _in_order(self, keys: np.ndarray, shard: np.ndarray, row: np.ndarray) -> bool:
        """Tell whether the rows of `keys`, found at (shard, row), lie in order in one shard.

        A compacted shard holds a view's rows in its order, a repeated one as often as the view names it.
        """
        if not len(keys) or (shard != shard[0]).any():
            return False
        if (np.diff(row) == 1).all():
            return True
        return self._holds(int(shard[0]), int(row[0]), keys)

    def publish(
        self,
        keys: np.ndarray,
        codes: Mapping[str, RowSource],
        *,
        view_number: np.ndarray,
        constant: np.ndarray,
        attributes: Mapping[str, Any],
        prefix: str = "",
    ) -> str:
        """Write one shard; when this returns, it survives a crash. Returns its name."""
        name = prefix + unique_name(".h5")
        write_container(
            self._root / "tmp",
            name,
            self.folder / name,
            kind="shard",
            attributes={
                "fingerprint": self._fingerprint,
                "rows": len(keys),
                "nodes": sorted(codes),
                "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                **attributes,
            },
            datasets={},
            grouped={
                "key": np.ascontiguousarray(keys, dtype="u1"),
                "view_number": view_numbers(self._root, view_number, len(keys)),
                "constant": np.ascontiguousarray(constant, dtype="u1"),
                **{"x/" + node: rows for node, rows in codes.items()},
            },
            disk=self._disk,
        )
        self._take_in(name)
        return name

    def _take_in(self, name: str) -> None:
        """Know a shard that was published just now, unless somebody's refresh was faster."""
        with self._lock:
            number = self._open_shard(name)
            if number is None:
                raise DamagedStore(self._damaged.get(name, f"{self.folder / name}: gone as soon as it was written"))
            if self._index is not None and name not in self._listed:
                self._index.add(number)
                self._listed = sorted([*self._listed, name])

    def require_alike(self, where: Path, keys: np.ndarray, rows: Mapping[str, np.ndarray], flags: np.ndarray) -> None:
        """Refuse rows that readers could not read together with those that are there."""
        if keys.ndim != 2 or keys.shape[1] != 32 or flags.shape != (len(keys),):
            raise StoreError(f"{where}: expected keys of shape (n, 32) and n flags, got keys {keys.shape}")
        given = {name: array.shape[1:] for name, array in rows.items()}
        nodes = self.nodes
        if not given or (nodes and given != nodes):
            raise StoreError(f"{where}: expected codes of {nodes or 'some node'} per row, got {given}")


def _require_shard(shard: Container, fingerprint: str) -> None:
    """Refuse a file that is sound in itself, but no shard of this store."""
    about = shard.attributes
    if shard.kind != "shard" or about.get("fingerprint") != fingerprint:
        raise DamagedStore.at(shard.path, "belongs to another store; move it away")
    nodes = about.get("nodes")
    if not isinstance(nodes, list) or not nodes or not all(isinstance(node, str) for node in nodes):
        raise shard.damage(f"nodes {nodes!r}")
    if not isinstance(about.get("computed"), dict):
        raise shard.damage("it does not say how its codes were computed")
    n = (shard.region("key")["shape"] or [0])[0]
    for name, dtype, shape in (("key", "uint8", [n, 32]), ("view_number", "uint16", [n]), ("constant", "uint8", [n])):
        region = shard.region(name)
        if region["shape"] != shape or region["dtype"] != dtype or "groups" not in region:
            raise shard.damage(f"region {name!r} of type {region['dtype']} and shape {region['shape']}")
        shard.array(shard.region(name)["groups"])  # the checksums themselves; rows are verified when they are touched
    for node in nodes:
        region = shard.region(f"x/{node}")
        if "groups" not in region or len(region["shape"]) < 2 or region["shape"][0] != n:
            raise shard.damage(f"region 'x/{node}' of shape {region['shape']}")
