"""What a report is about: the images of a data set, a sample of them where they are too many to be looked at."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np

from ..features import FeatureSet
from ..splits import generator_for

__all__ = ["chosen_rows", "digest_of", "plain_images", "sampled"]


def plain_images(data: FeatureSet) -> FeatureSet:
    """Return the rows that are images, without their augmented views, in the order of their ids."""
    rows = np.arange(len(data)) if data.view_of is None else np.flatnonzero(data.view_of == "")
    rows = rows[np.argsort(data.row_ids[rows], kind="stable")]
    return data if np.array_equal(rows, np.arange(len(data))) else data.select(rows)


def chosen_rows(data: FeatureSet, n: int, *, seed: int = 0, purpose: str = "report") -> np.ndarray:
    """Return at most n row numbers, sorted, drawn by seed and ids: groups whole, every class in proportion.

    Parameters
    ----------
    data : FeatureSet
        Rows.
    n : int
        Rows wanted. Every class keeps two rows where it has them, so that there may be more where classes are many.
    seed : int, default=0
        Another seed, another draw.
    purpose : str, default="report"
        Draws for different purposes are independent.

    Returns
    -------
    ndarray of int

    Examples
    --------
    >>> data = FeatureSet(np.zeros((6, 2)), list("aaaabb"))
    >>> len(chosen_rows(data, 3))
    4
    """
    if len(data) <= n:
        return np.arange(len(data))
    units = np.asarray([f"i{i}" for i in data.row_ids.tolist()])
    if data.groups is not None:
        units = np.where(data.groups == "", units, np.char.add("g", data.groups.astype(np.str_)))
    names, unit = np.unique(units, return_inverse=True)
    order = np.argsort(generator_for(seed, purpose).permutation(len(names))[unit], kind="stable")
    if data.groups is not None:  # whole groups until there are enough
        first = np.cumsum(np.ones(len(order), dtype=int)) <= n
        return np.flatnonzero(np.isin(unit, np.unique(unit[order[first]])))
    labels = np.zeros(len(data), dtype=int) if data.y is None else np.unique(data.y, return_inverse=True)[1]
    order = order[np.argsort(labels[order], kind="stable")]
    counts = np.bincount(labels)
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    quota = np.minimum(counts, np.maximum(2, counts * n // len(data)))
    return np.sort(order[place < quota[labels[order]]])


def sampled(data: FeatureSet, n: int, *, seed: int = 0) -> FeatureSet:
    """Return `data`, or a sample of n rows of it, with all views of the images drawn."""
    images = plain_images(data)
    if len(images) <= n:
        return data
    few = replace(images, X=np.empty((len(images), 1), dtype=np.float32))
    ids = images.row_ids[chosen_rows(few, n, seed=seed)]
    own = data.row_ids if data.view_of is None else np.where(data.view_of == "", data.row_ids, data.view_of)
    return data.select(np.flatnonzero(np.isin(own, ids)))


def digest_of(data: FeatureSet) -> str:
    """Return the SHA-256 of ids, labels, groups and splits, whatever the order of the rows."""
    blank = [""] * len(data)
    columns = [c.tolist() if c is not None else blank for c in (data.row_ids, data.y, data.groups, data.splits)]
    lines = sorted(zip(*columns, strict=True))
    return hashlib.sha256(repr(lines).encode("utf-8", "surrogatepass")).hexdigest()
