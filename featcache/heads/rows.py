"""What estimators do with their training rows: check them, and fit with groups where something is chosen inside."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.pipeline import Pipeline
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import has_fit_parameter, validate_data

__all__ = ["check_classes", "fit_grouped", "labelled_rows", "quiet_newton"]


def fit_grouped(estimator: Any, X: Any, y: Any, groups: Any = None, sample_weight: Any = None) -> Any:
    """Fit an estimator; groups and weights (n_samples,) go to it, or a Pipeline's last step, where `fit` takes them."""
    last, prefix = estimator, ""
    if isinstance(estimator, Pipeline):
        prefix, last = f"{estimator.steps[-1][0]}__", estimator.steps[-1][1]
    given = {"groups": groups, "sample_weight": sample_weight}
    taken = {k: v for k, v in given.items() if v is not None and has_fit_parameter(last, k)}
    return estimator.fit(X, y, **{prefix + name: value for name, value in taken.items()})


def check_classes(y: Any) -> None:
    """Raise ValueError for labels that are no classes; one row per class is no regression problem, and no warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The number of unique classes is greater than 50%")
        check_classification_targets(y)


def labelled_rows(estimator: Any, X: Any, y: Any) -> tuple[np.ndarray, np.ndarray]:
    """Validate X and y for a classifier, and set its `classes_`; ValueError for one class."""
    X, y = validate_data(estimator, X, y, dtype=[np.float64, np.float32])
    check_classes(y)
    estimator.classes_ = np.unique(y)
    if len(estimator.classes_) < 2:
        raise ValueError(
            f"{type(estimator).__name__}: expected two classes or more, got 1 class: {estimator.classes_[0]!r}"
        )
    return X, y


@contextlib.contextmanager
def quiet_newton() -> Iterator[None]:
    """Keep scikit-learn's Newton solvers from saying that rounding stopped them at the optimum: no news to anybody."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Ll]ine.?[Ss]earch|Rounding errors prevent")
        yield
