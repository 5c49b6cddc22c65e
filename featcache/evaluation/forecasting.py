"""forecast(): a learning curve carried on beyond the labels there are, with an interval that knows that curves bend."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from ..errors import HeadError
from ..reporting import SMALLER_IS_BETTER, Result
from ..splits import whole_number
from .power_laws import LEAST, Curves, curves_through

__all__ = ["Forecast", "forecast"]

#: Nothing is said beyond so many times the labels there are.
_FURTHEST = 64.0


@dataclass(frozen=True)
class Forecast:
    """What more labels of the same kind would bring to one head on one data set.

    Parameters
    ----------
    dataset, head, metric : str
        As in the rows of the Result.
    n : int
        Training rows at the end of the measured curve.
    factor : float
        How many times that is forecast.
    now : float
        The metric at `n`, smoothed by the curve: the median of the curves that fit, as all values here.
    mean : float
        The metric, a mean over draws, at `factor` x `n` rows.
    ci95 : tuple of float
        Its 95 % interval, the shortest: (low, high).
    gain : float
        mean - now (of metrics that should be small, too: there gains are negative).
    gain_sd : float
        Half the width of the gain's interval, divided by 1.96: its standard deviation if it were normal.
    gain_ci95 : tuple of float
        95 % interval of the gain.
    asymptote : float
        Median of where the curves that fit end.
    points : int
        Numbers of shots that the curve was fitted to.

    Notes
    -----
    `at` and `labels_for` ask for other numbers of rows; they use draws from the posterior that are no part of the JSON.
    """

    dataset: str
    head: str
    metric: str
    n: int
    factor: float
    now: float
    mean: float
    ci95: tuple[float, float]
    gain: float
    gain_sd: float
    gain_ci95: tuple[float, float]
    asymptote: float
    points: int
    _curves: Curves | None = field(default=None, init=False, repr=False, compare=False)

    def __str__(self) -> str:
        return self.statement()

    def statement(self) -> str:
        """Return the forecast as a sentence."""
        many = "doubling" if self.factor == 2 else f"{self.factor:g} times"
        unit, scale, digits = (" points", 100.0, 1) if self.metric not in SMALLER_IS_BETTER else ("", 1.0, 3)
        low, high = (f"{scale * bound:+.{digits}f}" for bound in self.gain_ci95)
        return (
            f"{self.dataset}, {self.head}: {many} the labels from {self.n} to {round(self.n * self.factor)}: "
            f"{scale * self.gain:+.{digits}f} ± {scale * self.gain_sd:.{digits}f}{unit} "
            f"(95 % interval {low} to {high})"
        )

    def at(self, n: float) -> dict[str, Any]:
        """Return the forecast at n training rows.

        Parameters
        ----------
        n : float
            At least `self.n`, at most 64 times that.

        Returns
        -------
        dict
            n, mean, ci95, gain, gain_sd, gain_ci95.

        Raises
        ------
        HeadError
            For n out of range, or no number.
        """
        return _at(self._known(), self.n, n)

    def labels_for(self, target: float) -> dict[str, Any]:
        """Return how many training rows a wanted value of the metric needs.

        Parameters
        ----------
        target : float
            The value, such as 0.9.

        Returns
        -------
        dict
            target; n, the rows at which the middle curve reaches it (None where it does not within 64 times the rows
            there are); ci95 (low, high), None where a bound is not reached; chance, the share of the curves that reach
            it; statement.

        Raises
        ------
        HeadError
            For a target that is no finite number.
        """
        if not _is_number(target):
            raise HeadError(f"target: expected a value of {self.metric}, got {target!r}")
        curves, target = self._known(), float(target)
        factors = np.exp2(np.linspace(0.0, np.log2(_FURTHEST), 193))
        values = np.stack([curves.at(np.log2(f)) for f in factors])  # factors x draws
        reached = values <= target if curves.falls else values >= target
        needed = np.where(reached.any(axis=0), factors[reached.argmax(axis=0)], np.inf)
        low, middle, high = (_rows_for(self.n, q) for q in np.quantile(needed, [0.025, 0.5, 0.975], method="nearest"))
        where = f"{self.dataset}, {self.head}: {self.metric} {target:g}"
        if middle is None:
            least = "" if low is None else f"; {low} rows at the least"
            said = f"{where} is not reachable by this curve within {_FURTHEST:g} times the labels{least}"
        elif middle <= self.n:
            said = f"{where} is reached with the {self.n} rows there are"
        else:
            said = (
                f"{where} needs about {middle} training rows (95 % interval {low} to {high or 'more than can be said'})"
            )
        chance = float(np.isfinite(needed).mean())
        return {"target": target, "n": middle, "ci95": [low, high], "chance": chance, "statement": said}

    def curve(self, factor: float | None = None, *, points: int = 25) -> list[dict[str, Any]]:
        """Return the forecast from `n` to `factor` x `n` rows: what a plot needs.

        Parameters
        ----------
        factor : float, default=None
            Above 1, at most 64; None: the forecast's own.
        points : int, default=25
            How many, 2 or more, evenly spaced over log n.

        Returns
        -------
        list of dict
            Of `at`.

        Raises
        ------
        HeadError
            For a factor or number of points out of range.
        """
        if not whole_number(points, 2):
            raise HeadError(f"points: expected a whole number of 2 or more, got {points!r}")
        far = self.factor if factor is None else _checked(factor)
        return [self.at(self.n * float(f)) for f in np.geomspace(1.0, far, points)]

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON, the sentence among them."""
        plain = {name: value for name, value in self.__dict__.items() if not name.startswith("_")}
        plain |= {name: list(plain[name]) for name in ("ci95", "gain_ci95")}
        return {**plain, "statement": self.statement()}

    def to_json(self, *, indent: int | None = None) -> str:
        """Return `as_dict` as JSON."""
        return json.dumps(self.as_dict(), indent=indent, ensure_ascii=False, allow_nan=False)

    def _known(self) -> Curves:
        if self._curves is None:
            raise HeadError(f"Forecast of {self.head}: its curves were not kept; call forecast() on the Result again")
        return self._curves


