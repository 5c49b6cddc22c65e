"""The fused engine: a cut network rewritten for one core, each convolution one call of oneDNN.

Batch norms are folded into the weights (in float64), the weights packed once for the shape they will see, and
activations and residual additions done while a convolution's results are still in registers. What is not known here is
left as it is. The same rewriting gives mixed precision: each layer has a dtype, and values are cast where it changes.

Nothing is fused across a value that something else needs as well (a node that is returned has a second user: the clone
or the output), and nothing is moved: a fused layer stands where its convolution stood. A sum takes the memory of its
other side where nothing reads that any more.
"""

from __future__ import annotations

import copy
import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import cut
from .packing import Activation, PackedConv, PackedLinear, activation_of, folded
from .pooling import MaxPool

__all__ = ["Rewritten", "layers", "rewritten"]

_ADDITIONS = (operator.add, operator.iadd, torch.add)
_IN_PLACE = (operator.iadd, operator.isub, operator.imul, operator.itruediv)
_NO_OPS = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
_LAYERS = (nn.Conv2d, nn.Linear)


@dataclass(frozen=True)
class _Chain:
    """A convolution and what is computed in one go with it, up to `last`."""

    conv: fx.Node
    norm: fx.Node | None
    other: fx.Node | None
    activation: Activation | None
    last: fx.Node


class Rewritten(nn.Module):
    """A cut network whose trunk was rewritten.

    Attributes
    ----------
    input_dtype : torch.dtype
        What it takes.
    fused : int
        Layers that are computed by packed kernels.
    kept : int
        Convolutions and linear layers left as they were.
    reasons : tuple of str
        Why layers were left.
    places : dict of str to str
        Module of the trunk → the layer that it computes.
    """

    def __init__(
        self,
        trunk: fx.GraphModule,
        source: cut.Cut,
        input_dtype: torch.dtype,
        fused: int,
        kept: int,
        reasons: Iterable[str],
        places: Mapping[str, str],
    ) -> None:
        super().__init__()
        self.trunk, self.poolings, self.axes = trunk, source.poolings, source.axes
        self.fused, self.kept = fused, kept
        self.reasons = tuple(f"{n} layers: {why}" for why, n in Counter(reasons).items())
        self.input_dtype, self.places = input_dtype, dict(places)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return node → codes, for normalised images `x` (N, C, H, W)."""
        return self.pooled(self.trunk(x))

    def pooled(self, values: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return node → codes, from what the trunk gave."""
        return cut.pool_all(values, self.poolings, self.axes)


def layers(module: cut.Cut) -> list[str]:
    """Return the names of the layers that have a precision of their own, in the order of execution."""
    trunk = module.trunk
    called = (str(n.target) for n in trunk.graph.nodes if n.op == "call_module")
    return list(dict.fromkeys(name for name in called if isinstance(trunk.get_submodule(name), _LAYERS)))


def input_dtype(module: nn.Module, low: torch.dtype, kept: Collection[str]) -> torch.dtype:
    """Return what the rewritten network takes: the dtype of its first layer, so that pixels are cast only once."""
    first = next(iter(layers(module)), None) if isinstance(module, cut.Cut) else None
    return torch.float32 if first in kept else low


def rewritten(
    module: cut.Cut,
    shape: tuple[int, int, int, int],
    *,
    low: torch.dtype = torch.float32,
    kept: Collection[str] = (),
    pack: bool = True,
    pack_convolutions: bool = True,
    device: torch.device | None = None,
    workers: Executor | None = None,
) -> Rewritten:
    """Rewrite a cut network.

    Parameters
    ----------
    module : cut.Cut
        On the CPU, float32; its weights are shared where they stay as they are, and never changed.
    shape : (int, int, int, int)
        Of the input (N, C, H, W): weights are packed for it.
    low : torch.dtype, default float32
        Of all layers that are not in `kept`.
    kept : collection of str
        Layers computed in float32.
    pack : bool, default True
        Fuse; without it only dtypes change.
    pack_convolutions : bool, default True
        Whether convolutions are fused, too: only where the input is channels_last.
    device : torch.device, optional
        Where unpacked layers go.
    workers : Executor, optional
        Threads that fold and pack.

    Returns
    -------
    Rewritten
    """
    return _Rewriting(module, shape, low, frozenset(kept), device).run(pack, pack_convolutions, workers)


