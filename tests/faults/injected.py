"""Each operation with each call of the disk failing or fatal, and with a disk on which it does not fit.

Every case starts from a copy of one prepared store and ends with the judge; then the operation is repeated on a disk
that works and must succeed. Functions give plain data, for tests and for benchmarks/bench_faults.py alike.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import resource
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from builders import NthCall
from expectations import Expected, attempt, improper, judge
from operations import OPERATIONS, Step, prepared
from power_loss import memory_folder

from featcache.store import FeatureStore

#: (errno or None for a kill, how)
ACCIDENTS = [
    *((number, how) for number in (errno.EIO, errno.ENOSPC) for how in ("before", "after", "half")),
    (None, "kill"),
    (None, "kill half"),
]
_MANY = 400


class Unavailable(Exception):
    """This machine does not let us do that kind of test."""


@contextlib.contextmanager
def workshop() -> Iterator[tuple[Path, Expected]]:
    """A prepared store to copy, beside which the copies go."""
    folder = Path(tempfile.mkdtemp(dir=memory_folder())).resolve()
    try:
        yield folder / "template", prepared(folder / "template")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def copied(template: Path, folder: Path | None = None) -> Iterator[Path]:
    path = (folder or template.parent) / "case.features"
    shutil.copytree(template, path, copy_function=shutil.copy2)
    try:
        yield path
    finally:
        shutil.rmtree(path)


def step_of(name: str, told: Expected, seed: int) -> Step:
    return OPERATIONS[name](told, np.random.default_rng([seed, *name.encode()]))


def in_fork(action: Callable[[], Any]) -> tuple[bool, str]:
    """Run something in a forked child; return whether it was killed, and how it failed ("" when it came back)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reader)
            os.write(writer, b"." + attempt(action).encode()[:4000])
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read().decode(errors="replace")
    _, status = os.waitpid(child, 0)
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    return killed, said[1:] if said or killed else f"died: {os.waitstatus_to_exitcode(status)}"


def repeat(step: Step, path: Path, store: FeatureStore | None = None) -> list[str]:
    """Run the operation again where nothing fails any more: in a store that was open meanwhile, or as another would."""
    said = attempt(lambda: step.run(store or FeatureStore.open(path)))
    return [f"the repetition failed: {said}"] if said else judge(path, step.settled(path))


def every_call(operation: str, number: int | None, how: str, seed: int = 0, stride: int = 1) -> list[dict[str, Any]]:
    """Fail the N-th call of the disk, for all N until the operation succeeds (or for each `stride`-th)."""
    outcomes = []
    with workshop() as (template, told):
        step = step_of(operation, told, seed)
        for nth in range(1 + seed % stride, _MANY, stride):
            with copied(template) as path:
                disk = NthCall(nth, number or errno.EIO, how)
                store = FeatureStore.open(path, disk=disk)
                action = functools.partial(step.run, store)
                if number is None:
                    killed, error = in_fork(action)
                    over = not killed
                else:
                    error = attempt(action)
                    over, killed = not disk.failed, False
                done = not error and not killed
                outcome = "killed" if killed else "done" if done else "raised"
                problems = judge(path, *((step.settled(path),) if done else (told, step.after)), use=False)
                if done and not over and not _optional(operation, disk.failed):
                    problems.append(f"a failing {disk.failed} was swallowed")
                if over and not done:
                    problems.append(f"failed without a cause: {error}")
                disk.nth = 0
                problems += improper(error) + repeat(step, path, store if nth % 2 and number is not None else None)
                about = {"operation": operation, "nth": nth, "accident": _name(number, how), "call": disk.failed}
                outcomes.append({**about, "outcome": outcome, "error": error, "problems": problems})
            if over:
                return outcomes
    raise AssertionError(f"{operation} still fails at call {_MANY}")


def some_calls(operation: str, accidents: list[tuple[int | None, str]], stride: int) -> list[dict[str, Any]]:
    """A part of the matrix of one operation: some accidents, each at each `stride`-th call."""
    return [o for form, (number, how) in enumerate(accidents) for o in every_call(operation, number, how, form, stride)]


def _name(number: int | None, how: str) -> str:
    return how if number is None else f"{errno.errorcode[number]} {how}"


def _optional(operation: str, call: str) -> bool:
    """A temporary file that cannot be removed is no failure: the next sweep takes it. What gc removes can wait too."""
    return call == "unlink"


def limited_files(operation: str, seed: int = 0, limits: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Let no file grow beyond a limit (RLIMIT_FSIZE), which the kernel refuses as a full disk is refused."""
    outcomes = []
    with workshop() as (template, told):
        step = step_of(operation, told, seed)
        for limit in limits or (0, 1, 100, 4096, 4097, 6000, 8192, 10_000, 12_288, 16_384, 20_000, 30_000, 1 << 20):
            with copied(template) as path:

                def action(path: Path = path, limit: int = limit) -> None:
                    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                    store = FeatureStore.open(path)
                    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
                    step.run(store)

                outcomes.append({"limit": limit, **_judged(operation, action, path, told, step)})
    return outcomes


def _judged(
    operation: str,
    action: Callable[[], Any],
    path: Path,
    told: Expected,
    step: Step,
    between: Callable[[], Any] = lambda: None,
) -> dict[str, Any]:
    _, error = in_fork(action)
    between()
    problems = judge(path, *((told, step.after) if error else (step.settled(path),)), use=False)
    if error.startswith("died"):
        problems.append(error)
    problems += improper(error) + repeat(step, path)
    outcome = "raised" if error else "done"
    return {"operation": operation, "outcome": outcome, "error": error, "problems": problems}


@contextlib.contextmanager
def small_disk(size: str = "600k") -> Iterator[Path]:
    """A file system of so many bytes; Unavailable where the machine does not let us mount one."""
    if os.name != "posix" or os.geteuid() != 0 or shutil.which("mount") is None:
        raise Unavailable("needs root to mount a small file system")
    folder = Path(tempfile.mkdtemp())
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        folder.rmdir()
        raise Unavailable("cannot mount a small file system here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)
        folder.rmdir()


@contextlib.contextmanager
def no_reserve() -> Iterator[None]:
    """Compacting refuses to begin where little room would be left; here it is to run into the wall."""
    try:
        from featcache.store import compacting
    except ImportError:
        yield
        return
    kept, compacting._SPARE_BYTES = compacting._SPARE_BYTES, -(1 << 30)
    try:
        yield
    finally:
        compacting._SPARE_BYTES = kept


def fill(disk: Path, left: int) -> Path:
    """Take all room of a file system but so many bytes; return the file that takes it."""
    ballast = disk / "ballast"
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(disk).free - left))
    return ballast


def full_disk(operation: str, seed: int = 0, room: tuple[int, ...] = ()) -> list[dict[str, Any]]:
    """Leave so many bytes on a file system; 0 to what is plenty."""
    outcomes = []
    with workshop() as (template, told), small_disk("2m") as disk, no_reserve():
        step = step_of(operation, told, seed)
        for left in room or (0, 4096, 8192, 12_288, 16_384, 20_480, 24_576, 32_768, 49_152, 65_536, 1 << 20):
            with copied(template, disk) as path:
                ballast = fill(disk, left)
                action = functools.partial(lambda path: step.run(FeatureStore.open(path)), path)
                outcome = _judged(operation, action, path, told, step, between=ballast.unlink)
                outcomes.append({"left": left, **outcome})
    return outcomes
