"""A model as one file or folder that can be handed on: weights, head, recipe, thresholds, card, all under one digest.

Nothing in a bundle is code, and reading one runs none: JSON, safetensors and Markdown, never pickle. A network is put
together again by featcache from an architecture of torchvision; networks with modules of one's own are refused, since
they cannot be built without their code (`export` writes them as .pt2 or ONNX).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..backbone import Backbone
from ..backbone.arguments import classify
from ..errors import FeatcacheError, HandoffError
from ..heads import FittedHead
from ..heads.persistence import head_of_bytes
from .answering import Answers, HeadAnswers, Meaning, NetworkAnswers
from .archive import CARD, HEAD, MANIFEST, WEIGHTS, read_members
from .manifest import LIMIT, facts_of_head, read_manifest, sizes_of
from .modules import to_module
from .opening import FAILURES, backbone_of

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Bundle", "bundle_of", "load_bundle"]

#: Kinds of locators that open no file and no address that a stranger has named.
_KNOWN = ("embedded", "random", "state_dict", "module")
_PARTS = {"node", "join", "prelude", "images", "kwargs", "scores"}


@dataclass(frozen=True, eq=False)
class Bundle:
    """A model that was read from a bundle, every member verified.

    Attributes
    ----------
    path : Path
        Where it lies.
    manifest : dict
        What it is, as JSON has it: "kind" ("head" or "network"), "classes", "spec", "node", "temperature",
        "thresholds", "training", "metrics", "licence", "versions" and so on.
    sha256 : str
        Digest of the manifest, which holds those of all members: it stands for the whole, as file and as folder.
    members : dict of str to bytes
        The files inside.
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
        kind = found["network"]["images"]
        return Meaning(found["spec"], tuple(found["classes"]), found["separator"], found["target"], scores, kind)

    def backbone(self, *, weights: Any = None, backbone: Backbone | None = None) -> Backbone:
        """Return the backbone, of the weights inside; of a bundle without them as `predict` does for a head.

        Parameters
        ----------
        weights, backbone
            As for `predict`; for bundles without weights.

        Returns
        -------
        Backbone

        Raises
        ------
        HandoffError
            Without weights inside, when they came from a file or address and no `weights` are given: what a bundle
            names is not opened. Weights that torchvision has by name, or featcache itself, are found.
        """
        if WEIGHTS in self.members and weights is None and backbone is None:
            from .rebuilding import rebuild_backbone

            return self._rebuilt(lambda: rebuild_backbone(self._tensors, self.manifest["spec"], self._kwargs()))
        if self.head is None:
            raise HandoffError(f"{self.path}: expected no weights= or backbone=, since this network brings its own")
        head = self.head
        if weights is None and backbone is None:
            self._check_locator(head)
        return self._rebuilt(lambda: backbone_of(head, backbone, weights))

    def _check_locator(self, head: FittedHead) -> None:
        """Raise HandoffError where weights would be read from a file, or an address, that the bundle names."""
        locator = head.locator or {}
        kind, value = locator.get("kind"), locator.get("value")
        if kind not in _KNOWN and (kind != "enum" or not _is_enum(head, value)):
            raise HandoffError(
                f"{self.path}: its weights are not inside, and come from a {kind} that the bundle names, which is not "
                "opened on its behalf; pass weights= with the file or address that you trust"
            )

    def module(self, *, weights: Any = None, backbone: Backbone | None = None, images: str | None = None) -> nn.Module:
        """Return the model as one network: see `to_module`; of a fine-tuned one, the network itself.

        Parameters
        ----------
        weights, backbone
            As for `predict`; for bundles without weights.
        images : {"normalized", "uint8"}, default=None
            What the network takes, as in `to_module`; None: as it was saved, of a head "normalized".

        Returns
        -------
        nn.Module
            In eval mode.

        Raises
        ------
        HeadError
            When the head is not linear.
        """
        from .rebuilding import rebuild_network

        if self.head is not None:
            network = self.backbone(weights=weights, backbone=backbone)
            return to_module(self.head, backbone=network, images=images or "normalized")
        found = self.manifest
        names = self.classes or [found["target"]]
        parts = found["network"] | ({} if images is None else {"images": images})
        kept = self.meaning.kept()
        return self._rebuilt(lambda: rebuild_network(self._tensors, parts, found["spec"], names, kept))

    def _kwargs(self) -> dict[str, Any]:
        place = self.manifest["network"] or self.manifest["locator"]
        return place.get("kwargs") or {}

    def _rebuilt(self, build: Any) -> Any:
        try:
            return build()
        except FeatcacheError as error:
            raise type(error)(f"{self.path}: {error}") from error
        except FAILURES as error:
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

    Notes
    -----
    A bundle without weights says which they are. Those that torchvision has by name are fetched, and verified by their
    digest; a file or an address that the bundle names is never opened: give `predict` its ``weights=``.

    Examples
    --------
    >>> import featcache as fc
    >>> fc.load_bundle("flowers.bundle").predict(["new.jpg"], top_k=3)  # doctest: +SKIP
    """
    place = Path(path)
    bundle = bundle_of(place, read_members(place, LIMIT, sizes_of))
    if sha256 is not None and bundle.sha256 != str(sha256).lower().removeprefix("sha256:"):
        raise HandoffError(f"{place}: expected a bundle with SHA-256 {sha256}, got {bundle.sha256}; do not use it")
    return bundle


def bundle_of(path: Path, members: dict[str, bytes]) -> Bundle:
    """Return the bundle that members make, verified; HandoffError or HeadError where they make none."""
    manifest = read_manifest(path, members)
    bundle = Bundle(path, manifest, hashlib.sha256(members[MANIFEST]).hexdigest(), members)
    kind, needed = manifest["kind"], {"head": {HEAD, CARD}, "network": {WEIGHTS, CARD}}
    if kind not in needed or not needed[kind] <= set(members) or (kind == "network") == (HEAD in members):
        raise HandoffError(f"{path}: expected a head, or a network, with their members, got others; get it again")
    if bool(manifest["weights"].get("included")) != (WEIGHTS in members):
        raise HandoffError(f"{path}: expected weights as the manifest says, got it otherwise; get it again")
    if bundle.head is not None:
        _check_head(path, manifest, bundle.head)
    recorded = manifest["spec"].get("backbone")
    if not isinstance(recorded, dict) or manifest["weights"].get("digest") != recorded.get("weights"):
        raise HandoffError(f"{path}: weights: the manifest says other than its spec; get it again")
    if not all(isinstance(name, str) for name in manifest["classes"]):
        raise HandoffError(f"{path}: expected classes as text, got something else; get it again")
    if bundle.head is None and (not isinstance(manifest["network"], dict) or not set(manifest["network"]) >= _PARTS):
        raise HandoffError(f"{path}: expected how its network is put together, got nothing; get it again")
    return bundle


def _check_head(path: Path, manifest: dict[str, Any], head: FittedHead) -> None:
    facts = facts_of_head(head)
    wrong = [name for name in facts if manifest[name] != facts[name]]
    training = {"rows": head.n_train, "digest": head.training_digest}
    wrong += [f"training {name}" for name, value in training.items() if manifest["training"].get(name) != value]
    if wrong:
        raise HandoffError(f"{path}: {wrong[0]}: the manifest says other than the head inside; get it again")


def _is_enum(head: FittedHead, value: Any) -> bool:
    """Whether a text is the name of weights in torchvision, and no file or address that calls itself one."""
    try:
        return isinstance(value, str) and classify((head.spec or {})["backbone"]["arch"], value)[0] == "enum"
    except (FeatcacheError, LookupError, TypeError):
        return False
