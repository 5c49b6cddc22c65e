"""Whether what a head's file holds can be a head: a checksum says that it is as written, not that it makes sense."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from ..errors import HeadError
from .label_sets import label_scores

__all__ = ["check_contents"]


def check_contents(estimator: Any, classes: np.ndarray, fields: dict[str, Any], size: int) -> None:
    """Raise HeadError where the parts of a FittedHead do not belong together.

    Parameters
    ----------
    estimator : estimator
        As read.
    classes : ndarray of str
        Labels.
    fields : dict
        The other fields of the FittedHead.
    size : int
        Numbers in the file's arrays.
    """
    kinds = {name: fields.get(name, "") for name in ("separator", "target")}
    if not all(isinstance(kind, str) for kind in kinds.values()) or all(kinds.values()):
        raise _wrong("separator or target as text, and not both", list(kinds.values()))
    if classes.ndim != 1 or len(np.unique(classes)) != len(classes):
        raise _wrong("classes as a list of different texts", classes.tolist())
    width, temperature = fields["n_features"], fields.get("temperature")
    if type(width) is not int or width < 0:
        raise _wrong("n_features as a whole number of 0 or more", width)
    number = isinstance(temperature, Real) and not isinstance(temperature, bool)
    if temperature is not None and not (number and 0.0 < float(temperature) < np.inf):
        raise _wrong("temperature as a number above 0, or none", temperature)
    if any(kinds.values()):
        _check_answers(estimator, classes, width, size, number=bool(kinds["target"]))


def _check_answers(estimator: Any, classes: np.ndarray, width: int, size: int, *, number: bool) -> None:
    """Ask a head of several labels, or of a number, for one row of zeros."""
    if number and len(classes):
        raise _wrong("no classes beside a target", classes.tolist())
    if not 0 < width <= size:  # no row that is larger than the file
        raise _wrong(f"n_features above 0 and no more than the {size} numbers in the file", width)
    row = np.zeros((1, width), dtype=np.float32)
    with np.errstate(all="ignore"):
        try:
            found = np.asarray(estimator.predict(row), dtype=np.float64) if number else label_scores(estimator, row)
        except Exception as error:
            what = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise _wrong(f"an estimator that takes rows of {width} features", what) from error
    if number and found.size != 1:
        raise _wrong("an estimator that predicts one number per row", f"shape {found.shape}")
    if not number and found.shape != (1, len(classes)):
        raise _wrong(f"an estimator with a score for each of {len(classes)} labels", f"shape {found.shape}")


def _wrong(expected: str, got: Any) -> HeadError:
    text = got if isinstance(got, str) else repr(got)
    return HeadError(f"expected {expected}, got {text[:200]}; save the head again")
