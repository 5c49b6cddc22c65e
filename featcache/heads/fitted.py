"""fit() and FittedHead: a trained head with everything that is needed to use it on new images."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import HeadError, SplitError
from ..features import FeatureSet
from ..fingerprint import describe_difference
from ..splits import Folds, has_named_splits, named_splits, whole_number
from .choosing import Trained, train, tuning_folds
from .guards import check_guards, guards_of
from .held_out import class_logits, log_softmax
from .metrics import check_metric

if TYPE_CHECKING:
    import torch
    from PIL import Image

__all__ = ["FittedHead", "Rows", "fit"]


@dataclass(frozen=True, eq=False)
class FittedHead:
    """A trained head, the classes it knows, and the spec of the codes it was trained on.

    Parameters
    ----------
    estimator : estimator
        An ordinary fitted scikit-learn estimator on raw codes; its standardisation is inside.
    classes_ : ndarray of str of shape (n_classes,)
        Labels, sorted; the order of the columns of `predict_scores`.
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
        the held-out rows (inf, 0 and NaN where the rate is out of reach); None: nothing is rejected.
    detector : estimator, default=None
        Detector of images unlike the training images, on raw codes.
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

    def __repr__(self) -> str:
        scores = ", ".join(f"{name} {value:.4f}" for name, value in self.scores.items())
        return (
            f"FittedHead({self.head}, {len(self.classes_)} classes, {self.n_features} features, {scores or 'no score'})"
        )

    def predict(self, data: Any) -> np.ndarray:
        """Return the label of each row.

        Parameters
        ----------
        data : FeatureSet or array-like of shape (n_samples, n_features)
            Codes of the spec that the head was trained on.

        Returns
        -------
        ndarray of str of shape (n_samples,)
            Labels.

        Raises
        ------
        HeadError
            Codes of another spec, node or width; the message says what differs.
        """
        X = self._codes(data)
        return self.estimator.predict(X) if len(X) else self.classes_[:0]

    def predict_scores(self, data: Any) -> np.ndarray:
        """Return one score per class, shape (n_samples, n_classes): probabilities where the head has them.

        Columns follow `classes_`; the highest score is the predicted class, as in `to_module`: two classes have the
        halves -s/2 and s/2 of scikit-learn's one score. See `predict` for `data` and errors.
        """
        if self.temperature is not None or hasattr(self.estimator, "predict_proba"):
            return self.predict_proba(data)
        if not hasattr(self.estimator, "decision_function"):
            raise HeadError(f"head {self.head!r}: {type(self.estimator).__name__} gives no scores; use predict")
        X = self._codes(data)
        if not len(X):
            return np.zeros((0, len(self.classes_)))
        scores = np.asarray(self.estimator.decision_function(X))
        return np.column_stack([-scores, scores]) / 2 if scores.ndim == 1 else scores

    def predict_proba(self, data: Any) -> np.ndarray:
        """Return probabilities of shape (n_samples, n_classes), calibrated where `fit` was asked to calibrate.

        HeadError where the head has none.
        """
        if self.temperature is None and not hasattr(self.estimator, "predict_proba"):
            raise HeadError(
                f"head {self.head!r} gives no probabilities; use predict_scores, fit(..., calibrate=True), or logreg"
            )
        X = self._codes(data)
        if len(X) and self.temperature is not None:
            return np.exp(log_softmax(class_logits(self.estimator, X) / self.temperature))
        return np.asarray(self.estimator.predict_proba(X)) if len(X) else np.zeros((0, len(self.classes_)))

    def accept(self, data: Any) -> np.ndarray:
        """Return whether each prediction is sure enough for the error rate that `fit` was given as `reject`.

        See `predict` for `data`; bool of shape (n_samples,). HeadError for a head fitted without `reject`.
        """
        if self.rejection is None:
            raise HeadError(f"head {self.head!r} was fitted without a wanted error rate; use fit(..., reject=0.05)")
        return self.predict_proba(data).max(axis=1) >= self.rejection["threshold"]

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


