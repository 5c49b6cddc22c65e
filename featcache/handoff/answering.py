"""What turns pixels into lines of an answer: a head on codes, or a whole network."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from ..backbone import Backbone
from ..errors import FeatcacheError, HandoffError, HeadError
from ..features import FeatureSet
from ..heads import FittedHead
from ..heads.layers import LayerBlocks
from ..preprocess import Preprocess
from .opening import FAILURES, blocks_of_head

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Answers", "HeadAnswers", "Meaning", "NetworkAnswers", "best", "check_finite", "lines_of_head"]

SCORES = ("softmax", "sigmoid", "raw")
_AGAIN = "fit it again on finite codes"


class Answers(Protocol):
    """Pixels in, one line per image out."""

    recipe: Preprocess

    def __call__(self, ids: Sequence[str], pixels: np.ndarray) -> list[dict[str, Any]]:
        """Answer for uint8 pixels (N, H, W, C)."""


@dataclass(frozen=True)
class Meaning:
    """What a network's numbers mean: how images become its input, and its output labels.

    Attributes
    ----------
    spec : dict
        Spec of the codes at the network's node: "preprocess", and "backbone" where it is known.
    classes : tuple of str
        Labels, in the order of the scores; empty for a number.
    separator, target : str
        As in `FittedHead`.
    scores : {"softmax", "sigmoid", "raw"}
        How scores become what `predict` gives.
    images : {"normalized", "uint8"}
        What the network takes, as in `to_module`.
    """

    spec: dict[str, Any]
    classes: tuple[str, ...]
    separator: str = ""
    target: str = ""
    scores: str = "softmax"
    images: str = "normalized"

    def __post_init__(self) -> None:
        if self.scores not in SCORES:
            raise HandoffError(f"scores: expected one of {', '.join(SCORES)}, got {self.scores!r}; correct it")

    @classmethod
    def of(cls, head: FittedHead, scores: str | None = None) -> Meaning:
        """Return what the scores of the network of a head mean."""
        if not head.spec or "preprocess" not in head.spec:
            raise HandoffError(
                f"head {head.head!r}: its codes came without a spec, so how to preprocess images is unknown; fit on "
                "codes of a store"
            )
        likely = head.temperature is not None or hasattr(head.estimator, "predict_proba")
        usual = "raw" if head.target or not likely else "sigmoid" if head.separator else "softmax"
        classes = () if head.target else tuple(str(c) for c in head.classes_)
        return cls(dict(head.spec), classes, head.separator, head.target, scores or usual)

    @classmethod
    def of_module(cls, module: nn.Module, head: FittedHead | None = None, scores: str | None = None) -> Meaning:
        """Return what the scores of a network mean: by itself, and by the head that it was made of."""
        from ..preprocess.inside import PixelsToInput

        recipe: Any = getattr(module, "preprocess", None)
        if head is None and not isinstance(recipe, Preprocess):
            raise HandoffError(
                f"network {type(module).__name__}: how to preprocess images is unknown; give head=, the fitted head "
                "that it was made of, or a network of to_module or assemble"
            )
        images = "uint8" if isinstance(getattr(module, "prepare", None), PixelsToInput) else "normalized"
        own = [str(name) for name in getattr(module, "classes", [])]
        if head is None:
            return cls._kept_by(module, own, recipe, scores, images)
        found = cls.of(head, scores)
        if own and own != (list(found.classes) or [found.target]):
            raise HandoffError(
                f"network: expected the classes of the head, got {', '.join(own[:5])}; give the head it was made of"
            )
        spec = found.spec | ({"preprocess": recipe.spec()} if isinstance(recipe, Preprocess) else {})
        return replace(found, spec=spec, images=images)

    @classmethod
    def _kept_by(
        cls, module: nn.Module, own: list[str], recipe: Preprocess, scores: str | None, images: str
    ) -> Meaning:
        """What a network of `to_module` keeps of its head; one of `assemble` tells its classes apart by softmax."""
        kept: Any = getattr(module, "meaning", None) or {}
        if not kept and scores is None and len(own) < 2:
            raise HandoffError(
                f"network {type(module).__name__}: it has {len(own)} class, and whether its score is a number or that "
                "of a label is unknown; give head=, the fitted head that it was made of"
            )
        target = str(kept.get("target", ""))
        return cls(
            {"preprocess": recipe.spec()},
            () if target else tuple(own),
            str(kept.get("separator", "")),
            target,
            scores or str(kept.get("scores", "softmax")),
            images,
        )

    def kept(self) -> dict[str, str]:
        """Return what a network keeps of this: "scores", "separator", "target"."""
        return {"scores": self.scores, "separator": self.separator, "target": self.target}

    @property
    def recipe(self) -> Preprocess:
        """How an image becomes pixels."""
        return Preprocess.from_spec(self.spec["preprocess"])

    def inputs(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels, uint8 (N, H, W, C), as the network takes them."""
        if self.images == "uint8":
            return np.ascontiguousarray(pixels.transpose(0, 3, 1, 2))
        return self.recipe.normalize(pixels)


