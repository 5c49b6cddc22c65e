"""What was given, told without importing what heads and networks need."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from .archive import is_archive

__all__ = ["is_bundle", "is_module"]


def is_module(thing: Any) -> bool:
    """Whether something is a network; imports no torch, since without it nothing is."""
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(thing, torch.nn.Module)


def is_bundle(path: Any) -> bool:
    """Whether something is the path of a bundle."""
    return isinstance(path, (str, os.PathLike)) and is_archive(Path(path))
