"""Whether what a head's file holds can be a head: a checksum says that it is as written, not that it makes sense."""

from __future__ import annotations

import re
from numbers import Real
from typing import Any

import numpy as np

from ..errors import HeadError
from .label_sets import label_scores

__all__ = ["check_contents", "check_state", "text_array"]

_TEXT = re.compile(r"[<>=|]?U(\d{1,9})")


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


def text_array(items: list[Any], dtype: str) -> np.ndarray:
    """Return an array of text; as wide as its items, where the width that the file names is a waste of memory."""
    match = _TEXT.fullmatch(dtype)
    if match is None:
        raise _wrong("text of a dtype such as '<U8'", dtype)
    found = np.asarray(items, dtype=np.str_)
    return found.astype(dtype) if int(match[1]) <= max(64, 4 * found.dtype.itemsize // 4) else found


def check_state(estimator: Any) -> None:
    """Raise HeadError for a support vector machine whose numbers its C code would read beyond their ends.

    scikit-learn compares few of them: what `fit` made fits together, what a file says may not.
    """
    if type(estimator).__name__ not in ("SVC", "GaussianSVC"):
        return
    state = vars(estimator)
    k, vectors = len(state["classes_"]), state["support_vectors_"]
    n, pairs = len(vectors), k * (k - 1) // 2
    shapes = {
        "support_": ((n,), np.int32),
        "support_vectors_": ((n, state["n_features_in_"]), np.float64),
        "_n_support": ((k,), np.int32),
        "dual_coef_": ((k - 1, n), np.float64),
        "_dual_coef_": ((k - 1, n), np.float64),
        "intercept_": ((pairs,), np.float64),
        "_intercept_": ((pairs,), np.float64),
    }
    for name, (shape, dtype) in shapes.items():
        array = state[name]
        if not isinstance(array, np.ndarray) or array.shape != shape or array.dtype != dtype:
            raise _wrong(f"{name} of shape {shape}, {np.dtype(dtype)}", str(getattr(array, "shape", array)))
    for name in ("_probA", "_probB"):
        array = state[name]
        if not isinstance(array, np.ndarray) or array.shape not in ((0,), (pairs,)) or array.dtype != np.float64:
            raise _wrong(f"{name} of shape ({pairs},), or empty", str(getattr(array, "shape", array)))
    counts = state["_n_support"].astype(np.int64)
    if k < 2 or (counts < 0).any() or counts.sum() != n or len(state["_probA"]) != len(state["_probB"]):
        raise _wrong(f"two classes or more with {n} support vectors together", counts.tolist())
    kernels = ("linear", "poly", "rbf", "sigmoid")
    if state["_sparse"] is not False or "_impl" in state or estimator.kernel not in kernels:
        raise _wrong(f"dense support vectors with one of the kernels {', '.join(kernels)}", str(estimator.kernel))


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
