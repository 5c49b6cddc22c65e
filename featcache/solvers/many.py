"""Many heads trained on one stream of mini-batches: a batch is read, standardised and moved once for all of them.

After DINOv2's linear evaluation (Oquab et al. 2023, arXiv 2304.07193), which trains a grid of learning rates together.
Memory holds one batch, its scores (batch · heads · classes) and three or four numbers a parameter, however many
rows there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import HeadError
from .batches import BatchSource
from .side_by_side import Group, HeadSettings, Layers, Rule, check_heads, grouped

if TYPE_CHECKING:
    import torch

__all__ = ["HeadSettings", "Layers", "TrainedHeads", "forward", "score_heads", "train_heads"]

#: Class numbers of a batch, and the numbers of its rows (None where the source gives none) → weights (n, groups).
RowWeight = Callable[[Any, Any], Any]

#: Scores of a group for one batch stay below this many numbers: 128 MB.
_WIDEST = 32_000_000


@dataclass(frozen=True)
class TrainedHeads:
    """What a run came to, head by head in the order of the settings.

    Parameters
    ----------
    layers : list of Layers
        Weights and biases of each head, for standardised rows.
    train_loss : ndarray of shape (epochs, n_heads)
        Mean training loss (label smoothing apart) of each epoch; NaN once a head was frozen.
    loss, accuracy : ndarray of shape (n_heads,)
        On the validation rows, of the weights that are given; inf and 0 for a head that diverged, NaN without rows.
    n_iter : ndarray of int of shape (n_heads,)
        Epochs after which the weights were taken.
    """

    layers: list[Layers]
    train_loss: np.ndarray
    loss: np.ndarray
    accuracy: np.ndarray
    n_iter: np.ndarray


def train_heads(
    batches: BatchSource,
    heads: Sequence[HeadSettings],
    *,
    n_features: int,
    n_classes: int,
    epochs: int,
    steps_per_epoch: int,
    schedule_epochs: int | None = None,
    row_weight: RowWeight | None = None,
    shift: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    validation: Callable[[], Iterable[tuple[Any, ...]]] | None = None,
    validation_weight: RowWeight | None = None,
    patience: int | None = None,
    optimizer: str = "adamw",
    activation: str = "gelu",
    seed: int = 0,
    device: str = "cpu",
    batch_size: int = 256,
) -> TrainedHeads:
    """Train all heads in one pass per epoch over the same batches.

    Parameters
    ----------
    batches : callable
        epoch → iterable of (X, codes) or (X, codes, rows): codes (n, n_features) of any float type, as NumPy or torch;
        class numbers in 0 … n_classes − 1; numbers of the rows, where `row_weight` goes by them.
    heads : sequence of HeadSettings
        The heads; equal ones of other folds differ in `group`.
    n_features, n_classes : int
        Shape of the problem.
    epochs : int
        Passes over the batches.
    steps_per_epoch : int
        Batches of an epoch, for the cosine; too small a number ends at rate 0 early.
    schedule_epochs : int, default=None
        Epochs after which the cosine is at 0; None: `epochs`.
    row_weight : callable, default=None
        (class numbers, numbers of rows or None) → weights (n, groups), 0 or more, of mean 1 over those above 0. A
        head takes the column `group`; a row of weight 0 does not exist for it.
    shift, scale : ndarray of shape (n_features,), default=None
        Rows are standardised to (X − shift) / scale.
    validation : callable, default=None
        Returns the batches to score on.
    validation_weight : callable, default=None
        As `row_weight`, for the validation rows.
    patience : int, default=None
        Score after each epoch, keep each head's best weights, and freeze it when so many epochs in a row brought no
        smaller loss. None: score once, after the last epoch.
    optimizer : {"adamw", "sgd"}, default="adamw"
        AdamW, or SGD with momentum 0.9; both with decoupled weight decay and a cosine to 0.
    activation : {"gelu", "relu"}, default="gelu"
        Of hidden layers.
    seed : int, default=0
        Of dropout.
    device : str, default="cpu"
        A torch device.
    batch_size : int, default=256
        Largest batch to come; bounds how many heads share one product.

    Returns
    -------
    TrainedHeads

    Raises
    ------
    HeadError
        A setting out of range, class numbers outside the classes, batches of another width, or none at all.

    Notes
    -----
    A head's start, its dropout masks and its steps depend on its own settings, `seed` and the batches alone: trained
    alone it has the same weights up to rounding (products of another width sum in another order). Without dropout a
    head with row weights 0 and 1 equals one that is given the same batches without the rows of weight 0.

    Examples
    --------
    >>> from featcache.solvers.batches import shuffled_batches
    >>> X, y = np.asarray([[0.0], [1.0], [4.0], [5.0]]), np.asarray([0, 0, 1, 1])
    >>> heads = [HeadSettings(learning_rate=r) for r in (0.01, 0.1)]
    >>> source = shuffled_batches(X - 2.5, y, 4)
    >>> run = train_heads(source, heads, n_features=1, n_classes=2, epochs=50, steps_per_epoch=1)
    >>> len(run.layers), bool(run.train_loss[-1, 1] < run.train_loss[-1, 0])
    (2, True)
    """
    import torch

    check_heads(heads, n_features, n_classes, epochs, optimizer, activation)
    rule = Rule(optimizer, activation, seed=seed)
    run = _Run(heads, n_features, n_classes, rule, device, batch_size, shift, scale)
    train_loss = np.full((epochs, len(heads)), np.nan)
    total, done = max(1, (schedule_epochs or epochs) * steps_per_epoch), 0
    watch = _Watch(len(heads), patience)
    with torch.no_grad():
        for epoch in range(epochs):
            seen = 0
            sums = {id(group): torch.zeros(len(group.numbers), device=device) for group in run.groups}
            for batch in batches(epoch):
                X, codes, weight = run.prepare(batch, row_weight)
                share = 0.5 * (1.0 + math.cos(math.pi * min(done / total, 1.0)))
                for group in run.groups:
                    sums[id(group)] += group.step(X, codes, weight, share)
                done, seen = done + 1, seen + 1
            if not seen:
                raise HeadError(f"heads: epoch {epoch} gave no batch; the source must give a new iterator each epoch")
            for group in run.groups:
                train_loss[epoch, group.numbers] = (sums[id(group)] / seen).cpu().numpy()
            if validation is not None and patience is not None:
                watch.after(epoch, run, *run.score(validation(), validation_weight))
                if not run.groups:
                    break
        run.retire_all()
        loss, accuracy, n_iter = watch.loss, watch.accuracy, watch.n_iter
        if patience is None or validation is None:
            n_iter = np.full(len(heads), epochs)
            if validation is not None:
                loss, accuracy = _scores(run.layers, heads, validation(), validation_weight, rule, device, shift, scale)
    return TrainedHeads(run.layers, train_loss[: epoch + 1], loss, accuracy, n_iter)


def score_heads(
    layers: Sequence[Layers],
    batches: Iterable[tuple[Any, ...]],
    *,
    activation: str = "gelu",
    shift: np.ndarray | None = None,
    scale: np.ndarray | None = None,
    row_weight: RowWeight | None = None,
    groups: Sequence[int] | None = None,
    device: str = "cpu",
) -> tuple[np.ndarray, np.ndarray]:
    """Return mean log loss and accuracy (n_heads,) of all heads in one pass over batches; see `train_heads`."""
    heads = [
        HeadSettings(hidden=one[0][0].shape[1] if len(one) > 1 else 0, group=groups[i] if groups is not None else 0)
        for i, one in enumerate(layers)
    ]
    return _scores(layers, heads, batches, row_weight, Rule(activation=activation), device, shift, scale)


def _scores(
    layers: Sequence[Layers],
    heads: Sequence[HeadSettings],
    batches: Iterable[tuple[Any, ...]],
    row_weight: RowWeight | None,
    rule: Rule,
    device: str,
    shift: np.ndarray | None,
    scale: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    import torch

    with torch.no_grad():
        run = _Run(heads, layers[0][0][0].shape[0], layers[0][-1][0].shape[1], rule, device, 4096, shift, scale)
        for group in run.groups:
            for i, number in enumerate(group.numbers):
                group.load(i, layers[number])
        return run.score(batches, row_weight)


def forward(X: np.ndarray, layers: Layers, activation: str = "gelu") -> np.ndarray:
    """Return the scores (n, n_classes) of one head for standardised rows, in X's dtype; NumPy only."""
    for i, (weights, bias) in enumerate(layers):
        X = X @ weights.astype(X.dtype, copy=False) + bias.astype(X.dtype, copy=False)
        if i + 1 < len(layers):
            X = _gelu(X) if activation == "gelu" else np.maximum(X, 0)
    return X


