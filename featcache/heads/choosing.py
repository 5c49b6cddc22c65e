"""Choosing the settings of a head inside the training rows, and fitting it with them."""

from __future__ import annotations

import contextlib
import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from sklearn.base import clone, is_classifier
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from ..errors import FeatcacheError, HeadError, SplitError
from ..splits import Folds, holdout, k_fold, whole_number
from .metrics import check_metric
from .paths import Path, estimator_path, ridge_loo
from .rows import fit_grouped, quiet_newton
from .zoo import HeadInfo, head_info, make_head

__all__ = ["Trained", "best_step", "few_threads", "head_name", "refusals", "train", "tuning_folds", "walked"]

#: Beyond this many numbers one validation part takes the place of the folds: it is precise enough, and
#: folds that are fitted one by one copy their rows.
_ONE_PART_ABOVE = 200_000_000

#: Up to this many numbers one BLAS thread is used.
_ONE_THREAD_UP_TO = 3_000_000


@dataclass(frozen=True)
class Trained:
    """A fitted estimator and how its settings came about.

    Parameters
    ----------
    estimator : estimator
        Fitted on all the rows given to `train`.
    name : str
        The head that was fitted; for "auto" the one chosen.
    params : dict
        Chosen or given settings.
    score : float or None
        Metric of the chosen settings on the validation rows of the folds; None when nothing was validated.
    notes : tuple of str
        What the user should know.
    """

    estimator: Any
    name: str
    params: dict[str, Any] = field(default_factory=dict)
    score: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Choice:
    params: dict[str, Any]
    score: float | None = None
    loss: float = 0.0


def head_name(head: Any) -> str:
    """Return what to call a head in tables: its name, or the class of a foreign estimator."""
    if isinstance(head, str):
        return head_info(head).name
    return type(_checked_estimator(head)).__name__


def _checked_estimator(head: Any) -> Any:
    if isinstance(head, type) or not all(hasattr(head, m) for m in ("fit", "predict", "get_params")):
        raise HeadError(
            f"head: expected a name such as 'logreg' or a scikit-learn classifier object, got {head!r}; "
            "give an instance with fit, predict and get_params"
        )
    if not _classifies(head):
        raise HeadError(f"head: expected a classifier, got {type(head).__name__}; labels are classes, not numbers")
    return head


def _classifies(estimator: Any) -> bool:
    try:
        return bool(is_classifier(estimator))
    except AttributeError as error:  # scikit-learn asks for tags that only its own base classes have
        raise HeadError(
            f"head: {type(estimator).__name__} is no scikit-learn estimator; derive it from ClassifierMixin and "
            "BaseEstimator"
        ) from error


def tuning_folds(
    y: np.ndarray, n_features: int, *, cv: int, ids: np.ndarray | None, groups: np.ndarray | None, seed: int
) -> Folds | None:
    """Return the folds on which settings are chosen; None when no class can be divided (one row per class)."""
    try:
        if len(y) * n_features > _ONE_PART_ABOVE:
            pair = holdout(y, test_size=0.2, ids=ids, groups=groups, seed=seed)
            return Folds((pair,), ("settings chosen on one validation part of 20 %: the set is large",))
        folds = k_fold(y, cv, ids=ids, groups=groups, seed=seed)
    except SplitError:
        if len(np.unique(y)) < 2 or not whole_number(cv, 2) or not whole_number(seed, 0):
            raise
        return None
    pairs = tuple(pair for pair in folds if len(np.unique(y[pair[0]])) > 1)
    return Folds(pairs, folds.notes) if pairs else None


