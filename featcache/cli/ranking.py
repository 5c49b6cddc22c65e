"""The verb that ranks backbones and nodes by their cached codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Group, Json, Key, Label, Labels, Quiet, Split, View, app

__all__: list[str] = []


@app.command(epilog="Example: featcache rank flowers-resnet50.features flowers-embedded.features")
def rank(
    stores: Annotated[
        list[Path], typer.Argument(help="Stores, or .npy, .npz, .h5, .parquet files.", metavar="STORE...")
    ],
    nodes: Annotated[str, typer.Option("--nodes", help="Nodes of the stores: all, or names by commas.")] = "all",
    by: Annotated[
        str, typer.Option("--by", help="Sort by: explained (what ridge or kNN explains, left out), ridge, knn.")
    ] = "explained",
    metric: Annotated[str, typer.Option("--metric", help="accuracy or balanced_accuracy.")] = "accuracy",
    logits: Annotated[
        str, typer.Option("--logits", help="Node of the network's own classifier, for LEEP; auto, or none.")
    ] = "auto",
    max_rows: Annotated[int, typer.Option("--max-rows", min=20, help="Of more images, draw so many.")] = 10_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of that draw.")] = 0,
    view: View = "main",
    label: Label = None,
    group: Group = None,
    split: Split = None,
    labels: Labels = None,
    key: Key = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Rank backbones and nodes by their codes: leave-one-out accuracy on the training rows, LogME and others beside."""
    from ..progress import progress_for
    from ..ranking import rank as run_rank
    from . import show
    from .inputs import features_by_node

    choice: dict[str, Any] = {"view": view, "label": label, "group": group, "split": split}
    data = [each for store in stores for each in features_by_node(store, nodes, **choice, labels=labels, key=key)]
    with progress_for(False if quiet else "auto") as bar:

        def step(done: int, total: int, what: str) -> None:
            if done == 1:
                bar.start("ranking", total)
            bar.advance(1, what)

        ranking = run_rank(
            data,
            by=by,
            metric=metric,
            logits=None if logits == "none" else logits,
            max_rows=max_rows,
            seed=seed,
            progress=step,
        )
    if as_json:
        show.as_json(json.loads(ranking.to_json()))
        return
    show.say("\n".join(show.plain(line) for line in ranking.table().split("\n")))
