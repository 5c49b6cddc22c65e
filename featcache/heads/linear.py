"""A linear head as one affine map of the raw codes, for the last layer of a network."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier, RidgeClassifierCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC

from ..errors import HeadError
from ..softmax import SoftmaxClassifier
from .auto import AutoClassifier
from .estimators import CentroidClassifier, LDAClassifier
from .sweep import HeadSweep

__all__ = ["linear_form", "normalised_form"]

_LINEAR = (
    LogisticRegression,
    LinearSVC,
    RidgeClassifier,
    RidgeClassifierCV,
    LinearDiscriminantAnalysis,
    SoftmaxClassifier,
    LDAClassifier,
    CentroidClassifier,
    HeadSweep,
)


def linear_form(estimator: Any) -> tuple[np.ndarray, np.ndarray]:
    """Write a fitted linear head as one affine map, its standardisation folded in.

    Parameters
    ----------
    estimator : estimator
        A fitted linear classifier of scikit-learn or featcache, alone or behind StandardScaler steps in a Pipeline.

    Returns
    -------
    W : ndarray of shape (n_classes, n_features), float64
        Weights on raw codes.
    b : ndarray of shape (n_classes,), float64
        Intercepts. ``(x @ W.T + b).argmax(1)`` is the predicted class, and the softmax of the scores gives the
        head's probabilities where it has them. Two classes give the rows -w/2 and w/2.

    Raises
    ------
    HeadError
        A head that is no affine map of the raw codes (knn, svm-rbf, centroid, foreign estimators).

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> W, b = linear_form(LogisticRegression().fit([[0.0], [1.0], [2.0], [3.0]], ["a", "a", "b", "b"]))
    >>> W.shape, b.shape
    ((2, 1), (2,))
    """
    shift, scale, normalised, W, b = _unfold(estimator)
    if normalised:
        raise HeadError(
            "head: L2-normalisation inside makes it no affine map of raw codes; use normalised_form, or fit logreg, "
            "softmax, svm, ridge or lda"
        )
    W = W / scale
    return W, b - W @ shift


def normalised_form(estimator: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Write a fitted head as an affine map behind a centring and L2-normalisation (the head "centroid").

    Parameters
    ----------
    estimator : estimator
        A fitted Pipeline of StandardScaler steps, one Normalizer and a linear classifier.

    Returns
    -------
    shift, scale : ndarray of shape (n_features,)
        The prelude is u = (x - shift) / scale, then u / |u| (a zero row stays zero).
    W : ndarray of shape (n_classes, n_features)
        Weights on the normalised row.
    b : ndarray of shape (n_classes,)
        Intercepts; scores are u @ W.T + b.

    Raises
    ------
    HeadError
        No linear head, or one without L2-normalisation (use `linear_form`).
    """
    shift, scale, normalised, W, b = _unfold(estimator)
    if not normalised:
        raise HeadError("head: expected L2-normalisation inside, got none; use linear_form")
    return shift, scale, W, b


def _unfold(estimator: Any) -> tuple[np.ndarray, np.ndarray, bool, np.ndarray, np.ndarray]:
    """Return (shift, scale, normalised, W, b): standardise, perhaps normalise, then an affine map."""
    if isinstance(estimator, AutoClassifier):
        estimator = estimator.best_estimator_
    steps = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
    W, b = _affine(steps[-1])
    shift, scale, normalised = np.zeros(W.shape[1]), np.ones(W.shape[1]), False
    for step in steps[:-1]:
        if isinstance(step, StandardScaler) and not normalised:
            if step.with_mean:
                shift = shift + scale * step.mean_
            if step.with_std:
                scale = scale * step.scale_
        elif isinstance(step, Normalizer) and step.norm == "l2" and not normalised:
            normalised = True
        elif step not in (None, "passthrough"):
            raise HeadError(f"head: {type(step).__name__} inside cannot be folded into an affine map of the raw codes")
    return shift, scale, normalised, W, b


def _affine(classifier: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercepts with one row per class."""
    if not isinstance(classifier, _LINEAR) or not hasattr(classifier, "coef_"):
        raise HeadError(
            f"head: expected a fitted linear head (logreg, softmax, svm, ridge, lda, a linear sweep), got "
            f"{type(classifier).__name__}"
        )
    W = np.atleast_2d(np.asarray(classifier.coef_, dtype=np.float64))
    b = np.atleast_1d(np.asarray(classifier.intercept_, dtype=np.float64))
    if len(W) == 1:
        W, b = np.vstack([-W, W]) / 2.0, np.concatenate([-b, b]) / 2.0
    elif len(W) == 2:  # a row per class; what both share tells them not apart
        W, b = W - W.mean(axis=0), b - b.mean()
    # liblinear and others may keep one shared intercept of 0.0 when none was fitted.
    return W, np.broadcast_to(b, (len(W),)).copy()
