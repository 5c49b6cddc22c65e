"""Labels that heads which never saw the row do not believe: by the likelihood of held-out probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.pipeline import Pipeline

from ..errors import FeatcacheError
from ..heads.calibration import fit_temperature
from ..heads.choosing import tuning_folds
from ..heads.held_out import fitted_member, held_out_logits, log_softmax
from .near import whitened
from .tails import excess

__all__ = ["Suspects", "doubted", "wrong_labels"]

#: From so many rows on heads are trained on the largest directions of the codes.
_MANY = 20_000
#: From so many rows on settings chosen on all of them are kept in the folds: one label among so many moves none.
_SETTLED = 1_000
#: A label is reported from this score on.
_DOUBT = 0.5
#: Heads know something when they explain labels better than the shares of the classes do, by so many standard errors.
_KNOWN = 3.0
#: There are wrong labels when twice the logarithm of the likelihood ratio is above this (without any: 1 set in 40).
_CLEAR = 4.0


@dataclass(frozen=True)
class Suspects:
    """Labels in doubt.

    Parameters
    ----------
    rows : ndarray of int of shape (n,)
        Row numbers, the most doubtful first.
    score : ndarray of shape (n,)
        0.5 to 1: the share of wrong ones among labels so unlikely, by the model of `wrong_labels`. Not a measured
        chance: the model knows mistakes drawn at random, and one temperature for all classes.
    label : ndarray of str of shape (n,)
        What the heads would say instead.
    expected : float, default=0.0
        How many of them are wrong by the same model: the sum of the scores.
    notes : tuple of str
        What could not be examined.
    examined : bool, default=False
        Whether labels were.
    """

    rows: np.ndarray
    score: np.ndarray
    label: np.ndarray
    expected: float = 0.0
    notes: tuple[str, ...] = ()
    examined: bool = False


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
    that look alike it doubts many. Here the likelihood decides (`wrong_labels`): a label is drawn from
    softmax(scores / T) with chance 1 - e, and from the classes that this one is not with chance e; T and e are those
    of the greatest likelihood over all rows. So a row between two classes that are often confused is not in doubt.
    A few labels far from all others count too, where the classes lie apart (`tails.excess` of their margins).
    Nothing is reported where e = 0 explains the labels as well, and where the heads know so little of the labels that
    e means nothing. Where one class is always mistaken for the same other, heads learn that, and fewer are found.
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
            member = member if len(y) < _SETTLED else _settled(member)
            rows, logits = held_out_logits(member, X, y, classes, parts, groups)
            total[rows] += log_softmax(logits / fit_temperature(logits, codes[rows]))
    except FeatcacheError as error:
        return _none(f"labels not examined: {error}")
    if len(rows) < 20:
        return _none("labels not examined: fewer than 20 rows could be held out")
    logits = total[rows]
    if not _known(logits, codes[rows]):
        return _none("labels not examined: heads do not know them better than the shares of the classes do")
    score = wrong_labels(logits, codes[rows])[1]
    if not (score >= _DOUBT).any():
        score = _apart(logits, codes[rows])
    order = np.lexsort((ids[rows], -score))
    order = order[score[order] >= _DOUBT]
    left = len(y) - len(rows)
    notes = (f"{left} label{'' if left == 1 else 's'} not examined: {_why(y, rows)}",) if left else ()
    return Suspects(
        rows[order], score[order], classes[logits[order].argmax(axis=1)], float(score[order].sum()), notes, True
    )


def _why(y: np.ndarray, rows: np.ndarray) -> str:
    """Say why only some rows were held out."""
    few = "no other row (or group) of their class"
    left = np.setdiff1d(np.arange(len(y)), rows)
    return few if not np.isin(y[left], y[rows]).all() else "a part of so large a set was held out"


def _settled(member: Any) -> Any:
    """Return a clone with the number of neighbours that was chosen: choosing it in each fold is most of the time."""
    last = member[-1] if isinstance(member, Pipeline) else member
    if not hasattr(last, "n_neighbors_"):
        return member
    name = f"{member.steps[-1][0]}__" if isinstance(member, Pipeline) else ""
    chosen = {f"{name}n_neighbors": last.n_neighbors_, f"{name}temperature": last.temperature_}
    return clone(member).set_params(**chosen)


def _apart(logits: np.ndarray, codes: np.ndarray) -> np.ndarray:
    """Score labels that stand far from all others: a few wrong ones, where classes lie apart.

    There any few mistakes are explained by a high temperature too, since no row lies between the classes; so the
    likelihood cannot tell. But then they have no neighbours among the margins by which other classes lead.
    """
    own = np.arange(len(codes)), codes
    others = logits.copy()
    others[own] = -np.inf
    lead = others.max(axis=1) - logits[own]
    lead[~np.isfinite(lead)] = lead[np.isfinite(lead)].max(initial=0.0)
    judged = excess(lead)
    found = judged.found & (lead > 0)
    return np.where(found, max(0.0, 1.0 - judged.false / max(1, int(found.sum()))), 0.0)


def _known(logits: np.ndarray, codes: np.ndarray) -> bool:
    """Say whether held-out scores have a clearly smaller log loss than the shares of the classes."""
    own = np.arange(len(codes)), codes
    shares = np.bincount(codes, minlength=logits.shape[1]) / len(codes)
    gain = log_softmax(logits / fit_temperature(logits, codes))[own] - np.log(shares[codes])
    return float(gain.mean()) > _KNOWN * max(float(gain.std()) / np.sqrt(len(gain)), 1e-9)


def _none(*notes: str) -> Suspects:
    return Suspects(np.zeros(0, dtype=np.intp), np.zeros(0), np.zeros(0, dtype=np.str_), 0.0, notes)


def wrong_labels(logits: np.ndarray, codes: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the share of wrong labels of the greatest likelihood, and of each label how likely it is one of them.

    Both are 0 where no wrong labels at all explain the given ones as well, but for chance. A likelihood of 0 is also
    given to labels that the scores put first.

    Parameters
    ----------
    logits : ndarray of shape (n, c)
        Held-out scores whose softmax is a probability, up to a temperature; -inf for classes not in question.
    codes : ndarray of int of shape (n,)
        Column of the given label.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> margin = 6 * rng.normal(size=300)
    >>> codes = (rng.random(300) > 1 / (1 + np.exp(-margin))).astype(int)
    >>> codes[:30] = 1 - codes[:30]
    >>> share, score = wrong_labels(np.column_stack([margin, -margin]) / 2, codes)
    >>> round(share, 1), bool((score[:30] > 0.5).mean() > 0.5), int((score[30:] > 0.5).sum()) < 5
    (0.1, True, True)
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

    def none(place: np.ndarray) -> float:
        return float(-np.log(given(np.append(place, -12.0))[1] + 1e-300).mean())

    found = [minimize(loss, [start, -3.0], method="Nelder-Mead") for start in (-2.5, -1.0, 0.0)]
    best = min(found, key=lambda each: float(each.fun))
    clean = min(float(minimize(none, [start], method="Nelder-Mead").fun) for start in (-1.0, 0.0, float(best.x[0])))
    if 2.0 * n * (clean - float(best.fun)) < _CLEAR:
        return 0.0, np.zeros(n)
    share, right = given(best.x)
    wrong = share * (1.0 - right) / (c - 1)
    score = wrong / np.maximum((1.0 - share) * right + wrong, 1e-300)
    return share, np.where(logits.argmax(axis=1) != codes, score, 0.0)
