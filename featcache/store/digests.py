"""The private cache of file digests: which file, as `stat` describes it, had which content.

A rerun over unchanged files asks here instead of reading them. The rule is: never a stale hit. An entry counts only
while path, size, both times, inode and device are what they were, and it is only made where a later change must show
in those: both times lie further back than the clocks' granularity when the run began (git's "racily clean").

The run began at the earlier of two clocks, this host's and that of the file system the cache lies on. Files on that
file system are stamped by the latter; for other devices, whose clock nobody can ask without writing there, a minute is
kept instead of two seconds. What remains: another device's clock that lags by more than a minute; file systems without
a time of change (FAT, Windows) where somebody puts the old time back after a rewrite of the same size; writes through a
map that is still dirty, and changes by another machine that this one's `stat` does not show yet.

The cache is a few files, ``path``, ``path.1``, …, each a sorted run of entries and up to 16 times as large as the one
before: a save rewrites the small ones only, and merges them upwards when they are full. Each run is mapped, searched by
NumPy and verified in groups of rows when these are first touched. A file that is not exactly what a save wrote is no
run: an empty cache, never an error. Entries are facts that hold each for itself, so savers who overwrite each other's
runs lose entries and mix nothing. An entry that no run has asked for in `KEEP_DAYS` is dropped when its run is merged.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import struct
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from ..files import DISK, publish_bytes
from .safely import open_regular

__all__ = ["DigestCache"]

#: No file system in use counts time more coarsely (FAT: 2 s).
GRANULARITY_NS = 2_000_000_000
#: For devices whose clock cannot be asked.
OTHER_CLOCK_NS = 60_000_000_000
KEEP_DAYS = 100
#: A run most of whose used entries were last marked as used so long ago is written again, to mark them.
MARK_DAYS = 30

_MAGIC = b"FCDIGST1"
_HEADER = struct.Struct("<8sQ16s")
_ROW = np.dtype([("path", "<u8"), ("stat", "<u8", (5,)), ("digest", "u1", (32,)), ("day", "<u4")])
_PACKED_ROW = struct.Struct("<8s5Q32sI")  # the same, of one row
_GROUP = 256
_CAPACITY = (1 << 12, 1 << 16, 1 << 20, 1 << 24, 1 << 28)
_SPILL = 1 << 16
_DAY_NS = 86_400_000_000_000


class _Run:
    """Entries sorted by the first half of their path's hash, which is unique among them."""

    def __init__(self, keys: np.ndarray, rows: np.ndarray, sums: np.ndarray | None, token: bytes = b"") -> None:
        self.keys, self.rows, self.token = keys, rows, token
        self._sums = sums
        # Groups: 0 = not looked at yet, 1 = sound, 2 = damaged. Runs made in this process need no look.
        self._state = np.full(-(-len(keys) // _GROUP), 0 if sums is not None else 1, dtype="u1")
        self.used: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.keys)

    def sound(self, places: np.ndarray) -> np.ndarray:
        """Verify the groups in which these places lie: a mask of the places whose group is sound."""
        groups = places // _GROUP
        for group in np.unique(groups[self._state[groups] == 0]).tolist():
            assert self._sums is not None
            self._state[group] = 1 if _group_sum(self.keys, self.rows, group) == int(self._sums[group]) else 2
        return self._state[groups] == 1

    def find(self, paths: np.ndarray, stats: np.ndarray, valid: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look up those paths (n, 2) and stats (n, 5) that are valid: the numbers of the hits, their places here."""
        asked = np.flatnonzero(valid)
        places = np.searchsorted(self.keys, paths[asked, 0])
        inside = places < len(self.keys)
        asked, places = asked[inside], places[inside]
        hit = self.keys[places] == paths[asked, 0]
        asked, places = asked[hit], places[hit]
        hit = self.sound(places)
        asked, places = asked[hit], places[hit]
        rows = self.rows[places]
        hit = (rows["path"] == paths[asked, 1]) & (rows["stat"] == stats[asked]).all(axis=1)
        if hit.any():
            if self.used is None:
                self.used = np.zeros(len(self), dtype=bool)
            self.used[places[hit]] = True
        return asked[hit], places[hit]

    def needs_marking(self, today: int) -> bool:
        """Tell whether most of what was used here was last marked so long ago."""
        if self.used is None or not self.used.any():
            return False
        return float((self.rows["day"][self.used] + MARK_DAYS < today).mean()) > 0.5


class DigestCache:
    """Digest of files, trusted only while their state is what it was, and not racily clean.

    Parameters
    ----------
    path : Path
        The private file; larger runs lie beside it as ``path.1`` and so on.

    Notes
    -----
    Open it before the files are asked for their state and read: "now" is the moment of opening. Methods may be called
    from one thread at a time.
    """

    def __init__(self, path: Path) -> None:
        self._opened = time.time_ns()
        self._path = path
        self._disk_runs: dict[int, _Run] = {}
        self._new_runs: list[_Run] = []
        self._fresh: dict[bytes, bytes] = {}
        self._clock: tuple[int, int] | None = None
        self._load()

    def get(self, stat: Any) -> bytes | None:
        """Return the digest of a file whose `FileStat` is given, None when it must be read."""
        found, digests = self.get_many([stat])
        return digests[0].tobytes() if found[0] else None

    def get_many(self, stats: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
        """Look many files up at once.

        Parameters
        ----------
        stats : sequence of FileStat or None
            The files; None is not found.

        Returns
        -------
        found : ndarray of bool of shape (n,)
            Which are known.
        digests : ndarray of uint8 of shape (n, 32)
            Their digests, zeros for the others.
        """
        found, digests = np.zeros(len(stats), dtype=bool), np.zeros((len(stats), 32), dtype="u1")
        self._spill(1)
        runs = [*reversed(self._new_runs), *(self._disk_runs[level] for level in sorted(self._disk_runs))]
        if not runs:
            return found, digests
        some = [s for s in stats if s is not None]
        where = np.asarray([i for i, s in enumerate(stats) if s is not None], dtype=np.int64)
        paths = np.frombuffer(b"".join([_path_hash(s.path) for s in some]), "<u8").reshape(-1, 2)
        numbers = _numbers(some)
        open_ = np.ones(len(some), dtype=bool)
        for run in runs:
            hits, places = run.find(paths, numbers, open_)
            open_[hits] = False
            found[where[hits]] = True
            digests[where[hits]] = run.rows["digest"][places]
        return found, digests

    def put(self, stat: Any, digest: bytes) -> None:
        """Remember a digest; that of a file which may change again without its times showing it is not remembered.

        Parameters
        ----------
        stat : FileStat
            As it was before the file was read and after.
        digest : bytes
            32 bytes.
        """
        now, own_device = self._now()
        slack = GRANULARITY_NS if stat.device == own_device else OTHER_CLOCK_NS
        if now - max(stat.mtime_ns, stat.ctime_ns) <= slack:
            return
        key = _path_hash(stat.path)
        self._fresh[key[:8]] = _PACKED_ROW.pack(key[8:], *_folded(stat), digest, self._today())
        self._spill(_SPILL)

    def save(self) -> None:
        """Write what is new. Failing to is not an error, only slower next time."""
        self._spill(1)
        today = self._today()
        stale = [level for level, run in self._disk_runs.items() if run.needs_marking(today)]
        if not self._new_runs and not stale:
            return
        self._load()  # other runs may have saved since
        count = sum(map(len, self._new_runs))
        target = max(stale, default=0)
        while target < len(_CAPACITY) - 1 and count + self._rows_up_to(target) > _CAPACITY[target]:
            target += 1
        levels = [level for level in sorted(self._disk_runs) if level <= target]
        if count + self._rows_up_to(target) > _CAPACITY[target]:
            levels.remove(target)  # beyond any sense: begin again
        runs = [*reversed(self._new_runs), *(self._disk_runs[level] for level in levels)]
        if not runs:
            return
        data = _file_of(_merge(runs, today))
        del runs
        for level in levels:  # some systems replace no file that is mapped
            del self._disk_runs[level]
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(exist_ok=True)
            publish_bytes(self._level_path(target), data, durable=False)
            self._new_runs = []
            for level in range(target):
                DISK.unlink(self._level_path(level))
        self._load()

    # ------------------------------------------------------------------------------------------------------- clocks

    def _now(self) -> tuple[int, int]:
        """Return when this cache was opened, by whichever clock is behind, and the device whose clock was asked."""
        if self._clock is None:
            now, device = min(self._opened, time.time_ns()), -1
            probe = self._path.with_name(f".{self._path.name}.{uuid.uuid4().hex}.tmp")
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(exist_ok=True)
                try:
                    DISK.write(probe, b"")
                    touched = probe.stat()
                finally:
                    DISK.unlink(probe)
                now += min(0, touched.st_mtime_ns - time.time_ns())
                device = touched.st_dev
            self._clock = now, device
        return self._clock

    def _today(self) -> int:
        return max(0, self._opened // _DAY_NS)

    # --------------------------------------------------------------------------------------------------------- runs

    def _level_path(self, level: int) -> Path:
        return self._path if level == 0 else self._path.with_name(f"{self._path.name}.{level}")

    def _rows_up_to(self, level: int) -> int:
        return sum(len(run) for number, run in self._disk_runs.items() if number <= level)

    def _load(self) -> None:
        """Map the runs that are there now; those that are as before stay, with what is known of them."""
        before = {run.token: run for run in self._disk_runs.values()}
        found = {level: _open_run(self._level_path(level)) for level in range(len(_CAPACITY))}
        self._disk_runs = {level: before.get(run.token, run) for level, run in found.items() if run is not None}

    def _spill(self, least: int) -> None:
        """Turn new entries, when there are at least so many, from Python objects into a sorted run in memory."""
        if len(self._fresh) < least:
            return
        keys = np.frombuffer(b"".join(self._fresh), "<u8")
        rows = np.frombuffer(b"".join(self._fresh.values()), _ROW)
        order = np.argsort(keys)
        self._new_runs.append(_Run(keys[order], rows[order], None))
        self._fresh = {}
        while len(self._new_runs) > 1 and len(self._new_runs[-2]) < 4 * len(self._new_runs[-1]):
            newer, older = self._new_runs.pop(), self._new_runs.pop()
            self._new_runs.append(_merge([newer, older], self._today()))


def _path_hash(path: str) -> bytes:
    # Not proof against design, and need not be: a hit must also have the file's inode, device, size and times.
    return xxhash.xxh3_128_digest(path.encode("utf-8", "surrogatepass"))


def _numbers(stats: Sequence[Any]) -> np.ndarray:
    """Return size, times, inode and device as uint64 of shape (n, 5)."""
    listed = [(s.size, s.mtime_ns, s.ctime_ns, s.inode, s.device) for s in stats]
    try:
        return np.array(listed, dtype="<i8").reshape(-1, 5).view("<u8")
    except OverflowError:  # inodes above 2^63, times after the year 2262
        return np.array([_folded(s) for s in stats], dtype="<u8").reshape(-1, 5)


def _folded(stat: Any) -> list[int]:
    return [n & 0xFFFFFFFFFFFFFFFF for n in (stat.size, stat.mtime_ns, stat.ctime_ns, stat.inode, stat.device)]


def _group_sum(keys: np.ndarray, rows: np.ndarray, group: int) -> int:
    part = slice(group * _GROUP, (group + 1) * _GROUP)
    digest = xxhash.xxh3_64(keys[part].data.cast("B"))
    digest.update(rows[part].view("u1").data)
    return int(digest.intdigest())


def _merge(runs: Sequence[_Run], today: int) -> _Run:
    """Make one run of several, newest first: of each path the newest entry, without the damaged and the forgotten."""
    keys, origin, place, used = [], [], [], []
    for number, run in enumerate(runs):
        every = np.arange(len(run))
        mine = run.used if run.used is not None else np.zeros(len(run), dtype=bool)
        keep = np.flatnonzero(run.sound(every) & (mine | (run.rows["day"] + np.uint32(KEEP_DAYS) >= today)))
        keys.append(run.keys[keep])
        origin.append(np.full(len(keep), number, dtype="u1"))
        place.append(keep)
        used.append(mine[keep])
    key = np.concatenate(keys)
    order = np.argsort(key, kind="stable")  # stable: the newest of equal keys comes first
    first = np.ones(len(order), dtype=bool)
    first[1:] = key[order][1:] != key[order][:-1]
    order = order[first]
    source, where = np.concatenate(origin)[order], np.concatenate(place)[order]
    rows = np.zeros(len(order), dtype=_ROW)
    for number, run in enumerate(runs):
        mine = source == number
        rows[mine] = run.rows[where[mine]]
    rows["day"][np.concatenate(used)[order]] = today
    return _Run(key[order], rows, None)


def _file_of(run: _Run) -> bytes:
    """Return a run as a file: header, checksums of the groups, keys, rows."""
    groups = range(-(-len(run) // _GROUP))
    sums = np.asarray([_group_sum(run.keys, run.rows, group) for group in groups], dtype="<u8").tobytes()
    count = len(run)
    token = xxhash.xxh3_128_digest(struct.pack("<Q", count) + sums)
    return b"".join([_HEADER.pack(_MAGIC, count, token), sums, run.keys.view("u1").data, run.rows.view("u1").data])


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = open_regular(path)
    try:
        yield handle
    finally:
        os.close(handle)


def _open_run(path: Path) -> _Run | None:
    """Map a run; None when there is none, or anything else."""
    with contextlib.suppress(OSError, ValueError), _opened(path) as handle:
        found = os.fstat(handle)
        if found.st_size <= _HEADER.size:
            return None
        data = mmap.mmap(handle, 0, access=mmap.ACCESS_READ)
        magic, count, token = _HEADER.unpack_from(data)
        groups = -(-count // _GROUP)
        start = _HEADER.size + 8 * groups
        if magic != _MAGIC or count > _CAPACITY[-1] or len(data) != start + count * (8 + _ROW.itemsize):
            return None
        if xxhash.xxh3_128_digest(struct.pack("<Q", count) + data[_HEADER.size : start]) != token:
            return None
        sums = np.frombuffer(data, "<u8", groups, _HEADER.size)
        keys = np.frombuffer(data, "<u8", count, start)
        return _Run(keys, np.frombuffer(data, _ROW, count, start + 8 * count), sums, token)
    return None
