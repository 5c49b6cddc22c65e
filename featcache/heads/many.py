"""Softmax heads and MLPs trained by mini-batches: what they share, and TorchMLPClassifier."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from ..errors import SplitError
from ..solvers.batches import Moments, n_batches, ordered_batches, shuffled_batches
from ..solvers.side_by_side import HeadSettings, Layers
from ..splits import holdout

__all__ = ["BatchTrained", "TorchMLPClassifier"]


class BatchTrained(ClassifierMixin, BaseEstimator):
    """What the heads of mini-batches share: rows made ready, and predictions as the mean of one or more heads' scores.

    Parameters
    ----------
    batch_size, max_iter, class_weight, standardize, random_state, device, activation
        As of the estimators.
    """

    classes_: np.ndarray
    mean_: np.ndarray
    scale_: np.ndarray

    def _members(self) -> list[Layers]:
        raise NotImplementedError

    # -- making ready ----------------------------------------------------------------------------------------------

    def _check_numbers(self, **limits: tuple[type, float, float]) -> None:
        """Refuse settings outside [least, most]."""
        for name, (kind, least, most) in limits.items():
            value = getattr(self, name)
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
        check_classification_targets(y)
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

        self._set_moments(Moments.of(X) if self.standardize else None, X.shape[1])
        ready = np.empty(X.shape, dtype=np.float32)
        for rows in (slice(i, i + 8192) for i in range(0, len(X), 8192)):
            ready[rows] = self._ready(X[rows])
        return torch.from_numpy(ready).to(self.device)

    def _set_moments(self, moments: Moments | None, n_features: int) -> None:
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
        return sum(forward(X, layers, self.activation) for layers in members) / len(members)

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


class TorchMLPClassifier(BatchTrained):
    """A multilayer perceptron with one hidden layer, trained by AdamW with a cosine rate, in torch.

    For codes with 5 to 1000 rows per class. Standardisation is inside, with the shrunken deviations of
    `ShrunkScaler`; several nets (`n_members`) are trained side by side on the same batches and their scores averaged.

    Parameters
    ----------
    hidden_layer_sizes : int or tuple of one int, default=(256,)
        Width of the hidden layer; () or 0 is a linear softmax head.
    activation : {"gelu", "relu"}, default="gelu"
        Of the hidden layer.
    alpha : float, default=0.01
        Weight decay, decoupled (Loshchilov and Hutter 2019): each step multiplies weights by 1 − rate · alpha.
    learning_rate_init : float, default=1e-3
        AdamW's rate at the first step; it falls to 0 along a cosine.
    batch_size : "auto" or int, default="auto"
        Rows of a batch; "auto": 256, or all rows where there are fewer.
    max_iter : int or None, default=None
        Epochs; None: as many as make about 200 steps, and 10 at least.
    label_smoothing : float, default=0.0
        Share of the target spread over all classes.
    dropout : float, default=0.5
        Share of the hidden units left out in each step.
    n_members : int, default=1
        Nets of other random starts whose scores are averaged.
    early_stopping : bool, default=False
        Hold `validation_fraction` of the rows out, stop when their loss has not fallen for `n_iter_no_change` epochs,
        and keep the best weights. With few rows they are better spent on training.
    validation_fraction : float, default=0.1
        Share of each class that is held out.
    n_iter_no_change : int, default=10
        Epochs of patience.
    class_weight : dict, "balanced" or None, default=None
        Weight per label; "balanced" is n_samples / (n_classes * count).
    standardize : bool, default=True
        Standardise features by the training rows.
    random_state : int, RandomState or None, default=0
        Decides starts, order and dropout.
    device : str, default="cpu"
        A torch device.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    coefs_ : list of ndarray of float32
        Weights (inputs, outputs): one per layer, member after member.
    intercepts_ : list of ndarray of float32
        Biases in the same order.
    mean_, scale_ : ndarray of shape (n_features,)
        Rows are standardised to (x - mean_) / scale_.
    loss_curve_ : list of float
        Mean training loss of each epoch, over the members.
    n_iter_ : int
        Epochs done.
    n_features_in_ : int
        Features seen in `fit`.

    Notes
    -----
    A weight of two is not exactly a row given twice, since batches are drawn by rows. The last layer starts at zero,
    so that a net begins as a linear head on random features.

    References
    ----------
    I. Loshchilov, F. Hutter, "Decoupled weight decay regularization", ICLR 2019.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> TorchMLPClassifier(hidden_layer_sizes=16).fit(X, y).score(X, y) > 0.9
    True
    """

    def __init__(
        self,
        hidden_layer_sizes: int | tuple[int, ...] = (256,),
        *,
        activation: str = "gelu",
        alpha: float = 0.01,
        learning_rate_init: float = 1e-3,
        batch_size: int | str = "auto",
        max_iter: int | None = None,
        label_smoothing: float = 0.0,
        dropout: float = 0.5,
        n_members: int = 1,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        class_weight: Any = None,
        standardize: bool = True,
        random_state: Any = 0,
        device: str = "cpu",
    ) -> None:
        self.hidden_layer_sizes = hidden_layer_sizes
        self.activation = activation
        self.alpha = alpha
        self.learning_rate_init = learning_rate_init
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.label_smoothing = label_smoothing
        self.dropout = dropout
        self.n_members = n_members
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.class_weight = class_weight
        self.standardize = standardize
        self.random_state = random_state
        self.device = device

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> TorchMLPClassifier:
        """Train on the rows.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes.
        y : array-like of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights >= 0 of the rows, of which only the ratios count; None: 1.

        Returns
        -------
        TorchMLPClassifier
            Itself.

        Raises
        ------
        ValueError
            One class only, settings out of range, NaN or Inf in X, early stopping without a class of two rows.
        """
        from ..solvers.many import train_heads

        hidden = self._check_settings()
        X, codes, weight, _ = self._rows(X, y, sample_weight)
        seed = self._seed()
        train, held_out = self._parts(codes, seed)
        rows = self._standardised(X) if train is None else self._standardised(X[train])
        if train is not None:
            import torch

            rest = torch.from_numpy(self._ready(X[held_out]).astype(np.float32)).to(self.device)
            rest_codes, codes, weight = codes[held_out], codes[train], weight[train] / weight[train].mean()
        size = self._batch_rows(len(codes))
        steps = n_batches(len(codes), size)
        heads = [
            HeadSettings(
                float(self.learning_rate_init),
                float(self.alpha),
                float(self.label_smoothing),
                float(self.dropout),
                hidden,
                seed=(seed + member) % 2**31,
            )
            for member in range(self.n_members)
        ]
        run = train_heads(
            shuffled_batches(rows, codes, size, seed=seed),
            heads,
            n_features=X.shape[1],
            n_classes=len(self.classes_),
            epochs=self._epochs(steps, 200),
            steps_per_epoch=steps,
            row_weight=None if np.ptp(weight) == 0 else weights_of(weight[:, None]),
            validation=None if train is None else lambda: ordered_batches(rest, rest_codes),
            patience=None if train is None else int(self.n_iter_no_change),
            activation=self.activation,
            seed=seed,
            device=self.device,
            batch_size=size,
        )
        self.coefs_ = [W for layers in run.layers for W, _ in layers]
        self.intercepts_ = [b for layers in run.layers for _, b in layers]
        self.n_iter_ = len(run.train_loss)
        self.loss_curve_ = [float(np.mean(done[np.isfinite(done)])) if np.isfinite(done).any() else float("nan")
                            for done in run.train_loss]  # fmt: skip
        if not all(np.isfinite(W).all() for W in self.coefs_):
            raise ValueError(
                f"TorchMLPClassifier: training diverged at learning_rate_init={self.learning_rate_init}; lower it"
            )
        return self

    def _parts(self, codes: np.ndarray, seed: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        if not self.early_stopping:
            return None, None
        try:
            return holdout(codes, test_size=self.validation_fraction, seed=seed)
        except SplitError:
            raise ValueError(
                "TorchMLPClassifier: early stopping expected a class with two rows, got none; set early_stopping=False"
            ) from None

    def _check_settings(self) -> int:
        self._check_numbers(
            alpha=(Real, 0.0, 1e6),
            learning_rate_init=(Real, 0.0, 1e6),
            label_smoothing=(Real, 0.0, 0.999),
            dropout=(Real, 0.0, 0.999),
            max_iter=(Integral, 1, 10**9),
            n_members=(Integral, 1, 10**6),
            n_iter_no_change=(Integral, 1, 10**9),
            validation_fraction=(Real, 1e-9, 1 - 1e-9),
        )
        sizes = self.hidden_layer_sizes
        sizes = [sizes] if isinstance(sizes, Integral) else list(sizes)
        if len(sizes) > 1 or any(not isinstance(s, Integral) or s < 0 for s in sizes):
            raise ValueError(
                "TorchMLPClassifier: expected hidden_layer_sizes to be one width of 0 or more, got "
                f"{self.hidden_layer_sizes!r}; use sklearn.neural_network.MLPClassifier for more layers"
            )
        return int(sizes[0]) if sizes else 0

    def _members(self) -> list[Layers]:
        depth = len(self.coefs_) // self.n_members
        pairs = list(zip(self.coefs_, self.intercepts_, strict=True))
        return [pairs[i : i + depth] for i in range(0, len(pairs), depth)]
