"""Augmented views: train on all views of each image, predict on their mean."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from ..errors import HeadError
from ..features import FeatureSet
from ..splits import Folds, has_named_splits, named_splits, whole_number
from .choosing import train, tuning_folds
from .metrics import check_metric
from .rows import check_classes, fit_grouped
from .zoo import make_head

__all__ = ["ViewsClassifier", "join_views", "view_numbers", "views_of"]

_NODE = re.compile(r"(?P<node>.*) ×(?P<views>[1-9]\d*)")


def views_of(node: str) -> int:
    """Return how many views lie side by side in codes of such a `node`; 1 for plain codes."""
    match = _NODE.fullmatch(node)
    return int(match["views"]) if match else 1


def join_views(source: Any, views: Sequence[int] | int | None = None, *, rows: bool = False, **choice: Any) -> Any:
    """Load several augmented views of the same images together.

    Parameters
    ----------
    source : FeatureStore or sequence of FeatureSet
        A store made with ``extract(..., augmented=K)``, or what was loaded of each view (view 0 first).
    views : sequence of int or int, default=None
        Which views, 0 is the plain image; a number K means 0 to K. None: all that the store has.
    rows : bool, default=False
        False: one row per image, the views side by side as blocks of columns, for `ViewsClassifier`. True: one row per
        image and view, for any head: it trains on all views and predicts plain images. Ids of the rows beyond the
        first are "id #k" and `view_of` says of which row they are views, so that `fit` and `compare` hold out and count
        images; groups keep the views of an image together, and where the set names its test (and val) rows, their
        augmented views are left out of these parts.
    **choice
        What `FeatureStore.load` takes: view, node, snapshot, label, group, split.

    Returns
    -------
    FeatureSet
        With the provenance of the first view. Side by side, its `node` ends in " ×V", V the number of views, so that a
        head on it is not mistaken for one on plain codes.

    Raises
    ------
    HeadError
        Views of other images or shapes, or a view that is not there.

    Examples
    --------
    >>> plain = FeatureSet(np.zeros((2, 3), "float32"), ["a", "b"], node="flatten")
    >>> mirrored = FeatureSet(np.ones((2, 3), "float32"), ["a", "b"], node="flatten")
    >>> join_views([plain, mirrored]).node, join_views([plain, mirrored], rows=True).row_ids.tolist()
    ('flatten ×2', ['0', '1', '0 #1', '1 #1'])
    """
    numbers, sets = _loaded(source, views, choice)
    first = sets[0]
    for number, item in zip(numbers, sets, strict=True):
        if not np.array_equal(item.row_ids, first.row_ids) or item.X.shape != first.X.shape:
            raise HeadError(f"view {number}: other images or shapes than view {numbers[0]}; extract them in one run")
        if item.fingerprint != first.fingerprint or item.node != first.node:
            raise HeadError(f"view {number}: codes of another spec or node than view {numbers[0]}")
    if rows:
        return _stacked(numbers, sets)
    if first.X.ndim != 2:
        raise HeadError(f"views: expected codes of shape (n, d), got {first.X.shape}; extract with pooling='avg'")
    if len(sets) == 1:
        return first
    return replace(first, X=np.hstack([item.X for item in sets]), node=f"{first.node} ×{len(sets)}")


def _loaded(source: Any, views: Any, choice: dict[str, Any]) -> tuple[list[int], list[FeatureSet]]:
    if not (hasattr(source, "load") and hasattr(source, "nodes")):  # heads know no store
        if not isinstance(source, (list, tuple)) or not all(isinstance(item, FeatureSet) for item in source):
            raise HeadError(f"source: expected a FeatureStore or several FeatureSets, got {type(source).__name__}")
        if not source or choice or views is not None:
            raise HeadError("source: expected one set or more, and no other choice beside sets that are loaded already")
        return list(range(len(source))), list(source)
    numbers = view_numbers(source, views, **choice)
    return numbers, [source.load(view_number=number, **choice) for number in numbers]


def view_numbers(store: Any, views: Any = None, **choice: Any) -> list[int]:
    """Return the numbers that `views` of `join_views` means; HeadError where it means none."""
    if views is None:
        lines = store.snapshot(choice.get("view", "main"), choice.get("snapshot"))
        if lines is None:
            store.load(**choice)  # says what is missing
        keys, n = lines.entries.keys[lines.entries.stored], 1
        while len(keys) and store.has(keys, view_number=n).any():
            n += 1  # a view that only some images have is an error of the store's, and says so
        if n == 1:
            raise HeadError("views: the store has the plain images only; extract with augmented=4, say")
        return list(range(n))
    numbers = list(range(views + 1)) if whole_number(views, 0) else views
    if not isinstance(numbers, (list, tuple, range, np.ndarray)) or not len(numbers):
        raise HeadError(f"views: expected numbers such as [0, 1, 2], got {views!r}")
    if not all(whole_number(number, 0) for number in numbers) or len(set(numbers)) < len(numbers):
        raise HeadError(f"views: expected different numbers of 0 or more, got {views!r}")
    return [int(number) for number in numbers]


def _stacked(numbers: list[int], sets: list[FeatureSet]) -> FeatureSet:
    """One row per image and view."""
    first, v = sets[0], len(sets)
    if v == 1:
        return first
    ids = [str(i) for i in first.row_ids.tolist()]
    names = ids + [f"{i} #{number}" for number in numbers[1:] for i in ids]
    own = first.row_ids if first.groups is None else np.where(first.groups == "", first.row_ids, first.groups)
    splits = first.splits
    if splits is not None:
        again = splits.copy()
        if has_named_splits(splits):
            for part, rows in named_splits(splits).items():
                if part != "train":
                    again[rows] = ""
        splits = np.concatenate([splits, *[again] * (v - 1)])
    return replace(
        first,
        X=np.concatenate([item.X for item in sets]),
        y=None if first.y is None else np.tile(first.y, v),
        ids=np.asarray(names),
        groups=np.tile(own, v),
        splits=splits,
        columns={name: np.tile(column, v) for name, column in first.columns.items()},
        view_of=np.asarray([""] * len(ids) + ids * (v - 1)),
    )


def _can(method: str) -> Any:
    def check(self: ViewsClassifier) -> bool:
        fitted = getattr(self, "best_estimator_", None)
        return hasattr(_unfitted(self.estimator) if fitted is None else fitted, method)

    return check


def _unfitted(estimator: Any) -> Any:
    return make_head(estimator) if isinstance(estimator, str) else estimator


class ViewsClassifier(ClassifierMixin, BaseEstimator):
    """Train on all views of each image, predict on their mean.

    Parameters
    ----------
    estimator : str or estimator, default="ridge"
        A key of `HEADS`, whose setting is chosen on folds that keep the views of an image together, or a classifier,
        which is cloned and fitted as it is (its views weigh 1 / n_views each where it, or a Pipeline's last step, takes
        sample weights, so that its penalty means the same as on the plain images alone).
    n_views : int, default=1
        How many blocks of columns, all of one width, the rows have; `join_views` makes them.
    average : {"scores", "codes"}, default="scores"
        What is averaged to predict an image: the scores of its views (probabilities where there is no
        decision_function), or their codes.
    metric : str, default="accuracy"
        What a named head's setting is chosen by.
    cv : int, default=5
        Folds for that.
    random_state : int, default=0
        Seed of the folds and of a named head.

    Attributes
    ----------
    best_estimator_ : estimator
        Fitted on rows of one view; it predicts codes of plain images, too.
    best_params_ : dict
        The setting chosen for a named head.
    classes_ : ndarray of shape (n_classes,)
        Labels.

    References
    ----------
    Razavian et al. 2014, arXiv 1403.6382 (augmented training and test images, decisions summed).

    Examples
    --------
    >>> X = [[0.0, 1.0], [1.0, 0.0], [9.0, 8.0], [8.0, 9.0]]  # two views of one feature
    >>> ViewsClassifier("lda", n_views=2).fit(X, ["a", "a", "b", "b"]).predict([[2.0, 1.0]]).tolist()
    ['a']
    """

    def __init__(
        self,
        estimator: Any = "ridge",
        n_views: int = 1,
        average: str = "scores",
        *,
        metric: str = "accuracy",
        cv: int = 5,
        random_state: int = 0,
    ) -> None:
        self.estimator = estimator
        self.n_views = n_views
        self.average = average
        self.metric = metric
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> ViewsClassifier:
        """Fit on X (n_samples, n_views · n_features); rows of one group never stand on both sides of a fold."""
        self._check()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classes(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"ViewsClassifier: expected two classes or more, got 1 class: {self.classes_[0]!r}")
        rows = self._views(X)
        labels, together = np.repeat(y, self.n_views), None
        if self.n_views > 1 or groups is not None:
            together = np.repeat(np.arange(len(y)) if groups is None else np.asarray(groups), self.n_views)
        self.best_params_: dict[str, Any] = {}
        if isinstance(self.estimator, str):
            # Folds of images, then all views of each: a view of a held-out image never trains.
            folds = tuning_folds(y, rows.shape[1], cv=self.cv, ids=None, groups=groups, seed=self.random_state)
            found = train(
                self.estimator,
                rows,
                labels,
                None if folds is None else _of_views(folds, self.n_views),
                metric=self.metric,
                seed=self.random_state,
                leave_one_out=self.n_views == 1 and groups is None,
                groups=together,
            )
            self.best_estimator_, self.best_params_ = found.estimator, dict(found.params)
            return self
        weight = np.full(len(rows), 1.0 / self.n_views) if self.n_views > 1 else None
        self.best_estimator_ = fit_grouped(clone(self.estimator), rows, labels, together, weight)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the class of the highest mean score, shape (n_samples,)."""
        rows = self._checked_rows(X)
        model = self.best_estimator_
        if self.n_views == 1 or self.average == "codes":
            return model.predict(self._mean_codes(rows))
        if hasattr(model, "decision_function"):
            scores = self._mean_scores(np.asarray(model.decision_function(self._views(rows))))
            codes = (scores > 0).astype(np.intp) if scores.ndim == 1 else scores.argmax(axis=1)
        elif hasattr(model, "predict_proba"):
            codes = self._mean_scores(np.asarray(model.predict_proba(self._views(rows)))).argmax(axis=1)
        else:
            raise ValueError(f"ViewsClassifier: {type(model).__name__} gives no scores; use average='codes'")
        return self.classes_[codes]

    @available_if(_can("decision_function"))
    def decision_function(self, X: Any) -> np.ndarray:
        """Return mean scores, shape (n_samples, n_classes), or (n_samples,) for two classes."""
        rows = self._checked_rows(X)
        if self.average == "codes":
            return self.best_estimator_.decision_function(self._mean_codes(rows))
        return self._mean_scores(np.asarray(self.best_estimator_.decision_function(self._views(rows))))

    @available_if(_can("predict_proba"))
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities of shape (n_samples, n_classes): the softmax of the mean log-probabilities.

        Where the head has no decision_function (knn) it is the plain mean of the probabilities.
        """
        rows = self._checked_rows(X)
        if self.n_views == 1 or self.average == "codes":
            return self.best_estimator_.predict_proba(self._mean_codes(rows))
        each = np.asarray(self.best_estimator_.predict_proba(self._views(rows)))
        if not hasattr(self.best_estimator_, "decision_function"):
            return self._mean_scores(each)
        mean = self._mean_scores(np.log(np.maximum(each, np.finfo(each.dtype).tiny)))
        powers = np.exp(mean - mean.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def _check(self) -> None:
        if not whole_number(self.n_views, 1):
            raise ValueError(f"ViewsClassifier: expected n_views of 1 or more, got {self.n_views!r}")
        if self.average not in ("scores", "codes"):
            raise ValueError(f"ViewsClassifier: expected average 'scores' or 'codes', got {self.average!r}")
        if not isinstance(self.estimator, str) and not hasattr(self.estimator, "fit"):
            raise ValueError(f"ViewsClassifier: expected a head's name or a classifier, got {self.estimator!r}")
        check_metric(self.metric)

    def _checked_rows(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return validate_data(self, X, dtype=[np.float64, np.float32], reset=False)

    def _views(self, X: np.ndarray) -> np.ndarray:
        """Rows of one view each, the views of an image one after the other; a view of X."""
        if X.shape[1] % self.n_views:
            raise ValueError(
                f"ViewsClassifier: expected a width that {self.n_views} views divide, got {X.shape[1]} features"
            )
        return X.reshape(len(X) * self.n_views, X.shape[1] // self.n_views)

    def _mean_codes(self, X: np.ndarray) -> np.ndarray:
        """Mean over the views of each image, which lie side by side."""
        return X if self.n_views == 1 else X.reshape(len(X), self.n_views, -1).mean(axis=1)

    def _mean_scores(self, scores: np.ndarray) -> np.ndarray:
        """Mean over the views of each image, which lie one after the other."""
        return scores if self.n_views == 1 else scores.reshape(-1, self.n_views, *scores.shape[1:]).mean(axis=1)


def _of_views(folds: Folds, n_views: int) -> Folds:
    def spread(rows: np.ndarray) -> np.ndarray:
        return (rows[:, None] * n_views + np.arange(n_views)).ravel()

    return Folds(tuple((spread(rows), spread(held_out)) for rows, held_out in folds), folds.notes)
