"""What makes a command start and end sooner: a process that computes for seconds only pays for it each time."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from collections.abc import Iterator
from typing import NoReturn

__all__ = ["leave", "rarer_collections"]

_OBJECTS_BETWEEN_COLLECTIONS = (100_000, 50, 100)


@contextlib.contextmanager
def rarer_collections() -> Iterator[None]:
    """Let the garbage collector look less often: importing PyTorch makes a million objects, and all of them stay."""
    before = gc.get_threshold()
    gc.set_threshold(*_OBJECTS_BETWEEN_COLLECTIONS)
    try:
        yield
    finally:
        gc.set_threshold(*before)


def leave(status: int) -> NoReturn:
    """End the process now: Python would free those objects one by one, and wait for threads that are left."""
    # Processes that work for this one (joblib's) are told to end by Python alone; an exit function waits for them.
    if "multiprocessing" in sys.modules and sys.modules["multiprocessing"].active_children():
        sys.exit(status)
    try:
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    except BaseException:  # what stands in the way is said as Python always says it; after Ctrl-C, too
        sys.exit(status)
    os._exit(status)
