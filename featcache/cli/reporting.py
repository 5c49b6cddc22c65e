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
            help="Some of summary, data, comparison, curves, errors, calibration, map, neighbours, findings, protocol.",
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
    from .inputs import features

    Document.check_target(out)  # before the work, not after it
    choice: dict[str, Any] = {"view": view, "node": node, "label": label, "group": group, "split": split}
    choice |= {"nodes": nodes, "labels": labels, "key": key}
    data = [features(store, **choice) for store in stores]
    document = run_report(
        data[0] if len(data) == 1 else data,
        out,
        images=_remembered(stores, view) if images is None else None if images == "none" else images,
        heads=words(heads, "--heads"),
        shots=None if shots is None else shots_of(shots),
        seeds=seeds,
        metric=metric,
        sections=None if sections is None else words(sections, "--sections"),
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


def _remembered(stores: list[Path], view: str) -> str | None:
    """Return the folder or list that a store's images came from, where it still is."""
    from ..exchange import is_plain_file
    from ..store import FeatureStore

    for path in stores:
        if is_plain_file(path):
            continue
        source = FeatureStore.open(path).info(view)["source"]
        name, place = str(source.get("name") or ""), Path(str(source.get("location") or ""))
        # A folder or list is called after its place; single paths and data sets are not, and cannot be opened by it.
        if source.get("location") and name in (place.name, place.stem) and place.exists():
            return str(place)
    return None
