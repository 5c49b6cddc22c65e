"""A loaded, frozen, cut network: its identity, and how it turns pixels into codes."""

from __future__ import annotations

import contextlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, wait
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from ..errors import BackboneError, WeightsError
from ..fingerprint import digest_tensors
from . import cuda, cut, mixed, weights, zoo
from .arguments import Mode
from .crew import Threads, crew
from .engines import Engines, Runner, describe
from .joined import Joined
from .misfits import check_upstream
from .normalise import normalised, normalised_on

if TYPE_CHECKING:
    from ..preprocess import Preprocess

__all__ = ["Network", "from_architecture", "node_table", "usable_device"]


@dataclass
class Network:
    """A frozen network cut at its nodes.

    Attributes
    ----------
    arch : str
        Architecture as the spec names it.
    module : nn.Module
        Normalised images (N, C, H, W) → dict of node → codes; float32, CPU, eval mode, no gradients.
    nodes : tuple of str
        Canonical node names.
    poolings : dict of str to str
        Node → pooling that is really applied.
    shapes : dict of str to tuple of int
        Node → row shape of the codes.
    digest : str
        "sha256:…" over every tensor upstream of the nodes.
    report : weights.LoadReport
        What was missing, unexpected or of another shape.
    kwargs : dict
        Keyword arguments the architecture was built with, the number of classes left out.
    tensors : tuple of str
        Names that the digest covers.
    """

    arch: str
    module: nn.Module
    nodes: tuple[str, ...]
    poolings: dict[str, str]
    shapes: dict[str, tuple[int, ...]]
    digest: str
    report: weights.LoadReport
    kwargs: dict[str, Any]
    tensors: tuple[str, ...]
    channels_last: bool = False
    _lock: Any = field(default_factory=threading.Lock, repr=False)
    _engines: Engines | None = field(default=None, repr=False)

    @property
    def engines(self) -> Engines:
        """What runs this network."""
        with self._lock:
            if self._engines is None:
                self._engines = Engines(self.module, self.channels_last, self.nodes)
            return self._engines

    def encode(
        self,
        pixels: np.ndarray | Joined,
        mean: Sequence[float],
        std: Sequence[float],
        *,
        mode: Mode,
        device: str,
        engine: str = "auto",
        threads: Threads | None = None,
    ) -> dict[str, np.ndarray]:
        """Return node → float32 codes for uint8 pixels (N, H, W, C); see `Backbone.encode`."""
        target = usable_device(device)
        row = (pixels.shape[3], *pixels.shape[1:3])
        runner = self.engines.runner(mode, target, engine, row)

        def normal(start: int, size: int, dtype: torch.dtype) -> Tensor:
            chunk = _padded(pixels[start : start + size], size)
            if target.type == "cpu":
                x = normalised(chunk, mean, std, dtype)
            else:
                x = _on_device(chunk, mean, std, dtype, target)
            return x.contiguous(memory_format=torch.channels_last if self.channels_last else torch.contiguous_format)

        while True:
            try:
                if len(pixels) and not runner.proven:
                    size = runner.chunk
                    runner = self.engines.proven(mode, target, engine, lambda dtype: normal(0, size, dtype))  # noqa: B023
                return self._encoded(runner, len(pixels), normal, target, mode, threads)
            except (MemoryError, RuntimeError) as error:
                if not cuda.is_out_of_memory(error) or runner.chunk == 1:
                    raise
                # All of them again, so that the bits of a batch come from one size of chunk.
                runner = self.engines.halved(mode, target, engine)

    def _encoded(
        self,
        runner: Runner,
        n: int,
        normal: Callable[[int, int, torch.dtype], Tensor],
        target: torch.device,
        mode: Mode,
        threads: Threads | None,
    ) -> dict[str, np.ndarray]:
        codes = {node: np.empty((n, *self.shapes[node]), np.float32) for node in self.nodes}

        def run(start: int) -> None:
            with torch.inference_mode(), torch.autocast(target.type, enabled=False), _exact(target):
                rows = _run(runner.module, normal(start, runner.chunk, runner.dtype), str(mode))
            for node, out in codes.items():
                part = out[start : start + runner.chunk]
                part[...] = rows[node][: len(part)].float().cpu().numpy()

        starts = range(0, n, runner.chunk)
        if runner.parallel:
            pool = threads if threads is not None else crew(torch.get_num_threads())
            _all_done([pool.submit(run, start) for start in starts])
        else:
            for start in starts:
                run(start)
        return codes

    def is_parallel(self, mode: Mode, device: str, engine: str, row: tuple[int, int, int]) -> bool:
        """Whether several batches may be computed at the same time."""
        return self.engines.runner(mode, usable_device(device), engine, row).parallel

    def lane(self, mean: Sequence[float], std: Sequence[float], mode: Mode, device: str, chunk: int) -> cuda.Lane:
        """Return a way through a GPU for a stream of batches."""
        target = usable_device(device)
        runner = self.engines.runner(mode, target, "eager", (0, 0, 0))
        mean_, std_ = (torch.tensor(v, dtype=torch.float32, device=target).view(-1, 1, 1) for v in (mean, std))
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def run(pixels: Tensor) -> dict[str, Tensor]:
            with torch.inference_mode(), torch.autocast(target.type, enabled=False), _exact(target):
                x = normalised_on(pixels, mean_, std_, runner.dtype).contiguous(memory_format=layout)
                return {node: rows.float() for node, rows in _run(runner.module, x, str(mode)).items()}

        return cuda.Lane(self.layer(target), run, self.shapes, chunk)

    #: What a lane asks of a device; tests put another class here.
    layer: ClassVar[type[cuda.Layer]] = cuda.Layer

    def mixed_mode(
        self, pixels: np.ndarray, mean: Sequence[float], std: Sequence[float], low: str, tolerance: float
    ) -> str | None:
        """Return a mode that is exact enough; see `Backbone.mixed_mode`."""
        if not isinstance(self.module, cut.Cut) or not len(pixels):
            return None
        exact = self.encode(pixels, mean, std, mode=Mode("fp32"), device="cpu")
        layout = torch.channels_last if self.channels_last else torch.contiguous_format

        def prepare(part: np.ndarray, dtype: torch.dtype) -> Tensor:
            return normalised(part, mean, std, dtype).contiguous(memory_format=layout)

        kept = mixed.choose_layers(self.engines, pixels, exact, prepare, mixed.Wish(low, tolerance))
        return None if kept is None else str(Mode(low, tuple(kept)))

    def report_of(self, mode: Mode, device: str, engine: str, row: tuple[int, int, int]) -> dict[str, Any]:
        """Return what runs a mode; see `Backbone.engine_report`."""
        return describe(self.engines.runner(mode, usable_device(device), engine, row), engine, device)


