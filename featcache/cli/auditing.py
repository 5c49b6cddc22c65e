"""The verb that looks for what is wrong with a data set: copies, leaks, doubtful labels, outliers, blank images."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import Codes, Group, Json, Key, Label, Labels, Node, Quiet, Split, View, app, not_empty

__all__: list[str] = []


@app.command(epilog="Example: featcache audit flowers.features --images flowers/")
def audit(
    store: Codes,
    images: Annotated[
        str | None,
        typer.Option("--images", help="Folder or list of the images; default: where they were extracted from; none."),
    ] = None,
    false_share: Annotated[
        float, typer.Option("--false-share", help="Accepted share of false near duplicates and outliers.")
    ] = 0.05,
    folds: Annotated[int, typer.Option("--folds", min=2, help="Folds of the heads that doubt labels.")] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the folds.")] = 0,
    workers: Annotated[int, typer.Option("--workers", min=1, help="Threads that decode images.")] = 4,
    view: View = "main",
    node: Node = None,
    label: Label = None,
    group: Group = None,
    split: Split = None,
    labels: Labels = None,
    key: Key = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Find copies, groups on both sides of a split, doubtful labels, outliers and blank images."""
    not_empty((images, "--images"))
    from ..hygiene import audit as run_audit
    from . import show
    from .inputs import features, images_of

    choice: dict[str, Any] = {"view": view, "node": node, "label": label, "group": group, "split": split}
    data = features(store, **choice, labels=labels, key=key)
    found = run_audit(
        data,
        images=images_of(images, [store], [data], view),
        false_share=false_share,
        folds=folds,
        seed=seed,
        workers=workers,
        progress=False if quiet else "auto",
    )
    show.as_json(found.document()) if as_json else show.say(found.table())
