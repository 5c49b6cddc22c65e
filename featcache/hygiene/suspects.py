"""Labels that heads which never saw the row do not believe: by the likelihood of held-out probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize

from ..errors import FeatcacheError
from ..heads.calibration import fit_temperature
from ..heads.choosing import tuning_folds
from ..heads.held_out import fitted_member, held_out_logits, log_softmax
from .near import whitened

__all__ = ["Suspects", "doubted", "wrong_labels"]

#: From so many rows on heads are trained on the largest directions of the codes.
_MANY = 20_000
#: A label is reported when it is wrong with at least this chance.
_DOUBT = 0.5


@dataclass(frozen=True)
class Suspects:
    """Labels in doubt.

    Parameters
    ----------
    rows : ndarray of int of shape (n,)
        Row numbers, the most doubtful first.
    chance : ndarray of shape (n,)
        That the label is wrong, by the likelihood or by the count of confident learning: the greater of both.
    label : ndarray of str of shape (n,)
        What the heads would say instead.
    expected : float, default=0.0
        How many of them are wrong by the likelihood alone: none, where the doubts fit how the classes are confused.
    notes : tuple of str
        What could not be examined.
    """

    rows: np.ndarray
    chance: np.ndarray
    label: np.ndarray
    expected: float = 0.0
    notes: tuple[str, ...] = ()


def doubted(
    X: np.ndarray,
    y: np.ndarray,
    ids: np.ndarray,
    groups: np.ndarray | None,
    *,
    heads: Sequence[str] = ("logreg", "knn"),
    folds: int = 5,
    seed: int = 0,
) -> Suspects:
    """Find labels that are probably wrong.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Codes of the labelled rows, in the order of their ids.
    y, ids : ndarray of str of shape (n,)
        Labels and names.
    groups : ndarray of shape (n,) or None
        Rows that are held out together, copies of one image above all: a copy would vouch for its wrong label.
    heads : sequence of str, default=("logreg", "knn")
        Their probabilities are multiplied, and calibrated together.
    folds : int, default=5
        Folds.
    seed : int, default=0
        Of the folds.

    Returns
    -------
    Suspects

    Notes
    -----
    As in confident learning (Northcutt, Jiang and Chuang, JAIR 2021, arXiv 1911.00068) labels are compared with
    held-out probabilities. But which rows it counts also depends on how often classes are confused: of two classes
    that look alike it doubts many. Here the likelihood decides: a label is drawn from softmax(scores / T) with
    chance 1 - e, and from the classes that this one is not with chance e; T and e are those of the greatest
    likelihood over all rows, and the chance that a given label is a wrong one follows by Bayes' rule. So a row
    between two classes that are often confused is not in doubt, and a set without wrong labels has e near 0. Where
    one class is always mistaken for the same other, heads learn that, and the likelihood sees confusion; so the
    same rule is applied with the count of confident learning in the place of e, and the greater chance stands.
    """
    classes, codes = np.unique(y, return_inverse=True)
    if len(classes) < 2:
        return _none()
    if len(X) > _MANY:
        X = whitened(X)
    try:
        parts = tuning_folds(y, X.shape[1], cv=folds, ids=ids, groups=groups, seed=seed)
        total, rows = np.zeros((len(y), len(classes))), np.zeros(0, dtype=np.intp)
        for head in heads:
            member = fitted_member(head, X, y, parts, seed, groups)
            rows, logits = held_out_logits(member, X, y, classes, parts, groups)
            total[rows] += log_softmax(logits / fit_temperature(logits, codes[rows]))
    except FeatcacheError as error:
        return _none(f"labels not examined: {error}")
    if len(rows) < 20:
        return _none("labels not examined: fewer than 20 rows could be held out")
    logits = total[rows]
    likely = wrong_labels(logits, codes[rows])[1]
    disputed = logits.argmax(axis=1) != codes[rows]
    chance = np.where(disputed, np.maximum(likely, _counted(logits, codes[rows])), 0.0)
    order = np.lexsort((ids[rows], -chance))
    order = order[chance[order] >= _DOUBT]
    left = len(y) - len(rows)
    notes = (f"{left} labels not examined: no other row (or group) of their class",) if left else ()
    return Suspects(
        rows[order], chance[order], classes[logits[order].argmax(axis=1)], float(likely[order].sum()), notes
    )


def _none(*notes: str) -> Suspects:
    return Suspects(np.zeros(0, dtype=np.intp), np.zeros(0), np.zeros(0, dtype=np.str_), 0.0, notes)


def wrong_labels(logits: np.ndarray, codes: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the share of wrong labels of the greatest likelihood, and the chance of each to be wrong.

    Parameters
    ----------
    logits : ndarray of shape (n, c)
        Held-out scores whose softmax is a probability, up to a temperature; -inf for classes not in question.
    codes : ndarray of int of shape (n,)
        Column of the given label.

    Examples
    --------
    >>> share, chance = wrong_labels(np.log([[0.9, 0.1]] * 90 + [[0.1, 0.9]] * 10), np.zeros(100, dtype=int))
    >>> round(share, 2), np.flatnonzero(chance > 0.5).tolist() == list(range(90, 100))
    (0.1, True)
    """
    n, c = logits.shape
    logits = logits - logits.max(axis=1, keepdims=True)
    finite = logits[np.isfinite(logits)]
    logits = np.where(np.isfinite(logits), logits / (float(np.std(finite)) or 1.0), -np.inf)
    own = np.arange(n), codes

    def given(place: np.ndarray) -> tuple[float, np.ndarray]:
        """The share e, and the probability of each given label by the softmax alone."""
        cold = float(np.clip(place[0], -6.0, 6.0))  # beyond that the softmax no longer changes
        share = float(1.0 / (1.0 + np.exp(-np.clip(place[1], -12.0, 0.0))))  # at most half of the labels
        return share, np.exp(log_softmax(logits / np.exp(cold))[own])

    def loss(place: np.ndarray) -> float:
        share, right = given(place)
        return float(-np.log((1.0 - share) * right + share * (1.0 - right) / (c - 1) + 1e-300).mean())

    found = [minimize(loss, [start, -3.0], method="Nelder-Mead") for start in (-2.5, -1.0, 0.0)]
    share, right = given(min(found, key=lambda each: float(each.fun)).x)
    wrong = share * (1.0 - right) / (c - 1)
    chance = wrong / np.maximum((1.0 - share) * right + wrong, 1e-300)
    return share, np.where(logits.argmax(axis=1) != codes, chance, 0.0)


def _counted(logits: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """The chance of each label to be wrong when confident learning counts how many are."""
    n, c = logits.shape
    shares = np.exp(log_softmax(logits / fit_temperature(logits, codes)))
    own = shares[np.arange(n), codes]
    mean = np.bincount(codes, own, minlength=c) / np.maximum(np.bincount(codes, minlength=c), 1)
    sure = np.where(shares >= np.maximum(mean, 1e-12), shares, -1.0)
    elsewhere = (sure.max(axis=1) > 0) & (sure.argmax(axis=1) != codes)
    return np.minimum(1.0, float(elsewhere.mean()) / (c - 1) / np.maximum(own, 1e-12))
