"""The verbs that look after a store: info, check, gc, compact, retire."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from .options import Device, Json, Store, app

__all__: list[str] = []


@app.command(epilog="Example: featcache info flowers.features")
def info(
    store: Store,
    view: Annotated[str | None, typer.Option("--view", help="Which view of the store.")] = None,
    diff: Annotated[
        tuple[str, str] | None,
        typer.Option("--diff", help="Compare two states instead: VIEW@NUMBER, or a view.", metavar="A B"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a store holds: images, classes, spec, states, size, failures."""
    from ..store import FeatureStore
    from . import show

    opened = FeatureStore.open(store)
    if diff is not None:
        compared = opened.diff(*diff)
        show.as_json(compared) if as_json else show.diff(compared)
        return
    found = opened.info(view)
    show.as_json(found) if as_json else show.info(found)


@app.command(epilog="Example: featcache check flowers.features --deep")
def check(
    store: Store,
    deep: Annotated[bool, typer.Option("--deep", help="Compare every checksum, not only structure and sizes.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Save what holds of damaged files, then set them aside; implies --deep.")
    ] = False,
    untrusted: Annotated[
        bool, typer.Option("--untrusted", help="Read a stranger's store in a process of limited memory and time.")
    ] = False,
    audit: Annotated[int, typer.Option("--audit", min=0, help="Compute so many random rows again.", metavar="N")] = 0,
    source: Annotated[str | None, typer.Option("--source", help="For --audit: where the images are now.")] = None,
    weights: Annotated[str | None, typer.Option("--weights", help="For --audit: where the weights are now.")] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Look for damage; exit status 3 when there is any, or images must be extracted again."""
    from .checking import check_store

    if untrusted and (repair or audit):
        raise typer.BadParameter("a store that is not trusted is only read: drop --repair and --audit")
    options = {"source": source, "weights": weights, "device": device}
    ask: dict[str, Any] = {"deep": deep, "repair": repair, "untrusted": untrusted, "as_json": as_json}
    if not check_store(store, audit=audit, audit_options=options, **ask):
        raise typer.Exit(3)


@app.command(epilog="Example: featcache gc flowers.features --dry-run")
def gc(
    store: Store,
    grace_days: Annotated[
        float, typer.Option("--grace-days", min=0, help="Days before a file moves to the trash, and days in there.")
    ] = 14.0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")] = False,
    as_json: Json = False,
) -> None:
    """Collect what no kept state needs: into the trash first, deleted a grace period later."""
    from ..store import FeatureStore
    from . import show

    report = FeatureStore.open(store).gc(grace_days=grace_days, dry_run=dry_run)
    show.as_json(report.as_dict()) if as_json else show.collected(str(store), report)


@app.command(epilog="Example: featcache compact flowers.features")
def compact(
    store: Store,
    view: Annotated[str | None, typer.Option("--view", help="Whose rows come first (default: main).")] = None,
    as_json: Json = False,
) -> None:
    """Merge shards into one, rows in the order of a view, so that loading is a map without a copy."""
    from ..store import FeatureStore
    from . import show

    report = FeatureStore.open(store).compact(view)
    show.as_json(report.as_dict()) if as_json else show.compacted(str(store), report)


@app.command(epilog="Example: featcache retire flowers.features main@0 main@1")
def retire(
    store: Store,
    states: Annotated[
        list[str], typer.Argument(help="VIEW@NUMBER, or VIEW to drop it as a whole.", metavar="STATE...")
    ],
    undo: Annotated[bool, typer.Option("--undo", help="Keep them again, unless gc has taken them.")] = False,
    as_json: Json = False,
) -> None:
    """Give up old states of a view, so that gc may collect what only they need."""
    from ..store import FeatureStore, parse_state
    from . import show

    opened = FeatureStore.open(store)
    done: list[str] = []
    for name in states:
        view, number = parse_state(name)
        done += [f"{view}@{n}" for n in opened.retire(view, None if number is None else [number], undo=undo)]
    if as_json:
        show.as_json({"kept" if undo else "retired": done})
    else:
        show.say(f"{show.plain(str(store))}: {'kept again' if undo else 'retired'}: {', '.join(done) or 'nothing'}")
