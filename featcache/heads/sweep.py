"""HeadSweep: a grid of softmax heads and MLPs, times the folds of a cross-validation, trained in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.model_selection import ParameterGrid
from sklearn.utils import check_consistent_length, column_or_1d
from sklearn.utils.class_weight import compute_class_weight

from ..errors import HeadError
from ..solvers.batches import BatchSource, n_batches, ordered_batches, shuffled_batches
from ..solvers.side_by_side import HeadSettings, Layers
from .batch_trained import BatchTrained, weights_of
from .sweep_tasks import RowWeight, Stream, SweepTask, dealt_folds, held_out_rows, results

__all__ = ["HeadSweep"]

_DEFAULT_GRID: dict[str, list[Any]] = {
    "learning_rate": [1e-3, 3e-4, 3e-3, 1e-2, 3e-2],
    "weight_decay": [0.01, 1.0, 10.0, 30.0],
}
_GRID_NAMES = ("learning_rate", "weight_decay", "label_smoothing", "dropout", "hidden")
_SCORINGS = ("accuracy", "balanced_accuracy", "neg_log_loss")


class HeadSweep(BatchTrained):
    """Train every setting of a grid on every fold in one pass over the codes, and keep the best.

    A batch is read, standardised and moved once for all grid · folds heads; linear ones are one wide product. Folds are
    weights of 0 and 1 on the rows of the same batches.

    Parameters
    ----------
    param_grid : dict of lists, list of such, or None, default=None
        As in ``GridSearchCV``, of "learning_rate", "weight_decay" (decoupled), "label_smoothing", "dropout" (of the
        inputs of linear heads, of the hidden units of MLPs) and "hidden" (width of the hidden layer; 0: linear).
        None: linear heads, 5 learning rates times 4 decays.
    cv : int or float, default=5
        Folds, or the share of the rows of one validation part. Fewer folds when no class has so many rows; where
        every class has one row, the first setting of the grid is taken untried.
    refit : True or "average", default=True
        True: train the best setting once more, on all rows. "average": average the scores of its folds' heads, which
        needs no second pass.
    scoring : {"accuracy", "balanced_accuracy", "neg_log_loss"}, default="accuracy"
        What the setting is chosen by: the mean over folds; ties go to the smaller log loss.
    optimizer : {"adamw", "sgd"}, default="adamw"
        AdamW, or SGD with momentum 0.9; the rate falls to 0 along a cosine.
    activation : {"gelu", "relu"}, default="gelu"
        Of hidden layers.
    batch_size : "auto" or int, default="auto"
        Rows of a batch; "auto": 256, or all rows where there are fewer.
    max_iter : int or None, default=None
        Epochs; None: as many as make about 300 steps, and 10 at least (1 in `fit_batches`).
    n_iter_no_change : int or None, default=None
        Freeze a head when its validation loss has not fallen for so many epochs, and keep its best weights. None: all
        heads are trained to the end and scored once.
    class_weight : dict, "balanced" or None, default=None
        Weight per label; "balanced" is n_samples / (n_classes * count).
    standardize : bool, default=True
        Standardise features, with the shrunken deviations of `ShrunkScaler`, by all training rows.
    random_state : int, RandomState or None, default=0
        Decides folds, starts, order and dropout.
    device : str, default="cpu"
        A torch device.

    Attributes
    ----------
    best_params_ : dict
        The chosen setting.
    best_score_ : float
        Its mean score on the folds; NaN where nothing could be validated.
    best_index_ : int
        Its place in `cv_results_`.
    cv_results_ : dict
        "params", "mean_test_score", "std_test_score", "rank_test_score", "split0_test_score" …, "mean_test_loss" (log
        loss, with the weights of training: early stopping goes by it) and "mean_n_iter".
    classes_ : ndarray of shape (n_classes,)
        The labels, sorted.
    coef_, intercept_ : ndarray
        Of the raw codes, where the chosen head is linear: (n_classes, n_features) and (n_classes,); one row for two
        classes. float64.
    members_ : list of lists of [weights, biases]
        Layers of the head (of each fold's head with refit="average"), for standardised rows.
    mean_, scale_ : ndarray of shape (n_features,)
        Rows are standardised to (x - mean_) / scale_.
    n_iter_ : int
        Epochs of the head that was kept (the mean over folds with refit="average").
    notes_ : list of str
        Where fewer folds were made than asked for, or none, and why.
    n_features_in_ : int
        Features seen in `fit`.

    References
    ----------
    M. Oquab et al., "DINOv2: Learning robust visual features without supervision", arXiv 2304.07193 (2023), whose
    linear evaluation trains its grid of heads together.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> sweep = HeadSweep({"learning_rate": [1e-2, 1e-1], "hidden": [0, 16]}, cv=3).fit(X, y)
    >>> len(sweep.cv_results_["params"]), sweep.best_score_ > 0.9
    (4, True)
    """

    def __init__(
        self,
        param_grid: Any = None,
        *,
        cv: int | float = 5,
        refit: bool | str = True,
        scoring: str = "accuracy",
        optimizer: str = "adamw",
        activation: str = "gelu",
        batch_size: int | str = "auto",
        max_iter: int | None = None,
        n_iter_no_change: int | None = None,
        class_weight: Any = None,
        standardize: bool = True,
        random_state: Any = 0,
        device: str = "cpu",
    ) -> None:
        self.param_grid = param_grid
        self.cv = cv
        self.refit = refit
        self.scoring = scoring
        self.optimizer = optimizer
        self.activation = activation
        self.batch_size = batch_size
        self.max_iter = max_iter
        self.n_iter_no_change = n_iter_no_change
        self.class_weight = class_weight
        self.standardize = standardize
        self.random_state = random_state
        self.device = device

    # -- codes in memory -------------------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any, sample_weight: Any = None, groups: Any = None) -> HeadSweep:
        """Choose a setting on folds of the rows and train it.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            Codes.
        y : array-like of shape (n_samples,)
            Labels.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights >= 0 of the rows in training, of which only the ratios count; scores count rows alike.
        groups : array-like of shape (n_samples,), default=None
            Rows of one group never stand on both sides of a fold.

        Returns
        -------
        HeadSweep
            Itself.

        Raises
        ------
        ValueError
            One class only, settings out of range, NaN or Inf in X, groups of another length, every setting of the
            grid diverged.
        """
        grid = self._check_settings()
        X, codes, weight, kept = self._rows(X, y, sample_weight)
        seed = self._seed()
        if groups is not None:
            groups = column_or_1d(groups)
            check_consistent_length(groups, y)
            groups = groups[kept]
        held_out, notes = held_out_rows(codes, self.cv, groups, seed)
        self.notes_ = list(notes)
        rows = self._standardised(X)
        size = self._batch_rows(len(codes))
        train = weight[:, None] * ~held_out
        train /= np.maximum(train.sum(axis=0) / np.maximum((train > 0).sum(axis=0), 1), 1e-300)
        score = held_out.astype(np.float64)
        if self.scoring == "balanced_accuracy":
            onehot = np.eye(len(self.classes_))[codes]
            score /= np.maximum(onehot @ (onehot.T @ held_out), 1.0)
        task = SweepTask(
            shuffled_batches(rows, codes, size, seed=seed),
            n_batches(len(codes), size),
            size,
            held_out.shape[1],
            weights_of(train),
            lambda: ordered_batches(rows, codes),
            weights_of(score),
            weights_of(weight[:, None] * held_out),
            None if np.ptp(weight) == 0 else weights_of(weight[:, None]),
            np.ptp(weight) > 0 or self.scoring == "balanced_accuracy",
        )
        return self._choose(task, grid, seed, 300)

    # -- codes that stay on disk -----------------------------------------------------------------------------------

    def fit_batches(
        self,
        batches: BatchSource,
        classes: Sequence[Any] | np.ndarray,
        n_features: int,
        *,
        validation: Callable[[], Iterable[tuple[Any, ...]]] | None = None,
    ) -> HeadSweep:
        """Choose a setting and train it on batches that come again each epoch: codes larger than memory.

        The first pass counts batches, rows and classes and takes means and deviations. Memory holds a batch and the
        heads.

        Parameters
        ----------
        batches : callable
            epoch → iterable of (X, codes) or (X, codes, rows): X (n, n_features) of any float type, class numbers into
            `classes`, row numbers. ``lambda epoch: data.batches(256, epoch=epoch, with_index=True)`` of a CodesDataset.
        classes : sequence of shape (n_classes,)
            Labels of the class numbers.
        n_features : int
            Width of the codes.
        validation : callable, default=None
            Returns the batches to choose on. None: `cv` folds, dealt by a hash of the row numbers.

        Returns
        -------
        HeadSweep
            Itself.

        Raises
        ------
        HeadError
            No batch, class numbers outside the classes, batches of another width, no row numbers to deal folds by.
        """
        grid = self._check_settings()
        seed = self._seed()
        self.classes_, self.n_features_in_ = np.asarray(classes), int(n_features)
        held, folds = (None, 1) if validation is not None else dealt_folds(self.cv, seed)
        stream = Stream.of(batches, len(self.classes_), self.n_features_in_, held, folds)
        self.notes_ = []
        self._set_moments(stream.moments if self.standardize else None, self.n_features_in_)
        by_class = None
        if self.class_weight is not None:
            by_class = self._class_weights(stream.counts)
        task = stream.task(validation, by_class, self.scoring == "balanced_accuracy")
        task = replace(task, shift=self.mean_, scale=self.scale_)
        return self._choose(task, grid, seed, 0, again=validation is None)

    def _class_weights(self, counts: np.ndarray) -> np.ndarray:
        """Return the weight of each class, of mean 1 over the rows."""
        there = counts > 0
        labels = self.classes_[there]
        if isinstance(self.class_weight, str):
            table = counts.sum() / (there.sum() * counts[there])
        else:
            table = compute_class_weight(self.class_weight, classes=labels, y=labels)
        weights = np.ones(len(counts))
        weights[there] = table * (counts.sum() / (counts[there] * table).sum())
        return weights

    # -- choosing --------------------------------------------------------------------------------------------------

    def _choose(
        self, task: SweepTask, grid: list[dict[str, Any]], seed: int, steps: int, again: bool = True
    ) -> HeadSweep:
        from ..solvers.many import score_heads

        settings = [HeadSettings(**{"seed": seed % 2**31, **_plain(params)}) for params in grid]
        epochs = self._epochs(task.steps, steps) if steps else int(self.max_iter or 1)
        heads = [replace(one, group=fold) for one in settings for fold in range(task.folds)]
        for name in ("coef_", "intercept_"):
            self.__dict__.pop(name, None)
        if not heads:
            self.best_index_, self.best_params_, self.best_score_ = 0, dict(grid[0]), float("nan")
            self.cv_results_ = results(grid, *(np.full((len(grid), 1), np.nan) for _ in range(3)))
            self._keep([self._train(task, settings[:1], epochs, seed, task.all_weight).layers[0]], epochs)
            return self
        run = self._train(task, heads, epochs, seed, task.train_weight, validate=True)
        loss, plain, score = run.loss, run.loss, run.accuracy
        if task.scored_apart:
            plain, score = score_heads(
                run.layers,
                task.validation(),
                activation=self.activation,
                shift=task.shift,
                scale=task.scale,
                row_weight=task.score_weight,
                groups=[head.group for head in heads],
                device=self.device,
            )
        if self.scoring == "neg_log_loss":
            score = -plain
        shape = (len(grid), task.folds)
        self._record(grid, score.reshape(shape), loss.reshape(shape), run.n_iter.reshape(shape))
        if not np.isfinite(loss.reshape(shape)[self.best_index_]).all():
            raise HeadError("HeadSweep: every setting of the grid diverged; give smaller learning rates")
        best = slice(self.best_index_ * task.folds, (self.best_index_ + 1) * task.folds)
        done = max(1, round(float(run.n_iter[best].mean())))
        if self.refit == "average" or not again:
            self._keep(run.layers[best], done)
            return self
        one = self._train(task, [settings[self.best_index_]], done, seed, task.all_weight, schedule=epochs)
        self._keep(one.layers, done)
        return self

    def _train(
        self,
        task: SweepTask,
        heads: list[HeadSettings],
        epochs: int,
        seed: int,
        weight: RowWeight | None,
        *,
        validate: bool = False,
        schedule: int | None = None,
    ) -> Any:
        from ..solvers.many import train_heads

        return train_heads(
            task.source,
            heads,
            n_features=self.n_features_in_,
            n_classes=len(self.classes_),
            epochs=epochs,
            steps_per_epoch=task.steps,
            schedule_epochs=schedule,
            row_weight=weight,
            shift=task.shift,
            scale=task.scale,
            validation=task.validation if validate else None,
            validation_weight=task.loss_weight,
            patience=self.n_iter_no_change,
            optimizer=self.optimizer,
            activation=self.activation,
            seed=seed,
            device=self.device,
            batch_size=task.batch_size,
        )

    def _record(self, grid: list[dict[str, Any]], score: np.ndarray, loss: np.ndarray, n_iter: np.ndarray) -> None:
        self.cv_results_ = results(grid, score, loss, n_iter)
        mean = self.cv_results_["mean_test_score"]
        self.best_index_ = int(np.lexsort((self.cv_results_["mean_test_loss"], -mean))[0])
        self.best_params_, self.best_score_ = dict(grid[self.best_index_]), float(mean[self.best_index_])

    def _keep(self, members: list[Layers], epochs: int) -> None:
        if len(members[0]) == 1:  # the mean of linear scores is linear
            mean = [np.mean([layers[0][part] for layers in members], axis=0) for part in (0, 1)]
            members = [[(mean[0], mean[1])]]
            W, b = mean[0].astype(np.float64), mean[1].astype(np.float64)
            coef = (W / self.scale_[:, None]).T
            intercept = b - coef @ self.mean_
            if len(self.classes_) == 2:
                coef, intercept = coef[1:] - coef[:1], intercept[1:] - intercept[:1]
            self.coef_, self.intercept_ = coef, intercept
        self.members_ = [[[W, b] for W, b in layers] for layers in members]
        self.n_iter_ = int(epochs)

    def _members(self) -> list[Layers]:
        return [[(W, b) for W, b in layers] for layers in self.members_]

    def _check_settings(self) -> list[dict[str, Any]]:
        """Return the settings of the grid."""
        self._check_numbers(max_iter=(Integral, 1, 10**9))
        if self.n_iter_no_change is not None:
            self._check_numbers(n_iter_no_change=(Integral, 1, 10**9))
        if isinstance(self.cv, Integral):
            self._check_numbers(cv=(Integral, 2, 10**6))
        else:
            self._check_numbers(cv=(Real, 1e-9, 1 - 1e-9))
        if self.scoring not in _SCORINGS:
            raise ValueError(f"HeadSweep: expected scoring of {', '.join(_SCORINGS)}, got {self.scoring!r}")
        if self.refit is not True and self.refit != "average":
            raise ValueError(f"HeadSweep: expected refit True or 'average', got {self.refit!r}")
        given = _DEFAULT_GRID if self.param_grid is None else self.param_grid
        try:
            grid = list(ParameterGrid(given))
        except (TypeError, ValueError) as error:
            raise ValueError(f"HeadSweep: expected param_grid to be a dict of lists; {error}") from None
        unknown = sorted({name for params in grid for name in params} - set(_GRID_NAMES))
        if unknown or not grid:
            raise ValueError(f"HeadSweep: expected a grid of {', '.join(_GRID_NAMES)}, got {unknown or 'no setting'}")
        return grid


def _plain(params: Mapping[str, Any]) -> dict[str, Any]:
    return {name: int(value) if name == "hidden" else float(value) for name, value in params.items()}
