"""`export`: features, a head or a network as a file for other programs, by the ending of its name."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backbone import Backbone
from ..backbone.arguments import version_of
from ..errors import HandoffError
from ..exchange import export as export_features
from ..features import FeatureSet
from ..files import DISK, Disk, publish, unique_name
from ..heads import FittedHead
from ..store import FeatureStore
from .answering import Meaning
from .bundle import Bundle, load_bundle, save_bundle
from .checking import TOLERANCE, difference, pixels_of, run_of
from .modules import to_module
from .opening import is_bundle, is_module, open_head
from .programs import FORMATS, check_installed, written

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Exported", "export"]

_OF_BUNDLES = ("", ".bundle", ".zip")


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
    """

    path: Path
    bytes: int
    sha256: str
    difference: float | None = None
    images: int = 0

    def __fspath__(self) -> str:
        return str(self.path)


def export(
    data: FeatureSet | FeatureStore | FittedHead | Bundle | nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    view: str = "main",
    node: str | None = None,
    label: str | None = None,
    group: str | None = None,
    split: str | None = None,
    head: FittedHead | str | os.PathLike[str] | None = None,
    check: Any = None,
    weights: Any = None,
    backbone: Backbone | None = None,
    overwrite: bool = False,
    disk: Disk | None = None,
) -> Path | Exported:
    """Write features, or a model, as a file that needs no featcache to read.

    Parameters
    ----------
    data : FeatureSet, FeatureStore, FittedHead, Bundle, nn.Module or path
        What to write: features of a store, or a head with its backbone, or a network of `to_module`. A path is that of
        a store, a head or a bundle.
    out : path-like
        The file. Its ending says the format. For features ``.h5``/``.hdf5`` (datasets ``features``, ``labels``,
        ``ids``, ``groups``, ``splits``, ``columns/<name>``; text as fixed-length UTF-8), ``.npz`` (arrays ``X``, ``y``,
        ``ids``, …; no pickle inside) or ``.parquet`` (columns ``id``, ``label``, …, ``features``; needs pyarrow), with
        spec, fingerprint, node and locator as text: root attributes, arrays, metadata; `read_features` brings all of
        it back. For models ``.pt2`` (`torch.export`), ``.onnx`` (the extra ``featcache[onnx]``; input "images", output
        "scores") or ``.safetensors`` (tensors alone), each for any number of normalised images, with classes and
        preprocessing as JSON inside (an extra file, metadata); ``.bundle`` or ``.zip``, or no ending for a folder: see
        `save_bundle`.
    view, node, label, group, split
        What to take of a store, as in `FeatureStore.load`.
    head : FittedHead or path, default=None
        Of a network: the head that it was made of, whose spec says how images are preprocessed.
    check : images, default=None
        Images, as `ImageSource.open` takes them, on which the written file is compared with the original; None:
        generated ones.
    weights, backbone
        Of a head: as for `to_module`.
    overwrite : bool, default=False
        Replace an existing file; it stays as it is until the new one is complete.
    disk : Disk, default=None
        The layer that writes go through (tests make it fail).

    Returns
    -------
    Path or Exported
        For features `out`; for a model what was written and how well it agrees. Either is durable: synced, and read
        back and compared before it got its name.

    Raises
    ------
    ExchangeError
        For an unknown suffix, an existing file, NaN or Inf among the codes, columns that are neither text nor numbers,
        or when the disk refuses; nothing has been written then, and an existing file is unharmed.
    StoreError
        When the store has no such view, node or column.
    HandoffError, HeadError, WeightsError
        For a head that is no network, a network that the format cannot hold, a missing package, or when a score of the
        written file differs by more than 1e-4 of the largest score (of 1 where that is smaller): there is no file then.

    Notes
    -----
    Sets larger than memory (``in_memory=False``) are written in blocks of a few MiB.

    Whoever loads a ``.pt2`` trusts it like a program: `torch.export.load` may unpickle and evaluates expressions that
    are in the file. featcache loads none but the one that it has just written. ONNX and bundles run no code.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> path = export(FeatureSet(np.eye(3, dtype="f4"), ["a", "b", "a"]), tempfile.mkdtemp() + "/codes.npz")
    >>> np.load(path)["y"].tolist()
    ['a', 'b', 'a']
    """
    path = Path(out)
    choice = {"view": view, "node": node, "label": label, "group": group, "split": split}
    model = {"head": head, "check": check, "weights": weights, "backbone": backbone}
    if not _is_model(data, path):
        _refuse(model, "a model", "features")
        return export_features(data, path, **choice, overwrite=overwrite, disk=disk)  # type: ignore[arg-type]
    _refuse({key: value for key, value in choice.items() if value != "main"}, "a store", "a model")
    opened = _opened(data, path)
    if path.suffix.lower() in _OF_BUNDLES:
        _refuse({"check": check, "weights": weights}, "another format", "a bundle")
        bundle = save_bundle(opened, path, head=head, backbone=backbone, overwrite=overwrite, disk=disk)
        return Exported(path, sum(map(len, bundle.members.values())), bundle.sha256)
    return _export_network(opened, path, model, overwrite, disk or DISK)


