"""Models as files: written, read back, compared with the original on images, and only then given their name."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..backbone import Backbone
from ..backbone.arguments import version_of
from ..errors import FeatcacheError, HandoffError
from ..files import DISK, Disk, publish, unique_name
from .answering import Meaning
from .bundle import Bundle, load_bundle
from .bundling import save_bundle
from .checking import TOLERANCE, Agreement, Run, compare, pixels_of, run_of
from .kinds import is_bundle, is_module
from .modules import check_images, to_module
from .opening import open_head
from .programs import FORMATS, check_installed, written

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Exported", "as_bundle", "as_network"]


@dataclass(frozen=True)
class Exported:
    """A model that was exported.

    Attributes
    ----------
    path : Path
        The file, or the folder of a bundle.
    bytes : int
        Its size.
    sha256 : str
        Of the file; of a bundle the digest that `load_bundle` takes.
    difference : float or None
        Largest difference between a score of the file, read back, and of the original, as a share of the largest score
        where that is above 1. None for a bundle, whose tensors were compared to the last bit.
    images : int
        How many images that was measured on; 0 for a bundle.
    absolute : float or None
        The largest difference of two scores as it is.
    unread : int
        How many of the images given for that could not be read.
    """

    path: Path
    bytes: int
    sha256: str
    difference: float | None = None
    images: int = 0
    absolute: float | None = None
    unread: int = 0

    def __fspath__(self) -> str:
        return str(self.path)


def as_bundle(data: Any, path: Path, **options: Any) -> Exported:
    """Write a head or network as a bundle; see `export`."""
    opened = _opened(data)
    if isinstance(opened, Bundle):
        raise HandoffError(f"{path}: expected a head or network to make a bundle of, got a bundle; copy it as it is")
    bundle = save_bundle(opened, path, **options)
    return Exported(path, sum(map(len, bundle.members.values())), bundle.sha256)


def as_network(
    data: Any,
    path: Path,
    *,
    head: Any,
    weights: Any,
    backbone: Backbone | None,
    images: str,
    check: Any,
    overwrite: bool,
    disk: Disk | None,
) -> Exported:
    """Write a head, bundle or network as .pt2, .onnx or .safetensors; see `export`."""
    import torch

    ending = path.suffix.lower()
    _check_target(path, overwrite)
    check_installed(ending)
    check_images(images)
    opened = _opened(data)
    module, meaning = (
        _of_module(opened, head, weights, backbone, images)
        if is_module(opened)
        else _of_head(opened, head, weights, backbone, images)
    )
    pixels, unread = pixels_of(check, meaning.recipe)
    inputs = meaning.inputs(pixels)
    # Two rows at least: of one, exporters take it that there is never another number. And generated ones: a .pt2 keeps
    # its example, and nobody's images belong in there.
    example = torch.from_numpy(meaning.inputs(pixels_of(None, meaning.recipe)[0][:2]).copy())
    content = written(ending, module, example, _facts(meaning, inputs))
    found: list[Agreement] = []

    def verify(file: Path) -> None:
        found.append(_compared(path, module, lambda: FORMATS[ending](file, module), inputs))
        if not found[0].same:
            raise HandoffError(
                f"{path}: expected the scores of the original within {TOLERANCE:g} of the largest, got {found[0]} on "
                f"{len(inputs)} images, so nothing was written; try another format, and report it"
            )

    _publish(path, content, verify, overwrite, disk or DISK)
    digest = hashlib.sha256(content).hexdigest()
    return Exported(path, len(content), digest, found[0].relative, len(inputs), found[0].absolute, unread)


def _compared(path: Path, module: nn.Module, reader: Callable[[], Run], inputs: np.ndarray) -> Agreement:
    """Compare; whatever the format's own reader raises, the caller gets one line."""
    try:
        return compare(run_of(module), reader(), inputs)
    except (FeatcacheError, OSError):
        raise
    except Exception as error:
        raise HandoffError(
            f"{path}: the file cannot be read again ({type(error).__name__}: {' '.join(str(error).split())[:150]}), so "
            "nothing was written; try another format, and report it"
        ) from error


