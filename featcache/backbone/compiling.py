"""A network compiled into native code by a child process, which takes inductor's time, memory and crashes on itself.

The graph travels as a list of nodes and the parts that they name, since a `GraphModule` that is unpickled would be
traced anew, and not every function can be. This process writes the file, into a private folder, for its own child.
"""

from __future__ import annotations

import operator
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from . import cut, fused

__all__ = ["compile_file", "compile_package", "compiler"]

_TIMEOUT = 900.0
#: Imported by its name, so that the classes in the file are those of the child.
_CHILD = "import sys; from featcache.backbone.compiling import compile_file; compile_file(sys.argv[1], sys.argv[2])"


@dataclass(frozen=True)
class _Ref:
    """Stands for a node among the arguments of another."""

    name: str


class _Pooled(nn.Module):
    """What is compiled: trunk and pooling, as one graph; results in float32."""

    def __init__(self, trunk: nn.Module, poolings: Mapping[str, str], axes: Mapping[str, tuple[int, ...]]) -> None:
        super().__init__()
        self.trunk, self.poolings, self.axes = trunk, dict(poolings), dict(axes)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the codes of each node, in order."""
        return tuple(v.float() for v in cut.pool_all(self.trunk(x), self.poolings, self.axes).values())


def compiler() -> str | None:
    """Return the C++ compiler that would be used, None where there is none."""
    named = os.environ.get("CXX")
    for candidate in [named] if named else ["c++", "g++", "clang++"]:
        found = shutil.which(candidate)
        if found:
            return found
    return None


def compile_package(
    module: fused.Rewritten, shape: Sequence[int], target: Path, *, channels_last: bool, timeout: float = _TIMEOUT
) -> str:
    """Compile a network that was rewritten without packing.

    Parameters
    ----------
    module : fused.Rewritten
        The network.
    shape : sequence of int
        Of its input.
    target : Path
        Where the package goes; its folder is private.
    channels_last : bool
        The input's layout.
    timeout : float, default 900.0
        Seconds until the child is given up.

    Returns
    -------
    str
        Why it failed, in one line; "" when it did not.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix="work-") as folder:
        payload = Path(folder) / "network.pt"
        torch.save(_dumped(module, shape, channels_last), payload)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
            "TORCHINDUCTOR_CACHE_DIR": str(Path(folder) / "inductor"),
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-c", _CHILD, str(payload), str(target)]
        try:
            done = subprocess.run(
                command, env=environment, cwd=folder, timeout=timeout, capture_output=True, text=True, check=False
            )
        except subprocess.TimeoutExpired:
            return f"the compiler took longer than {timeout:.0f} s"
        except OSError as error:
            return f"no child process could be started ({error})"
    if done.returncode or not target.is_file():
        lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
        return f"the compiler's process ended with {done.returncode} ({lines[-1][:160] if lines else 'no message'})"
    return ""


def _dumped(module: fused.Rewritten, shape: Sequence[int], channels_last: bool) -> dict[str, Any]:
    trunk = module.trunk
    nodes = [
        (n.op, n.name, n.target, _referring(n.args), _referring(n.kwargs))
        for n in trunk.graph.nodes
    ]  # fmt: skip
    parts = {str(n.target): operator.attrgetter(str(n.target))(trunk) for n in trunk.graph.nodes if n.op in _OWNING}
    return {
        "nodes": nodes,
        "parts": parts,
        "poolings": module.poolings,
        "axes": module.axes,
        "shape": tuple(shape),
        "dtype": module.input_dtype,
        "channels_last": channels_last,
    }


_OWNING = ("call_module", "get_attr")


def _referring(value: Any) -> Any:
    return _mapped(value, fx.Node, lambda n: _Ref(n.name))


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    """Return arguments with everything of a kind changed, in plain collections."""
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, (tuple, list)):
        items = [_mapped(v, kind, change) for v in value]
        return tuple(items) if isinstance(value, tuple) else items
    if isinstance(value, Mapping):
        return {k: _mapped(v, kind, change) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(*(_mapped(v, kind, change) for v in (value.start, value.stop, value.step)))
    return value


def _loaded(dumped: Mapping[str, Any]) -> _Pooled:
    graph, known = fx.Graph(), dict[str, fx.Node]()

    def found(value: Any) -> Any:
        return _mapped(value, _Ref, lambda ref: known[ref.name])

    for op, name, target, args, kwargs in dumped["nodes"]:
        known[name] = graph.create_node(op, target, found(tuple(args)), found(dict(kwargs)), name)
    return _Pooled(fx.GraphModule(dict(dumped["parts"]), graph), dumped["poolings"], dumped["axes"]).eval()


def compile_file(payload: str, target: str) -> None:
    """Compile in this process, which is the child.

    Parameters
    ----------
    payload : str
        What `compile_package` wrote.
    target : str
        Where the package goes.
    """
    import torch._inductor.config as config

    torch.set_num_threads(1)
    # Written a moment ago by the parent, in a folder that nobody else may write.
    dumped = torch.load(payload, weights_only=False)
    module = _loaded(dumped)
    layout = torch.channels_last if dumped["channels_last"] else torch.contiguous_format
    x = torch.zeros(dumped["shape"], dtype=dumped["dtype"]).contiguous(memory_format=layout)
    if dumped["channels_last"]:
        module = module.to(memory_format=torch.channels_last)
    config.freezing = True
    with torch.no_grad():
        exported = torch.export.export(module, (x,))
        torch._inductor.aoti_compile_and_package(
            exported, package_path=target, inductor_configs={"freezing": True, "cpp.threads": 1}
        )
    from .packages import Package

    # The first call is made here: what crashes must not crash the user's process.
    expected = module(x)
    with torch.inference_mode():
        found = Package(Path(target), tuple(dumped["poolings"]), 1)(x)
    if not all(a.shape == b.shape for a, b in zip(expected, found.values(), strict=True)):
        raise RuntimeError("the package gives codes of another shape")
