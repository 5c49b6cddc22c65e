"""The encoder of one run: the spec in force, how pixels become codes here, and the proof that they are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np

from ..backbone import Backbone
from ..backbone.arguments import cores
from ..errors import BackboneError
from ..preprocess import Preprocess
from ..sources import ImageSource
from ..store import FeatureStore
from . import precision as precise
from .choosing import ModeChoice, Trial, choose_engine, choose_mode
from .gauge import Gauge
from .pixels import PixelMemory
from .probing import Probe
from .reading import Read, Reading
from .remembered import remembered
from .settings import Settings
from .team import Team

__all__ = ["Encoder"]

_AUDIT_ROWS = 8
_MOST_PER_PASS = 4096
#: Decoded pixels that may be in flight, and in one batch: inputs of 8192 × 8192 pixels must not fill the memory.
_WINDOW_BYTES, _BATCH_BYTES = 512 << 20, 256 << 20


class Encoder:
    """What turns this source's images into this store's codes.

    Parameters
    ----------
    source : ImageSource
        The images; a few serve as the probe.
    backbone : Backbone
        The network, loaded when it is first needed.
    settings : Settings
        Precision, dtype, batch size, threads, device.
    store : FeatureStore or None
        The existing store, whose spec is adopted where the settings say "auto".
    """

    def __init__(self, source: ImageSource, backbone: Backbone, settings: Settings, store: FeatureStore | None) -> None:
        self.source, self.backbone, self.settings, self.store = source, backbone, settings, store
        self.gauge = Gauge(cores())
        #: Set by `prepare`, before the first batch; a run with nothing to compute chooses nothing.
        self.choice: ModeChoice | None = None
        #: Images per forward pass on a GPU; a CPU's are fixed.
        self.chunk: int | None = None
        #: Probes never wait for a compiler.
        self.engine = "auto" if settings.engine == "compiled" else settings.engine
        self.audited: float | None = None

    # -- identity --------------------------------------------------------------------------------------------------

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The spec in force; loads the network only when this very request has not been seen before."""
        if self.store is not None and self._known_request():
            return self.store.spec
        part, network = self._precision_part(), self.backbone.spec
        recipe = self._recipe(part["class"])
        spec = {"version": 1, **network, "preprocess": recipe.spec(), "precision": part}
        return {**spec, "dtype": self._dtype(part["class"])}

    def _precision_part(self) -> dict[str, Any]:
        precision = self.settings.precision
        if self.store is not None and precision == "auto":
            return dict(self.store.spec.get("precision", {"class": "tolerance"}))
        part: dict[str, Any] = {"class": precise.CLASSES[precision]}
        if part["class"] == "tolerance":
            part["cosine"] = precise.TOLERANCE
        return part

    def _recipe(self, precision_class: str) -> Preprocess:
        """Return the recipe with the pixels in force: the reference's, or faster ones that were found to agree."""
        reference = self.backbone.preprocess
        if precision_class == "exact" and self.settings.pixels != "given":
            self._require_reference(reference)
        variants = reference.fast_variants()
        if precision_class == "exact" or self.settings.pixels != "auto" or not variants:
            return reference
        if self.store is not None:
            stored = Preprocess.from_spec(self.store.spec["preprocess"])
            return stored if stored in variants else reference
        return next((v for v in variants if self._probe.saves_time(v) and self._probe.agrees(v)), reference)

    def _require_reference(self, recipe: Preprocess) -> None:
        if (recipe.resampling, recipe.decoder) != (Preprocess().resampling, Preprocess().decoder):
            raise BackboneError(
                f"preprocess {recipe.resampling}/{recipe.decoder}: expected reference pixels under --precision fp32 "
                "(class exact), got faster ones; leave them out, or take --precision auto"
            )

    def _known_request(self) -> bool:
        request = self.request()
        assert self.store is not None
        return request is not None and self.store.requests.get(request) == self.store.fingerprint

    def request(self) -> dict[str, Any] | None:
        """What was asked for, in JSON types: equal requests come to equal specs. None when that cannot be told."""
        request = self.backbone.request()
        if request is None:
            return None
        asked = {"backbone": request, "precision": self.settings.precision, "dtype": self.settings.dtype}
        return asked if self.settings.pixels == "auto" else {**asked, "pixels": self.settings.pixels}

    def _dtype(self, precision_class: str) -> str:
        if self.settings.dtype != "auto":
            return self.settings.dtype
        if self.store is not None:
            return str(self.store.spec.get("dtype", "float32"))
        if precision_class == "exact":
            return "float32"
        return "float16" if precise.half_fits(self._probe.exact) else "float32"

    @cached_property
    def precision_class(self) -> str:
        """Class of the store."""
        return str(self.spec["precision"]["class"])

    @property
    def preprocess(self) -> Preprocess:
        """The recipe from an image to pixels: the spec's once that is known, till then the backbone's own."""
        # From the spec where it is known already: then decoding needs no network.
        return self._recipe_in_force if "spec" in self.__dict__ else self.backbone.preprocess

    @cached_property
    def _recipe_in_force(self) -> Preprocess:
        return Preprocess.from_spec(self.spec["preprocess"])

    @cached_property
    def device(self) -> str:
        """The device in use."""
        asked = self.settings.device
        if asked == "auto":
            return Backbone.usual_device()
        return "cpu" if asked.split(":")[0] == "cpu" else asked  # "cpu:0" is the same one

    @cached_property
    def first_device(self) -> str:
        """The one of several GPUs that probes run on."""
        return "cuda:0" if self.device == "cuda:all" else self.device.split(",")[0].strip()

    @property
    def batch_size(self) -> int:
        """Rows handed to the network at once."""
        size = self.settings.batch_size or max(Backbone.usual_batch(self.device), self.chunk or 0)
        return max(1, min(size, _BATCH_BYTES // self._row_bytes))

    @cached_property
    def _row_bytes(self) -> int:
        return int(np.prod(self.preprocess.shape))

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """View numbers that every image is to have."""
        return tuple(range(1 + self.settings.augmented))

    # -- pixels and codes -----------------------------------------------------------------------------------------

    def encode(self, pixels: np.ndarray, mode: str) -> dict[str, np.ndarray]:
        """Compute codes of pixels (n, H, W, C), n > 0, in batches: float32 per node."""
        asked = self.settings.batch_size or Backbone.usual_batch(self.device)
        size = max(1, min(asked, _BATCH_BYTES // pixels[0].size))
        parts = [
            self.backbone.encode(pixels[i : i + size], mode=mode, device=self.first_device, engine=self.engine)
            for i in range(0, len(pixels), size)
        ]
        return {node: np.concatenate([part[node] for part in parts]) for node in parts[0]}

    def stream(self, batches: Iterable[list[np.ndarray]], team: Team) -> Iterator[dict[str, np.ndarray]]:
        """Compute codes of batches in the mode in use, in order; reading ahead in `batches` by a few.

        On a CPU the team computes, unless it only reads.
        """
        return self.backbone.stream(
            batches,
            mode=self.mode,
            device=self.device,
            engine=self.engine,
            chunk=self.chunk,
            threads=team if team.size and self.device == "cpu" else None,
        )

    def pixels(self, payload: Any, key: bytes, numbers: Sequence[int]) -> np.ndarray:
        """Decode one image once, and make of it the views that are wanted: uint8 of shape (len(numbers), H, W, C)."""
        if tuple(numbers) == (0,):
            return self.preprocess.pixels(payload)[None]
        return self.preprocess.views(payload, key, max(numbers))[list(numbers)]

    def team(self) -> Team:
        """Return the threads of a stream, for a ``with`` statement: all-rounders, or those that were asked for.

        Where the settings say how many threads read, the network has threads of its own.
        """
        workers = self.settings.workers
        return Team(self.gauge.cores) if workers is None else Team(0, workers)

    def reading(self, *, rows: int = 1, gauge: Gauge | None = None, memory: PixelMemory | None = None) -> Reading:
        """Return how images are read here, each giving up to so many rows of pixels."""
        workers = self.settings.workers
        threads = self.gauge.cores if workers is None else workers
        # Of a device that is not known yet, since asking imports torch, the larger batch.
        usual = max(Backbone.usual_batch(self.settings.device), Backbone.usual_batch("cpu"))
        window = 2 * (self.settings.batch_size or usual) + 2 * threads
        size = int(np.prod(self.preprocess.shape)) * rows
        fits = max(threads + 1, _WINDOW_BYTES // size)
        return Reading(
            self.source,
            team=self.team,
            window=min(window, fits),
            gauge=gauge or Gauge(self.gauge.cores),
            memory_of=lambda payload: self.preprocess.memory_of(payload),
            memory=memory,
        )

    def keys(self, indices: Sequence[int], on_key: Callable[[int, bytes], None] | None = None) -> Iterator[Read]:
        """Read images for their keys alone."""
        return self.reading().results(indices, decode=None, on_key=on_key or (lambda index, key: None))

    @cached_property
    def _probe(self) -> Probe:
        """A few images by every recipe that is tried: all of them before the spec is known, then that of the spec."""
        reference = self.backbone.preprocess
        others: list[Preprocess] = []
        if "spec" in self.__dict__:
            others = [self.preprocess]
        elif self.settings.pixels != "reference" and self.store is None:
            others = reference.fast_variants()
        return Probe(len(self.source), lambda rows: self.reading(rows=rows), self.encode, [reference, *others])

    def engine_report(self) -> dict[str, Any]:
        """Return how the network was run here, and why not in another way."""
        return dict(self.backbone.engine_report(mode=self.mode, device=self.first_device, engine=self.engine))

    # -- before the first batch -----------------------------------------------------------------------------------

    def prepare(self, n_images: int, known: np.ndarray) -> None:
        """Before the first batch: is the network the spec's, which mode, does this machine compute the same codes?

        Parameters
        ----------
        n_images : int
            How many images are to be computed, at most.
        known : ndarray of int
            Images of the source whose codes are in the store.

        Raises
        ------
        SpecMismatch
            The weights changed between being identified and being loaded.
        StoreError
            This environment computes other codes than the store holds.
        """
        store = self.store
        assert store is not None
        store.require({**self.spec, "backbone": self.backbone.spec["backbone"]})
        newest = self._newest()
        self.choose(n_images, self.mode_before)
        here = self.environment()
        if newest and newest.get("environment") != here:
            self._audit(known, newest.get("environment") or {}, here)

    def _newest(self) -> dict[str, Any]:
        """Return how the store's newest rows were computed; {} without rows."""
        shards = self.store.shards if self.store is not None else []
        return dict(shards[-1].attributes["computed"]) if shards else {}

    @property
    def mode_before(self) -> str | None:
        """The mode of the store's newest rows; None without rows."""
        newest = self._newest()
        return str(newest.get("mode", "fp32")) if newest else None

    def choose(self, n_images: int, used_before: str | None = None) -> None:
        """Choose mode and engine for so many images."""
        self.choice = choose_mode(
            self.precision_class, n_images, self._trial, device=self.device, used_before=used_before
        )
        mode, asked = self.choice.mode, self._asked_engine()
        self.engine = choose_engine(asked, n_images, lambda: self._seconds(mode)) if self.device == "cpu" else asked
        self.chunk = self._chunk() if self.device.startswith("cuda") else None

    def _asked_engine(self) -> str:
        """Return the engine asked for; a job that goes on where it began keeps its compiled code."""
        asked, before = self.settings.engine, self._newest().get("environment")
        return "compiled" if asked == "auto" and before == {**self.environment(), "engine": "compiled"} else asked

    def _chunk(self) -> int:
        """Return the images per forward pass that keep a GPU busiest: those of the newest rows, else as measured."""
        before = self._newest().get("chunk")
        if isinstance(before, int) and 0 < before <= _MOST_PER_PASS:
            return before
        name = f"{self._network_name()}|chunk|{self.mode}"
        machine = self.environment()["processor"]
        return int(remembered(name, machine, lambda: self.backbone.best_chunk(self.mode, self.first_device)))

    def _seconds(self, mode: str) -> float:
        trial = self._trial()
        return trial.seconds() / (trial.speedup(mode) if mode != "fp32" else 1.0) if trial else 0.0

    def _trial(self) -> Trial | None:
        """Return the probe, decoded as the rows will be, beside its exact codes."""
        pixels = self._probe.pixels(self.preprocess)
        if not len(pixels):
            return None
        return Trial(
            encode=self.encode,
            pixels=pixels,
            exact=self._probe.exact,
            mixed=self._mixed,
            name=self._network_name(),
            machine=self.environment()["processor"],
        )

    def _network_name(self) -> str:
        """Return what identifies network, input and device in the memory of this machine's figures."""
        network = self.spec["backbone"]
        return f"{network['arch']}-{network['weights']}-{network['nodes']}-{self.preprocess.shape}-{self.first_device}"

    def _mixed(self, mode: str) -> str | None:
        if self.device != "cpu":
            return None
        pixels = self._probe.pixels(self.preprocess)
        return self.backbone.mixed_mode(pixels, mode=mode, tolerance=precise.PROBE_TOLERANCE)

    def environment(self) -> dict[str, str]:
        """Return what can change the last bits of a code here."""
        found = precise.environment(self.first_device, self._device_name())
        return {**found, "engine": self._engine_in_use()}

    def _engine_in_use(self) -> str:
        if self.engine != "auto":
            return self.engine
        return "fused" if self.device == "cpu" else "eager"

    def precision(self) -> dict[str, Any]:
        """Class, mode and evidence, for the report."""
        choice = self.choice or self._recorded_choice()
        return {"class": self.precision_class, **choice.as_dict(), "audited": self.audited}

    @property
    def mode(self) -> str:
        """The mode in use, once `prepare` has chosen it."""
        assert self.choice is not None
        return self.choice.mode

    def _recorded_choice(self) -> ModeChoice:
        """Return what the store's newest rows were computed in."""
        return ModeChoice(self.mode_before or "fp32", reason="as recorded: nothing was computed")

    def _device_name(self) -> str:
        if not self.device.startswith("cuda"):
            return ""
        import torch

        return str(torch.cuda.get_device_name(self.first_device))

    def _audit(self, known: np.ndarray, before: Mapping[str, str], here: Mapping[str, str]) -> None:
        """Recompute a few stored rows: another library or processor must come to the same codes."""
        store = self.store
        assert store is not None
        if not len(known):
            return
        spread = np.unique(np.linspace(0, len(known) - 1, min(_AUDIT_ROWS, len(known))).astype(int))
        indices = known[spread].tolist()
        results = self.reading().results(indices, decode=self.pixels)
        rows = [(r.key, r.pixels[0]) for r in results if r.pixels is not None and r.key is not None]
        if not rows:
            return
        keys = np.stack([np.frombuffer(k, "u1") for k, _ in rows])
        keep = np.flatnonzero(store.has(keys))
        if not len(keep):
            return
        pixels = np.stack([rows[i][1] for i in keep.tolist()])
        computed = self.encode(pixels, self.mode)
        stored = {node: store.codes(keys[keep], node) for node in computed}
        names = sorted(set(before) | set(here))
        difference = ", ".join(
            f"{n}: {before.get(n)} then, {here.get(n)} now" for n in names if before.get(n) != here.get(n)
        )

        def noise() -> dict[str, float]:
            return self.rounding(pixels, {self.mode, self.mode_before or self.mode})

        self.audited = precise.require_same_codes(
            self.precision_class, stored, computed, str(store.path), difference, noise
        )

    def rounding(self, pixels: np.ndarray, modes: Iterable[str]) -> dict[str, float]:
        """Return per node how far rows of these images (n, H, W, C) are moved by modes and by storage, at most."""
        exact, dtype = self.encode(pixels, "fp32"), np.dtype(str(self.spec["dtype"]))
        found = dict.fromkeys(exact, 0.0)
        for mode in modes:
            codes = exact if mode == "fp32" else self.encode(pixels, mode)
            for node in exact:
                with np.errstate(over="ignore"):
                    distances = precise.row_distances(codes[node].astype(dtype), exact[node])
                found[node] = max(found[node], float(distances[np.isfinite(distances)].max(initial=0.0)))
        return found

    def computed(self) -> dict[str, Any]:
        """How codes are computed here: recorded with each shard."""
        return {
            "mode": self.mode,
            "choice": self.choice.as_dict() if self.choice else {},
            "batch_size": self.batch_size,
            "workers": self.settings.workers,
            "engine": self.engine,
            "chunk": self.chunk,
            "environment": self.environment(),
            "audited": self.audited,
        }
