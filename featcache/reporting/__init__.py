"""How results look: tables, JSON, Markdown, plots, and one HTML page. Knows nothing of codes and heads.

``document`` says what a report is made of, ``page`` and ``markdown`` write it, ``drawing`` makes its plots, ``style``
holds the page's look, and ``escaping`` is the one way of any text into it.
"""

from .document import (
    Block,
    Card,
    Cards,
    Cloud,
    Document,
    Facts,
    Figure,
    Gallery,
    Matrix,
    Picture,
    Points,
    Section,
    Strips,
    Table,
    Text,
)
from .result import SMALLER_IS_BETTER, Result

__all__ = [
    "SMALLER_IS_BETTER",
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
    "Section",
    "Strips",
    "Table",
    "Text",
]
