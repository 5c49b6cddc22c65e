"""What fit does where an image has several labels, or a number, in place of one class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import clone, is_regressor

from ..errors import HeadError
from ..features import FeatureSet
from ..solvers.blocks import ChosenRows
from ..splits import Folds
from .choosing import Trained, few_threads, refusals
from .dealing import deal_folds
from .fitted import FittedHead
from .guards import detector_of
from .label_sets import as_indicators, check_separator, fit_logistic, join_labels, label_scores, logistic_steps
from .labelled import Rows, in_parts, is_mapped, name_of, provenance
from .mapped import SAMPLE_ROWS
from .metrics import LABEL_METRICS, NUMBER_METRICS, check_metric
from .numbers import fit_ridge, numbers_of, ridge_steps
from .rows import fit_grouped
from .zoo import HEADS, HeadInfo

__all__ = ["fit_targets"]

#: For one value of a grid after the other: scores of the held-out rows (n, k), and a loss that breaks ties.
Steps = Iterator[tuple[np.ndarray, float]]


class Labels:
    """Several labels per row.

    Parameters
    ----------
    data : FeatureSet
        With label texts.
    separator : str
        What stands between labels.

    Attributes
    ----------
    rows : Rows
        Those that have a label text.
    train : ndarray of int
        Rows to train on.
    classes : ndarray of str of shape (k,)
        Labels of the training rows.
    member : ndarray of bool of shape (n_train, k)
        Which training row has which.
    notes : tuple of str
        What the user should know.
    """

    heads, metrics, usual = ("logreg", "softmax", "ridge"), LABEL_METRICS, "map"

    def __init__(self, data: FeatureSet, separator: str) -> None:
        check_separator(separator)
        name, texts = name_of(data), [] if data.y is None else data.y.tolist()
        keep = np.asarray([bool(text.strip()) or separator in text for text in texts], dtype=bool)
        if not keep.any():
            raise HeadError(f"{name}: no row has a label; give y=, texts such as {f'a{separator}b'!r}")
        self.rows, self.separator = Rows.kept(data, keep, "a label", on_disk=True), separator
        self.train = self.rows.training()
        self._names, self._member = as_indicators(self.rows.y, separator)
        self._known = self._member[self.train].any(axis=0)
        self.classes, self.member = self._names[self._known], self._member[self.train][:, self._known]
        if self.member.all(axis=0).all():
            every = join_labels(self.member[:1], self.classes, separator)[0]
            raise HeadError(
                f"{name}: expected a label that some training rows have and others lack, got {str(every)!r} for all of "
                f"them; write {separator!r} for an image with none of the labels"
            )
        alone = f"no label holds the separator {separator!r}: every image has one; without it probabilities sum to 1"
        self.notes = () if any(separator in text for text in texts) else (alone,)
        self.fields = {"separator": separator, "classes_": self.classes}
        #: What folds are to hold in equal shares, and what ridge learns.
        self.shares, self.aims = self.member, np.where(self.member, 1.0, -1.0)

    def steps(self, head: str, sample: np.ndarray, X: np.ndarray, folds: Folds | None, grid: Sequence[float]) -> Steps:
        """Walk a grid on sampled training rows."""
        if head == "ridge":
            return ridge_steps(X, self.aims[sample], folds, grid)
        assert folds is not None
        return logistic_steps(X, self.member[sample], folds, grid)

    def fitted(self, head: str, X: Any, value: float, on_disk: bool) -> Any:
        """Fit on all training rows."""
        if head == "ridge":
            return fit_ridge(X, self.aims, value, on_disk=on_disk)
        return fit_logistic(X, self.member, value, on_disk=on_disk)

    def measured(self, metric: str, sample: np.ndarray, scores: np.ndarray) -> float:
        """Measure scores of training rows."""
        return check_metric(metric, self.metrics)(self.member[sample], scores)

    def tested(self, metric: str, estimator: Any, test: np.ndarray) -> tuple[float, tuple[str, ...]]:
        """Score test rows; a label that training never saw is never predicted, and noted."""
        scores = np.full((len(test), len(self._names)), -1.0)
        scores[:, self._known] = np.concatenate([label_scores(estimator, self.rows.X[p]) for p in in_parts(test)])
        truth = self._member[test]
        unknown = self._names[truth.any(axis=0) & ~self._known]
        note = f"{len(unknown)} labels of the test rows are not in training: {', '.join(unknown[:3])}"
        return check_metric(metric, self.metrics)(truth, scores), (note,) if len(unknown) else ()


class Numbers:
    """A number per row.

    Parameters
    ----------
    data : FeatureSet
        With the column.
    target : str
        Its name.

    Attributes
    ----------
    rows : Rows
        Those that have a value.
    train : ndarray of int
        Rows to train on.
    values : ndarray of shape (n,)
        Of all rows.
    aims : ndarray of shape (n_train, 1)
        Of the training rows.
    notes : tuple of str
        What the user should know.
    """

    heads, metrics, usual = ("ridge",), NUMBER_METRICS, "r2"

    def __init__(self, data: FeatureSet, target: str) -> None:
        values = numbers_of(data, target)
        keep = ~np.isnan(values)
        if not keep.any():
            raise HeadError(f"{name_of(data)}: no row has a value in {target!r}; name another column")
        self.rows, self.values = Rows.kept(data, keep, f"a value in {target!r}", on_disk=True), values[keep]
        self.train = self.rows.training()
        self.aims = self.values[self.train, None]
        if (self.aims == self.aims[0]).all():
            raise HeadError(
                f"{name_of(data)}: expected two different numbers or more in the training rows of {target!r}, got only "
                f"{self.aims[0, 0]:g}; there is nothing to predict"
            )
        self.notes: tuple[str, ...] = ()
        self.fields = {"target": target, "classes_": np.zeros(0, dtype=np.str_)}
        self.shares = np.zeros((len(self.train), 0), dtype=bool)

    def steps(self, head: str, sample: np.ndarray, X: np.ndarray, folds: Folds | None, grid: Sequence[float]) -> Steps:
        """Walk a grid on sampled training rows."""
        return ridge_steps(X, self.aims[sample], folds, grid)

    def fitted(self, head: str, X: Any, value: float, on_disk: bool) -> Any:
        """Fit on all training rows."""
        return fit_ridge(X, self.aims[:, 0], value, on_disk=on_disk)

    def measured(self, metric: str, sample: np.ndarray, scores: np.ndarray) -> float:
        """Measure predictions for training rows."""
        return check_metric(metric, self.metrics)(self.aims[sample, 0], scores[:, 0])

    def tested(self, metric: str, estimator: Any, test: np.ndarray) -> tuple[float, tuple[str, ...]]:
        """Score test rows."""
        parts = in_parts(test)
        predicted = np.concatenate([_flat(estimator.predict(self.rows.X[part]), len(part)) for part in parts])
        return check_metric(metric, self.metrics)(self.values[test], predicted), ()


def fit_targets(
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
    kind = Numbers if separator is None else Labels
    metric = kind.usual if metric is None else metric
    check_metric(metric, kind.metrics)
    _check_head(head, kind)
    task: Any = Labels(data, separator) if separator is not None else Numbers(data, target or "")
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


def _train(head: Any, task: Any, metric: str, cv: int, seed: int, given: dict[str, Any]) -> tuple[Trained, str]:
    """Choose the setting inside the training rows, and fit on all of them; also say what validated it."""
    X, train = task.rows.X, task.train
    if is_mapped(X):
        if not isinstance(head, str):
            raise HeadError("head: the codes stay on disk; use load(in_memory=True) for an estimator of your own")
        sample = np.sort(np.random.default_rng(seed).permutation(len(train))[:SAMPLE_ROWS])
        near, whole = np.asarray(X[train[sample]], dtype=np.float32), ChosenRows(X, train)
        said: tuple[str, ...] = (f"codes read from disk; settings chosen on {len(sample)} of {len(train)} rows",)
    else:
        sample, near, whole, said = np.arange(len(train)), X[train], None, ()
    groups = None if task.rows.groups is None else task.rows.groups[train[sample]]
    in_val = np.isin(train, task.rows.parts.get("val", []))
    exact = groups is None and isinstance(head, str) and head == "ridge"
    how, folds, notes = "cv", None, tuple[str, ...]()
    if in_val.any() and whole is None:
        how, folds, exact = "val", Folds(((np.flatnonzero(~in_val), np.flatnonzero(in_val)),)), False
    elif not exact:
        folds, notes = deal_folds(task.shares[sample], X.shape[1], cv=cv, groups=groups, seed=seed)
    with few_threads(near):
        if not isinstance(head, str):
            return _train_foreign(head, task, near, groups, folds, metric, given, notes), how
        value, score = _chosen(HEADS[head], task, near, sample, folds, exact, metric, given)
        with refusals(f"head {head!r}", near):
            estimator = task.fitted(head, near if whole is None else whole, value, whole is not None)
    return Trained(estimator, head, {HEADS[head].param: value}, score, notes + said), how


def _chosen(
    info: HeadInfo,
    task: Any,
    X: np.ndarray,
    sample: np.ndarray,
    folds: Folds | None,
    exact: bool,
    metric: str,
    given: dict[str, Any],
) -> tuple[float, float | None]:
    """Return the best value of the grid, or the one that was given, and its score."""
    if set(given) - {info.param}:
        raise HeadError(f"head {info.name!r}: expected params among {[info.param]}, got {sorted(map(str, given))}")
    grid = tuple(float(_positive(info.param, value)) for value in given.values()) or info.grid
    if folds is None and not exact:
        return float(grid[0] if given else info.default), None
    held = sample if folds is None else np.concatenate([sample[rows] for _, rows in folds])
    sign = -1.0 if metric in ("mae", "rmse") else 1.0
    best, since = (-np.inf, -np.inf, 0, 0.0), 0
    with refusals(f"head {info.name!r}", X):
        for i, (scores, loss) in enumerate(task.steps(info.name, sample, X, folds, grid)):
            score = task.measured(metric, held, scores)
            since = 0 if sign * score >= best[0] else since + 1
            best = max(best, (sign * score, -loss, -i, score))
            if info.patience and since >= info.patience:
                break
    return float(grid[-best[2]]), best[3]


def _positive(name: str, value: Any) -> float:
    if isinstance(value, Real) and not isinstance(value, bool) and 0.0 < float(value) < np.inf:
        return float(value)
    raise HeadError(f"params: expected {name} to be a finite number above 0, got {value!r}")


def _train_foreign(
    head: Any,
    task: Numbers,
    X: np.ndarray,
    groups: np.ndarray | None,
    folds: Folds | None,
    metric: str,
    given: dict[str, Any],
    notes: tuple[str, ...],
) -> Trained:
    """Use a regressor as it is: what it tunes, it tunes itself."""
    estimator, name, aims, score = clone(head), type(head).__name__, task.aims[:, 0], None
    with refusals(name, X, TypeError):
        estimator.set_params(**given)
        if folds is not None:
            found = []
            for rows, held in folds:
                some = None if groups is None else groups[rows]
                fitted = fit_grouped(clone(estimator), X[rows], aims[rows], some)
                found.append(_flat(fitted.predict(X[held]), len(held)))
            held_out = np.concatenate([held for _, held in folds])
            score = task.measured(metric, held_out, np.concatenate(found)[:, None])
        fit_grouped(estimator, X, aims, groups)
    return Trained(estimator, name, given, score, notes)


def _flat(predicted: Any, n: int) -> np.ndarray:
    """Return predictions as one number per row; ValueError otherwise."""
    found = np.asarray(predicted, dtype=np.float64)
    if found.size != n:
        raise ValueError(f"expected {n} predictions, one per row, got shape {found.shape}")
    return found.reshape(n)
