"""The threads of a stream: each reads, decodes and computes in turn, what is nearest to the stream's end first.

With threads for decoding and others for the network, twice as many as there are cores, they drive each other's data out
of the caches; and a thread that hands its core over leaves it idle for a moment.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future
from functools import partial
from typing import Any

__all__ = ["Team"]

_Task = tuple["Future[Any]", Callable[[], Any]]


class Team(Executor):
    """Threads that take urgent tasks (`submit`) before others (`later`); tasks of one kind begin in their order.

    Parameters
    ----------
    size : int
        Threads that take both kinds; 0 for a team whose urgent work others do.
    helpers : int, default=0
        Threads that take only what is not urgent.

    Attributes
    ----------
    urgent_at_once : int
        So many urgent tasks at the same time, at most; `size` at first.
    """

    def __init__(self, size: int, helpers: int = 0) -> None:
        self.size, self.helpers, self.urgent_at_once = size, 0, size
        self._urgent: deque[_Task] = deque()
        self._others: deque[_Task] = deque()
        self._urgent_now = 0
        self._lock = threading.Lock()
        self._wakes, self._wakes_helpers = threading.Condition(self._lock), threading.Condition(self._lock)
        self._closed = False
        self._threads: list[threading.Thread] = []
        for _ in range(size):
            self._start(self._wakes, helper=False)
        self.grow(helpers)

    def grow(self, helpers: int) -> None:
        """Have so many helpers, unless there are more."""
        while self.helpers < helpers:
            self.helpers += 1
            self._start(self._wakes_helpers, helper=True)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Have something done before everything that is not urgent."""
        return self._put(self._urgent, partial(fn, *args, **kwargs))

    def later(self, fn: Callable[..., Any], /, *args: Any) -> Future[Any]:
        """Have something done when nothing urgent is waiting."""
        return self._put(self._others, partial(fn, *args))

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = True) -> None:
        """End: tasks that were not begun are cancelled, always."""
        with self._lock:
            self._closed = True
            waiting = [*self._urgent, *self._others]
            self._urgent.clear()
            self._others.clear()
            self._wakes.notify_all()
            self._wakes_helpers.notify_all()
        for future, _ in waiting:
            future.cancel()
            future.set_running_or_notify_cancel()  # else concurrent.futures.wait goes on waiting for it
        for thread in self._threads if wait else []:
            thread.join()

    def _start(self, wakes: threading.Condition, *, helper: bool) -> None:
        # Daemons: a stream that nobody finished must not keep the process alive.
        thread = threading.Thread(target=self._work, args=(wakes, helper), name="featcache-team", daemon=True)
        self._threads.append(thread)
        thread.start()

    def _put(self, queue: deque[_Task], task: Callable[[], Any]) -> Future[Any]:
        future: Future[Any] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the team has ended")
            queue.append((future, task))
            self._wakes.notify()
            if queue is self._others:
                self._wakes_helpers.notify()
        return future

    def _next(self, helper: bool) -> deque[_Task] | None:
        """Return the queue to take from, None when there is nothing to do."""
        if self._urgent and not helper and self._urgent_now < self.urgent_at_once:
            return self._urgent
        return self._others or None

    def _work(self, wakes: threading.Condition, helper: bool) -> None:
        while True:
            with self._lock:
                wakes.wait_for(lambda: self._closed or self._next(helper))
                queue = self._next(helper)
                if self._closed or queue is None:
                    return
                urgent = queue is self._urgent
                self._urgent_now += urgent
                future, task = queue.popleft()
            _do(future, task)
            del future, task  # the result is not this thread's to keep
            with self._lock:
                self._urgent_now -= urgent


def _do(future: Future[Any], task: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(task())
    except BaseException as error:  # whoever waits for it gets it
        future.set_exception(error)
