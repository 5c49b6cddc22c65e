"""What a verb takes in place of a store: a plain file of features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

__all__ = ["features", "features_by_node", "images_of"]


def features(
    path: Path,
    *,
    view: str = "main",
    node: str | None = None,
    nodes: str | None = None,
    views: str | None = None,
    label: str | None = None,
    group: str | None = None,
    split: str | None = None,
    labels: str | None = None,
    key: str | None = None,
) -> Any:
    """Return the FeatureSet that the words of a command mean: a view of a store, or what a plain file holds.

    With `nodes`, several nodes' codes side by side; with `views`, a row per image and augmented view.
    Of a plain file, --label, --group and --split name its own columns; --labels may name another file as well.
    """
    from ..exchange import is_plain_file, read_features

    if is_plain_file(path):
        for value, option in (
            (view != "main", "--view"),
            (node, "--node"),
            (nodes, "--nodes"),
            (views, "--views"),
            (label and labels, "--label"),
        ):
            if value:
                reason = "leave it out with --labels" if option == "--label" else f"{path} is a plain file: it has none"
                raise typer.BadParameter(reason, param_hint=option)
        return read_features(path, labels=labels or label, groups=group, splits=split, key=key)
    for value, option in ((labels, "--labels"), (key, "--key")):
        if value is not None:
            raise typer.BadParameter(
                f"expected a .npy, .npz, .h5, .hdf5 or .parquet file to use it on, got {path}", param_hint=option
            )
    from ..store import FeatureStore

    store = FeatureStore.open(path)
    choice: dict[str, Any] = {"view": view, "label": label, "group": group, "split": split}
    if node and nodes:
        raise typer.BadParameter("expected --node or --nodes, got both", param_hint="--nodes")
    if nodes is None and views is None:
        return store.load(node=node, **choice)
    return _joined(store, node, nodes, views, choice)


def _joined(store: Any, node: str | None, nodes: str | None, views: str | None, choice: dict[str, Any]) -> Any:
    from ..heads.layers import join_layers
    from ..heads.views import join_views, view_numbers

    if views not in (None, "all") and not (views or "").isdecimal():
        raise typer.BadParameter(f"expected 'all' or a number of views, got {views!r}", param_hint="--views")
    wanted = None if nodes == "all" else nodes
    if views is None:
        return join_layers(store, wanted, **choice)
    numbers = view_numbers(store, None if views == "all" else int(views), view=choice["view"])
    if nodes is None:
        return join_views(store, numbers, rows=True, node=node, **choice)
    return join_views([join_layers(store, wanted, view_number=n, **choice) for n in numbers], rows=True)


def features_by_node(path: Path, nodes: str = "all", **choice: Any) -> list[Any]:
    """Return a FeatureSet per node of a store, in the network's order; of a plain file the one that it holds.

    `nodes` is "all" or names with commas between them; `choice` as in `features`.
    """
    from ..exchange import is_plain_file

    if is_plain_file(path):
        return [features(path, **choice)]
    from ..store import FeatureStore

    store = FeatureStore.open(path)
    order = (store.spec or {}).get("backbone", {}).get("nodes", [])
    there = sorted(store.nodes, key=lambda node: order.index(node) if node in order else len(order))
    wanted = there if nodes == "all" else [word.strip() for word in nodes.split(",") if word.strip()]
    if not wanted and there:
        raise typer.BadParameter("expected names of nodes, or all", param_hint="--nodes")
    return [features(path, node=node, **choice) for node in wanted] or [features(path, **choice)]


def images_of(images: str | None, stores: Sequence[Path], data: Sequence[Any], view: str) -> Any:
    """Return what --images means: a place, nothing for "none", and where a store's images came from when left out.

    That place is taken where it can still be opened and has some of the images.
    """
    if images is not None:
        return None if images == "none" else images
    from ..errors import SourceError
    from ..exchange import is_plain_file
    from ..sources import ImageSource
    from ..store import FeatureStore

    for path, item in zip(stores, data, strict=True):
        if is_plain_file(path):
            continue
        known = FeatureStore.open(path).info(view)["source"]
        name, place = str(known.get("name") or ""), Path(str(known.get("location") or ""))
        # A folder or list is called after its place; single paths and data sets are not, and cannot be opened by it.
        if not known.get("location") or name not in (place.name, place.stem) or not place.exists():
            continue
        try:
            source = ImageSource.open(str(place))
        except SourceError:
            continue
        if not set(item.row_ids.tolist()).isdisjoint(source.ids):
            return source
    return None