def _run(module: nn.Module, x: Tensor, mode: str) -> dict[str, Tensor]:
    try:
        return module(x)
    except (NotImplementedError, RuntimeError) as error:
        if mode == "fp32" or "not implemented" not in str(error).lower():
            raise
        raise BackboneError(
            f"mode {mode!r} on {x.device}: this machine's PyTorch lacks it for this network ({one_line(error)}); use "
            "mode='fp32'"
        ) from error


def usable_device(device: str) -> torch.device:
    """Return the device of that name; BackboneError when PyTorch cannot compute on it here."""
    try:
        target = torch.device(device)
    except (RuntimeError, TypeError):
        raise BackboneError(f"device {device!r}: expected 'cpu', 'cuda', 'cuda:1', 'mps', …; correct it") from None
    try:
        if target.type != "cpu":
            torch.ones(1, device=target).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # each kind of device says it differently
        raise BackboneError(f"device {device!r}: not available to PyTorch on this machine; use device='cpu'") from error
    return target


def _all_done(parts: Sequence[Future[None]]) -> None:
    """Wait; after an error (or Ctrl-C) nothing is begun any more, and what runs is waited for before it is raised."""
    try:
        wait(parts, return_when=FIRST_EXCEPTION)
    finally:
        for part in parts:
            part.cancel()
        wait(parts)
    for part in sorted(parts, key=lambda part: part.cancelled()):
        part.result()


def _padded(pixels: np.ndarray, size: int) -> np.ndarray:
    """Repeat the last image until there are `size`."""
    surplus = size - len(pixels)
    return np.concatenate([pixels, np.repeat(pixels[-1:], surplus, axis=0)]) if surplus else pixels


def _on_device(
    pixels: np.ndarray, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, device: torch.device
) -> Tensor:
    x = torch.from_numpy(np.require(pixels, requirements=["C", "W"])).to(device)
    mean_, std_ = (torch.tensor(v, dtype=torch.float32, device=device).view(-1, 1, 1) for v in (mean, std))
    return normalised_on(x, mean_, std_, dtype)