class HeadAnswers:
    """A head on the codes of its backbone.

    Parameters
    ----------
    head : FittedHead
        The head.
    network : Backbone
        Its backbone.
    device : str
        Where codes are computed.
    """

    def __init__(self, head: FittedHead, network: Backbone, device: str) -> None:
        Backbone.check_device(device)
        self.head, self.network, self.device = head, network, device
        self.recipe = network.preprocess
        self.blocks = blocks_of_head(head, network)

    def __call__(self, ids: Sequence[str], pixels: np.ndarray) -> list[dict[str, Any]]:
        """Answer for uint8 pixels (N, H, W, C)."""
        try:
            codes = self.network.encode(pixels, mode="fp32", device=self.device)
            return lines_of_head(self.head, ids, _joined(codes, self.head.node, self.blocks))
        except FeatcacheError:
            raise
        except FAILURES as error:
            raise HandoffError(
                f"head {self.head.head!r}: it fails on images of {' × '.join(map(str, self.recipe.shape))} "
                f"({type(error).__name__}: {' '.join(str(error).split())[:150]}); fit and save it again"
            ) from error


class NetworkAnswers:
    """A whole network, such as a fine-tuned one.

    Parameters
    ----------
    module : nn.Module
        Normalised images (N, C, H, W) → scores (N, n_classes); copied.
    meaning : Meaning
        What they mean.
    device : str
        Where it runs.
    """

    def __init__(self, module: nn.Module, meaning: Meaning, device: str) -> None:
        Backbone.check_device(device)
        self.module = copy.deepcopy(module).eval().to(device)
        self.meaning, self.device, self.recipe = meaning, device, meaning.recipe

    def __call__(self, ids: Sequence[str], pixels: np.ndarray) -> list[dict[str, Any]]:
        """Answer for uint8 pixels (N, H, W, C)."""
        import torch

        images = torch.from_numpy(self.meaning.inputs(pixels)).to(self.device)
        try:
            with torch.inference_mode():
                scores = self.module(images).cpu().double().numpy()
        except FAILURES as error:
            raise HandoffError(
                f"network: it fails on images of {' × '.join(map(str, self.recipe.shape))} "
                f"({' '.join(str(error).split())[:150]}); give the head that it was made of"
            ) from error
        return _lines(self.meaning, ids, scores)


def _lines(meaning: Meaning, ids: Sequence[str], scores: np.ndarray) -> list[dict[str, Any]]:
    width = len(meaning.classes) or 1
    if scores.shape != (len(ids), width):
        raise HandoffError(
            f"network: expected scores of shape ({len(ids)}, {width}), got {scores.shape}; give its own classes"
        )
    check_finite(scores, ids, "network", "its weights are out of range, train it again")
    if meaning.target:
        return [{"id": i, "value": value} for i, value in zip(ids, scores[:, 0].tolist(), strict=True)]
    shown = scores
    if meaning.scores == "softmax":
        shown = np.exp(scores - scores.max(axis=1, keepdims=True))
        shown = shown / shown.sum(axis=1, keepdims=True)
    elif meaning.scores == "sigmoid":
        shown = np.exp(-np.logaddexp(0, -scores))
    found: list[dict[str, Any]] = []
    for i, row, numbers in zip(ids, scores, shown.tolist(), strict=True):
        several = [c for c, score in zip(meaning.classes, row, strict=True) if score > 0]
        label = (meaning.separator.join(several) or meaning.separator) if meaning.separator else ""
        line: dict[str, Any] = {"id": i, "label": label or meaning.classes[int(row.argmax())]}
        if meaning.separator:
            line["labels"] = several
        line["scores"] = dict(zip(meaning.classes, numbers, strict=True))
        found.append(line)
    return found


