"""fit(): one head on a FeatureSet, with its settings chosen inside the training rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import HeadError, SplitError
from ..features import FeatureSet
from ..splits import Folds, whole_number
from .choosing import Trained, train, tuning_folds
from .fitted import FittedHead
from .fitting_tasks import fit_task
from .guards import check_guards, guards_of
from .labelled import Rows, in_parts, is_mapped, provenance
from .mapped import train_mapped
from .metrics import check_metric

__all__ = ["fit"]


def fit(
    head: Any,
    data: FeatureSet,
    *,
    metric: str | None = None,
    cv: int = 5,
    seed: int = 0,
    params: Mapping[str, Any] | None = None,
    calibrate: bool = False,
    reject: float | None = None,
    reject_confidence: float | None = None,
    novelty: str | None = None,
    separator: str | None = None,
    target: str | None = None,
) -> FittedHead:
    """Train one head on cached codes.

    With a split column, the val rows choose the settings (cross-validation inside train where there is no val), the
    head is fitted again on train and val, and the test rows are scored once. Without one, settings are chosen by
    cross-validation and the head is fitted on all rows. Groups are kept whole. Of codes that stay on disk
    (``load(in_memory=False)``) a sample of train and val rows chooses, without a val part; a note says so.

    Parameters
    ----------
    head : str or estimator
        A key of `HEADS`, or any scikit-learn classifier, which is cloned and used as it is. With `separator` "logreg",
        "softmax" or "ridge"; with `target` "ridge" or a scikit-learn regressor.
    data : FeatureSet
        Codes and labels; rows without a label are left out.
    metric : str, default=None
        "accuracy" (None), "balanced_accuracy" or "macro_f1". With `separator` "map" (None; mean average precision),
        "subset_accuracy", "micro_f1" or "macro_f1"; with `target` "r2" (None), "mae" or "rmse".
    cv : int, default=5
        Folds; fewer when no class has so many rows. With one row per class settings are fixed. Ridge
        ignores `cv` where there are no groups, views and val rows: alpha is chosen by exact leave-one-out.
    seed : int, default=0
        Seed of the folds and of the head.
    params : mapping, default=None
        Settings to hold fixed, e.g. ``{"C": 0.1}``; others are chosen.
    calibrate : bool, default=False
        Whether `predict_proba` and `predict_scores` give calibrated probabilities: the softmax of the head's scores
        over one temperature, fitted on held-out training rows (see `TemperatureClassifier`). Labels stay the same.
    reject : float, default=None
        An error rate wanted among the answers, e.g. 0.05: `FittedHead.accept` then says which are sure enough (see
        `RejectingClassifier`). Calibrates, too.
    reject_confidence : float, default=None
        Probability, e.g. 0.9, with which the error rate among the answers is at most `reject`; None: the rate counted
        on held-out training rows is, so that the true one is above it about as often as below. Where the rows are too
        few to be so sure, nothing is accepted, and a note says how many it takes. The bound is one for heads fitted on
        the other folds, on images like those to come, none a copy of another; settings chosen on the same folds make
        it somewhat optimistic, fewer training rows somewhat careful.
    novelty : {"mahalanobis", "knn"}, default=None
        Adds a detector of images unlike the training images (`MahalanobisDetector`, `KNeighborsDetector`), which calls
        5 % of the usual ones novel: `FittedHead.novelty`.
    separator : str, default=None
        An image may have several labels, written as one text with this between them, such as ";": "cat;dog" (spaces
        around a label, empty parts, order and repeats do not matter). A lone separator means "none of the labels",
        which is not the same as no text: such a row is left out. Not with `calibrate` and `reject`.
    target : str, default=None
        A number is predicted: that of this column of ``data.columns`` ("label" or "y": the labels themselves). Rows
        where it is empty are left out. Not with `calibrate` and `reject`.

    Returns
    -------
    FittedHead
        With `estimator`, `scores`, the provenance of the codes, and `notes`.

    Raises
    ------
    HeadError
        Unknown head, metric or column, one class only, no labels, a value that is no number, NaN in the codes.
    SplitError
        A fold count below 2, or a seed below 0.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> fitted = fit("lda", FeatureSet(X, y))
    >>> fitted.predict(X[:2]).tolist()
    ['0', '1']
    >>> both = [f"{digit}; even" if digit % 2 == 0 else f"{digit}" for digit in y]
    >>> fit("ridge", FeatureSet(X, both), separator=";").predict(X[:2]).tolist()
    ['0;even', '1']
    >>> line = FeatureSet([[0.0], [1.0], [2.0], [3.0]], columns={"price": [1.0, 3.0, 5.0, 7.0]})
    >>> fit("ridge", line, target="price").predict([[4.0]]).round().tolist()
    [9.0]
    """
    check_guards(calibrate, reject, reject_confidence, novelty)
    for name, value, least in (("cv", cv, 2), ("seed", seed, 0)):
        if not whole_number(value, least):
            raise SplitError(f"{name}: expected a whole number of {least} or more, got {value!r}")
    if params is not None and not isinstance(params, Mapping):
        raise HeadError(f"params: expected a mapping such as {{'C': 0.1}}, got {params!r}")
    if separator is not None or target is not None:
        if calibrate or reject is not None:
            raise HeadError(
                "fit: calibrate and reject are for one label per image; leave them out with separator or target"
            )
        return fit_task(head, data, separator, target, metric=metric, cv=cv, seed=seed, params=params, novelty=novelty)
    metric = "accuracy" if metric is None else metric
    check_metric(metric)
    rows = Rows.of(data, on_disk=True)
    train_rows = rows.training()
    y = rows.y[train_rows]
    if is_mapped(rows.X):
        if rows.images is not None:
            raise HeadError("fit: augmented views as rows need the codes in memory; use load(in_memory=True)")
        if calibrate or reject is not None or novelty is not None:
            raise HeadError("fit: calibrate, reject and novelty need the codes in memory; use load(in_memory=True)")
        trained = train_mapped(head, rows, train_rows, metric=metric, cv=cv, seed=seed, params=params)
        guards: dict[str, Any] = {}
        how, notes = "cv", rows.notes
    else:
        asked = {"calibrate": calibrate, "reject": reject, "novelty": novelty, "reject_confidence": reject_confidence}
        trained, how, guards, notes = _fit_here(rows, train_rows, head, metric, cv, seed, params, asked)
    scores = {} if trained.score is None else {how: trained.score}
    if "test" in rows.parts:
        scores["test"], note = score_rows(trained, rows, rows.parts["test"], metric, known=np.unique(y))
        notes += note
    return FittedHead(
        estimator=trained.estimator,
        classes_=np.unique(y),
        head=trained.name,
        params=trained.params,
        scores=scores,
        metric=metric,
        notes=notes + trained.notes,
        **provenance(data, rows, train_rows),
        **guards,
    )


def _fit_here(
    rows: Rows,
    train_rows: np.ndarray,
    head: Any,
    metric: str,
    cv: int,
    seed: int,
    params: Mapping[str, Any] | None,
    asked: dict[str, Any],
) -> tuple[Trained, str, dict[str, Any], tuple[str, ...]]:
    """Fit on rows in memory; return the head, what validated it, what was asked for beside it, and notes."""
    X, y = rows.X[train_rows], rows.y[train_rows]
    groups = None if rows.groups is None else rows.groups[train_rows]
    folds, how = _folds_for(rows, train_rows, cv, seed)
    trained = train(
        head,
        X,
        y,
        folds,
        metric=metric,
        seed=seed,
        params=params,
        leave_one_out=groups is None and how == "cv",
        groups=groups,
        always_score=True,
    )
    guards, guard_notes = guards_of(trained.estimator, X, y, folds, groups, **asked)
    unit = "rows" if rows.plain().groups is None else "groups"
    notes = rows.notes + (folds.notes if folds else (f"fixed settings: no class has two {unit} to choose on",))
    return trained, how, guards, notes + guard_notes


def _folds_for(rows: Rows, train_rows: np.ndarray, cv: int, seed: int) -> tuple[Folds | None, str]:
    """The val part as the one fold, or cross-validation folds, as positions in `train_rows`."""
    y = rows.y[train_rows]
    if "val" in rows.parts:
        in_val = np.isin(train_rows, rows.parts["val"])
        if len(np.unique(y[~in_val])) < 2:
            raise HeadError("train rows: expected two classes or more, got one; look at the split column")
        return Folds(((np.flatnonzero(~in_val), np.flatnonzero(in_val)),)), "val"
    if len(np.unique(y)) < 2:
        raise HeadError("train rows: expected two classes or more, got one; look at the split column")
    images = rows.standing(train_rows)
    groups = None if rows.groups is None else rows.groups[images]
    if rows.images is not None and groups is not None and len(np.unique(groups)) == len(images):
        groups = None  # nothing but the images themselves
    y, ids = rows.y[images], rows.ids[images]
    folds = tuning_folds(y, rows.X.shape[1], cv=cv, ids=ids, groups=groups, seed=seed)
    return rows.over_views(folds, images, train_rows), "cv"


def score_rows(
    trained: Trained, rows: Rows, test: np.ndarray, metric: str, known: np.ndarray
) -> tuple[float, tuple[str, ...]]:
    """Score a trained head on test rows; a label that training never saw counts as an error, and is noted."""
    predicted = np.concatenate([trained.estimator.predict(rows.X[part]) for part in in_parts(test)])
    classes, codes = np.unique(np.concatenate([rows.y[test], predicted]), return_inverse=True)
    unknown = np.setdiff1d(rows.y[test], known)
    note = (f"{len(unknown)} classes of the test rows are not in training: {', '.join(unknown[:3])}",)
    score = check_metric(metric)(codes[: len(test)], codes[len(test) :])
    return score, note if len(unknown) else ()
