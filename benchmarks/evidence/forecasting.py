"""Are learning curves forecast well: the gain of twice and four times the labels, and its 95 % interval?

Each user compares heads with five draws of its own, up to some number of shots, and is told by that Result what more
labels would bring. Users with large sets have all images, and draw other ones of them: the truth is the mean curve of
the other users. Users with small sets have a few images per class, drawn from the whole, for training and tests: the
truth is the mean curve of the whole set. The constants of the forecast were chosen by users of the same kinds with
other draws and other small sets; those of one set of images took no part in that.
The rivals are what people do by eye: the last value carried on, and a straight line over log n through the last two.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from measuring import claim
from parts import Skip

from featcache import Forecast, Result, compare, forecast
from featcache.features import FeatureSet
from featcache.splits import k_shot

from .case import REAL

ARCHS = ("mobilenet_v2", "squeezenet1_1")
HEADS = ("ridge", "centroid")
SHOTS = (1, 2, 5, 10, 20, 40, 80, 160)
#: Where users' own curves end.
ENDS = (10, 20, 40)
FACTORS = (2, 4)
DRAWS_PER_USER = 5
#: Images per class of users with small sets, a quarter of which they test on.
SMALL = (13, 27)
#: No constant of featcache/evaluation/power_laws.py was chosen by its curves.
HELD_OUT = "bccd_cells"

Cell = dict[str, Any]


def run(case: Any) -> dict[str, Any]:
    """Return figures and claims; `case.tiny` takes seconds, on generated codes."""
    names, archs = (REAL[:1], ARCHS[1:]) if case.tiny else (REAL, ARCHS)
    found: dict[str, list[Cell]] = {"large sets": [], "small sets": []}
    for name in names:
        for arch in archs:
            with contextlib.suppress(Skip):
                for user in users_of(case, name, arch):
                    found[user.kind] += [{"data": name, **cell} for cell in _judged(user)]
    rows = [_line(kind, factor, cells) for kind, cells in found.items() for factor in FACTORS if _of(cells, factor)]
    by_data = [
        {"data": name, **_line(kind, factor, some)}
        for kind, cells in found.items()
        for name in names
        for factor in FACTORS
        if (some := _of([cell for cell in cells if cell["data"] == name], factor))
    ]
    return {
        "draws per user": DRAWS_PER_USER,
        "held out when the forecast was tuned": HELD_OUT,
        "rows": rows,
        "by data": by_data,
        "claims": _claims(rows, by_data),
    }


@dataclass(frozen=True)
class User:
    """What `compare` told one user of one head, and the curve that is taken for the truth: (n_train, mean)."""

    kind: str
    rows: tuple[Cell, ...]
    truth: tuple[tuple[int, float], ...]


def users_of(case: Any, name: str, arch: str) -> Iterator[User]:
    """All users of one set of codes, each with draws of its own."""
    data = replace(case.load(name, arch), splits=None)
    assert data.y is not None
    heads = [*HEADS, "logreg"] if (name, arch) == ("pneumonia_xray", "squeezenet1_1") else list(HEADS)
    fewest = int(np.unique(data.y, return_counts=True)[1].min() * 0.75)
    shots = [k for k in (SHOTS[:5] if case.tiny else SHOTS) if k <= fewest]
    users = case.repeats or (2 if case.tiny else 3)
    told = [compare(_of_user(data, user), heads, shots=shots, seeds=DRAWS_PER_USER) for user in range(users)]
    curves = {head: [tuple(row for row in each.rows if row["head"] == head) for each in told] for head in heads}
    for own in curves.values():
        for user in range(users):
            others = _mean_curve([curve for i, curve in enumerate(own) if i != user])
            for end in ENDS:
                if end in shots and any(end * factor in shots for factor in FACTORS):
                    yield User("large sets", own[user][: shots.index(end) + 1], others)
    if arch != ARCHS[-1]:
        return
    for images in SMALL[:1] if case.tiny else SMALL:
        for user in range(2 * users):
            some = data.select(k_shot(data.y, images, ids=data.ids, seed=3000 + user))
            few: list[int | str] = [k for k in SHOTS if k < 0.6 * images]
            result = compare(some, list(HEADS), shots=[*few, "all"], seeds=DRAWS_PER_USER)
            for head in HEADS:
                yield User("small sets", tuple(r for r in result.rows if r["head"] == head), _mean_curve(curves[head]))


def _of_user(data: FeatureSet, user: int) -> FeatureSet:
    """The same images under names of their own: draws follow names."""
    return replace(data, ids=np.char.add(f"draws of user {user}: ", data.row_ids))


def _mean_curve(curves: list[tuple[Cell, ...]]) -> tuple[tuple[int, float], ...]:
    return tuple(
        (some[0]["n_train"], float(np.mean([row["mean"] for row in some]))) for some in zip(*curves, strict=True)
    )


def _judged(user: User) -> Iterator[Cell]:
    """A user's forecasts beside the truth."""
    (told,) = forecast(Result(user.rows))
    n, truth = np.log([each[0] for each in user.truth]), [each[1] for each in user.truth]
    last_two = [row["mean"] for row in user.rows[-2:]] if user.kind == "large sets" else None
    for factor in FACTORS:
        if np.log(told.n * factor) <= n[-1] + 1e-9:
            now, then = np.interp(np.log([told.n, told.n * factor]), n, truth)
            yield _cell(told, factor, float(then - now), float(then), last_two)


