"""The head "auto": what to use when you do not want to choose, found inside the training rows only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from ..splits import Folds
from .choosing import Trained, tuning_folds
from .closed_forms import LDAClassifier, SimpleShotClassifier
from .ensemble import EnsembleClassifier
from .metrics import check_metric
from .preprocessing import CodeScaler
from .rows import labelled_rows
from .searching import SearchedHead

__all__ = ["AUTO_ONE_SHOT", "AutoClassifier", "train_auto"]

#: What "auto" takes with one row per class, where nothing can be validated.
AUTO_ONE_SHOT = "simpleshot"

#: Up to so many rows per class (on average) SimpleShot is among the members, beyond it logistic regression on plain
#: codes.
FEW_PER_CLASS = 30

#: Multiplications and additions per second of the machine that a time budget is meant for: two cores of a laptop. A
#: measured speed would make the head depend on what else the machine does.
NOMINAL_SPEED = 5e10


@dataclass(frozen=True)
class _Member:
    """One candidate: its name, an unfitted estimator, and what fitting it on all folds costs in nominal seconds."""

    name: str
    estimator: Any
    seconds: float


def _members(n: int, d: int, k: int, folds: int, seed: int, metric: str) -> list[_Member]:
    """The candidates; which ones, depends on the rows per class.

    Square roots and unit length tame the long tails of codes behind a ReLU. Class means are hard to beat while rows are
    few, and of no use later; then it pays to look at the codes as they are beside their roots.
    """
    fits, narrow = folds + 1, min(n, d)
    products = 2.0 * n * d * narrow + 20.0 * narrow**3  # a Gram matrix and its decomposition
    solver = 4.0 * n * d * k * (150.0 * 3 + 100.0)  # passes of a path on three folds, and of the fit
    root = {"power": 0.5, "norm": "l2", "scale": "standard"}
    plain = {"power": 1.0, "norm": "none", "scale": "centre"}
    on_roots = CodeScaler(power=0.5, norm="l2", scale="centre")
    lda = Pipeline([("codes", on_roots), ("lda", LDAClassifier(keep_sums=False))])
    shots = _Member("simpleshot", SimpleShotClassifier(), fits * 4.0 * n * d / NOMINAL_SPEED)
    several = [
        _Member("lda", lda, fits * products / NOMINAL_SPEED),
        _Member("logreg on roots", _logreg(root, seed, metric), fits * solver / NOMINAL_SPEED),
    ]
    if n <= FEW_PER_CLASS * k:
        return [shots, *several]
    return [*several, _Member("logreg", _logreg(plain, seed, metric), fits * solver / NOMINAL_SPEED)]


def _logreg(start: dict[str, Any], seed: int, metric: str) -> SearchedHead:
    return SearchedHead("logreg", start=start, max_candidates=1, metric=metric, cv=3, random_state=seed)


class AutoClassifier(ClassifierMixin, BaseEstimator):
    """A calibrated ensemble of three heads that fail differently, weighted on held-out training rows.

    Its members are linear discriminant analysis and logistic regression with C swept, both on signed square roots of
    unit length, and with them SimpleShot (class means of unit rows) up to 30 rows per class, logistic regression on the
    centred codes beyond. Each is fitted on folds of the training rows; what they
    say of the held-out rows gives each a temperature and a weight (a member that does not help gets none). With one row
    per class nothing can be held out: SimpleShot it is. ``benchmarks/bench_heads.py``, part auto, compares it
    with seven heads that people use, from one row per class to all.

    Parameters
    ----------
    metric : str, default="accuracy"
        "accuracy", "balanced_accuracy" or "macro_f1": what a single head is chosen by, and what is reported.
    ensemble : bool, default=True
        False: only the best member by validated metric, such as can become a network's last layer by `to_module`
        (SimpleShot cannot).
    max_seconds : float, default=60.0
        Time budget: members are left out, the longest first, until all that remains is expected to take no longer at
        5e10 multiplications per second (two cores). The expectation depends on sizes only, so the result does not
        depend on the machine. The cheapest member stays, whatever it takes.
    cv : int, default=5
        Folds; fewer when no class has so many rows.
    random_state : int, default=0
        Seed of the folds and of the heads.

    Attributes
    ----------
    best_estimator_ : estimator
        The ensemble, or the chosen head, fitted on all rows.
    best_name_ : str
        "ensemble" or the name of the one head.
    best_params_ : dict
        Weights of the members of an ensemble, by name.
    best_score_ : float or None
        Its validated metric; None where nothing could be validated. The three numbers of an ensemble's weights have
        seen the same held-out rows, its members have not.
    tried_ : list of dict
        Per member: "head", "score" (validated), "weight" in the ensemble, and "expected_seconds"; or why it was
        "left_out".
    classes_ : ndarray of shape (n_classes,)
        Labels.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> auto = AutoClassifier().fit(X, y)
    >>> auto.best_name_, auto.best_score_ > 0.9
    ('ensemble', True)
    """

    def __init__(
        self,
        *,
        metric: str = "accuracy",
        ensemble: bool = True,
        max_seconds: float = 60.0,
        cv: int = 5,
        random_state: int = 0,
    ) -> None:
        self.metric = metric
        self.ensemble = ensemble
        self.max_seconds = max_seconds
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> AutoClassifier:
        """Choose and fit; rows of one group (n_samples,) never stand on both sides of a fold.

        Raises
        ------
        ValueError
            One class only, settings out of range, NaN or Inf in X.
        """
        X, y = labelled_rows(self, X, y)
        folds = tuning_folds(y, X.shape[1], cv=self.cv, ids=None, groups=groups, seed=self.random_state)
        return self._fit_on(X, y, folds, groups)

    def _fit_on(self, X: np.ndarray, y: np.ndarray, folds: Folds | None, groups: Any) -> AutoClassifier:
        check_metric(self.metric)
        if not isinstance(self.max_seconds, (int, float)) or not self.max_seconds > 0:
            raise ValueError(f"AutoClassifier: expected max_seconds above 0, got {self.max_seconds!r}")
        self.classes_ = np.unique(y)
        self.tried_: list[dict[str, Any]] = []
        self.best_params_: dict[str, Any] = {}
        self.best_score_: float | None = None
        if folds is None:
            self.best_name_, self.best_estimator_ = AUTO_ONE_SHOT, SimpleShotClassifier().fit(X, y)
            return self
        members = self._affordable(X, len(folds))
        heads = [member.estimator for member in members]
        together = EnsembleClassifier(heads, cv=self.cv, random_state=self.random_state)
        labelled_rows(together, X, y)
        together._fit_on(X, y, folds, groups)
        self._tell(members, together, y)
        if self.ensemble and len(members) > 1:
            self.best_name_, self.best_estimator_ = "ensemble", together
            self.best_params_ = {m.name: float(w) for m, w in zip(members, together.weights_, strict=True)}
            self.best_score_ = self._score(-1, together, y)
            return self
        best = max(range(len(members)), key=lambda i: self.tried_[i]["score"])
        self.best_name_, self.best_estimator_ = members[best].name, together.estimators_[best]
        self.best_score_ = self.tried_[best]["score"]
        return self

    def _affordable(self, X: np.ndarray, folds: int) -> list[_Member]:
        """The members within the budget; the cheapest stays whatever it takes."""
        members = _members(len(X), X.shape[1], len(self.classes_), folds, self.random_state, self.metric)
        while len(members) > 1 and sum(member.seconds for member in members) > self.max_seconds:
            gone = members.pop(max(range(len(members)), key=lambda i: members[i].seconds))
            why = f"expected to take {gone.seconds:.0f} s, more than max_seconds={self.max_seconds:g} leaves"
            self.tried_.append({"head": gone.name, "left_out": why})
        return members

    def _tell(self, members: list[_Member], together: EnsembleClassifier, y: np.ndarray) -> None:
        told = [
            {
                "head": member.name,
                "score": self._score(i, together, y),
                "weight": float(together.weights_[i]),
                "expected_seconds": float(f"{member.seconds:.2g}"),
            }
            for i, member in enumerate(members)
        ]
        self.tried_ = told + self.tried_

    def _score(self, member: int, together: EnsembleClassifier, y: np.ndarray) -> float:
        truth = np.searchsorted(self.classes_, y[together.held_out_rows_])
        return check_metric(self.metric)(truth, together.held_out_predictions_[member])

    def predict(self, X: Any) -> np.ndarray:
        """Return the chosen head's predictions, shape (n_samples,)."""
        rows = self._rows(X)  # says first whether it is fitted
        return self.best_estimator_.predict(rows)

    @available_if(lambda self: hasattr(getattr(self, "best_estimator_", EnsembleClassifier()), "predict_proba"))
    def predict_proba(self, X: Any) -> np.ndarray:
        """Return calibrated probabilities of shape (n_samples, n_classes); not where one head alone has none."""
        rows = self._rows(X)
        return self.best_estimator_.predict_proba(rows)

    @available_if(lambda self: hasattr(getattr(self, "best_estimator_", EnsembleClassifier()), "decision_function"))
    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores, shape (n_samples, n_classes), or (n_samples,) for two classes."""
        rows = self._rows(X)
        return self.best_estimator_.decision_function(rows)

    def _rows(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return validate_data(self, X, dtype=[np.float64, np.float32], reset=False)


def train_auto(
    X: np.ndarray, y: np.ndarray, folds: Folds | None, *, metric: str, seed: int, groups: Any = None, **settings: Any
) -> Trained:
    """Fit "auto" on given folds, for `choosing.train`."""
    auto = AutoClassifier(metric=metric, random_state=seed, **settings)
    auto._fit_on(X, y, folds, groups)
    if folds is None:
        return Trained(
            auto.best_estimator_, auto.best_name_, {}, None,
            (f"auto: {AUTO_ONE_SHOT}, because no class has two rows to compare on",),
        )  # fmt: skip
    told = ", ".join(
        f"{one['head']} {one['score']:.3f} (weight {one['weight']:.2f})" if "score" in one
        else f"{one['head']} left out, {one['left_out']}"
        for one in auto.tried_
    )  # fmt: skip
    note = f"auto: {auto.best_name_}, validated {metric} {auto.best_score_:.3f}; tried {told}"
    return Trained(auto.best_estimator_, auto.best_name_, dict(auto.best_params_), auto.best_score_, (note,))
