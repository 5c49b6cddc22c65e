"""compact: one shard in the order of a view, in place of many small ones.

Nothing is changed but one shard added, whose rows from then on count. The shards that it stands for are left to `gc`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import StoreError
from .container import Container
from .keeping import kept_states
from .shards import COMPACTED, ShardSet
from .snapshot import live_keys

if TYPE_CHECKING:
    from .feature_store import FeatureStore

__all__ = ["CompactReport", "compact_store"]

#: Free space that is left alone.
_SPARE_BYTES = 64 << 20


@dataclass(frozen=True)
class CompactReport:
    """What `FeatureStore.compact` did.

    Attributes
    ----------
    shard : str
        Name of the new shard; "" when there was nothing to do.
    rows, bytes : int
        What it holds.
    merged : int
        How many shards it stands for; `gc` drops them after its grace period.
    views : list of str
        Views that `load` now maps without a copy.
    """

    shard: str
    rows: int
    bytes: int
    merged: int
    views: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, eq=False)
class _Chosen:
    """Rows of many shards as one array, made block by block; see `writing.RowSource`."""

    shards: Sequence[Container]
    number: np.ndarray
    row: np.ndarray
    name: str

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.row), *self.shards[int(self.number[0])].region(self.name)["shape"][1:])

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.shards[int(self.number[0])].region(self.name)["dtype"]).newbyteorder("<")

    def __getitem__(self, rows: slice) -> np.ndarray:
        number, row = self.number[rows], self.row[rows]
        out = np.empty((len(row), *self.shape[1:]), self.dtype)
        for one in np.unique(number).tolist():
            mine = np.flatnonzero(number == one)
            out[mine] = self.shards[one].rows(self.name, row[mine])
        return out


def compact_store(store: FeatureStore, shards: ShardSet, view: str | None) -> CompactReport:
    """Merge what kept states need into one shard; see `FeatureStore.compact`."""
    views = _in_order(store, view)
    keys, firsts = _keys_of(store, views)
    shards.refresh()
    if not len(keys):
        return CompactReport("", 0, 0, 0, [])
    number, row, numbers_of_views = _rows_of(store, shards, keys)
    if _is_done(shards, number, row, len(keys)):
        return CompactReport("", 0, 0, 0, list(firsts))
    sources = [shards.all[n] for n in np.unique(number).tolist()]
    chosen = {name: _Chosen(shards.all, number, row, name) for name in _regions(sources[0])}
    _require_room(store, chosen)
    newest = max(sources, key=lambda s: str(s.attributes.get("created", "")))
    name = shards.publish(
        chosen["key"][:],
        {region.removeprefix("x/"): rows for region, rows in chosen.items() if region.startswith("x/")},
        view_number=numbers_of_views,
        constant=chosen["constant"][:],
        attributes={
            "computed": newest.attributes.get("computed", {}),
            "merged": [s.path.name for s in sources],
            "views": firsts,
            "spec": store.spec,
            "locator": store.locator,
        },
        prefix=COMPACTED,
    )
    shards.index.save()
    size = (shards.folder / name).stat().st_size
    return CompactReport(name, len(row), size, len(sources), list(firsts))


def _regions(shard: Container) -> list[str]:
    return ["key", "constant", *(f"x/{node}" for node in shard.attributes["nodes"])]


def _in_order(store: FeatureStore, view: str | None) -> list[str]:
    """Return the views, the one that is to lie first in front."""
    views = store.views
    first = view if view is not None else ("main" if "main" in views else views[0] if views else None)
    if first is None or first not in views:
        asked = "view to compact" if first is None else f"view {first!r}"
        raise StoreError(f"{store.path}: no {asked}; it has {', '.join(views) or 'none yet: run extract'}")
    return [first, *(v for v in views if v != first)]


def _keys_of(store: FeatureStore, views: Sequence[str]) -> tuple[np.ndarray, dict[str, int]]:
    """Return the keys in the order in which their rows shall lie, and where each view begins that lies in order.

    The first view in its own order, with an image that it names twice standing twice, so that it is one slice; then
    other views of which nothing stands there yet; then what else kept states name.
    """
    order = _Order()
    for view in views:
        for state in kept_states(store, view, store.snapshots(view)[-1:]):
            order.add_view(view, state.entries.keys[state.entries.stored])
    for view in views:
        for keys in live_keys(kept_states(store, view, store.snapshots(view))):
            order.add(keys)
    return order.keys, order.firsts


class _Order:
    """Keys one after the other.

    What stands already is told by the first eight bytes of a key: two keys that share them are taken for one, and the
    other's row stays in its shard, which `gc` then keeps.
    """

    def __init__(self) -> None:
        self.keys = np.zeros((0, 32), "u1")
        self.firsts: dict[str, int] = {}
        self._seen = np.zeros(0, "<u8")

    def add_view(self, view: str, keys: np.ndarray) -> None:
        """Add a whole view, in its order, where nothing of it stands yet; otherwise what is new of it."""
        if np.isin(_prefixes(keys), self._seen).any():
            self.add(keys)
        else:
            self.firsts[view] = len(self.keys)
            self._take(keys)

    def add(self, keys: np.ndarray) -> None:
        """Add those keys that do not stand yet, each once."""
        _, first = np.unique(_prefixes(keys), return_index=True)
        keys = keys[np.sort(first)]
        self._take(keys[~np.isin(_prefixes(keys), self._seen)])

    def _take(self, keys: np.ndarray) -> None:
        self.keys = np.concatenate([self.keys, keys])
        self._seen = np.concatenate([self._seen, _prefixes(keys)])


def _prefixes(keys: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keys[:, :8]).view("<u8").ravel()


def _rows_of(store: FeatureStore, shards: ShardSet, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return shard, row and view number of all rows to be written: the plain images first, then augmented views."""
    shard, row = shards.find_all(keys)
    if (shard < 0).any():
        raise StoreError(
            f"{store.path}: {int((shard < 0).sum())} images have no codes in the store; run extract again, then compact"
        )
    found = [(shard, row, np.zeros(len(row), "<u2"))]
    others = {int(n) for s in shards.all for n in np.unique(s.array("view_number")).tolist()} - {0}
    once = np.unique(np.ascontiguousarray(keys).view("V32").ravel()).view("u1").reshape(-1, 32) if others else keys
    for view_number in sorted(others):
        shard, row = shards.find(once, view_number)
        there = shard >= 0
        found.append((shard[there], row[there], np.full(int(there.sum()), view_number, "<u2")))
    number, rows, views = (np.concatenate(column) for column in zip(*found, strict=True))
    return number, rows, views


def _is_done(shards: ShardSet, number: np.ndarray, row: np.ndarray, n: int) -> bool:
    """Tell whether all rows lie in one shard already, those of the view one after the other."""
    if len(np.unique(number)) != 1 or len(shards.all[int(number[0])].array("key")) != len(row):
        return False
    keys = shards.all[int(number[0])].array("key")
    return bool(np.array_equal(keys[row[:n]], keys[:n]))


def _require_room(store: FeatureStore, chosen: dict[str, _Chosen]) -> None:
    size = sum(int(np.prod(rows.shape, dtype=np.int64)) * rows.dtype.itemsize for rows in chosen.values())
    free = shutil.disk_usage(store.path).free
    if free < size + _SPARE_BYTES:
        raise StoreError(
            f"{store.path}: compacting writes {size >> 20} MiB beside what is there, and {free >> 20} MiB are free; "
            "make room, or run gc first"
        )