@contextlib.contextmanager
def _exact(device: torch.device) -> Iterator[None]:
    """No TF32 in convolutions while codes are computed on a GPU; restored afterwards."""
    if device.type != "cuda":
        yield
        return
    with torch.backends.cudnn.flags(
        enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
    ):
        yield


def from_architecture(
    arch: str,
    *,
    source: Mapping[str, Tensor] | None,
    label: str,
    nodes: Sequence[str],
    pooling: str | Mapping[str, str],
    preprocess: Preprocess,
    kwargs: Mapping[str, Any],
    seed: int | None,
) -> Network:
    """Load tensors into a torchvision architecture and cut it.

    Parameters
    ----------
    arch : str
        torchvision architecture.
    source : mapping of str to Tensor, optional
        What was read; None starts from random numbers.
    label : str
        What messages call the weights.
    nodes : sequence of str
        Nodes as the user wrote them.
    pooling : str or mapping
        For all nodes, or per node.
    preprocess : Preprocess
        Gives the input's shape.
    kwargs : mapping
        Keyword arguments of the builder.
    seed : int, optional
        Seed of the random numbers that stand in for missing tensors; None refuses missing ones.

    Raises
    ------
    BackboneError, WeightsError
        When nodes, input, or tensors do not fit.
    """
    height, width, channels = preprocess.shape
    skeleton = zoo.build_skeleton(arch, kwargs, channels)
    traced = cut.trace(skeleton, arch, (torchvision.ops,))
    _propagate(traced, torch.empty(2, channels, height, width, device="meta", dtype=torch.float32), arch)
    wanted = skeleton.state_dict()
    resolved = resolved_nodes(traced.resolve, nodes)
    upstream = traced.upstream(resolved)
    matched = weights.match(source if source is not None else {}, wanted)
    if source is not None:
        check_upstream(matched, traced, upstream, arch, label, nodes, seed)
    lacking = source is None or not matched.report.unavailable.isdisjoint(upstream)
    fill = zoo.build_random(arch, kwargs, seed, channels).state_dict() if lacking and seed is not None else None
    _assign(skeleton, matched.tensors, fill)
    check_finite(skeleton, upstream, label)
    poolings, axes, shapes = poolings_of(
        resolved, wished(resolved, pooling, traced.resolve), traced.shapes, (height, width)
    )
    module = cut.Cut(traced, poolings, axes)
    module.built = arch, dict(kwargs), channels
    frozen(module)
    return Network(
        arch=arch,
        module=module,
        nodes=tuple(poolings),
        poolings=poolings,
        shapes=shapes,
        digest=digest(skeleton, upstream),
        report=matched.report if source is not None else weights.LoadReport(),
        kwargs={k: v for k, v in kwargs.items() if k != "num_classes"},
        tensors=tuple(upstream),
        channels_last=is_convolutional(module),
    )


def node_table(arch: str, kwargs: Mapping[str, Any], preprocess: Preprocess) -> list[dict[str, Any]]:
    """Describe every node of an architecture, without any weights: see `featcache.backbone.list_nodes`."""
    height, width, channels = preprocess.shape
    traced = cut.trace(zoo.build_skeleton(arch, kwargs, channels), arch, (torchvision.ops,))
    _propagate(traced, torch.empty(2, channels, height, width, device="meta", dtype=torch.float32), arch)
    penultimate = traced.penultimate()
    return [
        {
            "node": name,
            "module": traced.friendly(name),
            "shape": list(shape),
            "pooled": _average_shape(name, shape, (height, width)),
            "penultimate": name == penultimate,
        }
        for name, shape in traced.shapes.items()
    ]


def _average_shape(name: str, shape: tuple[int, ...], image: tuple[int, int]) -> list[int] | None:
    try:
        return list(cut.pooled_shape(shape, *cut.applied_pooling(name, shape, "avg", image)))
    except BackboneError:
        return None


def _propagate(traced: cut.Traced, batch: Tensor, label: str) -> None:
    try:
        traced.propagate(batch)
    except (RuntimeError, AssertionError, ValueError, TypeError, IndexError) as error:
        raise refused(label, batch, error) from error


