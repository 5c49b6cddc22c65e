"""What every hand-off begins with: the head, the backbone that it belongs to, and the nodes that it takes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..backbone import Backbone
from ..backbone.recorded import recorded_backbone
from ..errors import HandoffError
from ..heads import FittedHead
from ..heads.layers import LayerBlocks
from ..heads.views import views_of
from .kinds import is_bundle

__all__ = ["FAILURES", "backbone_of", "blocks_of_head", "open_head"]

#: What other packages raise when a stranger's numbers do not fit together: the caller gets one line of ours instead.
FAILURES = (LookupError, ArithmeticError, AssertionError, TypeError, ValueError, AttributeError, RuntimeError)


def open_head(fitted: Any) -> FittedHead:
    """Return a head, read from its file where a path is given."""
    if isinstance(fitted, FittedHead):
        return fitted
    if isinstance(fitted, (str, os.PathLike)):
        _check_kind(Path(fitted))
        return FittedHead.load(os.fspath(fitted))
    raise HandoffError(f"head: expected a FittedHead or the path of a saved one, got {type(fitted).__name__}")


def _check_kind(path: Path) -> None:
    """Name what is often taken for a head."""
    if path.is_dir():
        near = path / "model.bundle"
        advice = (
            f"give {near}, where a bundle is taken, or the head's file" if near.is_file() else "give the head's file"
        )
        raise HandoffError(f"{path}: expected the file of a head, got a folder; {advice}")
    if is_bundle(path):
        raise HandoffError(f"{path}: expected the file of a head, got a bundle; give the head that it was made of")


def blocks_of_head(head: FittedHead, network: Backbone) -> LayerBlocks | None:
    """The nodes that a head joins, None for one node; HandoffError where the network has no such codes."""
    if head.node in network.nodes:
        return None
    blocks = LayerBlocks.parse(head.node)
    if blocks is None or not set(blocks.nodes) <= set(network.nodes) or sum(blocks.sizes) != head.n_features:
        raise HandoffError(
            f"head {head.head!r}: expected a node (or several joined to {head.n_features} features) of the backbone, "
            f"which has {', '.join(network.nodes)}, got {head.node[:200]!r}; save the head again"
        )
    return blocks


def backbone_of(head: FittedHead, backbone: Backbone | None, weights: Any) -> Backbone:
    """Return the backbone that a head was trained on; HandoffError or WeightsError where it is another or gone."""
    if (views := views_of(head.node)) > 1:
        raise HandoffError(
            f"head {head.head!r}: it takes {views} augmented views of each image side by side, and images alone have "
            "one; predict codes of join_views, or fit on join_views(store, rows=True), whose heads take plain images"
        )
    return recorded_backbone(
        head.spec,
        head.locator,
        backbone=backbone,
        weights=weights,
        owner=f"head {head.head!r}",
        error=HandoffError,
    )