def train(
    head: Any,
    X: np.ndarray,
    y: np.ndarray,
    folds: Folds | None,
    *,
    metric: str = "accuracy",
    seed: int = 0,
    params: Mapping[str, Any] | None = None,
    leave_one_out: bool = False,
    always_score: bool = False,
    groups: np.ndarray | None = None,
) -> Trained:
    """Choose the settings of a head on folds of the training rows, then fit it on all of them.

    Parameters
    ----------
    head : str or estimator
        A key of `HEADS`, or any scikit-learn classifier, which is cloned and fitted as it is.
    X, y : ndarray of shape (n, d) and (n,)
        Training rows only.
    folds : Folds or None
        Row numbers into X; None: fixed settings.
    metric : str, default="accuracy"
        What the settings are chosen by; ties go to the smaller loss, then to the stronger regularisation.
    seed : int, default=0
        `random_state` of the head.
    params : mapping, default=None
        Settings to hold fixed.
    leave_one_out : bool, default=False
        Whether ridge may use exact leave-one-out in place of the folds (not with groups or a validation part).
    always_score : bool, default=False
        Score on the folds even when there is nothing to choose.
    groups : ndarray of shape (n,), default=None
        For heads that choose something themselves, inside the rows they are fitted on.

    Returns
    -------
    Trained
        With the estimator fitted on all rows.

    Raises
    ------
    HeadError
        The estimator refused the data; the message carries its reason.
    """
    if isinstance(head, str) and head == "mlp":
        import torch  # noqa: F401  (before the limit, so that its threads are under it)
    with few_threads(X), warnings.catch_warnings():
        # As in rows.check_classes: foreign estimators ask scikit-learn themselves.
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        task = _Task(X, np.unique(y, return_inverse=True)[1], folds, metric, seed, leave_one_out, groups)
        return _train(task, head, y, dict(params or {}), always_score)


def few_threads(X: np.ndarray) -> contextlib.AbstractContextManager[Any]:
    """One BLAS thread while the codes are few.

    Small products gain nothing from threads, and threads that wait for each other on a busy machine lose a lot.
    """
    return _threads("torch" in sys.modules).limit(limits=1 if X.size <= _ONE_THREAD_UP_TO else None)


@functools.cache
def _threads(with_torch: bool) -> ThreadpoolController:
    """Return the handle on the thread pools loaded so far; torch brings one of its own."""
    return ThreadpoolController()


def _train(task: _Task, head: Any, y: np.ndarray, given: dict[str, Any], always_score: bool) -> Trained:
    if isinstance(head, str) and head == "auto":
        return _train_auto(task, y, given)
    if not isinstance(head, str):
        return _train_foreign(task, head, y, given, always_score)
    info = head_info(head)
    with refusals(f"head {head!r} with {given}" if given else f"head {head!r}", task.X, TypeError):
        choice = task.choose(info, given, always_score)
    estimator = make_head(head, random_state=task.seed, **{**given, **choice.params})
    return Trained(_fitted(estimator, task, y), head, {**given, **choice.params}, choice.score)


def _fitted(estimator: Any, task: _Task, y: np.ndarray) -> Any:
    with refusals(type(estimator).__name__, task.X), quiet_newton():
        return fit_grouped(estimator, task.X, y, task.groups)


@contextlib.contextmanager
def refusals(who: str, X: Any, *more: type[Exception]) -> Iterator[None]:
    """Turn what an estimator says against its data or settings into one line."""
    kinds: tuple[type[Exception], ...] = (ValueError, *more)
    try:
        yield
    except FeatcacheError:
        raise
    except kinds as error:
        raise HeadError(f"{who} on {X.shape[0]} rows: {' '.join(str(error).split())}") from error


def walked(steps: Iterable[tuple[float, float]], n_values: int, patience: int = 0) -> list[tuple[float, float]]:
    """Collect (score, loss) of a grid's values until `patience` of them in a row were below the best score.

    Parameters
    ----------
    steps : iterable of (float, float)
        Larger scores are better.
    n_values : int
        Values of the grid.
    patience : int, default=0
        0: all of them.
    """
    taken, best, since = list[tuple[float, float]](), -np.inf, 0
    for score, loss in steps:
        taken.append((score, loss))
        best, since = (score, 0) if score >= best else (best, since + 1)
        if (patience and since >= patience) or len(taken) == n_values:
            break
    return taken


def best_step(steps: Sequence[tuple[float, float]]) -> int:
    """Return the number of the best (score, loss): the largest score, then the smallest loss, then the first."""
    return min(range(len(steps)), key=lambda i: (-steps[i][0], steps[i][1]))


def _train_foreign(task: _Task, head: Any, y: np.ndarray, given: dict[str, Any], always_score: bool) -> Trained:
    """Use an estimator as it is: what it tunes, it tunes itself."""
    estimator = clone(_checked_estimator(head))
    if given:
        with refusals(type(estimator).__name__, task.X):
            estimator.set_params(**given)
    score = None
    if always_score and task.folds is not None:
        with refusals(type(estimator).__name__, task.X):
            score, _ = task.score_all([task.constant(clone(estimator), pair) for pair in task.folds], 1)[0]
    return Trained(_fitted(estimator, task, y), type(estimator).__name__, given, score)