def _cell(told: Forecast, factor: int, gain: float, truth: float, last_two: Any) -> Cell:
    said = told.at(told.n * factor)
    return {
        "factor": factor,
        "gain": gain,
        "error": said["gain"] - gain,
        "level error": said["mean"] - truth,
        "inside": said["gain_ci95"][0] <= gain <= said["gain_ci95"][1],
        "level inside": said["ci95"][0] <= truth <= said["ci95"][1],
        "width": said["gain_ci95"][1] - said["gain_ci95"][0],
        # Ends are twice the numbers of shots before them, so that the line gains as much per doubling.
        "line": None if last_two is None else (last_two[1] - last_two[0]) * np.log2(factor) - gain,
    }


def _of(cells: list[Cell], factor: int) -> list[Cell]:
    return [cell for cell in cells if cell["factor"] == factor]


def _line(kind: str, factor: int, cells: list[Cell]) -> dict[str, Any]:
    cells = _of(cells, factor)

    def points(values: list[float]) -> float:
        return round(100 * float(np.mean(values)), 2)

    lines = [abs(cell["line"]) for cell in cells if cell["line"] is not None]
    return {
        "users": kind,
        "labels": f"x {factor}",
        "forecasts": len(cells),
        "true gain, points": points([cell["gain"] for cell in cells]),
        "bias, points": points([cell["error"] for cell in cells]),
        "mean error, points": points([abs(cell["error"]) for cell in cells]),
        "last value carried on": points([abs(cell["gain"]) for cell in cells]),
        "line over log n": points(lines) if lines else None,
        "interval holds the gain": round(float(np.mean([cell["inside"] for cell in cells])), 3),
        "interval holds the value": round(float(np.mean([cell["level inside"] for cell in cells])), 3),
        "width of the interval, points": points([cell["width"] for cell in cells]),
    }


def _claims(rows: list[dict[str, Any]], by_data: list[dict[str, Any]]) -> list[dict[str, Any]]:
    out = []
    for row in rows:
        rivals = [row[name] for name in ("last value carried on", "line over log n") if row[name] is not None]
        out.append(
            claim(f"{row['users']}: gain of {row['labels']}: mean error in points below that of the best rival "
                  f"({min(rivals)})", row["mean error, points"], row["mean error, points"] < min(rivals))
        )  # fmt: skip
    for what in ("gain", "value"):
        for kind in dict.fromkeys(row["users"] for row in by_data):
            shares = {
                f"{row['data']} {row['labels']}": row[f"interval holds the {what}"]
                for row in by_data
                if row["users"] == kind
            }
            out.append(claim(f"{kind}: 95 % intervals of the {what} hold it in 90 % or more, set by set", shares,
                             all(share >= 0.90 for share in shares.values())))  # fmt: skip
    held = [row["interval holds the gain"] for row in rows]
    out.append(claim("and are not wider than need be: over all sets those of the gain hold it in 98 % or fewer", held,
                     all(share <= 0.98 for share in held)))  # fmt: skip
    return out
