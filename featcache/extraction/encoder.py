"""The encoder of one run: the spec in force, how pixels become codes here, and the proof that they are the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from ..backbone import Backbone
from ..preprocess import Preprocess
from ..sources import ImageSource
from ..store import FeatureStore
from . import precision as precise
from .pipeline import Read, read_all
from .precision import ModeChoice
from .settings import Settings

__all__ = ["Encoder"]

_PROBE_IMAGES = 32
_AUDIT_ROWS = 8


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
        #: Set by `prepare`, before the first batch; a run with nothing to compute chooses nothing.
        self.choice: ModeChoice | None = None
        self.audited: float | None = None

    # -- identity --------------------------------------------------------------------------------------------------

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
        request = self.request()
        assert self.store is not None
        return request is not None and self.store.requests.get(request) == self.store.fingerprint

    def request(self) -> dict[str, Any] | None:
        """What was asked for, in JSON types: equal requests come to equal specs. None when that cannot be told."""
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
        return "float16" if precise.half_fits(self.encode(probe, "fp32") if len(probe) else {}) else "float32"

    @cached_property
    def precision_class(self) -> str:
        """Class of the store."""
        return str(self.spec["precision"]["class"])

    @cached_property
    def preprocess(self) -> Preprocess:
        """The recipe from an image to pixels."""
        # From the spec where it is known already: then decoding needs no network.
        return Preprocess.from_spec(self.spec["preprocess"]) if "spec" in self.__dict__ else self.backbone.preprocess

    @cached_property
    def device(self) -> str:
        """The device in use."""
        return Backbone.usual_device() if self.settings.device == "auto" else self.settings.device

    @cached_property
    def batch_size(self) -> int:
        """Images handed to the network at once."""
        return self.settings.batch_size or Backbone.usual_batch(self.device)

    # -- pixels and codes -----------------------------------------------------------------------------------------

    def encode(self, pixels: np.ndarray, mode: str) -> dict[str, np.ndarray]:
        """Compute codes of pixels (n, H, W, C), n > 0, in batches: float32 per node."""
        size = self.batch_size
        parts = [
            self.backbone.encode(pixels[i : i + size], mode=mode, device=self.device)
            for i in range(0, len(pixels), size)
        ]
        return {node: np.concatenate([part[node] for part in parts]) for node in parts[0]}

    def read(
        self,
        indices: Any,
        *,
        decode: Callable[[Any], np.ndarray] | None,
        stored: Callable[[bytes], bool] = lambda key: False,
        on_key: Callable[[int, bytes], None] = lambda index, key: None,
    ) -> Iterator[Read]:
        """Read images of the source with the settings' threads; see `pipeline.read_all`."""
        return read_all(
            self.source,
            indices,
            decode=decode,
            stored=stored,
            on_key=on_key,
            workers=self.settings.threads,
            window=2 * (self.settings.batch_size or Backbone.usual_batch()) + 2 * self.settings.threads,
        )

    @cached_property
    def _probe(self) -> np.ndarray:
        """Pixels of a few images spread evenly over the source: uint8 of shape (n, H, W, C)."""
        return self.sample(_PROBE_IMAGES)

    def sample(self, n: int) -> np.ndarray:
        """Return the pixels of up to n images spread over the source; unreadable ones are left out."""
        spread = np.unique(np.linspace(0, len(self.source) - 1, min(n, len(self.source))).astype(int)).tolist()
        results = self.read(spread, decode=self.preprocess.pixels)
        pixels = [r.pixels for r in results if r.pixels is not None]
        return np.stack(pixels) if pixels else np.zeros((0, *self.preprocess.shape), dtype="u1")

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
        store.require({**self.spec, **self.backbone.spec})
        newest = store.shards[-1].attributes["computed"] if store.shards else {}
        exact = self.precision_class == "exact"
        needs_probe = not exact and n_images >= precise.WORTH_A_TRIAL and not newest
        used = newest.get("mode") if newest else None
        needs_probe |= used not in (None, "fp32") and self.precision_class == "tolerance"
        self.choice = precise.choose_mode(
            self.precision_class,
            n_images,
            self.encode,
            self._probe if needs_probe else np.zeros((0, *self.preprocess.shape), "u1"),
            device=self.device,
            name=f"{self.spec['backbone']['arch']}-{self.spec['backbone']['nodes']}-{self.preprocess.shape}-{self.device}",
            used_before=used,
        )
        here = precise.environment(self.device, self._device_name())
        if newest and newest.get("environment") != here:
            self._audit(known, newest.get("environment") or {}, here)

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
        newest = self.store.shards[-1].attributes["computed"] if self.store is not None and self.store.shards else {}
        return ModeChoice(str(newest.get("mode", "fp32")), reason="as recorded: nothing was computed")

    def _device_name(self) -> str:
        if not self.device.startswith("cuda"):
            return ""
        import torch

        return str(torch.cuda.get_device_name(self.device))

    def _audit(self, known: np.ndarray, before: Mapping[str, str], here: Mapping[str, str]) -> None:
        """Recompute a few stored rows: another library or processor must come to the same codes."""
        store = self.store
        assert store is not None
        if not len(known):
            return
        spread = np.unique(np.linspace(0, len(known) - 1, min(_AUDIT_ROWS, len(known))).astype(int))
        indices = known[spread].tolist()
        results = self.read(indices, decode=self.preprocess.pixels)
        rows = [(r.key, r.pixels) for r in results if r.pixels is not None and r.key is not None]
        if not rows:
            return
        keys = np.stack([np.frombuffer(k, "u1") for k, _ in rows])
        keep = np.flatnonzero(store.has(keys))
        if not len(keep):
            return
        computed = self.encode(np.stack([rows[i][1] for i in keep.tolist()]), self.mode)
        stored = {node: store.codes(keys[keep], node) for node in computed}
        names = sorted(set(before) | set(here))
        difference = ", ".join(
            f"{n}: {before.get(n)} then, {here.get(n)} now" for n in names if before.get(n) != here.get(n)
        )
        self.audited = precise.require_same_codes(self.precision_class, stored, computed, str(store.path), difference)

    def computed(self) -> dict[str, Any]:
        """How codes are computed here: recorded with each shard."""
        return {
            "mode": self.mode,
            "choice": self.choice.as_dict() if self.choice else {},
            "batch_size": self.batch_size,
            "workers": self.settings.threads,
            "environment": precise.environment(self.device, self._device_name()),
            "audited": self.audited,
        }
