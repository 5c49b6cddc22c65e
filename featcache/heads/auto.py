"""AutoClassifier: the head "auto" as a scikit-learn estimator of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from .choosing import train, tuning_folds

__all__ = ["AutoClassifier"]


class AutoClassifier(ClassifierMixin, BaseEstimator):
    """Choose the best cheap head by cross-validation inside the training rows, then fit it on all of them.

    Parameters
    ----------
    metric : str, default="accuracy"
        "accuracy", "balanced_accuracy" or "macro_f1".
    cv : int, default=5
        Folds; fewer when no class has so many rows.
    random_state : int, default=0
        Seed of the folds and of the head.

    Attributes
    ----------
    best_estimator_ : Pipeline
        The chosen head, fitted on all rows.
    best_name_ : str
        Its name in `HEADS`; "centroid" when every class has one row.
    best_params_ : dict
        Its chosen settings.
    best_score_ : float or None
        Its validated metric.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> AutoClassifier().fit(X, y).best_score_ > 0.9
    True
    """

    def __init__(self, *, metric: str = "accuracy", cv: int = 5, random_state: int = 0) -> None:
        self.metric = metric
        self.cv = cv
        self.random_state = random_state

    def fit(self, X: Any, y: Any, groups: Any = None) -> AutoClassifier:
        """Choose and fit; rows of one group (n_samples,) never stand on both sides of a fold."""
        X, y = validate_data(self, X, y, dtype=[np.float64, np.float32])
        check_classification_targets(y)
        self.classes_ = np.unique(y)
        if len(self.classes_) < 2:
            raise ValueError(f"AutoClassifier: expected two classes or more, got 1 class: {self.classes_[0]!r}")
        folds = tuning_folds(y, X.shape[1], cv=self.cv, ids=None, groups=groups, seed=self.random_state)
        trained = train("auto", X, y, folds, metric=self.metric, seed=self.random_state)
        self.best_estimator_, self.best_name_ = trained.estimator, trained.name
        self.best_params_, self.best_score_ = trained.params, trained.score
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Return the chosen head's predictions, shape (n_samples,)."""
        check_is_fitted(self)
        return self.best_estimator_.predict(validate_data(self, X, dtype=[np.float64, np.float32], reset=False))
