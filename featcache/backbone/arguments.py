"""What the arguments of `Backbone` mean, checked and put in one form. Imports neither torch nor torchvision."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ..errors import BackboneError, SpecError, WeightsError, WeightsUnavailable
from ..fingerprint import canonical, describe_difference

__all__ = [
    "ENGINES",
    "MODES",
    "POOLINGS",
    "Kind",
    "Mode",
    "check_engine",
    "check_mode",
    "check_pixels",
    "check_same",
    "checked_kwargs",
    "checked_nodes",
    "checked_pooling",
    "checked_seed",
    "classify",
    "cores",
    "embedded_file",
    "located",
    "module_label",
    "parse_mode",
    "sha256_of",
    "version_of",
]

#: What `pooling` may be.
POOLINGS = ("avg", "max", "gem", "cls", "none")

#: What `mode` may be; the low ones also with layers left out: "bf16-except:features.0.0,features.1.conv.0.0".
MODES = ("fp32", "bf16", "fp16")
_EXCEPT = "-except:"

#: What `engine` may be.
ENGINES = ("auto", "eager", "fused", "compiled")

#: Where weights come from; the locator's "kind".
Kind = Literal["enum", "file", "url", "random", "embedded", "state_dict", "module"]

_SUFFIXES = (".pth", ".pt", ".safetensors", ".bin", ".ckpt", ".tar", ".th", ".pkl")


def classify(model: Any, weights: Any) -> tuple[Kind, Any]:
    """Return what kind of weights were meant, and the weights in one form.

    Parameters
    ----------
    model, weights
        As the user gave them.

    Returns
    -------
    kind : Kind
        A text is a URL, "random", a file (when it ends like one, names a folder, or exists) or else an enum name.
    weights : str, Path or mapping
        An enum member as its name.

    Raises
    ------
    BackboneError, WeightsError
        For types that cannot be either.
    """
    if not isinstance(model, str):
        if not callable(model):
            raise BackboneError(
                f"model: expected a name, an nn.Module or a function that builds one, got {type(model).__name__}"
            )
        _only_default(weights, f"model {module_label(model)}: carries its own weights, load them into it")
        return "module", "DEFAULT"
    if model == "embedded":
        _only_default(weights, "model 'embedded': comes with its weights; name its architecture to load others")
        return "embedded", "embedded"
    if isinstance(weights, Enum):
        return "enum", weights.name
    if isinstance(weights, Mapping):
        return "state_dict", weights
    if isinstance(weights, Path):
        return "file", weights
    if not isinstance(weights, str) or not weights:
        got = repr(weights) if isinstance(weights, (str, int, float, type(None))) else type(weights).__name__
        raise WeightsError(
            f"weights for {model}: expected an enum name, file, URL, 'random' or a state_dict, got {got}; "
            "'random' starts without pretrained weights"
        )
    return _classify_text(weights), weights


def _only_default(weights: Any, message: str) -> None:
    if not isinstance(weights, str) or weights not in ("DEFAULT", "embedded"):
        raise BackboneError(f"{message}; leave weights= out")


def _classify_text(weights: str) -> Kind:
    scheme = weights.split("://", 1)[0].lower() if "://" in weights else ""
    if scheme in ("http", "https"):
        return "url"
    if scheme:
        raise WeightsError(f"weights {weights!r}: expected http or https; fetch the file and pass its path")
    if weights == "random":
        return "random"
    path = Path(weights).expanduser()
    looks_like_file = "/" in weights or weights.lower().endswith(_SUFFIXES)
    return "file" if looks_like_file or path.exists() else "enum"


def checked_nodes(nodes: Any) -> list[str]:
    """Return node names as a list, from "a,b" or a sequence; BackboneError for anything else."""
    parts = nodes.split(",") if isinstance(nodes, str) else nodes
    if not isinstance(parts, Sequence) or not all(isinstance(n, str) for n in parts):
        raise BackboneError(f"nodes: expected a name or a list of names, got {nodes!r}; 'penultimate' is the default")
    names = [n.strip() for n in parts]
    if not names or not all(names):
        raise BackboneError(f"nodes: expected at least one name and no empty ones, got {nodes!r}; try 'penultimate'")
    return list(dict.fromkeys(names))


def checked_pooling(pooling: Any) -> str | dict[str, str]:
    """Return pooling as given, or BackboneError when it is unknown."""
    wishes = list(pooling.values()) if isinstance(pooling, Mapping) else [pooling]
    for wish in wishes:
        if wish not in POOLINGS:
            raise BackboneError(f"pooling: expected one of {', '.join(POOLINGS)}, got {wish!r}; 'avg' is the default")
    return dict(pooling) if isinstance(pooling, Mapping) else str(pooling)


def checked_seed(seed: Any) -> int | None:
    """Return the seed as an int in [0, 2**63), None for none; BackboneError otherwise."""
    if seed is None:
        return None
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= int(seed) < 2**63:
        raise BackboneError(f"init_seed: expected an integer in [0, 2**63), got {seed!r}; 0 will do")
    return int(seed)


def checked_kwargs(kwargs: Any) -> dict[str, Any]:
    """Return keyword arguments as a dict; SpecError when they cannot be written in a spec."""
    given = dict(kwargs or {})
    for name in ("weights", "progress", "pretrained"):
        if name in given:
            raise BackboneError(f"model_kwargs: {name!r} is not for the builder; pass weights= to Backbone")
    try:
        canonical({"model_kwargs": given})
    except SpecError as error:
        raise SpecError(f"{error}: build the network yourself and pass it with version=") from error
    return given


@dataclass(frozen=True)
class Mode:
    """A precision mode, read.

    Attributes
    ----------
    base : str
        One of `MODES`.
    kept : tuple of str
        Layers computed in float32 although the others are not, in the order given.
    """

    base: str
    kept: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.base + (_EXCEPT + ",".join(self.kept) if self.kept else "")


def parse_mode(mode: Any) -> Mode:
    """Return what a mode says; BackboneError for an unknown one. Whether its layers exist the network knows."""
    text = mode if isinstance(mode, str) else ""
    base, mixed, names = text.partition(_EXCEPT)
    kept = tuple(dict.fromkeys(names.split(","))) if mixed else ()
    if base not in MODES or (mixed and (base == "fp32" or not all(kept))):
        raise BackboneError(
            f"mode: expected one of {', '.join(MODES)}, or 'bf16-except:LAYER,LAYER', got {mode!r}; 'fp32' is the "
            "default"
        )
    return Mode(base, kept)


def check_mode(mode: Any) -> None:
    """Raise BackboneError for an unknown precision mode."""
    parse_mode(mode)


def check_engine(engine: Any) -> None:
    """Raise BackboneError for an unknown engine."""
    if engine not in ENGINES:
        raise BackboneError(f"engine: expected one of {', '.join(ENGINES)}, got {engine!r}; 'auto' is the default")


def check_pixels(pixels: Any, shape: tuple[int, int, int]) -> None:
    """Raise BackboneError unless `pixels` is a uint8 array of shape (N, *shape)."""
    if isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8 and pixels.shape[1:] == shape:
        return
    got = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
    raise BackboneError(
        f"pixels: expected a uint8 array (N, {', '.join(map(str, shape))}), got {got}; stack what "
        "backbone.preprocess.pixels(image) gives"
    )


def module_label(model: Any) -> str:
    """Return what messages and specs call a user's own network."""
    return getattr(model, "__name__", None) or type(model).__name__


