"""Progress on standard error: a rich bar with rate and remaining time, silent where nobody looks."""

from __future__ import annotations

import sys
from typing import Any, Protocol

__all__ = ["Bar", "Progress", "Silent", "progress_for"]


class Progress(Protocol):
    """What long-running work tells about itself."""

    def __enter__(self) -> Progress: ...

    def __exit__(self, *exc: object) -> None: ...

    def start(self, what: str, total: int | None) -> None:
        """Begin a phase of `total` steps."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Report steps done, and a short remark shown beside the bar."""


class Silent:
    """Says nothing."""

    def __enter__(self) -> Silent:
        return self

    def __exit__(self, *exc: object) -> None:
        return None

    def start(self, what: str, total: int | None) -> None:
        """Say nothing."""

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Say nothing."""


class Bar:
    """A bar on standard error."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            ProgressColumn,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: Any) -> Text:
                speed = task.finished_speed or task.speed
                return Text(f"{speed:,.0f}/s" if speed else "", style="progress.data.speed")

        from rich.progress import Progress as RichProgress

        self._progress = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
            # What is printed beside the bar goes above it; what goes to a file or pipe stays on its way.
            redirect_stdout=sys.stdout.isatty(),
        )
        self._task: Any = None

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._progress.stop()

    def start(self, what: str, total: int | None) -> None:
        """Begin a phase."""
        self._task = self._progress.add_task(what, total=total, note="")

    def advance(self, steps: int = 1, note: str = "") -> None:
        """Move the bar."""
        if self._task is not None:
            fields: dict[str, Any] = {"note": note} if note else {}
            self._progress.update(self._task, advance=steps, **fields)


def progress_for(progress: bool | str | Progress | None) -> Progress:
    """Return the bar that an argument asks for.

    Parameters
    ----------
    progress : {"auto", True, False, None} or Progress
        "auto": a bar when standard error is a terminal.

    Returns
    -------
    Progress
    """
    if progress is True or (progress == "auto" and sys.stderr.isatty()):
        return Bar()
    if progress in (False, None, "auto"):
        return Silent()
    return progress  # type: ignore[return-value]
