"""The verbs. Each parses its words, calls the public function of the same name, and shows the result."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import (
    BackboneName,
    BatchSize,
    Codes,
    Device,
    FitMetric,
    Group,
    Json,
    Key,
    Label,
    Labels,
    Node,
    Nodes,
    Quiet,
    Separator,
    Split,
    Target,
    View,
    Views,
    Weights,
    Workers,
    app,
    not_empty,
)

__all__ = ["app"]


def _version(value: bool) -> None:
    if value:
        from .. import __version__

        typer.echo(f"featcache {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Hold the options of the program itself."""


def _backbone(
    name: str,
    weights: str | None,
    nodes: str | None,
    pooling: str,
    init_seed: int | None,
    changes: dict[str, Any],
) -> Any:
    """Build the Backbone that the options describe."""
    not_empty((weights, "--weights"), (nodes, "--nodes"))
    from ..backbone import Backbone

    return Backbone(
        name,
        weights or "DEFAULT",
        nodes=nodes or "penultimate",
        pooling=pooling,
        init_seed=init_seed,
        preprocess=changes or None,
    )


def _size(text: str | None, option: str) -> Any:
    """Parse "224" or "224x320" (height × width)."""
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.lower().replace("×", "x").split("x"))
        if len(numbers) in (1, 2) and min(numbers) > 0:
            return numbers[0] if len(numbers) == 1 else numbers
    except ValueError:
        pass
    raise typer.BadParameter(f"expected pixels as N or HxW, got {text!r}", param_hint=option)


@app.command(epilog="Example: featcache demo --out my-demo")
def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the demo's images, store and plot.")] = Path(
        "featcache-demo"
    ),
    as_json: Json = False,
) -> None:
    """Run the whole job offline on handwritten digits: extract, reuse, compare heads, plot."""
    from ..tour import demo as run_demo
    from . import show

    result = run_demo(out, say=show.note if as_json else show.say)
    if as_json:
        show.as_json(result)


