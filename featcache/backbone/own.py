"""A user's own network: copied, frozen, traced where that changes nothing, else cut with hooks."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import BackboneError, WeightsError
from . import cut, weights
from .network import (
    Network,
    check_finite,
    digest,
    frozen,
    is_convolutional,
    one_line,
    poolings_of,
    refused,
    resolved_nodes,
    wished,
)

if TYPE_CHECKING:
    from ..preprocess import Preprocess
    from .frozen import Backbone

__all__ = ["from_module", "with_weights"]


def from_module(
    model: nn.Module | Callable[[], nn.Module],
    *,
    nodes: Sequence[str],
    pooling: str | Mapping[str, str],
    preprocess: Preprocess,
) -> Network:
    """Copy a user's own network (it is never touched), freeze the copy and cut it.

    Parameters
    ----------
    model : nn.Module or callable
        The network, or something that builds it.
    nodes, pooling, preprocess
        As for `from_architecture`.

    Raises
    ------
    BackboneError
        When the network cannot be copied or refuses an input of the preprocessing's shape.
    """
    network = _copied(model)
    label = type(network).__name__
    height, width, channels = preprocess.shape
    probe = torch.rand(2, channels, height, width, generator=torch.Generator(), dtype=torch.float32, device="cpu")
    traced = _traced_faithfully(network, label, probe)
    resolve = _hook_name if traced is None else traced.resolve
    if traced is None:
        resolved, shapes = _hooked_nodes(network, label, nodes, probe)
        upstream = [k for k in network.state_dict() if not k.endswith("num_batches_tracked")]
    else:
        resolved, shapes = resolved_nodes(traced.resolve, nodes), traced.shapes
        upstream = traced.upstream(resolved)
    poolings, axes, out_shapes = poolings_of(resolved, wished(resolved, pooling, resolve), shapes, (height, width))
    cut_module = cut.HookCut(network, poolings, axes) if traced is None else cut.Cut(traced, poolings, axes)
    check_finite(network, upstream, f"of {label}")
    module = frozen(cut_module)
    _check_rows(module, label, probe)
    return Network(
        arch=label,
        module=module,
        nodes=tuple(poolings),
        poolings=poolings,
        shapes=out_shapes,
        digest=digest(network, upstream),
        report=weights.LoadReport(),
        kwargs={},
        tensors=tuple(upstream),
        channels_last=is_convolutional(module) and _runs_channels_last(module, probe),
    )


def with_weights(backbone: Backbone, state: Mapping[str, Tensor], **options: Any) -> Backbone:
    """Return the backbone of a user's own network with other weights: a copy of the network, loaded with them.

    Parameters
    ----------
    backbone : Backbone
        Of a user's own network.
    state : mapping of str to Tensor
        Tensors by the network's own names, perhaps not all.
    **options
        As for `Backbone`; the version stays.

    Raises
    ------
    BackboneError
        When the backbone is of another kind.
    WeightsError
        When a tensor has no place in the network, or another shape.
    """
    from .frozen import Backbone

    if backbone._kind != "module":
        raise BackboneError(f"like: expected the backbone of a network of one's own, got {backbone!r}; pass that one")
    network = _copied(backbone._model)  # type: ignore[arg-type]
    wanted = network.state_dict()
    for name, tensor in state.items():
        # Constants of the graph have names of their own.
        if name in wanted and wanted[name].shape != tensor.shape:
            raise WeightsError(
                f"weights: expected {tuple(wanted[name].shape)} for {name} of {type(network).__name__}, got "
                f"{tuple(tensor.shape)}; pass the backbone that the network was made with"
            )
    if not any(name in wanted for name in state):
        raise WeightsError(
            f"weights: expected tensors of {type(network).__name__}, got {', '.join(list(state)[:3]) or 'none'}; pass "
            "the backbone that the network was made with"
        )
    network.load_state_dict({name: tensor for name, tensor in state.items() if name in wanted}, strict=False)
    return Backbone(network, version=backbone._version, **options)


def _runs_channels_last(module: nn.Module, probe: Tensor) -> bool:
    """Whether a user's forward works in that layout (``view`` on a map does not)."""
    try:
        with torch.inference_mode():
            copy.deepcopy(module).to(memory_format=torch.channels_last)(
                probe.contiguous(memory_format=torch.channels_last)
            )
    except RuntimeError:
        return False
    return True


