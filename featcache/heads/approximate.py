"""Approximate nearest rows by an inverted file of faiss (the extra "ann"), for bases of more than about 10^6 rows.

An inverted file, not a graph: its cells are the same whatever the number of threads, so that the same rows give the
same neighbours. Indexes are kept beside their estimators, never in them: those stay plain arrays that can be saved.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from ..errors import HeadError
from ..solvers.blocks import row_blocks
from ..solvers.neighbors import unit_rows

__all__ = ["approximate_nearest"]

#: Cells looked into, of 4 √n.
_PROBES = 64

#: owner → (the rows it was built of, index).
_INDEXES: weakref.WeakKeyDictionary[Any, tuple[np.ndarray, Any]] = weakref.WeakKeyDictionary()


def approximate_nearest(
    owner: Any, queries: np.ndarray, base: np.ndarray, k: int, metric: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return what `solvers.neighbors.nearest` returns, as far as the likeliest cells hold it.

    Parameters
    ----------
    owner : object
        Whose index it is; it is built at the first call and again when `base` is another array.
    queries, base : ndarray of shape (m, d) and (n, d)
        Rows; `base` at unit length for cosines.
    k : int
        Rows wanted.
    metric : {"cosine", "euclidean"}
        As in `nearest`.

    Returns
    -------
    nearness, rows : ndarray of shape (m, k)
        float32 and int64. The few queries whose cells hold fewer than k rows are answered exactly.

    Raises
    ------
    HeadError
        faiss is not installed.
    """
    from ..solvers.neighbors import nearest

    held = _INDEXES.get(owner)
    if held is None or held[0] is not base:
        held = (base, _built(base, metric))
        _INDEXES[owner] = held
    asked = unit_rows(queries) if metric == "cosine" else queries
    near, rows = held[1].search(np.ascontiguousarray(asked, dtype=np.float32), k)
    near = np.array(near if metric == "cosine" else -near)
    short = np.flatnonzero((rows < 0).any(axis=1))
    if len(short):
        near[short], rows[short] = nearest(queries[short], base, k, metric=metric)
    order = np.lexsort((rows, -near), axis=1)
    return np.take_along_axis(near, order, 1), np.take_along_axis(rows, order, 1).astype(np.int64)


def _built(base: np.ndarray, metric: str) -> Any:
    try:
        import faiss
    except ImportError:
        raise HeadError(
            "search='approximate' needs faiss, which is not installed; pip install 'featcache[ann]', or search='exact'"
        ) from None
    n, d = base.shape
    cells = max(1, min(int(4 * np.sqrt(n)), n // 40))
    kind = faiss.METRIC_INNER_PRODUCT if metric == "cosine" else faiss.METRIC_L2
    quantizer = faiss.IndexFlat(d, kind)
    index = faiss.IndexIVFFlat(quantizer, d, cells, kind)
    index.cp.seed, index.cp.min_points_per_centroid = 1234, 1
    index.train(np.ascontiguousarray(base[:: max(1, n // (64 * cells))], dtype=np.float32))
    for _, block in row_blocks(base):
        index.add(np.ascontiguousarray(block))
    index.nprobe = min(_PROBES, cells)
    return index
