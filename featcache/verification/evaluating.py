"""verify(): metrics compared on identities that none of them has seen, with intervals."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..errors import HeadError, SplitError
from ..features import FeatureSet
from ..splits import has_named_splits, named_splits, whole_number
from .choosing import METRICS, check_metric_name
from .episodes import TASKS, draw_episodes, episode_accuracy
from .pairs import apart, identity_folds, pair_counts
from .rates import RULE_OF, Curve, ScoreHistogram, all_scores, d_prime, eer_interval, streamed_histogram
from .subjects import Subjects, column
from .summarising import FAR_GRID, Draw, comparison, curves, row
from .verifier import Verifier

__all__ = ["verify"]

#: Above this many pairs they are counted in bins instead of sorted, and drawn for what needs them one by one.
_EXACT = 6_000_000


def verify(
    data: FeatureSet,
    metric: str | Sequence[str] = "auto",
    *,
    identity: str = "label",
    domain: str | None = None,
    burst: str | None = None,
    far: float = 0.01,
    seeds: int = 5,
    test_size: float = 0.3,
    cv: int = 3,
    episodes: int = 400,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Measure how well cached codes tell whether two images show the same identity.

    Each seed holds out whole identities; a metric is chosen, trained and given its threshold on the others alone, and
    then meets the held-out ones once: all pairs of their images, and tasks of one-shot identification. The cosine
    baseline always takes part, on the same identities, pairs and tasks.

    Parameters
    ----------
    data : FeatureSet
        Codes with identities.
    metric : str or sequence of str, default="auto"
        "auto", "cosine", "whiten", "wccn", "lda", "plda", "siamese", several of them, or "all".
    identity : str, default="label"
        Which column names the identity: "label", "group", "split" or another one.
    domain : str, default=None
        Column whose values (alphabets, families) are held out whole, and within which tasks are drawn. None: the group
        column where it is not the identity, else none. Where the split column has train and test parts that share no
        identity, these are the one draw.
    burst : str, default=None
        Column of bursts: two rows of one burst are never paired, and in tasks of identification none is enrolled to
        name the other by.
    far : float, default=0.01
        Wanted false-accept rate of the threshold.
    seeds : int, default=5
        Draws of held-out identities.
    test_size : float, default=0.3
        Share of the identities (or domains) held out.
    cv : int, default=3
        Folds of training identities on which settings are chosen.
    episodes : int, default=400
        Tasks of identification of each kind and draw.
    progress : callable, default=None
        Called as progress(done, total, what) after each fit.

    Returns
    -------
    dict
        Plain data for JSON. results: one row per metric (eer, ci95, ci_method, auroc, d_prime, tar at false-accept
        rates of 1 % and 0.1 %, far_measured and tar_measured at the threshold set in training, tasks, fit_seconds,
        chosen, eers per draw). comparisons: each metric's EER less the cosine's, paired, with interval. curves: mean
        false rejects over false accepts, and score histograms of the first draw, for `plot_verification`. notes,
        settings.

    Raises
    ------
    HeadError
        Unknown metric or column, too few identities or pairs, NaN in the codes, a setting out of range.
    SplitError
        Identities or domains that cannot be divided.

    References
    ----------
    Lake, Salakhutdinov, Tenenbaum: Human-level concept learning through probabilistic program induction. Science 2015.
    Nadeau, Bengio: Inference for the generalization error. Machine Learning 52, 2003 (intervals over draws).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> X, y = load_digits(return_X_y=True)
    >>> found = verify(FeatureSet(X[:600], y[:600]), "wccn", seeds=2, far=0.1, episodes=20)
    >>> [row["metric"] for row in found["results"]]
    ['cosine', 'wccn']
    """
    names = _names(metric)
    _check(data, far, seeds, test_size, cv, episodes)
    subjects, groups, notes = _subjects(data, identity, domain, burst)
    draws = list(_draws(data, subjects, groups, seeds, test_size, episodes, notes))
    cells: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    done = 0
    for draw in draws:
        for name in names:
            cells[name].append(_measure(name, subjects, draw, far, cv, single=len(draws) == 1))
            done += 1
            if progress is not None:
                progress(done, len(draws) * len(names), f"{name}, draw {draw.seed}")
    overlap = float(np.mean([len(np.unique(subjects.codes[d.test])) for d in draws])) / len(subjects.names)
    dataset = data.name or "data"
    results = [row(dataset, name, runs, draws, subjects, overlap) for name, runs in cells.items()]
    notes += [note for runs in cells.values() for run in runs for note in run["notes"]]
    impostors = int(np.mean([run["n_impostor"] for run in cells["cosine"]]))
    for rate in (0.01, 0.001):
        if rate * impostors < RULE_OF:
            notes.append(
                f"TAR at FAR {rate:g} rests on fewer than {RULE_OF} of {impostors} impostor pairs: read with care"
            )
    return {
        "results": results,
        "comparisons": [comparison(name, cells, overlap) for name in names if name != "cosine"],
        "curves": {name: curves(runs) for name, runs in cells.items()},
        "notes": list(dict.fromkeys([*subjects.notes, *notes])),
        "settings": {
            "dataset": dataset,
            "identity": identity,
            "domain": domain,
            "burst": burst,
            "far": float(far),
            "seeds": len(draws),
            "test_size": float(test_size),
            "cv": int(cv),
            "episodes": int(episodes),
        },
    }


