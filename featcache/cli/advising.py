"""The verb that says what to train, from measurements."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any

import typer

from .options import Codes, Group, Json, Key, Label, Labels, Quiet, Split, View, app

__all__: list[str] = []


@app.command(epilog="Example: featcache advise flowers.features --images-per-second 120")
def advise(
    store: Codes,
    nodes: Annotated[str, typer.Option("--nodes", help="Nodes of the store: all, or names by commas.")] = "all",
    logits: Annotated[
        str, typer.Option("--logits", help="Node of the network's own classifier; auto, or none.")
    ] = "auto",
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=1000, help="Draws of the learning curve.")] = 5,
    images_per_second: Annotated[
        float | None, typer.Option("--images-per-second", help="What extract reached here: costs are then in seconds.")
    ] = None,
    view: View = "main",
    label: Label = None,
    group: Group = None,
    split: Split = None,
    labels: Labels = None,
    key: Key = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Say what to train, and why: a head, the last blocks, all, or from scratch; measured on the training rows."""
    from ..advice.advising import advised
    from ..advice.command import Command
    from ..exchange import is_plain_file
    from ..progress import progress_for
    from . import show
    from .inputs import features_by_node

    choice: dict[str, Any] = {"view": view, "label": label, "group": group, "split": split}
    data = features_by_node(store, nodes, **choice, labels=labels, key=key)
    with progress_for(False if quiet else "auto") as bar:

        def step(done: int, total: int, what: str) -> None:
            if done == 1:
                bar.start("measuring", total)
            bar.advance(1, what)

        rows = given(choice | {"labels": labels, "key": key}, view="main")
        asked = given({"nodes": nodes, "logits": logits, "seeds": seeds}, nodes="all", logits="auto", seeds=5)
        advice = advised(
            data,
            Command(str(store), rows, asked, has_nodes=not is_plain_file(store)),
            logits=None if logits == "none" else logits,
            seeds=seeds,
            images_per_second=images_per_second,
            progress=step,
        )
    if as_json:
        show.as_json(json.loads(advice.to_json()))
        return
    show.say("\n".join(show.plain(line) for line in advice.table().split("\n")))


def given(options: Mapping[str, Any], **defaults: Any) -> tuple[str, ...]:
    """Return options as words of a command line, without those that have their default."""
    return tuple(
        word
        for name, value in options.items()
        if value is not None and value != defaults.get(name)
        for word in (f"--{name}", str(value))
    )
