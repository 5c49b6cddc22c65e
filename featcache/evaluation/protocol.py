"""EvalProtocol: what a comparison does, as pure data; and the draws it means for a set of codes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import HeadError
from ..features import FeatureSet
from ..heads.labelled import Rows, name_of
from ..heads.metrics import METRICS
from ..splits import whole_number
from .metrics import check_measure

__all__ = ["SPLITTERS", "EvalProtocol"]

SPLITTERS = ("auto", "named", "holdout", "k-fold", "hash")


@dataclass(frozen=True)
class EvalProtocol:
    """What `compare` and `evaluate` do, as pure data.

    Parameters
    ----------
    shots : tuple of int or "all", default=("all",)
        Rows per class to train on.
    seeds : int, default=5
        Draws, or repetitions of the folds; each is the same for all heads.
    metric : str, default="accuracy"
        What is compared: "accuracy", "balanced_accuracy", "macro_f1", "top_5" (any number), "auroc", "log_loss", "ece".
        Settings inside the training rows are chosen by it if it is one of the first three, else by accuracy.
    test_size : float, default=0.25
        Test share of "holdout" and "hash".
    cv : int, default=3
        Folds on which settings are chosen inside the training rows.
    first_seed : int, default=0
        Seeds are first_seed, first_seed + 1, …
    splitter : str, default="auto"
        Where test rows come from. "named": the split column's test rows. "holdout": a share of the rows per seed, class
        by class. "k-fold": each row is tested once per seed (a class of one row, or group, always trains). "hash": the
        rows whose id (or group) hashes so, always the same, whatever is added. "auto": "named" where the data name
        train and test rows, else "holdout". All keep groups together; "named" takes the parts as they are.
    n_folds : int, default=5
        Folds of "k-fold".

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
    splitter: str = "auto"
    n_folds: int = 5

    def __post_init__(self) -> None:
        set_ = object.__setattr__  # NumPy's numbers become Python's: they are written as JSON
        check_measure(self.metric)
        if not self.shots or any(s != "all" and not whole_number(s, 1) for s in self.shots):
            raise HeadError(f"shots: expected numbers of rows per class or 'all', got {list(self.shots)!r}")
        if len(set(self.shots)) < len(self.shots):
            raise HeadError(f"shots: expected different numbers, got {list(self.shots)!r}")
        for name, least in (("seeds", 1), ("cv", 2), ("first_seed", 0), ("n_folds", 2)):
            if not whole_number(getattr(self, name), least):
                raise HeadError(f"{name}: expected a whole number of {least} or more, got {getattr(self, name)!r}")
        if not isinstance(self.test_size, (int, float)) or not 0 < self.test_size < 1:
            raise HeadError(f"test_size: expected a share between 0 and 1, got {self.test_size!r}")
        set_(self, "test_size", float(self.test_size))
        set_(self, "shots", tuple(s if s == "all" else int(s) for s in self.shots))
        for name in ("seeds", "cv", "first_seed", "n_folds"):
            set_(self, name, int(getattr(self, name)))
        if self.splitter not in SPLITTERS:
            raise HeadError(f"splitter: expected one of {', '.join(SPLITTERS)}, got {self.splitter!r}")

    @property
    def chosen_by(self) -> str:
        """The metric by which settings are chosen inside the training rows."""
        return self.metric if self.metric in METRICS else "accuracy"

    def split(self, data: FeatureSet) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the training and test rows of all draws, as row numbers into ``data.xy``.

        Parameters
        ----------
        data : FeatureSet
            Codes with labels.

        Returns
        -------
        list of (ndarray of int, ndarray of int)
            Shots by shots, seed by seed: what `compare` trains on and tests.

        Examples
        --------
        >>> data = FeatureSet(np.eye(8), list("aaaabbbb"))
        >>> [(len(train), len(test)) for train, test in EvalProtocol(shots=(1, "all"), seeds=1).split(data)]
        [(2, 2), (6, 2)]
        """
        from .draws import draws_of  # which knows the protocol

        return [(draw.train, draw.test) for draw in draws_of(name_of(data), Rows.of(data), self)]

    def as_dict(self) -> dict[str, Any]:
        """Return the settings in JSON types."""
        return {**asdict(self), "shots": list(self.shots)}
