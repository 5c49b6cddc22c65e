"""FeatureSet: what a store gives and a head takes. NumPy only, frozen, usable without a store."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from .errors import FeaturesError

__all__ = ["FeatureSet", "is_text", "is_thrifty", "text_of", "texts_of"]

#: NumPy gives each text the room of the longest. That is allowed up to so many bytes, or so many times the texts.
_ROOM = 1 << 26
_WASTE = 16


@dataclass(frozen=True, eq=False)
class FeatureSet:
    """Codes of a set of images with everything a head, a splitter or a report wants to know about them.

    Parameters
    ----------
    X : ndarray of shape (n_samples, n_features) or (n_samples, *shape)
        The codes, float32 (in memory) or the stored dtype (mapped). Rows are in the order of `ids`.
    y : array-like of shape (n_samples,), default=None
        Labels as text; ``""``, None and NaN mean unlabelled. Numbers are turned into text, so "01" stays "01".
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
    view_of : array-like of shape (n_samples,), default=None
        Of a row that is an augmented view of another row's image: the id of that row; ``""`` for plain images. Such
        rows train with their image only, and count neither as images nor as test rows.

    extract_seconds : float, default=None
        Wall clock of computing the codes of one image, where the store remembers it.

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
    view_of: np.ndarray | None = None
    extract_seconds: float | None = None

    def __post_init__(self) -> None:
        X = self.X if isinstance(self.X, np.ndarray) else _array("X", self.X)
        if X.ndim < 2 or X.dtype.kind not in "fiu":
            raise FeaturesError(
                f"X: expected a numeric array of shape (n_samples, n_features), got shape {X.shape} of {X.dtype}"
            )
        set_ = object.__setattr__  # a frozen dataclass normalises its own fields only this way
        set_(self, "X", X)
        ids = self.ids if self.ids is not None else [str(i) for i in range(len(X))]
        set_(self, "ids", self._text("ids", ids))
        for name in ("y", "groups", "splits", "view_of"):
            value = getattr(self, name)
            if value is not None:
                set_(self, name, self._text(name, value))
        set_(self, "columns", {name: self._column(f"columns[{name!r}]", v) for name, v in self.columns.items()})
        if len(np.unique(self.row_ids)) != len(X):
            raise FeaturesError(f"ids: expected {len(X)} different names, got repeats; give each row a name of its own")

    def _column(self, name: str, values: Any) -> np.ndarray:
        array = _array(name, values)
        if array.ndim != 1:
            raise FeaturesError(f"{name}: expected one dimension, got shape {array.shape}")
        if len(array) != len(self.X):
            raise FeaturesError(f"{name}: expected {len(self.X)} values (one per row of X), got {len(array)}")
        return array

    def _text(self, name: str, values: Any) -> np.ndarray:
        return text_of(self._column(name, values))

    def __repr__(self) -> str:
        name = f"{self.name!r}, " if self.name else ""
        return f"FeatureSet({name}X {self.X.shape} of {self.X.dtype}, {len(self.classes)} classes)"

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

        Raises
        ------
        FeaturesError
            For rows that are not there, or named twice.
        """
        index = np.asarray(rows)
        try:
            index = np.arange(len(self))[index if index.size else index.astype(np.intp)]
        except IndexError as error:
            raise FeaturesError(f"rows: expected numbers below {len(self)} or a mask of that length: {error}") from None

        def pick(values: np.ndarray | None) -> np.ndarray | None:
            return None if values is None else values[index]

        return replace(
            self,
            X=self.X[index],
            y=pick(self.y),
            ids=pick(self.ids),
            groups=pick(self.groups),
            splits=pick(self.splits),
            view_of=pick(self.view_of),
            columns={name: column[index] for name, column in self.columns.items()},
        )


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise FeaturesError(
            f"{name}: expected an array, got {type(values).__name__} ({' '.join(str(error).split())})"
        ) from error


def text_of(array: np.ndarray) -> np.ndarray:
    """Return labels, names or groups as text; "" where there is none."""
    return array if array.dtype.kind == "U" else texts_of([_word(v) for v in array.tolist()])


def is_thrifty(width: int, n: int, held: int) -> bool:
    """Tell whether n texts, the longest of `width` characters, may become an array of fixed width.

    `held` is how many characters (or bytes) the distinct ones have: where many lines point to one long text, an array
    of fixed width would hold it many times.
    """
    return 4 * width * n <= max(_ROOM, _WASTE * (8 * n + held))


def texts_of(values: Sequence[str]) -> np.ndarray:
    """Return texts as an array of fixed width or, where one of them would make that absurd, of objects (all str)."""
    n, width = len(values), max(map(len, values), default=0)
    if is_thrifty(width, n, 0) or is_thrifty(width, n, sum(map(len, set(values)))):
        return np.asarray(values, dtype=np.str_).reshape(n)
    out = np.empty(n, dtype=object)
    out[:] = [value.rstrip("\0") for value in values]  # as an array of fixed width, which cannot end in NUL, has them
    return out


def is_text(array: np.ndarray) -> bool:
    """Tell whether an array holds nothing but texts, of fixed width or as objects."""
    return array.dtype.kind == "U" or (array.dtype.kind == "O" and all(isinstance(v, str) for v in array.ravel()))


def _word(value: Any) -> str:
    """One label, name or group as text; "" where there is none."""
    missing = value is None or (isinstance(value, float) and math.isnan(value))
    return "" if missing else value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
