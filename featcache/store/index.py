"""The private index: key → (shard, row), and which files have which digest. Disposable: rebuilt whenever it is absent.

Nothing here is trusted. A hit is compared with the full key in the shard itself, whose checksum has been verified; a
wrong or missing index costs time, never a wrong row.
"""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..files import publish_bytes
from .container import Container

__all__ = ["DigestCache", "RequestCache", "RowIndex"]

_ROW = np.dtype([("prefix", "<u8"), ("shard", "<u4"), ("row", "<u4")])
#: A file changed this recently may change again within the clock's granularity without its times showing it.
_RACY_NS = 2_000_000_000


def _load_arrays(path: Path, names: Sequence[str]) -> dict[str, np.ndarray] | None:
    """Read the named arrays of a private file; None when it is absent, damaged or of another kind."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        data = path.read_bytes()
        if xxhash.xxh3_128_digest(data[16:]) == data[:16]:
            with np.load(io.BytesIO(data[16:]), allow_pickle=False) as file:
                return {name: file[name] for name in names}
    return None


def _save_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a private file of arrays; failing to is not an error, only slower next time."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    data = buffer.getvalue()
    with contextlib.suppress(OSError):
        path.parent.mkdir(exist_ok=True)
        publish_bytes(path, xxhash.xxh3_128_digest(data) + data, durable=False)


def _prefixes(keys: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(keys[:, :8]).view("<u8").ravel()


class RowIndex:
    """Where each key's row lies, over a list of shards.

    Parameters
    ----------
    path : Path
        The private file.
    shards : sequence of Container
        In the order that breaks ties: of rows with equal keys the first shard's is used.
    """

    def __init__(self, path: Path, shards: Sequence[Container]) -> None:
        self._path = path
        self.shards = list(shards)
        self._table = np.zeros(0, dtype=_ROW)
        self._load()

    def _load(self) -> None:
        saved = _load_arrays(self._path, ("table", "shards"))
        names = self._names()
        known = 0
        if saved is not None and saved["table"].dtype == _ROW:
            listed = saved["shards"].tolist()
            # Shard names sort by time, so usually the old list is a prefix of the new one; anything else is rebuilt.
            if listed == names[: len(listed)]:
                self._table, known = saved["table"], len(listed)
        self._extend(range(known, len(self.shards)))
        if known < len(self.shards):
            self.save()

    def _names(self) -> list[str]:
        """Name and keys' checksum of each shard: a file put in another's place is not taken for it."""
        return [f"{s.path.name} {s.regions['key']['xxh3']}" for s in self.shards]

    def _extend(self, numbers: Iterable[int]) -> None:
        parts = [self._table]
        for number in numbers:
            keys = self.shards[number].array("key")
            part = np.zeros(len(keys), dtype=_ROW)
            part["prefix"], part["shard"], part["row"] = _prefixes(keys), number, np.arange(len(keys))
            parts.append(part)
        if len(parts) > 1:
            table = np.concatenate(parts)
            self._table = table[np.argsort(table["prefix"], kind="stable")]

    def rebuild(self) -> None:
        """Forget the private file and take the keys from the shards: before anything is called missing."""
        self._table = np.zeros(0, dtype=_ROW)
        self._extend(range(len(self.shards)))
        self.save()

    def add(self, shard: Container) -> None:
        """Take in one more shard."""
        self.shards.append(shard)
        self._extend([len(self.shards) - 1])

    def save(self) -> None:
        """Write the private file."""
        _save_arrays(self._path, {"table": self._table, "shards": np.asarray(self._names(), np.str_)})

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
        table = self._table  # another thread may add a shard meanwhile
        place = np.searchsorted(table["prefix"], wanted, side="left")
        open_ = np.arange(len(keys))
        while len(open_):
            inside = place[open_] < len(table)
            open_ = open_[inside]
            hits = table[place[open_]]
            same = hits["prefix"] == wanted[open_]
            open_, hits = open_[same], hits[same]
            match = self._matches(hits, keys[open_], view_number)
            shard[open_[match]], row[open_[match]] = hits["shard"][match], hits["row"][match]
            open_ = open_[~match]
            place[open_] += 1
        return shard, row

    def _matches(self, hits: np.ndarray, keys: np.ndarray, view_number: int) -> np.ndarray:
        """Compare full keys with what the shards themselves say."""
        match = np.zeros(len(hits), dtype=bool)
        for number in np.unique(hits["shard"]).tolist():
            if number >= len(self.shards):
                continue
            mine = np.flatnonzero(hits["shard"] == number)
            shard, rows = self.shards[number], hits["row"][mine]
            inside = rows < len(shard.array("key"))
            mine, rows = mine[inside], rows[inside]
            match[mine] = (shard.array("key")[rows] == keys[mine]).all(axis=1) & (
                shard.array("view_number")[rows] == view_number
            )
        return match


class DigestCache:
    """Digest of files by path, trusted only while size, times and inode are what they were, and not racily clean.

    Parameters
    ----------
    path : Path
        The private file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, tuple[tuple[int, ...], bytes]] = {}
        self._dirty = False
        saved = _load_arrays(path, ("paths", "stats", "digests"))
        if saved is not None:
            names = saved["paths"].tobytes().decode("utf-8", "surrogateescape").split("\0")
            stats, digests = saved["stats"].tolist(), saved["digests"].tobytes()
            self._known = {
                name: (tuple(stat), digests[32 * i : 32 * i + 32])
                for i, (name, stat) in enumerate(zip(names, stats, strict=False))
            }

    def get(self, stat: Any) -> bytes | None:
        """Return the digest of a file whose `FileStat` is given, None when it must be read."""
        known = self._known.get(stat.path)
        return known[1] if known is not None and known[0] == _identity(stat) else None

    def put(self, stat: Any, digest: bytes) -> None:
        """Remember a digest; a file that changed just now is not remembered (it may change again unseen)."""
        if time.time_ns() - max(stat.mtime_ns, stat.ctime_ns) > _RACY_NS:
            self._known[stat.path] = (_identity(stat), digest)
            self._dirty = True

    def save(self) -> None:
        """Write the private file when anything is new."""
        if not self._dirty:
            return
        # NUL cannot occur in a path, so the names need no offsets.
        paths = "\0".join(self._known).encode("utf-8", "surrogateescape")
        stats = np.asarray([s for s, _ in self._known.values()], dtype="<i8").reshape(-1, 5)
        digests = np.frombuffer(b"".join(d for _, d in self._known.values()), "u1")
        _save_arrays(self._path, {"paths": np.frombuffer(paths, "u1"), "stats": stats, "digests": digests})
        self._dirty = False


def _identity(stat: Any) -> tuple[int, ...]:
    # Inode numbers are unsigned 64-bit on some systems; folded into int64 they still tell files apart.
    fold = (1 << 63) - 1
    return (stat.size, stat.mtime_ns, stat.ctime_ns, stat.inode & fold, stat.device & fold)


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
        with contextlib.suppress(OSError, ValueError, TypeError):
            known = json.loads(path.read_text())
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
