"""What a run's folder says about the run: its settings, so that it is only ever continued as itself; its history."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..errors import FinetuneError
from ..files import make_folder, publish_bytes
from ..fingerprint import describe_difference, digest_tensors
from ..sources import ImageSource
from .blocks import Block
from .feeding import Feed
from .settings import Training

__all__ = ["Record", "check_folder", "digest_of", "write_json"]

#: 2: the scores of a fitted head are softened when blocks begin to train.
_FORMAT = 2

#: Settings that change no number.
_FREE = ("checkpoint_minutes", "device")


def digest_of(model: nn.Module) -> str:
    """Return the digest of a network's weights and buffers."""
    return digest_tensors(
        (
            name,
            str(value.dtype).removeprefix("torch."),
            tuple(value.shape),
            value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            if value.numel()
            else np.zeros(0, "u1"),
        )
        for name, value in model.state_dict().items()
    )


def write_json(path: Path, content: Any) -> None:
    """Write a small JSON file, durably."""
    publish_bytes(path, json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False).encode() + b"\n")


def check_folder(folder: Path, source: ImageSource) -> None:
    """Raise FinetuneError for a folder that holds other things than a run, or lies among the images."""
    inside = Path(source.location).is_dir() and folder.resolve().is_relative_to(Path(source.location).resolve())
    if source.location and inside:
        raise FinetuneError(
            f"{folder}: expected a folder outside of the images in {source.location}, where its curves would count as "
            "one of them; give another"
        )
    if not folder.is_dir() or (folder / "run.json").exists():
        return
    # What a run writes before its settings are known.
    foreign = {path.name for path in folder.iterdir() if not path.name.startswith(".")} - {"start.head", "start.json"}
    if foreign:
        raise FinetuneError(
            f"{folder}: expected a new or empty folder, or that of a run, got one with {min(foreign)!r} and no "
            "run.json; give another"
        )


class Record:
    """``run.json``: what a run is made of.

    Parameters
    ----------
    folder : Path
        Of the run; made where it is missing.
    model : nn.Module
        As it is before the first step.
    feed : Feed
        The images.
    training : Training
        The settings.
    blocks : sequence of Block
        Of the model.
    about : mapping, default=None
        What else it depends on.

    Attributes
    ----------
    new : bool
        Whether the folder had no run.
    extended : bool
        Whether the run in the folder is to become longer.
    notes : list of str
        What differs from the run in the folder and does not stop it.
    """

    def __init__(
        self,
        folder: Path,
        model: nn.Module,
        feed: Feed,
        training: Training,
        blocks: Sequence[Block],
        about: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = folder / "run.json"
        settings = {name: value for name, value in training.as_dict().items() if name not in _FREE}
        stages = settings.pop("stages")
        self.content: dict[str, Any] = {
            "format": _FORMAT,
            "run": {
                **(about or {}),
                "model": digest_of(model),
                "blocks": [block.name for block in blocks],
                "images": feed.digest,
                **{f"stage {i}": stage for i, stage in enumerate(stages, 1)},
                **settings,
            },
            "environment": {
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
                "device": str(next(model.parameters()).device.type),
            },
        }
        self.last = f"stage {len(stages)}"
        self.new, self.extended, self.notes = True, False, list[str]()

    def open(self, resume: bool) -> None:
        """Begin a run, or go on with the one that is in the folder.

        Parameters
        ----------
        resume : bool
            False: there must be none.

        Raises
        ------
        FinetuneError
            When the run in the folder is another one; the message says what differs.
        """
        make_folder(self.path.parent)
        there = self._there()
        if there is None and any(self.path.parent.glob("checkpoint-*.pt")):
            raise FinetuneError(
                f"{self.path}: expected the settings of the run whose checkpoints are in the folder, got none; put the "
                "file back, or give another folder"
            )
        if there is None:
            write_json(self.path, self.content)
            return
        if not resume:
            raise FinetuneError(f"{self.path.parent}: expected a folder without a run; give another, or resume it")
        self.new = False
        self._compare(there)

    def accept(self) -> None:
        """Write down the new settings of an extended run."""
        write_json(self.path, self.content)

    def _there(self) -> dict[str, Any] | None:
        try:
            there = json.loads(self.path.read_bytes())
            if not isinstance(there, dict) or not isinstance(there.get("run"), dict):
                raise ValueError("no settings in it")
            return there
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise FinetuneError(f"{self.path}: expected what a run wrote, got: {error}; give another folder") from error

    def _compare(self, there: dict[str, Any]) -> None:
        if there.get("format") != _FORMAT:
            raise FinetuneError(
                f"{self.path}: expected a run of format {_FORMAT}, got one of another version of featcache "
                f"({there.get('format')!r}); give another folder, or finish it with that version"
            )
        old, new = there.get("run", {}), self.content["run"]
        differences = [line for line in describe_difference(old, new) if not self._longer(line, old, new)]
        if differences:
            told = "; ".join(differences[:6]) + (f" and {len(differences) - 6} more" if len(differences) > 6 else "")
            raise FinetuneError(
                f"{self.path.parent}: expected the run that is in the folder, got another: {told}; "
                "repeat its settings, give more epochs to its last stage, or give another folder"
            )
        self.extended = old != new
        if self.extended:
            self._say_span(old, new)
        for line in describe_difference(there.get("environment", {}), self.content["environment"]):
            self.notes.append(f"the run began with {line}: the last bits of its numbers may differ")

    def _say_span(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        """Say where an extension changes the schedule."""
        spans = [stage["schedule_epochs"] or stage["epochs"] for stage in (old[self.last], new[self.last])]
        schedule = new[self.last]["schedule"]
        if spans[0] != spans[1] and schedule in ("cosine", "linear"):
            self.notes.append(
                f"{self.last}: its {schedule} schedule spanned {spans[0]} epochs and spans {spans[1]} from here on; "
                "schedule_epochs says beforehand how long it may become"
            )

    def _longer(self, line: str, old: dict[str, Any], new: dict[str, Any]) -> bool:
        """Whether a difference is only that the last stage becomes longer."""
        if not isinstance(old.get(self.last), dict):
            return False
        for name in ("epochs", "schedule_epochs"):
            if line.startswith(f"{self.last}.{name}:"):
                before, after = old[self.last][name], new[self.last][name]
                return before is None or after is None or after > before
        return False
