"""The rows of a FeatureSet, or of arrays, with whose image each is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import HeadError
from ..features import FeatureSet, text_of
from ..heads.labelled import as_matrix

__all__ = ["Subjects", "column"]


def column(data: FeatureSet, name: str) -> np.ndarray:
    """Return the labels ("label"), groups, splits or a further column of a set, as text."""
    own = {"label": data.y, "group": data.groups, "split": data.splits}
    if name in own:
        values = own[name]
    elif name in data.columns:
        values = data.columns[name]
    else:
        raise HeadError(
            f"{data.name or 'FeatureSet'}: no column {name!r}; there are label, group, split"
            + "".join(f", {other}" for other in sorted(set(data.columns) - {"label", "group", "split"}))
        )
    if values is None:
        raise HeadError(f"{data.name or 'FeatureSet'}: its rows have no {name}; name another column")
    return text_of(np.asarray(values))


@dataclass(frozen=True)
class Subjects:
    """Rows that have an identity, sorted by their names, so that nothing depends on the order they came in.

    Parameters
    ----------
    X : ndarray of float32 or float64 of shape (n, d)
        Codes.
    codes : ndarray of int of shape (n,)
        Identity of each row: its place in `names`.
    names : ndarray of str
        Identities, sorted.
    ids : ndarray of str of shape (n,)
        Names of the rows.
    groups, bursts : ndarray of str of shape (n,) or None
        What keeps identities together in folds, and rows apart in pairs.
    name : str
        What to call the set in messages.
    provenance : tuple
        spec, locator, node and fingerprint of a FeatureSet.
    notes : tuple of str
        What was left out.
    """

    X: np.ndarray
    codes: np.ndarray
    names: np.ndarray
    ids: np.ndarray
    groups: np.ndarray | None
    bursts: np.ndarray | None
    name: str
    provenance: tuple[Any, Any, str, str]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, data: Any, y: Any = None, *, identity: str = "label", groups: Any = None, bursts: Any = None
    ) -> Subjects:
        """Take the rows that have an identity; HeadError when there are none, or lengths differ."""
        provenance: tuple[Any, Any, str, str] = (None, None, "", "")
        if isinstance(data, FeatureSet):
            if y is not None:
                raise HeadError("y: leave it out for a FeatureSet; name the column in identity")
            name, ids = data.name or "FeatureSet", data.row_ids
            whose: np.ndarray = column(data, identity)
            if groups is None and identity != "group" and data.groups is not None:
                groups = data.groups
            provenance = data.spec, data.locator, data.node, data.fingerprint
            X = as_matrix(data.X, name)
        else:
            if y is None:
                raise HeadError("y: expected the identity of each row, got None (requires y to be passed)")
            X, name = as_matrix(data, "X"), "X"
            ids, whose = np.asarray([f"{i:012d}" for i in range(len(X))]), _per_row(y, len(X), "y")
        groups, bursts = (
            None if v is None else _per_row(v, len(X), word) for v, word in ((groups, "groups"), (bursts, "bursts"))
        )
        if groups is not None:  # a row without a group ties its identity to no other
            groups = np.where(groups == "", np.char.add("\0", whose.astype(np.str_)), groups)
        rows = np.argsort(ids, kind="stable")
        rows = rows[whose[rows] != ""]
        if not len(rows):
            raise HeadError(f"{name}: no row has an identity; give y, or name another column in identity")
        missing = len(X) - len(rows)
        names, codes = np.unique(whose[rows].astype(np.str_), return_inverse=True)
        return cls(
            X[rows],
            codes,
            names,
            ids[rows],
            None if groups is None else groups[rows],
            None if bursts is None else bursts[rows],
            name,
            provenance,
            (f"{missing} rows without an identity left out",) if missing else (),
        )

    def select(self, rows: np.ndarray) -> Subjects:
        """Return some rows, with the identities that they have."""
        names, codes = np.unique(self.names[self.codes[rows]], return_inverse=True)
        return Subjects(
            self.X[rows],
            codes,
            names,
            self.ids[rows],
            None if self.groups is None else self.groups[rows],
            None if self.bursts is None else self.bursts[rows],
            self.name,
            self.provenance,
            (),
        )


def _per_row(values: Any, n: int, name: str) -> np.ndarray:
    array = np.asarray(values)
    if array.shape != (n,):
        raise HeadError(f"{name}: expected {n} values (one per row), got shape {array.shape}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise HeadError(f"{name}: expected a name for each row, got NaN or Inf")
    return text_of(array)
