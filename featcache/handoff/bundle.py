"""A model as one file or folder that can be handed on: weights, head, recipe, thresholds, card, all under one digest.

Nothing in a bundle is code, and reading one runs none: JSON, safetensors and Markdown, never pickle. A network is put
together again by featcache from an architecture of torchvision; networks with modules of one's own are refused, since
they cannot be built without their code (`export` writes them as .pt2 or ONNX).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backbone import Backbone
from ..errors import FeatcacheError, HandoffError
from ..features import FeatureSet
from ..files import Disk
from ..heads import FittedHead
from ..heads.persistence import head_bytes, head_of_bytes
from .answering import Answers, HeadAnswers, Meaning, NetworkAnswers
from .archive import CARD, HEAD, MANIFEST, WEIGHTS, read_members, write_members
from .card import card_of
from .manifest import (
    LIMIT,
    counts_of,
    facts_of_head,
    facts_of_network,
    licence_of,
    metrics_of,
    read_manifest,
    seal,
)
from .opening import backbone_of, is_module, open_head

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Bundle", "load_bundle", "save_bundle"]


@dataclass(frozen=True, eq=False)
class Bundle:
    """A model that was read from a bundle, verified to the last byte.

    Attributes
    ----------
    path : Path
        Where it lies.
    manifest : dict
        What it is, as JSON has it: "kind" ("head" or "network"), "classes", "spec", "node", "temperature",
        "thresholds", "training", "metrics", "licence", "versions" and so on.
    sha256 : str
        Digest of the manifest, which holds those of all members: it stands for the whole, as file and as folder.
    """

    path: Path
    manifest: dict[str, Any]
    sha256: str
    members: dict[str, bytes] = field(repr=False)

    def __repr__(self) -> str:
        what = self.manifest["target"] or f"{len(self.classes)} classes"
        return f"Bundle({str(self.path)!r}, {self.manifest['kind']}, {what}, sha256={self.sha256[:12]}…)"

    @property
    def classes(self) -> list[str]:
        """Labels, in the order of the scores; empty where a number is predicted."""
        return list(self.manifest["classes"])

    @property
    def card(self) -> str:
        """The model card, Markdown."""
        return self.members[CARD].decode("utf-8", "replace")

    @cached_property
    def head(self) -> FittedHead | None:
        """The head; None for a network."""
        return head_of_bytes(self.members[HEAD], f"{self.path}: {HEAD}") if HEAD in self.members else None

    @cached_property
    def _tensors(self) -> dict[str, Tensor]:
        from safetensors import SafetensorError
        from safetensors.torch import load

        try:
            return load(self.members[WEIGHTS])
        except (SafetensorError, ValueError, KeyError) as error:
            raise HandoffError(f"{self.path}: {WEIGHTS}: expected tensors, got something else; get it again") from error

    @property
    def meaning(self) -> Meaning:
        """What the scores of `module` mean."""
        if self.head is not None:
            return Meaning.of(self.head)
        found = self.manifest
        scores = found["network"]["scores"]
        return Meaning(found["spec"], tuple(found["classes"]), found["separator"], found["target"], scores)

    def backbone(self, *, weights: Any = None, backbone: Backbone | None = None) -> Backbone:
        """Return the backbone, of the weights inside; of a bundle without them as `predict` does for a head.

        Parameters
        ----------
        weights, backbone
            As for `predict`; for bundles without weights.

        Returns
        -------
        Backbone
        """
        if WEIGHTS in self.members and weights is None and backbone is None:
            from .rebuilding import rebuild_backbone

            return self._rebuilt(
                lambda: rebuild_backbone(self._tensors, self.manifest["spec"], self.manifest["locator"].get("kwargs"))
            )
        if self.head is None:
            raise HandoffError(f"{self.path}: expected no weights= or backbone=, since this network brings its own")
        return backbone_of(self.head, backbone, weights)

    def module(self, *, weights: Any = None, backbone: Backbone | None = None) -> nn.Module:
        """Return the model as one network: see `to_module`; of a fine-tuned one, the network itself.

        Parameters
        ----------
        weights, backbone
            As for `predict`; for bundles without weights.

        Returns
        -------
        nn.Module
            In eval mode.

        Raises
        ------
        HeadError
            When the head is not linear.
        """
        from .modules import to_module
        from .rebuilding import rebuild_network

        if self.head is not None:
            return to_module(self.head, backbone=self.backbone(weights=weights, backbone=backbone))
        found = self.manifest
        names = self.classes or [found["target"]]
        return self._rebuilt(lambda: rebuild_network(self._tensors, found["network"], found["spec"], names))

    def _rebuilt(self, build: Any) -> Any:
        try:
            return build()
        except FeatcacheError as error:
            raise type(error)(f"{self.path}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:150]}"
            raise HandoffError(
                f"{self.path}: its recipe and its tensors do not fit ({reason}); get it again"
            ) from error

    def answers(self, *, weights: Any = None, backbone: Backbone | None = None, device: str = "cpu") -> Answers:
        """Return what answers for pixels; `predict` goes through it."""
        if self.head is None:
            if weights is not None or backbone is not None:
                self.backbone(weights=weights, backbone=backbone)
            return NetworkAnswers(self.module(), self.meaning, device)
        return HeadAnswers(self.head, self.backbone(weights=weights, backbone=backbone), device)

    def predict(self, images: Any, **options: Any) -> list[dict[str, Any]]:
        """Predict labels of raw images; see `predict` for images, options and lines."""
        from .predicting import predict

        return predict(self, images, **options)

    def predict_iter(self, images: Any, **options: Any) -> Iterator[dict[str, Any]]:
        """Predict a stream of images lazily; see `predict_iter`."""
        from .predicting import predict_iter

        return predict_iter(self, images, **options)


def save_bundle(
    fitted: FittedHead | nn.Module | str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    head: FittedHead | str | os.PathLike[str] | None = None,
    weights: bool = True,
    backbone: Backbone | None = None,
    scores: str | None = None,
    metrics: Mapping[str, Any] | None = None,
    training_data: FeatureSet | Mapping[str, int] | None = None,
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
        Of a network: the head that it was made of, whose spec says architecture and preprocessing.
    weights : bool, default=True
        Put the backbone's weights inside; False: only their digest, and where they were. A network's always are.
    backbone : Backbone, default=None
        The backbone of a head, where its weights are no longer found in the recorded place.
    scores : {"softmax", "sigmoid", "raw"}, default=None
        Of a network: what makes its scores what `predict` gives. None: as its head's.
    metrics : mapping, default=None
        What was measured: name to a number, to (value, low, high), or to a mapping with "value", "low", "high", "n".
    training_data : FeatureSet or mapping of str to int, default=None
        For the number of images per class in the card.
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
        own; for a taken name, or when the disk refuses.
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
    if is_module(fitted):
        facts, members = _of_network(fitted, head, weights, backbone, scores)  # type: ignore[arg-type]
    else:
        facts, members = _of_head(open_head(fitted), head, weights, backbone, scores)
    facts |= {
        "metrics": metrics_of(metrics),
        "licence": licence_of(licence),
        "description": str(description),
        "intended_use": str(intended_use),
        "training": facts["training"] | {"classes": counts_of(training_data)},
    }
    return _write(path, facts, members, overwrite, disk)


def _of_head(
    head: FittedHead, other: Any, weights: bool, backbone: Backbone | None, scores: str | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    for name, value in (("head", other), ("scores", scores)):
        if value is not None:
            raise HandoffError(f"{name}: expected a network to say it of, got a head; leave it out")
    if not head.spec:
        raise HandoffError(
            f"head {head.head!r}: its codes came without a spec, so which backbone makes them is unknown; save the "
            "head alone with FittedHead.save, or fit on codes of a store"
        )
    members = {}
    if weights:
        from safetensors.torch import save

        from .rebuilding import backbone_tensors

        network = backbone_of(head, backbone, None)
        members[WEIGHTS] = save({f"backbone.{n}": t for n, t in backbone_tensors(network.module()).items()})
        head = replace(head, locator=_portable(head.locator))
    members[HEAD] = head_bytes(head)
    facts = facts_of_head(head) | {"kind": "head", "network": None, "locator": head.locator or {}}
    return facts | _common(head, facts["spec"], weights), members


def _of_network(
    module: nn.Module, head: Any, weights: bool, backbone: Backbone | None, scores: str | None
) -> tuple[dict[str, Any], dict[str, bytes]]:
    from safetensors.torch import save

    from .rebuilding import pack_network

    if head is None:
        raise HandoffError("network: how to preprocess images is unknown; give head=, the fitted head it was made of")
    if not weights or backbone is not None:
        raise HandoffError("network: its weights are its own and always inside; leave weights= and backbone= out")
    started = open_head(head)
    meaning = Meaning.of(started, scores)
    tensors, parts, spec = pack_network(module, meaning)
    facts = facts_of_network(started, meaning, spec)
    facts |= {"kind": "network", "network": {**parts, "scores": meaning.scores}, "locator": {}}
    return facts | _common(started, spec, True), {WEIGHTS: save(tensors)}


def _common(head: FittedHead, spec: Mapping[str, Any], included: bool) -> dict[str, Any]:
    return {
        "weights": {"included": included, "digest": spec["backbone"]["weights"]},
        "training": {"rows": head.n_train, "digest": head.training_digest},
    }


def _portable(locator: Mapping[str, Any] | None) -> dict[str, Any]:
    """Where weights were, without the folders of the machine; the bundle has the weights themselves."""
    found = {key: value for key, value in (locator or {}).items() if key != "init_seed"}
    return found | ({"value": Path(str(found["value"])).name} if found.get("kind") == "file" else {})


def _write(path: Path, facts: dict[str, Any], members: dict[str, bytes], overwrite: bool, disk: Disk | None) -> Bundle:
    manifest = read_manifest(path, {**members, MANIFEST: seal(facts, members)})
    members[CARD] = card_of(manifest).encode("utf-8", "backslashreplace")
    members[MANIFEST] = seal(facts, members)
    meant = _checked(path, members)
    meant.backbone() if meant.manifest["weights"]["included"] else None
    write_members(path, members, overwrite=overwrite, disk=disk)
    return load_bundle(path, sha256=meant.sha256)


def load_bundle(path: str | os.PathLike[str], sha256: str | None = None) -> Bundle:
    """Read a bundle that `save_bundle` wrote; no code in it is run, whoever made it.

    Parameters
    ----------
    path : path-like
        File or folder.
    sha256 : str, default=None
        The digest that `save_bundle` gave and ``featcache export`` prints. It pins the content against whoever could
        change a bundle and its digests; without it only accidents and careless changes are found.

    Returns
    -------
    Bundle

    Raises
    ------
    HandoffError
        For what is no bundle, is cut short, was changed, has more or fewer members, points outside of itself, or is
        larger than it says; for another digest than `sha256`.
    HeadError
        When the head inside is damaged.

    Examples
    --------
    >>> import featcache as fc
    >>> fc.load_bundle("flowers.bundle").predict(["new.jpg"], top_k=3)  # doctest: +SKIP
    """
    place = Path(path)
    bundle = _checked(place, read_members(place, {MANIFEST: LIMIT}))
    if sha256 is not None and bundle.sha256 != str(sha256).lower().removeprefix("sha256:"):
        raise HandoffError(f"{place}: expected a bundle with SHA-256 {sha256}, got {bundle.sha256}; do not use it")
    return bundle


def _checked(path: Path, members: dict[str, bytes]) -> Bundle:
    manifest = read_manifest(path, members)
    bundle = Bundle(path, manifest, hashlib.sha256(members[MANIFEST]).hexdigest(), members)
    kind, needed = manifest["kind"], {"head": {HEAD, CARD}, "network": {WEIGHTS, CARD}}
    if kind not in needed or not needed[kind] <= set(members) or (kind == "network") == (HEAD in members):
        raise HandoffError(f"{path}: expected a head, or a network, with their members, got others; get it again")
    if bool(manifest["weights"].get("included")) != (WEIGHTS in members):
        raise HandoffError(f"{path}: expected weights as the manifest says, got it otherwise; get it again")
    if bundle.head is not None:
        facts = facts_of_head(bundle.head)
        if wrong := [name for name in facts if manifest[name] != facts[name]]:
            raise HandoffError(f"{path}: {wrong[0]}: the manifest says other than the head inside; get it again")
    if not all(isinstance(name, str) for name in manifest["classes"]):
        raise HandoffError(f"{path}: expected classes as text, got something else; get it again")
    if bundle.head is None and (not isinstance(manifest["network"], dict) or "scores" not in manifest["network"]):
        raise HandoffError(f"{path}: expected how its network is put together, got nothing; get it again")
    return bundle
