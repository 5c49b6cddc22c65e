"""What runs a network: which engine, with which chunk, and proof that it computes what the plain network computes.

* "eager": the module as PyTorch runs it. On a CPU one chunk per core, too.
* "fused": `fused.rewritten`, CPU only; used only after it agreed with "eager" on random numbers and on the first chunk.
* "compiled": a package of `packages`, likewise.

Whatever an engine cannot do makes it fall back to the next, and the reason is kept.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import BackboneError
from . import cut, fused
from .arguments import Mode
from .compiling import compile_package
from .crew import crew
from .packages import PackageError, Packages, key_of

__all__ = ["DTYPES", "Engines", "Runner", "chunk_of"]

#: Precision modes and their dtypes.
DTYPES: dict[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

#: Threads that pack, at most: each keeps some memory, and more are hardly faster.
_PACKING = 4
#: The forward pass always sees exactly this many images, the last chunk padded: the same kernels run whatever the batch
#: size, so a row's bits depend neither on it nor on the neighbours. On a CPU the activations of four float32 images
#: stay in the cache and below the size from which an allocation costs page faults; low precision has twice the room.
_CHUNK_CPU = {"fp32": 4, "bf16": 8, "fp16": 8}
_CHUNK_ELSEWHERE = 64

#: Largest relative error of float32 codes against the plain network's; what fusing really costs is below 1e-5.
_TOLERANCE = 1e-4
#: A low precision engine may be as far from float32 as PyTorch's own layers in that precision, within these margins.
_MARGIN, _SLACK = 2.0, 1e-2
_ROWS_COMPARED = 2


@dataclass(frozen=True)
class Runner:
    """A module ready to run chunks.

    Attributes
    ----------
    module : nn.Module
        Normalised images → node → codes.
    engine : str
        Which engine this is.
    dtype : torch.dtype
        Of its input.
    chunk : int
        Images per call, always.
    parallel : bool
        Whether several threads may call it at once.
    reason : str
        Why it is not the engine that was asked for, or what is special about it.
    proven : bool
        Whether it needs no more comparison.
    """

    module: nn.Module
    engine: str
    dtype: torch.dtype
    chunk: int
    parallel: bool
    reason: str = ""
    proven: bool = True


def chunk_of(mode: Mode, device: torch.device) -> int:
    """Return how many images a forward pass sees, a constant for each mode and kind of device."""
    if device.type != "cpu":
        return _CHUNK_ELSEWHERE
    return _CHUNK_CPU["fp32" if mode.kept else mode.base]


class Engines:
    """The runners of one network, made when they are first needed."""

    def __init__(self, module: nn.Module, channels_last: bool, nodes: tuple[str, ...] = ()) -> None:
        self.module, self.channels_last, self.nodes = module, channels_last, nodes
        self.identity: Mapping[str, Any] | None = None  # what names its packages; without it none are used
        self._runners: dict[tuple[str, str, str], Runner] = {}
        self._references: dict[str, Runner] = {}
        self._lock = threading.RLock()

    def runner(self, mode: Mode, device: torch.device, engine: str, row: tuple[int, int, int]) -> Runner:
        """Return what runs a mode on a device; `row` is the (C, H, W) of one image."""
        self._check(mode)
        wanted = self._usual(device) if engine == "auto" else engine
        with self._lock:
            key = (str(mode), str(device), wanted)
            if key not in self._runners:
                self._runners[key] = self._made(mode, device, wanted, (chunk_of(mode, device), *row))
            return self._runners[key]

    def proven(self, mode: Mode, device: torch.device, engine: str, x: Callable[[torch.dtype], Tensor]) -> Runner:
        """Return the runner after comparing it with the plain network on the first real chunk; `x` gives its input."""
        wanted = self._usual(device) if engine == "auto" else engine
        with self._lock:
            key = (str(mode), str(device), wanted)
            runner = self._runners[key]
            if runner.proven:
                return runner
            problem = self._on_one_core(lambda: self._problem(runner, mode, x))
            if problem:
                runner = replace(self._eager(mode, device, runner.chunk), reason=f"{runner.engine}: {problem}")
            self._references.clear()
            self._runners[key] = replace(runner, proven=True)
            return self._runners[key]

    def halved(self, mode: Mode, device: torch.device, engine: str) -> Runner:
        """Return the runner with half its chunk, from now on: there was not enough memory for it."""
        wanted = self._usual(device) if engine == "auto" else engine
        with self._lock:
            key = (str(mode), str(device), wanted)
            runner = self._runners[key]
            half = max(1, runner.chunk // 2)
            note = f"out of memory with {runner.chunk} images at a time, going on with {half}"
            self._runners[key] = replace(runner, chunk=half, reason="; ".join(filter(None, [runner.reason, note])))
            return self._runners[key]

    def layers(self) -> list[str]:
        """Return the names of the layers that can be kept in float32; none where the network could not be traced."""
        return fused.layers(self.module) if isinstance(self.module, cut.Cut) else []

    def layer_modules(self, names: Collection[str]) -> dict[str, nn.Module]:
        """Return the layers of these names as they were before they were fused."""
        assert isinstance(self.module, cut.Cut)
        return {name: self.module.trunk.get_submodule(name) for name in names}

    def layer_rows(self) -> dict[str, tuple[int, ...]]:
        """Return layer → shape of one row of its output, where that is known."""
        assert isinstance(self.module, cut.Cut)
        nodes = self.module.trunk.graph.nodes
        return {str(n.target): n.meta["row"] for n in nodes if n.op == "call_module" and n.meta.get("row")}

    def _usual(self, device: torch.device) -> str:
        return "fused" if device.type == "cpu" and isinstance(self.module, cut.Cut) else "eager"

    def _check(self, mode: Mode) -> None:
        if not mode.kept:
            return
        known = self.layers()
        unknown = [name for name in mode.kept if name not in known]
        if unknown:
            listed = f"such as {', '.join(known[:2])}" if known else "none, since this network cannot be traced"
            raise BackboneError(
                f"mode {str(mode)[:60]!r}: expected names of convolutions or linear layers upstream of the nodes "
                f"({listed}), got {unknown[0]!r}; correct it"
            )

    # -- making -------------------------------------------------------------------------------------------------------

    def _made(self, mode: Mode, device: torch.device, engine: str, shape: tuple[int, int, int, int]) -> Runner:
        if engine == "eager":
            return self._eager(mode, device, shape[0])
        if device.type != "cpu" or not isinstance(self.module, cut.Cut):
            reason = "cannot be traced" if device.type == "cpu" else f"is for the CPU, not for {device.type}"
            return replace(self._eager(mode, device, shape[0]), reason=f"{engine}: {reason}")
        if engine == "compiled":
            return self._compiled(mode, device, shape)
        return self._fused(mode, device, shape)

    # -- packages -----------------------------------------------------------------------------------------------------

    def package_key(self, mode: Mode, shape: tuple[int, int, int, int]) -> str:
        """Return the name of the package for a mode; PackageError where there can be none."""
        if not isinstance(self.module, cut.Cut):
            raise PackageError("this network cannot be traced")
        if self.identity is None:
            raise PackageError("this network has no identity")
        self._check(mode)
        return key_of({**self.identity, "mode": str(mode), "shape": shape, "channels_last": self.channels_last})

    def build_package(self, mode: Mode, shape: tuple[int, int, int, int]) -> None:
        """Build the package for a mode unless it is there; PackageError where that fails."""
        key = self.package_key(mode, shape)
        assert isinstance(self.module, cut.Cut)
        module = fused.rewritten(self.module, shape, low=DTYPES[mode.base], kept=mode.kept, pack=False)
        Packages().build(key, lambda path: compile_package(module, shape, path, channels_last=self.channels_last))
        with self._lock:  # what fell back before may be there now
            self._runners.pop((str(mode), "cpu", "compiled"), None)

    def _compiled(self, mode: Mode, device: torch.device, shape: tuple[int, int, int, int]) -> Runner:
        try:
            key, packages = self.package_key(mode, shape), Packages()
            threads = torch.get_num_threads()
            package = packages.load(key, self.nodes, threads)
            if package is None:
                self.build_package(mode, shape)
                package = packages.load(key, self.nodes, threads)
            if package is None:
                raise PackageError("the package is gone again")
            dtype = fused.input_dtype(self.module, DTYPES[mode.base], mode.kept)
            return Runner(package, "compiled", dtype, shape[0], package.parallel, proven=False)
        except PackageError as error:
            runner = self._fused(mode, device, shape)
            return replace(runner, reason="; ".join(filter(None, [f"compiled: {error}", runner.reason])))

    def _fused(self, mode: Mode, device: torch.device, shape: tuple[int, int, int, int]) -> Runner:
        try:
            module = self.rewritten(DTYPES[mode.base], mode.kept, shape)
            if not module.fused:
                why = module.reasons[0] if module.reasons else "nothing in this network can be fused"
                return replace(self._eager(mode, device, shape[0]), reason=f"fused: {why}")
            runner = Runner(module, "fused", module.input_dtype, shape[0], True, "; ".join(module.reasons[:3]), False)
            problem = self._on_one_core(lambda: self._problem(runner, mode, lambda dtype: _noise(shape, dtype)))
        except Exception as error:  # private operations of PyTorch's, in a version that nobody tried
            problem = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        if problem:
            return replace(self._eager(mode, device, shape[0]), reason=f"fused: {problem}")
        return runner

    def rewritten(self, low: torch.dtype, kept: Collection[str], shape: tuple[int, int, int, int]) -> fused.Rewritten:
        """Return the fused network, neither proven nor kept."""
        assert isinstance(self.module, cut.Cut)
        # Packed by threads of one core each, since layouts are chosen for the number of cores that will compute.
        size = min(torch.get_num_threads(), _PACKING)
        return fused.rewritten(
            self.module,
            shape,
            low=low,
            kept=kept,
            pack_convolutions=self.channels_last,
            workers=crew(size, "packing"),
        )

    def _eager(self, mode: Mode, device: torch.device, chunk: int) -> Runner:
        if device.type == "cuda" and mode.base == "bf16" and not torch.cuda.is_bf16_supported():
            raise BackboneError(f"mode 'bf16' on {device}: this GPU cannot compute in it; use mode='fp16' or 'fp32'")
        dtype = DTYPES[mode.base]
        if mode.kept:
            assert isinstance(self.module, cut.Cut)
            place = None if device.type == "cpu" else device
            module: nn.Module = fused.rewritten(
                self.module, (chunk, 0, 0, 0), low=dtype, kept=mode.kept, pack=False, device=place
            )
            dtype = module.input_dtype  # type: ignore[assignment]
        elif mode.base == "fp32" and device.type == "cpu":
            module = self.module
        else:
            module = copy.deepcopy(self.module).to(device=device, dtype=dtype)
        if self.channels_last:
            module = module.to(memory_format=torch.channels_last)
        # Hooks find their results through shared names, so such a network runs in one thread only.
        parallel = device.type == "cpu" and isinstance(self.module, cut.Cut)
        return Runner(module.eval(), "eager", dtype, chunk, parallel)

    # -- proving ------------------------------------------------------------------------------------------------------

    def _on_one_core(self, task: Callable[[], str]) -> str:
        return crew(torch.get_num_threads()).submit(task).result()

    def _problem(self, runner: Runner, mode: Mode, x: Callable[[torch.dtype], Tensor]) -> str:
        """Say how far a runner's codes are from the plain network's; "" when they are near enough."""
        try:
            with torch.inference_mode():
                got = runner.module(self._laid_out(x(runner.dtype)))
                plain = self._plain(x(torch.float32))
                errors = {n: _relative(plain[n], got[n]) for n in plain}
                limits = dict.fromkeys(errors, _TOLERANCE)
                if mode.base != "fp32":
                    limits = self._low_limits(mode, plain, x)
        except Exception as error:  # private operations of PyTorch's, in a version that nobody tried
            return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        worst = max(errors, key=lambda n: errors[n] - limits[n])
        return (
            ""
            if errors[worst] <= limits[worst]
            else f"node {worst} differs from the plain network ({errors[worst]:.1e})"
        )

    def _plain(self, x: Tensor) -> Mapping[str, Tensor]:
        """Return the float32 codes of the first rows as PyTorch computes them."""
        return self.module(self._laid_out(x[:_ROWS_COMPARED]))

    def _low_limits(
        self, mode: Mode, plain: Mapping[str, Tensor], x: Callable[[torch.dtype], Tensor]
    ) -> dict[str, float]:
        if mode.base not in self._references:
            self._references[mode.base] = self._eager(Mode(mode.base), torch.device("cpu"), 0)
        eager = self._references[mode.base]
        low = eager.module(self._laid_out(x(eager.dtype)[:_ROWS_COMPARED]))
        return {n: _MARGIN * _relative(plain[n], low[n]) + _SLACK for n in plain}

    def _laid_out(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)


def _noise(shape: tuple[int, int, int, int], dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn((_ROWS_COMPARED, *shape[1:]), generator=generator, dtype=torch.float32).to(dtype)


def _relative(exact: Tensor, other: Tensor) -> float:
    """Return the relative error of the rows that `exact` has, where they are finite."""
    a, b = exact.double(), other[: len(exact)].double()
    finite = torch.isfinite(a)
    if not bool((finite <= torch.isfinite(b)).all()):
        return float("inf")
    a, b = torch.where(finite, a, 0.0), torch.where(finite, b, 0.0)
    return float((a - b).norm() / a.norm().clamp(min=1e-12))


def describe(runner: Runner, wanted: str, device: str) -> dict[str, Any]:
    """Return what `Backbone.engine_report` says of a runner."""
    if wanted == "auto" and runner.engine == "eager" and not runner.reason:
        why = "this network cannot be traced" if device == "cpu" else f"fused is for the CPU, not for {device}"
        runner = replace(runner, reason=why)
    counts = {name: getattr(runner.module, name) for name in ("fused", "kept") if hasattr(runner.module, name)}
    return {"engine": runner.engine, "asked": wanted, "reason": runner.reason, "chunk": runner.chunk, **counts}
