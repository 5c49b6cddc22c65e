"""What detectors of novelties share: a threshold from scores of left-out rows, and folds of groups to leave out."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils.validation import validate_data

from ..errors import SplitError
from ..splits import Folds, k_fold

__all__ = ["Detector", "group_folds"]

#: Folds of groups that a threshold comes from.
_FOLDS = 5


class Detector(OutlierMixin, BaseEstimator):
    """What both share: a threshold from the scores that training rows have when they are left out."""

    offset_: float
    notes_: list[str]
    false_alarm_rate: float
    _dtypes: tuple[type, ...] = (np.float64,)  # a squared distance along directions of little spread needs the digits

    def _rows(self, X: Any, *, reset: bool = False) -> np.ndarray:
        return validate_data(self, X, dtype=list(self._dtypes), reset=reset, ensure_min_samples=2 if reset else 1)

    def _set_offset(self, scores: np.ndarray) -> None:
        self.left_out_scores_ = np.sort(scores)
        rate, n = float(self.false_alarm_rate), len(scores)
        self.offset_ = _threshold(self.left_out_scores_, rate)
        if rate * (n + 1) < 1.0:
            self.notes_.append(
                f"{n} rows left out: as many as 1 in {n + 1} usual rows may be called novel, not the share {rate:g}"
            )

    def _check_rate(self) -> None:
        rate = self.false_alarm_rate
        if not isinstance(rate, Real) or isinstance(rate, bool) or not 0.0 <= float(rate) < 1.0:
            raise ValueError(f"{type(self).__name__}: expected false_alarm_rate from 0 to below 1, got {rate!r}")

    def score_samples(self, X: Any) -> np.ndarray:
        """Return how normal each row of X is, shape (n_samples,); higher is more normal."""
        raise NotImplementedError

    def decision_function(self, X: Any) -> np.ndarray:
        """Return `score_samples` minus `offset_`, shape (n_samples,); below 0 is novel."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Return 1 for rows like the training rows and -1 for novel ones, shape (n_samples,)."""
        return np.where(self.decision_function(X) < 0, -1, 1)


def _threshold(scores: np.ndarray, rate: float) -> float:
    """Return the score below which at most the share `rate` of ascending scores, and of one more, lies.

    With fewer than 1 / rate - 1 scores there is none, and the smallest is taken: one more lies below it with
    probability 1 / (n + 1).
    """
    place = int(np.floor(rate * (len(scores) + 1)))
    return float(scores[max(place - 1, 0)])


def group_folds(codes: np.ndarray, groups: Any) -> Folds:
    """Deal groups to folds; none where there is one group, or each class is one."""
    names, place = np.unique(np.asarray(groups), return_inverse=True)
    if codes.max() > 0:
        try:
            return k_fold(codes, _FOLDS, groups=groups)
        except SplitError:
            return Folds(())
    k = min(_FOLDS, len(names))
    fold = (np.random.default_rng(0).permutation(len(names)) % max(k, 1))[place]
    return Folds(tuple((np.flatnonzero(fold != f), np.flatnonzero(fold == f)) for f in range(k if k > 1 else 0)))
