"""Blocks of a network, from its input to its output: what is frozen and unfrozen, and where a network can be split.

A block is a residual block, an encoder layer, a Fire module, a single convolution in VGG: never a whole stage, never a
layer within one. Norms count to the block that they follow, free parameters (a class token) to the first that uses
them, dropout to the block that it feeds.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TypeVar

from torch import fx, nn

from .._modules import LowerPart
from ..backbone.cut import Cut, HookCut
from ..backbone.units import unit_of, units_of
from ..errors import HandoffError
from .graphs import Order, order_of, registered, split_graph

__all__ = ["Block", "blocks_of", "head_parameters", "split_after"]

Network = TypeVar("Network", bound=nn.Module)

#: What of a network does not belong to its trunk and is trained with the head.
_HEAD = ("join", "prelude", "head", "top")


@dataclass(frozen=True)
class Block:
    """A part of a network that is frozen or trained as one.

    Parameters
    ----------
    name : str
        Its module path in the architecture: "layer4.1", "features.17", "encoder.layers.encoder_layer_11".
    parameters : tuple of str
        Its parameters, as ``dict(model.named_parameters())`` names them.
    modules : tuple of str
        Its modules, as ``dict(model.named_modules())`` names them.
    boundary : bool
        Whether everything deeper depends on one tensor only, which is handed on after this block: whether
        `split_after` can split there.
    node : str, default=""
        Name of that tensor as a node of the backbone: with ``pooling="none"`` the codes of that node are what the lower
        part gives. "" where there is no boundary, or no name is known.
    """

    name: str
    parameters: tuple[str, ...]
    modules: tuple[str, ...]
    boundary: bool
    node: str = ""


def blocks_of(model: nn.Module) -> tuple[Block, ...]:
    """Return the blocks of a network's trunk in the order of execution.

    Parameters
    ----------
    model : nn.Module
        What `to_module` or `assemble` gave, or the upper part that `split_after` gave.

    Returns
    -------
    tuple of Block
        Every parameter of the trunk is in exactly one. Of a network that cannot be traced, in the order in which its
        modules were registered, and without boundaries.

    Raises
    ------
    HandoffError
        When the model has no trunk that is a cut backbone.

    Examples
    --------
    >>> import featcache as fc
    >>> [block.name for block in blocks_of(fc.to_module("flowers.head"))][-2:]  # doctest: +SKIP
    ['layer4.0', 'layer4.1']
    """
    trunk = _trunk(model)
    order, prefix = _read(trunk)
    return tuple(
        Block(
            section.name,
            tuple(prefix + name for name in section.parameters),
            tuple(prefix + name for name in section.modules),
            place is not None,
            "" if place is None else _node(trunk, order.nodes[place]),
        )
        for section, place in zip(order.sections, order.boundaries(), strict=True)
    )


def head_parameters(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the parameters that belong to the head (or one's own top) and not to the trunk.

    Parameters
    ----------
    model : nn.Module
        As for `blocks_of`.

    Returns
    -------
    tuple of str
        As ``dict(model.named_parameters())`` has them.

    Raises
    ------
    HandoffError
        As for `blocks_of`.
    """
    _trunk(model)
    return tuple(name for name, _ in model.named_parameters() if name.split(".")[0] in _HEAD)


def split_after(model: nn.Module, block: str) -> tuple[nn.Module, nn.Module]:
    """Split a network in two after a block; both parts have the layers of the network itself, not copies.

    Parameters
    ----------
    model : nn.Module
        As for `blocks_of`.
    block : str
        Name of a block with a boundary.

    Returns
    -------
    lower : nn.Module
        What the model takes → one tensor.
    upper : nn.Module
        That tensor → scores. Has blocks and a head of its own, and its parameters have the names that they have in
        the model. Training it trains the model; what it computes is, bit for bit, what the model computes.

    Raises
    ------
    HandoffError
        When there is no such block, or the network cannot be split after it.

    Examples
    --------
    >>> lower, upper = split_after(model, "layer4.0")  # doctest: +SKIP
    >>> upper(lower(images))  # doctest: +SKIP
    """
    trunk = _trunk(model)
    order, _ = _read(trunk)
    names = [section.name for section in order.sections]
    places = dict(zip(names, order.boundaries(), strict=True))
    place = places.get(block)
    if place is None or not isinstance(trunk, Cut):
        possible = [name for name, there in places.items() if there is not None]
        raise HandoffError(
            f"block {block!r}: expected a block after which one tensor is all that is handed on"
            + (f" ({', '.join(possible[-8:])}), got {'another' if block in places else 'no block of this network'}; "
               "name one of those" if possible else ", got a network that has none; train it as a whole")
        )  # fmt: skip
    below, above, copies = split_graph(trunk.trunk, place)
    rest = _shallow(trunk, trunk=above)
    rest.names = {copy.name: trunk.names[node.name] for node, copy in copies.items() if node.name in trunk.names}
    prepare = getattr(model, "prepare", None)
    lower = LowerPart(nn.Identity() if prepare is None else prepare, below)
    lower.training = model.training
    replaced: dict[str, nn.Module] = {"trunk": rest}
    if prepare is not None:
        replaced["prepare"] = nn.Identity()
    return lower, _shallow(model, **replaced)


def _trunk(model: nn.Module) -> Cut | HookCut:
    trunk = getattr(model, "trunk", None)
    if isinstance(trunk, (Cut, HookCut)):
        return trunk
    raise HandoffError(
        f"model {type(model).__name__}: expected a network from to_module or assemble, with a cut backbone as its "
        f"trunk, got {type(trunk).__name__ if trunk is not None else 'none'}; make it with one of them"
    )


def _read(trunk: Cut | HookCut) -> tuple[Order, str]:
    """Return the trunk's sections, and what its names begin with in the whole network."""
    inner = trunk.trunk if isinstance(trunk, Cut) else trunk.model
    units = frozenset(trunk.units if isinstance(trunk, Cut) else units_of(inner))
    # What is left of a unit above the cut may be a norm alone, which counts to the block before it.
    found = {unit_of(name, units) for name, parameter in inner.named_parameters() if parameter.ndim > 1}
    kept = frozenset(unit for unit in found if unit is not None)
    if isinstance(trunk, Cut):
        return order_of(trunk.trunk, kept, trunk.names), "trunk.trunk."
    return registered(inner, kept), "trunk.model."


def _node(trunk: Cut | HookCut, node: fx.Node) -> str:
    return trunk.names.get(node.name, "") if isinstance(trunk, Cut) else ""


def _shallow(module: Network, **replaced: nn.Module) -> Network:
    """Return a module that shares everything with another but the named children."""
    twin = copy.copy(module)
    twin._modules = {**module._modules, **replaced}
    return twin
