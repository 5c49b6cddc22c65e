"""The verb that measures verification: same or different on pairs of codes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import Codes, Group, Json, Key, Label, Labels, Node, Quiet, Split, View, app

__all__: list[str] = []


@app.command(epilog="Example: featcache verify faces.features --metric all --plot faces.png -o faces.verifier")
def verify(
    store: Codes,
    metric: Annotated[
        str, typer.Option("--metric", help="auto, cosine, whiten, wccn, lda, plda, siamese, several by commas, or all.")
    ] = "auto",
    identity: Annotated[
        str, typer.Option("--identity", help="What names the identity: label, group, split or another column.")
    ] = "label",
    domain: Annotated[
        str | None, typer.Option("--domain", help="Column whose values are held out whole (default: the group).")
    ] = None,
    burst: Annotated[
        str | None, typer.Option("--burst", help="Column of bursts: two rows of one are never paired.")
    ] = None,
    far: Annotated[float, typer.Option("--far", help="Wanted false-accept rate of the threshold.")] = 0.01,
    seeds: Annotated[int, typer.Option("--seeds", min=1, max=1000, help="Draws of held-out identities.")] = 5,
    test_size: Annotated[float, typer.Option("--test-size", help="Share of the identities held out.")] = 0.3,
    cv: Annotated[int, typer.Option("--cv", min=2, help="Folds of identities for choosing settings.")] = 3,
    episodes: Annotated[
        int, typer.Option("--episodes", min=0, help="Tasks of identification of each kind and draw.")
    ] = 400,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Save the metric here (of several the best in training).")
    ] = None,
    view: View = "main",
    node: Node = None,
    label: Label = None,
    group: Group = None,
    split: Split = None,
    labels: Labels = None,
    key: Key = None,
    plot: Annotated[Path | None, typer.Option("--plot", help="Save ROC, DET and scores as a PNG, SVG or PDF.")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Measure how well codes tell identities apart that were not trained on: same or different, one-shot naming."""
    from ..heads.persistence import check_target
    from ..progress import progress_for
    from ..verification import plot_verification
    from ..verification import verify as run_verify
    from ..verification.plotting import check_figure
    from . import show
    from .inputs import features

    if plot is not None:
        check_figure(plot)  # before the work, not after it
    if out is not None:
        check_target(out)
    choice: dict[str, Any] = {"view": view, "node": node, "label": label, "group": group, "split": split}
    data = features(store, **choice, labels=labels, key=key)
    names = [word.strip() for word in metric.split(",") if word.strip()]
    with progress_for(False if quiet else "auto") as bar:

        def step(done: int, total: int, what: str) -> None:
            if done == 1:
                bar.start("verifying", total)
            bar.advance(1, what)

        result = run_verify(
            data,
            names,
            identity=identity,
            domain=domain,
            burst=burst,
            far=far,
            seeds=seeds,
            test_size=test_size,
            cv=cv,
            episodes=episodes,
            progress=step,
        )
    if plot is not None:
        plot_verification(result, plot)
    saved = None if out is None else _save(data, names, result, out)
    if as_json:
        show.as_json({**{k: v for k, v in result.items() if k != "curves"}, "path": saved})
        return
    _table(result["results"])
    for line in _said(result):
        show.say(line)
    for word, path in (("curves", plot), ("verifier", saved)):
        if path is not None:
            show.note(f"{word}: {show.plain(str(path))}")


def _save(data: Any, names: Sequence[str], result: dict[str, Any], out: Path) -> str:
    """Train the metric that was asked for on all identities, and save it.

    Of several the one of the lowest equal error rate on identities held out within the training: the rates of the
    test identities stay what they are for, an estimate that nothing was chosen by.
    """
    import warnings

    import numpy as np

    from ..verification import Verifier
    from ..verification.subjects import column
    from . import show

    if list(names) == ["all"]:
        names = [row["metric"] for row in result["results"]]
    settings = result["settings"]
    groups, bursts = (None if name is None else column(data, name) for name in (settings["domain"], settings["burst"]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what it warns of, it also notes
        fitted = [
            Verifier(name, far=settings["far"], identity=settings["identity"], cv=settings["cv"]).fit(
                data, groups=groups, bursts=bursts
            )
            for name in dict.fromkeys(names)
        ]
    verifier = min(fitted, key=lambda each: np.inf if each.eer_ is None else each.eer_)
    if len(fitted) > 1:
        show.note(f"note: saved {verifier.metric_name_}, of the lowest error rate on held-out training identities")
    for line in verifier.notes_:
        show.note(f"note: {show.plain(line)}")
    return str(verifier.save(out))


def _table(rows: Sequence[dict[str, Any]]) -> None:
    from . import show

    rates = list(rows[0]["tar"])
    # With few identities a 20-way task shrinks to a 5-way one: the same column twice says nothing.
    kinds = {(task["ways"], task["shots"]): i for i, task in enumerate(rows[0]["tasks"])}
    header = ["metric", "EER", "95 % interval", "AUROC"]
    header += [f"TAR at FAR {float(rate):g}" for rate in rates]
    header += [f"{ways}-way {shots}-shot" for ways, shots in kinds] + ["fit s"]
    body = []
    for row in rows:
        low, high = row["ci95"]
        cells = [row["metric"], f"{row['eer']:.4f}", f"{low:.4f}-{high:.4f}", f"{row['auroc']:.4f}"]
        cells += [f"{row['tar'][rate]:.4f}" for rate in rates] + [
            f"{row['tasks'][i]['accuracy']:.4f}" for i in kinds.values()
        ]
        body.append([*cells, f"{row['fit_seconds']:.2f}"])
    show.table(body, header)


def _said(result: dict[str, Any]) -> list[str]:
    """Return what can be told apart, and the notes, one line each."""
    from . import show

    rows, lines = result["results"], [""]
    lines.append(
        f"{rows[0]['test_identities']} identities held out, {rows[0]['train_identities']} trained on, "
        f"{rows[0]['n_genuine']} pairs of one and {rows[0]['n_impostor']} of two identities, "
        f"{result['settings']['seeds']} draw" + ("s" if result["settings"]["seeds"] > 1 else "")
    )
    for each in result["comparisons"]:
        interval = each.get("ci95")
        told = "" if interval is None else f" (95 % interval {interval[0]:+.4f} to {interval[1]:+.4f})"
        lines.append(f"{each['metric']}: EER {each['difference']:+.4f} against the cosine{told}")
    far = result["settings"]["far"]
    for row in rows:
        lines.append(
            f"{row['metric']}: the threshold for FAR {far:g}, set in training, accepts {row['far_measured']:.4f} of "
            f"impostor and {row['tar_measured']:.4f} of genuine pairs"
        )
    return [*lines, *(f"note: {show.plain(note)}" for note in result["notes"])]
