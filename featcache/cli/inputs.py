"""What a verb takes in place of a store: a plain file of features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import typer

__all__ = ["features"]


def features(
    path: Path,
    *,
    view: str = "main",
    node: str | None = None,
    label: str | None = None,
    group: str | None = None,
    split: str | None = None,
    labels: str | None = None,
    key: str | None = None,
) -> Any:
    """Return the FeatureSet that the words of a command mean: a view of a store, or what a plain file holds.

    Of a plain file, --label, --group and --split name its own columns; --labels may name another file as well.
    """
    from ..exchange import is_plain_file, read_features

    if is_plain_file(path):
        for value, option in ((view != "main", "--view"), (node, "--node"), (label and labels, "--label")):
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

    return FeatureStore.open(path).load(view, node=node, label=label, group=group, split=split)