def _facts(meaning: Meaning, inputs: np.ndarray) -> dict[str, Any]:
    """What stands in the file beside the network."""
    shape = [None, *inputs.shape[1:]]
    return {
        "featcache": version_of("featcache"),
        "classes": list(meaning.classes) or [meaning.target],
        "separator": meaning.separator,
        "target": meaning.target,
        "scores": meaning.scores,
        "input": {"name": "images", "layout": "NCHW", "dtype": inputs.dtype.name, "shape": shape},
        "preprocess": meaning.spec["preprocess"],
        "backbone": meaning.spec.get("backbone"),
    }


def _opened(data: Any) -> Any:
    if isinstance(data, Bundle) or is_module(data):
        return data
    return load_bundle(data) if is_bundle(data) else open_head(data)


def _of_module(module: nn.Module, head: Any, weights: Any, backbone: Any, images: str) -> tuple[nn.Module, Meaning]:
    for name, value in (("weights", weights), ("backbone", backbone), ("images", images != "normalized" or None)):
        if value is not None:
            raise HandoffError(f"{name}: expected a head to use it on, got a network, which is as it is; leave it out")
    meaning = Meaning.of_module(module, None if head is None else open_head(head))
    return copy.deepcopy(module).cpu().eval().requires_grad_(False), meaning


def _of_head(opened: Any, head: Any, weights: Any, backbone: Any, images: str) -> tuple[nn.Module, Meaning]:
    if head is not None:
        raise HandoffError("head: expected a network that was made of it, got a head or bundle; leave it out")
    if isinstance(opened, Bundle):
        module, meaning = opened.module(weights=weights, backbone=backbone, images=images), opened.meaning
    else:
        module, meaning = to_module(opened, weights=weights, backbone=backbone, images=images), Meaning.of(opened)
    return module.requires_grad_(False), replace(meaning, images=images)


def _check_target(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise HandoffError(f"{path}: expected the name of a file, got a folder; name a file in it")
    if not path.parent.is_dir():
        raise HandoffError(f"{path}: expected a folder {str(path.parent)!r} to write to, got none; make it first")
    if os.path.lexists(path) and not overwrite:
        raise HandoffError(f"{path}: exists already; give another name, or allow replacing it (overwrite)")
    if path.exists() and not _same_kind(path):
        raise HandoffError(
            f"{path}: exists and is no {path.suffix.lower()} file, so it is not replaced; give another name"
        )


def _same_kind(path: Path) -> bool:
    """Whether a file begins as one of its ending does, and is no head; an empty one may be replaced, too."""
    with path.open("rb") as file:
        start = file.read(4096)
    begins = {".pt2": start[:4] == b"PK\x03\x04", ".onnx": start[:1] == b"\x08", ".safetensors": start[8:9] == b"{"}
    return not start or (begins[path.suffix.lower()] and b'"featcache_head"' not in start)


def _publish(path: Path, content: bytes, verify: Any, overwrite: bool, disk: Disk) -> None:
    """Write under a temporary name, sync, read back and compare, and only then give it its name."""
    # The ending stays, since readers go by it.
    temporary = path.with_name(f".{path.stem}.{unique_name('.tmp')}{path.suffix.lower()}")
    try:
        disk.write(temporary, content)
        if not overwrite:
            publish(temporary, path, verify=verify, disk=disk)
            return
        disk.fsync(temporary)
        verify(temporary)
        disk.rename(temporary, path)
        disk.fsync_folder(path.parent)
    except FileExistsError:
        raise HandoffError(f"{path}: exists already; give another name, or allow replacing it (overwrite)") from None
    except OSError as error:
        reason = " ".join(str(error.strerror or error).split())
        raise HandoffError(f"{path}: cannot be written: {reason}; look at the folder and the free space") from error
    finally:
        with contextlib.suppress(OSError):
            disk.unlink(temporary)