def refused(label: str, batch: Tensor, error: BaseException) -> BackboneError:
    """Return the error for a network that fails on its input."""
    _, channels, height, width = batch.shape
    usual = zoo.default_recipe(label).shape if label in zoo.architectures() else None
    reason = one_line(str(error).split("While executing")[0])
    return BackboneError(
        f"model {label}: refuses an input of {height} × {width} × {channels} ({reason}); "
        + (f"expected {usual[0]} × {usual[1]} × {usual[2]} as in its own recipe; " if usual else "")
        + f"pass preprocess=Preprocess(..., crop={usual[0] if usual else '…'}) or model_kwargs= that fit"
    )


def resolved_nodes(resolve: Callable[[str], str], nodes: Sequence[str]) -> list[str]:
    """Return canonical names, each once, in the order they were asked for."""
    return list(dict.fromkeys(resolve(n) for n in nodes))


def wished(nodes: Sequence[str], pooling: str | Mapping[str, str], resolve: Callable[[str], str]) -> dict[str, str]:
    """Return the pooling that was asked for, by canonical node; "avg" for nodes that a mapping does not name."""
    if isinstance(pooling, str):
        return dict.fromkeys(nodes, pooling)
    named = {resolve(name): (name, wish) for name, wish in pooling.items()}
    for node, (name, _) in named.items():
        if node not in nodes:
            raise BackboneError(f"pooling: expected names among the nodes {', '.join(nodes)}, got {name!r}; correct it")
    return {node: named[node][1] if node in named else "avg" for node in nodes}


def poolings_of(
    nodes: Sequence[str],
    wishes: Mapping[str, str],
    shapes: Mapping[str, tuple[int, ...]],
    image: tuple[int, int],
) -> tuple[dict[str, str], dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return per node the pooling that is really applied, the axes it goes over, and the shape of a row."""
    applied: dict[str, str] = {}
    axes: dict[str, tuple[int, ...]] = {}
    out: dict[str, tuple[int, ...]] = {}
    for node in nodes:
        applied[node], axes[node] = cut.applied_pooling(node, shapes[node], wishes[node], image)
        out[node] = cut.pooled_shape(shapes[node], applied[node], axes[node])
    return applied, axes, out


def _assign(model: nn.Module, tensors: Mapping[str, Tensor], fill: Mapping[str, Tensor] | None) -> None:
    """Put tensors into a skeleton; what is neither given nor filled stays on the meta device, downstream of the cut."""
    state: OrderedDict[str, Tensor] = OrderedDict({**(fill or {}), **tensors})
    # They were matched with this very skeleton; without the versions in its metadata MNASNet refuses them.
    state._metadata = getattr(model.state_dict(), "_metadata", {})  # type: ignore[attr-defined]
    model.load_state_dict(state, strict=False, assign=True)


def check_finite(model: nn.Module, names: Sequence[str], label: str) -> None:
    """Refuse weights with NaN or infinity, and state that is no tensor (of quantised modules) and has no digest."""
    state = model.state_dict()
    for name in names:
        if not isinstance(state[name], Tensor):
            raise WeightsError(
                f"weights {label}: expected tensors, got {type(state[name]).__name__} in {name}; "
                "give the network as it was before it was quantised or packed"
            )
        if state[name].is_floating_point() and not bool(torch.isfinite(state[name]).all()):
            raise WeightsError(
                f"weights {label}: expected finite numbers, got NaN or infinity in {name}; the file is damaged or its "
                "training diverged, use other weights"
            )


def digest(model: nn.Module, names: Sequence[str]) -> str:
    """Return the digest of the named tensors of a model."""
    state = model.state_dict()
    return digest_tensors(
        (n, str(state[n].dtype).removeprefix("torch."), state[n].shape, _bytes(state[n])) for n in names
    )


def _bytes(tensor: Tensor) -> np.ndarray:
    """Return a tensor's bytes in C order, for dtypes that NumPy does not know as well."""
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def frozen(module: nn.Module) -> nn.Module:
    """Return the module itself, in eval mode and without gradients."""
    return module.eval().requires_grad_(False)


def is_convolutional(module: nn.Module) -> bool:
    """Whether channels_last pays; a ViT's one patch convolution does not repay it."""
    return sum(isinstance(m, nn.Conv2d) for m in module.modules()) >= 3


def one_line(error: BaseException | str) -> str:
    """Return a foreign message as one short line."""
    return " ".join(str(error).split())[:200].rstrip(". ") or type(error).__name__
