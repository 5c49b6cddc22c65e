"""Does a run that runs out of memory finish, with the effective batch it was asked for?

Memory is short (simulated) in the forward pass, in the backward pass, and in an evaluation: whenever more images than a
limit go through the network at once. The run's weights are compared with those of one that had memory enough.
"""

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
from measuring import claim
from torch import nn
from torch.nn.modules.module import register_module_forward_hook

import featcache as fc

PLACES = ("forward", "backward", "evaluation")
#: Images that fit.
_LIMIT = 7


def run(case: Any) -> dict[str, Any]:
    """Return what became of runs that ran out of memory."""
    source = case.images("clothing10", 5, 0, n_val=30 if not case.tiny else 9)
    head = case.head(source, case.backbone(96))
    epochs = 1 if case.tiny else 2
    # The last weights, not the best: those of the first evaluation would be equal whatever happened later.
    stages = fc.Training((fc.Stage(1, epochs=epochs, batch_size=16),), restore_best=False)
    common = {"stages": stages, "start": "head", "cache": False, "progress": False}
    expected = fc.finetune(head, source, case.work / "enough", **common)
    rows = []
    for place in PLACES:
        with _short(place):
            done = fc.finetune(head, source, case.work / place, **common)
        gap = max(
            float((a - b).abs().max())
            for a, b in zip(done.module.parameters(), expected.module.parameters(), strict=True)
        )
        rows.append(
            {
                "out of memory in": place,
                "epochs done": len(done.history) - 1,
                "micro-batch at the end": done.history[-1]["micro_batch"],
                "batch size": done.settings["training"]["stages"][0]["batch_size"],
                "weights differ": gap,
                "said": sum("memory" in note for note in done.notes),
            }
        )
    good = all(row["epochs done"] == epochs and row["micro-batch at the end"] <= _LIMIT and row["said"] for row in rows)
    claims = [
        claim(
            "runs that run out of memory at three places finish with the same effective batch",
            f"micro-batches {[row['micro-batch at the end'] for row in rows]} of 16, weights differ by "
            f"{max(row['weights differ'] for row in rows):.1e} at most",
            good and max(row["weights differ"] for row in rows) < 1e-4,
        )
    ]
    return {"rows": rows, "claims": [] if case.tiny else claims}


@contextlib.contextmanager
def _short(place: str) -> Iterator[None]:
    """Let memory run out where a linear layer gets more images than fit: on the way there, back, or when judging."""

    def short(*_: Any) -> None:
        raise torch.OutOfMemoryError("out of memory (simulated)")

    def watch(module: nn.Module, args: Any, output: Any) -> None:
        if not isinstance(module, nn.Linear) or len(args[0]) <= _LIMIT or not _in_training():
            return
        if torch.is_grad_enabled() == (place == "evaluation"):
            return
        if place == "backward":
            output.register_hook(short)
        else:
            short()

    handle = register_module_forward_hook(watch)
    try:
        yield
    finally:
        handle.remove()


def _in_training() -> bool:
    """Whether the training's own loop is asking, and not what tries the finished network before it is written."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename.endswith(("stepping.py", "evaluating.py")):
            return True
        frame = frame.f_back
    return False
