"""Which layers must stay in float32 where a whole network in low precision strays too far from the exact codes.

Errors of single layers are nearly additive, and most of the sum usually comes from a few layers. Each layer's share is
measured on some of the user's images by computing that layer alone in low precision; then layers are kept in float32 in
the order of error saved per cost until the prediction holds, and the result is verified on all images that were given.
Costs come from counts, not from clocks, so the same images give the same answer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from . import fused
from .crew import crew
from .engines import DTYPES, Engines

__all__ = ["Wish", "choose_layers", "worst_cosine"]

#: Images at a time when codes are compared; and, where errors are measured layer by layer, at a time and in all.
_CHUNK, _PROBED, _PROBES = 4, 2, 4
#: Unseen images may be worse than those measured: only so much of what the tolerance allows is used.
_RESERVE = 0.8
_TRIES = 8
#: What float32 costs more than low precision, in products of two numbers: per value that a layer writes; and what it
#: costs to cast a value.
_PER_VALUE, _PER_CAST = 12.0, 20.0

Prepare = Callable[[np.ndarray, torch.dtype], Tensor]


@dataclass(frozen=True)
class Wish:
    """What is asked of the low precision.

    Attributes
    ----------
    low : str
        "bf16" or "fp16".
    tolerance : float
        Smallest centred cosine between a code and the exact one.
    """

    low: str
    tolerance: float

    @property
    def allowed(self) -> float:
        """Largest 1 - cosine, with the reserve taken off."""
        return (1.0 - self.tolerance) * _RESERVE


def choose_layers(
    engines: Engines, pixels: np.ndarray, exact: Mapping[str, np.ndarray], prepare: Prepare, wish: Wish
) -> list[str] | None:
    """Choose the layers to keep in float32.

    Parameters
    ----------
    engines : Engines
        Of a network that could be traced.
    pixels : ndarray of uint8, shape (N, H, W, C)
        The user's images.
    exact : mapping of str to ndarray
        Their float32 codes.
    prepare : callable
        ``prepare(pixels, dtype)`` → the network's input.
    wish : Wish
        The precision, and how exact it must be.

    Returns
    -------
    list of str or None
        Names of layers in the order of execution, none where all may be low; None where even many do not help.
    """
    trial = _Trial(engines, pixels, exact, prepare, wish)
    if trial.error([]) <= wish.allowed:
        return []
    shares, names = trial.shares()
    costs = trial.costs(names)
    goal = 2.0 * wish.allowed  # a squared relative error is twice what it takes from the cosine
    for _ in range(_TRIES):
        chosen = _chosen(shares, costs, goal)
        if len(chosen) == len(names):
            return None
        kept = [name for i, name in enumerate(names) if i in chosen]
        error = trial.error(kept)
        if error <= wish.allowed:
            return kept
        goal *= min(0.8, max(0.3, wish.allowed / max(error, 1e-12)))
    return None


def _chosen(shares: np.ndarray, costs: Sequence[_Cost], goal: float) -> set[int]:
    """Return the layers to keep: by error per cost, until no image's remaining errors exceed the goal."""
    left, chosen = shares.sum(axis=1), set[int]()
    while left.max() > goal and len(chosen) < len(costs):
        rest = [i for i in range(len(costs)) if i not in chosen]
        worst = shares[int(left.argmax())]
        best = max(rest, key=lambda i: (worst[i] / _marginal(costs, i, chosen), -i))
        left = left - shares[:, best]
        chosen.add(best)
    # What was chosen early may not be needed any more: given up where that saves most.
    for i in sorted(chosen, key=lambda i: -_marginal(costs, i, chosen - {i})):
        if (left + shares[:, i]).max() <= goal:
            left, chosen = left + shares[:, i], chosen - {i}
    return chosen


@dataclass(frozen=True)
class _Cost:
    """What float32 costs more in one layer, and how many values it takes and gives."""

    own: float
    taken: float
    given: float


def _marginal(costs: Sequence[_Cost], i: int, chosen: set[int]) -> float:
    """Return what it costs to keep one more layer, where its neighbours in the order of execution may be kept."""
    before = 0.0 if i == 0 else -costs[i].taken if i - 1 in chosen else costs[i].taken
    after = -costs[i].given if i + 1 in chosen else costs[i].given
    return max(costs[i].own + _PER_CAST * (before + after), 0.1 * costs[i].own)


