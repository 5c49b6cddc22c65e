"""What a network does in training only, and tracing it in eval mode has fixed to nothing: brought back as layers."""

from __future__ import annotations

from typing import Any

from torch import fx, nn
from torchvision.ops import StochasticDepth, stochastic_depth

from .cut import Cut

__all__ = ["trainable"]


def trainable(trunk: nn.Module) -> nn.Module:
    """Let a cut network drop activations and branches in training mode again; in eval mode it stays as it is.

    Parameters
    ----------
    trunk : nn.Module
        What ``Backbone.module()`` gave; changed in place.

    Returns
    -------
    nn.Module
        The same. Stochastic depth (EfficientNet, ConvNeXt, Swin, MaxViT) and dropout functions (DenseNet's) are layers
        now, which go by their own ``training``. Dropout within Swin's attention, 0 unless asked for, is not found.
    """
    if not isinstance(trunk, Cut):
        return trunk
    graph = trunk.trunk.graph
    for node in list(graph.nodes):
        layer = _layer(node)
        if layer is not None:
            path = trunk.names[node.name]
            trunk.trunk.add_submodule(path, layer.eval())
            with graph.inserting_after(node):
                called = graph.call_module(path, (node.args[0],))
            called.meta = dict(node.meta)
            node.replace_all_uses_with(called)
            trunk.names[called.name] = trunk.names.pop(node.name)
            graph.erase_node(node)
    trunk.trunk.recompile()
    return trunk


def _layer(node: fx.Node) -> nn.Module | None:
    """Return the layer that a function stands for, None where it drops nothing."""
    if node.op != "call_function":
        return None
    given: dict[str, Any] = dict(zip(("input", "p", "mode"), node.args, strict=False)) | dict(node.kwargs)
    if node.target is stochastic_depth and given["p"]:
        return StochasticDepth(given["p"], given["mode"])
    return nn.Dropout(given.get("p", 0.5)) if node.target is nn.functional.dropout and given.get("p", 0.5) else None
