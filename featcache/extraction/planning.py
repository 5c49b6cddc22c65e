"""What a run will take: time and disk, predicted from a short probe of the very images, network and mode."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..sources import ImageSource
from .encoder import Encoder
from .gauge import Verdict
from .remembered import seconds_measuring
from .team import Team

__all__ = ["Prediction", "estimate"]

#: The probe goes on for so many seconds, in rounds, up to so many.
_PROBE_SECONDS, _MOST_ROUNDS = 1.5, 4
#: Images of a round: few, or about a batch (a run reaches its rate there) where that takes less than so many seconds.
_FEW, _MANY, _ROUND_SECONDS = 16, 64, 0.5
#: What a shard holds beside the codes: key, view number, flag and checksums per row; header and skeleton per file.
_ROW_BYTES, _FILE_BYTES, _SHARD_BYTES = 36, 12 << 10, 64 << 20
#: A line of a view: key, status and offsets, beside its texts.
_LINE_BYTES = 50
#: The last shard and the commit, synced, that nothing overlaps.
_CLOSING_SECONDS = 0.15


@dataclass(frozen=True)
class Prediction:
    """What a run is expected to take.

    Attributes
    ----------
    seconds : float or None
        Wall clock from now on, the network's loading included; None when no image of the probe can be read.
    bytes : int
        What will be written.
    precision : dict
        Mode and evidence.
    verdict : Verdict or None
        What will hold it up.
    """

    seconds: float | None
    bytes: int
    precision: Mapping[str, Any]
    verdict: Verdict | None


def estimate(encoder: Encoder, compute: int, source: ImageSource, began: float, reading: float) -> Prediction:
    """Predict a run.

    Parameters
    ----------
    encoder : Encoder
        The run's.
    compute : int
        Images to be computed.
    source : ImageSource
        The images.
    began : float
        `time.perf_counter()` when the plan began.
    reading : float
        Seconds of it that went into reading keys, which a run does on the way.

    Returns
    -------
    Prediction
    """
    measuring = seconds_measuring()
    encoder.choose(compute, encoder.mode_before)
    measuring = seconds_measuring() - measuring  # the run will remember it
    setup = time.perf_counter() - began - reading - measuring
    with encoder.team() as team:
        decode, model, codes = _rates(encoder, team)
    precision = encoder.precision()
    if codes is None:
        return Prediction(None, 0, precision, None)
    size = sum(a[0].size for a in codes.values()) * np.dtype(str(encoder.spec["dtype"])).itemsize
    rows = compute * len(encoder.numbers)
    # A CPU does both by turns; beside an accelerator the slower of the two counts.
    each = decode + model if encoder.device == "cpu" else max(decode, model)
    seconds = setup + compute * each + _CLOSING_SECONDS
    return Prediction(round(seconds, 3), _bytes(rows, size, source), precision, encoder.gauge.verdict())


def _rates(encoder: Encoder, team: Team) -> tuple[float, float, dict[str, np.ndarray] | None]:
    """Measure seconds per image of reading and decoding, and of the network, each with all cores; codes of a round.

    In threads as fresh as a run's: those in which modes were tried have their memory in other pieces.
    Medians of the larger rounds: small ones, and the first, pay for memory and caches that a run pays for once.
    """
    figures: list[tuple[int, float, float]] = []
    spent, codes, size = 0.0, None, _FEW
    for round_ in range(_MOST_ROUNDS):
        start = time.perf_counter()
        pixels = _round(encoder, round_, size, team)
        decoded = time.perf_counter() - start
        if not len(pixels):
            continue
        if codes is None:
            list(encoder.stream([[pixels]], team))  # what is made on first use counts as setup
        start = time.perf_counter()
        (codes,) = encoder.stream([[pixels]], team)
        computed = time.perf_counter() - start
        images = len(pixels) // len(encoder.numbers)
        figures.append((size, decoded / images, computed / images))
        spent += decoded + computed
        if spent > _PROBE_SECONDS:
            break
        size = _MANY if _MANY * (decoded + computed) / images < _ROUND_SECONDS else _FEW
    if codes is None:
        return 0.0, 0.0, None
    best = [figure for figure in figures if figure[0] == max(figures)[0]]
    return float(np.median([f[1] for f in best])), float(np.median([f[2] for f in best])), codes


def _round(encoder: Encoder, round_: int, size: int, team: Team) -> np.ndarray:
    """Return the pixels of one round's images, spread over the source and other ones each time: (n, H, W, C)."""
    n = len(encoder.source)
    places = np.unique((np.linspace(0, n - 1, min(size, n)) + round_ * max(1, n // 127)).astype(int) % n).tolist()
    reads = encoder.reading(rows=len(encoder.numbers), gauge=encoder.gauge).results(
        places, decode=encoder.pixels, wanted=lambda key: encoder.numbers, team=team
    )
    found = [r.pixels for r in reads if r.pixels is not None]
    return np.concatenate(found) if found else np.zeros((0, *encoder.preprocess.shape), "u1")


def _bytes(rows: int, size: int, source: ImageSource) -> int:
    """Return what so many rows of so many bytes take, with the view's lines."""
    shards = max(1, rows * size // _SHARD_BYTES)
    texts = sum(len(i) for i in source.ids) + sum(
        c.dtype.itemsize // 4 * len(c) if c.dtype.kind == "U" else c.nbytes for c in source.columns.values()
    )
    return rows * (size + _ROW_BYTES) + (shards + 1) * _FILE_BYTES + len(source) * _LINE_BYTES + texts
