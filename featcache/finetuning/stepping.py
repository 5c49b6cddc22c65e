"""One step of the optimiser: an effective batch in as many pieces as memory asks for."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import FinetuneError
from .losses import Objective
from .memory import MicroBatch, OutOfMemory, is_out_of_memory, pieces
from .modes import learning_norms

__all__ = ["NonFinite", "Stepper", "autocast", "deterministic", "device_of", "scaler_for"]


class NonFinite(FinetuneError):
    """A loss, a gradient or a weight is no number any more."""


def device_of(name: str) -> torch.device:
    """Return the device that a setting names; FinetuneError where torch cannot use it."""
    try:
        device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise FinetuneError(f"device: expected one that torch can use, got {name!r} ({reason}); try 'cpu'") from error
    return device


def autocast(amp: bool | str, device: torch.device) -> Any:
    """Return the context in which a network computes: bf16 on a CPU, fp16 on a GPU, or as asked for; or none."""
    if not amp:
        return contextlib.nullcontext()
    kind = amp if isinstance(amp, str) else ("fp16" if device.type == "cuda" else "bf16")
    return torch.autocast(device.type, dtype=torch.float16 if kind == "fp16" else torch.bfloat16)


def scaler_for(amp: bool | str, device: torch.device) -> torch.amp.GradScaler:
    """Return the scaler of gradients: at work for fp16 only, whose range is too small for them."""
    fp16 = amp == "fp16" or (amp is True and device.type == "cuda")
    return torch.amp.GradScaler(device.type, enabled=fp16)


class Stepper:
    """Takes steps of one stage.

    Parameters
    ----------
    model : nn.Module
        In the stage's modes.
    objective : Objective
        The loss.
    optimizer : torch.optim.Optimizer
        Of the stage.
    scaler : torch.amp.GradScaler
        For fp16.
    amp, clip_norm
        As in `Training`.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        amp: bool | str,
        clip_norm: float | None,
    ) -> None:
        self.model, self.objective, self.optimizer, self.scaler = model, objective, optimizer, scaler
        self.amp, self.clip_norm = amp, clip_norm
        self.device = next(model.parameters()).device
        self.norms = learning_norms(model)

    def step(
        self, images: Tensor, targets: Tensor, micro: MicroBatch, randomness: Callable[[], Any], where: str
    ) -> float:
        """Take one step, in smaller pieces when memory runs out.

        Parameters
        ----------
        images, targets : Tensor
            The effective batch, on the CPU.
        micro : MicroBatch
            How many go through the network at once; halves when memory runs out.
        randomness : callable
            Returns the context in which the step's random numbers are drawn; entered anew for each attempt.
        where : str
            Names the step in errors.

        Returns
        -------
        float
            Mean loss over the batch.

        Raises
        ------
        NonFinite
            When the loss is no number; the weights are as before.
        OutOfMemory
            When memory ran out while the weights were changing.
        """
        before = [[b.clone() for b in norm.buffers(recurse=False)] for norm in self.norms]
        while True:
            try:
                with randomness():
                    loss = self._gradients(images, targets, micro.of(len(images)), where)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            # Outside of the handler, where the exception no longer holds the tensors of the attempt.
            self._undo(before)
            micro.halve(len(images), where)
        self._update()
        return loss

    def _undo(self, before: list[list[Tensor]]) -> None:
        """Take back what an attempt has left: gradients, and statistics of batch norms."""
        self.optimizer.zero_grad(set_to_none=True)
        for norm, saved in zip(self.norms, before, strict=True):
            for buffer, value in zip(norm.buffers(recurse=False), saved, strict=True):
                buffer.copy_(value)

    def _gradients(self, images: Tensor, targets: Tensor, micro: int, where: str) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        total, loss = self.objective.total(targets), 0.0
        for piece in pieces(len(images), micro):
            aimed = targets[piece].to(self.device)
            with autocast(self.amp, self.device):
                scores = self.model(images[piece].to(self.device))
            part = self.objective.sum(scores.float(), aimed) / max(total, 1e-12)
            value = float(part.detach())
            if not math.isfinite(value):
                raise NonFinite(
                    f"{where}: expected a finite loss, got {value}; lower the rates (find_lr), set clip_norm=1.0"
                    " or amp=False. The last checkpoint is kept"
                )
            self.scaler.scale(part).backward()
            loss += value
        return loss

    def _update(self) -> None:
        try:
            if self.clip_norm is not None:
                self.scaler.unscale_(self.optimizer)
                parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
                torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
            self.scaler.step(self.optimizer)
            self.scaler.update()
        except (RuntimeError, MemoryError) as error:
            if is_out_of_memory(error):
                # Some weights may have changed already: only a checkpoint knows them all as they were.
                raise OutOfMemory(str(error)) from error
            raise
        self.optimizer.zero_grad(set_to_none=True)


@contextlib.contextmanager
def deterministic() -> Iterator[None]:
    """Let torch compute the same bits each time, within the context."""
    if torch.cuda.is_available():  # cuBLAS asks for it, once, when it begins
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    enabled, warn_only = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    filled, benchmark = torch.utils.deterministic.fill_uninitialized_memory, torch.backends.cudnn.benchmark  # type: ignore[attr-defined]
    try:
        torch.use_deterministic_algorithms(True, warn_only=True)
        # Nothing here reads memory that it has not written, and filling all of it takes time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
        with torch.backends.cudnn.flags(
            enabled=torch.backends.cudnn.enabled, benchmark=False, deterministic=True, allow_tf32=False
        ):  # as codes are computed
            yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark
