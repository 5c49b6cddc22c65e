"""fit where an image has several labels, or a number, in place of one class."""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import clone, is_regressor

from ..errors import HeadError
from ..features import FeatureSet
from ..splits import Folds
from .choosing import Trained, best_step, few_threads, refusals, walked
from .dealing import deal_folds
from .fitted import FittedHead
from .guards import detector_of
from .labelled import is_mapped, provenance
from .mapped import sampled
from .metrics import SMALLER_IS_BETTER, check_metric
from .numbers import may_leave_out
from .rows import fit_grouped
from .tasks import Labels, Numbers, Task, one_number_each
from .zoo import HEADS, HeadInfo

__all__ = ["fit_task"]


def fit_task(
    head: Any,
    data: FeatureSet,
    separator: str | None,
    target: str | None,
    *,
    metric: str | None,
    cv: int,
    seed: int,
    params: Mapping[str, Any] | None,
    novelty: str | None,
) -> FittedHead:
    """Do what `fit` says of `separator` and `target`; one of them is not None."""
    if separator is not None and target is not None:
        raise HeadError("fit: expected separator (several labels) or target (a number), got both; give one")
    kind: Any = Numbers if separator is None else Labels
    metric = kind.usual if metric is None else metric
    check_metric(metric, kind.metrics)
    _check_head(head, kind)
    task: Task = Labels(data, separator) if separator is not None else Numbers(data, target or "")
    rows, train = task.rows, task.train
    if is_mapped(rows.X) and novelty is not None:
        raise HeadError("fit: novelty needs the codes in memory; use load(in_memory=True)")
    trained, how = _train(head, task, metric, cv, seed, dict(params or {}))
    scores = {} if trained.score is None else {how: trained.score}
    notes = rows.notes + task.notes + trained.notes
    if "test" in rows.parts:
        scores["test"], more = task.tested(metric, trained.estimator, rows.parts["test"])
        notes += more
    detector = None
    if novelty is not None:
        detector = detector_of(novelty, rows.X[train], None, None if rows.groups is None else rows.groups[train])
        notes += tuple(f"novelty: {note}" for note in detector.notes_)
    return FittedHead(
        estimator=trained.estimator,
        head=trained.name,
        params=trained.params,
        scores=scores,
        metric=metric,
        notes=notes,
        detector=detector,
        **task.fields,
        **provenance(data, rows, train),
    )


def _check_head(head: Any, kind: Any) -> None:
    """Raise HeadError for a head that cannot do what is asked."""
    if isinstance(head, str) and head in kind.heads:
        return
    got = repr(head) if isinstance(head, (str, type)) else type(head).__name__
    if kind is Labels:
        raise HeadError(f"head: with a separator expected one of {', '.join(kind.heads)}, got {got}")
    if isinstance(head, (str, type)) or not all(hasattr(head, m) for m in ("fit", "predict", "get_params")):
        raise HeadError(f"head: for a number expected 'ridge' or a scikit-learn regressor object, got {got}")
    try:
        good = bool(is_regressor(head))
    except AttributeError:  # scikit-learn asks for tags that only its own base classes have
        good = False
    if not good:
        raise HeadError(f"head: for a number expected 'ridge' or a scikit-learn regressor object, got {got}")


def _train(head: Any, task: Task, metric: str, cv: int, seed: int, given: dict[str, Any]) -> tuple[Trained, str]:
    """Choose the setting inside the training rows, and fit on all of them; also say what validated it."""
    rows, train, mapped = task.rows, task.train, is_mapped(task.rows.X)
    whole: Any
    if mapped:
        if not isinstance(head, str):
            raise HeadError("head: the codes stay on disk; use load(in_memory=True) for an estimator of your own")
        sample, near, whole, note = sampled(rows, train, seed)
        said: tuple[str, ...] = (note,)
    else:
        sample, said = np.arange(len(train)), ()
        near = whole = rows.X[train]
    in_val = np.isin(train, rows.parts.get("val", []))
    how, folds, notes = "cv", None, tuple[str, ...]()
    alone = isinstance(head, str) and head == "ridge" and rows.groups is None and rows.images is None
    exact = alone and may_leave_out(len(sample), task.width, len(HEADS["ridge"].grid))
    if in_val.any() and not mapped:
        how, folds, exact = "val", Folds(((np.flatnonzero(~in_val), np.flatnonzero(in_val)),)), False
    elif not exact:
        folds, notes = _dealt(task, sample, cv, seed)
        if alone:
            notes += ("alpha chosen on folds: what leave-one-out predicts of so many rows takes too much memory",)
    with few_threads(near):
        if not isinstance(head, str):
            return _train_foreign(head, task, near, folds, metric, given, notes), how
        held = sample if folds is None else np.concatenate([sample[part] for _, part in folds])
        value, score = _chosen(HEADS[head], task, near, sample, folds, held, exact, metric, given)
        with refusals(f"head {head!r}", near):
            estimator = task.fitted(head, whole, value, mapped)
    notes += task.remarks(metric, held)
    return Trained(estimator, head, {HEADS[head].param: value}, score, notes + said), how


def _dealt(task: Task, sample: np.ndarray, cv: int, seed: int) -> tuple[Folds | None, tuple[str, ...]]:
    """Deal the images among sampled training rows to folds, with notes; their augmented views only train."""
    rows, viewed = task.rows, task.train[sample]
    images = rows.standing(viewed)
    groups = None if rows.groups is None else rows.groups[images]
    if rows.images is not None and groups is not None and len(np.unique(groups)) == len(images):
        groups = None  # nothing but the images themselves
    shares = task.shares[sample[np.isin(viewed, images)]]
    folds, notes = deal_folds(shares, rows.X.shape[1], cv=cv, groups=groups, seed=seed)
    return rows.over_views(folds, images, viewed), notes


def _chosen(
    info: HeadInfo,
    task: Task,
    X: np.ndarray,
    sample: np.ndarray,
    folds: Folds | None,
    held: np.ndarray,
    exact: bool,
    metric: str,
    given: dict[str, Any],
) -> tuple[float, float | None]:
    """Return the best value of the grid, or the one that was given, and its score on the rows `held`."""
    if set(given) - {info.param}:
        raise HeadError(f"head {info.name!r}: expected params among {[info.param]}, got {sorted(map(str, given))}")
    grid = tuple(float(_positive(info.param, value)) for value in given.values()) or info.grid
    if folds is None and not exact:
        return float(grid[0] if given else info.default), None
    sign = -1.0 if metric in SMALLER_IS_BETTER else 1.0
    with refusals(f"head {info.name!r}", X):
        found = task.steps(info.name, sample, X, folds, grid)
        steps = walked(
            ((sign * task.measured(metric, held, scores), loss) for scores, loss in found), len(grid), info.patience
        )
    best = best_step(steps)
    return float(grid[best]), sign * steps[best][0]


def _positive(name: str, value: Any) -> float:
    if isinstance(value, Real) and not isinstance(value, bool) and 0.0 < float(value) < np.inf:
        return float(value)
    raise HeadError(f"params: expected {name} to be a finite number above 0, got {value!r}")


def _train_foreign(
    head: Any,
    task: Task,
    X: np.ndarray,
    folds: Folds | None,
    metric: str,
    given: dict[str, Any],
    notes: tuple[str, ...],
) -> Trained:
    """Use a regressor as it is: what it tunes, it tunes itself."""
    assert isinstance(task, Numbers)
    estimator, name, aims, score = clone(head), type(head).__name__, task.aims[:, 0], None
    groups = None if task.rows.groups is None else task.rows.groups[task.train]
    with refusals(name, X, TypeError):
        estimator.set_params(**given)
        if folds is not None:
            found = []
            for rows, held in folds:
                some = None if groups is None else groups[rows]
                fitted = fit_grouped(clone(estimator), X[rows], aims[rows], some)
                found.append(one_number_each(fitted.predict(X[held]), len(held)))
            held_out = np.concatenate([held for _, held in folds])
            score = task.measured(metric, held_out, np.concatenate(found)[:, None])
        fit_grouped(estimator, X, aims, groups)
    return Trained(estimator, name, given, score, notes)