@dataclass(frozen=True)
class Rows:
    """The labelled rows of a FeatureSet as a head wants them, and their parts.

    Parameters
    ----------
    X, y, ids : ndarray
        Codes (n, d) of float32 or float64; labels and names as text.
    groups : ndarray or None
        Group of each row.
    parts : dict of str to ndarray
        Row numbers of "train", "val", "test" when the set says which rows train and test, else empty.
    notes : tuple of str
        What was left out.
    """

    X: np.ndarray
    y: np.ndarray
    ids: np.ndarray
    groups: np.ndarray | None
    parts: dict[str, np.ndarray]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, data: FeatureSet) -> Rows:
        """Take the labelled rows; HeadError when a head cannot be trained on them."""
        if not isinstance(data, FeatureSet):
            raise HeadError(f"data: expected a FeatureSet, got {type(data).__name__}; wrap arrays as FeatureSet(X, y)")
        name = data.name or "FeatureSet"
        if not data.labelled.any():
            raise HeadError(f"{name}: no row has a label; put images into one folder per class, or give y=")
        if len(data.classes) < 2:
            raise HeadError(
                f"{name}: expected two classes or more, got only {str(data.classes[0])!r}; a head needs two"
            )
        notes = []
        if missing := int((~data.labelled).sum()):
            notes.append(f"{missing} rows without a label left out")
            data = data.select(data.labelled)
        parts = named_splits(data.splits) if has_named_splits(data.splits) else {}
        if not parts and data.splits is not None and (data.splits != "").any():
            lacking = [part for part in ("train", "test") if part not in named_splits(data.splits)]
            notes.append(f"the split column has no {' and no '.join(lacking)} part: it is not used")
        if parts and (outside := len(data) - sum(map(len, parts.values()))):
            notes.append(f"{outside} rows outside train, val and test left out")
        assert data.y is not None
        groups = None if data.groups is None else _whole_groups(data.groups)
        return cls(as_matrix(data.X, name), data.y, data.row_ids, groups, parts, tuple(notes))


def _whole_groups(groups: np.ndarray) -> np.ndarray:
    """A row without a group is a group of its own, not a member of one large nameless group."""
    alone = np.asarray([f"\0{i}" for i in range(len(groups))])
    return np.where(groups == "", alone, groups)


def as_matrix(X: Any, name: str) -> np.ndarray:
    """Return X as a finite float matrix (float32, or float64 where it came so); HeadError otherwise."""
    array = np.asarray(X)
    if array.ndim != 2 or array.shape[1] == 0 or array.dtype.kind not in "fiub":
        raise HeadError(
            f"{name}: expected a matrix (n_samples, n_features), got shape {array.shape} of {array.dtype}; "
            "extract with pooling='avg', or flatten the codes"
        )
    array = array if array.dtype == np.float64 else array.astype(np.float32, copy=False)
    if bad := int((~np.isfinite(array).all(axis=1)).sum()):
        raise HeadError(
            f"{name}: {bad} of {len(array)} rows hold NaN or Inf; drop them with select(), or extract again"
        )
    return array


