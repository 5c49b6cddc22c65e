"""Weights from outside: where they come from, how they are read, how their names are matched.

Nothing here runs code that came with a file: ``.pth`` files are read with ``weights_only=True``, always.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import pickle
import re
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import BackboneError, WeightsError, WeightsUnavailable
from ..preprocess import Preprocess
from .arguments import embedded_file, sha256_of

__all__ = ["LoadReport", "cache_folder", "fetch", "match", "read", "sha256_of", "unwrap"]

_NESTINGS = ("state_dict", "model_state_dict", "model", "net", "module", "model_ema", "weights")
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "net.", "network.", "trunk.")
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True)
class LoadReport:
    """How a set of tensors fitted an architecture.

    Attributes
    ----------
    missing : tuple of str
        Tensors of the architecture that the weights lack (``num_batches_tracked`` is not counted: it is never used).
    unexpected : tuple of str
        Tensors of the weights that the architecture has no place for.
    mismatched : tuple of (str, tuple of int, tuple of int)
        Name, expected shape, shape that came. An expected shape that came with a dtype that cannot be converted (int8
        without a scale) is listed with equal shapes.
    """

    missing: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()
    mismatched: tuple[tuple[str, tuple[int, ...], tuple[int, ...]], ...] = ()

    @property
    def unavailable(self) -> frozenset[str]:
        """Names that the architecture wants and did not get, missing or mismatched."""
        return frozenset(self.missing) | {name for name, _, _ in self.mismatched}


@dataclass(frozen=True)
class Matched:
    """Tensors under the architecture's own names, and what did not fit."""

    tensors: dict[str, Tensor]
    report: LoadReport
    given: dict[str, Tensor] = field(repr=False)


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read tensors from a ``.pth``/``.pt`` or ``.safetensors`` file; the content decides which it is, not the name.

    Parameters
    ----------
    path : Path
        The file.

    Returns
    -------
    tensors : dict of str to Tensor
        On the CPU, in the dtype of the file; int8 tensors that come with a ``<name>.scale`` are multiplied out.
    metadata : dict of str to str
        That of a safetensors file, else empty.

    Raises
    ------
    WeightsUnavailable
        When there is no such file.
    WeightsError
        When it is damaged, holds no tensors, or needs pickle to be read.
    """
    if _head(path)[8:9] == b"{" or path.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
        return _dequantised(tensors), metadata
    return unwrap(_read_torch(path), str(path)), {}


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(9)
    except OSError:
        sha256_of(path)  # the same attempt, with its messages
        raise


def _read_torch(path: Path) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
        if found or "weights_only" in str(error):
            raise WeightsError(
                f"weights file {path}: expected tensors only, but it needs pickle to be read"
                f"{f' ({found.group(1)})' if found else ''}, which can run code, and is refused; in the program that "
                "wrote it, save torch.save(model.state_dict(), ...) or a .safetensors file"
            ) from error
        raise _damaged(path, error) from error
    except Exception as error:  # torch raises a dozen kinds for a damaged file
        if "TorchScript" in str(error):
            raise WeightsError(
                f"weights file {path}: expected a state_dict, got a TorchScript archive; save its state_dict() instead"
            ) from error
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> WeightsError:
    reason = " ".join(str(error).split())[:120] or type(error).__name__
    return WeightsError(
        f"weights file {path}: expected a PyTorch or safetensors file, got {path.stat().st_size:,} bytes that cannot "
        f"be read ({reason}); it is damaged or of another kind, fetch it again"
    )


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file, without reading its tensors; empty for other files."""
    if _head(path)[8:9] != b"{":
        return {}
    try:
        with safe_open(str(path), framework="np") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def embedded_row() -> list[dict[str, Any]]:
    """Describe the package's own backbone for `list_backbones`; nothing when the package was built without it."""
    try:
        path = embedded_file()
    except BackboneError:
        return []
    with safe_open(str(path), framework="np") as file:
        names = [name for name in file.keys() if not name.endswith(".scale")]  # noqa: SIM118 - not a mapping
        count = sum(math.prod(file.get_slice(name).get_shape()) for name in names)
        recipe = json_in(file.metadata() or {}, "preprocess", str(path)) or {}
    shape = list(Preprocess.from_spec(recipe).shape) if recipe else None
    return [{"name": "embedded", "parameters": count, "weights": ["embedded"], "default": "embedded", "input": shape}]


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(str(path), framework="pt", device="cpu") as file:
            # clone: the tensors must not be a window on a file that someone may overwrite
            return {k: file.get_tensor(k).clone() for k in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _dequantised(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, tensor in tensors.items():
        scale = tensors.get(name + ".scale")
        if tensor.dtype == torch.int8 and scale is not None:
            scale = scale.float().reshape(-1, *[1] * (tensor.ndim - 1)) if tensor.ndim else scale.float()
            out[name] = tensor.float() * scale
        elif not (name.endswith(".scale") and _is_int8(tensors.get(name.removesuffix(".scale")))):
            out[name] = tensor
    return out


def _is_int8(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dtype == torch.int8


def unwrap(loaded: Any, label: str) -> dict[str, Tensor]:
    """Return the state_dict inside a checkpoint: ``{"state_dict": …}``, ``{"model": …, "optimizer": …}`` and the like.

    Parameters
    ----------
    loaded : Any
        What `torch.load` gave, or a mapping from the user.
    label : str
        What messages call it.

    Raises
    ------
    WeightsError
        When there is no mapping from names to tensors.
    """
    for _ in range(4):
        if not isinstance(loaded, Mapping):
            break
        tensors = {str(k): v for k, v in loaded.items() if isinstance(v, Tensor)}
        if tensors:
            return tensors
        inner = next((loaded[k] for k in _NESTINGS if isinstance(loaded.get(k), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    got = type(loaded).__name__
    if isinstance(loaded, Mapping):
        got = f"a mapping with {sorted(map(str, loaded))[:4]}" if loaded else "an empty one"
    raise WeightsError(
        f"weights {label}: expected a state_dict (names and tensors), got {got}; save model.state_dict()"
    )


def match(tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> Matched:
    """Match tensors with an architecture by name, stripping a common prefix when that fits better.

    Parameters
    ----------
    tensors : mapping
        What was read.
    wanted : mapping
        The architecture's state_dict (on the meta device, usually).

    Returns
    -------
    Matched
        Tensors in the architecture's dtypes; those of another shape are left out and reported.
    """
    given = _without_prefix(dict(tensors), wanted)
    fitting, mismatched = {}, []
    for name, tensor in given.items():
        if name not in wanted:
            continue
        expected = wanted[name]
        convertible = tensor.is_floating_point() == expected.is_floating_point() and not tensor.is_quantized
        if tensor.shape == expected.shape and convertible and tensor.layout == torch.strided:
            fitting[name] = tensor.detach().to(expected.dtype).contiguous()
        else:
            mismatched.append((name, tuple(expected.shape), tuple(tensor.shape)))
    missing = [k for k in wanted if k not in given and not k.endswith("num_batches_tracked")]
    unexpected = [k for k in given if k not in wanted]
    report = LoadReport(tuple(missing), tuple(sorted(unexpected)), tuple(mismatched))
    return Matched(fitting, report, given)


def _without_prefix(tensors: dict[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    def score(names: Iterable[str]) -> int:
        return sum(name in wanted for name in names)

    candidates = frontier = [tensors]
    for _ in range(4):  # "_orig_mod.module.trunk.trunk." happens
        frontier = [_strip(t, p) for t in frontier for p in _PREFIXES if any(k.startswith(p) for k in t)]
        candidates = candidates + frontier
    return max(candidates, key=score)  # the first of equals: as few prefixes as possible


def _strip(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    kept = {k: v for k, v in tensors.items() if not k.startswith(prefix)}
    return kept | {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def cache_folder() -> Path:
    """Return where downloaded weights are kept: ``$FEATCACHE_CACHE/weights``, else the platform's cache folder."""
    root = os.environ.get("FEATCACHE_CACHE")
    if not root:
        import pooch

        root = str(pooch.os_cache("featcache"))
    return Path(root).expanduser() / "weights"


def hub_folder() -> Path:
    """Return torch.hub's checkpoints folder, where torchvision keeps its own weights."""
    return Path(torch.hub.get_dir()) / "checkpoints"


def split_url(url: str) -> tuple[str, str]:
    """Split a URL into the address and the SHA-256, or its beginning, that the file must have.

    Known from a ``#sha256=<hex>`` fragment, or from torch.hub's file names (``resnet18-f37072fd.pth``).
    """
    parts = urlsplit(url)
    address = parts._replace(fragment="").geturl()
    stated = re.fullmatch(r"sha256[=:]([0-9a-fA-F]{8,64})", parts.fragment)
    if parts.fragment and not stated:
        raise WeightsError(
            f"weights URL {url}: expected a fragment like #sha256=<64 hex digits>, got #{parts.fragment}; correct it "
            "or leave it out"
        )
    named = re.search(r"-([0-9a-f]{8,64})\.\w+$", parts.path)
    return address, (stated.group(1).lower() if stated else named.group(1) if named else "")


def cached_path(url: str) -> Path:
    """Return where a URL's file is kept: a name of its own for every address."""
    address, _ = split_url(url)
    name = re.sub(r"[^\w.-]", "_", unquote(Path(urlsplit(address).path).name)) or "weights"
    return cache_folder() / f"{hashlib.sha256(address.encode()).hexdigest()[:12]}-{name}"


def fetch(url: str, path: Path, *, hint: str = "") -> Path:
    """Make sure that a URL's file is at `path`; the network is not touched when it is there already.

    Parameters
    ----------
    url : str
        http or https; a ``#sha256=`` fragment or torch.hub's ``-<8 hex>`` name is checked, on cached files too.
    path : Path
        Where it belongs. It appears there complete and checked, or not at all.
    hint : str, default ""
        More advice for the message when it cannot be fetched.

    Returns
    -------
    Path
        `path`.

    Raises
    ------
    WeightsUnavailable
        Offline or refused by the server; the message says where to put the file by hand.
    WeightsError
        When the content has another SHA-256.
    """
    address, sha256 = split_url(url)
    if path.is_file():
        _check_hash(path, sha256, f"weights file {path} (from {address})", "delete it and fetch it again")
        return path
    part = _part(path)
    try:
        _download(address, part, f"put the file at {path} by hand{hint}")
        _check_hash(part, sha256, f"weights URL {address}", "the download was damaged or the file has changed")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def _part(path: Path) -> Path:
    """Create an empty file beside `path` to download into."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name + ".", suffix=".part")
    except OSError as error:
        raise WeightsUnavailable(
            f"weights cache {path.parent}: cannot be written ({error.strerror}); set FEATCACHE_CACHE (TORCH_HOME for "
            "torchvision's own weights) to a folder that can"
        ) from error
    os.close(handle)
    return Path(name)


def _download(address: str, part: Path, advice: str) -> None:
    import pooch
    import requests

    try:
        pooch.HTTPDownloader(progressbar=False, timeout=_TIMEOUT_SECONDS)(address, str(part), None)
    except (requests.RequestException, OSError, ValueError) as error:
        response = getattr(error, "response", None)
        reason = f"HTTP {response.status_code}" if response is not None else type(error).__name__
        raise WeightsUnavailable(f"weights URL {address}: could not be fetched ({reason}); {advice}") from error


def _check_hash(path: Path, sha256: str, label: str, advice: str) -> None:
    found = sha256_of(path)
    if not found.startswith(sha256):
        raise WeightsError(f"{label}: expected SHA-256 {sha256}, got {found}; {advice}")


def json_in(metadata: Mapping[str, str], key: str, label: object) -> dict[str, Any] | None:
    """Return a JSON object from a safetensors file's metadata, None when it has none under `key`."""
    if key not in metadata:
        return None
    try:
        value = json.loads(metadata[key])
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise WeightsError(
            f"weights {label}: expected JSON in its metadata {key!r}, got {metadata[key][:40]!r}; write it again"
        )
    return value
