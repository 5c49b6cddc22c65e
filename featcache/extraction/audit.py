"""audit(): are the stored codes what the recorded backbone makes of the images that are there now?

Checksums prove that a store holds what was written. This proves that what was written is right: a few random rows are
computed again, from the file to the code, and compared.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..backbone import Backbone
from ..backbone.recorded import recorded_backbone
from ..errors import BackboneError, SourceError, StoreError
from ..progress import Progress, progress_for
from ..sources import ImageSource
from ..store import Entries, FeatureStore, Snapshot
from . import precision as precise
from .encoder import Encoder
from .reading import Read
from .settings import Settings

__all__ = ["AuditReport", "audit"]

#: Codes are centred by the mean of so many stored rows: that of the few which are audited says too little.
_CENTRE_ROWS = 256


@dataclass(frozen=True)
class AuditReport:
    """What `audit` found.

    Attributes
    ----------
    ok : bool
        No row disagrees.
    store, view : str
        What was looked at.
    rows : int
        Rows chosen, of different images: compared, changed and missing ones.
    compared : int
        Rows computed again.
    bit_equal : int
        Of these, rows that are equal to the last bit.
    worst_centred_cosine, worst_cosine : float or None
        Smallest cosine of a stored and a computed row, centred by the mean of stored rows, and as they are; None when
        nothing was compared.
    limit : float
        The smallest centred cosine that the store's precision class allows.
    mode : str
        What the network ran in: that of the store's newest rows.
    disagree : list of str
        Ids of rows below the limit.
    changed : list of str
        Ids of images whose content is another one than that of the row; no damage, `extract` would compute them.
    missing : dict of str to str
        Ids of images that the source does not have or that cannot be read here, with the reason; no damage either.
    """

    ok: bool
    store: str
    view: str
    rows: int
    compared: int
    bit_equal: int
    worst_centred_cosine: float | None
    worst_cosine: float | None
    limit: float
    mode: str
    disagree: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return self.ok

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return asdict(self)


def audit(
    store: FeatureStore | str | os.PathLike[str],
    n: int = 8,
    *,
    view: str = "main",
    source: ImageSource | str | os.PathLike[str] | Any = None,
    backbone: Backbone | None = None,
    weights: Any = None,
    seed: int = 0,
    device: str = "auto",
    progress: bool | str | Progress | None = "auto",
) -> AuditReport:
    """Compute random rows of a view's newest state again and compare them with what is stored.

    Parameters
    ----------
    store : FeatureStore or path
        The store; nothing is written.
    n : int, default=8
        How many rows; all when there are fewer.
    view : str, default="main"
        Name of the view.
    source : ImageSource, path or anything `ImageSource.open` takes, default=None
        Where the images are; the folder or list that the state was made from.
    backbone : Backbone, default=None
        The network; made from what the store recorded.
    weights : optional
        The backbone's weights where they lie now, when the recorded place no longer has them; verified by digest.
    seed : int, default=0
        Chooses the rows.
    device : str, default="auto"
        "cpu", "cuda", …; "auto" = the first GPU, else the CPU.
    progress : {"auto", True, False} or Progress, default="auto"
        A bar on standard error.

    Returns
    -------
    AuditReport

    Raises
    ------
    StoreError
        When there is no such view, or nothing in it.
    SourceError
        When the images cannot be found; the message says what to give.
    BackboneError, WeightsError
        When the backbone cannot be made again, or is another one.
    DamagedStore
        When a row's checksum does not match.

    Examples
    --------
    >>> from featcache.extraction.audit import audit
    >>> audit("flowers.features", 100).ok  # doctest: +SKIP
    True
    """
    if isinstance(n, bool) or not isinstance(n, int) or n < 1:
        raise StoreError(f"n: expected a whole number of 1 or more, got {n!r}")
    opened = store if isinstance(store, FeatureStore) else FeatureStore.open(store)
    state = opened.snapshot(view)
    if state is None or not state.entries.stored.any():
        raise StoreError(
            f"{opened.path}: view {view!r} has no rows to audit; it has the views {', '.join(opened.views) or 'none'}"
        )
    stored = state.entries.take(state.entries.stored)
    images = _source(opened, state, source)
    if not np.isin(stored.ids, np.asarray(images.ids, dtype=np.str_)).any():
        raise SourceError(
            f"{opened.path}: the source {images.location!r} has none of the {len(stored)} images of view {view!r}; "
            "give the one they came from with --source (source=)"
        )
    network = recorded_backbone(
        opened.spec,
        opened.locator,
        backbone=backbone,
        weights=weights,
        owner=f"store {opened.path}",
        error=BackboneError,
    )
    encoder = Encoder(images, network, Settings(view=view, device=device), opened)
    rng = np.random.default_rng(seed)
    with progress_for(progress) as bar:
        return _Audit(opened, view, encoder, stored, stored.take(_chosen(stored, n, rng))).run(bar, rng)


def _chosen(stored: Entries, n: int, rng: np.random.Generator) -> np.ndarray:
    """Choose n lines at random, of different content: copies of an image share one row."""
    some = rng.permutation(len(stored))[: 4 * n]
    keys = np.ascontiguousarray(stored.keys[some]).view("V32").ravel()
    first = np.unique(keys, return_index=True)[1]
    return np.sort(some[np.sort(first)[:n]])


def _source(store: FeatureStore, state: Snapshot, given: Any) -> ImageSource:
    """Open the source that is given, else the one that the state was made from."""
    if given is not None:
        return ImageSource.open(given)
    name, location = str(state.source.get("name") or ""), str(state.source.get("location") or "")
    place = Path(location)
    # A folder or list is called after its place; what else has a location (single paths, a data set's root) is not.
    if not location or name not in (place.name, place.stem):
        raise SourceError(
            f"{store.path}: the images of view {state.view!r} came from {name or 'memory'!r}, which cannot be opened "
            "again by its place; give them with --source (source=)"
        )
    if not place.exists():
        raise SourceError(
            f"{store.path}: the images of view {state.view!r} are no longer at {location}; give their new place with "
            "--source (source=)"
        )
    try:
        return ImageSource.open(location)
    except SourceError as error:  # a list that was read with options, for one
        raise SourceError(f"{error}; or give the images with --source (source=)") from error


class _Audit:
    """One audit: the chosen lines of a view, and what became of each."""

    def __init__(self, store: FeatureStore, view: str, encoder: Encoder, stored: Entries, chosen: Entries) -> None:
        self.store, self.view, self.encoder, self.stored, self.chosen = store, view, encoder, stored, chosen
        self.precision = str(store.spec.get("precision", {"class": "tolerance"})["class"])
        self.mode = self._mode()
        self.disagree: list[str] = []
        self.changed: list[str] = []
        self.missing: dict[str, str] = {}
        self.centred: list[np.ndarray] = []
        self.raw: list[np.ndarray] = []
        self.equal = 0

    def _mode(self) -> str:
        """Return the mode of the newest rows, where this machine has it."""
        if self.precision != "tolerance":
            return "fp32" if self.precision == "exact" else self.precision
        used = str(self.store.shards[-1].attributes["computed"].get("mode", "fp32"))
        return used if used.split("-")[0] in precise.faster_modes(self.encoder.device) else "fp32"

    def run(self, bar: Progress, rng: np.random.Generator) -> AuditReport:
        """Compare all chosen rows."""
        limit = precise.limit_of(self.precision)
        some = np.sort(rng.choice(len(self.stored), min(_CENTRE_ROWS, len(self.stored)), replace=False))
        keys = self.stored.keys[some]
        centres = {node: self.store.codes(keys, node).mean(axis=0, dtype=np.float64) for node in self.store.nodes}
        bar.start("auditing", len(self.chosen))
        for batch in self._batches(bar):
            self._compare(batch, centres, limit)
        centred, raw = (np.concatenate(part) if part else np.zeros(0) for part in (self.centred, self.raw))
        return AuditReport(
            ok=not self.disagree,
            store=str(self.store.path),
            view=self.view,
            rows=len(self.chosen),
            compared=len(centred),
            bit_equal=self.equal,
            worst_centred_cosine=round(float(centred.min()), 6) if len(centred) else None,
            worst_cosine=round(float(raw.min()), 6) if len(raw) else None,
            limit=limit,
            mode=self.mode,
            disagree=self.disagree,
            changed=self.changed,
            missing=self.missing,
        )

    def _batches(self, bar: Progress) -> Iterator[list[tuple[str, Read]]]:
        """Read the chosen images; note those that are gone or changed, yield the others with their ids."""
        ids = np.asarray(self.encoder.source.ids, dtype=np.str_)
        place = np.minimum(np.searchsorted(ids, self.chosen.ids), len(ids) - 1)
        here = ids[place] == self.chosen.ids
        self.missing.update(dict.fromkeys(self.chosen.ids[~here].tolist(), "not in the source"))
        bar.advance(int((~here).sum()))
        expected = dict(zip(place[here].tolist(), self.chosen.keys[here], strict=True))
        wanted = {key.tobytes() for key in expected.values()}
        batch: list[tuple[str, Read]] = []
        reads = self.encoder.reading().results(
            list(expected), decode=self.encoder.pixels, wanted=lambda key: (0,) if key in wanted else ()
        )
        for read in reads:
            bar.advance()
            image = self.encoder.source.ids[read.index]
            if read.key is not None and read.key != expected[read.index].tobytes():
                self.changed.append(image)
            elif read.error:
                self.missing[image] = read.error
            else:
                batch.append((image, read))
            if len(batch) == self.encoder.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _compare(self, batch: list[tuple[str, Read]], centres: Mapping[str, np.ndarray], limit: float) -> None:
        """Compute one batch again and compare it with the rows of its keys."""
        keys = np.stack([np.frombuffer(read.key or b"", "u1") for _, read in batch])
        pixels = np.concatenate([r.pixels for _, r in batch if r.pixels is not None])
        computed = self.encoder.encode(pixels, self.mode)
        stored = {node: self.store.codes(keys, node) for node in computed}
        dtype = np.dtype(str(self.store.spec.get("dtype", "float32")))
        equal = np.ones(len(batch), dtype=bool)
        centred, raw = np.ones(len(batch)), np.ones(len(batch))
        for node, codes in computed.items():
            kept = stored[node]
            with np.errstate(over="ignore"):
                same = (kept == codes.astype(dtype).astype(np.float32)).reshape(len(batch), -1).all(axis=1)
            equal &= same
            zeros = np.zeros(centres[node].shape)
            centred = np.minimum(centred, np.where(same, 1.0, precise.row_cosines(kept, codes, centres[node])))
            raw = np.minimum(raw, np.where(same, 1.0, precise.row_cosines(kept, codes, zeros)))
        self.equal += int(equal.sum())
        self.centred.append(centred)
        self.raw.append(raw)
        bad = centred < limit
        if bad.any():  # images that are nearly alike leave little but rounding
            noise = self.encoder.rounding(pixels, {self.mode, self.encoder.mode_before or self.mode})
            bad &= ~precise.differ_by_rounding(stored, computed, noise)
        self.disagree += [batch[i][0] for i in np.flatnonzero(bad).tolist()]
