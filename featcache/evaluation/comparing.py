"""compare(): heads x shots x seeds on the same splits, with intervals that say what can be told apart."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from typing import Any

import joblib
import numpy as np
from scipy import stats
from sklearn.exceptions import ConvergenceWarning

from ..errors import HeadError, SplitError
from ..features import FeatureSet
from ..heads.choosing import head_name, train, tuning_folds
from ..heads.labelled import Rows
from ..heads.metrics import METRICS, check_metric
from ..reporting import Result
from ..splits import Folds, holdout, k_shot, whole_number

__all__ = ["EvalProtocol", "compare"]

_BOOTSTRAPS = 1000


@dataclass(frozen=True)
class EvalProtocol:
    """What `compare` does, as pure data.

    Parameters
    ----------
    shots : tuple of int or "all", default=("all",)
        Rows per class to train on.
    seeds : int, default=5
        Draws; each is the same for all heads.
    metric : str, default="accuracy"
        "accuracy", "balanced_accuracy" or "macro_f1".
    test_size : float, default=0.25
        Test share per seed where the data name no test rows.
    cv : int, default=3
        Folds on which settings are chosen inside the training rows.
    first_seed : int, default=0
        Seeds are first_seed, first_seed + 1, …

    Raises
    ------
    HeadError
        A setting out of range.
    """

    shots: tuple[int | str, ...] = ("all",)
    seeds: int = 5
    metric: str = "accuracy"
    test_size: float = 0.25
    cv: int = 3
    first_seed: int = 0

    def __post_init__(self) -> None:
        check_metric(self.metric)
        if not self.shots or any(s != "all" and not whole_number(s, 1) for s in self.shots):
            raise HeadError(f"shots: expected numbers of rows per class or 'all', got {list(self.shots)!r}")
        if len(set(self.shots)) < len(self.shots):
            raise HeadError(f"shots: expected different numbers, got {list(self.shots)!r}")
        for name, least in (("seeds", 1), ("cv", 2), ("first_seed", 0)):
            if not whole_number(getattr(self, name), least):
                raise HeadError(f"{name}: expected a whole number of {least} or more, got {getattr(self, name)!r}")
        if not isinstance(self.test_size, (int, float)) or not 0 < self.test_size < 1:
            raise HeadError(f"test_size: expected a share between 0 and 1, got {self.test_size!r}")


@dataclass(frozen=True)
class _Draw:
    """Training rows, test rows and folds of one seed, the same for all heads."""

    dataset: str
    shots: int | str
    seed: int
    train: np.ndarray
    test: np.ndarray
    pool: int  # rows that training rows were drawn from
    folds: Folds | None
    fixed_test: bool


@dataclass(frozen=True)
class _Run:
    """What one head did on one draw."""

    draw: _Draw
    head: str
    predicted: np.ndarray
    seconds: float
    unconverged: int


def compare(
    data: FeatureSet | Mapping[str, FeatureSet] | Sequence[FeatureSet],
    heads: Sequence[Any] = ("logreg", "svm", "knn", "ridge", "lda", "centroid", "auto"),
    *,
    shots: Sequence[int | str] = ("all",),
    seeds: int = 5,
    metric: str = "accuracy",
    test_size: float = 0.25,
    cv: int = 3,
    n_jobs: int = 1,
    progress: Callable[[int, int, str], None] | None = None,
) -> Result:
    """Compare heads on the same splits.

    Where the data name train and test rows, k shots are drawn from the train rows and the named test rows are scored;
    "all" trains on all of them (settings on the val rows, then fitted again on train and val) and is one draw. Where
    they do not, each seed holds out a test part, class by class and group by group. Settings are chosen inside the
    training rows of each draw; with one row per class they are fixed.

    Parameters
    ----------
    data : FeatureSet, mapping of name to FeatureSet, or sequence of FeatureSet
        Codes; several sets (of several backbones, say) get rows of their own, on the same draws where ids agree. Of
        ``join_views(..., rows=True)`` images are drawn and counted, as they would be without views; heads train on the
        views of those drawn, too, and predict the plain images.
    heads : sequence of str or estimator, default=all quick heads
        Names of `HEADS` or scikit-learn classifiers.
    shots : sequence of int or "all", default=("all",)
        Rows per class to train on.
    seeds : int, default=5
        Draws.
    metric : str, default="accuracy"
        "accuracy", "balanced_accuracy" or "macro_f1".
    test_size : float, default=0.25
        Test share where the data name no test rows.
    cv : int, default=3
        Folds on which settings are chosen.
    n_jobs : int, default=1
        Processes; -1 for one per core. The numbers do not depend on it; `fit_seconds` does.
    progress : callable, default=None
        Called as progress(done, total, what) after each fit.

    Returns
    -------
    Result
        One row per data set, shots and head. `fit_seconds` is the mean wall clock of one fit, choice of settings
        included.

    Raises
    ------
    HeadError
        Unknown head or metric, one class only, no labels, NaN in the codes.
    SplitError
        Data that cannot be split.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> result = compare(FeatureSet(X, y), ["lda", "centroid"], shots=[1, 5], seeds=2)
    >>> [(row["head"], row["shots"]) for row in result.rows]
    [('lda', 1), ('centroid', 1), ('lda', 5), ('centroid', 5)]
    """
    shots = tuple(shots) if isinstance(shots, (Sequence, np.ndarray)) and not isinstance(shots, str) else (shots,)
    protocol = EvalProtocol(tuple(int(s) if whole_number(s, 1) else s for s in shots), seeds, metric, test_size, cv)
    if n_jobs == 0 or not isinstance(n_jobs, int):
        raise HeadError(f"n_jobs: expected a number of processes, or -1 for one per core, got {n_jobs!r}")
    heads = [heads] if isinstance(heads, str) or hasattr(heads, "fit") or heads is None else list(heads)
    named = _named_heads(heads)
    runs: list[_Run] = []
    sets = {name: Rows.of(item) for name, item in _named_sets(data).items()}
    draws = [draw for name, rows in sets.items() for draw in _draws(name, rows, protocol)]
    jobs = [(draw, name, head) for draw in draws for name, head in named.items()]
    # Views cannot be left out one by one; what they add is compared with heads that were chosen in the same way.
    exact = all(rows.images is None for rows in sets.values())
    work = joblib.Parallel(n_jobs=n_jobs, return_as="generator")(
        joblib.delayed(_run)(sets[draw.dataset], draw, name, head, protocol, exact) for draw, name, head in jobs
    )
    for run in work:
        runs.append(run)
        if progress is not None:
            progress(len(runs), len(jobs), f"{run.draw.dataset} {run.head} at {run.draw.shots}")
    return _result(sets, runs, protocol)


def _named_heads(heads: Iterable[Any]) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for head in heads:
        name = base = head_name(head)
        if isinstance(head, str) and name in named:
            raise HeadError(f"heads: expected different heads, got {name!r} twice")
        n = 2
        while name in named:
            name, n = f"{base} {n}", n + 1
        named[name] = head
    if not named:
        raise HeadError("heads: expected one or more, got none; see HEADS for the names")
    return named


def _named_sets(data: Any) -> dict[str, FeatureSet]:
    if isinstance(data, Mapping):
        named = {str(name): item for name, item in data.items()}
    else:
        items = list(data) if isinstance(data, (list, tuple)) else [data]
        named = {}
        for i, item in enumerate(items):
            name = getattr(item, "name", "") or (f"data {i + 1}" if len(items) > 1 else "data")
            if getattr(item, "view_of", None) is not None and (item.view_of != "").any():
                name += " with views"
            named[name if name not in named else f"{name} ({i + 1})"] = item
    if not named:
        raise HeadError("data: expected a FeatureSet or several, got none")
    return named


def _draws(name: str, rows: Rows, protocol: EvalProtocol) -> Iterator[_Draw]:
    """All draws of one data set, shots by shots, seed by seed: of images, the same with their views and without."""
    images, plain = rows.standing(np.arange(len(rows.y))), rows.plain()
    for shots in protocol.shots:
        one = shots == "all" and bool(rows.parts)
        for seed in range(protocol.first_seed, protocol.first_seed + (1 if one else protocol.seeds)):
            draw = _draw(name, plain, protocol, shots, seed)
            yield replace(draw, train=images[draw.train], test=images[draw.test])


def _draw(name: str, rows: Rows, protocol: EvalProtocol, shots: int | str, seed: int) -> _Draw:
    order = np.argsort(rows.ids, kind="stable")
    if rows.parts:
        pool, test = rows.parts["train"], rows.parts["test"]
        if shots == "all":
            pool = np.concatenate([pool, rows.parts.get("val", pool[:0])])
    else:
        pool, test = holdout(rows.y, test_size=protocol.test_size, ids=rows.ids, groups=rows.groups, seed=seed)
    chosen = pool
    if shots != "all":
        chosen = k_shot(rows.y, int(shots), rows=pool, ids=rows.ids, groups=rows.groups, seed=seed)
    elif len(np.unique(rows.y[pool])) < 2:
        raise SplitError(f"{name}: expected two classes or more in the train rows, got one; look at the split column")
    chosen = order[np.isin(order, chosen)]  # by id: the fit must not depend on the order of the rows
    _check_apart(rows, chosen, test)
    return _Draw(
        name, shots, seed, chosen, test, len(pool), _folds(rows, chosen, protocol, shots, seed), bool(rows.parts)
    )


def _check_apart(rows: Rows, train: np.ndarray, test: np.ndarray) -> None:
    """Raise SplitError where a draw would test what it trains on; groups that the data's own split parts may be."""
    drawn = not rows.parts and rows.groups is not None
    for what, names in (("rows", rows.ids), ("groups", rows.groups if drawn else None)):
        if names is not None and len(both := np.intersect1d(names[train], names[test])):
            raise SplitError(f"draw: {len(both)} {what} stand in train and test, such as {str(both[0])!r}; split anew")