def fit(
    head: Any,
    data: FeatureSet,
    *,
    metric: str = "accuracy",
    cv: int = 5,
    seed: int = 0,
    params: Mapping[str, Any] | None = None,
    calibrate: bool = False,
    reject: float | None = None,
    novelty: str | None = None,
) -> FittedHead:
    """Train one head on cached codes.

    With a split column, the val rows choose the settings (cross-validation inside train where there is no val), the
    head is fitted again on train and val, and the test rows are scored once. Without one, settings are chosen by
    cross-validation and the head is fitted on all rows. Groups are kept whole.

    Parameters
    ----------
    head : str or estimator
        A key of `HEADS`, or any scikit-learn classifier, which is cloned and used as it is.
    data : FeatureSet
        Codes and labels; rows without a label are left out.
    metric : str, default="accuracy"
        "accuracy", "balanced_accuracy" or "macro_f1".
    cv : int, default=5
        Folds; fewer when no class has so many rows. With one row per class settings are fixed.
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
    novelty : {"mahalanobis", "knn"}, default=None
        Adds a detector of images unlike the training images (`MahalanobisDetector`, `KNeighborsDetector`), which calls
        5 % of the usual ones novel: `FittedHead.novelty`.

    Returns
    -------
    FittedHead
        With `estimator`, `scores`, the provenance of the codes, and `notes`.

    Raises
    ------
    HeadError
        Unknown head or metric, one class only, no labels, NaN in the codes.
    SplitError
        A fold count below 2, or a seed below 0.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> fitted = fit("lda", FeatureSet(X, y))
    >>> fitted.predict(X[:2]).tolist()
    ['0', '1']
    """
    check_metric(metric)
    check_guards(calibrate, reject, novelty)
    for name, value, least in (("cv", cv, 2), ("seed", seed, 0)):
        if not whole_number(value, least):
            raise SplitError(f"{name}: expected a whole number of {least} or more, got {value!r}")
    if params is not None and not isinstance(params, Mapping):
        raise HeadError(f"params: expected a mapping such as {{'C': 0.1}}, got {params!r}")
    rows = Rows.of(data)
    train_rows = np.concatenate(
        [rows.parts[p] for p in ("train", "val") if p in rows.parts] or [np.arange(len(rows.y))]
    )
    train_rows = train_rows[np.argsort(rows.ids[train_rows], kind="stable")]  # the result must not depend on row order
    X, y = rows.X[train_rows], rows.y[train_rows]
    folds, how = _folds_for(rows, train_rows, cv, seed)
    trained = train(
        head,
        X,
        y,
        folds,
        metric=metric,
        seed=seed,
        params=params,
        leave_one_out=rows.groups is None and how == "cv",
        groups=None if rows.groups is None else rows.groups[train_rows],
        always_score=True,
    )
    groups = None if rows.groups is None else rows.groups[train_rows]
    guards, guard_notes = guards_of(
        trained.estimator, X, y, folds, groups, calibrate=calibrate, reject=reject, novelty=novelty
    )
    scores = {} if trained.score is None else {how: trained.score}
    notes = rows.notes + (folds.notes if folds else ("fixed settings: no class has two rows to choose on",))
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
        n_train=len(y),
        training_digest=_digest(rows.ids[train_rows]),
        n_features=X.shape[1],
        spec=data.spec,
        locator=data.locator,
        node=data.node,
        fingerprint=data.fingerprint,
        notes=notes + trained.notes + guard_notes,
        **guards,
    )


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
    groups = None if rows.groups is None else rows.groups[train_rows]
    return tuning_folds(y, rows.X.shape[1], cv=cv, ids=rows.ids[train_rows], groups=groups, seed=seed), "cv"


def score_rows(
    trained: Trained, rows: Rows, test: np.ndarray, metric: str, known: np.ndarray
) -> tuple[float, tuple[str, ...]]:
    """Score a trained head on test rows; a label that training never saw counts as an error, and is noted."""
    predicted = trained.estimator.predict(rows.X[test])
    classes, codes = np.unique(np.concatenate([rows.y[test], predicted]), return_inverse=True)
    unknown = np.setdiff1d(rows.y[test], known)
    note = (f"{len(unknown)} classes of the test rows are not in training: {', '.join(unknown[:3])}",)
    score = check_metric(metric)(codes[: len(test)], codes[len(test) :])
    return score, note if len(unknown) else ()


def _digest(ids: np.ndarray) -> str:
    return hashlib.sha256("\n".join(sorted(ids.tolist())).encode("utf-8", "surrogatepass")).hexdigest()
