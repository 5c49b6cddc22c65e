"""What comes out of a run: the final weights, how good they are, the curves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..files import publish_bytes
from .averaging import between, choose_alpha, refresh_norms
from .checkpoints import load_weights, weights_bytes
from .evaluating import Judged, judge
from .memory import is_out_of_memory
from .modes import set_modes
from .records import write_json
from .seeding import epoch_order
from .stepping import autocast

if TYPE_CHECKING:
    from .running import Run

__all__ = ["Trained", "finish", "still_falling"]

#: By what share a loss must fall in the last epoch to be called falling.
_FALL = 0.005


@dataclass(frozen=True)
class Trained:
    """What `train` gives.

    Parameters
    ----------
    model : nn.Module
        The network with its final weights, in evaluation mode; everything of it is frozen.
    history : list of dict
        One row per epoch: "stage" (from 1), "name", "epoch" (0: before the first step), "train_loss" (mean over the
        epoch, while it changed), "step_losses" (of each step; 1,000 of them at most, evenly spaced), "val_loss",
        "val_accuracy", "lr" (by group, of the last step), "seconds" and "images_per_second" of training, "micro_batch".
    final : dict
        "weights": which they are; "val_loss", "val_accuracy", and "test_loss", "test_accuracy" where there are test
        rows; "alpha" and "tried" where weights were interpolated.
    notes : list of str
        What was said during the run.
    stopped : {"finished", "early"}
        Whether the last stage went through all of its epochs.
    falling : bool
        Whether the loss still fell at the last epoch.
    folder, weights, curves : Path
        The run's folder, and in it the final weights (safetensors) and the figure.
    best : dict or None
        "stage", "epoch", "loss", "accuracy" of the best epoch on the validation rows; None without such rows.
    """

    model: nn.Module
    history: list[dict[str, Any]]
    final: dict[str, Any]
    notes: list[str]
    stopped: str
    falling: bool
    folder: Path
    weights: Path
    curves: Path
    best: dict[str, Any] | None = None


def still_falling(history: list[dict[str, Any]]) -> str:
    """Return what still fell at the last epoch of the last stage, with its numbers, or "".

    The validation loss where there is one: it must be the lowest of the stage, and lower than the one before it by half
    a percent. Else the training loss.
    """
    rows = [row for row in history if row["stage"] == history[-1]["stage"] and row["epoch"] > 0]
    key = "train_loss" if not rows or rows[-1]["val_loss"] is None else "val_loss"
    losses = [row[key] for row in rows]
    if len(losses) < 2 or losses[-1] > min(losses) or losses[-1] > (1 - _FALL) * losses[-2]:
        return ""
    name = "training" if key == "train_loss" else "validation"
    return f"the {name} loss still fell at the last epoch ({losses[-2]:.4f} to {losses[-1]:.4f})"


def finish(run: Run, extend_command: str) -> Trained:
    """Bring the final weights about, once, and write down what they are."""
    place, weights = run.place, run.folder / "final.safetensors"
    final, curves = _known(run, weights), run.folder / "curves.png"
    new = final is None
    if final is None:
        final = _final_weights(run)
        _judge_final(run, final)
        data = weights_bytes(run.model.state_dict())
        publish_bytes(weights, data)
        final |= {"taken": place.taken, "epochs": place.epoch, "sha256": hashlib.sha256(data).hexdigest()}
        write_json(run.folder / "final.json", final)
    run.model.eval().requires_grad_(False)
    falling = "" if place.stopped else still_falling(place.history)
    if falling:
        advice = f": {extend_command}" if extend_command else "; give the last stage more epochs and run again"
        run.say(f"{falling}; more epochs may pay{advice}")
    from .plotting import plot_history

    if new or not curves.exists():
        plot_history(place.history, curves, final)
    write_json(run.folder / "history.json", {"history": place.history, "notes": place.notes})
    return Trained(
        run.model,
        place.history,
        final,
        list(place.notes),
        "early" if place.stopped else "finished",
        bool(falling),
        run.folder,
        weights,
        curves,
        place.best,
    )


def _known(run: Run, weights: Path) -> dict[str, Any] | None:
    """Load the final weights of a run that was finished before; None where it was not, or went on since."""
    try:
        final = json.loads((run.folder / "final.json").read_bytes())
        data = weights.read_bytes()
        same = (final["taken"], final["epochs"]) == (run.place.taken, run.place.epoch)
        if not same or final["sha256"] != hashlib.sha256(data).hexdigest():
            return None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    load_weights(run.model, data, str(weights))
    return final


def _final_weights(run: Run) -> dict[str, Any]:
    """Put the weights that the settings ask for into the network; return what they are."""
    place, training = run.place, run.training
    stage = run.stages[place.stage]
    final: dict[str, Any] = {"weights": f"stage {place.stage + 1}, epoch {place.epoch}"}
    averaged = None if run.work is None else run.work.averaged
    if averaged is not None and int(averaged.n_averaged) > 0:
        run.model.load_state_dict(averaged.module.state_dict())
        _refresh(run)
        final["weights"] = f"{training.average} of stage {place.stage + 1} ({stage.title})"
    elif training.restore_best and place.best is not None:
        run.model.load_state_dict(run.checkpoints.read_weights(place.best["file"]))
        final["weights"] = f"best: stage {place.best['stage']}, epoch {place.best['epoch']}"
    if training.average != "none" and "best" in final["weights"]:
        run.say(f"no epoch counted for {training.average}: the best weights stand in")
    if training.interpolate is not None:
        _interpolate(run, final)
    return final


def _interpolate(run: Run, final: dict[str, Any]) -> None:
    if not run.place.anchor:
        run.say("interpolate: no stage trains more than the head, so there is nothing between two networks")
        return
    anchor = {name: t.to(run.device) for name, t in run.checkpoints.read_weights(run.place.anchor).items()}
    end = {name: value.clone() for name, value in run.model.state_dict().items()}
    alpha = run.training.interpolate
    if alpha == "auto" and not len(run.val):
        run.say("interpolate: 'auto' needs validation rows; 0.5 is used")
        alpha = 0.5
    if alpha == "auto":
        alpha, tried = choose_alpha(lambda a: _judge_between(run, anchor, end, a))
        final["tried"] = [{"alpha": a, "val_loss": j.loss, "val_accuracy": j.accuracy} for a, j in tried]
    _put_between(run, anchor, end, float(alpha))  # type: ignore[arg-type]
    final["alpha"] = float(alpha)  # type: ignore[arg-type]
    final["weights"] += f", interpolated at {float(alpha):g} from the weights with only the head trained"  # type: ignore[arg-type]


def _put_between(run: Run, anchor: dict[str, Tensor], end: dict[str, Tensor], alpha: float) -> None:
    run.model.load_state_dict(between(anchor, end, alpha))
    if alpha not in (0.0, 1.0):
        _refresh(run)


def _judge_between(run: Run, anchor: dict[str, Tensor], end: dict[str, Tensor], alpha: float) -> Judged:
    _put_between(run, anchor, end, alpha)
    return _judge(run, run.val, f"interpolation at {alpha:g}")


def _refresh(run: Run) -> None:
    """Estimate the statistics of trained batch norms for weights that no step has made."""
    stage = run.stages[run.place.stage]
    order = epoch_order(run.feed.ids, run.rows, run.training.seed, len(run.stages), 0)

    def batches() -> Iterator[Tensor]:
        size = run.micro.of(stage.batch_size)
        for step, start in enumerate(range(0, len(order) - (len(order) % size == 1), size)):
            images, _ = run.feed.batch(order[start : start + size], len(run.stages), 0, step, True)
            yield images.to(run.device)

    while True:
        set_modes(run.model, run.blocks, stage, stage.batch_norm or run.training.batch_norm)
        try:
            with autocast(run.training.amp, run.device):
                refresh_norms(run.model, batches)
            break
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        run.micro.halve(stage.batch_size, "statistics of the averaged network")
    run.model.eval()


def _judge(run: Run, rows: np.ndarray, moment: str) -> Judged:
    batch = run.stages[run.place.stage].batch_size
    return judge(
        run.model, run.feed, rows, run.objective, batch=batch, micro=run.micro, amp=run.training.amp, where=moment
    )


def _judge_final(run: Run, final: dict[str, Any]) -> None:
    run.model.eval()
    for part in ("val", "test"):
        rows = np.asarray(run.feed.rows.get(part, []), dtype=np.intp)
        if len(rows):
            with torch.no_grad():
                judged = _judge(run, rows, f"final evaluation on {part}")
            final |= {f"{part}_loss": judged.loss, f"{part}_accuracy": judged.accuracy}
