"""What a head says of images that it was not trained on: what confusion, calibration and suspects are read from."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..features import FeatureSet
from ..heads.calibration import fit_temperature
from ..heads.choosing import head_name, train, tuning_folds
from ..heads.held_out import class_logits, held_out_logits, log_softmax
from ..heads.labelled import Rows
from ..splits import k_fold

__all__ = ["HeldOut", "held_out"]


@dataclass(frozen=True)
class HeldOut:
    """Predictions of images by heads that never saw them.

    Parameters
    ----------
    head : str
        Which head.
    classes : list of str
        The columns of `scores`.
    ids, y, predicted : ndarray of str of shape (n,)
        The images that were tested, their labels, and what the head says.
    scores : ndarray of shape (n, n_classes) or None
        Probabilities as the head gives them. Of a head that gives scores, their softmax at the temperature that suits
        held-out training images; None for a head without scores.
    how : str
        How images were held out.
    notes : tuple of str, default=()
        What the reader should know.
    """

    head: str
    classes: list[str]
    ids: np.ndarray
    y: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray | None
    how: str
    notes: tuple[str, ...] = field(default=())

    @property
    def confidence(self) -> np.ndarray | None:
        """Probability of the predicted class, (n,)."""
        return None if self.scores is None else self.scores.max(axis=1)

    @property
    def of_label(self) -> np.ndarray | None:
        """Probability of the given label, (n,); 0 for a class that was not trained on."""
        if self.scores is None:
            return None
        column = {name: i for i, name in enumerate(self.classes)}
        at = np.asarray([column.get(label, -1) for label in self.y.tolist()])
        return np.where(at >= 0, self.scores[np.arange(len(at)), at], 0.0)


def held_out(data: FeatureSet, head: Any = "ridge", *, cv: int = 3, folds: int = 5, seed: int = 0) -> HeldOut:
    """Predict images by a head that was trained without them.

    Where the data name test rows, these are predicted, once; else all images are, in folds (groups stay whole).
    Settings are chosen within the training rows of each.

    Parameters
    ----------
    data : FeatureSet
        Labelled codes.
    head : str or estimator, default="ridge"
        As for `featcache.fit`.
    cv : int, default=3
        Folds for choosing settings.
    folds : int, default=5
        Folds of the images, where no test rows are named.
    seed : int, default=0
        Seed of both.

    Returns
    -------
    HeldOut

    Raises
    ------
    HeadError, SplitError
        Data that no head can be trained on, or that cannot be divided.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> found = held_out(FeatureSet(X, y), "lda")
    >>> found.scores.shape, bool((found.predicted == found.y).mean() > 0.9)
    ((150, 3), True)
    """
    rows = Rows.of(data)
    plain, images = rows.plain(), rows.standing(np.arange(len(rows.y)))
    notes: tuple[str, ...] = ()
    if rows.parts:
        pairs = [(plain.training(), plain.parts["test"])]
        how = f"the {len(pairs[0][1])} images of the data's own test part, trained on the others"
    else:
        dealt = k_fold(plain.y, folds, ids=plain.ids, groups=plain.groups, seed=seed)
        pairs, notes = list(dealt), dealt.notes
        how = f"every image once, in {len(pairs)} folds" + (" of whole groups" * (plain.groups is not None))
    classes = np.unique(plain.y)
    found = [_predicted(rows, images[kept], images[held], classes, head, cv, seed) for kept, held in pairs]
    tested = np.concatenate([images[held] for _, held in pairs])
    scores = None if any(s is None for _, s in found) else np.concatenate([s for _, s in found if s is not None])
    predicted = np.concatenate([p for p, _ in found])
    order = np.argsort(rows.ids[tested], kind="stable")
    return HeldOut(
        head_name(head),
        [str(c) for c in classes],
        rows.ids[tested][order],
        rows.y[tested][order],
        predicted[order],
        None if scores is None else scores[order],
        how,
        (*rows.notes, *notes),
    )


def _predicted(
    rows: Rows, kept: np.ndarray, held: np.ndarray, classes: np.ndarray, head: Any, cv: int, seed: int
) -> tuple[np.ndarray, np.ndarray | None]:
    kept = kept[np.argsort(rows.ids[kept], kind="stable")]
    viewed = rows.with_views(kept)
    groups = None if rows.groups is None else rows.groups[kept]
    folds = tuning_folds(rows.y[kept], rows.X.shape[1], cv=cv, ids=rows.ids[kept], groups=groups, seed=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they warn of, a comparison notes
        X, y, folds = rows.X[viewed], rows.y[viewed], rows.over_views(folds, kept, viewed)
        groups = None if rows.groups is None else rows.groups[viewed]
        trained = train(head, X, y, folds, seed=seed, groups=groups).estimator
        predicted = np.asarray(trained.predict(rows.X[held]))
        own = np.asarray(trained.classes_).astype(classes.dtype)
        if hasattr(trained, "predict_proba"):
            found = np.asarray(trained.predict_proba(rows.X[held]), dtype=np.float64)
        elif hasattr(trained, "decision_function"):
            at, logits = held_out_logits(trained, X, y, own, folds, groups)
            temperature = fit_temperature(logits, np.searchsorted(own, y[at])) if len(at) else 1.0
            found = np.exp(log_softmax(class_logits(trained, rows.X[held]) / temperature))
        else:
            return predicted, None
    scores = np.zeros((len(held), len(classes)))
    scores[:, np.searchsorted(classes, own)] = found
    return predicted, scores
