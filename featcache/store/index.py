"""The private index: key → (shard, row), and what was asked for → its fingerprint. Disposable: rebuilt when absent.

Nothing here is trusted. A hit is compared with the full key in the shard itself, whose checksum has been verified; a
wrong or missing index costs time, never a wrong row.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..errors import DamagedStore
from ..files import publish_bytes
from .container import Container
from .private import load_private, save_private
from .safely import parse_json, read_small

__all__ = ["RequestCache", "RowIndex"]

#: A request file larger than this is no request file.
_LARGEST_REQUESTS = 1 << 24


def _prefixes(keys: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keys[:, :8]).view("<u8").ravel()


@dataclass(frozen=True, eq=False)
class _Run:
    """The rows of some shards, sorted by the first eight bytes of their keys.

    Attributes
    ----------
    shards : list of str
        Name of each shard and checksum of its keys: a file put in another's place is not taken for it.
    prefix, shard, row : ndarrays of shape (n,)
        uint64, uint32 (place in `shards`), uint32.
    path : Path or None
        Where it is kept.
    """

    shards: list[str]
    prefix: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    path: Path | None = None

    def __len__(self) -> int:
        return len(self.prefix)

    @classmethod
    def of(cls, shards: Mapping[str, Container]) -> tuple[_Run, set[str]]:
        """Read the keys of shards; tell in which of them some could not be read (they stand as zeros: no image's)."""
        read = {name: s.read_rows("key", np.arange(s.region("key")["shape"][0])) for name, s in shards.items()}
        keys = [k for k, _ in read.values()]
        prefix = np.concatenate([np.zeros(0, "<u8"), *map(_prefixes, keys)])
        number = np.repeat(np.arange(len(keys), dtype="<u4"), [len(k) for k in keys])
        row = np.concatenate([np.zeros(0, "<u4"), *(np.arange(len(k), dtype="<u4") for k in keys)])
        order = np.argsort(prefix, kind="stable")
        order = order[~_repeated(list(shards.values()), keys, prefix[order], number[order], row[order])]
        unsound = {name for name, (_, good) in read.items() if not good.all()}
        return cls(list(shards), prefix[order], number[order], row[order]), unsound

    @classmethod
    def load(cls, path: Path) -> _Run | None:
        """Map a run that was kept."""
        saved = load_private(path)
        if saved is None:
            return None
        about, arrays = saved
        shards = about.get("shards")
        parts = [arrays.get(name, np.zeros(0)) for name in ("prefix", "shard", "row")]
        if (
            not isinstance(shards, list)
            or not all(isinstance(name, str) for name in shards)
            or [str(p.dtype) for p in parts] != ["uint64", "uint32", "uint32"]
            or len({p.shape for p in parts}) != 1
        ):
            return None
        prefix, shard, row = parts
        return cls(shards, prefix, shard, row, path)

    def save(self, folder: Path) -> _Run:
        """Keep it under a name of its own."""
        path = folder / f"rows-{uuid.uuid4().hex}.run"
        arrays = {"prefix": self.prefix, "shard": self.shard, "row": self.row}
        return _Run(self.shards, **arrays, path=path if save_private(path, {"shards": self.shards}, arrays) else None)

    def merged(self, other: _Run) -> _Run:
        """Return both in one."""
        prefix = np.concatenate([self.prefix, other.prefix])
        order = np.argsort(prefix, kind="stable")
        shard = np.concatenate([self.shard, other.shard + np.uint32(len(self.shards))])
        row = np.concatenate([self.row, other.row])
        return _Run(self.shards + other.shards, prefix[order], shard[order], row[order])

    def candidates(self, wanted: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (place in `wanted`, shard, row) of all rows whose prefix is wanted, each place once a time."""
        place = np.searchsorted(self.prefix, wanted, side="left")
        open_ = np.flatnonzero(place < len(self.prefix))
        while len(open_):
            at = place[open_]
            same = self.prefix[at] == wanted[open_]
            open_, at = open_[same], at[same]
            yield open_, self.shard[at], self.row[at]
            place[open_] += 1
            open_ = open_[place[open_] < len(self.prefix)]


def _repeated(
    shards: Sequence[Container], keys: list[np.ndarray], prefix: np.ndarray, number: np.ndarray, row: np.ndarray
) -> np.ndarray:
    """Return a mask of the rows, sorted, that repeat the one before: a compacted shard holds a copied image's twice.

    They need not be found, and a hundred thousand of one key would be a hundred thousand steps of each search.
    """
    repeated = np.zeros(len(prefix), dtype=bool)
    alike = np.flatnonzero((prefix[1:] == prefix[:-1]) & (number[1:] == number[:-1])) + 1
    for one in np.unique(number[alike]).tolist():
        mine = alike[number[alike] == one]
        before, here = row[mine - 1], row[mine]
        views = shards[one].read_rows("view_number", np.concatenate([before, here]))[0]
        same_view = views[: len(mine)] == views[len(mine) :]
        repeated[mine] = (keys[one][before] == keys[one][here]).all(axis=1) & same_view
    return repeated


def _identity(shard: Container) -> str:
    """Return a shard's name, and the checksum of its keys' checksums."""
    return f"{shard.path.name} {shard.region(shard.region('key')['groups'])['xxh3']}"


class RowIndex:
    """Where each key's row lies, over a list of shards.

    Rows are kept in runs: a large old one and small newer ones, which are merged as they grow, so that one more shard
    costs little however many rows there are.

    Parameters
    ----------
    folder : Path
        The private folder.
    shards : list of Container
        Grows, and is never reordered, so that a number found stays right whatever other threads do.
    live : iterable of int
        Numbers of the shards that count. Of rows with equal keys that of the shard whose name is last is used.
    """

    def __init__(self, folder: Path, shards: list[Container], live: Iterable[int]) -> None:
        self._folder = folder
        self.shards = shards
        #: Damaged parts that look-ups met: name of the shard → reason.
        self.damaged: dict[str, str] = {}
        self._runs: list[_Run] = []
        self._number = {_identity(shards[n]): n for n in live}
        self._rank = self._ranks()
        #: Shards some of whose keys could not be read: what is known of them is not kept.
        self._unsound: set[str] = set()
        self._adopt()

    def _ranks(self) -> np.ndarray:
        """Return the place of each shard among the names of those that count: int64, −1 for the others."""
        ranks = np.full(len(self.shards), -1, dtype=np.int64)
        order = sorted(self._number.values(), key=lambda n: self.shards[n].path.name)
        ranks[order] = np.arange(len(order))
        return ranks

    def _adopt(self) -> None:
        """Take over the runs that were kept, and read the shards that none of them covers."""
        kept = [r for p in sorted(self._folder.glob("rows-*.run")) if (r := _Run.load(p)) is not None]
        covered: set[str] = set()
        for run in sorted(kept, key=len, reverse=True):
            mine = set(run.shards) & self._number.keys()
            # Half of it must still be of use; otherwise reading the shards again is cheaper than carrying it along.
            if mine - covered and 2 * len(mine) >= len(run.shards):
                covered |= mine
                self._runs.append(run)
        self._read({name: self.shards[number] for name, number in self._number.items() if name not in covered})
        self.save()

    def _read(self, shards: Mapping[str, Container]) -> None:
        """Add a run for some shards, merged with the runs that are not larger."""
        if not shards:
            return
        run, unsound = _Run.of(shards)
        self._unsound |= unsound
        self._runs.sort(key=len, reverse=True)
        while self._runs and len(self._runs[-1]) <= len(run):
            run = self._runs.pop().merged(run)
        self._runs.append(run)

    def rebuild(self) -> None:
        """Forget the private files and take the keys from the shards: before anything is called missing."""
        self._runs = []
        self._read({name: self.shards[number] for name, number in self._number.items()})
        self.save()

    def add(self, number: int) -> None:
        """Take in one more of the shards."""
        name = _identity(self.shards[number])
        self._number[name] = number
        self._rank = self._ranks()
        self._read({name: self.shards[number]})  # last: whoever finds the run finds the rest

    def save(self) -> None:
        """Keep what is new, and drop the files that no run needs any more."""
        fresh = [r for r in self._runs if r.path is None and not self._unsound & set(r.shards)]
        if not fresh:
            return
        self._runs = [run.save(self._folder) if run in fresh else run for run in self._runs]
        current = {run.path for run in self._runs}
        for path in self._folder.glob("rows-*.run"):
            if path not in current:
                # A file that another process reads stays readable; one that it has just written is only a cache.
                with contextlib.suppress(OSError):
                    path.unlink()

    def find(self, keys: np.ndarray, view_number: int = 0) -> tuple[np.ndarray, np.ndarray]:
        """Look keys up.

        Parameters
        ----------
        keys : ndarray of uint8 of shape (n, 32)
            Content keys.
        view_number : int, default=0
            0 = the plain image, 1… = augmented views.

        Returns
        -------
        shard, row : ndarrays of int64 of shape (n,)
            −1 where a key has no row.
        """
        keys = np.ascontiguousarray(keys, dtype="u1").reshape(-1, 32)
        shard, row = np.full(len(keys), -1, dtype=np.int64), np.full(len(keys), -1, dtype=np.int64)
        wanted = _prefixes(keys)
        best = np.full(len(keys), -1, dtype=np.int64)
        # In order, so that a search finds in the cache what the one before it left there.
        order = np.argsort(wanted)
        keys, wanted = keys[order], wanted[order]
        runs = list(self._runs)  # before the ranks: another thread may add one meanwhile
        ranks = self._rank
        for run in runs:
            number = np.asarray([self._number.get(name, -1) for name in run.shards], dtype=np.int64)
            for place, local, rows in run.candidates(wanted):
                inside = np.flatnonzero(local < len(number))
                found = number[local[inside]]
                better = (found >= 0) & (ranks[found] > best[place[inside]])
                inside, found = inside[better], found[better]
                match = self._matches(found, rows[inside], keys[place[inside]], view_number)
                hit = place[inside[match]]
                shard[hit], row[hit] = found[match], rows[inside[match]]
                best[hit] = ranks[shard[hit]]
        back = np.empty_like(order)
        back[order] = np.arange(len(order))
        return shard[back], row[back]

    def _matches(self, number: np.ndarray, rows: np.ndarray, keys: np.ndarray, view_number: int) -> np.ndarray:
        """Compare full keys with what the shards themselves say."""
        match = np.zeros(len(number), dtype=bool)
        for one in np.unique(number).tolist():
            shard = self.shards[one]
            mine = np.flatnonzero(number == one)
            mine = mine[rows[mine] < shard.region("key")["shape"][0]]
            try:
                theirs, good = shard.read_rows("key", rows[mine])
                views, sound = shard.read_rows("view_number", rows[mine])
            except DamagedStore as error:
                self.damaged[shard.path.name] = str(error)
                continue
            if not (good & sound).all():
                self.damaged[shard.path.name] = str(shard.damage("the checksum of some of its keys does not match"))
            match[mine] = (theirs == keys[mine]).all(axis=1) & (views == view_number) & good & sound
        return match


class RequestCache:
    """What was asked for → the fingerprint it came to, so that a rerun need not load the network to know its spec.

    Parameters
    ----------
    path : Path
        The private file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, str] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, RecursionError):
            known = parse_json(read_small(path, _LARGEST_REQUESTS))
            if isinstance(known, dict) and all(isinstance(v, str) for v in known.values()):
                self._known = known

    @staticmethod
    def _name(request: Mapping[str, Any]) -> str:
        return xxhash.xxh3_128_hexdigest(json.dumps(request, sort_keys=True).encode())

    def get(self, request: Mapping[str, Any]) -> str | None:
        """Return the fingerprint that a request came to before, or None."""
        return self._known.get(self._name(request))

    def put(self, request: Mapping[str, Any], fingerprint: str) -> None:
        """Remember a request; failing to is not an error."""
        if self._known.get(self._name(request)) != fingerprint:
            self._known[self._name(request)] = fingerprint
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(exist_ok=True)
                publish_bytes(self._path, json.dumps(self._known).encode(), durable=False)
