"""CodesDataset: a store as a data set to train on, for PyTorch's DataLoader or plain NumPy. Imports no torch."""

from __future__ import annotations

import contextlib
import operator
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..errors import StoreError
from ..features import text_of
from .access import Place, StoredCodes, choose_rows, compact_index
from .blocks import BLOCK_ROWS, WINDOW, BlockSampler, BlockShuffle, check_batch_size
from .loading import Rows
from .streaming import stream
from .views import parse_state

if TYPE_CHECKING:
    from .entries import Entries
    from .view_store import ViewStore

__all__ = ["CodesDataset"]

_ORDERS = ("auto", "view", "storage")


class _Table(NamedTuple):
    """What a data set knows in memory: four to eight bytes a row of places, eight of class numbers."""

    codes: StoredCodes
    y: np.ndarray
    classes: np.ndarray


@dataclass(frozen=True)
class _Recipe:
    """What a data set is made from: all that travels to another process."""

    place: Place
    roles: Mapping[str, str]
    rows: np.ndarray | None
    unlabelled: bool

    def make(self, entries: Entries, rows: Rows) -> _Table:
        column = entries.columns[self.roles["label"]] if "label" in self.roles else None
        numbers, classes = _class_numbers(column, len(entries))
        chosen = self.choose(numbers)
        if chosen is not None:
            rows, numbers = rows.take(chosen), numbers[chosen]
        return _Table(StoredCodes(self.place, chosen, opened=rows), numbers, classes)

    def choose(self, numbers: np.ndarray) -> np.ndarray | None:
        """Return which rows of the view belong to the set; None for all."""
        chosen = self.rows
        if not self.unlabelled and (numbers < 0).any():
            chosen = np.flatnonzero(numbers >= 0) if chosen is None else chosen[numbers[chosen] >= 0]
        return chosen


