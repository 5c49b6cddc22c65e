"""Several labels per image: their text as a matrix of 0 and 1 and back, and the heads that learn such a matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import HeadError
from ..softmax import SoftmaxClassifier
from ..solvers.linear_path import LinearProblem
from ..solvers.losses import SigmoidLoss
from ..solvers.standardised import Standardised
from ..splits import Folds

__all__ = ["as_indicators", "check_separator", "fit_logistic", "join_labels", "label_scores", "logistic_steps", "parts"]

#: As precise as choosing needs it; see `fold_paths`.
_TOL = 1e-5


def check_separator(separator: Any) -> None:
    """Raise HeadError for what cannot part labels."""
    if not isinstance(separator, str) or not separator:
        raise HeadError(f"separator: expected text between the labels of an image such as ';', got {separator!r}")


def parts(text: str, separator: str) -> frozenset[str]:
    """Return the labels in one image's label text.

    Examples
    --------
    >>> sorted(parts(" b;a ;; a", ";")), sorted(parts(";", ";"))
    (['a', 'b'], [])
    """
    return frozenset(stripped for part in text.split(separator) if (stripped := part.strip()))


def as_indicators(texts: np.ndarray, separator: str) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels that occur, sorted, and which row has which: bool of shape (n_samples, n_labels)."""
    distinct, which = np.unique(np.asarray(texts, dtype=np.str_), return_inverse=True)
    sets = [parts(text, separator) for text in distinct.tolist()]
    names = sorted(frozenset().union(*sets))
    place = {name: j for j, name in enumerate(names)}
    table = np.zeros((len(sets), len(names)), dtype=bool)
    for i, labels in enumerate(sets):
        table[i, [place[label] for label in labels]] = True
    return np.asarray(names, dtype=np.str_), table[which]


def join_labels(member: np.ndarray, labels: np.ndarray, separator: str) -> np.ndarray:
    """Return each row's labels as one text, as `as_indicators` reads it; a row without any is a lone separator.

    Examples
    --------
    >>> join_labels(np.array([[True, True], [False, False]]), np.array(["a", "b"]), ";").tolist()
    ['a;b', ';']
    """
    texts = [separator.join(labels[row].tolist()) or separator for row in member]
    return np.asarray(texts, dtype=np.str_)


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
    weight = np.zeros((len(live), len(X)))
    for place, f in enumerate(live):
        weight[place, folds.pairs[f][0]] = 1.0
    signs = np.where(np.concatenate([member[held] for _, held in folds]), 1.0, -1.0)
    fixed = [np.tile(odds, (len(held), 1)) for (_, odds), (_, held) in zip(seen, folds, strict=True)]
    if not live:
        yield np.concatenate(fixed), 0.0
        return
    at_hand = Standardised.of(X, np.ones(len(X))).at_hand()
    problem = LinearProblem(at_hand, member.astype(np.float64), member.shape[1], weight, SigmoidLoss())
    for point in problem.walk([1.0 / (C * problem.total) for C in grid], tol=_TOL):
        for place, f in enumerate(live):
            fixed[f][:, seen[f][0]] = problem.scores(point, place, folds.pairs[f][1])[:, seen[f][0]]
        scores = np.concatenate(fixed)
        yield scores, float(np.logaddexp(0.0, -signs * scores).sum())
