"""The backbone that codes were made with, found again by what a store or a head recorded of it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from ..errors import FeatcacheError
from ..fingerprint import describe_difference
from ..preprocess import Preprocess
from .frozen import Backbone

__all__ = ["recorded_backbone"]


def recorded_backbone(
    spec: Mapping[str, Any] | None,
    locator: Mapping[str, Any] | None,
    *,
    backbone: Backbone | None,
    weights: Any,
    owner: str,
    error: type[FeatcacheError],
) -> Backbone:
    """Return the backbone that `spec` names: the one given when it is that one, else made from the locator.

    Parameters
    ----------
    spec, locator : mapping or None
        As a store or a head has them.
    backbone : Backbone or None
        The backbone to use.
    weights : optional
        Weights to use instead of those that the locator names; verified by digest.
    owner : str
        Whose codes they are, for messages: "head 'svm'", "store a.features".
    error : type
        What to raise when codes and backbone do not belong together.

    Returns
    -------
    Backbone

    Raises
    ------
    error
        When no spec was recorded, or `backbone` is another one.
    WeightsError
        When the weights are gone or are not the recorded ones.
    """
    if not spec or "backbone" not in spec or "preprocess" not in spec:
        raise error(
            f"{owner}: its codes came without a spec, so which backbone makes them is unknown; use codes of the same "
            "origin, e.g. with fitted.predict(X)"
        )
    if backbone is None:
        return Backbone.from_spec(spec, locator or {}, weights)
    if not isinstance(backbone, Backbone):
        raise error(f"backbone: expected a Backbone, got {type(backbone).__name__}; leave it out, or wrap it")
    recorded = Preprocess.from_spec(spec["preprocess"])
    if recorded in backbone.preprocess.fast_variants():
        backbone = _with_recipe(backbone, recorded)  # what `extract` found to agree with the backbone's own recipe
    difference = describe_difference({part: spec[part] for part in ("backbone", "preprocess")}, backbone.spec)
    if difference:
        raise error(
            f"{owner}: another backbone than its codes came from ({'; '.join(difference)}); leave backbone= out, or "
            "use codes of this backbone"
        )
    return backbone


def _with_recipe(backbone: Backbone, recipe: Preprocess) -> Backbone:
    """Return the same backbone, loaded if it is, with another recipe for its pixels."""
    twin = copy.copy(backbone)
    twin._recipe = twin._given_preprocess = recipe
    twin._loaded = backbone._loaded
    return twin
