"""FittedHead: a trained head with everything that is needed to use it on new images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.special import expit

from ..errors import HeadError
from ..features import FeatureSet
from ..fingerprint import describe_difference
from .held_out import class_logits, log_softmax
from .label_sets import join_labels, label_scores
from .labelled import as_matrix
from .rejection import confidences

if TYPE_CHECKING:
    import torch
    from PIL import Image

__all__ = ["FittedHead"]


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A trained head, the classes it knows, and the spec of the codes it was trained on.

    Parameters
    ----------
    estimator : estimator
        An ordinary fitted scikit-learn estimator on raw codes; its standardisation is inside.
    classes_ : ndarray of str of shape (n_classes,)
        Labels, sorted; the order of the columns of `predict_scores`. Empty where a number is predicted.
    head : str
        Name of the head; for "auto" the one that was chosen.
    params : dict, default={}
        Chosen settings.
    scores : dict of str to float, default={}
        "test" (touched once), "val" (the validation part that chose the settings) or "cv" (validated inside the
        training rows), as far as they apply.
    metric : str, default="accuracy"
        What the scores measure.
    n_train : int, default=0
        Rows that the estimator was fitted on.
    training_digest : str, default=""
        SHA-256 of the sorted ids of those rows.
    n_features : int, default=0
        Width of the codes.
    spec, locator, node, fingerprint
        Provenance of the codes, as in `FeatureSet`.
    notes : tuple of str, default=()
        What the user should know, one sentence each.
    temperature : float, default=None
        Of calibrated probabilities; None: the estimator's own scores.
    rejection : dict of str to float, default=None
        "wanted" error rate, "threshold" of the largest probability, "coverage" and "error_rate" of the accepted among
        the held-out rows (inf, 0 and NaN where the rate is out of reach); with `reject_confidence` also that
        "confidence" with which the wanted rate holds, the "bound" at the threshold (Clopper and Pearson's limit for
        that many accepted rows, at most the wanted rate; taken by itself it holds with less than that confidence,
        since the threshold was looked for), and the "temperature" of the confidences that are compared. None: nothing
        is rejected.
    detector : estimator, default=None
        Detector of images unlike the training images, on raw codes.
    separator : str, default=""
        What stands between the labels of an image, where it may have several; "" where it has one.
    target : str, default=""
        The column whose number is predicted; "" where labels are.
    """

    estimator: Any
    classes_: np.ndarray
    head: str
    params: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, float] = field(default_factory=dict)
    metric: str = "accuracy"
    n_train: int = 0
    training_digest: str = ""
    n_features: int = 0
    spec: dict[str, Any] | None = None
    locator: dict[str, Any] | None = None
    node: str = ""
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    temperature: float | None = None
    rejection: dict[str, float] | None = None
    detector: Any = None
    separator: str = ""
    target: str = ""

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in self.scores.items())
        what = f"number {self.target!r}" if self.target else f"{len(self.classes_)} classes"
        what = f"{len(self.classes_)} labels" if self.separator else what
        return f"FittedHead({self.head}, {what}, {self.n_features} features, {scores or 'no score'})"

    def predict(self, data: Any) -> np.ndarray:
        """Return the label of each row; its labels joined by the separator, or its number, where the head gives those.

        Parameters
        ----------
        data : FeatureSet or array-like of shape (n_samples, n_features)
            Codes of the spec that the head was trained on.

        Returns
        -------
        ndarray of str of shape (n_samples,)
            Labels. With several per row: those with a score above 0 (a probability above 1/2), joined by the
            separator; a lone separator where there is none. For a number: float64.

        Raises
        ------
        HeadError
            Codes of another spec, node or width; the message says what differs.
        """
        X = self._codes(data)
        if self.target:
            return np.asarray(self.estimator.predict(X), dtype=np.float64).reshape(len(X)) if len(X) else np.zeros(0)
        if not len(X):
            return self.classes_[:0]
        if self.separator:
            return join_labels(label_scores(self.estimator, X) > 0, self.classes_, self.separator)
        return self.estimator.predict(X)

    def predict_labels(self, data: Any) -> list[list[str]]:
        """Return the labels of each row as a list: one, or those that `predict` joins where an image may have several.

        See `predict` for `data` and errors; HeadError, too, for a head that predicts a number.
        """
        if self.target:
            raise HeadError(f"head {self.head!r} predicts the number {self.target!r}, no labels; use predict")
        if not self.separator:
            return [[str(label)] for label in self.predict(data).tolist()]
        X = self._codes(data)
        member = label_scores(self.estimator, X) > 0 if len(X) else np.zeros((0, len(self.classes_)), dtype=bool)
        return [self.classes_[row].tolist() for row in member]

    def predict_scores(self, data: Any) -> np.ndarray:
        """Return one score per class, shape (n_samples, n_classes): probabilities where the head has them.

        Columns follow `classes_`; the highest score is the predicted class, as in `to_module`: two classes have the
        halves -s/2 and s/2 of scikit-learn's one score. With several labels per row each column stands for itself:
        a probability (logreg, softmax), or a score that is above 0 for predicted labels (ridge). See `predict` for
        `data` and errors; HeadError, too, for a head that predicts a number.
        """
        if self.target:
            raise HeadError(f"head {self.head!r} predicts the number {self.target!r}, no scores; use predict")
        if self.temperature is not None or hasattr(self.estimator, "predict_proba"):
            return self.predict_proba(data)
        if not self.separator and not hasattr(self.estimator, "decision_function"):
            raise HeadError(f"head {self.head!r}: {type(self.estimator).__name__} gives no scores; use predict")
        X = self._codes(data)
        if not len(X):
            return np.zeros((0, len(self.classes_)))
        if self.separator:
            return label_scores(self.estimator, X)
        scores = np.asarray(self.estimator.decision_function(X))
        return np.column_stack([-scores, scores]) / 2 if scores.ndim == 1 else scores

    def predict_proba(self, data: Any) -> np.ndarray:
        """Return probabilities of shape (n_samples, n_classes), calibrated where `fit` was asked to calibrate.

        With several labels per row one per label, by itself. HeadError where the head has none.
        """
        if self.target or (self.separator and not hasattr(self.estimator, "predict_proba")):
            other = "fit logreg" if self.separator else "it predicts a number, use predict"
            raise HeadError(f"head {self.head!r} gives no probabilities; {other}")
        if self.temperature is None and not hasattr(self.estimator, "predict_proba"):
            raise HeadError(
                f"head {self.head!r} gives no probabilities; use predict_scores, fit(..., calibrate=True), or logreg"
            )
        X = self._codes(data)
        if len(X) and self.separator:
            return expit(label_scores(self.estimator, X))
        if len(X) and self.temperature is not None:
            return np.exp(log_softmax(class_logits(self.estimator, X) / self.temperature))
        return np.asarray(self.estimator.predict_proba(X)) if len(X) else np.zeros((0, len(self.classes_)))

    def accept(self, data: Any) -> np.ndarray:
        """Return whether each prediction is sure enough for the error rate that `fit` was given as `reject`.

        See `predict` for `data`; bool of shape (n_samples,). HeadError for a head fitted without `reject`,
        and for several labels per image and numbers, which have no such rate.
        """
        if self.separator or self.target:
            other = "has several, use predict_scores" if self.separator else "predicts a number, use predict"
            raise HeadError(f"head {self.head!r}: accept is for heads with one label per image; this one {other}")
        if self.rejection is None:
            raise HeadError(f"head {self.head!r} was fitted without a wanted error rate; use fit(..., reject=0.05)")
        if "temperature" not in self.rejection:
            return self.predict_proba(data).max(axis=1) >= self.rejection["threshold"]
        X = self._codes(data)
        if not len(X):
            return np.zeros(0, dtype=bool)
        return (
            confidences(class_logits(self.estimator, X) / self.rejection["temperature"]) >= self.rejection["threshold"]
        )

    def novelty(self, data: Any) -> np.ndarray:
        """Return how unlike the training rows each row is: above 0 where `fit`'s `novelty` calls it novel.

        See `predict` for `data`; shape (n_samples,). HeadError for a head fitted without `novelty`.
        """
        if self.detector is None:
            raise HeadError(f"head {self.head!r} was fitted without a detector; use fit(..., novelty='mahalanobis')")
        X = self._codes(data)
        return -self.detector.decision_function(X) if len(X) else np.zeros(0)

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """Return the backbone's input for one image, as the codes were made.

        Parameters
        ----------
        image : PIL.Image.Image
            Any mode; the recipe of the spec says how it becomes RGB.

        Returns
        -------
        torch.Tensor of shape (C, H, W)
            float32, normalised.

        Raises
        ------
        HeadError
            The head was trained on codes without a spec.
        """
        if not self.spec or "preprocess" not in self.spec:
            raise HeadError(
                f"head {self.head!r}: its codes came without a spec, so how to preprocess images is unknown"
            )
        import torch

        from ..preprocess import Preprocess

        return torch.from_numpy(np.ascontiguousarray(Preprocess.from_spec(self.spec["preprocess"])(image)))

    def _codes(self, data: Any) -> np.ndarray:
        if isinstance(data, FeatureSet):
            self._check_provenance(data)
            data = data.X
        X = as_matrix(data, "codes")
        if X.shape[1] != self.n_features:
            raise HeadError(
                f"codes: expected {self.n_features} features per row (the head's), got {X.shape[1]}; "
                "extract with the backbone and node the head was trained on"
            )
        return X

    def _check_provenance(self, data: FeatureSet) -> None:
        differs = []
        if self.fingerprint and data.fingerprint and self.fingerprint != data.fingerprint:
            differs = describe_difference(self.spec or {}, data.spec or {}) or ["fingerprint"]
        if self.node and data.node and self.node != data.node:
            differs.append(f"node: {self.node}, not {data.node}")
        if differs:
            raise HeadError(
                f"{data.name or 'FeatureSet'}: codes of another spec than the head's: {'; '.join(differs)}; "
                "extract with the head's spec, or fit a head on these codes"
            )

    def save(self, path: str | Path, *, replace: bool = True) -> Path:
        """Write the head into one file: arrays and JSON, never pickle. See `heads.persistence` for the format.

        Parameters
        ----------
        path : str or Path
            The file; written aside, synced and renamed, so that it is whole or not there.
        replace : bool, default=True
            Whether an existing head may be replaced; any other file never is.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        HeadError
            An estimator that is not among those featcache writes, or a path where no head can be written.
        """
        from .persistence import save_head

        return save_head(self, Path(path), replace=replace)

    @classmethod
    def load(cls, path: str | Path) -> FittedHead:
        """Read a head that `save` wrote; HeadError, in one line, for anything else."""
        from .persistence import load_head

        return load_head(Path(path))
