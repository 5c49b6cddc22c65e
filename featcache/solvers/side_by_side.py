"""Heads of one shape side by side: their parameters in shared tensors, one wide product for all of them.

A linear head is one column block of a wide matrix (d, heads, classes); the hidden layers of MLPs are column blocks of
another, and only their second layers are a batched product. No head sees another's numbers, so one that diverges to
NaN harms itself alone. Gradients are in closed form: softmax minus target.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import HeadError

if TYPE_CHECKING:
    import torch

__all__ = ["Group", "HeadSettings", "Layers", "Rule", "check_heads", "grouped"]

#: Added to AdamW's denominator. At the usual 1e-8 a gradient that is zero but for rounding still moves a weight by
#: a fair part of the rate, and how many heads share a product would be seen in the weights.
_EPS = 1e-7

#: Weights (inputs, outputs) and biases (outputs,) of each layer, float32, for standardised rows.
Layers = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class HeadSettings:
    """What one head is and how it is trained.

    Parameters
    ----------
    learning_rate : float, default=1e-3
        At the first step; it falls to 0 along a cosine.
    weight_decay : float, default=1e-2
        Decoupled: each step multiplies the weights, not the biases, by 1 − rate · weight_decay.
    label_smoothing : float, default=0.0
        Share of the target spread over all classes, in [0, 1).
    dropout : float, default=0.0
        Share of the inputs (linear heads) or hidden units (MLPs) left out in each step, in [0, 1).
    hidden : int, default=0
        Width of the hidden layer; 0 is a linear softmax head.
    group : int, default=0
        Which column of the row weights is this head's: its fold.
    seed : int, default=0
        Of the first layer's random start; heads of equal seed and width start alike. Linear heads start at 0.
    columns : tuple of int, default=None
        (first, end) of the features it sees; None: all.
    """

    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    label_smoothing: float = 0.0
    dropout: float = 0.0
    hidden: int = 0
    group: int = 0
    seed: int = 0
    columns: tuple[int, int] | None = None


@dataclass(frozen=True)
class Rule:
    """What all heads of a run share: "adamw" or "sgd", its decay rates, the activation, and the seed of dropout."""

    optimizer: str = "adamw"
    activation: str = "gelu"
    momentum: float = 0.9
    beta2: float = 0.999
    seed: int = 0

    def activate(self, z: torch.Tensor) -> torch.Tensor:
        """Apply the activation."""
        import torch

        return torch.nn.functional.gelu(z) if self.activation == "gelu" else torch.relu(z)


def check_heads(
    heads: Sequence[HeadSettings], n_features: int, n_classes: int, epochs: int, optimizer: str, activation: str
) -> None:
    """Raise HeadError where a setting is out of range."""
    if not heads:
        raise HeadError("heads: expected one or more settings, got none")
    if epochs < 1 or n_classes < 1 or n_features < 1:
        raise HeadError(
            f"heads: expected epochs, classes and features of 1 or more, got {epochs}, {n_classes} and {n_features}"
        )
    if optimizer not in ("adamw", "sgd"):
        raise HeadError(f"optimizer: expected 'adamw' or 'sgd', got {optimizer!r}")
    if activation not in ("gelu", "relu"):
        raise HeadError(f"activation: expected 'gelu' or 'relu', got {activation!r}")
    for i, head in enumerate(heads):
        for name, least, below in (
            ("learning_rate", 0.0, math.inf),
            ("weight_decay", 0.0, math.inf),
            ("label_smoothing", 0.0, 1.0),
            ("dropout", 0.0, 1.0),
        ):
            value = getattr(head, name)
            if not least <= value < below:
                raise HeadError(f"head {i}: expected {name} from {least} to below {below}, got {value}")
        if head.hidden < 0 or head.hidden != int(head.hidden) or head.seed < 0 or head.group < 0:
            raise HeadError(f"head {i}: expected hidden, seed and group of 0 or more, got {head}")
        if head.columns is not None and not 0 <= head.columns[0] < head.columns[1] <= n_features:
            raise HeadError(f"head {i}: expected columns within 0 … {n_features}, got {head.columns}")


def grouped(heads: Sequence[HeadSettings], largest: int) -> list[list[int]]:
    """Return the numbers of the heads that can share a product; no group is larger than `largest`."""
    found: dict[Any, list[int]] = {}
    for number, head in enumerate(heads):
        # Dropout of the inputs makes other inputs; that of hidden units does not.
        found.setdefault((head.hidden, head.columns, 0.0 if head.hidden else head.dropout), []).append(number)
    return [g[i : i + largest] for g in found.values() for i in range(0, len(g), largest)]


class Group:
    """Heads of equal hidden width and equal inputs, trained and scored together.

    Parameters
    ----------
    numbers : list of int
        Which heads of the run these are.
    heads : sequence of HeadSettings
        All heads of the run.
    n_features, n_classes : int
        Shape of the problem.
    rule : Rule
        Optimiser and activation.
    device : str
        A torch device.
    """

    def __init__(
        self,
        numbers: list[int],
        heads: Sequence[HeadSettings],
        n_features: int,
        n_classes: int,
        rule: Rule,
        device: str,
    ) -> None:
        import torch

        self.numbers, self.heads = list(numbers), [heads[i] for i in numbers]
        self.rule, self.n_features, self.device = rule, n_features, device
        self.hidden, self.columns = self.heads[0].hidden, self.heads[0].columns
        self.steps = 0
        start, end = self.columns or (0, n_features)
        d, h, width = end - start, len(numbers), self.hidden
        # The head's axis is 1 in "wide" (inputs, heads, outputs) and 0 in all others.
        shapes = {"wide": (d, h, width or n_classes), "bias": (h, width or n_classes)}
        if width:
            shapes |= {"second": (h, width, n_classes), "second_bias": (h, n_classes)}
        self.params = {name: torch.zeros(shape, device=device) for name, shape in shapes.items()}
        self.state = {
            kind: {name: torch.zeros_like(p) for name, p in self.params.items()}
            for kind in (("first", "square") if rule.optimizer == "adamw" else ("first",))
        }
        self.best: dict[str, torch.Tensor] = {}
        if width:
            for i, head in enumerate(self.heads):
                draw = torch.Generator().manual_seed(head.seed)
                start_values = torch.randn((d, width), generator=draw) * math.sqrt(2.0 / d)
                self.params["wide"][:, i] = start_values.to(device)
        self._settle()

    def _settle(self) -> None:
        """Lay the settings of the heads out as tensors."""
        import torch

        column = lambda name: torch.tensor(  # noqa: E731
            [getattr(head, name) for head in self.heads], dtype=torch.float32, device=self.device
        )
        self.rate, self.decay = column("learning_rate"), column("weight_decay")
        self.smoothing, self.keep = column("label_smoothing"), 1.0 - column("dropout")
        self.fold = torch.tensor([head.group for head in self.heads], device=self.device)
        self.smooth = bool((self.smoothing > 0).any())
        self.drops = bool((self.keep < 1).any())

    # -- forward ---------------------------------------------------------------------------------------------------

    def _inputs(self, X: torch.Tensor) -> torch.Tensor:
        return X if self.columns is None else X[:, self.columns[0] : self.columns[1]]

    def _wide(self, X: torch.Tensor) -> torch.Tensor:
        wide = self.params["wide"]
        out = (X @ wide.reshape(len(wide), -1)).view(len(X), len(self.heads), -1)
        return out.add_(self.params["bias"])

    def _second(self, active: torch.Tensor) -> torch.Tensor:
        """Map hidden units (heads, n, width) to scores (n, heads, classes)."""
        import torch

        return torch.baddbmm(self.params["second_bias"][:, None], active, self.params["second"]).transpose(0, 1)

    def scores(self, X: torch.Tensor) -> torch.Tensor:
        """Return the scores (n, heads, n_classes) of standardised rows X (n, n_features)."""
        out = self._wide(self._inputs(X))
        return self._second(self.rule.activate(out).transpose(0, 1)) if self.hidden else out

    # -- one step --------------------------------------------------------------------------------------------------

    def step(self, X: torch.Tensor, codes: torch.Tensor, weight: torch.Tensor | None, share: float) -> torch.Tensor:
        """Make one step at `share` of each head's rate; return each head's mean loss before it, shape (heads,)."""
        import torch

        X = self._inputs(X)
        if not self.hidden:
            if self.drops:
                X = X * self._mask(X.shape, self.keep[:1])
            error, loss = self._error(self._wide(X), codes, weight)
            grads = {"wide": X.T @ error.view(len(X), -1), "bias": error.sum(dim=0)}
        else:
            z = self._wide(X).requires_grad_(True)
            with torch.enable_grad():
                units = self.rule.activate(z)
                if self.drops:
                    units = units * self._mask((len(X), 1, self.hidden), self.keep[:, None])
            active = units.detach().transpose(0, 1)
            error, loss = self._error(self._second(active), codes, weight)
            error = error.transpose(0, 1)
            back = torch.bmm(error, self.params["second"].transpose(1, 2)).transpose(0, 1)
            inner = torch.autograd.grad(units, z, back)[0]
            grads = {
                "wide": X.T @ inner.reshape(len(X), -1),
                "bias": inner.sum(dim=0),
                "second": torch.bmm(active.transpose(1, 2), error),
                "second_bias": error.sum(dim=1),
            }
        self._update(grads, share)
        return loss

    def _mask(self, shape: Sequence[int], keep: torch.Tensor) -> torch.Tensor:
        """Return 1/keep where a unit stays and 0 where not; it depends on seed and step, on no other head."""
        import torch

        words = np.random.SeedSequence([self.rule.seed, self.steps, shape[-1]]).generate_state(2)
        draw = torch.Generator(device=self.device).manual_seed(int(words[0]) << 32 | int(words[1]))
        return (torch.rand(tuple(shape), generator=draw, device=self.device) < keep) / keep

    def _error(
        self, scores: torch.Tensor, codes: torch.Tensor, weight: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the gradient of the mean loss at the scores, (n, heads, classes), and the loss (heads,)."""
        import torch

        # In place: torch.softmax would take a second table of all scores.
        error = (scores - scores.amax(dim=2, keepdim=True)).exp_()
        error.div_(error.sum(dim=2, keepdim=True))
        rows = torch.arange(len(codes), device=codes.device)
        loss = -error[rows, :, codes].clamp_min(1e-30).log_()
        error[rows, :, codes] -= 1.0 - self.smoothing
        if self.smooth:
            error -= (self.smoothing / error.shape[2])[:, None]
        if weight is None:
            return error.mul_(1.0 / max(len(codes), 1)), loss.mean(dim=0)
        weight = weight[:, self.fold]
        # Rows of weight 0 do not exist: not even in the number that the sum is divided by.
        weight = weight / (weight > 0).sum(dim=0).clamp_min(1)
        return error.mul_(weight[:, :, None]), (loss * weight).sum(dim=0)

    def _update(self, grads: dict[str, torch.Tensor], share: float) -> None:
        self.steps += 1
        for name, grad in grads.items():
            param, first = self.params[name], self.state["first"][name]
            by_head = (-1, 1, 1) if name == "second" else (-1, 1)
            rate = (self.rate * share).view(by_head)
            if name in ("wide", "second"):
                param.mul_((1.0 - rate * self.decay.view(by_head)).clamp_min_(0.0))
            grad = grad.view(param.shape)
            if self.rule.optimizer == "sgd":
                param.addcmul_(first.mul_(self.rule.momentum).add_(grad), -rate)
                continue
            square = self.state["square"][name]
            first.lerp_(grad, 1.0 - self.rule.momentum)
            square.mul_(self.rule.beta2).addcmul_(grad, grad, value=1.0 - self.rule.beta2)
            move = square.sqrt().mul_(1.0 / math.sqrt(1.0 - self.rule.beta2**self.steps)).add_(_EPS)
            param.addcmul_(first.div(move), rate * (-1.0 / (1.0 - self.rule.momentum**self.steps)))

    # -- keeping and leaving -----------------------------------------------------------------------------------------

    def remember(self, better: torch.Tensor) -> None:
        """Keep the parameters of the heads for which `better` (heads,) is true, to be given by `layers`."""
        if not self.best:
            self.best = {name: p.clone() for name, p in self.params.items()}
        for name, p in self.params.items():
            if name == "wide":
                self.best[name][:, better] = p[:, better]
            else:
                self.best[name][better] = p[better]

    def leave_out(self, stays: torch.Tensor) -> None:
        """Go on with the heads for which `stays` (heads,) is true."""
        for table in (self.params, *self.state.values(), self.best):
            for name, p in table.items():
                table[name] = (p[:, stays] if name == "wide" else p[stays]).contiguous()
        kept = [i for i, stay in enumerate(stays.tolist()) if stay]
        self.numbers, self.heads = [self.numbers[i] for i in kept], [self.heads[i] for i in kept]
        if kept:
            self._settle()

    def layers(self, i: int) -> Layers:
        """Return the layers of the group's head i: its best where some were remembered, else its last."""
        table = {name: p.cpu() for name, p in (self.best or self.params).items()}
        first = np.zeros((self.n_features, table["bias"].shape[1]), np.float32)
        start, end = self.columns or (0, self.n_features)
        first[start:end] = table["wide"][:, i].numpy()
        made = [(first, table["bias"][i].numpy().copy())]
        if self.hidden:
            made.append((table["second"][i].numpy().copy(), table["second_bias"][i].numpy().copy()))
        return made

    def load(self, i: int, layers: Layers) -> None:
        """Set the parameters of the group's head i."""
        import torch

        start, end = self.columns or (0, self.n_features)
        self.params["wide"][:, i] = torch.as_tensor(layers[0][0][start:end], device=self.device)
        self.params["bias"][i] = torch.as_tensor(layers[0][1], device=self.device)
        if self.hidden:
            self.params["second"][i] = torch.as_tensor(layers[1][0], device=self.device)
            self.params["second_bias"][i] = torch.as_tensor(layers[1][1], device=self.device)
