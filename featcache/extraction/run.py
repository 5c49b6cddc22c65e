"""One extraction, from what was asked for to the committed snapshot."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
import time
from collections import deque
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
from .gauge import Verdict
from .pixels import PixelMemory
from .planning import estimate
from .publishing import Writer
from .reading import Read
from .report import ExtractionReport, Plan
from .settings import Settings
from .tally import NO_KEYS, KnownKeys, Tally, among
from .team import Team

__all__ = ["Extraction"]

_SAMPLE_IDS = 16
_LOOK_UP = 1 << 16
#: So many images to read repay looking all keys of the view up beforehand.
_MANY = 256
_NOT_COMPUTED = "its codes were not computed"
#: Rows that vanish while a run is going on are computed again so often.
_ATTEMPTS = 3
#: Codes are handed to the writer in pieces of so many bytes, as the network gives them.
_PIECE_BYTES = 32 << 20


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
            for name in settings.device.split(","):  # before anything is made
                Backbone.check_device("cuda:0" if name.strip() == "cuda:all" else name.strip())
        self.store: FeatureStore | None = store if isinstance(store, FeatureStore) else self._existing()
        self.progress = progress_for(progress)
        self.tally = Tally.for_images(len(source))
        self.encoder = Encoder(source, backbone, settings, self.store)
        self._lock = threading.Lock()
        self._next_look, self._note = 0.0, ""
        self._stream_seconds = 0.0
        self._verdict: Verdict | None = None
        self._shares: dict[str, float] = {}

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
        keys = [r.key for r in self.encoder.keys(spread) if r.key is not None]
        known = {k.tobytes() for k in head.entries.keys}
        return bool(keys) and sum(k in known for k in keys) * 2 >= len(keys)

    # -- plan ------------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Tell what `run` would do."""
        spec = self.encoder.spec
        if self.store is not None:
            self.store.require(spec)
        head = self._parent()
        start = time.perf_counter()
        with self.progress as bar:
            todo = self._look_up_known_files()
            bar.start("reading", len(todo))
            for _ in self.encoder.keys(todo.tolist(), self.tally.note_key):
                bar.advance()
        reading = time.perf_counter() - start
        keys = self.tally.keys[self.tally.readable]
        has = self._has(keys) if self.store is not None else np.zeros(len(keys), dtype=bool)
        compute = len(np.unique(np.ascontiguousarray(keys[~has]).view("V32")))
        new, changed, gone = self._differences(head)
        predicted = estimate(self.encoder, compute, self.source, self.started, reading) if compute else None
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
            bytes=predicted.bytes if predicted else 0,
            seconds=predicted.seconds if predicted else 0.0,
            fingerprint=identity.fingerprint(spec),
            precision={"class": self.encoder.precision_class, **(predicted.precision if predicted else {})},
            verdict=str(predicted.verdict) if predicted and predicted.verdict else "",
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
        self.store.costs.add(self.tally.computed, self._stream_seconds)
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
        lost = known[~self._has(self.tally.keys[known])]
        indices = np.sort(np.concatenate([unknown, lost])).tolist()
        if not indices:
            return
        encoder = self.encoder
        probable = head.entries.keys[head.entries.stored] if head is not None and len(indices) >= _MANY else NO_KEYS
        if len(encoder.numbers) > 1:
            probable = probable[self._has(probable)]
        known_keys = KnownKeys(store, probable)
        new = store.empty  # then no key needs to be looked up

        def wanted(key: bytes) -> tuple[int, ...]:
            if new:
                return encoder.numbers
            return () if key in known_keys else self._missing_views(key)

        writer: Writer | None = None
        memory = PixelMemory()
        with self.progress as bar, encoder.team() as team:
            bar.start("extracting", len(indices))
            reading = encoder.reading(rows=len(encoder.numbers), gauge=encoder.gauge, memory=memory)
            reads = reading.results(indices, decode=encoder.pixels, wanted=wanted, on_key=self._note_key, team=team)
            try:
                batches = self._batches(reads, bar)
                first = next(batches, None)
                if first is not None:
                    encoder.prepare(len(indices), self._likely_stored(head))
                    encoder.gauge.begin()
                    writer = Writer(store, encoder.computed(), self.settings.publish_seconds, encoder.gauge)
                    self._compute(itertools.chain([first], batches), writer, team, memory)
            finally:
                # Also after Ctrl-C or an error: rows that are computed are published before anything else happens.
                try:
                    if writer is not None:
                        writer.close()
                        self._take_gauge()
                finally:
                    reads.close()  # now, not when an error's traceback is collected: nothing is read for nobody

    def _take_gauge(self) -> None:
        gauge = self.encoder.gauge
        self._stream_seconds += gauge.wall
        self._shares, self._verdict = gauge.shares(), gauge.verdict()

    def _has(self, keys: np.ndarray) -> np.ndarray:
        """Tell which keys have all the rows that are wanted: of the plain image, and of its augmented views."""
        store = self.store
        assert store is not None
        found = store.has(keys)
        for number in self.encoder.numbers[1:]:
            found &= store.has(keys, view_number=number)
        return found

    def _missing_views(self, key: bytes) -> tuple[int, ...]:
        store, one = self.store, np.frombuffer(key, "u1").reshape(1, 32)
        assert store is not None
        return tuple(n for n in self.encoder.numbers if not store.has(one, view_number=n)[0])

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
        rows = size = 0
        for read in reads:
            if read.error:
                self.tally.errors[read.index] = read.error
                if read.key is not None:
                    self.tally.failed_keys[read.key] = read.error
            if read.pixels is not None:
                batch.append(read)
                rows += len(read.pixels)
            bar.advance(1, self._remark())
            if rows and not size:
                size = self.encoder.batch_size  # asked for when there is something to compute: it imports torch
            if size and rows >= size:
                yield batch
                batch, rows = [], 0
                size = self.encoder.batch_size  # the first batch chose the mode, and with it the chunk of a GPU
        if batch:
            yield batch

    def _remark(self) -> str:
        """Return what stands beside the bar: failures, and where the time goes (looked up twice a second)."""
        now = time.perf_counter()
        if now > self._next_look:
            self._next_look = now + 0.5
            self._note = self.encoder.gauge.note() if self.encoder.choice else ""
        failed = f"{len(self.tally.errors)} failed" if self.tally.errors else ""
        return " · ".join(part for part in (failed, self._note) if part)

    def _compute(self, batches: Iterator[list[Read]], writer: Writer, team: Team, memory: PixelMemory) -> None:
        """Run batches through the network and hand their good rows to the writer."""
        under_way: deque[tuple[list[Read], list[np.ndarray]]] = deque()

        def pixels() -> Iterator[list[np.ndarray]]:
            for batch in batches:
                under_way.append((batch, [r.pixels for r in batch if r.pixels is not None]))
                yield under_way[-1][1]

        waits = self.encoder.device != "cpu"
        codes = self.encoder.stream(pixels(), team)
        while True:
            start = time.perf_counter()
            computed = next(codes, None)
            if waits:
                self.encoder.gauge.add_device(time.perf_counter() - start)
            if computed is None:
                return
            batch, used = under_way.popleft()
            for array in used:
                memory.give_back(array)
            self._hand_over(batch, computed, writer)
            del computed  # before the next batch is computed

    def _hand_over(self, batch: list[Read], codes: dict[str, np.ndarray], writer: Writer) -> None:
        self.tally.computed += len(batch)
        keys = np.frombuffer(b"".join((r.key or NO_KEY) * len(r.numbers) for r in batch), "u1").reshape(-1, len(NO_KEY))
        numbers = np.array([number for r in batch for number in r.numbers], "u2")
        # In pieces that the writer's limits can hold: a batch of feature maps may be many times as large as its pixels.
        rows = max(1, _PIECE_BYTES // sum(array[0].nbytes for array in codes.values()))
        for start in range(0, len(keys), rows):
            part = slice(start, start + rows)
            self._hand_over_rows(keys[part], {n: array[part] for n, array in codes.items()}, numbers[part], writer)

    def _hand_over_rows(
        self, keys: np.ndarray, codes: dict[str, np.ndarray], numbers: np.ndarray, writer: Writer
    ) -> None:
        dtype = np.dtype(str(self.encoder.spec["dtype"]))
        with np.errstate(over="ignore"):
            codes = {node: array.astype(dtype) for node, array in codes.items()}
        finite, constant = np.ones(len(keys), dtype=bool), np.ones(len(keys), dtype=bool)
        for array in codes.values():
            flat = array.reshape(len(keys), -1)
            finite &= np.isfinite(flat).all(axis=1)
            constant &= (flat == flat[:, :1]).all(axis=1)
        for place in np.flatnonzero(~finite).tolist():
            self.tally.failed_keys[keys[place].tobytes()] = f"the network gives NaN or Inf for it (as {dtype.name})"
        if not finite.all():
            codes = {node: array[finite] for node, array in codes.items()}
        if finite.any():
            writer.put(keys[finite], codes, constant[finite], numbers[finite])

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
        stream = self._stream_seconds
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
            images_per_second=round(computed / seconds, 2) if seconds else 0.0,
            steady_images_per_second=round(computed / stream, 2) if computed and stream else 0.0,
            precision=self.encoder.precision(),
            engine=self.encoder.engine_report() if computed else {},
            augmented=self.settings.augmented,
            shares=self._shares,
            bottleneck=str(self._verdict) if self._verdict else "",
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
