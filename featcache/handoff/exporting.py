"""`export`: features, a head or a network as a file for other programs, by the ending of its name."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import HandoffError
from ..exchange import export as export_features
from ..features import FeatureSet
from ..files import Disk
from ..store import FeatureStore
from .archive import is_archive
from .kinds import is_module

if TYPE_CHECKING:
    from torch import nn

    from ..backbone import Backbone
    from ..heads import FittedHead
    from .bundle import Bundle
    from .publishing import Exported

__all__ = ["export"]

#: Endings of networks, and of bundles ("": a folder).
_NETWORKS, _BUNDLES = (".pt2", ".onnx", ".safetensors"), (".bundle", ".zip", "")


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
    images: str = "normalized",
    check: Any = None,
    weights: Any = None,
    backbone: Backbone | None = None,
    include_weights: bool = True,
    licence: str | Mapping[str, str] | None = None,
    description: str = "",
    intended_use: str = "",
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
        "scores") or ``.safetensors`` (tensors alone), each for any number of images, with classes and
        preprocessing as JSON inside (an extra file, metadata); ``.bundle`` or ``.zip``, or no ending for a folder: see
        `save_bundle`.
    view, node, label, group, split
        What to take of a store, as in `FeatureStore.load`.
    head : FittedHead or path, default=None
        Of a network: the head that it was made of, as for `predict`.
    images : {"normalized", "uint8"}, default="normalized"
        What the network of a head takes, as in `to_module`; with "uint8" images of the recipe's size.
    check : images, default=None
        Images, as `ImageSource.open` takes them, on which the written file is compared with the original: 256 of
        them at most, evenly spaced; None: generated ones.
    weights, backbone
        Of a head: as for `to_module`.
    include_weights, licence, description, intended_use
        Of a bundle: as for `save_bundle`.
    overwrite : bool, default=False
        Replace an existing file of the same kind; it stays as it is until the new one is complete.
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
        written file differs by more than 1e-4 of the largest score (of 1 where that is smaller), or another label is
        the best: there is no file then.

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
    words: dict[str, Any] = {"licence": licence, "description": description, "intended_use": intended_use}
    packed = {name: value for name, value in words.items() if value}
    packed |= {} if include_weights else {"include_weights": False}
    if not _is_model(data, path):
        _refuse(model | packed, "a model", "features")
        return export_features(data, path, **choice, overwrite=overwrite, disk=disk)  # type: ignore[arg-type]
    _refuse({key: value for key, value in choice.items() if value != "main"}, "a store", "a model")
    if path.suffix.lower() not in (*_NETWORKS, *_BUNDLES):
        raise HandoffError(
            f"{path}: expected a name for a model, ending in {', '.join(_NETWORKS)}, .bundle or .zip, or without an "
            f"ending for a folder, got {path.suffix!r}; give one of these"
        )
    from .publishing import as_bundle, as_network

    if path.suffix.lower() not in _BUNDLES:
        _refuse(packed, "a bundle", "a file of a network")
        return as_network(data, path, **model, images=images, overwrite=overwrite, disk=disk)
    own = {"check": check, "images": None if images == "normalized" else images}
    _refuse(own, "a file of a network", "a bundle")
    return as_bundle(
        data, path, head=head, weights=weights, backbone=backbone, **packed, overwrite=overwrite, disk=disk
    )


def _refuse(given: dict[str, Any], wanted: str, got: str) -> None:
    if wrong := [name for name, value in given.items() if value is not None]:
        raise HandoffError(f"{wrong[0]}: expected {wanted} to use it on, got {got}; leave it out")


def _is_model(data: Any, path: Path) -> bool:
    """Whether a model is meant: by what it is, or by the ending of the name."""
    to_network = path.suffix.lower() in _NETWORKS
    if isinstance(data, (FeatureSet, FeatureStore)):
        if to_network:
            raise HandoffError(f"{path}: expected a head or network to export, got features; fit a head on them first")
        return False
    if not isinstance(data, (str, os.PathLike)):
        return to_network or is_module(data) or type(data).__name__ in ("FittedHead", "Bundle")
    place = Path(data)
    if to_network and (place / "store.json").exists():
        raise HandoffError(f"{path}: expected a head or bundle to export, got a store; fit a head on it first")
    return place.is_file() or is_archive(place) or to_network
