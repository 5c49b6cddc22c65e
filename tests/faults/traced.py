"""Each system call of each operation failing, or the process killed at it: strace does it to a real process.

Beside `injected`, which fails the calls that go through `featcache.files.Disk`, this reaches everything: reads, the
private caches, folders that are listed, maps. A child forked from here, with everything imported, waits until strace is
attached, so that only the operation's own calls are counted; only those that name the store are harmed.
"""

from __future__ import annotations

import collections
import mmap
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from expectations import UNEXPECTED, attempt, improper, judge
from injected import Unavailable, copied, repeat, step_of, workshop
from operations import OPERATIONS, Step

from featcache.store import FeatureStore

WRITING = [
    *("openat", "write", "writev", "pwrite64", "ftruncate", "fallocate", "fsync", "fdatasync", "link", "linkat"),
    *("rename", "renameat", "renameat2", "unlink", "unlinkat", "mkdir", "mkdirat", "rmdir"),
]
READING = ["read", "pread64", "getdents64"]
#: What is done at a call: name → how strace is told, at which calls.
ACCIDENTS = {
    "kill": ("signal=KILL", [*WRITING, "mmap"]),
    "ENOSPC": ("error=ENOSPC", WRITING),
    "EIO": ("error=EIO", [*WRITING, *READING]),
    "ENOMEM": ("error=ENOMEM", ["mmap"]),
}
#: A failure of these may never pass in silence (in the private caches it may).
_MUST_RAISE = {*WRITING} - {"openat", "unlink", "unlinkat", "rmdir"}
_LINE = re.compile(r"^(?:\d+ +)?(\w+)\(")
_SECONDS = 60
#: Place of the flag that lets the child go on.
_GO = 4000


@dataclass
class Run:
    """How one traced run went: lines of the trace that name the store, and how the child ended."""

    killed: bool
    error: str
    done: bool
    lines: list[str]
    harmed: str


def require_strace() -> None:
    """Raise Unavailable where there is no strace or it may not attach to a child of ours."""
    if shutil.which("strace") is None:
        raise Unavailable("needs strace")
    with workshop() as (template, _):
        _traced(lambda: None, template, None)


def _traced(action: Any, path: Path, inject: str | None) -> Run:
    """Run something in a child under strace; what it came to is told through shared memory, which costs no call."""
    told = mmap.mmap(-1, 4096)
    child = os.fork()
    if child == 0:
        said = "nothing was run"
        try:
            signal.alarm(_SECONDS)
            while not told[_GO]:
                time.sleep(0.001)  # none of the calls that are counted
            said = attempt(action)
        except BaseException as error:
            said = f"{UNEXPECTED}{type(error).__name__}: {error}"
        finally:  # whatever is harmed, this process never runs on as if it were its parent
            told[1:1001] = said.encode()[:1000].ljust(1000, b"\0")
            told[0] = 2 if said else 1
            os._exit(0)
    handle, name = tempfile.mkstemp(suffix=".strace")
    os.close(handle)
    log = Path(name)
    try:
        calls = ",".join("?" + name for name in dict.fromkeys([*WRITING, *READING, "mmap"]))
        words = ["strace", "-f", "-y", "-s", "0", "-o", str(log), "-e", f"trace={calls}", "-e", "signal=none"]
        words += ["-e", f"inject={inject}"] if inject else []
        strace = subprocess.Popen([*words, "-p", str(child)], stderr=subprocess.PIPE, text=True)
        assert strace.stderr is not None
        said = strace.stderr.readline()
        if "attached" not in said:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise Unavailable(f"strace may not attach here: {said.strip()}")
        told[_GO] = 1
        _, status = os.waitpid(child, 0)
        strace.stderr.close()
        strace.wait(_SECONDS)
        lines = [s for s in log.read_text(errors="replace").splitlines() if _LINE.match(s)]
    finally:
        log.unlink()
    killed = os.WIFSIGNALED(status)
    error = told[1:1001].rstrip(b"\0").decode(errors="replace") if told[0] == 2 else ""
    if killed and os.WTERMSIG(status) != signal.SIGKILL:
        error = f"died of signal {os.WTERMSIG(status)}"
    harmed = next((s for s in lines if "(INJECTED)" in s), "")
    return Run(killed, error.replace(str(path), "STORE"), told[0] == 1, lines, harmed.replace(str(path), "STORE"))


def calls_of(lines: list[str], path: Path) -> dict[str, list[int]]:
    """For each system call: which of its invocations name the store, counted from 1."""
    count: collections.Counter[str] = collections.Counter()
    found: dict[str, list[int]] = {}
    for line in lines:
        name = _LINE.match(line)[1]  # type: ignore[index]
        count[name] += 1
        if str(path) in line:
            found.setdefault(name, []).append(count[name])
    return found


def every_system_call(operation: str, seed: int = 0, share: float = 1.0) -> list[dict[str, Any]]:
    """Harm each system call of an operation in each way, or a seeded part of them."""
    outcomes = []
    rng = np.random.default_rng(seed)
    with workshop() as (template, told):
        step = step_of(operation, told, seed)
        with copied(template) as path:
            step.run(FeatureStore.open(path))  # what is only imported now would be counted once, and not again
        with copied(template) as path:
            calm = _traced(lambda: step.run(FeatureStore.open(path)), path, None)
            assert calm.done, calm.error
            calls = calls_of(calm.lines, path)
        for accident, (how, where) in ACCIDENTS.items():
            for name in where:
                for nth in calls.get(name, []):
                    if rng.random() >= share:
                        continue
                    with copied(template) as path:
                        about = {"operation": operation, "accident": accident, "call": name, "nth": nth}
                        inject = f"{name}:{how}:when={nth}"
                        outcomes.append({**about, **_one(step, path, told, inject, name, accident)})
    return outcomes


def _one(step: Step, path: Path, told: Any, inject: str, name: str, accident: str) -> dict[str, Any]:
    run = _traced(lambda: step.run(FeatureStore.open(path)), path, inject)
    problems = judge(path, *((step.settled(path),) if run.done else (told, step.after)), use=False)
    if run.killed and accident != "kill":
        problems.append(f"the process died: {run.error}")
    if run.done and run.harmed and not _may_pass(name, run.harmed):
        problems.append(f"a failure passed in silence: {run.harmed}")
    if not run.killed and not run.done and not run.harmed:
        problems.append(f"failed without a cause: {run.error}")
    problems += improper(run.error) + repeat(step, path)
    outcome = "killed" if run.killed else "raised" if run.error else "done"
    return {"outcome": outcome, "error": run.error, "at": run.harmed, "problems": problems}


def _may_pass(name: str, line: str) -> bool:
    """What cannot be read may be found elsewhere or not be needed; caches, and removing what is over, are optional."""
    return name not in _MUST_RAISE or "STORE/index" in line


def all_operations(seed: int = 0, share: float = 1.0) -> list[dict[str, Any]]:
    """The matrix of all operations."""
    require_strace()
    return [o for name in OPERATIONS for o in every_system_call(name, seed, share)]
