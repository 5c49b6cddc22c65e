"""What `featcache check` does and prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import show

__all__ = ["check_store"]

_SHOWN = 5


def check_store(
    store: Path,
    *,
    deep: bool,
    repair: bool,
    untrusted: bool,
    audit: int,
    audit_options: Mapping[str, Any],
    as_json: bool,
) -> bool:
    """Check, print, and tell whether all is well."""
    from ..errors import DamagedStore

    repaired: list[dict[str, Any]] = []
    try:
        report = _report(store, deep, repair, untrusted, repaired)
        ok, damaged, checked = report.ok, report.damaged, report.checked
        repaired += report.repaired
    except DamagedStore as error:  # store.json itself: without it nothing else can be looked at
        reason = str(error).removeprefix(f"{error.file}: ")
        damaged = [{"file": "store.json", "reason": reason, "images": []}]
        ok, checked = False, {"shards": 0, "snapshots": 0, "bytes": 0, "deep": deep or repair}
    audited: dict[str, Any] | None = None
    if audit and ok:
        from ..extraction.audit import audit as run_audit

        try:
            audited = run_audit(store, audit, **audit_options).as_dict()
        except DamagedStore as error:  # in the rows that were to be compared
            damaged, ok = [{"file": Path(error.file).name, "reason": str(error), "images": []}], False
    well = ok and (audited or {}).get("ok", True) and not any(item.get("newest_lost") for item in repaired)
    if as_json:
        extra = {**({"repaired": repaired} if repair else {}), **({"audit": audited} if audited else {})}
        show.as_json({"ok": well, "damaged": damaged, **checked, **extra})
        return bool(well)
    _print_repaired(repaired)
    looked = f"{checked['shards']} shards, {checked['snapshots']} snapshots"
    missing = sum(1 for item in damaged if not item["file"].endswith((".h5", ".json")))
    found = [f"{len(damaged) - missing} damaged files"] if len(damaged) > missing else []
    found += [f"{missing} views with images to extract again"] if missing and repair else []
    show.say(show.plain(f"{store}: {'ok' if ok else ', '.join(found) or f'{len(damaged)} damaged files'} ({looked})"))
    for item in damaged:
        lost = f"; costs {len(item['images'])} images: {_some(item['images'])}" if item["images"] else ""
        show.say(show.plain(f"  {item['file']}: {item['reason']}{lost}"))
    if audited:
        show.audit(audited)
    return bool(well)


def _report(store: Path, deep: bool, repair: bool, untrusted: bool, repaired: list[dict[str, Any]]) -> Any:
    from ..store import FeatureStore

    if untrusted:
        from ..store.untrusted import check_untrusted

        return check_untrusted(store, deep=deep)  # not even store.json is read here
    if repair:
        from ..store.repair import repair_header

        repaired += repair_header(store)
    return FeatureStore.open(store).check(deep=deep, repair=repair)


def _print_repaired(repaired: Sequence[Mapping[str, Any]]) -> None:
    for item in repaired:
        said = [item["action"]]
        if item["file"].startswith("shards/"):
            elsewhere = item.get("rows_elsewhere", 0)
            said.append(
                f"{item['rows_saved']} rows saved" + (f", {elsewhere} stand in other shards" if elsewhere else "")
            )
        if item["images_lost"]:
            said.append(f"{item['images_lost']} images must be extracted again: {_some(item['images'])}")
        if item.get("columns_lost"):
            said.append(f"lost: {', '.join(item['columns_lost'])}")
        if item["note"]:
            said.append(item["note"])
        show.say(show.plain(f"repaired {item['file']}: {'; '.join(said)}"))


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:_SHOWN]) + (", …" if len(ids) > _SHOWN else "")
