"""A network as a file of another program: torch.export's ``.pt2``, ONNX, or its tensors as safetensors.

Each format gives the bytes of its file, and the network again from such a file. The latter is only ever done with a
file that was written a moment ago: `torch.export.load` trusts its file as it would trust a program. It unpickles sample
inputs and tensor subclasses (falling back to ``weights_only=False``) and evaluates the sizes in the graph as
expressions, so that a crafted ``.pt2`` runs whatever it likes. ONNX is a graph of known operators and safetensors has
no graph at all: neither has code.
"""

from __future__ import annotations

import copy
import importlib
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import HandoffError
from .checking import Run, run_of

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["FORMATS", "check_installed", "written"]

KEY = "featcache"
#: Understood by runtimes since 2022; the exporter knows no lower one.
_OPSET = 18
#: A protocol buffer ends at 2 GiB.
_ONNX_LIMIT = 2**31 - 2**20


def check_installed(ending: str) -> None:
    """Raise HandoffError where a format needs a package that is not here."""
    if ending == ".onnx":
        for name in ("onnx", "onnxscript"):
            try:
                importlib.import_module(name)
            except ImportError:
                raise HandoffError(
                    f".onnx: expected the package {name}, found none; pip install 'featcache[onnx]', or export .pt2"
                ) from None


def written(ending: str, module: nn.Module, example: Tensor, facts: dict[str, Any]) -> bytes:
    """Return the bytes of a network's file.

    Parameters
    ----------
    ending : {".pt2", ".onnx", ".safetensors"}
        The format.
    module : nn.Module
        In eval mode, on the CPU.
    example : Tensor
        Two inputs, in memory of their own; any number of them can be given to the result.
    facts : dict
        Classes, preprocessing and so on; JSON types. They stand in the file under "featcache".

    Raises
    ------
    HandoffError
        When the network cannot be written in this format.
    """
    text = json.dumps(facts, sort_keys=True, ensure_ascii=True, allow_nan=False)
    try:
        with _quiet():
            return _WRITERS[ending](module, example, text)
    except HandoffError:
        raise
    except Exception as error:  # exporters raise dozens of kinds, with pages of text
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")[:200]
        raise HandoffError(
            f"{ending}: this network cannot be exported ({type(error).__name__}: {reason}); try another format"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what exporters log about their own inside from the user's terminal."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def _pt2(module: nn.Module, example: Tensor, text: str) -> bytes:
    import torch

    with torch.no_grad():
        program = torch.export.export(module, (example,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    # They hold paths of this machine, and counters that make the same network another file.
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={f"{KEY}.json": text})
    return buffer.getvalue()


def _onnx(module: nn.Module, example: Tensor, text: str) -> bytes:
    import torch

    size = sum(t.numel() * t.element_size() for t in module.state_dict().values())
    if size > _ONNX_LIMIT:
        raise HandoffError(f".onnx: expected tensors of less than 2 GiB in one file, got {size:,} bytes; export .pt2")
    program: Any = torch.onnx.export(
        module,
        (example,),
        dynamo=True,
        verbose=False,
        opset_version=_OPSET,
        input_names=["images"],
        output_names=["scores"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    proto: Any = program.model_proto
    for node in [*proto.graph.node, *(node for function in proto.functions for node in function.node)]:
        kept = [entry for entry in node.metadata_props if not entry.key.endswith("stack_trace")]  # as in _pt2
        del node.metadata_props[:]
        node.metadata_props.extend(kept)
    facts = {KEY: text, "classes": json.dumps(json.loads(text)["classes"])}
    for key, value in sorted(facts.items()):
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value
    return proto.SerializeToString(deterministic=True)


def _safetensors(module: nn.Module, example: Tensor, text: str) -> bytes:
    from safetensors.torch import save

    return save({name: t.detach().contiguous().clone() for name, t in module.state_dict().items()}, {KEY: text})


def _run_pt2(path: Path, module: nn.Module) -> Run:
    import torch

    return run_of(torch.export.load(str(path)).module())


def _run_onnx(path: Path, module: nn.Module) -> Run:
    try:
        import onnxruntime
    except ImportError:
        return _run_reference(path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run(["scores"], {"images": images})[0]


def _run_reference(path: Path) -> Run:
    """Without onnxruntime, by ONNX's own slow reference."""
    from onnx.reference import ReferenceEvaluator

    evaluator: Any = ReferenceEvaluator(str(path))
    return lambda images: np.asarray(evaluator.run(["scores"], {"images": images})[0])


def _run_safetensors(path: Path, module: nn.Module) -> Run:
    from safetensors.torch import load_file

    again = copy.deepcopy(module)
    again.load_state_dict(load_file(path))
    return run_of(again)


_WRITERS: dict[str, Callable[..., bytes]] = {".pt2": _pt2, ".onnx": _onnx, ".safetensors": _safetensors}
#: Ending → what makes a function of a file that `written` gave; the module is the original.
FORMATS: dict[str, Callable[[Path, Any], Run]] = {
    ".pt2": _run_pt2,
    ".onnx": _run_onnx,
    ".safetensors": _run_safetensors,
}
