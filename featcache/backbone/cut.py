"""Cutting a network at named nodes, and pooling what comes out.

A traceable network is cut in its `torch.fx` graph: only what lies upstream of the nodes is kept, so tensors that are
missing downstream do not matter. A network that cannot be traced is run whole, with forward hooks.

Node names are module paths (``layer3.1.conv2``); a function called inside a module appends its name
(``layer3.1.add``); the second call of the same module or function in one place gets ``_1``, the third ``_2``. The name
of a module that contains nodes stands for the node that computes its output: ``layer3`` is ``layer3.1.relu_1``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import BackboneError
from .units import units_of

__all__ = ["Cut", "HookCut", "Traced", "applied_pooling", "pool", "pooled_shape", "trace"]

_GEM_POWER, _GEM_EPS = 3.0, 1e-6


class _NamingTracer(fx.Tracer):
    """fx tracer that names every node by where it was called and remembers which node gave each module's output."""

    def __init__(self, autowrap_modules: tuple[Any, ...]) -> None:
        super().__init__(autowrap_modules=autowrap_modules)
        self.where = ""
        self.names: dict[fx.Node, str] = {}
        self.module_outputs: dict[str, fx.Node] = {}
        self._counts: dict[str, int] = {}
        self._taken: set[str] = set()

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        outer, self.where = self.where, self.path_of_module(m)
        path = self.where
        try:
            out = super().call_module(m, forward, args, kwargs)
        finally:
            self.where = outer
        if isinstance(out, fx.Proxy):
            self.module_outputs[path] = out.node
        return out

    def create_node(self, kind: str, *args: Any, **kwargs: Any) -> fx.Node:
        node = super().create_node(kind, *args, **kwargs)
        self.names[node] = self._unique(self._base(node))
        return node

    def _base(self, node: fx.Node) -> str:
        if node.op == "call_module":
            return str(node.target)
        # fx numbers functions over the whole graph; here they are numbered within their module.
        plain = re.sub(r"_\d+$", "", node.name)
        return f"{self.where}.{plain}" if self.where else plain

    def _unique(self, base: str) -> str:
        name, count = base, self._counts.get(base, 0)
        while name in self._taken:
            count += 1
            name = f"{base}_{count}"
        self._counts[base] = count
        self._taken.add(name)
        return name


