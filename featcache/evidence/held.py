"""What a head says of images that it was not trained on: what confusion and calibration are read from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ..errors import HeadError
from ..evaluation import EvalProtocol, Evaluation, evaluate
from ..features import FeatureSet
from ..heads.calibration import TemperatureClassifier
from ..heads.choosing import head_name
from ..heads.metrics import calibration_error
from ..splits import has_named_splits

__all__ = ["HeldOut", "held_out"]


@dataclass(frozen=True)
class HeldOut:
    """An Evaluation in which each image was tested once at most, with probabilities where there can be some.

    Parameters
    ----------
    evaluation : Evaluation
        Its scores are the head's probabilities. Of a head that gives only scores, their softmax at the temperature that
        suits held-out training images; None for a head without scores.
    how : str
        How images were held out.
    """

    evaluation: Evaluation
    how: str

    @property
    def head(self) -> str:
        """Which head."""
        return self.evaluation.head

    @property
    def ids(self) -> np.ndarray:
        """The images that were tested, (n,)."""
        return self.evaluation.ids

    @property
    def y(self) -> np.ndarray:
        """Their labels, (n,)."""
        return self.evaluation.y

    @property
    def predicted(self) -> np.ndarray:
        """What the head says of them, (n,)."""
        return self.evaluation.predicted

    @property
    def right(self) -> np.ndarray:
        """Where both are the same, (n,)."""
        return self.y == self.predicted

    @property
    def confidence(self) -> np.ndarray | None:
        """Probability of the predicted class, (n,)."""
        return None if self.evaluation.scores is None else self.evaluation.scores.max(axis=1)

    @property
    def calibration_error(self) -> float | None:
        """Expected calibration error over all images at once (`featcache.heads.metrics.calibration_error`)."""
        scores, classes = self.evaluation.scores, np.asarray(self.evaluation.classes)
        return None if scores is None else calibration_error(np.searchsorted(classes, self.y), scores)


def held_out(data: FeatureSet, head: Any = "ridge", *, cv: int = 3, folds: int = 5) -> HeldOut:
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
    >>> found.evaluation.scores.shape, bool(found.right.mean() > 0.9)
    ((150, 3), True)
    """
    named = has_named_splits(data.splits)
    splitter = "named" if named else "k-fold"
    dealt = EvalProtocol(seeds=1, cv=cv, splitter=splitter, n_folds=folds).split(data)
    settings: dict[str, Any] = {"seeds": 1, "cv": cv, "splitter": splitter, "n_folds": folds}
    found = evaluate(data, head, **settings)
    if found.scores is None:
        try:
            found = evaluate(data, TemperatureClassifier(head, cv=cv), **settings)
        except HeadError:  # it names classes only
            pass
    if named:
        how = f"the {len(found.ids)} images of the data's own test part, trained on the others"
    else:
        how = f"every image once, in {len(dealt)} folds" + (" of whole groups" * (data.groups is not None))
    return HeldOut(replace(found, head=head_name(head)), how)