class _Rewriting:
    """One rewriting: the old graph, the new one as it grows, and each new value's dtype."""

    def __init__(
        self,
        module: cut.Cut,
        shape: tuple[int, int, int, int],
        low: torch.dtype,
        kept: frozenset[str],
        device: torch.device | None,
    ) -> None:
        self.source, self.shape, self.low, self.kept, self.device = module, shape, low, kept, device
        self.old: fx.Graph = module.trunk.graph
        self.modules: dict[str, nn.Module] = dict(module.trunk.named_modules())
        self.order = {node: i for i, node in enumerate(self.old.nodes)}
        self.new, self.parts = fx.Graph(), dict[str, Any]()
        self.values: dict[fx.Node, fx.Node] = {}
        self.dtypes: dict[fx.Node, torch.dtype | None] = {}
        self.input_dtype = input_dtype(module, low, kept)
        self.reasons: list[str] = []
        self.starts: dict[fx.Node, _Chain] = {}
        self.ends: dict[fx.Node, _Chain] = {}
        self.places: dict[str, str] = {}

    def run(self, pack: bool, convolutions: bool, workers: Executor | None) -> Rewritten:
        chains = self._chains(convolutions) if pack else []
        packed = self._packed(chains, workers)
        inside = {node for chain in packed for node in self._members(chain)}
        starts = self.starts = {chain.conv: chain for chain in packed}
        ends = self.ends = {chain.last: chain for chain in packed}
        for node in self.old.nodes:
            if node in starts:
                self._place(starts[node], packed[starts[node]])
            if node in ends:
                self.values[node] = self.values[ends[node].conv]
            elif node not in inside:
                self._copy(node)
        self.new.lint()
        trunk = fx.GraphModule(self.parts, self.new, class_name="Rewritten").eval()
        total = sum(self._is_layer(n) for n in self.old.nodes)
        return Rewritten(
            trunk, self.source, self.input_dtype, len(packed), total - len(packed), self.reasons, self.places
        )

    # -- finding what goes together -----------------------------------------------------------------------------------

    def _chains(self, convolutions: bool) -> list[_Chain]:
        found: dict[fx.Node, _Chain] = {}
        for node in self.old.nodes:
            kind = type(self._module(node)) if node.op == "call_module" else None
            if (kind is nn.Conv2d and convolutions and self._packable(node)) or (kind is nn.Linear and _plain(node)):
                chain = self._chain(node)
                found[chain.last] = chain
        return list(found.values())

    def _packable(self, node: fx.Node) -> bool:
        conv = self._module(node)
        known = _plain(node) and self._row(node.args[0]) is not None
        return known and isinstance(conv, nn.Conv2d) and conv.padding_mode == "zeros"

    def _chain(self, conv: fx.Node) -> _Chain:
        last, norm, other = conv, None, None
        user = self._next(last)
        if user is not None and isinstance(self._module(conv), nn.Conv2d):
            if self._is_norm(user):
                norm, last = user, user
                user = self._next(last)
            if user is not None and (other := self._residual(user, last, conv)) is not None:
                last, user = user, self._next(user)
        activation = self._activation(user) if user is not None else None
        if activation is not None and (other is None or activation.after_addition):
            assert user is not None
            return _Chain(conv, norm, other, activation, user)
        return _Chain(conv, norm, other, None, last)

    def _next(self, node: fx.Node) -> fx.Node | None:
        """Return the only user of a value, past operations that do nothing."""
        while len(node.users) == 1:
            user = next(iter(node.users))
            if not self._is_no_op(user):
                return user if user.op != "output" else None
            node = user
        return None

    def _is_norm(self, node: fx.Node) -> bool:
        norm = self._module(node) if node.op == "call_module" else None
        return type(norm) is nn.BatchNorm2d and norm.running_var is not None

    def _residual(self, node: fx.Node, mine: fx.Node, conv: fx.Node) -> fx.Node | None:
        """Return what an addition adds to the value `mine`, when it was computed before the convolution."""
        plain = node.op == "call_function" and node.target in _ADDITIONS and len(node.args) == 2 and not node.kwargs
        # In groups oneDNN's kernel for three arrays rounds twice, and knows no low precision.
        if not plain or int(getattr(self._module(conv), "groups", 1)) != 1:
            return None
        sides = [self._past_no_ops(a) if isinstance(a, fx.Node) else None for a in node.args]
        mine = self._past_no_ops(mine)
        if sides.count(mine) != 1:
            return None
        index = 1 - sides.index(mine)
        other = node.args[index]
        if not isinstance(other, fx.Node) or self._row(other) is None or self._row(other) != self._row(conv):
            return None
        changed = node.target is operator.iadd and index == 0 and not self._is_private(other, node)
        between = list(self.old.nodes)[self.order[conv] + 1 : self.order[node]]
        early = self.order[other] < self.order[conv]
        return other if early and not changed and not any(self._in_place(n) for n in between) else None

    def _is_private(self, value: fx.Node, changing: fx.Node) -> bool:
        """Whether nothing sees that a value is changed in place: no alias was made, and only layers read it before."""
        others, made = set(value.users) - {changing}, value.op == "call_module" and not self._is_no_op(value)
        if made and self._in_place(value):
            made = len(value.all_input_nodes[0].users) == 1
        return made and all(self._is_layer(user) and self.order[user] < self.order[changing] for user in others)

    def _past_no_ops(self, node: fx.Node) -> fx.Node:
        while self._is_no_op(node):
            node = node.all_input_nodes[0]
        return node

    def _in_place(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self._module(node), "inplace", False)) and not self._is_no_op(node)
        named = str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", "")
        return (
            node.target in _IN_PLACE
            or bool(node.kwargs.get("inplace"))
            or (named.endswith("_") and not named.endswith("__"))
        )

    def _activation(self, node: fx.Node) -> Activation | None:
        return activation_of(node, self._module(node) if node.op == "call_module" else None)

    def _is_no_op(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return isinstance(self._module(node), _NO_OPS)
        named = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
        if named not in ("dropout", "stochastic_depth") or not node.args:
            return False
        position = {"dropout": 2, "stochastic_depth": 3}[named]
        training = node.kwargs.get("training", node.args[position] if len(node.args) > position else True)
        return training is False

    def _members(self, chain: _Chain) -> Iterable[fx.Node]:
        """Yield the nodes that a chain stands for."""
        node = chain.conv
        yield node
        while node is not chain.last:
            node = next(iter(node.users))
            yield node

    def _row(self, node: Any) -> tuple[int, ...] | None:
        if isinstance(node, fx.Node) and node.op == "placeholder":
            return self.shape[1:]
        return node.meta.get("row") if isinstance(node, fx.Node) else None

    def _module(self, node: fx.Node) -> nn.Module:
        return self.modules[str(node.target)]

    # -- packing ------------------------------------------------------------------------------------------------------

    def _packed(self, chains: list[_Chain], workers: Executor | None) -> dict[_Chain, nn.Module]:
        run: Callable[..., Iterable[nn.Module | None]] = workers.map if workers is not None else map
        made = run(self._pack, chains)
        return {chain: module for chain, module in zip(chains, made, strict=True) if module is not None}

    def _pack(self, chain: _Chain) -> nn.Module | None:
        layer = self._module(chain.conv)
        dtype = self._dtype_of(chain.conv)
        try:
            with torch.inference_mode():
                if isinstance(layer, nn.Linear):
                    row = self._row(chain.conv)
                    rows = self.shape[0] * (row[0] if row is not None and len(row) == 2 else 1)
                    return PackedLinear(layer, chain.activation, dtype, rows)
                assert isinstance(layer, nn.Conv2d)
                norm = self._module(chain.norm) if chain.norm is not None else None
                weight, bias = folded(layer, norm if isinstance(norm, nn.BatchNorm2d) else None, dtype)
                row = self._row(chain.conv.args[0])
                assert row is not None
                return PackedConv(layer, weight, bias, chain.activation, chain.other is not None, (self.shape[0], *row))
        except (
            RuntimeError,
            AttributeError,
            TypeError,
            NotImplementedError,
        ) as error:  # torch is older, or has other kernels
            self.reasons.append(" ".join(str(error).split())[:120])
            return None

    def _dtype_of(self, node: fx.Node) -> torch.dtype:
        return torch.float32 if str(node.target) in self.kept else self.low

    # -- the new graph ------------------------------------------------------------------------------------------------

    def _place(self, chain: _Chain, module: nn.Module) -> None:
        dtype = self._dtype_of(chain.conv)
        name = f"packed_{len(self.parts)}"
        self.parts[name], self.places[name] = module, str(chain.conv.target)
        given = (chain.conv.args[0],) if chain.other is None else (chain.conv.args[0], chain.other)
        args = tuple(self._as(self.values[a], dtype) for a in given if isinstance(a, fx.Node))
        if chain.other is not None and isinstance(module, PackedConv):
            module.in_place = self._dies(chain, chain.other, dtype)
        self._note(chain.conv, self.new.call_module(name, args), dtype)

    def _dies(self, chain: _Chain, other: fx.Node, dtype: torch.dtype) -> bool:
        """Whether what is added is a packed convolution's result that nothing reads from here on.

        Only packed layers are trusted as its other readers: whatever else might give a view of it away.
        """
        made = self.ends.get(other)
        if made is None or not isinstance(self._module(made.conv), nn.Conv2d):
            return False  # a linear layer's result is not channels_last, which the kernel in place wants
        if self.dtypes[self.values[other]] != dtype:
            return True  # a cast copy, made for this addition alone
        addition = set(self._members(chain)) - {chain.conv}  # the convolution itself must not read what it overwrites
        others = set(other.users) - addition
        return all(user in self.starts and self.order[user] < self.order[chain.conv] for user in others)

    def _copy(self, node: fx.Node) -> None:
        if node.op == "placeholder":
            return self._note(node, self.new.placeholder(str(node.target)), self.input_dtype)
        if node.op == "output":
            self.new.output(fx.map_arg(node.args[0], self.values.__getitem__))
            return None
        if node.op == "get_attr":
            return self._note(node, self._constant(str(node.target), self.low), self._constant_dtype(str(node.target)))
        if self._is_no_op(node):
            source = node.all_input_nodes[0]
            self.values[node] = self.values[source]
            return None
        return self._call(node)

    def _is_layer(self, node: fx.Node) -> bool:
        return node.op == "call_module" and isinstance(self._module(node), _LAYERS)

    def _call(self, node: fx.Node) -> None:
        dtype = self._wanted(node)
        copied = self.new.node_copy(node, lambda n: self._as(self.values[n], dtype))
        copied.meta = {}
        if node.op == "call_module":
            copied.target = self._pool(node) or self._moved(str(node.target), dtype or self.low)
            if self._is_layer(node):
                self.places[copied.target] = str(node.target)
        untyped = node.target in (getattr,) or (node.op == "call_method" and node.target in ("size", "dim"))
        self._note(node, copied, None if untyped else dtype)

    def _pool(self, node: fx.Node) -> str:
        """Return the name of faster max pooling; "" for other modules, and where nothing is packed."""
        pool = self._module(node)
        if not (self.ends and MaxPool.can_stand_for(pool)):
            return ""
        assert isinstance(pool, nn.MaxPool2d)
        name = f"pool_{len(self.parts)}"
        self.parts[name] = MaxPool(pool, all(self._nonnegative(n) for n in node.all_input_nodes))
        return name

    def _nonnegative(self, node: fx.Node) -> bool:
        """Whether a value cannot be negative, nor NaN: oneDNN's ReLU makes that 0."""
        node = self._past_no_ops(node)
        if node in self.ends:
            activation = self.ends[node].activation
            return activation is not None and activation.never_negative
        joined = node.op == "call_function" and node.target in (torch.cat, torch.concat)
        pooled = node.op == "call_module" and isinstance(self._module(node), nn.MaxPool2d)
        return (joined or pooled) and all(self._nonnegative(n) for n in node.all_input_nodes)

    def _wanted(self, node: fx.Node) -> torch.dtype | None:
        """Return the dtype that a layer has, and other operations take over from their inputs: the widest of them."""
        if self._is_layer(node):
            return self._dtype_of(node)
        inputs = [n for n in node.all_input_nodes if n.op != "get_attr"] or node.all_input_nodes
        found = {self.dtypes[self.values[n]] for n in inputs} - {None}
        return torch.float32 if torch.float32 in found else next(iter(found), None)

    def _note(self, node: fx.Node, value: fx.Node, dtype: torch.dtype | None) -> None:
        self.values[node], self.dtypes[value] = value, dtype

    def _as(self, value: fx.Node, dtype: torch.dtype | None) -> fx.Node:
        """Return a value in a dtype: cast where it has another one."""
        has = self.dtypes[value]
        if dtype is None or has is None or has == dtype:
            return value
        if value.op == "get_attr":
            constant = self._constant(str(value.meta["name"]), dtype)
            self.dtypes[constant] = dtype
            return constant
        cast = self.new.call_function(to_dtype, (value, dtype))
        self.dtypes[cast] = dtype
        return cast

    def _constant_dtype(self, name: str) -> torch.dtype | None:
        tensor = self._tensor(name)
        return self.low if isinstance(tensor, Tensor) and tensor.is_floating_point() else None

    def _constant(self, name: str, dtype: torch.dtype) -> fx.Node:
        tensor = self._tensor(name)
        part = f"constant_{len(self.parts)}"
        floating = isinstance(tensor, Tensor) and tensor.is_floating_point()
        moved = (
            tensor.detach().to(device=self.device, dtype=dtype if floating else None)
            if isinstance(tensor, Tensor)
            else tensor
        )
        self.parts[part] = moved
        node = self.new.get_attr(part)
        node.meta["name"] = name
        return node

    def _tensor(self, name: str) -> Any:
        owner, _, attribute = name.rpartition(".")
        return getattr(self.modules[owner], attribute)

    def _moved(self, name: str, dtype: torch.dtype) -> str:
        """Return the name of a module that is not packed, in a dtype, made once."""
        part = f"plain_{name.replace('.', '_')}_{str(dtype).removeprefix('torch.')}"
        if part not in self.parts:
            module = self.modules[name]
            plain = dtype == torch.float32 and self.device is None
            self.parts[part] = module if plain else copy.deepcopy(module).to(device=self.device, dtype=dtype)
        return part


def _plain(node: fx.Node) -> bool:
    """Whether a module is called with its input alone, by position."""
    return len(node.args) == 1 and not node.kwargs


def to_dtype(value: Any, dtype: torch.dtype) -> Any:
    """Cast what is a floating tensor, and leave the rest."""
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
