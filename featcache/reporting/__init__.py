"""How results look: tables, JSON, Markdown, plots, and one HTML page. Knows nothing of codes and heads."""

from .result import Result

__all__ = ["Result"]
