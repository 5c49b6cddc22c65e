"""The program, and the words that several of its verbs share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

__all__ = [
    "BackboneName",
    "BatchSize",
    "Codes",
    "Device",
    "FitMetric",
    "Group",
    "Json",
    "Key",
    "Label",
    "Labels",
    "Node",
    "Nodes",
    "Quiet",
    "Separator",
    "Split",
    "Store",
    "Target",
    "View",
    "Views",
    "Weights",
    "Workers",
    "app",
    "not_empty",
]

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Run a frozen pretrained backbone once over your images, keep its CNN codes, train heads in seconds.",
    epilog="Example: featcache extract flowers/ -o flowers.features && featcache compare flowers.features",
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]
Codes = Annotated[Path, typer.Argument(help="A store, or a .npy, .npz, .h5, .parquet file.", metavar="STORE")]
Store = Annotated[Path, typer.Argument(help="A store of codes (the folder that extract made).", metavar="STORE")]
BackboneName = Annotated[str, typer.Option("--backbone", help="embedded, or a torchvision classification model.")]
Weights = Annotated[
    str | None, typer.Option("--weights", help="Name of torchvision's weights, a file, a URL, or 'random'.")
]
BatchSize = Annotated[
    int | None, typer.Option("--batch-size", min=1, help="Images handed to the network at once (default: by device).")
]
Workers = Annotated[
    int | None,
    typer.Option("--workers", min=0, help="Threads that only read and decode (default: one per core does everything)."),
]
Device = Annotated[str, typer.Option("--device", help="cpu, cuda, cuda:1, …")]
View = Annotated[str, typer.Option("--view", help="Which view of the store.")]
Label = Annotated[str | None, typer.Option("--label", help="Column to use as the label.")]
Group = Annotated[str | None, typer.Option("--group", help="Column whose rows must stay together in splits.")]
Split = Annotated[str | None, typer.Option("--split", help="Column that says train, val or test.")]
Node = Annotated[str | None, typer.Option("--node", help="Which node's codes, when the store has several.")]
Nodes = Annotated[str | None, typer.Option("--nodes", help="Several nodes' codes side by side: layer3,layer4, or all.")]
Views = Annotated[
    str | None, typer.Option("--views", help="Train on augmented views, too: all, or how many beside the plain images.")
]
Labels = Annotated[
    str | None, typer.Option("--labels", help="Of a plain file: its labels' name, or a .npy, .txt or .csv file.")
]
Key = Annotated[str | None, typer.Option("--key", help="Of a plain file: the name of its matrix.")]
FitMetric = Annotated[
    str | None,
    typer.Option(
        "--metric",
        help="accuracy (default), balanced_accuracy, macro_f1. With --separator map (default), subset_accuracy, "
        "micro_f1, macro_f1; with --target r2 (default), mae, rmse.",
    ),
]
Separator = Annotated[
    str | None,
    typer.Option(
        "--separator", help="Images have several labels, with this between them, such as ';'. ';' alone: none."
    ),
]
Target = Annotated[
    str | None, typer.Option("--target", help="Predict the number in this column ('label': the labels).")
]


def not_empty(*given: tuple[str | None, str]) -> None:
    """Refuse an empty word: a shell variable that is not set, not a wish for the default."""
    for word, name in given:
        if word == "":
            raise typer.BadParameter("expected a value, got an empty one", param_hint=name)
