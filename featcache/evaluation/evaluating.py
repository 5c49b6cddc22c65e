"""evaluate(): one head, looked at closely: metrics with intervals, classes, and what it says of each image."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np

from ..errors import HeadError
from ..features import FeatureSet
from ..heads.choosing import head_name
from ..heads.labelled import Rows, name_of
from .cells import cell_of, interval_of
from .draws import Draw, draws_of
from .leaking import note_of_leaks
from .metrics import Predicted, check_top, measure, measures_for
from .notes import notes_of_draws
from .protocol import EvalProtocol
from .running import predictions

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """How good one head is, and what it says of each image that was tested.

    Parameters
    ----------
    head, dataset : str
        Their names.
    shots : int or "all"
        Rows per class that it was trained on.
    classes : list of str
        Ascending.
    ids, y, predicted : ndarray of str of shape (n_tested,)
        Tested images, by id; their labels; what most draws said (of equal votes the more probable).
    scores : ndarray of shape (n_tested, n_classes) or None
        Mean probabilities over the draws that tested an image; None for a head that gives none.
    tested : ndarray of int of shape (n_tested,)
        How many draws tested each image.
    metrics : dict
        Name → {"mean", "ci95": [low, high]}: over the draws, with the 95 % interval of the expected value.
    per_class : tuple of dict
        class, precision, recall, f1 (None where undefined), support: from `predicted`.
    confusion : ndarray of int of shape (n_classes, n_classes)
        True x predicted, each image once.
    seconds : float
        Mean wall clock of one fit.
    settings : dict
        The protocol.
    notes : tuple of str
        What the reader should know.
    """

    head: str
    dataset: str
    shots: int | str
    classes: list[str]
    ids: np.ndarray
    y: np.ndarray
    predicted: np.ndarray
    scores: np.ndarray | None
    tested: np.ndarray
    metrics: dict[str, dict[str, Any]]
    per_class: tuple[dict[str, Any], ...]
    confusion: np.ndarray
    seconds: float
    settings: dict[str, Any]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """Return the metrics with their intervals and the classes, worst first, as plain text."""
        lines = [f"{self.dataset}, {self.head} at {self.shots}: {len(self.ids)} images tested"]
        for name, found in self.metrics.items():
            low, high = found["ci95"]
            lines.append(f"{name.replace('_', ' '):20}{found['mean']:.4f}  (95 % interval {low:.4f} to {high:.4f})")
        width = max([5, *(len(each["class"]) for each in self.per_class)])
        lines += ["", f"{'class':{width}}  precision  recall      f1  images"]
        for each in sorted(self.per_class, key=lambda line: (line["f1"] is not None, line["f1"] or 0.0)):
            numbers = ["-" if each[k] is None else f"{each[k]:.3f}" for k in ("precision", "recall", "f1")]
            lines.append(
                f"{each['class']:{width}}  {numbers[0]:>9}  {numbers[1]:>6}  {numbers[2]:>6}  {each['support']:6d}"
            )
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])

    def to_json(self, *, indent: int | None = None) -> str:
        """Return all fields as JSON."""
        document = {field.name: _plain(getattr(self, field.name)) for field in fields(self)}
        return json.dumps(document, indent=indent, ensure_ascii=False, allow_nan=False)


def evaluate(
    data: FeatureSet,
    head: Any = "auto",
    *,
    shots: int | str = "all",
    seeds: int = 5,
    metric: str = "accuracy",
    test_size: float = 0.25,
    cv: int = 3,
    splitter: str = "auto",
    n_folds: int = 5,
    progress: Callable[[int, int, str], None] | None = None,
) -> Evaluation:
    """Look closely at one head, on the draws on which `compare` would put it.

    Parameters
    ----------
    data : FeatureSet
        Codes with labels.
    head : str or estimator, default="auto"
        A name of `HEADS` or a scikit-learn classifier.
    shots : int or "all", default="all"
        Rows per class to train on.
    seeds, metric, test_size, cv, splitter, n_folds
        See `EvalProtocol`. With ``splitter="k-fold"`` each image is tested once per seed.
    progress : callable, default=None
        Called as progress(done, total, what) after each fit.

    Returns
    -------
    Evaluation
        Predictions are of heads that never saw the image, nor its group (but where a split column parts a group).

    Raises
    ------
    HeadError, SplitError
        As `compare`.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> found = evaluate(FeatureSet(X, y), "lda", seeds=2)
    >>> found.confusion.sum() == len(found.ids), sorted(found.metrics)[:2]
    (np.True_, ['accuracy', 'auroc'])
    """
    protocol = EvalProtocol((shots,), seeds, metric, test_size, cv, splitter=splitter, n_folds=n_folds)
    name, rows = name_of(data), Rows.of(data)
    check_top(metric, len(np.unique(rows.y)), name)
    draws = list(draws_of(name, rows, protocol))
    said, seconds, stopped = [], [], 0
    for draw in draws:
        predicted, took, early = predictions(rows, draw, head, protocol, rows.images is None)
        said.append(predicted)
        seconds.append(took)
        stopped += early
        if progress is not None:
            progress(len(said), len(draws), f"{name} {head_name(head)} at {shots}")
    notes = [note_of_leaks(name, rows, draws)]
    notes += [f"{head_name(head)} stopped {stopped} times before convergence; read with care"] if stopped else []
    found = _evaluation(rows, draws, said, head_name(head), float(np.mean(seconds)), protocol)
    return replace(found, notes=(*found.notes, *(note for note in notes if note)))


def _evaluation(
    rows: Rows, draws: list[Draw], said: list[Predicted], head: str, seconds: float, protocol: EvalProtocol
) -> Evaluation:
    classes = np.unique(rows.y)
    proba, votes = _per_row(len(rows.y), len(classes), draws, said)
    tested = votes.sum(axis=1)
    order = np.argsort(rows.ids, kind="stable")
    seen = order[tested[order] > 0]
    scores = None if proba is None else proba[seen] / tested[seen, None]
    # What the head said, not what is most probable (heads may have a threshold); of equal votes the more probable.
    codes = (votes[seen] + (0.0 if scores is None else 0.4 * scores)).argmax(axis=1)
    true = np.searchsorted(classes, rows.y[seen])
    confusion = np.zeros((len(classes), len(classes)), dtype=np.int64)
    np.add.at(confusion, (true, codes), 1)
    metrics = _metrics(rows, draws, said, protocol, len(classes))
    if protocol.metric not in metrics:
        raise HeadError(f"{head}: gives no {protocol.metric}; take a head that gives scores, or another metric")
    return Evaluation(
        head,
        draws[0].dataset,
        draws[0].shots,
        [str(name) for name in classes],
        rows.ids[seen],
        rows.y[seen],
        classes[codes],
        scores,
        tested[seen],
        metrics,
        tuple(_of_class(str(name), confusion, c) for c, name in enumerate(classes)),
        confusion,
        seconds,
        protocol.as_dict(),
        (*rows.notes, *notes_of_draws(rows, draws)),
    )


def _per_row(
    n: int, n_classes: int, draws: Sequence[Draw], said: Sequence[Predicted]
) -> tuple[np.ndarray | None, np.ndarray]:
    """Sum of the probabilities of each row (None where a head gives none) and votes per class."""
    proba: np.ndarray | None = np.zeros((n, n_classes))
    votes = np.zeros((n, n_classes), dtype=np.int64)
    for draw, predicted in zip(draws, said, strict=True):
        votes[draw.test, predicted.codes] += 1  # a draw tests a row once
        if proba is not None:
            proba = None if predicted.proba is None else proba
        if proba is not None and predicted.proba is not None:
            proba[draw.test] += predicted.proba
    return proba, votes


def _metrics(
    rows: Rows, draws: list[Draw], said: list[Predicted], protocol: EvalProtocol, n_classes: int
) -> dict[str, dict[str, Any]]:
    out = {}
    for name in dict.fromkeys((protocol.metric, *measures_for(n_classes))):
        found = [each for each in (measure(name, predicted) for predicted in said) if each is not None]
        if len(found) == len(draws):
            cell = cell_of(rows, draws, [value for value, _ in found], [gains for _, gains in found])
            out[name] = {
                "mean": cell.mean,
                "ci95": list(interval_of(cell, name)),
            }
    return out


def _of_class(name: str, confusion: np.ndarray, c: int) -> dict[str, Any]:
    hits, support, said = int(confusion[c, c]), int(confusion[c].sum()), int(confusion[:, c].sum())
    return {
        "class": name,
        "precision": hits / said if said else None,
        "recall": hits / support if support else None,
        "f1": 2 * hits / (support + said) if support + said else None,
        "support": support,
    }


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return list(value) if isinstance(value, tuple) else value
