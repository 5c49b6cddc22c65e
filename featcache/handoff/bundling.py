"""`save_bundle`: a model and everything that is needed to use it in one file or folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from ..backbone import Backbone
from ..errors import HandoffError
from ..features import FeatureSet
from ..files import Disk
from ..heads import FittedHead
from ..heads.persistence import head_bytes
from .answering import Meaning
from .archive import CARD, HEAD, MANIFEST, WEIGHTS, check_target, write_members
from .bundle import Bundle, bundle_of, load_bundle
from .card import card_of
from .checking import pixels_of
from .kinds import is_module
from .manifest import (
    counts_of,
    facts_of_head,
    facts_of_network,
    licence_of,
    metrics_of,
    read_manifest,
    seal,
    training_of,
)
from .opening import backbone_of, open_head

if TYPE_CHECKING:
    from torch import nn

__all__ = ["save_bundle"]


def save_bundle(
    fitted: FittedHead | nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    head: FittedHead | str | os.PathLike[str] | None = None,
    include_weights: bool = True,
    weights: Any = None,
    backbone: Backbone | None = None,
    scores: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    training_data: FeatureSet | Mapping[str, int] | None = None,
    training: Mapping[str, Any] | None = None,
    begun_from: str | None = None,
    licence: str | Mapping[str, str] | None = None,
    description: str = "",
    intended_use: str = "",
    overwrite: bool = False,
    disk: Disk | None = None,
) -> Bundle:
    """Write a model and everything that is needed to use it into one file, or a folder.

    Parameters
    ----------
    fitted : FittedHead, path or nn.Module
        A head, or a network of `to_module`, fine-tuned or not.
    out : path-like
        The bundle: a folder where the name has no ending, else a file (``flowers.bundle``), which is a zip without
        compression. The same model gives the same bytes, with the same versions of the packages that it names.
    head : FittedHead or path, default=None
        Of a network: the head that it was made of, for what the bundle says of training data, and for what scores
        mean (see `predict`).
    include_weights : bool, default=True
        Put the backbone's weights inside; False: only their digest, and where they were. A network's always are.
    weights, backbone
        Of a head: as for `predict`, where the weights are no longer found in the recorded place.
    scores : {"softmax", "sigmoid", "raw"}, default=None
        Of a network: what makes its scores what `predict` gives. None: as its head's, or as `to_module` recorded it
        ("softmax" for a network that does not know).
    metrics : mapping, default=None
        What was measured: name to a number, to (value, low, high), or to a mapping with "value", "low", "high", "n".
    training_data : FeatureSet or mapping of str to int, default=None
        For the number of images per class in the card.
    training : mapping, default=None
        Of a network: what it was trained on, ``{"rows": number of images, "digest": SHA-256 of their ids}``; None: as
        `head` says.
    begun_from : str, default=None
        Of a network, for the card: what its training began with, e.g. "random numbers"; None: `head`, where one is
        given; "": not said.
    licence : str or mapping, default=None
        Notes on the licences of "weights" and "data"; a text is of the weights.
    description, intended_use : str, default=""
        For the card.
    overwrite : bool, default=False
        Replace an existing bundle.
    disk : Disk, default=None
        The layer that writes go through (tests make it fail).

    Returns
    -------
    Bundle
        Read back from where it was written; its `sha256` pins it.

    Raises
    ------
    HandoffError
        For a network, or a backbone whose weights are to be inside, that cannot be built again without code of its
        own; for one whose scores are not finite; for a taken name (only a bundle is ever replaced), the ending of
        another format, or when the disk refuses.
    HeadError
        For an estimator that is not among those featcache writes: it would take pickle.
    WeightsError
        When the backbone's weights are gone or are not the recorded ones.

    Notes
    -----
    The guards of a head (`reject`, `novelty`) and its calibration hold for its codes, which fine-tuning changes: the
    bundle of a network has none of them.

    Examples
    --------
    >>> import featcache as fc
    >>> fc.save_bundle("flowers.head", "flowers.bundle", licence={"data": "CC0"}).sha256  # doctest: +SKIP
    '5b0c…'
    """
    path = Path(out)
    check_target(path, overwrite)
    if isinstance(weights, bool):
        raise HandoffError(f"weights: expected where they lie, got {weights}; use include_weights={weights}")
    own = {"head": head, "scores": scores, "training": training, "begun_from": begun_from}
    if is_module(fitted):
        if not include_weights or weights is not None or backbone is not None:
            raise HandoffError(
                "network: its weights are its own and always inside; leave include_weights=, weights= and backbone= out"
            )
        facts, members = _of_network(fitted, **own)  # type: ignore[arg-type]
    else:
        if wrong := [name for name, value in own.items() if value is not None]:
            raise HandoffError(f"{wrong[0]}: expected a network to say it of, got a head; leave it out")
        facts, members = _of_head(open_head(fitted), include_weights, weights, backbone)
    facts |= {
        "metrics": metrics_of(metrics),
        "licence": licence_of(licence),
        "description": str(description),
        "intended_use": str(intended_use),
        "training": facts["training"] | {"classes": counts_of(training_data)},
    }
    return _write(path, facts, members, overwrite, disk)


def _of_head(
    head: FittedHead, included: bool, weights: Any, backbone: Backbone | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    if not included and weights is not None:
        raise HandoffError("weights: expected include_weights=True to put them inside, got False; leave it out")
    if not head.spec:
        raise HandoffError(
            f"head {head.head!r}: its codes came without a spec, so which backbone makes them is unknown; save the "
            "head alone with FittedHead.save, or fit on codes of a store"
        )
    members = {}
    if included:
        from safetensors.torch import save

        from .rebuilding import backbone_tensors

        network = backbone_of(head, backbone, weights)
        members[WEIGHTS] = save({f"backbone.{n}": t for n, t in backbone_tensors(network.module()).items()})
        head = replace(head, locator=_portable(head.locator))
    members[HEAD] = head_bytes(head)
    facts = facts_of_head(head) | {"kind": "head", "network": None, "locator": head.locator or {}}
    return facts | _common(facts["spec"], included) | {"training": training_of(None, head)}, members


def _of_network(
    module: nn.Module, head: Any, scores: str | None, training: Mapping[str, Any] | None, begun_from: str | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    from safetensors.torch import save

    from .rebuilding import pack_network

    started = None if head is None else open_head(head)
    meaning = Meaning.of_module(module, started, scores)
    tensors, parts, spec = pack_network(module, meaning)
    facts = facts_of_network(started if begun_from is None else None, meaning, spec)
    parts = {**parts, "scores": meaning.scores, "begun_from": str(begun_from or "")}
    facts |= {"kind": "network", "network": parts, "locator": {}, "training": training_of(training, started)}
    return facts | _common(spec, True), {WEIGHTS: save(tensors)}


def _common(spec: Mapping[str, Any], included: bool) -> dict[str, Any]:
    return {"weights": {"included": included, "digest": spec["backbone"]["weights"]}}


def _portable(locator: Mapping[str, Any] | None) -> dict[str, Any]:
    """Where weights were, without folders, hosts and passwords; the bundle has the weights themselves."""
    found = {key: value for key, value in (locator or {}).items() if key != "init_seed"}
    value = str(found.get("value", ""))
    short = {"file": Path(value).name, "url": PurePosixPath(urlsplit(value).path).name}
    return found | ({"value": short[found["kind"]]} if found.get("kind") in short else {})


def _write(path: Path, facts: dict[str, Any], members: dict[str, bytes], overwrite: bool, disk: Disk | None) -> Bundle:
    manifest = read_manifest(path, {**members, MANIFEST: seal(facts, members)})
    members[CARD] = card_of(manifest).encode("utf-8", "backslashreplace")
    members[MANIFEST] = seal(facts, members)
    meant = bundle_of(path, members)
    if WEIGHTS in members and HEAD in members:  # a network has been put together again before
        answers = meant.answers()
        answers(["a generated image"], pixels_of(None, answers.recipe)[0][:1])
    write_members(path, members, overwrite=overwrite, disk=disk)
    return load_bundle(path, sha256=meant.sha256)