class _Trial:
    """The network in float32 and low precision, and the images it is tried on."""

    def __init__(
        self, engines: Engines, pixels: np.ndarray, exact: Mapping[str, np.ndarray], prepare: Prepare, wish: Wish
    ) -> None:
        self.engines, self.pixels, self.exact, self.prepare, self.wish = engines, pixels, exact, prepare, wish
        self.shape = (_CHUNK, pixels.shape[3], pixels.shape[1], pixels.shape[2])
        self.centres = {node: rows.astype(np.float64).mean(axis=0) for node, rows in exact.items()}

    def _built(self, low: str, kept: Sequence[str] = ()) -> fused.Rewritten:
        return self.engines.rewritten(DTYPES[low], kept, self.shape)

    def error(self, kept: Sequence[str]) -> float:
        """Return the worst 1 - cosine over all images and nodes with these layers in float32."""
        module = self._built(self.wish.low, kept)

        def run(start: int) -> dict[str, np.ndarray]:
            part = self.pixels[start : start + _CHUNK]
            with torch.inference_mode():
                rows = module(self.prepare(_padded(part), module.input_dtype))
            return {node: value[: len(part)].float().numpy() for node, value in rows.items()}

        parts = list(crew(torch.get_num_threads()).map(run, range(0, len(self.pixels), _CHUNK)))
        return 1.0 - min(
            worst_cosine(self.exact[node], np.concatenate([part[node] for part in parts]), self.centres[node])
            for node in self.exact
        )

    def shares(self) -> tuple[np.ndarray, list[str]]:
        """Return the squared relative error (images, layers) that each layer alone causes, and the layers' names."""
        exact, low = self._built("fp32"), self._built(self.wish.low)
        names = list(dict.fromkeys(exact.places.values()))
        images = min(_PROBES, len(self.pixels))
        starts = range(0, images, _PROBED)
        swaps = _swaps(exact, low, DTYPES[self.wish.low])

        def run(start: int) -> np.ndarray:
            part = self.pixels[start : min(start + _PROBED, images)]
            x = self.prepare(part, torch.float32)
            with torch.inference_mode():
                found = _Walk(exact, swaps).errors(x, names, self.centres)
            return found[: len(part)]

        return np.concatenate(list(crew(torch.get_num_threads()).map(run, starts))), names

    def costs(self, names: Sequence[str]) -> list[_Cost]:
        """Return what it costs to keep each layer in float32."""
        rows, modules = self.engines.layer_rows(), self.engines.layer_modules(names)
        given = [float(np.prod(rows.get(name, (1,)))) for name in names]
        taken = [float(np.prod(self.shape[1:])), *given[:-1]]
        own = [_own_cost(modules[name], rows.get(name)) for name in names]
        return [_Cost(*parts) for parts in zip(own, taken, given, strict=True)]


def _own_cost(module: nn.Module, row: tuple[int, ...] | None) -> float:
    weights = sum(p.numel() for p in module.parameters())
    positions = float(np.prod(row[1:])) if row and isinstance(module, nn.Conv2d) else 1.0
    return 1.0 + weights * positions + _PER_VALUE * float(np.prod(row or (1,)))


def _swaps(exact: fused.Rewritten, low: fused.Rewritten, dtype: torch.dtype) -> dict[str, Callable[..., Any]]:
    """Return for each layer's module of the float32 trunk what computes it in low precision."""
    others: dict[str, list[str]] = {}
    for place, name in low.places.items():
        others.setdefault(name, []).append(place)
    found: dict[str, Callable[..., Any]] = {}
    for place, name in exact.places.items():
        same = others[name]  # several where a layer is called several times, then in the same order
        found[place] = _casting(low.trunk.get_submodule(same.pop(0) if len(same) > 1 else same[0]), dtype)
    return found


def _casting(module: nn.Module, dtype: torch.dtype) -> Callable[..., Any]:
    def call(*inputs: Tensor) -> Tensor:
        return module(*(x.to(dtype) for x in inputs)).float()

    return call


