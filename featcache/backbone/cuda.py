"""Streams of batches through GPUs: copies and arithmetic overlap, results come in order.

Each GPU has a lane with two slots. A slot has page-locked host memory for one chunk of pixels and its codes, so that a
chunk is uploaded on a stream of its own while the chunk before it is computed on another. What the lane asks of the
device goes through one small class, `Layer`, which tests replace.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import BackboneError
from .joined import Joined

__all__ = ["CANDIDATES", "Lane", "Layer", "best_chunk", "devices_of", "is_out_of_memory", "ordered"]

#: Chunk sizes that are tried where one is to be measured.
CANDIDATES = (32, 64, 128, 256, 512)
#: A larger chunk must be faster by so much to be worth its memory.
_WORTH = 1.03
_IN_FLIGHT = 2

Run = Callable[[Tensor], dict[str, Tensor]]


class Layer:
    """What a lane asks of one CUDA device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.uploading, self.computing = torch.cuda.Stream(device), torch.cuda.Stream(device)

    def host(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Return page-locked memory, from and to which copies need no waiting."""
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)

    def upload(self, host: Tensor, target: Tensor | None) -> tuple[Tensor, Any]:
        """Start to copy pixels to the device; return where they go, and what `compute` must wait for."""
        with torch.cuda.stream(self.uploading):
            found = torch.empty(host.shape, dtype=host.dtype, device=self.device) if target is None else target
            found.copy_(host, non_blocking=True)
            return found, self.uploading.record_event()

    def compute(self, run: Run, x: Tensor, ready: Any) -> dict[str, Tensor]:
        """Start the network once the pixels are there."""
        self.computing.wait_event(ready)
        x.record_stream(self.computing)
        with torch.cuda.stream(self.computing):
            return run(x)

    def download(self, codes: dict[str, Tensor], hosts: dict[str, Tensor]) -> Any:
        """Start to copy codes back, in the order of the computing; return what `wait` takes."""
        with torch.cuda.stream(self.computing):
            for node, rows in codes.items():
                hosts[node].copy_(rows, non_blocking=True)
            return self.computing.record_event()

    def wait(self, event: Any) -> None:
        """Wait until everything before an event is done."""
        event.synchronize()

    def free(self) -> None:
        """Give back memory that is only kept for later."""
        torch.cuda.synchronize(self.device)
        torch.cuda.empty_cache()

    def graphed(self, run: Run, x: Tensor) -> Run:
        """Return `run` recorded as one CUDA graph for inputs of this shape; raises where it cannot be recorded."""
        still = x.clone()
        with torch.cuda.stream(self.computing):
            for _ in range(2):  # libraries set themselves up on their first calls, which cannot be recorded
                expected = {node: rows.clone() for node, rows in run(still).items()}
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.computing):
            outputs = run(still)

        def replay(pixels: Tensor) -> dict[str, Tensor]:
            still.copy_(pixels)
            graph.replay()
            return outputs

        with torch.cuda.stream(self.computing):
            again = replay(x)
        torch.cuda.synchronize(self.device)
        if not all(torch.allclose(again[n], expected[n], rtol=1e-3, atol=1e-4, equal_nan=True) for n in expected):
            raise RuntimeError("a replay gave other codes")
        return replay


class _Slot:
    """Room for one chunk on its way."""

    def __init__(self) -> None:
        self.pixels: Tensor | None = None
        self.device: Tensor | None = None
        self.codes: dict[str, Tensor] = {}
        self.event: Any = None
        self.ticket: _Ticket | None = None
        self.rows: slice | None = None


class _Ticket:
    """One batch: its codes as they come in, and how many chunks are still on their way."""

    def __init__(self, codes: dict[str, np.ndarray], lane: Lane) -> None:
        self.codes, self.lane = codes, lane
        self.open = 0

    def result(self) -> dict[str, np.ndarray]:
        """Wait for the batch's last chunk and return the codes."""
        while self.open:
            self.lane.finish_oldest()
        return self.codes


class Lane:
    """The way through one device.

    Parameters
    ----------
    layer : Layer
        The device.
    run : callable
        Pixels (N, H, W, C) on the device → node → codes.
    shapes : dict of str to tuple of int
        Node → shape of a row of codes.
    chunk : int
        Images per forward pass, always; halved when the device's memory does not suffice.
    graphs : bool, default True
        Record the forward pass as a CUDA graph where that is possible.
    """

    def __init__(
        self, layer: Layer, run: Run, shapes: dict[str, tuple[int, ...]], chunk: int, graphs: bool = True
    ) -> None:
        self.layer, self.plain, self.shapes, self.chunk, self.graphs = layer, run, shapes, chunk, graphs
        self.notes: list[str] = []
        self._run: Run | None = None
        self._free = deque(_Slot() for _ in range(_IN_FLIGHT))
        self._busy: deque[_Slot] = deque()

    def submit(self, pixels: np.ndarray | Joined) -> _Ticket:
        """Start a batch; its last chunks may still be on their way when this returns."""
        ticket = _Ticket({n: np.empty((len(pixels), *row), np.float32) for n, row in self.shapes.items()}, self)
        start = 0
        while start < len(pixels):
            part = pixels[start : start + self.chunk]
            try:
                self._start(part, ticket, start)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                self._halve(error)
                continue
            start += len(part)
        return ticket

    def finish_oldest(self) -> None:
        """Wait for the chunk that was started first, and hand its codes to its batch."""
        slot = self._busy.popleft()
        self.layer.wait(slot.event)
        assert slot.ticket is not None and slot.rows is not None
        for node, out in slot.ticket.codes.items():
            out[slot.rows] = slot.codes[node][: slot.rows.stop - slot.rows.start].numpy()
        slot.ticket.open -= 1
        slot.ticket = None
        self._free.append(slot)

    def _start(self, part: np.ndarray, ticket: _Ticket, start: int) -> None:
        while not self._free:
            self.finish_oldest()
        slot = self._free[0]
        self._fill(slot, part)
        assert slot.pixels is not None
        slot.device, ready = self.layer.upload(slot.pixels, slot.device)
        if self._run is None:
            self._run = self._prepared(slot.device, ready)
        codes = self.layer.compute(self._run, slot.device, ready)
        slot.event = self.layer.download(codes, slot.codes)
        slot.ticket, slot.rows = ticket, slice(start, start + len(part))
        ticket.open += 1
        self._busy.append(self._free.popleft())

    def _fill(self, slot: _Slot, part: np.ndarray) -> None:
        """Put pixels into a slot's page-locked memory, padded with the last image."""
        if slot.pixels is None:
            slot.pixels = self.layer.host((self.chunk, *part.shape[1:]), torch.uint8)
            slot.codes = {n: self.layer.host((self.chunk, *row), torch.float32) for n, row in self.shapes.items()}
        target = slot.pixels.numpy()
        target[: len(part)] = part
        target[len(part) :] = part[-1:]

    def _prepared(self, x: Tensor, ready: Any) -> Run:
        """Return the forward pass as a graph where that works; a warm-up that lacks memory is reported as such."""
        if not self.graphs:
            return self.plain
        self.layer.wait(ready)
        try:
            return self.layer.graphed(self.plain, x)
        except Exception as error:  # capture fails in as many ways as there are operations
            if is_out_of_memory(error):
                raise
            self.notes.append(f"no CUDA graph: {' '.join(str(error).split())[:120]}")
            return self.plain

    def _halve(self, error: BaseException) -> None:
        """Go on with half the chunk: what is on its way is finished first, then the memory given back."""
        while self._busy:
            self.finish_oldest()
        if self.chunk == 1:
            raise BackboneError(
                f"device {self.layer.device}: not enough memory for one image ({' '.join(str(error).split())[:120]}); "
                "use device='cpu' or a smaller input"
            ) from error
        self._free = deque(_Slot() for _ in range(_IN_FLIGHT))
        self._run = None
        self.layer.free()
        self.notes.append(f"out of memory with {self.chunk} images at a time, going on with {self.chunk // 2}")
        self.chunk //= 2


def ordered(batches: Iterable[np.ndarray | Joined], lanes: Sequence[Lane]) -> Iterator[dict[str, np.ndarray]]:
    """Yield each batch's codes in order; batches go to the lanes in turn, at most two to each ahead of the results."""
    waiting: deque[_Ticket] = deque()
    for i, batch in enumerate(batches):
        waiting.append(lanes[i % len(lanes)].submit(batch))
        while len(waiting) >= _IN_FLIGHT * len(lanes):
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


def best_chunk(
    lane_of: Callable[[int], Lane], row: Sequence[int], candidates: Sequence[int] = CANDIDATES, repeats: int = 4
) -> int:
    """Measure how many images at a time are fastest.

    Parameters
    ----------
    lane_of : callable
        Chunk → a new lane.
    row : sequence of int
        Shape (H, W, C) of an image.
    candidates : sequence of int
        Sizes to try, ascending; the first that lacks memory ends it.
    repeats : int, default 4
        Chunks that are timed, after one that is not.

    Returns
    -------
    int
    """
    best, best_rate = candidates[0], 0.0
    for chunk in candidates:
        lane = lane_of(chunk)
        pixels = np.zeros((chunk, *row), np.uint8)
        lane.submit(pixels).result()
        if lane.chunk != chunk:
            break
        start = time.perf_counter()
        for _ in ordered((pixels for _ in range(repeats)), [lane]):
            pass
        rate = chunk * repeats / max(time.perf_counter() - start, 1e-9)
        if rate > best_rate * (_WORTH if best_rate else 1.0):
            best, best_rate = chunk, rate
        with contextlib.suppress(RuntimeError):
            lane.layer.free()
    return best


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a device or on the host."""
    text = str(error).lower()
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError) and ("out of memory" in text or "can't allocate memory" in text)
    )


def devices_of(device: str, count: Callable[[], int] = torch.cuda.device_count) -> list[str]:
    """Return the devices that a text names: "cuda:0,cuda:1", "cuda:all", or one."""
    if device == "cuda:all":
        found = [f"cuda:{i}" for i in range(count())]
        if not found:
            raise BackboneError("device 'cuda:all': there is no GPU on this machine; use device='cpu'")
        return found
    names = [name.strip() for name in device.split(",")]
    if len(names) > 1 and (len(set(names)) != len(names) or not all(n.startswith("cuda:") for n in names)):
        raise BackboneError(f"device {device!r}: expected different GPUs such as 'cuda:0,cuda:1'; correct it")
    return names
