"""The labelled rows of a FeatureSet, as heads want them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import HeadError
from ..features import FeatureSet
from ..solvers.blocks import ChosenRows
from ..splits import Folds, has_named_splits, named_splits

__all__ = ["Rows", "as_matrix", "in_parts", "is_mapped", "name_of", "provenance"]

#: Squares of larger codes, and sums of them, are beyond float32.
_LARGEST = 1e16
#: Rows that are predicted at once: those of a map need not fit into memory.
_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Rows:
    """The labelled rows of a FeatureSet as a head wants them, and their parts.

    Parameters
    ----------
    X : ndarray or ChosenRows of shape (n, d)
        Codes of float32 or float64; where they are mapped, the map or its rows, in the dtype it has.
    y, ids : ndarray of shape (n,)
        Labels and names as text.
    groups : ndarray or None
        Group of each row; None where each row is alone.
    parts : dict of str to ndarray
        Row numbers of "train", "val", "test" when the set says which rows train and test, else empty.
    notes : tuple of str
        What was left out.
    images : ndarray of int or None, default=None
        Where rows are augmented views: the number of the row that stands for the image of each, its plain one where it
        is there. None: every row is an image of its own.
    """

    X: Any
    y: np.ndarray
    ids: np.ndarray
    groups: np.ndarray | None
    parts: dict[str, np.ndarray]
    notes: tuple[str, ...]
    images: np.ndarray | None = None

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
        X: Any = data.X
        if missing := int((~keep).sum()):
            notes.append(f"{missing} rows without {what} left out")
            X = ChosenRows(X, np.flatnonzero(keep)) if on_disk and is_mapped(X) else X[keep]
            data = replace(data, X=np.empty((len(data), 0), dtype=np.float32)).select(keep)  # all but the codes
        parts = named_splits(data.splits) if has_named_splits(data.splits) else {}
        if not parts and data.splits is not None and (data.splits != "").any():
            lacking = [part for part in ("train", "test") if part not in named_splits(data.splits)]
            notes.append(f"the split column has no {' and no '.join(lacking)} part: it is not used")
        images = _images(data)
        own = np.arange(len(data)) if images is None else images
        if images is not None:
            # Views go where their image goes.
            parts = {p: rows[np.isin(images[rows], rows)] for p, rows in parts.items()}
            parts = {p: rows if p == "train" else rows[images[rows] == rows] for p, rows in parts.items()}
        if parts and (outside := len(np.setdiff1d(own, np.concatenate([*parts.values()])))):
            notes.append(f"{outside} rows outside train, val and test left out")
        if images is not None:
            n = len(np.unique(images))
            notes.append(f"{n} images, and {len(data) - n} augmented views of them, which only train")
        X = X if on_disk and is_mapped(X) else as_matrix(X, name_of(data))
        y = np.zeros(len(data), dtype=np.str_) if data.y is None else data.y
        groups = _told_apart(_whole_groups(data, images))
        return cls(X, y, data.row_ids, groups, parts, tuple(notes), images)

    def training(self) -> np.ndarray:
        """Return the rows to train on, val rows among them, in the order of their ids: no result depends on another."""
        parts = [self.parts[p] for p in ("train", "val") if p in self.parts] or [np.arange(len(self.ids))]
        rows = np.concatenate(parts)
        return rows[np.argsort(self.ids[rows], kind="stable")]

    def plain(self) -> Rows:
        """Return the images alone, as they would be without their views: what is drawn, held out and counted.

        Groups that each hold one image are none, as in `of`.
        """
        if self.images is None:
            return self
        rows = self.standing(np.arange(len(self.y)))
        number = np.cumsum(np.isin(np.arange(len(self.y)), rows)) - 1
        first = slice(0, len(rows)) if rows[-1] == len(rows) - 1 else rows  # no copy of codes that join_views made
        parts = {name: number[self.standing(some)] for name, some in self.parts.items()}
        groups = None if self.groups is None else self.groups[rows]
        return Rows(self.X[first], self.y[rows], self.ids[rows], _told_apart(groups), parts, self.notes)

    def standing(self, rows: np.ndarray) -> np.ndarray:
        """Return those of some rows that stand for an image, in their order."""
        return rows if self.images is None else rows[self.images[rows] == rows]

    def with_views(self, rows: np.ndarray) -> np.ndarray:
        """Return images (row numbers) and those of their views that may train, by id."""
        if self.images is None:
            return rows
        train = np.isin(self.images, rows)
        if self.parts:
            train &= np.isin(np.arange(len(self.y)), np.concatenate([self.parts["train"], rows]))
        order = np.argsort(self.ids, kind="stable")
        return order[train[order]]

    def over_views(self, folds: Folds | None, rows: np.ndarray, viewed: np.ndarray) -> Folds | None:
        """Return folds of the images `rows` as folds of `viewed`: views train as their image does, none is held out."""
        if folds is None or self.images is None:
            return folds
        images = self.images[viewed]
        pairs = [
            (np.flatnonzero(np.isin(images, rows[kept])), np.flatnonzero(np.isin(viewed, rows[held])))
            for kept, held in folds
        ]
        return Folds(tuple(pairs), folds.notes)


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


def _told_apart(groups: np.ndarray | None) -> np.ndarray | None:
    """Groups, or None where each holds one row: nothing has to stay together then."""
    return None if groups is None or len(np.unique(groups)) == len(groups) else groups


def is_mapped(X: Any) -> bool:
    """Tell whether codes are a matrix on disk, as ``store.load(in_memory=False)`` gives them, or rows of one."""
    if isinstance(X, ChosenRows):
        X = X.X
    return isinstance(X, np.memmap) and X.ndim == 2


def _images(data: FeatureSet) -> np.ndarray | None:
    """The row that stands for each row's image: its plain row, or the first of its views that is there."""
    if data.view_of is None or not (data.view_of != "").any():
        return None
    image = np.where(data.view_of == "", data.row_ids, data.view_of)
    order = np.argsort(data.view_of != "", kind="stable")  # plain rows first
    _, first, inverse = np.unique(image[order], return_index=True, return_inverse=True)
    images = np.empty(len(data), dtype=np.intp)
    images[order] = order[first[inverse]]
    return images


def _whole_groups(data: FeatureSet, images: np.ndarray | None) -> np.ndarray | None:
    """A row without a group is a group of its own, not of one large nameless group; views are in their image's."""
    if data.groups is None and images is None:
        return None
    own = np.arange(len(data)) if images is None else images
    groups = np.full(len(data), "") if data.groups is None else data.groups[own]
    if images is not None:  # join_views names an image without a group after itself, as a group may be named, too
        image = data.row_ids if data.view_of is None else np.where(data.view_of == "", data.row_ids, data.view_of)
        shared, members = np.unique(groups[np.unique(own)], return_counts=True)
        groups = np.where((groups == image) & ~np.isin(groups, shared[members > 1]), "", groups)
    # Named by the image: by its place among the rows, splits would depend on the order of the rows.
    return np.where(groups == "", np.asarray([f"\0{name}" for name in data.row_ids[own].tolist()]), groups)


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
    if len(array) and (largest := float(max(array.max(), -array.min()))) > _LARGEST:
        raise HeadError(
            f"{name}: expected codes up to {_LARGEST:g}, got {largest:.3g}: squares overflow; scale them down"
        )
    return array
