"""One extraction, from what was asked for to the committed snapshot."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from .. import fingerprint as identity
from ..backbone import Backbone
from ..errors import BackboneError, FailureBudgetExceeded, StoreError, ViewMismatch
from ..preprocess import Preprocess
from ..progress import Progress, progress_for
from ..sources import ImageSource
from ..store import FAILED, NO_KEY, Entries, FeatureStore, Snapshot
from . import precision as precise
from .pipeline import Read, Writer, read_all
from .precision import ModeChoice
from .report import ExtractionReport, Plan

__all__ = ["Extraction", "Settings"]

_PROBE_IMAGES = 32
_AUDIT_ROWS = 8
_TIMED_IMAGES = 16
_SAMPLE_IDS = 16


@dataclass(frozen=True)
class Settings:
    """The arguments of `extract`; see there."""

    view: str = "main"
    add: bool = False
    replace: bool = False
    precision: str = "auto"
    dtype: str = "auto"
    batch_size: int = 32
    workers: int | None = None
    device: str = "auto"
    publish_seconds: float | None = None
    max_failed: float = 0.01

    def __post_init__(self) -> None:
        if self.precision not in precise.CLASSES:
            raise BackboneError(f"precision {self.precision!r}: expected one of {', '.join(precise.CLASSES)}")
        if self.dtype not in ("auto", "float32", "float16"):
            raise StoreError(f"dtype {self.dtype!r}: expected auto, float32 or float16")
        if self.batch_size < 1:
            raise BackboneError(f"batch_size {self.batch_size}: expected at least 1")
        if self.workers is not None and self.workers < 0:
            raise BackboneError(f"workers {self.workers}: expected 0 or more")
        if self.add and self.replace:
            raise StoreError("add and replace exclude each other; give one of them")
        if not 0 <= self.max_failed <= 1:
            raise StoreError(f"max_failed {self.max_failed}: expected a part between 0 and 1")
        if self.publish_seconds is not None and self.publish_seconds < 0:
            raise StoreError(f"publish_seconds {self.publish_seconds}: expected 0 or more")

    @property
    def threads(self) -> int:
        """Reading threads."""
        if self.workers is not None:
            return self.workers
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(cores, 8)


@dataclass
class Tally:
    """What a run has learnt so far about each image and key."""

    keys: np.ndarray
    readable: np.ndarray
    errors: dict[int, str] = field(default_factory=dict)
    failed_keys: dict[bytes, str] = field(default_factory=dict)
    computed: int = 0

    @classmethod
    def for_images(cls, n: int) -> Tally:
        """Nothing known about n images."""
        return cls(np.zeros((n, 32), dtype="u1"), np.zeros(n, dtype=bool))

    def note_key(self, index: int, key: bytes) -> None:
        """Remember the key of an image (called from the reading threads, each index once)."""
        self.keys[index] = np.frombuffer(key, "u1")
        self.readable[index] = True


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
        self.store: FeatureStore | None = store if isinstance(store, FeatureStore) else self._existing()
        self.progress = progress_for(progress)
        self.tally = Tally.for_images(len(source))
        self.choice = ModeChoice("fp32")
        self.audited: float | None = None
        self._lock = threading.Lock()
        self._clock = {"wait": 0.0, "model": 0.0, "stream": 0.0}

    def _existing(self) -> FeatureStore | None:
        return FeatureStore.open(self.path) if (self.path / "store.json").exists() else None

    # -- what is to be computed ------------------------------------------------------------------------------------

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The spec in force; loads the network only when this very request has not been seen before."""
        if self.store is not None and self._known_request():
            return self.store.spec
        precision = self.settings.precision
        if self.store is not None and precision == "auto":
            part = self.store.spec.get("precision", {"class": "tolerance"})
        else:
            part = {"class": precise.CLASSES[precision]}
            if part["class"] == "tolerance":
                part["cosine"] = precise.TOLERANCE
        spec = {"version": 1, **self.backbone.spec, "precision": part}
        return {**spec, "dtype": self._dtype(part["class"])}

    def _known_request(self) -> bool:
        request = self._request()
        assert self.store is not None
        return request is not None and self.store.requests.get(request) == self.store.fingerprint

    def _request(self) -> dict[str, Any] | None:
        request = self.backbone.request()
        if request is None:
            return None
        return {"backbone": request, "precision": self.settings.precision, "dtype": self.settings.dtype}

    def _dtype(self, precision_class: str) -> str:
        if self.settings.dtype != "auto":
            return self.settings.dtype
        if self.store is not None:
            return str(self.store.spec.get("dtype", "float32"))
        if precision_class == "exact":
            return "float32"
        probe = self._probe
        return "float16" if precise.half_fits(self._encode(probe, "fp32") if len(probe) else {}) else "float32"

    @cached_property
    def precision_class(self) -> str:
        """Class of the store."""
        return str(self.spec["precision"]["class"])

    @cached_property
    def _preprocess(self) -> Preprocess:
        # From the spec where it is known already: then decoding needs no network.
        return Preprocess.from_spec(self.spec["preprocess"]) if "spec" in self.__dict__ else self.backbone.preprocess

    @cached_property
    def device(self) -> str:
        """The device in use."""
        if self.settings.device != "auto":
            return self.settings.device
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    def _encode(self, pixels: np.ndarray, mode: str) -> dict[str, np.ndarray]:
        size = self.settings.batch_size
        parts = [
            self.backbone.encode(pixels[i : i + size], mode=mode, device=self.device)
            for i in range(0, len(pixels), size)
        ]
        return {node: np.concatenate([part[node] for part in parts]) for node in parts[0]}

    @cached_property
    def _probe(self) -> np.ndarray:
        """Pixels of a few images spread evenly over the source: uint8 of shape (n, H, W, C)."""
        return self._sample(_PROBE_IMAGES)

    def _sample(self, n: int) -> np.ndarray:
        spread = np.unique(np.linspace(0, len(self.source) - 1, min(n, len(self.source))).astype(int)).tolist()
        results = self._read(spread, decode=self._preprocess.pixels, stored=lambda key: False, note=False)
        pixels = [r.pixels for r in results if r.pixels is not None]
        return np.stack(pixels) if pixels else np.zeros((0, *self._preprocess.shape), dtype="u1")

    def _read(self, indices: Any, *, decode: Any, stored: Any, note: bool = True) -> Iterator[Read]:
        return read_all(
            self.source,
            indices,
            decode=decode,
            stored=stored,
            on_key=self._note_key if note else (lambda index, key: None),
            workers=self.settings.threads,
            window=2 * self.settings.batch_size + 2 * self.settings.threads,
        )

    # -- keys ------------------------------------------------------------------------------------------------------

    def _note_key(self, index: int, key: bytes) -> None:
        self.tally.note_key(index, key)
        stat = self.source.stat(index) if self._digests is not None else None
        if stat is not None and self._digests is not None and stat == self._stats.get(index):
            with self._lock:
                self._digests.put(stat, key)

    @cached_property
    def _digests(self) -> Any:
        return self.store.digests if self.store is not None else None

    @cached_property
    def _stats(self) -> dict[int, Any]:
        return {}

    def _look_up_known_files(self) -> np.ndarray:
        """Fill in the keys of files that are as they were; return the indices of the others."""
        open_ = []
        for index in range(len(self.source)):
            stat = self.source.stat(index) if self._digests is not None else None
            if stat is not None:
                self._stats[index] = stat
                known = self._digests.get(stat)
                if known is not None:
                    self.tally.note_key(index, known)
                    continue
            open_.append(index)
        return np.asarray(open_, dtype=np.int64)

    def _parent(self) -> Snapshot | None:
        """Return the view's state, after making sure that this source may change it."""
        head = self.store.snapshot(self.settings.view) if self.store is not None else None
        if head is None or not len(head.entries) or self.settings.add or self.settings.replace:
            return head
        if not np.isin(np.asarray(self.source.ids), head.entries.ids).any() and not self._shares_content(head):
            raise ViewMismatch(
                f"{self.path}: the source {self.source.location!r} shares no image with the {len(head.entries)} of "
                f"view {self.settings.view!r}; give --add to keep both, --replace to drop the old ones, or --view NAME"
            )
        return head

    def _shares_content(self, head: Snapshot) -> bool:
        """Tell whether a source under new names is still the view's: half of a sample has its content."""
        n = len(self.source)
        spread = np.unique(np.linspace(0, n - 1, min(_SAMPLE_IDS, n)).astype(int)).tolist()
        results = self._read(spread, decode=None, stored=lambda key: True, note=False)
        keys = [r.key for r in results if r.key is not None]
        known = {k.tobytes() for k in head.entries.keys}
        return bool(keys) and sum(k in known for k in keys) * 2 >= len(keys)

    # -- plan ------------------------------------------------------------------------------------------------------

    def plan(self) -> Plan:
        """Tell what `run` would do."""
        spec = self.spec
        if self.store is not None:
            self.store.require(spec)
        head = self._parent()
        with self.progress as bar:
            todo = self._look_up_known_files()
            bar.start("reading", len(todo))
            for _ in self._read(todo.tolist(), decode=None, stored=lambda key: True):
                bar.advance()
        keys = self.tally.keys[self.tally.readable]
        has = self.store.has(keys) if self.store is not None else np.zeros(len(keys), dtype=bool)
        compute = len({k.tobytes() for k in keys[~has]})
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
            seconds=None if seconds is None else round(seconds, 1),
            fingerprint=identity.fingerprint(spec),
            precision={"class": self.precision_class},
        )

    def _differences(self, head: Snapshot | None) -> tuple[int, int, int]:
        """Count images that are new to the view, changed in it, and gone from it."""
        if head is None:
            return len(self.source), 0, 0
        ids = np.asarray(self.source.ids)
        common = np.isin(ids, head.entries.ids)
        place = np.searchsorted(head.entries.ids, ids[common])
        changed = (head.entries.keys[place] != self.tally.keys[common]).any(axis=1) & self.tally.readable[common]
        gone = 0 if self.settings.add else int((~np.isin(head.entries.ids, ids)).sum())
        return int((~common).sum()), int(changed.sum()), gone

    def _estimate(self, compute: int) -> tuple[float | None, int]:
        """Predict seconds for so many images, and bytes per image, by running a few."""
        start = time.perf_counter()
        pixels = self._sample(_TIMED_IMAGES)
        read = time.perf_counter() - start
        if not len(pixels):
            return None, 0
        self._encode(pixels[:8], "fp32")
        start = time.perf_counter()
        codes = self._encode(pixels, "fp32")
        model = time.perf_counter() - start
        itemsize = np.dtype(str(self.spec["dtype"])).itemsize
        width = sum(int(np.prod(a.shape[1:])) for a in codes.values()) * itemsize
        return max(read, model) / len(pixels) * compute, width

    # -- run -------------------------------------------------------------------------------------------------------

    def run(self) -> FeatureStore:
        """Extract what is missing, publish it, commit the view."""
        spec = self.spec
        if self.store is None:
            self.store = FeatureStore.create(self.path, spec, locator=self.backbone.locator)
            self.__dict__.pop("_digests", None)
        self.store.require(spec)
        self.store = self.store if (self.path / "tmp").is_dir() else FeatureStore.create(self.path, spec)
        head = self._parent()
        todo = self._look_up_known_files()
        self._stream(todo)
        entries = self._entries()
        snapshot = self.store.commit(
            entries,
            view=self.settings.view,
            parent=head,
            keep_old=self.settings.add,
            roles=self.source.roles,
            source={"name": self.source.name, "location": self.source.location, "ignored": dict(self.source.ignored)},
        )
        self._remember()
        self.store.report = self._report(head, snapshot, entries)
        self._enforce_budget(entries)
        return self.store

    def _remember(self) -> None:
        assert self.store is not None
        if self._digests is not None:
            self._digests.save()
        request = self._request()
        if request is not None:
            self.store.requests.put(request, self.store.fingerprint)

    def _stream(self, unknown: np.ndarray) -> None:
        """Read what has no known key, and what is known but not stored; compute and publish what is missing."""
        store = self.store
        assert store is not None
        known = np.flatnonzero(self.tally.readable)
        lost = known[~store.has(self.tally.keys[known])]
        indices = np.sort(np.concatenate([unknown, lost])).tolist()
        if not indices:
            return

        def stored(key: bytes) -> bool:
            return bool(store.has(np.frombuffer(key, "u1").reshape(1, 32))[0])

        def decode(payload: Any) -> np.ndarray:
            return self._preprocess.pixels(payload)

        start = time.perf_counter()
        writer: Writer | None = None
        with self.progress as bar:
            bar.start("extracting", len(indices))
            reads = self._read(indices, decode=decode, stored=stored)
            try:
                for batch in self._batches(reads, bar):
                    if writer is None:
                        self._prepare(len(indices))
                        start = time.perf_counter()
                        self._clock["wait"] = 0.0
                        writer = Writer(store, self._computed(), self.settings.publish_seconds)
                    self._compute(batch, writer)
            finally:
                # Also after Ctrl-C or an error: rows that are computed are published before anything else happens.
                if writer is not None:
                    writer.close()
                    self._clock["write"] = writer.seconds
                self._clock["stream"] = time.perf_counter() - start

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
            if len(batch) == self.settings.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _prepare(self, n_images: int) -> None:
        """Before the first batch: is the network the spec's, which mode, does this machine compute the same codes?"""
        store = self.store
        assert store is not None
        store.require({**self.spec, **self.backbone.spec})
        newest = store.shards[-1].attributes["computed"] if store.shards else {}
        exact = self.precision_class == "exact"
        needs_probe = not exact and n_images >= precise.WORTH_A_TRIAL and not newest
        used = newest.get("mode") if newest else None
        needs_probe |= used not in (None, "fp32") and self.precision_class == "tolerance"
        self.choice = precise.choose_mode(
            self.precision_class,
            n_images,
            self._encode,
            self._probe if needs_probe else np.zeros((0, *self._preprocess.shape), "u1"),
            device=self.device,
            name=f"{self.spec['backbone']['arch']}-{self.spec['backbone']['nodes']}-{self._preprocess.shape}-{self.device}",
            used_before=used,
        )
        here = precise.environment(self.device, self._device_name())
        if newest and newest.get("environment") != here:
            self._audit(newest.get("environment") or {}, here)

    def _device_name(self) -> str:
        if not self.device.startswith("cuda"):
            return ""
        import torch

        return str(torch.cuda.get_device_name(self.device))

    def _audit(self, before: Mapping[str, str], here: Mapping[str, str]) -> None:
        """Recompute a few stored rows: another library or processor must come to the same codes."""
        store = self.store
        assert store is not None
        known = np.flatnonzero(self.tally.readable)
        known = known[store.status(self.tally.keys[known]) != FAILED]
        if not len(known):
            return
        spread = np.unique(np.linspace(0, len(known) - 1, min(_AUDIT_ROWS, len(known))).astype(int))
        indices = known[spread].tolist()
        results = self._read(indices, decode=self._preprocess.pixels, stored=lambda key: False, note=False)
        rows = [(r.key, r.pixels) for r in results if r.pixels is not None and r.key is not None]
        if not rows:
            return
        keys = np.stack([np.frombuffer(k, "u1") for k, _ in rows])
        keep = np.flatnonzero(store.has(keys))
        if not len(keep):
            return
        computed = self._encode(np.stack([rows[i][1] for i in keep.tolist()]), self.choice.mode)
        stored = {node: store.codes(keys[keep], node) for node in computed}
        names = sorted(set(before) | set(here))
        difference = ", ".join(
            f"{n}: {before.get(n)} then, {here.get(n)} now" for n in names if before.get(n) != here.get(n)
        )
        self.audited = precise.require_same_codes(self.precision_class, stored, computed, str(store.path), difference)

    def _computed(self) -> dict[str, Any]:
        return {
            "mode": self.choice.mode,
            "choice": self.choice.as_dict(),
            "batch_size": self.settings.batch_size,
            "workers": self.settings.threads,
            "environment": precise.environment(self.device, self._device_name()),
            "audited": self.audited,
        }

    def _compute(self, batch: list[Read], writer: Writer) -> None:
        """Run one batch and hand its good rows to the writer."""
        start = time.perf_counter()
        codes = self._encode(np.stack([r.pixels for r in batch if r.pixels is not None]), self.choice.mode)
        self._clock["model"] += time.perf_counter() - start
        self.tally.computed += len(batch)
        dtype = np.dtype(str(self.spec["dtype"]))
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

    def _entries(self) -> Entries:
        """Make the lines of the view: status and reason of each image of the source."""
        store, tally = self.store, self.tally
        assert store is not None
        status = store.status(tally.keys)
        status[~tally.readable] = FAILED
        errors = np.full(len(self.source), "", dtype=object)
        for index in np.flatnonzero(status == FAILED).tolist():
            key = tally.keys[index].tobytes()
            errors[index] = tally.errors.get(index) or tally.failed_keys.get(key) or "its codes were not computed"
        return Entries(
            np.asarray(self.source.ids, dtype=np.str_),
            tally.keys,
            status,
            errors.astype(np.str_),
            dict(self.source.columns),
        )

    def _report(self, head: Snapshot | None, snapshot: Snapshot, entries: Entries) -> ExtractionReport:
        seconds = time.perf_counter() - self.started
        failed = np.flatnonzero(entries.status == FAILED).tolist()
        stream = self._clock["stream"]
        gone = 0 if head is None or self.settings.add else int((~np.isin(head.entries.ids, entries.ids)).sum())
        computed = self.tally.computed
        return ExtractionReport(
            store=str(self.path),
            view=self.settings.view,
            fingerprint=identity.fingerprint(self.spec),
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
            precision={"class": self.precision_class, **self.choice.as_dict(), "audited": self.audited},
            shares={k: round(self._clock.get(k, 0.0) / stream, 3) for k in ("wait", "model", "write")}
            if stream
            else {},
            ignored=dict(self.source.ignored),
        )

    def _enforce_budget(self, entries: Entries) -> None:
        failed = np.flatnonzero(entries.status == FAILED)
        if len(failed) > self.settings.max_failed * len(entries):
            first = int(failed[0])
            raise FailureBudgetExceeded(
                f"{self.path}: {len(failed)} of {len(entries)} images failed, more than the budget of "
                f"{self.settings.max_failed:.0%} ({entries.ids[first]}: {entries.errors[first]}; …); the other rows "
                "are kept, see `featcache info` for the list, or allow more with --max-failed"
            )
