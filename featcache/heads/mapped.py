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
from .ridge import IncrementalRidgeClassifier

__all__ = ["MAPPED", "train_mapped"]

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


def train_mapped(
    head: Any,
    X: np.ndarray,
    rows: np.ndarray,
    y: np.ndarray,
    *,
    metric: str,
    cv: int,
    seed: int,
    params: Mapping[str, Any] | None,
    groups: np.ndarray | None,
) -> Trained:
    """Fit a head on rows of a map.

    Parameters
    ----------
    head : str
        A key of `MAPPED`.
    X : ndarray of shape (n, d)
        The map.
    rows : ndarray of int of shape (m,)
        Training rows.
    y : ndarray of shape (m,)
        Their labels.
    metric, cv, seed, params
        As in `fit`.
    groups : ndarray of shape (m,) or None
        Their groups.

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
    chosen_rows = ChosenRows(X, rows)
    sample = np.sort(np.random.default_rng(seed).permutation(len(rows))[:SAMPLE_ROWS])
    some = None if groups is None else groups[sample]
    folds = tuning_folds(y[sample], X.shape[1], cv=cv, ids=None, groups=some, seed=seed)
    near = np.asarray(chosen_rows[sample], dtype=np.float32)
    chosen = train(head, near, y[sample], folds, metric=metric, seed=seed, params=params, groups=some)
    estimator = MAPPED[head](**chosen.params)
    try:
        if isinstance(estimator, SoftmaxClassifier):
            estimator.fit_blocks(chosen_rows, y)
        else:
            fit_blocks(estimator, chosen_rows, y)
    except ValueError as error:
        raise HeadError(f"head {head!r} on {len(rows)} rows: {' '.join(str(error).split())}") from error
    note = f"codes read from disk; settings chosen on {len(sample)} of {len(rows)} rows"
    return Trained(estimator, head, chosen.params, chosen.score, (note,))
