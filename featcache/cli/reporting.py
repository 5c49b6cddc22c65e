"""The verb that puts all evidence on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Group, Json, Key, Label, Labels, Node, Nodes, Quiet, Split, View, app, not_empty

__all__: list[str] = []


@app.command(epilog="Example: featcache report flowers.features -o flowers.html")
def report(
    stores: Annotated[
        list[Path], typer.Argument(help="Stores, or .npy, .npz, .h5, .parquet files.", metavar="STORE...")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="The page: ends in .html, .md or .json.")],
    images: Annotated[
        str | None,
        typer.Option("--images", help="Folder or list of the images; default: where they were extracted from; none."),
    ] = None,
    heads: Annotated[
        str, typer.Option("--heads", help="Comma-separated names; see fit.")
    ] = "logreg,ridge,lda,knn,centroid",
    shots: Annotated[
        str | None, typer.Option("--shots", help="Images per class to train on: numbers, all (default: 1,5,20,80,all).")
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=1000, help="How many draws of each.")] = 3,
    metric: Annotated[str, typer.Option("--metric", help="As for compare.")] = "accuracy",
    sections: Annotated[
        str | None,
        typer.Option(
            "--sections",
            help="Some of summary, data, rank, comparison, curves, advice, errors, calibration, map, neighbours, "
            "findings, protocol.",
        ),
    ] = None,
    projection: Annotated[str, typer.Option("--projection", help="The map: auto, tsne, pca or umap.")] = "auto",
    title: Annotated[str | None, typer.Option("--title", help="Headline of the page.")] = None,
    max_rows: Annotated[int, typer.Option("--max-rows", min=4, help="Sample larger sets to so many images.")] = 20_000,
    max_bytes: Annotated[
        int, typer.Option("--max-bytes", min=100_000, help="Size of the page; thumbnails fill it up to there.")
    ] = 2_950_000,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of samples, folds and the map.")] = 0,
    view: View = "main",
    node: Node = None,
    nodes: Nodes = None,
    label: Label = None,
    group: Group = None,
    split: Split = None,
    labels: Labels = None,
    key: Key = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Put all evidence on one page that needs no network: comparison, errors, map, suspects, provenance."""
    not_empty((images, "--images"))
    from ..evidence import report as run_report
    from ..reporting import Document
    from . import show
    from .comparing import shots_of, words
    from .inputs import features, images_of

    Document.check_target(out)  # before the work, not after it
    choice: dict[str, Any] = {"view": view, "node": node, "label": label, "group": group, "split": split}
    choice |= {"nodes": nodes, "labels": labels, "key": key}
    data = [features(store, **choice) for store in stores]
    wanted = None if sections is None else words(sections, "--sections")
    document = run_report(
        data[0] if len(data) == 1 else data,
        out,
        images=images_of(images, stores, data, view),
        heads=words(heads, "--heads"),
        shots=None if shots is None else shots_of(shots),
        seeds=seeds,
        metric=metric,
        sections=wanted,
        layers=_layers(stores, data, choice) if wanted is None or {"rank", "advice"} & set(wanted) else (),
        projection=projection,
        title=title,
        max_rows=max_rows,
        max_bytes=max_bytes,
        seed=seed,
        progress=False if quiet else "auto",
    )
    summary = next((section.data for section in document.sections if section.key == "summary"), {})
    written = out.stat().st_size
    if as_json:
        show.as_json({"path": str(out), "bytes": written, "pictures": len(document.images), **summary})
        return
    for card in summary.get("cards", ()):
        show.say(show.plain(f"{card['question']} {card['answer']}"))
    show.note(show.plain(f"{out}: {show.size(written)}, {len(document.images)} pictures"))


def _layers(stores: list[Path], data: list[Any], choice: dict[str, Any]) -> list[Any]:
    """Return the other nodes of the stores, unless several are joined."""
    from .inputs import features_by_node

    if choice["nodes"]:
        return []
    others = {name: value for name, value in choice.items() if name not in ("node", "nodes")}
    found = [(own, each) for store, own in zip(stores, data, strict=True) for each in features_by_node(store, **others)]
    return [each for own, each in found if each.node != own.node]
