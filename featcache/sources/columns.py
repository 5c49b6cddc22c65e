"""Columns beside the images: arrays of text, whole numbers, floats or truth values, one entry per image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import SourceError

__all__ = ["text_column", "typed_column"]

#: Fixed-width text takes 4 bytes for each character of the longest entry, in every row.
_MAX_TEXT_BYTES = 2**30


def text_column(name: str, values: Sequence[str]) -> np.ndarray:
    """Return text as an array of fixed width.

    Parameters
    ----------
    name : str
        Of the column, for messages.
    values : sequence of str
        One per image; "" means missing.

    Returns
    -------
    numpy.ndarray
        ``<U`` of shape (n,).

    Raises
    ------
    SourceError
        When one long entry would make the column larger than 1 GiB.
    """
    width = max(map(len, values), default=0)
    if 4 * width * len(values) > _MAX_TEXT_BYTES:
        raise SourceError(
            f"column {name!r}: expected text of moderate length, got {width} characters in one of {len(values)} rows, "
            f"which needs {4 * width * len(values) / 2**30:.0f} GiB; leave the column out of the list"
        )
    return np.array(values, dtype=f"<U{max(width, 1)}")


def typed_column(name: str, values: Any, length: int) -> np.ndarray:
    """Return values of any kind as one of the four kinds that columns have.

    Parameters
    ----------
    name : str
        Of the column, for messages.
    values : array-like
        Text (None for missing), whole numbers, floats or truth values.
    length : int
        How many there must be.

    Returns
    -------
    numpy.ndarray
        ``<U``, int64, float64 or bool, of shape (length,).

    Raises
    ------
    SourceError
        For another number, shape or kind of values.
    """
    array = np.asarray(values)
    if array.shape != (length,):
        raise SourceError(
            f"{name}: expected {length} values, one per image, got shape {array.shape}; give one for each"
        )
    if array.dtype.kind == "O" and all(value is None or isinstance(value, str) for value in array):
        return text_column(name, ["" if value is None else value for value in array])
    # A list that mixes text and numbers has become text by NumPy's own rule; "1" would not say what it was.
    mixed = (
        array.dtype.kind == "U" and not isinstance(values, np.ndarray) and not all(isinstance(v, str) for v in values)
    )
    kinds = {"U": None, "i": np.int64, "u": np.int64, "f": np.float64, "b": np.bool_}
    if mixed or array.dtype.kind not in kinds:
        raise SourceError(
            f"{name}: expected text, whole numbers, floats or truth values, got "
            f"{'a mixture' if mixed else array.dtype}; convert them, e.g. with [str(v) for v in values]"
        )
    kind = kinds[array.dtype.kind]
    return text_column(name, array.tolist()) if kind is None else array.astype(kind)
