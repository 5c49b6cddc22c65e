"""Several labels per image: their text as a matrix of 0 and 1 and back, and the heads that learn such a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import HeadError
from ..features import texts_of
from ..softmax import SoftmaxClassifier
from ..solvers.losses import SigmoidLoss
from ..splits import Folds
from .fold_paths import fold_problem, standardised_rows, walk_grid

__all__ = [
    "as_indicators",
    "check_separator",
    "fit_logistic",
    "join_labels",
    "label_scores",
    "labels_in",
    "logistic_steps",
]


def check_separator(separator: Any) -> None:
    """Raise HeadError for what cannot part labels."""
    if not isinstance(separator, str) or not separator:
        raise HeadError(f"separator: expected text between the labels of an image such as ';', got {separator!r}")


def labels_in(text: str, separator: str) -> frozenset[str]:
    """Return the labels in one image's label text.

    Examples
    --------
    >>> sorted(labels_in(" b;a ;; a", ";")), sorted(labels_in(";", ";"))
    (['a', 'b'], [])
    """
    return frozenset(stripped for part in text.split(separator) if (stripped := part.strip()))


def as_indicators(texts: np.ndarray, separator: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels that occur, sorted, and which row has which: bool of shape (n_samples, n_labels)."""
    distinct, which = np.unique(texts, return_inverse=True)
    sets = [labels_in(text, separator) for text in distinct.tolist()]
    names = sorted(frozenset().union(*sets))
    place = {name: j for j, name in enumerate(names)}
    table = np.zeros((len(sets), len(names)), dtype=bool)
    for i, labels in enumerate(sets):
        table[i, [place[label] for label in labels]] = True
    return texts_of(names), table[which]


def join_labels(member: np.ndarray, labels: np.ndarray, separator: str) -> np.ndarray:
    """Return each row's labels as one text, as `as_indicators` reads it; a row without any is a lone separator.

    Examples
    --------
    >>> join_labels(np.array([[True, True], [False, False]]), np.array(["a", "b"]), ";").tolist()
    ['a;b', ';']
    """
    return texts_of([separator.join(labels[row].tolist()) or separator for row in member])


def label_scores(estimator: Any, X: Any) -> np.ndarray:
    """Return a score per label, float64 (n_samples, n_labels), above 0 where the label is predicted.

    Log odds of logistic regression; what ridge on targets of 1 and -1 predicts.
    """
    scores = estimator.decision_function(X) if hasattr(estimator, "decision_function") else estimator.predict(X)
    return np.asarray(scores, dtype=np.float64).reshape(len(X), -1)


def fit_logistic(X: Any, member: np.ndarray, C: float, *, on_disk: bool) -> SoftmaxClassifier:
    """Fit one logistic regression per label, on standardised codes.

    A label that all rows have, or none, has no finite solution: it gets weights 0 and the log odds of
    (count + 1/2) / (n + 1), Jeffreys' estimate of its share.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Codes; with `on_disk` whatever gives rows for a slice.
    member : ndarray of bool of shape (n, k)
        Which row has which label; one label at least that some rows have and others lack.
    C : float
        As in `SoftmaxClassifier`.
    on_disk : bool
        Read the codes block by block.
    """
    estimator = SoftmaxClassifier(C, standardize=True)
    varied, odds = _varied(member)
    aims = member[:, varied].astype(np.int64)
    (estimator.fit_blocks if on_disk else estimator.fit)(X, aims[:, 0] if aims.shape[1] == 1 else aims)
    coef, intercept = np.zeros((len(varied), estimator.coef_.shape[1])), odds
    coef[varied], intercept[varied] = estimator.coef_, estimator.intercept_
    estimator.coef_, estimator.intercept_ = coef, intercept
    estimator.classes_, estimator.multilabel_ = np.arange(len(varied)), True
    return estimator


def _varied(member: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return which labels some rows have and others lack, and the log odds of those that do not vary."""
    counts, n = member.sum(axis=0), len(member)
    return (counts > 0) & (counts < n), np.log((counts + 0.5) / (n - counts + 0.5))


def logistic_steps(
    X: np.ndarray, member: np.ndarray, folds: Folds, grid: Sequence[float]
) -> Iterator[tuple[np.ndarray, float]]:
    """Walk the logistic regressions of all labels and folds through ascending C.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Codes of the training rows, which are standardised as a whole (see `fold_paths`).
    member : ndarray of bool of shape (n, k)
        Which row has which label.
    folds : Folds
        Row numbers.
    grid : sequence of float
        Values of C.

    Yields
    ------
    scores : ndarray of shape (n_held_out, k)
        Log odds for the held-out rows, fold by fold.
    loss : float
        Sum of their log losses.
    """
    seen = [_varied(member[rows]) for rows, _ in folds]
    live = [f for f, (varied, _) in enumerate(seen) if varied.any()]  # no descent where there is nothing to learn
    signs = np.where(np.concatenate([member[held] for _, held in folds]), 1.0, -1.0)
    fixed = [np.tile(odds, (len(held), 1)) for (_, odds), (_, held) in zip(seen, folds, strict=True)]
    if not live:
        yield np.concatenate(fixed), 0.0
        return
    pairs = [folds.pairs[f] for f in live]
    problem = fold_problem(standardised_rows(X), member.astype(np.float64), member.shape[1], pairs, SigmoidLoss())
    for point in walk_grid(problem, grid):
        for place, f in enumerate(live):
            fixed[f][:, seen[f][0]] = problem.scores(point, place, pairs[place][1])[:, seen[f][0]]
        scores = np.concatenate(fixed)
        yield scores, float(np.logaddexp(0.0, -signs * scores).sum())
