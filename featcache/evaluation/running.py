"""One head on one draw: fitted on its training rows, asked once about its test rows, and measured."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning

from ..heads.choosing import few_threads, refusals, train
from ..heads.held_out import class_logits
from ..heads.labelled import Rows
from .draws import Draw
from .metrics import Predicted, measure, measures_for
from .protocol import EvalProtocol

__all__ = ["Run", "predictions", "run"]

#: Share of rows whose largest score must be the class that a head says, for its scores to be of classes.
_AGREES = 0.9


@dataclass(frozen=True)
class Run:
    """What one head did on one draw.

    Parameters
    ----------
    values : dict of str to float
        Metrics of the test rows; those that the head gives too little for are left out.
    gains : ndarray of shape (n_test,)
        Contributions of the test rows to the protocol's metric, around it.
    seconds : float
        Wall clock of choosing settings and fitting.
    unconverged : int
        How often a solver stopped early.
    """

    values: dict[str, float]
    gains: np.ndarray
    seconds: float
    unconverged: int


def run(rows: Rows, draw: Draw, head: Any, protocol: EvalProtocol, exact: bool) -> Run:
    """Fit one head on one draw and measure it on the test rows.

    Parameters
    ----------
    rows : Rows
        Labelled rows.
    draw : Draw
        Of these rows.
    head : str or estimator
        As `compare` takes it.
    protocol : EvalProtocol
        Its metric, and how settings are chosen.
    exact : bool
        Whether ridge may choose by leave-one-out.

    Raises
    ------
    HeadError
        The head refused the rows, or gives no scores for the metric.
    """
    predicted, seconds, unconverged = predictions(rows, draw, head, protocol, exact)
    return measured(predicted, protocol.metric, seconds, unconverged)


def measured(predicted: Predicted, metric: str, seconds: float, unconverged: int) -> Run:
    """Return all metrics of predictions, and the contributions to one of them (none where the head cannot give it)."""
    values, gains = {}, np.zeros(0)
    for name in dict.fromkeys((metric, *measures_for(predicted.n_classes))):
        found = measure(name, predicted)
        if found is not None and np.isfinite(found[0]):  # NaN among probabilities is no value
            values[name] = found[0]
            gains = found[1] if name == metric else gains
    return Run(values, gains, seconds, unconverged)


def predictions(rows: Rows, draw: Draw, head: Any, protocol: EvalProtocol, exact: bool) -> tuple[Predicted, float, int]:
    """Fit one head on one draw and ask it about the test rows: what it said, seconds of the fit, early stops."""
    chosen = rows.with_views(draw.train)
    X, y, folds = rows.X[chosen], rows.y[chosen], rows.over_views(draw.folds, draw.train, chosen)
    loo = exact and rows.groups is None and not (draw.shots == "all" and "val" in rows.parts)
    if isinstance(head, str) and head == "mlp":
        import torch  # noqa: F401  (seconds, once per process, and no part of the fit)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = time.perf_counter()
        trained = train(
            head,
            X,
            y,
            folds,
            metric=protocol.chosen_by,
            seed=draw.seed,
            leave_one_out=loo,
            groups=None if rows.groups is None else rows.groups[chosen],
        )
        seconds = time.perf_counter() - start
        with refusals(type(trained.estimator).__name__, X, IndexError, KeyError), few_threads(X):
            predicted = _said(trained.estimator, rows.X[draw.test], rows.y[draw.test], np.unique(rows.y))
    unconverged = sum(issubclass(w.category, ConvergenceWarning) for w in caught)
    for other in caught:
        if not issubclass(other.category, ConvergenceWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return predicted, seconds, unconverged


def _said(estimator: Any, X: np.ndarray, y: np.ndarray, classes: np.ndarray) -> Predicted:
    """What an estimator says of test rows, over all classes of the data, those it does not know among them."""
    said = np.asarray(estimator.predict(X))
    known = np.unique(np.asarray(getattr(estimator, "classes_", said)).astype(classes.dtype, copy=False))
    places = np.searchsorted(classes, known)
    scores = proba = None
    codes = np.searchsorted(classes, said)
    if hasattr(estimator, "predict_proba"):
        proba = _spread(np.asarray(estimator.predict_proba(X)), places, len(classes), 0.0)
        scores = proba  # as they are: logarithms would make ties of the smallest
    if hasattr(estimator, "decision_function"):
        given = _spread(class_logits(estimator, X), places, len(classes), -np.inf)
        # One against one gives as many columns for three classes, which mean something else.
        scores = given if given is not None and np.mean(given.argmax(axis=1) == codes) >= _AGREES else proba
    return Predicted(np.searchsorted(classes, y), codes, scores, proba, len(classes))


def _spread(values: np.ndarray, places: np.ndarray, n_classes: int, missing: float) -> np.ndarray | None:
    """Columns of the known classes put to their places among all; None where they are not one finite one per class."""
    if values.ndim != 2 or values.shape[1] != len(places) or not np.isfinite(values).all():
        return None
    out = np.full((len(values), n_classes), missing)
    out[:, places] = values
    return out
