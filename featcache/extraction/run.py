"""One extraction, from what was asked for to the committed snapshot."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import fingerprint as identity
from ..backbone import Backbone
from ..errors import FailureBudgetExceeded, MissingCodes, ViewMismatch
from ..progress import Progress, progress_for
from ..sources import ImageSource
from ..store import FAILED, NO_KEY, Entries, FeatureStore, Snapshot
from .encoder import Encoder
from .pipeline import Read, Writer
from .report import ExtractionReport, Plan
from .settings import Settings
from .tally import NO_KEYS, KnownKeys, Tally, among

__all__ = ["Extraction"]

_TIMED_IMAGES = 16
_SAMPLE_IDS = 16
_LOOK_UP = 1 << 16
#: So many images to read repay looking all keys of the view up beforehand.
_MANY = 256
_NOT_COMPUTED = "its codes were not computed"
#: Rows that vanish while a run is going on are computed again so often.
_ATTEMPTS = 3


class Extraction:
    """One run of `extract` or `plan`.

    Parameters
    ----------
    source, backbone, store, settings, progress
        As `extract` takes them, already opened.
    """

    def __init__(
        self,
        source: ImageSource,
        backbone: Backbone,
        store: FeatureStore | str | os.PathLike[str],
        settings: Settings,
        progress: bool | str | Progress | None,
    ) -> None:
        self.started = time.perf_counter()
        self.source, self.backbone, self.settings = source, backbone, settings
        self.path = store.path if isinstance(store, FeatureStore) else Path(store)
        if settings.device not in ("auto", "cpu"):
            Backbone.check_device(settings.device)  # before anything is made
        self.store: FeatureStore | None = store if isinstance(store, FeatureStore) else self._existing()
        self.progress = progress_for(progress)
        self.tally = Tally.for_images(len(source))
        self.encoder = Encoder(source, backbone, settings, self.store)
        self._lock = threading.Lock()
        self._clock = {"wait": 0.0, "model": 0.0, "stream": 0.0}

    def _existing(self) -> FeatureStore | None:
        if (self.path / "store.json").exists():
            return FeatureStore.open(self.path)
        FeatureStore.check_place(self.path)
        return None

    # -- keys ------------------------------------------------------------------------------------------------------

    def _note_key(self, index: int, key: bytes) -> None:
        """Take the key of an image; remember it when its file is as it was before it was read."""
        self.tally.note_key(index, key)
        before = self._stats.pop(index, None)
        if before is not None and self._digests is not None and self.source.stat(index) == before:
            with self._lock:
                self._digests.put(before, key)

    @cached_property
    def _ids(self) -> np.ndarray:
        return np.asarray(self.source.ids, dtype=np.str_)

    @cached_property
    def _digests(self) -> Any:
        return self.store.digests if self.store is not None else None

    @cached_property
    def _stats(self) -> dict[int, Any]:
        """State before reading of the files that must be read."""
        return {}

    def _look_up_known_files(self) -> np.ndarray:
        """Fill in the keys of files that are as they were; return the indices of the others."""
        cache, n = self._digests, len(self.source)  # the cache first: what it calls "now" must lie before all states
        if cache is None:
            return np.arange(n)
        for start in range(0, n, _LOOK_UP):
            stats = self.source.stats(range(start, min(start + _LOOK_UP, n)))
            found, keys = cache.get_many(stats)
            self.tally.keys[start : start + len(stats)] = keys
            self.tally.readable[start : start + len(stats)] = found
            for place in np.flatnonzero(~found).tolist():
                if stats[place] is not None:
                    self._stats[start + place] = stats[place]
        return np.flatnonzero(~self.tally.readable)

    def _parent(self) -> Snapshot | None:
        """Return the view's state, after making sure that this source may change it."""
        head = self.store.snapshot(self.settings.view) if self.store is not None else None
        if head is None or not len(head.entries) or self.settings.add or self.settings.replace:
            return head
        if not among(self._ids, head.entries.ids).any() and not self._shares_content(head):
            raise ViewMismatch(
                f"{self.path}: the source {self.source.location!r} shares no image with the {len(head.entries)} of "
                f"view {self.settings.view!r}; give --add to keep both, --replace to drop the old ones, or --view NAME"
            )
        return head

    def _shares_content(self, head: Snapshot) -> bool:
        """Tell whether a source under new names is still the view's: half of a sample has its content."""
        n = len(self.source)
        spread = np.unique(np.linspace(0, n - 1, min(_SAMPLE_IDS, n)).astype(int)).tolist()
        results = self.encoder.read(spread, decode=None)
        keys = [r.key for r in results if r.key is not None]
        known = {k.tobytes() for k in head.entries.keys}
        return bool(keys) and sum(k in known for k in keys) * 2 >= len(keys)

    # -- plan ------------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Tell what `run` would do."""
        spec = self.encoder.spec
        if self.store is not None:
            self.store.require(spec)
        head = self._parent()
        with self.progress as bar:
            todo = self._look_up_known_files()
            bar.start("reading", len(todo))
            for _ in self.encoder.read(todo.tolist(), decode=None, on_key=self.tally.note_key):
                bar.advance()
        keys = self.tally.keys[self.tally.readable]
        has = self.store.has(keys) if self.store is not None else np.zeros(len(keys), dtype=bool)
        compute = len(np.unique(np.ascontiguousarray(keys[~has]).view("V32")))
        new, changed, gone = self._differences(head)
        seconds, width = (0.0, 0) if not compute else self._estimate(compute)
        return Plan(
            store=str(self.path),
            view=self.settings.view,
            images=len(self.source),
            reused=int(has.sum()) + int((~has).sum()) - compute,
            new=new,
            changed=changed,
            gone=gone,
            compute=compute,
            unreadable=int((~self.tally.readable).sum()),
            bytes=compute * (width + 35),
            seconds=None if seconds is None else round(seconds, 3),
            fingerprint=identity.fingerprint(spec),
            precision={"class": self.encoder.precision_class},
        )

    def _differences(self, head: Snapshot | None) -> tuple[int, int, int]:
        """Count images that are new to the view, changed in it, and gone from it."""
        if head is None:
            return len(self.source), 0, 0
        common = among(self._ids, head.entries.ids)
        old = among(head.entries.ids, self._ids)
        # Both are sorted by id, so what they share stands in the same order in both.
        changed = (head.entries.keys[old] != self.tally.keys[common]).any(axis=1) & self.tally.readable[common]
        return int((~common).sum()), int(changed.sum()), 0 if self.settings.add else int((~old).sum())

    def _estimate(self, compute: int) -> tuple[float | None, int]:
        """Predict seconds for so many images, and bytes per image, by running a few."""
        start = time.perf_counter()
        pixels = self.encoder.sample(_TIMED_IMAGES)
        read = time.perf_counter() - start
        if not len(pixels):
            return None, 0
        self.encoder.encode(pixels[:8], "fp32")
        start = time.perf_counter()
        codes = self.encoder.encode(pixels, "fp32")
        model = time.perf_counter() - start
        itemsize = np.dtype(str(self.encoder.spec["dtype"])).itemsize
        width = sum(int(np.prod(a.shape[1:])) for a in codes.values()) * itemsize
        return max(read, model) / len(pixels) * compute, width

    # -- run -------------------------------------------------------------------------------------------------------

    def run(self) -> FeatureStore:
        """Extract what is missing, publish it, commit the view."""
        spec = self.encoder.spec
        if self.store is None:
            self.store = FeatureStore.create(self.path, spec, locator=self.backbone.locator)
            self.encoder.store = self.store
        else:
            self.store.prepare(spec)
        with self.store.pin():
            head = self._parent()
            entries, snapshot = self._stream_and_commit(self._look_up_known_files(), head)
        self._remember()
        self.store.report = self._report(head, snapshot, entries)
        self._enforce_budget(entries, self.store.report)
        return self.store

    def _stream_and_commit(self, todo: np.ndarray, head: Snapshot | None) -> tuple[Entries, Snapshot]:
        """Compute what is missing and commit; again, where rows were lost between the two (collected, damaged)."""
        store = self.store
        assert store is not None
        for attempt in range(_ATTEMPTS):
            self._stream(todo, head)
            entries, lost = self._entries()
            last = attempt == _ATTEMPTS - 1
            with contextlib.suppress(*(() if last else (MissingCodes,))):
                if not lost or last:
                    return entries, self._commit(store, entries, head)
            todo = np.zeros(0, dtype=np.int64)  # every key is known by now
            store.refresh()
        raise AssertionError("the last attempt returns or raises")

    def _commit(self, store: FeatureStore, entries: Entries, head: Snapshot | None) -> Snapshot:
        source = self.source
        return store.commit(
            entries,
            view=self.settings.view,
            parent=head,
            keep_old=self.settings.add,
            roles=source.roles,
            source={"name": source.name, "location": source.location, "ignored": dict(source.ignored)},
        )

    def _remember(self) -> None:
        assert self.store is not None
        if self._digests is not None:
            self._digests.save()
        request = self.encoder.request()
        if request is not None:
            self.store.requests.put(request, self.store.fingerprint)

    def _stream(self, unknown: np.ndarray, head: Snapshot | None) -> None:
        """Read what has no known key, and what is known but not stored; compute and publish what is missing."""
        store = self.store
        assert store is not None
        known = np.flatnonzero(self.tally.readable)
        lost = known[~store.has(self.tally.keys[known])]
        indices = np.sort(np.concatenate([unknown, lost])).tolist()
        if not indices:
            return

        probable = head.entries.keys[head.entries.stored] if head is not None and len(indices) >= _MANY else NO_KEYS
        known_keys = KnownKeys(store, probable)

        def stored(key: bytes) -> bool:
            return key in known_keys or bool(store.has(np.frombuffer(key, "u1").reshape(1, 32))[0])

        def decode(payload: Any) -> np.ndarray:
            return self.encoder.preprocess.pixels(payload)

        start = time.perf_counter()
        writer: Writer | None = None
        with self.progress as bar:
            bar.start("extracting", len(indices))
            reads = self.encoder.read(indices, decode=decode, stored=stored, on_key=self._note_key)
            try:
                for batch in self._batches(reads, bar):
                    if writer is None:
                        self.encoder.prepare(len(indices), self._likely_stored(head))
                        start = time.perf_counter()
                        self._clock["wait"] = 0.0
                        writer = Writer(store, self.encoder.computed(), self.settings.publish_seconds)
                    self._compute(batch, writer)
            finally:
                # Also after Ctrl-C or an error: rows that are computed are published before anything else happens.
                if writer is not None:
                    writer.close()
                    self._clock["write"] = writer.seconds
                self._clock["stream"] = time.perf_counter() - start

    def _likely_stored(self, head: Snapshot | None) -> np.ndarray:
        """Return images of the source whose codes are probably in the store, for the audit."""
        assert self.store is not None
        likely = self.tally.readable & self.store.has(self.tally.keys)
        if head is not None:
            likely |= among(self._ids, head.entries.ids[head.entries.stored])
        return np.flatnonzero(likely)

    def _batches(self, reads: Iterator[Read], bar: Progress) -> Iterator[list[Read]]:
        """Group the images that must be computed; note what became of all others."""
        batch: list[Read] = []
        iterator = iter(reads)
        while True:
            start = time.perf_counter()
            read = next(iterator, None)
            self._clock["wait"] += time.perf_counter() - start
            if read is None:
                break
            if read.error:
                self.tally.errors[read.index] = read.error
                if read.key is not None:
                    self.tally.failed_keys[read.key] = read.error
            if read.pixels is not None:
                batch.append(read)
            bar.advance(1, f"{len(self.tally.errors)} failed" if self.tally.errors else "")
            if batch and len(batch) == self.encoder.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _compute(self, batch: list[Read], writer: Writer) -> None:
        """Run one batch and hand its good rows to the writer."""
        start = time.perf_counter()
        pixels = np.stack([r.pixels for r in batch if r.pixels is not None])
        codes = self.encoder.encode(pixels, self.encoder.mode)
        self._clock["model"] += time.perf_counter() - start
        self.tally.computed += len(batch)
        dtype = np.dtype(str(self.encoder.spec["dtype"]))
        with np.errstate(over="ignore"):
            codes = {node: array.astype(dtype) for node, array in codes.items()}
        finite = np.ones(len(batch), dtype=bool)
        constant = np.ones(len(batch), dtype=bool)
        for array in codes.values():
            flat = array.reshape(len(batch), -1)
            finite &= np.isfinite(flat).all(axis=1)
            constant &= (flat == flat[:, :1]).all(axis=1)
        for place in np.flatnonzero(~finite).tolist():
            key = batch[place].key
            assert key is not None
            self.tally.failed_keys[key] = f"the network gives NaN or Inf for it (as {dtype.name})"
        keys = np.stack([np.frombuffer(r.key or NO_KEY, "u1") for r in batch])
        if finite.any():
            writer.put(keys[finite], {node: array[finite] for node, array in codes.items()}, constant[finite])

    # -- what it came to -------------------------------------------------------------------------------------------

    def _entries(self) -> tuple[Entries, bool]:
        """Make the lines of the view, and tell whether rows are missing that no failure explains."""
        store, tally = self.store, self.tally
        assert store is not None
        status = store.status(tally.keys)
        status[~tally.readable] = FAILED
        reasons = {
            index: tally.errors.get(index) or tally.failed_keys.get(tally.keys[index].tobytes()) or _NOT_COMPUTED
            for index in np.flatnonzero(status == FAILED).tolist()
        }
        errors = np.zeros(len(self.source), dtype=f"<U{max(map(len, reasons.values()), default=1)}")
        for index, reason in reasons.items():
            errors[index] = reason
        lost = _NOT_COMPUTED in reasons.values()
        return Entries(self._ids, tally.keys, status, errors, dict(self.source.columns)), lost

    def _report(self, head: Snapshot | None, snapshot: Snapshot, entries: Entries) -> ExtractionReport:
        seconds = time.perf_counter() - self.started
        failed = np.flatnonzero(entries.status == FAILED).tolist()
        stream = self._clock["stream"]
        gone = 0 if head is None or self.settings.add else int((~among(head.entries.ids, entries.ids)).sum())
        computed = self.tally.computed
        return ExtractionReport(
            store=str(self.path),
            view=self.settings.view,
            fingerprint=identity.fingerprint(self.encoder.spec),
            snapshot=snapshot.number,
            images=len(self.source),
            computed=computed,
            reused=max(0, len(self.source) - len(failed) - computed),
            gone=gone,
            failed=[{"id": str(entries.ids[i]), "reason": str(entries.errors[i])} for i in failed],
            constant=entries.ids[(entries.status != FAILED) & (entries.status != 0)].tolist(),
            seconds=round(seconds, 3),
            images_per_second=round(len(self.source) / seconds, 2) if seconds else 0.0,
            steady_images_per_second=round(computed / stream, 2) if computed and stream else 0.0,
            precision=self.encoder.precision(),
            shares={k: round(self._clock.get(k, 0.0) / stream, 3) for k in ("wait", "model", "write")}
            if stream
            else {},
            ignored=dict(self.source.ignored),
        )

    def _enforce_budget(self, entries: Entries, report: ExtractionReport) -> None:
        failed = np.flatnonzero(entries.status == FAILED)
        if len(failed) > self.settings.max_failed * len(entries):
            first = int(failed[0])
            error = FailureBudgetExceeded(
                f"{self.path}: {len(failed)} of {len(entries)} images failed, more than the budget of "
                f"{self.settings.max_failed:.0%} ({entries.ids[first]}: {entries.errors[first]}; …); the other rows "
                "are kept, see `featcache info` for the list, or allow more with --max-failed"
            )
            error.report = report
            raise error