def forecast(result: Result, *, factor: float = 2.0) -> tuple[Forecast, ...]:
    """Carry on each learning curve of a comparison: what more labels of the same kind would bring.

    The odds of an error are taken to follow a power law a + b n^-c of the training rows n, from which real curves
    wander off. All such curves that agree with the measured means take part, weighted by how well they do; so the
    interval holds what the draws leave open and what the form of the curve leaves open.

    Parameters
    ----------
    result : Result
        Of `compare` with three numbers of shots or more; "all" counts with its rows. Of each row dataset, head, metric,
        n_train, mean, ci95, scores and seeds are used.
    factor : float, default=2.0
        How many times the most training rows that were measured; above 1, at most 64.

    Returns
    -------
    tuple of Forecast
        One per data set and head, in the order of the Result; none for those with fewer than three numbers of shots at
        which the metric is 0.02 or more (0 or more where it falls) and at most 1: where hardly any image is right, the
        odds of an error say nothing.

    Raises
    ------
    HeadError
        A factor out of range, something that is no Result, or no curve of three points.

    Notes
    -----
    The posterior is computed on a grid of the exponent (2^-c has the prior Beta(8, 2)), of the gain of the last
    doubling (flat, 0 or more) and of three sizes of wandering; the level now has a closed form. Errors of the means
    come from the rows' own intervals: a part by which draws differ, and one that all draws share, since they have the
    same few images; at twice the rows errors are taken to be correlated by 0.7 and 0.9.

    What is forecast is the mean over draws on test rows like those of the comparison, for labels drawn like the present
    ones. Images that were chosen (see `suggest`) or come from elsewhere may bring more or less.

    References
    ----------
    J. Hestness et al., "Deep learning scaling is predictable, empirically", 2017, arXiv 1712.00409. T. Viering and
    M. Loog, "The shape of learning curves: a review", TPAMI 2023, arXiv 2103.10948 (why one form is not to be trusted).

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from featcache import FeatureSet, compare
    >>> X, y = load_digits(return_X_y=True)
    >>> result = compare(FeatureSet(X, y, name="digits"), ["centroid"], shots=[1, 2, 5, 10, 20], seeds=5)
    >>> found = forecast(result)[0]
    >>> found.n, found.gain >= 0, found.statement().startswith("digits, centroid: doubling the labels from 200 to 400")
    (200, True, True)
    """
    if not isinstance(result, Result):
        raise HeadError(f"result: expected the Result of compare(), got {type(result).__name__}")
    factor = _checked(factor)
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result.rows:
        cells.setdefault((row["dataset"], row["head"]), []).append(row)
    curves = {cell: _points(rows) for cell, rows in cells.items()}
    found = tuple(_forecast(*cell, rows, factor) for cell, rows in curves.items() if len(rows) >= 3)
    if not found:
        raise HeadError(_why_none(cells))
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and bool(np.isfinite(float(value)))


