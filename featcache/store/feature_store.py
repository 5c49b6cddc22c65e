"""FeatureStore: the public face of a store on disk."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import StoreError
from . import keeping
from .view_store import ViewStore

if TYPE_CHECKING:
    from .check import CheckReport
    from .compacting import CompactReport
    from .keeping import GcReport

__all__ = ["FeatureStore"]


class FeatureStore(ViewStore):
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
