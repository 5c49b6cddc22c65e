"""SearchedHead: the preprocessing of the codes and the head's own setting, chosen together inside the training rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.validation import validate_data

from ..splits import Folds, whole_number
from .choosing import few_threads, tuning_folds
from .chosen import ChosenHead, Walked, fitted, paired_gain, walk
from .estimators import ShrunkScaler
from .metrics import check_metric
from .paths import Path, estimator_path, ridge_loo
from .preprocessing import CodeScaler
from .rows import check_classes
from .zoo import HeadInfo, head_info, make_head

__all__ = ["SPACE", "START", "SearchedHead"]

#: What is tried of each parameter of `CodeScaler`. Powers above one and whitening lost on every set that was measured,
#: so they are tried only where the space names them.
SPACE: dict[str, tuple[Any, ...]] = {
    "power": (0.5, 1.0, 0.25),
    "norm": ("l2", "none"),
    "scale": ("standard", "centre"),
}

#: Where the search starts, and stays unless something else is clearly better: the best fixed choice on average.
START: dict[str, Any] = {"power": 0.5, "norm": "l2", "scale": "standard"}

_PARTS = ("power", "norm", "scale")


class SearchedHead(ChosenHead):
    """A named head whose preprocessing is searched together with its own setting.

    The search is by coordinates: from `start` it tries the other powers, then the norm, then the scale, keeping the
    best so far, round by round until nothing improves or `max_candidates` have been tried. Every candidate is scored on
    the same held-out rows for the head's whole grid at once: folds, or exact leave-one-out for ridge. There, and where
    a path takes all folds at once, mean and deviation are those of all training rows. The start stays unless the best
    candidate is better by more than `guard` paired standard
    errors: with few rows the best of many candidates is mostly the luckiest.

    Parameters
    ----------
    head : str, default="ridge"
        A key of `HEADS` other than "auto". Where the head standardises (ridge, logreg, svm, …) `CodeScaler` takes the
        place of that step; otherwise (knn, centroid) it stands in front of the head's own steps.
    space : mapping of str to sequence, default=None
        Values to try of "power", "norm" and "scale"; None is `SPACE`. What is left out stays as the start has it.
    start : mapping of str to value, default=None
        Where to start; None is `START`. ``{"power": 1.0, "norm": "none"}`` is the plain head.
    max_candidates : int, default=12
        Bound on the settings of the preprocessing that are tried.
    guard : float, default=2.0
        Paired standard errors by which a candidate must beat the start; 0 takes the best.
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
    start_score_ : float or None
        The same of the start.
    tried_ : list of dict
        Per candidate, in the order tried: its settings, "score", "gain" over the start and "error", the standard
        error of the gain.
    classes_ : ndarray of shape (n_classes,)
        Labels.

    Notes
    -----
    Heads whose grid costs a fit per value (logreg, svm) try all of it behind the start and behind another scale; other
    candidates try the start's best value and its two neighbours. Leave-one-out is not used where the space has
    "whiten": a whitening that has seen the left-out row makes that row's score far too low.

    References
    ----------
    Razavian et al. 2014, arXiv 1403.6382; Breiman et al. 1984 (the rule of one standard error).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> searched = SearchedHead("ridge", space={"power": (0.5, 1.0)}).fit(X, y)
    >>> [(c["power"], c["scale"]) for c in searched.tried_]
    [(0.5, 'standard'), (1.0, 'standard')]
    """

    def __init__(
        self,
        head: str = "ridge",
        *,
        space: Mapping[str, Sequence[Any]] | None = None,
        start: Mapping[str, Any] | None = None,
        max_candidates: int = 12,
        guard: float = 2.0,
        metric: str = "accuracy",
        cv: int = 5,
        random_state: int = 0,
    ) -> None:
        self.head = head
        self.space = space
        self.start = start
        self.max_candidates = max_candidates
        self.guard = guard
        self.metric = metric
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> SearchedHead:
        """Search and fit on X (n_samples, n_features); rows of one group never stand on both sides of a fold."""
        info, space, start = self._checked()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classes(y)
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"SearchedHead: expected two classes or more, got 1 class: {self.classes_[0]!r}")
        self.tried_: list[dict[str, Any]] = []
        self.best_score_: float | None = None
        self.start_score_: float | None = None
        self.best_params_ = {**start, **({info.param: info.default} if info.param else {})}
        folds = tuning_folds(y, X.shape[1], cv=self.cv, ids=None, groups=groups, seed=self.random_state)
        if folds is not None:
            whole = groups is None and "whiten" not in (start["scale"], *space.get("scale", ()))
            with few_threads(X):
                trial = _Trial(info, X, codes, folds, self.metric, self.random_state, whole, groups)
                self._choose(trial, start, space)
        setting = {info.param: self.best_params_[info.param]} if info.param else {}
        scaling = {part: self.best_params_[part] for part in _PARTS}
        self.best_estimator_ = fitted(_assembled(info, scaling, setting, self.random_state), X, y, groups)
        return self

    def _checked(self) -> tuple[HeadInfo, dict[str, tuple[Any, ...]], dict[str, Any]]:
        info = head_info(self.head)
        if not isinstance(make_head(self.head), Pipeline):
            raise ValueError(f"SearchedHead: expected a head with steps, such as 'ridge', got {self.head!r}")
        if not whole_number(self.max_candidates, 1):
            raise ValueError(f"SearchedHead: expected max_candidates of 1 or more, got {self.max_candidates!r}")
        if not isinstance(self.guard, (int, float)) or not self.guard >= 0:
            raise ValueError(f"SearchedHead: expected guard of 0 or more, got {self.guard!r}")
        check_metric(self.metric)
        inside = _standardises(info)
        space, given = _named(self.space, SPACE, "space"), _named(self.start, START, "start")
        own = {"power": 1.0, "norm": "none", "scale": "standard" if inside else "none"}
        start = {**own, **given}
        if self.start is None and not inside:
            start = own
        CodeScaler(**start)._check()
        space = {part: tuple(space[part]) for part in _PARTS if part in space}
        if self.space is None and not inside:
            space.pop("scale")  # the head's own steps centre or normalise
        for part, values in space.items():
            for value in values:
                CodeScaler(**{part: value})._check()
        return info, space, start

    def _choose(self, trial: _Trial, start: dict[str, Any], space: dict[str, tuple[Any, ...]]) -> None:
        """Walk the coordinates, then ask the guard."""
        tried = [trial.run(start, None)]
        best, moved = tried[0], True
        while moved and len(tried) < self.max_candidates:
            moved = False
            for part, values in space.items():
                for value in values:
                    scaling = {**best.scaling, part: value}
                    if any(scaling == known.scaling for known in tried) or len(tried) >= self.max_candidates:
                        continue
                    tried.append(trial.run(scaling, tried[0]))
                found = max(tried, key=lambda one: one.score)  # the first of equals: nearest to the start
                moved, best = moved or found is not best, found
        first = tried[0]
        gains = {id(one): trial.gain(first, one) for one in tried}
        gain, error = gains[id(best)]
        chosen = best if best.score > first.score and gain > self.guard * error else first
        self.tried_ = [
            {**one.params, "score": one.score, "gain": gains[id(one)][0], "error": gains[id(one)][1]} for one in tried
        ]
        self.best_params_, self.best_score_, self.start_score_ = dict(chosen.params), chosen.score, first.score


def _named(given: Any, usual: dict[str, Any], name: str) -> dict[str, Any]:
    if given is None:
        return usual
    if not isinstance(given, Mapping) or set(given) - set(_PARTS):
        raise ValueError(f"SearchedHead: expected {name} to name {', '.join(_PARTS)}, got {given!r}")
    return dict(given)


def _standardises(info: HeadInfo) -> bool:
    """Whether the head's own preprocessing is one ShrunkScaler, so that CodeScaler can take its place."""
    steps = make_head(info.name).steps
    return len(steps) == 2 and isinstance(steps[0][1], ShrunkScaler)


