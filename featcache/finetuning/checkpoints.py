"""What survives of a run: checkpoints between two steps, published as the store's files are.

A checkpoint is one file: a line of JSON (the place, the names of the files of weights that belong to it, a checksum of
all that follows and of the place), then what ``torch.save`` writes. It is read with ``weights_only=True``: it can hold
tensors and plain values, and no code. Of checkpoints the last two are kept, so that one damaged file costs little.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ..errors import FinetuneError
from ..files import DISK, Disk, publish, publish_bytes, remove_stale, unique_name
from .place import Place

__all__ = ["Checkpoints", "load_weights", "weights_bytes"]

_FORMAT = 1
_KEPT = 2
_STALE_SECONDS = 3600.0


class _Damaged(Exception):
    """A checkpoint cannot be taken up; the text says why."""


def weights_bytes(state: Mapping[str, Tensor]) -> bytes:
    """Return a state dict as a safetensors file; tensors that share memory are written each."""
    return save_tensors({name: value.detach().cpu().contiguous().clone() for name, value in state.items()})


def load_weights(model: nn.Module, data: bytes, where: str) -> None:
    """Load a safetensors file into a network; FinetuneError where it does not fit."""
    try:
        model.load_state_dict(load_tensors(data))
    except (SafetensorError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise FinetuneError(f"{where}: expected the network's weights, got others ({reason}); run again") from error


class Checkpoints:
    """The checkpoints of one run.

    Parameters
    ----------
    folder : Path
        Exists.
    say : callable
        Told when a file is damaged.
    disk : Disk, default=None
        The layer to write through.
    """

    def __init__(self, folder: Path, say: Callable[[str], None], disk: Disk | None = None) -> None:
        self.folder, self.say, self.disk = folder, say, disk or DISK
        remove_stale(folder, _STALE_SECONDS, names=".*.tmp", disk=self.disk)

    def _all(self) -> list[Path]:
        """Return the checkpoints, the newest first."""
        return sorted(self.folder.glob("checkpoint-*.pt"), reverse=True)

    def save(self, place: Place, state: Mapping[str, Any]) -> Path:
        """Write a checkpoint, and remove what is no longer needed.

        Parameters
        ----------
        place : Place
            Where the run is.
        state : mapping
            State dicts: tensors and plain values.

        Returns
        -------
        Path

        Raises
        ------
        FinetuneError
            When another process writes into the folder, or the state holds objects that cannot be read back safely.
        """
        buffer = io.BytesIO()
        torch.save(dict(state), buffer)
        payload = buffer.getbuffer()
        here = json.dumps(place.as_dict(), allow_nan=False)
        header = json.dumps({"format": _FORMAT, "sha256": _digest(here, payload), "place": here}).encode() + b"\n"
        newest = self._all()
        number = 1 + (int(newest[0].stem.rpartition("-")[2]) if newest else 0)
        target = self.folder / f"checkpoint-{number:08d}.pt"
        temporary = self.folder / f".{unique_name('.tmp')}"
        self.disk.write(temporary, [header, payload])
        try:
            publish(temporary, target, verify=self._verify, disk=self.disk)
        except FileExistsError:
            raise FinetuneError(
                f"{self.folder}: expected to be the only run in this folder, but another process has written "
                f"{target.name}; wait for it, or use another folder"
            ) from None
        except _Damaged as error:
            raise FinetuneError(
                f"{target.name}: expected state that can be read back without running code, got: {error}; use another "
                "scheduler or optimiser"
            ) from error
        self._clean(place)
        return target

    def _verify(self, path: Path) -> None:
        _read(path)

    def load(self) -> tuple[Place, dict[str, Any]] | None:
        """Return the newest checkpoint that is whole, or None.

        Returns
        -------
        place : Place
        state : dict
            As `save` took it, on the CPU.
        """
        for path in self._all():
            try:
                return _read(path)
            except _Damaged as error:
                self.say(f"{path.name}: {error}; the checkpoint before it is taken up")
                # Out of the way of the numbers, but there for whoever wants to know.
                with contextlib.suppress(OSError):
                    self.disk.rename(path, path.with_name("damaged-" + path.name))
        return None

    def save_weights(self, kind: str, state: Mapping[str, Tensor]) -> str:
        """Write weights under a name that follows from what they are; returns the name."""
        data = weights_bytes(state)
        name = f"{kind}-{_named(data)}.safetensors"
        publish_bytes(self.folder / name, data, disk=self.disk)
        return name

    def read_weights(self, name: str) -> dict[str, Tensor]:
        """Return weights by the name that `save_weights` gave; FinetuneError where they are gone or damaged."""
        try:
            data = (self.folder / name).read_bytes()
        except OSError as error:
            raise self._lost(name, f"none ({error.strerror or error})") from error
        if _named(data) not in name:
            raise self._lost(name, "a damaged file")
        return load_tensors(data)

    def _lost(self, name: str, got: str) -> FinetuneError:
        return FinetuneError(f"{self.folder / name}: expected the run's weights, got {got}; run in a new folder")

    def _clean(self, place: Place) -> None:
        """Remove older checkpoints, and weights that no checkpoint names any more."""
        kept, named = self._all()[:_KEPT], {(place.best or {}).get("file"), place.anchor}
        for path in kept:
            with contextlib.suppress(_Damaged):
                there = _header(path)[0]
                named |= {(there.best or {}).get("file"), there.anchor}
        for path in self._all()[_KEPT:]:
            self.disk.unlink(path)
        for kind in ("best", "anchor"):
            for path in self.folder.glob(f"{kind}-*.safetensors"):
                if path.name not in named:
                    self.disk.unlink(path)


def _named(data: bytes) -> str:
    """Return the part of a file's name that follows from its content."""
    return hashlib.sha256(data).hexdigest()[:16]


def _digest(here: str, payload: memoryview | bytes) -> str:
    digest = hashlib.sha256(here.encode() + b"\n")
    digest.update(payload)
    return digest.hexdigest()


def _header(path: Path) -> tuple[Place, str, str, int]:
    """Return the place, its text, the checksum, and where the payload begins, which is not read."""
    try:
        with path.open("rb") as file:
            line = file.readline()
        header = json.loads(line)
        if header["format"] != _FORMAT:
            raise _Damaged(f"format {header['format']}, which this version does not know")
        return Place(**json.loads(header["place"])), header["place"], header["sha256"], len(line)
    except OSError as error:
        raise _Damaged(f"cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError) as error:
        raise _Damaged("is damaged: its first line is not whole") from error


def _read(path: Path) -> tuple[Place, dict[str, Any]]:
    place, here, digest, start = _header(path)
    try:
        payload = memoryview(path.read_bytes())[start:]
    except OSError as error:
        raise _Damaged(f"cannot be read ({error.strerror or error})") from error
    if _digest(here, payload) != digest:
        raise _Damaged("is damaged: its checksum is another")
    try:
        return place, torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise _Damaged(str(error).splitlines()[0]) from error
