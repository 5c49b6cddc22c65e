"""Work on files that may crash whoever reads them, in a child process of bounded memory and time.

The child's answer is JSON of bounded size, in a file: a pipe could be filled for ever.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

from ..errors import DamagedStore, NotAStore, StoreError, StoreTooNew
from .safely import parse_json

__all__ = ["Crashed", "in_limited_child"]

_LARGEST_ANSWER = 1 << 24
_RAISED = {error.__name__: error for error in (DamagedStore, NotAStore, StoreError, StoreTooNew)}
_CHILD = "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from featcache.store.limited import child; child()"


class Crashed(Exception):
    """The child did not answer; the text says of what it died."""


def in_limited_child(call: str, arguments: Sequence[Any], *, memory: int, seconds: int) -> Any:
    """Call a function in a child process and return its answer.

    Parameters
    ----------
    call : str
        ``module:function``.
    arguments : sequence
        JSON values.
    memory : int
        Bytes of addresses that the child may have, files that it maps among them.
    seconds : int
        Of processor time, and half as many again by the clock and ten times more on a busy machine.

    Raises
    ------
    Crashed
        When the child died or answered nonsense.
    StoreError
        (or one of its subclasses) When the function raised it.
    """
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    # Isolated (-I): a store's folder, from which this may be run, must not name the modules that the child imports.
    command = [sys.executable, "-I", "-c", _CHILD, json.dumps([p for p in sys.path if p]), call]
    command += [json.dumps([memory, seconds]), json.dumps(list(arguments))]
    with tempfile.TemporaryFile() as answer:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=answer, stderr=subprocess.DEVNULL, env=environment
        )
        try:
            status = child.wait(timeout=10 * seconds + 30)
        except subprocess.TimeoutExpired as error:
            raise Crashed("it took too long") from error
        finally:
            if child.poll() is None:
                child.kill()
                child.wait()
        if status:
            raise Crashed(_how(status))
        answer.seek(0)
        text = answer.read(_LARGEST_ANSWER + 1)
    try:
        said = parse_json(text)
        if "raised" not in said:
            return said["answer"]
        name, reason, file = (str(said[part]) for part in ("raised", "text", "file"))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise Crashed(f"its answer cannot be read: {error}") from error
    if name not in _RAISED:
        raise Crashed(f"{name}: {reason}")
    raised = _RAISED[name](reason)
    if isinstance(raised, DamagedStore):
        raised.file = file
    raise raised


def _how(status: int) -> str:
    if status > 0:
        return f"it ended with status {status}"
    with contextlib.suppress(ValueError):
        return signal.Signals(-status).name
    return f"signal {-status}"


def child() -> None:
    """Run in the child: take the limits, call the function, print its answer."""
    call, limits, arguments = sys.argv[2], json.loads(sys.argv[3]), json.loads(sys.argv[4])
    _limit(*limits)
    module, _, name = call.partition(":")
    try:
        said = {"answer": getattr(importlib.import_module(module), name)(*arguments)}
    except Exception as error:
        text = " ".join(str(error).split())[:4000]
        said = {"raised": type(error).__name__, "text": text, "file": str(getattr(error, "file", ""))}
    sys.stdout.write(json.dumps(said))


def _limit(memory: int, seconds: int) -> None:
    try:
        import resource
    except ImportError:  # Windows
        return
    wanted = {
        resource.RLIMIT_AS: memory,
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_FSIZE: 4 * _LARGEST_ANSWER,
    }
    for what, count in wanted.items():
        hard = resource.getrlimit(what)[1]
        count = count if hard == resource.RLIM_INFINITY else min(count, hard)
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (count, hard if what == resource.RLIMIT_CPU else count))