def embedded_file() -> Path:
    """Return where the package keeps its own small backbone; BackboneError when it was built without."""
    path = Path(__file__).resolve().parents[1] / "assets" / "embedded.safetensors"
    if not path.is_file():
        raise BackboneError(f"model 'embedded': {path} is not in this installation; reinstall featcache")
    return path


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file's content as 64 hex digits.

    Raises
    ------
    WeightsUnavailable
        When there is no such file.
    WeightsError
        When it is a folder or cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise WeightsUnavailable(f"weights file {path}: expected a file, found none; check the path") from None
    except IsADirectoryError:
        raise WeightsError(
            f"weights {path}: expected a file (.pth, .pt, .safetensors), got a folder; name the file inside it"
        ) from None
    except OSError as error:
        raise WeightsError(f"weights file {path}: cannot be read ({error.strerror}); check its permissions") from error


def version_of(package: str) -> str:
    """Return an installed package's version without importing it; "unknown" for a bare source tree."""
    loaded = getattr(sys.modules.get(package), "__version__", None) if package == "featcache" else None
    try:
        return loaded or importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def located(wanted: Mapping[str, Any], locator: Mapping[str, Any], weights: Any) -> tuple[Any, Any]:
    """Return the model and weights arguments that a spec and a locator stand for.

    Parameters
    ----------
    wanted : mapping
        The "backbone" part of a spec.
    locator : mapping
        Where the weights were.
    weights : optional
        What the user gave instead.

    Raises
    ------
    WeightsUnavailable
        When only the user has them, or the file is gone.
    """
    kind, value = locator["kind"], str(locator["value"])
    if wanted.get("version") is not None:
        if weights is None:
            raise WeightsUnavailable(
                f"model {wanted['arch']} (version {wanted['version']!r}): your own network; pass it as weights="
            )
        return weights, "DEFAULT"
    if weights is not None:
        return wanted["arch"], weights
    if kind == "embedded":
        return "embedded", "DEFAULT"
    if kind == "state_dict":
        raise WeightsUnavailable(f"weights of {wanted['arch']}: they came from a state_dict in memory; pass weights=")
    if kind == "file" and not Path(value).is_file():
        raise WeightsUnavailable(
            f"weights file {value}: expected the file with SHA-256 {locator.get('sha256')}, found none; pass "
            "weights=FILE with its new place"
        )
    return wanted["arch"], "random" if kind == "random" else Path(value) if kind == "file" else value


def cores() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_same(found: Mapping[str, Any], wanted: Mapping[str, Any], where: str) -> None:
    """Raise WeightsError unless two specs are the same, naming what differs."""
    differences = describe_difference(wanted, found)
    if differences:
        raise WeightsError(
            f"weights {where}: expected the recorded ones, got others ({'; '.join(differences)}); pass weights= with "
            "the recorded ones"
        )
