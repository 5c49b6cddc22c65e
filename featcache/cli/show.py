"""How results look on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = [
    "as_json",
    "collected",
    "compacted",
    "diff",
    "exported",
    "extraction",
    "fitted_head",
    "info",
    "note",
    "plan",
    "predictions",
    "size",
    "table",
]


def as_json(value: Any) -> None:
    """Print a value as JSON."""
    utf = (sys.stdout.encoding or "").lower().startswith("utf")
    sys.stdout.write(json.dumps(value, ensure_ascii=not utf, indent=1, allow_nan=False) + "\n")


def plain(text: str) -> str:
    """Return text with control characters written as escapes: a name with a tab or line break stays one cell."""
    from ..reporting.escaping import visible

    return visible(text)


def say(text: str) -> None:
    """Print a line of the result."""
    sys.stdout.write(text + "\n")


def note(text: str) -> None:
    """Print a line that is not the result."""
    sys.stderr.write(text + "\n")


def size(count: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "KB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" or count >= 100 else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> None:
    """Print aligned columns."""
    widths = [max(len(str(r[i])) for r in [header, *rows]) for i in range(len(header))]
    for row in [header, *rows]:
        say("  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def failures(failed: Sequence[Mapping[str, str]], limit: int = 10) -> None:
    """List failed images on standard error."""
    for row in failed[:limit]:
        note(plain(f"  {row['id']}: {row['reason']}"))
    if len(failed) > limit:
        note(f"  … and {len(failed) - limit} more: featcache info STORE --json")


def extraction(report: Any) -> None:
    """Print what an extraction did."""
    say(
        f"{plain(str(report.store))}: {report.images} images: {report.computed} computed, {report.reused} reused, "
        f"{len(report.failed)} failed" + (f", {report.gone} gone from the view" if report.gone else "")
    )
    if report.computed:
        cosine = report.precision.get("worst_cosine")
        proof = f", worst centred cosine {cosine:.5f} on your images" if cosine not in (None, 1.0) else ""
        say(
            f"{report.steady_images_per_second:.0f} images/s ({report.seconds:.1f} s in all); precision "
            f"{report.precision['class']}: {report.precision['mode'].split(':')[0]}{proof}"
        )
        say(_gauge(report))
    say(f"spec {report.fingerprint[:12]}, view {report.view!r}, snapshot {report.snapshot}")
    if report.ignored:
        note("ignored: " + ", ".join(f"{n} × {ext or 'no extension'}" for ext, n in sorted(report.ignored.items())))
    if report.constant:
        note(f"{len(report.constant)} blank images (all codes equal): {', '.join(report.constant[:3])}, …")
    if report.failed:
        note(f"{len(report.failed)} images failed:")
        failures(report.failed)


def _gauge(report: Any) -> str:
    """Return where the time went, and what would help."""
    shares = ", ".join(f"{stage} {share:.0%}" for stage, share in report.shares.items() if share >= 0.005)
    return f"cores' time: {shares}; bottleneck {report.bottleneck}"


def plan(plan: Any) -> None:
    """Print what an extraction would do."""
    time = "unknown time" if plan.seconds is None else f"about {plan.seconds:.0f} s"
    say(
        f"{plan.store}, view {plan.view!r}: {plan.images} images: {plan.reused} reused, {plan.compute} to compute "
        f"({plan.new} new, {plan.changed} changed), {plan.gone} gone, {plan.unreadable} unreadable"
    )
    if not plan.compute:
        say("nothing to compute")
        return
    say(f"{size(plan.bytes)} to write, {time}; nothing was written")
    if plan.verdict:
        say(f"precision {plan.precision['class']}: {plan.precision['mode'].split(':')[0]}; bottleneck {plan.verdict}")


def audit(found: Mapping[str, Any]) -> None:
    """Print what an audit of stored rows found."""
    verdict = "ok" if found["ok"] else f"{len(found['disagree'])} rows disagree"
    worst = found["worst_centred_cosine"]
    proof = "" if worst is None else f", worst centred cosine {worst:.5f} (limit {found['limit']})"
    say(
        f"audit: {verdict}: {found['compared']} of {found['rows']} rows computed again ({found['mode']}), "
        f"{found['bit_equal']} equal to the last bit{proof}; {len(found['changed'])} changed since, "
        f"{len(found['missing'])} missing"
    )
    for name in found["disagree"]:
        say(plain(f"  {name}: its stored codes are not those of this image"))
    for name in found["changed"][:10]:
        note(plain(f"  {name}: changed since; extract computes it again"))
    for name, reason in list(found["missing"].items())[:10]:
        note(plain(f"  {name}: missing: {reason}"))


def _states(rows: Sequence[Mapping[str, Any]]) -> str:
    kept = [row for row in rows if row["kept"]]
    shown = kept if len(kept) < 6 else [*kept[:2], *kept[-3:]]
    names = [f"{row['name']} ({row['images']} images, {row['created']})" for row in shown]
    if len(kept) > len(shown):
        names.insert(2, f"… {len(kept) - len(shown)} more …")
    return ", ".join(names) + (f"; {len(rows) - len(kept)} retired" if len(rows) > len(kept) else "")


def _trash(trash: Mapping[str, int]) -> str:
    return f", {trash['files']} files of {size(trash['bytes'])} in the trash" if trash["files"] else ""


def info(info: Mapping[str, Any]) -> None:
    """Print what a store holds."""
    backbone = info["spec"].get("backbone", {})
    recipe = info["spec"].get("preprocess", {})
    classes = info["classes"]
    names = ", ".join(f"{c} {n}" for c, n in list(classes.items())[:12]) + (", …" if len(classes) > 12 else "")
    locator = info["locator"]
    rows = [
        ("images", f"{info['images']}" + (f" (+ {len(info['failed'])} failed)" if info["failed"] else "")),
        ("classes", f"{len(classes)}: {names}" if classes else "none (unlabelled)"),
        ("backbone", f"{backbone.get('arch', '?')}, weights {locator.get('kind', '?')} {locator.get('value', '')}"),
        ("nodes", ", ".join(f"{n} {tuple(s)}" for n, s in info["nodes"].items()) + f", {info['dtype']}"),
        ("preprocess", f"resize {recipe.get('resize')}, crop {recipe.get('crop')}, {recipe.get('interpolation')}"),
        ("precision", f"{info['spec'].get('precision', {}).get('class')} (mode {info['computed'].get('mode', '?')})"),
        ("view", f"{info['view']} (of {', '.join(info['views']) or 'none'}), snapshot {info['snapshot']}"),
        ("source", str(info["source"].get("location", ""))),
        ("states", _states(info["snapshots"])),
        ("size", f"{size(info['bytes'])} in {info['shards']} shards" + _trash(info["trash"])),
        ("spec", info["fingerprint"]),
    ]
    say(plain(info["store"]))
    for name, value in rows:
        say(plain(f"  {name:<11}{value}"))
    if info["failed"]:
        note("failed:")
        failures(info["failed"])
    for line in info["damaged"]:
        note(line)


def diff(found: Mapping[str, Any]) -> None:
    """Print how two states differ."""
    counts = [f"{len(found[what])} {what}" for what in ("added", "removed", "changed", "relabelled")]
    moved = f" ({len(found['moved'])} of them moved)" if found["moved"] else ""
    say(f"{found['before']} → {found['after']}: {', '.join(counts[:2])}{moved}, {', '.join(counts[2:])}")
    for sign, what in (("+", "added"), ("-", "removed"), ("~", "changed")):
        for name in found[what][:10]:
            say(plain(f"  {sign} {name}"))
        if len(found[what]) > 10:
            say(f"  {sign} … and {len(found[what]) - 10} more: --json has them all")
    for row in found["relabelled"][:10]:
        say(plain(f"  = {row['id']}: {row['before'] or '(none)'} → {row['after'] or '(none)'}"))
    if len(found["relabelled"]) > 10:
        say(f"  = … and {len(found['relabelled']) - 10} more: --json has them all")
    if found["columns"]:
        say("  values that differ: " + ", ".join(f"{name} {count}" for name, count in found["columns"].items()))


def collected(store: str, report: Any) -> None:
    """Print what was collected."""
    would = "would move" if report.dry_run else "moved"
    delete = "would delete" if report.dry_run else "deleted"
    say(
        f"{plain(store)}: {would} {len(report.trashed)} files ({size(report.bytes_trashed)}) to the trash, {delete} "
        f"{len(report.deleted)} ({size(report.bytes_deleted)}) from it"
    )
    if report.waiting:
        note(f"{len(report.waiting)} files that nothing needs wait for their grace period")
    for row in report.pins:
        note(f"process {row['pid']} on {row['host']} is writing: nothing was moved; run gc again later")
    if report.held:
        note(f"{len(report.held)} shards are kept, since the rows that replace theirs are damaged: check --repair")
    if report.restored:
        note(f"brought back from the trash, since a state needs them: {', '.join(report.restored)}")


def compacted(store: str, report: Any) -> None:
    """Print what was compacted."""
    if not report.shard:
        say(f"{plain(store)}: nothing to do, the rows lie in order")
        return
    say(f"{plain(store)}: {report.rows} rows of {report.merged} shards now lie in one of {size(report.bytes)}")
    note("the old shards stay until featcache gc drops them, 14 days from when they were written")


def fitted_head(fitted: Any, path: str) -> None:
    """Print what was fitted."""
    settings = ", ".join(f"{k}={v:g}" if isinstance(v, float) else f"{k}={v}" for k, v in fitted.params.items())
    scores = ", ".join(f"{name} {fitted.metric} {value:.4f}" for name, value in fitted.scores.items())
    name = f"{fitted.head} ({settings})" if settings else fitted.head
    say(f"{path}: {name} on {fitted.n_train} rows; {scores or 'no score'}")
    for line in fitted.notes:
        note(line)


def finetuned(done: Any, notes: bool) -> None:
    """Print epochs, the outcome, where everything lies, and notes where they were not told on the way."""
    for line in done.history:
        judged = "" if line.get("val_accuracy") is None else f", validation accuracy {line['val_accuracy']:.4f}"
        lost = "" if line.get("train_loss") is None else f", loss {line['train_loss']:.4f}"
        say(f"epoch {line['epoch']} ({plain(str(line['name']))}){lost}{judged}")
    if done.outcome is not None:
        say(plain(done.outcome.verdict))
    say(plain(f"{done.bundle or done.folder / 'final.safetensors'}"))
    for line in done.notes if notes else ():
        note(plain(line))


def predictions(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Print what was predicted, one image a line: id, label, score, or id, number; failures on standard error.

    Returns whether there was a failure.
    """
    failed = False
    for row in rows:
        if "error" in row:
            failed = True
            note(plain(f"{row['id']}: {row['error']}"))
            continue
        answer = [f"{row['value']:.6g}"] if "value" in row else _labels(row)
        flags = ["rejected"] * (not row.get("accepted", True)) + ["novel"] * row.get("novelty", {}).get("novel", False)
        say("\t".join([plain(row["id"]), *answer, ",".join(flags)]).rstrip("\t"))
    return failed


def _labels(row: Mapping[str, Any]) -> list[str]:
    """The label and its score, or those that were asked for."""
    if "top" not in row:
        return [plain(row["label"]), _shown_scores(row)]
    return [cell for entry in row["top"] for cell in (plain(entry["label"]), f"{entry['score']:.4f}")]


def exported(facts: Mapping[str, Any]) -> None:
    """Print what was exported."""
    say(f"{plain(facts['path'])}: {size(facts['bytes'])}")
    if facts.get("difference") is not None:
        say(f"largest difference of a score {facts['difference']:.1e} on {facts['images']} images")
    if facts.get("unread"):
        note(f"{facts['unread']} images could not be read, and were not compared")
    if "sha256" in facts:
        say(f"sha256 {facts['sha256']}")


def _shown_scores(row: Mapping[str, Any]) -> str:
    """The score of the label, or those of the labels in their order."""
    scores = [row["scores"].get(label) for label in row.get("labels", [row["label"]])]
    return ",".join(f"{score:.4f}" for score in scores if score is not None)
