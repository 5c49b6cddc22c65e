"""What `verify` found as plain numbers: means and intervals over draws of held-out identities."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import stats

from .episodes import TASKS, Episode, summary
from .subjects import Subjects

__all__ = ["FAR_GRID", "Draw", "comparison", "curves", "row"]

#: False-accept rates of the curves.
FAR_GRID = np.logspace(-4, 0, 161)


@dataclass(frozen=True)
class Draw:
    """Rows of training and of test identities, and tasks on the latter, the same for all metrics."""

    seed: int
    train: np.ndarray
    test: np.ndarray
    tasks: tuple[tuple[int, int, list[Episode]], ...]


def row(
    dataset: str, name: str, runs: list[dict[str, Any]], draws: Sequence[Draw], subjects: Subjects, overlap: float
) -> dict[str, Any]:
    """Return one metric's row of the result."""
    eers = np.asarray([run["eer"] for run in runs])
    if len(runs) == 1:
        interval, method = list(runs[0]["interval"]), "bootstrap over identities"
    else:
        mean, half = float(eers.mean()), _half(eers, overlap)
        interval, method = [max(0.0, mean - half), min(1.0, mean + half)], "corrected t over draws"

    def mean_of(key: str) -> float:
        return float(np.mean([run[key] for run in runs]))

    return {
        "dataset": dataset,
        "metric": name,
        "eer": float(eers.mean()),
        "ci95": interval,
        "ci_method": method,
        "auroc": mean_of("auroc"),
        "d_prime": mean_of("d_prime"),
        "tar": {rate: float(np.mean([run["tar"][rate] for run in runs])) for rate in runs[0]["tar"]},
        "far_measured": mean_of("far_measured"),
        "tar_measured": mean_of("tar_measured"),
        "n_genuine": round(mean_of("n_genuine")),
        "n_impostor": round(mean_of("n_impostor")),
        "train_identities": round(float(np.mean([len(np.unique(subjects.codes[d.train])) for d in draws]))),
        "test_identities": round(float(np.mean([len(np.unique(subjects.codes[d.test])) for d in draws]))),
        "tasks": _tasks(runs, overlap),
        "fit_seconds": mean_of("seconds"),
        "chosen": [run["chosen"] for run in runs],
        "seeds": [draw.seed for draw in draws],
        "eers": eers.tolist(),
    }


def _tasks(runs: list[dict[str, Any]], overlap: float) -> list[dict[str, Any]]:
    """Identification over all draws: the interval is over draws where there are several, else over tasks."""
    out = []
    for position in range(len(TASKS)):
        drawn = [run["tasks"][position] for run in runs if len(run["tasks"][position][3])]
        if not drawn:
            continue
        ways, shots = drawn[0][:2]
        figures = summary(ways, shots, drawn[0][2], np.concatenate([each[3] for each in drawn]))
        assert figures is not None
        figures["ways"] = min(each[2][0].enrolled.shape[0] for each in drawn)
        if len(drawn) > 1:
            means = np.asarray([each[3].mean() for each in drawn])
            mean, half = float(means.mean()), _half(means, overlap)
            figures |= {"accuracy": mean, "ci95": [max(0.0, mean - half), min(1.0, mean + half)]}
            figures["accuracies"] = means.tolist()
        out.append(figures)
    return out


def _half(values: np.ndarray, overlap: float) -> float:
    """Half the 95 % interval of a mean over draws that share identities (Nadeau and Bengio)."""
    n = len(values)
    return float(stats.t.ppf(0.975, n - 1) * values.std(ddof=1) * np.sqrt(1 / n + overlap / (1 - overlap)))


def comparison(name: str, cells: dict[str, list[dict[str, Any]]], overlap: float) -> dict[str, Any]:
    """Return how far a metric's equal error rate lies from the cosine's, paired by draw."""
    difference = np.asarray([run["eer"] for run in cells[name]]) - [run["eer"] for run in cells["cosine"]]
    mean = float(difference.mean())
    out: dict[str, Any] = {"metric": name, "against": "cosine", "difference": mean, "draws": len(difference)}
    if len(difference) > 1:
        half = _half(difference, overlap)
        out |= {"ci95": [mean - half, mean + half], "lower_in": int((difference < 0).sum())}
    return out


def curves(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return what `plot_verification` draws of one metric."""
    frr = np.mean([run["frr_on_grid"] for run in runs], axis=0)
    return {
        "far": FAR_GRID.tolist(),
        "frr": frr.tolist(),
        "histogram": runs[0]["histogram"],
        "threshold": runs[0]["threshold"],
    }
