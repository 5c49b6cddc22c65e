"""What estimators do with their training rows: check them, and fit with groups where something is chosen inside."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import has_fit_parameter, validate_data

__all__ = ["fit_grouped", "labelled_rows"]


def fit_grouped(estimator: Any, X: Any, y: Any, groups: Any = None) -> Any:
    """Fit an estimator; `groups` (n_samples,) go to it, or to a Pipeline's last step, where its `fit` takes them."""
    if groups is None:
        return estimator.fit(X, y)
    if isinstance(estimator, Pipeline):
        name, last = estimator.steps[-1]
        return estimator.fit(X, y, **({f"{name}__groups": groups} if has_fit_parameter(last, "groups") else {}))
    return estimator.fit(X, y, groups=groups) if has_fit_parameter(estimator, "groups") else estimator.fit(X, y)


def labelled_rows(estimator: Any, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Validate X and y for a classifier, and set its `classes_`; ValueError for one class."""
    X, y = validate_data(estimator, X, y, dtype=[np.float64, np.float32])
    check_classification_targets(y)
    estimator.classes_ = np.unique(y)
    if len(estimator.classes_) < 2:
        raise ValueError(
            f"{type(estimator).__name__}: expected two classes or more, got 1 class: {estimator.classes_[0]!r}"
        )
    return X, y