class CodesDataset:
    """Codes and class numbers of one state of a view: a map-style data set that stays on disk.

    Made by `FeatureStore.dataset`. Give it to ``torch.utils.data.DataLoader``, with workers of any start method, or
    take batches from it by `batches`. Each process opens the store by itself and reads the very same state, whatever is
    committed, compacted or collected meanwhile; rows are verified when they are first read.

    With a DataLoader the fast way is to let the sampler make the batches, so that each is one gather and one tensor::

        loader = DataLoader(data, batch_size=None, sampler=data.sampler(batch_size=256), num_workers=2)

    ``DataLoader(data, batch_size=256, shuffle=True)`` works as with any data set, at the cost of one small tensor for
    each row; its order is wholly random, which is right for a set that fits the page cache.

    Parameters
    ----------
    place : Place
        Store, view, state and node.
    roles : mapping
        Role ("label", "group", "split") → column.
    rows : ndarray of int, default=None
        Rows of the view, in this order, repeats allowed; all when not given.
    unlabelled : bool, default=False
        Keep rows without a label, as class −1.

    Raises
    ------
    StoreError
        When it is first used, and the store or the state is not there.
    DamagedStore
        When a row that is read is damaged; names the file.

    Examples
    --------
    >>> data = store.dataset("main")  # doctest: +SKIP
    >>> train = data.subset(data.splits == "train")  # doctest: +SKIP
    >>> for X, y in train.batches(256, epoch=0):  # doctest: +SKIP
    ...     step(X, y)
    """

    def __init__(
        self, place: Place, roles: Mapping[str, str], *, rows: np.ndarray | None = None, unlabelled: bool = False
    ) -> None:
        self._recipe = _Recipe(place, dict(roles), None if rows is None else compact_index(rows), unlabelled)
        self._table: _Table | None = None
        self._columns: dict[str, np.ndarray] = {}
        self._order: np.ndarray | None = None
        self._renew_lock()

    @classmethod
    def of(
        cls,
        store: ViewStore,
        view: str,
        *,
        node: str,
        verify: str,
        snapshot: int | None,
        roles: Mapping[str, str | None],
        rows: np.ndarray | Sequence[int] | None,
        unlabelled: bool,
    ) -> CodesDataset:
        """Open a data set and look its rows up; see `FeatureStore.dataset`."""
        view, number = parse_state(view)
        if number is not None and snapshot not in (None, number):
            raise StoreError(f"view {view}@{number}: snapshot={snapshot} names another state; drop one of them")
        snapshot = snapshot if number is None else number
        state = store.snapshot(view, snapshot)
        if state is None:
            raise StoreError(f"{store.path}: no view {view!r}; it has {', '.join(store.views) or 'none yet'}")
        given = {role: column for role, column in roles.items() if column is not None}
        place = Place(str(store.path.absolute()), store.fingerprint, view, state.number, node, verify)
        entries, found = place.open()
        chosen = {**state.roles, **given}
        for role, column in chosen.items():
            if column not in entries.columns:
                there = ", ".join(entries.columns) or "none"
                raise StoreError(f"{store.path}: no column {column!r} for the {role}; it has {there}")
        made = cls(place, chosen, rows=None if rows is None else choose_rows(rows, len(entries)), unlabelled=unlabelled)
        made._table = made._recipe.make(entries, found)
        if not len(made.y) and not unlabelled and len(entries):
            raise StoreError(
                f"{store.path}: no row to train on has a label; name its column with label=, or pass unlabelled=True"
            )
        return made

    # -- in this process and others ----------------------------------------------------------------------------------

    def _renew_lock(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {"_recipe": self._recipe, "_table": None, "_columns": {}, "_order": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._renew_lock()

    def _opened(self) -> _Table:
        if self._table is None:
            if self._pid != os.getpid():  # forked, maybe while another thread held the lock
                self._renew_lock()
            with self._lock:
                if self._table is None:
                    self._table = self._recipe.make(*self._recipe.place.open())
        return self._table

    # -- what is in it -----------------------------------------------------------------------------------------------

    def __repr__(self) -> str:
        place = self._recipe.place
        return f"CodesDataset({place.view}@{place.number}, {self.codes.shape}, {len(self.classes)} classes)"

    def __len__(self) -> int:
        return len(self._opened().y)

    @property
    def codes(self) -> StoredCodes:
        """The codes, row by row as in `y`: float32 when read."""
        return self._opened().codes

    @property
    def y(self) -> np.ndarray:
        """Number of each row's class in `classes`, −1 for none: int64 of shape (n,)."""
        return self._opened().y

    @property
    def classes(self) -> np.ndarray:
        """Names of the classes of the whole view, sorted; the same for each subset."""
        return self._opened().classes

    @property
    def ids(self) -> np.ndarray:
        """Name of each row: text of shape (n,); read when it is first asked for."""
        return self._column("ids")

    @property
    def groups(self) -> np.ndarray | None:
        """Group of each row as text, or None where the view has none."""
        return self._column("group") if "group" in self._recipe.roles else None

    @property
    def splits(self) -> np.ndarray | None:
        """The source's own split names, or None where the view has none."""
        return self._column("split") if "split" in self._recipe.roles else None

    def _column(self, role: str) -> np.ndarray:
        if role not in self._columns:
            entries = self._recipe.place.entries()
            column = entries.ids if role == "ids" else text_of(entries.columns[self._recipe.roles[role]])
            chosen = self._opened().codes.chosen
            self._columns[role] = column if chosen is None else column[chosen]
        return self._columns[role]

    def subset(self, rows: np.ndarray | Sequence[int]) -> CodesDataset:
        """Return some rows as a data set of the same classes, without reading them.

        Parameters
        ----------
        rows : array-like
            Row numbers in any order, repeats allowed (a bootstrap sample), or a boolean mask of shape (n,).

        Returns
        -------
        CodesDataset

        Raises
        ------
        IndexError
            When there is no such row.
        """
        places = choose_rows(rows, len(self)).ravel()
        codes = self.codes.take_rows(places)
        recipe = self._recipe
        made = CodesDataset(recipe.place, recipe.roles, rows=codes.chosen, unlabelled=recipe.unlabelled)
        made._table = _Table(codes, self.y[places], self.classes)
        return made

    # -- reading -----------------------------------------------------------------------------------------------------

    def __getitem__(self, index: Any) -> tuple[np.ndarray, Any]:
        """Return (codes, class number) of one row; of several (slice, array, mask) both as arrays."""
        with contextlib.suppress(TypeError):
            if not isinstance(index, bool):
                number = operator.index(index)
                return self.codes[number], int(self.y[number])
        return self.codes[index], self.y[index]

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[np.ndarray, int]]:
        """Return several rows as a list of (codes, class number), read in one go; DataLoader asks for batches so."""
        places = np.asarray(indices, dtype=np.intp)
        return list(zip(self.codes.gather(places), self.y[places].tolist(), strict=True))

    def batches(
        self,
        batch_size: int,
        *,
        shuffle: bool = True,
        seed: int = 0,
        epoch: int = 0,
        block_rows: int = BLOCK_ROWS,
        window: int = WINDOW,
        order: str = "auto",
        drop_last: bool = False,
        with_index: bool = False,
    ) -> Iterator[tuple[np.ndarray, ...]]:
        """Iterate over one epoch in NumPy arrays, for sets of any size; a thread reads ahead.

        Blocks of neighbouring rows are shuffled, `window` of them are read at a time, and their rows are mixed: a set
        of up to ``window * block_rows`` rows is shuffled wholly; of a larger one each batch is drawn from `window`
        random blocks. So where neighbours are alike (a view sorted by class), a batch of 256 holds rows of about as
        many classes as 64 random blocks do. Blocks begin elsewhere in each epoch.

        Every row comes exactly once. Same seed, epoch, sizes and `order`: same batches, on any machine.

        Parameters
        ----------
        batch_size : int
            Rows of a batch; the last one may be smaller.
        shuffle : bool, default=True
            False: in the order of `ids`.
        seed, epoch : int, default=0
            What the order is drawn from; count the epochs up.
        block_rows : int, default=256
            Rows of a block.
        window : int, default=64
            Blocks that are mixed. Two windows are in memory, as stored: at 1280 float16 numbers a row, 84 MB.
        order : {"auto", "view", "storage"}, default="auto"
            What neighbours are: in the view (so that batches do not depend on how the store is laid out), or on disk
            (so that reads are long whatever the view's order; compacting then changes the batches). "auto" takes the
            view's order where reading it goes back on the disk less than once a block, as after `compact`.
        drop_last : bool, default=False
            Leave out a last batch that is smaller.
        with_index : bool, default=False
            Yield the row numbers, too.

        Yields
        ------
        X : ndarray of float32 of shape (batch_size, *shape of a row)
        y : ndarray of int64 of shape (batch_size,)
        rows : ndarray of int64 of shape (batch_size,)
            With `with_index`.

        Raises
        ------
        ValueError
            When a size is not a number of at least 1, or there is no such order.
        DamagedStore
            When a row is damaged; names the file.
        """
        check_batch_size(batch_size)
        blocks = BlockShuffle(
            len(self), self._neighbours(order, shuffle, block_rows), shuffle, seed, epoch, block_rows, window
        )
        return stream(self.codes.rows, self.y, blocks, batch_size, drop_last=drop_last, with_index=with_index)

    def _neighbours(self, order: str, shuffle: bool, block_rows: int) -> np.ndarray | None:
        """Return the rows in the order whose neighbours form blocks; None for that of the view."""
        if order not in _ORDERS:
            raise ValueError(f"order: expected one of {', '.join(map(repr, _ORDERS))}, got {order!r}")
        rows = self.codes.rows
        if not shuffle or order == "view" or (order == "auto" and rows.jumps_back() * block_rows <= len(rows)):
            return None
        if self._order is None:
            self._order = compact_index(rows.storage_order())
        return self._order

    def sampler(
        self,
        batch_size: int | None = None,
        *,
        shuffle: bool = True,
        seed: int = 0,
        block_rows: int = BLOCK_ROWS,
        window: int = WINDOW,
        order: str = "auto",
        drop_last: bool = False,
    ) -> BlockSampler:
        """Return a sampler for DataLoader with the order of `batches`: a new one each epoch.

        Parameters
        ----------
        batch_size : int, default=None
            Yield whole batches, for ``DataLoader(data, batch_size=None, sampler=…)``, which is the fast way; None:
            single rows, for ``DataLoader(data, batch_size=…, sampler=…)``.
        shuffle, seed, block_rows, window, order, drop_last
            As of `batches`; `drop_last` only with a `batch_size`.

        Returns
        -------
        BlockSampler
            With `set_epoch`, for a run that is resumed; by itself it counts up.
        """
        return BlockSampler(
            len(self),
            self._neighbours(order, shuffle, block_rows),
            batch_size=batch_size,
            shuffle=shuffle,
            seed=seed,
            block_rows=block_rows,
            window=window,
            drop_last=drop_last,
        )


def _class_numbers(column: np.ndarray | None, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (number of each row's class or −1, names of the classes): the labels that `FeatureSet` gives as text."""
    if column is None:
        return np.full(n, -1, np.int64), np.zeros(0, np.str_)
    values, which = np.unique(column, return_inverse=True)
    names = text_of(values)
    classes = np.unique(names[names != ""])
    if not len(classes):
        return np.full(n, -1, np.int64), classes
    return np.where(names == "", -1, np.searchsorted(classes, names)).astype(np.int64)[which], classes
