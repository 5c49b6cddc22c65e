"""FeatureStore: the public face of a store on disk."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DamagedStore, MissingCodes, StoreError
from ..features import FeatureSet
from . import keeping
from .entries import Entries
from .row_store import RowStore
from .snapshot import Snapshot, change_between, publish_snapshot, read_snapshot
from .storable import plain_source, require_columns, require_fit, roles_of
from .views import check_view_name, list_snapshots, listed, parse_state, view_names

if TYPE_CHECKING:
    from .check import CheckReport
    from .compacting import CompactReport
    from .keeping import GcReport
    from .training import CodesDataset

__all__ = ["FeatureStore"]

_ROLES = ("label", "group", "split")
#: Where another writer holds a snapshot's number (file systems without links), ask again after so long.
_CLAIMED_SECONDS = 0.05


class FeatureStore(RowStore):
    """A store of CNN codes on disk.

    Use `FeatureStore.open` or `FeatureStore.create`. Any number of processes may read and write one store at once;
    nothing published is ever modified.

    Parameters
    ----------
    path : path-like
        The store's folder.
    verify : {"touch", "always", "off"}, default="touch"
        When checksums are compared: on first touch, on every read, never.
    disk : Disk, default=None
        The layer that writes go through (tests make it fail).

    Attributes
    ----------
    path : Path
    spec : dict
        The extraction spec: what was computed, to the last detail that matters.
    fingerprint : str
        SHA-256 of the canonical spec, hex.
    locator : dict
        Where the weights came from.
    report : object or None
        What the `extract` call that returned this store did; None otherwise.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> store = FeatureStore.create(tempfile.mkdtemp() + "/a.features", {"dtype": "float32"})
    >>> key = np.zeros((1, 32), "u1") + 7
    >>> _ = store.append(key, {"penultimate": np.ones((1, 4), "float32")})
    >>> store.has(key).tolist()
    [True]
    """

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

    # -- looking ---------------------------------------------------------------------------------------------------

    def info(self, view: str | None = None) -> dict[str, Any]:
        """Describe the store and one view of it (default: "main", or the only one) in JSON types."""
        from .describe import describe

        return describe(self, view)

    def history(self, view: str = "main") -> list[dict[str, Any]]:
        """List the states of a view, oldest first.

        Parameters
        ----------
        view : str, default="main"
            Name of the view.

        Returns
        -------
        list of dict
            ``{"name", "number", "kept", "images", "created", "source", "files"}``; retired states have ``kept`` False,
            those whose file is gone or damaged a ``reason``.
        """
        from .describe import history

        return history(self, view)

    def diff(self, before: str, after: str) -> dict[str, Any]:
        """Compare two states, also of different views.

        Parameters
        ----------
        before, after : str
            Names of states (``"main@3"``) or of views (their newest state).

        Returns
        -------
        dict
            Ids that were "added", "removed", "changed" (other content); "moved" (``{"before", "after"}``: ids among
            them that went and came with the same content); "relabelled" (``{"id", "before", "after"}``); "failed_now";
            and "columns": how many values differ in which.

        Raises
        ------
        StoreError
            When there is no such state.
        """
        from .describe import difference

        return difference(self._state(before), self._state(after))

    def _state(self, name: str, number: int | None = None) -> Snapshot:
        state = self.snapshot(name, number)
        if state is None:
            raise StoreError(
                f"{self.path}: no view {name!r}; it has {', '.join(self.views) or 'none yet: run extract'}"
            )
        return state

    def check(self, *, deep: bool = False, repair: bool = False, untrusted: bool = False) -> CheckReport:
        """Look for damage: structure, sizes and metadata; with `deep`, every checksum of every row group.

        Parameters
        ----------
        deep : bool, default=False
            Compare every checksum.
        repair : bool, default=False
            Save what holds of damaged files (each group of rows, each column), then set them aside in ``damaged/``;
            nothing is deleted. Implies `deep`; the report is of the state afterwards, and says what was done. Codes
            that were lost are computed by the next `extract`, those and no others.
        untrusted : bool, default=False
            Read the store in a child process of bounded memory and time: it may come from a stranger.

        Returns
        -------
        CheckReport
            With `ok`, `damaged` (file, reason, the images it costs) and `repaired`.

        Raises
        ------
        StoreError
            When a store that is not trusted is to be repaired.
        OSError
            When the disk refuses a repair; nothing that was good is lost, and the repair can be repeated.
        """
        if repair and untrusted:
            raise StoreError(f"{self.path}: a store that is not trusted is not repaired; drop one of the two")
        if repair:
            from .repair import repair_store

            return repair_store(self, self._disk)
        if untrusted:
            from .untrusted import check_untrusted

            return check_untrusted(self.path, deep=deep)
        from .check import check_store

        return check_store(self, deep=deep)

    # -- keeping -----------------------------------------------------------------------------------------------------

    def retire(self, view: str = "main", numbers: Sequence[int] | None = None, *, undo: bool = False) -> list[int]:
        """Give up states of a view, so that `gc` may collect what only they need.

        Parameters
        ----------
        view : str, default="main"
            Name of the view.
        numbers : sequence of int, default=None
            Which states, any but the newest; None: all of them, which drops the view as a whole.
        undo : bool, default=False
            Keep them again, as long as they have not been collected (with None: all that can be).

        Returns
        -------
        list of int
            The states that were retired (or are kept again).

        Raises
        ------
        StoreError
            When the view does not exist or does not keep such a state, or it is the newest one.
        """
        return keeping.retire(self.path, view, numbers, undo=undo, disk=self._disk)

    def gc(self, *, grace_days: float = 14.0, dry_run: bool = False) -> GcReport:
        """Collect garbage: shards that no kept state needs, and files of retired states.

        What is older than the grace period moves to a trash folder; what has lain there for another grace period is
        deleted. An interrupted extraction's rows survive the grace period, and nothing moves while somebody extracts.
        Safe beside any number of readers and writers, and at any point of a crash.

        Parameters
        ----------
        grace_days : float, default=14.0
            Days since a shard was written, or a state retired; and again days in the trash.
        dry_run : bool, default=False
            Only tell what would be done.

        Returns
        -------
        GcReport

        Raises
        ------
        DamagedStore, StoreError
            When a kept state or a shard cannot be read; nothing is collected then.
        """
        return keeping.collect(self, grace_days=grace_days, dry_run=dry_run, disk=self._disk)

    def compact(self, view: str | None = None) -> CompactReport:
        """Merge shards into one, rows in the order of a view, so that `load` maps it without a copy.

        Writes one new shard with everything that kept states need; the old shards stay until `gc` drops them. Safe
        beside any number of readers and writers, and at any point of a crash.

        Parameters
        ----------
        view : str, default=None
            Whose rows come first: "main", or the only one.

        Returns
        -------
        CompactReport

        Raises
        ------
        StoreError
            When there is no such view, images have no codes, or there is no room for the new shard.
        DamagedStore
            When a row that is needed is damaged; nothing has been written.
        """
        from .compacting import compact_store

        return compact_store(self, self._shards, view)
