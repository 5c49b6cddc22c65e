"""Pins: a writer that is at work says so, and nothing that it may count on is collected meanwhile.

A pin is a small file that its writer touches every minute. It protects by courtesy, not by correctness: a commit looks
again at what it names, and brings back what was collected in spite of everything (see `keeping`).
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..files import DISK, Disk, make_folder, publish_bytes, unique_name
from .safely import parse_json, read_small

__all__ = ["file_system_now", "hold_pin", "live_pins"]

_TOUCH_SECONDS = 60.0
#: A pin that was not touched for so long belongs to a writer that is dead, or asleep.
_DEAD_SECONDS = 3600.0
_LARGEST = 1 << 16


def file_system_now(root: Path, disk: Disk | None = None) -> float:
    """Return the time by the clock that stamps the store's files, in seconds; other hosts' clocks may differ."""
    probe = root / "tmp" / unique_name(".now")
    (disk or DISK).write(probe, b"")
    try:
        return probe.stat().st_mtime
    finally:
        with contextlib.suppress(OSError):
            (disk or DISK).unlink(probe)


@contextlib.contextmanager
def hold_pin(root: Path, disk: Disk | None = None) -> Iterator[None]:
    """Hold a pin while the body runs; a pin that cannot be written is no error."""
    path = root / "pins" / unique_name(".json")
    done = threading.Event()
    with contextlib.suppress(OSError):
        make_folder(path.parent, disk=disk)
        publish_bytes(path, json.dumps(_who()).encode(), durable=False, disk=disk)
    thread = threading.Thread(target=_touch, args=(path, done), name="featcache-pin", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        with contextlib.suppress(OSError):
            (disk or DISK).unlink(path)


def _touch(path: Path, done: threading.Event) -> None:
    while not done.wait(_TOUCH_SECONDS):
        with contextlib.suppress(OSError):
            os.utime(path)


def _who() -> dict[str, Any]:
    return {"host": socket.gethostname(), "pid": os.getpid(), "system": _system(), "started": _started(os.getpid())}


def _system() -> str:
    """Name this running system and its process numbers; "" where that cannot be told."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.stat('/proc/self/ns/pid').st_ino}"  # noqa: PTH116
    return ""


def _started(pid: int) -> str:
    """Return when a process began, in clock ticks since boot; "" when there is none."""
    with contextlib.suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def live_pins(root: Path, now: float, disk: Disk | None = None) -> list[dict[str, Any]]:
    """Return who is writing now: ``{"host", "pid", "age"}``; remove the pins of writers that are dead.

    Parameters
    ----------
    root : Path
        The store's folder.
    now : float
        Time by the file system's clock.
    disk : Disk, default=None
        The layer to use.
    """
    folder = root / "pins"
    alive = []
    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        try:
            age = now - path.stat().st_mtime
            who = _read(path)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM):
                continue  # gone meanwhile, or no file: no writer made that
            who = {}  # another user's: it may be at work
        if age > _DEAD_SECONDS or _is_dead(who):
            with contextlib.suppress(OSError):
                (disk or DISK).unlink(path)
        else:
            alive.append({"host": who.get("host", "?"), "pid": who.get("pid", "?"), "age": round(age, 1)})
    return alive


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(ValueError, RecursionError):
        who = parse_json(read_small(path, _LARGEST))
        if isinstance(who, dict):
            return {name: value for name, value in who.items() if type(value) in (int, str)}
    return {}


def _is_dead(who: dict[str, Any]) -> bool:
    """Tell whether a writer on this very system is gone; of others nothing is known."""
    pid = who.get("pid")
    if not isinstance(pid, int) or not who.get("system") or who["system"] != _system():
        return False
    return _started(pid) != who.get("started")
