"""What is learned of each row where it is no class: several labels, or a number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import HeadError
from ..features import FeatureSet
from ..splits import Folds
from .label_sets import as_indicators, check_separator, fit_logistic, join_labels, label_scores, logistic_steps
from .labelled import Rows, in_parts, name_of
from .metrics import LABEL_METRICS, NUMBER_METRICS, check_metric
from .numbers import LARGEST, fit_ridge, numbers_of, ridge_steps

__all__ = ["Labels", "Numbers", "Task", "one_number_each"]

#: For one value of a grid after the other: scores of the held-out rows (n, k), and a loss that breaks ties.
Steps = Iterator[tuple[np.ndarray, float]]


class Task(Protocol):
    """What is learned of each row.

    Attributes
    ----------
    rows : Rows
        Those of which it is known.
    train : ndarray of int of shape (n_train,)
        Rows to train on.
    shares : ndarray of bool of shape (n_train, k)
        What folds are to hold in equal shares.
    width : int
        Columns of the targets.
    fields : dict
        Of the FittedHead.
    notes : tuple of str
        What the user should know.
    """

    rows: Rows
    train: np.ndarray
    shares: np.ndarray
    width: int
    fields: dict[str, Any]
    notes: tuple[str, ...]

    def steps(self, head: str, sample: np.ndarray, X: np.ndarray, folds: Folds | None, grid: Sequence[float]) -> Steps:
        """Walk a grid on sampled training rows (positions in `train`, and their codes)."""

    def fitted(self, head: str, X: Any, value: float, on_disk: bool) -> Any:
        """Fit on all training rows."""

    def measured(self, metric: str, held: np.ndarray, scores: np.ndarray) -> float:
        """Measure scores of held-out training rows (positions in `train`)."""

    def remarks(self, metric: str, held: np.ndarray) -> tuple[str, ...]:
        """Say what is odd about held-out training rows."""

    def tested(self, metric: str, estimator: Any, test: np.ndarray) -> tuple[float, tuple[str, ...]]:
        """Score test rows (of `rows`); also notes."""


class Labels:
    """Several labels per row: a `Task`.

    Parameters
    ----------
    data : FeatureSet
        With label texts.
    separator : str
        What stands between labels.

    Attributes
    ----------
    classes : ndarray of str of shape (k,)
        Labels of the training rows.
    member : ndarray of bool of shape (n_train, k)
        Which training row has which.
    """

    heads, metrics, usual = ("logreg", "softmax", "ridge"), LABEL_METRICS, "map"

    def __init__(self, data: FeatureSet, separator: str) -> None:
        check_separator(separator)
        name, texts = name_of(data), [] if data.y is None else data.y.tolist()
        keep = np.asarray([bool(text.strip()) or separator in text for text in texts], dtype=bool)
        if not keep.any():
            raise HeadError(f"{name}: no row has a label; give y=, texts such as {f'a{separator}b'!r}")
        self.rows = Rows.kept(data, keep, "a label", on_disk=True)
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
        self.notes: tuple[str, ...] = () if any(separator in text for text in texts) else (alone,)
        self.fields: dict[str, Any] = {"separator": separator, "classes_": self.classes}
        self.shares, self.width = self.member, len(self.classes)

    def steps(self, head: str, sample: np.ndarray, X: np.ndarray, folds: Folds | None, grid: Sequence[float]) -> Steps:
        """Walk a grid."""
        if head == "ridge":
            return ridge_steps(X, _signs(self.member[sample]), folds, grid)
        assert folds is not None
        return logistic_steps(X, self.member[sample], folds, grid)

    def fitted(self, head: str, X: Any, value: float, on_disk: bool) -> Any:
        """Fit on all training rows."""
        if head == "ridge":
            return fit_ridge(X, _signs(self.member), value, on_disk=on_disk)
        return fit_logistic(X, self.member, value, on_disk=on_disk)

    def measured(self, metric: str, held: np.ndarray, scores: np.ndarray) -> float:
        """Measure scores of held-out training rows."""
        return check_metric(metric, self.metrics)(self.member[held], scores)

    def remarks(self, metric: str, held: np.ndarray) -> tuple[str, ...]:
        """Say where there is nothing to rank."""
        return _nothing_ranked(metric, self.member[held], "validation")

    def tested(self, metric: str, estimator: Any, test: np.ndarray) -> tuple[float, tuple[str, ...]]:
        """Score test rows; a label that training never saw is never predicted, and noted."""
        scores = np.full((len(test), len(self._names)), -1.0)
        scores[:, self._known] = np.concatenate([label_scores(estimator, self.rows.X[p]) for p in in_parts(test)])
        truth = self._member[test]
        notes, unknown = _nothing_ranked(metric, truth, "test"), self._names[truth.any(axis=0) & ~self._known]
        if len(unknown):
            notes += (f"{len(unknown)} labels of the test rows are not in training: {', '.join(unknown[:3])}",)
        return check_metric(metric, self.metrics)(truth, scores), notes


def _signs(member: np.ndarray) -> np.ndarray:
    """What ridge learns of labels."""
    return np.where(member, 1.0, -1.0)


def _nothing_ranked(metric: str, truth: np.ndarray, part: str) -> tuple[str, ...]:
    none = metric == "map" and not truth.any()
    return (f"no {part} row has a label: there is nothing to rank, and map is 0",) if none else ()


class Numbers:
    """A number per row: a `Task`.

    Parameters
    ----------
    data : FeatureSet
        With the column.
    target : str
        Its name.

    Attributes
    ----------
    values : ndarray of shape (n,)
        Of all rows.
    aims : ndarray of shape (n_train, 1)
        Of the training rows.
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
        if (spread := float(np.ptp(self.aims))) < 1 / LARGEST:
            raise HeadError(
                f"{name_of(data)}: expected numbers that differ by {1 / LARGEST:g} or more in the training rows of "
                f"{target!r}, got {spread:g} at most; rescale the column"
            )
        self.notes: tuple[str, ...] = ()
        self.fields: dict[str, Any] = {"target": target, "classes_": np.zeros(0, dtype=np.str_)}
        self.shares, self.width = np.zeros((len(self.train), 0), dtype=bool), 1

    def steps(self, head: str, sample: np.ndarray, X: np.ndarray, folds: Folds | None, grid: Sequence[float]) -> Steps:
        """Walk a grid."""
        return ridge_steps(X, self.aims[sample], folds, grid)

    def fitted(self, head: str, X: Any, value: float, on_disk: bool) -> Any:
        """Fit on all training rows."""
        return fit_ridge(X, self.aims[:, 0], value, on_disk=on_disk)

    def measured(self, metric: str, held: np.ndarray, scores: np.ndarray) -> float:
        """Measure predictions for held-out training rows."""
        return check_metric(metric, self.metrics)(self.aims[held, 0], scores[:, 0])

    def remarks(self, metric: str, held: np.ndarray) -> tuple[str, ...]:
        """Say nothing."""
        return ()

    def tested(self, metric: str, estimator: Any, test: np.ndarray) -> tuple[float, tuple[str, ...]]:
        """Score test rows."""
        parts = in_parts(test)
        predicted = np.concatenate([one_number_each(estimator.predict(self.rows.X[part]), len(part)) for part in parts])
        return check_metric(metric, self.metrics)(self.values[test], predicted), ()


def one_number_each(predicted: Any, n: int) -> np.ndarray:
    """Return predictions as one number per row; ValueError otherwise."""
    found = np.asarray(predicted, dtype=np.float64)
    if found.size != n:
        raise ValueError(f"expected {n} predictions, one per row, got shape {found.shape}")
    return found.reshape(n)
