"""The lower half of a store: the folder, and rows of codes by key."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from .. import fingerprint as identity
from ..errors import SpecMismatch, StoreError
from ..files import DISK, Disk, make_folder, remove_stale
from .container import Container
from .costs import CostRecord
from .digests import DigestCache
from .header import FOLDERS, check_place, lay_out, read_header, require_own_folders
from .index import RequestCache
from .pins import hold_pin
from .shards import ShardSet
from .storable import require_names, view_numbers

__all__ = ["RowStore"]

_STALE_SECONDS = 86_400.0
#: What a process that was killed may leave behind: folder, pattern of the names.
_LEFTOVERS = (
    ("tmp", "*"),
    ("pins", ".*.tmp"),
    ("index", ".*.tmp"),
    ("index", "gathered-*"),
    ("", ".store.json.*.tmp"),
)


class RowStore:
    """Rows of codes by key in a folder; see `FeatureStore`, which adds views."""

    def __init__(self, path: str | os.PathLike[str], *, verify: str = "touch", disk: Disk | None = None) -> None:
        if verify not in ("touch", "always", "off"):
            raise ValueError(f"verify: expected 'touch', 'always' or 'off', got {verify!r}")
        self.path = Path(path)
        self.report: Any = None
        self._verify = verify
        self._disk = disk
        header = read_header(self.path)
        require_own_folders(self.path)
        self.spec: dict[str, Any] = header["spec"]
        self.fingerprint: str = header["fingerprint"]
        self.locator: dict[str, Any] = header.get("locator") or {}
        self._shards = ShardSet(self.path, self.fingerprint, self._verify, self._disk)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, fingerprint={self.fingerprint[:12]!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "report": None}

    # -- opening ---------------------------------------------------------------------------------------------------

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: str = "touch", disk: Disk | None = None) -> Self:
        """Open an existing store.

        Raises
        ------
        NotAStore
            When there is none at `path`.
        StoreTooNew
            When a newer featcache wrote it.
        DamagedStore
            When its store.json is damaged.
        """
        return cls(path, verify=verify, disk=disk)

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        spec: Mapping[str, Any],
        *,
        locator: Mapping[str, Any] | None = None,
        verify: str = "touch",
        disk: Disk | None = None,
    ) -> Self:
        """Create a store, or adopt the one that is there when its spec is the same.

        Parameters
        ----------
        path : path-like
            A folder that does not exist, is empty, or is a store.
        spec : mapping
            The extraction spec.
        locator : mapping, default=None
            Where the weights came from.
        verify, disk
            As in the constructor.

        Returns
        -------
        FeatureStore

        Raises
        ------
        SpecMismatch
            When the store there holds codes of another spec; the store is untouched.
        StoreError
            When the folder holds other things, or cannot be written.
        """
        root = Path(path)
        if not (root / "store.json").exists():
            lay_out(root, dict(spec), dict(locator or {}), disk)
        store = cls(root, verify=verify, disk=disk)
        store.prepare(spec)
        return store

    @staticmethod
    def check_place(path: str | os.PathLike[str]) -> None:
        """Raise StoreError when `create` would for what is at `path`: a file, or a folder that holds other things."""
        check_place(Path(path))

    @staticmethod
    def warm_up() -> None:
        """Import HDF5, which otherwise happens with the first shard that a process writes."""
        import h5py  # noqa: F401

    def prepare(self, spec: Mapping[str, Any]) -> None:
        """Make ready for writing codes of `spec`, or raise SpecMismatch; sweep what dead writers left."""
        self.require(spec)
        for name in FOLDERS:
            make_folder(self.path / name, disk=self._disk)
        # Whoever made the store may have died before syncing it; rows are only as durable as the way to them.
        for holder in (self.path, self.path.absolute().parent):
            (self._disk or DISK).fsync_folder(holder)
        views = [(f"snapshots/{p.name}", ".*.tmp") for p in (self.path / "snapshots").iterdir() if not p.is_symlink()]
        for folder, names in (*_LEFTOVERS, *views):
            remove_stale(self.path / folder, _STALE_SECONDS, names=names, disk=self._disk)

    def require(self, spec: Mapping[str, Any]) -> None:
        """Raise SpecMismatch, with every difference, unless `spec` is this store's."""
        if identity.fingerprint(spec) != self.fingerprint:
            difference = "; ".join(identity.describe_difference(self.spec, spec)) or "the form of the spec"
            raise SpecMismatch(
                f"{self.path}: the store holds other codes than these would be ({difference}); "
                "give another store with -o, or the store's own settings"
            )

    # -- shards ----------------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Look for shards that other writers have published meanwhile."""
        self._shards.refresh()

    @property
    def shards(self) -> list[Container]:
        """The readable shards: oldest first, compacted ones last."""
        return self._shards.all

    @property
    def empty(self) -> bool:
        """Whether no key can have a row: there are no shards, and none in the trash."""
        return not self._shards.all and not self._shards.damaged and not self._shards.anything_in_trash

    @property
    def damaged(self) -> dict[str, str]:
        """Shards that cannot be read, with the reason; their rows count as missing."""
        return self._shards.damaged

    def has(self, keys: np.ndarray, *, view_number: int = 0) -> np.ndarray:
        """Tell which content keys have a row of codes.

        Parameters
        ----------
        keys : ndarray of uint8 of shape (n, 32)
            Content keys.
        view_number : int, default=0
            0 = the plain image, 1… = augmented views.

        Returns
        -------
        ndarray of bool of shape (n,)
        """
        return self._shards.find_anywhere(keys, view_number)[0] >= 0

    def locate(self, keys: np.ndarray, *, view_number: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Return where each key's row lies: number in `shards` and row, −1 where there is none after a fresh look."""
        return self._shards.find_all(keys, view_number)

    def status(self, keys: np.ndarray) -> np.ndarray:
        """Return OK, CONSTANT or (where a key has no row) FAILED: uint8 of shape (n,)."""
        return self._shards.status(keys)

    def codes(self, keys: np.ndarray, node: str, *, view_number: int = 0) -> np.ndarray:
        """Return the stored codes of some keys as float32 of shape (n, *shape); all of them must be there."""
        return self._shards.rows(*self._found(keys, view_number), node).gather()

    def _found(self, keys: np.ndarray, view_number: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (shard, row) of each key's row of a view number; StoreError where one has none."""
        shard, row = self._shards.find_all(keys, view_number) if view_number else self._shards.find(keys)
        missing = int((shard < 0).sum())
        if missing:
            what = f"augmented view {view_number}; extract with --augmented {view_number}" if view_number else "codes"
            raise StoreError(f"{self.path}: {missing} of {len(keys)} keys have no {what} in the store")
        return shard, row

    def append(
        self,
        keys: np.ndarray,
        codes: Mapping[str, np.ndarray],
        *,
        constant: np.ndarray | None = None,
        computed: Mapping[str, Any] | None = None,
        view_number: int | np.ndarray = 0,
    ) -> str:
        """Publish rows of codes: when this returns, they survive a crash.

        Parameters
        ----------
        keys : ndarray of uint8 of shape (n, 32)
            Content keys.
        codes : mapping of str to ndarray of shape (n, *shape)
            One array per node; stored in the spec's dtype.
        constant : ndarray of bool of shape (n,), default=None
            Rows whose codes are all equal: stored, usable, and flagged.
        computed : mapping, default=None
            How: device, mode, versions. Recorded, never part of the identity.
        view_number : int or ndarray of int of shape (n,), default=0
            0 = the plain image, 1… = augmented views.

        Returns
        -------
        str
            Name of the shard.

        Raises
        ------
        OSError
            When the disk refuses; nothing has been published, earlier rows are unharmed.
        StoreError
            When the arrays do not belong together or hold NaN or Inf, or a name or view number cannot be stored.
        """
        keys = np.ascontiguousarray(keys, dtype="u1")
        numbers = view_numbers(self.path, view_number, len(keys))
        rows = {node: self._stored(node, array, len(keys)) for node, array in codes.items()}
        flags = np.zeros(len(keys), "u1") if constant is None else np.asarray(constant, dtype="u1")
        self._shards.require_alike(self.path, keys, rows, flags)
        require_names(self.path, "node", rows)
        return self._shards.publish(
            keys,
            rows,
            view_number=numbers,
            constant=flags,
            attributes={"computed": dict(computed or {}), **self._about()},
        )

    def _about(self) -> dict[str, Any]:
        """What each shard says about the store, so that one shard is enough to know what its codes are."""
        return {"spec": self.spec, "locator": self.locator}

    def _stored(self, node: str, array: np.ndarray, n: int) -> np.ndarray:
        array = np.asarray(array)
        if array.ndim < 2 or len(array) != n:
            raise StoreError(f"{self.path}: node {node!r}: expected {n} rows of codes, got shape {array.shape}")
        stored = array.astype(np.dtype(self.spec.get("dtype", "float32")).newbyteorder("<"), copy=False)
        if not np.isfinite(stored).all():
            raise StoreError(
                f"{self.path}: node {node!r}: NaN or Inf among the codes (as {stored.dtype}); "
                "such images belong in the ledger"
            )
        return stored

    # -- what the joiners use ---------------------------------------------------------------------------------------

    @property
    def nodes(self) -> dict[str, tuple[int, ...]]:
        """Shape of one row per node, from the newest shard; empty before the first one."""
        return self._shards.nodes

    def pin(self) -> contextlib.AbstractContextManager[None]:
        """Return a context in which `gc`, anywhere, moves nothing that this writer may count on."""
        return hold_pin(self.path, self._disk)

    @property
    def digests(self) -> DigestCache:
        """A fresh view of the private cache of file digests."""
        return DigestCache(self.path / "index" / "digests.bin")

    @property
    def costs(self) -> CostRecord:
        """A fresh view of the private record of what extractions took."""
        return CostRecord(self.path / "index" / "cost.json")

    @property
    def requests(self) -> RequestCache:
        """A fresh view of the private cache of requests."""
        return RequestCache(self.path / "index" / "requests.json")
