"""Fine-tuning: a network that begins at a head's accuracy, trained stage by stage.

* ``blocks``: what can be frozen and unfrozen, and where a network can be split
* ``normalising``: which norms keep their running statistics
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .blocks import Block as Block
    from .blocks import blocks_of as blocks_of
    from .blocks import head_parameters as head_parameters
    from .blocks import split_after as split_after
    from .normalising import set_training as set_training

_WHERE = {
    "Block": "blocks",
    "blocks_of": "blocks",
    "head_parameters": "blocks",
    "split_after": "blocks",
    "set_training": "normalising",
}

__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f".{_WHERE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
