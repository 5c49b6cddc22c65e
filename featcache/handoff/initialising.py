"""Networks that begin from random numbers, seeded: a new layer, a new head, everything from scratch."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, TypeVar

from ..errors import HandoffError

if TYPE_CHECKING:
    import torch
    from torch import nn

__all__ = ["fresh", "initialise", "with_fresh_head"]

Network = TypeVar("Network", bound="nn.Module")


def initialise(module: Network, seed: int = 0) -> Network:
    """Give every layer of a module new random numbers that keep the variance of what goes through, as torchvision does.

    Parameters
    ----------
    module : nn.Module
        On the CPU; changed in place.
    seed : int, default=0
        Of a generator of its own: the global random state is left alone.

    Returns
    -------
    nn.Module
        The same; ``module.initialised_seed`` keeps the seed. Convolutions: normal numbers of variance 2 / fan out.
        Linear layers: of variance 2 / fan in, but the last layer of the module, if it is one, of deviation 0.01. Norms:
        ones and zeros, their running statistics reset. All biases: zero. Layers of other kinds: by their own
        ``reset_parameters``. Parameters that lie in no such layer stay as they are.

    Raises
    ------
    HandoffError
        When a parameter is not on the CPU, or the seed is no number from 0 to 2^63 - 1.

    Notes
    -----
    He, Zhang, Ren, Sun (2015), "Delving Deep into Rectifiers"; the choices are those of torchvision's ResNet and
    MobileNetV2.

    Examples
    --------
    >>> from torch import nn
    >>> top = initialise(nn.Sequential(nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16, 2)), seed=1)
    >>> bool(top[2].bias.any()), top.initialised_seed
    (False, 1)
    """
    layers = [layer for layer in module.modules() if any(True for _ in layer.parameters(recurse=False))]
    _draw(module, seed, last=layers[-1] if layers else None)
    return module


def _draw(module: nn.Module, seed: int, last: nn.Module | None = None) -> None:
    """Initialise a module; `last` is the layer that gives scores, where there is one."""
    import torch

    _check_seed(seed)
    _check_device(module)
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every accelerator as well
        _initialise(module, last)
    module.initialised_seed = seed  # type: ignore[assignment]


def _initialise(layer: nn.Module, last: nn.Module | None) -> None:
    from torch import nn

    if isinstance(layer, nn.modules.conv._ConvNd):
        nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        _zero(layer.bias)
    elif isinstance(layer, nn.Linear):
        nn.init.normal_(layer.weight, std=0.01 if layer is last else math.sqrt(2.0 / layer.in_features))
        _zero(layer.bias)
    elif isinstance(layer, nn.MultiheadAttention):
        layer.out_proj.reset_parameters()
        layer._reset_parameters()  # zeros that layer's bias, too
        return
    elif callable(reset := getattr(layer, "reset_parameters", None)):  # ones and zeros, of norms
        reset()
    for child in layer.children():
        _initialise(child, last)


def _zero(bias: torch.Tensor | None) -> None:
    if bias is not None:
        bias.zero_()


def with_fresh_head(model: Network, seed: int = 0) -> Network:
    """Return a network with a linear head of random numbers: what fine-tuning begins with where there is no hand-off.

    Parameters
    ----------
    model : nn.Module
        What `to_module` gave; stays as it is.
    seed : int, default=0
        Of the head: ``nn.Linear`` by torch's own rule. The global random state is left alone.

    Returns
    -------
    nn.Module
        A copy. The head takes codes as they are: what stood in front of it belonged to the head before.

    Raises
    ------
    HandoffError
        When the network has no linear head, for a bad seed, or when it is not on the CPU.

    Examples
    --------
    >>> start = with_fresh_head(fc.to_module("flowers.head"), seed=1)  # doctest: +SKIP
    """
    import torch
    from torch import nn

    _check_seed(seed)
    _check_device(model)
    head = getattr(model, "head", None)
    if not isinstance(head, nn.Linear):
        raise HandoffError(
            f"model {type(model).__name__}: expected a linear head, got {type(head).__name__}; use a network from "
            "to_module"
        )
    twin = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        twin.head = nn.Linear(head.in_features, head.out_features, dtype=torch.float32, device="cpu")
    twin.prelude = nn.Identity()
    twin.initialised_seed = seed  # type: ignore[assignment]
    return twin.train(model.training)


def fresh(model: Network, seed: int = 0) -> Network:
    """Return a network of the same shape that has learned nothing yet: to train from scratch.

    Parameters
    ----------
    model : nn.Module
        What `to_module` or `assemble` gave; stays as it is.
    seed : int, default=0
        Of all random numbers. The global random state is left alone.

    Returns
    -------
    nn.Module
        A copy, all of it trainable. The trunk has the numbers with which torchvision builds its architecture after
        ``torch.manual_seed(seed)`` (a network of one's own those of `initialise`), the head those of
        `with_fresh_head`, a top of one's own those of `initialise`.

    Raises
    ------
    HandoffError
        For a bad seed, or when the network has no trunk that is a cut backbone, or is not on the CPU.

    Examples
    --------
    >>> model = fresh(fc.to_module("flowers.head"), seed=1)  # doctest: +SKIP
    """
    from ..backbone.cut import Cut, HookCut

    _check_seed(seed)
    _check_device(model)
    trunk = getattr(model, "trunk", None)
    if not isinstance(trunk, (Cut, HookCut)):
        raise HandoffError(
            f"model {type(model).__name__}: expected a network from to_module or assemble, got one without a cut "
            "backbone; make it with one of them"
        )
    twin = with_fresh_head(model, seed) if hasattr(model, "head") else copy.deepcopy(model)
    if hasattr(twin, "top"):
        initialise(twin.get_submodule("top"), seed)
    _restart(twin.get_submodule("trunk"), seed)
    twin.initialised_seed = seed  # type: ignore[assignment]
    return twin.requires_grad_(True)


def _restart(trunk: nn.Module, seed: int) -> None:
    """Give a trunk the numbers that its architecture is built with."""
    from ..backbone.cut import Cut

    if not isinstance(trunk, Cut) or trunk.built is None:
        _draw(trunk, seed)
        return
    from ..backbone.zoo import build_random

    arch, kwargs, channels = trunk.built
    built = build_random(arch, kwargs, seed, channels).state_dict()
    own = trunk.trunk.state_dict()
    # Constants that tracing has made tensors of are not among the architecture's.
    trunk.trunk.load_state_dict({name: built[name] for name in own if name in built}, strict=False)


def _check_seed(seed: int) -> None:
    if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed < 2**63:
        raise HandoffError(f"seed: expected a whole number from 0 to 2^63 - 1, got {seed!r}; give e.g. 0")


def _check_device(module: nn.Module) -> None:
    for name, parameter in module.named_parameters():
        if parameter.device.type != "cpu":
            raise HandoffError(
                f"parameter {name}: expected the CPU, where seeded numbers are the same everywhere, got "
                f"{parameter.device}; initialise before moving to a device"
            )
