"""What the heads of mini-batches share: rows made ready, predictions as the mean of the members' scores."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ..solvers.batches import RunningMoments
from ..solvers.side_by_side import Layers
from .rows import check_classes

__all__ = ["BatchTrained", "weights_of"]


class BatchTrained(ClassifierMixin, BaseEstimator):
    """What the heads of mini-batches share: rows made ready, and predictions as the mean of one or more heads' scores.

    Parameters
    ----------
    batch_size, max_iter, class_weight, standardize, random_state, device, activation
        As of the estimators.
    """

    batch_size: int | str
    max_iter: int | None
    activation: str
    class_weight: Any
    standardize: bool
    random_state: Any
    device: str
    classes_: np.ndarray
    mean_: np.ndarray
    scale_: np.ndarray

    def _members(self) -> list[Layers]:
        raise NotImplementedError

    # -- making ready ----------------------------------------------------------------------------------------------

    def _check_numbers(self, **limits: tuple[Any, float, float]) -> None:
        """Refuse settings outside [least, most]."""
        for name, (kind, least, most) in limits.items():
            value: Any = getattr(self, name)
            if value is None and name == "max_iter":
                continue
            if isinstance(value, (bool, np.bool_)) or not isinstance(value, kind) or not least <= float(value) <= most:
                word = "a whole number" if kind is Integral else "a number"
                raise ValueError(
                    f"{type(self).__name__}: expected {name} to be {word} from {least} to {most}, got {value!r}"
                )

    def _rows(self, X: Any, y: Any, sample_weight: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return (X, class numbers, weights, which rows were kept), without the rows of weight 0; set `classes_`."""
        name = type(self).__name__
        X, y = validate_data(self, X, y, dtype=[np.float32, np.float64])
        check_classes(y)
        weight = np.asarray(_check_sample_weight(sample_weight, X, dtype=np.float64))
        if (weight < 0).any() or not weight.any():
            raise ValueError(f"{name}: expected sample_weight of 0 or more with a sum above 0")
        kept = np.flatnonzero(weight > 0)
        if len(kept) < len(X):
            X, y, weight = X[kept], np.asarray(y)[kept], weight[kept]
        self.classes_, codes = np.unique(y, return_inverse=True)
        if len(self.classes_) < 2:
            raise ValueError(f"{name}: expected two classes or more, got 1 class: {self.classes_[0]!r}")
        if self.class_weight is not None:
            weight = weight * compute_class_weight(self.class_weight, classes=self.classes_, y=y)[codes]
        return X, codes, weight / weight.mean(), kept

    def _standardised(self, X: np.ndarray) -> Any:
        """Set `mean_` and `scale_` and return the standardised rows as a float32 tensor on the device."""
        import torch

        self._set_moments(RunningMoments.of(X) if self.standardize else None, X.shape[1])
        ready = np.empty(X.shape, dtype=np.float32)
        for rows in (slice(i, i + 8192) for i in range(0, len(X), 8192)):
            ready[rows] = self._ready(X[rows])
        return torch.from_numpy(ready).to(self.device)

    def _set_moments(self, moments: RunningMoments | None, n_features: int) -> None:
        self.mean_ = np.zeros(n_features) if moments is None else moments.mean
        self.scale_ = np.ones(n_features) if moments is None else moments.scale()

    def _ready(self, X: np.ndarray) -> np.ndarray:
        return (X - self.mean_.astype(X.dtype)) / self.scale_.astype(X.dtype)

    def _batch_rows(self, n: int) -> int:
        if self.batch_size == "auto":
            return min(256, n)
        if not isinstance(self.batch_size, Integral) or isinstance(self.batch_size, bool) or self.batch_size < 1:
            raise ValueError(
                f"{type(self).__name__}: expected batch_size 'auto' or a whole number above 0, got {self.batch_size!r}"
            )
        return min(int(self.batch_size), n)

    def _epochs(self, steps_per_epoch: int, steps: int) -> int:
        """Return `max_iter`, or as many epochs as make so many steps: at least 10."""
        return int(self.max_iter) if self.max_iter is not None else max(10, round(steps / steps_per_epoch))

    def _seed(self) -> int:
        if isinstance(self.random_state, Integral):
            return int(self.random_state)
        if self.random_state is None:  # fresh entropy; NumPy's global state is nobody's to advance
            return int(np.random.SeedSequence().generate_state(1)[0] >> 1)
        return int(check_random_state(self.random_state).randint(2**31 - 1))

    # -- predicting ------------------------------------------------------------------------------------------------

    def _class_scores(self, X: Any) -> np.ndarray:
        from ..solvers.many import forward

        check_is_fitted(self)
        X = self._ready(validate_data(self, X, dtype=[np.float32, np.float64], reset=False))
        members = self._members()
        return np.sum([forward(X, layers, self.activation) for layers in members], axis=0) / len(members)

    def decision_function(self, X: Any) -> np.ndarray:
        """Return scores of shape (n_samples, n_classes); (n_samples,) for two classes, as scikit-learn does."""
        scores = self._class_scores(X)
        return scores[:, 1] - scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> np.ndarray:
        """Return the most probable class of each row, shape (n_samples,)."""
        scores = self._class_scores(X)
        return self.classes_[scores.argmax(axis=1)]

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Return log probabilities of shape (n_samples, n_classes)."""
        scores = self._class_scores(X)
        scores = scores - scores.max(axis=1, keepdims=True)
        return scores - np.log(np.exp(scores).sum(axis=1, keepdims=True))

    def predict_proba(self, X: Any) -> np.ndarray:
        """Return probabilities of shape (n_samples, n_classes); rows sum to 1."""
        return np.exp(self.predict_log_proba(X))


def weights_of(table: np.ndarray) -> Callable[[Any, Any], np.ndarray]:
    """Return the row weights of `train_heads` from a table (n_rows, groups)."""
    return lambda codes, rows: table[rows]