def _names(metric: Any) -> list[str]:
    words = [metric] if isinstance(metric, str) else list(metric) if isinstance(metric, (list, tuple)) else [metric]
    if words == ["all"]:
        words = [*METRICS]
    if not words:
        raise HeadError("metric: expected one or more, got none")
    for word in words:
        check_metric_name(word)
    return list(dict.fromkeys(["cosine", *words]))


def _check(data: Any, far: Any, seeds: Any, test_size: Any, cv: Any, episodes: Any) -> None:
    if not isinstance(data, FeatureSet):
        raise HeadError(f"data: expected a FeatureSet, got {type(data).__name__}; wrap arrays as FeatureSet(X, y)")
    for name, value, least in (("seeds", seeds, 1), ("cv", cv, 2), ("episodes", episodes, 0)):
        if not whole_number(value, least):
            raise HeadError(f"{name}: expected a whole number of {least} or more, got {value!r}")
    for name, value in (("far", far), ("test_size", test_size)):
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1:
            raise HeadError(f"{name}: expected a share between 0 and 1, got {value!r}")


def _subjects(
    data: FeatureSet, identity: str, domain: str | None, burst: str | None
) -> tuple[Subjects, np.ndarray | None, list[str]]:
    """The rows, and the domain of each."""
    groups = None if domain is None else column(data, domain)
    subjects = Subjects.of(
        data, identity=identity, groups=groups, bursts=None if burst is None else column(data, burst)
    )
    if len(subjects.names) < 4:
        raise HeadError(
            f"{subjects.name}: expected four identities or more, two to train on and two to test, got "
            f"{len(subjects.names)}; name another column in identity"
        )
    return subjects, subjects.groups, []


def _draws(
    data: FeatureSet,
    subjects: Subjects,
    groups: np.ndarray | None,
    seeds: int,
    test_size: float,
    episodes: int,
    notes: list[str],
) -> Iterator[Draw]:
    parts = _named_parts(data, subjects, notes)
    for seed in range(1 if parts else seeds):
        train, test = parts or _held_out(subjects, groups, test_size, seed)
        _check_disjoint(subjects.codes[train], subjects.codes[test], subjects.names)
        within = None if groups is None else groups[test]
        codes = subjects.codes[test]
        bursts = None if subjects.bursts is None else apart(subjects.bursts[test], len(test))
        tasks = tuple(
            (n, k, draw_episodes(codes, n, k, episodes, groups=within, bursts=bursts, seed=seed)) for n, k in TASKS
        )
        yield Draw(seed, train, test, tasks)


def _named_parts(data: FeatureSet, subjects: Subjects, notes: list[str]) -> tuple[np.ndarray, np.ndarray] | None:
    """Rows of the train (and val) and test parts that the source names, where they share no identity."""
    if not has_named_splits(data.splits):
        return None
    assert data.splits is not None
    place = {name: i for i, name in enumerate(data.row_ids.tolist())}
    parts = named_splits(data.splits[[place[name] for name in subjects.ids.tolist()]])
    if not {"train", "test"} <= parts.keys():
        return None
    train = np.sort(np.concatenate([parts["train"], parts.get("val", parts["train"][:0])]))
    if np.intersect1d(subjects.codes[train], subjects.codes[parts["test"]]).size:
        notes.append("the split column has identities on both sides: not used, identities are held out by seed")
        return None
    return train, parts["test"]