class Traced:
    """The graph of a network, with names, shapes and the tensors that each node needs.

    Attributes
    ----------
    root : nn.Module
        The network that was traced.
    nodes : dict of str to fx.Node
        Node name → node, in the order of execution.
    shapes : dict of str to tuple of int
        Row shape (without the batch axis) of each node that gives a batch of rows; filled by `propagate`.
    """

    def __init__(self, root: nn.Module, tracer: _NamingTracer, graph: fx.Graph, label: str) -> None:
        self.root, self.graph, self.label = root, graph, label
        self.names = tracer.names
        self.nodes = {tracer.names[n]: n for n in graph.nodes if n.op not in ("placeholder", "output")}
        self.modules = {path: tracer.names[node] for path, node in tracer.module_outputs.items()}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._persistent = [k for k in root.state_dict() if not k.endswith("num_batches_tracked")]

    def propagate(self, batch: Tensor) -> None:
        """Run `batch` (two or more rows) through the whole graph once and note every node's row shape."""
        rows = batch.shape[0]
        traced = self

        class Recorder(fx.Interpreter):
            def run_node(self, n: fx.Node) -> Any:
                value = super().run_node(n)
                if n.op == "get_attr" and isinstance(value, Tensor):
                    return value.to(batch.device)  # index tables stay real when the parameters are on meta
                if isinstance(value, Tensor) and value.ndim >= 2 and value.shape[0] == rows and n.op != "placeholder":
                    traced.shapes[traced.names.get(n, n.name)] = tuple(int(d) for d in value.shape[1:])
                return value

        with torch.inference_mode():
            Recorder(fx.GraphModule(self.root, self.graph)).run(batch)
        self.shapes = {k: v for k, v in self.shapes.items() if k in self.nodes and self.nodes[k].op != "get_attr"}

    def resolve(self, name: str) -> str:
        """Return the node that a node name, a module name, "penultimate" or "output" stands for."""
        if name in ("penultimate", "output"):
            return self.penultimate() if name == "penultimate" else self.output()
        node = self.modules.get(name) if name not in self.nodes else name
        if node is None:
            known = [*self.modules, *self.shapes]
            near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
            raise BackboneError(
                f"node {name!r} of {self.label}: no such node or module; "
                + (f"did you mean {' or '.join(near)}? " if near else "")
                + f"`featcache backbones {self.label} --nodes` lists them"
            )
        if node not in self.shapes:
            raise BackboneError(
                f"node {name!r} of {self.label}: expected a tensor with one row per image, got something else; "
                f"take a node near it from `featcache backbones {self.label} --nodes`"
            )
        return node

    def output(self) -> str:
        """Return the node that the network itself returns."""
        value = next(n for n in self.graph.nodes if n.op == "output").args[0]
        if not isinstance(value, fx.Node) or self.names[value] not in self.shapes:
            raise BackboneError(
                f"output of {self.label}: expected one tensor with one row per image, got {type(value).__name__}; "
                "name a node with nodes="
            )
        return self.names[value]

    def penultimate(self) -> str:
        """Return the node that feeds the classifier; the output when the network ends without one.

        From the output back through operations without parameters to the last Linear (or, as in SqueezeNet, Conv2d);
        then from its input back through Dropout and Identity, which do nothing when evaluating.
        """
        output = self.output()
        node: fx.Node | None = self.nodes[output]
        while node is not None and not self._is_classifier(node):
            node = self._only_input(node) if self._parameter_free(node) else None
        if node is None:
            return output
        node = self._only_input(node)
        while node is not None and node.op == "call_module" and isinstance(self._module(node), _NO_OPS):
            node = self._only_input(node)
        return output if node is None or self.names[node] not in self.shapes else self.names[node]

    def _module(self, node: fx.Node) -> nn.Module:
        return self.root.get_submodule(str(node.target))

    def _is_classifier(self, node: fx.Node) -> bool:
        kinds = (nn.Linear, nn.Conv2d) if self.convolutional_head else (nn.Linear,)
        return node.op == "call_module" and isinstance(self._module(node), kinds)

    #: Whether a last Conv2d counts as a classifier (torchvision's own models) or belongs to the trunk (a user's).
    convolutional_head = True

    def _parameter_free(self, node: fx.Node) -> bool:
        return node.op != "call_module" or not self._module(node).state_dict()

    @staticmethod
    def _only_input(node: fx.Node) -> fx.Node | None:
        return node.all_input_nodes[0] if len(node.all_input_nodes) == 1 else None

    def tensors(self, node: fx.Node) -> list[str]:
        """Return the state_dict names that a node reads itself (``num_batches_tracked`` left out)."""
        target = str(node.target)
        if node.op == "get_attr":
            return [target] if target in self._persistent else []
        if node.op != "call_module":
            return []
        return [k for k in self._persistent if k.startswith(target + ".")]

    def upstream(self, names: Iterable[str]) -> list[str]:
        """Return the state_dict names of every tensor that the given nodes depend on, in the order of execution."""
        kept = self.ancestors(names)
        found = (tensor for node in self.graph.nodes if node in kept for tensor in self.tensors(node))
        return list(dict.fromkeys(found))

    def ancestors(self, names: Iterable[str]) -> set[fx.Node]:
        """Return the given nodes and every node that they depend on."""
        kept, stack = set[fx.Node](), [self.nodes[n] for n in names]
        while stack:
            node = stack.pop()
            if node not in kept:
                kept.add(node)
                stack.extend(node.all_input_nodes)
        return kept

    def deepest_usable(self, unavailable: Iterable[str]) -> str | None:
        """Return the deepest node that needs none of the `unavailable` tensors, None when there is none.

        Preferably one that everything deeper goes through (the end of a block); a side branch only for want of one.
        """
        missing, spoilt, usable = set(unavailable), set[fx.Node](), list[fx.Node]()
        for node in self.graph.nodes:
            if any(n in spoilt for n in node.all_input_nodes) or missing.intersection(self.tensors(node)):
                spoilt.add(node)
            elif self.names.get(node) in self.shapes:
                usable.append(node)
        bottlenecks = self._bottlenecks()
        on_trunk = [node for node in usable if node in bottlenecks]
        return self.names[(on_trunk or usable)[-1]] if usable else None

    def _bottlenecks(self) -> set[fx.Node]:
        """Return the nodes that all later ones depend on: no tensor from before them is used after them."""
        order = {node: i for i, node in enumerate(self.graph.nodes)}
        found, reach = set[fx.Node](), 0
        for node, i in order.items():
            if node.op != "placeholder" and self.names.get(node) not in self.shapes:
                continue
            if reach <= i:
                found.add(node)
            reach = max([reach, *(order[user] for user in node.users)])
        return found

    def friendly(self, node: str) -> str:
        """Return the shortest module name that stands for `node`, or the node's own name."""
        return min((m for m, n in self.modules.items() if n == node and m), key=len, default=node)


