"""Heads on codes that stay on disk: settings from a sample in memory, the fit on all rows, block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..errors import HeadError
from ..softmax import SoftmaxClassifier
from ..solvers.blocks import ChosenRows
from .choosing import Trained, train, tuning_folds
from .closed_forms import LDAClassifier, SimpleShotClassifier, fit_blocks
from .labelled import Rows
from .ridge import IncrementalRidgeClassifier

__all__ = ["MAPPED", "sampled", "train_mapped"]

#: Rows on which settings are chosen: enough that another sample would choose the same.
SAMPLE_ROWS = 20_000


def _softmax(**params: Any) -> SoftmaxClassifier:
    return SoftmaxClassifier(standardize=True, **params)


def _ridge(**params: Any) -> IncrementalRidgeClassifier:
    return IncrementalRidgeClassifier(standardize=True, keep_sums=False, **params)


def _lda(**params: Any) -> LDAClassifier:
    return LDAClassifier(standardize=True, keep_sums=False, **params)


#: Heads that read codes block by block: name → the estimator with its standardisation inside.
MAPPED: dict[str, Callable[..., Any]] = {
    "logreg": _softmax,
    "softmax": _softmax,
    "ridge": _ridge,
    "lda": _lda,
    "simpleshot": SimpleShotClassifier,
}


def sampled(rows: Rows, chosen: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, ChosenRows, str]:
    """Return what settings are chosen on, and what is read from the disk.

    Parameters
    ----------
    rows : Rows
        With a map.
    chosen : ndarray of int of shape (m,)
        Those to train on.
    seed : int
        Of the sample.

    Returns
    -------
    sample : ndarray of int
        Sorted positions in `chosen`.
    near : ndarray of shape (len(sample), d)
        Their codes, float32.
    whole : ChosenRows
        The codes of all chosen rows.
    note : str
        Says so.
    """
    whole = ChosenRows(rows.X, chosen)
    sample = np.sort(np.random.default_rng(seed).permutation(len(chosen))[:SAMPLE_ROWS])
    note = f"settings chosen on {len(sample)} of {len(chosen)} rows" + ", val rows among them" * ("val" in rows.parts)
    return sample, np.asarray(whole[sample], dtype=np.float32), whole, f"codes read from disk; {note}"


def train_mapped(
    head: Any, rows: Rows, chosen: np.ndarray, *, metric: str, cv: int, seed: int, params: Mapping[str, Any] | None
) -> Trained:
    """Fit a head on rows of a map.

    Parameters
    ----------
    head : str
        A key of `MAPPED`.
    rows : Rows
        With a map.
    chosen : ndarray of int of shape (m,)
        Those to train on; val rows do not choose, they train.
    metric, cv, seed, params
        As in `fit`.

    Returns
    -------
    Trained
        With a note on the sample; its score is that of the sample.

    Raises
    ------
    HeadError
        Another head, NaN or Inf in the codes.
    """
    if not isinstance(head, str) or head not in MAPPED:
        raise HeadError(
            f"head {head!r}: the codes stay on disk, where expected is one of {', '.join(MAPPED)}; "
            "use load(in_memory=True) for other heads"
        )
    sample, near, whole, note = sampled(rows, chosen, seed)
    y, some = rows.y[chosen], None if rows.groups is None else rows.groups[chosen[sample]]
    folds = tuning_folds(y[sample], near.shape[1], cv=cv, ids=None, groups=some, seed=seed)
    setting = train(head, near, y[sample], folds, metric=metric, seed=seed, params=params, groups=some)
    estimator = MAPPED[head](**setting.params)
    try:
        if isinstance(estimator, SoftmaxClassifier):
            estimator.fit_blocks(whole, y)
        else:
            fit_blocks(estimator, whole, y)
    except ValueError as error:
        raise HeadError(f"head {head!r} on {len(chosen)} rows: {' '.join(str(error).split())}") from error
    return Trained(estimator, head, setting.params, setting.score, (note,))