def _held_out(
    subjects: Subjects, groups: np.ndarray | None, test_size: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows to train and to test: whole identities, in the order of a shuffle, until the share is reached."""
    units = identity_folds(subjects.codes, len(subjects.names), groups=groups, seed=0)  # one unit per fold
    if len(units) < 2:
        raise SplitError(f"{subjects.name}: expected identities (or domains) that can be divided, got one")
    order = np.random.default_rng([seed, 0x7E57]).permutation(len(units))
    n = int(np.clip(round(test_size * len(units)), 1, len(units) - 1))
    if groups is None:  # two identities at least on each side
        n = int(np.clip(n, 2, len(units) - 2))
    test = np.sort(np.concatenate([units[i] for i in order[:n]]))
    return np.setdiff1d(np.arange(len(subjects.codes)), test), test


def _check_disjoint(train: np.ndarray, test: np.ndarray, names: np.ndarray) -> None:
    """Refuse identities on both sides: a metric that has seen them says nothing about new ones."""
    both = np.intersect1d(train, test)
    if both.size:
        raise HeadError(
            f"identities: expected none on both sides of the split, got {both.size} ({names[both[0]]!r}, …); "
            "hold out whole identities"
        )


def _measure(name: str, subjects: Subjects, draw: Draw, far: float, cv: int, *, single: bool) -> dict[str, Any]:
    """Fit one metric on the training identities of a draw and score the held-out ones."""
    train, test = subjects.select(draw.train), subjects.select(draw.test)
    bursts = apart(test.bursts, len(test.X))
    genuine, impostor = pair_counts(test.codes, bursts)
    if not genuine or not impostor:
        raise HeadError(
            f"{subjects.name}: the {len(test.names)} held-out identities have {genuine} pairs of one identity and "
            f"{impostor} of two; give identities more images{' or other bursts' * (bursts is not None)}, or a larger "
            "test_size"
        )
    verifier = Verifier(name, far=far, cv=cv, random_state=draw.seed)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # what fit warns of, it also notes
        verifier.fit(train.X, train.names[train.codes], groups=train.groups, bursts=train.bursts)
    seconds = time.perf_counter() - start
    metric = verifier.metric_
    vectors = metric.transform(test.X)
    found = _scored(metric.score_matrix, vectors, test.codes, bursts, genuine + impostor, single)
    curve: Curve = found.pop("curve")
    measured_far, measured_frr = curve.rates_at(verifier.threshold_)
    tasks = [(n, k, tasks, episode_accuracy(metric, vectors, tasks)) for n, k, tasks in draw.tasks]
    return {
        **found,
        "eer": curve.eer(),
        "auroc": curve.auroc(),
        "tar": {f"{rate:g}": curve.tar_at(rate) for rate in sorted({far, 0.01, 0.001}, reverse=True)},
        "far_measured": measured_far,
        "tar_measured": 1.0 - measured_frr,
        "frr_on_grid": curve.frr_on(FAR_GRID),
        "threshold": verifier.threshold_,
        "n_genuine": genuine,
        "n_impostor": impostor,
        "tasks": tasks,
        "chosen": {"metric": verifier.metric_name_, **verifier.params_},
        "seconds": seconds,
        "notes": verifier.notes_,
    }


def _scored(
    score_matrix: Any, vectors: np.ndarray, codes: np.ndarray, bursts: np.ndarray | None, pairs: int, single: bool
) -> dict[str, Any]:
    """Curve, d', a histogram for the eye and, of a single draw, the interval over identities."""
    if pairs > _EXACT:
        frame = streamed_histogram(vectors, codes, score_matrix, bursts)
        curve = frame.curve()
        step = max(2, int(np.ceil(len(codes) / 3000)))
        kept = np.isin(codes, np.unique(codes)[::step])
        scores, same, first, second = all_scores(
            vectors[kept], codes[kept], score_matrix, None if bursts is None else bursts[kept]
        )
    else:
        scores, same, first, second = all_scores(vectors, codes, score_matrix, bursts)
        curve = Curve.of(scores[same], scores[~same])
    ends = [np.quantile(scores[same == kind], [0.0005, 0.9995]) for kind in (True, False)]
    view = ScoreHistogram(float(np.min(ends)), float(np.max(ends)), 60)
    view.add(scores, same)
    found: dict[str, Any] = {"curve": curve, "d_prime": d_prime(scores[same], scores[~same])}
    found["histogram"] = {"edges": view.edges.tolist(), "impostor": view.counts[0].tolist()}
    found["histogram"]["genuine"] = view.counts[1].tolist()
    found["interval"] = eer_interval(scores, first, second) if single else None
    return found