def _folds(rows: Rows, chosen: np.ndarray, protocol: EvalProtocol, shots: int | str, seed: int) -> Folds | None:
    if shots == "all" and "val" in rows.parts:
        in_val = np.isin(chosen, rows.parts["val"])
        return Folds(((np.flatnonzero(~in_val), np.flatnonzero(in_val)),), ("settings chosen on the val rows",))
    groups = None if rows.groups is None else rows.groups[chosen]
    return tuning_folds(rows.y[chosen], rows.X.shape[1], cv=protocol.cv, ids=rows.ids[chosen], groups=groups, seed=seed)


def _run(rows: Rows, draw: _Draw, name: str, head: Any, protocol: EvalProtocol, exact: bool) -> _Run:
    """Fit one head on one draw and predict the test rows; `exact` allows leave-one-out."""
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
            metric=protocol.metric,
            seed=draw.seed,
            leave_one_out=loo,
            groups=None if rows.groups is None else rows.groups[chosen],
        )
        seconds = time.perf_counter() - start
        predicted = np.asarray(trained.estimator.predict(rows.X[draw.test]))
    unconverged = sum(issubclass(w.category, ConvergenceWarning) for w in caught)
    for other in caught:
        if not issubclass(other.category, ConvergenceWarning):
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
    return _Run(draw, name, predicted, seconds, unconverged)


