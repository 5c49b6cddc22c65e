"""A network as tensors and a recipe, and the network again: no code travels, so no code of a file is run.

What can be rebuilt is what featcache itself builds: a torchvision architecture cut at its nodes, and a linear layer on
them. Whoever has put a module of their own in between keeps it as .pt2 or ONNX, or in their own program.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ..backbone import Backbone
from ..errors import HandoffError
from ..preprocess import Preprocess
from .answering import Meaning, check_finite
from .checking import compare, pixels_of, run_of
from .modules import check_images, preparation
from .parts import check_parts

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["backbone_tensors", "pack_network", "rebuild_backbone", "rebuild_network"]

_FROM = "backbone."
_OTHERWISE = "export it as .pt2 or .onnx, or keep it in your own program"
#: Tensors in a bundle stand for themselves; nothing is looked for elsewhere.
_HERE = {"kind": "state_dict", "value": "state_dict"}


def backbone_tensors(trunk: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of a cut backbone by the architecture's own names; HandoffError for another module."""
    from ..backbone.cut import Cut

    if type(trunk) is not Cut or trunk.built is None:
        raise HandoffError(
            "backbone: expected an architecture of torchvision, got a network of your own, which cannot be "
            "built again without its code; use include_weights=False and give it as weights= when predicting"
        )
    state = trunk.trunk.state_dict()
    return {
        name: tensor.detach().cpu().contiguous().clone()
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }


def rebuild_backbone(
    tensors: Mapping[str, Tensor], spec: Mapping[str, Any], kwargs: Mapping[str, Any] | None = None
) -> Backbone:
    """Return the backbone that tensors belong to, verified by the digest in its spec."""
    named = {name.removeprefix(_FROM): tensor for name, tensor in tensors.items() if name.startswith(_FROM)}
    return Backbone.from_spec(spec, {**_HERE, "kwargs": dict(kwargs or {})}, named)


def pack_network(module: nn.Module, meaning: Meaning) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, Any]]:
    """Take a network apart.

    Parameters
    ----------
    module : nn.Module
        A network of `to_module`, fine-tuned or not.
    meaning : Meaning
        Its spec says preprocessing.

    Returns
    -------
    tensors : dict of str to Tensor
        All of its tensors.
    parts : dict
        What stands between backbone and last layer, JSON types.
    spec : dict
        That of its codes, with the digest of these tensors.

    Raises
    ------
    HandoffError
        For a network with modules of one's own.
    """
    parts = _parts(module)
    trunk: Any = module.trunk
    if trunk.built is None:
        raise HandoffError(f"network: its backbone is your own and cannot be built again; {_OTHERWISE}")
    tensors = {_FROM + name: tensor for name, tensor in backbone_tensors(trunk).items()}
    arch, kwargs, _ = trunk.built
    backbone = Backbone(
        arch,
        {name.removeprefix(_FROM): tensor for name, tensor in tensors.items()},
        nodes=list(trunk.poolings),
        pooling=dict(trunk.poolings),
        preprocess=Preprocess.from_spec(meaning.spec["preprocess"]),
        model_kwargs=kwargs,
    )
    parts |= {"images": meaning.images, "kwargs": dict(kwargs)}
    for name in ("head", "prelude"):
        state = getattr(module, name).state_dict()
        tensors |= {f"{name}.{key}": tensor.detach().cpu().contiguous().clone() for key, tensor in state.items()}
    spec = {**meaning.spec, **backbone.spec}
    _check_same(module, rebuild_network(tensors, parts, spec, list(meaning.classes) or [meaning.target], {}), meaning)
    return tensors, parts, spec


def _parts(module: nn.Module) -> dict[str, Any]:
    from torch import nn

    from .._modules import ClassifierNetwork, JoinLayers, Standardise
    from ..backbone.cut import Cut

    own = [] if type(module) is ClassifierNetwork else [type(module)]
    if not own:
        allowed: dict[str, tuple[type, ...]] = {
            "trunk": (Cut,),
            "join": (nn.Identity, JoinLayers),
            "prelude": (nn.Identity, Standardise),
            "head": (nn.Linear,),
        }
        own = [
            type(getattr(module, name)) for name, types in allowed.items() if type(getattr(module, name)) not in types
        ]
    if own:
        raise HandoffError(
            f"network: expected what to_module made, got a module {own[0].__name__}, which cannot be rebuilt without "
            f"its code; {_OTHERWISE}"
        )
    join, prelude = module.join, module.prelude
    joined = isinstance(join, JoinLayers) and {"nodes": list(join.nodes), "shapes": [list(s) for s in join.shapes]}
    raised = isinstance(prelude, Standardise) and {"power": prelude.power, "unit": prelude.unit}
    return {"node": module.node, "join": joined or None, "prelude": raised or None}


def rebuild_network(
    tensors: Mapping[str, Tensor],
    parts: Mapping[str, Any],
    spec: Mapping[str, Any],
    classes: list[str],
    meaning: Mapping[str, str],
) -> nn.Module:
    """Put a network together again; in eval mode, the trunk frozen, as `to_module` gives it.

    Raises HandoffError, before anything is computed, where its parts do not belong together.
    """
    from .._modules import ClassifierNetwork, JoinLayers, Standardise
    from ..backbone.waking import trainable

    check_images(parts["images"])
    joined, raised = parts["join"], parts["prelude"]
    backbone = rebuild_backbone(tensors, spec, parts["kwargs"])
    check_parts(tensors, parts, backbone.output_shapes, classes)
    node = JoinLayers(joined["nodes"], [tuple(s) for s in joined["shapes"]]) if joined else parts["node"]
    prelude = None
    if raised:
        prelude = Standardise(tensors["prelude.shift"], tensors["prelude.scale"], raised["power"], raised["unit"])
    module = ClassifierNetwork(
        trainable(backbone.module()),
        node,
        tensors["head.weight"],
        tensors["head.bias"],
        classes,
        prelude,
        preparation(parts["images"], backbone.preprocess),
        backbone.preprocess,
    )
    module.meaning = dict(meaning) or None
    return module.eval()


def _check_same(module: nn.Module, again: nn.Module, meaning: Meaning) -> None:
    """Raise HandoffError unless a network has the tensors of the one put together again, and computes the same."""
    import torch

    original = copy.deepcopy(module).cpu().eval()
    inputs = meaning.inputs(pixels_of(None, meaning.recipe)[0])
    ids = [f"generated image {i + 1}" for i in range(len(inputs))]
    check_finite(run_of(original)(inputs), ids, "network", "its weights are out of range, train it again")
    ours, theirs = (
        {name: tensor for name, tensor in each.state_dict().items() if not name.endswith("num_batches_tracked")}
        for each in (module, again)
    )
    differ = [n for n in ours if n not in theirs or not torch.equal(ours[n].cpu(), theirs[n])] + [
        n for n in theirs if n not in ours
    ]
    if differ:
        where = ", ".join(differ[:3])
        raise HandoffError(
            f"network: expected tensors that can be put together again, got others in {where}; {_OTHERWISE}"
        )
    found = compare(run_of(original), run_of(again), inputs)
    if not found.same:
        raise HandoffError(
            f"network: put together again from its tensors it computes other scores (by {found.relative:.3g}), so "
            f"something in it is your own; {_OTHERWISE}"
        )
