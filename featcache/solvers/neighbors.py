"""The nearest rows of each row, exactly, block by block: never a matrix of all pairs.

A block of base rows is read once and multiplied with all queries; each query keeps its k best so far. So memory is
bounded by two blocks and the answer, whatever the number of rows. Only k values of each block are ever sorted.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import HeadError
from .blocks import BLOCK_BYTES, row_blocks

__all__ = ["METRICS", "nearest", "nearest_others", "unit_rows"]

METRICS = ("cosine", "euclidean")


def nearest(
    queries: Any,
    base: Any,
    k: int,
    *,
    metric: str = "cosine",
    own: tuple[np.ndarray, np.ndarray] | None = None,
    device: str | None = None,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest base rows of each query.

    Parameters
    ----------
    queries, base : array-like or torch tensor of shape (m, d) and (n, d)
        Whatever `row_blocks` takes, or tensors on any device. Computed in float64 where `base` is float64, else in
        float32.
    k : int
        Rows wanted, from 1 to n.
    metric : {"cosine", "euclidean"}, default="cosine"
        Rows of zeros have cosine 0 with every row.
    own : pair of int arrays of shape (m,) and (n,), default=None
        A base row with the same number as the query is left out: the row itself, or all of its group.
    device : str, default=None
        Torch device to compute on; None: NumPy, or where the tensors lie.
    block_bytes : int, default=32 MiB
        Size of a block of rows and of a block of products.

    Returns
    -------
    nearness : ndarray of shape (m, k)
        Cosines, or negative squared distances; descending. -inf where fewer than k rows were left.
    rows : ndarray of int64 of shape (m, k)
        Row numbers in `base`; of equally near rows the smaller number comes first. -1 where nearness is -inf.

    Raises
    ------
    HeadError
        Unknown metric, widths that differ, or k out of range.

    Examples
    --------
    >>> nearness, rows = nearest(np.array([[1.0, 0.0]]), np.array([[0.0, 1.0], [2.0, 0.0], [3.0, 0.0]]), 2)
    >>> nearness.tolist(), rows.tolist()
    ([[1.0, 1.0]], [[1, 2]])
    """
    _check(queries, base, k, metric)
    tools = _Tools(base, queries, metric, device, block_bytes)
    m = len(queries)
    best = np.full((m, k), -np.inf, dtype=tools.dtype)
    rows = np.full((m, k), -1, dtype=np.int64)
    for held, block in tools.blocks(base, block_bytes):
        step = max(1, block_bytes // (len(block) * tools.dtype.itemsize))
        for asked, part in tools.blocks(queries, min(block_bytes, step * base.shape[1] * tools.dtype.itemsize)):
            near = tools.nearness(part, block)
            if own is not None:
                tools.leave_out(near, own[0][asked], own[1][held])
            values, found = tools.top(near, min(k, held.stop - held.start))
            best[asked], rows[asked] = _merged(best[asked], rows[asked], values, found + held.start)
    rows[best == -np.inf] = -1
    return best, rows


def nearest_others(
    X: Any, k: int, *, groups: Any = None, rows: np.ndarray | None = None, **settings: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Return the k nearest other rows of each row of X (n, d): leave-one-out.

    Parameters
    ----------
    X : array-like of shape (n, d)
        As `base` in `nearest`.
    k : int
        Rows wanted, from 1 to n.
    groups : array-like of shape (n,), default=None
        Rows of the same group are left out together; None: only the row itself.
    rows : ndarray of int, default=None
        Ask for these rows only; None: for all.
    **settings
        As in `nearest`.

    Returns
    -------
    nearness, rows : ndarray
        As `nearest`.

    Examples
    --------
    >>> nearest_others(np.array([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), 1)[1].ravel().tolist()
    [1, 0, 1]
    """
    n = len(X)
    codes = np.arange(n) if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if len(codes) != n:
        raise HeadError(f"groups: expected {n} values (one per row), got {len(codes)}")
    asked = np.arange(n) if rows is None else rows
    return nearest(X if rows is None else X[rows], X, k, own=(codes[asked], codes), **settings)


def unit_rows(X: np.ndarray) -> np.ndarray:
    """Return the rows of X (n, d) at length 1; rows of zeros stay. Safe for lengths whose square overflows."""
    largest = np.abs(X).max(axis=1, keepdims=True, initial=0.0)
    X = X / np.where(largest > 0, largest, 1)
    lengths = np.sqrt(np.einsum("ij,ij->i", X, X))[:, None]
    return X / np.where(lengths > 0, lengths, 1)


def _check(queries: Any, base: Any, k: int, metric: str) -> None:
    if metric not in METRICS:
        raise HeadError(f"metric: expected one of {', '.join(METRICS)}, got {metric!r}")
    if len(queries.shape) != 2 or len(base.shape) != 2 or queries.shape[1] != base.shape[1]:
        raise HeadError(
            f"nearest: expected two matrices of the same width, got shapes {tuple(queries.shape)} and "
            f"{tuple(base.shape)}"
        )
    if not 1 <= k <= len(base):
        raise HeadError(f"nearest: expected k from 1 to the {len(base)} rows there are, got {k}")


def _merged(best: np.ndarray, rows: np.ndarray, values: np.ndarray, found: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Keep the k best of two sorted lists; the first list has the smaller row numbers, so a stable sort is right."""
    k = best.shape[1]
    values, found = np.concatenate([best, values], axis=1), np.concatenate([rows, found], axis=1)
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(values, order, 1), np.take_along_axis(found, order, 1)


class _Tools:
    """The few operations that differ between NumPy and torch."""

    def __init__(self, base: Any, queries: Any, metric: str, device: str | None, block_bytes: int) -> None:
        given = next((str(X.device) for X in (base, queries) if _is_tensor(X)), None)
        self.device, self.metric = device or given, metric
        wide = str(base.dtype).removeprefix("torch.") == "float64" and not (self.device or "").startswith("mps")
        self.dtype = np.dtype(np.float64 if wide else np.float32)
        # Distances are differences of large numbers where the data lie far from zero; cosines are about zero.
        self.centre = self._mean(base, block_bytes) if metric == "euclidean" else None

    def _mean(self, base: Any, block_bytes: int) -> Any:
        total = sum(_numpy(block).sum(axis=0, dtype=np.float64) for _, block in self.raw(base, block_bytes))
        return self._here((total / len(base)).astype(self.dtype))

    def raw(self, X: Any, block_bytes: int) -> Iterator[tuple[slice, Any]]:
        """Yield blocks of `dtype`, as arrays or tensors."""
        if not _is_tensor(X):
            yield from row_blocks(X, dtype=self.dtype, block_bytes=block_bytes)
            return
        import torch

        step = max(1, block_bytes // max(1, X.shape[1] * self.dtype.itemsize))
        for start in range(0, len(X), step):
            rows = slice(start, min(start + step, len(X)))
            yield rows, X[rows].detach().to(getattr(torch, self.dtype.name))

    def blocks(self, X: Any, block_bytes: int) -> Iterator[tuple[slice, Any]]:
        """Yield blocks ready for `nearness`: at unit length, or centred."""
        for rows, block in self.raw(X, block_bytes):
            here = self._here(block)
            if self.metric == "euclidean":
                yield rows, here - self.centre
            elif _is_tensor(here):
                largest = here.abs().amax(dim=1, keepdim=True)
                here = here / largest.where(largest > 0, 1.0)
                lengths = here.norm(dim=1, keepdim=True)
                yield rows, here / lengths.where(lengths > 0, 1.0)
            else:
                yield rows, unit_rows(here)

    def _here(self, block: Any) -> Any:
        if self.device is None:
            return block
        import torch

        return torch.as_tensor(block, device=self.device)

    def nearness(self, part: Any, block: Any) -> Any:
        near = part @ block.T
        if self.metric == "cosine":
            return near
        near *= 2.0
        near -= (part * part).sum(1)[:, None]
        near -= (block * block).sum(1)[None, :]
        return near.clip(None, 0.0)

    def leave_out(self, near: Any, asked: np.ndarray, held: np.ndarray) -> None:
        same = asked[:, None] == held[None, :]
        near[self._here(same)] = -np.inf

    def top(self, near: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the k largest of each row and their columns, smaller columns first among equals."""
        return _top_torch(near, k) if _is_tensor(near) else _top_numpy(near, k)


def _top_numpy(near: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if k == near.shape[1]:
        found = np.broadcast_to(np.arange(k), near.shape)
    elif k == 1:
        found = near.argmax(axis=1)[:, None]  # the first of equals
    else:
        level = np.partition(near, near.shape[1] - k, axis=1)[:, -k][:, None]
        keep = near >= level
        for row in np.flatnonzero(keep.sum(axis=1) > k):  # equals at the edge: the first ones stay
            equal = np.flatnonzero(near[row] == level[row])
            keep[row, equal[k - int((near[row] > level[row]).sum()) :]] = False
        found = np.nonzero(keep)[1].reshape(len(near), k)
    values = np.take_along_axis(near, found, 1)
    order = np.argsort(-values, axis=1, kind="stable")
    return np.take_along_axis(values, order, 1), np.take_along_axis(found, order, 1)


def _top_torch(near: Any, k: int) -> tuple[np.ndarray, np.ndarray]:
    import torch

    level = torch.topk(near, k, dim=1).values[:, -1:]
    above, equal = near > level, near == level
    room = k - above.sum(dim=1, keepdim=True)
    keep = above | (equal & (equal.cumsum(dim=1) <= room))
    found = keep.nonzero()[:, 1].reshape(len(near), k)
    values = near.gather(1, found)
    order = torch.argsort(values, dim=1, descending=True, stable=True)
    return values.gather(1, order).cpu().numpy(), found.gather(1, order).cpu().numpy()


def _numpy(block: Any) -> np.ndarray:
    return block.cpu().numpy() if _is_tensor(block) else block


def _is_tensor(X: Any) -> bool:
    return type(X).__module__.partition(".")[0] == "torch"
