"""Was fine-tuning worth it? The fine-tuned network and the cached head on the same images, with an interval."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..evaluation.intervals import Cell, differences, interval

__all__ = ["Outcome", "outcome_of"]


@dataclass(frozen=True)
class Outcome:
    """What fine-tuning changed, on images that neither the head nor the network was trained on, but for `caution`.

    Parameters
    ----------
    part : str
        "test", or "val" where there are no test images.
    n_images : int
        How many.
    head, finetuned : float
        Accuracies.
    head_ci95, finetuned_ci95 : tuple of float
        Their 95 % intervals, of these images alone: another training set would move both.
    difference : float
        Accuracy of the network less that of the head.
    difference_ci95 : tuple of float
        Its 95 % interval, paired by image (by group where there are groups).
    p : float
        Two-sided p-value.
    caution : str, default=""
        Why the comparison is not fair, where it is not.
    """

    part: str
    n_images: int
    head: float
    finetuned: float
    head_ci95: tuple[float, float]
    finetuned_ci95: tuple[float, float]
    difference: float
    difference_ci95: tuple[float, float]
    p: float
    caution: str = ""

    @property
    def worth_it(self) -> bool | None:
        """Whether the network is better than the head; None where these images cannot tell.

        Images that chose the epoch never can: the best of many epochs, the first among them, looks no worse than it.
        """
        if self.p >= 0.05 or self.difference == 0.0 or self.part == "val" or self.caution:
            return None
        return self.difference > 0.0

    @property
    def verdict(self) -> str:
        """One sentence, in points of accuracy."""
        low, high = (100 * bound for bound in self.difference_ci95)
        gain = f"{100 * self.difference:+.1f} points [{low:+.1f}, {high:+.1f}]"
        where = f"on {self.n_images} {self.part} images"
        if self.part == "val" or self.caution:
            why = self.caution or "they chose the epoch, which flatters the network; hold out test images"
            said = f"{gain} {where}, but {why}"
        elif self.worth_it is None:
            said = f"the head and the fine-tuned network cannot be told apart {where} ({gain}); the head is cheaper"
        elif self.worth_it:
            said = f"fine-tuning was worth it: {gain} {where}"
        else:
            said = f"fine-tuning made it worse: {gain} {where}; keep the head"
        return said

    @property
    def metrics(self) -> dict[str, dict[str, float]]:
        """The network's accuracy as a bundle states it."""
        low, high = self.finetuned_ci95
        return {f"accuracy ({self.part})": {"value": self.finetuned, "low": low, "high": high, "n": self.n_images}}

    def as_dict(self) -> dict[str, Any]:
        """Return all fields, the verdict, and `worth_it`, in JSON types."""
        pairs = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        return {**pairs, "worth_it": self.worth_it, "verdict": self.verdict}


def outcome_of(
    true: np.ndarray,
    head: np.ndarray,
    finetuned: np.ndarray,
    *,
    part: str,
    units: np.ndarray | None = None,
    caution: str = "",
) -> Outcome:
    """Compare predictions of the head and of the fine-tuned network.

    Parameters
    ----------
    true, head, finetuned : ndarray of int of shape (n,)
        Class numbers: the labels, and what each said.
    part : str
        "test" or "val".
    units : ndarray of shape (n,), default=None
        Group of each image; None where each stands for itself.
    caution : str, default=""
        As `Outcome` has it.

    Returns
    -------
    Outcome

    Examples
    --------
    >>> true = np.arange(40) % 2
    >>> outcome_of(true, 1 - true, true, part="test").worth_it
    True
    """
    units = np.arange(len(true)) if units is None else np.unique(units, return_inverse=True)[1]
    before, after = (_cell(said == true, true, units) for said in (head, finetuned))
    found = differences([after, before])[0, 1]
    return Outcome(
        part,
        len(true),
        before.mean,
        after.mean,
        interval(before),
        interval(after),
        found.mean,
        found.ci95,
        found.p,
        caution,
    )


def _cell(hits: np.ndarray, true: np.ndarray, units: np.ndarray) -> Cell:
    """One draw: contributions of the images to the accuracy, around it and around their class's."""
    n, own = len(hits), np.unique(true, return_inverse=True)[1]
    rates = np.bincount(own, hits) / np.bincount(own)
    gains, within = (np.bincount(units, part / n)[None, :] for part in (hits - hits.mean(), hits - rates[own]))
    return Cell(np.asarray([hits.mean()]), np.arange(units.max() + 1), gains, within, 0.0, False)
