"""How results look: tables, JSON, Markdown, plots, and one HTML page. Knows nothing of codes and heads."""

from .result import SMALLER_IS_BETTER, Result

__all__ = ["SMALLER_IS_BETTER", "Result"]
