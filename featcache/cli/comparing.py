"""The verb that compares heads, and backbones, on the same splits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Group, Json, Key, Label, Labels, Node, Nodes, Quiet, Split, View, app

__all__: list[str] = []


@app.command(epilog="Example: featcache compare flowers.features --heads logreg,svm,knn --shots 1,5,10,all --seeds 5")
def compare(
    stores: Annotated[
        list[Path], typer.Argument(help="Stores, or .npy, .npz, .h5, .parquet files.", metavar="STORE...")
    ],
    heads: Annotated[
        str, typer.Option("--heads", help="Comma-separated names; see fit.")
    ] = "logreg,svm,knn,ridge,lda,centroid,auto",
    shots: Annotated[str, typer.Option("--shots", help="Images per class to train on: numbers, all.")] = "all",
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=1000, help="How many draws of each.")] = 5,
    metric: Annotated[
        str,
        typer.Option(
            "--metric", help="accuracy, balanced_accuracy, macro_f1, top_5 (any number), auroc, log_loss or ece."
        ),
    ] = "accuracy",
    test_size: Annotated[float, typer.Option("--test-size", help="Test share of holdout and hash.")] = 0.25,
    cv: Annotated[int, typer.Option("--cv", min=2, help="Folds on which settings are chosen.")] = 3,
    splitter: Annotated[
        str,
        typer.Option(
            "--splitter",
            help="Where test rows come from: named (the split column), holdout, k-fold, hash (by id: stays when images "
            "are added), auto (named, else holdout).",
        ),
    ] = "auto",
    n_folds: Annotated[int, typer.Option("--n-folds", min=2, help="Folds of --splitter k-fold.")] = 5,
    n_jobs: Annotated[
        int | None, typer.Option("--n-jobs", help="Processes; -1: one per core (default: where it pays).")
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Look results up that were computed before.")
    ] = True,
    view: View = "main",
    node: Node = None,
    nodes: Nodes = None,
    views: Annotated[
        str | None, typer.Option("--views", help="Compare with training on augmented views, too: all, or how many.")
    ] = None,
    label: Label = None,
    group: Group = None,
    split: Split = None,
    labels: Labels = None,
    key: Key = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Save learning curves as a PNG, SVG or PDF.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compare heads on the same splits of a store's codes; of several stores, backbones on the same images."""
    from ..evaluation import compare as run_compare
    from ..progress import progress_for
    from ..reporting import Result
    from . import show
    from .inputs import features

    if plot is not None:
        Result.check_plot(plot)  # before the work, not after it
    choice: dict[str, Any] = {"view": view, "node": node, "label": label, "group": group, "split": split}
    choice |= {"nodes": nodes, "labels": labels, "key": key}
    data = [features(s, **choice, views=v) for s in stores for v in dict.fromkeys((None, views))]
    with progress_for(False if quiet else "auto") as bar:
        result = run_compare(
            data[0] if len(data) == 1 else data,
            words(heads, "--heads"),
            shots=shots_of(shots),
            seeds=seeds,
            metric=metric,
            test_size=test_size,
            cv=cv,
            splitter=splitter,
            n_folds=n_folds,
            n_jobs=n_jobs,
            cache=cache,
            progress=steps(bar, "comparing"),
        )
    forecasts = _forecasts(result)
    if as_json:
        show.as_json({**json.loads(result.to_json()), "forecasts": [each.as_dict() for each in forecasts]})
        if plot is not None:
            result.plot(plot)
        return
    show.say("\n".join(show.plain(line) for line in result.table().split("\n")))
    for each in forecasts:
        if each.head == result.best(dataset=each.dataset)["head"]:
            show.say(show.plain(each.statement()))
    if plot is not None:
        result.plot(plot)
        show.note(f"learning curves: {plot}")


def _forecasts(result: Any) -> tuple[Any, ...]:
    """What twice the labels would bring to each head; nothing where a curve has fewer than three points."""
    from ..errors import HeadError
    from ..evaluation import forecast

    try:
        return forecast(result)
    except HeadError:
        return ()


def steps(bar: Any, what: str) -> Any:
    """Return a callback (done, total, what) that moves a bar."""

    def report(done: int, total: int, detail: str) -> None:
        if done == 1:
            bar.start(what, total)
        bar.advance(1, detail)

    return report


def words(text: str, option: str) -> list[str]:
    """Return the words of a comma-separated option."""
    found = [w.strip() for w in text.split(",") if w.strip()]
    if not found:
        raise typer.BadParameter("expected comma-separated names", param_hint=option)
    return found


def shots_of(text: str) -> list[int | str]:
    """Return the numbers of an option such as "1,5,all"."""
    shots: list[int | str] = []
    for word in words(text, "--shots"):
        if word != "all" and not (word.isdecimal() and int(word) > 0):
            raise typer.BadParameter(f"expected numbers above 0 and 'all', got {word!r}", param_hint="--shots")
        shots.append(word if word == "all" else int(word))
    return shots