def _refuse(given: dict[str, Any], wanted: str, got: str) -> None:
    if wrong := [name for name, value in given.items() if value is not None]:
        raise HandoffError(f"{wrong[0]}: expected {wanted} to use it on, got {got}; leave it out")


def _is_model(data: Any, path: Path) -> bool:
    """Whether a model is meant: what is no store, or by the ending of the name."""
    if isinstance(data, (FeatureSet, FeatureStore)):
        if path.suffix.lower() in FORMATS:
            raise HandoffError(f"{path}: expected a head or network to export, got features; fit a head on them first")
        return False
    if isinstance(data, (FittedHead, Bundle)) or is_module(data):
        return True
    if not isinstance(data, (str, os.PathLike)):
        return False
    place = Path(data)
    return place.is_file() or is_bundle(place) or path.suffix.lower() in FORMATS


def _opened(data: Any, path: Path) -> FittedHead | Bundle | nn.Module:
    if path.suffix.lower() not in (*FORMATS, *_OF_BUNDLES):
        raise HandoffError(
            f"{path}: expected a name for a model, ending in {', '.join(FORMATS)}, .bundle or .zip, or without an "
            f"ending for a folder, got {path.suffix!r}; give one of these"
        )
    if isinstance(data, Bundle) or is_module(data):
        opened = data
    else:
        if isinstance(data, (str, os.PathLike)) and (Path(data) / "store.json").exists():
            raise HandoffError(f"{path}: expected a head or bundle to export, got a store; fit a head on it first")
        opened = load_bundle(data) if is_bundle(data) else open_head(data)
    if isinstance(opened, Bundle) and path.suffix.lower() in _OF_BUNDLES:
        raise HandoffError(f"{path}: expected a head or network to make a bundle of, got a bundle; copy it as it is")
    return opened


def _export_network(opened: Any, path: Path, model: dict[str, Any], overwrite: bool, disk: Disk) -> Exported:
    import torch

    ending = path.suffix.lower()
    _check_target(path, overwrite)
    check_installed(ending)
    module, meaning = _network_of(opened, model)
    pixels = pixels_of(model["check"], meaning.recipe)
    inputs = meaning.recipe.normalize(pixels)
    # Two rows at least: of one, exporters take it that there is never another number.
    example = torch.from_numpy(inputs[[0, -1]].copy())
    facts = {
        "featcache": version_of("featcache"),
        "classes": list(meaning.classes) or [meaning.target],
        "separator": meaning.separator,
        "target": meaning.target,
        "scores": meaning.scores,
        "input": {"name": "images", "layout": "NCHW", "dtype": "float32", "shape": [None, *inputs.shape[1:]]},
        "preprocess": meaning.spec["preprocess"],
        "backbone": meaning.spec.get("backbone"),
    }
    content = written(ending, module, example, facts)
    found: list[float] = []

    def verify(file: Path) -> None:
        found.append(difference(run_of(module), FORMATS[ending](file, module), inputs))
        if not found[0] <= TOLERANCE:
            raise HandoffError(
                f"{path}: expected the scores of the original within {TOLERANCE:g} of the largest, got a difference of "
                f"{found[0]:.3g} on {len(inputs)} images, so nothing was written; try another format, and report it"
            )

    _publish(path, content, verify, overwrite, disk)
    return Exported(path, len(content), hashlib.sha256(content).hexdigest(), found[0], len(inputs))


def _network_of(opened: Any, model: dict[str, Any]) -> tuple[nn.Module, Meaning]:
    head, weights, backbone = model["head"], model["weights"], model["backbone"]
    if is_module(opened):
        _refuse({"weights": weights, "backbone": backbone}, "a head", "a network")
        if head is None:
            raise HandoffError(
                "network: how to preprocess images is unknown; give head=, the fitted head it was made of"
            )
        return copy.deepcopy(opened).cpu().eval().requires_grad_(False), Meaning.of(open_head(head))
    _refuse({"head": head}, "a network that was made of it", "a head or bundle")
    if isinstance(opened, Bundle):
        return opened.module(weights=weights, backbone=backbone).requires_grad_(False), opened.meaning
    module = to_module(opened, weights=weights, backbone=backbone)
    return module.requires_grad_(False), Meaning.of(opened)


def _check_target(path: Path, overwrite: bool) -> None:
    if path.is_dir():
        raise HandoffError(f"{path}: expected the name of a file, got a folder; name a file in it")
    if not path.parent.is_dir():
        raise HandoffError(f"{path}: expected a folder {str(path.parent)!r} to write to, got none; make it first")
    if os.path.lexists(path) and not overwrite:
        raise HandoffError(f"{path}: exists already; give another name, or allow replacing it (overwrite)")


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
