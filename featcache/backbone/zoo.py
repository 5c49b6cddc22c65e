"""The architectures: torchvision's classification models and the package's own small one.

Names, weights enums, preprocessing recipes, and how a model is built: on the meta device (shapes and names, no memory)
when tensors will be loaded into it, for real when it starts from seeded random numbers.
"""

from __future__ import annotations

import difflib
import inspect
import warnings
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
import torchvision
from torch import nn
from torch.overrides import TorchFunctionMode

from ..errors import BackboneError, WeightsError
from ..preprocess import Preprocess

__all__ = [
    "architectures",
    "build_random",
    "build_skeleton",
    "default_recipe",
    "guess_architecture",
    "implied_kwargs",
    "published_as",
    "recipe_of",
    "weights_enum",
]

#: What torchvision's own builders pass when they load ImageNet weights; without it GoogLeNet and Inception v3 see
#: inputs normalised for another network.
_IMPLIED_KWARGS: dict[str, dict[str, Any]] = {
    "googlenet": {"transform_input": True},
    "inception_v3": {"transform_input": True},
}

#: A tensor name that only one family has → how the names of its members begin. Used to guess what a file holds.
_FAMILIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("layer1.0.conv1.weight", ("resne", "wide_resnet")),
    ("features.denseblock1.denselayer1.norm1.weight", ("densenet",)),
    ("encoder.layers.encoder_layer_0.ln_1.weight", ("vit",)),
    ("features.1.0.attn.relative_position_bias_table", ("swin_t", "swin_s", "swin_b")),
    ("features.1.0.attn.logit_scale", ("swin_v2",)),
    ("features.1.0.layer_scale", ("convnext",)),
    ("features.1.conv.0.0.weight", ("mobilenet_v2",)),
    ("features.1.block.0.0.weight", ("mobilenet_v3", "efficientnet")),
    ("features.3.squeeze.weight", ("squeezenet",)),
    ("stage2.0.branch1.0.weight", ("shufflenet",)),
    ("layers.8.0.layers.0.weight", ("mnasnet",)),
    ("trunk_output.block1.block1-0.proj.0.weight", ("regnet",)),
    ("Mixed_5b.branch1x1.conv.weight", ("inception",)),
    ("inception3a.branch1.conv.weight", ("googlenet",)),
    ("blocks.0.layers.0.layers.MBconv.layers.pre_norm.weight", ("maxvit",)),
    ("classifier.6.weight", ("vgg", "alexnet")),
)


@cache
def architectures() -> tuple[str, ...]:
    """Return the names of torchvision's classification models, sorted."""
    return tuple(sorted(torchvision.models.list_models(module=torchvision.models)))


def check_architecture(name: str) -> None:
    """Raise BackboneError, with the nearest names, unless torchvision has a classification model called `name`."""
    if name in architectures():
        return
    near = difflib.get_close_matches(name, architectures(), n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}?" if near else "`featcache backbones` lists them"
    raise BackboneError(
        f"model {name!r}: expected 'embedded' or one of torchvision {torchvision.__version__}'s "
        f"{len(architectures())} classification models; {hint}"
    )


def weights_enum(arch: str, name: str) -> Any:
    """Return a member of an architecture's weights enum; "DEFAULT" gives the concrete member it stands for.

    Parameters
    ----------
    arch : str
        Architecture, e.g. "resnet50".
    name : str
        "DEFAULT", "IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V1", …

    Returns
    -------
    torchvision.models.WeightsEnum
        The member; its ``name`` is never "DEFAULT".

    Raises
    ------
    WeightsError
        When the architecture has no such weights.
    """
    enum = torchvision.models.get_model_weights(arch)
    short = name.removeprefix(enum.__name__ + ".")
    try:
        return enum[short]  # DEFAULT is an alias: the member's own name is the concrete one
    except KeyError:
        known = ", ".join(member.name for member in enum) or "none"
        raise WeightsError(
            f"weights {name!r} for {arch}: expected one of {known}, a file (.pth, .pt, .safetensors), a URL or "
            "'random'; check the spelling, or that the file exists"
        ) from None


def published_as(arch: str, sha256: str) -> Any | None:
    """Return the enum member whose file has this SHA-256, or None.

    torchvision's file names end in the first 8 digits of their SHA-256, so a downloaded file is recognised whatever it
    is called now, and gets the recipe that belongs to it.
    """
    for member in torchvision.models.get_model_weights(arch):
        prefix = member.url.rsplit("-", 1)[-1].split(".")[0]
        if len(prefix) >= 8 and sha256.startswith(prefix):
            return member
    return None


def recipe_of(member: Any) -> Preprocess:
    """Return the preprocessing that a weights enum member was evaluated with."""
    return Preprocess.from_torchvision(member.transforms())


def default_recipe(arch: str) -> Preprocess:
    """Return an architecture's default preprocessing: that of IMAGENET1K_V1, or else of its first weights.

    The first published weights, not ``DEFAULT``: files in circulation were mostly trained with that recipe, and a later
    torchvision does not change it.
    """
    return recipe_of(_first_member(arch))


def _first_member(arch: str) -> Any:
    members = list(torchvision.models.get_model_weights(arch))
    if not members:
        raise BackboneError(
            f"model {arch!r}: torchvision publishes no preprocessing for it; pass preprocess=Preprocess(...)"
        )
    return next((m for m in members if m.name == "IMAGENET1K_V1"), members[0])


