"""StoredCodes: the codes of one state of a view as an array that stays on disk."""

from __future__ import annotations

import operator
import os
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import DTypeLike

from ..errors import StoreError
from .loading import Rows

if TYPE_CHECKING:
    from .entries import Entries
    from .view_store import ViewStore

__all__ = ["Place", "StoredCodes", "choose_rows", "compact_index"]


@dataclass(frozen=True)
class Place:
    """Where codes are, for good: what travels to another process in place of open files.

    Attributes
    ----------
    path : str
        The store's folder, absolute.
    fingerprint : str
        Of its spec: a store that was put in its place is refused.
    view : str
    number : int
        The state: newer ones do not change what is read.
    node : str
    verify : {"touch", "always", "off"}
    """

    path: str
    fingerprint: str
    view: str
    number: int
    node: str
    verify: str

    def open(self) -> tuple[Entries, Rows]:
        """Return the lines of the state that have codes, and where those lie.

        Raises
        ------
        StoreError
            When the store, or the state, is no longer there.
        DamagedStore
            When a file that is needed is damaged.
        """
        store = self._store()
        entries = self._entries(store)
        shard, row = store._resolve(entries)
        return entries, store._shards.rows(shard, row, self.node, entries.keys)

    def entries(self) -> Entries:
        """Return the lines of the state that have codes; raises as `open`."""
        return self._entries(self._store())

    def _store(self) -> ViewStore:
        from .view_store import ViewStore  # which imports us

        store = ViewStore.open(self.path, verify=self.verify)
        if store.fingerprint != self.fingerprint:
            raise StoreError(f"{self.path}: another store than the one that was opened is in its place; open it again")
        return store

    def _entries(self, store: ViewStore) -> Entries:
        state = store.snapshot(self.view, self.number)
        if state is None:
            raise StoreError(f"{self.path}: view {self.view!r} is gone; load another one")
        entries = state.entries
        return entries if entries.stored.all() else entries.take(entries.stored)