def _copied(model: nn.Module | Callable[[], nn.Module]) -> nn.Module:
    if isinstance(model, nn.Module):
        try:
            network = copy.deepcopy(model)
        except Exception as error:  # whatever a user's class does when it is copied
            raise BackboneError(
                f"model {type(model).__name__}: cannot be copied ({one_line(error)}); pass a function that builds it"
            ) from error
    else:
        with torch.random.fork_rng(devices=[]):
            network = model()
        if not isinstance(network, nn.Module):
            raise BackboneError(f"model: expected the callable to give an nn.Module, got {type(network).__name__}")
        network = copy.deepcopy(network)
    try:
        return frozen(network.to(device="cpu", dtype=torch.float32))
    except (RuntimeError, ValueError) as error:  # scripted, or lazy and never called
        raise BackboneError(
            f"model {type(network).__name__}: cannot be frozen ({one_line(error)}); pass a plain, used nn.Module"
        ) from error


def _check_rows(module: nn.Module, label: str, probe: Tensor) -> None:
    """Refuse a network whose codes of an image are random, or depend on the other images of the batch."""
    with torch.inference_mode():
        first, again, alike = (module(batch) for batch in (probe, probe, torch.cat([probe[:1], probe[:1]])))
    for node, rows in first.items():
        if not rows.is_floating_point():
            raise BackboneError(f"node {node!r} of {label}: expected real numbers, got {rows.dtype}; name another node")
        if not torch.allclose(rows, again[node], rtol=1e-3, equal_nan=True):
            raise BackboneError(
                f"node {node!r} of {label}: expected the same codes in two runs, got others; take randomness and "
                "counters out of its forward"
            )
        if not torch.allclose(rows[:1], alike[node][:1], rtol=1e-3, atol=1e-5, equal_nan=True):
            raise BackboneError(
                f"node {node!r} of {label}: expected codes of one image each, got some that depend on the others in "
                "its batch; name another node"
            )


def _traced_faithfully(network: nn.Module, label: str, probe: Tensor) -> cut.Traced | None:
    """Trace a network, or return None where tracing fails or changes what it computes."""
    with torch.inference_mode():
        try:
            expected = network(probe)
        except Exception as error:  # whatever a user's forward raises
            raise refused(label, probe, error) from error
        if not isinstance(expected, Tensor):
            return None
        try:
            traced = cut.trace(network, label)
            traced.convolutional_head = False
            traced.propagate(probe)
            got = cut.Cut(traced, {traced.output(): "none"}, {traced.output(): ()}).trunk(probe)[0]
        except Exception:  # control flow that depends on data, hooks, **kwargs, …
            return None
        return traced if torch.equal(got, expected) else None


def _hook_name(node: str) -> str:
    return "output" if node == "penultimate" else node


def _hooked_nodes(
    network: nn.Module, label: str, nodes: Sequence[str], probe: Tensor
) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    resolved = resolved_nodes(_hook_name, nodes)
    modules = dict(network.named_modules())
    for name in resolved:
        if name != "output" and name not in modules:
            raise BackboneError(
                f"node {name!r} of {label}: this network cannot be traced, so expected 'output' or the name of a "
                f"module (such as {', '.join(list(modules)[1:4])}); correct it"
            )
    with torch.inference_mode():
        found = cut.run_with_hooks(network, probe, resolved)
    for name in resolved:
        value = found.get(name)
        if not isinstance(value, Tensor) or value.ndim < 2 or len(value) != len(probe):
            raise BackboneError(
                f"node {name!r} of {label}: expected a tensor with one row per image, got {type(value).__name__}; "
                "name a module that gives one with nodes="
            )
    return resolved, {n: tuple(int(d) for d in found[n].shape[1:]) for n in resolved}