_NO_OPS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.Identity)


def trace(model: nn.Module, label: str, autowrap_modules: Sequence[Any] = ()) -> Traced:
    """Trace a network in eval mode.

    Parameters
    ----------
    model : nn.Module
        In eval mode; its parameters may be on the meta device.
    label : str
        What messages call it.
    autowrap_modules : sequence of modules
        Python modules whose functions stay single nodes.

    Raises
    ------
    Exception
        Whatever tracing a network with data-dependent control flow raises.
    """
    import math

    tracer = _NamingTracer((math, *autowrap_modules))
    return Traced(model, tracer, tracer.trace(model), label)


class Cut(nn.Module):
    """The part of a network upstream of some nodes; ``forward`` gives pooled codes.

    Parameters
    ----------
    traced : Traced
        The traced network.
    poolings : mapping of str to str
        Node name → pooling, in the order of the outputs.
    axes : mapping of str to tuple of int
        Node name → axes that pooling goes over.

    Attributes
    ----------
    units : tuple of str
        Paths of the network's units (see `featcache.backbone.units`), also of those that were cut off.
    names : dict of str to str
        Name of a node in the graph → its name in the network that was traced.
    built : tuple of str, dict and int, or None
        Architecture, keyword arguments and channels of the network, where it is one of torchvision's.
    """

    built: tuple[str, dict[str, Any], int] | None = None

    def __init__(self, traced: Traced, poolings: Mapping[str, str], axes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.poolings, self.axes = dict(poolings), dict(axes)
        self.units = units_of(traced.root)
        self.trunk, self.names = _cut_graph(traced, list(poolings))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return node → codes, for normalised images `x` (N, C, H, W)."""
        return pool_all(self.trunk(x), self.poolings, self.axes)


class HookCut(nn.Module):
    """A network that cannot be traced, run whole, with hooks on the modules that are wanted ("output" is its own)."""

    def __init__(self, model: nn.Module, poolings: Mapping[str, str], axes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.poolings, self.axes = dict(poolings), dict(axes)
        self.model = model

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return node → codes, for normalised images `x` (N, C, H, W)."""
        found = run_with_hooks(self.model, x, list(self.poolings))
        return pool_all([found[n] for n in self.poolings], self.poolings, self.axes)


def run_with_hooks(model: nn.Module, x: Tensor, nodes: Sequence[str]) -> dict[str, Any]:
    """Run a network and return what the named modules gave ("output": the network itself)."""
    found: dict[str, Any] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            # A later in-place operation must not reach what was kept.
            found[name] = output.clone() if isinstance(output, Tensor) else output

        return hook

    handles = [model.get_submodule(n).register_forward_hook(keep(n)) for n in nodes if n != "output"]
    try:
        output = model(x)
    finally:
        for handle in handles:
            handle.remove()
    if "output" in nodes:
        found["output"] = output
    return found


def _cut_graph(traced: Traced, nodes: Sequence[str]) -> tuple[fx.GraphModule, dict[str, str]]:
    kept, graph = traced.ancestors(nodes), fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    outputs: dict[str, fx.Node] = {}
    for node in traced.graph.nodes:
        if node not in kept and node.op != "placeholder":
            continue
        copies[node] = graph.node_copy(node, copies.__getitem__)
        copies[node].meta["row"] = traced.shapes.get(traced.names.get(node, ""))  # what `fused` goes by
        if traced.names.get(node) in nodes:
            used_further = any(user in kept for user in node.users)
            # An in-place operation further down (ReLU, +=) would overwrite what is to be returned.
            outputs[traced.names[node]] = graph.call_method("clone", (copies[node],)) if used_further else copies[node]
    graph.output(tuple(outputs[name] for name in nodes))
    graph.lint()
    names = {copy.name: traced.names[node] for node, copy in copies.items() if node in traced.names}
    return fx.GraphModule(traced.root, graph, class_name="Trunk").eval(), names


def pool_all(
    values: Sequence[Tensor], poolings: Mapping[str, str], axes: Mapping[str, tuple[int, ...]]
) -> dict[str, Tensor]:
    return {n: pool(v, poolings[n], axes[n]) for n, v in zip(poolings, values, strict=True)}


def pool(x: Tensor, pooling: str, axes: tuple[int, ...]) -> Tensor:
    """Pool one batch.

    Parameters
    ----------
    x : Tensor
        (N, …), any float dtype; pooled in float32.
    pooling : {"avg", "max", "gem", "cls", "none"}
        Mean; maximum; generalised mean with p = 3 of values clamped at 1e-6 (Radenović, Tolias, Chum 2018); the first
        token; nothing.
    axes : tuple of int
        Axes to pool over, counted with the batch axis.

    Returns
    -------
    Tensor
        (N, channels), or `x` itself for "none".
    """
    if pooling == "none":
        return x
    if pooling == "cls":
        return x[:, 0]
    if pooling == "avg":
        return x.float().mean(axes)
    if pooling == "max":
        return x.float().amax(axes)
    return x.float().clamp(min=_GEM_EPS).pow(_GEM_POWER).mean(axes).pow(1.0 / _GEM_POWER)


def applied_pooling(
    node: str, row: tuple[int, ...], pooling: str, image: tuple[int, int]
) -> tuple[str, tuple[int, ...]]:
    """Return the pooling that is really applied to a node, and its axes.

    Parameters
    ----------
    node : str
        Name, for messages.
    row : tuple of int
        Row shape: (C,), (tokens, C), (C, h, w) or (h, w, C).
    pooling : str
        What was asked for.
    image : (int, int)
        Height and width of the input: a map's spatial axes are those in its proportion. Where both readings fit,
        channels come first.

    Returns
    -------
    pooling : str
        "none" for a vector; "avg" instead of "max" for a 1 × 1 map, where both give the same codes.
    axes : tuple of int
        Axes counted with the batch axis.

    Raises
    ------
    BackboneError
        When the shape does not go with the pooling.
    """
    if pooling == "none" or len(row) == 1:
        return "none", ()
    if len(row) == 2:
        return pooling, (1,)
    if len(row) == 3 and pooling != "cls":
        axes = _spatial_axes(row, image)
        if axes:
            single = all(row[a - 1] == 1 for a in axes)
            return ("avg" if pooling == "max" and single else pooling), axes
    wanted = "tokens (count, channels)" if pooling == "cls" else "a vector, tokens or a map"
    raise BackboneError(
        f"node {node!r}: pooling={pooling!r} expects {wanted}, got rows of shape {row}; use pooling='none' "
        + ("or 'avg'" if pooling == "cls" else "or another node")
    )


def _spatial_axes(row: tuple[int, ...], image: tuple[int, int]) -> tuple[int, ...]:
    def fits(h: int, w: int) -> bool:
        # Strided convolutions round: a side may be off by one from the exact proportion.
        return abs(h * image[1] - w * image[0]) <= (0 if image[0] == image[1] else max(image))

    if fits(row[1], row[2]):
        return (2, 3)
    return (1, 2) if fits(row[0], row[1]) else ()


def pooled_shape(row: tuple[int, ...], pooling: str, axes: tuple[int, ...]) -> tuple[int, ...]:
    """Return the row shape after pooling."""
    if pooling == "none":
        return row
    return row[1:] if pooling == "cls" else tuple(d for i, d in enumerate(row, 1) if i not in axes)