def _result(sets: dict[str, Rows], runs: list[_Run], protocol: EvalProtocol) -> Result:
    rows, comparisons, notes = [], [], [f"{n}: {note}" for n, r in sets.items() for note in r.notes]
    known: dict[tuple[str, int | str], dict[str, _Cell]] = {}
    for (dataset, shots), cell in groupby(runs, key=lambda run: (run.draw.dataset, run.draw.shots)):
        by_head: dict[str, list[_Run]] = {}
        for run in cell:
            by_head.setdefault(run.head, []).append(run)
        cells = {head: _Cell(sets[dataset], some, protocol) for head, some in by_head.items()}
        known[dataset, shots] = cells
        rows += [each.row(dataset, shots, head) for head, each in cells.items()]
        comparisons += _comparisons(dataset, shots, cells)
        notes += _cell_notes(dataset, shots, sets[dataset], by_head)
    notes += _gains_of_views(sets, known)
    settings = asdict(protocol)
    settings["shots"] = list(protocol.shots)
    return Result(tuple(rows), tuple(comparisons), tuple(dict.fromkeys(notes)), settings)


class _Cell:
    """All draws of one head at one number of shots: scores, intervals, and what pairing needs."""

    def __init__(self, rows: Rows, runs: list[_Run], protocol: EvalProtocol) -> None:
        self.runs, self.metric = runs, protocol.metric
        self.codes = [self._as_codes(rows.y[run.draw.test], run.predicted) for run in runs]
        self.scores = np.asarray([METRICS[self.metric](*codes) for codes in self.codes])
        draw = runs[0].draw
        self.n_train, self.n_test = (
            round(float(np.mean([len(getattr(run.draw, part)) for run in runs]))) for part in ("train", "test")
        )
        # Draws share their test rows, in full where these are named and in part where they are held out: the draws
        # are not independent, and test share over pool is Nadeau and Bengio's allowance for it.
        self.overlap = self.n_test / draw.pool

    @staticmethod
    def _as_codes(true: np.ndarray, predicted: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        codes = np.unique(np.concatenate([true, predicted]), return_inverse=True)[1]
        return codes[: len(true)], codes[len(true) :]

    def drawn(self, rows: Rows) -> list[list[str]]:
        """Names and labels of the training and test rows of all draws."""
        parts = [part for run in self.runs for part in (run.draw.train, run.draw.test)]
        return [[*rows.ids[part].tolist(), *rows.y[part].tolist()] for part in parts]

    def resampled(self) -> np.ndarray:
        """The single draw's score on bootstrap samples of its test rows; the same samples for every head."""
        true, predicted = self.codes[0]
        generator = np.random.default_rng(0)
        samples = (generator.integers(0, len(true), len(true)) for _ in range(_BOOTSTRAPS))
        return np.asarray([METRICS[self.metric](true[sample], predicted[sample]) for sample in samples])

    def row(self, dataset: str, shots: int | str, head: str) -> dict[str, Any]:
        """The row of the Result."""
        n, mean = len(self.scores), float(self.scores.mean())
        if n > 1:
            half = float(stats.t.ppf(0.975, n - 1) * self.scores.std(ddof=1) * np.sqrt(1 / n + self.overlap))
            interval, method = (max(0.0, mean - half), min(1.0, mean + half)), "corrected t over draws"
        else:
            interval, method = _percentiles(self.resampled()), "bootstrap over test rows"
        return {
            "dataset": dataset,
            "head": head,
            "shots": shots,
            "metric": self.metric,
            "mean": mean,
            "std": float(self.scores.std(ddof=1)) if n > 1 else None,
            "ci95": [float(bound) for bound in interval],
            "ci_method": method,
            "fit_seconds": float(np.mean([run.seconds for run in self.runs])),
            "n_train": self.n_train,
            "n_test": self.n_test,
            "seeds": [run.draw.seed for run in self.runs],
            "scores": self.scores.tolist(),
        }


def _percentiles(values: np.ndarray) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _comparisons(dataset: str, shots: int | str, cells: dict[str, _Cell]) -> list[dict[str, Any]]:
    """The best head against each other one: paired difference and its 95 % interval."""
    best = max(cells, key=lambda head: cells[head].scores.mean())
    out = []
    for other in cells:
        if other == best:
            continue
        difference = cells[best].scores - cells[other].scores
        low, high, method = _paired_interval(cells[best], cells[other], difference)
        out.append(
            {
                "dataset": dataset,
                "shots": shots,
                "best": best,
                "other": other,
                "difference": float(difference.mean()),
                "ci95": [low, high],
                "ci_method": method,
                "distinguishable": bool(low > 0 or high < 0),
            }
        )
    return out


def _paired_interval(best: _Cell, other: _Cell, difference: np.ndarray) -> tuple[float, float, str]:
    n = len(difference)
    if n == 1:
        return *_percentiles(best.resampled() - other.resampled()), "paired bootstrap over test rows"
    # Nadeau and Bengio, "Inference for the generalization error", Machine Learning 52 (2003): 1/n + n_test/n_train.
    half = float(stats.t.ppf(0.975, n - 1) * difference.std(ddof=1) * np.sqrt(1 / n + best.overlap))
    mean = float(difference.mean())
    return mean - half, mean + half, "corrected t over paired draws (Nadeau and Bengio 2003)"


def _gains_of_views(sets: dict[str, Rows], known: dict[tuple[str, int | str], dict[str, _Cell]]) -> list[str]:
    """What views add to each head, where the same codes without their views were compared on the same draws."""
    notes = []
    for (dataset, shots), cells in known.items():
        if sets[dataset].images is None:
            continue
        plain = sets[dataset].plain()
        twin = next((n for n, rows in sets.items() if rows.images is None and np.array_equal(rows.X, plain.X)), None)
        if twin is None:
            continue
        for head, cell in cells.items():
            other = known[twin, shots][head]
            if cell.drawn(sets[dataset]) != other.drawn(sets[twin]):
                continue
            difference = cell.scores - other.scores
            low, high, _ = _paired_interval(cell, other, difference)
            notes.append(
                f"{dataset} at {shots}: {head} {difference.mean():+.4f} against {twin} (95 % interval of the paired "
                f"difference {low:+.4f} to {high:+.4f})"
            )
    return notes


def _classes(labels: set[str]) -> str:
    return f"{len(labels)} class" + "es" * (len(labels) > 1)


def _cell_notes(dataset: str, shots: int | str, rows: Rows, by_head: dict[str, list[_Run]]) -> list[str]:
    draws = [run.draw for run in next(iter(by_head.values()))]
    where, notes = f"{dataset} at {shots}", []
    for note in dict.fromkeys(note for draw in draws for note in (draw.folds.notes if draw.folds else ())):
        notes.append(f"{where}: {note}")
    if any(draw.folds is None for draw in draws):
        unit = "row" if rows.plain().groups is None else "group"
        notes.append(f"{where}: fixed settings, one {unit} per class leaves nothing to choose on")
    if shots != "all":
        fewest = min(int(np.unique(rows.y[draw.train], return_counts=True)[1].min()) for draw in draws)
        if fewest < int(shots):
            notes.append(f"{where}: a class has fewer rows than that, {fewest} at least; it gives all it has")
    unknown = {label for draw in draws for label in np.setdiff1d(rows.y[draw.test], rows.y[draw.train]).tolist()}
    if unknown:
        notes.append(f"{where}: {_classes(unknown)} of the test rows not in training, counted as errors")
    absent = {label for draw in draws for label in np.setdiff1d(rows.y[draw.train], rows.y[draw.test]).tolist()}
    if absent:
        notes.append(f"{where}: {_classes(absent)} without test rows in some draw")
    for head, some in by_head.items():
        if stopped := sum(run.unconverged for run in some):
            notes.append(
                f"{where}: {head} stopped {stopped} times before convergence; its score stands, read with care"
            )
    return notes
