"""The units that a network is built of: residual blocks, encoder layers, single convolutions; not stages, not layers.

Read off the module tree while it still has its classes (a cut graph has none), by three rules: plain containers and
what repeats one class of block are opened; what has one layer of weights is a unit; so is everything else.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

__all__ = ["unit_of", "units_of"]

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)

#: A module with so many parts of several classes is a network, not a block (a block of MaxViT has three).
_MANY = 4


def units_of(root: nn.Module) -> tuple[str, ...]:
    """Return the paths of a network's units, in the order in which they were registered.

    Parameters
    ----------
    root : nn.Module
        The network, with its own classes; its parameters may be on the meta device.

    Returns
    -------
    tuple of str
        E.g. ``("conv1", "layer1.0", …, "fc")`` of a ResNet-18. Norms beside units are in none of them.

    Examples
    --------
    >>> units_of(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Sequential(nn.Linear(4, 4), nn.ReLU())))
    ('0', '2')
    """
    return tuple(_units(root, ""))


def unit_of(path: str, units: frozenset[str]) -> str | None:
    """Return the unit that a module, parameter or node lies in, None where it lies in none."""
    parts = path.split(".")
    return next((unit for i in range(len(parts), 0, -1) if (unit := ".".join(parts[:i])) in units), None)


def _units(module: nn.Module, path: str) -> Iterator[str]:
    for name, child in module.named_children():
        inner, weights = f"{path}.{name}" if path else name, _weights(child)
        if weights > 1 and _opens(child):
            yield from _units(child, inner)
        elif weights:
            yield inner


def _opens(module: nn.Module) -> bool:
    """Whether the units lie inside a module, so that it is none itself."""
    if type(module) in _CONTAINERS:
        return True
    parts = list(_parts(module))
    if isinstance(module, _CONTAINERS):  # a stage; a sequence of single layers is a unit
        return all(child in parts for child in module.children() if _weights(child)) and not _is_leaf(module)
    kinds = {type(part) for part in parts}
    return (len(parts) > 1 and (len(kinds) == 1 or len(parts) >= _MANY)) or any(_opens(part) for part in parts)


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    """Yield what a module is made of and has several layers of weights itself; plain containers are looked through."""
    for child in module.children():
        if type(child) in _CONTAINERS:
            yield from _parts(child)
        elif not _is_leaf(child) and _weights(child) > 1:
            yield child


def _is_leaf(module: nn.Module) -> bool:
    """Whether a module is one of torch's own layers (attention has layers inside, and is one all the same)."""
    return not any(True for _ in module.children()) or (
        type(module).__module__.startswith("torch.nn") and type(module) not in _CONTAINERS
    )


def _weights(module: nn.Module) -> int:
    """Count the layers of weights in a module; norms have none."""
    if _is_leaf(module):
        return int(any(p.ndim > 1 for p in module.parameters()))
    own = any(p.ndim > 1 for p in module.parameters(recurse=False))
    return int(own) + sum(_weights(child) for child in module.children())
