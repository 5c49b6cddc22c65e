"""The most similar images of some: what the codes see."""

from __future__ import annotations

import numpy as np

from ..features import FeatureSet
from ..reporting.document import Picture, Section, Strips, Text
from ..reporting.escaping import short
from ..solvers.neighbors import nearest_others
from ..splits import generator_for

__all__ = ["asked_rows", "nearest_images", "section"]


def nearest_images(data: FeatureSet, rows: np.ndarray, k: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest other images of some, by the cosine of codes centred on the mean of all.

    Parameters
    ----------
    data : FeatureSet
        Images.
    rows : ndarray of int of shape (m,)
        Row numbers to ask for.
    k : int, default=6
        Neighbours wanted; fewer where there are not so many.

    Returns
    -------
    cosines : ndarray of shape (m, k)
        Descending.
    rows : ndarray of int of shape (m, k)
        Row numbers.

    Examples
    --------
    >>> data = FeatureSet(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]))
    >>> nearest_images(data, np.array([0]), 1)[1].tolist()
    [[1]]
    """
    X = np.asarray(data.X, dtype=np.float32).reshape(len(data), -1)
    return nearest_others(X - X.mean(axis=0), min(k, len(X) - 1), rows=rows)


def asked_rows(data: FeatureSet, n: int = 8, *, seed: int = 0, wrong: frozenset[str] = frozenset()) -> np.ndarray:
    """Draw n images of as many classes as there are, half of them among those in `wrong` (ids)."""
    order = generator_for(seed, "neighbours").permutation(len(data))
    of = np.zeros(len(data), dtype="U1") if data.y is None else data.y
    failed = np.isin(data.row_ids, sorted(wrong)) if wrong else np.zeros(len(data), dtype=bool)
    chosen: list[int] = []
    for pool, quota in ((order[failed[order]], n // 2), (order[~failed[order]], n)):
        used = {of[i] for i in chosen}
        fresh = [i for i in pool.tolist() if of[i] not in used]
        first = {of[i]: i for i in reversed(fresh)}
        rest = [i for i in pool.tolist() if i not in first.values()]
        chosen += [*sorted(first.values(), key=fresh.index), *rest][: quota if quota < n else n - len(chosen)]
    return np.asarray(chosen, dtype=np.intp)


def section(data: FeatureSet, *, seed: int = 0, wrong: frozenset[str] = frozenset()) -> Section:
    """Return the section with some images and their nearest ones."""
    rows = asked_rows(data, seed=seed, wrong=wrong)
    cosines, found = nearest_images(data, rows)
    labels = np.full(len(data), "") if data.y is None else data.y
    ids = data.row_ids
    strips, lines = [], []
    for row, values, others in zip(rows.tolist(), cosines.tolist(), found.tolist(), strict=True):
        own = (short(labels[row], 22) or "(no label)", *(("taken for another",) if str(ids[row]) in wrong else ()))
        strip = [Picture(str(ids[row]), str(ids[row]), own)]
        for value, other in zip(values, others, strict=True):
            words = (short(labels[other], 22) or "(no label)", f"cosine {value:.2f}")
            strip.append(Picture(str(ids[other]), str(ids[other]), words, wrong=bool(labels[other] != labels[row])))
        strips.append(tuple(strip))
        lines.append({"id": str(ids[row]), "neighbours": [str(ids[o]) for o in others], "cosines": values})
    text = Text(
        f"The first image of each row and its nearest ones among {len(data)}, by the cosine of centred codes. Coloured "
        "labels differ from the first. Half of the rows are images that the head takes for another class, where there "
        "are such."
    )
    return Section("neighbours", "Nearest images", (text, Strips(tuple(strips))), {"rows": lines, "seed": seed})