def implied_kwargs(arch: str, member: Any | None) -> dict[str, Any]:
    """Return the model keyword arguments that published weights ask for, as torchvision's builders set them.

    Parameters
    ----------
    arch : str
        Architecture.
    member : WeightsEnum member or None
        The published weights; None for others, which get those of the default recipe but no ``transform_input``.

    Returns
    -------
    dict
        ``transform_input`` for GoogLeNet and Inception v3, ``image_size`` for a ViT that is not at 224 pixels.
    """
    kwargs = dict(_IMPLIED_KWARGS.get(arch, {})) if member is not None else {}
    if arch.startswith("vit_"):
        size = int((member or _first_member(arch)).meta["min_size"][0])
        kwargs |= {} if size == 224 else {"image_size": size}
    return kwargs


class _Allocate(TorchFunctionMode):
    """Parameters are allocated on `device` as float32, whatever the process-wide defaults are.

    Only plain allocations are moved: index tables that a model computes (``arange``, ``meshgrid``) stay real, so that
    on the meta device everything but the parameters is ready for use.
    """

    _FUNCTIONS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if func in self._FUNCTIONS and kwargs.get("device") is None:
            kwargs["device"] = self._device
            if kwargs.get("dtype") is None and func is not torch.full:
                kwargs["dtype"] = torch.float32
        return func(*args, **kwargs)


def _build(arch: str, kwargs: Mapping[str, Any], device: str) -> nn.Module:
    check_architecture(arch)
    builder = torchvision.models.get_model_builder(arch)
    options = dict(kwargs)
    if arch in _IMPLIED_KWARGS:  # auxiliary heads are for training only; init_weights= silences a FutureWarning
        options = {"aux_logits": False, "init_weights": device != "meta", **options}
    try:
        with warnings.catch_warnings(), torch.device("cpu"), _Allocate(device):
            warnings.simplefilter("ignore", FutureWarning)
            return builder(weights=None, **options).eval()
    except (TypeError, ValueError) as error:
        accepted = [p for p in inspect.signature(builder).parameters if p not in ("weights", "progress", "kwargs")]
        raise BackboneError(
            f"model {arch!r} with model_kwargs={dict(kwargs)!r}: torchvision refuses them ({_one_line(error)}); pass "
            f"what its class takes{', e.g. ' + ', '.join(accepted) if accepted else ''}"
        ) from error


def build_skeleton(arch: str, kwargs: Mapping[str, Any], channels: int = 3) -> nn.Module:
    """Build a model whose parameters are on the meta device: names, shapes and graph, but no memory and no numbers.

    Parameters
    ----------
    arch : str
        Architecture.
    kwargs : mapping
        Keyword arguments of the torchvision builder.
    channels : int, default 3
        Channels of the input; another number than 3 replaces the first convolution by one of that width.

    Returns
    -------
    nn.Module
        In eval mode. The global random state is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        return _fit_stem(_build(arch, kwargs, "meta"), channels, "meta")


def build_random(arch: str, kwargs: Mapping[str, Any], seed: int, channels: int = 3) -> nn.Module:
    """Build a model with torchvision's own initialisation, drawn from `seed`; the global random state is left alone."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would reseed every accelerator as well
        return _fit_stem(_build(arch, kwargs, "cpu"), channels, "cpu")


def _fit_stem(model: nn.Module, channels: int, device: str) -> nn.Module:
    """Give the first convolution `channels` inputs, everything else as it is."""
    if channels == 3:
        return model
    name, stem = next((n, m) for n, m in model.named_modules() if isinstance(m, nn.Conv2d))
    parent, _, leaf = name.rpartition(".")
    with torch.device("cpu"), _Allocate(device):
        replacement = nn.Conv2d(
            channels,
            stem.out_channels,
            stem.kernel_size,  # type: ignore[arg-type]
            stem.stride,  # type: ignore[arg-type]
            stem.padding,  # type: ignore[arg-type]
            stem.dilation,  # type: ignore[arg-type]
            stem.groups,
            stem.bias is not None,
        )
    setattr(model.get_submodule(parent), leaf, replacement.eval())
    return model


def guess_architecture(shapes: Mapping[str, tuple[int, ...]]) -> str | None:
    """Name the torchvision architecture that a set of tensors fits best, judged by names and shapes.

    Parameters
    ----------
    shapes : mapping
        Tensor name → shape.

    Returns
    -------
    str or None
        None when no family's characteristic tensor is present, or less than 90 % of the best model's tensors are.
    """
    starts = next((members for key, members in _FAMILIES if key in shapes), ())
    best, best_share = None, 0.9
    for name in architectures():
        if not name.startswith(starts or ("\0",)):
            continue
        wanted = {k: tuple(v.shape) for k, v in build_skeleton(name, {}).state_dict().items()}
        wanted = {k: v for k, v in wanted.items() if not k.endswith("num_batches_tracked")}
        share = sum(shapes.get(k) == v for k, v in wanted.items()) / len(wanted)
        if share > best_share:
            best, best_share = name, share
    return best


def listing() -> list[dict[str, Any]]:
    """Describe every model: see `featcache.backbone.list_backbones`."""
    return [_row(name) for name in architectures()]


def _row(name: str) -> dict[str, Any]:
    enum = torchvision.models.get_model_weights(name)
    first = _first_member(name)
    return {
        "name": name,
        "parameters": first.meta.get("num_params"),
        "weights": [member.name for member in enum],
        "default": enum.DEFAULT.name,
        "input": list(recipe_of(first).shape),
    }


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
