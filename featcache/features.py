"""FeatureSet: what a store gives and a head takes. NumPy only, frozen, usable without a store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .errors import FeaturesError

__all__ = ["FeatureSet"]


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Codes of a set of images with everything a head, a splitter or a report wants to know about them.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features) or (n_samples, *shape)
        The codes, float32 (in memory) or the stored dtype (mapped). Rows are in the order of `ids`.
    y : array-like of shape (n_samples,), default=None
        Labels as text; ``""`` means unlabelled. Numbers are taken as they are and turned into text, so "01" stays "01".
    ids : array-like of shape (n_samples,), default=None
        Unique names of the rows; ``"0"``, ``"1"``, … when not given.
    groups : array-like of shape (n_samples,), default=None
        Rows of one group (patient, burst, source image) never stand on both sides of a split.
    splits : array-like of shape (n_samples,), default=None
        The source's own split names, e.g. "train", "val", "test"; ``""`` where it has none.
    spec : dict, default=None
        The extraction spec that made the codes; None for codes made elsewhere.
    locator : dict, default=None
        Where the backbone's weights came from, so that `predict` can find them again.
    node : str, default=""
        Which node of the backbone the codes were taken from.
    fingerprint : str, default=""
        SHA-256 of the canonical spec, as hex.
    columns : mapping of str to ndarray, default={}
        The source's own further columns, each of length n_samples.
    name : str, default=""
        What to call this set in tables; a store gives its folder name.

    Raises
    ------
    FeaturesError
        When lengths differ, ids repeat, or X is not a numeric array of two or more dimensions.

    Examples
    --------
    >>> import numpy as np
    >>> data = FeatureSet(np.eye(3, dtype="float32"), ["cat", "dog", ""])
    >>> data.xy[1].tolist()
    ['cat', 'dog']
    """

    X: np.ndarray
    y: np.ndarray | None = None
    ids: np.ndarray | None = None
    groups: np.ndarray | None = None
    splits: np.ndarray | None = None
    spec: dict[str, Any] | None = None
    locator: dict[str, Any] | None = None
    node: str = ""
    fingerprint: str = ""
    columns: Mapping[str, np.ndarray] = field(default_factory=dict)
    name: str = ""

    def __post_init__(self) -> None:
        X = np.asarray(self.X) if not isinstance(self.X, np.ndarray) else self.X
        if X.ndim < 2 or X.dtype.kind not in "fiu":
            raise FeaturesError(
                f"X: expected a numeric array of shape (n_samples, n_features), got shape {X.shape} of {X.dtype}"
            )
        set_ = object.__setattr__  # a frozen dataclass normalises its own fields only this way
        set_(self, "X", X)
        ids = self.ids if self.ids is not None else [str(i) for i in range(len(X))]
        set_(self, "ids", self._text("ids", ids))
        for name in ("y", "groups", "splits"):
            value = getattr(self, name)
            if value is not None:
                set_(self, name, self._text(name, value))
        for name, column in self.columns.items():
            self._check_length(f"columns[{name!r}]", column)
        if len(np.unique(self.row_ids)) != len(X):
            raise FeaturesError(f"ids: expected {len(X)} different names, got repeats; give each row a name of its own")

    def _check_length(self, name: str, values: Sequence[Any] | np.ndarray) -> None:
        if len(values) != len(self.X):
            raise FeaturesError(f"{name}: expected {len(self.X)} values (one per row of X), got {len(values)}")

    def _text(self, name: str, values: Any) -> np.ndarray:
        array = np.asarray(values)
        if array.ndim != 1:
            raise FeaturesError(f"{name}: expected one dimension, got shape {array.shape}")
        self._check_length(name, array)
        if array.dtype.kind == "U":
            return array
        return np.asarray(["" if value is None else str(value) for value in array.tolist()], dtype=np.str_)

    def __len__(self) -> int:
        return len(self.X)

    @property
    def row_ids(self) -> np.ndarray:
        """`ids`, never None."""
        assert self.ids is not None
        return self.ids

    @property
    def classes(self) -> np.ndarray:
        """Sorted distinct labels, without the empty one."""
        return np.unique(self.y[self.y != ""]) if self.y is not None else np.asarray([], dtype=np.str_)

    @property
    def labelled(self) -> np.ndarray:
        """Boolean mask of shape (n_samples,): the rows that have a label."""
        return self.y != "" if self.y is not None else np.zeros(len(self), dtype=bool)

    @property
    def xy(self) -> tuple[np.ndarray, np.ndarray]:
        """`X` and `y` of the labelled rows, ready for any scikit-learn estimator.

        Raises
        ------
        FeaturesError
            When no row has a label.
        """
        mask = self.labelled
        if self.y is None or not mask.any():
            raise FeaturesError(
                f"{self.name or 'FeatureSet'}: no row has a label; put images into one folder per class, or give y="
            )
        return (self.X, self.y) if mask.all() else (self.X[mask], self.y[mask])

    def select(self, rows: np.ndarray | Sequence[int]) -> FeatureSet:
        """Return the set of the given rows.

        Parameters
        ----------
        rows : array-like
            Indices, or a boolean mask of shape (n_samples,).

        Returns
        -------
        FeatureSet
            The same provenance, fewer rows.
        """
        index = np.asarray(rows)

        def pick(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[index]

        return replace(
            self,
            X=self.X[index],
            y=pick(self.y),
            ids=pick(self.ids),
            groups=pick(self.groups),
            splits=pick(self.splits),
            columns={name: column[index] for name, column in self.columns.items()},
        )