def _train_auto(task: _Task, y: np.ndarray, given: dict[str, Any]) -> Trained:
    from .auto import train_auto  # which uses `train`

    allowed = {"ensemble", "max_seconds"}
    if set(given) - allowed:
        raise HeadError(f"head 'auto': expected settings among {sorted(allowed)}, got {sorted(given)}; name a head")
    with refusals("head 'auto'", task.X):
        return train_auto(task.X, y, task.folds, metric=task.metric, seed=task.seed, groups=task.groups, **given)


@dataclass(frozen=True)
class _Task:
    """Training rows, class codes and folds: everything a choice depends on."""

    X: np.ndarray
    y: np.ndarray
    folds: Folds | None
    metric: str
    seed: int
    leave_one_out: bool
    groups: np.ndarray | None = None

    def constant(self, estimator: Any, pair: tuple[np.ndarray, np.ndarray]) -> Path:
        """What one estimator as it is predicts of a fold's held-out rows."""
        return self._fits(lambda _: estimator, pair, (None,))

    def _fits(self, make: Callable[[Any], Any], pair: tuple[np.ndarray, np.ndarray], grid: tuple[Any, ...]) -> Path:
        rows, held_out = pair
        groups = None if self.groups is None else self.groups[rows]
        return estimator_path(make, self.X[rows], self.y[rows], self.X[held_out], grid, groups)

    def choose(self, info: HeadInfo, given: Mapping[str, Any], always_score: bool) -> _Choice:
        """Choose the tuned setting of a named head; the first best value of the grid wins ties of score and loss."""
        tuned = bool(info.param) and info.param not in given
        if self.folds is None:
            return _Choice({info.param: info.default} if tuned else {})
        if not tuned and not always_score:
            return _Choice({})
        grid = info.grid if tuned else (given.get(info.param),)
        steps = self._steps(info, grid, given)
        best = best_step(steps)
        return _Choice({info.param: grid[best]} if tuned else {}, *steps[best])

    def _steps(self, info: HeadInfo, grid: tuple[Any, ...], given: Mapping[str, Any]) -> list[tuple[float, float]]:
        """(score, loss) of each value tried."""
        assert self.folds is not None
        fast = info.path is not None and not set(given) - {info.param}
        if fast and info.name == "ridge" and self.leave_one_out:
            whole = (np.arange(len(self.y)), np.arange(len(self.y)))
            return self.score_all([ridge_loo(self.X, self.y, grid)], len(grid), Folds((whole,)))
        if info.fold_path is not None and not set(given) - {info.param}:
            together = info.fold_path(self.X, self.y, list(self.folds), grid)
            return self.score_steps(together, len(grid), patience=info.patience)
        runs = [self._path(info, grid, given, pair, fast) for pair in self.folds]
        return self.score_all(runs, len(grid), patience=info.patience)

    def _path(
        self, info: HeadInfo, grid: tuple[Any, ...], given: Mapping[str, Any], pair: Any, fast: bool
    ) -> Iterator[Any]:
        rows, held_out = pair
        if fast:
            assert info.path is not None
            return info.path(self.X[rows], self.y[rows], self.X[held_out], self.y[held_out], grid)
        make: Callable[[Any], Any] = lambda value: make_head(  # noqa: E731
            info.name, random_state=self.seed, **{**given, **({info.param: value} if info.param else {})}
        )
        return self._fits(make, pair, grid)

    def score_all(
        self, runs: list[Path], n_values: int, folds: Folds | None = None, patience: int = 0
    ) -> list[tuple[float, float]]:
        """Walk the paths of all folds in step."""
        return self.score_steps((list(steps) for steps in zip(*runs, strict=True)), n_values, folds, patience)

    def score_steps(
        self, values: Iterator[list[Any]], n_values: int, folds: Folds | None = None, patience: int = 0
    ) -> list[tuple[float, float]]:
        """Pool the predictions of all folds per value, so that small folds do not distort the metric."""
        truth = np.concatenate([self.y[held_out] for _, held_out in folds or self.folds or ()])
        measure = check_metric(self.metric)
        steps = (
            (measure(truth, np.concatenate([codes for codes, _ in results])), sum(loss for _, loss in results))
            for results in values
        )
        return walked(steps, n_values, patience)