@app.command(epilog="Example: featcache extract flowers/ -o flowers.features --backbone resnet50")
def extract(
    source: Annotated[str, typer.Argument(help="Folder of images (one folder per class), or a CSV or parquet list.")],
    store: Annotated[Path, typer.Option("-o", "--out", help="The store; made, or updated with what is missing.")],
    backbone: BackboneName = "embedded",
    weights: Weights = None,
    nodes: Annotated[str | None, typer.Option("--nodes", help="Nodes to cut at, e.g. layer3 or layer2,layer3.")] = None,
    pooling: Annotated[str, typer.Option("--pooling", help="avg, max, gem, cls or none.")] = "avg",
    precision: Annotated[str, typer.Option("--precision", help="auto, fp32, bf16 or fp16.")] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", help="Stored as: auto, float32 or float16.")] = "auto",
    resize: Annotated[str | None, typer.Option("--resize", help="Shorter edge, or HxW; default: the weights'.")] = None,
    crop: Annotated[str | None, typer.Option("--crop", help="Centre crop, N or HxW; default: the weights'.")] = None,
    interpolation: Annotated[str | None, typer.Option("--interpolation", help="bilinear, bicubic, …")] = None,
    init_seed: Annotated[
        int | None, typer.Option("--init-seed", help="Seed for random weights, or for tensors that a file lacks.")
    ] = None,
    view: View = "main",
    add: Annotated[bool, typer.Option("--add", help="Add to the view instead of making it equal to SOURCE.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Let SOURCE replace a view it shares nothing with.")
    ] = False,
    root: Annotated[Path | None, typer.Option("--root", help="Folder that a list's paths are relative to.")] = None,
    suffix: Annotated[str, typer.Option("--suffix", help="Appended to a list's paths, e.g. .jpg")] = "",
    path_column: Annotated[str | None, typer.Option("--path-column", help="A list's column of paths.")] = None,
    label_column: Annotated[str | None, typer.Option("--label-column", help="A list's column of labels.")] = None,
    group_column: Annotated[str | None, typer.Option("--group-column", help="A list's column of groups.")] = None,
    split_column: Annotated[str | None, typer.Option("--split-column", help="A list's column of splits.")] = None,
    batch_size: BatchSize = None,
    workers: Workers = None,
    device: Device = "auto",
    publish_seconds: Annotated[
        float | None, typer.Option("--publish-seconds", min=0, help="Make rows durable at least this often.")
    ] = None,
    max_failed: Annotated[
        float, typer.Option("--max-failed", min=0, max=1, help="Part of the images that may fail.")
    ] = 0.01,
    pixels: Annotated[
        str, typer.Option("--pixels", help="auto (faster decoding where codes agree) or reference.")
    ] = "auto",
    engine: Annotated[str, typer.Option("--engine", help="auto, eager, fused or compiled.")] = "auto",
    augmented: Annotated[int, typer.Option("--augmented", min=0, help="Augmented views per image.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compute the codes of all images that STORE does not have yet."""
    not_empty((source, "SOURCE"))
    import dataclasses

    from ..errors import FailureBudgetExceeded
    from ..extraction import extract as run_extract
    from ..extraction import plan
    from ..extraction.report import process_seconds
    from ..sources import ImageSource
    from . import show

    changes = {"resize": _size(resize, "--resize"), "crop": _size(crop, "--crop"), "interpolation": interpolation}
    network = _backbone(
        backbone, weights, nodes, pooling, init_seed, {k: v for k, v in changes.items() if v is not None}
    )
    listing = {
        "root": root,
        "suffix": suffix,
        "path_column": path_column,
        "label_column": label_column,
        "group_column": group_column,
        "split_column": split_column,
    }
    images = ImageSource.open(source, **{k: v for k, v in listing.items() if v})
    common: dict[str, Any] = {
        "view": view,
        "add": add,
        "replace": replace,
        "precision": precision,
        "dtype": dtype,
        "batch_size": batch_size,
        "workers": workers,
        "device": device,
        "pixels": pixels,
        "engine": engine,
        "augmented": augmented,
        "progress": False if quiet else "auto",
    }
    if dry_run:
        started = process_seconds()
        planned = plan(images, network, store, **common)
        if planned.seconds:  # the run's own process has to start, too
            planned = dataclasses.replace(planned, seconds=round(planned.seconds + started, 3))
        show.as_json(planned.as_dict()) if as_json else show.plan(planned)
        return
    try:
        done = run_extract(images, network, store, publish_seconds=publish_seconds, max_failed=max_failed, **common)
    except FailureBudgetExceeded as error:
        _show_extraction(getattr(error, "report", None), as_json)
        raise
    _show_extraction(done.report, as_json)


def _show_extraction(report: Any, as_json: bool) -> None:
    from dataclasses import replace

    from ..extraction.report import process_seconds
    from . import show

    if report is None:
        return
    seconds = process_seconds()
    report = replace(report, seconds=round(seconds, 3), images_per_second=round(report.computed / seconds, 2))
    show.as_json(report.as_dict()) if as_json else show.extraction(report)


@app.command(epilog="Example: featcache fit flowers.features --head logreg -o flowers.head")
def fit(
    store: Codes,
    out: Annotated[Path, typer.Option("-o", "--out", help="File for the fitted head.")],
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            help="auto, logreg, softmax, svm, svm-rbf, ridge, lda, knn, centroid, simpleshot, nystroem, mlp, searched, "
            "ensemble. Default: auto; with --separator logreg (or softmax, ridge), with --target ridge.",
        ),
    ] = None,
    metric: FitMetric = None,
    cv: Annotated[
        int, typer.Option("--cv", min=2, help="Folds for choosing settings; ridge, without groups, needs none.")
    ] = 5,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the folds.")] = 0,
    calibrate: Annotated[bool, typer.Option("--calibrate", help="Make the scores calibrated probabilities.")] = False,
    reject: Annotated[
        float | None, typer.Option("--reject", help="Error rate wanted among accepted answers, such as 0.05.")
    ] = None,
    reject_confidence: Annotated[
        float | None, typer.Option("--reject-confidence", help="Be so sure of that error rate, such as 0.9.")
    ] = None,
    novelty: Annotated[
        str | None, typer.Option("--novelty", help="Detect images unlike the training images: mahalanobis, knn.")
    ] = None,
    separator: Separator = None,
    target: Target = None,
    view: View = "main",
    node: Node = None,
    nodes: Nodes = None,
    views: Views = None,
    label: Label = None,
    group: Group = None,
    split: Split = None,
    labels: Labels = None,
    key: Key = None,
    as_json: Json = False,
) -> None:
    """Train one head on a store's codes and save it."""
    from ..heads import fit as run_fit
    from ..heads.persistence import check_target
    from . import show
    from .inputs import features

    choice: dict[str, Any] = {"view": view, "node": node, "label": label, "group": group, "split": split}
    data = features(store, **choice, nodes=nodes, views=views, labels=labels, key=key)
    check_target(out)  # before the work, not after it
    usual = "auto" if separator is target is None else "ridge" if separator is None else "logreg"
    guards: dict[str, Any] = {
        "calibrate": calibrate, "reject": reject, "reject_confidence": reject_confidence, "novelty": novelty,
    }  # fmt: skip
    fitted = run_fit(head or usual, data, metric=metric, cv=cv, seed=seed, separator=separator, target=target, **guards)
    path = fitted.save(out)
    if as_json:
        show.as_json(
            {
                "head": fitted.head,
                "path": str(path),
                "params": fitted.params,
                "metric": fitted.metric,
                "scores": fitted.scores,
                "n_train": fitted.n_train,
                "classes": [str(c) for c in fitted.classes_],
                "fingerprint": fitted.fingerprint,
                "notes": list(fitted.notes),
                "temperature": fitted.temperature,
                "rejection": fitted.rejection and {k: v if isfinite(v) else None for k, v in fitted.rejection.items()},
                "novelty": novelty,
                "separator": separator,
                "target": target,
            }
        )
    else:
        show.fitted_head(fitted, str(path))


@app.command(epilog="Example: featcache backbones resnet50 --nodes")
def backbones(
    name: Annotated[str | None, typer.Argument(help="Only this one.")] = None,
    nodes: Annotated[bool, typer.Option("--nodes", help="List the nodes it can be cut at.")] = False,
    as_json: Json = False,
) -> None:
    """List backbones with their weights, or the nodes of one."""
    from ..backbone import list_backbones, list_nodes
    from . import show

    if nodes:
        if name is None:
            raise typer.BadParameter("give the name of a backbone too", param_hint="--nodes")
        rows = list_nodes(name)
        if as_json:
            show.as_json(rows)
            return
        cells = [
            ("→ " * r["penultimate"] + r["node"], r["module"] or "", _shape(r["shape"]), _shape(r["pooled"]))
            for r in rows
        ]
        show.table(cells, ("node (→ penultimate)", "module", "shape", "pooled"))
        return
    found = [row for row in list_backbones() if name is None or row["name"] == name]
    if not found:
        raise typer.BadParameter(f"no backbone {name!r}; run featcache backbones for the list", param_hint="NAME")
    if as_json:
        show.as_json(found)
        return
    show.table(
        [
            (r["name"], f"{(r['parameters'] or 0) / 1e6:.1f} M", _shape(r["input"]), ", ".join(r["weights"]))
            for r in found
        ],
        ("name", "parameters", "input", "weights"),
    )


def _shape(shape: Any) -> str:
    return "×".join(str(n) for n in shape) if shape else ""


# Their verbs are registered after these, in the order of the help.
# isort: off
from . import deploying as deploying  # noqa: E402
from . import comparing as comparing  # noqa: E402
from . import reporting as reporting  # noqa: E402
from . import auditing as auditing  # noqa: E402
from . import ranking as ranking  # noqa: E402
from . import advising as advising  # noqa: E402
from . import suggesting as suggesting  # noqa: E402
from . import verifying as verifying  # noqa: E402
from . import finetuning as finetuning  # noqa: E402
from . import keeping as keeping  # noqa: E402
