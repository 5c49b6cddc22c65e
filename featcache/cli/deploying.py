"""The verbs for those who use what was trained: export, predict."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

from ..progress import Progress, progress_for
from .options import BatchSize, Device, Group, Json, Label, Node, Quiet, Split, View, Workers, app, not_empty

__all__: list[str] = []

BackboneWeights = Annotated[
    str | None, typer.Option("--weights", help="The backbone's weights, if they are no longer where they were.")
]


@app.command(epilog="Example: featcache export flowers.features flowers.h5; featcache export flowers.head flowers.onnx")
def export(
    data: Annotated[Path, typer.Argument(help="A store of codes, a head, or a bundle.", metavar="STORE|HEAD")],
    out: Annotated[
        Path,
        typer.Argument(
            help="The file. Of a store .h5, .hdf5, .npz or .parquet; of a head .pt2, .onnx, .safetensors, or .bundle "
            "(without an ending: the bundle as a folder).",
            metavar="OUT",
        ),
    ],
    view: View = "main",
    node: Node = None,
    label: Label = None,
    group: Group = None,
    split: Split = None,
    images: Annotated[
        str, typer.Option("--images", help="What an exported network takes: normalized, or uint8 (bytes).")
    ] = "normalized",
    check: Annotated[
        Path | None, typer.Option("--check", help="Images on which the exported network is compared with the head.")
    ] = None,
    weights: BackboneWeights = None,
    without_weights: Annotated[
        bool, typer.Option("--without-weights", help="Of a bundle: only the digest of the backbone's weights.")
    ] = False,
    licence: Annotated[str | None, typer.Option("--licence", help="Of a bundle: the licence of the weights.")] = None,
    description: Annotated[str, typer.Option("--description", help="Of a bundle: what it is, for its card.")] = "",
    intended_use: Annotated[
        str, typer.Option("--intended-use", help="Of a bundle: what it is meant for, for its card.")
    ] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Write a store's codes as one plain file, or a head with its backbone as a network or bundle."""
    from ..handoff import export as run_export
    from . import show

    choice: dict[str, Any] = {"view": view, "node": node, "label": label, "group": group, "split": split}
    model: dict[str, Any] = {"images": images, "check": None if check is None else str(check), "weights": weights}
    model |= {"licence": licence, "description": description, "intended_use": intended_use}
    done = run_export(data, out, **choice, **model, include_weights=not without_weights, overwrite=overwrite)
    if isinstance(done, Path):
        facts: dict[str, Any] = {"path": str(done), "bytes": done.stat().st_size}
    else:
        facts = {"path": str(done.path), "bytes": done.bytes, "sha256": done.sha256}
        facts |= {"difference": done.difference, "absolute": done.absolute, "images": done.images}
        facts |= {"unread": done.unread}
    show.as_json(facts) if as_json else show.exported(facts)


def _counted(lines: Iterator[dict[str, Any]], total: int, progress: Progress) -> Iterator[dict[str, Any]]:
    with progress as bar:
        bar.start("predicting", total)
        for line in lines:
            yield line
            bar.advance()


@app.command(epilog="Example: featcache predict flowers.head new.jpg more/")
def predict(
    head: Annotated[Path, typer.Argument(help="A file that fit made, or a bundle.", metavar="HEAD")],
    images: Annotated[list[str], typer.Argument(help="Images and folders of images.", metavar="IMAGE...")],
    top_k: Annotated[
        int | None, typer.Option("--top-k", min=1, help="So many labels with their scores, the best first.")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option("--sha256", help="Use the bundle only if this is its digest, as export printed it.")
    ] = None,
    weights: BackboneWeights = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Predict new images: id, label and its score, separated by tabs.

    Of several labels per image the scores in the same order, separated by commas; of a number id and number. With
    --top-k id, then each label and its score.
    """
    not_empty(*((image, "IMAGE") for image in images), (sha256, "--sha256"))
    from ..handoff import load_bundle, predict_iter
    from ..handoff import predict as run_predict
    from ..sources import ImageSource
    from . import show

    model = head if sha256 is None else load_bundle(head, sha256)
    options: dict[str, Any] = {"top_k": top_k, "weights": weights, "batch_size": batch_size, "workers": workers}
    if as_json:
        rows = run_predict(model, images, **options, device=device, progress=False if quiet else "auto")
        show.as_json(rows)
        failed = any("error" in row for row in rows)
    else:  # as they come: of a large folder, or into a pipe
        source = ImageSource.from_paths(images)
        lines = predict_iter(model, source, **options, device=device)
        # Lines on the terminal are progress enough; those that go elsewhere leave room for a bar.
        bar = progress_for(False if quiet or sys.stdout.isatty() else "auto")
        failed = show.predictions(_counted(lines, len(source), bar))
    if failed:
        raise typer.Exit(1)
