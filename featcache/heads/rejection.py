"""RejectingClassifier: answers only where it is sure enough for a wanted error rate."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from scipy.stats import beta
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.validation import check_is_fitted, validate_data

from ..splits import Folds
from .calibration import fit_temperature
from .held_out import class_logits, fitted_member, folds_of, held_out_logits, log_softmax
from .rows import labelled_rows

__all__ = ["RejectingClassifier", "confidences", "label_free_temperature", "rejection_threshold"]

_MEASURES = ("probability", "margin")

#: Thresholds tried for a bound.
_TRIED = 20


class RejectingClassifier(ClassifierMixin, BaseEstimator):
    """Any head with a threshold on its confidence, below which it rather does not answer.

    `predict` answers every row; `accept` says which answers to trust, `predict_or_reject` does both.

    Parameters
    ----------
    estimator : str or estimator, default="ridge"
        Name of a head, whose settings are chosen on the folds, or a classifier with `decision_function` or
        `predict_proba`, used as it is.
    error_rate : float, default=0.05
        Errors wanted at most among the accepted rows, from 0 to below 1.
    confidence : float or None, default=None
        None: the error rate counted among the held-out rows is at most `error_rate`. From 0.5 to below 1, e.g. 0.95:
        with this probability the true one is (limits of Clopper and Pearson 1934, tried in a fixed order).
    measure : {"probability", "margin"}, default="probability"
        Confidence: the largest probability, or its distance from the second.
    cv : int or iterable of (train, validation) row numbers, default=5
        Folds; fewer when no class has so many rows.
    random_state : int, default=0
        Seed of the folds and of the head.

    Attributes
    ----------
    estimator_ : estimator
        Fitted on all rows.
    temperature_ : float
        Temperature of the probabilities, see `TemperatureClassifier`.
    ranking_temperature_ : float
        Temperature of the confidences: `temperature_`, or with `confidence` one that no label decides.
    threshold_ : float
        Least confidence that is accepted; inf where nothing is.
    coverage_ : float
        Share of the held-out rows that are accepted.
    error_rate_ : float
        Error rate among them, or with `confidence` the upper limit at this threshold; NaN where nothing is accepted.
    n_held_out_ : int
        Held-out rows.
    classes_ : ndarray of shape (n_classes,)
        The labels.
    notes_ : list of str
        Why nothing is accepted, where that is so.

    Notes
    -----
    Confidences are those of heads fitted on the other folds, thus on somewhat fewer rows than the final head, which
    errs on the careful side. With `confidence` thresholds are tried from strict to lax until the limit of one lies
    above `error_rate`, so that this rate holds for the one taken [2]_; bisection as in [1]_ has to divide the risk and
    accepts about half as many.
    Since the temperature of the probabilities is fitted on the labels of the same rows, and reorders them where there
    are more than two classes, confidences then come from scores at a temperature that looks at no label. The bound
    presumes rows drawn as those to come will be, and settings that were not chosen on them (give an estimator with
    fixed settings); it is then one for heads fitted on a part of the rows, pooled over folds: near to that of the
    final head, and no proof for it.

    References
    ----------
    .. [1] Y. Geifman and R. El-Yaniv, "Selective classification for deep neural networks", NeurIPS 2017,
       arXiv 1705.08500.
    .. [2] A. Angelopoulos et al., "Learn then test: calibrating predictive algorithms to achieve risk control", 2021,
       arXiv 2110.01052 (fixed sequence testing).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> head = RejectingClassifier("lda", error_rate=0.01).fit(X, y)
    >>> head.coverage_ > 0.8, head.error_rate_ <= 0.01
    (True, True)
    """

    def __init__(
        self,
        estimator: Any = "ridge",
        *,
        error_rate: float = 0.05,
        confidence: float | None = None,
        measure: str = "probability",
        cv: Any = 5,
        random_state: int = 0,
    ) -> None:
        self.estimator = estimator
        self.error_rate = error_rate
        self.confidence = confidence
        self.measure = measure
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> RejectingClassifier:
        """Fit head, temperature and threshold.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes.
        y : array-like of shape (n_samples,)
            Labels.
        groups : array-like of shape (n_samples,), default=None
            Rows of one group never stand on both sides of a fold.

        Returns
        -------
        RejectingClassifier
            Itself.

        Raises
        ------
        ValueError
            One class only, settings out of range, NaN or Inf in X, an estimator without scores.
        """
        check_rates(self.error_rate, self.confidence)
        if self.measure not in _MEASURES:
            raise ValueError(f"RejectingClassifier: expected measure among {_MEASURES}, got {self.measure!r}")
        X, y = labelled_rows(self, X, y)
        folds = folds_of(self.cv, X, y, groups, self.random_state)
        self.estimator_ = fitted_member(self.estimator, X, y, folds, self.random_state, groups)
        return self._set_threshold(X, y, folds, groups)

    def _set_threshold(
        self, X: np.ndarray, y: np.ndarray, folds: Folds | None, groups: Any = None
    ) -> RejectingClassifier:
        rows, logits = held_out_logits(self.estimator_, X, y, self.classes_, folds, groups)
        codes = np.searchsorted(self.classes_, y[rows])
        self.n_held_out_, self.temperature_ = len(rows), fit_temperature(logits, codes)
        self.ranking_temperature_ = self.temperature_ if self.confidence is None else label_free_temperature(logits)
        logits = logits / self.ranking_temperature_
        self.threshold_, self.coverage_, self.error_rate_, self.notes_ = rejection_threshold(
            confidences(logits, self.measure), logits.argmax(axis=1) == codes, self.error_rate, self.confidence
        )
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the label of each row, accepted or not, shape (n_samples,)."""
        check_is_fitted(self)
        return self.estimator_.predict(self._rows(X))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return calibrated probabilities of shape (n_samples, n_classes)."""
        return np.exp(log_softmax(self._logits(X)))

    def confidence_of(self, X: Any) -> np.ndarray:
        """Return the confidence of each prediction, shape (n_samples,), in [0, 1]."""
        logits = self._logits(X)
        return confidences(logits * (self.temperature_ / self.ranking_temperature_), self.measure)

    def accept(self, X: Any) -> np.ndarray:
        """Return whether each row's confidence reaches the threshold: bool of shape (n_samples,)."""
        return self.confidence_of(X) >= self.threshold_

    def predict_or_reject(self, X: Any, reject_label: Any = None) -> np.ndarray:
        """Return the labels of accepted rows, and `reject_label` for the others.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes.
        reject_label : object, default=None
            None: "" for labels that are text; -1 for numbers, which must then be no label.

        Returns
        -------
        ndarray of shape (n_samples,)
            Labels.
        """
        check_is_fitted(self)
        if reject_label is None:
            reject_label = "" if self.classes_.dtype.kind in "UO" else -1
        if reject_label in self.classes_.tolist():
            raise ValueError(f"reject_label: {reject_label!r} is a class; give another value")
        labels = self.predict(X)
        return np.where(self.accept(X), labels, np.asarray(reject_label))

    def _logits(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return class_logits(self.estimator_, self._rows(X)) / self.temperature_

    def _rows(self, X: Any) -> np.ndarray:
        return validate_data(self, X, dtype=[np.float64, np.float32], reset=False)


def label_free_temperature(logits: np.ndarray) -> float:
    """Return a temperature that looks at no label: 1, or the spread of scores that would all give probability 1."""
    scores = logits[np.isfinite(logits)]
    return max(1.0, float(scores.std())) if len(scores) else 1.0


def check_rates(error_rate: Any, confidence: Any) -> None:
    """Raise ValueError for an error rate or a confidence that makes no sense."""
    if not isinstance(error_rate, Real) or isinstance(error_rate, bool) or not 0.0 <= float(error_rate) < 1.0:
        raise ValueError(f"error_rate: expected a number from 0 to below 1, got {error_rate!r}; 0.05 is usual")
    if confidence is not None and not (isinstance(confidence, Real) and 0.5 <= float(confidence) < 1.0):
        raise ValueError(f"confidence: expected None or a number from 0.5 to below 1, got {confidence!r}")


def confidences(logits: np.ndarray, measure: str = "probability") -> np.ndarray:
    """Return the largest probability of each row of scores, or its distance from the second."""
    ranked = np.sort(np.exp(log_softmax(logits)), axis=1)
    return ranked[:, -1] if measure == "probability" else ranked[:, -1] - ranked[:, -2]


def rejection_threshold(
    confidence: np.ndarray, right: np.ndarray, error_rate: float, level: float | None = None
) -> tuple[float, float, float, list[str]]:
    """Return the threshold that accepts most rows at the wanted error rate.

    Parameters
    ----------
    confidence : ndarray of shape (n,)
        Of held-out predictions.
    right : ndarray of bool of shape (n,)
        Whether each is correct.
    error_rate : float
        Errors wanted at most among the accepted.
    level : float or None, default=None
        Probability with which the bound shall hold; None: the counted rate.

    Returns
    -------
    threshold, coverage, error_rate : float
        inf, 0.0 and NaN where no threshold will do.
    notes : list of str
        Why not.

    Examples
    --------
    >>> rejection_threshold(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, True, False, True]), 0.1)[:3]
    (0.8, 0.5, 0.0)
    """
    n = len(confidence)
    if not n:
        return np.inf, 0.0, np.nan, ["nothing is accepted: no class has two rows (or groups) to hold one out"]
    order = np.argsort(-confidence, kind="stable")
    ranked, errors = confidence[order], np.cumsum(~right[order])
    ends = np.append(np.flatnonzero(ranked[1:] < ranked[:-1]), n - 1)  # equals are accepted together
    accepted, wrong = ends + 1, errors[ends]
    if level is None:
        rates = wrong / accepted
        good = np.flatnonzero(rates <= error_rate)
        place = int(good[-1]) if len(good) else -1
    else:
        place, rates = _in_sequence(accepted, wrong, error_rate, 1.0 - level)
    if place < 0:
        how = ""
        if level is not None:
            how = f", to be sure of it with probability {level}"
            least = np.log1p(-level) / np.log1p(-error_rate) if error_rate > 0 else np.inf
            how += f" (that takes {int(np.ceil(least))} accepted ones without an error)" if n < least < 1e9 else ""
        note = f"nothing is accepted: {n} held-out rows do not show an error rate of {error_rate} at any threshold{how}"
        return np.inf, 0.0, np.nan, [note]
    return float(ranked[ends[place]]), float(accepted[place] / n), float(rates[place]), []


def _in_sequence(accepted: np.ndarray, wrong: np.ndarray, error_rate: float, risk: float) -> tuple[int, np.ndarray]:
    """Place of the laxest threshold before the first whose bound fails (-1: none), and the bounds of all places.

    Thresholds are tried from strict to lax, at numbers of accepted rows fixed before any label is seen; so each may
    take the whole risk. The first is where one error (none, in small sets) would still do.
    """
    n = int(accepted[-1])
    bounds = _upper_bounds(accepted, wrong, risk)
    numbers = np.arange(1, n + 1)
    for allowed in (1, 0):
        enough = np.flatnonzero(_upper_bounds(numbers, np.minimum(numbers, allowed), risk) <= error_rate)
        if len(enough):
            break
    else:
        return -1, bounds
    place = -1
    for number in np.unique(np.linspace(numbers[enough[0]], n, _TRIED).round().astype(int)):
        here = int(np.searchsorted(accepted, number, side="right")) - 1
        if here >= 0 and bounds[here] > error_rate:
            break
        place = here
    return place, bounds


def _upper_bounds(accepted: np.ndarray, wrong: np.ndarray, risk: float) -> np.ndarray:
    """Upper confidence limits of the error rate after Clopper and Pearson; where all are wrong it is 1."""
    found = beta.ppf(1.0 - risk, wrong + 1, np.maximum(accepted - wrong, 1))
    return np.where(wrong < accepted, found, 1.0)
