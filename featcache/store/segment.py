"""One snapshot file: all lines of a view ("base"), or what changed since an earlier state ("delta")."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..errors import StoreError
from ..features import is_thrifty
from .container import Container
from .entries import Entries, column_datasets, distinct
from .texts import Texts, ids_fit, pack_text

__all__ = ["Change", "Segment", "builds_on", "require_lines", "segment_datasets"]


@dataclass(frozen=True, eq=False)
class Change:
    """What a commit does to a view: ids to drop, then lines to add or overwrite."""

    upserts: Entries
    removed: np.ndarray

    def __bool__(self) -> bool:
        return bool(len(self))

    def __len__(self) -> int:
        return len(self.upserts) + len(self.removed)

    def apply(self, entries: Entries) -> Entries:
        """Return `entries` after this change."""
        return entries.without(self.removed).merged(self.upserts)

    def followed_by(self, later: Change) -> Change:
        """Return both changes in one."""
        upserts = self.upserts.without(later.removed).merged(later.upserts)
        return Change(upserts, np.union1d(self.removed, later.removed))


class Segment:
    """One snapshot file: the lines it holds, decoded on demand."""

    def __init__(self, container: Container) -> None:
        self.container = container
        self.attributes = container.attributes

    def __len__(self) -> int:
        return int(self.container.region("status")["shape"][0])

    def texts(self, name: str) -> Texts:
        """Return packed texts; DamagedStore when they do not fit together."""
        try:
            return Texts(self.container.array(f"{name}/offsets"), self.container.array(f"{name}/bytes"))
        except ValueError as error:
            raise self.container.damage(f"{name!r}: {error}") from error

    @cached_property
    def ids(self) -> Texts:
        """The ids of its lines, sorted."""
        ids = self._names("id")
        if len(ids) != len(self):
            raise self.container.damage(f"{len(ids)} ids for {len(self)} lines")
        return ids

    def _names(self, name: str) -> Texts:
        """Return packed ids, once they may be an array of fixed width."""
        found = self.texts(name)
        if not ids_fit(longest := found.longest(), len(found), found.held):
            raise self.container.damage(f"an id of {longest} characters among {len(found)}")
        return found

    @cached_property
    def change(self) -> Change:
        """All of it, in memory."""
        return Change(self.take(None), self.removed)

    @property
    def removed(self) -> np.ndarray:
        """The ids that it drops."""
        return self._names("removed").array(fixed=True)

    def take(self, places: np.ndarray | None) -> Entries:
        """Return some lines, or all."""
        container = self.container
        every = places is None or len(places) == len(self) and bool((np.diff(places) == 1).all())
        rows = slice(None) if every else places
        assert rows is not None
        if every:
            keys = container.span("key", 0, len(self))
        else:
            keys, good = container.read_rows("key", np.asarray(places))
            if not good.all():
                container.span("key", 0, len(self))  # raises, naming the rows
        ids = self.ids
        try:
            return Entries.trusted(
                ids.array(fixed=True) if every else ids.take(np.asarray(places)),
                keys,
                container.array("status")[rows],
                self.errors(rows),
                {name: self.column(name, rows) for name in self.attributes["columns"]},
            )
        except (IndexError, ValueError, OverflowError) as error:
            raise container.damage(f"a column that does not fit: {error}") from error

    def errors(self, rows: Any) -> np.ndarray:
        """Return why lines failed, "" for the others."""
        return _pick(self.texts("error"), self.container.array("error/code")[rows])

    def column(self, name: str, rows: Any) -> np.ndarray:
        """Return values of one of the source's columns."""
        column = self._stored_column(name, rows)
        if column.ndim != 1:
            raise ValueError(f"column {name!r} of {column.ndim} axes")
        return column

    def stored_form(self, name: str) -> str:
        """Return the form in which a column is stored: "code", "int", "float" or "bool"; "absent" where it is not."""
        forms = (form for form in ("code", "bool", "int", "float") if f"column/{name}/{form}" in self.container)
        return next(forms, "absent") if name in self.attributes["columns"] else "absent"

    def _stored_column(self, name: str, rows: Any) -> np.ndarray:
        container, prefix = self.container, f"column/{name}/"
        if prefix + "code" in container:
            return _pick(self.texts(f"column/{name}"), container.array(prefix + "code")[rows])
        if prefix + "bool" in container:
            return container.array(prefix + "bool")[rows].astype(bool)
        return container.array(prefix + ("int" if prefix + "int" in container else "float"))[rows]


def _pick(values: Texts, codes: np.ndarray) -> np.ndarray:
    """Return the text of each code; IndexError for one that names none."""
    if len(codes) and (int(codes.min()) < 0 or int(codes.max()) >= len(values)):
        raise IndexError(f"a code outside of {len(values)} texts")
    if not len(values):
        return np.zeros(len(codes), "U1")
    texts = values.array()
    # In fixed width each line has the room of the longest text; as objects, many lines share one.
    if texts.dtype.kind == "U" and not is_thrifty(texts.dtype.itemsize // 4, len(codes), values.held):
        texts = texts.astype(object)
    return texts[codes]


def require_lines(container: Container) -> None:
    """Refuse a file whose lines are not of the types and shapes that readers take them to be."""
    n = (container.region("status")["shape"] or [0])[0]
    for name, dtype, shape in (
        ("status", "uint8", [n]),
        ("key", "uint8", [n, 32]),
        ("error/code", "int32", [n]),
        ("error/offsets", "uint64", None),
        ("id/offsets", "uint64", [n + 1]),
        ("removed/offsets", "uint64", None),
    ):
        region = container.region(name)
        if region["dtype"] != dtype or (shape is not None and region["shape"] != shape):
            raise container.damage(f"region {name!r} of type {region['dtype']} and shape {region['shape']}")
    if "groups" not in container.region("key"):
        raise container.damage("keys without checksums")


def builds_on(container: Container, number: int) -> int | None:
    """Return the number of the state that a snapshot file builds on: always an earlier one."""
    try:
        onto = container.attributes["onto"]
        for name, kind in (("roles", dict), ("source", dict), ("columns", list), ("rows", int), ("created", str)):
            if not isinstance(container.attributes[name], kind):
                raise ValueError(name)
        roles, columns, rows = (container.attributes[name] for name in ("roles", "columns", "rows"))
        for name, good in (
            ("columns", all(isinstance(column, str) for column in columns)),
            ("roles", all(isinstance(column, str) for column in roles.values())),
            ("rows", 0 <= rows < 1 << 48),
        ):
            if not good:
                raise ValueError(name)
        if onto is None or (type(onto) is int and 0 <= onto < number):
            return onto
    except (KeyError, ValueError) as error:
        raise container.damage(f"attribute {error} is missing or wrong") from error
    raise container.damage(f"it builds on state {onto!r}")


def segment_datasets(change: Change) -> dict[str, np.ndarray]:
    """Return the datasets that hold a change, keys excepted; StoreError for what they cannot hold."""
    entries = change.upserts
    reasons, codes = distinct(entries.errors)
    datasets: dict[str, np.ndarray] = {
        "status": np.asarray(entries.status, dtype="u1"),
        "error/code": codes,
    }
    for name, texts in (("id", entries.ids), ("error", reasons), ("removed", change.removed)):
        try:
            offsets, blob = pack_text(texts)
        except ValueError as error:
            raise StoreError(f"entries: {name} {error}; give it in valid Unicode") from None
        datasets |= {f"{name}/offsets": offsets, f"{name}/bytes": blob}
    for name, column in entries.columns.items():
        datasets |= column_datasets(name, np.asarray(column))
    return datasets
