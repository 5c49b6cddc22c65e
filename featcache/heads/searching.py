"""SearchedHead: the preprocessing of the codes and the head's own setting, chosen together inside the training rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ..splits import Folds, whole_number
from .choosing import tuning_folds
from .estimators import ShrunkScaler
from .metrics import check_metric
from .paths import Path, estimator_path
from .preprocessing import CodeScaler
from .zoo import HeadInfo, head_info, make_head

__all__ = ["SPACE", "SearchedHead"]

#: What is tried of each parameter of `CodeScaler`; the head's own preprocessing is always tried first.
SPACE: dict[str, tuple[Any, ...]] = {
    "power": (1.0, 0.5, 0.25, 2.0),
    "norm": ("none", "l2"),
    "scale": ("standard", "centre", "whiten"),
}

_PARTS = ("power", "norm", "scale")


def _can(method: str) -> Callable[[Any], bool]:
    """For `available_if`: whether the chosen head, or the one that would be, has a method."""

    def check(self: SearchedHead) -> bool:
        return hasattr(getattr(self, "best_estimator_", None) or make_head(self.head), method)

    return check


class SearchedHead(ClassifierMixin, BaseEstimator):
    """A named head whose preprocessing is searched together with its own setting.

    The search is by coordinates: from the head's own preprocessing it tries the other powers, then the norm, then the
    scale, keeping the best so far, round by round until nothing improves or `max_candidates` have been tried. Every
    candidate is scored on the same folds with everything fitted inside them, for the head's whole grid at once. The
    default stays unless the best candidate is better by more than `guard` paired standard errors: with few rows the
    best of many candidates is mostly the luckiest.

    Parameters
    ----------
    head : str, default="ridge"
        A key of `HEADS` other than "auto". Where the head standardises (ridge, logreg, svm, …) `CodeScaler` takes the
        place of that step; otherwise (knn, centroid) it stands in front of the head's own steps.
    space : mapping of str to sequence, default=None
        Values to try of "power", "norm" and "scale"; None is `SPACE`. What is left out keeps its default.
    max_candidates : int, default=12
        Bound on the settings of the preprocessing that are tried.
    guard : float, default=1.0
        Paired standard errors by which a candidate must beat the default; 0 takes the best.
    metric : str, default="accuracy"
        "accuracy", "balanced_accuracy" or "macro_f1"; the standard error is that of the hits per row, for the last two
        with classes of equal weight.
    cv : int, default=5
        Folds; fewer when no class has so many rows, and nothing is chosen where each class has one.
    random_state : int, default=0
        Seed of the folds and of the head.

    Attributes
    ----------
    best_estimator_ : Pipeline
        The chosen preprocessing and head, fitted on all rows.
    best_params_ : dict
        "power", "norm", "scale" and the head's own setting.
    best_score_ : float or None
        Its validated metric; None when nothing could be validated.
    default_score_ : float or None
        The same of the default preprocessing.
    tried_ : list of dict
        Per candidate, in the order tried: its settings, "score", "gain" over the default and "error", the standard
        error of the gain, and "seconds".
    classes_ : ndarray of shape (n_classes,)
        Labels.

    Notes
    -----
    A part that the head keeps in front of a full grid: heads whose grid costs a fit per value (logreg, svm) try only
    the neighbours of the default's best value for the other candidates, the whole grid again behind whitening.

    References
    ----------
    Razavian et al. 2014, arXiv 1403.6382; Breiman et al. 1984 (the rule of one standard error).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> searched = SearchedHead("ridge", space={"power": (0.5, 1.0)}).fit(X, y)
    >>> [(c["power"], c["scale"]) for c in searched.tried_]
    [(1.0, 'standard'), (0.5, 'standard')]
    """

    def __init__(
        self,
        head: str = "ridge",
        *,
        space: Mapping[str, Sequence[Any]] | None = None,
        max_candidates: int = 12,
        guard: float = 1.0,
        metric: str = "accuracy",
        cv: int = 5,
        random_state: int = 0,
    ) -> None:
        self.head = head
        self.space = space
        self.max_candidates = max_candidates
        self.guard = guard
        self.metric = metric
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> SearchedHead:
        """Search and fit on X (n_samples, n_features); rows of one group never stand on both sides of a fold."""
        info, space = self._checked()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"SearchedHead: expected two classes or more, got 1 class: {self.classes_[0]!r}")
        folds = tuning_folds(y, X.shape[1], cv=self.cv, ids=None, groups=groups, seed=self.random_state)
        default = {"power": 1.0, "norm": "none", "scale": "standard" if _standardises(info) else "none"}
        if folds is None:
            self.tried_, self.best_score_, self.default_score_ = [], None, None
            self.best_params_ = {**default, **({info.param: info.default} if info.param else {})}
        else:
            self._choose(_Trial(info, X, codes, folds, self.metric, self.random_state), default, space)
        setting = {info.param: self.best_params_[info.param]} if info.param else {}
        scaling = {part: self.best_params_[part] for part in _PARTS}
        self.best_estimator_ = _assembled(info, scaling, setting, self.random_state).fit(X, y)
        return self

    def _checked(self) -> tuple[HeadInfo, dict[str, tuple[Any, ...]]]:
        info = head_info(self.head)
        if not isinstance(make_head(self.head), Pipeline):
            raise ValueError(f"SearchedHead: expected a head with steps, such as 'ridge', got {self.head!r}")
        if not whole_number(self.max_candidates, 1):
            raise ValueError(f"SearchedHead: expected max_candidates of 1 or more, got {self.max_candidates!r}")
        if not isinstance(self.guard, (int, float)) or not self.guard >= 0:
            raise ValueError(f"SearchedHead: expected guard of 0 or more, got {self.guard!r}")
        check_metric(self.metric)
        given = SPACE if self.space is None else self.space
        if not isinstance(given, Mapping) or set(given) - set(_PARTS):
            raise ValueError(f"SearchedHead: expected space to name values of {', '.join(_PARTS)}, got {given!r}")
        for part, values in given.items():
            for value in values:
                CodeScaler(**{part: value})._check()
        return info, {part: tuple(given[part]) for part in _PARTS if part in given}

    def _choose(self, trial: _Trial, default: dict[str, Any], space: dict[str, tuple[Any, ...]]) -> None:
        """Walk the coordinates, then ask the guard."""
        tried = [trial.run(default, None)]
        best, moved = tried[0], True
        while moved and len(tried) < self.max_candidates:
            moved = False
            for part, values in space.items():
                for value in values:
                    scaling = {**best.scaling, part: value}
                    if any(scaling == known.scaling for known in tried) or len(tried) >= self.max_candidates:
                        continue
                    tried.append(trial.run(scaling, tried[0]))
                found = max(tried, key=lambda one: one.score)  # the first of equals: nearest to the default
                moved, best = moved or found is not best, found
        first = tried[0]
        gains = {id(one): trial.gain(first, one) for one in tried}
        gain, error = gains[id(best)]
        chosen = best if best.score > first.score and gain > self.guard * error else first
        self.tried_ = [
            {**one.params, "score": one.score, "gain": gains[id(one)][0], "error": gains[id(one)][1]}
            | {"seconds": one.seconds}
            for one in tried
        ]
        self.best_params_, self.best_score_, self.default_score_ = dict(chosen.params), chosen.score, first.score

    def predict(self, X: Any) -> np.ndarray:
        """Return the predictions, shape (n_samples,)."""
        return self.best_estimator_.predict(self._rows(X))

    @available_if(_can("predict_proba"))
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities of shape (n_samples, n_classes)."""
        return self.best_estimator_.predict_proba(self._rows(X))

    @available_if(_can("decision_function"))
    def decision_function(self, X: Any) -> np.ndarray:
        """Return the head's scores, shape (n_samples, n_classes), or (n_samples,) for two classes."""
        return self.best_estimator_.decision_function(self._rows(X))

    def _rows(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return validate_data(self, X, dtype=[np.float64, np.float32], reset=False)


def _standardises(info: HeadInfo) -> bool:
    """Whether the head's own preprocessing is one ShrunkScaler, so that CodeScaler can take its place."""
    steps = make_head(info.name).steps
    return len(steps) == 2 and isinstance(steps[0][1], ShrunkScaler)


def _assembled(info: HeadInfo, scaling: Mapping[str, Any], setting: Mapping[str, Any], seed: int) -> Pipeline:
    steps = make_head(info.name, random_state=seed, **setting).steps
    return Pipeline([("codes", CodeScaler(**scaling)), *(steps[1:] if _standardises(info) else steps)])


class _Tried:
    """One setting of the preprocessing: its best setting of the head, and which rows that got right."""

    def __init__(
        self, scaling: dict[str, Any], setting: dict[str, Any], place: int, score: float, hits: np.ndarray, start: float
    ) -> None:
        self.scaling, self.place, self.score, self.hits = scaling, place, score, hits
        self.params = {**scaling, **setting}
        self.seconds = time.perf_counter() - start


class _Trial:
    """Rows, folds and head of a search."""

    def __init__(self, info: HeadInfo, X: np.ndarray, y: np.ndarray, folds: Folds, metric: str, seed: int) -> None:
        self.info, self.X, self.y, self.folds, self.metric, self.seed = info, X, y, folds, metric, seed
        self.truth = np.concatenate([y[held_out] for _, held_out in folds])
        rows = min(len(rows) for rows, _ in folds)
        usable = [v for v in info.grid if info.name != "knn" or v <= rows]
        self.grid: list[Any] = (usable or list(info.grid[-1:])) if info.param else [None]
        self.inside = _standardises(info)

    def run(self, scaling: dict[str, Any], default: _Tried | None) -> _Tried:
        """Score the grid, or what of it is near the default's best value, behind one preprocessing."""
        start, first, measure = time.perf_counter(), 0, check_metric(self.metric)
        grid = self.grid
        if default is not None and self.info.patience and scaling["scale"] == default.scaling["scale"]:
            first = max(0, default.place - 1)
            grid = grid[first : default.place + 2]
        best: tuple[float, float, int, np.ndarray] | None = None
        since = 0
        runs = [self._path(scaling, grid, pair) for pair in self.folds]
        for i, results in enumerate(zip(*runs, strict=True)):
            predicted = np.concatenate([codes for codes, _ in results])
            score, loss = measure(self.truth, predicted), sum(loss for _, loss in results)
            since = since + 1 if best is not None and score < best[0] else 0
            if best is None or (-score, loss) < (-best[0], best[1]):
                best = (score, loss, i, predicted == self.truth)
            if i + 1 == len(grid) or (self.info.patience and since >= self.info.patience):
                break
        assert best is not None
        setting = {self.info.param: grid[best[2]]} if self.info.param else {}
        return _Tried(scaling, setting, first + best[2], best[0], best[3], start)

    def _path(self, scaling: dict[str, Any], grid: Sequence[Any], pair: tuple[np.ndarray, np.ndarray]) -> Iterator[Any]:
        rows, held_out = pair
        X, y, X_val, y_val = self.X[rows], self.y[rows], self.X[held_out], self.y[held_out]
        if self.info.path is None:
            make = lambda value: _assembled(  # noqa: E731
                self.info, scaling, {} if value is None else {self.info.param: value}, self.seed
            )
            return estimator_path(make, X, y, X_val, grid)
        if self.inside:
            path: Path = self.info.path(X, y, X_val, y_val, grid, scaler=CodeScaler(**scaling))
            return path
        scaler = CodeScaler(**scaling).fit(X)
        return self.info.path(scaler.transform(X), y, scaler.transform(X_val), y_val, grid)

    def gain(self, default: _Tried, other: _Tried) -> tuple[float, float]:
        """Mean gain in hits over the default, and its paired standard error."""
        weights = np.ones(len(self.truth))
        if self.metric != "accuracy":
            counts = np.bincount(self.truth)
            weights = (1.0 / np.maximum(counts, 1))[self.truth]
        weights = weights / weights.sum()
        gains = other.hits.astype(float) - default.hits
        mean = float(weights @ gains)
        error = float(np.sqrt(np.square(weights) @ np.square(gains - mean)))
        return mean, error
