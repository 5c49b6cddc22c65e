"""The verb that trains backbone and head further."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Json, Quiet, Workers, app, not_empty

__all__: list[str] = []


def _interpolation(text: str | None) -> Any:
    """Parse "auto" or a share."""
    if text in (None, "auto"):
        return text
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(
            f"expected auto or a number from 0 to 1, got {text!r}", param_hint="--interpolate"
        ) from None


@app.command(epilog="Example: featcache finetune flowers.head flowers/ -o flowers-run --stages last-2")
def finetune(
    head: Annotated[str, typer.Argument(help="A linear head that fit made.", metavar="HEAD")],
    source: Annotated[
        str, typer.Argument(help="Labelled images: a folder, or a CSV or parquet list.", metavar="SOURCE")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder of the run; the same command goes on with it.")],
    stages: Annotated[str, typer.Option("--stages", help="head, last-1, last-2, gradual, all or scratch.")] = "gradual",
    start: Annotated[
        str,
        typer.Option("--start", help="auto (the head, fitted again if it saw what judges it), head, fresh, scratch."),
    ] = "auto",
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="In all (default 10); more extend a finished run.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option("--batch-size", min=1, help="Images per step (default 32).")] = None,
    lr: Annotated[
        float | None, typer.Option("--lr", help="Learning rate of the head (default 0.001; new: 0.003).")
    ] = None,
    backbone_lr: Annotated[
        float | None,
        typer.Option("--backbone-lr", help="Of the last block (default: 0.3 of a fitted head's, 0.1 of a new one's)."),
    ] = None,
    schedule_epochs: Annotated[
        int | None,
        typer.Option("--schedule-epochs", min=1, help="Epochs that the rates fall over, if more may follow."),
    ] = None,
    augment: Annotated[
        str | None, typer.Option("--augment", help="views: recorded random crops and mirroring.")
    ] = None,
    n_views: Annotated[int | None, typer.Option("--n-views", min=1, help="So many of each image (default 8).")] = None,
    class_weight: Annotated[
        str | None, typer.Option("--class-weight", help="balanced: rare classes count more.")
    ] = None,
    batch_norm: Annotated[
        str | None, typer.Option("--batch-norm", help="Of what trains: frozen (default), statistics, trained.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option("--patience", min=1, help="End a stage after so many epochs without gain.")
    ] = None,
    average: Annotated[str | None, typer.Option("--average", help="Mean of the last weights: none, swa, ema.")] = None,
    interpolate: Annotated[
        str | None, typer.Option("--interpolate", help="WiSE-FT: a share from 0 (head only) to 1, or auto.")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option("--micro-batch", min=1, help="Images in memory at once; halves when it runs out.")
    ] = None,
    amp: Annotated[bool | None, typer.Option("--amp", help="Mixed precision.")] = None,
    checkpoint_minutes: Annotated[
        float | None, typer.Option("--checkpoint-minutes", min=0, help="Also within an epoch, that often (default 5).")
    ] = None,
    val_size: Annotated[
        float, typer.Option("--val-size", min=0, max=1, help="Held out to judge epochs, where no split column says.")
    ] = 0.2,
    test_size: Annotated[
        float, typer.Option("--test-size", min=0, max=1, help="Held out for the outcome, likewise.")
    ] = 0.2,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of everything random (default 0).")] = None,
    cache: Annotated[str, typer.Option("--cache", help="Run frozen blocks once: auto, always, never.")] = "auto",
    root: Annotated[Path | None, typer.Option("--root", help="Folder that a list's paths are relative to.")] = None,
    suffix: Annotated[str, typer.Option("--suffix", help="Appended to a list's paths, e.g. .jpg")] = "",
    path_column: Annotated[str | None, typer.Option("--path-column", help="A list's column of paths.")] = None,
    label_column: Annotated[str | None, typer.Option("--label-column", help="A list's column of labels.")] = None,
    group_column: Annotated[str | None, typer.Option("--group-column", help="A list's column of groups.")] = None,
    split_column: Annotated[str | None, typer.Option("--split-column", help="A list's column of splits.")] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", help="The backbone's weights, if they are no longer where they were.")
    ] = None,
    workers: Workers = None,
    max_failed: Annotated[
        float, typer.Option("--max-failed", min=0, max=1, help="Part of the images that may be unreadable.")
    ] = 0.01,
    device: Annotated[
        str | None, typer.Option("--device", help="cpu, cuda, …; default: the first GPU, or the CPU.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Train backbone and head further, from the head's accuracy, and say whether that was worth it."""
    not_empty((head, "HEAD"), (source, "SOURCE"))
    if out == Path():
        raise typer.BadParameter("expected the name of a folder, got none", param_hint="--out")
    from ..finetuning import finetune as run_finetune
    from ..sources import ImageSource
    from . import show

    choices: dict[str, Any] = {"auto": "auto", "always": True, "never": False}
    if cache not in choices:
        raise typer.BadParameter(f"expected auto, always or never, got {cache!r}", param_hint="--cache")
    listing = {
        "root": root,
        "suffix": suffix,
        "path_column": path_column,
        "label_column": label_column,
        "group_column": group_column,
        "split_column": split_column,
    }
    done = run_finetune(
        head,
        ImageSource.open(source, **{k: v for k, v in listing.items() if v}),
        out,
        stages=stages,
        start=start,
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        backbone_lr=backbone_lr,
        schedule_epochs=schedule_epochs,
        augment=augment,
        n_views=n_views,
        class_weight=class_weight,
        batch_norm=batch_norm,
        patience=patience,
        average=average,
        interpolate=_interpolation(interpolate),
        micro_batch=micro_batch,
        amp=amp,
        checkpoint_minutes=checkpoint_minutes,
        val_size=val_size,
        test_size=test_size,
        seed=seed,
        cache=choices[cache],
        weights=weights,
        workers=workers,
        max_failed=max_failed,
        device=device,
        command=_longer(epochs),
        progress=False if quiet else "auto",
    )
    show.as_json(done.as_dict()) if as_json else show.finetuned(done, notes=quiet)


def _longer(epochs: int | None) -> str:
    """Return this command with twice as many epochs; the last of repeated options counts."""
    given = list(sys.argv[1:])
    while "--epochs" in given[:-1]:
        place = given.index("--epochs")
        del given[place : place + 2]
    return shlex.join(["featcache", *given, "--epochs", str(2 * (epochs or 10))])