def _checked(factor: Any) -> float:
    if not _is_number(factor) or not 1 < factor <= _FURTHEST:
        raise HeadError(f"factor: expected a number above 1, at most {_FURTHEST:g}, got {factor!r}")
    return float(factor)


def _why_none(cells: Mapping[tuple[str, str], list[dict[str, Any]]]) -> str:
    for (dataset, head), rows in cells.items():
        left_out = [row for row in rows if _measured(row) and not _usable(row)]
        if left_out and len({row["n_train"] for row in rows if _measured(row)}) >= 3:
            row = left_out[0]
            least = "0 or more" if row["metric"] in SMALLER_IS_BETTER else f"{LEAST:g} to 1"
            return (
                f"{dataset}, {head}: expected {row['metric']} of {least} at three points, got {row['mean']:g} at "
                f"{row['n_train']} rows; compare with more shots"
            )
    return "forecast: expected a curve of three points or more, the Result has none; compare with shots=[2, 5, 10, 20]"


def _measured(row: Mapping[str, Any]) -> bool:
    return row["mean"] is not None and bool(np.isfinite(row["mean"])) and row["n_train"] >= 1


def _usable(row: Mapping[str, Any]) -> bool:
    """Whether the odds of an error say something: not where hardly any row is right."""
    return row["mean"] >= 0.0 if row["metric"] in SMALLER_IS_BETTER else LEAST <= row["mean"] <= 1.0


def _points(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per number of training rows, ascending, from where the metric says something on.

    Of two that are equal the one with more draws.
    """
    kept: dict[int, dict[str, Any]] = {}
    for row in rows:
        if not _measured(row):
            continue
        old = kept.get(row["n_train"])
        if old is None or len(row["scores"]) > len(old["scores"]):
            kept[row["n_train"]] = row
    points: list[dict[str, Any]] = []
    for n in sorted(kept):
        points = [*points, kept[n]] if _usable(kept[n]) else []
    return points


def _forecast(dataset: str, head: str, rows: list[dict[str, Any]], factor: float) -> Forecast:
    n, curves = int(rows[-1]["n_train"]), curves_through(rows)
    told = _at(curves, n, n * factor)
    found = Forecast(
        dataset,
        head,
        str(rows[-1]["metric"]),
        n,
        factor,
        now=float(np.median(curves.at(0.0))),
        mean=told["mean"],
        ci95=tuple(told["ci95"]),
        gain=told["gain"],
        gain_sd=told["gain_sd"],
        gain_ci95=tuple(told["gain_ci95"]),
        asymptote=float(np.median(curves.ends())),
        points=len(rows),
    )
    object.__setattr__(found, "_curves", curves)  # no part of what it says, so no part of its signature either
    return found


def _at(curves: Curves, n_now: int, n: Any) -> dict[str, Any]:
    if not _is_number(n) or not n_now * (1 - 1e-9) <= n <= _FURTHEST * n_now * (1 + 1e-9):
        said = f"{n:g}" if _is_number(n) else repr(n)
        raise HeadError(f"n: expected a number of rows from {n_now} to {_FURTHEST * n_now:g}, got {said}")
    now, values = curves.at(0.0), curves.at(max(float(np.log2(n / n_now)), 0.0))
    # Medians: some curves wander far off where little is known, and would draw a mean out of what is likely.
    mean, (low, high) = float(np.median(values)), (float(q) for q in np.quantile(values - now, [0.025, 0.975]))
    return {
        "n": round(float(n)),
        "mean": mean,
        "ci95": _shortest(values),
        "gain": mean - float(np.median(now)),
        "gain_sd": (high - low) / (2 * 1.96),
        "gain_ci95": [low, high],
    }


def _shortest(values: np.ndarray) -> list[float]:
    """The shortest interval that holds 95 % of the draws: where all test rows are right, it reaches up to that."""
    values = np.sort(values)
    held = int(np.ceil(0.95 * len(values)))
    first = int((values[held - 1 :] - values[: len(values) - held + 1]).argmin())
    return [float(values[first]), float(values[first + held - 1])]


def _rows_for(n: int, factor: float) -> int | None:
    return int(np.ceil(n * factor)) if np.isfinite(factor) else None
