"""SoftmaxClassifierCV: the whole path of C on all folds at once, and the best C fitted again on all rows."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss
from sklearn.model_selection import check_cv
from sklearn.utils.validation import _check_sample_weight, validate_data

from .base import SoftmaxBase, Training

__all__ = ["PROMISE", "SoftmaxClassifierCV"]

#: As in a single fit, but smaller: what a sloppy end saves, the next value of C pays for, which starts on the line
#: through the last two.
PROMISE = 0.01

_SCORINGS = ("accuracy", "balanced_accuracy", "neg_log_loss")


class SoftmaxClassifierCV(SoftmaxBase):
    """`SoftmaxClassifier` with C chosen by cross-validation; all folds of a whole path are solved side by side.

    Parameters
    ----------
    Cs : int or sequence of float, default=10
        Values of C; a number means so many on a logarithmic scale from 1e-4 to 1e4, as in LogisticRegressionCV.
    cv : int, splitter or iterable of (train, test), default=5
        Folds; a number means stratified ones.
    scoring : {"accuracy", "balanced_accuracy", "neg_log_loss"}, default="accuracy"
        What the best C is chosen by, as the mean over folds; ties go to the smaller C.
    patience : int, default=0
        Stop when so many values of C in a row are worse than the best; 0 = try all.
    class_weight, fit_intercept, label_smoothing, standardize, tol, max_iter, device
        As in `SoftmaxClassifier`. Standardisation is that of all rows given to `fit`.

    Attributes
    ----------
    C_ : float
        The chosen value.
    Cs_ : ndarray of shape (n_cs,)
        Values of C, ascending.
    scores_ : ndarray of shape (n_folds, n_cs)
        Score of each fold at each C; NaN where `patience` ended the path before.
    path_iter_ : ndarray of shape (n_cs,)
        Passes over the rows at each C, for all folds together; 0 where not tried.
    classes_, coef_, intercept_, objective_, gap_, n_iter_, n_features_in_
        Of the last fit, on all rows with `C_`.

    Notes
    -----
    Only for one label per row (two classes or more).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> head = SoftmaxClassifierCV(Cs=[0.01, 0.1, 1.0], cv=3).fit(X, y)
    >>> head.scores_.shape, bool(head.C_ in head.Cs_)
    ((3, 3), True)
    """

    def __init__(
        self,
        Cs: int | Sequence[float] = 10,
        *,
        cv: Any = 5,
        scoring: str = "accuracy",
        patience: int = 0,
        class_weight: Any = None,
        fit_intercept: bool = True,
        label_smoothing: float = 0.0,
        standardize: bool = False,
        tol: float = 1e-5,
        max_iter: int = 1000,
        device: str = "cpu",
    ) -> None:
        self.Cs = Cs
        self.cv = cv
        self.scoring = scoring
        self.patience = patience
        self.class_weight = class_weight
        self.fit_intercept = fit_intercept
        self.label_smoothing = label_smoothing
        self.standardize = standardize
        self.tol = tol
        self.max_iter = max_iter
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> SoftmaxClassifierCV:
        """Choose C and fit.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes.
        y : array-like of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights >= 0 of the rows; the held-out rows are scored with them, too.
        groups : array-like of shape (n_samples,), default=None
            For a splitter that wants them.

        Returns
        -------
        SoftmaxClassifierCV
            Itself.

        Raises
        ------
        ValueError
            As `SoftmaxClassifier.fit`, an unknown scoring, or a fold that trains on one class only.
        """
        self._check_settings()
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        self.Cs_ = self._values()
        weight = _check_sample_weight(sample_weight, X, dtype=np.float64)
        folds = list(check_cv(self.cv, y, classifier=True).split(X, y, groups))
        used = weight > 0
        if used.any() and not used.all():  # rows of weight 0 do not exist, in no fold either
            place = np.cumsum(used) - 1
            folds = [tuple(place[rows[used[rows]]] for rows in pair) for pair in folds]
            X, y, weight = X[used], y[used], weight[used]
        data = self._training(X, y, weight)
        self._choose(data, np.searchsorted(self.classes_, y), folds)
        return self._fit_at(self.C_, data)

    def _values(self) -> np.ndarray:
        whole = isinstance(self.Cs, Integral)
        if whole and self.Cs < 1:  # type: ignore[operator]
            raise ValueError(f"SoftmaxClassifierCV: expected one value of C or more, got Cs={self.Cs!r}")
        values = np.logspace(-4, 4, int(self.Cs)) if whole else np.asarray(self.Cs, dtype=np.float64)  # type: ignore[arg-type]
        if values.ndim != 1 or not len(values) or not np.isfinite(values).all() or (values <= 0).any():
            raise ValueError(f"SoftmaxClassifierCV: expected finite values of C above 0, got {self.Cs!r}")
        if self.scoring not in _SCORINGS:
            raise ValueError(f"SoftmaxClassifierCV: expected scoring of {', '.join(_SCORINGS)}, got {self.scoring!r}")
        if not isinstance(self.patience, Integral) or self.patience < 0:
            raise ValueError(f"SoftmaxClassifierCV: expected a patience of 0 or more, got {self.patience!r}")
        return np.unique(values)

    def _choose(self, data: Training, codes: np.ndarray, folds: list[Any]) -> None:
        """Walk the path on all folds; `codes` are the rows' positions in `classes_`."""
        rows = data.standardised().at_hand() if self.standardize else data.X
        problem = self._problem(rows, data, self._by_fold(data, codes, folds))
        self.scores_ = np.full((len(folds), len(self.Cs_)), np.nan)
        self.path_iter_ = np.zeros(len(self.Cs_), dtype=np.int32)
        penalties = [1.0 / (C * problem.total) for C in self.Cs_]
        best, since, weight = -np.inf, 0, data.row_weight
        path = problem.walk(penalties, tol=self.tol * PROMISE, max_iter=int(self.max_iter), enough=self.tol)
        for i, point in enumerate(path):
            self.path_iter_[i] = point.passes
            for f, (_, held) in enumerate(folds):
                scores = problem.scores(point, f, held).astype(np.float64)
                self.scores_[f, i] = _score(self.scoring, scores, codes[held], weight[held], len(self.classes_))
            score = float(self.scores_[:, i].mean())
            best, since = (score, 0) if score >= best else (best, since + 1)
            if self.patience and since >= self.patience:
                break
        tried = self.scores_[:, self.path_iter_ > 0].mean(axis=0)
        self.C_ = float(self.Cs_[int(tried.argmax())])

    def _by_fold(self, data: Training, codes: np.ndarray, folds: list[Any]) -> np.ndarray:
        """Weights of the rows in each fold's training side."""
        table = np.zeros((len(folds), len(codes)))
        for f, (train, held) in enumerate(folds):
            table[f, train] = data.weight[train]
            if len(np.unique(codes[train])) < 2:
                raise ValueError(f"SoftmaxClassifierCV: fold {f} trains on one class only; use fewer folds")
            if not len(held):
                raise ValueError(f"SoftmaxClassifierCV: fold {f} holds no row with a weight out; use fewer folds")
        return table


def _score(scoring: str, scores: np.ndarray, codes: np.ndarray, weight: np.ndarray, k: int) -> float:
    if scores.shape[1] == 1:
        scores = np.column_stack([np.zeros(len(scores)), scores])
    if scoring == "neg_log_loss":
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        shares = powers / powers.sum(axis=1, keepdims=True)
        return -float(log_loss(codes, shares, sample_weight=weight, labels=np.arange(k)))
    measure = accuracy_score if scoring == "accuracy" else balanced_accuracy_score
    return float(measure(codes, scores.argmax(axis=1), sample_weight=weight))
