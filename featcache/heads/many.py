"""TorchMLPClassifier: a small network on cached codes, as an ordinary scikit-learn estimator."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np

from ..errors import SplitError
from ..solvers.batches import n_batches, ordered_batches, shuffled_batches
from ..solvers.side_by_side import HeadSettings, Layers
from ..splits import holdout
from .batch_trained import BatchTrained, weights_of

__all__ = ["TorchMLPClassifier"]


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
    alpha : float, default=1.0
        Weight decay, decoupled (Loshchilov and Hutter 2019): each step multiplies weights by 1 − rate · alpha.
    learning_rate_init : float, default=1e-3
        AdamW's rate at the first step; it falls to 0 along a cosine.
    batch_size : "auto" or int, default="auto"
        Rows of a batch; "auto": 256, or all rows where there are fewer.
    max_iter : int or None, default=None
        Epochs; None: as many as make about 300 steps, and 10 at least.
    label_smoothing : float, default=0.1
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
    >>> TorchMLPClassifier(64, learning_rate_init=1e-2).fit(X, y).score(X, y) > 0.9
    True
    """

    def __init__(
        self,
        hidden_layer_sizes: int | tuple[int, ...] = (256,),
        *,
        activation: str = "gelu",
        alpha: float = 1.0,
        learning_rate_init: float = 1e-3,
        batch_size: int | str = "auto",
        max_iter: int | None = None,
        label_smoothing: float = 0.1,
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
            rest_codes, rest_weight = codes[held_out], weight[held_out, None]
            codes, weight = codes[train], weight[train] / weight[train].mean()
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
            epochs=self._epochs(steps, 300),
            steps_per_epoch=steps,
            row_weight=None if np.ptp(weight) == 0 else weights_of(weight[:, None]),
            validation=None if train is None else lambda: ordered_batches(rest, rest_codes),
            validation_weight=None if train is None else weights_of(rest_weight),
            patience=None if train is None else int(self.n_iter_no_change),
            activation=self.activation,
            seed=seed,
            device=self.device,
            batch_size=size,
        )
        self.coefs_ = [W for layers in run.layers for W, _ in layers]
        self.intercepts_ = [b for layers in run.layers for _, b in layers]
        self.n_iter_ = len(run.train_loss)
        self.loss_curve_ = [float(loss) for loss in run.train_loss.mean(axis=1, where=np.isfinite(run.train_loss))]
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
        sizes: Any = self.hidden_layer_sizes
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
