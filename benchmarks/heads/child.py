"""One fit in a process of its own, where it can be ended after so many seconds and where its memory is its own.

Importing, loading and the first call of a solver are not in the time that is given back.
"""

import argparse
import json
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

#: Exit status of a fit that took longer than it may.
OVER = 124

Answer = tuple[dict[str, Any], dict[str, np.ndarray]]


class Peak:
    """Highest anonymous memory while it watches, in MB above the start; pages of mapped files are the system's."""

    def __enter__(self) -> "Peak":
        self.base = self.high = self._resident()
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._watch)
        self.thread.start()
        return self

    @staticmethod
    def _resident() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("RssAnon")).split()[1])

    def _watch(self) -> None:
        while not self.stop.wait(0.02):
            self.high = max(self.high, self._resident())

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()
        self.mb = round((self.high - self.base) / 1024, 1)


def timed(limit: float | None, call: Callable[[], Any]) -> tuple[float, Any]:
    watch = threading.Timer(limit or 0.0, lambda: os._exit(OVER))
    watch.daemon = True
    if limit is not None:
        watch.start()
    start = time.perf_counter()
    value = call()
    took = time.perf_counter() - start
    watch.cancel()
    return took, value


def sklearn_fit(folder: Path, limit: float | None, **settings: Any) -> Answer:
    """LogisticRegression on X.npy and y.npy."""
    from sklearn.linear_model import LogisticRegression

    X, y = np.load(folder / "X.npy"), np.load(folder / "y.npy")
    LogisticRegression(**{**settings, "max_iter": 3}).fit(X[:200, :4], np.arange(len(X[:200])) % 3)
    took, fitted = timed(limit, lambda: LogisticRegression(**settings).fit(X, y))
    return {"seconds": took}, {"coef": fitted.coef_, "intercept": fitted.intercept_}


def sklearn_path(folder: Path, limit: float | None, **settings: Any) -> Answer:
    """LogisticRegressionCV on the folds of fold.npy, which says of each row where it is held out."""
    from sklearn.linear_model import LogisticRegression, LogisticRegressionCV

    X, y, fold = (np.load(folder / f"{name}.npy") for name in ("X", "y", "fold"))
    folds = [(np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(fold.max() + 1)]
    LogisticRegression(solver=settings["solver"], max_iter=3).fit(X[:200, :4], np.arange(len(X[:200])) % 3)
    make = lambda: LogisticRegressionCV(cv=folds, use_legacy_attributes=False, scoring="accuracy", **settings)  # noqa: E731
    took, fitted = timed(limit, lambda: make().fit(X, y))
    return {"seconds": took}, {"coefs": np.asarray(fitted.coefs_paths_), "scores": np.asarray(fitted.scores_)}


def softmax_blocks(folder: Path, limit: float | None, **settings: Any) -> Answer:
    """SoftmaxClassifier.fit_blocks on X.npy as a map."""
    from featcache.softmax import SoftmaxClassifier

    few = np.random.default_rng(0).standard_normal((200, 4))
    SoftmaxClassifier().fit(few, np.arange(200) % 3)
    X, y = np.load(folder / "X.npy", mmap_mode="r"), np.load(folder / "y.npy")
    with Peak() as peak:
        cpu = time.process_time()
        took, fitted = timed(limit, lambda: SoftmaxClassifier(**settings).fit_blocks(X, y))
        cpu = time.process_time() - cpu
    figures = {
        "seconds": took,
        "cpu_seconds": cpu,
        "mb": peak.mb,
        "passes": int(fitted.n_iter_[0]),
        "certified_excess": float(fitted.gap_ / fitted.objective_),
    }
    return figures, {"coef": fitted.coef_, "intercept": fitted.intercept_}


KINDS: dict[str, Callable[..., Answer]] = {f.__name__: f for f in (sklearn_fit, sklearn_path, softmax_blocks)}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("settings", type=json.loads)
    args = parser.parse_args(argv)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures, arrays = KINDS[args.kind](args.folder, **args.settings)
    np.savez(args.folder / "found.npz", **arrays)
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main())