class StoredCodes:
    """Codes of one node in one state of a view, read from the store's files as they are asked for.

    Behaves as a read-only NumPy array that is indexed by row: with a number, a slice, an array of numbers or a boolean
    mask of shape (n,). What comes back is always a copy, verified when it is first touched. Threads may share one.
    Pickled, it is a few words long: another process opens the same state of the same store, whatever has been
    committed since. A forked process goes on with what its parent has opened. Writing, compacting and collecting
    beside it do no harm; only a state that was retired and collected cannot be opened again.

    Parameters
    ----------
    place : Place
        Store, view, state and node; `FeatureStore.dataset` makes one, see its `codes`.
    rows : ndarray of int of shape (n,), default=None
        Some rows of the view, in this order; all when not given.
    dtype : dtype, default=float32
        Of what comes back; None: as stored.
    opened : Rows, default=None
        What `place` and `rows` lead to, where it is known already.

    Raises
    ------
    StoreError
        When it is first used, and the store or the state is not there.
    DamagedStore
        When a row that is asked for is damaged; names the file.

    Examples
    --------
    >>> codes = store.dataset("main").codes  # doctest: +SKIP
    >>> codes.shape, codes[-1].dtype  # doctest: +SKIP
    ((100000, 1280), dtype('float32'))
    """

    def __init__(
        self,
        place: Place,
        rows: np.ndarray | None = None,
        *,
        dtype: DTypeLike | None = np.float32,
        opened: Rows | None = None,
    ) -> None:
        self.place = place
        self._some = None if rows is None else compact_index(np.asarray(rows))
        self._dtype = None if dtype is None else np.dtype(dtype)
        self._opened = opened
        self._renew_lock()

    def _renew_lock(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "_some": self._some, "_dtype": self._dtype, "_opened": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._renew_lock()

    def __repr__(self) -> str:
        where = f"{Path(self.place.path).name!r}, {self.place.view}@{self.place.number}, node {self.place.node!r}"
        return f"StoredCodes({where}{f', {self.shape} of {self.dtype}' if self._opened is not None else ''})"

    @property
    def chosen(self) -> np.ndarray | None:
        """Which rows of the view these are; None for all."""
        return self._some

    @property
    def rows(self) -> Rows:
        """Where the rows lie; opened in this process when it is first asked for.

        Maps that a parent process opened serve its forked children as well: they are read by address, so that no
        position in a file is shared. Only a lock may have been held by a thread that the child does not have.
        """
        if self._opened is None:
            if self._pid != os.getpid():
                self._renew_lock()
            with self._lock:
                if self._opened is None:
                    rows = self.place.open()[1]
                    self._opened = rows if self._some is None else rows.take(self._some)
        return self._opened

    @property
    def shape(self) -> tuple[int, ...]:
        """(n, *shape of a row)."""
        return (len(self.rows), *self.rows.shape)

    @property
    def dtype(self) -> np.dtype:
        """Of what comes back."""
        return self.rows.dtype if self._dtype is None else self._dtype

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Size of all of it in memory."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    def __len__(self) -> int:
        return len(self.rows)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> np.ndarray:
        """Return all of it in memory."""
        if copy is False:
            raise ValueError("StoredCodes are on disk: an array of them is always a copy")
        whole = self.rows.gather(dtype=self.dtype)
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Return rows: one for a number, several for a slice, an array of numbers or a mask."""
        if index is Ellipsis or (isinstance(index, tuple) and not index):
            index = slice(None)
        if isinstance(index, tuple) and len(index) == 1:
            index = index[0]
        elif isinstance(index, tuple):
            raise IndexError(f"codes are indexed by row, with one index, not {len(index)}; load the rows first")
        if isinstance(index, slice):
            return self.rows.gather(index=index, dtype=self.dtype)
        if not isinstance(index, np.ndarray | list | tuple | bool | np.bool_ | None):
            try:
                number = operator.index(index)
            except TypeError:
                pass
            else:
                return self.rows.gather(index=_checked(np.asarray([number]), len(self)), dtype=self.dtype)[0]
        places = choose_rows(index, len(self))
        return self.rows.gather(index=places.ravel(), dtype=self.dtype).reshape(*places.shape, *self.rows.shape)

    def gather(self, index: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Return rows, into an array of yours if you like.

        Parameters
        ----------
        index : array-like of int of shape (k,)
            Row numbers in any order, repeats allowed; negative ones count from the end.
        out : ndarray of shape (k, *shape of a row), default=None
            Where to; of any floating type.

        Returns
        -------
        ndarray
            `out`, or a new array of `dtype`.

        Raises
        ------
        IndexError
            When there is no such row.
        ValueError
            When `out` does not have the shape of the result.
        DamagedStore
            When a row is damaged; names the file.
        """
        places = choose_rows(index, len(self))
        if places.ndim != 1:
            raise IndexError(f"index: expected one dimension, got shape {places.shape}")
        expected = (len(places), *self.rows.shape)
        if out is not None and out.shape != expected:
            raise ValueError(f"out: expected shape {expected}, got {out.shape}")
        return self.rows.gather(out, places, dtype=self.dtype)

    def take_rows(self, index: Any) -> StoredCodes:
        """Return some rows (numbers or a mask) as StoredCodes, without reading them."""
        places = choose_rows(index, len(self))
        some = places if self._some is None else self._some[places]
        return StoredCodes(self.place, some, dtype=self._dtype, opened=self.rows.take(places))


def choose_rows(index: Any, n: int) -> np.ndarray:
    """Return numbers from 0 on for an array of numbers or a mask, as NumPy takes them; IndexError as NumPy's."""
    array = np.asarray(index)
    if array.dtype == bool:
        if array.shape != (n,):
            raise IndexError(f"boolean index of shape {array.shape}: expected {(n,)}")
        return np.flatnonzero(array)
    if array.size == 0 and not isinstance(index, np.ndarray):
        array = array.astype(np.intp)
    if array.dtype.kind not in "iu":
        raise IndexError(
            f"rows are chosen by a number, a slice, an array of numbers or a mask, not by {type(index).__name__} "
            f"of {array.dtype}; for other ways, load the rows first"
        )
    return _checked(array.astype(np.intp, copy=False), n)


def _checked(index: np.ndarray, n: int) -> np.ndarray:
    if index.size:
        lowest, highest = int(index.min()), int(index.max())
        if lowest < -n or highest >= n:
            raise IndexError(f"index {lowest if lowest < -n else highest} is out of bounds for {n} rows")
        if lowest < 0:
            return np.where(index < 0, index + n, index)
    return index


def compact_index(rows: np.ndarray) -> np.ndarray:
    """Return row numbers in four bytes each where they fit: they travel to other processes."""
    return rows.astype(np.uint32) if not rows.size or int(rows.max()) < 1 << 32 else rows
