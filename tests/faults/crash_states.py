"""Power loss: every state in which a disk may be found after it, by the rules of POSIX and no kinder ones.

`RecordingDisk` notes each call. `Medium` replays them up to a moment and knows what is certain then: a file's content
only after a completed fsync of the file, and a folder's entries only after a completed fsync of that folder (an fsync
of the file does not save its name). Everything else is drawn at random: of unsynced content each 4 KiB piece is there
or zeros, or the end is missing; of unsynced entries any subset is there, whatever their order. A rename within one
folder is atomic; one between two folders is two entries, of which either, both or none may be there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from featcache.files import Disk

PIECE = 4096


class RecordingDisk(Disk):
    """Does everything, syncs nothing, and notes each completed call in `log`, with paths relative to `root`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.log: list[tuple[Any, ...]] = []

    def _name(self, path: Path) -> str:
        return Path(path).absolute().relative_to(self.root).as_posix()

    def note(self, *what: Any) -> None:
        """Note a call; or, by a test, that an operation began or was acknowledged."""
        self.log.append(what)

    def write(self, path, data):
        super().write(path, data)
        self.note("write", self._name(path), Path(path).read_bytes())

    def mkdir(self, path):
        there = Path(path).is_dir()
        super().mkdir(path)
        if not there:
            self.note("mkdir", self._name(path))

    def fsync(self, path):
        if Path(path).is_dir():
            self.fsync_folder(path)
        else:
            self.note("fsync", self._name(path))

    def fsync_folder(self, path):
        # Folders above the root are the user's: they were there before, and stay.
        if Path(path).absolute().is_relative_to(self.root):
            self.note("fsync_folder", self._name(path))

    def link(self, source, target):
        super().link(source, target)
        self.note("link", self._name(source), self._name(target))

    def rename(self, source, target):
        super().rename(source, target)
        self.note("rename", self._name(source), self._name(target))

    def unlink(self, path):
        there = Path(path).exists()
        super().unlink(path)
        if there:
            self.note("unlink", self._name(path))


@dataclass(eq=False)
class File:
    """Content, and whether it is certain to be there."""

    data: bytes
    synced: bool = False


@dataclass(eq=False)
class Folder:
    """Entries as programs see them, those that are certain, and the changes in between, each of them atomic."""

    now: dict[str, File | Folder] = field(default_factory=dict)
    certain: dict[str, File | Folder] = field(default_factory=dict)
    changes: list[dict[str, File | Folder | None]] = field(default_factory=list)

    def change(self, entries: dict[str, Any]) -> None:
        self.changes.append(entries)
        self.now = apply(self.now, entries)

    def sync(self) -> None:
        for entries in self.changes:
            self.certain = apply(self.certain, entries)
        self.changes = []


def apply(entries: dict[str, Any], change: dict[str, Any]) -> dict[str, Any]:
    return {name: node for name, node in {**entries, **change}.items() if node is not None}


class Medium:
    """The disk below `root` while a log is replayed onto it."""

    def __init__(self) -> None:
        self.top = Folder()

    def _find(self, name: str) -> tuple[Folder, str]:
        *folders, last = name.split("/")
        place: Any = self.top
        for folder in folders:
            place = place.now[folder]
        return place, last

    def _node(self, name: str) -> Any:
        if name == ".":
            return self.top
        folder, last = self._find(name)
        return folder.now[last]

    def replay(self, log: Sequence[tuple[Any, ...]]) -> Medium:
        for call, *arguments in log:
            if hasattr(self, "_" + call):
                getattr(self, "_" + call)(*arguments)
        return self

    def _write(self, name: str, data: bytes) -> None:
        folder, last = self._find(name)
        folder.change({last: File(data)})

    def _mkdir(self, name: str) -> None:
        folder, last = self._find(name)
        folder.change({last: Folder()})

    def _fsync(self, name: str) -> None:
        self._node(name).synced = True

    def _fsync_folder(self, name: str) -> None:
        self._node(name).sync()

    def _link(self, source: str, target: str) -> None:
        folder, last = self._find(target)
        folder.change({last: self._node(source)})

    def _rename(self, source: str, target: str) -> None:
        node, (here, old), (there, new) = self._node(source), self._find(source), self._find(target)
        if here is there:
            here.change({new: node, old: None})
        else:
            there.change({new: node})
            here.change({old: None})

    def _unlink(self, name: str) -> None:
        folder, last = self._find(name)
        folder.change({last: None})

    def tree(self) -> dict[str, bytes | None]:
        """What programs see: path → content, or None for a folder."""
        return dict(_walk(self.top, lambda folder: folder.now, lambda file: file.data))

    def after_power_loss(self, rng: np.random.Generator, chance: float) -> dict[str, bytes | None]:
        """Draw one state: each uncertain thing is there with this chance."""

        def entries(folder: Folder) -> dict[str, Any]:
            found = folder.certain
            for change in folder.changes:
                if rng.random() < chance:
                    found = apply(found, change)
            return found

        kept: dict[int, bytes] = {}  # a file of two names has one content

        def content(file: File) -> bytes:
            if id(file) not in kept:
                kept[id(file)] = file.data if file.synced else torn(file.data, rng, chance)
            return kept[id(file)]

        return dict(_walk(self.top, entries, content))


def _walk(folder: Folder, entries: Any, content: Any, prefix: str = ""):
    for name, node in entries(folder).items():
        if isinstance(node, Folder):
            yield prefix + name, None
            yield from _walk(node, entries, content, f"{prefix}{name}/")
        else:
            yield prefix + name, content(node)


def torn(data: bytes, rng: np.random.Generator, chance: float) -> bytes:
    """Return what may be left of unsynced data: pieces that never reached the disk read as zeros, the end may miss."""
    if chance == 1:
        return data
    pieces = [data[i : i + PIECE] for i in range(0, len(data), PIECE)]
    left = b"".join(piece if rng.random() < chance else bytes(len(piece)) for piece in pieces)
    return left[: int(rng.integers(len(data) + 1))] if rng.random() < 0.5 else left


def materialise(tree: dict[str, bytes | None], root: Path) -> None:
    """Put a state into a folder."""
    root.mkdir()
    for name, data in tree.items():
        if data is None:
            (root / name).mkdir()
        else:
            (root / name).write_bytes(data)
