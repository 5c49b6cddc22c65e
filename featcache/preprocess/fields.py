"""The fields of a recipe, checked as they come in."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import PreprocessError
from .resizing import MAX_SIDE

__all__ = ["choice", "numbers", "one_or_two", "sides"]


def choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    """Refuse a value that is none of those allowed.

    Parameters
    ----------
    name : str
        Of the field.
    value : object
        What was given.
    allowed : sequence
        Equal values of another type do not count.

    Raises
    ------
    PreprocessError
    """
    if not any(value is item or (type(value) is type(item) and value == item) for item in allowed):
        listed = ", ".join(map(str, allowed))
        raise PreprocessError(f"preprocess.{name}: expected one of {listed}, got {value!r}; choose one of them")


def _side(name: str, value: Any) -> int:
    number = _integer(value)
    if number is None or not 1 <= number <= MAX_SIDE:
        raise PreprocessError(
            f"preprocess.{name}: expected whole pixels from 1 to {MAX_SIDE}, got {value!r}; give e.g. {name}=224 or "
            f"{name}=(224, 224)"
        )
    return number


def _integer(value: Any) -> int | None:
    return int(value) if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else None


def sides(name: str, value: Any) -> int | tuple[int, int] | None:
    """Read a length, or a pair of them.

    Parameters
    ----------
    name : str
        Of the field.
    value : int, (int, int) or None
        What was given.

    Returns
    -------
    int, (int, int) or None

    Raises
    ------
    PreprocessError
        For anything but whole pixels up to `MAX_SIDE`.
    """
    if value is None:
        return None
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise PreprocessError(f"preprocess.{name}: expected (height, width), got {list(value)!r}; give two numbers")
        return _side(name, value[0]), _side(name, value[1])
    return _side(name, value)


def one_or_two(value: Any) -> Any:
    """Unpack a single size, which torchvision keeps as a list of one.

    Parameters
    ----------
    value : object
        The constructor checks it.

    Returns
    -------
    object
    """
    return value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value


def numbers(name: str, values: Any, channels: int) -> tuple[float, ...]:
    """Read one number per channel.

    Parameters
    ----------
    name : str
        Of the field.
    values : sequence of float
        What was given.
    channels : int
        How many there must be.

    Returns
    -------
    tuple of float

    Raises
    ------
    PreprocessError
        For another number of them, or any that is not finite.
    """
    try:
        found = tuple(float(value) for value in values)
    except (TypeError, ValueError):
        found = ()
    if len(found) != channels or not all(math.isfinite(value) for value in found):
        raise PreprocessError(
            f"preprocess.{name}: expected {channels} finite numbers, one per channel, got {values!r}; give e.g. "
            f"{name}={(0.5,) * channels}"
        )
    return found
