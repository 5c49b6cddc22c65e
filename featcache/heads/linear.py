"""A linear head as one affine map of the raw codes, for the last layer of a network."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifier, RidgeClassifierCV
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from sklearn.svm import LinearSVC

from ..errors import HeadError
from ..softmax import SoftmaxClassifier, SoftmaxClassifierCV
from .auto import AutoClassifier
from .closed_forms import CentroidClassifier, IncrementalRidgeClassifier, LDAClassifier
from .preprocessing import CodeScaler, ShrunkWhitener, SignedPower
from .regression import IncrementalRidge
from .searching import SearchedHead
from .selecting import HeadToToeClassifier
from .sweep import HeadSweep
from .views import ViewsClassifier

__all__ = ["NetworkForm", "linear_form", "network_form", "normalised_form"]

_LINEAR = (
    LogisticRegression,
    LinearSVC,
    RidgeClassifier,
    RidgeClassifierCV,
    LinearDiscriminantAnalysis,
    SoftmaxClassifier,
    SoftmaxClassifierCV,
    LDAClassifier,
    CentroidClassifier,
    IncrementalRidgeClassifier,
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
        head's probabilities where it has them. Two classes give the rows -w/2 and w/2. With several labels per row
        each has a row of its own, and is predicted where its score is above 0; a number has one row.

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
    form = network_form(estimator)
    if form.power != 1.0:
        raise HeadError(
            "head: a power of the codes inside makes it no affine map of raw codes; use to_module, or fit logreg, "
            "softmax, svm, ridge or lda"
        )
    if form.unit:
        raise HeadError(
            "head: L2-normalisation inside makes it no affine map of raw codes; use normalised_form, or fit logreg, "
            "softmax, svm, ridge or lda"
        )
    W = form.weight / form.scale
    return W, form.bias - W @ form.shift


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
    form = network_form(estimator)
    if not form.unit or form.power != 1.0:
        raise HeadError("head: expected L2-normalisation inside and no power, got another; use linear_form")
    return form.shift, form.scale, form.weight, form.bias


@dataclass(frozen=True)
class NetworkForm:
    """A head as a few layers: u = (x - shift) / scale, sign(u) |u|^power, perhaps u / |u|, then an affine map.

    Parameters
    ----------
    shift, scale : ndarray of shape (n_features,)
        Applied first.
    power : float
        1.0 where there is none.
    unit : bool
        Whether rows are brought to length one.
    weight : ndarray of shape (n_classes, n_features), float64
    bias : ndarray of shape (n_classes,), float64
    """

    shift: np.ndarray
    scale: np.ndarray
    power: float
    unit: bool
    weight: np.ndarray
    bias: np.ndarray


def network_form(estimator: Any) -> NetworkForm:
    """Write a fitted head as the layers of `NetworkForm`; HeadError where it is something else."""
    if isinstance(estimator, (AutoClassifier, SearchedHead)):
        return network_form(estimator.best_estimator_)
    if isinstance(estimator, HeadToToeClassifier):
        return _spread(estimator)
    if isinstance(estimator, ViewsClassifier):
        return _repeated(estimator)
    steps = [step for _, step in estimator.steps] if isinstance(estimator, Pipeline) else [estimator]
    W, b = _affine(steps[-1])
    before = [part for step in steps[:-1] for part in _parts(step)]
    while before and not isinstance(before[-1], (Normalizer, SignedPower)):
        W, b = _folded(before.pop(), W, b)
    unit, power = False, 1.0
    if before and isinstance(before[-1], Normalizer):
        unit, _ = True, before.pop()
    if before and isinstance(before[-1], SignedPower):
        power = float(before.pop().alpha)
    width = W.shape[1]
    shift, scale = np.zeros(width), np.ones(width)
    for step in before:
        if not isinstance(step, StandardScaler):
            raise HeadError(f"head: {type(step).__name__} inside cannot be folded into an affine map of the raw codes")
        shift = shift + scale * (step.mean_ if step.with_mean else 0.0)
        scale = scale * (step.scale_ if step.with_std else 1.0)
    return NetworkForm(shift, scale, power, unit, W, b)


def _parts(step: Any) -> list[Any]:
    """The elementary steps that a step stands for."""
    if step in (None, "passthrough"):
        return []
    if isinstance(step, CodeScaler):
        power = [SignedPower(step.power)] if step.power != 1.0 else []
        norm = [Normalizer()] if step.norm == "l2" else []
        return [*power, *norm, *([] if step.scaler_ is None else [step.scaler_])]
    if isinstance(step, SignedPower) and step.alpha == 1.0:
        return []
    if isinstance(step, (StandardScaler, ShrunkWhitener, SignedPower)) or (
        isinstance(step, Normalizer) and step.norm == "l2"
    ):
        return [step]
    raise HeadError(f"head: {type(step).__name__} inside cannot be folded into an affine map of the raw codes")


def _folded(step: Any, W: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The affine map of a step followed by another affine map."""
    if isinstance(step, ShrunkWhitener):
        W = (W / step.scale_) @ step.components_
        return W, b - W @ step.mean_
    W = W / step.scale_ if step.with_std else W
    return W, b - W @ step.mean_ if step.with_mean else b


def _spread(selected: HeadToToeClassifier) -> NetworkForm:
    """Weights of the selected columns, zero elsewhere."""
    if selected.normalise:
        raise HeadError("head: blocks normalised inside make it no affine map of raw codes; normalise with join_layers")
    W, b = linear_form(selected.best_estimator_)
    width = selected.n_features_in_
    whole = np.zeros((len(W), width))
    whole[:, selected.selected_] = W
    return NetworkForm(np.zeros(width), np.ones(width), 1.0, False, whole, b)


def _repeated(views: ViewsClassifier) -> NetworkForm:
    """The mean over the views of one head's scores; of an affine map that is the map of their mean."""
    form, n = network_form(views.best_estimator_), views.n_views
    if n == 1:
        return form
    W, b = linear_form(views.best_estimator_)
    width = views.n_features_in_
    return replace(form, shift=np.zeros(width), scale=np.ones(width), weight=np.tile(W / n, n), bias=b)


def _affine(classifier: Any) -> tuple[np.ndarray, np.ndarray]:
    """Weights and intercepts with one row per class."""
    if not isinstance(classifier, (*_LINEAR, IncrementalRidge)) or not hasattr(classifier, "coef_"):
        raise HeadError(
            f"head: expected a fitted linear head (logreg, softmax, svm, ridge, lda, a linear sweep), got "
            f"{type(classifier).__name__}; fit one of these"
        )
    W = np.atleast_2d(np.asarray(classifier.coef_, dtype=np.float64))
    b = np.atleast_1d(np.asarray(classifier.intercept_, dtype=np.float64))
    if isinstance(classifier, IncrementalRidge) or getattr(classifier, "multilabel_", False):
        return W, b  # a row per label or number, each by itself
    if len(W) == 1:
        W, b = np.vstack([-W, W]) / 2.0, np.concatenate([-b, b]) / 2.0
    elif len(W) == 2:  # a row per class; what both share tells them not apart
        W, b = W - W.mean(axis=0), b - b.mean()
    # liblinear and others may keep one shared intercept of 0.0 when none was fitted.
    return W, np.broadcast_to(b, (len(W),)).copy()
