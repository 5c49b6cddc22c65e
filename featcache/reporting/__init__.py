"""How results look: tables, JSON, Markdown, plots, and one HTML page. Knows nothing of codes and heads.

``document`` says what a report is made of, ``page`` and ``markdown`` write it, ``drawing`` makes its plots, ``style``
holds the page's look, and ``escaping`` is the one way of any text into it.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__all__ = [
    "Block",
    "Card",
    "Cards",
    "Cloud",
    "Document",
    "Facts",
    "Figure",
    "Gallery",
    "Matrix",
    "Picture",
    "Points",
    "Result",
    "SMALLER_IS_BETTER",
    "Section",
    "Strips",
    "Table",
    "Text",
]

if TYPE_CHECKING:
    from .document import Block as Block
    from .document import Card as Card
    from .document import Cards as Cards
    from .document import Cloud as Cloud
    from .document import Document as Document
    from .document import Facts as Facts
    from .document import Figure as Figure
    from .document import Gallery as Gallery
    from .document import Matrix as Matrix
    from .document import Picture as Picture
    from .document import Points as Points
    from .document import Section as Section
    from .document import Strips as Strips
    from .document import Table as Table
    from .document import Text as Text
    from .result import SMALLER_IS_BETTER as SMALLER_IS_BETTER
    from .result import Result as Result


def __getattr__(name: str) -> Any:  # the command line's help escapes text, and imports no NumPy for it
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    place = "result" if name in ("Result", "SMALLER_IS_BETTER") else "document"
    return getattr(importlib.import_module(f".{place}", __name__), name)
