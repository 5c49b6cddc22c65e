"""Views of a store: committing them and loading them."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DamagedStore, MissingCodes, StoreError
from ..features import FeatureSet
from .entries import Entries
from .row_store import RowStore
from .snapshot import Snapshot, change_between, publish_snapshot, read_snapshot
from .storable import plain_source, require_columns, require_fit, roles_of
from .views import check_view_name, list_snapshots, listed, parse_state, view_names

if TYPE_CHECKING:
    from .training import CodesDataset

__all__ = ["ViewStore"]

_ROLES = ("label", "group", "split")
#: Where another writer holds a snapshot's number (file systems without links), ask again after so long.
_CLAIMED_SECONDS = 0.05


class ViewStore(RowStore):
    """The part of `FeatureStore` that knows which images a data set has, and what belongs to each."""

    # -- views and snapshots ---------------------------------------------------------------------------------------

    @property
    def views(self) -> list[str]:
        """Names of the views that have been committed."""
        return view_names(self.path)

    def snapshots(self, view: str = "main") -> list[int]:
        """Return the numbers of a view's snapshots, oldest first."""
        return list_snapshots(self.path, check_view_name(view))

    def snapshot(self, view: str = "main", number: int | None = None) -> Snapshot | None:
        """Return a state of a view: the newest, or the one of the given number; None when the view is empty.

        Parameters
        ----------
        view : str, default="main"
            Name of the view, or of a state: ``"main@3"``.
        number : int, default=None
            Which state; None = the newest.

        Returns
        -------
        Snapshot or None

        Raises
        ------
        StoreError
            When that number does not exist.
        DamagedStore
            When the snapshot is damaged.
        """
        view, named = parse_state(view)
        numbers = self.snapshots(view)
        number = named if number is None else number
        if number is None:
            number = numbers[-1] if numbers else None
        if number is None:
            return None
        if number not in numbers:
            raise StoreError(f"{self.path}: view {view!r} keeps no snapshot {number}; it keeps {listed(numbers)}")
        return read_snapshot(self.path, view, number, self.fingerprint, self._verify)

    def commit(
        self,
        entries: Entries,
        *,
        view: str = "main",
        parent: Snapshot | None = None,
        keep_old: bool = False,
        roles: Mapping[str, str] | None = None,
        source: Mapping[str, Any] | None = None,
    ) -> Snapshot:
        """Make `entries` the new state of a view, or add them to it.

        Compare-and-swap: when another writer commits first, the change is merged into that writer's state, so that
        neither loses a line.

        Parameters
        ----------
        entries : Entries
            Lines whose keys must all be in the store (except failed ones).
        view : str, default="main"
            Name of the view.
        parent : Snapshot, default=None
            The state that `entries` was made from; the newest when not given.
        keep_old : bool, default=False
            Add to the view instead of making it equal to `entries`.
        roles : mapping, default=None
            Role ("label", "group", "split") → column name.
        source : mapping, default=None
            Where the images came from; recorded.

        Returns
        -------
        Snapshot
            The new state, or the old one when nothing changed.

        Raises
        ------
        MissingCodes
            When keys have no row.
        StoreError
            When columns, ids, roles or the source are such that they could not be read again; nothing is written.
        OSError
            When the disk refuses; the view is as it was.
        """
        check_view_name(view)
        require_columns(self.path, entries)
        given = None if source is None else plain_source(self.path, source)
        self._resolve(entries)
        head = parent if parent is not None else self.snapshot(view)
        change = change_between(head, entries, keep_old=keep_old)
        self._shards.index.save()
        while True:
            replaces = not keep_old and len(change.upserts) == len(entries)
            new_roles = roles_of(self.path, head, entries, roles, replaces=replaces)
            require_fit(self.path, head, change)
            new_source = dict(given or (head.source if head else {}))
            if head is not None and not change and new_roles == head.roles and new_source == head.source:
                return head
            try:
                number = publish_snapshot(
                    self.path,
                    head,
                    view,
                    change,
                    roles=new_roles,
                    source=new_source,
                    fingerprint=self.fingerprint,
                    disk=self._disk,
                )
                self._resolve(entries)  # again: what was collected before the state was there to be seen comes back
                return read_snapshot(self.path, view, number, self.fingerprint, self._verify)
            except FileExistsError:
                lost_to, head = head, self.snapshot(view)
                if head is None or (lost_to is not None and head.number == lost_to.number):
                    time.sleep(_CLAIMED_SECONDS)

    def _resolve(self, entries: Entries) -> tuple[np.ndarray, np.ndarray]:
        """Find the rows of all lines that have one; DamagedStore or StoreError when some have none."""
        shard, row = self._shards.find_all(entries.keys[entries.stored])
        lost = np.flatnonzero(shard < 0)
        if len(lost):
            name = entries.ids[entries.stored][lost[0]]
            if self.damaged:
                raise DamagedStore(
                    f"{next(iter(self.damaged.values()))}; it costs up to {len(lost)} images ({name!r}, …); "
                    "move the file away and extract again"
                )
            raise MissingCodes(
                f"{self.path}: {len(lost)} images ({name!r}, …) have no codes in the store; run extract again"
            )
        return shard, row

    # -- reading ---------------------------------------------------------------------------------------------------

    def load(
        self,
        view: str = "main",
        *,
        node: str | None = None,
        snapshot: int | None = None,
        label: str | None = None,
        group: str | None = None,
        split: str | None = None,
        in_memory: bool | None = None,
        view_number: int = 0,
    ) -> FeatureSet:
        """Load a view as a FeatureSet, rows sorted by id.

        Parameters
        ----------
        view : str, default="main"
            Name of the view, or of a state of it: ``"main@3"``.
        node : str, default=None
            Which node's codes; needed only when the store has several.
        snapshot : int, default=None
            An older state, by number; the newest when not given.
        label, group, split : str, default=None
            Names of the columns to use in these roles, in place of the source's own.
        in_memory : bool, default=None
            True: float32 in memory; False: a read-only map in stored dtype; None: in memory while that takes less than
            a quarter of the machine's RAM.
        view_number : int, default=0
            0 = codes of the plain images, 1… = of their augmented views (``extract(..., augmented=K)``).

        Returns
        -------
        FeatureSet
            X of shape (n_samples, *shape of the node). Failed images are not in it; see `info`.

        Raises
        ------
        StoreError
            When the view, node or column does not exist.
        DamagedStore
            When a shard that is needed is damaged.
        """
        state = self._state(view, snapshot)
        entries = state.entries.take(state.entries.stored)
        name = self._choose_node(node)
        roles = {**state.roles, **{r: c for r, c in zip(_ROLES, (label, group, split), strict=True) if c is not None}}
        chosen = {role: self._role_column(entries, role, column) for role, column in roles.items()}
        return FeatureSet(
            self._codes(entries, name, in_memory, view_number),
            chosen.get("label"),
            entries.ids,
            chosen.get("group"),
            chosen.get("split"),
            spec=self.spec,
            locator=self.locator,
            node=name,
            fingerprint=self.fingerprint,
            columns=dict(entries.columns),
            name=self.path.name,
            extract_seconds=self.costs.seconds_per_image,
        )

    def dataset(
        self,
        view: str = "main",
        *,
        node: str | None = None,
        snapshot: int | None = None,
        label: str | None = None,
        group: str | None = None,
        split: str | None = None,
        rows: np.ndarray | Sequence[int] | None = None,
        unlabelled: bool = False,
    ) -> CodesDataset:
        """Open a view as a data set to train on, for PyTorch's DataLoader or plain NumPy; nothing is read yet.

        Parameters
        ----------
        view : str, default="main"
            Name of the view; "main@3" names a state, too.
        node, snapshot, label, group, split
            As of `load`.
        rows : array-like, default=None
            Rows of the view (numbers in the order of `load`, repeats allowed, or a mask); all when not given.
        unlabelled : bool, default=False
            Keep rows without a label, as class −1; otherwise they are left out.

        Returns
        -------
        CodesDataset
            Of this very state, whatever is committed later, in this process and in those that it is sent to.

        Raises
        ------
        StoreError
            When the view, node or column does not exist, or no row has a label.
        DamagedStore
            When a file that is needed is damaged.
        """
        from .training import CodesDataset

        return CodesDataset.of(
            self,
            view,
            node=self._choose_node(node),
            verify=self._verify,
            snapshot=snapshot,
            roles=dict(zip(_ROLES, (label, group, split), strict=True)),
            rows=rows,
            unlabelled=unlabelled,
        )

    def _choose_node(self, node: str | None) -> str:
        nodes = list(self.nodes)
        if not nodes and self.damaged:
            raise DamagedStore(next(iter(self.damaged.values())))
        if node is None and len(nodes) > 1:
            raise StoreError(f"{self.path}: the store has several nodes; choose one with node=: {', '.join(nodes)}")
        if node is not None and node not in nodes:
            raise StoreError(f"{self.path}: no node {node!r}; it has {', '.join(nodes) or 'no codes yet'}")
        if not nodes:
            raise StoreError(f"{self.path}: no codes yet; run extract")
        return node or nodes[0]

    def _role_column(self, entries: Entries, role: str, column: str) -> np.ndarray:
        if column not in entries.columns:
            raise StoreError(
                f"{self.path}: no column {column!r} for the {role}; it has {', '.join(entries.columns) or 'none'}"
            )
        return entries.columns[column]

    def _codes(self, entries: Entries, node: str, in_memory: bool | None, view_number: int = 0) -> np.ndarray:
        shard, row = self._found(entries.keys, view_number) if view_number else self._resolve(entries)
        rows = self._shards.rows(shard, row, node)
        if in_memory is None:
            in_memory = rows.fit_in_memory()
        if in_memory:
            return rows.gather()
        span = None if view_number else self._shards.span(entries.keys, shard, row, node)
        return (
            span if span is not None else rows.mapped(np.dtype(self.spec.get("dtype", "float32")), self.path / "index")
        )

    def _state(self, name: str, number: int | None = None) -> Snapshot:
        state = self.snapshot(name, number)
        if state is None:
            raise StoreError(
                f"{self.path}: no view {name!r}; it has {', '.join(self.views) or 'none yet: run extract'}"
            )
        return state