def _gelu(z: np.ndarray) -> np.ndarray:
    from scipy.special import ndtr

    return z * ndtr(z)


class _Run:
    """The groups of a run, and batches as tensors."""

    def __init__(
        self,
        heads: Sequence[HeadSettings],
        n_features: int,
        n_classes: int,
        rule: Rule,
        device: str,
        batch_size: int,
        shift: np.ndarray | None,
        scale: np.ndarray | None,
    ) -> None:
        self.n_features, self.n_classes, self.device, self.n_heads = n_features, n_classes, device, len(heads)
        widest = max([n_classes, *(head.hidden for head in heads)])
        largest = max(1, _WIDEST // (batch_size * widest))
        self.groups = [Group(g, heads, n_features, n_classes, rule, device) for g in grouped(heads, largest)]
        self.layers: list[Layers] = [[] for _ in heads]
        self.shift, self.scale = shift, scale

    def prepare(
        self, batch: tuple[Any, ...], row_weight: RowWeight | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Return standardised rows, class numbers and weights on the device."""
        import torch

        X = torch.as_tensor(batch[0]).to(self.device)
        codes = torch.as_tensor(batch[1]).to(self.device).long()
        if X.ndim != 2 or X.shape[1] != self.n_features:
            raise HeadError(f"batch: expected rows of {self.n_features} features, got shape {tuple(X.shape)}")
        if len(codes) and (int(codes.min()) < 0 or int(codes.max()) >= self.n_classes):
            wrong = int(codes.max() if codes.max() >= self.n_classes else codes.min())
            raise HeadError(f"batch: expected class numbers from 0 to {self.n_classes - 1}, got {wrong}")
        X = X if X.dtype == torch.float64 else X.float()
        if self.shift is not None:
            X = X - torch.as_tensor(self.shift, dtype=X.dtype, device=self.device)
        if self.scale is not None:
            X = X / torch.as_tensor(self.scale, dtype=X.dtype, device=self.device)
        if row_weight is None:
            return X.float(), codes, None
        weight = row_weight(np.asarray(batch[1]), np.asarray(batch[2]) if len(batch) > 2 else None)
        return X.float(), codes, torch.as_tensor(weight, dtype=torch.float32, device=self.device)

    def score(self, batches: Iterable[tuple[Any, ...]], row_weight: RowWeight | None) -> tuple[np.ndarray, np.ndarray]:
        """Return weighted mean loss and accuracy (n_heads,) of the heads that are still in a group; NaN for others."""
        import torch

        loss, right, total = (np.zeros(self.n_heads) for _ in range(3))
        for batch in batches:
            X, codes, weight = self.prepare(batch, row_weight)
            for group in self.groups:
                step = max(1, _WIDEST // (4 * len(group.numbers) * max(group.hidden, self.n_classes)))
                for at in range(0, len(X), step):
                    scores, true = group.scores(X[at : at + step]), codes[at : at + step]
                    rows = torch.arange(len(true), device=true.device)
                    lost = torch.logsumexp(scores, dim=2) - scores[rows, :, true]
                    hit = (scores.argmax(dim=2) == true[:, None]).double()
                    w = torch.ones_like(hit) if weight is None else weight[at : at + step][:, group.fold].double()
                    loss[group.numbers] += torch.where(w > 0, lost.double() * w, 0.0).sum(dim=0).cpu().numpy()
                    right[group.numbers] += (hit * w).sum(dim=0).cpu().numpy()
                    total[group.numbers] += w.sum(dim=0).cpu().numpy()
        there = np.where(total > 0, total, np.nan)
        loss, right = loss / there, right / there
        broken = ~np.isfinite(loss) & (total > 0)
        return np.where(broken, np.inf, loss), np.where(broken, 0.0, right)

    def retire_all(self) -> None:
        """Take the layers of all heads that are still in a group."""
        for group in self.groups:
            for i, number in enumerate(group.numbers):
                self.layers[number] = group.layers(i)


class _Watch:
    """Early stopping, head by head."""

    def __init__(self, n_heads: int, patience: int | None) -> None:
        self.patience = patience
        self.loss, self.accuracy = np.full(n_heads, np.nan), np.full(n_heads, np.nan)
        self.n_iter, self.waited = np.zeros(n_heads, dtype=np.int64), np.zeros(n_heads, dtype=np.int64)

    def after(self, epoch: int, run: _Run, loss: np.ndarray, accuracy: np.ndarray) -> None:
        """Keep what became better, and freeze heads that have waited for too long."""
        import torch

        assert self.patience is not None
        for group in run.groups:
            numbers = np.asarray(group.numbers)
            better = ~(loss[numbers] >= self.loss[numbers])  # NaN before the first epoch
            changed = numbers[better]
            self.loss[changed], self.accuracy[changed], self.n_iter[changed] = (
                loss[changed],
                accuracy[changed],
                epoch + 1,
            )
            self.waited[numbers] = np.where(better, 0, self.waited[numbers] + 1)
            group.remember(torch.as_tensor(better, device=run.device))
            stays = self.waited[numbers] < self.patience
            for i in np.flatnonzero(~stays):
                run.layers[numbers[i]] = group.layers(int(i))
            if not stays.all():
                group.leave_out(torch.as_tensor(stays, device=run.device))
        run.groups = [group for group in run.groups if group.numbers]
