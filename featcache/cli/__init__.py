"""The command line: one verb per public callable, with its names and defaults.

Results go to standard output (``--json`` for machines), progress and notes to standard error. Exit status: 0 done,
1 failed (one line says what, where and what to do), 2 wrong usage, 3 `check` found damage, 130 interrupted.

Heavy libraries are imported by the verbs, not here: ``featcache --help`` takes a fraction of a second.
"""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Sequence

__all__ = ["run"]

_INTERRUPTED = "interrupted; what was published is kept, the same command goes on from there"


def run(arguments: Sequence[str]) -> int:
    """Run one command.

    Parameters
    ----------
    arguments : sequence of str
        Without the program's name.

    Returns
    -------
    int
        Exit status.
    """
    from ..errors import FeatcacheError
    from .commands import app
    from .starting import rarer_collections

    _prepare_streams()
    try:
        with rarer_collections(), warnings.catch_warnings():
            # What Pillow thinks of an image's metadata; an image that cannot be used ends in the ledger.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            status = app(args=list(arguments), prog_name="featcache", standalone_mode=False)
        # Typer turns Ctrl-C into this status before we see it, and says nothing.
        return _fail(_INTERRUPTED, 130) if status == 130 else status if isinstance(status, int) else 0
    except FeatcacheError as error:
        return _fail(str(error), 1)
    except KeyboardInterrupt:
        return _fail(_INTERRUPTED, 130)
    except (BrokenPipeError, SystemExit):
        # The reader (head, less) has seen enough (Typer makes an exit of it); Python must not complain while flushing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _fail(f"{where}{error.strerror or error}", 1)
    except MemoryError:
        return _fail("out of memory; give a smaller --batch-size", 1)
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        return _usage(error)


def _prepare_streams() -> None:
    """Make writing safe: to a stream that is closed, and of characters that a terminal cannot show."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller (>&-)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115 - for the process
        elif isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def _fail(message: str, status: int) -> int:
    from .show import plain

    sys.stderr.write(f"featcache: {plain(' '.join(message.split()))}\n")
    return status


def _usage(error: Exception) -> int:
    """Say in one line what is wrong with the words of the command."""
    context = getattr(error, "ctx", None)
    command = getattr(context, "command_path", "featcache")
    message = error.format_message()  # type: ignore[attr-defined]
    if type(error).__name__ == "NoArgsIsHelpError" or not message:
        sys.stderr.write(f"featcache: give a command; see {command} --help\n")
        return 2
    return _fail(f"{message.rstrip('.')}; see {command} --help", int(getattr(error, "exit_code", 2)))