class _Walk(fx.Interpreter):
    """Goes through the float32 trunk once, and from each layer on once more with that layer in low precision."""

    def __init__(self, exact: fused.Rewritten, swaps: Mapping[str, Callable[..., Any]]) -> None:
        super().__init__(exact.trunk, garbage_collect_values=False)
        self.exact, self.swaps = exact, swaps
        self.line = list(exact.trunk.graph.nodes)
        self.last = {n: i for i, node in enumerate(self.line) for n in node.all_input_nodes}

    def errors(self, x: Tensor, names: Sequence[str], centres: Mapping[str, np.ndarray]) -> np.ndarray:
        """Return the squared relative errors (images, layers)."""
        self.args_iter = iter((x,))
        ends: list[tuple[str, dict[str, np.ndarray]]] = []
        env: dict[fx.Node, Any] = {}
        for i, node in enumerate(self.line[:-1]):
            place = str(node.target)
            if node.op == "call_module" and place in self.swaps:
                ends.append((self.exact.places[place], self._rest(i, dict(env))))
            env = self._stepped(node, i, env)
        exact = self._codes(env)
        found = np.zeros((len(x), len(names)))
        for name, codes in ends:
            found[:, names.index(name)] += np.max([_error(exact[n], codes[n], centres[n]) for n in exact], axis=0)
        return found

    def _rest(self, start: int, env: dict[fx.Node, Any]) -> dict[str, np.ndarray]:
        """Run from a layer on with that layer swapped; operations in place must not reach the true values."""
        env = {n: v.clone() if isinstance(v, Tensor) else v for n, v in env.items()}
        for i, node in enumerate(self.line[start:-1], start):
            env = self._stepped(node, i, env, swapped=i == start)
        return self._codes(env)

    def _stepped(self, node: fx.Node, i: int, env: dict[fx.Node, Any], swapped: bool = False) -> dict[fx.Node, Any]:
        self.env = env
        if swapped:
            args, _ = self.fetch_args_kwargs_from_env(node)
            env[node] = self.swaps[str(node.target)](*args)
        else:
            env[node] = self.run_node(node)
        return {n: v for n, v in env.items() if self.last.get(n, -1) > i}

    def _codes(self, env: dict[fx.Node, Any]) -> dict[str, np.ndarray]:
        values = fx.map_arg(self.line[-1].args[0], lambda n: env[n])
        return {node: rows.float().numpy() for node, rows in self.exact.pooled(values).items()}


def _error(exact: np.ndarray, other: np.ndarray, centre: np.ndarray) -> np.ndarray:
    a, b = (v.astype(np.float64).reshape(len(v), -1) for v in (exact, other))
    size = np.maximum(((a - centre.ravel()) ** 2).sum(axis=1), 1e-12 * np.maximum((a**2).sum(axis=1), 1e-30))
    return np.nan_to_num(((a - b) ** 2).sum(axis=1) / size, nan=np.inf, posinf=1e6)


def worst_cosine(exact: np.ndarray, other: np.ndarray, centre: np.ndarray) -> float:
    """Return the smallest cosine between rows of codes, centred; rows that centring leaves nothing of count as 1."""
    a, b = (v.astype(np.float64).reshape(len(v), -1) for v in (exact, other))
    if not np.isfinite(b).all():
        return -1.0
    sizes, distances = np.linalg.norm(a, axis=1), np.linalg.norm(a - b, axis=1)
    a, b = a - centre.ravel(), b - centre.ravel()
    tiny = np.linalg.norm(a, axis=1) <= 1e-3 * sizes
    norms = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    cosine = (a * b).sum(axis=1) / np.where(norms > 0, norms, 1.0)
    near = np.where(distances <= 1e-2 * np.maximum(sizes, 1e-30), 1.0, -1.0)
    return float(np.where(tiny, near, cosine).min(initial=1.0))


def _padded(pixels: np.ndarray) -> np.ndarray:
    surplus = _CHUNK - len(pixels)
    return np.concatenate([pixels, np.repeat(pixels[-1:], surplus, axis=0)]) if surplus else pixels