def _assembled(info: HeadInfo, scaling: Mapping[str, Any], setting: Mapping[str, Any], seed: int) -> Pipeline:
    steps = make_head(info.name, random_state=seed, **setting).steps
    return Pipeline([("codes", CodeScaler(**scaling)), *(steps[1:] if _standardises(info) else steps)])


class _Tried:
    """One setting of the preprocessing, with the best setting of the head behind it."""

    def __init__(self, scaling: dict[str, Any], setting: dict[str, Any], place: int, found: Walked) -> None:
        self.scaling, self.place, self.score, self.hits = scaling, place, found.score, found.hits
        self.params = {**scaling, **setting}


class _Trial:
    """Rows, folds and head of a search; `whole` allows leave-one-out where the head has it."""

    def __init__(
        self,
        info: HeadInfo,
        X: np.ndarray,
        y: np.ndarray,
        folds: Folds,
        metric: str,
        seed: int,
        whole: bool,
        groups: Any = None,
    ) -> None:
        self.groups = None if groups is None else np.asarray(groups)
        self.info, self.X, self.y, self.folds, self.metric, self.seed = info, X, y, folds, metric, seed
        self.leave_one_out = whole and info.name == "ridge" and len(folds) > 1
        self.truth = y if self.leave_one_out else np.concatenate([y[held_out] for _, held_out in folds])
        self.grid = info.grid if info.param else (None,)
        self.inside = _standardises(info)

    def run(self, scaling: dict[str, Any], start: _Tried | None) -> _Tried:
        """Score the grid, or what of it is near the start's best value, behind one preprocessing."""
        first, grid = 0, self.grid
        if start is not None and self.info.patience and scaling["scale"] == start.scaling["scale"]:
            first = max(0, start.place - 1)
            grid = grid[first : start.place + 2]
        found = walk(self._values(scaling, grid), len(grid), self.truth, self.metric, self.info.patience)
        setting = {self.info.param: grid[found.place]} if self.info.param else {}
        return _Tried(scaling, setting, first + found.place, found)

    def _values(self, scaling: dict[str, Any], grid: Sequence[Any]) -> Iterable[Sequence[Any]]:
        """For each value of the grid what each fold predicts."""
        if self.leave_one_out:
            return ([step] for step in ridge_loo(self.X, self.y, grid, scaler=CodeScaler(**scaling)))
        # A whitening that has seen the held-out rows makes their scores far too high: it is fitted inside each fold.
        if self.info.fold_path is not None and scaling["scale"] != "whiten":
            return self.info.fold_path(self.X, self.y, list(self.folds), grid, scaler=CodeScaler(**scaling))
        return zip(*(self._path(scaling, grid, pair) for pair in self.folds), strict=True)

    def _path(self, scaling: dict[str, Any], grid: Sequence[Any], pair: tuple[np.ndarray, np.ndarray]) -> Path:
        rows, held_out = pair
        X, y, X_val, y_val = self.X[rows], self.y[rows], self.X[held_out], self.y[held_out]
        if self.info.path is None:
            make = lambda value: _assembled(  # noqa: E731
                self.info, scaling, {} if value is None else {self.info.param: value}, self.seed
            )
            groups = None if self.groups is None else self.groups[rows]
            return estimator_path(make, X, y, X_val, grid, groups)
        if self.inside:
            return self.info.path(X, y, X_val, y_val, grid, scaler=CodeScaler(**scaling))
        scaler = CodeScaler(**scaling).fit(X)
        return self.info.path(scaler.transform(X), y, scaler.transform(X_val), y_val, grid)

    def gain(self, start: _Tried, other: _Tried) -> tuple[float, float]:
        """Mean gain in hits over the start, and its paired standard error."""
        return paired_gain(self.truth, self.metric, start.hits, other.hits)
