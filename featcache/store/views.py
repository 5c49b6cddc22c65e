"""The names of views and the numbers of their states, as they stand in the folder ``snapshots``."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import StoreError

__all__ = [
    "check_view_name",
    "list_snapshots",
    "listed",
    "marks_of",
    "parse_state",
    "snapshot_path",
    "used_numbers",
    "view_names",
]

_NAME = re.compile(r"([0-9]{8})\.(h5|retired|lost)")
_VIEW = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def check_view_name(view: str) -> str:
    """Return the name of a view when it can be a folder's name everywhere; StoreError otherwise."""
    if not isinstance(view, str) or not _VIEW.fullmatch(view):
        raise StoreError(
            f"view {view!r}: expected letters, digits, '.', '_' or '-' (at most 100), not starting with a sign"
        )
    return view


def parse_state(name: str) -> tuple[str, int | None]:
    """Split the name of a state, ``view@number``, or of a view (its newest state: None); StoreError otherwise."""
    view, at, number = name.partition("@") if isinstance(name, str) else (name, "", "")
    if at and not (number.isascii() and number.isdecimal() and len(number) < 9):
        raise StoreError(f"state {name!r}: expected the name of a view, or VIEW@NUMBER, e.g. main@3")
    return check_view_name(view), int(number) if at else None


def view_names(root: Path) -> list[str]:
    """Return the names of the views that have a snapshot."""
    folder = root / "snapshots"
    names = [p.name for p in folder.iterdir() if not p.is_symlink()] if folder.is_dir() else []
    return sorted(name for name in names if list_snapshots(root, name))


def marks_of(root: Path, view: str) -> dict[int, set[str]]:
    """Return what there is of each number: "h5", and the marks "retired" and "lost"."""
    folder = root / "snapshots" / view
    found: dict[int, set[str]] = {}
    if not folder.is_symlink():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(folder) as entries:
            for entry in entries:
                match = _NAME.fullmatch(entry.name)
                if match:
                    found.setdefault(int(match[1]), set()).add(match[2])
    return found


def list_snapshots(root: Path, view: str) -> list[int]:
    """Return the numbers of a view's snapshots that are kept, oldest first."""
    return sorted(number for number, marks in marks_of(root, view).items() if marks == {"h5"})


def listed(numbers: Sequence[int]) -> str:
    """Return numbers of states for a message, the middle of many left out."""
    shown = [str(n) for n in numbers]
    return ", ".join(shown if len(shown) < 9 else [*shown[:4], "…", *shown[-3:]]) or "none"


def used_numbers(root: Path, view: str) -> list[int]:
    """Return all numbers that were ever given to a state of the view and are not wholly forgotten."""
    return sorted(marks_of(root, view))


def snapshot_path(root: Path, view: str, number: int) -> Path:
    """Return where a snapshot lies."""
    return root / "snapshots" / view / f"{number:08d}.h5"