def check_finite(scores: np.ndarray, ids: Sequence[str], owner: str, advice: str) -> None:
    """Raise HandoffError where scores are NaN or infinite: no label, and no number, follows from them."""
    bad = ~np.isfinite(scores).reshape(len(scores), -1).all(axis=1)
    if bad.any():
        raise HandoffError(
            f"{owner}: expected finite scores, got NaN or infinity for {int(bad.sum())} of {len(scores)} images, the "
            f"first {ids[int(bad.argmax())]!r:.200}; {advice}"
        )


def best(lines: list[dict[str, Any]], top_k: int | None) -> list[dict[str, Any]]:
    """Put the best labels in place of all scores, where that is asked for; equal scores in the order of the classes."""
    if top_k is None:
        return lines
    for line in lines:
        if "scores" in line:
            ordered = sorted(line.pop("scores").items(), key=lambda item: -item[1])
            line["top"] = [{"label": label, "score": score} for label, score in ordered[:top_k]]
    return lines


def _joined(codes: Mapping[str, np.ndarray], node: str, blocks: LayerBlocks | None) -> np.ndarray:
    """The codes that a head takes: of one node, or of several as it joined them."""
    return codes[node].reshape(len(codes[node]), -1) if blocks is None else blocks.join(codes)


def lines_of_head(head: FittedHead, ids: Sequence[str], codes: FeatureSet | np.ndarray) -> list[dict[str, Any]]:
    """Answer for codes."""
    found = _numbers(head, ids, codes) if head.target else _labels(head, ids, codes)
    if head.rejection is not None:
        for line, accepted in zip(found, head.accept(codes).tolist(), strict=True):
            line["accepted"] = accepted
    if head.detector is not None:
        for line, score in zip(found, head.novelty(codes).tolist(), strict=True):
            line["novelty"] = {"score": score if math.isfinite(score) else None, "novel": score > 0}
    return found


def _scores(head: FittedHead, codes: FeatureSet | np.ndarray) -> np.ndarray | None:
    try:
        return head.predict_scores(codes)
    except HeadError:  # a foreign estimator may have none; its labels stand alone then
        return None


def _numbers(head: FittedHead, ids: Sequence[str], codes: FeatureSet | np.ndarray) -> list[dict[str, Any]]:
    values = np.asarray(head.predict(codes), dtype=float)
    check_finite(values, ids, f"head {head.head!r}", _AGAIN)
    return [{"id": i, "value": value} for i, value in zip(ids, values.tolist(), strict=True)]


def _labels(head: FittedHead, ids: Sequence[str], codes: FeatureSet | np.ndarray) -> list[dict[str, Any]]:
    labels, scores = head.predict(codes), _scores(head, codes)
    if scores is not None:
        check_finite(np.asarray(scores, dtype=float), ids, f"head {head.head!r}", _AGAIN)
    lists = head.predict_labels(codes) if head.separator else [[]] * len(ids)
    rows = [None] * len(ids) if scores is None else np.asarray(scores, dtype=float).tolist()
    classes = [str(c) for c in head.classes_]
    found: list[dict[str, Any]] = []
    for i, label, several, row in zip(ids, labels.tolist(), lists, rows, strict=True):
        line: dict[str, Any] = {"id": i, "label": str(label)}
        if head.separator:
            line["labels"] = several
        line["scores"] = {} if row is None else dict(zip(classes, row, strict=True))
        found.append(line)
    return found
