"""What a `Backbone` does once it is loaded: encode pixels, and tell how."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

from ..errors import BackboneError
from . import arguments
from .joined import Joined

if TYPE_CHECKING:
    import numpy as np

    from ..preprocess import Preprocess
    from .crew import Threads
    from .cuda import Lane
    from .engines import Engines
    from .network import Network

__all__ = ["Working"]

_CHUNK_GPU = 64
#: Batches on their way through a CPU: one at its end, one that takes over the threads as they get free, one waiting.
_BATCHES_AHEAD = 3


class Working:
    """The part of `Backbone` that computes; the rest says what is to be computed."""

    if TYPE_CHECKING:

        @property
        def preprocess(self) -> Preprocess:
            """The recipe from an image to this network's input."""

        @property
        def _network(self) -> Network: ...

        @property
        def spec(self) -> dict[str, Any]:
            """Everything that decides the codes."""

    def encode(
        self,
        pixels: np.ndarray | list[np.ndarray],
        *,
        mode: str = "fp32",
        device: str = "cpu",
        engine: str = "auto",
        threads: Threads | None = None,
    ) -> dict[str, np.ndarray]:
        """Compute the codes of a batch.

        Parameters
        ----------
        pixels : ndarray of uint8, shape (N, H, W, C)
            What `preprocess.pixels` gives, stacked; N may be 0. Or a list of such arrays, which count as one.
        mode : {"fp32", "bf16", "fp16"} or str, default "fp32"
            Precision of weights and activations; pooling of maps and the result are float32 always.
            "bf16-except:features.0.0,features.1.conv.0.0" keeps those convolutions and linear layers in float32.
        device : str, default "cpu"
            As torch names it.
        engine : {"auto", "fused", "compiled", "eager"}, default "auto"
            What runs the network: "eager" is the module as PyTorch runs it, "fused" its layers fused and packed for a
            CPU, "compiled" a package made by a compiler (and kept) on first use. "auto" is "fused" on a CPU where the
            network could be traced, else "eager". `engine_report` tells what is really used, and why.
        threads : Threads, optional
            What computes on a CPU instead of threads of its own; only `stream` gives it.

        Returns
        -------
        dict of str to ndarray of float32
            Node → codes: N rows of shape ``output_shapes[node]``.

        Raises
        ------
        BackboneError
            For pixels of another shape or dtype, an unknown mode, a device or mode that this machine does not have.

        Notes
        -----
        Normalises as torchvision does, then runs in eval and inference mode, a few images at a time on each core that
        torch may use (4 in float32, 8 in a low precision; 64 on a GPU); the last chunk is padded with copies of its
        last image. On one machine and with one engine a row's bits depend neither on its neighbours nor on the batch
        size nor on the number of cores.
        Global settings of torch (threads, random state, TF32, default dtype) are as before when it returns.

        Examples
        --------
        >>> import numpy as np
        >>> codes = Backbone("squeezenet1_1", weights="random").encode(np.zeros((2, 224, 224, 3), np.uint8))
        >>> codes["features.12.cat"].shape
        (2, 512)
        """
        parsed, recipe = arguments.parse_mode(mode), self.preprocess
        arguments.check_engine(engine)
        rows = self._checked(pixels)
        if engine == "compiled":
            self._engines  # noqa: B018 - tells it its identity
        return self._network.encode(
            rows, recipe.mean, recipe.std, mode=parsed, device=device, engine=engine, threads=threads
        )

    def stream(
        self,
        batches: Iterable[np.ndarray | list[np.ndarray]],
        *,
        mode: str = "fp32",
        device: str = "cpu",
        engine: str = "auto",
        chunk: int | None = None,
        threads: Threads | None = None,
    ) -> Iterator[dict[str, np.ndarray]]:
        """Compute the codes of a stream of batches, lazily and in order.

        On a CPU up to three batches are on their way, so that cores which are done with one go on with the next; a
        network that could not be traced takes one at a time. On a GPU the next batch is copied while one is computed,
        at most two are on their way, and a chunk that needs too much memory is halved.

        Parameters
        ----------
        batches : iterable of ndarray of uint8, shape (N, H, W, C), or of lists of such arrays
            As for `encode`; of any sizes.
        mode, engine
            As for `encode`.
        device : str, default "cpu"
            As torch names it; "cuda:0,cuda:1" or "cuda:all" gives the batches to several GPUs in turn.
        chunk : int, optional
            Images per forward pass on a GPU, 64 by default; `best_chunk` measures the fastest. A row's bits depend
            on it.
        threads : Threads, optional
            What computes on a CPU instead of threads of its own.

        Yields
        ------
        dict of str to ndarray of float32
            As `encode` gives them, one per batch.

        Raises
        ------
        BackboneError
            As `encode`; of a batch when its codes are due.

        Notes
        -----
        What `batches` raises comes out after the codes of the batches before it.
        """
        arguments.check_mode(mode)
        arguments.check_engine(engine)
        if not device.startswith("cuda"):
            return self._stream_ahead(iter(batches), mode, device, engine, threads)
        return self._stream_on_gpus(batches, mode, device, chunk)

    def _stream_ahead(
        self, batches: Iterator[Any], mode: str, device: str, engine: str, threads: Threads | None
    ) -> Iterator[dict[str, np.ndarray]]:
        """Keep the network's threads busy while results are handed over and the next batch is put together."""
        encode = partial(self.encode, mode=mode, device=device, engine=engine, threads=threads)
        first = next(batches, None)
        if first is None:
            return
        if threads is not None:
            from .crew import settle

            settle(threads)
        yield encode(first)  # alone: whatever is made on first use is made once
        if not self._is_parallel(mode, device, engine):
            yield from map(encode, batches)
            return
        flying: deque[Future[dict[str, np.ndarray]]] = deque()
        pool = ThreadPoolExecutor(_BATCHES_AHEAD, thread_name_prefix="featcache-batch")
        failed: BaseException | None = None
        try:
            while failed is None:
                try:
                    pixels = next(batches, None)
                except BaseException as error:  # Ctrl-C as well: what is on its way comes first
                    pixels, failed = None, error
                if pixels is None:
                    break
                flying.append(pool.submit(encode, pixels))
                if len(flying) >= _BATCHES_AHEAD:
                    yield flying.popleft().result()
            while flying:
                yield flying.popleft().result()
            if failed is not None:
                raise failed
        finally:
            pool.shutdown(wait=True, cancel_futures=True)  # after Ctrl-C these are finished, or end with their threads

    def _is_parallel(self, mode: str, device: str, engine: str) -> bool:
        height, width, channels = self.preprocess.shape
        on_cpu = device.split(":")[0] == "cpu"
        return on_cpu and self._network.is_parallel(
            arguments.parse_mode(mode), device, engine, (channels, height, width)
        )

    def _stream_on_gpus(
        self, batches: Iterable[Any], mode: str, device: str, chunk: int | None
    ) -> Iterator[dict[str, np.ndarray]]:
        from . import cuda

        lanes = [self._lane(mode, name, chunk or _CHUNK_GPU) for name in cuda.devices_of(device)]
        self._lanes = lanes
        return cuda.ordered((self._checked(batch) for batch in batches), lanes)

    def _lane(self, mode: str, device: str, chunk: int) -> Lane:
        recipe = self.preprocess
        return self._network.lane(recipe.mean, recipe.std, arguments.parse_mode(mode), device, chunk)

    def _checked(self, pixels: np.ndarray | list[np.ndarray]) -> np.ndarray | Joined:
        for part in pixels if isinstance(pixels, list) and pixels else [pixels]:
            arguments.check_pixels(part, self.preprocess.shape)
        return Joined(pixels) if isinstance(pixels, list) else pixels

    def best_chunk(self, mode: str = "fp32", device: str = "cuda") -> int:
        """Measure how many images per forward pass are fastest on a GPU, for `stream`; remember it per machine.

        Parameters
        ----------
        mode : str, default "fp32"
            As for `encode`.
        device : str, default "cuda"
            One GPU.

        Returns
        -------
        int
            One of 32, 64, …, 512: the smallest where larger ones are hardly faster, or do not fit.
        """
        from . import cuda

        return cuda.best_chunk(lambda chunk: self._lane(mode, device, chunk), self.preprocess.shape)

    def engine_report(self, mode: str = "fp32", device: str = "cpu", engine: str = "auto") -> dict[str, Any]:
        """Tell what really runs the network, and why it is not what was asked for.

        Parameters
        ----------
        mode, device, engine
            As for `encode`. What was not used yet is made ready.

        Returns
        -------
        dict
            "engine" that is used, "asked", "reason" (empty when there is nothing to explain), "chunk" (images per
            forward pass), and for a fused network "fused" and "kept": how many of its layers are. On a GPU also
            "stream": what the last `stream` had to say (memory that ran out, CUDA graphs that failed).

        Examples
        --------
        >>> Backbone("squeezenet1_1", weights="random").engine_report(engine="eager")["engine"]
        'eager'
        """
        parsed, (height, width, channels) = arguments.parse_mode(mode), self.preprocess.shape
        arguments.check_engine(engine)
        if engine == "compiled":
            self._engines  # noqa: B018 - tells it its identity
        report = self._network.report_of(parsed, device, engine, (channels, height, width))
        notes = [note for lane in self.__dict__.get("_lanes", []) for note in lane.notes]
        return {**report, "stream": notes} if device.startswith("cuda") else report

    def mixed_mode(self, pixels: np.ndarray, *, mode: str = "bf16", tolerance: float = 0.998) -> str | None:
        """Find a mode for the CPU that is low precision where that is harmless, and float32 where it is not.

        Parameters
        ----------
        pixels : ndarray of uint8, shape (N, H, W, C)
            Some of your own images, 32 for instance.
        mode : {"bf16", "fp16"}, default "bf16"
            The low precision.
        tolerance : float, default 0.998
            Smallest cosine between any image's codes and the exact ones, both centred by the mean of the exact ones. A
            fifth of the room below 1 is left as a reserve, since other images may be worse.

        Returns
        -------
        str or None
            A mode for `encode`: `mode` itself where the whole network may be in it, else ``"bf16-except:…"`` with the
            layers to keep, verified on all `pixels`. None where there is none, or the network cannot be traced. The
            same images give the same answer on one machine.
        """
        parsed, recipe = arguments.parse_mode(mode), self.preprocess
        if parsed.base == "fp32" or parsed.kept:
            raise BackboneError(f"mode: expected 'bf16' or 'fp16' to find a mixed mode for, got {mode!r}; correct it")
        arguments.check_pixels(pixels, recipe.shape)
        return self._network.mixed_mode(pixels, recipe.mean, recipe.std, parsed.base, tolerance)

    def package_state(self, mode: str = "fp32") -> str:
        """Tell whether the compiled engine has a package for a mode.

        Parameters
        ----------
        mode : str, default "fp32"
            As for `encode`.

        Returns
        -------
        str
            "built"; "absent", when `build_package` would make it; or "impossible: …" with the reason.
        """
        from .packages import PackageError, Packages

        try:
            return Packages().state(self._engines.package_key(arguments.parse_mode(mode), self._shape(mode)))
        except PackageError as error:
            return f"impossible: {error}"

    def build_package(self, mode: str = "fp32") -> None:
        """Compile this network for a mode and this processor, in a child process, and keep the package.

        Nothing happens where there is an intact one. It takes from several seconds to minutes, and lies in the user's
        private cache, which is bounded. ``encode(engine="compiled")`` does it by itself.

        Parameters
        ----------
        mode : str, default "fp32"
            As for `encode`.

        Raises
        ------
        BackboneError
            When there is no compiler, it fails, or another user could write to the cache.
        """
        from .packages import PackageError

        try:
            self._engines.build_package(arguments.parse_mode(mode), self._shape(mode))
        except PackageError as error:
            raise BackboneError(f"build_package: {error}; engine='fused' needs none") from error

    @property
    def _engines(self) -> Engines:
        engines = self._network.engines
        # All that decides the codes; an own network's version stands for its code.
        engines.identity = self.spec["backbone"]
        return engines

    def _shape(self, mode: str) -> tuple[int, int, int, int]:
        """Return the shape (N, C, H, W) of what a forward pass on the CPU sees."""
        import torch

        from .engines import chunk_of

        height, width, channels = self.preprocess.shape
        return chunk_of(arguments.parse_mode(mode), torch.device("cpu")), channels, height, width

    @staticmethod
    def check_device(device: str) -> None:
        """Raise BackboneError unless this machine can compute on a device ("cpu", "cuda", "cuda:1", …)."""
        from .network import usable_device

        usable_device(device)

    @staticmethod
    def usual_device() -> str:
        """Return the device that "auto" stands for: the first GPU, else the CPU. Imports torch."""
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"

    @staticmethod
    def usual_threads() -> int:
        """Return how many threads should read and decode: one per core that this process may use, at most 8."""
        return min(arguments.cores(), 8)

    @staticmethod
    def usual_batch(device: str = "cpu") -> int:
        """Return a batch size that keeps a device busy: 32 images per core on a CPU, else 256."""
        # In a stream several are on their way at a time: larger ones would only take more memory.
        return 32 * arguments.cores() if device == "cpu" else 256
