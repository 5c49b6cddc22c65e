"""Scores of how well codes suit labels, without training a head: LogME, H-score, LEEP. On plain arrays, in float64."""

from __future__ import annotations

import numpy as np
from scipy.special import softmax
from sklearn.covariance import ledoit_wolf

__all__ = ["h_score", "leep", "logme"]

_ROUNDS = 11  # of the fixed point, as in the authors' code
_STILL = 1e-3  # relative change of alpha / beta at which it stands still
#: Eigenvalues below this share of the largest are rounding, not spread.
_RANK = 1e-13


def logme(X: np.ndarray, codes: np.ndarray) -> float | None:
    """Return the logarithm of maximum evidence [1]_: higher is better.

    Each class's indicator is regressed on the codes, weights drawn from N(0, 1/alpha), noise from N(0, 1/beta); both
    are set to maximise the evidence by a fixed point. The score is the mean over the classes of log evidence per row.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Codes.
    codes : ndarray of int of shape (n,)
        Class numbers from 0.

    Returns
    -------
    float or None
        In nats per row; comparable between sets of codes of the same rows only. None of codes without spread.

    References
    ----------
    .. [1] K. You, Y. Liu, J. Wang, M. Long, "LogME: Practical assessment of pre-trained models for transfer learning",
       ICML 2021.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X, codes = rng.normal(size=(60, 4)), np.arange(60) % 2
    >>> logme(X + 3.0 * codes[:, None], codes) > logme(X, codes)
    True
    """
    X = np.asarray(X, dtype=np.float64)
    if not _spreads(X):
        return None
    n, d = X.shape
    Y = (codes[:, None] == np.arange(int(codes.max()) + 1)).astype(np.float64)
    values, vectors = np.linalg.eigh(X.T @ X if n > d else X @ X.T)
    keep = values > max(values[-1], 0.0) * _RANK
    values, vectors = values[keep], vectors[:, keep]
    left = X @ vectors / np.sqrt(values) if n > d else vectors
    squares = np.square(left.T @ Y)  # (r, classes)
    beside = np.maximum(np.square(Y).sum(axis=0) - squares.sum(axis=0), 0.0)
    return float(np.mean([_evidence(values, squares[:, c], beside[c], n) for c in range(Y.shape[1])]))


def _evidence(values: np.ndarray, squares: np.ndarray, beside: float, n: int) -> float:
    """Log evidence per row of one target; `squares` are those of its coordinates, `beside` what lies outside."""
    alpha = beta = 1.0
    for _ in range(_ROUNDS):
        ratio = alpha / beta
        gamma = float((values / (values + ratio)).sum())
        weights = float((values * squares / np.square(values + ratio)).sum())
        errors = float((squares / np.square(1.0 + values / ratio)).sum() + beside)
        alpha, beta = gamma / (weights + 1e-5), (n - gamma) / (errors + 1e-5)
        if abs(alpha / beta - ratio) <= _STILL * ratio:
            break
    ratio = alpha / beta
    weights = float((values * squares / np.square(values + ratio)).sum())
    errors = float((squares / np.square(1.0 + values / ratio)).sum() + beside)
    # Directions without spread have the eigenvalue 0 and drop out of d/2 log alpha - 1/2 log det.
    volume = 0.5 * (len(values) * np.log(alpha) - np.log(alpha + beta * values).sum())
    return float(volume + 0.5 * n * np.log(beta / (2 * np.pi)) - 0.5 * (beta * errors + alpha * weights)) / n


def h_score(X: np.ndarray, codes: np.ndarray) -> float:
    """Return the H-score with a shrunken covariance [1]_: how far class means lie apart in units of the codes' spread.

    tr((1 - a) C⁻¹ B), C the covariance of the codes shrunken by Ledoit and Wolf with weight a, B that of the class
    means. Higher is better.

    Parameters
    ----------
    X, codes
        As in `logme`.

    Returns
    -------
    float
        From 0 to about the number of classes less one. 0 of codes without spread.

    References
    ----------
    .. [1] S. Ibrahim, N. Ponomareva, R. Mazumder, "Newer is not always better: Rethinking transferability metrics,
       their peculiarities, stability and performance", ECML PKDD 2022, after Y. Bao et al., ICIP 2019.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> X, codes = rng.normal(size=(60, 4)), np.arange(60) % 2
    >>> h_score(X + 3.0 * codes[:, None], codes) > h_score(X, codes)
    True
    """
    X = np.asarray(X, dtype=np.float64)
    if not _spreads(X):
        return 0.0
    X = X - X.mean(axis=0)
    scale = float(np.sqrt(np.mean(np.square(X)))) or 1.0  # the score does not depend on it, the rounding does
    X = X / scale
    covariance, shrinkage = ledoit_wolf(X, assume_centered=True)
    counts = np.bincount(codes)
    there = np.flatnonzero(counts)
    means = np.stack([X[codes == c].mean(axis=0) for c in there])
    weighted = means * np.sqrt(counts[there] / len(X))[:, None]
    covariance[np.diag_indices_from(covariance)] += 1e-12 * max(float(np.trace(covariance)), 1e-300) / len(covariance)
    return float((1.0 - shrinkage) * np.sum(weighted.T * np.linalg.solve(covariance, weighted.T)))


def _spreads(X: np.ndarray) -> bool:
    """Whether rows differ by more than rounding."""
    return bool(np.ptp(X, axis=0).max() > _RANK * np.abs(X).max())


def leep(logits: np.ndarray, codes: np.ndarray, *, left_out: bool = False) -> float:
    """Return the log expected empirical prediction [1]_ of a source classifier: 0 at best, higher is better.

    Each source class stands for the target classes its images have; the score is the mean log probability that the
    right class gets that way. It judges a network with its own classifier, not one node.

    Parameters
    ----------
    logits : ndarray of shape (n, n_source_classes)
        What the source classifier gives before its softmax.
    codes : ndarray of int of shape (n,)
        Class numbers from 0.
    left_out : bool, default=False
        Whether no image tells its own label: with 1000 source classes and few images it would tell it well. One image's
        worth of the classes' shares keeps source classes that nobody else uses from saying anything.

    References
    ----------
    .. [1] C. V. Nguyen, T. Hassner, M. Seeger, C. Archambeau, "LEEP: A new measure to evaluate transferability of
       learned representations", ICML 2020.

    Examples
    --------
    >>> leep(np.array([[9.0, 0.0], [9.0, 0.0], [0.0, 9.0]]), np.array([0, 0, 1])) > -0.01
    True
    """
    source = softmax(np.asarray(logits, dtype=np.float64), axis=1)
    joint = np.stack([source[codes == c].sum(axis=0) for c in range(int(codes.max()) + 1)])  # (classes, source)
    total = joint.sum(axis=0)
    if left_out:
        prior = (np.bincount(codes) / len(codes))[codes][:, None]
        given = (joint[codes] - source + prior) / (total - source + 1.0)
    else:
        given = (joint / np.maximum(total, 1e-300))[codes]
    hit = np.einsum("nz,nz->n", source, given)
    return float(np.mean(np.log(np.maximum(hit, 1e-300))))
