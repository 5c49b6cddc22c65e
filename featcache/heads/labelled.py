"""The labelled rows of a FeatureSet, as heads want them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import HeadError
from ..features import FeatureSet
from ..splits import has_named_splits, named_splits

__all__ = ["Rows", "as_matrix", "in_parts", "is_mapped", "name_of", "provenance"]

#: Rows that are predicted at once: those of a map need not fit into memory.
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Rows:
    """The labelled rows of a FeatureSet as a head wants them, and their parts.

    Parameters
    ----------
    X, y, ids : ndarray
        Codes (n, d) of float32 or float64; labels and names as text.
    groups : ndarray or None
        Group of each row.
    parts : dict of str to ndarray
        Row numbers of "train", "val", "test" when the set says which rows train and test, else empty.
    notes : tuple of str
        What was left out.
    """

    X: np.ndarray
    y: np.ndarray
    ids: np.ndarray
    groups: np.ndarray | None
    parts: dict[str, np.ndarray]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, data: FeatureSet, *, on_disk: bool = False) -> Rows:
        """Take the labelled rows; HeadError when a head cannot be trained on them.

        With `on_disk` a matrix that is mapped stays so, in the dtype it has, unchecked.
        """
        name = name_of(data)
        if not data.labelled.any():
            raise HeadError(f"{name}: no row has a label; put images into one folder per class, or give y=")
        if len(data.classes) < 2:
            raise HeadError(
                f"{name}: expected two classes or more, got only {str(data.classes[0])!r}; a head needs two"
            )
        return cls.kept(data, data.labelled, "a label", on_disk=on_disk)

    @classmethod
    def kept(cls, data: FeatureSet, keep: np.ndarray, what: str, *, on_disk: bool = False) -> Rows:
        """Take the rows of a mask (n_samples,): those that have `what`."""
        notes = []
        if missing := int((~keep).sum()):
            notes.append(f"{missing} rows without {what} left out")
            data = data.select(keep)
        parts = named_splits(data.splits) if has_named_splits(data.splits) else {}
        if not parts and data.splits is not None and (data.splits != "").any():
            lacking = [part for part in ("train", "test") if part not in named_splits(data.splits)]
            notes.append(f"the split column has no {' and no '.join(lacking)} part: it is not used")
        if parts and (outside := len(data) - sum(map(len, parts.values()))):
            notes.append(f"{outside} rows outside train, val and test left out")
        groups = None if data.groups is None else _whole_groups(data.groups)
        X = data.X if on_disk and is_mapped(data.X) else as_matrix(data.X, name_of(data))
        y = np.zeros(len(data), dtype=np.str_) if data.y is None else data.y
        return cls(X, y, data.row_ids, groups, parts, tuple(notes))

    def training(self) -> np.ndarray:
        """Return the rows to train on, val rows among them, in the order of their ids: no result depends on another."""
        parts = [self.parts[p] for p in ("train", "val") if p in self.parts] or [np.arange(len(self.ids))]
        rows = np.concatenate(parts)
        return rows[np.argsort(self.ids[rows], kind="stable")]


def provenance(data: FeatureSet, rows: Rows, train_rows: np.ndarray) -> dict[str, Any]:
    """Return the fields of a FittedHead that say what it was trained on."""
    ids = "\n".join(sorted(rows.ids[train_rows].tolist()))
    return {
        "n_train": len(train_rows),
        "training_digest": hashlib.sha256(ids.encode("utf-8", "surrogatepass")).hexdigest(),
        "n_features": rows.X.shape[1],
        "spec": data.spec,
        "locator": data.locator,
        "node": data.node,
        "fingerprint": data.fingerprint,
    }


def name_of(data: Any) -> str:
    """Return what to call a FeatureSet in messages; HeadError for anything else."""
    if not isinstance(data, FeatureSet):
        raise HeadError(f"data: expected a FeatureSet, got {type(data).__name__}; wrap arrays as FeatureSet(X, y)")
    return data.name or "FeatureSet"


def in_parts(rows: np.ndarray) -> list[np.ndarray]:
    """Return row numbers in parts that are small enough to be predicted at once."""
    return [rows[i : i + _ROWS_AT_ONCE] for i in range(0, len(rows), _ROWS_AT_ONCE)]


def is_mapped(X: Any) -> bool:
    """Tell whether codes are a matrix on disk, as ``store.load(in_memory=False)`` gives them."""
    return isinstance(X, np.memmap) and X.ndim == 2


def _whole_groups(groups: np.ndarray) -> np.ndarray:
    """A row without a group is a group of its own, not a member of one large nameless group."""
    alone = np.asarray([f"\0{i}" for i in range(len(groups))])
    return np.where(groups == "", alone, groups)


def as_matrix(X: Any, name: str) -> np.ndarray:
    """Return X as a finite float matrix (float32, or float64 where it came so); HeadError otherwise."""
    array = np.asarray(X)
    if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiub":
        raise HeadError(
            f"{name}: expected a matrix (n_samples, n_features), got shape {array.shape} of {array.dtype}; "
            "extract with pooling='avg', or flatten the codes"
        )
    array = array if array.dtype == np.float64 else array.astype(np.float32, copy=False)
    if bad := int((~np.isfinite(array).all(axis=1)).sum()):
        raise HeadError(
            f"{name}: {bad} of {len(array)} rows hold NaN or Inf; drop them with select(), or extract again"
        )
    return array
