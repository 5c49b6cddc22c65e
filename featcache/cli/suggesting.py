"""The verb that says which images to label next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Codes, Group, Json, Key, Label, Labels, Node, Split, View, app

__all__: list[str] = []


@app.command(epilog="Example: featcache suggest flowers.features -n 20 -o label_next.csv")
def suggest(
    store: Codes,
    n: Annotated[int, typer.Option("-n", "--n", min=1, help="Images wanted.")] = 20,
    strategy: Annotated[str, typer.Option("--strategy", help="auto, coverage, uncertainty, mix or random.")] = "auto",
    head: Annotated[str, typer.Option("--head", help="The head whose doubts count; see fit.")] = "ridge",
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of what is drawn.")] = 0,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Write the images here: .txt (ids), .csv or .json.")
    ] = None,
    view: View = "main",
    node: Node = None,
    label: Label = None,
    group: Group = None,
    split: Split = None,
    labels: Labels = None,
    key: Key = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    as_json: Json = False,
) -> None:
    """Say which unlabelled images to label next, and why: those that stand for many, those the head is unsure of."""
    from ..labelling import suggest as run_suggest
    from ..labelling.suggestions import check_list
    from . import show
    from .inputs import features

    if out is not None:
        check_list(out)  # before the work, not after it
    choice: dict[str, Any] = {"view": view, "node": node, "label": label, "group": group, "split": split}
    found = run_suggest(features(store, **choice, labels=labels, key=key), n, strategy=strategy, head=head, seed=seed)
    if out is not None:
        found.save(out)
    if as_json:
        show.as_json(json.loads(found.to_json()))
    elif markdown:
        show.say(found.to_markdown().rstrip("\n"))
    else:
        show.say(found.table())
    if out is not None:
        show.note(f"images to label: {show.plain(str(out))}")
