"""forecast(): a learning curve carried on beyond the labels there are, with an interval that knows that curves bend."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import HeadError
from ..reporting import SMALLER_IS_BETTER, Result
from .power_laws import Curves, curves_through

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
        The metric at `n`, smoothed by the curve.
    mean : float
        The metric at `factor` x `n` rows.
    ci95 : tuple of float
        Its 95 % interval: (low, high).
    gain : float
        mean - now (of metrics that should be small, too: there gains are negative).
    gain_sd : float
        Standard deviation of the gain.
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
            For n out of range.
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
        if not isinstance(target, (int, float)) or not np.isfinite(target):
            raise HeadError(f"target: expected a value of {self.metric}, got {target!r}")
        curves = self._known()
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
        return {"target": float(target), "n": middle, "ci95": [low, high], "chance": chance, "statement": said}

    def curve(self, factor: float | None = None, *, points: int = 25) -> list[dict[str, Any]]:
        """Return the forecast from `n` to `factor` x `n` (default: its own factor): what a plot needs."""
        return [self.at(self.n * f) for f in np.geomspace(1.0, factor or self.factor, points)]

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
        One per data set and head, in the order of the Result; none for those with fewer than three numbers of shots.

    Raises
    ------
    HeadError
        A factor out of range, something that is no Result, or no curve of three points.

    Notes
    -----
    The posterior is computed on a grid of the exponent (2^-c has the prior Beta(8, 2)), of the gain of the last
    doubling (flat, 0 or more) and of three sizes of wandering; the level now has a closed form. Errors of the means
    come from the rows' own intervals; draws of one seed are nested and share test rows, so that errors at neighbouring
    n are correlated: as measured across the seeds, shrunken towards 0.7 per doubling.

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
    number = isinstance(factor, (int, float)) and not isinstance(factor, bool)
    if not number or not 1 < factor <= _FURTHEST:
        raise HeadError(f"factor: expected a number above 1, at most {_FURTHEST:g}, got {factor!r}")
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in result.rows:
        cells.setdefault((row["dataset"], row["head"]), []).append(row)
    curves = {cell: _points(rows) for cell, rows in cells.items()}
    found = tuple(_forecast(*cell, rows, float(factor)) for cell, rows in curves.items() if len(rows) >= 3)
    if not found:
        raise HeadError(
            "forecast: expected a curve of three points or more, the Result has none; compare with shots=[2, 5, 10, 20]"
        )
    return found


def _points(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row per number of training rows, ascending; of two that are equal the one with more draws."""
    kept: dict[int, dict[str, Any]] = {}
    for row in rows:
        if row["mean"] is None or not np.isfinite(row["mean"]) or row["n_train"] < 1:
            continue
        old = kept.get(row["n_train"])
        if old is None or len(row["scores"]) > len(old["scores"]):
            kept[row["n_train"]] = row
    return [kept[n] for n in sorted(kept)]


def _forecast(dataset: str, head: str, rows: list[dict[str, Any]], factor: float) -> Forecast:
    n, curves = int(rows[-1]["n_train"]), curves_through(rows)
    told = _at(curves, n, n * factor)
    found = Forecast(
        dataset,
        head,
        str(rows[-1]["metric"]),
        n,
        factor,
        now=float(curves.at(0.0).mean()),
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


def _at(curves: Curves, n_now: int, n: float) -> dict[str, Any]:
    if not np.isfinite(n) or not n_now <= n <= _FURTHEST * n_now * (1 + 1e-9):
        raise HeadError(f"n: expected a number of rows from {n_now} to {_FURTHEST * n_now:g}, got {n!r}")
    values = curves.at(max(float(np.log2(n / n_now)), 0.0))
    gains = values - curves.at(0.0)
    return {
        "n": round(float(n)),
        "mean": float(values.mean()),
        "ci95": [float(q) for q in np.quantile(values, [0.025, 0.975])],
        "gain": float(gains.mean()),
        "gain_sd": float(gains.std()),
        "gain_ci95": [float(q) for q in np.quantile(gains, [0.025, 0.975])],
    }


def _rows_for(n: int, factor: float) -> int | None:
    return int(np.ceil(n * factor)) if np.isfinite(factor) else None
