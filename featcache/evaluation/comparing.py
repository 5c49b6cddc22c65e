"""compare(): heads x shots x seeds on the same splits, with intervals that say what can be told apart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import joblib
import numpy as np

from ..errors import HeadError
from ..features import FeatureSet
from ..heads.choosing import head_name
from ..heads.labelled import Rows
from ..reporting import Result
from ..splits import whole_number
from .cells import Scored, comparisons, row_of, scored
from .draws import Draw, draws_of
from .leaking import note_of_leaks
from .memory import Memory, cache_folder, digest_of_rows, key_of, name_of_draw
from .metrics import check_top
from .notes import drawn, gains_of_views, notes_of_cell
from .protocol import EvalProtocol
from .running import Run, run

__all__ = ["compare", "named_sets"]

#: Processes are started when what is left would take so many seconds without them: starting them takes three.
_WORTH_PROCESSES = 12.0


def compare(
    data: FeatureSet | Mapping[str, FeatureSet] | Sequence[FeatureSet],
    heads: Sequence[Any] = ("logreg", "svm", "knn", "ridge", "lda", "centroid", "auto"),
    *,
    shots: Sequence[int | str] = ("all",),
    seeds: int = 5,
    metric: str = "accuracy",
    test_size: float = 0.25,
    cv: int = 3,
    splitter: str = "auto",
    n_folds: int = 5,
    n_jobs: int | None = None,
    cache: str | Path | bool | None = None,
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
    metric, test_size, cv, splitter, n_folds
        See `EvalProtocol`.
    n_jobs : int, default=None
        Processes; -1: one per core; None: one per core when there is work for more than a few seconds. The numbers do
        not depend on it; `fit_seconds` does.
    cache : str, Path or bool, default=None
        Folder in which results are remembered, so that one more head, seed or number of shots costs just that; True:
        featcache's own (``FEATCACHE_CACHE``, else ~/.cache/featcache). They are known by codes, labels, protocol, head
        and featcache's source; heads of one's own class are computed each time.
    progress : callable, default=None
        Called as progress(done, total, what) after each fit.

    Returns
    -------
    Result
        One row per data set, shots and head: mean over the draws, 95 % interval of the expected score (see
        `featcache.evaluation.intervals`), further metrics, seconds. `fit_seconds` is the mean wall clock of one fit,
        choice of settings included. Comparisons are of the best head with each other one, all pairs considered; and of
        the best of each set of codes where several have the same images and labels.

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
    protocol = _protocol(
        shots,
        seeds=seeds,
        metric=metric,
        test_size=test_size,
        cv=cv,
        splitter=splitter,
        n_folds=n_folds,
    )
    if n_jobs is not None and (n_jobs == 0 or not isinstance(n_jobs, int)):
        raise HeadError(f"n_jobs: expected a number of processes, or -1 for one per core, got {n_jobs!r}")
    heads = [heads] if isinstance(heads, str) or hasattr(heads, "fit") or heads is None else list(heads)
    named, items = _named_heads(heads), named_sets(data)
    sets = {name: Rows.of(item) for name, item in items.items()}
    costs = {name: getattr(item, "extract_seconds", None) for name, item in items.items()}
    for name, rows in sets.items():
        check_top(metric, len(np.unique(rows.y)), name)
    draws = [draw for name, rows in sets.items() for draw in draws_of(name, rows, protocol)]
    work = _Work(sets, named, protocol, Memory(cache_folder(cache)))
    runs = work.done(draws, n_jobs, progress)
    cells = [
        scored(sets[some[0].dataset], some, [runs[name, head] for name in map(_which, some)], head, metric)
        for some in _by_cell(draws)
        for head in named
    ]
    return _result(sets, cells, protocol, costs)


def _protocol(shots: Any, **settings: Any) -> EvalProtocol:
    shots = tuple(shots) if isinstance(shots, (Sequence, np.ndarray)) and not isinstance(shots, str) else (shots,)
    return EvalProtocol(tuple(int(s) if whole_number(s, 1) else s for s in shots), **settings)


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


def named_sets(data: FeatureSet | Mapping[str, FeatureSet] | Sequence[FeatureSet]) -> dict[str, FeatureSet]:
    """Return sets of codes by the names that they have in a Result.

    Parameters
    ----------
    data : FeatureSet, mapping of name to FeatureSet, or sequence of FeatureSet
        As `compare` takes it. Sets without a name, or with one that another has, get a number.

    Returns
    -------
    dict of str to FeatureSet
        In the order given.

    Raises
    ------
    HeadError
        For none.

    Examples
    --------
    >>> list(named_sets([FeatureSet(np.eye(2), name="a"), FeatureSet(np.eye(2), name="a")]))
    ['a', 'a (2)']
    """
    named: dict[str, FeatureSet]
    if isinstance(data, Mapping):
        named = {str(name): item for name, item in data.items()}
        if len(named) < len(data):
            raise HeadError(f"data: expected different names, got {', '.join(map(repr, data))}; name each set once")
    else:
        items: list[Any] = list(data) if isinstance(data, (list, tuple)) else [data]
        named = {}
        for i, item in enumerate(items):
            name = getattr(item, "name", "") or (f"data {i + 1}" if len(items) > 1 else "data")
            if getattr(item, "view_of", None) is not None and (item.view_of != "").any():
                name += " with views"
            unique, n = name, i + 1
            while unique in named:
                unique, n = f"{name} ({n})", n + 1
            named[unique] = item
    if not named:
        raise HeadError("data: expected a FeatureSet or several, got none")
    return named


def _which(draw: Draw) -> tuple[str, int | str, int, int]:
    return draw.dataset, draw.shots, draw.seed, draw.fold


def _by_cell(draws: Iterable[Draw]) -> Iterator[list[Draw]]:
    return (list(some) for _, some in groupby(draws, key=lambda draw: (draw.dataset, draw.shots)))


class _Work:
    """All heads on all draws: what is remembered is looked up, the rest computed."""

    def __init__(
        self, sets: Mapping[str, Rows], heads: Mapping[str, Any], protocol: EvalProtocol, memory: Memory
    ) -> None:
        self.sets, self.heads, self.protocol, self.memory = sets, heads, protocol, memory
        # Views cannot be left out one by one; what they add is compared with heads that were chosen in the same way.
        self.exact = all(rows.images is None for rows in sets.values())

    def done(self, draws: list[Draw], n_jobs: int | None, progress: Any) -> dict[Any, Run]:
        """Return the runs by (draw, head)."""
        digests = {} if self.memory.folder is None else {n: digest_of_rows(rows) for n, rows in self.sets.items()}
        found, todo = self._remembered(draws, digests), []
        for draw in draws:
            todo += [(draw, head) for head in self.heads if (_which(draw), head) not in found]
        longest = {(some[0].dataset, some[0].shots): max(len(d.train) for d in some) for some in _by_cell(draws)}
        # Long work first, so that no process is left alone with it at the end.
        todo.sort(key=lambda work: -longest[work[0].dataset, work[0].shots])
        said = _Said(progress, len(draws) * len(self.heads))
        for (_, shots, _, _), head in found:
            said(head, shots)
        fresh: dict[Any, Run] = {}
        try:
            for (draw, head), each in zip(todo, self._computed(todo, n_jobs), strict=True):
                fresh[_which(draw), head] = each
                said(f"{draw.dataset} {head}", draw.shots)
        finally:  # a head that refuses the data, or Ctrl-C, costs nothing that was computed before
            self._keep(draws, fresh, digests)
        return found | fresh

    def _computed(self, todo: list[tuple[Draw, str]], n_jobs: int | None) -> Iterator[Run]:
        """One by one; with `n_jobs` None in processes as soon as that pays."""
        start, rest = time.perf_counter(), list(todo)
        while n_jobs is None and rest:
            draw, head = rest.pop(0)
            yield run(self.sets[draw.dataset], draw, self.heads[head], self.protocol, self.exact)
            each = (time.perf_counter() - start) / (len(todo) - len(rest))
            if joblib.cpu_count() > 1 and each * len(rest) > _WORTH_PROCESSES:
                break
        yield from joblib.Parallel(n_jobs=-1 if n_jobs is None else n_jobs, return_as="generator")(
            joblib.delayed(run)(self.sets[draw.dataset], draw, self.heads[head], self.protocol, self.exact)
            for draw, head in rest
        )

    def _key(self, digest: str, shots: int | str, head: str) -> str | None:
        return key_of(digest, self.heads[head], shots, self.protocol, self.exact)

    def _remembered(self, draws: list[Draw], digests: Mapping[str, str]) -> dict[Any, Run]:
        found = {}
        for some in _by_cell(draws) if digests else ():
            for head in self.heads:
                key = self._key(digests[some[0].dataset], some[0].shots, head)
                known = self.memory.known(key, some, self.protocol.metric)
                found.update({(_which(d), head): known[name_of_draw(d)] for d in some if name_of_draw(d) in known})
        return found

    def _keep(self, draws: list[Draw], fresh: Mapping[Any, Run], digests: Mapping[str, str]) -> None:
        for some in _by_cell(draws) if digests else ():
            for head in self.heads:
                runs = {name_of_draw(d): fresh[_which(d), head] for d in some if (_which(d), head) in fresh}
                self.memory.keep(self._key(digests[some[0].dataset], some[0].shots, head), runs)


class _Said:
    """Progress as it is told to the caller."""

    def __init__(self, progress: Callable[[int, int, str], None] | None, total: int) -> None:
        self.progress, self.total, self.done = progress, total, 0

    def __call__(self, who: str, shots: int | str) -> None:
        self.done += 1
        if self.progress is not None:
            self.progress(self.done, self.total, f"{who} at {shots}")


def _result(
    sets: Mapping[str, Rows], cells: list[Scored], protocol: EvalProtocol, costs: Mapping[str, float | None]
) -> Result:
    notes = [f"{n}: {note}" for n, r in sets.items() for note in r.notes]
    rows = [row_of(some, protocol, extract_seconds=costs[some.dataset]) for some in cells]
    families: dict[tuple[str, int | str], list[Scored]] = {}
    for some in cells:
        families.setdefault((some.dataset, some.shots), []).append(some)
    pairs = []
    for (dataset, _), family in families.items():
        pairs += comparisons(family, protocol.metric, across=False)
        notes += notes_of_cell(sets[dataset], family, protocol.metric)
    for shots in protocol.shots:
        for same in _of_the_same_draws(sets, families, shots):
            pairs += comparisons(same, protocol.metric, across=True)
    notes += gains_of_views(sets, families)
    for dataset, rows_of_set in sets.items():
        draws = [draw for (name, _), family in families.items() if name == dataset for draw in family[0].draws]
        if leak := note_of_leaks(dataset, rows_of_set, draws):
            notes.append(leak)
    return Result(tuple(rows), tuple(pairs), tuple(dict.fromkeys(notes)), protocol.as_dict())


def _of_the_same_draws(
    sets: Mapping[str, Rows], families: Mapping[tuple[str, int | str], list[Scored]], shots: int | str
) -> Iterator[list[Scored]]:
    """Cells of all sets of codes that were drawn alike: images, labels and draws are the same."""
    alike: dict[str, list[Scored]] = {}
    for (dataset, number), family in families.items():
        if number == shots:
            alike.setdefault(drawn(sets[dataset], family[0].draws), []).extend(family)
    return (some for some in alike.values() if len({each.dataset for each in some}) > 1)
