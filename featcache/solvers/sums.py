"""What both kinds of sums share: named arrays that are read in blocks, copied, and written down."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np

from ..errors import HeadError
from .blocks import row_blocks

__all__ = ["Moments"]

_Self = TypeVar("_Self", bound="Moments")


class Moments:
    """Sums of rows as named arrays."""

    _fields: tuple[str, ...]
    scatter: np.ndarray | None

    @property
    def n_features(self) -> int:
        """Length of a code."""
        raise NotImplementedError

    def state(self) -> dict[str, np.ndarray]:
        """Return the sums as plain arrays by name, not copied."""
        return {name: value for name in self._fields if (value := getattr(self, name)) is not None}

    @classmethod
    def from_state(cls: type[_Self], state: dict[str, np.ndarray]) -> _Self:
        """Make sums of what `state` returned; they take the arrays over and change them in place."""
        self = cls.__new__(cls)
        for name in cls._fields:
            setattr(self, name, state.get(name))
        return self

    def copy(self: _Self) -> _Self:
        """Return sums that share no memory with these."""
        return type(self).from_state({name: value.copy() for name, value in self.state().items()})

    def _check(self, other: Any) -> None:
        if type(other) is not type(self) or {n: v.shape for n, v in other.state().items()} != {
            n: v.shape for n, v in self.state().items()
        }:
            raise HeadError(
                f"sums: expected {type(self).__name__} of the same classes (or targets) and {self.n_features} "
                f"features, got {type(other).__name__} of other shapes; bring both to the same classes first"
            )

    def _blocks(
        self, X: Any, y: np.ndarray, weight: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield (rows, their y, their weights) in float64, without rows of weight 0."""
        if len(X.shape) != 2 or X.shape[1] != self.n_features or len(y) != X.shape[0]:
            raise HeadError(
                f"sums: expected X of shape (n, {self.n_features}) with n labels, got {tuple(X.shape)} with {len(y)}"
            )
        if weight is not None and (len(weight) != len(y) or not np.all(np.asarray(weight) >= 0)):
            raise HeadError("sums: expected one weight of 0 or more per row; drop or correct the others")
        for rows, block in row_blocks(X, dtype=np.float64):
            heavy = np.ones(len(block)) if weight is None else np.asarray(weight[rows], dtype=np.float64)
            if (heavy > 0).all():
                yield block, y[rows], heavy
            elif (heavy > 0).any():
                yield block[heavy > 0], y[rows][heavy > 0], heavy[heavy > 0]
